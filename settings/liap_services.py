"""The same settings on the hosts that serve liap's: `liap_postgres` has the archive behind PgBouncer, `liap_redis` Redis and sentinels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from settings.errors import Fault
from settings.exposure import Port
from settings.liap import Liap
from settings.requirements import RELEASES, PortClaim, Requirements
from settings.section import differences, rule

GROUPS = ("liap_postgres", "liap_redis")
PREPARES = (("debian", "13"), ("ubuntu", "24.04"))
"""Releases whose PgBouncer keeps prepared statements, and whose exporter knows it."""


class LiapServices(Liap):
    """What liap's backends use on hosts of its own, by liap's settings: the archive's PostgreSQL behind PgBouncer, and Redis with sentinels."""

    @property
    def domains(self) -> tuple[str, ...]:
        """None: players reach the backends."""
        return ()

    @property
    def runs_pgbouncer(self) -> bool:
        """Whether the archive's PostgreSQL and PgBouncer are here."""
        return "liap_postgres" in self._groups

    @property
    def runs_sentinel(self) -> bool:
        """Whether one of the Redis instances and its sentinel are here."""
        return "liap_redis" in self._groups

    @rule
    def _what_is_here_is_used(self) -> Iterator[Fault]:
        for group, key, runs in (("liap_postgres", "pgbouncer_enabled", self.runs_pgbouncer), ("liap_redis", "sentinel_enabled", self.runs_sentinel)):
            if runs and not getattr(self, key):
                yield Fault(key, f"must be True on hosts of {group}", False, f"write liap_{key} = True in group_data/all.py, or leave {group} empty")

    @rule
    def _everything_is_given(self) -> Iterator[Fault]:
        needed = ["services_address", "services_networks", "services_ca", "services_certificate", "services_key"]
        needed += ["postgres_password", "postgres_owner_password"] if self.runs_pgbouncer else []
        if self.runs_sentinel:
            needed += ["redis_password", "redis_admin_password", "redis_replica_password", "redis_sentinel_password", "redis_ask_password"]
        for name in needed:
            if not getattr(self, name):
                value = {"services_address": "'10.0.0.41'", "services_networks": "['10.0.0.0/24']"}.get(name, f"'env:LIAP_{name.upper()}'")
                yield Fault(name, f"is required on hosts of {' and '.join(sorted(self._groups.intersection(GROUPS)))}", hint=f"write liap_{name} = {value}")

    @rule
    def _names_are_plain(self) -> Iterator[Fault]:
        for key in ("postgres_db", "postgres_user", "postgres_owner"):
            if self.runs_pgbouncer and "-" in getattr(self, key):
                yield Fault(key, "must be lower case letters, digits and '_' where PostgreSQL is on a host of its own", getattr(self, key))
        if self.runs_pgbouncer and self.postgres_owner == self.postgres_user:
            yield Fault("postgres_owner", "must be another role than liap_postgres_user: backends may not remove games", self.postgres_owner)

    @rule
    def _peers_hold_this_host(self) -> Iterator[Fault]:
        if self.runs_sentinel and len(self.sentinel_peers) < 3:
            yield Fault("sentinel_peers", "must be three hosts or more: of two, neither can outvote the other", ", ".join(self.sentinel_peers))
        elif self.runs_sentinel and self.services_address and self.services_address not in self.sentinel_peers:
            yield Fault("sentinel_peers", f"must hold liap_services_address of this host ({self.services_address})", ", ".join(self.sentinel_peers))

    @rule
    def _ports_are_their_own(self) -> Iterator[Fault]:
        named = {"postgres_port": self.postgres_port, "pgbouncer_port": self.pgbouncer_port, "pgbouncer_metrics_port": self.pgbouncer_metrics_port}
        named = named if self.runs_pgbouncer else {}
        named |= {"redis_port": self.redis_port, "sentinel_port": self.sentinel_port} if self.runs_sentinel else {}
        seen: dict[int, str] = {}
        for key, port in named.items():
            if port and port in seen:
                yield Fault(key, f"must be another port than liap_{seen[port]}", port)
            seen.setdefault(port, key)

    def ports(self) -> tuple[Port, ...]:
        """Return the ports that are open: PgBouncer to backends, Redis and sentinels to them and each other."""
        found = []
        if self.runs_pgbouncer:
            found.append(Port(port=self.pgbouncer_port, sources=self.services_networks, why="liap: PgBouncer"))
        if self.runs_sentinel:
            peers = tuple(f"{peer}/{128 if ':' in peer else 32}" for peer in self.sentinel_peers)
            sources = (*peers, *(network for network in self.services_networks if network not in peers))
            found += [Port(port=port, sources=sources, why=f"liap: {what}") for port, what in ((self.redis_port, "Redis"), (self.sentinel_port, "sentinels"))]
        return tuple(found)

    def needs(self) -> Requirements:
        """Return what the host must have: memory, the ports, and a PgBouncer that can do what is asked of it."""
        claims: list[PortClaim] = []
        releases: tuple[tuple[str, str], ...] = RELEASES
        memory = 0
        if self.runs_pgbouncer:
            memory += self.postgres_memory_mb
            claims += [PortClaim(self.postgres_port, ("postgres",)), PortClaim(self.pgbouncer_port, ("pgbouncer",))]
            if self.pgbouncer_prepared_statements or self.pgbouncer_metrics_port:
                releases = PREPARES
        if self.runs_sentinel:
            memory += self.redis_maxmemory_mb * 3 // 2
            claims += [PortClaim(self.redis_port, ("redis-server",)), PortClaim(self.sentinel_port, ("redis-sentinel",))]
        return Requirements(
            releases=releases, memory_mb=0 if self.allow_small else memory * 9 // 10, disk_var_mb=1024 if self.runs_pgbouncer else 256,
            disk_root_mb=256, ports=tuple(claims),
        )  # fmt: skip


SAME = (
    "pgbouncer_port", "postgres_password", "postgres_db", "postgres_user", "sentinel_peers", "sentinel_port", "redis_user", "redis_password",
    "redis_ask_password", "services_ca",
)  # fmt: skip
"""What backends and those who serve them must both know."""


def host_faults(host: Any) -> Iterator[Fault]:
    """Yield what the archive's database asks of the other parts of its host."""
    settings: LiapServices = host.liap_services
    if settings.runs_pgbouncer and host.backup.enabled and not settings.postgres_backup_password:
        yield Fault(
            "liap_postgres_backup_password", "is required to back up liap's archive",
            hint="write liap_postgres_backup_password = 'env:LIAP_POSTGRES_BACKUP_PASSWORD', or backup_enabled = False", host=host.name,
        )  # fmt: skip


def fleet_faults(backends: Mapping[str, Liap], services: Mapping[str, LiapServices]) -> Iterator[Fault]:
    """Yield what is wrong between the hosts of one system."""
    databases = [name for name, one in services.items() if one.runs_pgbouncer]
    peers = {name: one.services_address for name, one in services.items() if one.runs_sentinel}
    for name in databases[1:]:
        yield Fault("liap_pgbouncer_enabled", f"only one host may be in liap_postgres: {databases[0]} is already", True, "take it out of the group", name)
    for name, one in backends.items():
        if one.uses_pgbouncer and not databases:
            yield Fault("liap_pgbouncer_enabled", "must be False when no host is in liap_postgres", True, host=name)
        if one.uses_sentinel and not peers:
            yield Fault("liap_sentinel_enabled", "must be False when no host is in liap_redis", True, host=name)
    for name, one in services.items():
        if one.runs_sentinel and set(one.sentinel_peers) != set(peers.values()):
            yield Fault(
                "liap_sentinel_peers", "must be liap_services_address of all hosts in liap_redis", ", ".join(one.sentinel_peers),
                f"write {sorted(peers.values())!r}", name,
            )  # fmt: skip
    managed: dict[tuple[str, str], str] = {}
    for name, one in backends.items():
        if one.manages_bucket:
            first = managed.setdefault((one.s3_endpoint_url, one.archive_bucket), name)
            if first != name:
                yield Fault("liap_archive_bucket_managed", f"must be True on one host alone: {first} has it already", True, host=name)
    together = {**{name: one for name, one in backends.items() if one.uses_pgbouncer or one.uses_sentinel}, **services}
    for key in SAME if services else ():
        yield from differences(key, together)
