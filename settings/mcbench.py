"""Settings of the mcbench fleet (`mcbench_…`): hosts of the groups `mcbench_infra`, `mcbench_api` … (see ROLES)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

from pydantic import AfterValidator, Field

from settings.errors import Fault, broken, nearest
from settings.exposure import Port
from settings.fields import (
    Certificates,
    Domain,
    EnvName,
    Line,
    Many,
    Model,
    Network,
    OwnAddress,
    PortNumber,
    RedisUrl,
    WildcardDomain,
    matching,
    narrow,
)
from settings.requirements import PortClaim, Requirements
from settings.secret import Secret
from settings.section import Section, differences, rule


@dataclass(frozen=True)
class Component:
    """One container image of the system, the role that runs it, and the guide's minimum for one container of it.

    + disk_mb: what its data needs, on the file system of /var
    """

    role: str
    cpus: float
    memory_mb: int
    disk_mb: int = 0


COMPONENTS = {
    "api": Component("api", 1, 2048),
    "admin-api": Component("admin", 1, 2048),
    "admin-flower": Component("admin", 0.5, 512),
    "worker": Component("worker", 2, 4096),
    "admin-worker": Component("admin_worker", 2, 4096),
    "render-worker": Component("render", 2, 4096),
    "server-worker": Component("server", 4, 8192),
    "scheduler": Component("scheduler", 0.5, 512),
    "postgres": Component("infra", 2, 4096, disk_mb=20 * 1024),
    "redis": Component("infra", 1, 2048),
    "object": Component("infra", 2, 4096, disk_mb=100 * 1024),
}
"""Every component of the guide; Flower and the scheduler, for which it says nothing, with what they are seen to use."""

ROLES = tuple(dict.fromkeys(component.role for component in COMPONENTS.values()))
GROUPS = tuple(f"mcbench_{role}" for role in ROLES)
SERVICES = ("postgres", "redis", "object")
WORKERS = ("worker", "admin-worker", "render-worker", "server-worker")
WEB = ("api", "admin-api")
RENDER_PLATFORM = "linux/amd64"
CA_DIRECTORY = "/etc/mcbench-ca"
"""Where containers find what `external_ca` brings: `bundle.pem`."""

EXPERIMENTAL = frozenset({"lab", "dev"})
"""Groups (an inventory's file name is one) in which unsafe or too small values are allowed."""

SECRET_KEY_LENGTH = 32
PASSWORD_LENGTH = 16
_WEAK = frozenset({"minioadmin", "password", "user", "postgres", "redis", "admin", "changeme", "secret", "mc-bench"})
_PRIVATE = [
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "127.0.0.0/8",
        "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "fc00::/7", "fe80::/10", "::1/128", "2001:db8::/32",
    )
]  # fmt: skip
"""Networks that are nobody's on the internet; those for documentation too, so that samples can be checked."""

_REGISTRY = r"(?:[a-z0-9-]+(?:\.[a-z0-9-]+)+(?::[0-9]{1,5})?|localhost(?::[0-9]{1,5})?|[a-z0-9-]+:[0-9]{1,5})"
_PATH = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_IMAGE = re.compile(rf"{_REGISTRY}(?:/{_PATH})+(?::{_TAG})?(?:@sha256:[0-9a-f]{{64}})?")


def _image(value: str) -> str:
    """One image that is the same tomorrow, in a registry that is named: Docker Hub is never meant by silence."""
    if not value:
        return value
    if "://" in value:
        raise broken("must be an image, not a URL", f"write {value.split('://')[1]!r}")
    name, _, tag = value.partition("@")[0].rpartition(":")
    if not name or "/" in tag:
        tag = ""
    first, slash, _ = value.partition("/")
    if not slash or not re.fullmatch(_REGISTRY, first):
        raise broken("must name its registry", f"write 'registry.example.org/{value}'")
    if tag == "latest":
        raise broken("must not be ':latest': nobody could say what runs, or go back to it", "write a version or a digest")
    if not tag and "@" not in value:
        raise broken("must have a tag or a digest", f"write '{value}:1.4.0'")
    if not _IMAGE.fullmatch(value):
        raise broken("must be an image such as 'registry.example.org/team/name:1.4.0' or '…@sha256:…'")
    return value


def _version(value: str) -> str:
    if value == "latest":
        raise broken(
            "must not be 'latest': nobody could say what runs, or go back to it", "write mcbench_version = '1.4.0'"
        )
    if value and not re.fullmatch(_TAG, value):
        raise broken("must be a tag such as '1.4.0'")
    return value


def _registry(value: str) -> str:
    if "://" in value:
        raise broken("must be a registry, not a URL", f"write {value.split('://')[1].rstrip('/')!r}")
    if value and not re.fullmatch(rf"{_REGISTRY}(?:/{_PATH})*", value):
        raise broken("must be a registry, with a path or without, such as 'registry.example.org/team'")
    return value


def _strong(value: Secret) -> Secret:
    """A password that no guide has printed, and that fits into a URL's and a configuration file's line."""
    if not value.resolved:
        return value
    text = value.unmask()
    if text.lower() in _WEAK or text.lower().startswith("your-"):
        raise broken("must not be a value that guides print", _MAKE_ONE, show=False)
    if len(text) < PASSWORD_LENGTH:
        raise broken(f"must have at least {PASSWORD_LENGTH} characters, has {len(text)}", _MAKE_ONE, show=False)
    if not re.fullmatch(r"[!#-&(-\[\]-~]+", text):
        raise broken("must be printable ASCII without spaces, quotes and backslashes", _MAKE_ONE, show=False)
    return value


def _long(value: Secret) -> Secret:
    if value.resolved and len(value.unmask()) < SECRET_KEY_LENGTH:
        raise broken(
            f"must have at least {SECRET_KEY_LENGTH} characters, has {len(value.unmask())}", _MAKE_ONE, show=False
        )
    return _strong(value)


def _no_placeholder(value: Secret) -> Secret:
    if value.resolved and (value.unmask().lower() in _WEAK or value.unmask().lower().startswith("your-")):
        raise broken("must not be a value that guides print", show=False)
    if value.resolved and re.search(r"\s", value.unmask()):
        raise broken("must not hold spaces or line ends", show=False)
    return value


_MAKE_ONE = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"


def _origins(value: str) -> str:
    for origin in value.split(",") if value else ():
        if origin == "*":
            raise broken("must not be '*': any site could act as its visitor", "write the frontend's origin")
        if not re.fullmatch(r"https?://[a-z0-9.-]+(?::[0-9]{1,5})?", origin):
            raise broken("must be origins such as 'https://frontend.example.org', comma between them, no path")
    return value


def _dsn(value: str) -> str:
    if "://" in value:
        raise broken("must be host:port, without a scheme", f"write {value.split('://')[1].rstrip('/')!r}")
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise broken("must be host:port such as 'object:9000'")
    return value


def _private_address(value: str) -> str:
    if value and (not is_private(value) or ipaddress.ip_address(value).is_loopback):
        raise broken("must be an address in a private network: what goes there is not encrypted")
    return value


def _private_network(value: str) -> str:
    network = ipaddress.ip_network(value)
    if not any(network.version == each.version and network.subnet_of(each) for each in _PRIVATE):  # type: ignore[arg-type]
        raise broken("must be a private network: what goes there is not encrypted")
    return value


def is_private(host: str) -> bool:
    """Return whether a host is certainly not across the internet: a private address, or a name that only lives inside."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return "." not in host or host.endswith((".internal", ".local", ".lan", ".test"))
    return any(address in network for network in _PRIVATE)


def _component(value: str) -> str:
    if value not in (*COMPONENTS, "all"):
        near = nearest(value, COMPONENTS, cutoff=0.6)
        raise broken("must be a component of mcbench", f"did you mean {near}?" if near else f"one of {', '.join(COMPONENTS)}")
    return value


Image = Annotated[str, AfterValidator(_image)]
ComponentName = Annotated[str, AfterValidator(_component)]
Password = Annotated[Secret, AfterValidator(_strong)]
ApiKey = Annotated[Secret, AfterValidator(_no_placeholder)]
HostName = Annotated[
    str, matching(r"[A-Za-z0-9](?:[A-Za-z0-9.:_-]*[A-Za-z0-9])?", "must be a host name or an address")
]
DatabaseName = Annotated[
    str, matching(r"[a-z_][a-z0-9_-]{0,62}", "must be a name of small letters, digits, _ and -")
]
Bucket = Annotated[
    str, matching(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "must be the name of a bucket: 3 to 63 small letters, digits, . and -")
]
Path = Annotated[str, matching(r"/[A-Za-z0-9._~/-]*", "must be a URL path such as '/health'")]
Seconds = Annotated[int, Field(ge=1, le=86400)]
AdminNetwork = Annotated[Network, narrow("must not be the whole internet", "name the networks of the admins")]
Count = Annotated[int, Field(ge=1, le=64)]
FlowerUser = Annotated[str, matching(r"[A-Za-z0-9._@-]{1,64}", "must be a name without spaces and colons")]


class Limits(Model):
    """What one container of a component may use.

    + cpus: cores, 0.5 is half of one
    + memory_mb: MiB
    """

    cpus: Annotated[float, Field(gt=0, le=256)] | None = None
    memory_mb: Annotated[int, Field(ge=32, le=4 * 1024 * 1024)] | None = None


class Mcbench(Section):
    """The mcbench fleet in containers. Which parts run on a host, its groups say: `mcbench_infra` (postgres, redis, object
    store), `mcbench_api`, `mcbench_admin` (admin-api, Flower), `mcbench_worker`, `mcbench_admin_worker`, `mcbench_render`,
    `mcbench_server`, `mcbench_scheduler`. The settings of all of them fit into `group_data/mcbench.py`, for a group `mcbench`
    of all its hosts."""

    prefix: ClassVar[str] = "mcbench_"

    # images
    registry: Annotated[str, AfterValidator(_registry)] = Field(
        "", description="registry, with its path, of the images `mc-bench-<component>`", examples=["registry.example.org"]
    )
    version: Annotated[str, AfterValidator(_version)] = Field("", description="tag of those images", examples=["1.4.0"])
    images: dict[ComponentName, Image] = Field(
        {}, description="image of a component, by tag or digest, instead of `registry/mc-bench-<component>:version`"
    )
    postgres_image: Image = Field("docker.io/library/postgres:16", description="PostgreSQL 16 or newer")
    redis_image: Image = Field("docker.io/library/redis:7", description="Redis 7 or newer")
    object_image: Image = Field(
        "",
        description="any S3 server; required where the object store runs: the guide's, MinIO's, was taken off the public registries",
        examples=["registry.example.org/s3-server:1.0.0"],
    )
    object_command: Many[Line] = Field((), description="its command, such as `['server', '/data']`; empty takes the image's")
    object_container_port: PortNumber = Field(9000, description="port it listens on in its container")
    object_data: Annotated[str, matching(r"/[a-z0-9/_.-]+", "must be an absolute path")] = Field(
        "/data", description="where it keeps its data in its container"
    )
    object_access_key_variable: EnvName = Field(
        "MINIO_ROOT_USER", description="variable by which the S3 server is told the access key"
    )
    object_secret_key_variable: EnvName = Field(
        "MINIO_ROOT_PASSWORD", description="variable by which it is told the secret key"
    )
    object_user: Annotated[str, matching(r"[a-z0-9_:-]*", "must be a user, or user:group")] = Field(
        "", description="user of the S3 server's container; empty takes the image's"
    )

    # where things are
    services: Many[Literal["postgres", "redis", "object"]] = Field(
        ("postgres", "redis", "object"), description="which of the three run on this host of `mcbench_infra`"
    )
    postgres_external: bool = Field(False, description="PostgreSQL is somebody else's: `postgres_host` says where")
    redis_external: bool = Field(False, description="Redis is somebody else's: one primary, never a cluster")
    object_external: bool = Field(False, description="the object store is somebody else's, such as AWS S3")
    external_ca: Certificates = Field(
        "", description="certificates (PEM) of the private CA that signed those of external services: containers trust it besides the public ones"
    )
    internal_address: Annotated[OwnAddress, AfterValidator(_private_address)] = Field(
        "",
        description="private address of an infra host on which other hosts of the fleet reach its services; empty publishes none",
        examples=["10.0.0.5"],
    )
    internal_networks: Many[Annotated[Network, AfterValidator(_private_network)]] = Field(
        (), description="private networks that may reach those services"
    )
    admin_networks: Many[AdminNetwork] = Field(
        (), description="networks that may reach admin-api and Flower; empty means only the host itself"
    )

    # the guide's common variables
    postgres_host: HostName = Field("postgres", description="POSTGRES_HOST on hosts without the database")
    postgres_port: PortNumber = Field(5432, description="POSTGRES_PORT, and the port it is published on")
    postgres_user: DatabaseName = Field("user", description="POSTGRES_USER")
    postgres_password: Password = Field(
        default_factory=Secret.unset,
        description=f"POSTGRES_PASSWORD, {PASSWORD_LENGTH} characters or more",
        examples=["env:MCBENCH_POSTGRES_PASSWORD"],
    )
    postgres_backup_password: Password = Field(
        default_factory=Secret.unset,
        description="of the role that backups read the database by, which may do nothing else; required where it is backed up",
        examples=["env:MCBENCH_POSTGRES_BACKUP_PASSWORD"],
    )
    postgres_db: DatabaseName = Field("mc_bench", description="POSTGRES_DB")
    postgres_sslmode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] | None = Field(
        None, description="POSTGRES_SSLMODE; by default `require` for an external server, `disable` for this deploy's"
    )
    redis_host: HostName = Field("redis", description="REDIS_HOST on hosts without Redis")
    redis_port: PortNumber = Field(6379, description="REDIS_PORT, and the port it is published on")
    redis_username: Annotated[str, matching(r"[A-Za-z0-9_.-]+", "must be a name without spaces and colons")] = Field(
        "default", description="REDIS_USERNAME; this deploy's Redis knows `default` only"
    )
    redis_password: Password = Field(
        default_factory=Secret.unset,
        description=f"REDIS_PASSWORD, {PASSWORD_LENGTH} characters or more",
        examples=["env:MCBENCH_REDIS_PASSWORD"],
    )
    redis_tls: bool = Field(False, description="REDIS_USE_SSL: an external Redis by rediss://")
    celery_broker_url: RedisUrl = Field(
        default_factory=Secret.unset,
        description="CELERY_BROKER_URL; by default made of the settings of Redis, database 0",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field("INFO", description="LOG_LEVEL")
    humanize_logs: bool = Field(True, description="HUMANIZE_LOGS: for people; False writes JSON")
    show_verbose_sql: bool = Field(False, description="SHOW_VERBOSE_SQL")

    # the guide's variables of the APIs
    secret_key: Annotated[Secret, AfterValidator(_long)] = Field(
        default_factory=Secret.unset,
        description=f"SECRET_KEY, the same on all API hosts, {SECRET_KEY_LENGTH} characters or more",
        examples=["env:MCBENCH_SECRET_KEY"],
    )
    cors_allowed_origin: Annotated[str, AfterValidator(_origins)] = Field(
        "", description="CORS_ALLOWED_ORIGIN", examples=["https://frontend.example.org"]
    )
    github_client_id: Line = Field("", description="GITHUB_CLIENT_ID")
    github_client_secret: ApiKey = Field(default_factory=Secret.unset, description="GITHUB_CLIENT_SECRET")
    google_client_id: Line = Field("", description="GOOGLE_CLIENT_ID")
    google_client_secret: ApiKey = Field(default_factory=Secret.unset, description="GOOGLE_CLIENT_SECRET")
    access_token_expire_minutes: Annotated[int, Field(ge=1, le=525600)] = Field(
        60, description="ACCESS_TOKEN_EXPIRE_MINUTES"
    )
    refresh_token_expire_minutes: Annotated[int, Field(ge=1, le=525600)] = Field(
        1440, description="REFRESH_TOKEN_EXPIRE_MINUTES"
    )
    auto_grant_admin_role: bool = Field(
        False, description="AUTO_GRANT_ADMIN_ROLE: everybody is an admin; only on hosts of the group lab or dev"
    )

    # the guide's object storage variables
    internal_object_bucket: Bucket = Field("mc-bench-internal", description="INTERNAL_OBJECT_BUCKET")
    external_object_bucket: Bucket = Field("mc-bench-public", description="EXTERNAL_OBJECT_BUCKET")
    object_store_dsn: Annotated[str, AfterValidator(_dsn)] = Field(
        "object:9000", description="OBJECT_STORE_DSN on hosts without the object store; its port is the one it is published on"
    )
    object_store_access_key: Annotated[Secret, AfterValidator(_no_placeholder)] = Field(
        default_factory=Secret.unset,
        description="OBJECT_STORE_ACCESS_KEY",
        examples=["env:MCBENCH_OBJECT_STORE_ACCESS_KEY"],
    )
    object_store_secret_key: Password = Field(
        default_factory=Secret.unset,
        description=f"OBJECT_STORE_SECRET_KEY, {PASSWORD_LENGTH} characters or more",
        examples=["env:MCBENCH_OBJECT_STORE_SECRET_KEY"],
    )
    object_store_secure: bool = Field(
        False, description="OBJECT_STORE_SECURE: by https; False is for private networks only"
    )

    # the guide's variables of the workers
    anthropic_api_key: ApiKey = Field(default_factory=Secret.unset, description="ANTHROPIC_API_KEY")
    openai_api_key: ApiKey = Field(default_factory=Secret.unset, description="OPENAI_API_KEY")
    gemini_api_key: ApiKey = Field(default_factory=Secret.unset, description="GEMINI_API_KEY")
    mistral_api_key: ApiKey = Field(default_factory=Secret.unset, description="MISTRAL_API_KEY")
    fast_render: bool = Field(False, description="FAST_RENDER")
    log_interval_blocks: Annotated[int, Field(ge=1, le=10**9)] = Field(1000, description="LOG_INTERVAL_BLOCKS")
    log_interval_materials: Annotated[int, Field(ge=1, le=10**9)] = Field(1000, description="LOG_INTERVAL_MATERIALS")
    minecraft_server_image: Image = Field(
        "",
        description="MINECRAFT_SERVER_IMAGE, with its registry; pulled on server hosts before the workers start",
        examples=["registry.example.org/mc-bench-minecraft-server:1.4.0"],
    )
    minecraft_builder_image: Image = Field(
        "",
        description="MINECRAFT_BUILDER_IMAGE, with its registry; pulled likewise",
        examples=["registry.example.org/mc-bench-builder-runner:1.4.0"],
    )
    num_workers: Count = Field(2, description="NUM_WORKERS: tasks that one server worker runs at once")
    build_delay_ms: Annotated[int, Field(ge=0, le=60000)] = Field(500, description="BUILD_DELAY_MS")

    extra_env: dict[ComponentName, dict[EnvName, Line]] = Field(
        {}, description="further variables by component, or for `all` of the application's, no secrets"
    )
    extra_secret_env: dict[ComponentName, dict[EnvName, Secret]] = Field(
        {}, description="further variables that are secrets, likewise"
    )

    # how many, how large
    api_count: Count = Field(1, description="containers of api on each host of `mcbench_api`")
    admin_api_count: Count = Field(1, description="containers of admin-api on each host of `mcbench_admin`")
    worker_count: Count = Field(1, description="containers of worker on each host of `mcbench_worker`")
    admin_worker_count: Count = Field(1, description="containers of admin-worker on each host of `mcbench_admin_worker`")
    render_worker_count: Count = Field(1, description="containers of render-worker on each host of `mcbench_render`")
    server_worker_count: Count = Field(1, description="containers of server-worker on each host of `mcbench_server`")
    limits: dict[ComponentName, Limits] = Field(
        {}, description="limits of one container of a component instead of the guide's minimum: cpus, memory_mb"
    )
    allow_small: bool = Field(
        False, description="run below the guide's minimum; only on hosts of the group lab or dev"
    )

    # the web
    api_domain: Domain | None = Field(
        None, description="name of the api; required in `mcbench_api`", examples=["api.example.org"]
    )
    api_extra_domains: Many[WildcardDomain] = Field((), description="further names of the api")
    admin_domain: Domain | None = Field(
        None, description="name of the admin-api; required in `mcbench_admin`", examples=["admin.example.org"]
    )
    flower_enabled: bool = Field(True, description="run Flower on hosts of `mcbench_admin`")
    flower_domain: Domain | None = Field(
        None, description="name of Flower; required with it", examples=["flower.example.org"]
    )
    flower_user: FlowerUser = Field("admin", description="who may log in to Flower")
    flower_password: Password = Field(
        default_factory=Secret.unset,
        description=f"with this password, {PASSWORD_LENGTH} characters or more",
        examples=["env:MCBENCH_FLOWER_PASSWORD"],
    )
    flower_command: Many[Line] = Field(
        ("celery", "-A", "mc_bench.apps.admin_worker", "flower"),
        description="how Flower starts, in the image of admin-worker unless `images` names another",
    )
    health_path: Path = Field("/health", description="path that answers 200 when api or admin-api is up")
    health_networks: Many[AdminNetwork] = Field(
        (),
        description="networks that may read the host's health page, `/mcbench-health` and `/mcbench-health.json` on the sites of "
        "api and admin-api; empty means only the host itself",
    )
    max_request_body_size: Annotated[int, Field(ge=1024, le=10 * 1024**3)] = Field(
        100 * 1024**2, description="bytes; the largest upload"
    )
    request_timeout_seconds: Seconds = Field(300, description="longest silence of the APIs on one request or websocket")
    rate_limit_per_second: Annotated[int, Field(ge=0, le=100000)] = Field(
        50, description="requests per address to the api; 0 means no limit"
    )
    rate_limit_burst: Annotated[int, Field(ge=0, le=100000)] = Field(100, description="requests above it that are let through")
    hsts_seconds: Annotated[int, Field(ge=0, le=63072000)] = Field(
        0, description="Strict-Transport-Security; 0 sends none"
    )

    # how a release goes out
    migrate_enabled: bool = Field(True, description="migrate the database before a release is switched to")
    migrate_command: Annotated[Many[Line], Field(min_length=1)] = Field(
        ("alembic", "upgrade", "head"), description="what migrates, in a container of its own from the new api image"
    )
    migrate_host: Line = Field("", description="host of `mcbench_api` that does it; empty means the first of the inventory")
    batch: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="hosts that switch at once; the same on all hosts")
    start_timeout_seconds: Seconds = Field(120, description="time that a new container has to become healthy")
    settle_seconds: Annotated[int, Field(ge=0, le=600)] = Field(
        10, description="time it must then stay healthy before it takes traffic"
    )
    check_interval_seconds: Annotated[int, Field(ge=1, le=600)] = Field(
        20, description="time between two health checks of a worker or of Flower; each starts a Python in its container"
    )
    web_drain_seconds: Seconds = Field(60, description="time that an old api has to finish its requests")
    task_drain_seconds: Seconds = Field(
        86400,
        description="time that an old worker has to finish its tasks, by default the application's own limit of a task: "
        "one that is stopped earlier is lost",
    )
    quiesce_command: Many[Line] = Field(
        (), description="what makes a worker take no more tasks, run in its container; empty asks Celery"
    )
    busy_command: Many[Line] = Field(
        (), description="what prints how many tasks a worker has, likewise; empty asks Celery"
    )
    keep_releases: Annotated[int, Field(ge=2, le=50)] = Field(3, description="releases kept, the running one included")

    # server workers
    server_shares_host: bool = Field(
        False,
        description="a host of `mcbench_server` may have other roles: whoever has its Docker socket reads all their secrets",
    )
    docker_group: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="number of the socket's group, for an image of server-worker whose user is not root; 0 adds none"
    )
    jobs_internet: bool = Field(False, description="let containers of the network `mcbench-jobs` reach the outside")
    orphan_hours: Annotated[int, Field(ge=1, le=720)] = Field(
        25, description="a game container older than this is removed, its worker alive or not"
    )

    # logs
    log_driver: Literal["json-file", "journald", "syslog", "gelf", "fluentd"] = Field(
        "json-file", description="where the containers' logs go; the last three ship them to `log_address`"
    )
    log_address: Annotated[
        str,
        matching(
            r"(?:(?:udp|tcp|tcp\+tls)://)?(?:[A-Za-z0-9.-]+|\[[0-9a-f:]+\]):[0-9]{1,5}|",
            "must be the collector's address such as 'udp://logs.internal:12201'",
        ),
    ] = Field("", description="the collector, in the words of the driver", examples=["udp://logs.internal:12201"])
    log_max_size_mb: Annotated[int, Field(ge=1, le=10000)] = Field(10, description="size of one log file on the host")
    log_files: Annotated[int, Field(ge=1, le=100)] = Field(3, description="log files of one container")

    # cleanup
    cleanup_enabled: bool = Field(True, description="remove images and containers of ours that nothing needs, every six hours")
    cleanup_keep_hours: Annotated[int, Field(ge=1, le=8760)] = Field(
        72, description="what was used within this time stays"
    )

    # --- what runs here --------------------------------------------------------------------------------------------

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the host, by its groups."""
        return tuple(role for role in ROLES if f"mcbench_{role}" in self._groups)

    @property
    def is_experimental(self) -> bool:
        """Whether the host is one on which unsafe values are allowed."""
        return bool(self._groups & EXPERIMENTAL)

    @property
    def external(self) -> tuple[str, ...]:
        """The services that are somebody else's."""
        flags = zip(SERVICES, (self.postgres_external, self.redis_external, self.object_external), strict=True)
        return tuple(service for service, is_external in flags if is_external)

    @property
    def components(self) -> tuple[str, ...]:
        """The components that run on this host."""
        return tuple(name for name, component in COMPONENTS.items() if component.role in self.roles and self._wants(name))

    def _wants(self, component: str) -> bool:
        if component in SERVICES:
            return component in self.services and component not in self.external
        return component != "admin-flower" or self.flower_enabled

    @property
    def applications(self) -> tuple[str, ...]:
        """The components of this host that are the application's own."""
        return tuple(name for name in self.components if name not in SERVICES)

    @property
    def used_services(self) -> frozenset[str]:
        """The services that a component of the application on this host uses, wherever they are."""
        tables = {table for component in self.applications for table in _TABLES[component]}
        users = {"postgres": {"postgres"}, "redis": {"redis"} if self.celery_broker_url else {"redis", "broker"}, "object": {"object"}}
        return frozenset(service for service, those in users.items() if tables & those)

    def count(self, component: str) -> int:
        """Return how many containers of a component run on this host."""
        if component in (*WEB, *WORKERS):
            return int(getattr(self, f"{component.replace('-', '_')}_count"))
        return 1

    def limit(self, component: str) -> tuple[float, int]:
        """Return the cores and the MiB of memory of one container of a component."""
        minimum, own = COMPONENTS[component], self.limits.get(component, Limits())
        return own.cpus or minimum.cpus, own.memory_mb or minimum.memory_mb

    def image(self, component: str) -> str:
        """Return the image of a component."""
        if component in SERVICES:
            return str(getattr(self, f"{component}_image"))
        if component in self.images:
            return self.images[component]
        built = "admin-worker" if component == "admin-flower" else component
        return self.images.get(built) or f"{self.registry}/mc-bench-{built}:{self.version}"

    @property
    def managed_images(self) -> tuple[str, ...]:
        """Every image that a setting names for this host: never to be cleaned away, used or not."""
        named = [self.image(name) for name in self.components]
        if "server" in self.roles:
            named += [self.minecraft_server_image, self.minecraft_builder_image]
        return tuple(dict.fromkeys(named))

    @property
    def api_domains(self) -> tuple[str, ...]:
        """All names of the api, the main one first."""
        return (self.api_domain, *self.api_extra_domains) if self.api_domain else ()

    @property
    def domains(self) -> tuple[str, ...]:
        """All names that this host answers to."""
        found: list[str] = []
        if "api" in self.roles:
            found += self.api_domains
        if "admin" in self.roles:
            found += [name for name in (self.admin_domain,) if name]
            found += [name for name in (self.flower_domain,) if name and self.flower_enabled]
        return tuple(found)

    # --- variables -------------------------------------------------------------------------------------------------

    def _here(self, service: str) -> bool:
        return service in self.components

    @property
    def broker(self) -> Secret:
        """CELERY_BROKER_URL, with its password."""
        if self.celery_broker_url:
            return self.celery_broker_url
        host, port = ("redis", 6379) if self._here("redis") else (self.redis_host, self.redis_port)
        where = f"[{host}]" if ":" in host else host
        if not self.redis_password.resolved:
            return self.redis_password
        password = quote(self.redis_password.unmask(), safe="")
        # Celery looks at no certificate unless it is told to.
        scheme, options = ("rediss", "?ssl_cert_reqs=CERT_REQUIRED") if self.redis_tls else ("redis", "")
        return Secret(f"{scheme}://{self.redis_username}:{password}@{where}:{port}/0{options}")

    @property
    def sslmode(self) -> str:
        """POSTGRES_SSLMODE."""
        return self.postgres_sslmode or ("require" if self.postgres_external else "disable")

    def environment(self, component: str) -> dict[str, str | Secret]:
        """Return the variables of one container of a component: its own, and none of another's.

        WORKER_NAME is not among them: it differs from container to container, so the rollout adds it.
        """
        found: dict[str, str | Secret] = {}
        for table in _TABLES[component]:
            found |= getattr(self, f"_{table}_variables")()
        if component not in SERVICES:
            if self.external_ca:
                found |= {"SSL_CERT_FILE": f"{CA_DIRECTORY}/bundle.pem", "PGSSLROOTCERT": f"{CA_DIRECTORY}/bundle.pem"}
            for name in ("all", component):
                found |= self.extra_env.get(name, {})
                found |= self.extra_secret_env.get(name, {})
        return found

    def _log_variables(self) -> dict[str, str | Secret]:
        return {
            "LOG_LEVEL": self.log_level,
            "HUMANIZE_LOGS": _flag(self.humanize_logs),
            "SHOW_VERBOSE_SQL": _flag(self.show_verbose_sql),
        }

    def _broker_variables(self) -> dict[str, str | Secret]:
        return {"CELERY_BROKER_URL": self.broker}

    def _redis_variables(self) -> dict[str, str | Secret]:
        here = self._here("redis")
        return {
            "REDIS_HOST": "redis" if here else self.redis_host,
            "REDIS_PORT": "6379" if here else str(self.redis_port),
            "REDIS_USERNAME": self.redis_username,
            "REDIS_PASSWORD": self.redis_password,
            # The application takes both for true when nobody says otherwise.
            "REDIS_USE_AUTH": "true",
            "REDIS_USE_SSL": _flag(self.redis_tls),
        }

    def _postgres_variables(self) -> dict[str, str | Secret]:
        here = self._here("postgres")
        return {
            "POSTGRES_HOST": "postgres" if here else self.postgres_host,
            "POSTGRES_PORT": "5432" if here else str(self.postgres_port),
            "POSTGRES_USER": self.postgres_user,
            "POSTGRES_PASSWORD": self.postgres_password,
            "POSTGRES_DB": self.postgres_db,
            "POSTGRES_SSLMODE": self.sslmode,
        }

    def _session_variables(self) -> dict[str, str | Secret]:
        return {
            "SECRET_KEY": self.secret_key,
            "CORS_ALLOWED_ORIGIN": self.cors_allowed_origin,
            "ACCESS_TOKEN_EXPIRE_MINUTES": str(self.access_token_expire_minutes),
            "REFRESH_TOKEN_EXPIRE_MINUTES": str(self.refresh_token_expire_minutes),
        }

    def _login_variables(self) -> dict[str, str | Secret]:
        return {
            "GITHUB_CLIENT_ID": self.github_client_id,
            "GITHUB_CLIENT_SECRET": _given(self.github_client_secret),
            "GOOGLE_CLIENT_ID": self.google_client_id,
            "GOOGLE_CLIENT_SECRET": _given(self.google_client_secret),
            "AUTO_GRANT_ADMIN_ROLE": _flag(self.auto_grant_admin_role),
        }

    def _bucket_variables(self) -> dict[str, str | Secret]:
        return {
            "INTERNAL_OBJECT_BUCKET": self.internal_object_bucket,
            "EXTERNAL_OBJECT_BUCKET": self.external_object_bucket,
        }

    def _object_variables(self) -> dict[str, str | Secret]:
        here = self._here("object")
        return {
            **self._bucket_variables(),
            "OBJECT_STORE_DSN": f"object:{self.object_container_port}" if here else self.object_store_dsn,
            "OBJECT_STORE_ACCESS_KEY": self.object_store_access_key,
            "OBJECT_STORE_SECRET_KEY": self.object_store_secret_key,
            "OBJECT_STORE_SECURE": _flag(self.object_store_secure),
        }

    def _models_variables(self) -> dict[str, str | Secret]:
        return {
            "ANTHROPIC_API_KEY": _given(self.anthropic_api_key),
            "OPENAI_API_KEY": _given(self.openai_api_key),
            "GEMINI_API_KEY": _given(self.gemini_api_key),
            "MISTRAL_API_KEY": _given(self.mistral_api_key),
        }

    def _render_variables(self) -> dict[str, str | Secret]:
        return {
            "FAST_RENDER": _flag(self.fast_render),
            "LOG_INTERVAL_BLOCKS": str(self.log_interval_blocks),
            "LOG_INTERVAL_MATERIALS": str(self.log_interval_materials),
        }

    def _server_variables(self) -> dict[str, str | Secret]:
        return {
            "MINECRAFT_SERVER_IMAGE": self.minecraft_server_image,
            "MINECRAFT_BUILDER_IMAGE": self.minecraft_builder_image,
            "NUM_WORKERS": str(self.num_workers),
            "BUILD_DELAY_MS": str(self.build_delay_ms),
        }

    def _flower_variables(self) -> dict[str, str | Secret]:
        password = self.flower_password
        login = Secret(f"{self.flower_user}:{password.unmask()}") if password.resolved else password
        return {"FLOWER_BASIC_AUTH": login, "FLOWER_PORT": "5555"}

    def _database_variables(self) -> dict[str, str | Secret]:
        return {
            "POSTGRES_USER": self.postgres_user,
            "POSTGRES_PASSWORD": self.postgres_password,
            "POSTGRES_DB": self.postgres_db,
        }

    def _queue_variables(self) -> dict[str, str | Secret]:
        return {"REDIS_PASSWORD": self.redis_password}

    def _store_variables(self) -> dict[str, str | Secret]:
        return {
            self.object_access_key_variable: self.object_store_access_key,
            self.object_secret_key_variable: self.object_store_secret_key,
        }

    # --- rules -----------------------------------------------------------------------------------------------------

    @rule
    def _images_are_known(self) -> Iterator[Fault]:
        for component in self.applications:
            built = "admin-worker" if component == "admin-flower" else component
            if component in self.images or built in self.images:
                continue
            if not self.registry:
                yield Fault("registry", "is required", hint="write mcbench_registry = 'registry.example.org'")
            if not self.version:
                yield Fault("version", "is required", hint="write mcbench_version = '1.4.0'")
            break
        for component in sorted({*SERVICES, "all"} & set(self.images)):
            yield Fault(f"images.{component}", "must not stand here", hint=f"write mcbench_{component}_image")
        if "object" in self.components and not self.object_image:
            yield Fault(
                "object_image",
                "is required where the object store runs",
                hint="write the image of an S3 server, or mcbench_object_external = True",
            )
        for name in ("minecraft_server_image", "minecraft_builder_image"):
            if "server" in self.roles and not getattr(self, name):
                yield Fault(name, "is required on hosts of mcbench_server", hint=f"write mcbench_{name} = 'registry.example.org/…:1.4.0'")

    @rule
    def _secrets_are_given(self) -> Iterator[Fault]:
        tables = {table for component in self.components for table in _TABLES[component]}
        for name, users in _SECRETS.items():
            if tables & users and not getattr(self, name):
                yield Fault(name, "is required", hint=f"write mcbench_{name} = 'env:MCBENCH_{name.upper()}'")

    @rule
    def _passwords_differ(self) -> Iterator[Fault]:
        own = self.postgres_backup_password
        if own.resolved and self.postgres_password.resolved and own.unmask() == self.postgres_password.unmask():
            yield Fault("postgres_backup_password", "must not be mcbench_postgres_password")

    @rule
    def _domains_are_given(self) -> Iterator[Fault]:
        wanted = {"api_domain": "api", "admin_domain": "admin"}
        for name, role in wanted.items():
            if role in self.roles and not getattr(self, name):
                yield Fault(name, f"is required on hosts of mcbench_{role}", hint=f"write mcbench_{name} = '{role}.example.org'")
        if "admin" in self.roles and self.flower_enabled and not self.flower_domain:
            yield Fault(
                "flower_domain",
                "is required on hosts of mcbench_admin",
                hint="write mcbench_flower_domain = 'flower.example.org', or mcbench_flower_enabled = False",
            )
        names = [name for name in (*self.api_domains, self.admin_domain, self.flower_domain) if name]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Fault("api_domain", "must be a name of its own for each site", name)
        if "api" in self.roles and not self.cors_allowed_origin:
            yield Fault(
                "cors_allowed_origin",
                "is required on hosts of mcbench_api",
                hint="write mcbench_cors_allowed_origin = 'https://frontend.example.org'",
            )

    @rule
    def _services_are_reached(self) -> Iterator[Fault]:
        """A host without a service must be told where it is; the guide's names only live on one host's network."""
        for service, key, default in (
            ("postgres", "postgres_host", "postgres"),
            ("redis", "redis_host", "redis"),
            ("object", "object_store_dsn", "object:9000"),
        ):
            if service in self.used_services - {*self.components} and getattr(self, key) == default:
                yield Fault(
                    key,
                    f"is required on a host without {service}",
                    default,
                    f"write the address of the host that runs it, or where mcbench_{service}_external is",
                )

    @rule
    def _nothing_crosses_the_internet_in_clear(self) -> Iterator[Fault]:
        if not self.object_store_secure and not is_private(self.object_store_dsn.rpartition(":")[0]):
            yield Fault("object_store_secure", f"must be True towards {self.object_store_dsn}", False)
        if not self.redis_tls and not is_private(self.redis_host):
            yield Fault("redis_tls", f"must be True towards {self.redis_host}", False)
        if not is_private(self.postgres_host) and self.postgres_sslmode in ("disable", "prefer"):
            yield Fault("postgres_sslmode", f"must be 'require' or stricter towards {self.postgres_host}", self.postgres_sslmode)
        if not is_private(self.postgres_host) and self.postgres_sslmode is None and not self.postgres_external:
            yield Fault(
                "postgres_sslmode", f"must be 'require' or stricter towards {self.postgres_host}", "disable",
                "write mcbench_postgres_external = True if it is not this deploy's",
            )  # fmt: skip
        if self.redis_tls and not self.redis_external:
            yield Fault("redis_tls", "must be False: this deploy's Redis speaks no TLS", True, "write mcbench_redis_external = True")
        if self.object_store_secure and not self.object_external:
            yield Fault(
                "object_store_secure", "must be False: this deploy's object store speaks no TLS", True,
                "write mcbench_object_external = True",
            )  # fmt: skip
        if self.external_ca and not self.external:
            yield Fault("external_ca", "must be empty when no service is external", hint="this deploy's own services speak no TLS")
        for origin in self.cors_allowed_origin.split(","):
            if origin.startswith("http://") and not self.is_experimental:
                yield Fault("cors_allowed_origin", "must be https:// outside the groups lab and dev", origin)

    @rule
    def _services_are_published_together(self) -> Iterator[Fault]:
        if self.internal_address and not self.internal_networks:
            yield Fault(
                "internal_networks", "is required with mcbench_internal_address", hint="write mcbench_internal_networks = ['10.0.0.0/24']"
            )
        if self.internal_address and not set(self.components) & set(SERVICES):
            yield Fault("internal_address", "must be empty on a host without postgres, redis and object store", self.internal_address)
        ports = [self.postgres_port, self.redis_port, self.object_port]
        if self.internal_address and len(set(ports)) != len(ports):
            yield Fault("object_store_dsn", "must have a port of its own: postgres, redis and object store share the host", self.object_store_dsn)
        if self.redis_username != "default" and not self.redis_external:
            yield Fault("redis_username", "must be 'default' for this deploy's Redis", self.redis_username)

    @rule
    def _logins_are_whole(self) -> Iterator[Fault]:
        for name in ("github", "google"):
            has_id, has_secret = bool(getattr(self, f"{name}_client_id")), bool(getattr(self, f"{name}_client_secret"))
            if has_id != has_secret:
                missing, given = ("secret", "id") if has_id else ("id", "secret")
                yield Fault(f"{name}_client_{missing}", f"is required with mcbench_{name}_client_{given}")
        if self.refresh_token_expire_minutes <= self.access_token_expire_minutes:
            yield Fault(
                "refresh_token_expire_minutes",
                f"must be more than mcbench_access_token_expire_minutes ({self.access_token_expire_minutes})",
                self.refresh_token_expire_minutes,
            )

    @rule
    def _unsafe_is_experimental(self) -> Iterator[Fault]:
        if self.is_experimental:
            return
        for name in ("auto_grant_admin_role", "allow_small"):
            if getattr(self, name):
                yield Fault(name, "must be False outside the groups lab and dev", True)

    @rule
    def _limits_are_enough(self) -> Iterator[Fault]:
        for component, own in self.limits.items():
            if component == "all":
                yield Fault("limits.all", "must be a component of mcbench")
            elif not self.allow_small:
                minimum = COMPONENTS[component]
                if own.cpus is not None and own.cpus < minimum.cpus:
                    yield Fault(f"limits.{component}.cpus", f"must be at least {minimum.cpus:g}", own.cpus)
                if own.memory_mb is not None and own.memory_mb < minimum.memory_mb:
                    yield Fault(f"limits.{component}.memory_mb", f"must be at least {minimum.memory_mb}", own.memory_mb)

    @rule
    def _server_is_alone(self) -> Iterator[Fault]:
        others = [role for role in self.roles if role != "server"]
        if "server" in self.roles and others and not self.server_shares_host:
            yield Fault(
                "server_shares_host",
                f"must be True for a host of mcbench_server that is also in {', '.join(f'mcbench_{role}' for role in others)}",
                False,
                "better give it a host of its own: who has its Docker socket has the secrets of all of them",
            )

    @rule
    def _health_page_is_in_nobodys_way(self) -> Iterator[Fault]:
        if self.health_path in ("/mcbench-health", "/mcbench-health.json"):
            yield Fault("health_path", "must not be the path of the host's health page", self.health_path)

    @rule
    def _logs_go_somewhere(self) -> Iterator[Fault]:
        if self.ships_logs and not self.log_address:
            yield Fault("log_address", f"is required when mcbench_log_driver is {self.log_driver!r}", hint="write mcbench_log_address = 'udp://logs.internal:12201'")
        if self.log_address and not self.ships_logs:
            yield Fault("log_address", f"must be empty when mcbench_log_driver is {self.log_driver!r}", self.log_address)
        if self.log_driver in ("syslog", "gelf") and self.log_address and not self.log_address.startswith("udp://"):
            yield Fault(
                "log_address",
                f"must begin with udp:// when mcbench_log_driver is {self.log_driver!r}: over TCP the engine starts no container "
                "while the collector is away",
                self.log_address,
                "fluentd ships over TCP and waits for nobody",
            )
        if self.ships_logs and self.humanize_logs:
            yield Fault("humanize_logs", f"must be False when mcbench_log_driver is {self.log_driver!r}: collectors read JSON", True)

    @rule
    def _checks_fit_into_the_start(self) -> Iterator[Fault]:
        if self.check_interval_seconds >= self.start_timeout_seconds:
            yield Fault(
                "check_interval_seconds",
                f"must be less than mcbench_start_timeout_seconds ({self.start_timeout_seconds})",
                self.check_interval_seconds,
            )

    @rule
    def _questions_go_together(self) -> Iterator[Fault]:
        if bool(self.quiesce_command) != bool(self.busy_command):
            missing, given = ("busy", "quiesce") if self.quiesce_command else ("quiesce", "busy")
            yield Fault(f"{missing}_command", f"is required with mcbench_{given}_command")

    @rule
    def _extra_env_is_extra(self) -> Iterator[Fault]:
        for field in ("extra_env", "extra_secret_env"):
            for component, variables in getattr(self, field).items():
                if component in SERVICES:
                    yield Fault(f"{field}.{component}", "must be a component of the application")
                for name in sorted(OWN_VARIABLES.intersection(variables)):
                    yield Fault(f"{field}.{component}.{name}", "is set by the deploy", hint="see the settings of mcbench")
        for component, plain in self.extra_env.items():
            for name in sorted(plain):
                if _SECRET_NAME.search(name):
                    yield Fault(
                        f"extra_env.{component}.{name}",
                        "looks like a secret",
                        hint=f"write mcbench_extra_secret_env = {{{component!r}: {{{name!r}: 'env:{name}'}}}}",
                    )

    # --- what a host must be, and what it lets in ------------------------------------------------------------------

    @property
    def ships_logs(self) -> bool:
        """Whether logs leave the host."""
        return self.log_driver in ("syslog", "gelf", "fluentd")

    @property
    def object_port(self) -> int:
        """The port that the object store is published on."""
        return int(self.object_store_dsn.rpartition(":")[2])

    @property
    def service_ports(self) -> dict[str, int]:
        """The ports on which this host's services are published to the fleet, by service."""
        if not self.internal_address:
            return {}
        numbers = {"postgres": self.postgres_port, "redis": self.redis_port, "object": self.object_port}
        return {service: number for service, number in numbers.items() if service in self.components}

    def ports(self) -> tuple[Port, ...]:
        """Return the ports that are open: https, and the services to the fleet's own networks."""
        found: list[Port] = []
        if {"api", "admin"} & set(self.roles):
            found.append(Port(port=80, why="mcbench: ACME challenge and redirect to https"))
        if "api" in self.roles:
            found.append(Port(port=443, why="mcbench: https"))
        elif "admin" in self.roles and (self.admin_networks or self.health_networks):
            networks = tuple(dict.fromkeys((*self.admin_networks, *self.health_networks)))
            found.append(Port(port=443, sources=networks, why="mcbench: admin https"))
        for service, number in self.service_ports.items():
            found.append(Port(port=number, sources=self.internal_networks, why=f"mcbench: {service}"))
        return tuple(found)

    def needs(self) -> Requirements:
        """Return the guide's minimum for what runs here. Cores are shared, memory adds up."""
        claims = [PortClaim(number, ("nginx",)) for number in (80, 443) if {"api", "admin"} & set(self.roles)]
        claims += [PortClaim(number, ("docker-proxy", "rootlessport")) for number in self.service_ports.values()]
        architectures = ("x86_64",) if "render" in self.roles else ("x86_64", "aarch64")
        if self.allow_small:
            return Requirements(architectures=architectures, disk_var_mb=1024, ports=tuple(claims))
        parts = [(self.limit(name), self.count(name)) for name in self.components]
        return Requirements(
            architectures=architectures,
            cores=max([1, *(_whole(cpus) for (cpus, _), _ in parts)]),
            # what the firmware and the kernel keep for themselves is missing from what a host of 4 GB says it has
            memory_mb=sum(memory * count for (_, memory), count in parts) * 9 // 10,
            # Room for images and for a second copy of the database while it is dumped. Not the guide's 20 and 100 GB
            # of data: what is free shrinks as they fill, and a full store must not stop the run that looks after it.
            disk_var_mb=2048 + 1024 * len(self.components),
            disk_root_mb=512,
            ports=tuple(claims),
        )


def _whole(cpus: float) -> int:
    return int(-(-cpus // 1))


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _given(value: Secret) -> str | Secret:
    """A secret that may be left out is an empty variable then."""
    return value if value else ""


_TABLES: dict[str, tuple[str, ...]] = {
    "api": ("log", "broker", "redis", "postgres", "session", "login", "object"),
    "admin-api": ("log", "broker", "redis", "postgres", "session", "bucket"),
    "admin-flower": ("broker", "flower", "bucket"),
    "worker": ("log", "broker", "redis", "postgres"),
    "admin-worker": ("log", "broker", "redis", "postgres", "object", "models"),
    "render-worker": ("log", "broker", "redis", "postgres", "object", "render"),
    "server-worker": ("log", "broker", "redis", "postgres", "object", "server"),
    "scheduler": ("log", "broker", "redis", "postgres"),
    "postgres": ("database",),
    "redis": ("queue",),
    "object": ("store",),
}
"""Which tables of variables each component gets."""

_SECRETS: dict[str, set[str]] = {
    "postgres_password": {"postgres", "database"},
    "redis_password": {"redis", "broker", "queue"},
    "secret_key": {"session"},
    "object_store_access_key": {"object", "store"},
    "object_store_secret_key": {"object", "store"},
    "flower_password": {"flower"},
}
"""The secrets that a host must have when one of these tables is used on it."""

OWN_VARIABLES = frozenset(
    [
        "CELERY_BROKER_URL", "POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB",
        "POSTGRES_SSLMODE", "REDIS_HOST", "REDIS_PORT", "REDIS_USERNAME", "REDIS_PASSWORD", "REDIS_USE_AUTH",
        "REDIS_USE_SSL", "LOG_LEVEL", "WORKER_NAME", "HUMANIZE_LOGS", "SHOW_VERBOSE_SQL", "SECRET_KEY",
        "CORS_ALLOWED_ORIGIN", "GITHUB_CLIENT_ID", "GITHUB_CLIENT_SECRET", "GOOGLE_CLIENT_ID", "GOOGLE_CLIENT_SECRET",
        "ACCESS_TOKEN_EXPIRE_MINUTES", "REFRESH_TOKEN_EXPIRE_MINUTES", "AUTO_GRANT_ADMIN_ROLE",
        "INTERNAL_OBJECT_BUCKET", "EXTERNAL_OBJECT_BUCKET", "OBJECT_STORE_DSN", "OBJECT_STORE_ACCESS_KEY",
        "OBJECT_STORE_SECRET_KEY", "OBJECT_STORE_SECURE", "ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY",
        "MISTRAL_API_KEY", "FAST_RENDER", "LOG_INTERVAL_BLOCKS", "LOG_INTERVAL_MATERIALS", "MINECRAFT_SERVER_IMAGE",
        "MINECRAFT_BUILDER_IMAGE", "BUILD_DELAY_MS", "FLOWER_BASIC_AUTH", "FLOWER_PORT", "FLOWER_UNAUTHENTICATED_API",
    ]
)  # fmt: skip
"""Variables that no extra setting may name. NUM_WORKERS may: it means the same to every worker, and one setting is the
server worker's alone."""

_SECRET_NAME = re.compile(r"(?:^|_)(?:PASSWORD|PASSWD|SECRET|TOKEN|PRIVATE_KEY|API_KEY|API_KEYS|CREDENTIALS|SALT)$")


def fleet_faults(fleet: Mapping[str, Mcbench]) -> Iterator[Fault]:
    """Yield what is wrong between the hosts of one fleet; `fleet`: the settings of its hosts by name, whole ones only."""
    if not fleet:
        return
    for service in SERVICES:
        yield from _placement_faults(service, fleet)
    schedulers = [name for name, settings in fleet.items() if "scheduler" in settings.roles]
    for name in schedulers[1:]:
        yield Fault("mcbench_scheduler", f"must hold one host: {schedulers[0]} runs it already", host=name)
    apis = [name for name, settings in fleet.items() if "api" in settings.roles]
    for name, settings in fleet.items():
        if settings.migrate_host and settings.migrate_host not in apis:
            yield Fault("mcbench_migrate_host", "must be a host of mcbench_api", settings.migrate_host, _any_of(apis), name)
    for key in ("batch", "migrate_host", "migrate_enabled"):
        yield from differences(key, fleet, between_unset=True, show=True)
    for key in ("secret_key", "postgres_password", "redis_password", "object_store_secret_key", "object_store_access_key"):
        yield from differences(key, fleet)


def _placement_faults(service: str, fleet: Mapping[str, Mcbench]) -> Iterator[Fault]:
    runs = [name for name, settings in fleet.items() if service in settings.components]
    for name in runs[1:]:
        yield Fault(
            "mcbench_services", f"must not hold '{service}' on two hosts: {runs[0]} runs it already", host=name,
            hint="write which of the three run where",
        )  # fmt: skip
    users = [name for name, s in fleet.items() if s.applications and service not in (*s.components, *s.external)]
    if not runs and users:
        yield Fault(
            f"mcbench_{service}_external", f"must be True when no host of mcbench_infra runs {service}", False, host=users[0]
        )
    elif runs and users and not fleet[runs[0]].internal_address:
        yield Fault(
            "mcbench_internal_address", f"is required: {users[0]} needs {service}", host=runs[0],
            hint="write the host's address in the private network",
        )  # fmt: skip


def _any_of(names: Iterable[str]) -> str:
    return f"write one of {', '.join(names)}"
