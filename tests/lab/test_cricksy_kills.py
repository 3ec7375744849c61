"""A run of cricksy that is killed anywhere: what the next run does, and that no task is lost meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import cricksy_load
from tests.lab.cricksy_fleet import Fleet, ask, assert_converged, fleet_of, give_image
from tests.lab.fingerprint import Fingerprint, leftovers
from tests.lab.hosts import LabHost
from tests.lab.kill import SEED, Point, kill_run, spread
from tests.lab.lab import Lab

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

POINTS = 10
BARE = "bare"
# Which colour serves after a kill, and what a self-signed certificate's directory is called.
_BY_CHANCE = re.compile(
    r"/var/lib/hostwright/rollout/cricksy-api/.*|/etc/nginx/upstreams/.*|/var/lib/hostwright/nginx/.*upstreams.*|/etc/hostwright/tls/.+"
    r"|/etc/cricksy-api/.*|/etc/systemd/system/cricksy-api.*|/etc/systemd/system/multi-user\.target\.wants/cricksy-api.*"
)


@pytest.fixture(scope="module")
def fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(lab, tmp_path_factory.mktemp("cricksy")) as made:
        for host in made.hosts:
            host.save(BARE)
        # a task of a killed worker is another one's after this time
        made.more = {"extra_env": {"CRICKSY_VISIBILITY_SECONDS": "30"}, "task_time_limit": 25, "task_soft_time_limit": 20}
        yield made


@pytest.fixture(scope="module")
def client(stranger: LabHost) -> LabHost:
    give_image(stranger)
    return stranger


def operations(fleet: Fleet, **settings: object) -> int:
    """How many operations a run has that changes nothing: as many as one that changes all of them."""
    run = fleet.run(**settings)
    assert run.ok, run
    assert run.results is not None
    return len(run.results["results"]["operations"])


def state(fleet: Fleet) -> dict[str, Fingerprint]:
    """Each host's files and state, without the API's colour."""
    found = {}
    for host in fleet.hosts:
        of = Fingerprint.of(host)
        found[host.name] = Fingerprint(of.files, frozenset(re.sub(r"cricksy-api-(blue|green)", "cricksy-api-COLOUR", line) for line in of.state))
    return found


def differences(before: dict[str, Fingerprint], after: dict[str, Fingerprint]) -> list[str]:
    return [
        f"{name}: {line}"
        for name, fingerprint in before.items()
        for line in fingerprint.differences(after[name])
        if not _BY_CHANCE.match(line.partition(": ")[0])
    ]


def left(fleet: Fleet) -> list[str]:
    return [f"{host.name}: {line}" for host in fleet.hosts for line in leftovers(host)]


def version(fleet: Fleet, client: LabHost) -> str:
    return str(json.loads(ask(fleet, client, "/api/health")[1])["version"])


def test_ten_kills_of_a_first_converge_end_like_an_undisturbed_one(fleet: Fleet, tmp_path: Path) -> None:
    """One run after the other killed ever later, and one that is not."""
    print(f"HOSTWRIGHT_KILL_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    assert fleet.run().ok
    count = operations(fleet)
    undisturbed = state(fleet)
    for host in fleet.hosts:
        host.reset(BARE)
    fleet.empty_bucket()
    where = [kill_run(fleet.command(tmp_path), fleet.secrets, point) for point in spread(POINTS, count, 3)]
    said = f"seed {SEED}, killed in {where}"
    run = fleet.run()
    assert run.ok, f"{said}: {run}"
    found = differences(undisturbed, state(fleet))
    assert not found, "\n".join([said, *found])
    assert not left(fleet), "\n".join([said, *left(fleet)])
    assert_converged(fleet)


@pytest.fixture(scope="module")
def points(fleet: Fleet) -> list[Point]:
    return spread(POINTS, operations(fleet), 3)


@pytest.mark.parametrize("number", range(POINTS))
def test_upgrade_is_killed_once_and_no_task_is_lost(
    fleet: Fleet, client: LabHost, points: list[Point], tmp_path: Path, number: int
) -> None:
    """There and back in turn, whichever of the points are run."""
    there = {"1.0.0": "v1.1.0", "1.1.0": "v1.0.0"}[version(fleet, client)]
    point = points[number]
    with cricksy_load.tasks(fleet, client, 40, 1) as load:
        where = kill_run(fleet.command(tmp_path, version=there), fleet.secrets, point)
        run = fleet.run(version=there)
    said = f"seed {SEED}, {point}, killed in {where}"
    assert run.ok, f"{said}: {run}"
    assert (load.count, load.lost, load.held, load.asked_again) == (40, 0, 0, {}), f"{said}: {load}"
    assert version(fleet, client) == there.removeprefix("v"), said
    assert not left(fleet), "\n".join([said, *left(fleet)])
    assert_converged(fleet, version=there)
