"""PostgreSQL in a container (and natively, in the soak) backed up, drilled, destroyed and restored; read back with psql."""

import contextlib
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


# Looks at all processes again and again; what it looks for comes from a file, so that it does not see itself.
WATCH = r"""
while [ ! -e /root/stop ]; do
    grep -laFf /root/canaries /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | while read -r f; do
        printf '%s %s\n' "${f##*/}" "$(tr '\0' ' ' <"${f%/*}/cmdline" 2>/dev/null | cut -c1-80)"
    done
    sleep 0.05
done >>/root/seen
"""


@contextlib.contextmanager
def watched(host):
    host.write("/root/canaries", f"canary-db\n{CANARY}\n")
    host.write("/root/watch.sh", WATCH)
    host.run("rm -f /root/stop; systemd-run --quiet --collect --unit=hw-watch sh /root/watch.sh")
    try:
        yield
    finally:
        host.run("touch /root/stop; while systemctl is-active --quiet hw-watch; do sleep 0.1; done", timeout=120)


@pytest.fixture(scope="module")
def declared(host, image, converge):
    """The host with the database declared and the application writing to it."""
    sql(host, SCHEMA, "postgres")
    start_app(host, image)
    with watched(host):
        run = converge(host)
    assert run.ok, run
    assert run.changed == ["Back up the database"]
    return host


@pytest.fixture(scope="module")
def verified(declared):
    """The declared database with one copy, which a drill has verified."""
    with watched(declared):
        declared.run("systemctl start hostwright-backup-mcbench.service", timeout=300)
        assert "is verified" in backup(declared, "drill", "mcbench").stdout
    return declared


def test_a_destroyed_database_comes_back_with_its_rows(verified, provision):
    before = sql(verified, LOOK)
    rows = state(verified)["rows"]
    assert rows == {"runs": rows["runs"], "audit.Odd Name": 40, "empty_one": 0}
    assert rows["runs"] >= 500
    assert "hostwright-backup" not in verified.run("docker ps -a").stdout, "the scratch server is gone"

    sql(verified, 'DELETE FROM runs; DROP TABLE audit."Odd Name"')
    app = verified.run("docker inspect -f '{{.Id}}' app").stdout
    with watched(verified):
        restored = provision(
            verified, "from deploys import backup\nbackup.restore(at='verified')\n",
            data={"backup_password": "env:LAB_BACKUP_PASSWORD"}, env={"LAB_BACKUP_PASSWORD": CANARY},
        )  # fmt: skip
    assert restored.ok, restored
    assert "audit.Odd Name 40" in restored.stderr
    assert sql(verified, LOOK) == before
    assert int(sql(verified, "SELECT count(*) FROM runs")) >= rows["runs"]
    assert running(verified, "app")
    assert verified.run("docker inspect -f '{{.Id}}' app").stdout == app
    wait_for("the application writes again", lambda: int(sql(verified, "SELECT count(*) FROM runs")) > rows["runs"], 60)
    # what stood there is kept until the next restore
    aside = asides(verified)[-1]
    assert int(sql(verified, "SELECT count(*) FROM pg_tables WHERE schemaname = 'audit'", aside)) == 0


def asides(host) -> list[str]:
    return sql(host, "SELECT datname FROM pg_database WHERE datname LIKE '%before%' ORDER BY 1", "postgres").split()


@pytest.mark.soak
def test_the_next_restore_drops_what_the_last_one_put_aside(verified):
    backup(verified, "restore", "mcbench", "--at", "verified")
    first = asides(verified)
    said = backup(verified, "restore", "mcbench", "--at", "verified").stdout
    assert f"dropped what an earlier restore had put aside: {', '.join(first)}" in said
    assert len(asides(verified)) == 1
    assert asides(verified) != first


# Reads what is being restored, as who has no right to it, as often as it can.
PRYING = r"""
until [ -e /tmp/enough ]; do
    psql -h 127.0.0.1 -U prying -d mcBench_incoming -qAtXc 'SELECT count(*) FROM runs' 2>&1
    sleep 0.02
done >/tmp/pried
"""
ACCESS = """
SELECT datconnlimit, array_agg(a::text ORDER BY a::text) FROM pg_database d, aclexplode(coalesce(datacl, acldefault('d', datdba))) a
WHERE datname = 'mcBench' GROUP BY 1
"""


@contextlib.contextmanager
def pried_at(host):
    """Somebody who may log in and nothing else looks at what is restored; what was said is at most that it may not."""
    host.run("docker exec mcbench-postgres rm -f /tmp/enough; docker exec -i mcbench-postgres sh -c 'cat >/tmp/pry'", input=PRYING)
    host.run("docker exec -d -e PGPASSWORD=prying-password mcbench-postgres sh /tmp/pry")
    try:
        yield
    finally:
        host.run("docker exec mcbench-postgres touch /tmp/enough")
    said = set(host.run("docker exec mcbench-postgres sort -u /tmp/pried").stdout.splitlines())
    assert any("permission denied for database" in line for line in said), said
    assert not any(line.isdigit() for line in said), said


@pytest.mark.soak
def test_a_restored_database_is_no_more_open_than_before(verified):
    """Neither when it is there, nor while it is restored; in the place of one that is there, and of none."""
    sql(verified, """
        CREATE ROLE prying LOGIN PASSWORD 'prying-password'; CREATE ROLE "Odd one"; CREATE ROLE gone;
        REVOKE ALL ON DATABASE "mcBench" FROM PUBLIC;
        GRANT TEMPORARY ON DATABASE "mcBench" TO PUBLIC; GRANT CONNECT ON DATABASE "mcBench" TO hostwright_backup, gone;
        GRANT CONNECT ON DATABASE "mcBench" TO "Odd one" WITH GRANT OPTION; ALTER DATABASE "mcBench" CONNECTION LIMIT 40
    """)  # fmt: skip
    backup(verified, "run", "mcbench")
    backup(verified, "drill", "mcbench")
    sql(verified, 'REVOKE ALL ON DATABASE "mcBench" FROM gone; DROP ROLE gone; ALTER DATABASE "mcBench" CONNECTION LIMIT 30')
    before = sql(verified, ACCESS)
    with pried_at(verified):
        backup(verified, "restore", "mcbench", "--at", "verified")
    assert sql(verified, ACCESS) == before

    # what was copied is all that is known, and one of its roles is gone
    verified.run("docker stop app")
    sql(verified, 'DROP DATABASE "mcBench"', "postgres")
    with pried_at(verified):
        backup(verified, "restore", "mcbench", "--at", "verified")
    assert sql(verified, ACCESS) == before.replace("30|", "40|")

    # a copy that does not say
    restic = f"RESTIC_PASSWORD={CANARY} restic -q -r {REPOSITORY}"
    verified.run(f"install -d -m 0700 /root/forge && cd /root/forge && {restic} restore latest --tag verified --target . && rm stage/access.json", timeout=120)
    verified.run(f"cd /root/forge && {restic} backup --host t-backup-pg --tag source:mcbench stage && rm -rf /root/forge", timeout=120)
    sql(verified, 'DROP DATABASE "mcBench"', "postgres")
    with pried_at(verified):
        said = backup(verified, "restore", "mcbench").stdout
    assert "the copy does not say who may connect to mcBench" in said
    assert sql(verified, "SELECT datacl FROM pg_database WHERE datname = 'mcBench'") == "{postgres=CTc/postgres,hostwright_backup=c/postgres}"
    sql(verified, 'ALTER DATABASE "mcBench" OWNER TO app; GRANT CONNECT, TEMPORARY ON DATABASE "mcBench" TO PUBLIC; DROP ROLE prying')
    verified.run("docker start app")
    backup(verified, "run", "mcbench")


# how to spoil a copy, and what is said of it
SPOILT = {
    "empty": (": > data", "the dump is empty"),
    "truncated": ("truncate -s -400 data", "the dump is damaged"),
    "corrupted": (
        "dd if=/dev/urandom of=data bs=1 seek=$(($(stat -c %s data) / 2)) count=60 conv=notrunc status=none",
        "the dump is damaged",
    ),
    "foreign": ("echo {} > manifest.json", "it has no manifest"),
    # whole in itself, and not what was in the database: only the scratch server can tell
    "other rows": (r"sed -i 's/\"audit.Odd Name\": 40/\"audit.Odd Name\": 41/' manifest.json", "audit.Odd Name: 40, recorded 41"),
}


@pytest.mark.parametrize(
    "kind", ["corrupted", *(pytest.param(each, marks=pytest.mark.soak) for each in SPOILT if each != "corrupted")]
)
def test_drill_catches_a_bad_copy_and_restore_refuses_it(verified, kind):
    how, said = SPOILT[kind]
    restic = f"RESTIC_PASSWORD={CANARY} restic -q -r {REPOSITORY}"
    before = asides(verified)
    verified.run("rm -rf /root/forge; install -d -m 0700 /root/forge")
    verified.run(f"cd /root/forge && {restic} restore latest --tag verified --target . && cd stage && {how}", timeout=120)
    verified.run(f"cd /root/forge && {restic} backup --host t-backup-pg --tag source:mcbench stage && rm -rf /root/forge", timeout=120)
    try:
        drill = backup(verified, "drill", "mcbench", check=False)
        assert drill.returncode != 0
        failure = state(verified)["drill_failure"]
        assert said in failure
        assert "the last verified copy is" in failure
        refused = backup(verified, "restore", "mcbench", check=False)
        assert refused.returncode != 0
        assert said in refused.stderr
        assert running(verified, "app")
        assert asides(verified) == before
    finally:
        verified.run(f"{restic} snapshots --json latest | grep -o '\"short_id\":\"[0-9a-f]*' | tail -1 | cut -d'\"' -f4 | RESTIC_PASSWORD={CANARY} xargs restic -q -r {REPOSITORY} forget", timeout=120)


@pytest.mark.soak
def test_a_database_that_lost_its_rows_is_not_stored(verified):
    copies = len(json.loads(backup(verified, "list", "mcbench", "--json").stdout))
    sql(verified, 'CREATE TABLE kept AS TABLE audit."Odd Name"; DELETE FROM audit."Odd Name"')
    try:
        failed = backup(verified, "run", "mcbench", check=False)
        assert "audit.Odd Name has 0, at least 40 wanted" in failed.stderr
    finally:
        sql(verified, 'INSERT INTO audit."Odd Name" TABLE kept; DROP TABLE kept')
    assert len(json.loads(backup(verified, "list", "mcbench", "--json").stdout)) == copies


def test_the_role_may_read_and_nothing_else(declared):
    about = sql(
        declared,
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolbypassrls, rolreplication, rolpassword LIKE 'SCRAM-SHA-256$%' "
        "FROM pg_authid WHERE rolname = 'hostwright_backup'",
    )
    assert about == "f|f|f|f|f|t"
    as_role = "docker exec -i -e PGPASSFILE=/dev/stdin mcbench-postgres true; docker exec -i mcbench-postgres psql -qAtX -U hostwright_backup -d mcBench -c "
    assert declared.run(as_role + "'SELECT count(*) FROM empty_one'").stdout.strip() == "0"
    assert "permission denied" in declared.run(as_role + "'INSERT INTO empty_one VALUES (1)'", check=False).stderr
    # by the network its password counts
    login = "docker exec -i mcbench-postgres sh -c 'read -r PGPASSWORD; export PGPASSWORD; psql -qAtX -h $(hostname -i) -U hostwright_backup -d mcBench -c \"SELECT 1\"'"
    assert declared.run(login, input=f"{DB_CANARY}\n").stdout.strip() == "1"
    assert declared.run(login, input="wrong\n", check=False).returncode != 0


def test_secrets_are_in_no_argument_and_in_no_journal(verified):
    declared = verified
    seen = set(declared.read("/root/seen").splitlines())
    assert {line for line in seen if line.startswith("cmdline")} == set()
    # restic's password is in the environment of restic, which only root can read; what has ended says no name
    assert {line for line in seen if not line.startswith("environ restic ")} <= {"environ "}
    assert seen, "it would have seen one"
    journal = declared.run("journalctl --no-pager -o cat | grep -cF canary-", check=False).stdout.strip()
    assert journal == "0"
    assert "canary-" not in declared.run("docker logs mcbench-postgres 2>&1; docker inspect mcbench-postgres").stdout
    left = declared.run("grep -rlF canary- /etc /var/lib/hostwright /var/cache /usr/local /tmp /run 2>/dev/null", check=False)
    assert left.stdout.split() == ["/etc/hostwright/backup/mcbench.env"]
    assert declared.run("stat -c '%a %U' /etc/hostwright/backup/mcbench.env").stdout.strip() == "600 root"
    assert "hostwright" not in declared.run("docker exec mcbench-postgres ls -A /dev/shm").stdout


def test_second_run_changes_nothing(declared, converge):
    assert converge(declared).changed == []
    exposure = declared.run("systemd-analyze security --no-pager hostwright-backup-mcbench.service").stdout.splitlines()[-1]
    assert float(exposure.split(": ")[1].split()[0]) <= 1.5, exposure
    refused = converge(declared, deploy(server={"user": "postgres"}))
    assert "must not be the administrator" in refused.stderr


@pytest.mark.soak
def test_a_new_password_goes_to_the_role(declared, converge):
    old = sql(declared, "SELECT rolpassword FROM pg_authid WHERE rolname = 'hostwright_backup'")
    assert converge(declared, password="canary-db-another").changed == ["Back up the database"]
    assert sql(declared, "SELECT rolpassword FROM pg_authid WHERE rolname = 'hostwright_backup'") != old
    assert converge(declared).ok
    assert converge(declared).changed == []


@pytest.mark.soak
def test_a_database_that_shrank_is_not_stored_and_its_copy_is_not_verified(verified):
    """It still has what the minimum asks for. Rows go for good: the last test of this host."""
    restic = f"RESTIC_PASSWORD={CANARY} restic -q -r {REPOSITORY}"
    copies = len(json.loads(backup(verified, "list", "mcbench", "--json").stdout))
    verified.run("docker stop app")
    sql(verified, "DELETE FROM runs WHERE id > 120")
    failed = backup(verified, "run", "mcbench", check=False)
    assert "the copy is much smaller than the last verified copy" in failed.stderr
    assert len(json.loads(backup(verified, "list", "mcbench", "--json").stdout)) == copies
    # as if it had been stored all the same
    backup(verified, "run", "mcbench", "--accept-smaller")
    verified.run("rm -rf /root/forge; install -d -m 0700 /root/forge")
    verified.run(f"cd /root/forge && {restic} restore latest --tag source:mcbench --target . && sed -i 's/\"accepted_smaller\": true/\"accepted_smaller\": false/' stage/manifest.json", timeout=120)
    verified.run(f"cd /root/forge && {restic} backup --host t-backup-pg --tag source:mcbench stage && rm -rf /root/forge", timeout=120)
    assert backup(verified, "drill", "mcbench", check=False).returncode != 0
    failure = state(verified)["drill_failure"]
    assert "rows or files, was" in failure
    assert "the last verified copy is" in failure


def trust(host, vault) -> None:
    """Let root of a host reach the vault by its key."""
    host.run("mkdir -p -m 0700 /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
    vault.run("cat >> /root/.ssh/authorized_keys", input=host.read("/root/.ssh/id_ed25519.pub"))
    host.run(f"ssh-keyscan -t ed25519 {vault.address} 2>/dev/null > /root/.ssh/known_hosts; test -s /root/.ssh/known_hosts")


@pytest.mark.soak
def test_a_new_host_gets_its_database_back_from_the_offsite_copy(lab, image, converge):
    vault = lab.host("t-vault")
    offsite = {"backup_offsite_repository": f"sftp:root@{vault.address}:/srv/vault"}

    def machine(schema: str):
        host = lab.host("t-pg-lost", layer="docker")
        lab.registry().admit(host)
        trust(host, vault)
        start_server(host, image)
        sql(host, schema, "postgres")
        run = converge(host, **offsite)
        assert run.ok, run
        return host

    try:
        host = machine(SCHEMA)
        before = sql(host, LOOK)
        backup(host, "run", "mcbench")
        backup(host, "drill", "mcbench")
        lab.destroy(host)

        # as the application's deploy leaves it: its role and an empty database
        host = machine("CREATE ROLE app LOGIN PASSWORD 'app-password'; CREATE DATABASE \"mcBench\" OWNER app")
        backup(host, "restore", "mcbench", "--at", "verified", "--repository", "offsite")
        assert sql(host, LOOK) == before
        lab.destroy(host)
    finally:
        lab.destroy(vault)


NATIVE = textwrap.dedent("""\
    import os
    from operations import backup
    from deploys import current
    from settings.secret import Secret
    backup.source(
        "mcbench", policy=current().backup, kind="postgres", units=["writer.service"], minimum={{"runs": 100}},
        server=backup.Postgres(database="mcBench", password=Secret(os.environ["LAB_DB_PASSWORD"]), host={host!r}),
        name="Back up the database",
    )
    """)


@pytest.mark.soak
@pytest.mark.parametrize("address", ["/run/postgresql", "127.0.0.1"])
def test_a_server_without_container_on_the_socket_and_by_the_network(lab, converge, address):
    host = lab.host("t-pg-native", layer="packages")
    try:
        host.run("apt-get install -qy --no-install-recommends postgresql >/dev/null 2>&1", timeout=300)
        # the socket is for roles with an account of the same name, as Debian has it: the dump's role needs a line
        host.run(
            "cd /etc/postgresql/*/main && sed -i '1i local all hostwright_backup scram-sha-256' pg_hba.conf && systemctl restart postgresql"
        )

        def native(text: str, database: str = "mcBench") -> str:
            return host.run(f"runuser -u postgres -- psql -qAtX -v ON_ERROR_STOP=1 -d {database}", input=text).stdout.strip()

        wait_for("postgres", lambda: host.run("runuser -u postgres -- psql -c 'SELECT 1'", check=False).returncode == 0, 60)
        native(SCHEMA, "postgres")
        host.write("/etc/systemd/system/writer.service", "[Service]\nExecStart=/bin/sleep infinity\n")
        host.run("systemctl daemon-reload; systemctl start writer")
        before = native(LOOK)
        run = converge(host, NATIVE.format(host=address))
        assert run.ok, run
        host.run("systemctl start hostwright-backup-mcbench && systemctl start hostwright-backup-mcbench-drill", timeout=300)
        native('DELETE FROM runs; DROP TABLE audit."Odd Name"')
        assert "started: writer.service" in backup(host, "restore", "mcbench", "--at", "verified").stdout
        assert native(LOOK) == before
        assert host.run("pgrep -fc backup/mcbench/[c]luster", check=False).stdout.strip() == "0"
    finally:
        lab.destroy(host)
