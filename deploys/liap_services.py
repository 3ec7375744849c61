"""
What liap's backends use on hosts of its own: the archive behind PgBouncer (group `liap_postgres`), Redis with sentinels (`liap_redis`).

Read top to bottom, it is the run book. It comes after the backends in a run: one that is replaced for a new password lets its
games end with the old one, and what the new one cannot archive yet waits in its memory for the moments until it is let in.
"""

from __future__ import annotations

from pyinfra.api import deploy

from deploys import archive, current, fleet
from deploys.monitoring import redis_users
from operations import archive as archives
from operations import pgbouncer, pgcluster, redis, sentinel
from settings import Backup, Liap, LiapServices
from settings.archive import Postgres, Retention
from settings.liap import REDIS

ARCHIVE = "liap-archive-postgresql"
BACKUP_ROLE = "hostwright_backup"
GROUPS = ("liap", "liap_postgres", "liap_redis")
# of PostgreSQL, besides PgBouncer's: backups, the retention, whoever looks
_SPARE = 25


@deploy("liap services")
def liap_services() -> None:
    """Converge one host of liap_postgres or liap_redis to liap's settings; a backend only meets them here, after its own part."""
    settings = current().liap_services
    if settings is None and not _meets(current().liap):
        return
    # of all these hosts: without an operation that they share, pyinfra changes the services before a backend is replaced
    fleet.all_well("liap", GROUPS, name="See that the backends are well")
    if settings is None:
        return
    if settings.runs_pgbouncer:
        # who may read the figures from outside is monitoring's to say; the exporter knows no password
        watched_at = current().monitoring.address if current().monitoring.enabled else ""
        _database(settings, current().backup, watched_at or "127.0.0.1")
    if settings.runs_sentinel:
        _redis(settings)


def _meets(backend: Liap | None) -> bool:
    """Whether a host is one of the backends that use them."""
    return backend is not None and (backend.uses_pgbouncer or backend.uses_sentinel)


def archive_backend(settings: LiapServices) -> Postgres:
    """Return where completed games are kept: backends may put them in, and remove none."""
    return Postgres(settings.postgres_db, port=settings.postgres_port, owner=settings.postgres_owner, writers=[settings.postgres_user])


def _database(settings: LiapServices, policy: Backup, metrics_address: str) -> None:
    # on loopback and its socket alone: from other hosts there is no way but PgBouncer
    pgcluster.cluster(
        port=settings.postgres_port,
        memory_mb=settings.postgres_memory_mb,
        connections=settings.pgbouncer_pool_size + _SPARE,
        # a query whose client has gone would run on to its end, beyond the connections that PgBouncer counts
        settings={"client_connection_check_interval": "10s"},
        name="Run PostgreSQL",
    )
    pgcluster.database(
        settings.postgres_db,
        owner=pgcluster.Role(settings.postgres_owner, settings.postgres_owner_password),
        roles=[pgcluster.Role(settings.postgres_user, settings.postgres_password)],
        guests=[BACKUP_ROLE],
        name="Make the archive's database and its roles",
    )
    backend = archive_backend(settings)
    if policy.enabled:
        days = Retention(days=settings.archive_retention_days)
        archive.archive(ARCHIVE, backend, days, backups=policy, password=settings.postgres_backup_password)
    else:
        archives.retention(ARCHIVE, present=False, name="Keep no limit of an archive that is not backed up")
        archives.schema(backend, name="Make the archive's schema")
    # right after the role: it lets in who proves the same password
    pgbouncer.pooler(
        {settings.postgres_db: settings.pgbouncer_pool_size},
        users=[pgbouncer.User(settings.postgres_user, settings.postgres_password)],
        server=pgbouncer.Server(port=settings.postgres_port),
        port=settings.pgbouncer_port,
        addresses=[settings.services_address],
        tls=pgcluster.Tls(settings.services_certificate.unmask(), settings.services_key),
        max_clients=settings.pgbouncer_max_clients,
        prepared_statements=settings.pgbouncer_prepared_statements,
        metrics_port=settings.pgbouncer_metrics_port,
        metrics_address=metrics_address,
        name="Pool connections",
    )


def group(settings: LiapServices) -> redis.Group:
    """Return the hosts whose Redis holds the same counters."""
    return redis.Group(
        address=settings.services_address,
        peers=settings.sentinel_peers,
        ca=settings.services_ca.unmask(),
        replica_password=settings.redis_replica_password,
        sentinel_password=settings.redis_sentinel_password,
        ask_password=settings.redis_ask_password,
        sentinel_port=settings.sentinel_port,
        down_after_ms=settings.sentinel_down_after_ms,
    )


def _redis(settings: LiapServices) -> None:
    members = group(settings)
    redis.instance(
        REDIS,
        password=settings.redis_admin_password,
        users=[redis.User(settings.redis_user, settings.redis_password), *redis_users(current())],
        port=settings.redis_port,
        addresses=[settings.services_address],
        tls=redis.Tls(settings.services_certificate.unmask(), settings.services_key),
        maxmemory_mb=settings.redis_maxmemory_mb,
        # counters of a minute: the oldest go, and none is worth a disk
        policy="allkeys-lru",
        append_only=False,
        group=members,
        name="Run Redis",
    )
    sentinel.watch(REDIS, members, port=settings.redis_port, name="Watch Redis")
