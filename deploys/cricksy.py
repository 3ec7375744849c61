"""
The cricksy OCR system as native services: PostgreSQL, Redis, Celery workers with Tesseract, an API behind nginx, Flower.

Read top to bottom, it is the run book: what a host does of it, its groups say. What each step guards against is told in
docs/cricksy.md.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Generator
from dataclasses import replace

from pyinfra import host, logger
from pyinfra import state as run_state
from pyinfra.api import DeployError, FactBase, StringCommand, deploy, operation
from pyinfra.operations import server

from deploys import cricksy_container, current, site
from deploys.fleet import all_well, first_of
from deploys.monitoring import redis_users
from facts.celery import CeleryWorkers
from facts.replicas import Replicas
from facts.rollout import Rollout
from operations import (
    backup,
    celery,
    certificate,
    container,
    dpkg,
    fileset,
    nginx,
    pgcluster,
    redis,
    release,
    replicas,
    rollout,
    s3,
    schedule,
    script,
    template,
    tesseract,
    unit,
)
from operations.backup import TEXTFILES
from operations.container import Spec
from operations.fileset import Absent, Directory, Entry, File
from operations.nginx import Location, RateLimit, Upstream
from operations.schedule import Sandbox
from settings import Backup, Cricksy
from settings.cricksy import CA_FILE, GROUPS, KEY_FILE
from settings.env import render
from settings.s3 import Access, Bucket, Cors, KeyFile, Lifecycle, Server
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
    _key(settings)
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
    if "api" in settings.roles and settings.domain is not None:
        site.get_certificate(API, [settings.domain])
        if has_flower(settings) and settings.flower_domain:
            site.get_certificate(FLOWER, [settings.flower_domain], name="Get Flower's certificate")


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
            probe=site.probe(settings.domain or "", settings.health_path),
            start_seconds=settings.start_timeout_seconds,
            settle_seconds=settings.settle_seconds,
            drain_seconds=settings.drain_seconds,
            keep=settings.keep_releases,
            name="Roll back the API",
        )
    all_well("cricksy", GROUPS, name="See that the API is well")
    if settings.runs_containers:
        replicas.rollback(WORKER, name="Roll back the workers' containers")
    elif "worker" in settings.roles:
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
    if settings.runs_containers:
        there = host.get_fact(Replicas, component=WORKER)
        lines += [f"worker {one.name}: {', '.join(word for word in (one.state, one.health) if word)}" for one in there.instances]
        lines.append(f"worker: {settings.worker_instances} are wanted, rollback is {'possible' if there.previous else 'not possible'}")
    elif "worker" in settings.roles:
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
            extensions=settings.postgres_extensions,
            former=settings.postgres_former_roles,
            guests=[BACKUP_ROLE],
            name="Make the database and its roles",
        )
    if settings.runs_redis:
        tls = redis.Tls(settings.infra_certificate.unmask(), settings.infra_key) if addresses else None
        former = [settings.redis_former_password] if settings.redis_former_password else []
        users = [redis.User(settings.redis_user, settings.redis_password, former=former), *redis_users(current())]
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


def store(settings: Cricksy) -> Server:
    """Return where the bucket is, with the rights of the control side."""
    return Server(
        region=settings.s3_region,
        endpoint_url=settings.s3_endpoint_url,
        path_style=bool(settings.s3_endpoint_url),
        access_key=settings.s3_admin_access_key,
        secret_key=settings.s3_admin_secret_key,
    )


def bucket(settings: Cricksy) -> Bucket:
    """Return what the bucket is to be: private, whatever the guide says of presigned URLs."""
    like_aws = settings.s3_is_aws_like
    return Bucket(
        public_access_blocked=True if like_aws else None,
        encryption=("aws:kms" if settings.s3_kms_key else "AES256") if like_aws else None,
        kms_key=settings.s3_kms_key,
        versioning=settings.s3_versioning,
        cors=[Cors(settings.cors_origins)] if settings.cors_origins else (),
        lifecycle=[Lifecycle(expire_days=settings.s3_expire_days, expire_noncurrent_days=settings.s3_expire_noncurrent_days)],
        tls_only=not settings.s3_endpoint_url.startswith("http://"),
    )


def _bucket(settings: Cricksy) -> None:
    if settings.s3_manage_bucket and host.name == first_of("cricksy_api"):
        s3.bucket(settings.s3_bucket, store(settings), bucket(settings), name="Make the bucket")
        if settings.s3_replicate_to:
            there = replace(store(settings), region=settings.s3_replicate_region)
            s3.bucket(settings.s3_replicate_to, there, replace(bucket(settings), cors=()), name="Make the bucket of the copies")
            s3.replication(
                settings.s3_bucket,
                to=settings.s3_replicate_to,
                role=f"{settings.s3_bucket[:51]}-replication",
                server=store(settings),
                to_server=there,
                name="Copy the bucket to the other region",
            )


# --- the host's key of the bucket ------------------------------------------------------------------------------------


def key_user(settings: Cricksy) -> str:
    """Return the name of this host's IAM user."""
    return f"{settings.s3_user_prefix}{host.name}"


def key_file(settings: Cricksy) -> KeyFile:
    """Return where this host's key stands, when it is replaced, and who runs with it."""
    return KeyFile(
        KEY_FILE,
        access_variable="CRICKSY_S3_ACCESS_KEY",
        secret_variable="CRICKSY_S3_SECRET_KEY",
        rotate_days=settings.s3_key_days,
        rotate_before=settings.s3_key_before,
        units=(f"{API}-blue.service", f"{API}-green.service", f"{WORKER}@*.service", f"{FLOWER}.service"),
        restarts=False,
        keep_seconds=settings.key_keep_seconds,
    )


def access(settings: Cricksy) -> Access:
    """Return what this host's user may do: the API what the guide's policy allows, a worker less."""
    may = ("read", "write", "delete", "list") if "api" in settings.roles else settings.s3_worker_access
    return Access(
        settings.s3_bucket,
        read="read" in may,
        write="write" in may,
        delete="delete" in may,
        list_keys="list" in may,
        kms_key=settings.s3_kms_key,
    )


def _key(settings: Cricksy) -> None:
    """A user for each host: what one host lost is one host's key, and no secret goes from one to another."""
    if not settings.runs_application:
        return
    if settings.s3_manage_users:
        s3.user(
            key_user(settings),
            key_file(settings),
            access=[access(settings)],
            server=store(settings),
            name="Give the host its key of the bucket",
        )
    else:
        fileset.files([Absent(KEY_FILE)], name="Have no key of the host's own")


def _key_is_due(settings: Cricksy) -> bool:
    """Whether, in a plan, the host is about to get a key that its units do not run with yet."""
    if run_state.is_executing or not settings.s3_manage_users:
        return False
    return s3.is_due(key_user(settings), key_file(settings), store(settings))


class KeyUsed(FactBase[bool]):
    """Whether the colour of the API that serves was started with the key that stands on the host."""

    def command(self, app: str) -> str:
        return (
            f"colour=$(readlink /etc/{app}/active.sock 2>/dev/null | sed -n 's|^/run/{app}-\\([a-z]*\\)/app.sock$|\\1|p'); "
            f'[ -z "$colour" ] || {{ sha256sum <{KEY_FILE}; cat "/run/hostwright/{app}-$colour.key"; }} 2>/dev/null | uniq -c; :'
        )

    @staticmethod
    def default() -> bool:
        return True

    def process(self, output: list[str]) -> bool:
        return len(output) == 1 and output[0].split()[:1] == ["2"]


@operation()
def api_rollout(settings: Cricksy) -> Generator[StringCommand, None, None]:
    """
    Serve the API in its present spec and with the host's present key.

    + settings: of the host

    The key is none of the spec: going back to an older release must not go back to a key that is gone. So where the serving
    colour was started with another one, it is taken as started with something else, and the other colour takes over.
    """
    stamps = " ".join(f"/run/hostwright/{API}-{colour}.started" for colour in ("blue", "green"))
    if settings.s3_manage_users and (_key_is_due(settings) or not host.get_fact(KeyUsed, app=API)):
        yield StringCommand(f"rm -f {stamps}")
    yield from rollout.rollout._inner(
        app=API,
        service=api_service(settings),
        environment=_environment(settings),
        release=release_directory(settings),
        health_path=settings.health_path,
        probe=site.probe(settings.domain or "", settings.health_path),
        start_seconds=settings.start_timeout_seconds,
        settle_seconds=settings.settle_seconds,
        drain_seconds=settings.drain_seconds,
        keep=settings.keep_releases,
    )


@operation()
def worker_rollout(settings: Cricksy, count: int | None = None) -> Generator[StringCommand, None, None]:
    """
    Run the host's workers in their present spec and with the host's present key.

    + settings: of the host; + count: instances; None: what the settings say
    """
    if settings.runs_containers:
        yield from _containers(settings, count)
        return
    if _key_is_due(settings):
        # never run: a plan ends here, and says that the workers are started anew
        yield StringCommand("false")
    yield from _units(settings, settings.workers(count))
    # afterwards: who takes tasks is never nobody
    if host.get_fact(Replicas, component=WORKER).release:
        yield from replicas.workers._inner(component=WORKER, present=False)


def _containers(settings: Cricksy, count: int | None) -> Generator[StringCommand, None, None]:
    yield from replicas.workers._inner(
        component=WORKER,
        spec=container_spec(settings),
        count=settings.worker_instances if count is None else count,
        quiesce=cricksy_container.ask("quiesce"),
        busy=cricksy_container.ask("busy"),
        start_seconds=settings.worker_start_seconds,
        settle_seconds=settings.settle_seconds,
        drain_seconds=settings.task_time_limit + 30,
        keep=settings.keep_releases,
    )
    if host.get_fact(CeleryWorkers, app=WORKER).workers:
        yield from _units(settings, [])


def container_spec(settings: Cricksy) -> Spec:
    """Return what a worker's container is to be."""
    return cricksy_container.spec(settings, Secret(render(settings.environment(), consumer="docker")))


def _units(settings: Cricksy, wanted: list[tuple[tuple[str, ...], int]]) -> Generator[StringCommand, None, None]:
    where = _where(settings)
    yield from celery.workers._inner(
        app=WORKER,
        service=worker_service(settings),
        environment=_environment(settings),
        workers=[celery.Worker(queues, concurrency) for queues, concurrency in wanted],
        program=celery.Program(
            f"{where['release']}/venv/bin/python",
            settings.celery_app,
            where["directory"],
            USER,
            env_files=(settings.key_file,) if settings.key_file else (),
        ),
        start_seconds=settings.worker_start_seconds,
    )


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
    if settings.runs_containers and settings.worker_image:
        container.pulled([settings.worker_image], name="Pull the workers' image")
    elif "worker" in settings.roles:
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
    return {
        "user": USER,
        "release": built,
        "directory": f"{built}/src/{settings.directory}",
        "key_file": settings.key_file,
        "key_stamp": key_file(settings).stamp if settings.s3_manage_users else "",
    }


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
        **celery.names(WORKER, (settings.key_file,) if settings.key_file else ()),
        **_where(settings),
    )


def _workers(settings: Cricksy, count: int | None = None) -> None:
    if "worker" not in settings.roles:
        return
    worker_rollout(settings, count, name="Roll out workers")


# --- what is asked --------------------------------------------------------------------------------------------------


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
    api_rollout(settings, name="Roll out the API")


def has_flower(settings: Cricksy) -> bool:
    """Whether Flower runs on this host: on the first one of the API alone."""
    return bool(settings.flower_domain) and "api" in settings.roles and host.name == first_of("cricksy_api")


@operation()
def flower_unit(settings: Cricksy, service: str, probe: str) -> Generator[StringCommand, None, None]:
    """
    Run Flower with the host's present key.

    + settings: of the host; + service: the unit; + probe: see ``unit.unit``
    """
    if _key_is_due(settings):
        yield StringCommand("false")  # never run, see worker_rollout
    inputs = [settings.key_file] if settings.key_file else []
    yield from unit.unit._inner(unit=service, inputs=inputs, probe=probe, probe_seconds=60)


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
    flower_unit(settings, service, probe, name="Run Flower")
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
        "figures": settings.health_figures,
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
    if host.name == (first_of("cricksy_infra") or first_of("cricksy_api")) and settings.backup_key[0]:
        backup.source(
            "cricksy-uploads",
            policy=policy,
            kind="bucket",
            server=backup_bucket(settings),
            minimum={"objects": settings.s3_backup_least_objects} if settings.s3_backup_least_objects else None,
            present=policy.enabled and settings.s3_backup,
            name="Back up the bucket",
        )


def backup_bucket(settings: Cricksy) -> backup.Bucket:
    """Return the bucket as the host that backs it up reaches it."""
    ending = ".cn" if settings.s3_region.startswith("cn-") else ""
    access_key, secret_key = settings.backup_key
    return backup.Bucket(
        bucket=settings.s3_bucket,
        endpoint=settings.s3_endpoint_url or f"https://s3.{settings.s3_region}.amazonaws.com{ending}",
        access_key=access_key,
        secret_key=secret_key,
        region=settings.s3_region,
    )

