"""Everything that changes a fleet at work, under 200 requests a second and with 500 tasks queued: none may be lost or done twice."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator

import pytest

from tests.lab import mcbench_load
from tests.lab.acme import CA_ON_HOST, Acme
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.mcbench_fleet import (
    ADMIN,
    API,
    FLOWER,
    Fleet,
    all_done,
    ask,
    containers_by_component,
    fleet_of,
    summary,
    versions,
)
from tests.lab.state import LabError, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1500)]

RATE = int(os.environ.get("HOSTWRIGHT_LOAD_RATE", "200"))
TASKS = 500
UNSCATHED = {"doubled": 0, "failed": 0, "unfinished": 0, "waiting": 0}
AtWork = Callable[[str], "contextlib.AbstractContextManager[mcbench_load.Traffic]"]


@pytest.fixture(scope="module")
def acme(lab: Lab) -> Acme:
    return lab.acme()


@pytest.fixture(scope="module")
def fleet(lab: Lab, acme: Acme) -> Iterator[Fleet]:
    with fleet_of(lab) as made:
        for domain in (API, ADMIN, FLOWER):
            acme.add_name(domain, made.front)
        made.more = {
            "certificate_mode": "acme",
            "certificate_email": "ops@mcbench.test",
            "certificate_directory": acme.directory_url,
            "certificate_ca_bundle": CA_ON_HOST,
            # each check of each worker starts a Python, which is to leave room for the load
            "mcbench_check_interval_seconds": 12,
        }
        for version in ("v1.0.0", "v1.1.0"):
            made.put(version)
        assert made.run().ok
        yield made


@pytest.fixture
def at_work(fleet: Fleet, stranger: LabHost, capsys: pytest.CaptureFixture[str]) -> AtWork:
    """Requests and tasks while a block runs; then the account of them, and that nothing was lost or done twice."""

    @contextlib.contextmanager
    def during(what: str) -> Iterator[mcbench_load.Traffic]:
        before = all_done(fleet, stranger)
        busy = os.getloadavg()[0]
        with mcbench_load.traffic(stranger, fleet.front, API, rate=RATE, tasks=TASKS) as traffic:
            wait_for("requests", lambda: summary(fleet, stranger)["tasks"] > before["tasks"], 30)
            yield traffic
            with contextlib.suppress(LabError):  # one that never was accepted is in the report
                wait_for("all tasks to be queued", lambda: summary(fleet, stranger)["tasks"] >= before["tasks"] + TASKS, 300)
        report = traffic.report
        with capsys.disabled():
            print(f"\n{what}: {report}; load average before: {busy:.1f}")  # noqa: T201 - the figure that docs and readers want
        assert (report.failed, report.failures) == (0, [])
        counted = all_done(fleet, stranger)
        assert {key: counted[key] for key in UNSCATHED} == UNSCATHED, counted
        assert counted["tasks"] == before["tasks"] + TASKS
        assert report.done["task"] == TASKS

    return during


def test_upgrade(fleet: Fleet, stranger: LabHost, at_work: AtWork) -> None:
    assert fleet.run(version="v1.0.0").ok
    with at_work("upgrade") as traffic:
        run = fleet.run(version="v1.1.0")
    assert run.ok, run
    assert traffic.report.versions == ["1.0.0", "1.1.0"]
    assert versions(fleet) == {"v1.1.0"}
    assert fleet.run(version="v1.1.0", dry=True).changed == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("bad-start", "no module named mc_bench.missing"),
        ("bad-health", "not healthy|unhealthy|does not answer|did not become healthy"),
        ("bad-dies", "this release gives up"),
        ("bad-migration", "column"),
        ("bad-platform", "linux/amd64|platform"),
        ("v9.9.9", "not found|manifest unknown|no such"),
    ],
)
def test_bad_release_goes_nowhere(fleet: Fleet, stranger: LabHost, at_work: AtWork, bad: str, words: str) -> None:
    if bad.startswith("bad-"):
        fleet.put(bad)
    assert fleet.run(version="v1.1.0").ok
    before = {name: one["id"] for name, one in fleet.containers().items()}
    wait_for("a row that the migration falls over", lambda: summary(fleet, stranger)["ticks"] > 0, 30)
    with at_work(bad) as traffic:
        run = fleet.run(version=bad, settle_seconds=8, start_timeout_seconds=40)
    assert not run.ok
    assert re.search(words, run.stderr, re.IGNORECASE), run
    assert traffic.report.versions == ["1.1.0"]
    after = {name: one["id"] for name, one in fleet.containers().items()}
    # what makes tasks and what answers is untouched, whoever was tried first
    kept = {name for name in before if "api" in name or "scheduler" in name or "postgres" in name}
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}
    assert fleet.run(version="v1.1.0").ok
    assert versions(fleet) == {"v1.1.0"}


def test_rollback_as_an_operator_types_it(fleet: Fleet, stranger: LabHost, at_work: AtWork) -> None:
    assert fleet.run(version="v1.0.0").ok
    assert fleet.run(version="v1.1.0").ok
    said = fleet.type("deploys.mcbench.status", version="v1.1.0")
    assert said.returncode == 0, said.stdout
    assert re.search(r"api: release [0-9a-f]{12}, 1 of 1 well, \S+/mc-bench-api:v1\.1\.0 is wanted", said.stdout), said.stdout
    assert re.search(r"server-worker: rollback goes to release [0-9a-f]{12}", said.stdout), said.stdout
    with at_work("rollback") as traffic:
        done = fleet.type("deploys.mcbench.rollback", version="v1.1.0")
    assert done.returncode == 0, done.stdout
    assert traffic.report.versions == ["1.1.0", "1.0.0"]
    assert versions(fleet) - {"v1.0.0"} == {"v1.1.0"}, "Flower and the scheduler wait for the next converge"


@pytest.mark.parametrize(
    ("change", "does"),
    [
        ({"docker_registry_mirrors": ["https://mirror.mcbench.test"]}, "reload"),
        ({"docker_log_max_size_mb": 11}, "restart"),
    ],
    ids=["reload", "restart"],
)
def test_engines_configuration_changes(fleet: Fleet, at_work: AtWork, change: dict[str, object], does: str) -> None:
    assert fleet.run().ok
    before = containers_by_component(fleet)
    engines = [host.run("systemctl show -P MainPID docker").stdout for host in fleet.hosts]
    usual = fleet.more
    fleet.more = {**usual, **change}
    try:
        with at_work(f"daemon.json, {does}"):
            run = fleet.run()
        assert run.ok, run
        assert [name for name in run.changed if "mcbench |" in name] == []
        assert fleet.run().changed == []
    finally:
        fleet.more = usual
        assert fleet.run().ok
    now = [host.run("systemctl show -P MainPID docker").stdout for host in fleet.hosts]
    assert (now != engines) == (does == "restart")
    assert containers_by_component(fleet) == before


def serial(source: LabHost, target: LabHost) -> str:
    """The serial number of the certificate that a host is shown for the api."""
    return source.run(
        f"openssl s_client -connect {target.address}:443 -servername {API} </dev/null 2>/dev/null | openssl x509 -noout -serial"
    ).stdout.strip()


def test_certificate_renewal(fleet: Fleet, stranger: LabHost, at_work: AtWork) -> None:
    assert fleet.run().ok
    before = serial(fleet.front, fleet.front)
    conf = "/etc/letsencrypt/renewal/mcbench-api.conf"
    fleet.front.run(f"sed -i 's/^# *renew_before_expiry.*/renew_before_expiry = 9000 days/' {conf}")
    with at_work("certificate renewal"):
        # what the timer runs
        fleet.front.run("systemctl start certbot.service", timeout=180)
        wait_for("the new certificate", lambda: serial(fleet.front, fleet.front) != before, 60)
    fleet.front.run(f"sed -i 's/^renew_before_expiry.*/# renew_before_expiry = 30 days/' {conf}")
    assert ask(stranger, fleet.front, API, "/health")[0] == 200
    assert fleet.run().changed == []
