"""Archives on real hosts: made, migrated, kept as long as the policy says and a verified backup allows, restored elsewhere."""

import json
import sys
import textwrap
import urllib.request

import boto3.session
import pytest
from botocore.config import Config

from settings.archive import TAG
from tests.lab import network
from tests.lab.ceph import Ceph
from tests.lab.state import Process, slot_directory, wait_for

pytestmark = pytest.mark.soak

BACKUP, OWNER, WRITER, READER = "canary-backup-password-of-the-lab", "canary-owner-password", "canary-writer-password", "canary-backup-role"
REPOSITORY, FILES = "/var/backups/hostwright", "/var/lib/liap/archive"
DAY = 86400

POSTGRES = textwrap.dedent("""\
    import os
    from deploys import current
    from operations import archive, backup, pgcluster
    from operations.pgcluster import Role
    from settings.archive import Postgres, Retention
    from settings.secret import Secret
    where = Postgres("liap_archive", owner="liap_owner", writers=["liap"])
    pgcluster.cluster(memory_mb=256, name="Server")
    pgcluster.database(
        "liap_archive", owner=Role("liap_owner", Secret(os.environ["LAB_OWNER"])), roles=[Role("liap", Secret(os.environ["LAB_WRITER"]))],
        guests=["hostwright_backup"], name="Database",
    )
    archive.schema(where, name="Schema")
    backup.source(
        "liap", policy=current().backup, kind="postgres", minimum={"archive.completed_games": 1},
        server=backup.Postgres("liap_archive", Secret(os.environ["LAB_READER"]), host="127.0.0.1"), name="Backup",
    )
    archive.retention("liap", backend=where, policy=Retention(days=DAYS), source="liap", backups=current().backup, name="Retention")
    """)
FILESYSTEM = textwrap.dedent(f"""\
    from deploys import current
    from deploys.archive import archive
    from settings.archive import Filesystem, Retention
    archive("games", Filesystem("{FILES}"), Retention(days=DAYS), current().backup)
    """)
# moto takes the age of an object from its key, so that there are old ones
AGED = textwrap.dedent("""\
    import datetime, re, sys
    from moto.s3.models import FakeKey
    from moto.server import main
    made = FakeKey.__init__
    def aged(self, *words, **more):
        made(self, *words, **more)
        days = re.search(r"-(\\d+)-days", self.name)
        if days:
            self.last_modified -= datetime.timedelta(days=int(days[1]))
    FakeKey.__init__ = aged
    main(sys.argv[1:])
    """)


@pytest.fixture(scope="module")
def converge(provision):
    def run(host, text, days=90, dry=False, **env):
        return provision(
            host, text.replace("DAYS", str(days)), data={"backup_password": "env:LAB_BACKUP_PASSWORD"}, dry=dry,
            env={"LAB_BACKUP_PASSWORD": BACKUP, "LAB_OWNER": OWNER, "LAB_WRITER": WRITER, "LAB_READER": READER, **env},
        )  # fmt: skip

    return run


def sql(host, text: str, role: str = "") -> str:
    if not role:
        return host.run("cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d liap_archive", input=text).stdout.strip()
    password = {"liap": WRITER, "liap_owner": OWNER}[role]
    words = f'PGPASSWORD={password} psql -XAtq "host=127.0.0.1 dbname=liap_archive user={role}" 2>&1'
    return host.run(words, input=text, check=False).stdout.strip()


def play(host, name: str, days: float, archived: float | None = None, events: int = 2) -> None:
    """A game that was finished, and archived, so many days ago."""
    archived = days if archived is None else archived
    said = sql(host, f"""
        INSERT INTO archive.completed_games (game_id, room_id, game_data, completed_at, archived_at, winner_name)
        VALUES ('{name}', 'room', '{{"moves": 3}}', now() - interval '{days} days', now() - interval '{archived} days', 'somebody');
        INSERT INTO archive.game_events (game_id, event_type, event_data, event_timestamp, archived_at)
        SELECT '{name}', 'move', '{{}}', now() - interval '{days} days', now() - interval '{archived} days' FROM generate_series(1, {events})
        """, "liap")  # fmt: skip
    assert said == ""


def games(host) -> list[str]:
    return sql(host, "SELECT game_id FROM archive.completed_games ORDER BY 1").split()


def job(host, name: str, check: bool = True):
    """Run the retention as its timer does; return what it said."""
    done = host.run(f"systemctl start hostwright-archive-{name}", check=False, timeout=300)
    said = host.run(f"journalctl -q --sync; journalctl -o cat --no-pager _SYSTEMD_INVOCATION_ID=$(systemctl show -p InvocationID --value hostwright-archive-{name})").stdout
    assert (done.returncode == 0) == check, said
    return said


def copy(host, name: str, drill: bool = True) -> None:
    host.run(f"systemctl start hostwright-backup-{name}", timeout=300)
    if drill:
        host.run(f"systemctl start hostwright-backup-{name}-drill", timeout=300)


def test_schema_is_made_once_and_a_handmade_one_migrated(host, converge):
    run = converge(host, POSTGRES)
    assert (run.ok, run.changed) == (True, ["Server", "Database", "Schema", "Backup", "Retention"]), run
    assert sql(host, "SELECT string_agg(version::text, ',' ORDER BY version) FROM archive.schema_version") == "1,2"
    assert converge(host, POSTGRES).changed == []
    assert converge(host, POSTGRES, dry=True).changed == []
    play(host, "one", 1)
    for forbidden in ("DELETE FROM archive.completed_games", "TRUNCATE archive.game_events", "DROP TABLE archive.game_events"):
        assert "ERROR" in sql(host, forbidden, "liap"), forbidden

    # the guide's own script, with rows in it, as a database of before would have it
    guide = "DROP SCHEMA archive CASCADE; CREATE SCHEMA archive; SET search_path = archive;"
    guide += """
        CREATE TABLE completed_games (game_id VARCHAR(50) PRIMARY KEY, room_id VARCHAR(50) NOT NULL, game_data JSONB NOT NULL,
            completed_at TIMESTAMPTZ NOT NULL, archived_at TIMESTAMPTZ DEFAULT NOW(), game_duration_seconds INTEGER,
            winner_name VARCHAR(100), final_scores JSONB);
        CREATE INDEX idx_completed_games_room ON completed_games(room_id);
        CREATE TABLE game_events (id BIGSERIAL PRIMARY KEY, game_id VARCHAR(50) REFERENCES completed_games(game_id),
            event_type VARCHAR(100) NOT NULL, event_data JSONB NOT NULL, event_timestamp TIMESTAMPTZ NOT NULL, archived_at TIMESTAMPTZ DEFAULT NOW());
        INSERT INTO completed_games VALUES ('before', 'room', '{}', now() - interval '3 days', NULL);
        INSERT INTO game_events (game_id, event_type, event_data, event_timestamp) VALUES ('before', 'move', '{}', now());"""
    sql(host, guide)
    assert converge(host, POSTGRES, dry=True).changed == ["Schema"]
    assert converge(host, POSTGRES).changed == ["Schema"]
    assert games(host) == ["before"]
    assert sql(host, "SELECT archived_at IS NOT NULL, tableowner FROM archive.completed_games, pg_tables WHERE tablename = 'game_events'") == "t|liap_owner"
    assert sql(host, "SELECT confdeltype FROM pg_constraint WHERE conname = 'game_events_game_id_fkey'") == "c"
    play(host, "after", 1)
    assert converge(host, POSTGRES).changed == []
    # a release that comes back finds the database ahead
    sql(host, "INSERT INTO archive.schema_version VALUES (99)")
    assert converge(host, POSTGRES).changed == []
    sql(host, "DELETE FROM archive.schema_version WHERE version = 99")


def test_rows_go_when_their_time_is_over_and_a_verified_copy_holds_them(host, converge):
    sql(host, "TRUNCATE archive.completed_games CASCADE")
    play(host, "past-limit", 91)
    play(host, "inside", 89)
    play(host, "late", 95, archived=0)
    play(host, "late-event", 96)
    sql(host, "INSERT INTO archive.game_events (game_id, event_type, event_data, event_timestamp) VALUES ('late-event', 'added', '{}', now())")
    everything = games(host)

    said = job(host, "liap", check=False)
    assert "nothing is removed: no copy of liap is verified in primary: drill it" in said
    assert games(host) == everything
    copy(host, "liap", drill=False)
    assert "no copy of liap is verified" in job(host, "liap", check=False), "a copy that nobody restored has been enough"
    assert games(host) == everything

    copy(host, "liap")
    assert "1 would be removed" in host.run("/usr/local/lib/hostwright/archive look liap").stdout
    assert games(host) == everything
    said = job(host, "liap")
    assert "1 removed" in said
    assert "2 of that age stay: in no verified copy" in said
    assert games(host) == ["inside", "late", "late-event"]
    assert sql(host, "SELECT count(*) FROM archive.game_events WHERE game_id = 'past-limit'") == "0"
    assert sql(host, "SELECT count(*) FROM archive.game_events WHERE game_id = 'inside'") == "2"
    assert "0 removed" in job(host, "liap")
    state = json.loads(host.read("/var/lib/hostwright/archive/liap.json"))
    assert (state["failed"], state["removed"], state["uncovered"], state["kept"]) == (0, 0, 2, 3)

    # a shorter policy is a change; the rows go at the next run
    assert converge(host, POSTGRES, days=30).changed == ["Retention"]
    assert "1 removed" in job(host, "liap")
    assert games(host) == ["late", "late-event"]
    assert converge(host, POSTGRES).changed == ["Retention"]


def test_a_stale_copy_and_a_lost_repository_stop_it(host):
    play(host, "waits", 200)
    everything = games(host)
    config = host.read("/etc/hostwright/archive/liap.json")
    # the same as waiting for nine days
    host.write("/etc/hostwright/archive/liap.json", config.replace('"fresh_days": 9', '"fresh_days": 0'), mode="0600")
    assert "older than 0 days: see to its backup" in job(host, "liap", check=False)
    host.write("/etc/hostwright/archive/liap.json", config, mode="0600")
    host.run(f"mv {REPOSITORY} /root/away")
    assert "nothing is removed: the copies of liap cannot be listed" in job(host, "liap", check=False)
    host.run(f"mv /root/away {REPOSITORY}")
    assert games(host) == everything
    assert "1 removed" in job(host, "liap")
    exposed = host.run("systemd-analyze security --no-pager hostwright-archive-liap.service").stdout.splitlines()[-1]
    assert float(exposed.split(": ")[1].split()[0]) <= 2.5, exposed


def test_a_new_archive_of_files_fails_nothing_before_the_first_game(host, converge):
    text = FILESYSTEM.replace('"games"', '"new"').replace(FILES, "/var/lib/liap/new")
    run = converge(host, text)
    assert (run.ok, len(run.changed)) == (True, 3), run
    # no backup was due yet, and nothing is past its limit
    host.run("systemctl start hostwright-backup-new-drill", timeout=300)
    assert "nothing is older than" in job(host, "new")
    copy(host, "new")
    assert "0 removed" in job(host, "new")
    state = json.loads(host.read("/var/lib/hostwright/backup/new.json"))
    assert (state["failure"], state["rows"], bool(state["last_verified"])) == ("", {"files": 0}, True)

    # what came and is gone is a loss, and no copy of nothing takes the place of it
    host.run("echo '{}' >/var/lib/liap/new/game.json")
    copy(host, "new")
    host.run("mv /var/lib/liap/new/game.json /root/")
    done = host.run("systemctl start hostwright-backup-new", check=False, timeout=300)
    assert (done.returncode != 0, "holds no file, and 1 when copy" in host.read("/var/lib/hostwright/backup/new.json")) == (True, True)
    host.run("mv /root/game.json /var/lib/liap/new/")
    copy(host, "new", drill=False)
    assert converge(host, text).changed == []


def test_files_go_likewise(host, converge):
    host.run(f"mkdir -p {FILES}/2026 && cd {FILES} && for d in 1 89 91 400; do echo '{{}}' >2026/game-$d.json; touch -d \"$d days ago\" 2026/game-$d.json; done; "
             f"ln -s /etc/hostname link.json; mkdir /root/outside; echo x >/root/outside/x; ln -s /root/outside {FILES}/elsewhere")  # fmt: skip
    run = converge(host, FILESYSTEM)
    steps = ["Make the archive's directory", "Back up the archive's files", "Keep the archive as long as its policy"]
    assert (run.ok, run.changed) == (True, [f"Archive | {step}" for step in steps]), run
    assert converge(host, FILESYSTEM).changed == []
    listed = f"cd {FILES}/2026 && ls"
    assert "no copy of games is verified" in job(host, "games", check=False)
    copy(host, "games")
    # they came five minutes ago, whatever date they bear: a copy is only good for what was there when it began
    assert "0 removed" in job(host, "games")
    assert len(host.run(listed).stdout.split()) == 4
    # the time that has to pass, for the program alone: ctime cannot be set
    early = "sed 's/^COPYING = .*/COPYING = timedelta(0)/' /usr/local/lib/hostwright/archive >/root/early; python3 -B /root/early purge games"
    host.run("systemctl start hostwright-backup-games hostwright-backup-games-drill; systemctl start hostwright-backup-games-drill", timeout=300)
    assert "2 removed" in host.run(early).stdout
    assert sorted(host.run(listed).stdout.split()) == ["game-1.json", "game-89.json"]
    assert host.exists("/root/outside/x")
    assert host.exists("/etc/hostname")


def test_objects_are_tagged_likewise(lab, host, converge, tmp_path):
    server = Process(slot_directory(lab.slot) / "processes" / "aged.pid")
    program = tmp_path / "aged.py"
    program.write_text(AGED)
    address = network.gateway(lab.slot)
    server.start(sys.executable, program, "-H", address, "-p", "8333", log=tmp_path / "log")
    url = f"http://{address}:8333"

    def answers() -> bool:
        try:
            return bool(urllib.request.urlopen(f"{url}/moto-api/", timeout=5).read(1))
        except OSError:
            return False

    wait_for("moto's server", answers, 120, pause=0.3)
    try:
        text = textwrap.dedent(f"""\
            from deploys import current
            from operations import archive, backup, s3
            from settings.archive import Retention, S3
            from settings.s3 import Bucket, Server
            from settings.secret import Secret
            server = Server(region="eu-central-1", endpoint_url="{url}", path_style=True, access_key=Secret("key"), secret_key=Secret("canary-s3-secret"))
            where = S3("liap-archives", "games/", server, access_key=Secret("key"), secret_key=Secret("canary-s3-secret"))
            policy = Retention(days=DAYS)
            s3.bucket("liap-archives", server, Bucket(lifecycle=where.lifecycle(policy), tls_only=False), name="Bucket")
            backup.source("objects", policy=current().backup, kind="bucket", server=backup.Bucket(
                "liap-archives", "{url}", Secret("key"), Secret("canary-s3-secret"), "eu-central-1"), name="Backup objects")
            archive.retention("objects", backend=where, policy=policy, source="objects", backups=current().backup, name="Retention objects")
            """)
        run = converge(host, text)
        assert (run.ok, run.changed) == (True, ["Bucket", "Backup objects", "Retention objects"]), run
        assert converge(host, text).changed == []
        s3 = boto3.session.Session().client(
            "s3", endpoint_url=url, region_name="eu-central-1", aws_access_key_id="key", aws_secret_access_key="canary-s3-secret",
            config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip
        keys = ["games/a-91-days.json", "games/b c+-400-days.json", "games/c-80-days.json", "games/d.json", "other/e-400-days.json"]
        for key in keys:
            s3.put_object(Bucket="liap-archives", Key=key, Body=b"{}")

        def tagged() -> list[str]:
            return [key for key in keys if s3.get_object_tagging(Bucket="liap-archives", Key=key)["TagSet"]]

        assert "no copy of objects is verified" in job(host, "objects", check=False)
        assert tagged() == []
        copy(host, "objects")
        assert "2 tagged, to be removed by the bucket's rule" in job(host, "objects")
        assert tagged() == keys[:2]
        rules = s3.get_bucket_lifecycle_configuration(Bucket="liap-archives")["Rules"]
        assert {"Prefix": "games/", "Tags": [{"Key": "hostwright-archive", "Value": "backed-up"}]} in [rule["Filter"].get("And") for rule in rules]
        assert "canary" not in host.read("/etc/hostwright/archive/objects.json")
        assert host.run("stat -c '%a %U' /etc/hostwright/archive/objects.env").stdout == "600 root\n"
    finally:
        server.stop()


def test_an_archive_comes_back_on_a_fresh_host(host, fresh_host, converge):
    sql(host, "TRUNCATE archive.completed_games CASCADE")
    for number in range(20):
        play(host, f"game-{number}", number + 75)
    copy(host, "liap")
    assert "removed" in job(host, "liap")
    kept = games(host)
    assert 10 < len(kept) < 20
    copy(host, "liap")
    digest = "SELECT md5(string_agg(g::text, '|' ORDER BY game_id)), (SELECT md5(string_agg(e::text, '|' ORDER BY id)) FROM archive.game_events e) FROM archive.completed_games g"
    before = sql(host, digest)

    # the disk with the repository is put into a machine that has nothing else
    archive = host.run(f"tar -C {REPOSITORY} -c . | base64", timeout=300).stdout
    fresh_host.run(f"mkdir -p {REPOSITORY} && base64 -d | tar -C {REPOSITORY} -x", input=archive, timeout=300)
    run = converge(fresh_host, POSTGRES)
    assert run.ok, run
    assert games(fresh_host) == []
    # lab hosts have names of their own; a machine that replaces another has its name in the inventory
    fresh_host.run(f"sed -i 's/^ \"host\": \"[^\"]*\"/ \"host\": \"{host.name}\"/' /etc/hostwright/backup/liap.json")
    fresh_host.run("/usr/local/lib/hostwright/backup restore liap --at verified", timeout=300)
    assert games(fresh_host) == kept
    assert sql(fresh_host, digest) == before
    play(fresh_host, "next", 0)
    again = converge(fresh_host, POSTGRES)
    assert "Schema" not in again.changed, again
    assert converge(fresh_host, POSTGRES).changed == []


def test_secrets_are_where_they_belong(host):
    words = "canary-owner|canary-writer|canary-backup"
    found = host.run(f"grep -rlE \"{words}\" /etc /var/log /var/lib/hostwright /run /tmp --exclude-dir=journal", check=False).stdout.split()
    assert {path for path in found if not path.startswith("/etc/hostwright/backup/")} == set()
    assert host.run(f"journalctl --no-pager | grep -cE \"{words}\"", check=False).stdout == "0\n"


def test_a_server_that_is_not_aws_keeps_the_rules(lab, provision):
    """Ceph gives them back in a form of its own, and removes by them: what is tagged and past its days, and that alone."""
    machine = lab.host("t-archive-ceph")
    ceph = Ceph(machine, day_seconds=1).start()
    keys = ceph.user("liap")
    text = textwrap.dedent(f"""\
        from operations import s3
        from settings.archive import Retention, S3
        from settings.s3 import Bucket, Server
        from settings.secret import Secret
        server = Server(region="default", endpoint_url="{ceph.url}", path_style=True, access_key=Secret("{keys.access_key}"), secret_key=Secret("{keys.secret_key}"))
        where = S3("liap-archives", "games/", server, access_key=Secret("a"), secret_key=Secret("b"))
        rules = Bucket(lifecycle=where.lifecycle(Retention(days=20)), public_access_blocked=None, encryption=None, policy=None, tls_only=False)
        s3.bucket("liap-archives", server, rules, name="Bucket")
        """)
    assert provision(machine, text).changed == ["Bucket"]
    s3 = boto3.session.Session().client(
        "s3", endpoint_url=ceph.url, region_name="default", aws_access_key_id=keys.access_key, aws_secret_access_key=keys.secret_key,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )  # fmt: skip
    rules = s3.get_bucket_lifecycle_configuration(Bucket="liap-archives")["Rules"]
    assert provision(machine, text).changed == [], rules
    assert [rule["Expiration"] for rule in rules if "Expiration" in rule] == [{"Days": 20}]

    put = {"games/old.json": TAG, "games/kept.json": "", "games/other.json": "hostwright-archive=no", "elsewhere/old.json": TAG}
    for key, tagging in put.items():
        s3.put_object(Bucket="liap-archives", Key=key, Body=b"{}", Tagging=tagging)

    def there() -> set[str]:
        # the server looks by itself too, at times of its own
        machine.run("radosgw-admin lc process", timeout=120)
        return {found["Key"] for found in s3.list_objects_v2(Bucket="liap-archives").get("Contents", [])}

    assert there() == set(put)
    wait_for("the object that is past its days", lambda: there() == set(put) - {"games/old.json"}, 240, pause=2)
    lab.destroy(machine)
