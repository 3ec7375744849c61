"""cricksy on one host that watches itself: the depth of its real queue, read by its real cricksy-health, becomes an alert."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from deploys import dashboards
from tests.lab.cricksy_fleet import ask_broker, fleet_of
from tests.lab.provision import provision
from tests.lab.scan import scan
from tests.lab.state import wait_for
from tests.lab.watched import DEPLOY

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
SECRETS = {
    "MONITORING_POSTGRES_PASSWORD": "canary-monitoring-postgres",
    "MONITORING_REDIS_PASSWORD": "canary-monitoring-redis-1",
    "MONITORING_WEBHOOK_URL": "http://127.0.0.1:18080/",
}
SETTINGS = {
    "monitoring_enabled": True,
    "monitoring_postgres_password": "env:MONITORING_POSTGRES_PASSWORD",
    "monitoring_redis_password": "env:MONITORING_REDIS_PASSWORD",
    "monitoring_webhook_url": "env:MONITORING_WEBHOOK_URL",
    "monitoring_scrape_seconds": 2,
    "monitoring_hold_seconds": 2,
    "monitoring_queue_depth": 50,
}


@pytest.fixture(scope="module")
def fleet(lab, tmp_path_factory):
    with fleet_of(lab, tmp_path_factory.mktemp("fleet"), alone=True) as made:
        made.shared = SETTINGS
        yield made


def converge(fleet):
    words = fleet._words({})
    words["groups"] = {**words["groups"], "monitoring": [fleet.front]}
    return provision(list(fleet.hosts), DEPLOY, env={**fleet.secrets, **SECRETS}, timeout=2400, **words)


def ask(fleet, path):
    return json.loads(fleet.front.run(f"curl -gfsS -m 20 'http://127.0.0.1:9090/api/v1/{path}'").stdout)["data"]


def test_a_deep_queue_is_an_alert(fleet, stranger):
    done = converge(fleet)
    assert done.ok, done
    assert converge(fleet).changed == []
    front = fleet.front

    def health():
        return {(one["labels"]["job"], one["labels"].get("part", ""), one["health"]) for one in ask(fleet, "targets?state=active")["activeTargets"]}

    jobs = ("node", "nginx", "postgres", "site", "prometheus", "alertmanager", "blackbox")
    wanted = {*((job, "", "up") for job in jobs), ("redis", "cricksy-broker", "up"), ("redis", "cricksy-cache", "up")}
    wait_for("all targets", lambda: health() == wanted, 180, pause=1)
    # who watches himself shows nothing to anybody
    assert {frozenset(family.reached) for family in scan(stranger, front).values()} == {frozenset({22, 80, 443})}

    def firing():
        return {one["labels"]["alertname"] for one in ask(fleet, "alerts")["alerts"] if one["state"] == "firing"}

    front.run("systemctl start cricksy-health.service", check=False)
    wait_for("a quiet queue", lambda: "QueueDeep" not in firing() and ask(fleet, "query?query=cricksy_queue_depth")["result"], 120, pause=1)
    front.run("systemctl stop 'cricksy-worker@*'")
    ask_broker(fleet, "eval \"for i = 1, 51 do redis.call('lpush', 'celery', i) end\" 0")
    front.run("systemctl start cricksy-health.service", check=False)
    wait_for("the alert", lambda: "QueueDeep" in firing(), 120, pause=1)
    ask_broker(fleet, "del celery")
    front.run("systemctl start 'cricksy-worker@1'; systemctl start cricksy-health.service", check=False)
    wait_for("its end", lambda: "QueueDeep" not in firing(), 120, pause=1)

    def well() -> bool:
        front.run("systemctl start cricksy-health.service", check=False, timeout=240)
        return "CheckFailed" not in firing()

    # a check of the real cricksy-health fails, and is well again
    wait_for("no failed check", well, 120, pause=3)
    front.run("systemctl stop redis-server@cricksy-broker.service")
    front.run("systemctl start cricksy-health.service", check=False, timeout=240)
    wait_for("the alert of a failed check", lambda: "CheckFailed" in firing(), 120, pause=1)
    front.run("systemctl start redis-server@cricksy-broker.service")
    wait_for("its end", well, 180, pause=3)

    for title, query in dashboards.queries(dashboards.cricksy(50, 80)):
        assert ask(fleet, f"query?query={quote(query)}")["result"], title
