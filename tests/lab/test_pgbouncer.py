"""PgBouncer in front of a PostgreSQL server on real hosts, read back with psql, pgbench, its console and systemctl."""

import re
import statistics
import textwrap

import pytest

from tests.lab.authority import Authority
from tests.lab.fingerprint import leftovers
from tests.lab.kill import Point, kill_run
from tests.lab.provision import command_line
from tests.lab.state import wait_for

pytestmark = pytest.mark.soak

OWNER, FIRST, SECOND = "canary-owner-password", "canary-first-password", "canary-second-password"
UNIT = "pgbouncer.service"
TLS = 'pgcluster.Tls(os.environ["LAB_CERTIFICATE"], Secret(os.environ["LAB_KEY"]))'


def deploy(cluster: str = "", tls: bool = False, database: bool = True, **arguments: object) -> str:
    values = "".join(f"{key}={value!r}, " for key, value in {"databases": {"shop": 25}, **arguments}.items())
    return textwrap.dedent(f"""\
        import os
        from operations import pgbouncer, pgcluster
        from operations.pgcluster import Role
        from settings.secret import Secret
        password = Secret(os.environ["LAB_PASSWORD"])
        if {database}:
            watchful = {{"client_connection_check_interval": "2s"}}
            pgcluster.cluster(memory_mb=256, connections=60, settings=watchful, {cluster}name="Server")
            pgcluster.database("shop", owner=Role("shop_owner", Secret({OWNER!r})), roles=[Role("shop", password)], name="Database")
        pgbouncer.pooler(
            users=[pgbouncer.User("shop", password), pgbouncer.User("shop_owner", Secret({OWNER!r}))],
            {"tls=" + TLS + ", " if tls else ""}{values}name="Pool",
        )
        """)


@pytest.fixture(scope="module")
def host(lab):
    fresh = lab.host("t-pgbouncer", "trixie")
    yield fresh
    lab.destroy(fresh)


@pytest.fixture(scope="module")
def converge(host, provision, tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("authority"))
    certificate, key = authority.issue(host.address, "127.0.0.1", "localhost")
    host.write("/root/ca.pem", authority.certificate)

    def run(password=FIRST, dry=False, where=host, **arguments):
        env = {"LAB_PASSWORD": password, "LAB_CERTIFICATE": certificate, "LAB_KEY": key}
        return provision(where, deploy(**arguments), env=env, dry=dry)

    return run


def psql(host, sql: str, role: str = "shop", password: str = FIRST, where: str = "host=127.0.0.1 port=6432") -> str:
    """What one role gets to see through the pool, errors included."""
    words = f'PGPASSWORD={password} psql -XAtq "{where} dbname=shop user={role} connect_timeout=20" 2>&1'
    return host.run(words, input=sql, check=False).stdout.strip()


def admin(host, sql: str) -> str:
    return host.run("cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d shop", input=sql).stdout.strip()


def console(host, sql: str, port: int = 6432) -> str:
    words = f"cd / && runuser -u pgbouncer -- psql -XAtq -h /run/pgbouncer -p {port} -U pgbouncer pgbouncer 2>&1"
    return host.run(words, input=sql, check=False).stdout.strip()


def pgbench(host, *words: str, password: str = FIRST, role: str = "shop", port: int = 6432) -> str:
    command = f"ulimit -n 8192; PGPASSWORD={password} $(ls /usr/lib/postgresql/*/bin/pgbench) -h 127.0.0.1 -p {port} -U {role} {' '.join(words)} shop 2>&1"
    return host.run(command, check=False, timeout=500).stdout


def counted(text: str) -> list[tuple[set[str], list[str]]]:
    """Process ids of the role's connections, as the server lists them and as PgBouncer does, of each sample."""
    found = []
    for sample in text.split("sample\n")[1:]:
        rows = [line.split("|") for line in sample.splitlines()]
        server = {row[1] for row in rows if row[0] == "server"}
        head: list[str] = next((row for row in rows if "remote_pid" in row), [])
        # of one that still logs in PgBouncer does not know the process: 0
        pool = [row[head.index("remote_pid")] for row in rows if head and len(row) == len(head) and row[1] == "shop"]
        found.append((server, pool))
    return found


def pid(host) -> str:
    return host.run(f"systemctl show -p MainPID --value {UNIT}").stdout.strip()


def test_set_noop_update(host, converge):
    run = converge(metrics_port=9127)
    assert (run.ok, run.changed) == (True, ["Server", "Database", "Pool"]), run
    assert psql(host, "SELECT current_user") == "shop"
    assert psql(host, "SELECT current_user", role="shop_owner", password=OWNER) == "shop_owner"
    assert "SASL authentication failed" in psql(host, "SELECT 1", password="wrong-password")
    assert "FATAL" in psql(host, "SELECT 1", role="postgres", password="wrong-password")
    before = pid(host)
    assert converge(metrics_port=9127).changed == []
    assert converge(metrics_port=9127, dry=True).changed == []
    assert pid(host) == before

    # a client that is connected keeps its connection through what a reload does
    host.run(f"systemd-run -q --unit=held -E PGPASSWORD={FIRST} psql -XAtq -h 127.0.0.1 -p 6432 -U shop -d shop -c 'SELECT 1; SELECT pg_sleep(3600)'")
    wait_for("the held client", lambda: admin(host, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(3600)'"
                                                    " AND pid <> pg_backend_pid()") == "1", 60, pause=0.5)  # fmt: skip
    assert converge(metrics_port=9127, wait_seconds=60, max_clients=1200, databases={"shop": 20}).changed == ["Pool"]
    assert re.search(r"^max_client_conn\|1210\|", console(host, "SHOW CONFIG"), re.M)
    assert pid(host) == before, "what can be read anew has cost a restart"
    assert host.run("systemctl is-active held").stdout == "active\n"
    # a client that goes in the middle of a query: PgBouncer gives its connection up, and the server would carry the query out for an
    # hour, beyond the 25 connections of the pool, if it were not told to look for its client
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(3600)' AND pid <> pg_backend_pid()"
    assert admin(host, sleeping) == "1"
    host.run("systemctl stop held")
    wait_for("the query of the client that has gone", lambda: admin(host, sleeping) == "0", 30, pause=0.5)

    assert converge(metrics_port=9127, port=6433).changed == ["Pool"]
    assert pid(host) != before
    assert psql(host, "SELECT 1", where="host=127.0.0.1 port=6433") == "1"
    assert converge(metrics_port=9127, port=6433).changed == []
    assert converge(metrics_port=9127).changed == ["Pool"]


def test_a_thousand_clients_on_25_connections_with_prepared_statements(host, converge):
    assert converge(metrics_port=9127).ok
    made = pgbench(host, "-i -q -s 5", role="shop_owner", password=OWNER)
    assert "done in" in made, made
    # asked from beside: what the server counts, and which of these PgBouncer still calls its own
    watch = "SELECT 'server|' || pid FROM pg_stat_activity WHERE usename = 'shop' AND backend_type = 'client backend'"
    program = f"""cd /
        while sleep 0.5; do
            echo sample
            runuser -u postgres -- psql -XAtq -d shop -c "{watch}"
            runuser -u pgbouncer -- psql -XAq -h /run/pgbouncer -p 6432 -U pgbouncer -c 'SHOW SERVERS' pgbouncer
        done >/run/counted
        """
    host.write("/root/watch", program)
    host.run("systemd-run -q --unit=watch sh /root/watch")
    # why a connection is closed
    assert "ERROR" not in console(host, "SET log_disconnections = 1")
    figures = {}
    for mode in ("prepared", "simple"):
        said = pgbench(host, f"-S -n -M {mode} -c 1000 -j 2 -T 30")
        found = {key: re.search(pattern, said) for key, pattern in {
            "transactions": r"actually processed: (\d+)", "failed": r"failed transactions: (\d+)", "tps": r"tps = ([\d.]+)",
            "latency_ms": r"latency average = ([\d.]+)", "connected_ms": r"initial connection time = ([\d.]+)"}.items()}  # fmt: skip
        assert all(found.values()), said
        figures[mode] = {key: float(match[1]) for key, match in found.items()}
        assert "aborted" not in said, said
        assert figures[mode]["failed"] == 0
    assert "pgbouncer_pools_client_active_connections" in host.run("curl -fsS http://127.0.0.1:9127/metrics").stdout
    host.run("systemctl stop watch")
    samples = counted(host.read("/run/counted"))
    closed = host.run("journalctl --no-pager -o cat -u pgbouncer | grep -oE 'S-0x.* closing because: [^(]*' | sed 's/.*because: //' | sort | uniq -c").stdout
    most = [max(len(sample[side]) for sample in samples) for side in (0, 1)]
    print(figures, "connections, at most: as the server counts", most[0], "as PgBouncer does", most[1], "closed:", closed)  # noqa: T201 - for the docs page
    assert statistics.mode(len(server) for server, _ in samples if server) == 25
    assert most[1] == 25
    # what the server has besides is what PgBouncer has closed and what has not ended yet: no client gets it any more
    for at, (server, _) in enumerate(samples):
        later = {pid for _, pids in samples[at:] for pid in pids}
        assert len(server - later) >= len(server) - 25
    assert converge(metrics_port=9127).changed == ["Pool"], "the console's setting is put right"
    # the control: without the pool the server takes 60 less those of its administrator
    assert re.search("too many clients|remaining connection slots", pgbench(host, "-S -n -c 100 -T 5", port=5432))


def test_prepared_statements_need_to_be_kept(host, converge):
    """The control: what fails without them."""
    assert converge(metrics_port=9127, prepared_statements=0).changed == ["Pool"]
    said = pgbench(host, "-S -n -M prepared -c 100 -j 2 -T 5")
    assert re.search(r"prepared statement .* does not exist|already exists", said), said
    assert pgbench(host, "-S -n -M extended -c 100 -j 2 -T 5").count("ERROR") == 0
    assert converge(metrics_port=9127).changed == ["Pool"]


def test_server_restarts_and_is_found_again(host):
    assert psql(host, "SELECT 1") == "1"
    host.run("systemctl restart postgresql@17-main.service")
    wait_for("the pool after its server's restart", lambda: psql(host, "SELECT 1") == "1", 20, pause=0.3)


def test_password_is_rotated_by_a_reload(host, converge):
    before = pid(host)
    assert converge(SECOND, metrics_port=9127).changed == ["Database", "Pool"]
    assert psql(host, "SELECT 1", password=SECOND) == "1"
    assert "SASL authentication failed" in psql(host, "SELECT 1")
    assert converge(SECOND, metrics_port=9127).changed == []
    assert converge(metrics_port=9127).changed == ["Database", "Pool"]
    assert psql(host, "SELECT 1") == "1"
    assert pid(host) == before
    # a password that the server does not have
    bad = converge(SECOND, metrics_port=9127, database=False)
    assert (bad.ok, bad.failed) == (False, ["Pool"])
    assert "the server does not let in shop: password authentication failed" in bad.stderr
    assert "canary" not in bad.stderr + bad.stdout
    assert psql(host, "SELECT 1") == "1"
    # the server does not say: what is in the file is of this password, and good
    host.run("systemctl stop postgresql@17-main.service")
    assert converge(metrics_port=9127, database=False).changed == []
    bad = converge(SECOND, metrics_port=9127, database=False)
    assert not bad.ok
    assert "does not say the salt of shop" in bad.stderr
    assert converge(metrics_port=9127).changed == ["Server"]


def test_what_is_changed_by_hand_is_put_right(host, converge):
    assert "ERROR" not in console(host, "SET query_wait_timeout = 7")
    assert converge(metrics_port=9127, dry=True).changed == ["Pool"]
    assert converge(metrics_port=9127).changed == ["Pool"]
    assert re.search(r"^query_wait_timeout\|120\|", console(host, "SHOW CONFIG"), re.M)
    host.run(f"systemctl disable --now {UNIT}; sed -i 's/^auth_type.*/auth_type = trust/' /etc/pgbouncer/pgbouncer.ini; : >/etc/pgbouncer/userlist.txt")
    assert converge(metrics_port=9127).changed == ["Pool"]
    assert host.run(f"systemctl is-enabled {UNIT}").stdout == "enabled\n"
    assert psql(host, "SELECT 1") == "1"
    assert "SASL authentication failed" in psql(host, "SELECT 1", password="wrong-password")
    assert converge(metrics_port=9127).changed == []


def test_what_it_does_not_take_is_taken_back(host, converge):
    before = pid(host)
    bad = converge(metrics_port=9127, settings={"no_such_setting": "1"})
    assert (bad.ok, bad.failed) == (False, ["Pool"])
    assert "nothing was changed" in bad.stderr
    assert "no_such_setting" in bad.stderr
    assert pid(host) == before
    bad = converge(metrics_port=9127, addresses=["192.0.2.77"], tls=True)
    assert (bad.ok, bad.failed) == (False, ["Pool"])
    assert "192.0.2.77" not in host.read("/etc/pgbouncer/pgbouncer.ini")
    assert psql(host, "SELECT 1") == "1"
    assert converge(metrics_port=9127).changed == []


def test_beyond_loopback_only_tls_is_spoken(host, stranger, converge):
    listening = "ss -Hltn | awk '{print $4}' | grep -E ':(6432|9127)$' | sort"
    assert host.run(listening).stdout.split() == ["127.0.0.1:6432", "127.0.0.1:9127"]
    assert converge(metrics_port=9127, addresses=[host.address], tls=True).changed == ["Pool"]
    secure = f"host={host.address} port=6432 sslmode=verify-full sslrootcert=/root/ca.pem"
    assert psql(host, "SELECT 1", where=secure) == "1"
    assert "SSL required" in psql(host, "SELECT 1", where=f"host={host.address} port=6432 sslmode=disable")
    assert converge(metrics_port=9127, addresses=[host.address], tls=True).changed == []
    knock = "timeout 5 bash -c 'echo >/dev/tcp/{}/{}' 2>/dev/null && echo open || echo closed"
    found = [stranger.run(knock.format(host.address, port)).stdout for port in (22, 6432, 9127)]
    assert found == ["open\n", "open\n", "closed\n"], "who may come to 6432 is the firewall's"
    assert converge(metrics_port=9127).changed == ["Pool"]


def test_secrets_are_where_they_belong(host):
    words = "canary-owner|canary-first|canary-second"
    assert host.run(f"grep -rlE \"{words}\" /etc /var/log /var/lib/hostwright /run /tmp", check=False).stdout == ""
    assert host.run(f"journalctl --no-pager | grep -vE 'systemd-run|PGPASSWORD' | grep -cE \"{words}\"", check=False).stdout == "0\n"
    assert host.run("stat -c '%a %U' /etc/pgbouncer/userlist.txt").stdout == "600 pgbouncer\n"
    stored = admin(host, "SELECT format('\"%s\" \"%s\"', rolname, rolpassword) FROM pg_authid WHERE rolname LIKE 'shop%' ORDER BY rolname")
    assert host.read("/etc/pgbouncer/userlist.txt").splitlines() == stored.splitlines()
    exposed = host.run(f"systemd-analyze security --no-pager {UNIT}").stdout.splitlines()[-1]
    assert float(exposed.split(": ")[1].split()[0]) <= 1.5, exposed


def test_unset(host, provision):
    gone = "from operations import pgbouncer\npgbouncer.pooler(present=False, name='Pool')\n"
    assert provision(host, gone).changed == ["Pool"]
    assert host.run(f"systemctl is-active {UNIT} prometheus-pgbouncer-exporter", check=False).stdout.split() == ["inactive", "inactive"]
    assert provision(host, gone).changed == []


def test_killed_anywhere_the_next_run_ends_it(lab, provision, tmp_path):
    """On a fresh host: the server is made, and what brings PgBouncer is killed ever later."""
    fresh = lab.host("t-pgbouncer-kill", "trixie")
    text = "from deploys import current\nfrom operations import preflight\npreflight.host(current().requirements, name='Check')\n" + deploy(metrics_port=9127)
    for seconds in (0.3, 1.5, 3, 5, 8, 12):
        kill_run(command_line(tmp_path, fresh, text), {"LAB_PASSWORD": FIRST}, Point(3, seconds))
    run = provision(fresh, text, env={"LAB_PASSWORD": FIRST})
    assert run.ok, run
    assert psql(fresh, "SELECT current_user") == "shop"
    assert "pgbouncer_up 1" in fresh.run("curl -fsS http://127.0.0.1:9127/metrics").stdout
    assert leftovers(fresh) == []
    assert provision(fresh, text, env={"LAB_PASSWORD": FIRST}).changed == []
    before = pid(fresh)
    # a rotation, killed
    for seconds in (0.3, 1.5, 3):
        kill_run(command_line(tmp_path, fresh, text), {"LAB_PASSWORD": SECOND}, Point(3, seconds))
    assert provision(fresh, text, env={"LAB_PASSWORD": SECOND}).ok
    assert psql(fresh, "SELECT 1", password=SECOND) == "1"
    assert pid(fresh) == before
    assert provision(fresh, text, env={"LAB_PASSWORD": SECOND}).changed == []
    lab.destroy(fresh)


def test_debian_12_has_none_that_keeps_prepared_statements(lab, converge):
    old = lab.host("t-pgbouncer-12", "bookworm")
    old.run("apt-get update -q", timeout=300)
    bad = converge(where=old, metrics_port=9127)
    assert not bad.ok
    assert "needs PgBouncer 1.21 (Debian 13 has it), this host has 1.18.0" in bad.stderr
    assert "needs the exporter that Debian 13 has, this host's is 1.7" in bad.stderr
    assert not old.exists("/usr/sbin/pgbouncer")
    run = converge(where=old, prepared_statements=0)
    assert (run.ok, run.changed) == (True, ["Pool"]), run
    assert converge(where=old, prepared_statements=0).changed == []
    assert "done in" in pgbench(old, "-i -q -s 1", role="shop_owner", password=OWNER)
    assert "does not exist" in pgbench(old, "-S -n -M prepared -c 100 -j 2 -T 5")
    said = pgbench(old, "-S -n -M extended -c 1000 -j 2 -T 10")
    assert "aborted" not in said, said
    lab.destroy(old)
