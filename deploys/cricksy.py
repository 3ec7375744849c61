"""
The cricksy OCR system as native services: PostgreSQL, Redis, Celery workers with Tesseract, an API behind nginx, Flower.

Read top to bottom, it is the run book: what a host does of it, its groups say. What each step guards against is told in
docs/cricksy.md.
"""

from __future__ import annotations

import json
import shlex

from pyinfra import host, logger
from pyinfra.api import DeployError, deploy
from pyinfra.operations import server

from deploys import current
from deploys.fleet import all_well, first_of
from facts.celery import CeleryWorkers
from facts.rollout import Rollout
from operations import (
    backup,
    celery,
    certificate,
    dpkg,
    fileset,
    nginx,
    pgcluster,
    redis,
    release,
    rollout,
    s3,
    schedule,
    script,
    template,
    tesseract,
    unit,
)
from operations.backup import TEXTFILES
from operations.fileset import Absent, Directory, Entry, File
from operations.nginx import Location, RateLimit, Upstream
from operations.schedule import Sandbox
from settings import Backup, Certificate, Cricksy
from settings.cricksy import CA_FILE, GROUPS
from settings.env import render
from settings.s3 import Bucket, Cors, Lifecycle, Server
from settings.secret import Secret

USER = "cricksy"
APP_ROOT = "/opt/cricksy"
API, WORKER, FLOWER = "cricksy-api", "cricksy-worker", "cricksy-flower"
BROKER, CACHE = "cricksy-broker", "cricksy-cache"
BACKUP_ROLE = "hostwright_backup"
FLOWER_PORT = 5555
HEALTH = "/usr/local/bin/cricksy-health"
MIGRATE = "/usr/local/lib/hostwright/cricksy-migrate"


@deploy("cricksy")
def cricksy() -> None:
    """Converge one host to its part of the cricksy system."""
    settings = current().cricksy
    if settings is None:
        return
    _databases(settings)
    _bucket(settings)
    _release(settings)
    all_well("cricksy", GROUPS, name="See that all hosts are ready for the migration")
    _migrate(settings)
    all_well("cricksy", GROUPS, name="See that all hosts are ready for the release")
    # Whoever takes a task comes before whoever makes one.
    _workers(settings)
    all_well("cricksy", GROUPS, name="See that all workers are well")
    _api(settings)
    _flower(settings)
    _health(settings)
    _backup(settings, current().backup)
    # Last, since it needs nginx to answer from outside: where it fails, all else is done and served self-signed.
    _certificates(settings, current().certificate)


# --- by hand --------------------------------------------------------------------------------------------------------


@deploy("cricksy rollback")
def rollback() -> None:
    """
    Go back to what ran before: the API first, which makes tasks, then the workers. The database stays migrated.

    The inventory still names the newer version: the next converge goes forward again, unless it is changed.
    """
    settings = current().cricksy
    if settings is None:
        return
    if "api" in settings.roles:
        rollout.rollback(
            API,
            probe=_probe(settings),
            start_seconds=settings.start_timeout_seconds,
            settle_seconds=settings.settle_seconds,
            drain_seconds=settings.drain_seconds,
            keep=settings.keep_releases,
            name="Roll back the API",
        )
    all_well("cricksy", GROUPS, name="See that the API is well")
    if "worker" in settings.roles:
        celery.rollback(WORKER, name="Roll back the workers")


@deploy("cricksy scale")
def scale(count: int = -1) -> None:
    """
    Run another number of workers on each host of cricksy_worker: `count=4`. None loses a task.

    The next converge goes by the setting again: change `cricksy_worker_instances` too, to keep it.
    Raises DeployError for a number that is none.
    """
    settings = current().cricksy
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= 64:
        raise DeployError(f"cricksy.scale: count must be 0 to 64, got {count!r}")
    if settings is not None and "worker" in settings.roles:
        _workers(settings, count)


@deploy("cricksy status")
def status() -> None:
    """Say what runs on each host, how well, and what a rollback would go to. Changes nothing."""
    settings = current().cricksy
    if settings is None:
        return
    lines = []
    if "api" in settings.roles:
        found = host.get_fact(Rollout, app=API)
        for (colour, _), state in sorted(found.colours.items()):
            stored = found.stored.get(state.spec)
            role = "serves" if colour == found.active else "idle"
            lines.append(f"api {colour}: {role}, {state.state}, {stored.release if stored else 'changed by hand'}")
        if found.previous:
            lines.append(f"api: rollback goes to {found.stored[found.previous].release}")
    if "worker" in settings.roles:
        workers = host.get_fact(CeleryWorkers, app=WORKER)
        for number, one in sorted(workers.workers.items()):
            lines.append(f"worker {number}: {one.state}{'' if one.fits else ', started with other files than stand there'}")
        lines.append(f"worker: {settings.worker_instances} are wanted, rollback is {'possible' if workers.previous else 'not possible'}")
    for line in lines:
        logger.info(f"    [{host.name}] {line}")


# --- databases ------------------------------------------------------------------------------------------------------


def _databases(settings: Cricksy) -> None:
    addresses = [settings.infra_address] if settings.infra_address else []
    if settings.runs_postgres:
        pgcluster.cluster(
            port=settings.postgres_port,
            addresses=addresses,
            networks=settings.infra_networks if addresses else (),
            tls=pgcluster.Tls(settings.infra_certificate.unmask(), settings.infra_key) if addresses else None,
            memory_mb=settings.postgres_memory_mb,
            name="Run PostgreSQL",
        )
        pgcluster.database(
            settings.postgres_database,
            owner=pgcluster.Role(settings.postgres_owner, settings.postgres_owner_password),
            roles=[pgcluster.Role(settings.postgres_user, settings.postgres_password)],
            former=settings.postgres_former_roles,
            guests=[BACKUP_ROLE],
            name="Make the database and its roles",
        )
    if settings.runs_redis:
        tls = redis.Tls(settings.infra_certificate.unmask(), settings.infra_key) if addresses else None
        users = [redis.User(settings.redis_user, settings.redis_password)]
        redis.instance(
            BROKER,
            password=settings.redis_admin_password,
            users=users,
            port=settings.redis_port,
            addresses=addresses,
            tls=tls,
            maxmemory_mb=settings.broker_maxmemory_mb,
            name="Run the broker",
        )
        redis.instance(
            CACHE,
            password=settings.redis_admin_password,
            users=users,
            port=settings.redis_cache_port,
            addresses=addresses,
            tls=tls,
            maxmemory_mb=settings.cache_maxmemory_mb,
            policy="allkeys-lru",
            append_only=False,
            name="Run the Redis of Socket.IO",
        )


def bucket(settings: Cricksy) -> tuple[Server, Bucket]:
    """Return where the bucket is, and what it is to be: private, whatever the guide says of presigned URLs."""
    endpoint = settings.s3_endpoint_url
    where = Server(
        region=settings.s3_region,
        endpoint_url=endpoint,
        path_style=bool(endpoint),
        access_key=settings.s3_admin_access_key,
        secret_key=settings.s3_admin_secret_key,
    )
    like_aws = settings.s3_is_aws_like
    return where, Bucket(
        public_access_blocked=True if like_aws else None,
        encryption="AES256" if like_aws else None,
        cors=[Cors(settings.cors_origins)] if settings.cors_origins else (),
        lifecycle=[Lifecycle()],
        tls_only=not endpoint.startswith("http://"),
    )


def _bucket(settings: Cricksy) -> None:
    if settings.s3_manage_bucket and host.name == first_of("cricksy_api"):
        where, wanted = bucket(settings)
        s3.bucket(settings.s3_bucket, where, wanted, name="Make the bucket")


# --- a release ------------------------------------------------------------------------------------------------------


def _source(settings: Cricksy) -> release.Source:
    return release.GitSource(settings.repository, settings.version)


def release_directory(settings: Cricksy) -> str:
    """Return where the release stands that is wanted."""
    return release.release_path(APP_ROOT, _source(settings), settings.requirements, settings.python)


def _release(settings: Cricksy) -> None:
    if not settings.runs_application:
        return
    dpkg.packages(["ca-certificates", "curl", "git", "python3-venv"], name="Install packages")
    server.user(  # noqa: S604 (a login shell, not a subprocess)
        USER,
        system=True,
        home="/nonexistent",
        create_home=False,
        ensure_home=False,
        shell="/usr/sbin/nologin",
        name="Create service user",
    )
    if "worker" in settings.roles:
        tesseract.languages(settings.tesseract_languages, user=USER, name="Install Tesseract")
    ca: Entry = File(CA_FILE, settings.infra_ca.unmask()) if settings.uses_ca else Absent(CA_FILE)
    fileset.files([Directory("/etc/cricksy"), ca], name="Upload the databases' authority")
    release.release(
        APP_ROOT,
        _source(settings),
        requirements=settings.requirements,
        python=settings.python,
        keep=settings.keep_releases,
        name="Build release",
    )


def _where(settings: Cricksy) -> dict[str, str]:
    """Return what every unit of the release is written with."""
    built = release_directory(settings)
    return {"user": USER, "release": built, "directory": f"{built}/src/{settings.directory}"}


def _environment(settings: Cricksy, owner: bool = False, **more: str | Secret) -> Secret:
    return Secret(render({**settings.environment(owner), **more}, consumer="systemd"))


def migration(settings: Cricksy) -> str:
    """Return the command that migrates, alone on its host; the application's own lock is for all others."""
    where = _where(settings)
    return shlex.join([MIGRATE, USER, where["release"], where["directory"]])


def _migrate(settings: Cricksy) -> None:
    if settings.migrate and host.name == first_of("cricksy_api") and "api" in settings.roles:
        fileset.files(
            [
                Directory("/var/lib/hostwright", mode="0700"),
                File(MIGRATE, (script.FILES / "cricksy/migrate.sh").read_text(), mode="0755"),
                File("/etc/cricksy/migrate.env", _environment(settings, owner=True), mode="0600"),
                File("/etc/cricksy/migrated", release_directory(settings) + "\n"),
            ],
            apply=migration(settings),
            name="Migrate the database",
        )


def worker_service(settings: Cricksy) -> str:
    """Return the template of the workers' units."""
    return template.render(
        f"cricksy/{WORKER}@.service.j2",
        celery_app=settings.celery_app,
        log_level=settings.log_level,
        prefetch_multiplier=settings.worker_prefetch_multiplier,
        max_tasks_per_child=settings.worker_max_tasks_per_child,
        time_limit=settings.task_time_limit,
        soft_time_limit=settings.task_soft_time_limit,
        memory_max=settings.worker_memory_max,
        **celery.names(WORKER),
        **_where(settings),
    )


def _workers(settings: Cricksy, count: int | None = None) -> None:
    if "worker" not in settings.roles:
        return
    where = _where(settings)
    celery.workers(
        WORKER,
        service=worker_service(settings),
        environment=_environment(settings),
        workers=[celery.Worker(queues, concurrency) for queues, concurrency in settings.workers(count)],
        program=celery.Program(f"{where['release']}/venv/bin/python", settings.celery_app, where["directory"], USER),
        start_seconds=settings.worker_start_seconds,
        name="Roll out workers",
    )


# --- what is asked --------------------------------------------------------------------------------------------------


def _probe(settings: Cricksy) -> str:
    """The health check as a client makes it: name, TLS, nginx. Who signed the certificate is not its question."""
    url = f"https://{settings.domain}{settings.health_path}"
    return shlex.join(["curl", "-fsSk", "-o", "/dev/null", "-m", "10", "--resolve", f"{settings.domain}:443:127.0.0.1", url])


def api_service(settings: Cricksy) -> str:
    """Return the unit of either colour of the API."""
    return template.render(
        f"cricksy/{API}.service.j2",
        application=settings.app,
        drain_seconds=settings.drain_seconds,
        log_level=settings.log_level,
        **rollout.names(API, "systemd"),
        **_where(settings),
    )


def locations(settings: Cricksy) -> list[Location]:
    """Return what nginx passes on: everything, with a limit on announcing uploads."""
    everything = Location("/", upstream=API, timeout_seconds=settings.request_timeout_seconds, websocket=True)
    found = [everything]
    if settings.initiate_per_minute:
        limit = RateLimit(per_minute=settings.initiate_per_minute, burst=settings.initiate_burst)
        found.append(
            Location(
                settings.initiate_path, match="exact", upstream=API, timeout_seconds=settings.request_timeout_seconds, rate_limit=limit
            )
        )
    return found


def _api(settings: Cricksy) -> None:
    if "api" not in settings.roles or settings.domain is None:
        return
    certificate.bootstrap(API, domains=[settings.domain], name="Have a certificate to start with")
    nginx.server(name="Install nginx")
    nginx.site(
        API,
        server_names=[settings.domain],
        certificate_directory=certificate.directory(API),
        # No keepalive: after a switch, an idle connection would still lead to the colour that goes.
        upstreams=[Upstream(API, (rollout.upstream(API),), keepalive=0)],
        locations=locations(settings),
        hsts_seconds=settings.hsts_seconds,
        name="Upload nginx site",
    )
    rollout.rollout(
        API,
        service=api_service(settings),
        environment=_environment(settings),
        release=release_directory(settings),
        health_path=settings.health_path,
        probe=_probe(settings),
        start_seconds=settings.start_timeout_seconds,
        settle_seconds=settings.settle_seconds,
        drain_seconds=settings.drain_seconds,
        keep=settings.keep_releases,
        name="Roll out the API",
    )


def has_flower(settings: Cricksy) -> bool:
    """Whether Flower runs on this host: on the first one of the API alone."""
    return bool(settings.flower_domain) and "api" in settings.roles and host.name == first_of("cricksy_api")


def _flower(settings: Cricksy) -> None:
    if not has_flower(settings) or settings.flower_domain is None:
        return
    login = Secret(f"{settings.flower_user}:{settings.flower_password.unmask()}")
    service, probe = f"{FLOWER}.service", f"curl -fsS -o /dev/null http://127.0.0.1:{FLOWER_PORT}/healthcheck"
    fileset.files(
        [
            File("/etc/cricksy-flower/env", _environment(settings, FLOWER_BASIC_AUTH=login), mode="0600"),
            File(
                f"/etc/systemd/system/{service}",
                template.render(f"cricksy/{FLOWER}.service.j2", celery_app=settings.celery_app, port=FLOWER_PORT, **_where(settings)),
            ),
        ],
        unit=service,
        probe=probe,
        probe_seconds=60,
        name="Upload Flower's unit",
    )
    unit.unit(service, probe=probe, probe_seconds=60, name="Run Flower")
    certificate.bootstrap(FLOWER, domains=[settings.flower_domain], name="Have a certificate for Flower")
    nginx.site(
        FLOWER,
        server_names=[settings.flower_domain],
        certificate_directory=certificate.directory(FLOWER),
        upstreams=[Upstream(FLOWER, (f"127.0.0.1:{FLOWER_PORT}",), keepalive=0)],
        locations=[Location("/", upstream=FLOWER, websocket=True, networks=tuple(settings.flower_networks))],
        hsts_seconds=settings.hsts_seconds,
        name="Upload Flower's site",
    )


def health(settings: Cricksy) -> str:
    """Return what `cricksy-health` reads: what there is to ask, and what is too much."""
    queues = sorted({queue for queues, _ in settings.workers(max(1, settings.worker_instances)) for queue in queues})
    values = {
        "domain": settings.domain if "api" in settings.roles else "",
        "health_path": settings.health_path,
        "queues": queues,
        "counts": settings.health_counts,
        "most_waiting": settings.health_most_waiting,
        "memory_share": settings.health_memory_percent / 100,
    }
    return json.dumps(values, indent=1) + "\n"


def _health(settings: Cricksy) -> None:
    if not settings.runs_application:
        return
    files = script.FILES / "cricksy"
    fileset.files(
        [
            File(HEALTH, (files / "cricksy-health.sh").read_text(), mode="0755"),
            File("/usr/local/lib/hostwright/cricksy-health.py", (files / "health.py").read_text()),
            File("/etc/cricksy/health.json", health(settings)),
            File("/etc/cricksy/health.python", f"{release_directory(settings)}/venv/bin/python\n"),
            File("/etc/cricksy/health.env", _environment(settings), mode="0600"),
        ],
        name="Upload the health check",
    )
    schedule.job(
        "cricksy-health",
        command=[HEALTH, "--textfile", TEXTFILES],
        when="*:0/5",
        timeout_seconds=180,
        sandbox=Sandbox(writable=[TEXTFILES]),
        description="health of cricksy, for monitoring",
        name="Schedule the health check",
    )


# --- afterwards -----------------------------------------------------------------------------------------------------


def _backup(settings: Cricksy, policy: Backup) -> None:
    users = [f"{API}-blue.service", f"{API}-green.service", f"{WORKER}@*.service"]
    if settings.runs_postgres:
        reader = settings.postgres_backup_password
        backup.source(
            "cricksy",
            policy=policy,
            kind="postgres",
            server=backup.Postgres(
                settings.postgres_database, user=BACKUP_ROLE, password=reader, host="127.0.0.1", port=settings.postgres_port, owner=settings.postgres_owner
            ),
            units=users,
            present=policy.enabled,
            name="Back up the database",
        )
    if settings.runs_redis:
        backup.source(
            BROKER,
            policy=policy,
            kind="redis",
            server=backup.Redis(BROKER, settings.redis_admin_password),
            units=[f"{WORKER}@*.service"],
            present=policy.enabled,
            name="Back up the broker",
        )


def _certificates(settings: Cricksy, wanted: Certificate) -> None:
    if "api" not in settings.roles or settings.domain is None:
        return
    certificate.certificate(
        API,
        domains=[settings.domain],
        email=wanted.email or "",
        directory=wanted.acme_directory,
        challenge=wanted.challenge,
        ca_bundle=wanted.ca_bundle,
        dns_plugin=wanted.dns_plugin,
        dns_credentials=wanted.dns_credentials,
        present=wanted.mode == "acme",
        name="Get certificate",
    )
    if has_flower(settings) and settings.flower_domain:
        certificate.certificate(
            FLOWER,
            domains=[settings.flower_domain],
            email=wanted.email or "",
            directory=wanted.acme_directory,
            challenge=wanted.challenge,
            ca_bundle=wanted.ca_bundle,
            dns_plugin=wanted.dns_plugin,
            dns_credentials=wanted.dns_credentials,
            present=wanted.mode == "acme",
            name="Get Flower's certificate",
        )
