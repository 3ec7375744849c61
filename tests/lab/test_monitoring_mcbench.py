"""mcbench with a host beside it that watches it: its site, its containers, and the databases in them, which publish nothing for that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploys import dashboards
from tests.lab import canary
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.mcbench_fleet import API, ENV, Fleet, ask
from tests.lab.provision import Run, provision
from tests.lab.scan import scan
from tests.lab.state import wait_for
from tests.lab.watched import DEPLOY, Watcher, draw

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]


class Beside(Watcher):
    """A front with databases and the API, a host with one kind of worker, and the one that watches both."""

    def __init__(self, lab: Lab) -> None:
        self.fleet = Fleet(lab)
        self.front, self.back, watch = self.hosts = self.fleet.hosts
        roles: dict[str, list[LabHost]] = {group: [] for group in self.fleet.roles}
        roles |= {"lab": self.hosts, "mcbench": [self.front, self.back], "mcbench_worker": [self.back]}
        roles |= {group: [self.front] for group in ("mcbench_infra", "mcbench_api")}
        self.fleet.roles = {group: members for group, members in roles.items() if members} | {"monitoring": [watch]}
        self.secrets = canary.new(["HOOK_TOKEN"])
        super().__init__(watch)

    def run(self, dry: bool = False) -> Run:
        monitoring = {
            "enabled": True, "sources": [f"{self.watch.address}/32"], "webhook_url": "env:MONITORING_WEBHOOK_URL",
            "scrape_seconds": 2, "hold_seconds": 2, "group_seconds": 1, "window_seconds": 60,
        }  # fmt: skip
        words: dict[str, Any] = self.fleet._words(worker_count=1)
        words["data"] |= {f"monitoring_{key}": value for key, value in monitoring.items()}
        for host in self.hosts:
            words["host_data"].setdefault(host.name, {})["monitoring_address"] = host.address
        env = {**ENV, "MONITORING_WEBHOOK_URL": f"http://127.0.0.1:18080/{self.secrets['HOOK_TOKEN']}"}
        return provision(self.hosts, DEPLOY, env=env, dry=dry, timeout=2400, **words)

    def look(self) -> None:
        """Have the figures of containers now, and not within a minute."""
        for host in (self.front, self.back):
            host.run("systemctl start hostwright-containers-health.service")


@pytest.fixture(scope="module")
def beside(lab: Lab) -> Iterator[Beside]:
    made = Beside(lab)
    first = made.run()
    assert first.ok, first
    yield made
    for host in made.hosts:
        lab.destroy(host)


def test_every_target_is_up_and_a_second_run_changes_nothing(beside: Beside) -> None:
    front, back, watch = (host.name for host in beside.hosts)
    wanted = {(host, "node") for host in (front, back, watch)} | {(front, "nginx"), (front, "site")}
    wanted |= {(watch, job) for job in ("prometheus", "alertmanager", "blackbox")}
    wait_for("all targets", lambda: beside.targets() == dict.fromkeys(wanted, "up"), 180, pause=1)
    before = {name: one["id"] for name, one in beside.fleet.containers().items()}
    done = beside.run()
    assert (done.ok, done.changed) == (True, []), done
    assert {name: one["id"] for name, one in beside.fleet.containers().items()} == before
    assert beside.run(dry=True).changed == []


def test_containers_and_their_databases_are_told_of(beside: Beside, tmp_path: Path) -> None:
    beside.look()
    wait_for("the databases", lambda: len(beside.query('{__name__=~"pg_up|redis_up", part=~"mcbench-(postgres|redis)"} == 1')) == 2, 60, pause=1)
    running = {one["metric"]["container"] for one in beside.query("hostwright_container_running == 1")}
    assert running == {name.partition("/")[2] for name in beside.fleet.containers()}
    assert 0 < beside.value('instance:postgres_connections_used:percent{part="mcbench-postgres"}') < 80
    for title, query in dashboards.queries(dashboards.containers(80)):
        assert beside.query(query), title
    (site,) = beside.query("probe_success")
    assert (site["metric"]["site"], site["value"][1]) == (API, "1")
    wait_for("no alert", lambda: beside.alerts() == set(), 120, pause=1)
    page = beside.page()
    for word in (beside.front.name, beside.back.name, API, "mcbench-redis", *running):
        assert word in page
    draw(page, tmp_path / "status")
    # what is told of a database is told without its password
    pages = "".join(host.run("cat /var/lib/prometheus/node-exporter/containers.prom").stdout for host in (beside.front, beside.back))
    assert canary.in_text(pages, ENV) == []


def test_the_watching_host_reaches_exporters_and_no_database(beside: Beside, stranger: LabHost) -> None:
    front, back, watch = beside.hosts
    for host, wanted in ((front, {22, 80, 443}), (back, {22}), (watch, {22})):
        assert {frozenset(family.reached) for family in scan(stranger, host).values()} == {frozenset(wanted)}, host.name
    for port, answers in ((9100, True), (9113, True), (8000, False)):
        asked = watch.run(f"curl -sS -m 5 -o /dev/null http://{front.address}:{port}/metrics", check=False)
        assert (asked.returncode == 0) is answers, (port, asked.stderr)


def test_a_worker_that_does_not_run_is_an_alert(beside: Beside) -> None:
    back = beside.back
    names = back.run("docker ps --format '{{.Names}}'").stdout.split()
    (worker,) = (name for name in names if re.match(r"mcbench-worker", name))

    def cause() -> None:
        back.run(f"docker stop -t 20 {worker}", timeout=60)
        beside.look()

    def cure() -> None:
        back.run(f"docker start {worker}", timeout=60)
        beside.look()

    beside.fires_and_resolves("ContainerDown", back, cause, cure)


def test_a_redis_that_hangs_is_an_alert(beside: Beside) -> None:
    front = beside.front

    def cause() -> None:
        front.run("docker pause mcbench-redis")
        beside.look()

    def cure() -> None:
        front.run("docker unpause mcbench-redis")
        beside.look()

    beside.fires_and_resolves("ServiceUnreachable", front, cause, cure)
    wait_for("the api", lambda: ask(beside.watch, front, API, "/health")[0] == 200, 120)
    wait_for("no alert", lambda: beside.alerts() == set(), 180, pause=1)
    done = beside.run()
    assert (done.ok, done.changed) == (True, []), done
