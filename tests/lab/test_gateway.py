"""The gateway from bare host to answering over TLS, and everything that may happen to it afterwards."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator

import pytest

from tests.lab import apps, load
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.state import wait_for

DOMAIN = "gateway.example.test"
KEY = "admin-key-of-the-lab-0123456789abcdef"
DEPLOY = "from deploys.gateway import gateway\ngateway()\n"
ENV = {"GATEWAY_ADMIN_API_KEY": KEY, "BACKUP_PASSWORD": "backup-password-of-the-lab-0123456789"}

Converge = Callable[..., Run]


@pytest.fixture(scope="module")
def repository(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the application's git repository."""
    directory = tmp_path_factory.mktemp("repository")
    apps.gateway_repository(directory)
    return lab.serve(directory, port=8097) + "/gateway.git"


@pytest.fixture(scope="module")
def converge(host: LabHost, repository: str, provision: Callable[..., Run]) -> Converge:
    """Bring the module's host to the gateway's settings; keyword arguments are settings without their prefix."""

    def run(dry: bool = False, deploy: str = DEPLOY, **settings: object) -> Run:
        data = {
            "domain": DOMAIN,
            "repository": repository,
            "version": "v1.0.0",
            "admin_api_key": "env:GATEWAY_ADMIN_API_KEY",
            "start_timeout_seconds": 8,
            "settle_seconds": 6,
            "request_timeout_seconds": 30,
            # One address sends all the load.
            "rate_limit_per_second": 0,
            **settings,
        }
        return provision(
            host,
            deploy,
            data={
                "certificate_mode": "self-signed",
                "certificate_email": "ops@example.test",
                "backup_password": "env:BACKUP_PASSWORD",
                **{f"gateway_{key}": value for key, value in data.items()},
            },
            groups={"gateway": [host]},
            env=ENV,
            dry=dry,
        )

    return run


def ask(host: LabHost, path: str, *options: str, status: int = 200, source: LabHost | None = None) -> str:
    """Ask over https for a path and return the body; fails unless the status is the expected one."""
    to = "127.0.0.1" if source is None else host.address
    arguments = shlex.join(
        [
            "curl",
            "-sk",
            "-m",
            "20",
            "-w",
            "\\n%{http_code}",
            "--resolve",
            f"{DOMAIN}:443:{to}",
            *options,
            f"https://{DOMAIN}{path}",
        ]
    )
    body, _, code = (source or host).run(arguments).stdout.rpartition("\n")
    assert code == str(status), f"{path}: {code}: {body}"
    return body


def version(host: LabHost) -> str:
    return str(json.loads(ask(host, "/version"))["version"])


def colour(host: LabHost) -> str:
    """The colour that serves."""
    return host.run("readlink /etc/multiverse-gateway/active.sock").stdout.split("-")[2].split("/")[0]


def pids(host: LabHost) -> dict[str, str]:
    """The main processes of everything that serves."""
    units = ["nginx", "multiverse-gateway-blue", "multiverse-gateway-green"]
    return {unit: host.run(f"systemctl show -p MainPID --value {unit}").stdout.strip() for unit in units}


def test_bare_host_answers_over_tls(host, converge, stranger):
    run = converge()
    assert run.ok, run
    assert json.loads(ask(host, "/version", source=stranger))["version"] == "1.0.0"
    before = pids(host)

    with load.traffic(stranger, host, DOMAIN) as traffic:
        again = converge()
    assert (again.ok, again.changed) == (True, []), again
    assert converge(dry=True).changed == []
    assert pids(host) == before
    assert traffic.report.failures == []


def test_service_is_sealed(host):
    unit = f"multiverse-gateway-{colour(host)}.service"
    exposure = host.run(f"systemd-analyze security --no-pager {unit}").stdout.splitlines()[-1]
    assert float(exposure.split(": ")[1].split()[0]) <= 1.5, exposure
    user = host.run("getent passwd gateway").stdout.strip().split(":")
    assert user[5:] == ["/var/lib/multiverse-gateway", "/usr/sbin/nologin"]
    modes = {
        f"/etc/multiverse-gateway/{colour(host)}.env": "600 root root",
        "/var/lib/multiverse-gateway": "700 gateway gateway",
        "/var/lib/multiverse-gateway/gateway.db": "600 gateway gateway",
        "/var/log/multiverse-gateway": "750 gateway gateway",
        "/var/log/multiverse-gateway/gateway.log": "600 gateway gateway",
        f"/run/multiverse-gateway-{colour(host)}": "750 gateway www-data",
    }
    assert {path: host.run(f"stat -c '%a %U %G' {path}").stdout.strip() for path in modes} == modes
    writable = host.run(
        "runuser -u gateway -- find /opt/multiverse-gateway /etc/multiverse-gateway -writable ! -type l"
    ).stdout
    assert writable == ""
    # nobody but nginx and the service itself may talk to the application directly
    refused = host.run(
        "runuser -u nobody -- curl -sS --unix-socket /etc/multiverse-gateway/active.sock http://localhost/health",
        check=False,
    )
    assert refused.returncode != 0
    listening = host.run("ss -Hltnp").stdout
    assert "python" not in listening, "the application listens on a port"


def test_nginx_passes_on_what_it_should(host, converge, stranger):
    assert json.loads(ask(host, "/client", source=stranger)) == {"host": stranger.address, "scheme": "https"}
    lied = ask(
        host, "/client", "-H", "X-Forwarded-For: 192.0.2.66", "-H", "X-Forwarded-Proto: http", source=stranger
    )
    assert json.loads(lied) == {"host": stranger.address, "scheme": "https"}

    key = ("-H", f"X-API-Key: {KEY}")
    assert "requests" in ask(host, "/admin/stats", *key)
    ask(host, "/admin/stats", status=401)
    ask(host, "/admin/stats", *key, status=403, source=stranger)

    at_limit = "head -c 1048576 /dev/zero >/tmp/limit; head -c 1048577 /dev/zero >/tmp/above"
    host.run(at_limit)
    assert json.loads(ask(host, "/upload", "--data-binary", "@/tmp/limit"))["bytes"] == 1048576
    assert "at most 1048576 bytes" in ask(host, "/upload", "--data-binary", "@/tmp/above", status=413)

    # each event arrives when it is sent, not when the answer is complete
    stream = f"curl -skN --resolve {DOMAIN}:443:127.0.0.1 'https://{DOMAIN}/stream?count=3&interval=1'"
    stamped = host.run(
        f'{stream} | while read -r line; do [ -z "$line" ] || echo $(date +%s%N); done'
    ).stdout.split()
    assert int(stamped[2]) - int(stamped[0]) + 10**8 > 2 * 10**9, stamped

    other = host.run(
        "curl -sk -m 5 --resolve other.example.test:443:127.0.0.1 https://other.example.test/health",
        check=False,
    )
    assert other.returncode != 0
    redirect = host.run(
        f"curl -s -o /dev/null -w '%{{http_code}} %{{redirect_url}}' -H 'Host: {DOMAIN}' http://127.0.0.1/version"
    ).stdout
    assert redirect == f"301 https://{DOMAIN}/version"


def test_rate_limit_and_admin_networks_are_settings(host, converge, stranger):
    run = converge(
        rate_limit_per_second=1,
        rate_limit_burst=2,
        admin_networks=[f"{stranger.address}/32"],
        hsts_seconds=300,
    )
    assert run.changed == ["Gateway | Upload nginx site"]
    assert "requests" in ask(host, "/admin/stats", "-H", f"X-API-Key: {KEY}", source=stranger)
    flood = f"curl -sk -o /dev/null -w '%{{http_code}}\\n' --resolve {DOMAIN}:443:{host.address} 'https://{DOMAIN}/version?[1-10]'"
    assert {"200", "429"} == set(stranger.run(flood).stdout.split())
    assert (
        "max-age=300"
        in host.run(f"curl -skI --resolve {DOMAIN}:443:127.0.0.1 https://{DOMAIN}/health").stdout
    )
    assert converge().changed == ["Gateway | Upload nginx site"]


def test_upgrade_and_bad_releases_cost_no_request(host, converge, stranger):
    with load.traffic(stranger, host, DOMAIN) as traffic:
        run = converge(version="v1.1.0", settle_seconds=2)
    assert run.changed == ["Gateway | Build release", "Gateway | Roll out release"], run
    assert traffic.report.failures == []
    assert traffic.report.versions == ["1.0.0", "1.1.0"]
    assert version(host) == "1.1.0"

    before = pids(host)[f"multiverse-gateway-{colour(host)}"]
    words = ("release 1.2.0 cannot start", "did not answer well", "release 1.2.2 gives up")
    with load.traffic(stranger, host, DOMAIN) as traffic:
        for bad, said in zip(apps.GATEWAY_BAD, words, strict=True):
            run = converge(version=bad, start_timeout_seconds=5)
            assert run.failed == ["Gateway | Roll out release"], run
            assert said in run.stderr, bad
            assert KEY not in run.stderr
    assert traffic.report.failures == []
    assert traffic.report.versions == ["1.1.0"]
    assert pids(host)[f"multiverse-gateway-{colour(host)}"] == before
    assert converge(version="v1.1.0").changed == []


def test_rollback_costs_no_request_and_goes_to_what_served_before(host, converge, stranger):
    rollback = "from deploys.gateway import rollback\nrollback()\n"
    with load.traffic(stranger, host, DOMAIN) as traffic:
        run = converge(version="v1.1.0", settle_seconds=1, deploy=rollback)
    assert run.changed == ["Gateway rollback | Roll back to the previous release"], run
    assert traffic.report.failures == []
    assert traffic.report.versions == ["1.1.0", "1.0.0"]
    said = converge(deploy="from deploys.gateway import status\nstatus()\n")
    assert (
        f"{colour(host)}: serves, running under systemd, /opt/multiverse-gateway/releases/v1.0.0-"
        in said.stderr
    )
    assert "rollback goes to /opt/multiverse-gateway/releases/v1.1.0-" in said.stderr
    assert converge().changed == []


def test_changed_variable_goes_the_same_way(host, converge, stranger):
    before = colour(host)
    with load.traffic(stranger, host, DOMAIN, slow=0, upload=0) as traffic:
        assert converge(log_level="WARNING", settle_seconds=1).changed == ["Gateway | Roll out release"]
    assert traffic.report.failures == []
    assert colour(host) != before
    pid = pids(host)[f"multiverse-gateway-{colour(host)}"]
    assert "LOG_LEVEL=WARNING" in host.run(f"tr '\\0' '\\n' </proc/{pid}/environ").stdout.splitlines()


def test_nginx_reload_breaks_no_stream(host, converge, stranger):
    with load.traffic(stranger, host, DOMAIN) as traffic:
        for _ in range(5):
            host.run("systemctl reload nginx; sleep 1")  # the load is what is waited for
    assert traffic.report.failures == []
    assert traffic.report.done["stream"] >= 2


def test_rows_survive_everything(host, converge):
    for prompt in ("one", "two"):
        ask(host, "/v1/inference", "--data", prompt)
    key = ("-H", f"X-API-Key: {KEY}")
    count = json.loads(ask(host, "/admin/stats", *key))["requests"]
    assert count >= 2
    assert (
        host.run(
            "python3 -c \"import sqlite3; print(sqlite3.connect('file:/var/lib/multiverse-gateway/gateway.db?mode=ro', uri=True).execute('PRAGMA journal_mode').fetchone()[0])\""
        ).stdout
        == "wal\n"
    )
    host.reboot()
    wait_for(
        "the gateway after a reboot",
        lambda: (
            host.run(
                f"curl -fsk --resolve {DOMAIN}:443:127.0.0.1 https://{DOMAIN}/health", check=False
            ).returncode
            == 0
        ),
        20,
    )
    assert json.loads(ask(host, "/admin/stats", *key))["requests"] == count
    assert converge(log_level="WARNING").changed == []


@pytest.mark.soak
def test_supervisor_instead_of_systemd_and_back(host, converge, stranger):
    with load.traffic(stranger, host, DOMAIN) as traffic:
        run = converge(supervisor="supervisor", settle_seconds=1)
    assert run.ok, run
    assert traffic.report.failures == []
    wait_for(
        "units to be gone",
        lambda: not host.run("ls -d /etc/systemd/system/multiverse-gateway*", check=False).stdout,
        45,
    )
    assert converge(supervisor="supervisor").changed == []
    status = host.run("supervisorctl status").stdout.splitlines()
    assert [line.split()[:2] for line in status] == [[f"multiverse-gateway-{colour(host)}", "RUNNING"]]
    pid = host.run(f"supervisorctl pid multiverse-gateway-{colour(host)}").stdout.strip()
    state = host.read(f"/proc/{pid}/status")
    assert "NoNewPrivs:\t1" in state
    assert "CapEff:\t0000000000000000" in state
    assert host.run(f"stat -c %U /proc/{pid}").stdout == "gateway\n"
    assert "requests" in ask(host, "/admin/stats", "-H", f"X-API-Key: {KEY}")

    assert converge(settle_seconds=1).ok
    wait_for("programs to be gone", lambda: not host.run("ls /etc/supervisor/conf.d").stdout, 45)
    assert version(host) == "1.0.0"
    assert converge().changed == []
