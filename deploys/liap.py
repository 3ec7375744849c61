"""
liap: a game backend in a Compose stack behind nginx, whose active games live in its memory.

Read top to bottom, it is the run book. What each step guards against is told in docs/liap.md.
"""

from __future__ import annotations

import urllib.parse
from dataclasses import replace
from typing import Any

from pyinfra import host, logger
from pyinfra.api import DeployError, deploy
from pyinfra.operations import files as pyinfra_files
from pyinfra.operations import server

from deploys import archive, current, liap_stacks, mcbench_external, site
from facts.compose import Compose
from operations import archive as archives
from operations import backup, certificate, compose, dpkg, fileset, nginx
from operations.compose import Drain
from operations.fileset import Directory
from operations.nginx import Location, Upstream
from operations.template import render
from settings import Backup, Liap
from settings.archive import S3, Filesystem, Postgres, Retention
from settings.liap import APP_PORT, CA_FILE
from settings.s3 import Bucket, Server
from settings.secret import Secret

PROJECT = "liap"
USER = "liap"
ARCHIVE = "liap-archive"
# What the entrypoints of Redis and PostgreSQL need while they are root: to hand their data to a user, and to become it.
_ENTRYPOINT = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"]
_LOG = {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}


@deploy("liap preflight")
def preflight() -> None:
    """Refuse a host that the archive or Redis of somebody else's does not let in; changes nothing."""
    settings = current().liap
    if settings is not None:
        _external(settings)


@deploy("liap")
def liap() -> None:
    """Converge one host to its liap settings."""
    settings = current().liap
    if settings is None:
        return
    dpkg.packages(["ca-certificates", "curl", "python3"], name="Install packages")
    # Asked before, but not of a host that had no python3 then.
    _external(settings)
    _archive_directory(settings)
    _stack(settings)
    _database_password(settings)
    # Next: until it is there, games that are over wait in the backend's memory.
    _archive(settings, current().backup)
    _site(settings)
    _other_stacks(settings)
    # Last, since it needs nginx to answer from outside: where it fails, all else is done and served self-signed.
    site.get_certificate(PROJECT, settings.domains)


# --- by hand --------------------------------------------------------------------------------------------------------


@deploy("liap start")
def start() -> None:
    """Bring the stack up as the settings say: the guide's start script, with a wait for health instead of a sleep."""
    settings = current().liap
    if settings is not None:
        _stack(settings)
        _database_password(settings)


@deploy("liap stop")
def stop() -> None:
    """Let active games end, up to the limit, and stop the stack; the next start or converge brings it back."""
    settings = current().liap
    if settings is not None:
        compose.stopped(PROJECT, drains=drains(settings), name="Stop the stack")


@deploy("liap reset")
def reset(typed: str = "") -> None:
    """
    Remove the stack with all of its data, the archive on this host included: `typed=NAME`, the host's name.

    Backups stay. Raises DeployError in production, and for a host whose name was not typed.
    """
    settings = current().liap
    if settings is None:
        return
    if settings.environment == "production":
        raise DeployError(f"liap.reset: refused on {host.name}: liap_environment is 'production'; nothing was removed")
    if typed != host.name:
        raise DeployError(
            f"liap.reset: typed must be the name of the host, {host.name!r}, got {typed!r}; with --limit {host.name}; "
            "nothing was removed"
        )
    compose.remove_project_with_its_data(PROJECT, name="Remove the stack with its data")
    if settings.archive_backend == "filesystem":
        pyinfra_files.directory(settings.archive_directory, present=False, name="Remove the archive directory")


@deploy("liap status")
def status() -> None:
    """Say what runs of the stack and what the next converge would put right. Changes nothing."""
    settings = current().liap
    if settings is None:
        return
    found = host.get_fact(Compose, project=PROJECT)
    lines = [found.refused] if found.refused else []
    if found.sha256:
        lines.append(f"runs: {', '.join(found.running) or 'nothing'}; {settings.image} is wanted")
    else:
        lines.append("was never brought up")
    for line in [*lines, *found.anew, *found.repair]:
        logger.info(f"    [{host.name}] {line}")


# --- what it stands on ----------------------------------------------------------------------------------------------


def _external(settings: Liap) -> None:
    mcbench_external.answer(questions(settings), name="See that archive and Redis let this host in")


def questions(settings: Liap) -> list[dict[str, Any]]:
    """Return what is asked of the services of somebody else's that the backend uses; secrets in it are ``Secret``."""
    found: list[dict[str, Any]] = []
    if settings.use_game_archival and settings.archive_backend == "postgresql" and settings.postgres_host and not settings.uses_pgbouncer:
        found.append({
            "kind": "postgres", "name": "the archive", "host": settings.postgres_host, "port": settings.postgres_port,
            "user": settings.postgres_user, "password": settings.postgres_password, "database": settings.postgres_db,
            "sslmode": settings.postgres_sslmode,
        })  # fmt: skip
    if settings.use_game_archival and settings.archive_backend == "s3" and not settings.manages_bucket:
        url = urllib.parse.urlsplit(settings.s3_endpoint_url or f"https://s3.{settings.s3_region}.amazonaws.com")
        found.append({
            "kind": "object", "name": "the archive", "host": url.hostname or "", "port": url.port or (443 if url.scheme == "https" else 80),
            "access": settings.s3_access_key, "secret": settings.s3_secret_key, "tls": url.scheme == "https",
            "buckets": [settings.archive_bucket],
        })  # fmt: skip
    if settings.use_rate_limiting and settings.redis_url.resolved:
        url = urllib.parse.urlsplit(settings.redis_url.unmask())
        found.append({
            "kind": "redis", "name": "Redis", "host": url.hostname or "", "port": url.port or 6379,
            "user": urllib.parse.unquote(url.username or "") or "default",
            "password": Secret(urllib.parse.unquote(url.password or "")), "tls": url.scheme == "rediss",
        })  # fmt: skip
    return found


def _archive_directory(settings: Liap) -> None:
    """Where completed games are files. It belongs to a user of the host, so that no person's files are the backend's."""
    if settings.archive_backend != "filesystem" or not settings.use_game_archival:
        return
    user, group = settings.user.split(":")
    server.group(USER, gid=int(group), system=True, name="Create service group")
    server.user(  # noqa: S604 (a login shell, not a subprocess)
        USER, uid=int(user), group=USER, system=True, home="/nonexistent", create_home=False, ensure_home=False,
        shell="/usr/sbin/nologin", name="Create service user",
    )  # fmt: skip
    fileset.files(
        [Directory(settings.archive_directory, mode="0750", owner=USER, group=USER)], name="Create the archive directory"
    )


# --- the stack ------------------------------------------------------------------------------------------------------


def drains(settings: Liap) -> dict[str, Drain]:
    """Return how the backend is emptied before it is replaced."""
    return {
        "backend": Drain(
            settings.drain_command, settings.busy_command, settings.resume_command, seconds=settings.drain_seconds
        )
    }


def spec(settings: Liap) -> dict[str, Any]:
    """Return the Compose file of the stack."""
    services: dict[str, Any] = {"backend": _backend(settings)}
    volumes: dict[str, Any] = {}
    if settings.runs_redis:
        services["redis"] = _redis(settings)
    if settings.runs_postgres:
        services["postgres"] = _postgres(settings)
        volumes["archive"] = {}
    return {"services": services, **({"volumes": volumes} if volumes else {})}


def mounted(settings: Liap) -> dict[str, Secret]:
    """Return the files that its services mount."""
    found = {}
    if settings.runs_redis:
        text = render("liap/redis.conf.j2", password=settings.redis_password, maxmemory_mb=settings.redis_maxmemory_mb)
        found["redis.conf"] = Secret(text)
    if settings.uses_ca:
        found["ca.crt"] = settings.services_ca
    return found


def _backend(settings: Liap) -> dict[str, Any]:
    service: dict[str, Any] = {
        "image": settings.image,
        "environment": settings.variables(),
        "user": settings.user,
        "ports": [f"127.0.0.1:{APP_PORT}:{APP_PORT}"],
        "healthcheck": {
            "test": ["CMD", *settings.health_command],
            "interval": f"{settings.health_interval_seconds}s",
            "timeout": f"{settings.health_check_timeout}s",
            "retries": 3,
            "start_period": f"{settings.start_timeout_seconds}s",
        },
        "mem_limit": f"{settings.memory_limit}m",
        # memory and swap together
        "memswap_limit": f"{settings.memory_limit + settings.swap_mb}m",
        "pids_limit": 1024,
        "read_only": True,
        "tmpfs": ["/tmp:mode=1777"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "init": True,
        "stop_grace_period": f"{settings.stop_seconds}s",
        "logging": _LOG,
    }
    if settings.cpus:
        service["cpus"] = settings.cpus
    if settings.metrics_enabled:
        address = "0.0.0.0" if settings.metrics_networks else "127.0.0.1"
        service["ports"].append(f"{address}:{settings.metrics_port}:{settings.metrics_port}")
    volumes = [f"{settings.archive_directory}:/archive"] if settings.use_game_archival and settings.archive_backend == "filesystem" else []
    volumes += [f"./ca.crt:{CA_FILE}:ro"] if settings.uses_ca else []
    if volumes:
        service["volumes"] = volumes
    needs = [name for name, runs in (("redis", settings.runs_redis), ("postgres", settings.runs_postgres)) if runs]
    if needs:
        service["depends_on"] = {name: {"condition": "service_healthy"} for name in needs}
    return service


def _redis(settings: Liap) -> dict[str, Any]:
    """For rate limits only: it forgets the oldest when it is full, so nothing that must be kept may be put in it."""
    return {
        "image": settings.redis_image,
        "command": ["redis-server", "/etc/liap/redis.conf"],
        "environment": {"REDISCLI_AUTH": settings.redis_password},
        "volumes": ["./redis.conf:/etc/liap/redis.conf:ro"],
        "tmpfs": ["/data"],
        "healthcheck": {"test": ["CMD", "redis-cli", "ping"], "interval": "10s", "timeout": "5s", "retries": 5, "start_period": "20s"},
        # its counters, and what it needs besides
        "mem_limit": f"{settings.redis_maxmemory_mb * 3 // 2 + 64}m",
        "memswap_limit": f"{settings.redis_maxmemory_mb * 3 // 2 + 64}m",
        "pids_limit": 200,
        "cap_drop": ["ALL"],
        "cap_add": _ENTRYPOINT,
        "security_opt": ["no-new-privileges:true"],
        "logging": _LOG,
    }


def _postgres(settings: Liap) -> dict[str, Any]:
    check = ["CMD", "pg_isready", "--quiet", "--username", settings.postgres_user, "--dbname", settings.postgres_db, "--host", "127.0.0.1"]
    return {
        "image": settings.postgres_image,
        "environment": {
            "POSTGRES_USER": settings.postgres_user,
            "POSTGRES_PASSWORD": settings.postgres_password,
            "POSTGRES_DB": settings.postgres_db,
        },
        "volumes": ["archive:/var/lib/postgresql/data"],
        "healthcheck": {"test": check, "interval": "10s", "timeout": "5s", "retries": 5, "start_period": "60s"},
        "mem_limit": f"{settings.postgres_memory_mb}m",
        "shm_size": "128m",
        "pids_limit": 512,
        "cap_drop": ["ALL"],
        "cap_add": _ENTRYPOINT,
        "security_opt": ["no-new-privileges:true"],
        "stop_grace_period": "60s",
        "logging": _LOG,
    }


def _stack(settings: Liap) -> None:
    compose.project(
        PROJECT,
        spec(settings),
        files=mounted(settings),
        pull=settings.pull,
        exposed=current().exposure,
        trial=["backend"] if settings.trial_enabled else [],
        drains=drains(settings),
        start_seconds=settings.start_timeout_seconds,
        name="Run the stack",
    )


def _database_password(settings: Liap) -> None:
    """
    Have the database take the password that the backend has: its image takes one when it is empty, and never again.

    After the stack: the backend that is replaced lets its games end with the old one, and those that the new one cannot archive
    for a moment wait in its memory.
    """
    backend = archive_backend(settings)
    if isinstance(backend, Postgres):
        archives.role(backend, role=settings.postgres_user, password=settings.postgres_password, name="Have the database take the password")


def _other_stacks(settings: Liap) -> None:
    """The guide's docker-compose.dev.yml and docker-compose.test.yml, for people who work on the backend."""
    if not settings.is_experimental:
        return
    dev, test = "dev" in settings.stacks, "test" in settings.stacks
    compose.project(
        f"{PROJECT}-dev",
        liap_stacks.dev(settings) if dev else None,
        files=liap_stacks.dev_files(settings) if dev else {},
        profiles=settings.stack_profiles,
        present=dev,
        name="Run the dev stack",
    )
    compose.project(
        f"{PROJECT}-test", liap_stacks.test(settings) if test else None, present=test, name="Run the test stack"
    )


# --- the web --------------------------------------------------------------------------------------------------------


def locations(settings: Liap) -> list[Location]:
    """Return what nginx passes on: everything, websockets too, but for what is the operator's."""
    everything = Location("/", upstream=PROJECT, timeout_seconds=settings.websocket_timeout_seconds, websocket=True)
    return [everything, replace(everything, path="/admin", match="first", networks=()), replace(everything, path="/metrics", networks=())]


def _site(settings: Liap) -> None:
    certificate.bootstrap(PROJECT, domains=settings.domains, name="Have a certificate to start with")
    nginx.server(name="Install nginx")
    nginx.site(
        PROJECT,
        server_names=settings.domains,
        certificate_directory=certificate.directory(PROJECT),
        # No keepalive: a connection to the backend that was replaced leads nowhere.
        upstreams=[Upstream(PROJECT, (f"127.0.0.1:{APP_PORT}",), keepalive=0)],
        locations=locations(settings),
        hsts_seconds=settings.hsts_seconds,
        max_body_size=settings.max_request_body_size,
        probe=site.probe(settings.domain, "/health/live"),
        name="Upload nginx site",
    )


# --- what is kept ---------------------------------------------------------------------------------------------------


def archive_backend(settings: Liap) -> Filesystem | Postgres | S3 | None:
    """Return where completed games are kept on this host, or in a bucket that is managed from it, if they are."""
    if settings.runs_postgres:
        return Postgres(settings.postgres_db, container=f"{PROJECT}-postgres-1", admin=settings.postgres_user)
    if settings.manages_bucket:
        keeper = (settings.s3_keeper_access_key, settings.s3_keeper_secret_key)
        keys = keeper if settings.s3_keeper_access_key else (settings.s3_access_key, settings.s3_secret_key)
        prefix = f"{settings.archive_prefix}/" if settings.archive_prefix else ""
        return S3(settings.archive_bucket, prefix, _store(settings), access_key=keys[0], secret_key=keys[1])
    return Filesystem(settings.archive_directory) if settings.keeps_archive else None


def _store(settings: Liap) -> Server:
    """Return where the bucket is, with the rights of the control side."""
    return Server(
        region=settings.s3_region, endpoint_url=settings.s3_endpoint_url, path_style=bool(settings.s3_endpoint_url),
        access_key=settings.s3_admin_access_key, secret_key=settings.s3_admin_secret_key,
    )  # fmt: skip


def _bucket(settings: Liap) -> Bucket:
    """Return what the bucket is to be, but for its lifecycle, which is the retention's."""
    if not settings.s3_endpoint_url:
        return Bucket()
    return Bucket(public_access_blocked=None, encryption=None, tls_only=settings.s3_endpoint_url.startswith("https://"))


def _archive(settings: Liap, policy: Backup) -> None:
    """The archive, where it is on this host or managed from it: its place, its backup, and what goes when its time is over."""
    backend = archive_backend(settings)
    is_kept = backend is not None and policy.enabled
    for kind in (Postgres.kind, Filesystem.kind, S3.kind):
        if not (backend and is_kept and backend.kind == kind):
            # Copies and what is archived stay.
            archives.retention(f"{ARCHIVE}-{kind}", present=False, name="Keep no limit of an archive that is elsewhere")
            backup.source(f"{ARCHIVE}-{kind}", present=False, name="Back up no archive that is elsewhere")
    if backend and is_kept:
        archive.archive(
            f"{ARCHIVE}-{backend.kind}",
            backend,
            Retention(days=settings.archive_retention_days),
            backups=policy,
            password=settings.postgres_backup_password,
            owner=USER,
            bucket=_bucket(settings),
        )
    elif isinstance(backend, Postgres):
        # Nothing goes from an archive that is not backed up.
        archives.schema(backend, name="Make the archive's schema")
