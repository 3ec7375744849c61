"""What a watched host shows, to whom; and that whoever watches sees all of it. Only where monitoring is on."""

from __future__ import annotations

import json

import pytest

from settings import Host
from settings.monitoring import exporters
from tests.verify.conftest import Machine

SYSTEM = "monitoring"
MOST_EXPOSURE = 1.5


def _watched(command: str) -> object:
    return lambda host: command if host.monitoring.enabled else ""


def _server(path: str, port: str) -> object:
    return lambda host: f"curl -gfsS -m 10 http://127.0.0.1:{getattr(host.monitoring, port)}{path}" if host.monitoring.is_server else ""


def _exposures(host: Host) -> str:
    units = "$(systemctl list-units --plain --no-legend 'hostwright-exporter-*' | awk '{ print $1 }')"
    own = " prometheus.service prometheus-alertmanager.service" if host.monitoring.is_server else ""
    wanted = f"for unit in {units}{own}; do systemd-analyze security --no-pager \"$unit\" | tail -n 1 | awk -v unit=\"$unit\" '{{ print unit, $(NF - 2) }}'; done"
    return wanted if host.monitoring.enabled or host.monitoring.is_server else ""


EVIDENCE = {
    "monitoring_listening": _watched("ss -Htln | awk '{ print $4 }'"),
    "monitoring_secret_files": _watched("stat -c '%a %U %n' /etc/hostwright/exporters/*.env 2>/dev/null || :"),
    "monitoring_exposure": _exposures,
    "monitoring_targets": _server("/api/v1/targets?state=active", "prometheus_port"),
    "monitoring_loaded": _server("/metrics", "prometheus_port"),
    "monitoring_receivers": _server("/metrics", "alertmanager_port"),
}


def test_exporters_listen_on_one_address(machine: Machine) -> None:
    machine.skip_unless("monitoring_enabled")
    wanted = {one.port for one in exporters(machine.settings)}
    allowed = {"127.0.0.1", machine.settings.monitoring.listen, f"[{machine.settings.monitoring.listen}]"}
    heard = set()
    for line in machine.lines("monitoring_listening"):
        address, _, port = line.rpartition(":")
        if int(port) in wanted:
            heard.add(int(port))
            assert address in allowed, line
    assert heard == wanted


def test_passwords_of_exporters_are_roots_alone(machine: Machine) -> None:
    machine.skip_unless("monitoring_enabled")
    for line in machine.lines("monitoring_secret_files"):
        assert line.startswith("600 root "), line


def test_what_watches_is_sealed(machine: Machine) -> None:
    machine.skip_unless("monitoring_enabled")
    for line in machine.lines("monitoring_exposure"):
        assert float(line.split()[1]) <= MOST_EXPOSURE, line


def _skip_unless_server(machine: Machine) -> None:
    if not machine.settings.monitoring.is_server:
        pytest.skip(f"{machine.target.name} is not in the group monitoring")


def test_prometheus_reaches_every_target(machine: Machine) -> None:
    _skip_unless_server(machine)
    active = json.loads(machine.text("monitoring_targets"))["data"]["activeTargets"]
    assert active != []
    assert [(one["labels"]["host"], one["labels"]["job"], one["lastError"]) for one in active if one["health"] != "up"] == []


def test_both_run_on_what_they_were_given(machine: Machine) -> None:
    _skip_unless_server(machine)
    assert "prometheus_config_last_reload_successful 1" in machine.lines("monitoring_loaded")
    assert "alertmanager_config_last_reload_successful 1" in machine.lines("monitoring_receivers")
