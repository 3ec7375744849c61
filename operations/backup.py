"""
Backups of what a system cannot get back from anywhere else: declared, scheduled, drilled, restored.

The work is done on the host by one program (``files/backup/backup.py``), which also runs when the control machine does
not. Here its sources are declared, its repositories are opened, its two jobs are scheduled, and it is asked to do
something now.
"""

import json
import re
import shlex
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.backup import CONFIG, STATE, BackupSources
from operations import dpkg, fileset, schedule, script
from operations.fileset import Absent, Directory, File
from operations.schedule import Sandbox
from settings import Backup
from settings.env import render
from settings.secret import Secret

PROGRAM = "/usr/local/lib/hostwright/backup"
WORK = "/var/cache/hostwright"
TEXTFILES = "/var/lib/prometheus/node-exporter"
KINDS = ("sqlite", "directory", "postgres", "bucket", "redis", "mongodb", "redis_pod")

_FILES = Path(__file__).parents[1] / "files" / "backup"
_PARTS = ("postgres.py", "bucket.py", "redis.py", "pod.py", "mongodb.py", "redis_pod.py")
_HERE = "# <<< parts >>>\n"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
# restic is to stop by itself and let go of its locks before systemd stops it.
_TIMEOUT_SECONDS = 4 * 3600
_MARGIN_SECONDS = 120


@dataclass(frozen=True)
class Postgres:
    """
    A database of a PostgreSQL server (14 or newer).

    + database: its name
    + user, password: the role that reads it. Made, with ``pg_read_all_data`` and nothing else, where we may (see admin);
      else make it with the statements in the docs
    + container: the container that the server runs in; its own programs are used then, and ``host`` counts inside it
    + host, port: where the server listens; a path such as ``/run/postgresql`` is the directory of its socket
    + sslmode: as libpq has it: ``prefer``, ``require``, ``verify-full``
    + admin: a superuser, for the role and for a restore in place. In a container and over the local socket the server
      trusts us; elsewhere ``admin_password`` is needed
    + owner: role that owns a restored database where there is none to take that from
    + scratch_image: image of the server that drills restore into; by default that of ``container``, and without one the
      newest server that is installed on the host
    """

    database: str
    password: Secret
    user: str = "hostwright_backup"
    container: str = ""
    host: str = "/run/postgresql"
    port: int = 5432
    sslmode: str = "prefer"
    admin: str = "postgres"
    admin_password: Secret = field(default_factory=Secret.unset)
    owner: str = ""
    scratch_image: str = ""

    def faults(self) -> list[str]:
        faults = [
            f"postgres.{key} must be set and without blanks, got {getattr(self, key)!r}"
            for key in ("database", "user", "host", "admin")
            if not re.fullmatch(r"[^\s'\"]+", getattr(self, key))
        ]
        if not self.password.resolved:
            faults.append("postgres.password is not set")
        if self.container and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.container):
            faults.append(f"postgres.container must be the name of a container, got {self.container!r}")
        if self.sslmode not in ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"):
            faults.append(f"postgres.sslmode must be one of libpq's, got {self.sslmode!r}")
        if self.user == self.admin:
            faults.append(f"postgres.user must not be the administrator, got {self.user!r}")
        return faults

    @property
    def plain(self) -> dict[str, Any]:
        secret = ("password", "admin_password")
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in secret}

    @property
    def secrets(self) -> dict[str, Secret]:
        found = {"SOURCE_PASSWORD": self.password}
        if self.admin_password.resolved:
            found["SOURCE_ADMIN_PASSWORD"] = self.admin_password
        return found


@dataclass(frozen=True)
class Bucket:
    """
    A bucket of an S3 server.

    + bucket: its name; + endpoint: URL of the server, e.g. ``https://s3.example.org``
    + access_key, secret_key: of an account that may list and read it; for a restore also write
    """

    bucket: str
    endpoint: str
    access_key: Secret
    secret_key: Secret
    region: str = "us-east-1"

    def faults(self) -> list[str]:
        faults = []
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", self.bucket):
            faults.append(f"bucket.bucket must be the name of a bucket, got {self.bucket!r}")
        if not re.fullmatch(r"https?://[^\s/@]+/?", self.endpoint):
            faults.append(f"bucket.endpoint must be a URL without account and path, got {self.endpoint!r}")
        faults += [
            f"bucket.{key} is not set" for key in ("access_key", "secret_key") if not getattr(self, key).resolved
        ]
        return faults

    @property
    def plain(self) -> dict[str, Any]:
        return {"bucket": self.bucket, "endpoint": self.endpoint, "region": self.region}

    @property
    def secrets(self) -> dict[str, Secret]:
        return {"SOURCE_ACCESS_KEY": self.access_key, "SOURCE_SECRET_KEY": self.secret_key}


@dataclass(frozen=True)
class Redis:
    """
    An instance of Redis on this host, as ``operations.redis`` makes it.

    + instance: its name; + password: of its user ``default``
    """

    instance: str
    password: Secret

    def faults(self) -> list[str]:
        faults = []
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", self.instance):
            faults.append(f"redis.instance must be the name of an instance, got {self.instance!r}")
        if not self.password.resolved:
            faults.append("redis.password is not set")
        return faults

    @property
    def plain(self) -> dict[str, Any]:
        return {"instance": self.instance}

    @property
    def secrets(self) -> dict[str, Secret]:
        return {"SOURCE_PASSWORD": self.password}


@dataclass(frozen=True)
class MongoDB:
    """
    A database of a MongoDB server in a pod of Kubernetes, whose container is called ``mongodb``.

    + database: its name; + image: of the server, for the pod that drills restore into
    + namespace, pod: where it runs; + kubectl: its words on this host
    + username: who dumps and restores; + password_file: where the container has the password
    + options: further ones of mongodump and mongorestore, such as ``--ssl``; + url_options: likewise, ``&tls=true…``
    + pull_secrets: names of secrets that the image is pulled by; + user: number of the server's user
    """

    database: str
    image: str
    namespace: str
    username: str
    pod: str = "mongodb-0"
    kubectl: tuple[str, ...] = ("k3s", "kubectl")
    password_file: str = "/etc/mongodb/password"
    options: tuple[str, ...] = ()
    url_options: str = ""
    pull_secrets: tuple[str, ...] = ()
    user: int = 999

    def faults(self) -> list[str]:
        return [
            f"mongodb.{key} must be set and without blanks, got {getattr(self, key)!r}"
            for key in ("database", "image", "namespace", "username", "pod", "password_file")
            if not re.fullmatch(r"[^\s'\"]+", getattr(self, key))
        ]

    @property
    def plain(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def secrets(self) -> dict[str, Secret]:
        return {}


@dataclass(frozen=True)
class RedisPod:
    """
    A Redis in a pod of Kubernetes, whose container is called ``redis`` and has its data in ``/data``.

    + image: of the server, for the pod that drills restore into; + namespace, pod: where it runs
    + kubectl: its words on this host; + password_file: where the container has the password
    + pull_secrets: names of secrets that the image is pulled by; + user: number of the server's user
    """

    image: str
    namespace: str
    pod: str = "redis-0"
    kubectl: tuple[str, ...] = ("k3s", "kubectl")
    password_file: str = "/etc/redis/password"
    pull_secrets: tuple[str, ...] = ()
    user: int = 999

    def faults(self) -> list[str]:
        return [
            f"redis_pod.{key} must be set and without blanks, got {getattr(self, key)!r}"
            for key in ("image", "namespace", "pod", "password_file")
            if not re.fullmatch(r"[^\s'\"]+", getattr(self, key))
        ]

    @property
    def plain(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def secrets(self) -> dict[str, Secret]:
        return {}


Server = Postgres | Bucket | Redis | MongoDB | RedisPod


def program_text() -> str:
    """Return the program for the host: one file, put together from those of ``files/backup``."""
    core = (_FILES / "backup.py").read_text()
    if core.count(_HERE) != 1:
        raise AssertionError(f"files/backup/backup.py has no line {_HERE!r}")
    return core.replace(_HERE, "\n".join((_FILES / part).read_text() for part in _PARTS))


def source_faults(
    source: str,
    kind: str,
    path: str,
    mode: str,
    minimum: Mapping[str, int],
    units: Sequence[str],
    containers: Sequence[str] = (),
    server: Server | None = None,
) -> list[str]:
    """Return every rule that the declaration breaks, one line each."""
    faults = []
    wanted = {"postgres": Postgres, "bucket": Bucket, "redis": Redis, "mongodb": MongoDB, "redis_pod": RedisPod}.get(kind)
    if kind in KINDS and type(server) is not (wanted or type(None)):
        faults.append(f"server must be {f'a {wanted.__name__}' if wanted else 'left out'} for kind {kind!r}")
    elif server is not None:
        faults += server.faults()
    faults += [
        f"containers: must be a name or a label such as 'hostwright.component=api', got {each!r}"
        for each in containers
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*(=[^\s]+)?", each)
    ]
    if not _NAME.fullmatch(source):
        faults.append(f"source must be lower case letters, digits, '-' and '_', got {source!r}")
    if kind not in KINDS:
        faults.append(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if wanted:
        if path:
            faults.append(f"path is for directories and files, got {path!r}")
    elif not path.startswith("/") or "/../" in path or path.endswith("/") or re.search(r"\s", path):
        faults.append(f"path must be absolute and normalised, without blanks, got {path!r}")
    if not re.fullmatch(r"0?[0-7]{3}", mode):
        faults.append(f"mode must be octal text like '0600', got {mode!r}")
    faults += [f"minimum: {label!r} must be 0 or more, got {n!r}" for label, n in minimum.items() if n < 0]
    for unit in units:
        if unit.startswith("-") or not (unit.startswith("supervisor:") or "." in unit):
            faults.append(f"units: must be 'x.service', a pattern of it, or 'supervisor:x', got {unit!r}")
    return faults


def source_config(
    source: str,
    kind: str,
    path: str,
    owner: str,
    group: str,
    mode: str,
    minimum: Mapping[str, int],
    units: Sequence[str],
    health: str,
    health_seconds: int,
    policy: Backup,
    containers: Sequence[str] = (),
    server: Server | None = None,
) -> str:
    """Return the JSON that the program reads; it holds no secret."""
    values = {
        "name": source,
        # the inventory's name: a machine that replaces this one finds its copies by it
        "host": host.name,
        "kind": kind,
        "path": f"/var/lib/redis/{server.instance}" if isinstance(server, Redis) else path,
        "owner": owner,
        "group": group,
        "mode": mode,
        "repositories": repositories(policy),
        "keep": {"daily": policy.keep_daily, "weekly": policy.keep_weekly, "monthly": policy.keep_monthly},
        "minimum": dict(minimum),
        # a queue that was worked off is no loss
        "min_size_ratio": 0.0 if isinstance(server, (Redis, RedisPod)) else policy.min_size_ratio,
        "units": [*(_own_units(server)), *units, *(f"container:{each}" for each in containers)],
        "health": health,
        "health_seconds": health_seconds,
        "timeout_seconds": _TIMEOUT_SECONDS,
        "textfiles": TEXTFILES,
    }
    if server is not None:
        values[kind] = server.plain
    return json.dumps(values, indent=1) + "\n"


def _own_units(server: Server | None) -> list[str]:
    """Return what a restore has to stop whatever is declared."""
    return [f"redis-server@{server.instance}.service"] if isinstance(server, Redis) else []


def repositories(policy: Backup) -> dict[str, str]:
    """Return the repositories by label; the off-site one is written on its own, not copied from the first."""
    found = {"primary": policy.repository}
    if policy.offsite_repository:
        found["offsite"] = policy.offsite_repository
    return found


def job_sandbox(
    kind: str, path: str, policy: Backup, server: Server | None = None
) -> Sandbox:
    """Return what a scheduled run may do."""
    urls = repositories(policy).values()
    # Beside a database in WAL mode SQLite must be able to make -shm, even to read.
    beside = [str(Path(path).parent)] if kind == "sqlite" else []
    remote = any(not url.startswith("/") for url in urls)
    # the engine of a container is reached through its socket
    away = isinstance(server, (Bucket, MongoDB, RedisPod)) or (
        isinstance(server, Postgres) and not server.container and not server.host.startswith("/")
    )
    return Sandbox(
        writable=(*beside, STATE, TEXTFILES, *(url for url in urls if url.startswith("/"))),
        network=remote or away,
        # sftp repositories are reached with root's ssh key
        home=remote or path.startswith(("/home/", "/root/")),
        capabilities=(
            # to read databases of any owner, to hand them their copy, to become them, and to stop what runs as them
            "CAP_DAC_OVERRIDE",
            "CAP_CHOWN",
            "CAP_FOWNER",
            "CAP_SETUID",
            "CAP_SETGID",
            "CAP_KILL",
        ),
        cache="hostwright",
    )


@operation()
def source(
    source: str,
    policy: Backup | None = None,
    kind: str = "sqlite",
    path: str = "",
    owner: str = "root",
    group: str = "root",
    mode: str = "0600",
    minimum: Mapping[str, int] | None = None,
    units: Sequence[str] = (),
    containers: Sequence[str] = (),
    health: str = "",
    health_seconds: int = 30,
    server: Server | None = None,
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Declare something that is backed up every day, drilled every week, and can be restored.

    + source: its name, e.g. that of its system
    + policy: the host's ``settings.Backup``: repositories, password, retention, when
    + kind: ``sqlite`` (one database, copied while it is in use), ``directory``, ``postgres``, ``bucket``, ``redis``
      (on this host), ``mongodb`` or ``redis_pod`` (in pods of Kubernetes)
    + path: the database file or the directory; + owner, group, mode: what a restored one gets
    + server: the ``Postgres``, ``Bucket``, ``Redis``, ``MongoDB`` or ``RedisPod`` of those kinds
    + minimum: what a good copy has at least: rows by table (``schema.table`` outside of public), ``{"files": n}`` (0: the
      directory may be empty until it held something for the first time), ``{"objects": n}``, or ``{"keys": n, "list members": n}`` of Redis (in a pod ``keys`` alone)
    + units: what a restore stops and, where it ran, starts again: ``x.service``, a pattern like ``x@*.service`` (both
      colours, whichever runs), or ``supervisor:x``
    + containers: likewise: names, or labels such as ``hostwright.component=api`` (all that carry it)
    + health: shell command that must succeed within ``health_seconds`` (s) after a restore
    + present: ``False`` stops the schedule and forgets the configuration; copies and their repositories stay

    Installs restic, and the client programs of PostgreSQL or Redis or rclone where the kind needs them. The repositories are opened when their configuration or password is not what they were last opened
    with; one that does not exist yet is made. One that has another password fails the operation and is left alone.

    Raises ``OperationValueError`` for a declaration that breaks a rule.

    **Example:**

    .. code:: python

        backup.source(
            "shop", policy=settings.backup, path="/var/lib/shop/shop.db", owner="shop", group="shop",
            minimum={"customers": 1}, units=["shop@*.service"], health="curl -fsS http://127.0.0.1:8000/health",
            name="Back up the shop's database",
        )
    """
    job, drill = f"hostwright-backup-{source}", f"hostwright-backup-{source}-drill"
    config, secrets = f"{CONFIG}/{source}.json", f"{CONFIG}/{source}.env"
    if not present:
        yield from schedule.job._inner(job=job, present=False)
        yield from schedule.job._inner(job=drill, present=False)
        yield from fileset.files._inner(entries=[Absent(config), Absent(secrets)])
        return

    faults = source_faults(source, kind, path, mode, minimum or {}, units, containers, server)
    if policy is None:
        faults.append("policy is needed: the host's settings.backup")
    elif not policy.password.resolved:
        faults.append("policy.password is not set: it encrypts the repository")
    if faults or policy is None:
        raise OperationValueError("backup.source: " + "; ".join(f"{source}: {fault}" for fault in faults))

    packages = ["restic", "python3"]
    if isinstance(server, Bucket):
        packages.append("rclone")
    elif isinstance(server, Redis):
        packages.append("redis-tools")
    elif isinstance(server, Postgres) and not server.container:
        packages.append("postgresql-client")
    yield from dpkg.packages._inner(packages=packages)
    yield from fileset.files._inner(
        entries=[
            Directory("/etc/hostwright", mode="0755"),
            Directory(CONFIG, mode="0700"),
            Directory("/var/lib/hostwright", mode="0700"),
            Directory(STATE, mode="0700"),
            # systemd would make it, but the program is also run by hand
            Directory(WORK, mode="0711"),
            File(PROGRAM, program_text(), mode="0755"),
            File(
                config,
                source_config(
                    source,
                    kind,
                    path,
                    owner,
                    group,
                    mode,
                    minimum or {},
                    units,
                    health,
                    health_seconds,
                    policy,
                    containers,
                    server,
                ),
                mode="0600",
            ),
            File(
                secrets,
                Secret(
                    render(
                        {
                            "RESTIC_PASSWORD": policy.password,
                            **policy.offsite_env,
                            **(server.secrets if server else {}),
                        },
                        consumer="docker",
                    )
                ),
                mode="0600",
            ),
        ]
    )
    found = host.get_fact(BackupSources, sources=[source]).get(source)
    if found is None or found.opened_with != found.digest:
        yield script.Told(_program("init", source))

    sandbox = job_sandbox(kind, path, policy, server)
    for name, command, when, words in (
        (job, "run", policy.at, "backup of"),
        (drill, "drill", policy.drill_at, "restore drill of"),
    ):
        yield from schedule.job._inner(
            job=name,
            command=[PROGRAM, command, source],
            when=when,
            timeout_seconds=_TIMEOUT_SECONDS + _MARGIN_SECONDS,
            sandbox=sandbox,
            description=f"{words} {source}",
        )


def _start(unit: str) -> StringCommand:
    return script.Told("sh -s", _stdin=script.text(["backup/start.sh"], {"unit": unit}))


def _program(*words: str) -> str:
    return shlex.join([PROGRAM, *words])


@operation(is_idempotent=False)
def run(source: str, accept_smaller: bool = False) -> Generator[StringCommand, None, None]:
    """
    Make a backup now, in the unit that the timer starts.

    + source: its name
    + accept_smaller: store the copy although it is much smaller than the last verified one
    """
    if accept_smaller:
        yield script.Told(_program("run", source, "--accept-smaller"))
    else:
        yield _start(f"hostwright-backup-{source}.service")


@operation(is_idempotent=False)
def drill(source: str) -> Generator[StringCommand, None, None]:
    """
    Restore the newest copy into a scratch place now and check it, in the unit that the timer starts.

    + source: its name
    """
    yield _start(f"hostwright-backup-{source}-drill.service")


@operation(is_idempotent=False)
def restore(
    source: str, at: str = "latest", repository: str = "primary", into: str = "", replace: bool = False
) -> Generator[StringCommand, None, None]:
    """
    Restore a checked copy in place of the source; what stood there is kept beside it.

    + source: its name
    + at: ``latest``, ``verified``, a snapshot id, a day (``2026-11-22``) or a time (``2026-11-22T02:00``, in the host's zone)
    + repository: ``primary`` or ``offsite``
    + into: bucket to restore a bucket into, made if it does not exist; its own one when empty
    + replace: make a bucket that is not empty exactly what the copy holds; **what is newer is lost**. Without it such a
      bucket is refused

    Raises ``OperationValueError`` for an ``at`` that is no text: the command line reads ``12345678`` as a number, quote it
    as ``'at="12345678"'``.
    """
    if not isinstance(at, str):
        raise OperationValueError(
            f"""backup.restore: at must be text, write 'at="..."' with the quotes, got {at!r}"""
        )
    # In a unit of its own: a connection that breaks must not leave a half restored host behind.
    yield script.Told(
        f"systemd-run --quiet --wait --pipe --collect --unit={shlex.quote(f'hostwright-backup-{source}-restore')}",
        _program(
            "restore",
            source,
            f"--at={at}",
            f"--repository={repository}",
            *([f"--into={into}"] if into else []),
            *(["--replace"] if replace else []),
        ),
    )


@operation(is_idempotent=False)
def copies(source: str) -> Generator[StringCommand, None, None]:
    """
    Show the copies of a source: when taken, how large, when verified, in which repository.

    + source: its name
    """
    yield script.Told(_program("list", source))
