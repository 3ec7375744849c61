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
from tests.lab.state import Process, slot_directory, wait_for

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
        self.process.stop()  # of a site before this one
        self.process.start(sys.executable, "-m", "tests.lab.ci_api", directory, address, "8098", log=directory / "api.log")
        host.write("/etc/lab-ci-api", self.url)

    def data(self, **differs: Any) -> dict[str, Any]:
        return {
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

    def run(self, dry: bool = False, extra: tuple[str, ...] = (), **differs: Any) -> Run:
        return self._provision(self.host, DEPLOY, data=self.data(**differs), groups={"ci_runner": [self.host]}, dry=dry, env={"ACCESS": TOKEN}, extra=extra)

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


@pytest.mark.gate
def test_two_ephemeral_runners_register_and_the_second_run_changes_nothing(site):
    first = site.run()
    assert first.ok, first
    wait_for("two runners", lambda: len(site.active()) == 2, 60)
    assert sorted(one["name"] for one in site.log("registered")) == [f"{site.host.name}-1", f"{site.host.name}-2"]
    assert all(one["ephemeral"] for one in site.log("registered"))
    pids = site.pids()
    second = site.run()
    assert second.ok, second
    assert second.changed == []
    assert site.run(dry=True).changed == []
    assert site.pids() == pids
    assert TOKEN not in first.stdout + first.stderr


JOB = """
id -un; pwd
echo "token: $ACTIONS_RUNNER_INPUT_TOKEN."
cat /etc/hostwright/ci-runner/token 2>&1
ls /root 2>&1
sudo -n true 2>&1 || echo "no sudo"
touch /etc/left 2>&1
echo left > ~/left; echo left > _work/left; echo kept > "$PIP_CACHE_DIR.kept"
tr '\\0' '\\n' < /proc/self/environ | grep -i access
setsid nohup sleep 7777 > /dev/null 2>&1 &
echo end
"""


def test_a_job_is_alone_and_leaves_nothing(site):
    site.job("one", JOB)
    wait_for("the job", lambda: site.log("done"), 90)
    [done] = site.log("done")
    output = done["output"]
    number = done["runner"].rpartition("-")[2]
    assert output.splitlines()[0] == f"ci-runner-{number}"
    assert "token: ." in output
    assert TOKEN not in output
    assert "no sudo" in output
    assert "/etc/hostwright/ci-runner/token: Permission denied" in output or "No such file" in output
    assert "Read-only file system" in output or "Permission denied" in output
    wait_for("the runner again", lambda: len(site.log("registered")) >= 3 and len(site.active()) == 2, 90)
    assert site.host.run(f"ls -A /var/lib/ci-runner/{number}/_work /var/lib/ci-runner/{number}/home").stdout.split() == [
        f"/var/lib/ci-runner/{number}/_work:", f"/var/lib/ci-runner/{number}/home:",
    ]  # fmt: skip
    assert site.host.run("pgrep -f '[s]leep 7777'", check=False).returncode == 1
    assert site.host.run(f"cat /var/cache/ci-runner/{number}/pip.kept").stdout == "kept\n"
    assert site.run().changed == [], "a job is no drift"


def test_new_settings_wait_for_the_end_of_a_job(site):
    site.job("long", "sleep 45; echo long done")
    wait_for("the job", lambda: len(site.log("started")) == 2, 60)
    busy = site.log("started")[-1]["runner"]
    before = dict(zip(site.active(), site.pids(), strict=True))
    run = site.run(labels=["big"])
    assert run.ok, run
    unit = f"ci-runner@{busy.rpartition('-')[2]}.service"
    after = dict(zip(site.active(), site.pids(), strict=True))
    assert after[unit] == before[unit], "the job goes on"
    assert all(after[other] != before[other] for other in before if other != unit)
    assert f"runner {busy.rpartition('-')[2]} has a job" in run.stderr
    wait_for("its end", lambda: "long done" in site.log("done")[-1]["output"], 120)
    wait_for("the new label", lambda: [one for one in site.log("registered") if one["name"] == busy][-1]["labels"] == "big", 60)
    wait_for("both", lambda: len(site.active()) == 2, 60)
    assert site.run(labels=["big"]).changed == []


def test_upgrade_to_another_release(site):
    sums = {"x64": ci_api.sha256(ci_api.archive("two"))}
    run = site.run(labels=["big"], version="2.321.0", sha256=sums)
    assert run.ok, run
    wait_for("both", lambda: len(site.active()) == 2, 60)
    assert site.host.run("cat /var/lib/ci-runner/1/bin/release").stdout == "two\n"
    assert len(site.host.run("ls /opt/ci-runner").stdout.split()) == 1
    assert site.run(labels=["big"], version="2.321.0", sha256=sums).changed == []


def test_secrets_and_exposure(site):
    host = site.host
    assert host.run("stat -c '%a %U' /etc/hostwright/ci-runner /etc/hostwright/ci-runner/token").stdout == "700 root\n600 root\n"
    assert TOKEN not in host.run("ps axww -o args; journalctl --no-pager", timeout=60).stdout
    found = host.run("systemd-analyze security --no-pager ci-runner@1.service | tail -1").stdout
    level = float(found.split("level for ci-runner@1.service:")[1].split()[0])
    assert level <= 1.5, found
    run = site.run(labels=["big", "other"], version="2.321.0", sha256={"x64": ci_api.sha256(ci_api.archive("two"))}, extra=("-vvv", "--debug", "--diff"))
    assert run.ok, run
    assert TOKEN not in run.stdout + run.stderr


def test_reboot_and_wrong_token(site):
    site.host.reboot()
    wait_for("both", lambda: len(site.active()) == 2, 90)
    (site.directory / "token").write_text("another-token-0123456789")
    site.host.run("systemctl restart ci-runner@1", check=False, timeout=60)
    told = site.host.run("journalctl -u ci-runner@1 --no-pager -o cat | tail -20").stdout
    assert "the access token is not accepted" in told
    (site.directory / "token").write_text(TOKEN)
    wait_for("both", lambda: len(site.active()) == 2, 60)


def test_fewer_are_unregistered_and_removed(site):
    data = {"labels": ["big", "other"], "version": "2.321.0", "sha256": {"x64": ci_api.sha256(ci_api.archive("two"))}}
    assert site.run(count=1, **data).ok
    assert site.log("removed")[-1]["runner"] == f"{site.host.name}-2"
    assert site.host.run("getent passwd ci-runner-2", check=False).returncode == 2
    assert not site.host.exists("/var/lib/ci-runner/2")
    assert site.run(count=0, **data).ok
    assert site.active() == []
    assert site.host.run("find /var/lib/ci-runner /var/cache/ci-runner -mindepth 1").stdout == ""
    assert site.run(count=0, **data).changed == []
