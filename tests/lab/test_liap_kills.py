"""A run of the whole deploy.py for liap that is killed anywhere: what the next run does, and that no game is lost meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.fingerprint import Fingerprint, leftovers
from tests.lab.kill import SEED, Point, kill_run, spread
from tests.lab.lab import Lab
from tests.lab.liap_site import Players, Site, site_of, wait_until
from tests.lab.state import REPOSITORY, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]

DEPLOY = REPOSITORY / "deploy.py"
POINTS = 10
BARE = "bare-kills"
STACK = "liap | Run the stack"
# containerd listens somewhere on loopback
_CHANCE_PORT = re.compile(r"listener tcp 127\.0\.0\.1:[345]\d{4}$")
# what a self-signed certificate's directory is called
_BY_CHANCE = re.compile(r"/etc/hostwright/tls/.+")
_DOCKER = r"""
docker ps -a --format 'container {{.Names}} {{.Image}} {{.State}} {{.Networks}}' | sort
docker network ls --format 'network {{.Name}} {{.Driver}} {{.Internal}}' | sort
docker volume ls --format 'volume {{.Name}}' | sort
docker images --format 'image {{.Repository}}:{{.Tag}} {{.ID}}' | sort
"""


@pytest.fixture(scope="module")
def site(lab: Lab) -> Iterator[Site]:
    with site_of(lab, "t-liap-kills") as made:
        made.host.save(BARE)
        made.more = {"drain_seconds": 600}
        yield made


def operations(site: Site) -> list[str]:
    """The operations of a run that changes nothing: the same as of one that changes all of them."""
    run = site.run(DEPLOY)
    assert run.ok, run
    assert run.results is not None
    return [row["name"] for row in run.results["results"]["operations"]]


def state(site: Site) -> tuple[Fingerprint, list[str]]:
    """The host's files and state, and what its engine has, without names that are made by chance."""
    of = Fingerprint.of(site.host)
    ours = {re.sub(r"br-[0-9a-f]{12}", "br-NETWORK", line) for line in of.state if not _CHANCE_PORT.match(line)}
    return Fingerprint(of.files, frozenset(ours)), site.host.run(_DOCKER).stdout.splitlines()


def differences(before: tuple[Fingerprint, list[str]], after: tuple[Fingerprint, list[str]]) -> list[str]:
    found = [line for line in before[0].differences(after[0]) if not _BY_CHANCE.match(line.partition(": ")[0])]
    found += [f"only undisturbed: {line}" for line in before[1] if line not in after[1]]
    return found + [f"only after kills: {line}" for line in after[1] if line not in before[1]]


def left(site: Site) -> list[str]:
    """What a killed run left. A health check has a file of the engine's in /tmp for a moment."""
    return [line for line in leftovers(site.host) if not re.search(r"/tmp/runc-process\d+$", line)]


def test_ten_kills_of_a_first_converge_end_like_an_undisturbed_one(site: Site, tmp_path: Path) -> None:
    """One run after the other killed ever later, and one that is not."""
    print(f"HOSTWRIGHT_KILL_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    run = site.run(DEPLOY)
    assert run.ok, run
    count = len(operations(site))
    undisturbed = state(site)
    site.host.reset(BARE)
    where = [kill_run(site.command(tmp_path, DEPLOY), site.secrets, point) for point in spread(POINTS, count, 3)]
    said = f"seed {SEED}, killed in {where}"
    run = site.run(DEPLOY)
    assert run.ok, f"{said}: {run}"
    found = differences(undisturbed, state(site))
    assert not found, "\n".join([said, *found])
    assert not left(site), "\n".join([said, *left(site)])
    assert site.run(DEPLOY).changed == [], said


@pytest.fixture(scope="module")
def points(site: Site) -> list[Point]:
    """Half of them anywhere, half in what takes the time: the trial, the drain and the switch."""
    assert site.run(DEPLOY).ok
    names = operations(site)
    return [*spread(POINTS // 2, len(names), 3), *(Point(names.index(STACK), seconds) for seconds in (1, 4, 8, 13, 20))]


@pytest.mark.parametrize("number", range(POINTS))
def test_upgrade_is_killed_once_and_no_game_is_lost(site: Site, points: list[Point], tmp_path: Path, number: int) -> None:
    """There and back in turn, whichever of the points are run."""
    here = json.loads(site.ask("/health")[1])["version"]
    there = {"1.0.0": "1.1.0", "1.1.0": "1.0.0"}[here]
    players = Players(site.host.address, 10, moves=10, pause=0.3).start()
    wait_until("10 games", 120, lambda: len(players.begun) >= 10)
    where = kill_run(site.command(tmp_path, DEPLOY, version=there), site.secrets, points[number])
    run = site.run(DEPLOY, version=there)
    report = players.end()
    said = f"seed {SEED}, {points[number]}, killed in {where}"
    assert run.ok, f"{said}: {run}"
    assert report.lost == [], said
    assert json.loads(site.ask("/health")[1])["version"] == there, said
    wait_for("all games in files", lambda: site.archived() >= report.finished, 60)
    assert not left(site), "\n".join([said, *left(site)])
    assert site.run(DEPLOY, version=there).changed == [], said
