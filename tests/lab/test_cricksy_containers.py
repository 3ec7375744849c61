"""The guide's option B: workers in containers, from a registry, and back to units; no task is lost on the way."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.cricksy_fleet import TEXT, Fleet, assert_converged, fleet_of, give_image, read, upload
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.state import REPOSITORY, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

DEPLOY = """
from deploys import current
from deploys.cricksy import cricksy
from deploys.docker_engine import docker_engine
if current().cricksy.runs_containers:
    docker_engine()
cricksy()
"""
# what is not known to be idle is waited for as long as a task may take
LIMITS = {"task_time_limit": 40, "task_soft_time_limit": 30}
WORKERS = "cricksy | Roll out workers"


@pytest.fixture(scope="module")
def fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    # the registry comes first: an engine remembers for seconds that a name is unknown
    registry = lab.registry()
    with fleet_of(lab, tmp_path_factory.mktemp("cricksy"), layer="docker") as made:
        made.secrets["REGISTRY_PASSWORD"] = registry.password
        account = {"username": registry.username, "password": "env:REGISTRY_PASSWORD", "ca": registry.ca}
        made.shared = {"docker_source": "distribution", "docker_registries": {registry.name: account}}
        yield made


def containers(host: LabHost) -> list[dict[str, Any]]:
    """Return what ``docker inspect`` says of the workers' containers."""
    names = host.run("docker ps -aq --filter label=hostwright.component=cricksy-worker").stdout.split()
    return json.loads(host.run(f"docker inspect {shlex.join(names)}").stdout) if names else []


@pytest.fixture(scope="module")
def client(fleet: Fleet, stranger: LabHost) -> LabHost:
    give_image(stranger)
    return stranger


def test_workers_are_containers_and_then_units_again(lab, fleet, client):
    image = lab.registry().image
    boxed = {"worker_mode": "containers", "worker_image": image("cricksy-worker", "v1.0.0"), "worker_memory_max": "512M", **LIMITS}
    planned = fleet.run(DEPLOY, dry=True, **boxed)
    assert WORKERS in planned.changed, planned
    run = fleet.run(DEPLOY, **boxed)
    assert run.ok, run
    found = read(fleet, client, upload(fleet, client))
    assert found["text"] == TEXT
    assert found["executions"][0]["worker"].startswith("cricksy-worker-"), found
    ids = {}
    for host in fleet.workers:
        (one,) = containers(host)
        ids[host.name] = one["Id"]
        assert one["HostConfig"]["Memory"] == 512 * 1024 * 1024
        assert (one["HostConfig"]["ReadonlyRootfs"], one["HostConfig"]["CapDrop"], one["Config"]["User"]) == (True, ["ALL"], "65534:65534")
        assert one["State"]["Health"]["Status"] == "healthy"
        assert "OMP_THREAD_LIMIT=1" in one["Config"]["Env"]
        # Tesseract is the image's, and no unit takes tasks
        assert host.run("command -v tesseract", check=False).returncode != 0
        assert host.run("systemctl list-units --plain --no-legend 'cricksy-worker@*'").stdout == ""
        assert host.run("docker exec $(docker ps -q --filter label=hostwright.component=cricksy-worker) sh -c 'tr \"\\0\" \" \" </proc/1/cmdline'").stdout.split()[-2:] == ["--time-limit=40", "--soft-time-limit=30"]
    again = fleet.run(DEPLOY, **boxed)
    assert (again.ok, again.changed) == (True, []), again
    assert {host.name: containers(host)[0]["Id"] for host in fleet.workers} == ids
    assert "ok   broker" in fleet.workers[0].run("cricksy-health", timeout=90).stdout

    # another release and another number, with tasks in flight: each is done, and done once
    newer = {**boxed, "version": "v1.1.0", "worker_image": image("cricksy-worker", "v1.1.0"), "worker_concurrency": 1, "worker_instances": 2}
    tasks = [upload(fleet, client, seconds=3) for _ in range(12)]
    run = fleet.run(DEPLOY, **newer)
    assert run.ok, run
    done = [read(fleet, client, task, 120) for task in tasks]
    assert [one["text"] for one in done] == [TEXT] * len(tasks)
    assert [len(one["executions"]) for one in done] == [1] * len(tasks)
    assert read(fleet, client, upload(fleet, client))["executions"][0]["version"] == "1.1.0"
    assert [len(containers(host)) for host in fleet.workers] == [2, 2]

    # an image that does not come up takes no task: what ran goes on
    bad = fleet.run(DEPLOY, **{**newer, "worker_image": image("busybox", "1")})
    assert not bad.ok
    assert "canary" not in bad.stdout + bad.stderr
    assert read(fleet, client, upload(fleet, client))["executions"][0]["version"] == "1.1.0"

    plain = {"version": "v1.1.0", **LIMITS}
    tasks = [upload(fleet, client, seconds=3) for _ in range(12)]
    run = fleet.run(DEPLOY, **plain)
    assert run.ok, run
    done = [read(fleet, client, task, 120) for task in tasks]
    assert [one["text"] for one in done] == [TEXT] * len(tasks)
    assert [len(one["executions"]) for one in done] == [1] * len(tasks)
    assert [containers(host) for host in fleet.workers] == [[], []]
    again = fleet.run(DEPLOY, **plain)
    assert (again.ok, again.changed) == (True, []), again
    assert read(fleet, client, upload(fleet, client))["executions"][0]["worker"].startswith("worker1@")

    tasks = [upload(fleet, client, seconds=3) for _ in range(12)]
    run = fleet.run(DEPLOY, **newer)
    assert run.ok, run
    done = [read(fleet, client, task, 120) for task in tasks]
    assert [one["text"] for one in done] == [TEXT] * len(tasks)
    wait_for(
        "units to end",
        lambda: all(host.run("systemctl list-units --plain --no-legend 'cricksy-worker@*'").stdout == "" for host in fleet.workers), 60,
    )  # fmt: skip
    again = fleet.run(DEPLOY, **newer)
    assert (again.ok, again.changed) == (True, []), again


def test_whole_deploy_and_the_checks_of_production(lab: Lab, fleet: Fleet, client: LabHost, tmp_path: Path) -> None:
    deploy = REPOSITORY / "deploy.py"
    image = lab.registry().image("cricksy-worker", "v1.1.0")
    fleet.more = {"version": "v1.1.0", "worker_mode": "containers", "worker_image": image, "worker_memory_max": "512M", **LIMITS}
    run = fleet.run(deploy)
    assert run.ok, run
    found = read(fleet, client, upload(fleet, client))
    assert (found["text"], found["executions"][0]["version"]) == (TEXT, "1.1.0")
    assert found["executions"][0]["worker"].startswith("cricksy-worker-"), found
    before = {host.name: [one["Id"] for one in containers(host)] for host in fleet.workers}
    assert [len(ids) for ids in before.values()] == [1, 1]
    assert_converged(fleet, deploy)
    assert fleet.run(deploy, dry=True).changed == []
    assert {host.name: [one["Id"] for one in containers(host)] for host in fleet.workers} == before

    for host in fleet.workers:
        host.run("systemctl disable --now nginx")  # of the lab's image: nothing here asks for it, and the checks would tell of its port
    checks = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/verify", "--inventory", str(fleet.inventory(tmp_path))]
    done = subprocess.run(checks, cwd=REPOSITORY, env={**os.environ, **fleet.secrets, "NO_COLOR": "1"}, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    said = fleet.type("deploys.cricksy.status")
    assert said.returncode == 0, said.stdout[-6000:]
    assert said.stdout.count("running, healthy") == 2, said.stdout
