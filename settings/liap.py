"""Settings of liap (`liap_…`): hosts of the group `liap`, each with a whole Compose stack of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote, urlencode, urlsplit

from pydantic import AfterValidator, Field

from settings.errors import Fault, broken
from settings.exposure import Port
from settings.fields import (
    AbsolutePath,
    Domain,
    EnvName,
    Line,
    Many,
    Network,
    OwnAddress,
    PortNumber,
    RedisUrl,
    WildcardDomain,
    matching,
    narrow,
    reached_by_others,
)
from settings.mcbench import (
    PASSWORD_LENGTH,
    ApiKey,
    Bucket,
    DatabaseName,
    Image,
    Password,
    Seconds,
    is_private,
)
from settings.requirements import PortClaim, Requirements
from settings.secret import Secret
from settings.section import Section, rule

EXPERIMENTAL = frozenset({"lab", "dev"})
"""Groups (an inventory's file name is one) in which small hosts and the guide's dev and test stacks are allowed."""

APP_PORT = 8000
CA_FILE = "/etc/liap/ca.crt"
"""Where the backend finds the authority of what runs on other hosts, in its container."""
REDIS = "liap"
"""The instance on the hosts of liap_redis, and what clients ask sentinels for."""
TAKEN_PORTS = {
    8000: "the backend's own",
    8001: "the backend's own, for the drain",
    9090: "Prometheus'",
    9093: "Alertmanager's",
    9100: "the node exporter's",
    9121: "the Redis exporter's",
    9187: "the PostgreSQL exporter's",
    3000: "Grafana's",
    5432: "PostgreSQL's",
    6379: "Redis'",
    6432: "PgBouncer's",
    26379: "the sentinels'",
}
"""Ports that something else of this system or of monitoring has: the guide gave Prometheus and the backend one and the same."""

_PRINTED = frozenset({"archive", "minioadmin", "admin", "test", "grafana", "liap"})
_MAKE_ONE = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
_FLEETING = ("/tmp", "/var/tmp", "/run", "/dev")


def _not_printed(value: Secret) -> Secret:
    if value.resolved and value.unmask().lower() in _PRINTED:
        raise broken("must not be a value that guides print", _MAKE_ONE, show=False)
    return value


def _version(value: str) -> str:
    if value == "latest":
        raise broken("must not be 'latest': nobody could say what runs, or go back to it", "write liap_version = '1.4.0'")
    if value and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", value):
        raise broken("must be a tag such as '1.4.0'")
    return value


def _repository(value: str) -> str:
    if value and not re.fullmatch(r"[a-z0-9.-]+(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)+", value):
        raise broken("must be a registry with a path, such as 'registry.example.org/liap-backend'")
    return value


def _endpoint(value: str) -> str:
    if value:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or re.search(r"\s", value):
            raise broken("must be the URL of an S3 server without a path, such as 'https://s3.example.org'")
        if parts.username or parts.password:
            raise broken("must not hold a password", show=False)
    return value.rstrip("/")


def _lasting(value: str) -> str:
    if value.startswith(tuple(f"{top}/" for top in _FLEETING)) or value in _FLEETING:
        raise broken("must be where files stay over a reboot", "write '/var/lib/liap/archive'")
    if value.count("/") < 2:
        raise broken("must be a directory of its own", "write '/var/lib/liap/archive'")
    return value.rstrip("/")


OwnPassword = Annotated[Password, AfterValidator(_not_printed)]
Whole = Annotated[int, Field(ge=1, le=10**9)]


class Liap(Section):
    """The liap game backend in a Compose stack of its own, behind nginx: Redis for rate limits beside it, and what archives
    completed games. Active games live in the backend's memory: an update waits for them."""

    prefix: ClassVar[str] = "liap_"

    # what runs
    environment: Literal["production", "staging", "development", "test"] = Field(
        "production", description="ENVIRONMENT; `deploys.liap.reset` refuses production"
    )
    repository: Annotated[str, AfterValidator(_repository)] = Field(
        "", description="image of the backend without its tag", examples=["registry.example.org/liap-backend"]
    )
    version: Annotated[str, AfterValidator(_version)] = Field("", description="its tag", examples=["1.4.0"])
    redis_image: Image = Field("docker.io/library/redis:7-alpine", description="Redis 7 or newer")
    postgres_image: Image = Field("docker.io/library/postgres:15-alpine", description="PostgreSQL 15 or newer, where the archive is one of its own")
    user: Annotated[str, matching(r"[0-9]+:[0-9]+", "must be numbers such as '10001:10001'")] = Field(
        "10001:10001", description="user and group of the backend, as numbers; the archive directory is theirs"
    )
    pull: Literal["missing", "moved", "never"] = Field(
        "missing", description="moved: each converge asks the registry whether a tag means another image now"
    )

    # the web
    domain: Domain | None = Field(None, description="name that players reach it by; required", examples=["liap.example.org"])
    alias_domains: Many[WildcardDomain] = Field((), description="further names")
    websocket_timeout_seconds: Seconds = Field(3600, description="longest silence of a game's websocket")
    hsts_seconds: Annotated[int, Field(ge=0, le=63072000)] = Field(0, description="Strict-Transport-Security; 0 sends none")
    max_request_body_size: Annotated[int, Field(ge=1024, le=1024**3)] = Field(1024**2, description="bytes; the largest request")

    # the guide: memory
    max_active_games: Whole = Field(10000, description="MAX_ACTIVE_GAMES")
    max_memory_mb: Annotated[int, Field(ge=64, le=1024 * 1024)] = Field(4096, description="MAX_MEMORY_MB: what the backend keeps itself below")
    memory_check_interval: Seconds = Field(60, description="MEMORY_CHECK_INTERVAL (s)")
    gc_completed_games_after: Seconds = Field(300, description="GC_COMPLETED_GAMES_AFTER (s)")
    memory_limit_mb: Annotated[int, Field(ge=0, le=1024 * 1024)] = Field(
        0, description="what the kernel lets the backend's container have; 0 means a quarter more than max_memory_mb"
    )
    swap_mb: Annotated[int, Field(ge=0, le=65536)] = Field(
        1024, description="swap that it may use besides, as a safety net: the host needs as much, see base_swap_size_mb"
    )
    cpus: Annotated[float, Field(ge=0, le=256)] = Field(0, description="cores that the backend may use; 0 means all")

    # the guide: Redis, for rate limits only
    redis_password: OwnPassword = Field(
        default_factory=Secret.unset, description=f"of this stack's Redis, {PASSWORD_LENGTH} characters or more", examples=["env:LIAP_REDIS_PASSWORD"]
    )
    redis_url: RedisUrl = Field(
        default_factory=Secret.unset, description="REDIS_URL of somebody else's Redis or of Sentinel; by default a Redis of this stack's own"
    )
    redis_maxmemory_mb: Annotated[int, Field(ge=8, le=65536)] = Field(256, description="maxmemory; the oldest counters go then (allkeys-lru)")
    redis_pool_min: Annotated[int, Field(ge=0, le=1000)] = Field(0, description="REDIS_POOL_MIN")
    redis_pool_max: Annotated[int, Field(ge=1, le=1000)] = Field(10, description="REDIS_POOL_MAX")

    # the guide: archive
    archive_backend: Literal["s3", "postgresql", "filesystem"] = Field("s3", description="ARCHIVE_BACKEND: where completed games go")
    archive_batch_size: Annotated[int, Field(ge=1, le=100000)] = Field(100, description="ARCHIVE_BATCH_SIZE")
    archive_flush_interval: Seconds = Field(60, description="ARCHIVE_FLUSH_INTERVAL (s)")
    archive_retention_days: Annotated[int, Field(ge=1, le=36500)] = Field(90, description="ARCHIVE_RETENTION_DAYS, on every backend")
    archive_bucket: Bucket = Field("liap-archives", description="bucket of the backend s3")
    archive_prefix: Annotated[str, matching(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*|", "must be a path in the bucket such as 'games'")] = Field(
        "games", description="path in it"
    )
    s3_endpoint_url: Annotated[str, AfterValidator(_endpoint)] = Field("", description="S3 server; empty means AWS")
    s3_region: Annotated[str, matching(r"[a-z0-9-]+", "must be a region such as 'eu-central-1'")] = Field("us-east-1", description="AWS_REGION")
    s3_access_key: ApiKey = Field(default_factory=Secret.unset, description="AWS_ACCESS_KEY_ID", examples=["env:LIAP_S3_ACCESS_KEY"])
    s3_secret_key: OwnPassword = Field(default_factory=Secret.unset, description="AWS_SECRET_ACCESS_KEY", examples=["env:LIAP_S3_SECRET_KEY"])
    archive_bucket_managed: bool = Field(
        False, description="this host makes the bucket, backs it up, and has what is past its retention removed; on one host alone"
    )
    s3_admin_access_key: ApiKey = Field(
        default_factory=Secret.unset, description="of who may make the bucket; stays on this side", examples=["env:LIAP_S3_ADMIN_ACCESS_KEY"]
    )
    s3_admin_secret_key: OwnPassword = Field(default_factory=Secret.unset, description="its secret half", examples=["env:LIAP_S3_ADMIN_SECRET_KEY"])
    s3_keeper_access_key: ApiKey = Field(
        default_factory=Secret.unset, description="with which this host reads objects and tags them; empty: the backend's", examples=["env:LIAP_S3_KEEPER_ACCESS_KEY"]
    )
    s3_keeper_secret_key: OwnPassword = Field(default_factory=Secret.unset, description="its secret half", examples=["env:LIAP_S3_KEEPER_SECRET_KEY"])
    archive_directory: Annotated[AbsolutePath, AfterValidator(_lasting)] = Field(
        "/var/lib/liap/archive", description="directory on the host of the backend filesystem"
    )
    postgres_host: Annotated[str, matching(r"[A-Za-z0-9](?:[A-Za-z0-9.:_-]*[A-Za-z0-9])?|", "must be a host name or an address")] = Field(
        "", description="PostgreSQL (or PgBouncer) of the backend postgresql; empty means one of this stack's own"
    )
    postgres_port: PortNumber = Field(5432, description="its port")
    postgres_db: DatabaseName = Field("liap_archive", description="its database")
    postgres_user: DatabaseName = Field("archive", description="its role")
    postgres_password: OwnPassword = Field(
        default_factory=Secret.unset, description=f"with this password, {PASSWORD_LENGTH} characters or more", examples=["env:LIAP_POSTGRES_PASSWORD"]
    )
    postgres_backup_password: OwnPassword = Field(
        default_factory=Secret.unset,
        description="of the role that backups read the archive by; required where this stack's own PostgreSQL is backed up",
        examples=["env:LIAP_POSTGRES_BACKUP_PASSWORD"],
    )
    postgres_sslmode: Literal["disable", "require", "verify-full"] = Field("disable", description="towards somebody else's PostgreSQL")
    postgres_memory_mb: Annotated[int, Field(ge=128, le=1024 * 1024)] = Field(1024, description="limit of this stack's own PostgreSQL")
    database_pool_min: Annotated[int, Field(ge=0, le=10000)] = Field(1, description="DATABASE_POOL_MIN; the guide's 20 is for an archive of its own host")
    database_pool_max: Annotated[int, Field(ge=1, le=10000)] = Field(20, description="DATABASE_POOL_MAX; not more than PgBouncer's pool")

    # the guide: high availability. The same on all hosts of liap, liap_postgres and liap_redis, but for the address
    pgbouncer_enabled: bool = Field(
        False, description="the archive's PostgreSQL is that of the host in group liap_postgres, at liap_postgres_host, behind PgBouncer there"
    )
    pgbouncer_port: PortNumber = Field(6432, description="where backends reach it")
    pgbouncer_max_clients: Annotated[int, Field(ge=1, le=30000)] = Field(1000, description="the guide's MAX_CLIENT_CONN: connections of all backends together")
    pgbouncer_pool_size: Annotated[int, Field(ge=1, le=5000)] = Field(25, description="the guide's DEFAULT_POOL_SIZE: connections to PostgreSQL")
    pgbouncer_prepared_statements: Annotated[int, Field(ge=0, le=10000)] = Field(
        200, description="how many are kept for clients that prepare; 0 on Debian 12 and Ubuntu 22.04, whose PgBouncer keeps none"
    )
    pgbouncer_metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        9127, description="of its exporter, on loopback, or on monitoring_address; 0: none. Must be 0 on Debian 12 and Ubuntu 22.04"
    )
    postgres_owner: DatabaseName = Field("liap_owner", description="role that owns the archive there: the backend's may not remove games")
    postgres_owner_password: OwnPassword = Field(
        default_factory=Secret.unset, description="its password; required on the host of liap_postgres", examples=["env:LIAP_POSTGRES_OWNER_PASSWORD"]
    )
    sentinel_enabled: bool = Field(False, description="Redis is that of the hosts in group liap_redis, watched by a sentinel on each")
    sentinel_peers: Many[Annotated[OwnAddress, reached_by_others()]] = Field(
        (), description="liap_services_address of all hosts in liap_redis, three or more; the first is the primary until there was a failover"
    )
    sentinel_port: PortNumber = Field(26379, description="where sentinels are asked")
    sentinel_down_after_ms: Annotated[int, Field(ge=1000, le=600000)] = Field(
        5000, description="how long the primary must not have answered (ms); ten seconds later there is another"
    )
    redis_port: PortNumber = Field(6379, description="port of Redis on the hosts of liap_redis")
    redis_user: Annotated[str, matching(r"[A-Za-z0-9_-]+", "must be a name without spaces")] = Field("liap", description="account of backends there")
    redis_admin_password: OwnPassword = Field(
        default_factory=Secret.unset, description="of the user default there; required on hosts of liap_redis, as the next two", examples=["env:LIAP_REDIS_ADMIN_PASSWORD"]
    )
    redis_replica_password: OwnPassword = Field(
        default_factory=Secret.unset, description="with which replicas come to the primary", examples=["env:LIAP_REDIS_REPLICA_PASSWORD"]
    )
    redis_sentinel_password: OwnPassword = Field(
        default_factory=Secret.unset, description="with which sentinels come to Redis", examples=["env:LIAP_REDIS_SENTINEL_PASSWORD"]
    )
    redis_ask_password: OwnPassword = Field(
        default_factory=Secret.unset, description="with which backends ask sentinels, and they each other; required with liap_sentinel_enabled",
        examples=["env:LIAP_REDIS_ASK_PASSWORD"],
    )  # fmt: skip
    services_address: Annotated[OwnAddress, reached_by_others()] = Field("", description="private address of a host of liap_postgres or liap_redis, by which the others reach it")
    services_networks: Many[Annotated[Network, narrow()]] = Field((), description="networks of the hosts of liap: who may come there")
    services_ca: Secret = Field(default_factory=Secret.unset, description="PEM of the authority that signed the certificates there: one of your own, Redis checks no names")
    services_certificate: Secret = Field(
        default_factory=Secret.unset, description="PEM of such a host's certificate, for liap_services_address, 127.0.0.1 and what liap_postgres_host says"
    )
    services_key: Secret = Field(default_factory=Secret.unset, description="PEM of its key")

    # the guide: performance, limits, flags, logs
    event_buffer_size: Whole = Field(10000, description="EVENT_BUFFER_SIZE")
    max_events_per_game: Whole = Field(1000, description="MAX_EVENTS_PER_GAME")
    game_summary_cache_size: Whole = Field(1000, description="GAME_SUMMARY_CACHE_SIZE")
    rate_limit_per_player_per_minute: Whole = Field(60, description="RATE_LIMIT_PER_PLAYER_PER_MINUTE")
    rate_limit_per_room_per_second: Whole = Field(10, description="RATE_LIMIT_PER_ROOM_PER_SECOND")
    rate_limit_websocket_per_second: Whole = Field(5, description="RATE_LIMIT_WEBSOCKET_PER_SECOND")
    use_game_archival: bool = Field(True, description="USE_GAME_ARCHIVAL")
    use_memory_monitoring: bool = Field(True, description="USE_MEMORY_MONITORING")
    use_rate_limiting: bool = Field(True, description="USE_RATE_LIMITING")
    use_event_sourcing: bool = Field(False, description="USE_EVENT_SOURCING: the guide's archive is for completed games only")
    enable_profiling: bool = Field(False, description="ENABLE_PROFILING; not in production")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", description="LOG_LEVEL; WARNING hides what the archive says of itself"
    )
    log_format: Literal["json", "text"] = Field("json", description="LOG_FORMAT")
    log_correlation_id: bool = Field(True, description="LOG_CORRELATION_ID")
    extra_env: dict[EnvName, Line] = Field({}, description="further variables of the backend, no secrets")
    extra_secret_env: dict[EnvName, Secret] = Field({}, description="further variables that are secrets")

    # the guide: monitoring
    metrics_enabled: bool = Field(True, description="METRICS_ENABLED")
    metrics_port: PortNumber = Field(9464, description="METRICS_PORT; the guide's 9090 is Prometheus' own")
    metrics_networks: Many[Network] = Field((), description="networks that may read the metrics; empty means only the host itself")
    health_check_timeout: Seconds = Field(10, description="HEALTH_CHECK_TIMEOUT (s)")
    memory_alert_threshold: Annotated[int, Field(ge=1, le=100)] = Field(80, description="MEMORY_ALERT_THRESHOLD (%)")

    # how a release goes out
    drain_seconds: Annotated[int, Field(ge=0, le=86400)] = Field(
        1800, description="time that active games have to end before the backend is replaced; those that have not are lost"
    )
    drain_command: Annotated[Many[Line], Field(min_length=1)] = Field(
        ("python", "-m", "liap", "drain"), description="what makes the backend start no new games, run in its container"
    )
    resume_command: Annotated[Many[Line], Field(min_length=1)] = Field(("python", "-m", "liap", "resume"), description="what makes it start them again")
    busy_command: Annotated[Many[Line], Field(min_length=1)] = Field(
        ("python", "-m", "liap", "busy"), description="what prints how many games are active or not yet archived"
    )
    health_command: Annotated[Many[Line], Field(min_length=1)] = Field(
        ("python", "-m", "liap", "health"), description="what asks /health/live, run in the container"
    )
    trial_enabled: bool = Field(True, description="start a new release once beside the old one, and see it well, before games are drained")
    start_timeout_seconds: Seconds = Field(120, description="time that the stack has to become healthy")
    stop_seconds: Seconds = Field(30, description="time that the backend has to archive what is left when it is told to end")
    health_interval_seconds: Annotated[int, Field(ge=1, le=600)] = Field(10, description="time between two health checks")
    allow_small: bool = Field(False, description="run on a host with less memory than that; only in the groups lab and dev")

    # the guide's other two stacks
    stacks: Many[Literal["dev", "test"]] = Field(
        (), description="the guide's docker-compose.dev.yml and docker-compose.test.yml beside it; only in the groups lab and dev"
    )
    stack_password: OwnPassword = Field(
        default_factory=Secret.unset, description="of everything in those two that has a password", examples=["env:LIAP_STACK_PASSWORD"]
    )
    stack_profiles: Many[Literal["archive"]] = Field((), description="profiles of the dev stack: archive has PostgreSQL and S3")
    stack_images: dict[Literal["s3", "prometheus", "grafana", "test-runner"], Image] = Field(
        {}, description="images of what runs in those two besides Redis and PostgreSQL; what has none is left out"
    )

    # --- what follows from them ------------------------------------------------------------------------------------

    @property
    def is_experimental(self) -> bool:
        """Whether the host is one on which unsafe values are allowed."""
        return bool(self._groups & EXPERIMENTAL)

    @property
    def image(self) -> str:
        """The backend's image."""
        return f"{self.repository}:{self.version}"

    @property
    def domains(self) -> tuple[str, ...]:
        """All names that this host answers to."""
        return (self.domain, *self.alias_domains) if self.domain else ()

    @property
    def runs_redis(self) -> bool:
        """Whether the stack has a Redis of its own."""
        return self.use_rate_limiting and not self.redis_url and not self.sentinel_enabled

    @property
    def runs_postgres(self) -> bool:
        """Whether the stack has a PostgreSQL of its own."""
        return self.use_game_archival and self.archive_backend == "postgresql" and not self.postgres_host

    @property
    def uses_pgbouncer(self) -> bool:
        """Whether completed games go through the PgBouncer of liap_postgres."""
        return self.use_game_archival and self.archive_backend == "postgresql" and self.pgbouncer_enabled

    @property
    def uses_sentinel(self) -> bool:
        """Whether rate limits are counted on the hosts of liap_redis."""
        return self.use_rate_limiting and self.sentinel_enabled

    @property
    def uses_ca(self) -> bool:
        """Whether the backend needs the certificate of an authority."""
        return bool(self.services_ca) and (self.uses_pgbouncer or self.uses_sentinel)

    @property
    def keeps_archive(self) -> bool:
        """Whether completed games are kept on this host, or in a bucket of its own, and are to be backed up."""
        return self.runs_postgres or self.manages_bucket or (self.use_game_archival and self.archive_backend == "filesystem")

    @property
    def manages_bucket(self) -> bool:
        """Whether the archive's bucket is made, backed up and kept in bounds from here."""
        return self.use_game_archival and self.archive_backend == "s3" and self.archive_bucket_managed

    @property
    def memory_limit(self) -> int:
        """MiB that the backend's container may have."""
        return self.memory_limit_mb or self.max_memory_mb * 5 // 4

    @property
    def archive_url(self) -> str | Secret:
        """ARCHIVE_URL: one for the backend that was chosen."""
        if self.archive_backend == "s3":
            return f"s3://{self.archive_bucket}/{self.archive_prefix}".rstrip("/") + "/"
        if self.archive_backend == "filesystem":
            return "/archive"
        if not self.postgres_password.resolved:
            return self.postgres_password
        host, port = (self.postgres_host, self.postgres_port) if self.postgres_host else ("postgres", 5432)
        options: dict[str, str] = {"sslmode": self.postgres_sslmode if self.postgres_host else "disable"}
        if self.uses_pgbouncer:
            port, options = self.pgbouncer_port, {"sslmode": "verify-full", "sslrootcert": CA_FILE}
        where = f"[{host}]" if ":" in host else host
        password = quote(self.postgres_password.unmask(), safe="")
        return Secret(f"postgresql://{self.postgres_user}:{password}@{where}:{port}/{self.postgres_db}?{urlencode(options, safe='/')}")

    @property
    def redis(self) -> str | Secret:
        """REDIS_URL, with its password. Of sentinels: `rediss+sentinel://USER:PASSWORD@HOST:PORT,…/NAME/0?sentinel_password=…&ssl_ca_certs=…`."""
        if not self.use_rate_limiting:
            return ""
        if self.sentinel_enabled:
            if not (self.redis_password.resolved and self.redis_ask_password.resolved):
                return self.redis_password
            hosts = ",".join(f"[{peer}]:{self.sentinel_port}" if ":" in peer else f"{peer}:{self.sentinel_port}" for peer in self.sentinel_peers)
            options = urlencode({"sentinel_password": self.redis_ask_password.unmask(), "ssl_ca_certs": CA_FILE}, safe="/")
            return Secret(f"rediss+sentinel://{self.redis_user}:{quote(self.redis_password.unmask(), safe='')}@{hosts}/{REDIS}/0?{options}")
        if self.redis_url or not self.redis_password.resolved:
            return self.redis_url
        return Secret(f"redis://:{quote(self.redis_password.unmask(), safe='')}@redis:6379/0")

    def variables(self) -> dict[str, str | Secret]:
        """Return the variables of the backend: all of the guide's, and the extra ones."""
        found: dict[str, str | Secret] = {"ENVIRONMENT": self.environment, "REDIS_URL": self.redis, "ARCHIVE_URL": self.archive_url}
        for name in _VARIABLES:
            value = getattr(self, name.lower())
            found[name] = ("true" if value else "false") if isinstance(value, bool) else str(value)
        if self.archive_backend == "s3":
            found |= {"AWS_ACCESS_KEY_ID": self.s3_access_key, "AWS_SECRET_ACCESS_KEY": self.s3_secret_key, "AWS_REGION": self.s3_region}
            if self.s3_endpoint_url:
                found["AWS_ENDPOINT_URL"] = self.s3_endpoint_url
        return {**found, **self.extra_env, **self.extra_secret_env}

    # --- rules -----------------------------------------------------------------------------------------------------

    @rule
    def _what_runs_is_known(self) -> Iterator[Fault]:
        for name, example in (("repository", "registry.example.org/liap-backend"), ("version", "1.4.0"), ("domain", "liap.example.org")):
            if not getattr(self, name):
                yield Fault(name, "is required", hint=f"write liap_{name} = '{example}'")

    @rule
    def _secrets_are_given(self) -> Iterator[Fault]:
        needed = {
            "redis_password": self.runs_redis or self.uses_sentinel,
            "redis_ask_password": self.uses_sentinel,
            "services_ca": self.uses_pgbouncer or self.uses_sentinel,
            "s3_access_key": self.use_game_archival and self.archive_backend == "s3",
            "s3_secret_key": self.use_game_archival and self.archive_backend == "s3",
            "postgres_password": self.use_game_archival and self.archive_backend == "postgresql",
            "stack_password": bool(self.stacks),
            "s3_admin_access_key": self.manages_bucket,
            "s3_admin_secret_key": self.manages_bucket,
        }
        for name, is_needed in needed.items():
            if is_needed and not getattr(self, name):
                yield Fault(name, "is required", hint=f"write liap_{name} = 'env:LIAP_{name.upper()}'")

    @rule
    def _memory_is_limited(self) -> Iterator[Fault]:
        if self.memory_limit_mb and self.memory_limit_mb <= self.max_memory_mb:
            yield Fault(
                "memory_limit_mb", f"must be more than liap_max_memory_mb ({self.max_memory_mb}): the kernel would end all games at once",
                self.memory_limit_mb, "write 0 for a quarter more",
            )  # fmt: skip

    @rule
    def _ports_do_not_clash(self) -> Iterator[Fault]:
        if owner := TAKEN_PORTS.get(self.metrics_port):
            yield Fault("metrics_port", f"must not be {self.metrics_port}, which is {owner}", self.metrics_port, "write 9464")

    @rule
    def _archive_is_safe(self) -> Iterator[Fault]:
        endpoint = urlsplit(self.s3_endpoint_url)
        if self.archive_backend == "s3" and endpoint.scheme == "http" and not is_private(endpoint.hostname or ""):
            yield Fault("s3_endpoint_url", "must be https:// towards a host that is not in a private network", self.s3_endpoint_url)
        is_clear = self.postgres_sslmode == "disable" and not self.pgbouncer_enabled
        if self.postgres_host and self.archive_backend == "postgresql" and is_clear and not is_private(self.postgres_host):
            yield Fault("postgres_sslmode", f"must be 'require' or 'verify-full' towards {self.postgres_host}", "disable")
        if self.archive_bucket_managed and self.archive_backend != "s3":
            yield Fault("archive_bucket_managed", "must be False unless liap_archive_backend is 's3'", True)
        if bool(self.s3_keeper_access_key) != bool(self.s3_keeper_secret_key):
            yield Fault("s3_keeper_secret_key", "goes together with liap_s3_keeper_access_key")
        if self.postgres_host and self.archive_backend != "postgresql":
            yield Fault("postgres_host", "must be empty unless liap_archive_backend is 'postgresql'", self.postgres_host)
        if self.environment == "production" and not self.use_game_archival:
            yield Fault("use_game_archival", "must be True in production: completed games would be gone with the next restart", False)

    @rule
    def _services_are_told(self) -> Iterator[Fault]:
        if self.pgbouncer_enabled and self.archive_backend != "postgresql":
            yield Fault("pgbouncer_enabled", "must be False unless liap_archive_backend is 'postgresql'", True)
        elif self.uses_pgbouncer:
            if not self.postgres_host:
                yield Fault("postgres_host", "is required with liap_pgbouncer_enabled", hint="write what the certificate of the host of liap_postgres is for")
            if self.database_pool_max > self.pgbouncer_max_clients:
                yield Fault("database_pool_max", f"must not be more than liap_pgbouncer_max_clients ({self.pgbouncer_max_clients})", self.database_pool_max)
        if self.sentinel_enabled and self.redis_url:
            yield Fault("redis_url", "must not be set with liap_sentinel_enabled")
        if self.uses_sentinel and len(self.sentinel_peers) < 3:
            yield Fault(
                "sentinel_peers", "must be three hosts or more: of two, neither can outvote the other", ", ".join(self.sentinel_peers),
                "write liap_services_address of all hosts in the group liap_redis",
            )  # fmt: skip

    @rule
    def _pools_are_ranges(self) -> Iterator[Fault]:
        for name in ("redis", "database"):
            least, most = getattr(self, f"{name}_pool_min"), getattr(self, f"{name}_pool_max")
            if least > most:
                yield Fault(f"{name}_pool_min", f"must not be more than liap_{name}_pool_max ({most})", least)

    @rule
    def _production_is_strict(self) -> Iterator[Fault]:
        if self.enable_profiling and self.environment == "production":
            yield Fault("enable_profiling", "must be False in production", True)
        if self.allow_small and not self.is_experimental:
            yield Fault("allow_small", "must be False outside the groups lab and dev", True)
        if self.stacks and not self.is_experimental:
            yield Fault("stacks", "must be empty outside the groups lab and dev", ", ".join(self.stacks))
        for name in sorted({*self.extra_env, *self.extra_secret_env} & {*_VARIABLES, "ENVIRONMENT", "REDIS_URL", "ARCHIVE_URL"}):
            yield Fault(f"extra_env.{name}", "must not stand here", hint=f"write liap_{_setting_of(name)}")

    @rule
    def _old_services_are_refused(self) -> Iterator[Fault]:
        for name, least, runs in (("redis_image", 7, self.runs_redis), ("postgres_image", 15, self.runs_postgres)):
            tag = re.search(r":([0-9]+)[^/]*$", getattr(self, name))
            if runs and tag and int(tag[1]) < least:
                yield Fault(name, f"must be version {least} or newer", getattr(self, name))

    def ports(self) -> tuple[Port, ...]:
        """Return the ports that are open: nginx's, and the metrics to declared networks."""
        found = [Port(port=80, why="liap: ACME challenge and redirect to https"), Port(port=443, why="liap: https and websockets")]
        if self.metrics_enabled and self.metrics_networks:
            found.append(Port(port=self.metrics_port, sources=self.metrics_networks, why="liap: metrics"))
        return tuple(found)

    def needs(self) -> Requirements:
        """Return what the host must have: the memory that the stack may use, and the ports that it publishes."""
        claims = [PortClaim(number, ("nginx",)) for number in (80, 443)]
        claims.append(PortClaim(APP_PORT, ("docker-proxy",)))
        if self.metrics_enabled:
            claims.append(PortClaim(self.metrics_port, ("docker-proxy",)))
        memory = self.memory_limit + (self.redis_maxmemory_mb if self.runs_redis else 0) + (self.postgres_memory_mb if self.runs_postgres else 0)
        return Requirements(
            # what the firmware and the kernel keep for themselves is missing from what a host of 8 GB says it has
            memory_mb=0 if self.allow_small else memory * 9 // 10,
            disk_var_mb=1024 if self.allow_small else 4096,
            disk_root_mb=256,
            ports=tuple(claims),
        )


_VARIABLES = (
    "MAX_ACTIVE_GAMES", "MAX_MEMORY_MB", "MEMORY_CHECK_INTERVAL", "GC_COMPLETED_GAMES_AFTER", "REDIS_POOL_MIN", "REDIS_POOL_MAX",
    "ARCHIVE_BACKEND", "ARCHIVE_BATCH_SIZE", "ARCHIVE_FLUSH_INTERVAL", "ARCHIVE_RETENTION_DAYS", "EVENT_BUFFER_SIZE",
    "MAX_EVENTS_PER_GAME", "GAME_SUMMARY_CACHE_SIZE", "RATE_LIMIT_PER_PLAYER_PER_MINUTE", "RATE_LIMIT_PER_ROOM_PER_SECOND",
    "RATE_LIMIT_WEBSOCKET_PER_SECOND", "METRICS_ENABLED", "METRICS_PORT", "HEALTH_CHECK_TIMEOUT", "MEMORY_ALERT_THRESHOLD",
    "USE_GAME_ARCHIVAL", "USE_MEMORY_MONITORING", "USE_RATE_LIMITING", "LOG_LEVEL", "LOG_FORMAT", "LOG_CORRELATION_ID",
    "DATABASE_POOL_MIN", "DATABASE_POOL_MAX", "USE_EVENT_SOURCING", "ENABLE_PROFILING",
)  # fmt: skip
"""The guide's variables that are settings of the same name in small letters."""


def _setting_of(variable: str) -> str:
    return {"REDIS_URL": "redis_url", "ARCHIVE_URL": "archive_backend"}.get(variable, variable.lower())


def host_faults(host: Any) -> Iterator[Fault]:
    """Yield what liap asks of the other parts of its host, by the guide's checklist."""
    settings: Liap = host.liap
    if host.docker.compose == "no":
        yield Fault("docker_compose", "must not be 'no' on hosts of liap", "no", host=host.name)
    if host.base.swap_enabled and settings.swap_mb > host.base.swap_size_mb and not settings.is_experimental:
        yield Fault(
            "base_swap_size_mb", f"must be at least liap_swap_mb ({settings.swap_mb}), the safety net of the games in memory",
            host.base.swap_size_mb, f"write base_swap_size_mb = {settings.swap_mb}, or liap_swap_mb = 0", host.name,
        )  # fmt: skip
    if settings.environment == "production" and not (host.base.firewall_enabled and host.docker.published_enabled):
        key = "docker_published_enabled" if host.base.firewall_enabled else "base_firewall_enabled"
        yield Fault(key, "must be True in production: nothing but nginx and declared ports may be reached", False, host=host.name)
    if settings.manages_bucket and not host.backup.enabled:
        yield Fault(
            "liap_archive_bucket_managed", "must be False with backup_enabled = False: nothing goes from an archive that is not backed up", True,
            host=host.name,
        )  # fmt: skip
    if settings.runs_postgres and host.backup.enabled and not settings.postgres_backup_password:
        yield Fault(
            "liap_postgres_backup_password", "is required to back up liap",
            hint="write liap_postgres_backup_password = 'env:LIAP_POSTGRES_BACKUP_PASSWORD', or backup_enabled = False", host=host.name,
        )  # fmt: skip


def host_needs(host: Any) -> Requirements:
    """Return what liap asks because of other parts of its host: Debian 12's own Compose is 1.29."""
    if host.docker.source == "distribution":
        return Requirements(releases=(("debian", "13"), ("ubuntu", "22.04"), ("ubuntu", "24.04")))
    return Requirements()
