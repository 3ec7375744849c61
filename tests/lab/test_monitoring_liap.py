"""liap with its services on hosts of their own (PgBouncer, PostgreSQL, a Redis of three with sentinels), watched from one of them.

All of it by deploy.py and its settings; what such services lose, and who is told of it, is in test_monitoring_pools.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import canary
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.scan import scan
from tests.lab.state import wait_for
from tests.lab.test_liap_services import Fleet
from tests.lab.watched import DEPLOY, Watcher

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

    def converge(self) -> Run:
        return self.run(DEPLOY, timeout=2400)


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
    for host in fleet.hosts:
        allowed = {22, 80, 443} if host is fleet.host else {22}
        assert {frozenset(family.reached) for family in scan(stranger, host).values()} == {frozenset(allowed)}, host.name
