"""CI hosts by the whole deploy.py: long-lived runners, and runners whose jobs use Docker; against the stand-in of test_ci_runner."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import images, k3s
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line
from tests.lab.state import REPOSITORY, wait_for
from tests.lab.test_ci_runner import TOKEN, Site

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

DEPLOY = REPOSITORY / "deploy.py"


def of_the_inventory() -> dict[str, Any]:
    """What inventories/ci.py says of its hosts."""
    found = importlib.util.spec_from_file_location("ci_group_data", REPOSITORY / "inventories/group_data/ci_runner.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return {key: value for key, value in vars(module).items() if not key.startswith("_")}


class Whole(Site):
    """Such a host, converged by deploy.py with what inventories/ci.py says of its hosts, but for where GitHub is."""

    secrets: dict[str, str]

    def data(self, **differs: Any) -> dict[str, Any]:
        given = {"docker_source": "distribution", "backup_enabled": False, **of_the_inventory(), **super().data(), "ci_runner_access_token": "env:CI_RUNNER_ACCESS_TOKEN"}
        given |= {f"ci_runner_{key}": value for key, value in differs.items()}
        return {key: value for key, value in given.items() if value is not None}

    def whole(self, **differs: Any) -> Run:
        return self._provision(self.host, DEPLOY, data=self.data(**differs), groups={"ci_runner": [self.host]}, env=self.secrets, timeout=1500)

    def verify(self, scratch: Path, **differs: Any) -> str:
        """Return the last line of tests/verify on this host."""
        command_line(scratch, self.host, DEPLOY, data=self.data(**differs), groups={"ci_runner": [self.host]})
        done = subprocess.run(
            [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/verify", "--inventory", str(scratch / "inventory.py")],
            cwd=REPOSITORY, env={**os.environ, **self.secrets}, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout.strip().splitlines()[-1]

    def registration_token(self) -> str:
        request = urllib.request.Request(
            f"{self.url}/repos/team/shop/actions/runners/registration-token", method="POST", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return str(json.load(answer)["token"])
        except OSError:  # it is not up yet
            return ""

    def did(self, text: str) -> dict[str, Any]:
        """Have a job done and return what is known of it."""
        before = len(self.log("done"))
        self.job("asked", text)
        wait_for("the job", lambda: len(self.log("done")) > before, 240)
        return self.log("done")[-1]


@pytest.fixture(scope="module")
def long_lived(lab: Lab, provision: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    made = Whole(lab, lab.host("t-ci-long"), provision, tmp_path_factory.mktemp("github"))
    made.secrets = {}
    yield made
    made.process.stop()
    lab.destroy(made.host)


LONG = {"access_token": None, "registration_token": "env:REGISTRATION", "ephemeral": False, "count": 1}


def test_a_bare_host_becomes_a_long_lived_runner_by_deploy_py(long_lived, tmp_path):
    site = long_lived
    wait_for("the stand-in", site.registration_token, 60)
    site.secrets = {"REGISTRATION": site.registration_token()}
    first = site.whole(**LONG)
    assert first.ok, first
    wait_for("the runner", lambda: len(site.active()) == 1, 60)
    assert [one["ephemeral"] for one in site.log("registered")] == [False]
    assert TOKEN not in site.host.run("cat /etc/hostwright/ci-runner/*").stdout, "no right to register stays on the host"
    pids = site.pids()
    second = site.whole(**LONG)
    assert second.ok, second
    assert second.changed == []
    assert site.pids() == pids
    assert site.secrets["REGISTRATION"] not in first.stdout + first.stderr
    assert " passed" in site.verify(tmp_path, **LONG)


def test_it_stays_with_what_jobs_leave_and_registers_once(long_lived):
    site = long_lived
    pids = site.pids()
    site.did("echo kept >_work/kept; echo one")
    assert "kept" in site.did("cat _work/kept")["output"]
    assert site.pids() == pids
    site.host.run("systemctl restart ci-runner@1", timeout=120)
    wait_for("the runner", lambda: len(site.active()) == 1, 60)
    assert "kept" in site.did("cat _work/kept")["output"]
    assert len(site.log("registered")) == 1


def test_a_token_that_ran_out_leaves_it_as_it_was(long_lived):
    site = long_lived
    good = site.secrets
    site.secrets = {"REGISTRATION": "REGISTRATION-that-ran-out"}
    refused = site.whole(**LONG, labels=["big"])
    assert not refused.ok
    assert "runner 1 goes on as it was registered before" in refused.stderr, refused
    assert "that-ran-out" not in refused.stdout + refused.stderr
    assert "kept" in site.did("cat _work/kept")["output"]
    again = site.whole(**LONG, labels=["big"])
    assert not again.ok, "what is not as wanted is said again"
    site.secrets = {"REGISTRATION": site.registration_token()}
    done = site.whole(**LONG, labels=["big"])
    assert done.ok, done
    assert site.log("registered")[-1]["labels"] == "big"
    assert site.host.run("ls -A /var/lib/ci-runner").stdout.split() == [".1.mark", "1"]
    assert site.whole(**LONG, labels=["big"]).changed == []
    site.secrets = good


def test_without_an_access_token_removal_says_what_is_left_to_do(long_lived):
    site = long_lived
    done = site.whole(**{**LONG, "count": 0})
    assert done.ok, done
    assert f"{site.host.name}-1 is still in the list" in done.stdout + done.stderr
    assert site.host.run("find /var/lib/ci-runner /var/cache/ci-runner -mindepth 1").stdout == ""
    site.secrets = {"CI_RUNNER_ACCESS_TOKEN": TOKEN}
    with_right = {"ephemeral": False, "count": 1}
    assert site.whole(**with_right).ok
    wait_for("the runner", lambda: len(site.active()) == 1, 60)
    assert site.whole(**{**with_right, "count": 0}).ok
    assert site.log("removed")[-1]["runner"] == f"{site.host.name}-1"


# --- Docker ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_docker(lab: Lab, provision: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    made = Whole(lab, lab.host("t-ci-docker"), provision, tmp_path_factory.mktemp("github"))
    made.secrets = {"CI_RUNNER_ACCESS_TOKEN": TOKEN}
    yield made
    made.process.stop()
    lab.destroy(made.host)


DOCKER = {"docker": True, "docker_keep_hours": 1}


def test_a_job_runs_containers_by_deploy_py(with_docker, tmp_path):
    site = with_docker
    first = site.whole(**DOCKER)
    assert first.ok, first
    wait_for("two runners", lambda: len(site.active()) == 2, 60)
    archive = site.host.directory / "root/root/tool.tar"
    archive.write_bytes(k3s.docker_archive({"team/tool:1": images.make(images.get("busybox"), command=["sleep", "1000000"])}))
    site.host.run("docker load </root/tool.tar", timeout=120)
    told = site.did("id -Gn; docker run --rm team/tool:1 echo from a container; docker run -d --name left team/tool:1; cat /etc/hostwright/ci-runner/token 2>&1")["output"]
    assert "from a container" in told
    assert "docker" in told.split()
    assert TOKEN not in told
    second = site.whole(**DOCKER)
    assert second.ok, second
    assert second.changed == []
    assert " passed" in site.verify(tmp_path, **DOCKER)


def test_what_jobs_left_in_docker_goes_when_it_is_old_enough(with_docker):
    site = with_docker
    site.host.run("systemctl start ci-runner-sweep", timeout=120)
    assert site.host.run("docker ps --format '{{.Names}}'").stdout == "left\n", "it is young"
    program = "/usr/local/lib/hostwright/ci-runner"
    # two hours later, by the program's own clock and in its own cage; Docker's clock is the machine's
    dropin = "/run/systemd/system/ci-runner-sweep.service.d"
    site.host.run(
        f"sed 's/^import calendar/import time; time.time = (lambda real: lambda: real() + 7200)(time.time)\\nimport calendar/' {program} >/usr/local/lib/later; "
        f"mkdir -p {dropin}; printf '[Service]\\nExecStart=\\nExecStart=/usr/bin/python3 -I /usr/local/lib/later sweep\\n' >{dropin}/later.conf; systemctl daemon-reload"
    )
    later = "systemctl start ci-runner-sweep"
    site.job("long", "sleep 45; echo long done")
    wait_for("the job", lambda: len(site.log("started")) == 2, 60)
    site.host.run(later, timeout=120)
    assert site.host.run("docker ps --format '{{.Names}}'").stdout == "left\n", "a runner has a job"
    wait_for("its end", lambda: "long done" in site.log("done")[-1]["output"], 120)
    site.host.run(later, timeout=120)
    assert site.host.run("docker ps --all --quiet").stdout == ""
    timer = site.host.run("systemctl list-timers --all --no-legend ci-runner-sweep.timer").stdout
    assert "ci-runner-sweep.service" in timer
