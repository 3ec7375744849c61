"""Settings of the inference gateway (`gateway_…`): hosts of the group `gateway`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from settings.errors import Fault, broken
from settings.exposure import Port
from settings.fields import Domain, EnvName, Line, Many, Network, WildcardDomain, matching
from settings.requirements import PortClaim, Requirements
from settings.secret import Secret
from settings.section import Section, rule

KEY_LENGTH = 32
_BRANCHES = "main|master|latest|HEAD|head|develop|development|dev|trunk|stable|next|nightly|edge|release"
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:PASSWORD|PASSWD|SECRET|TOKEN|PRIVATE_KEY|API_KEY|API_KEYS|CREDENTIALS)$"
)
_OWN_ENV = frozenset(
    [
        "ADMIN_API_KEY",
        "REQUIRE_CLIENT_API_KEY",
        "CLIENT_API_KEYS",
        "HOST",
        "PORT",
        "DEBUG",
        "RELOAD",
        "REQUEST_TIMEOUT_SECONDS",
        "MAX_RETRY_ATTEMPTS",
        "MAX_REQUEST_BODY_SIZE",
        "HEALTH_CHECK_INTERVAL_SECONDS",
        "HEALTH_CHECK_TIMEOUT_SECONDS",
        "MAX_CONSECUTIVE_FAILURES",
        "AUTO_DEREGISTER_AFTER_FAILURES",
        "LOG_LEVEL",
        "ENABLE_FILE_LOGGING",
        "ENABLE_CONSOLE_LOGGING",
        "DATABASE_URL",
        "DATABASE_WAL_MODE",
    ]
)


def _long_enough(value: Secret) -> Secret:
    if value.resolved and len(value.unmask()) < KEY_LENGTH:
        raise broken(
            f"must have at least {KEY_LENGTH} characters, has {len(value.unmask())}",
            "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
            show=False,
        )
    if value.resolved and not re.fullmatch(r"[!-~]+", value.unmask()):
        raise broken("must be printable ASCII without spaces: it travels in an HTTP header", show=False)
    return value


def _version(value: str) -> str:
    """A release must mean the same code tomorrow: a tag or a full commit, never a branch."""
    if re.fullmatch(rf"(?:origin/|refs/heads/)?(?:{_BRANCHES})|refs/heads/.*|origin/.*", value):
        raise broken("must be a tag or a full commit, not a branch", "write a version such as 'v1.4.0'")
    if re.fullmatch(r"(?=.*[a-f])[0-9a-f]{7,39}", value):
        raise broken("must be a full commit of 40 characters, or a tag")
    if value and (
        not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*(?:/[A-Za-z0-9._+-]+)*", value) or ".." in value
    ):
        raise broken("must be a tag or a full commit of 40 characters")
    return value


def _repository(value: str) -> str:
    if re.match(r"https?://[^/]*:[^/]*@", value):
        raise broken("must not hold a password", "use a deploy key and an ssh:// URL", show=False)
    if value and not re.fullmatch(
        r"(?:https|ssh|git|file|http)://[^\s'\"]+|[a-z_][a-z0-9_-]*@[^\s:/]+:[^\s'\"]+|/[^\s'\"]+", value
    ):
        raise broken("must be the URL of a git repository such as 'https://git.example.org/gateway.git'")
    return value


def _default_drain(fields: dict[str, Any]) -> int:
    return int(fields.get("request_timeout_seconds", 300)) + 30


Repository = Annotated[str, AfterValidator(_repository)]
Version = Annotated[str, AfterValidator(_version)]
"""A tag or a full commit, never a branch."""
ApiKey = Annotated[Secret, AfterValidator(_long_enough)]
Seconds = Annotated[int, Field(ge=1, le=86400)]
Path = Annotated[str, matching(r"/[A-Za-z0-9._~/-]*", "must be a URL path such as '/health'")]


class Gateway(Section):
    """FastAPI gateway behind nginx: a blue and a green instance on Unix sockets, one of which takes the traffic."""

    prefix: ClassVar[str] = "gateway_"

    domain: Domain = Field(description="name under which it answers", examples=["gateway.example.org"])
    extra_domains: Many[WildcardDomain] = Field((), description="further names of the same site")

    source: Literal["git", "archive"] = Field("git", description="where releases come from")
    repository: Repository = Field(
        "", description="git repository; required for git"
    )
    version: Version = Field(
        "", description="tag or full commit; required for git, a label for an archive"
    )
    archive_url: Annotated[str, matching(r"(?:(?:https|http|file)://[^\s]+)?", "must be a URL")] = Field(
        "", description="URL of a .tar.gz; required for archive"
    )
    archive_sha256: Annotated[
        str, matching(r"(?:[0-9a-f]{64})?", "must be 64 hexadecimal digits in lower case")
    ] = Field("", description="its checksum; required for archive")
    app: Annotated[
        str, matching(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "must be module:attribute such as 'app.main:app'")
    ] = Field("app.main:app", description="the ASGI application")
    requirements: Annotated[
        str,
        Field(min_length=1),
        matching(r"(?!.*\.\.)[A-Za-z0-9_][\w./-]*", "must be a path inside the release"),
    ] = Field("requirements.txt", description="locked requirements, a path inside the release")
    python: Annotated[
        str,
        matching(
            r"distribution|uv:3\.(?:1[1-9]|[2-9][0-9])(?:\.\d+)?",
            "must be 'distribution' or 'uv:3.11' and higher",
        ),
    ] = Field(
        "distribution", description="the distribution's python3, or one that uv manages, such as 'uv:3.12'"
    )

    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="uvicorn workers; each one runs its own health checker and all share one SQLite file"
    )
    supervisor: Literal["systemd", "supervisor"] = Field("systemd", description="what keeps it running")

    admin_api_key: ApiKey = Field(
        description=f"key of the admin API, {KEY_LENGTH} characters or more",
        examples=["env:GATEWAY_ADMIN_API_KEY"],
    )
    require_client_api_key: bool = Field(False, description="inference only with a client key")
    client_api_keys: Many[ApiKey] = Field(
        (), description="client keys", examples=[["env:GATEWAY_CLIENT_API_KEY"]]
    )

    debug: bool = Field(False, description="the app's debug mode; only on hosts of the group lab or dev")
    reload: bool = Field(False, description="reload on code changes; only on hosts of the group lab or dev")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", description="the app's log level"
    )
    file_logging: bool = Field(True, description="log to a file, rotated")
    console_logging: bool = Field(True, description="log to the journal")
    database_wal_mode: bool = Field(True, description="SQLite in WAL mode")

    request_timeout_seconds: Seconds = Field(
        300, description="time that a backend has to answer; nginx waits 30 s longer"
    )
    max_retry_attempts: Annotated[int, Field(ge=0, le=20)] = Field(
        2, description="other backends tried after a failure"
    )
    max_request_body_size: Annotated[int, Field(ge=1024, le=10 * 1024**3)] = Field(
        1048576, description="bytes"
    )

    health_check_interval_seconds: Seconds = Field(60, description="time between health checks of a backend")
    health_check_timeout_seconds: Seconds = Field(10, description="time that a backend has to answer one")
    max_consecutive_failures: Annotated[int, Field(ge=1, le=1000)] = Field(
        3, description="failures until unhealthy"
    )
    auto_deregister_after_failures: bool = Field(True, description="remove a failed backend")

    extra_env: dict[EnvName, Line] = Field({}, description="further environment variables, no secrets")
    extra_secret_env: dict[EnvName, Secret] = Field(
        {}, description="further environment variables that are secrets"
    )

    health_path: Path = Field("/health", description="path that answers 200 when the app is up")
    inference_path: Path = Field("/v1/inference", description="path of the inference API, which the checks ask for")
    admin_networks: Many[Network] = Field(
        (), description="networks that may reach /admin; empty means only the host itself"
    )
    hsts_seconds: Annotated[int, Field(ge=0, le=63072000)] = Field(
        0, description="Strict-Transport-Security; 0 sends none"
    )
    rate_limit_per_second: Annotated[int, Field(ge=0, le=100000)] = Field(
        20, description="requests per address; 0 means no limit"
    )
    rate_limit_burst: Annotated[int, Field(ge=0, le=100000)] = Field(
        40, description="requests above it that are let through"
    )

    start_timeout_seconds: Seconds = Field(60, description="time that a new release has to become healthy")
    settle_seconds: Annotated[int, Field(ge=0, le=600)] = Field(
        8, description="time it must then stay healthy before it takes traffic"
    )
    drain_seconds: Seconds = Field(
        default_factory=_default_drain,
        description="time that the old release has to finish its requests; default request_timeout_seconds + 30",
    )
    keep_releases: Annotated[int, Field(ge=2, le=50)] = Field(
        3, description="releases kept, the running one included"
    )
    memory_max: Annotated[str, matching(r"(?:[1-9][0-9]*[KMGT])?", "must be a size such as '512M'")] = Field(
        "", description="systemd's MemoryMax; empty means no limit"
    )

    @rule
    def _git_has_version(self) -> Iterator[Fault]:
        if self.source != "git":
            return
        if not self.version:
            yield Fault(
                "version", "is required when gateway_source is 'git'", hint="write a tag or a full commit"
            )
        if not self.repository:
            yield Fault("repository", "is required when gateway_source is 'git'")

    @rule
    def _archive_has_checksum(self) -> Iterator[Fault]:
        if self.source != "archive":
            return
        if not self.archive_url:
            yield Fault("archive_url", "is required when gateway_source is 'archive'")
        if not self.archive_sha256:
            yield Fault(
                "archive_sha256",
                "is required when gateway_source is 'archive'",
                hint="write what sha256sum prints",
            )

    @rule
    def _checks_end_before_the_next(self) -> Iterator[Fault]:
        if self.health_check_timeout_seconds >= self.health_check_interval_seconds:
            yield Fault(
                "health_check_timeout_seconds",
                f"must be less than gateway_health_check_interval_seconds ({self.health_check_interval_seconds})",
                self.health_check_timeout_seconds,
            )

    @rule
    def _drain_outlives_requests(self) -> Iterator[Fault]:
        if self.drain_seconds < self.request_timeout_seconds:
            yield Fault(
                "drain_seconds",
                f"must be at least gateway_request_timeout_seconds ({self.request_timeout_seconds})",
                self.drain_seconds,
            )

    @rule
    def _clients_have_keys(self) -> Iterator[Fault]:
        if self.require_client_api_key and not self.client_api_keys:
            yield Fault("client_api_keys", "is required when gateway_require_client_api_key is True")

    @rule
    def _keys_differ(self) -> Iterator[Fault]:
        if self.admin_api_key.resolved and any(
            self.admin_api_key.unmask() == key.unmask() for key in self.client_api_keys if key.resolved
        ):
            yield Fault("client_api_keys", "must not hold the admin key")

    @rule
    def _domains_differ(self) -> Iterator[Fault]:
        if self.domain in self.extra_domains:
            yield Fault("extra_domains", "must not repeat gateway_domain", self.domain)

    @rule
    def _workers_reload(self) -> Iterator[Fault]:
        if self.reload and self.workers > 1:
            yield Fault("workers", "must be 1 when gateway_reload is True", self.workers)

    @rule
    def _logs_somewhere(self) -> Iterator[Fault]:
        if not self.file_logging and not self.console_logging:
            yield Fault("console_logging", "must be True when gateway_file_logging is False", False)

    @rule
    def _extra_env_is_extra(self) -> Iterator[Fault]:
        for field in ("extra_env", "extra_secret_env"):
            for name in sorted(_OWN_ENV.intersection(getattr(self, field))):
                yield Fault(f"{field}.{name}", "is set by the deploy", hint="see the settings of the gateway")
        for name in sorted(self.extra_env):
            if _SECRET_NAME.search(name):
                yield Fault(
                    f"extra_env.{name}",
                    "looks like a secret",
                    hint=f"write gateway_extra_secret_env = {{{name!r}: 'env:{name}'}}",
                )
        for name in sorted(set(self.extra_env) & set(self.extra_secret_env)):
            yield Fault(f"extra_env.{name}", "must not stand in gateway_extra_secret_env too")

    @property
    def domains(self) -> tuple[str, ...]:
        """All names of the site, the main one first."""
        return (self.domain, *self.extra_domains)

    @property
    def proxy_timeout_seconds(self) -> int:
        """How long nginx waits for the app: longer than the app waits for its backend, so that the app answers."""
        return self.request_timeout_seconds + 30

    def ports(self) -> tuple[Port, ...]:
        """Return the ports that the gateway opens; the app itself listens on a Unix socket."""
        return (
            Port(port=80, why="gateway: ACME challenge and redirect to https"),
            Port(port=443, why="gateway: https"),
        )

    def needs(self) -> Requirements:
        """Return what the guide asks of a host, and the ports that nginx will hold."""
        return Requirements(
            memory_mb=512,
            disk_root_mb=256,
            disk_var_mb=256,
            python=(3, 11) if self.python == "distribution" else (0, 0),
            ports=(PortClaim(80, ("nginx",)), PortClaim(443, ("nginx",))),
        )
