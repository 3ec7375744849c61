"""Bare hosts become the fleet by the real deploy.py, on both releases; what the outside sees of it then, and later."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.mcbench_fleet import API, ENV, Fleet, ask, finished, fleet_of, reaches, submit
from tests.lab.scan import scan
from tests.lab.state import REPOSITORY, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

DEPLOY = REPOSITORY / "deploy.py"
SERVICES = (5432, 6379, 9000)


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def fleet(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with fleet_of(lab, "bare", request.param) as made:
        yield made


def assert_exposure(fleet: Fleet, stranger: LabHost) -> None:
    """Of all ports of both families the stranger reaches the declared ones, and the fleet its services besides."""
    wait_for("the api", lambda: ask(stranger, fleet.front, API, "/health")[0] == 200, 180)
    for host in fleet.hosts:
        wanted = {22, 80, 443} if host is fleet.front else {22}
        seen = scan(stranger, host)
        assert {family: (set(found.open), set(found.refused)) for family, found in seen.items()} == {
            4: (wanted, set()),
            6: (wanted, set()),
        }, host.name
    for host in (fleet.back, fleet.games):
        wait_for(f"services for {host.name}", lambda host=host: all(reaches(host, fleet.front, port) for port in SERVICES), 60)
        assert [port for port in (5555, 8000, 18000, 18100, 18200) if reaches(host, fleet.front, port)] == []


def assert_builds(fleet: Fleet, stranger: LabHost, key: str) -> None:
    built = finished(fleet, stranger, submit(fleet, stranger, kind="build", key=key, script="place a house"))
    assert (built["state"], built.get("output")) == ("done", "built in world of 1.0.0: place a house\n")


def test_bare_hosts_become_the_fleet(fleet: Fleet, stranger: LabHost, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    run = fleet.run(DEPLOY, timeout=1500)
    converged = time.monotonic()
    assert run.ok, run
    assert_builds(fleet, stranger, "from-bare")
    before = {name: one["id"] for name, one in fleet.containers().items()}
    begun_again = time.monotonic()
    again = fleet.run(DEPLOY)
    ended_again = time.monotonic()
    assert (again.ok, again.changed) == (True, []), again
    assert {name: one["id"] for name, one in fleet.containers().items()} == before
    assert fleet.run(DEPLOY, dry=True).changed == []
    with capsys.disabled():
        print(f"\nfrom bare: {converged - began:.0f} s, no change: {ended_again - begun_again:.1f} s, "  # noqa: T201
              f"load average {os.getloadavg()[0]:.1f}")  # fmt: skip


def test_nothing_but_what_is_declared_is_open(fleet: Fleet, stranger: LabHost) -> None:
    assert_exposure(fleet, stranger)


def test_checks_of_production_pass(fleet: Fleet, tmp_path: Path) -> None:
    for job in ("run", "drill"):
        done = fleet.type(f"deploys.backup.{job}")
        assert done.returncode == 0, done.stdout
    fleet.command(tmp_path, DEPLOY)

    def checked(*options: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/verify", "--inventory", str(tmp_path / "inventory.py"), *options]
        return subprocess.run(words, cwd=REPOSITORY, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=300, env={**os.environ, **ENV})

    done = checked()
    assert done.returncode == 0, done.stdout[-6000:]
    # backups of any system are asked about, not the gateway's alone
    timer = fleet.front.run("systemctl list-units --plain --no-legend 'hostwright-backup-*postgres.timer' | cut -d' ' -f1").stdout.strip()
    fleet.front.run(f"systemctl stop {timer}")
    done = checked("-k", "test_backups_are_configured")
    fleet.front.run(f"systemctl start {timer}")
    assert f"FAILED tests/verify/test_backup.py::test_backups_are_configured[{fleet.front.name}]" in done.stdout, done.stdout


def test_exposure_is_the_same_after_a_restart_of_the_engines(fleet: Fleet, stranger: LabHost) -> None:
    for host in fleet.hosts:
        host.run("systemctl restart docker", timeout=120)
    assert_exposure(fleet, stranger)


def test_exposure_and_fleet_are_the_same_after_a_reboot(fleet: Fleet, stranger: LabHost) -> None:
    for host in fleet.hosts:
        host.reboot()
    assert_exposure(fleet, stranger)
    assert_builds(fleet, stranger, "after-a-reboot")
    again = fleet.run(DEPLOY)
    assert (again.ok, again.changed) == (True, []), again
