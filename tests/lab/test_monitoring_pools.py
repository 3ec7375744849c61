"""A Redis of three hosts with sentinels, and PgBouncer, watched: what each of them loses, and who is told of it.

The hosts are a deploy's of their own; what is watched of them stands in settings. Read back through the HTTP interfaces of
Prometheus and Alertmanager.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.lab import canary
from tests.lab.authority import Authority
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run, provision
from tests.lab.scan import scan
from tests.lab.state import wait_for
from tests.lab.watched import Watcher

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

DEPLOY = textwrap.dedent("""\
    import os
    from pyinfra import host
    from deploys import current
    from deploys.base import base
    from deploys.monitoring import monitoring, redis_users
    from operations import pgbouncer, pgcluster, redis, sentinel
    from operations.pgcluster import Role
    from settings.secret import Secret

    me = host.data.ssh_hostname
    admin, app, replica, watching, ask, owner, shop = (
        Secret(os.environ[name]) for name in ("ADMIN", "APP", "REPLICA", "WATCHING", "SENTINEL_PASSWORD", "OWNER", "SHOP")
    )
    group = redis.Group(me, os.environ["LAB_PEERS"].split(), os.environ["LAB_CA"], replica, watching, ask)
    tls = redis.Tls(os.environ["LAB_CERTIFICATE_" + me.replace(".", "_")], Secret(os.environ["LAB_KEY_" + me.replace(".", "_")]))
    base()
    redis.instance(
        "limits", password=admin, users=[redis.User("app", app), *redis_users(current())], addresses=[me], tls=tls, maxmemory_mb=64, group=group, name="Run Redis",
    )
    sentinel.watch("limits", group, name="Watch Redis")
    if "monitoring" in host.groups:
        pgcluster.cluster(memory_mb=256, connections=60, name="Run PostgreSQL")
        pgcluster.database("shop", owner=Role("shop_owner", owner), roles=[Role("shop", shop)], name="Have the database")
        pgbouncer.pooler({"shop": 2}, users=[pgbouncer.User("shop", shop)], metrics_port=9127, metrics_address=me, name="Pool connections")
    monitoring()
    """)
SECRETS = ("ADMIN", "APP", "REPLICA", "WATCHING", "SENTINEL_PASSWORD", "OWNER", "SHOP", "MONITORING_REDIS_PASSWORD", "HOOK_TOKEN")


class Group(Watcher):
    """Three hosts of one Redis; the first one watches, and has PgBouncer."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.first, self.second, self.third = self.hosts = lab.boot_all(*((f"t-pool-{name}", "trixie", "packages") for name in "abc"))
        super().__init__(self.first)
        self.own = canary.new(SECRETS)
        authority = Authority(directory / "authority")
        self.env = {
            **self.own,
            "MONITORING_WEBHOOK_URL": f"http://127.0.0.1:18080/{self.own['HOOK_TOKEN']}",
            "LAB_CA": authority.certificate,
            "LAB_PEERS": " ".join(host.address for host in self.hosts),
        }
        for host in self.hosts:
            key = host.address.replace(".", "_")
            self.env["LAB_CERTIFICATE_" + key], self.env["LAB_KEY_" + key] = authority.issue(host.address, "127.0.0.1")

    def words(self, host: LabHost) -> dict[str, Any]:
        peers = [f"{one.address}/32" for one in self.hosts]
        found: dict[str, Any] = {
            "monitoring_address": host.address,
            "base_exposure": [{"port": port, "sources": peers, "why": "Redis and its sentinels"} for port in (6379, 26379)],
        }
        if host is self.first:
            found["monitoring_scrapes"] = [{"job": "pgbouncer", "port": 9127}]
        return found

    def run(self, dry: bool = False, limit: str | None = None, **settings: object) -> Run:
        monitoring = {
            "enabled": True,
            "sources": [f"{self.first.address}/32"],
            "redis_password": "env:MONITORING_REDIS_PASSWORD",
            "sentinel_password": "env:SENTINEL_PASSWORD",
            "webhook_url": "env:MONITORING_WEBHOOK_URL",
            "redis_servers": [
                {"name": "limits", "port": 6379, "exporter_port": 9123, "tls": True},
                {"name": "limits", "port": 26379, "exporter_port": 9124, "sentinel": True},
            ],
            "scrape_seconds": 2,
            "hold_seconds": 2,
            "group_seconds": 1,
            **settings,
        }
        return provision(
            self.hosts, DEPLOY, dry=dry, limit=limit, env=self.env, timeout=2400,
            data={f"monitoring_{key}": value for key, value in monitoring.items()},
            groups={"monitoring": [self.first]}, host_data={host.name: self.words(host) for host in self.hosts},
        )  # fmt: skip


@pytest.fixture(scope="module")
def group(lab, tmp_path_factory):
    made = Group(lab, tmp_path_factory.mktemp("group"))
    with canary.sampled(made.first, made.own) as made.samples:
        made.first_run = made.run()
    assert made.first_run.ok, made.first_run
    yield made
    for host in made.hosts:
        lab.destroy(host)


def is_quiet(group: Group) -> None:
    wait_for("no alert", lambda: group.alerts() | group.alerts("pending") == set(), 180, pause=1)


def test_every_target_is_up_and_a_second_run_changes_nothing(group, stranger):
    first = group.first.name
    wanted = {(host.name, job) for host in group.hosts for job in ("node", "redis limits", "sentinel limits")}
    wanted |= {(first, job) for job in ("pgbouncer", "prometheus", "alertmanager", "blackbox")}
    wait_for("all targets", lambda: group.targets() == dict.fromkeys(wanted, "up"), 180, pause=1)
    done = group.run()
    assert (done.ok, done.changed) == (True, []), done
    wait_for("all that is asked", lambda: len(group.query('{__name__=~"redis_up|pgbouncer_up"} == 1')) == 7, 60, pause=1)
    assert {one["value"][1] for one in group.query("redis_sentinel_master_ok_sentinels")} == {"3"}
    is_quiet(group)
    # the group's own ports, and the exporters', are for peers and for who asks
    for host in group.hosts:
        assert {frozenset(family.reached) for family in scan(stranger, host).values()} == {frozenset({22})}, host.name


def test_passwords_stand_where_they_belong(group):
    assert canary.in_text(group.first_run.stdout + group.first_run.stderr, group.own) == []
    assert group.samples.arguments == set()
    found = canary.files(group.second, {key: group.own[key] for key in ("MONITORING_REDIS_PASSWORD",)})
    assert found == {"/etc/hostwright/exporters/redis-limits.env": "600 root root"}


def test_sentinel_missing(group):
    host, unit = group.third, "redis-sentinel@limits.service"
    # the others tell of it, each by what it sees
    group.fires_and_resolves("SentinelsMissing", group.first, lambda: host.run(f"systemctl stop {unit}"), lambda: host.run(f"systemctl start {unit}"))
    is_quiet(group)


def test_replica_missing(group):
    host, unit = group.third, "redis-server@limits.service"
    group.fires_and_resolves("ReplicasMissing", group.first, lambda: host.run(f"systemctl stop {unit}"), lambda: host.run(f"systemctl start {unit}"))
    is_quiet(group)


def test_quorum_primary_and_its_replicas_lost(group):
    """Without two of three sentinels nobody is elected; then the primary goes."""
    watching, redis = "redis-sentinel@limits.service", "redis-server@limits.service"

    def sentinels(what: str) -> None:
        for host in (group.second, group.third):
            host.run(f"systemctl {what} {watching}")

    group.fires_and_resolves("QuorumLost", group.first, lambda: sentinels("stop"), lambda: sentinels("start"))
    is_quiet(group)
    sentinels("stop")
    try:
        for alert, teller in (("PrimaryLost", group.first), ("ReplicaBroken", group.second)):
            group.fires_and_resolves(alert, teller, lambda: group.first.run(f"systemctl stop {redis}"), lambda: group.first.run(f"systemctl start {redis}"))
    finally:
        sentinels("start")
    is_quiet(group)


def test_pool_exhausted(group):
    host = group.first
    crowd = "for i in 1 2 3 4 5; do psql -Xqh 127.0.0.1 -p 6432 -U shop -d shop -c 'SELECT pg_sleep(3600)' & done; wait"
    host.write("/run/crowd", f"PGPASSWORD={group.own['SHOP']}\n", "0600")
    group.fires_and_resolves(
        "PoolExhausted", host, lambda: host.run(f'systemd-run --quiet --collect --unit=crowd -p EnvironmentFile=/run/crowd sh -c "{crowd}"'),
        lambda: host.run("systemctl stop crowd.service; rm /run/crowd; cd / && runuser -u postgres -- psql -Xqc \"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()\""),
    )  # fmt: skip


def test_pooler_stopped(group):
    """Debian's exporter stops with it, and does not come back with it."""
    host, units = group.first, "pgbouncer.service prometheus-pgbouncer-exporter.service"
    group.fires_and_resolves("TargetDown", host, lambda: host.run("systemctl stop pgbouncer.service"), lambda: host.run(f"systemctl start {units}"))
    is_quiet(group)
    done = group.run()
    assert (done.ok, done.changed) == (True, []), done
