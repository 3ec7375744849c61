"""A run that is killed anywhere leaves nothing that the next run does not put right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.deployed import BARE, Deployed
from tests.lab.fingerprint import Fingerprint, leftovers
from tests.lab.kill import SEED, kill_run, spread

ORDINARY, SOAK = 2, 10


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
    points = spread(ORDINARY, operations(deployed))
    where = [kill_run(deployed.command(tmp_path), deployed.secrets, point) for point in points]
    assert_equals_undisturbed(deployed, f"seed {SEED}, killed in {where}")


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(SOAK))
def test_a_run_after_one_kill_ends_like_an_undisturbed_one(deployed: Deployed, tmp_path: Path, number: int) -> None:
    point = spread(SOAK, operations(deployed))[number]
    deployed.host.reset(BARE)
    where = kill_run(deployed.command(tmp_path), deployed.secrets, point)
    assert_equals_undisturbed(deployed, f"seed {SEED}, {point}, killed in {where}")
