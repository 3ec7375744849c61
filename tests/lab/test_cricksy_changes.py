"""Everything that changes cricksy at work, with 300 tasks in flight: none may be lost, and those run twice are told with the reason."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator

import pytest

from tests.lab import cricksy_load
from tests.lab.cricksy_fleet import SECRETS, Fleet, ask, assert_converged, colour, fleet_of, give_image
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.state import wait_for
from tests.lab.test_cricksy_keys import API, FLOWER, GIVE, OWN, WORKERS, now

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

TASKS = 300
# A task of a worker that is gone for good is another one's after this time, which must be longer than any task takes.
LOST = {"extra_env": {"CRICKSY_VISIBILITY_SECONDS": "30"}, "task_time_limit": 25, "task_soft_time_limit": 20}
AtWork = Callable[[str, float], "contextlib.AbstractContextManager[cricksy_load.Load]"]


@pytest.fixture(scope="module")
def client(stranger: LabHost) -> LabHost:
    give_image(stranger)
    return stranger


@pytest.fixture(scope="module")
def fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(lab, tmp_path_factory.mktemp("cricksy")) as made:
        made.more = LOST
        run = made.run()
        assert run.ok, run
        yield made


@pytest.fixture
def at_work(fleet: Fleet, client: LabHost, capsys: pytest.CaptureFixture[str]) -> AtWork:
    """300 tasks while a block runs, which begins and ends with tasks in flight; then that every one of them is done."""

    @contextlib.contextmanager
    def during(what: str, seconds: float) -> Iterator[cricksy_load.Load]:
        busy = os.getloadavg()[0]
        with cricksy_load.tasks(fleet, client, TASKS, seconds) as load:
            yield load
        with capsys.disabled():
            print(f"\n{what}: {load}; load average before: {busy:.1f}")  # noqa: T201 - the figures that docs and readers want
        assert (load.count, load.lost, load.held) == (TASKS, 0, 0), load
        assert min(load.open_before, load.open_after) > 0, f"nothing was in flight: {load}"

    return during


def workers(fleet: Fleet) -> list[str]:
    return [name for name in fleet.pids() if "cricksy-worker@" in name]


def assert_version(fleet: Fleet, client: LabHost, version: str) -> None:
    assert json.loads(ask(fleet, client, "/api/health")[1])["version"] == version


def test_upgrade(fleet: Fleet, client: LabHost, at_work: AtWork) -> None:
    assert fleet.run(version="v1.0.0").ok
    with at_work("upgrade", 1.5) as load:
        run = fleet.run(version="v1.1.0")
    assert run.ok, run
    assert_version(fleet, client, "1.1.0")
    assert (load.twice, load.asked_again) == (0, {}), load
    assert_converged(fleet, version="v1.1.0")


def test_bad_release_goes_nowhere(fleet: Fleet, client: LabHost, at_work: AtWork) -> None:
    """Neither its workers nor its API start: what made tasks and what answered is untouched."""
    assert fleet.run(version="v1.1.0").ok
    api = f"{fleet.front.name}/cricksy-api-{colour(fleet)}.service"
    before = fleet.pids()[api]
    with at_work("bad release", 1) as load:
        bad = fleet.run(version="v1.2.0-unhealthy")
    assert not bad.ok
    assert not any(secret in bad.stdout + bad.stderr for secret in SECRETS.values())
    assert_version(fleet, client, "1.1.0")
    assert fleet.pids()[api] == before
    assert load.asked_again == {}, load
    assert fleet.run(version="v1.1.0").ok
    assert_converged(fleet, version="v1.1.0")


def test_rollback(fleet: Fleet, client: LabHost, at_work: AtWork) -> None:
    assert fleet.run(version="v1.0.0").ok
    assert fleet.run(version="v1.1.0").ok
    with at_work("rollback", 1) as load:
        run = fleet.run("from deploys.cricksy import rollback\nrollback()\n", version="v1.1.0")
    assert run.ok, run
    assert_version(fleet, client, "1.0.0")
    assert (load.twice, load.asked_again) == (0, {}), load
    # The inventory names it again. To a release that never was here, a database that it does not know is a fault ...
    known = "/var/lib/hostwright/cricksy-migrated"
    fleet.front.run(f"mv {known} {known}.kept")
    refused = fleet.run(version="v1.0.0")
    assert (refused.ok, refused.failed) == (False, ["cricksy | Migrate the database"]), refused
    assert "Can't locate revision identified by '0002'" in refused.stderr, refused
    fleet.front.run(f"mv {known}.kept {known}")
    # ... and to one that has migrated it before, a database that is ahead
    assert fleet.run(version="v1.0.0").ok
    assert_converged(fleet)


def test_scale_up_and_down(fleet: Fleet, at_work: AtWork) -> None:
    assert len(workers(fleet)) == 2
    with at_work("scale 2 to 6 to 2", 2) as load:
        assert fleet.run("from deploys.cricksy import scale\nscale(count=3)\n").ok
        assert len(workers(fleet)) == 6
        assert fleet.run("from deploys.cricksy import scale\nscale(count=1)\n").ok
    assert (load.twice, load.asked_again) == (0, {}), load
    wait_for("spare workers to end", lambda: len(workers(fleet)) == 2, 60)
    assert_converged(fleet)


def test_worker_is_killed(fleet: Fleet, at_work: AtWork) -> None:
    """All of one instance; and of the other one a process that has a task at work."""
    one, two = fleet.workers
    with at_work("SIGKILL of a worker, and of one task's process", 1) as load:
        one.run("systemctl kill -s KILL cricksy-worker@1")
        main = two.run("systemctl show -p MainPID --value cricksy-worker@1").stdout.strip()
        two.run(f"kill -KILL $(pgrep -P {main} | tail -n 1)")
    # what the killed ones had at work, and no more
    assert 0 < load.twice <= 6, load
    assert load.asked_again == {}, load
    wait_for("workers", lambda: len(workers(fleet)) == 2, 30)
    assert_converged(fleet)


def test_hung_worker_is_found_and_started_anew(fleet: Fleet, at_work: AtWork) -> None:
    assert fleet.run().ok
    host = fleet.workers[0]
    pid = host.run("systemctl show -p MainPID --value cricksy-worker@1").stdout.strip()
    with at_work("a hung worker", 1) as load:
        host.run(f"kill -STOP {pid}")
        for _ in range(3):
            host.run("systemctl start cricksy-worker-check.service", timeout=120)
        said = host.run("journalctl -u cricksy-worker-check --no-pager -o cat").stdout
        assert "cricksy-worker@1 is hung" in said, said
        wait_for(
            "the worker",
            lambda: host.run("systemctl show -p MainPID --value cricksy-worker@1").stdout.strip() not in ("0", pid),
            30,
        )
    assert load.twice <= 4, load
    assert_converged(fleet)


def test_worker_host_loses_its_power(fleet: Fleet, at_work: AtWork) -> None:
    lost = fleet.workers[1]
    with at_work("power loss of a worker's host", 1) as load:
        lost.kill()
    assert 0 < load.twice <= 4, load
    assert load.asked_again == {}, load
    lost.boot()
    wait_for("workers", lambda: len(workers(fleet)) == 2, 60)
    assert_converged(fleet)
    with at_work("after the power came back", 0.5) as load:
        pass
    assert load.twice == 0, load


def test_broker_restarts(fleet: Fleet, at_work: AtWork) -> None:
    with at_work("restart of Redis", 1):
        fleet.front.run("systemctl restart redis-server@cricksy-broker")
    assert_converged(fleet)


def test_database_restarts(fleet: Fleet, at_work: AtWork) -> None:
    with at_work("restart of PostgreSQL", 1):
        fleet.front.run("systemctl restart postgresql@15-main", timeout=120)
    assert_converged(fleet)


def test_keys_of_the_bucket_are_replaced(fleet: Fleet, at_work: AtWork) -> None:
    """Each host's own; that the old ones are refused afterwards, and by whom, is shown in test_cricksy_keys."""
    own = {**OWN, "s3_region": "us-east-1"}  # where the bucket is already: it cannot be moved
    assert fleet.run(**own).ok
    moment = now()
    with at_work("rotation of the hosts' keys of the bucket", 1.5) as load:
        run = fleet.run(s3_key_before=moment, **own)
    assert run.ok, run
    assert set(run.changed) == {GIVE, WORKERS, API, FLOWER}, run
    assert (load.twice, load.asked_again) == (0, {}), load
    assert_converged(fleet, s3_key_before=moment, **own)
