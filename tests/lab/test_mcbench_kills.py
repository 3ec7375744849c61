"""A run of the fleet that is killed anywhere, and a host that loses its power in the middle: what serves, and what the next run does."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import mcbench_load
from tests.lab.fingerprint import Fingerprint, leftovers
from tests.lab.hosts import LabHost
from tests.lab.kill import SEED, kill_run, spread
from tests.lab.lab import Lab
from tests.lab.mcbench_fleet import API, ENV, Fleet, all_done, ask, fleet_of, versions
from tests.lab.state import wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

POINTS = 10
BARE = "bare"
_DOCKER = r"""
docker ps -a --format 'container {{.Names}} {{.Image}} {{.State}} {{.Label "hostwright.spec"}} {{.Networks}}' | sort
docker network ls --format 'network {{.Name}} {{.Driver}} {{.Internal}}' | sort
docker volume ls --format 'volume {{.Name}}' | sort
docker images --format 'image {{.Repository}}:{{.Tag}} {{.ID}}' | sort
"""


@pytest.fixture(scope="module")
def fleet(lab: Lab) -> Iterator[Fleet]:
    with fleet_of(lab) as made:
        for host in made.hosts:
            host.save(BARE)
        made.put("v1.1.0")
        yield made


def operations(fleet: Fleet, **settings: object) -> int:
    """How many operations a run has that changes nothing: as many as one that changes all of them."""
    run = fleet.run(**settings)
    assert run.ok, run
    assert run.results is not None
    return len(run.results["results"]["operations"])


def state(fleet: Fleet) -> dict[str, tuple[Fingerprint, list[str]]]:
    """Each host's files and state, and what its engine has, without names that are made by chance."""
    found = {}
    for host in fleet.hosts:
        lines = re.sub(r"-(blue|green)-", "-COLOUR-", host.run(_DOCKER).stdout).splitlines()
        of = Fingerprint.of(host)
        ours = {re.sub(r"br-[0-9a-f]{12}", "br-NETWORK", line) for line in of.state if not _CHANCE_PORT.match(line)}
        found[host.name] = (Fingerprint(of.files, frozenset(ours)), lines)
    return found


# containerd listens somewhere on loopback
_CHANCE_PORT = re.compile(r"listener tcp 127\.0\.0\.1:[345]\d{4}$")
# Which colour serves after a kill, and the directory of a self-signed certificate.
_BY_CHANCE = re.compile(
    r"/var/lib/hostwright/replicas/[^/]+/current\.json|/etc/nginx/upstreams/.*|/var/lib/hostwright/nginx/.*upstreams.*|/etc/hostwright/tls/.+"
)


def differences(before: dict[str, tuple[Fingerprint, list[str]]], after: dict[str, tuple[Fingerprint, list[str]]]) -> list[str]:
    found = []
    for name, (fingerprint, docker) in before.items():
        files = fingerprint.differences(after[name][0])
        found += [f"{name}: {line}" for line in files if not _BY_CHANCE.match(line.partition(": ")[0])]
        found += [f"{name}: only undisturbed: {line}" for line in docker if line not in after[name][1]]
        found += [f"{name}: only after kills: {line}" for line in after[name][1] if line not in docker]
    return found


def left_over(fleet: Fleet) -> list[str]:
    """What a killed run left. A health check has a file of the engine's in /tmp for a moment, whenever one looks."""
    found = [f"{host.name}: {line}" for host in fleet.hosts for line in leftovers(host)]
    return [line for line in found if not re.search(r": /tmp/runc-process\d+$", line)]


def test_host_that_dies_in_the_middle_of_a_rollout_is_named_and_the_others_serve_on(fleet: Fleet, stranger: LabHost) -> None:
    """Two hosts have the api. The second loses its power while the workers, which come first, are switched on it."""
    fleet.roles["mcbench_api"] = [fleet.front, fleet.back]
    settings = {"migrate_host": fleet.front.name}
    try:
        assert fleet.run(version="v1.0.0", **settings).ok
        assert ask(stranger, fleet.back, API, "/version")[0] == 200

        def pull_the_plug() -> None:
            new = f"docker ps -q --filter ancestor={fleet.registry.name}/mc-bench-render-worker:v1.1.0"
            wait_for("the first new worker", lambda: bool(fleet.back.run(new, check=False).stdout), 300)
            fleet.back.kill()

        all_done(fleet, stranger)
        plug = threading.Thread(target=pull_the_plug)
        plug.start()
        with mcbench_load.traffic(stranger, fleet.front, API, rate=50, tasks=0) as traffic:
            try:
                run = fleet.run(version="v1.1.0", **settings)
            finally:
                plug.join()
        assert not run.ok
        assert re.search(rf"mcbench: {fleet.back.name} failed in this run: nothing more is switched", run.stderr), run
        assert (traffic.report.failed, traffic.report.failures) == (0, [])
        assert traffic.report.versions == ["1.0.0"]

        fleet.back.boot()
        wait_for("the api of the host that is back", lambda: ask(stranger, fleet.back, API, "/health")[0] == 200, 120)
        run = fleet.run(version="v1.1.0", **settings)
        assert run.ok, run
        assert versions(fleet) == {"v1.1.0"}
        assert json_version(stranger, fleet.front) == json_version(stranger, fleet.back) == "1.1.0"
        counted = all_done(fleet, stranger)
        assert (counted["doubled"], counted["failed"], counted["unfinished"], counted["waiting"]) == (0, 0, 0, 0), counted
        assert fleet.run(version="v1.1.0", **settings).changed == []
    finally:
        fleet.roles["mcbench_api"] = [fleet.front]


def test_ten_kills_of_a_first_converge_end_like_an_undisturbed_one(fleet: Fleet, tmp_path: Path) -> None:
    """One run after the other killed ever later, and one that is not."""
    print(f"HOSTWRIGHT_KILL_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    for host in fleet.hosts:
        host.reset(BARE)
    assert fleet.run().ok
    count = operations(fleet)
    undisturbed = state(fleet)
    for host in fleet.hosts:
        host.reset(BARE)
    where = [kill_run(fleet.command(tmp_path), ENV, point) for point in spread(POINTS, count, 3)]
    run = fleet.run()
    assert run.ok, f"seed {SEED}, killed in {where}: {run}"
    found = differences(undisturbed, state(fleet))
    assert not found, "\n".join([f"seed {SEED}, killed in {where}", *found])
    left = left_over(fleet)
    assert not left, "\n".join([f"seed {SEED}, killed in {where}", *left])
    assert fleet.run().changed == [], where


@pytest.mark.parametrize("number", range(POINTS))
def test_upgrade_is_killed_once_and_nobody_notices(fleet: Fleet, stranger: LabHost, tmp_path: Path, number: int) -> None:
    """There on an even number, back on an odd one; what clients ask is answered all the time, every task done once."""
    here, there = ("v1.0.0", "v1.1.0") if number % 2 == 0 else ("v1.1.0", "v1.0.0")
    count = operations(fleet, version=here)
    point = spread(POINTS, count, 3)[number]
    with mcbench_load.traffic(stranger, fleet.front, API, rate=30, tasks=60) as traffic:
        where = kill_run(fleet.command(tmp_path, version=there), ENV, point)
        run = fleet.run(version=there)
    said = f"seed {SEED}, {point}, killed in {where}"
    assert run.ok, f"{said}: {run}"
    assert (traffic.report.failed, traffic.report.failures) == (0, []), said
    assert versions(fleet) == {there}, said
    counted = all_done(fleet, stranger)
    assert (counted["doubled"], counted["failed"], counted["unfinished"], counted["waiting"]) == (0, 0, 0, 0), f"{said}: {counted}"
    left = left_over(fleet)
    assert not left, "\n".join([said, *left])
    assert fleet.run(version=there).changed == [], said


def json_version(source: LabHost, target: LabHost) -> str:
    found = re.search(r'"version": ?"([^"]+)"', ask(source, target, API, "/version")[1])
    return found[1] if found else ""
