"""Grafana's container as deploy.py makes it. There is no Grafana to be had here: in its place stands a program that starts
only when it can read what Grafana reads, and answers where Grafana answers. What Grafana itself makes of the files is not shown."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from deploys import dashboards
from tests.lab import canary, images
from tests.lab.provision import provision
from tests.lab.scan import scan
from tests.lab.state import wait_for
from tests.lab.watched import DEPLOY

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]
STAND_IN = """#!/bin/sh
trap 'exit 0' TERM INT
set -e
grep -q hostwright-prometheus "$GF_PATHS_PROVISIONING/datasources/hostwright.yaml"
dashboards=$(sed -n 's/^ *path: //p' "$GF_PATHS_PROVISIONING/dashboards/hostwright.yaml")
grep -q '"uid": "hostwright-hosts"' "$dashboards/hostwright-hosts.json"
test "$GF_USERS_ALLOW_SIGN_UP $GF_AUTH_ANONYMOUS_ENABLED" = "false false"
test -n "$GF_SECURITY_ADMIN_PASSWORD"
mkdir -p /var/lib/grafana/www/api
echo ok > /var/lib/grafana/www/api/health
# what holds the port is called as Grafana's own process is
cp /bin/busybox /var/lib/grafana/grafana
(exec -a httpd /var/lib/grafana/grafana -f -p "$GF_SERVER_HTTP_ADDR:$GF_SERVER_HTTP_PORT" -h /var/lib/grafana/www) &
while :; do sleep 1 & wait $!; done
"""


def containers_are_watched(host):
    """What the container does is in Prometheus within a minute; stopped, it is an alert."""

    def ask(path):
        return json.loads(host.run(f"curl -gfsS -m 20 'http://127.0.0.1:9090/api/v1/{path}'").stdout)["data"]

    def firing():
        return {(one["labels"]["alertname"], one["labels"].get("container")) for one in ask("alerts")["alerts"] if one["state"] == "firing"}

    timer = "hostwright-containers-health"
    assert host.run(f"systemctl is-active {timer}.timer").stdout.strip() == "active"
    host.run(f"systemctl start {timer}.service")
    page = host.read("/var/lib/prometheus/node-exporter/containers.prom")
    for metric in ("running", "healthy", "memory_bytes", "memory_limit_bytes", "restarts_total"):
        assert f'hostwright_container_{metric}{{container="hostwright-grafana",' in page, page
    wait_for("the figures", lambda: ask("query?query=hostwright_container_running==1")["result"], 60, pause=1)
    for title, query in dashboards.queries(dashboards.containers(80)):
        assert ask(f"query?query={quote(query)}")["result"], title
    host.run("docker stop hostwright-grafana", timeout=120)
    wait_for("the alert", lambda: ("ContainerDown", "hostwright-grafana") in firing(), 180, pause=1)
    host.run("docker start hostwright-grafana")
    wait_for("its end", lambda: ("ContainerDown", "hostwright-grafana") not in firing(), 180, pause=1)


def test_container_has_its_files_and_shows_itself_to_nobody(lab, stranger):
    host, registry = lab.host("t-grafana", layer="docker"), lab.registry()
    made = images.make(images.get("busybox"), files={"/bin/grafana": STAND_IN}, command=["/bin/grafana"])
    secrets = canary.new(["GRAFANA_PASSWORD", "HOOK"]) | {"REGISTRY_PASSWORD": registry.password}
    secrets["MONITORING_WEBHOOK_URL"] = f"http://127.0.0.1:18080/{secrets['HOOK']}"
    data = {
        "monitoring_enabled": True,
        "monitoring_scrape_seconds": 2,
        "monitoring_hold_seconds": 2,
        "monitoring_webhook_url": "env:MONITORING_WEBHOOK_URL",
        "monitoring_grafana_image": registry.push("grafana", "11.4.0", made),
        "monitoring_grafana_admin_password": "env:GRAFANA_PASSWORD",
        "docker_source": "distribution",
        "docker_registries": {registry.name: {"username": registry.username, "password": "env:REGISTRY_PASSWORD", "ca": registry.ca}},
    }

    def run(**settings):
        return provision(host, DEPLOY, data={**data, **settings}, groups={"monitoring": [host]}, env=secrets, timeout=2000)

    looked_for = {"GRAFANA_PASSWORD": secrets["GRAFANA_PASSWORD"]}
    with canary.sampled(host, looked_for) as samples:
        done = run()
    assert done.ok, done
    assert canary.in_text(done.stdout + done.stderr, looked_for) == []
    assert samples.arguments == set()
    assert host.run("curl -fsS http://127.0.0.1:3000/api/health").stdout == "ok\n"
    before = host.run("docker inspect -f '{{.Id}} {{.State.StartedAt}}' hostwright-grafana").stdout
    done = run()
    assert (done.ok, done.changed) == (True, []), done
    assert host.run("docker inspect -f '{{.Id}} {{.State.StartedAt}}' hostwright-grafana").stdout == before
    assert {frozenset(family.reached) for family in scan(stranger, host).values()} == {frozenset({22})}
    board = json.loads(host.read("/etc/hostwright/grafana/dashboards/hostwright-hosts.json"))
    assert board["uid"] == "hostwright-hosts"
    # a threshold is a dashboard's: it is read anew, and the container stays
    done = run(monitoring_memory_percent=70)
    assert done.ok, done
    assert done.changed == ["Monitoring | Run Prometheus", "Monitoring | Upload Grafana's source and dashboards"]
    assert host.run("docker inspect -f '{{.Id}} {{.State.StartedAt}}' hostwright-grafana").stdout == before
    containers_are_watched(host)
    secrets["GRAFANA_PASSWORD"] = "admin"
    done = run()
    assert not done.ok
    assert "monitoring_grafana_admin_password: must not be a password that everybody tries first" in done.stdout + done.stderr
    lab.destroy(host)
