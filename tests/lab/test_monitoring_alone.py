"""A monitoring host that watches itself alone: its targets, one alert that comes, is told, and goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import canary
from tests.lab.lab import Lab
from tests.lab.state import wait_for
from tests.lab.watched import Watched

# What this host has to do needs none of them; test_base is about them.
_LEFT_OUT = ("packages", "users", "sshd", "firewall", "unattended_upgrades", "time_sync", "journald", "sysctl", "swap")


class Alone(Watched):
    """One host, by deploy.py; its exporters listen on loopback."""

    def __init__(self, lab: Lab) -> None:
        self.secrets = canary.new(("HOOK_TOKEN",))
        self.watch = lab.host("t-alone")
        self.hosts = [self.watch]
        self.take_messages()

    def words(self, **settings: object) -> dict[str, Any]:
        own = {"enabled": True, "webhook_url": "env:MONITORING_WEBHOOK_URL", "scrape_seconds": 2, "hold_seconds": 1, "group_seconds": 1, **settings}
        left_out = {f"base_{part}_enabled": False for part in _LEFT_OUT}
        return {"data": {**left_out, **{f"monitoring_{key}": value for key, value in own.items()}}, "groups": {"monitoring": self.hosts}}


@pytest.fixture(scope="module")
def alone(lab: Lab) -> Iterator[Alone]:
    made = Alone(lab)
    yield made
    lab.destroy(made.watch)


def test_a_host_watches_itself_and_the_second_run_changes_nothing(alone: Alone) -> None:
    first = alone.run()
    assert first.ok, first
    wait_for("all targets", lambda: set(alone.targets().values()) == {"up"}, 60, pause=0.5)
    assert set(alone.targets()) == {("t-alone", job) for job in ("node", "prometheus", "alertmanager", "blackbox")}
    assert {line.split()[3] for line in alone.watch.run("ss -Htln 'sport >= :9000 and sport < :9400'").stdout.splitlines()} == {
        f"127.0.0.1:{port}" for port in (9090, 9093, 9100, 9115)
    }
    pids = "systemctl show -p MainPID --value prometheus prometheus-alertmanager prometheus-node-exporter hostwright-exporter-blackbox"
    before = alone.watch.run(pids).stdout
    second = alone.run()
    assert (second.ok, second.changed) == (True, []), second
    assert alone.watch.run(pids).stdout == before
    assert "0\n" not in before.splitlines(keepends=True)


def test_an_alert_is_told_and_its_end_too(alone: Alone) -> None:
    watch = alone.watch
    alone.fires_and_resolves("UnitStopped", watch, lambda: watch.run("systemctl stop cron"), lambda: watch.run("systemctl start cron"))
