"""A run that is killed anywhere leaves nothing that the next run does not put right."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.deployed import BARE, Deployed
from tests.lab.fingerprint import Fingerprint, leftovers
from tests.lab.state import REPOSITORY

SEED = int(os.environ.get("HOSTWRIGHT_KILL_SEED", random.SystemRandom().randrange(10**6)))
ORDINARY, SOAK = 2, 10
_STARTED = re.compile(r"--> Starting operation: (.*?)\s*$")


@dataclass(frozen=True)
class Point:
    """Where a run is killed: so many seconds after the start of an operation.

    + operation: its number in the run, from 0
    """

    operation: int
    seconds: float


def points(count: int, operations: int) -> list[Point]:
    """Return kill points spread evenly over a run, each somewhere within its stretch."""
    dice = random.Random(SEED)
    places = [(number + dice.random()) / count * operations for number in range(count)]
    return [Point(int(place), round(dice.uniform(0, 2), 2)) for place in places]


def kill_run(deployed: Deployed, point: Point, scratch: Path) -> str:
    """Start a converge and kill it, with all of its processes, at a point; return the operation it was in.

    What it had started on the host goes on there for as long as it likes, as in life.
    """
    process = subprocess.Popen(
        deployed.command(scratch), cwd=REPOSITORY, env={**os.environ, "NO_COLOR": "1", **deployed.secrets},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    names: list[str] = []
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if started := _STARTED.search(re.sub(r"\x1b\[[0-9;]*m", "", line)):
            names.append(started[1])
        if len(names) > point.operation:
            break
    time.sleep(point.seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(names) > point.operation, "the run ended before its kill point:\n" + "".join(said[-40:])
    return names[-1]


def operations(deployed: Deployed) -> int:
    assert deployed.first_run.results is not None
    return len(deployed.first_run.results["results"]["operations"])


def assert_equals_undisturbed(deployed: Deployed, where: str) -> None:
    again = deployed.converge()
    assert again.ok, f"{where}: {again}"
    differences = deployed.fingerprint.differences(Fingerprint.of(deployed.host))
    assert not differences, "\n".join([where, *differences])
    left = leftovers(deployed.host)
    assert not left, "\n".join([where, *left])
    assert deployed.converge().changed == [], where


def test_a_run_after_kills_ends_like_an_undisturbed_one(deployed: Deployed, tmp_path: Path) -> None:
    """A bare host, one run after the other killed ever later, and one that is not."""
    print(f"HOSTWRIGHT_KILL_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    deployed.host.reset(BARE)
    where = [kill_run(deployed, point, tmp_path) for point in points(ORDINARY, operations(deployed))]
    assert_equals_undisturbed(deployed, f"seed {SEED}, killed in {where}")


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(SOAK))
def test_a_run_after_one_kill_ends_like_an_undisturbed_one(deployed: Deployed, tmp_path: Path, number: int) -> None:
    point = points(SOAK, operations(deployed))[number]
    deployed.host.reset(BARE)
    where = kill_run(deployed, point, tmp_path)
    assert_equals_undisturbed(deployed, f"seed {SEED}, {point}, killed in {where}")
