"""Grafana's dashboards as code: each panel is a title, a unit and its queries; places, ids and the rest follow from that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SOURCE = {"type": "prometheus", "uid": "hostwright-prometheus"}
_WIDTH, _HEIGHT, _COLUMNS = 12, 8, 24


@dataclass(frozen=True)
class Panel:
    """
    One panel.

    + queries: PromQL to legend, in Grafana's words for it (``{{host}}``)
    + unit: as Grafana calls it: ``percent``, ``bytes``, ``s``, ``h``, ``d``, ``reqps``, ``short``
    + kind: ``timeseries``, ``stat`` or ``table``
    + limit: where it turns red; 0 for nowhere. With ``below`` it is red below it
    """

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    limit: float = 0
    below: bool = False
    width: int = _WIDTH


@dataclass(frozen=True)
class Dashboard:
    """One dashboard. + uid: its name in addresses, which stays"""

    uid: str
    title: str
    panels: Sequence[Panel]


def dashboards(memory_percent: int, disk_percent: int, certificate_days: int, backup_hours: int, verified_days: int) -> list[Dashboard]:
    """Return the dashboards of all systems, red where the alerts begin."""
    by_host, chosen = "{{host}}", '{host=~"$host"}'
    return [
        Dashboard(
            "hostwright-hosts",
            "Hosts",
            [
                Panel("Targets up", {f"sum by (job) (up{chosen})": "{{job}}"}, kind="stat"),
                Panel("Alerts", {'count by (alertname, host) (ALERTS{alertstate="firing", host=~"$host"}) or vector(0)': "{{alertname}} {{host}}"}, kind="stat", limit=1),
                Panel("Memory used", {f"instance:memory_used:percent{chosen}": by_host}, "percent", limit=memory_percent),
                Panel("Processor used", {f"instance:cpu_used:percent{chosen}": by_host}, "percent", limit=90),
                Panel("File systems used", {f"instance:filesystem_used:percent{chosen}": "{{host}} {{mountpoint}}"}, "percent", limit=disk_percent),
                Panel("Load in 5 minutes", {f"node_load5{chosen}": by_host}),
                Panel(
                    "Network",
                    {
                        'sum by (host) (rate(node_network_receive_bytes_total{host=~"$host", device!="lo"}[$__rate_interval]))': "{{host}} in",
                        '-sum by (host) (rate(node_network_transmit_bytes_total{host=~"$host", device!="lo"}[$__rate_interval]))': "{{host}} out",
                    },
                    "Bps",
                ),
                Panel("Failed units", {'sum by (host) (node_systemd_unit_state{state="failed", host=~"$host"})': by_host}, limit=1),
            ],
        ),
        Dashboard(
            "hostwright-services",
            "Services",
            [
                Panel("Sites answer", {f"probe_success{chosen}": "{{site}} {{host}}"}, kind="stat", limit=1, below=True),
                Panel("Certificates end in", {f"site:certificate_left:days{chosen}": "{{site}} {{host}}"}, "d", "stat", limit=certificate_days, below=True),
                Panel("Time to answer", {f"probe_duration_seconds{chosen}": "{{site}} {{host}}"}, "s"),
                Panel("nginx requests", {'rate(nginx_http_requests_total{host=~"$host"}[$__rate_interval])': by_host}, "reqps"),
                Panel("nginx connections", {f"nginx_connections_active{chosen}": by_host}),
                Panel("PostgreSQL connections used", {f"instance:postgres_connections_used:percent{chosen}": by_host}, "percent", limit=80),
                Panel("PostgreSQL databases", {f"pg_database_size_bytes{chosen}": "{{host}} {{datname}}"}, "bytes"),
                Panel("Redis memory used", {f"instance:redis_memory_used:percent{chosen}": "{{host}} {{part}}"}, "percent", limit=memory_percent),
                Panel("Redis commands", {'rate(redis_commands_processed_total{host=~"$host"}[$__rate_interval])': "{{host}} {{part}}"}, "ops"),
            ],
        ),
        Dashboard(
            "hostwright-backups",
            "Backups",
            [
                Panel("Age of the newest copy", {f"source:backup_age:hours{chosen}": "{{host}} {{source}} {{repository}}"}, "h", "stat", limit=backup_hours),
                Panel("Age of the last verified copy", {f"source:backup_verified_age:days{chosen}": "{{host}} {{source}} {{repository}}"}, "d", "stat", limit=verified_days),
                Panel("Last run", {f"hostwright_backup_last_run_success{chosen}": "{{host}} {{source}}"}, kind="stat", limit=1, below=True),
                Panel("Size", {f"hostwright_backup_size_bytes{chosen}": "{{host}} {{source}}"}, "bytes"),
                Panel("Copies kept", {f"hostwright_backup_snapshots{chosen}": "{{host}} {{source}} {{repository}}"}),
                Panel("Rows", {f"hostwright_backup_rows{chosen}": "{{host}} {{source}} {{table}}"}),
            ],
        ),
    ]


def cricksy(queue_depth: int, memory_percent: int) -> Dashboard:
    """Return the dashboard of cricksy: only where it runs, since a panel without data says nothing."""
    chosen = '{host=~"$host"}'
    return Dashboard(
        "hostwright-cricksy",
        "cricksy",
        [
            Panel("Checks", {f"cricksy_up{chosen}": "{{check}} {{host}}"}, kind="stat", limit=1, below=True),
            Panel("Tasks that wait", {f"cricksy_queue_depth{chosen}": "{{queue}} {{host}}"}, limit=queue_depth),
            Panel("Tasks at work", {f"cricksy_tasks_reserved{chosen}": "{{host}}"}),
            Panel("Broker's memory used", {'100 * cricksy_broker_memory_bytes{host=~"$host"} / cricksy_broker_memory_max_bytes': "{{host}}"}, "percent", limit=memory_percent),
        ],
    )


def containers(memory_percent: int) -> Dashboard:
    """Return the dashboard of hosts with containers, only where there are some."""
    chosen = '{host=~"$host"}'
    return Dashboard(
        "hostwright-containers",
        "Containers",
        [
            Panel("Running", {f"hostwright_container_running{chosen}": "{{container}} {{host}}"}, kind="stat", limit=1, below=True),
            Panel("Restarts", {f"hostwright_container_restarts_total{chosen}": "{{container}} {{host}}"}),
            Panel("Memory", {f"hostwright_container_memory_bytes{chosen}": "{{container}} {{host}}"}, "bytes"),
            Panel("Memory of its limit", {f"instance:container_memory_used:percent{chosen}": "{{container}} {{host}}"}, "percent", limit=memory_percent),
        ],
    )


def liap(memory_percent: int) -> Dashboard:
    """Return the dashboard of liap, only where it runs."""
    chosen = '{host=~"$host"}'
    return Dashboard(
        "hostwright-liap",
        "liap",
        [
            Panel("Games in memory", {f"liap_games_active{chosen}": "{{host}}"}),
            Panel("Memory used", {'instance:process_memory_used:percent{job="liap", host=~"$host"}': "{{host}}"}, "percent", limit=memory_percent),
            Panel("Games that wait for the archive", {f"liap_archive_queue{chosen}": "{{host}}"}),
            Panel("Archive failures", {'increase(liap_archive_failures_total{host=~"$host"}[15m])': "{{host}}"}, limit=1),
        ],
    )


def k3s() -> Dashboard:
    """Return the dashboard of clusters, only where there is one."""
    chosen = '{host=~"$host"}'
    return Dashboard(
        "hostwright-k3s",
        "k3s",
        [
            Panel("API server", {f"hostwright_k3s_up{chosen}": "{{host}}"}, kind="stat", limit=1, below=True),
            Panel("Nodes ready", {f"hostwright_k3s_node_ready{chosen}": "{{node}}"}, kind="stat", limit=1, below=True),
            Panel("Pods", {f"sum by (phase) (hostwright_k3s_pods{chosen})": "{{phase}}"}),
            Panel("Missing of workloads", {f"hostwright_k3s_workload_wanted{chosen} - hostwright_k3s_workload_ready{chosen}": "{{namespace}} {{workload}}"}, limit=1),
            Panel("Restarts", {f"sum by (namespace, pod) (hostwright_k3s_container_restarts_total{chosen})": "{{namespace}} {{pod}}"}),
        ],
    )


def queries(board: Dashboard) -> Iterator[tuple[str, str]]:
    """Yield title and PromQL of every panel as Prometheus gets them, all hosts chosen."""
    for panel in board.panels:
        for query in panel.queries:
            yield panel.title, query.replace("$__rate_interval", "1m").replace("$host", ".*")


def render(board: Dashboard) -> str:
    """Return the dashboard as Grafana reads it from a file."""
    return json.dumps(model(board), indent=1) + "\n"


def model(board: Dashboard) -> dict[str, Any]:
    """Return Grafana's model of a dashboard (schema version 39: Grafana 10.3 and newer)."""
    x = y = 0
    panels = []
    for number, panel in enumerate(board.panels, 1):
        if x + panel.width > _COLUMNS:
            x, y = 0, y + _HEIGHT
        panels.append(_panel(number, panel, x, y))
        x += panel.width
    return {
        "uid": board.uid,
        "title": board.title,
        "tags": ["hostwright"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_host_variable()]},
        "panels": panels,
    }


def _host_variable() -> dict[str, Any]:
    query = "label_values(up, host)"
    return {
        "name": "host",
        "label": "Host",
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "hosts"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "sort": 1,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    colours = ("red", "green") if panel.below else ("green", "red")
    steps: list[dict[str, Any]] = [{"color": colours[0] if panel.limit else "green", "value": None}]
    if panel.limit:
        steps.append({"color": colours[1], "value": panel.limit})
    instant = panel.kind != "timeseries"
    by_kind: dict[str, dict[str, Any]] = {
        "timeseries": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "stat": {"colorMode": "value", "graphMode": "none", "justifyMode": "auto", "orientation": "auto", "textMode": "value_and_name",
                 "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}},
        "table": {"showHeader": True},
    }  # fmt: skip
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": {"h": _HEIGHT, "w": panel.width, "x": x, "y": y},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query, "legendFormat": legend, "instant": instant, "range": not instant}
            for index, (query, legend) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0 if panel.unit == "percent" else None,
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": {"thresholdsStyle": {"mode": "line" if panel.limit else "off"}} if panel.kind == "timeseries" else {},
            },
            "overrides": [],
        },
        "options": by_kind[panel.kind],
    }


def faults(found: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a dashboard's model, one line each: what Grafana would take silently and not show."""
    wrong = []
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", str(found.get("uid", ""))):
        wrong.append(f"uid must be 40 letters, digits, - and _ at most, got {found.get('uid')!r}")
    names = {f"${one['name']}" for one in found["templating"]["list"]} | {"$__rate_interval", "$__interval", "$__range"}
    numbers = [panel["id"] for panel in found["panels"]]
    if len(set(numbers)) != len(numbers):
        wrong.append("panels: an id stands twice")
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        where = f"panel {panel['title']!r}"
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        if cells & taken:
            wrong.append(f"{where}: lies on another one")
        taken |= cells
        if place["x"] + place["w"] > _COLUMNS:
            wrong.append(f"{where}: is wider than the page")
        if not panel["targets"]:
            wrong.append(f"{where}: has no query")
        for target in panel["targets"]:
            if target["datasource"] != SOURCE:
                wrong.append(f"{where}: asks another source than the provisioned one")
            wrong += [f"{where}: no variable {name}" for name in sorted(set(re.findall(r"\$\w+", target["expr"])) - names)]
    return wrong
