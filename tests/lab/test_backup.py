"""Backups on a real host with real restic and a service that never stops writing, read back with sqlite3, stat and ps."""

import json
import shlex
import textwrap

import pytest

DB = "/var/lib/shop/shop.db"
REPOSITORY = "/var/backups/hostwright"
PROGRAM = "/usr/local/lib/hostwright/backup"
CANARY = "canary-3f9a7c51d2e84b60"

# Writes as fast as the database takes it, in WAL mode, with the permissions of a service of its own.
SHOP = textwrap.dedent("""\
    import os, sqlite3, time
    os.umask(0o077)
    db = sqlite3.connect("/var/lib/shop/shop.db", isolation_level=None, timeout=30)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE IF NOT EXISTS customers (id INTEGER PRIMARY KEY, name TEXT)")
    db.execute("CREATE TABLE IF NOT EXISTS ticks (at REAL, pad TEXT)")
    while True:
        db.execute("INSERT INTO ticks VALUES (?, hex(randomblob(200)))", (time.time(),))
        open("/run/shop/alive", "w").close()
        time.sleep(0.002)
    """)
UNIT = textwrap.dedent("""\
    [Service]
    User=shop
    RuntimeDirectory=shop
    ExecStart=/usr/bin/python3 /usr/local/bin/shop.py
    Restart=on-failure
    RestartSec=1
    [Install]
    WantedBy=multi-user.target
    """)


def deploy(present: bool = True, **arguments: object) -> str:
    values: dict[str, object] = {
        "path": DB, "owner": "shop", "group": "shop", "minimum": {"customers": 3}, "units": ["shop*.service"],
        "health": "test -e /run/shop/alive",
    }  # fmt: skip
    text = "".join(f", {key}={value!r}" for key, value in {**values, **arguments}.items())
    return (
        "from operations import backup\nfrom deploys import current\n"
        f"backup.source('shop', policy=current().backup, present={present}{text}, name='Back up the shop')\n"
    )


@pytest.fixture(scope="module")
def data():
    return {"backup_password": "env:LAB_BACKUP_PASSWORD"}


@pytest.fixture(scope="module")
def converge(provision, data):
    def run(host, text=None, password=CANARY, **changes):
        return provision(
            host, text or deploy(), data={**data, **changes}, env={"LAB_BACKUP_PASSWORD": password}
        )

    return run


@pytest.fixture(scope="module")
def host(lab):
    fresh = lab.host("t-backup", layer="packages")
    yield fresh
    lab.destroy(fresh)


def start_shop(host) -> None:
    """A shop with exactly five customers, writing."""
    host.run(
        "systemctl stop 'shop*' 2>/dev/null; rm -rf /var/lib/shop; id shop >/dev/null 2>&1 || useradd --system shop"
    )
    host.run("install -d -o shop -g shop -m 0700 /var/lib/shop")
    host.write("/usr/local/bin/shop.py", SHOP)
    host.write("/etc/systemd/system/shop.service", UNIT)
    host.run(
        "systemctl daemon-reload; systemctl enable --quiet --now shop; while ! test -s /run/shop/alive -o -e /run/shop/alive; do sleep 0.1; done"
    )
    sql(host, "INSERT INTO customers(name) VALUES ('a'), ('b'), ('c'), ('d'), ('e')")


def sql(host, statement: str) -> str:
    return host.run(
        f"runuser -u shop -- sqlite3 -cmd '.timeout 10000' {DB} {shlex.quote(statement)}"
    ).stdout.strip()


def backup(host, *words: str, check: bool = True):
    return host.run(shlex.join([PROGRAM, *words]), check=check, timeout=120)


def copies(host) -> list[dict[str, object]]:
    return json.loads(backup(host, "list", "shop", "--json").stdout)


def restic(host, *words: str, check: bool = True):
    return backup(host, "restic", "shop", "--", *words, check=check)


def state(host) -> dict[str, object]:
    return json.loads(host.read("/var/lib/hostwright/backup/shop.json"))


def forge(host, make: str) -> None:
    """Put a copy into the repository that looks like ours; `make` writes its `data`, and its manifest when it wants to."""
    host.run("rm -rf /root/forge; install -d -m 0700 /root/forge/stage")
    host.run(f"cd /root/forge/stage; {make}")
    host.run(
        f"cd /root/forge && RESTIC_PASSWORD={CANARY} restic -q -r {REPOSITORY} backup --host t-backup --tag source:shop stage"
        " && rm -rf /root/forge"
    )


@pytest.fixture(scope="module")
def declared(host, converge):
    """The host with the shop declared; how its configuration looks is kept beside it."""
    start_shop(host)
    run = converge(host)
    assert run.ok, run
    host.run("cp -a /etc/hostwright/backup /root/declared")
    return host


@pytest.fixture
def shop(declared):
    """A shop with five customers, declared, with an empty repository."""
    declared.run(
        f"systemctl reset-failed; rm -rf {REPOSITORY} /var/lib/hostwright/backup/shop*; cp -a /root/declared/. /etc/hostwright/backup/"
    )
    start_shop(declared)
    backup(declared, "init", "shop")
    return declared


def test_a_destroyed_database_comes_back_with_its_rows(shop, provision, data):
    def command(*words: str):
        return provision(shop, f"from deploys import backup\nbackup.{words[0]}({', '.join(words[1:])})\n", data=data,
                         env={"LAB_BACKUP_PASSWORD": CANARY})  # fmt: skip

    made = command("run")
    assert made.ok, made
    rows = state(shop)["rows"]
    assert rows["customers"] == 5
    drilled = command("drill")
    assert drilled.ok, drilled
    assert "is verified" in drilled.stderr

    # without its -wal too, where SQLite would still find whole pages
    shop.run(
        f"systemctl stop shop; rm -f {DB}-*; dd if=/dev/urandom of={DB} bs=4096 count=20 conv=notrunc status=none; systemctl start shop"
    )
    shop.run(
        'for i in $(seq 100); do [ "$(systemctl is-active shop)" != active ] && exit 0; sleep 0.1; done; exit 1'
    )
    restored = command("restore", "at='verified'")
    assert restored.ok, restored
    assert "customers 5" in restored.stderr
    shop.run("systemctl is-active shop")
    assert sql(shop, "SELECT count(*) FROM customers") == "5"
    assert (
        int(sql(shop, f"SELECT count(*) FROM (SELECT * FROM ticks LIMIT {rows['ticks']})")) == rows["ticks"]
    )
    assert sql(shop, "PRAGMA integrity_check") == "ok"
    assert shop.run(f"stat -c '%a %U %G' {DB}").stdout.split() == ["600", "shop", "shop"]
    assert shop.run("ls /var/lib/shop/shop.db.before-restore-*").stdout.strip(), "what stood there is kept"
    assert command("list").ok


def test_a_restore_takes_the_whole_directory_of_files_that_is_gone(shop):
    backup(shop, "run", "shop")
    shop.run("systemctl stop shop; rm -f /var/lib/shop/*")
    said = backup(shop, "restore", "shop").stdout
    assert "what stood there: nothing" in said
    assert "nothing ran" in said
    assert shop.run("systemctl is-active shop", check=False).stdout.strip() == "inactive", (
        "what did not run is not started"
    )
    assert sql(shop, "SELECT count(*) FROM customers") == "5"
    shop.run("systemctl start shop")


def test_copies_are_whole_while_others_write(shop):
    """Every copy made under constant writes is consistent, and the writer is not disturbed."""
    started = shop.run("systemctl show -p InvocationID --value shop").stdout
    before = int(sql(shop, "SELECT count(*) FROM ticks"))
    for _ in range(3):
        backup(shop, "run", "shop")
        copied = state(shop)["rows"]["ticks"]
        assert copied > before
        before = copied
    backup(shop, "drill", "shop")
    assert int(sql(shop, "SELECT count(*) FROM ticks")) > before, "the shop went on writing"
    assert shop.run("systemctl show -p InvocationID --value shop").stdout == started
    assert "locked" not in shop.run("journalctl -u shop --no-pager").stdout


def test_a_backup_of_a_stopped_shop_leaves_nothing_that_keeps_it_from_starting(shop):
    shop.run("systemctl stop shop")
    backup(shop, "run", "shop")
    owners = set(shop.run("stat -c %U /var/lib/shop/*").stdout.split())
    assert owners == {"shop"}
    shop.run("systemctl start shop; sleep 0.3; systemctl is-active shop")
    sql(shop, "INSERT INTO customers(name) VALUES ('f')")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (f"cp {DB} data; truncate -s 5000 data; echo '{{}}' > manifest.json", "it has no manifest"),
        (": > data; " + "restic_dump manifest", "0 bytes, recorded"),
        ("restic_dump data; restic_dump manifest; truncate -s 12288 data", "malformed|integrity_check"),
    ],
    ids=["foreign", "empty", "truncated"],
)
def test_drill_catches_a_bad_copy_and_names_the_last_good_one(shop, make, said):
    backup(shop, "run", "shop")
    backup(shop, "drill", "shop")
    (good,) = copies(shop)
    assert good["last_verified"]
    dump = f"RESTIC_PASSWORD={CANARY} restic -q -r {REPOSITORY} dump latest /stage/"
    make = make.replace("restic_dump manifest", f"{dump}manifest.json > manifest.json").replace(
        "restic_dump data", f"{dump}data > data"
    )
    forge(shop, make)

    drill = shop.run("systemctl start hostwright-backup-shop-drill.service", check=False)
    assert drill.returncode != 0
    assert "hostwright-backup-shop-drill.service" in shop.run("systemctl --failed --no-legend").stdout
    failure = state(shop)["drill_failure"]
    assert any(part in failure for part in said.split("|")), failure
    assert f"the last verified copy is {good['id']}" in failure

    before = sql(shop, "SELECT count(*) FROM customers")
    refused = backup(shop, "restore", "shop", "--at", "latest", check=False)
    assert refused.returncode != 0
    assert f"the last verified copy is {good['id']}" in refused.stderr
    assert sql(shop, "SELECT count(*) FROM customers") == before
    shop.run("systemctl is-active shop")
    assert shop.run("ls /var/lib/shop | grep -c before-restore", check=False).stdout.strip() == "0"
    backup(shop, "restore", "shop", "--at", "verified")
    shop.run("systemctl reset-failed")


def test_retention_keeps_the_last_verified_copy(shop, converge):
    assert converge(shop, backup_keep_daily=1, backup_keep_weekly=0, backup_keep_monthly=0).ok
    backup(shop, "run", "shop")
    backup(shop, "drill", "shop")
    (verified,) = copies(shop)
    for _ in range(3):
        backup(shop, "run", "shop")
    left = copies(shop)
    assert [row["last_verified"] for row in left] == [True, False], "one daily copy, and the verified one"
    assert left[0]["id"] == verified["id"]
    backup(shop, "drill", "shop")
    backup(shop, "run", "shop")
    left = copies(shop)
    assert [row["last_verified"] for row in left] == [True, False], "the tag moved on, and the old copy went"
    assert left[0]["id"] != verified["id"]


def test_a_database_that_lost_its_rows_is_not_stored(shop):
    backup(shop, "run", "shop")
    sql(shop, "DELETE FROM customers WHERE id > 2")
    failed = shop.run("systemctl start hostwright-backup-shop.service", check=False)
    assert failed.returncode != 0
    assert "customers has 2, at least 3 wanted" in state(shop)["failure"]
    assert len(copies(shop)) == 1
    shop.run("systemctl stop shop; mv /var/lib/shop/shop.db /var/lib/shop/away")
    gone = backup(shop, "run", "shop", check=False)
    assert f"{DB} does not exist" in gone.stderr
    assert not shop.exists(DB), "a missing database is not created"
    shop.run("mv /var/lib/shop/away /var/lib/shop/shop.db; systemctl start shop; systemctl reset-failed")


def test_a_wrong_password_fails_clearly_and_touches_nothing(shop, converge):
    backup(shop, "run", "shop")
    before = shop.run(
        f"find {REPOSITORY}/keys {REPOSITORY}/config {REPOSITORY}/snapshots -type f | sort"
    ).stdout
    run = converge(shop, password="another-password-0123456789")
    assert not run.ok
    assert "does not open with this password" in run.stderr
    assert (
        shop.run(f"find {REPOSITORY}/keys {REPOSITORY}/config {REPOSITORY}/snapshots -type f | sort").stdout
        == before
    )
    failed = backup(shop, "run", "shop", check=False)
    assert "does not open with this password" in failed.stderr
    # what a killed or failed run owes is made up for: the next run opens the repository again
    healed = converge(shop)
    assert healed.changed == ["Back up the shop"]
    backup(shop, "run", "shop")


@pytest.mark.soak
def test_a_repository_that_is_gone_is_not_made_anew(shop, converge):
    backup(shop, "run", "shop")
    shop.run(f"mv {REPOSITORY} /var/backups/unmounted")
    run = converge(shop, backup_keep_daily=9)
    shop.run(
        f"ls {REPOSITORY}/config 2>/dev/null && exit 1; rm -rf {REPOSITORY}; mv /var/backups/unmounted {REPOSITORY}"
    )
    assert not run.ok
    assert "is its disk mounted?" in run.stderr
    assert converge(shop, backup_keep_daily=9).ok


@pytest.mark.soak
def test_a_run_that_was_killed_leaves_nothing_in_the_way_of_the_next(shop):
    backup(shop, "run", "shop")
    # a copy large enough to be caught in the middle of it
    sql(
        shop,
        "CREATE TABLE pad AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 60000) SELECT hex(randomblob(500)) AS x FROM n",
    )
    for process in ("sqlite-copy", "restic backup"):
        shop.run("systemctl start --no-block hostwright-backup-shop.service")
        shop.run(
            f"for i in $(seq 1000); do pgrep -f {shlex.quote(process)} >/dev/null && exit 0; sleep 0.01; done; exit 1"
        )
        shop.run("systemctl kill --signal=KILL hostwright-backup-shop.service")
        shop.run(
            'for i in $(seq 100); do [ "$(systemctl is-active hostwright-backup-shop.service)" = failed ] && exit 0; sleep 0.1; done; exit 1'
        )
        assert backup(shop, "run", "shop").returncode == 0
        backup(shop, "drill", "shop")
        assert shop.run("ls /var/cache/hostwright/backup/shop 2>/dev/null", check=False).stdout == ""
    assert restic(shop, "list", "locks").stdout == ""
    shop.run("systemctl reset-failed")


@pytest.mark.soak
def test_a_job_waits_for_another_that_works_on_the_source(shop):
    """As after a boot, when both timers make up for what they missed."""
    lock, unit = "/var/lib/hostwright/backup/shop.lock", "hostwright-backup-shop.service"
    shop.run(
        f"systemd-run --quiet --unit=hw-busy flock {lock} sleep 600; while flock -n {lock} true; do sleep 0.05; done"
    )
    try:
        shop.run(f"systemctl start --no-block {unit}")
        shop.run(
            f"until journalctl --sync; journalctl -u {unit} -o cat | grep 'waiting for: '; do sleep 0.1; done"
        )
        assert shop.run(f"systemctl is-active {unit}", check=False).stdout.strip() == "activating"
    finally:
        shop.run("systemctl stop hw-busy")
    shop.run(f"systemctl start {unit}")  # joins the start that is under way
    assert state(shop)["failure"] == ""
    assert copies(shop)


@pytest.mark.soak
def test_a_full_disk_fails_cleanly_and_keeps_the_old_copies(host, shop, converge):
    """The repository's disk and the disk of the copies, each in turn, on small file systems of their own."""
    sql(
        shop,
        "CREATE TABLE pad AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 8000) SELECT hex(randomblob(500)) AS x FROM n",
    )
    host.run("mkdir -p /srv/small; mount -t tmpfs -o size=64m,mode=0700 tmpfs /srv/small")
    try:
        assert converge(host, backup_repository="/srv/small/repository").ok
        backup(shop, "run", "shop")
        good = copies(shop)
        host.run("fallocate -l $(($(df --output=avail -B1 /srv/small | tail -1) - 200000)) /srv/small/filler")
        sql(shop, "UPDATE pad SET x = hex(randomblob(500))")
        failed = backup(shop, "run", "shop", check=False)
        assert failed.returncode != 0
        assert "no space left" in failed.stderr.lower()
        host.run("rm /srv/small/filler")
        assert copies(shop) == good
        backup(shop, "drill", "shop")
        backup(shop, "run", "shop")
    finally:
        assert converge(host).ok
        host.run("umount /srv/small")

    host.run("mount -t tmpfs -o size=20m,mode=0711 tmpfs /var/cache/hostwright")
    try:
        failed = backup(shop, "run", "shop", check=False)
    finally:
        host.run("umount /var/cache/hostwright")
    assert failed.returncode != 0
    assert "bytes free, the copy needs" in failed.stderr
    backup(shop, "run", "shop")


def test_secrets_are_in_no_argument_and_in_no_journal(shop):
    shop.write(
        "/root/watch.sh",
        f"while [ ! -e /root/stop ]; do grep -laF {CANARY} /proc/[0-9]*/cmdline 2>/dev/null | grep -v self; sleep 0.02; done > /root/seen\n",
    )
    shop.run("rm -f /root/stop; systemd-run --quiet --unit=hw-watch sh /root/watch.sh")
    try:
        backup(shop, "run", "shop")
        backup(shop, "drill", "shop")
        shop.run("systemctl start hostwright-backup-shop.service")
        backup(shop, "restore", "shop")
    finally:
        shop.run("touch /root/stop; while systemctl is-active --quiet hw-watch; do sleep 0.1; done")
    # the watcher's own grep has the canary in its arguments: only what is not grep counts
    assert shop.run("sort -u /root/seen | wc -l").stdout.strip() != ""
    seen = shop.run(
        f"journalctl --no-pager | grep -vF 'grep -laF' | grep -cF {CANARY}", check=False
    ).stdout.strip()
    assert seen == "0"
    readable = shop.run(
        f"grep -rlF {CANARY} /etc /var/lib /var/cache /usr/local /tmp /run 2>/dev/null | xargs -r stat -c '%a %n'",
        check=False,
    )
    assert readable.stdout.strip() == "600 /etc/hostwright/backup/shop.env"


def test_monitoring_can_read_what_was_verified_when(shop):
    shop.run("mkdir -p /var/lib/prometheus/node-exporter")
    backup(shop, "run", "shop")
    backup(shop, "drill", "shop")
    path = "/var/lib/prometheus/node-exporter/hostwright_backup_shop.prom"
    assert shop.run(f"stat -c %a {path}").stdout.strip() == "644"
    samples = dict(line.rsplit(" ", 1) for line in shop.read(path).splitlines() if not line.startswith("#"))
    now = int(shop.run("date +%s").stdout)
    assert (
        now
        - int(
            samples['hostwright_backup_last_verified_timestamp_seconds{source="shop",repository="primary"}']
        )
        < 60
    )
    assert samples['hostwright_backup_last_run_success{source="shop"}'] == "1"
    assert samples['hostwright_backup_rows{source="shop",table="customers"}'] == "5"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"path": "shop.db"}, "path must be absolute"),
        ({"kind": "floppy"}, "kind must be one of"),
        ({"units": ["shop"]}, "units: must be"),
    ],
)
def test_bad_declarations_change_nothing(shop, converge, arguments, said):
    before = shop.read("/etc/hostwright/backup/shop.json")
    run = converge(shop, deploy(**arguments))
    assert not run.ok
    assert said in run.stderr
    assert shop.read("/etc/hostwright/backup/shop.json") == before


@pytest.fixture(scope="module")
def vault(lab, declared):
    """A second host that takes the off-site copies over sftp, and lets the first one in by its key."""
    other = lab.host("t-vault")
    declared.run("test -e /root/.ssh/id_ed25519 || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
    key = declared.read("/root/.ssh/id_ed25519.pub")
    other.run("cat >> /root/.ssh/authorized_keys", input=key)
    declared.run(
        f"ssh-keyscan -t ed25519 {other.address} 2>/dev/null > /root/.ssh/known_hosts; test -s /root/.ssh/known_hosts"
    )
    yield other
    lab.destroy(other)


def test_offsite_copies_help_when_the_first_repository_is_gone(shop, vault, converge):
    offsite = f"sftp:root@{vault.address}:/srv/vault"
    run = converge(shop, backup_offsite_repository=offsite)
    assert run.ok, run
    shop.run(
        "systemctl start hostwright-backup-shop.service && systemctl start hostwright-backup-shop-drill.service",
        timeout=180,
    )
    assert [(row["repository"], row["last_verified"]) for row in copies(shop)] == [
        ("primary", True),
        ("offsite", True),
    ]
    assert vault.run("ls /srv/vault/snapshots").stdout.strip()
    assert vault.run(f"grep -rlF {CANARY} /srv/vault", check=False).stdout == ""

    shop.run(f"rm -rf {REPOSITORY}; systemctl stop shop; rm -f /var/lib/shop/*")
    lost = backup(shop, "restore", "shop", check=False)
    assert lost.returncode != 0
    backup(shop, "restore", "shop", "--repository", "offsite", "--at", "verified")
    assert sql(shop, "SELECT count(*) FROM customers") == "5"

    failed = backup(shop, "run", "shop", check=False)
    assert failed.returncode != 0
    assert "primary repository" in failed.stderr
    entries = state(shop)["repositories"]
    assert entries["offsite"]["snapshots"] == 2, "the off-site copy is made all the same"


def test_a_restore_that_was_killed_is_finished_by_the_next_one(shop):
    backup(shop, "run", "shop")
    shop.write("/etc/systemd/system/shop.service.d/slow.conf", "[Service]\nExecStop=/bin/sleep 3\n")
    shop.run("systemctl daemon-reload")
    try:
        shop.run(f"systemd-run --quiet --unit=hw-restore {PROGRAM} restore shop")
        shop.run(
            'for i in $(seq 600); do [ "$(systemctl is-active shop)" = deactivating ] && exit 0; sleep 0.05; done; exit 1'
        )
        shop.run("systemctl kill --signal=KILL hw-restore")
        shop.run(
            'for i in $(seq 200); do [ "$(systemctl is-active shop)" = inactive ] && exit 0; sleep 0.1; done; exit 1'
        )
    finally:
        shop.run("rm -r /etc/systemd/system/shop.service.d; systemctl daemon-reload; systemctl reset-failed")
    refused = backup(shop, "run", "shop", check=False)
    assert "a restore was cut short" in refused.stderr
    said = backup(shop, "restore", "shop").stdout
    assert "started: shop.service" in said
    shop.run("systemctl is-active shop")
    backup(shop, "run", "shop")


@pytest.mark.soak
def test_a_directory_is_backed_up_and_restored(declared, converge):
    text = (
        "from operations import backup\nfrom deploys import current\n"
        "backup.source('files', policy=current().backup, kind='directory', path='/srv/files', owner='shop', group='shop', mode='0750', "
        "minimum={'files': 2}, name='Back up the files')\n"
    )
    make = "install -d -m 0750 /srv/files /srv/files/sub && cd /srv/files && echo one > a && echo two > 'sub/b c' && ln -sf a link && chown -R shop: ."
    declared.run(make)
    run = converge(declared, text)
    assert run.ok, run
    look = "cd /srv/files && find . -printf '%P %y %m %u %g %l\n' | sort && cat a 'sub/b c'"
    before = declared.run(look).stdout
    declared.run(
        "systemctl start hostwright-backup-files.service && systemctl start hostwright-backup-files-drill.service || { journalctl -n 30 --no-pager; exit 1; }"
    )
    declared.run("rm -rf /srv/files/sub; echo three > /srv/files/a")
    backup(declared, "restore", "files")
    assert declared.run(look).stdout == before
    assert declared.run("cat /srv/files.before-restore-*/a").stdout == "three\n"
    declared.run("rm -rf /srv/files.before-restore-* /srv/files/sub")
    assert "files has 1, at least 2 wanted" in backup(declared, "run", "files", check=False).stderr


@pytest.mark.soak
@pytest.mark.parametrize("release", ["trixie"])
def test_the_whole_way_on_another_release(lab, converge, release):
    """The newer restic has other exit codes and messages."""
    host = lab.host(f"t-backup-{release}", release=release, layer="packages")
    try:
        the_whole_way(host, converge)
    finally:
        lab.destroy(host)


def the_whole_way(host, converge):
    start_shop(host)
    run = converge(host)
    assert run.ok, run
    assert converge(host).changed == []
    host.run(
        "systemctl start hostwright-backup-shop.service && systemctl start hostwright-backup-shop-drill.service",
        timeout=180,
    )
    host.run("systemctl start hostwright-backup-shop.service", timeout=180)
    assert [row["last_verified"] for row in copies(host)] == [True, False]
    host.run("systemctl stop shop; rm -f /var/lib/shop/*")
    backup(host, "restore", "shop", "--at", "verified")
    assert sql(host, "SELECT count(*) FROM customers") == "5"
    wrong = converge(host, password="another-password-0123456789")
    assert "does not open with this password" in wrong.stderr
    assert converge(host).ok
    host.run(f"mv {REPOSITORY} /var/backups/away")
    gone = converge(host, backup_keep_daily=11)
    assert "is its disk mounted?" in gone.stderr
    host.run(f"mv /var/backups/away {REPOSITORY}")
    assert converge(host).ok
    # a lock of a process that is dead is no obstacle
    host.run(
        f"RESTIC_PASSWORD={CANARY} restic -q -r {REPOSITORY} check & sleep 0.6; kill -9 $!; wait", check=False
    )
    backup(host, "run", "shop")
    assert restic(host, "list", "locks").stdout == ""


def test_set_noop_update_unset(host, declared, converge):
    assert converge(host, deploy(present=False)).ok
    start_shop(host)
    run = converge(host)
    assert run.ok, run
    assert run.changed == ["Back up the shop"]
    assert host.run(
        "stat -c '%a %U' /etc/hostwright/backup /etc/hostwright/backup/shop.env"
    ).stdout.split() == ["700", "root", "600", "root"]
    assert restic(host, "cat", "config").returncode == 0
    timers = host.run("systemctl list-timers --all --no-legend 'hostwright-backup-*'").stdout
    assert "hostwright-backup-shop.timer" in timers
    assert "hostwright-backup-shop-drill.timer" in timers
    for unit in ("hostwright-backup-shop.service", "hostwright-backup-shop-drill.service"):
        exposure = host.run(f"systemd-analyze security --no-pager {unit}").stdout.splitlines()[-1]
        assert float(exposure.split(": ")[1].split()[0]) <= 1.5, exposure

    assert converge(host).changed == []

    moved = converge(host, backup_at="03:15", backup_keep_daily=3)
    assert moved.changed == ["Back up the shop"]
    assert (
        "OnCalendar=*-*-* 03:15:00"
        in host.run("systemctl show -p TimersCalendar hostwright-backup-shop.timer").stdout
    )
    assert json.loads(host.read("/etc/hostwright/backup/shop.json"))["keep"]["daily"] == 3
    assert converge(host, backup_at="03:15", backup_keep_daily=3).changed == []

    host.run(
        "systemctl disable --now hostwright-backup-shop.timer; echo x >> /etc/hostwright/backup/shop.env; rm "
        + PROGRAM
    )
    assert converge(host, backup_at="03:15", backup_keep_daily=3).changed == ["Back up the shop"]
    assert host.run("systemctl is-active hostwright-backup-shop.timer").stdout.strip() == "active"
    backup(host, "run", "shop")

    gone = converge(host, deploy(present=False))
    assert gone.changed == ["Back up the shop"]
    units = host.run("systemctl list-unit-files --no-legend 'hostwright-backup-shop*'", check=False)
    assert units.stdout == ""
    assert host.run("find /etc/hostwright/backup -name 'shop.*'").stdout == ""
    assert host.run(f"ls {REPOSITORY}/snapshots").stdout.strip(), "copies outlive their declaration"
    assert converge(host, deploy(present=False)).changed == []
