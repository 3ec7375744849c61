"""liap's archive through the whole deploy.py, on each backend: games come in, what is past its limit goes, and all of it comes back."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3.session
import pytest
from botocore.config import Config

from tests.lab import network
from tests.lab.lab import Lab
from tests.lab.liap_site import Site, names, play, site_of
from tests.lab.state import REPOSITORY, Process, slot_directory, wait_for
from tests.lab.test_archive import AGED

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]

DEPLOY = REPOSITORY / "deploy.py"
BARE = "bare-archive"
COPIES = "/var/backups/hostwright"
FILES = "/var/lib/liap/archive"
PROGRAM = "/usr/local/lib/hostwright/archive"


@pytest.fixture(scope="module")
def site(lab: Lab) -> Iterator[Site]:
    with site_of(lab, "t-liap-archive") as made:
        made.host.save(BARE)
        yield made


def fresh(site: Site, **settings: object) -> None:
    site.host.reset(BARE)
    run = site.run(DEPLOY, **settings)
    assert run.ok, run
    assert site.run(DEPLOY, **settings).changed == []


def job(site: Site, kind: str, check: bool = True) -> str:
    """Run the retention's unit, as its timer does; return what it said."""
    unit = f"hostwright-archive-liap-archive-{kind}"
    assert site.host.run(f"systemctl is-enabled {unit}.timer; systemctl is-active {unit}.timer").stdout.split() == ["enabled", "active"]
    done = site.host.run(f"systemctl start {unit}", check=False, timeout=300)
    said: str = site.host.run(f"journalctl -q --sync; journalctl -o cat --no-pager _SYSTEMD_INVOCATION_ID=$(systemctl show -p InvocationID --value {unit})").stdout
    assert (done.returncode == 0) == check, said
    return said


def copy(site: Site, kind: str, drill: bool = True) -> None:
    site.host.run(f"systemctl start hostwright-backup-liap-archive-{kind}", timeout=600)
    if drill:
        site.host.run(f"systemctl start hostwright-backup-liap-archive-{kind}-drill", timeout=600)


def becomes_another_machine(site: Site, **settings: object) -> None:
    """The same name in the inventory, and the disk with the copies; nothing else of what was there."""
    copies = site.host.run(f"tar -C {COPIES} -c . | base64", timeout=300).stdout
    site.host.reset(BARE)
    site.host.run(f"mkdir -p {COPIES} && base64 -d | tar -C {COPIES} -x", input=copies, timeout=300)
    run = site.run(DEPLOY, **settings)
    assert run.ok, run


def restore(site: Site, kind: str, **settings: object) -> None:
    done = site.type("deploys.backup.restore", f"source=liap-archive-{kind}", "at=verified", **settings)
    assert done.returncode == 0, done.stdout


def test_files(site: Site) -> None:
    host = site.host
    fresh(site)
    report = play(site, 20)
    assert report.lost == []
    wait_for("all games in files", lambda: site.archived() >= report.finished, 60)
    old = sorted(report.finished)[:5]
    for game in old:
        host.run(f"touch -d '91 days ago' $(find {FILES} -name {game}.json)")
    assert "no copy of liap-archive-filesystem is verified" in job(site, "filesystem", check=False)
    copy(site, "filesystem", drill=False)
    assert "no copy of liap-archive-filesystem is verified" in job(site, "filesystem", check=False), "a copy that nobody restored has been enough"
    copy(site, "filesystem")
    # they were given that date a moment ago: a copy is only good for what was there five hours before it
    assert "0 removed" in job(site, "filesystem")
    assert site.archived() == report.finished
    # the hours that have to pass: when a file came cannot be set
    host.run(f"sed -i 's/^COPYING = .*/COPYING = timedelta(0)/' {PROGRAM}")
    assert "5 removed" in job(site, "filesystem")
    kept = report.finished - set(old)
    assert site.archived() == kept
    # and it is put right
    run = site.run(DEPLOY)
    assert len(run.changed) == 1, run
    copy(site, "filesystem")
    sums = f"cd {FILES} && find . -type f -exec sha256sum {{}} + | sort"
    before = host.run(sums).stdout

    becomes_another_machine(site)
    assert site.archived() == set()
    # a running backend has the directory mounted that a restore moves aside
    for step in ("stop", "start"):
        done = site.type(f"deploys.liap.{step}")
        assert done.returncode == 0, done.stdout
        if step == "stop":
            restore(site, "filesystem")
    assert host.run(f"stat -c '%a %U' {FILES}").stdout == "750 liap\n"
    assert host.run(sums).stdout == before
    assert len(play(site, 10).finished) == 10
    wait_for("new games beside them", lambda: len(site.archived()) == len(kept) + 10, 60)
    assert site.run(DEPLOY).changed == []


def assert_checks_tell(site: Site, scratch: Path, kind: str, **settings: object) -> None:
    """``make verify`` passes where a verified archive is kept in bounds, and says what is wrong where it is not."""
    host, unit = site.host, f"hostwright-archive-liap-archive-{kind}"
    config, stamp = f"/etc/hostwright/archive/liap-archive-{kind}.json", f"/var/lib/systemd/timers/stamp-{unit}.timer"
    backup = f"hostwright-backup-liap-archive-{kind}"
    site.command(scratch, DEPLOY, **settings)

    def checks() -> str:
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/verify/test_liap.py", "-k", "in_bounds", "--inventory", scratch / "inventory.py"],
            cwd=REPOSITORY, text=True, capture_output=True, timeout=600,
        ).stdout  # fmt: skip

    found = checks()
    assert "1 passed" in found, found
    for broken, cured, said in (
        (f"systemctl stop {unit}.timer", f"systemctl start {unit}.timer", "timer does not run"),
        (f"systemctl disable {unit}.timer", f"systemctl enable {unit}.timer", "timer does not run"),
        (f"touch -d '31 hours ago' {stamp}", f"touch {stamp}", "has not gone off"),
        (f"sed -i 's/\"days\": 90/\"days\": 900/' {config}", f"sed -i 's/\"days\": 900/\"days\": 90/' {config}", "limit is 900 days"),
        (f"mv {COPIES} /root/away; ! systemctl start {unit}", f"mv /root/away {COPIES}; systemctl start {unit}", "last run has failed"),
        (f"mv {COPIES} /root/away; ! systemctl start {backup}", f"mv /root/away {COPIES}; systemctl start {backup}", "last backup, or its drill, has failed"),
    ):
        host.run(broken, timeout=300)
        found = checks()
        host.run(cured, timeout=300)
        assert said in found, found
    found = checks()
    assert "1 passed" in found, found


def test_checks_say_when_files_are_not_kept_in_bounds(site: Site, tmp_path: Path) -> None:
    if not site.host.exists("/etc/hostwright/archive/liap-archive-filesystem.json"):
        fresh(site)
        report = play(site, 10)
        wait_for("all games in files", lambda: site.archived() >= report.finished, 60)
    copy(site, "filesystem")
    job(site, "filesystem")
    assert_checks_tell(site, tmp_path, "filesystem")


def test_postgresql(site: Site, tmp_path: Path) -> None:
    settings = {"archive_backend": "postgresql"}
    fresh(site, **settings)
    ask = "docker exec -i liap-postgres-1 psql -U archive -d liap_archive -v ON_ERROR_STOP=1 -XAtq"

    def sql(text: str) -> str:
        return str(site.host.run(ask, input=text).stdout.strip())

    def games() -> set[str]:
        return set(sql("SELECT game_id FROM archive.completed_games").split())

    report = play(site, 20)
    assert report.lost == []
    wait_for("all games in the database", lambda: games() >= report.finished, 60)
    old = sorted(report.finished)[:5]
    those = ", ".join(f"'{game}'" for game in old)
    aged = "interval '91 days'"
    sql(f"UPDATE archive.completed_games SET completed_at = completed_at - {aged}, archived_at = archived_at - {aged} WHERE game_id IN ({those});"
        f"UPDATE archive.game_events SET event_timestamp = event_timestamp - {aged}, archived_at = archived_at - {aged} WHERE game_id IN ({those})")  # fmt: skip
    assert "no copy of liap-archive-postgresql is verified" in job(site, "postgresql", check=False)
    assert games() == report.finished
    copy(site, "postgresql")
    assert "5 removed" in job(site, "postgresql")
    kept = report.finished - set(old)
    assert games() == kept
    assert sql(f"SELECT count(*) FROM archive.game_events WHERE game_id IN ({those})") == "0"
    assert_checks_tell(site, tmp_path, "postgresql", **settings)
    copy(site, "postgresql")
    digest = "SELECT md5(string_agg(g::text, '|' ORDER BY game_id)), (SELECT md5(string_agg(e::text, '|' ORDER BY id)) FROM archive.game_events e) FROM archive.completed_games g"
    before = sql(digest)

    becomes_another_machine(site, **settings)
    assert games() == set()
    restore(site, "postgresql", **settings)
    assert sql(digest) == before
    assert len(play(site, 10).finished) == 10
    wait_for("new games beside them", lambda: len(games()) == len(kept) + 10, 60)
    assert site.run(DEPLOY, **settings).changed == []


def test_s3(lab: Lab, site: Site, tmp_path: Path) -> None:
    """A server on which some objects are old; that its rule then removes what is tagged is the server's."""
    server = Process(slot_directory(lab.slot) / "processes" / "aged.pid")
    (tmp_path / "aged.py").write_text(AGED)
    address = network.gateway(lab.slot)
    server.start(sys.executable, tmp_path / "aged.py", "-H", address, "-p", "8333", log=tmp_path / "log")
    url = f"http://{address}:8333"

    def answers() -> bool:
        try:
            return bool(urllib.request.urlopen(f"{url}/moto-api/", timeout=5).read(1))
        except OSError:
            return False

    wait_for("moto's server", answers, 120, pause=0.3)
    try:
        settings: dict[str, object] = {
            "archive_backend": "s3", "s3_endpoint_url": url, "archive_bucket_managed": True,
            "s3_admin_access_key": "env:LIAP_S3_ADMIN_ACCESS_KEY", "s3_admin_secret_key": "env:LIAP_S3_ADMIN_SECRET_KEY",
        }  # fmt: skip
        site.secrets |= {"LIAP_S3_ADMIN_ACCESS_KEY": "canary-admin-key", "LIAP_S3_ADMIN_SECRET_KEY": "canary-admin-secret-key"}
        # the bucket is not there yet: it is made
        fresh(site, **settings)
        s3 = boto3.session.Session().client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret",
            config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip

        def keys() -> list[str]:
            return [one["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket="liap-archives") for one in page.get("Contents", [])]

        def tagged() -> list[str]:
            return [key for key in keys() if s3.get_object_tagging(Bucket="liap-archives", Key=key)["TagSet"]]

        report = play(site, 20)
        assert report.lost == []
        wait_for("all games in the bucket", lambda: names(keys()) >= report.finished, 60)
        old = ["games/a-91-days.json", "games/b-400-days.json"]
        for key in [*old, "games/c-80-days.json"]:
            s3.put_object(Bucket="liap-archives", Key=key, Body=b"{}")
        assert "no copy of liap-archive-s3 is verified" in job(site, "s3", check=False)
        assert tagged() == []
        copy(site, "s3")
        assert "2 tagged, to be removed by the bucket's rule" in job(site, "s3")
        assert tagged() == old
        rules = s3.get_bucket_lifecycle_configuration(Bucket="liap-archives")["Rules"]
        kept_by = {"Prefix": "games/", "Tags": [{"Key": "hostwright-archive", "Value": "backed-up"}]}
        assert [rule["Expiration"]["Days"] for rule in rules if rule["Filter"].get("And") == kept_by] == [90]
        assert_checks_tell(site, tmp_path, "s3", **settings)
        # what the rule does
        for key in old:
            s3.delete_object(Bucket="liap-archives", Key=key)
        assert site.run(DEPLOY, **settings).changed == []
        copy(site, "s3")
        before = {key: s3.get_object(Bucket="liap-archives", Key=key)["Body"].read() for key in keys()}

        # the bucket is lost together with the host
        for key in keys():
            s3.delete_object(Bucket="liap-archives", Key=key)
        becomes_another_machine(site, **settings)
        restore(site, "s3", **settings)
        assert {key: s3.get_object(Bucket="liap-archives", Key=key)["Body"].read() for key in keys()} == before
        assert len(play(site, 10).finished) == 10
        wait_for("new games beside them", lambda: len(keys()) == len(before) + 10, 60)
        assert site.run(DEPLOY, **settings).changed == []
        # the rights to make buckets are of this side alone
        assert site.host.run("grep -rlE 'canary-admin-(key|secret)' /etc /var/lib/hostwright /run 2>/dev/null", check=False).stdout == ""
    finally:
        server.stop()
