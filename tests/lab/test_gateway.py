"""The gateway from bare host to answering over TLS, and everything that may happen to it afterwards."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import apps, load
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run

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
    yield lab.serve(directory, port=8097) + "/gateway.git"


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
        ["curl", "-sk", "-m", "20", "-w", "\\n%{http_code}", "--resolve", f"{DOMAIN}:443:{to}", *options]
        + [f"https://{DOMAIN}{path}"]
    )
    body, _, code = (source or host).run(arguments).stdout.rpartition("\n")
    assert code == str(status), f"{path}: {code}: {body}"
    return body


def version(host: LabHost) -> str:
    return str(json.loads(ask(host, "/version"))["version"])


def pids(host: LabHost) -> dict[str, str]:
    """The main processes of everything that serves."""
    units = ["nginx", "multiverse-gateway-blue", "multiverse-gateway-green"]
    return {unit: host.run(f"systemctl show -p MainPID --value {unit}").stdout.strip() for unit in units}


def test_bare_host_answers_over_tls(host, converge, stranger):
    run = converge()
    assert run.ok, run
    assert version(host) == "1.0.0"
    assert json.loads(ask(host, "/version", source=stranger))["version"] == "1.0.0"
    before = pids(host)

    assert converge(dry=True).changed == []
    again = converge()
    assert (again.ok, again.changed) == (True, []), again
    assert pids(host) == before
