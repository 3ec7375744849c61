"""
The mcbench fleet in containers: databases, migrations, workers, APIs, and nginx in front of them.

Read top to bottom, it is the run book: what a host does of it, its groups say. What each step guards against is told in
docs/mcbench.md.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pyinfra import host, logger
from pyinfra.api import DeployError, FactBase, StringCommand, deploy, operation
from pyinfra.context import ctx_state

from deploys import current, fleet, mcbench_external, mcbench_health, mcbench_retired, site
from deploys.mcbench_store import buckets
from facts.replicas import Replicas
from operations import backup, certificate, cleanup, container, dpkg, nginx, replicas
from operations.container import Health, Log, Mount, Network, Publish, Spec
from operations.nginx import Location, RateLimit, Upstream
from settings import Backup, Mcbench
from settings.env import render
from settings.mcbench import CA_DIRECTORY, GROUPS, RENDER_PLATFORM, SERVICES, WEB, WORKERS
from settings.secret import Secret

NETWORK = "mcbench"
LOOPBACK = "127.0.0.1"
JOBS = "mcbench-jobs"
JOB_LABEL = "mcbench.job"
SOCKET = "/var/run/docker.sock"
WEB_PORT = 8000
FLOWER_PORT = 5555
# First port on loopback of either colour of the APIs: instance n of a colour listens on the n-th port after it.
PORTS = {"api": (18000, 18100), "admin-api": (18200, 18300)}

# nginx allows this much more than the application, so that clients read the application's own 413.
_BODY_MARGIN = 64 * 1024
_ASK = (Path(__file__).parents[1] / "files/mcbench/worker.py").read_text()
# What the entrypoints of database images need while they are root: to hand their volume to a user, and to become it.
_ENTRYPOINT = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID")


def name(component: str) -> str:
    """Return what a component's containers, network names and sites are called on a host."""
    return f"mcbench-{component}"


@deploy("mcbench preflight")
def preflight() -> None:
    """Refuse a host that external services do not let in, or that holds data in the wrong place; changes nothing."""
    settings = current().mcbench
    if settings is not None:
        _left_behind(settings)
        _external(settings)


@deploy("mcbench")
def mcbench() -> None:
    """Converge one host to its part of the mcbench fleet."""
    settings = current().mcbench
    if settings is None:
        return
    _left_behind(settings)
    _ground(settings)
    # Asked before, but not of a host that had no python3 then.
    _external(settings)
    _health_page(settings)
    _services(settings)
    _images(settings)
    all_well(name="See that all hosts are ready for the migration")
    _migrate(settings)
    all_well(name="See that all hosts are ready for the release")
    # Whoever takes a task comes before whoever makes one: a worker throws away what it does not know.
    _workers(settings, "server-worker")
    _workers(settings, "render-worker")
    _workers(settings, "admin-worker")
    all_well(name="See that those are well whose tasks others make")
    _workers(settings, "worker")
    all_well(name="See that all workers are well")
    _web(settings)
    _admin_api(settings)
    all_well(name="See that the admin-api is well")
    _api(settings)
    all_well(name="See that the api is well")
    # Before it starts elsewhere: two would send every task twice.
    mcbench_retired.retired(settings.components, of=["scheduler"], name="Retire a scheduler that this host should not run")
    _scheduler(settings)
    _flower(settings)
    all_well(name="See that what takes over is well")
    mcbench_retired.retired(settings.components, name="Retire what this host should not run")
    if not settings.external_ca:
        # by now no container reads them
        mcbench_external.trusted("", name="Remove the certificates of external services")
    _cleanup(settings)
    _backup(settings, current().backup)
    # Last, since it needs nginx to answer from outside: where it fails, all else is done and served self-signed.
    if "admin" in settings.roles:
        site.get_certificate(name("admin"), admin_domains(settings), name="Get the certificate of the admin sites")
    if "api" in settings.roles:
        site.get_certificate(name("api"), settings.api_domains, name="Get the certificate of the api")


# --- by hand --------------------------------------------------------------------------------------------------------


@deploy("mcbench status")
def status() -> None:
    """Say what runs of each component, how well, and what a rollback would go to. Changes nothing."""
    settings = current().mcbench
    lines = [line for component in settings.components for line in component_status(settings, component)] if settings else []
    for line in [*lines, *retirement_status(settings.components if settings else ())]:
        logger.info(f"    [{host.name}] {line}")


def component_status(settings: Mcbench, component: str) -> list[str]:
    """Return the lines about one component on this host."""
    if component in (*SERVICES, "scheduler", "admin-flower"):
        found = host.get_fact(Containers, names=[name(component)]).get(name(component), "is not there")
        return [f"{component}: {found}"]
    state = host.get_fact(Replicas, component=name(component))
    if state.fault:
        return [f"{component}: cannot be asked: {state.fault}"]
    if not state.release:
        return [f"{component}: nothing is rolled out"]
    wanted = settings.count(component)
    well = [one for one in state.instances if one.release == state.release and one.state == "running" and one.health in ("", "healthy")]
    lines = [f"{component}: release {state.release}, {len(well)} of {wanted} well, {settings.image(component)} is wanted"]
    lines += [
        f"{component}: {one.name} is {one.state}{' and ' + one.health if one.health else ''}"
        for one in state.instances
        if one not in well
    ]
    if state.previous:
        lines.append(f"{component}: rollback goes to release {state.previous}")
    return lines


def retirement_status(wanted: Sequence[str]) -> list[str]:
    """Return the lines about what is on this host and should not be."""
    found = host.get_fact(mcbench_retired.PartsThere)
    how = "the next converge retires it" if wanted else "deploys.mcbench.retire retires it"
    return [
        *(f"{one}: is here, and this host should not run it: {how}" for one in mcbench_retired.leftovers(found, wanted)),
        *mcbench_retired.data_lines(found, wanted),
    ]


@deploy("mcbench retire")
def retire() -> None:
    """
    Drain and take away what a host should not run any more: for one that has left all groups of the fleet.

    Each converge does it for the hosts that are still in one. Databases, Redis and the object store are named and stay, as
    do all volumes.
    """
    settings = current().mcbench
    wanted = settings.components if settings else ()
    mcbench_retired.retired(wanted, name="Retire what this host should not run")
    for line in mcbench_retired.data_lines(host.get_fact(mcbench_retired.PartsThere), wanted):
        logger.warning(f"    [{host.name}] {line}")


@deploy("mcbench rollback")
def rollback() -> None:
    """
    Go back to what ran before on every component: image, variables, limits; who makes tasks before who takes them.

    The database stays migrated. The inventory still names the newer version: the next converge goes forward again, unless
    it is changed. Flower and the scheduler have no past of their own: a converge with the older version brings theirs.
    """
    settings = current().mcbench
    if settings is None:
        return
    if "api" in settings.components:
        replicas.rollback(name("api"), name="Roll back api", _parallel=settings.batch)
    if "admin-api" in settings.components:
        replicas.rollback(name("admin-api"), name="Roll back admin-api", _parallel=settings.batch)
    all_well(name="See that the APIs are well")
    if "worker" in settings.components:
        replicas.rollback(name("worker"), name="Roll back worker", _parallel=settings.batch)
    all_well(name="See that the workers are well which make tasks")
    if "admin-worker" in settings.components:
        replicas.rollback(name("admin-worker"), name="Roll back admin-worker", _parallel=settings.batch)
    if "render-worker" in settings.components:
        replicas.rollback(name("render-worker"), name="Roll back render-worker", _parallel=settings.batch)
    if "server-worker" in settings.components:
        replicas.rollback(name("server-worker"), name="Roll back server-worker", _parallel=settings.batch)


@deploy("mcbench scale")
def scale(component: str = "", count: int = 0) -> None:
    """
    Run another number of containers of one component on each of its hosts: `component=worker count=4`.

    The next converge goes by the setting again: change `mcbench_worker_count` too, to keep it.
    Raises DeployError for a component that has no number, and for a number that is none.
    """
    settings = current().mcbench
    if component not in (*WEB, *WORKERS):
        raise DeployError(f"mcbench.scale: component must be one of {', '.join((*WEB, *WORKERS))}, got {component!r}")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 64:
        raise DeployError(f"mcbench.scale: count must be 1 to 64, got {count!r}")
    if settings is not None and component in settings.components:
        replicas.scale(name(component), count, name="Scale")


@deploy("mcbench migrate")
def migrate() -> None:
    """Migrate the database with the api image of the inventory, and switch nothing."""
    settings = current().mcbench
    if settings is None or host.name != migrating_host(settings):
        return
    container.pulled([settings.image("api")], name="Pull the image of the api")
    replicas.once(name("api"), job="migrate", spec=migration(settings), name="Migrate the database")


class Containers(FactBase[dict[str, str]]):
    """Return ``{name: "runs, healthy, IMAGE"}`` of the containers that are there, + names: asked for by name."""

    def command(self, names: Sequence[str]) -> str:
        form = "{{.Name}}\t{{.State.Status}}\t{{with .State.Health}}{{.Status}}{{end}}\t{{.Config.Image}}"
        return f"docker inspect --type container -f {shlex.quote(form)} {shlex.join(names)} 2>/dev/null || :"

    default = dict

    def process(self, output: Iterable[str]) -> dict[str, str]:
        found = {}
        for line in output:
            if line.count("\t") == 3:
                each, state, health, image = line.split("\t")
                found[each.lstrip("/")] = ", ".join(word for word in (state, health, image) if word)
        return found


# --- what everything stands on --------------------------------------------------------------------------------------


def _left_behind(settings: Mcbench) -> None:
    mcbench_retired.no_data_left(settings.components, name="See that no data is left behind")


def _external(settings: Mcbench) -> None:
    mcbench_external.answer(
        mcbench_external.questions(settings), ca=settings.external_ca, name="See that external services let this host in"
    )


def _ground(settings: Mcbench) -> None:
    dpkg.packages(["ca-certificates", "curl", "python3"], name="Install packages")
    if settings.external_ca:
        mcbench_external.trusted(settings.external_ca, name="Have the certificates that external services are known by")
    container.network(NETWORK, name="Make the network")
    if "server" in settings.roles:
        container.network(JOBS, internal=not settings.jobs_internet, name="Make the network of the games")
    for_data = [service for service in SERVICES if service in settings.components]
    if "postgres" in for_data:
        container.volume(name("postgres"), name="Make the volume of PostgreSQL")
    if "redis" in for_data:
        container.volume(name("redis"), name="Make the volume of Redis")
    if "object" in for_data:
        container.volume(name("object"), name="Make the volume of the object store")


def _health_page(settings: Mcbench) -> None:
    """Early, so that it can be asked while the rest comes up."""
    mcbench_health.health(
        settings.components,
        is_served=bool({"api", "admin"} & set(settings.roles)),
        name="Have the command that says how well the components are",
    )


def environment(settings: Mcbench, component: str) -> Secret:
    """Return the variables of a component's containers, in the words of docker."""
    return Secret(render(settings.environment(component), consumer="docker"))


def _log(settings: Mcbench) -> Log:
    return Log(
        driver=settings.log_driver,
        max_size_mb=settings.log_max_size_mb,
        files=settings.log_files,
        address=settings.log_address,
    )


def spec(settings: Mcbench, component: str) -> Spec:
    """Return what a container of a component is to be; the same for every one of them on a host."""
    cpus, memory_mb = settings.limit(component)
    plain = Spec(
        image=settings.image(component),
        environment=environment(settings, component),
        networks=(Network(NETWORK),),
        cpus=cpus,
        memory_mb=memory_mb,
        pids=4096,
        log=_log(settings),
    )
    if component in SERVICES:
        return _service_spec(settings, component, plain)
    if settings.external_ca:
        # The label makes them anew when it changes: what they have loaded stays loaded.
        known_by = hashlib.sha256(settings.external_ca.encode()).hexdigest()[:12]
        plain = replace(plain, mounts=(Mount(mcbench_external.CA_ON_HOST, CA_DIRECTORY, read_only=True),), labels={"mcbench.ca": known_by})
    if component in WORKERS:
        return _worker_spec(settings, component, plain)
    if component == "admin-flower":
        return replace(
            plain,
            command=settings.flower_command,
            publish=(Publish(FLOWER_PORT, FLOWER_PORT),),
            health=_health(settings, _python(_FLOWER_ANSWERS)),
        )
    return replace(plain, stop_seconds=settings.web_drain_seconds + 10) if component in WEB else plain


def _health(settings: Mcbench, command: tuple[str, ...]) -> Health:
    """A check that starts a Python: not often, and with time."""
    return Health(
        command,
        interval_seconds=settings.check_interval_seconds,
        timeout_seconds=30,
        start_seconds=settings.start_timeout_seconds,
    )


def _python(program: str, *words: str) -> tuple[str, ...]:
    return ("python3", "-c", program, *words)


_FLOWER_ANSWERS = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{FLOWER_PORT}/healthcheck', timeout=10)"

# Its configuration is read from stdin, so that the password is neither in a file nor in argv. What is in memory is also
# in the log of the volume, and a full memory refuses new tasks instead of forgetting old ones.
_REDIS = """exec docker-entrypoint.sh redis-server - <<EOF
dir /data
appendonly yes
appendfsync everysec
maxmemory {maxmemory_mb}mb
maxmemory-policy noeviction
protected-mode yes
requirepass "$REDIS_PASSWORD"
EOF"""


def published_service(settings: Mcbench, service: str) -> tuple[Publish, ...]:
    """Return where a service is published: to the fleet's networks, or nowhere."""
    inner = {"postgres": 5432, "redis": 6379, "object": settings.object_container_port}[service]
    if service in settings.service_ports:
        return (Publish(settings.service_ports[service], inner, address=settings.internal_address),)
    # the host's own backups ask it
    return (Publish(settings.object_port, inner, address=LOOPBACK),) if service == "object" else ()


def _service_spec(settings: Mcbench, service: str, plain: Spec) -> Spec:
    common = replace(
        plain,
        networks=(Network(NETWORK, aliases=(service,)),),
        publish=published_service(settings, service),
        cap_add=_ENTRYPOINT,
    )
    if service == "postgres":
        user, database = shlex.quote(settings.postgres_user), shlex.quote(settings.postgres_db)
        return replace(
            common,
            mounts=(Mount(name(service), "/var/lib/postgresql/data"),),
            # By TCP: while the image makes its cluster, a server that is not the real one answers on the socket.
            health=Health(("sh", "-c", f"pg_isready -q -h 127.0.0.1 -U {user} -d {database}")),
            shm_mb=256,
            # fast shutdown: connections are ended, nothing is lost
            stop_signal="SIGINT",
            stop_seconds=120,
        )
    if service == "redis":
        text = _REDIS.format(maxmemory_mb=plain.memory_mb * 3 // 4)
        return replace(
            common,
            command=("sh", "-c", text),
            mounts=(Mount(name(service), "/data"),),
            health=Health(("sh", "-c", 'REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli ping | grep -q PONG')),
            stop_seconds=60,
        )
    return replace(
        common,
        command=settings.object_command,
        user=settings.object_user,
        mounts=(Mount(name(service), settings.object_data),),
        stop_seconds=60,
    )


def _worker_spec(settings: Mcbench, component: str, plain: Spec) -> Spec:
    wanted = replace(
        plain,
        health=_health(settings, _python(_ASK, "ping")),
        # Celery finishes what it has on SIGTERM; by then it has nothing, or the time for it is over.
        stop_seconds=60,
    )
    if component == "render-worker":
        return replace(wanted, platform=RENDER_PLATFORM)
    if component == "server-worker":
        return replace(
            wanted,
            networks=(Network(NETWORK), Network(JOBS)),
            mounts=(*wanted.mounts, Mount(SOCKET, SOCKET)),
            groups=(str(settings.docker_group),) if settings.docker_group else (),
        )
    return wanted


# --- databases ------------------------------------------------------------------------------------------------------


def _services(settings: Mcbench) -> None:
    if "postgres" in settings.components:
        container.container(
            name("postgres"),
            spec(settings, "postgres"),
            start_seconds=settings.start_timeout_seconds,
            name="Run PostgreSQL",
        )
    if "redis" in settings.components:
        container.container(
            name("redis"), spec(settings, "redis"), start_seconds=settings.start_timeout_seconds, name="Run Redis"
        )
    if "object" in settings.components:
        container.container(
            name("object"),
            spec(settings, "object"),
            start_seconds=settings.start_timeout_seconds,
            name="Run the object store",
        )
        buckets(
            name("object"),
            network=NETWORK,
            port=settings.object_container_port,
            access=settings.object_access_key_variable,
            secret=settings.object_secret_key_variable,
            buckets=[settings.internal_object_bucket, settings.external_object_bucket],
            name="Make the buckets",
        )


# --- a release ------------------------------------------------------------------------------------------------------


def images(settings: Mcbench) -> list[str]:
    """Return what must be on the host before anything is switched: its components, and what server workers start."""
    wanted = [settings.image(component) for component in settings.applications if component != "render-worker"]
    if "server" in settings.roles:
        wanted += [settings.minecraft_server_image, settings.minecraft_builder_image]
    return list(dict.fromkeys(wanted))


def _images(settings: Mcbench) -> None:
    """On all hosts before the first switch: a release that lacks one image, or one platform, goes nowhere."""
    if images(settings):
        container.pulled(images(settings), name="Pull the images")
    if "render" in settings.roles:
        container.pulled([settings.image("render-worker")], platform=RENDER_PLATFORM, name="Pull the image for rendering")


def migrating_host(settings: Mcbench) -> str:
    """Return the host that migrates: the one that is set, or the first of `mcbench_api` in the inventory."""
    members = ctx_state.get().inventory.groups.get("mcbench_api", [])  # type: ignore[no-untyped-call]
    return settings.migrate_host or (members[0].name if members else "")


def _migrate(settings: Mcbench) -> None:
    if settings.migrate_enabled and host.name == migrating_host(settings):
        replicas.once(
            name("api"),
            job="migrate",
            spec=migration(settings),
            name="Migrate the database",
        )


def migration(settings: Mcbench) -> Spec:
    """Return the container that migrates: the new image of the api, with its variables, and nothing published."""
    return replace(spec(settings, "api"), command=settings.migrate_command, restart="no", publish=(), health=None)


@operation()
def all_well() -> Generator[StringCommand, None, None]:
    """
    Go on only when no host of the fleet has failed in this run, and only when all of them have come as far as this.

    pyinfra runs an operation on all hosts before the next one, but knows no order between operations of different hosts:
    one that all of them share is where they meet. Hosts that were not reached do not count: they switch when they are back.
    """
    yield from fleet.all_well._inner(system="mcbench", groups=GROUPS)


def ask_worker(settings: Mcbench) -> tuple[Sequence[str], Sequence[str]]:
    """Return the commands that make a worker take no more tasks, and that say how many it has."""
    if settings.quiesce_command:
        return settings.quiesce_command, settings.busy_command
    return _python(_ASK, "quiesce"), _python(_ASK, "busy")


def _workers(settings: Mcbench, component: str) -> None:
    if component in settings.components:
        quiesce, busy = ask_worker(settings)
        replicas.workers(
            name(component),
            spec(settings, component),
            settings.count(component),
            drain_seconds=settings.task_drain_seconds,
            quiesce=quiesce,
            busy=busy,
            start_seconds=settings.start_timeout_seconds,
            settle_seconds=settings.settle_seconds,
            keep=settings.keep_releases,
            name=f"Roll out {component}",
            _parallel=settings.batch,
        )


def _scheduler(settings: Mcbench) -> None:
    """Never two at once, not even for a moment: each would send every task."""
    if "scheduler" in settings.components:
        container.container(
            name("scheduler"),
            spec(settings, "scheduler"),
            start_seconds=settings.start_timeout_seconds,
            name="Run the scheduler",
        )


# --- the web --------------------------------------------------------------------------------------------------------


def locations(settings: Mcbench, component: str) -> list[Location]:
    """Return what nginx passes on to an API or to Flower; admin-api and Flower to declared networks only."""
    networks = None if component == "api" else tuple(map(str, settings.admin_networks))
    is_limited = component == "api" and settings.rate_limit_per_second
    everything = Location(
        "/",
        upstream=name(component),
        timeout_seconds=settings.request_timeout_seconds,
        websocket=True,
        rate_limit=RateLimit(settings.rate_limit_per_second, settings.rate_limit_burst) if is_limited else None,
        networks=networks,
    )
    if component == "admin-flower":
        return [everything]
    # Health is asked often and by many behind one address; it is cheap.
    health = replace(everything, path=settings.health_path, match="exact", rate_limit=None, websocket=False)
    page = Location(
        mcbench_health.PATH,
        match="exact",
        upstream=f"{name(component)}-page",
        # each starts a Python on the host
        rate_limit=RateLimit(5, 10),
        networks=tuple(map(str, settings.health_networks)),
    )
    return [everything, health, page, replace(page, path=f"{page.path}.json")]


def upstreams(component: str) -> list[Upstream]:
    """Return what the locations of a site lead to."""
    if component == "admin-flower":
        return [upstream(component)]
    return [upstream(component), Upstream(f"{name(component)}-page", (f"unix:{mcbench_health.SOCKET}",), keepalive=0)]


def upstream(component: str) -> Upstream:
    """Return the servers behind a site: of the APIs the rollout says which, Flower has one."""
    if component == "admin-flower":
        return Upstream(name(component), (f"127.0.0.1:{FLOWER_PORT}",))
    # No keepalive: after a switch, an idle connection would still lead to the colour that goes.
    return Upstream(name(component), (f"127.0.0.1:{PORTS[component][0]}",), keepalive=0, switched=True)


def admin_domains(settings: Mcbench) -> list[str]:
    """Return the names of admin-api and Flower, which share a certificate."""
    shown = [settings.admin_domain, settings.flower_domain if settings.flower_enabled else None]
    return [domain for domain in shown if domain]


def _web(settings: Mcbench) -> None:
    if "api" in settings.roles:
        certificate.bootstrap(name("api"), domains=settings.api_domains, name="Have a certificate of the api to start with")
    if "admin" in settings.roles:
        certificate.bootstrap(
            name("admin"), domains=admin_domains(settings), name="Have a certificate of the admin sites to start with"
        )
    if {"api", "admin"} & set(settings.roles):
        nginx.server(name="Install nginx")


def _admin_api(settings: Mcbench) -> None:
    if "admin" in settings.roles:
        _site(settings, "admin-api", [settings.admin_domain or ""], certificate.directory(name("admin")))


def _api(settings: Mcbench) -> None:
    if "api" in settings.roles:
        _site(settings, "api", settings.api_domains, certificate.directory(name("api")))


def _site(settings: Mcbench, component: str, domains: Sequence[str], certificate_directory: str) -> None:
    nginx.site(
        name(component),
        server_names=list(domains),
        certificate_directory=certificate_directory,
        upstreams=upstreams(component),
        locations=locations(settings, component),
        hsts_seconds=settings.hsts_seconds,
        max_body_size=settings.max_request_body_size + _BODY_MARGIN,
        name=f"Upload the site of {component}",
    )
    replicas.rollout(
        name(component),
        spec(settings, component),
        settings.count(component),
        upstream=name(component),
        container_port=WEB_PORT,
        ports=PORTS[component],
        health_path=settings.health_path,
        probe=site.probe(domains[0], settings.health_path),
        start_seconds=settings.start_timeout_seconds,
        settle_seconds=settings.settle_seconds,
        drain_seconds=settings.web_drain_seconds,
        keep=settings.keep_releases,
        name=f"Roll out {component}",
        _parallel=settings.batch,
    )


def _flower(settings: Mcbench) -> None:
    if "admin-flower" not in settings.components:
        return
    container.container(
        name("admin-flower"),
        spec(settings, "admin-flower"),
        start_seconds=settings.start_timeout_seconds,
        name="Run Flower",
    )
    nginx.site(
        name("admin-flower"),
        server_names=[settings.flower_domain or ""],
        certificate_directory=certificate.directory(name("admin")),
        upstreams=upstreams("admin-flower"),
        locations=locations(settings, "admin-flower"),
        hsts_seconds=settings.hsts_seconds,
        name="Upload the site of Flower",
    )


# --- what keeps it well ---------------------------------------------------------------------------------------------


def _cleanup(settings: Mcbench) -> None:
    cleanup.schedule(
        ours=[f"{settings.registry}/mc-bench-*"] if settings.registry else [],
        keep_images=list(settings.managed_images),
        releases=settings.keep_releases,
        unused=f"{settings.cleanup_keep_hours}h",
        job_label=JOB_LABEL if "server" in settings.roles else "",
        job_limit=f"{settings.orphan_hours}h",
        present=settings.cleanup_enabled,
        name="Schedule the cleanup of images",
    )


def _backup(settings: Mcbench, policy: Backup) -> None:
    """The database and the objects. Variables come from the inventory, and Redis holds only what is under way."""
    if "postgres" in settings.components:
        backup.source(
            name("postgres"),
            policy=policy,
            kind="postgres",
            server=backup.Postgres(
                database=settings.postgres_db,
                password=settings.postgres_backup_password,
                container=name("postgres"),
                admin=settings.postgres_user,
            ),
            containers=[f"hostwright.component={name(component)}" for component in settings.applications],
            present=policy.enabled,
            name="Back up the database",
        )
    if "object" in settings.components:
        backup.source(
            name("objects-internal"),
            policy=policy,
            kind="bucket",
            server=bucket(settings, settings.internal_object_bucket),
            present=policy.enabled,
            name="Back up the internal bucket",
        )
        backup.source(
            name("objects-external"),
            policy=policy,
            kind="bucket",
            server=bucket(settings, settings.external_object_bucket),
            present=policy.enabled,
            name="Back up the external bucket",
        )


def bucket(settings: Mcbench, of: str) -> backup.Bucket:
    """Return one bucket of this host's object store, as the host itself reaches it."""
    address = settings.internal_address or LOOPBACK
    where = f"[{address}]" if ":" in address else address
    return backup.Bucket(
        bucket=of,
        endpoint=f"http://{where}:{settings.object_port}",
        access_key=settings.object_store_access_key,
        secret_key=settings.object_store_secret_key,
    )
