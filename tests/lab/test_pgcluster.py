"""PostgreSQL of the distribution on a real host, read back with psql and systemctl."""

import textwrap

import pytest

from tests.lab.authority import Authority

OWNER, FIRST, SECOND, READER = "canary-owner-password", "canary-first-password", "canary's 2nd \\password", "canary-reader-password"
UNIT = "postgresql@15-main"
TLS = 'pgcluster.Tls(os.environ["LAB_CERTIFICATE"], Secret(os.environ["LAB_KEY"]))'


def deploy(former: object = (), tls: bool = False, extensions: object = ("pg_trgm",), **arguments: object) -> str:
    values = "".join(f"{key}={value!r}, " for key, value in {"memory_mb": 256, **arguments}.items())
    return textwrap.dedent(f"""\
        import os
        from operations import pgcluster
        from operations.pgcluster import Role
        from settings.secret import Secret
        pgcluster.cluster({values}{"tls=" + TLS + ", " if tls else ""}name="Server")
        pgcluster.database(
            "shop", owner=Role("shop_owner", Secret({OWNER!r})), extensions={extensions!r}, former={former!r},
            roles=[Role("shop", Secret(os.environ["LAB_PASSWORD"])), Role("shop_reports", Secret({READER!r}), "read", connections=3)],
            name="Database",
        )
        """)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def converge(host, provision, authority):
    certificate, key = authority.issue(host.address, "localhost")

    def run(password=FIRST, dry=False, **arguments):
        env = {"LAB_PASSWORD": password, "LAB_CERTIFICATE": certificate, "LAB_KEY": key}
        return provision(host, deploy(**arguments), env=env, dry=dry)

    return run


def psql(host, sql: str, role: str = "shop", password: str = FIRST, where: str = "host=127.0.0.1") -> str:
    """What one role gets to see, errors included."""
    host.write("/root/.pgpass", f"*:*:*:*:{password}\n".replace("\\", "\\\\"), mode="0600")
    done = host.run(f'psql -XAtq "{where} dbname=shop user={role} connect_timeout=5" 2>&1', input=sql, check=False)
    return done.stdout.strip()


def admin(host, sql: str, database: str = "shop") -> str:
    return host.run(f"cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d {database}", input=sql).stdout.strip()


def pid(host) -> str:
    return host.run(f"systemctl show -p MainPID --value {UNIT}").stdout.strip()


@pytest.mark.soak
def test_set_noop_update(host, converge):
    run = converge()
    assert (run.ok, run.changed) == (True, ["Server", "Database"]), run
    assert admin(host, "SHOW shared_buffers") == "64MB"
    before = pid(host)
    assert converge().changed == []
    assert converge(dry=True).changed == []

    assert converge(settings={"log_min_duration_statement": "5s"}).changed == ["Server"]
    assert admin(host, "SHOW log_min_duration_statement") == "5s"
    assert pid(host) == before, "what can be read anew has cost a restart"
    assert converge(memory_mb=512).changed == ["Server"]
    assert pid(host) != before
    assert admin(host, "SHOW shared_buffers") == "128MB"
    assert admin(host, "SHOW log_min_duration_statement") == "-1"
    assert converge(memory_mb=512).changed == []


@pytest.mark.soak
def test_roles_may_what_they_may(host, converge):
    assert converge().ok
    owner = {"role": "shop_owner", "password": OWNER}
    assert psql(host, "CREATE TABLE run (id serial PRIMARY KEY, name text); CREATE INDEX ON run USING gin (name gin_trgm_ops)", **owner) == ""
    assert psql(host, "INSERT INTO run(name) VALUES ('a') RETURNING id") == "1"
    assert psql(host, "UPDATE run SET name = 'b' RETURNING id") == "1"
    for forbidden in ("CREATE TABLE mine (x int)", "DROP TABLE run", "TRUNCATE run", "CREATE DATABASE mine", "CREATE ROLE mine"):
        assert "ERROR" in psql(host, forbidden), forbidden
    reader = {"role": "shop_reports", "password": READER}
    assert psql(host, "SELECT name FROM run", **reader) == "b"
    assert "permission denied" in psql(host, "DELETE FROM run", **reader)
    assert "password authentication failed" in psql(host, "SELECT 1", password="wrong")
    admin(host, "CREATE ROLE stranger LOGIN PASSWORD 'stranger'", "postgres")
    assert "permission denied for database" in psql(host, "SELECT 1", role="stranger", password="stranger")
    assert converge().changed == []


@pytest.mark.soak
def test_password_is_rotated_and_a_role_shut_out(host, converge):
    before = pid(host)
    assert converge(password=SECOND).changed == ["Database"]
    assert psql(host, "SELECT count(*) FROM run", password=SECOND) == "1"
    assert "password authentication failed" in psql(host, "SELECT 1", password=FIRST)
    assert converge(password=SECOND).changed == []
    assert converge(former=("stranger",)).changed == ["Database"]
    assert admin(host, "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'stranger'") == "f"
    assert converge(former=("stranger",)).changed == []
    assert pid(host) == before


@pytest.mark.soak
def test_what_is_changed_by_hand_is_put_right(host, converge):
    admin(host, "ALTER ROLE shop SUPERUSER; GRANT CONNECT ON DATABASE shop TO PUBLIC; GRANT TRUNCATE ON run TO shop_reports; DROP EXTENSION pg_trgm CASCADE; GRANT shop_owner TO shop")
    assert converge(dry=True).changed == ["Database"]
    assert converge().changed == ["Database"]
    assert admin(host, "SELECT rolsuper FROM pg_roles WHERE rolname = 'shop'") == "f"
    assert "ERROR" in psql(host, "TRUNCATE run", role="shop_reports", password=READER)
    assert "ERROR" in psql(host, "DROP TABLE run")
    assert converge().changed == []

    # as a restore leaves it: everybody may connect, and nobody by name
    admin(host, "GRANT CONNECT ON DATABASE shop TO PUBLIC; REVOKE ALL ON DATABASE shop FROM shop, shop_reports")
    assert converge().changed == ["Database"]
    assert psql(host, "SELECT count(*) FROM run") == "1"
    assert converge().changed == []

    admin(host, "ALTER SYSTEM SET work_mem = '99MB'")
    host.run("echo 'host all all 0.0.0.0/0 trust' >>/etc/postgresql/15/main/pg_hba.conf; systemctl stop postgresql@15-main")
    assert converge().changed == ["Server"]
    assert "trust" not in host.read("/etc/postgresql/15/main/pg_hba.conf")
    assert admin(host, "ALTER SYSTEM SET work_mem = '99MB'; SELECT pg_reload_conf()") == "t"
    assert converge().changed == ["Server"]
    assert admin(host, "SHOW work_mem") == "1MB"
    assert converge().changed == []


@pytest.mark.soak
def test_what_the_server_does_not_take_is_taken_back(host, converge):
    before = pid(host)
    bad = converge(settings={"no_such_setting": "1"})
    assert (bad.ok, bad.failed) == (False, ["Server"])
    assert "nothing was changed" in bad.stderr
    assert pid(host) == before
    bad = converge(addresses=["192.0.2.77"], networks=["192.0.2.0/24"], tls=True, settings={"huge_pages": "on"})
    assert (bad.ok, bad.failed) == (False, ["Server"])
    assert "192.0.2.77" not in host.read("/etc/postgresql/15/main/conf.d/hostwright.conf")
    assert psql(host, "SELECT count(*) FROM run") == "1"
    assert converge().ok


@pytest.mark.soak
def test_beyond_loopback_only_tls_and_declared_networks(host, stranger, converge, authority):
    assert converge(addresses=[host.address], networks=[f"{host.address}/32"], tls=True).changed == ["Server"]
    host.write("/root/ca.pem", authority.certificate)
    secure = f"host={host.address} sslmode=verify-full sslrootcert=/root/ca.pem"
    assert psql(host, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", where=secure) == "t"
    assert "no pg_hba.conf entry" in psql(host, "SELECT 1", where=f"host={host.address} sslmode=disable")
    assert converge(addresses=[host.address], networks=[f"{host.address}/32"], tls=True).changed == []
    # the stranger's network is not declared: with TLS and a name, all the same
    program = (
        "import socket, ssl, struct\n"
        f"raw = socket.create_connection(('{host.address}', 5432), 5)\n"
        "raw.sendall(struct.pack('!ii', 8, 80877103)); assert raw.recv(1) == b'S'\n"
        "context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE\n"
        "body = struct.pack('!i', 196608) + b'user\\0shop\\0database\\0shop\\0\\0'\n"
        "with context.wrap_socket(raw) as wrapped:\n"
        "    wrapped.sendall(struct.pack('!i', len(body) + 4) + body); print(wrapped.recv(500))\n"
    )
    assert "no pg_hba.conf entry" in stranger.run("python3 -", input=program).stdout
    # the control: from a declared one a password is asked for
    assert "SCRAM-SHA-256" in host.run("python3 -", input=program).stdout


@pytest.mark.soak
def test_secrets_are_where_they_belong(host):
    words = "canary-owner|canary-first|canary.s 2nd|canary-reader"
    host.run("rm -f /root/.pgpass")
    assert host.run(f"grep -rlE \"{words}\" /etc /var/log /var/lib/postgresql /run /tmp", check=False).stdout == ""
    assert host.run(f"journalctl --no-pager | grep -cE \"{words}\"", check=False).stdout == "0\n"
    assert "SCRAM" not in host.run("cat /var/log/postgresql/*").stdout
    assert host.run("stat -c '%a %U' /etc/postgresql/15/main/server.key").stdout == "600 postgres\n"
