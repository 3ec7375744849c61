"""liap with its services on hosts of their own (PgBouncer, PostgreSQL, a Redis of three with sentinels), watched from one of them.

All of it by deploy.py and its settings; what such services lose, and who is told of it, is in test_monitoring_pools.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from deploys import dashboards
from tests.lab import canary
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.liap_site import play
from tests.lab.provision import Run
from tests.lab.scan import scan
from tests.lab.state import wait_for
from tests.lab.test_liap_services import LOUD, Fleet
from tests.lab.watched import DEPLOY, Watcher, draw

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]
_SECRETS = ("MONITORING_POSTGRES_PASSWORD", "MONITORING_REDIS_PASSWORD", "HOOK_TOKEN")


class WatchedFleet(Fleet):
    """The backend's host, and three of services of which the last one watches all."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        super().__init__(lab, directory)
        self.watch = self.services[-1]
        self.watcher = Watcher(self.watch)
        self.own = canary.new(_SECRETS)
        self.secrets |= {**self.own, "MONITORING_WEBHOOK_URL": f"http://127.0.0.1:18080/{self.own['HOOK_TOKEN']}"}
        asks = [f"{self.watch.address}/32"]
        self.more |= {"pgbouncer_metrics_port": 9127, "metrics_networks": asks}
        self.monitoring = {
            "enabled": True, "sources": asks, "scrape_seconds": 2, "hold_seconds": 2, "group_seconds": 1,
            **{key: f"env:MONITORING_{key.upper()}" for key in ("postgres_password", "redis_password", "webhook_url")},
        }  # fmt: skip

    def _words(self, settings: dict[str, object]) -> dict[str, Any]:
        words = super()._words(settings)
        words["groups"]["monitoring"] = [self.watch]
        words["data"] |= {f"monitoring_{key}": value for key, value in self.monitoring.items()}
        for host in self.hosts:
            words["host_data"].setdefault(host.name, {})["monitoring_address"] = host.address
        return words

    def converge(self, dry: bool = False, extra: Sequence[str] = ()) -> Run:
        return self.run(DEPLOY, dry=dry, timeout=2400, extra=extra)


@pytest.fixture(scope="module")
def fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedFleet]:
    made = WatchedFleet(lab, tmp_path_factory.mktemp("authority"))
    first = made.converge()
    assert first.ok, first
    yield made
    for host in made.hosts:
        lab.destroy(host)


def pids(fleet: WatchedFleet) -> list[str]:
    """What runs of monitoring, and since when."""
    units = "'prometheus*.service' 'hostwright-exporter-*.service'"
    return [host.run(f"systemctl show -p Id,MainPID $(systemctl list-units --plain --no-legend --state=active {units} | cut -d' ' -f1)").stdout for host in fleet.hosts]


def is_quiet(fleet: WatchedFleet) -> None:
    wait_for("no alert", lambda: fleet.watcher.alerts() | fleet.watcher.alerts("pending") == set(), 240, pause=1)


def test_every_target_is_up_and_a_second_run_changes_nothing(fleet: WatchedFleet, stranger: LabHost) -> None:
    app, data, _, watch = (host.name for host in fleet.hosts)
    wanted = {(host.name, job) for host in fleet.services for job in ("node", "redis liap", "sentinel liap")}
    wanted |= {(app, job) for job in ("node", "nginx", "site", "liap")} | {(data, job) for job in ("postgres", "pgbouncer")}
    wanted |= {(watch, job) for job in ("prometheus", "alertmanager", "blackbox")}
    wait_for("all targets", lambda: fleet.watcher.targets() == dict.fromkeys(wanted, "up"), 240, pause=1)
    before = fleet.ids(), fleet.pids(), pids(fleet)
    done = fleet.converge()
    assert (done.ok, done.changed) == (True, []), done
    assert (fleet.ids(), fleet.pids(), pids(fleet)) == before
    wait_for("all that is asked", lambda: len(fleet.watcher.query('{__name__=~"redis_up|pg_up|pgbouncer_up|probe_success"} == 1')) == 9, 60, pause=1)
    assert {one["value"][1] for one in fleet.watcher.query("redis_sentinel_master_ok_sentinels")} == {"3"}
    # each site was looked at more than once by now, and of one that is well nothing is told
    assert "Beginning probe" not in fleet.watch.run("journalctl -u hostwright-exporter-blackbox.service -o cat").stdout
    for host in fleet.hosts:
        allowed = {22, 80, 443} if host is fleet.host else {22}
        assert {frozenset(family.reached) for family in scan(stranger, host).values()} == {frozenset(allowed)}, host.name


def test_games_are_seen_and_every_panel_has_data(fleet: WatchedFleet, tmp_path: Path) -> None:
    report = play(fleet, 20)
    assert (len(report.finished), report.lost) == (20, [])
    fleet.host.run("systemctl start hostwright-containers-health.service")
    wait_for("the database of the archive", lambda: fleet.watcher.query('pg_database_size_bytes{datname="liap_archive"}'), 60, pause=1)
    for board in (dashboards.containers(80), dashboards.liap(80)):
        for title, query in dashboards.queries(board):
            wait_for(f"data of {title}", lambda query=query: bool(fleet.watcher.query(query)), 60, pause=1)
    page = fleet.watcher.page()
    for word in (*(host.name for host in fleet.hosts), "liap.example.test", "liap-backend-1"):
        assert word in page
    draw(page, tmp_path / "status")


def test_what_stops_is_told(fleet: WatchedFleet) -> None:
    data, second = fleet.services[:2]
    cluster = data.run("systemctl list-units --plain --no-legend 'postgresql@*.service' | cut -d' ' -f1").stdout.strip()
    causes = (
        ("ServiceUnreachable", data, cluster, data),
        # the sentinels tell of it, each by what it sees
        ("ReplicasMissing", second, "redis-server@liap.service", fleet.watch),
        ("UnitStopped", data, "pgbouncer.service prometheus-pgbouncer-exporter.service", data),
    )
    primary = next(host for host in fleet.services if host.address == fleet.told(data))
    for alert, host, units, teller in causes:
        if alert == "ReplicasMissing":
            host = next(one for one in fleet.services if one not in (primary, fleet.watch))
        fleet.watcher.fires_and_resolves(alert, teller, lambda h=host, u=units: h.run(f"systemctl stop {u}"), lambda h=host, u=units: h.run(f"systemctl start {u}"))
    wait_for("liap", lambda: fleet.ask("/health")[0] == 200, 180)
    is_quiet(fleet)
    done = fleet.converge()
    assert (done.ok, done.changed) == (True, []), done


def test_new_passwords_of_exporters_are_shown_nowhere(fleet: WatchedFleet) -> None:
    """Roles, users of Redis, exporters and the receiver's address change in one run, which is as talkative as it can be."""
    old = dict(fleet.own)
    fleet.own = canary.new(_SECRETS)
    fleet.secrets |= {**fleet.own, "MONITORING_WEBHOOK_URL": f"http://127.0.0.1:18080/{fleet.own['HOOK_TOKEN']}"}
    plan = fleet.converge(dry=True, extra=LOUD)
    assert plan.ok, plan
    with canary.sampled(fleet.services[0], fleet.own) as at_data, canary.sampled(fleet.watch, fleet.own) as at_watch:
        done = fleet.converge(extra=LOUD)
    assert done.ok, done
    for run in (plan, done):
        assert [canary.in_text(run.stdout + run.stderr, one) for one in (old, fleet.own)] == [[], []]
    assert (at_data.arguments, at_watch.arguments) == (set(), set())
    wait_for("all that is asked", lambda: len(fleet.watcher.query('{__name__=~"redis_up|pg_up|pgbouncer_up|probe_success"} == 1')) == 9, 120, pause=1)
    for host in fleet.services:
        # nobody comes in with the former ones, which stand nowhere
        assert canary.files(host, old) == {}, host.name
        found = canary.files(host, fleet.own)
        names = ("redis-liap", "postgres") if host is fleet.services[0] else ("redis-liap",)
        wanted = {f"/etc/hostwright/exporters/{name}.env": "600 root root" for name in names}
        if host is fleet.watch:
            wanted["/etc/prometheus/alertmanager.yml"] = "600 prometheus prometheus"
        assert found == wanted, host.name
        assert canary.journal(host, fleet.own | old) == []
    is_quiet(fleet)
    assert fleet.converge().changed == []
