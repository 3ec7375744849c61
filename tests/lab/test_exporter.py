"""Exporters on a real host: one program that needs no database, and those of Redis and PostgreSQL with accounts that may little."""

from __future__ import annotations

import pytest

from tests.lab import canary

NAME = "Show how sites are"
MODULES = "modules:\n  site:\n    prober: http\n    timeout: {timeout}\n"
SECRETS = {"MONITORING": "canary-monitor'pass#word1", "ADMIN": "canary-admin-password-1"}
DATABASES = f"""
from operations import exporter, pgcluster, redis
from settings.secret import Secret
password = Secret({SECRETS["MONITORING"]!r})
redis.instance("shop", password=Secret({SECRETS["ADMIN"]!r}), users=[redis.User("monitor", password, ("+ping", "+info", "+slowlog|len", "+slowlog|get", "+latency|latest"))], name="Run Redis")
pgcluster.cluster(memory_mb=256, name="Run PostgreSQL")
exporter.postgres_role("monitor", password, name="Have the role")
exporter.exporter(
    "redis-shop", package="prometheus-redis-exporter", listen="127.0.0.1:9121", arguments=["--config-command=-", "--set-client-name=false"],
    environment={{"REDIS_ADDR": "redis://127.0.0.1:6379", "REDIS_USER": "monitor", "REDIS_PASSWORD": password}}, expects="redis_up 1", name="Show Redis",
)
exporter.exporter(
    "postgres", package="prometheus-postgres-exporter", listen="127.0.0.1:9187",
    environment={{"DATA_SOURCE_NAME": "host=/run/postgresql port=5432 user=monitor dbname=postgres sslmode=disable", "PGPASSWORD": password}},
    expects="pg_up 1", name="Show PostgreSQL",
)
exporter.only(["redis-shop", "postgres"], name="Retire exporters")
"""


def sites(timeout="5s", **words):
    words = {"package": "prometheus-blackbox-exporter", "listen": "127.0.0.1:9115", "configuration": MODULES.format(timeout=timeout), **words}
    return f"from operations import exporter\nexporter.exporter('sites', name={NAME!r}, **{words!r})\n"


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def host(lab, request):
    fresh = lab.host(f"t-exporter-{request.param}", request.param, layer="packages")
    yield fresh
    lab.destroy(fresh)


def pid(host, unit="hostwright-exporter-sites.service"):
    return host.run(f"systemctl show -p MainPID --value {unit}").stdout.strip()


def listening(host):
    return {line.split()[3] for line in host.run("ss -Htlnp").stdout.splitlines() if "prometheus" in line}


@pytest.mark.soak
def test_set_noop_update_refuse_unset(host, provision):
    assert provision(host, sites()).changed == [NAME]
    assert listening(host) == {"127.0.0.1:9115"}
    assert host.run("systemctl is-enabled prometheus-blackbox-exporter.service", check=False).stdout.strip() == "masked"
    assert host.run("journalctl -u prometheus-blackbox-exporter.service -o cat --no-pager -q").stdout == ""  # it never ran
    before = pid(host)
    assert provision(host, sites()).changed == []
    assert pid(host) == before

    assert provision(host, sites(timeout="6s")).changed == [NAME]
    assert pid(host) != before
    before = pid(host)
    assert "timeout: 6s" in host.run("curl -fsS http://127.0.0.1:9115/config").stdout

    done = provision(host, sites(timeout="six"))
    assert done.failed == [NAME], done
    assert (pid(host), "do not pass" in done.stderr) == (before, True)

    # it comes up, and does not say what it should: the old one comes back
    done = provision(host, sites(timeout="6s", listen="127.0.0.1:9116", expects="no_such_metric 1"))
    assert done.failed == [NAME], done
    assert listening(host) == {"127.0.0.1:9115"}
    assert provision(host, sites(timeout="6s")).changed in ([], [NAME])
    assert provision(host, sites(timeout="6s")).changed == []

    host.run("systemctl kill -s KILL hostwright-exporter-sites.service; systemctl stop hostwright-exporter-sites.service")
    assert provision(host, sites(timeout="6s")).changed == [NAME]
    assert listening(host) == {"127.0.0.1:9115"}
    verdict = host.run("systemd-analyze security --no-pager hostwright-exporter-sites.service | tail -1").stdout
    assert float(verdict.split()[-3]) <= 1.5, verdict

    gone = "from operations import exporter\nexporter.only(['other'], name='Retire exporters')\n"
    assert provision(host, gone).changed == ["Retire exporters"]
    assert listening(host) == set()
    assert host.run("ls /etc/hostwright/exporters /etc/systemd/system | grep sites", check=False).stdout == ""
    assert provision(host, gone).changed == []


@pytest.mark.soak
def test_databases_are_watched_by_accounts_that_may_little(host, provision):
    with canary.sampled(host, SECRETS) as samples:
        done = provision(host, DATABASES)
    assert done.ok, done
    assert canary.in_text(done.stdout + done.stderr, SECRETS) == []
    assert samples.arguments == set()
    files = canary.files(host, SECRETS)
    assert set(files) == {"/etc/hostwright/exporters/postgres.env", "/etc/hostwright/exporters/redis-shop.env", "/etc/hostwright/redis/shop.password"}
    assert set(files.values()) == {"600 root root"}
    assert canary.journal(host, SECRETS) == []
    assert "redis_memory_used_bytes" in host.run("curl -fsS http://127.0.0.1:9121/metrics").stdout
    assert 'pg_database_size_bytes{datname="postgres"' in host.run("curl -fsS http://127.0.0.1:9187/metrics").stdout
    assert provision(host, DATABASES).changed == []

    # neither reads data, nor changes anything
    login = "export REDISCLI_AUTH=$(cat) && redis-cli --user monitor --no-auth-warning"
    for command in ("get x", "keys '*'", "config get dir", "acl list", "flushall"):
        assert "NOPERM" in host.run(f"{login} {command}", input=SECRETS["MONITORING"]).stdout, command
    host.run("cd / && runuser -u postgres -- psql -qc 'CREATE TABLE t (x int)'")
    sql = "export PGPASSWORD=$(cat) && cd / && psql -h 127.0.0.1 -U monitor -d postgres -XAtqc"
    assert "permission denied" in host.run(f"{sql} 'SELECT * FROM t'", input=SECRETS["MONITORING"], check=False).stderr
    assert "read-only" in host.run(f"{sql} 'CREATE TEMP TABLE y (x int)'", input=SECRETS["MONITORING"], check=False).stderr

    # another password: role, user and exporters follow
    changed = DATABASES.replace("canary-monitor", "canary-second")
    assert provision(host, changed).changed == ["Run Redis", "Have the role", "Show Redis", "Show PostgreSQL"]
    # one that does not come in is not left running
    before = pid(host, "hostwright-exporter-redis-shop.service")
    done = provision(host, changed.replace('"REDIS_USER": "monitor"', '"REDIS_USER": "nobody"'))
    assert done.failed == ["Show Redis"], done
    assert host.run("curl -fsS http://127.0.0.1:9121/metrics").stdout.splitlines().count("redis_up 1") == 1
    assert pid(host, "hostwright-exporter-redis-shop.service") not in ("0", before)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"listen": "0.0.0.0:9115"}, "listen must be one address, not all of them"),
        ({"package": "nginx"}, "package must be like 'prometheus-redis-exporter', got 'nginx'"),
        ({"arguments": ["--x; reboot"]}, "not an argument: '--x; reboot'"),
        ({"environment": {"A B": "x"}}, "environment: A B: must be a variable name"),
    ],
)
def test_bad_input_is_refused(host, provision, words, said):
    done = provision(host, sites(**words))
    assert not done.ok
    assert said in done.stderr
