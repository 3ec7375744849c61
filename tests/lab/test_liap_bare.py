"""A bare Debian 13 becomes liap by the real deploy.py: games, checks, what a stranger reaches, before and after a reboot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.liap_site import Site, play, site_of
from tests.lab.scan import scan
from tests.lab.state import REPOSITORY, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]

DEPLOY = REPOSITORY / "deploy.py"


@pytest.fixture(scope="module")
def site(lab: Lab) -> Iterator[Site]:
    with site_of(lab, "t-liap-bare", "bare") as made:
        yield made


def assert_exposure(site: Site, stranger: LabHost) -> None:
    seen = scan(stranger, site.host)
    assert {family: (set(found.open), set(found.refused)) for family, found in seen.items()} == {
        4: ({22, 80, 443}, set()),
        6: ({22, 80, 443}, set()),
    }


def verify(site: Site, scratch: Path) -> subprocess.CompletedProcess[str]:
    site.command(scratch, DEPLOY)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/verify", "--inventory", str(scratch / "inventory.py")],
        cwd=REPOSITORY, text=True, capture_output=True, timeout=600,
    )  # fmt: skip


def first_morning(site: Site) -> None:
    """What the timers start before anybody has played, in whatever order: nothing of it fails."""
    retention, copy, drill = (f"hostwright-{unit}" for unit in ("archive-liap-archive-filesystem", "backup-liap-archive-filesystem", "backup-liap-archive-filesystem-drill"))
    for unit in (retention, drill, copy, drill, retention):
        site.host.run(f"systemctl start {unit}", timeout=300)
    assert site.host.run("systemctl --failed --plain --no-legend").stdout == ""


def test_bare_host_plays_games_and_the_second_run_changes_nothing(site: Site, stranger: LabHost, tmp_path: Path) -> None:
    run = site.run(DEPLOY, timeout=2000)
    assert run.ok, run
    before = site.ids()
    assert sorted(before) == ["liap-backend-1", "liap-redis-1"]
    run = site.run(DEPLOY)
    assert run.ok, run
    assert (run.changed, site.ids()) == ([], before)
    first_morning(site)
    report = play(site, 100)
    assert (len(report.finished), report.lost) == (100, [])
    wait_for("all games in files", lambda: site.archived() >= report.finished, 60)
    assert_exposure(site, stranger)
    done = verify(site, tmp_path)
    assert done.returncode == 0, done.stdout


def test_after_a_reboot_all_is_there(site: Site, stranger: LabHost) -> None:
    archived = site.archived()
    site.host.reboot()
    wait_for("the backend", lambda: site.ask("/health")[0] == 200, 180)
    assert site.archived() == archived
    assert_exposure(site, stranger)
    assert site.run(DEPLOY).changed == []
    assert len(play(site, 10).finished) == 10


def test_debian_12_with_its_own_compose_is_refused_before_any_change(lab: Lab) -> None:
    made = Site(lab, "t-liap-old", "bare", "bookworm")
    try:
        run = made.run(DEPLOY)
        assert run.rc == 1, run
        assert "release: must be debian 13 or ubuntu 22.04 or ubuntu 24.04, got debian 12" in run.stderr.replace(",", " or", 1), run
        assert made.host.run("command -v docker", check=False).returncode != 0
    finally:
        lab.destroy(made.host)
