"""PostgreSQL in a container (and natively, in the soak) backed up, drilled, destroyed and restored; read back with psql."""

import json
import shlex
import textwrap

import pytest

from tests.lab.state import wait_for

REPOSITORY = "/var/backups/hostwright"
PROGRAM = "/usr/local/lib/hostwright/backup"
CANARY, DB_CANARY = "canary-51d2e84b603f9a7c", "canary-db:84b6\\03f9'a7c"

# A name with a capital and a schema of its own: nothing may depend on plain names.
SCHEMA = """
CREATE ROLE app LOGIN PASSWORD 'app-password';
CREATE DATABASE "mcBench" OWNER app;
\\c "mcBench"
SET ROLE app;
CREATE TABLE runs (id serial PRIMARY KEY, name text NOT NULL);
CREATE SCHEMA audit;
CREATE TABLE audit."Odd Name" (at timestamptz DEFAULT now(), who text);
CREATE TABLE empty_one (x int);
CREATE VIEW names AS SELECT name FROM runs;
INSERT INTO runs(name) SELECT 'run ' || n FROM generate_series(1, 500) n;
INSERT INTO audit."Odd Name"(who) SELECT md5(n::text) FROM generate_series(1, 40) n;
"""
# Counts and content, in one line each; `runs` goes on growing while the application runs.
LOOK = """
SELECT count(*), md5(string_agg(name, ',' ORDER BY id)) FROM runs WHERE id <= 500;
SELECT count(*), md5(string_agg(who, ',' ORDER BY who)) FROM audit."Odd Name";
SELECT nextval('runs_id_seq') > 500, (SELECT count(*) FROM names) >= 500;
SELECT tableowner FROM pg_tables WHERE tablename = 'runs';
"""


def deploy(**arguments: object) -> str:
    server = {"database": "mcBench", "container": "mcbench-postgres", **arguments.pop("server", {})}  # type: ignore[dict-item]
    values = {"minimum": {"runs": 100, "audit.Odd Name": 40}, "containers": ["hostwright.component=api"], **arguments}
    return textwrap.dedent(f"""\
        import os
        from operations import backup
        from deploys import current
        from settings.secret import Secret
        backup.source(
            "mcbench", policy=current().backup, kind="postgres",
            server=backup.Postgres(password=Secret(os.environ["LAB_DB_PASSWORD"]), **{server!r}), **{values!r},
            name="Back up the database",
        )
        """)


@pytest.fixture(scope="module")
def converge(provision):
    def run(host, text=None, password=DB_CANARY, **changes):
        return provision(
            host, text or deploy(), data={"backup_password": "env:LAB_BACKUP_PASSWORD", **changes},
            env={"LAB_BACKUP_PASSWORD": CANARY, "LAB_DB_PASSWORD": password},
        )  # fmt: skip

    return run


def start_server(host, image: str) -> None:
    """A fresh, empty PostgreSQL in a container, as a deploy would leave it."""
    host.run(
        "docker rm -fv mcbench-postgres >/dev/null 2>&1; docker volume rm db >/dev/null 2>&1; set -e; "
        "docker network inspect mcbench >/dev/null 2>&1 || docker network create mcbench >/dev/null; "
        f"docker run -d --name mcbench-postgres --network mcbench -v db:/var/lib/postgresql/data "
        f"-e POSTGRES_PASSWORD=admin-password {image} >/dev/null",
        timeout=300,
    )
    wait_for(
        "postgres", lambda: host.run("docker exec mcbench-postgres pg_isready -q -h 127.0.0.1", check=False).returncode == 0, 120
    )  # fmt: skip


def start_app(host, image: str) -> None:
    """Writes a row as fast as it can, by the network, with the application's role; comes back when it is cut off."""
    loop = 'while sleep 0.1; do psql -qc "INSERT INTO runs(name) VALUES (md5(random()::text))" || :; done'
    host.run(
        f"docker rm -f app >/dev/null 2>&1; docker run -d --name app --network mcbench --label hostwright.component=api --stop-timeout 1 "
        f"-e PGHOST=mcbench-postgres -e PGUSER=app -e PGPASSWORD=app-password -e PGDATABASE=mcBench --entrypoint sh {image} -c {shlex.quote(loop)} >/dev/null"
    )


def sql(host, text: str, database: str = "mcBench") -> str:
    words = ["docker", "exec", "-i", "mcbench-postgres", "psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database]
    return host.run(shlex.join(words), input=text).stdout.strip()


def backup(host, *words: str, check: bool = True):
    return host.run(shlex.join([PROGRAM, *words]), check=check, timeout=300)


def state(host) -> dict[str, object]:
    return json.loads(host.read("/var/lib/hostwright/backup/mcbench.json"))


def running(host, name: str) -> bool:
    return host.run(f"docker inspect -f '{{{{.State.Running}}}}' {name}", check=False).stdout.strip() == "true"


@pytest.fixture(scope="module")
def image(lab) -> str:
    return lab.registry().image("postgres")


@pytest.fixture(scope="module")
def host(lab, image):
    fresh = lab.host("t-backup-pg", layer="docker")
    lab.registry().admit(fresh)
    start_server(fresh, image)
    yield fresh
    lab.destroy(fresh)


@pytest.fixture(scope="module")
def declared(host, image, converge):
    sql(host, SCHEMA, "postgres")
    start_app(host, image)
    run = converge(host)
    assert run.ok, run
    assert run.changed == ["Back up the database"]
    return host


@pytest.fixture
def database(declared):
    """The declared database with no copy yet, and the application writing to it."""
    declared.run(f"systemctl reset-failed; rm -rf {REPOSITORY} /var/lib/hostwright/backup/mcbench*")
    backup(declared, "init", "mcbench")
    return declared


def spoil(host, how: str) -> None:
    """Put a newest copy into the repository whose dump is spoilt; its manifest says that it is whole."""
    host.run("rm -rf /root/forge; install -d -m 0700 /root/forge")
    restic = f"RESTIC_PASSWORD={CANARY} restic -q -r {REPOSITORY}"
    host.run(f"cd /root/forge && {restic} restore latest --target . && cd stage && {how}", timeout=120)
    host.run(f"cd /root/forge && {restic} backup --host t-backup-pg --tag source:mcbench stage && rm -rf /root/forge")


def test_a_destroyed_database_comes_back_with_its_rows(database, provision):
    before = sql(database, LOOK)
    backup(database, "run", "mcbench")
    rows = state(database)["rows"]
    assert rows == {"runs": rows["runs"], "audit.Odd Name": 40, "empty_one": 0}
    assert rows["runs"] >= 500
    drilled = backup(database, "drill", "mcbench").stdout
    assert "is verified" in drilled
    assert "hostwright-backup" not in database.run("docker ps -a").stdout, "the scratch server is gone"

    sql(database, 'DELETE FROM runs; DROP TABLE audit."Odd Name"')
    app = database.run("docker inspect -f '{{.Id}}' app").stdout
    data = {"backup_password": "env:LAB_BACKUP_PASSWORD"}
    restored = provision(
        database, "from deploys import backup\nbackup.restore(at='verified')\n", data=data, env={"LAB_BACKUP_PASSWORD": CANARY}
    )
    assert restored.ok, restored
    assert "audit.Odd Name 40" in restored.stderr
    assert sql(database, LOOK) == before
    assert int(sql(database, "SELECT count(*) FROM runs")) >= rows["runs"]
    assert running(database, "app")
    assert database.run("docker inspect -f '{{.Id}}' app").stdout == app
    wait_for("the application writes again", lambda: int(sql(database, "SELECT count(*) FROM runs")) > rows["runs"], 30)

    # what stood there is kept until the next restore
    (aside,) = sql(database, "SELECT datname FROM pg_database WHERE datname LIKE '%before%'", "postgres").split()
    assert int(sql(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'audit'", aside)) == 0
    said = backup(database, "restore", "mcbench").stdout
    assert f"dropped what an earlier restore had put aside: {aside}" in said
    (second,) = sql(database, "SELECT datname FROM pg_database WHERE datname LIKE '%before%'", "postgres").split()
    assert second != aside
    sql(database, f'DROP DATABASE "{second}"', "postgres")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (": > data", "empty"),
        ("truncate -s -400 data", "the dump is damaged"),
        ("dd if=/dev/urandom of=data bs=1 seek=$(($(stat -c %s data) / 2)) count=60 conv=notrunc status=none", "damaged|sha256"),
        ("echo {} > manifest.json", "it has no manifest"),
    ],
    ids=["empty", "truncated", "corrupted", "foreign"],
)
def test_drill_catches_a_bad_copy_and_restore_refuses_it(database, how, said):
    backup(database, "run", "mcbench")
    backup(database, "drill", "mcbench")
    spoil(database, how)
    drill = backup(database, "drill", "mcbench", check=False)
    assert drill.returncode != 0
    failure = state(database)["drill_failure"]
    assert any(word in failure for word in said.split("|")), failure
    assert "the last verified copy is" in failure
    refused = backup(database, "restore", "mcbench", check=False)
    assert refused.returncode != 0
    assert running(database, "app")
    assert int(sql(database, "SELECT count(*) FROM runs")) >= 500
    assert sql(database, "SELECT count(*) FROM pg_database WHERE datname LIKE '%before%'", "postgres") == "0"


def test_a_database_that_lost_its_rows_is_not_stored(database):
    backup(database, "run", "mcbench")
    sql(database, 'CREATE TABLE kept AS TABLE audit."Odd Name"; DELETE FROM audit."Odd Name"')
    try:
        failed = backup(database, "run", "mcbench", check=False)
        assert "audit.Odd Name has 0, at least 40 wanted" in failed.stderr
    finally:
        sql(database, 'INSERT INTO audit."Odd Name" TABLE kept; DROP TABLE kept')
    assert len(json.loads(backup(database, "list", "mcbench", "--json").stdout)) == 1


def test_the_role_may_read_and_nothing_else(database):
    about = sql(
        database,
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolbypassrls, rolreplication, rolpassword LIKE 'SCRAM-SHA-256$%' "
        "FROM pg_authid WHERE rolname = 'hostwright_backup'",
    )
    assert about == "f|f|f|f|f|t"
    as_role = "docker exec -i -e PGPASSFILE=/dev/stdin mcbench-postgres true; docker exec -i mcbench-postgres psql -qAtX -U hostwright_backup -d mcBench -c "
    assert database.run(as_role + "'SELECT count(*) FROM empty_one'").stdout.strip() == "0"
    assert "permission denied" in database.run(as_role + "'INSERT INTO empty_one VALUES (1)'", check=False).stderr
    # by the network its password counts
    login = "docker exec -i mcbench-postgres sh -c 'read -r PGPASSWORD; export PGPASSWORD; psql -qAtX -h $(hostname -i) -U hostwright_backup -d mcBench -c \"SELECT 1\"'"
    assert database.run(login, input=f"{DB_CANARY}\n").stdout.strip() == "1"
    assert database.run(login, input="wrong\n", check=False).returncode != 0


def test_secrets_are_in_no_argument_and_in_no_journal(database):
    canaries = "-e canary-db -e " + CANARY
    database.write(
        "/root/watch.sh",
        "while [ ! -e /root/stop ]; do for p in /proc/[0-9]*; do for f in cmdline environ; do "
        f"grep -qaF {canaries} $p/$f 2>/dev/null && printf '%s %s\\n' $f \"$(tr '\\0' ' ' <$p/cmdline | cut -c1-60)\"; done; done; done > /root/seen\n",
    )
    database.run("rm -f /root/stop; systemd-run --quiet --unit=hw-watch sh /root/watch.sh")
    try:
        database.run("systemctl start hostwright-backup-mcbench.service", timeout=120)
        backup(database, "drill", "mcbench")
        backup(database, "restore", "mcbench")
    finally:
        database.run("touch /root/stop; while systemctl is-active --quiet hw-watch; do sleep 0.1; done", timeout=120)
    seen = {line for line in database.read("/root/seen").splitlines() if "grep -qaF" not in line}
    # restic's password is in restic's environment, which only root reads; no other secret is anywhere
    assert {line for line in seen if not line.startswith("environ restic ")} == set()
    assert database.run("journalctl --no-pager -o cat | grep -vF 'grep -qaF' | grep -cF canary-", check=False).stdout.strip() == "0"
    assert "canary-" not in database.run("docker logs mcbench-postgres 2>&1; docker inspect mcbench-postgres").stdout
    left = database.run("grep -rlF canary- /etc /var/lib/hostwright /var/cache /usr/local /tmp /run 2>/dev/null", check=False)
    assert left.stdout.split() == ["/etc/hostwright/backup/mcbench.env"]
    assert database.run("stat -c '%a %U' /etc/hostwright/backup/mcbench.env").stdout.strip() == "600 root"
    assert database.run("docker exec mcbench-postgres ls -A /dev/shm").stdout.count("hostwright") == 0


def test_second_run_changes_nothing_and_a_new_password_goes_to_the_role(database, converge):
    assert converge(database).ok
    assert converge(database).changed == []
    exposure = database.run("systemd-analyze security --no-pager hostwright-backup-mcbench.service").stdout.splitlines()[-1]
    assert float(exposure.split(": ")[1].split()[0]) <= 1.5, exposure
    old = sql(database, "SELECT rolpassword FROM pg_authid WHERE rolname = 'hostwright_backup'")
    assert converge(database, password="canary-db-another").changed == ["Back up the database"]
    assert sql(database, "SELECT rolpassword FROM pg_authid WHERE rolname = 'hostwright_backup'") != old
    refused = converge(database, deploy(server={"user": "postgres"}))
    assert "must not be the administrator" in refused.stderr
    assert converge(database).ok
