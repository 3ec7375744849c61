"""PgBouncer and Sentinel by liap's settings, through the whole deploy.py: games go on when the primary is lost, passwords are changed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.lab import canary
from tests.lab.authority import Authority
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.liap_site import Players, Site, play, wait_until
from tests.lab.scan import scan
from tests.lab.state import REPOSITORY, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]

DEPLOY = REPOSITORY / "deploy.py"
LOUD = ("-vvv", "--debug", "--diff")
NAMES = ("t-lhs-app", "t-lhs-a", "t-lhs-b", "t-lhs-c")


class Fleet(Site):
    """A backend; a host with the archive behind PgBouncer and a Redis; two with a Redis."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        super().__init__(lab, NAMES[0])
        self.services: list[LabHost] = lab.boot_all(*((name, "trixie", "packages") for name in NAMES[1:]))
        for host in self.services:
            host.run("systemctl disable --now nginx supervisor")
        self.authority = Authority(directory)
        # random ones, to be looked for
        words = ("POSTGRES", "POSTGRES_BACKUP", "POSTGRES_OWNER", "REDIS", "REDIS_ADMIN", "REDIS_REPLICA", "REDIS_SENTINEL", "REDIS_ASK")
        self.canaries = canary.new(f"LIAP_{word}_PASSWORD" for word in words)
        self.secrets |= self.canaries
        self.secrets["LIAP_SERVICES_CA"] = self.authority.certificate
        for host in self.services:
            certificate, key = self.authority.issue(host.address, "127.0.0.1")
            self.secrets |= {f"CERTIFICATE_{host.name[-1]}": certificate, f"KEY_{host.name[-1]}": key}
        self.more = {
            "archive_backend": "postgresql",
            "postgres_host": self.services[0].address,
            "pgbouncer_enabled": True,
            "sentinel_enabled": True,
            # hosts of the lab may be short of processor time for longer than the default's five seconds: that is no loss
            "sentinel_down_after_ms": 20000,
            "sentinel_peers": [host.address for host in self.services],
            "services_networks": [f"{self.host.address}/32"],
            **{key: f"env:LIAP_{key.upper()}" for key in (
                "postgres_owner_password", "redis_admin_password", "redis_replica_password", "redis_sentinel_password", "redis_ask_password", "services_ca",
            )},
        }  # fmt: skip

    @property
    def hosts(self) -> list[LabHost]:
        return [self.host, *self.services]

    def _words(self, settings: dict[str, object]) -> dict[str, Any]:
        words = super()._words(settings)
        words["groups"] = {
            "lab": self.hosts, "liap": [self.host], "liap_postgres": self.services[:1], "liap_redis": self.services,
        }  # fmt: skip
        words["host_data"] = {
            host.name: {
                "liap_services_address": host.address,
                "liap_services_certificate": f"env:CERTIFICATE_{host.name[-1]}",
                "liap_services_key": f"env:KEY_{host.name[-1]}",
            }
            for host in self.services
        }
        return words

    def pids(self) -> dict[str, str]:
        """What runs of the services, and since when."""
        units = "postgresql@*.service pgbouncer redis-server@liap redis-sentinel@liap"
        return {host.name: host.run(f"systemctl show -p Id,MainPID {units}").stdout for host in self.services}

    def told(self, host: LabHost) -> str:
        """The primary, as the sentinel of a host knows it."""
        return str(json.loads(host.run("/usr/local/lib/hostwright/redis-role look liap", check=False).stdout or "{}").get("ip", ""))

    def sql(self, text: str) -> str:
        return self.services[0].run("cd / && runuser -u postgres -- psql -XAtq -d liap_archive", input=text).stdout.strip()

    def games(self) -> set[str]:
        return set(self.sql("SELECT game_id FROM archive.completed_games").split())

    def counters(self, host: LabHost) -> list[str]:
        words = f"REDISCLI_AUTH={self.secrets['LIAP_REDIS_ADMIN_PASSWORD']} redis-cli -s /run/redis-liap/redis.sock --no-auth-warning keys 'rate:*'"
        return host.run(words).stdout.split()


@pytest.fixture(scope="module")
def fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(lab, tmp_path_factory.mktemp("authority"))
    try:
        yield made
    finally:
        for host in made.hosts:
            lab.destroy(host)


def assert_well(fleet: Fleet) -> None:
    status, body = fleet.ask("/health")
    assert (status, json.loads(body)["checks"]) == (200, {"release": "ok", "redis": "ok", "archive": "ok", "memory": "ok"})


def test_four_hosts_play_games_through_pgbouncer_and_sentinel(fleet: Fleet) -> None:
    run = fleet.run(DEPLOY, timeout=2400)
    assert run.ok, run
    assert sorted(fleet.ids()) == ["liap-backend-1"], "a database or a Redis of the stack's own"
    wait_for("all checks", lambda: fleet.ask("/health")[0] == 200, 120)
    assert_well(fleet)
    before = fleet.ids(), fleet.pids()
    run = fleet.run(DEPLOY)
    assert run.ok, run
    assert (run.changed, (fleet.ids(), fleet.pids())) == ([], before)
    report = play(fleet, 100)
    assert (len(report.finished), report.lost) == (100, [])
    wait_for("all games in the database", lambda: fleet.games() >= report.finished, 120)
    assert fleet.counters(fleet.services[0])
    # through PgBouncer, over TLS, and the backend may remove nothing
    assert fleet.sql("SELECT has_table_privilege('archive', 'archive.completed_games', 'DELETE')") == "f"
    pools = "cd / && runuser -u pgbouncer -- psql -XAtq -h /run/pgbouncer -p 6432 -U pgbouncer pgbouncer -c 'SHOW STATS_TOTALS'"
    assert "liap_archive|" in fleet.services[0].run(pools).stdout


def test_what_is_open_and_that_the_checks_pass(fleet: Fleet, stranger: LabHost, tmp_path: Path) -> None:
    for host, wanted in ((fleet.host, {22, 80, 443}), (fleet.services[0], {22}), (fleet.services[1], {22})):
        assert {family: found.open for family, found in scan(stranger, host).items()} == {4: wanted, 6: wanted}, host.name
    fleet.command(tmp_path, DEPLOY)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/verify", "--inventory", str(tmp_path / "inventory.py")],
        cwd=REPOSITORY, text=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_after_a_reboot_of_all_hosts_all_is_there(fleet: Fleet) -> None:
    """The services come back by themselves, the backend beside them, and a run finds nothing to do."""
    games = fleet.games()
    with ThreadPoolExecutor(len(fleet.hosts)) as pool:
        list(pool.map(LabHost.reboot, fleet.hosts))
    wait_for("all sentinels agree", lambda: len({fleet.told(host) for host in fleet.services} - {""}) == 1, 180)
    wait_for("all checks", lambda: fleet.ask("/health")[0] == 200, 300)
    assert_well(fleet)
    assert fleet.games() == games
    assert [host.run("systemctl --failed --plain --no-legend").stdout for host in fleet.hosts] == [""] * len(fleet.hosts)
    before = fleet.ids(), fleet.pids(), fleet.told(fleet.services[0])
    run = fleet.run(DEPLOY)
    assert run.ok, run
    assert (run.changed, (fleet.ids(), fleet.pids(), fleet.told(fleet.services[0]))) == ([], before)
    report = play(fleet, 10)
    assert (len(report.finished), report.lost) == (10, [])
    wait_for("all games in the database", lambda: fleet.games() >= games | report.finished, 120)


def test_games_go_on_when_the_primary_is_lost(fleet: Fleet) -> None:
    """The host with the primary: not that of the archive, which has no second one."""
    first, second, third = fleet.services
    if fleet.told(second) == first.address:
        ask = f"REDISCLI_AUTH={fleet.secrets['LIAP_REDIS_ASK_PASSWORD']} redis-cli -h 127.0.0.1 -p 26379 --tls --cacert /etc/redis/redis-liap.ca.crt"
        second.run(f"{ask} --no-auth-warning sentinel failover liap")
        wait_for("another primary", lambda: fleet.told(first) == fleet.told(second) == fleet.told(third) != first.address, 120)
    old = next(host for host in (second, third) if host.address == fleet.told(first))
    rest = [host for host in fleet.services if host is not old]
    players = Players(fleet.host.address, 10, moves=5, pause=0.3).start()
    wait_until("games", 60, lambda: len(players.report.finished) >= 10)
    old.cut_link()
    old.kill()
    wait_for("another primary", lambda: fleet.told(rest[0]) == fleet.told(rest[1]) != old.address, 120)
    begun = len(players.begun)
    wait_until("games after the failover", 120, lambda: len(players.begun) >= begun + 20)
    report = players.end()
    assert (report.lost, set(report.refused)) == ([], set())
    new = next(host for host in rest if host.address == fleet.told(rest[0]))
    wait_for("the counters at the new primary", lambda: bool(fleet.counters(new)), 60)
    wait_for("all checks", lambda: fleet.ask("/health")[0] == 200, 120)
    old.restore_link()
    old.boot()
    wait_for("the old primary as a replica", lambda: fleet.told(old) == new.address, 120)
    before = fleet.ids(), fleet.pids()
    run = fleet.run(DEPLOY)
    assert run.ok, run
    assert (run.changed, (fleet.ids(), fleet.pids()), fleet.told(old)) == ([], before, new.address), "a run has switched back"


def test_passwords_are_changed_while_games_are_played(fleet: Fleet) -> None:
    """The backend is replaced first, once its games have ended and are archived; then the database and Redis take the new ones."""
    players = Players(fleet.host.address, 10, moves=10, pause=0.3).start()
    wait_until("10 games", 60, lambda: len(players.begun) >= 10)
    old = dict(fleet.canaries)
    fleet.canaries |= canary.new(["LIAP_POSTGRES_PASSWORD", "LIAP_REDIS_PASSWORD", "LIAP_REDIS_REPLICA_PASSWORD"])
    fleet.secrets |= fleet.canaries
    plan = fleet.run(DEPLOY, dry=True, extra=LOUD)
    assert plan.ok, plan
    assert [canary.in_text(plan.stdout + plan.stderr, one) for one in (old, fleet.canaries)] == [[], []]
    with canary.sampled(fleet.host, fleet.canaries) as at_app, canary.sampled(fleet.services[0], fleet.canaries) as at_services:
        run = fleet.run(DEPLOY, extra=LOUD)
    assert run.ok, run
    assert {"liap | Run the stack", *(f"liap services | {step}" for step in ("Make the archive's database and its roles", "Pool connections", "Run Redis"))} <= set(run.changed)
    assert [canary.in_text(run.stdout + run.stderr, one) for one in (old, fleet.canaries)] == [[], []]
    assert (at_app.arguments, at_services.arguments) == (set(), set())
    wait_until("games after it", 60, lambda: len(players.begun) > len(players.report.finished) + 1)
    report = players.end()
    assert report.lost == []
    wait_for("all checks", lambda: fleet.ask("/health")[0] == 200, 120)
    wait_for("all games in the database", lambda: fleet.games() >= report.finished, 120)
    assert fleet.run(DEPLOY).changed == []


def test_secrets_stand_where_they_belong(fleet: Fleet) -> None:
    wanted = {
        r"/etc/hostwright/redis/liap\.(password|group\.json)", r"/etc/redis/redis-liap\.replication\.conf", r"/etc/redis/sentinel-liap\.conf",
        r"/var/lib/redis/sentinel-liap/sentinel\.conf", r"/etc/hostwright/backup/liap-archive-postgresql\.env",
    }  # fmt: skip
    for host in fleet.services:
        found = canary.files(host, fleet.canaries)
        assert [path for path in found if not any(re.fullmatch(pattern, path) for pattern in wanted)] == [], host.name
        modes = {path: mode for path, mode in found.items() if mode not in ("600 root root", "600 redis redis", "640 root redis")}
        assert modes == {}, host.name
        assert canary.journal(host, fleet.canaries) == []
    found = canary.files(fleet.host, fleet.canaries)
    own = ("/etc/hostwright/compose/liap/", "/var/lib/docker/", "/var/lib/containerd/", "/run/docker", "/run/containerd")
    assert [path for path in found if not path.startswith(own)] == []
    assert canary.journal(fleet.host, fleet.canaries) == []
