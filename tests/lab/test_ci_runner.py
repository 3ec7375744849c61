"""CI hosts against a stand-in of GitHub's registration API and runner (tests.lab.ci_api); read back on the host and in its log."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import ci_api, network
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.state import Process, slot_directory

pytestmark = pytest.mark.soak

TOKEN = "canary-access-token-0123456789"
DEPLOY = "from deploys.ci_runner import ci_runner\nci_runner()\n"


class Site:
    """A CI host, and what stands for GitHub."""

    def __init__(self, lab: Lab, host: LabHost, provision: Callable[..., Run], directory: Path) -> None:
        self.host, self.directory, self._provision = host, directory, provision
        address = network.gateway(lab.slot)
        self.url = f"http://{address}:8098"
        (directory / "token").write_text(TOKEN)
        (directory / "runner-2.320.0.tar.gz").write_bytes(ci_api.archive())
        (directory / "runner-2.321.0.tar.gz").write_bytes(ci_api.archive("two"))
        self.process = Process(slot_directory(lab.slot) / "processes" / "ci-api.pid")
        self.process.start(sys.executable, "-m", "tests.lab.ci_api", directory, address, "8098", log=directory / "api.log")
        host.write("/etc/lab-ci-api", self.url)

    def run(self, dry: bool = False, extra: tuple[str, ...] = (), **differs: Any) -> Run:
        data = {
            "ci_runner_url": "http://git.example.org/team/shop",
            "ci_runner_api_url": self.url,
            "ci_runner_access_token": "env:ACCESS",
            "ci_runner_version": "2.320.0",
            "ci_runner_sha256": {"x64": ci_api.sha256(ci_api.archive())},
            "ci_runner_download_url": f"{self.url}/runner-{{version}}.tar.gz",
            "ci_runner_count": 2,
            # the stand-in is in a private network
            "ci_runner_allowed_networks": ["10.78.0.0/16"],
            **{f"ci_runner_{key}": value for key, value in differs.items()},
        }
        return self._provision(self.host, DEPLOY, data=data, groups={"ci_runner": [self.host]}, dry=dry, env={"ACCESS": TOKEN}, extra=extra)

    def job(self, name: str, text: str) -> None:
        (self.directory / f".{name}").write_text(text)
        (self.directory / f".{name}").rename(self.directory / f"job-{name}")

    def log(self, what: str) -> list[dict[str, Any]]:
        file = self.directory / "log.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line["what"] == what]

    def active(self) -> list[str]:
        shown = self.host.run("systemctl list-units --plain --no-legend --state=active 'ci-runner@*'").stdout
        return sorted(line.split()[0] for line in shown.splitlines())

    def pids(self) -> list[str]:
        return [self.host.run(f"systemctl show -p MainPID --value {unit}").stdout.strip() for unit in self.active()]


@pytest.fixture(scope="module")
def site(lab: Lab, host: LabHost, provision: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(lab, host, provision, tmp_path_factory.mktemp("github"))
    yield made
    made.process.stop()


def test_wrong_archive_is_refused_with_nothing_installed(site):
    run = site.run(sha256={"x64": "0" * 64})
    assert not run.ok
    assert "wanted 0000" in run.stderr, run.stderr
    assert site.host.run("ls /opt/ci-runner").stdout == ""
    assert site.active() == []
