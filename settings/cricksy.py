"""Settings of the cricksy OCR system (`cricksy_…`): hosts of the groups `cricksy_infra`, `cricksy_api`, `cricksy_worker`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote, urlencode

from pydantic import AfterValidator, Field

from settings.errors import Fault, broken
from settings.exposure import Port
from settings.fields import (
    Domain,
    EnvName,
    Line,
    Many,
    Model,
    Network,
    OwnAddress,
    PortNumber,
    Size,
    matching,
    narrow,
)
from settings.gateway import Repository, Version
from settings.mcbench import HostName, Image, Password
from settings.requirements import PortClaim, Requirements
from settings.s3 import moment
from settings.secret import Secret
from settings.section import Section, differences, rule

ROLES = ("infra", "api", "worker")
GROUPS = tuple(f"cricksy_{role}" for role in ROLES)
CA_FILE = "/etc/cricksy/ca.pem"
KEY_FILE = "/etc/cricksy/s3.env"
_SECRET_NAME = re.compile(r"(?:^|_)(?:PASSWORD|PASSWD|SECRET|TOKEN|PRIVATE_KEY|API_KEY|CREDENTIALS)$")
_LONGEST_PRESIGNED = 604800

Seconds = Annotated[int, Field(ge=1, le=86400)]
Queue = Annotated[str, matching(r"[A-Za-z0-9_.-]+", "must be a queue's name of letters, digits, '_', '.' and '-'")]
Inside = Annotated[str, matching(r"(?!.*\.\.)[A-Za-z0-9_][\w./-]*", "must be a path inside the release")]
DatabaseName = Annotated[
    str, matching(r"(?!pg_|postgres$)[a-z_][a-z0-9_]{0,62}", "must be a name of small letters, digits and _, and not the server's own")
]
Module = r"[A-Za-z_][\w.]*(?::[A-Za-z_]\w*)?"


def _origin(value: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?", value):
        raise broken("must be an origin such as 'https://app.example.org', without a path")
    return value


def _select(value: str) -> str:
    if value and not re.match(r"(?i)(select|with)\b", value):
        raise broken("must be a SELECT")
    return value


def _moment(value: str) -> str:
    if value and moment(value) is None:
        raise broken("must be like '2026-11-22T10:00:00Z'")
    return value


class WorkerInstance(Model):
    """What one instance does otherwise than the others of its host.

    + number: of the instance, from 1
    + queues: that it takes tasks from
    + concurrency: tasks at a time
    """

    number: Annotated[int, Field(ge=1, le=64)]
    queues: Many[Queue] = ()
    concurrency: Annotated[int, Field(ge=0, le=512)] = 0


class Cricksy(Section):
    """API, Celery workers with Tesseract, PostgreSQL and Redis as native services; images in S3.

    The databases listen on loopback where everything is on one host, and with TLS on `infra_address` where it is not.
    """

    prefix: ClassVar[str] = "cricksy_"

    # --- release
    repository: Repository = Field("", description="git repository; required on hosts of cricksy_api and cricksy_worker")
    version: Version = Field("", description="tag or full commit; required likewise")
    directory: Inside = Field("backend", description="where the application stands in the release")
    requirements: Inside = Field("backend/requirements.txt", description="locked requirements, a path inside the release")
    python: Annotated[str, matching(r"distribution|uv:3\.(?:1[1-9]|[2-9][0-9])(?:\.\d+)?", "must be 'distribution' or 'uv:3.12'")] = Field(
        "distribution", description="the distribution's python3, or one that uv manages; the guide asks for 3.12"
    )
    app: Annotated[str, matching(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "must be module:attribute such as 'main:app'")] = Field(
        "main:app", description="the ASGI application"
    )
    celery_app: Annotated[str, matching(Module, "must be a module such as 'worker.celery_app'")] = Field(
        "worker.celery_app", description="the Celery application"
    )
    migrate: bool = Field(True, description="run `alembic upgrade head` once, on the first host of cricksy_api, before anything is switched")
    keep_releases: Annotated[int, Field(ge=2, le=50)] = Field(3, description="releases kept, the running one included")

    # --- the guide's variables
    enable_uploads: bool = Field(True, description="CRICKSY_ENABLE_UPLOADS")
    enable_ocr: bool = Field(True, description="CRICKSY_ENABLE_OCR")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="CRICKSY_LOG_LEVEL")
    api_title: Line = Field("Cricksy Scorer API", description="CRICKSY_API_TITLE")
    cors_origins: Many[Annotated[str, AfterValidator(_origin)]] = Field(
        (), description="CRICKSY_CORS_ORIGINS: pages that may use the API, and upload to the bucket", examples=[["https://app.example.org"]]
    )
    use_redis_adapter: bool = Field(False, description="CRICKSY_USE_REDIS_ADAPTER: Socket.IO over several API hosts")
    extra_env: dict[EnvName, Line] = Field({}, description="further environment variables, no secrets")
    extra_secret_env: dict[EnvName, Secret] = Field({}, description="further environment variables that are secrets")

    # --- S3
    s3_endpoint_url: Annotated[str, matching(r"(?:https?://[^\s/@]+)?", "must be a URL without path and account")] = Field(
        "", description="CRICKSY_S3_ENDPOINT_URL: of a server that is not AWS"
    )
    s3_bucket: Annotated[str, matching(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "must be the name of a bucket")] = Field(
        "cricksy-uploads", description="CRICKSY_S3_BUCKET"
    )
    s3_region: Annotated[str, matching(r"[a-z0-9][a-z0-9-]{0,62}", "must be like 'eu-central-1'")] = Field("us-east-1", description="CRICKSY_S3_REGION")
    s3_access_key: Secret = Field(
        default_factory=Secret.unset, description="CRICKSY_S3_ACCESS_KEY; required on API and worker hosts, but with s3_manage_users"
    )
    s3_secret_key: Secret = Field(default_factory=Secret.unset, description="CRICKSY_S3_SECRET_KEY; required likewise")
    s3_presigned_expiry: Annotated[int, Field(ge=60, le=_LONGEST_PRESIGNED)] = Field(3600, description="CRICKSY_S3_PRESIGNED_EXPIRY (s)")
    s3_manage_bucket: bool = Field(False, description="make the bucket, and keep it private, with CORS and lifecycle as they should be")
    s3_admin_access_key: Secret = Field(default_factory=Secret.unset, description="of who may do that; without it boto3 looks where it always does")
    s3_admin_secret_key: Secret = Field(default_factory=Secret.unset, description="its secret half")
    s3_kms_key: Annotated[str, matching(r"(?:arn:[\w:/-]+)?", "must be the ARN of a key")] = Field("", description="encrypt with this key of KMS; empty: with S3's own")
    s3_versioning: bool = Field(False, description="keep old versions of objects")
    s3_expire_days: Annotated[int, Field(ge=0, le=36500)] = Field(0, description="objects go after so many days; 0: never")
    s3_expire_noncurrent_days: Annotated[int, Field(ge=0, le=36500)] = Field(0, description="old versions go after so many days; 0: never")
    s3_replicate_to: Annotated[str, matching(r"(?:[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?", "must be the name of a bucket")] = Field(
        "", description="bucket in another region that gets a copy of every new object; it is made, with the role that S3 takes for it"
    )
    s3_replicate_region: Annotated[str, matching(r"(?:[a-z0-9][a-z0-9-]{0,62})?", "must be like 'eu-west-1'")] = Field("", description="its region")
    s3_backup: bool = Field(False, description="back the bucket up, on the first host of cricksy_infra, or of cricksy_api where there is none")
    s3_backup_access_key: Secret = Field(
        default_factory=Secret.unset, description="key for that: list and read, and write for a restore; without it s3_access_key"
    )
    s3_backup_secret_key: Secret = Field(default_factory=Secret.unset, description="its secret half")
    s3_backup_least_objects: Annotated[int, Field(ge=0)] = Field(0, description="a copy with fewer objects is none")
    s3_manage_users: bool = Field(False, description="make an IAM user for each API and worker host, whose key stands on that host alone")
    s3_user_prefix: Annotated[str, matching(r"[A-Za-z0-9+=,.@_-]{0,40}", "must be 40 letters, digits and '+=,.@_-' at most")] = Field(
        "cricksy-", description="in front of the host's name: what the user is called"
    )
    s3_worker_access: Many[Literal["read", "write", "delete", "list"]] = Field(
        ("read", "list"), description="what the user of a host that has workers alone may do; that of an API host may do all four"
    )
    s3_key_days: Annotated[int, Field(ge=0, le=3650)] = Field(0, description="replace a host's key that is older (days); 0: never by age")
    s3_key_before: Annotated[str, AfterValidator(_moment)] = Field(
        "", description="replace keys that were made before this moment", examples=["2026-11-22T10:00:00Z"]
    )
    s3_key_keep_seconds: Annotated[int, Field(ge=0, le=2 * _LONGEST_PRESIGNED)] | None = Field(
        None, description="how long a replaced key stays when nobody runs with it any more (s); None: as long as URLs that it signed"
    )
    s3_is_aws_like: bool = Field(True, description="False: leave alone what servers other than AWS lack: public access block, encryption")

    # --- PostgreSQL
    postgres_external: bool = Field(False, description="it is somebody else's, at postgres_host")
    postgres_host: HostName = Field("127.0.0.1", description="where API and workers reach it")
    postgres_port: PortNumber = Field(5432, description="its port")
    postgres_database: DatabaseName = Field("cricksy_scorer", description="the database")
    postgres_user: DatabaseName = Field("cricksy", description="role of API and workers, which may change rows and no table")
    postgres_password: Password = Field(default_factory=Secret.unset, description="its password", examples=["env:CRICKSY_POSTGRES_PASSWORD"])
    postgres_owner: DatabaseName = Field("cricksy_owner", description="role that owns the tables: migrations")
    postgres_owner_password: Password = Field(default_factory=Secret.unset, description="its password")
    postgres_extensions: Many[Annotated[str, matching(r"[a-z][a-z0-9_-]*", "must be the name of an extension")]] = Field(
        (), description="extensions of the database, from the server's packages", examples=[["pg_trgm"]]
    )
    postgres_former_roles: Many[DatabaseName] = Field((), description="roles that may not log in any more")
    postgres_backup_password: Password = Field(default_factory=Secret.unset, description="of the role that reads for backups; required where they are made")
    postgres_memory_mb: Annotated[int, Field(ge=0)] = Field(0, description="what PostgreSQL may reckon with (MiB); 0: all of the host's where only databases run, else half")

    # --- Redis
    redis_external: bool = Field(False, description="it is somebody else's, at redis_host: no cluster, Celery cannot use one")
    redis_host: HostName = Field("127.0.0.1", description="where API and workers reach it")
    redis_port: PortNumber = Field(6379, description="port of the broker")
    redis_cache_port: PortNumber = Field(6380, description="port of the instance for Socket.IO")
    redis_tls: bool | None = Field(None, description="rediss://; by default where it is not on loopback")
    redis_user: Annotated[str, matching(r"[A-Za-z0-9_-]+", "must be a name without spaces")] = Field("cricksy", description="account of API and workers")
    redis_password: Password = Field(default_factory=Secret.unset, description="its password", examples=["env:CRICKSY_REDIS_PASSWORD"])
    redis_former_password: Password = Field(
        default_factory=Secret.unset, description="the one before, which stays good until this is taken away: to change it without a refused connection"
    )
    redis_admin_password: Password = Field(default_factory=Secret.unset, description="of the user default; required on the host that has Redis")
    broker_maxmemory_mb: Annotated[int, Field(ge=8)] = Field(256, description="what queued tasks and results may take (MiB); then the broker refuses")
    cache_maxmemory_mb: Annotated[int, Field(ge=8)] = Field(64, description="what Socket.IO may take (MiB); then the oldest is forgotten")

    # --- between hosts
    infra_address: OwnAddress = Field("", description="private address of the cricksy_infra host; empty: loopback alone")
    infra_networks: Many[Annotated[Network, narrow()]] = Field((), description="networks of the API and worker hosts")
    infra_ca: Secret = Field(default_factory=Secret.unset, description="PEM of the authority whose certificate the databases have; for all hosts, with infra_address")
    infra_certificate: Secret = Field(default_factory=Secret.unset, description="PEM of that certificate, for infra_address or the name that hosts use")
    infra_key: Secret = Field(default_factory=Secret.unset, description="PEM of its key")

    # --- workers
    worker_instances: Annotated[int, Field(ge=0, le=64)] = Field(1, description="instances on each host of cricksy_worker")
    worker_concurrency: Annotated[int, Field(ge=1, le=512)] = Field(
        2, description="tasks at a time in each; all together at most the host's cores, since OCR is bound by them"
    )
    worker_queues: Many[Queue] = Field(("celery",), description="queues that they take tasks from")
    worker_special: Many[WorkerInstance] = Field((), description="instances with queues or a concurrency of their own")
    worker_allow_more_than_cores: bool = Field(False, description="have more tasks at a time than cores")
    worker_memory_max: Size = Field("1G", description="what an instance may take: systemd's MemoryMax, or the container's limit")
    worker_mode: Literal["units", "containers"] = Field("units", description="what an instance is: a unit of the release, or a container of worker_image")
    worker_image: Image | None = Field(
        None, description="image with the application and Tesseract; required with worker_mode containers", examples=["registry.example.org/cricksy-worker:1.4.0"]
    )
    worker_image_user: Annotated[str, matching(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?", "must be a user or user:group")] = Field(
        "65534:65534", description="whom its processes run as; the file system is read-only to them but for /tmp"
    )
    task_time_limit: Seconds = Field(300, description="a task is killed (s)")
    task_soft_time_limit: Seconds = Field(270, description="a task is told to end (s)")
    worker_prefetch_multiplier: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="tasks that an instance reserves for each process")
    worker_max_tasks_per_child: Annotated[int, Field(ge=1, le=1000000)] = Field(100, description="tasks until a process is replaced")
    worker_start_seconds: Seconds = Field(60, description="time that a restarted instance has to answer")
    tesseract_languages: Many[Annotated[str, matching(r"[a-z]{3}(_[a-z]{3,5})?", "must be a language such as 'eng' or 'chi_sim'")]] = Field(
        ("eng",), description="language packs"
    )

    # --- API
    domain: Domain | None = Field(None, description="name under which the API answers; required on hosts of cricksy_api", examples=["cricksy.example.org"])
    health_path: Annotated[str, matching(r"/[A-Za-z0-9._~/-]*", "must be a URL path")] = Field("/api/health", description="path that answers 200 when the API is up")
    initiate_path: Annotated[str, matching(r"/[A-Za-z0-9._~/-]*", "must be a URL path")] = Field("/api/uploads/initiate", description="path that announces an upload")
    initiate_per_minute: Annotated[int, Field(ge=0, le=6000)] = Field(10, description="requests to it per address and minute; 0: no limit")
    initiate_burst: Annotated[int, Field(ge=0, le=1000)] = Field(5, description="requests above that are let through at once")
    hsts_seconds: Annotated[int, Field(ge=0, le=63072000)] = Field(0, description="Strict-Transport-Security; 0 sends none")
    request_timeout_seconds: Seconds = Field(60, description="longest silence of the API")
    start_timeout_seconds: Seconds = Field(60, description="time that a new release has to become healthy")
    settle_seconds: Annotated[int, Field(ge=0, le=600)] = Field(8, description="time it must then stay healthy before it takes traffic")
    drain_seconds: Seconds = Field(60, description="time that the old release has to finish its requests")

    # --- health
    health_counts: Annotated[Line, AfterValidator(_select)] = Field(
        "", description="SQL with two columns, a label and a number, that monitoring gets", examples=["SELECT status, count(*) FROM uploads GROUP BY status"]
    )
    health_figures: Annotated[Line, AfterValidator(_select)] = Field(
        "",
        description="SQL with two columns, a name and a number, that monitoring gets besides",
        examples=["SELECT 'ocr_success_ratio', avg((status = 'done')::int) FROM uploads WHERE created > now() - interval '1 hour'"],
    )
    health_most_waiting: Annotated[int, Field(ge=1)] = Field(1000, description="more waiting tasks are a fault of `cricksy-health`")
    health_memory_percent: Annotated[int, Field(ge=1, le=100)] = Field(80, description="a broker that is fuller is a fault of it")

    # --- Flower
    flower_domain: Domain | None = Field(None, description="name under which Flower answers, on the first host of cricksy_api; without it there is none")
    flower_user: Annotated[str, matching(r"[A-Za-z0-9_.-]+", "must be a name without spaces and colons")] = Field("cricksy", description="its account")
    flower_password: Password = Field(default_factory=Secret.unset, description="its password; required with flower_domain")
    flower_networks: Many[Annotated[Network, narrow()]] = Field((), description="networks that may reach it; empty: only the host itself")

    # --- rules

    @rule
    def _application_is_named(self) -> Iterator[Fault]:
        if not self.runs_application:
            return
        for key in ("repository", "version"):
            if not getattr(self, key):
                yield Fault(key, "is required on hosts of cricksy_api and cricksy_worker")
        s3_keys = () if self.s3_manage_users else ("s3_access_key", "s3_secret_key")
        for key in (*s3_keys, "postgres_password", "redis_password"):
            if not getattr(self, key):
                yield Fault(key, "is required on hosts of cricksy_api and cricksy_worker", hint=f"write cricksy_{key} = 'env:CRICKSY_{key.upper()}'")
        if "api" in self.roles and not self.domain:
            yield Fault("domain", "is required on hosts of cricksy_api", hint="write cricksy_domain = 'cricksy.example.org'")
        if "api" in self.roles and self.migrate and not self.postgres_owner_password:
            yield Fault("postgres_owner_password", "is required where migrations run")
        if self.flower_domain and "api" in self.roles and not self.flower_password:
            yield Fault("flower_password", "is required with cricksy_flower_domain")
        if self.flower_domain and self.flower_domain == self.domain:
            yield Fault("flower_domain", "must be another name than cricksy_domain", self.flower_domain)

    @rule
    def _keys_are_of_one_kind(self) -> Iterator[Fault]:
        if not self.s3_manage_users:
            return
        for key in ("s3_access_key", "s3_secret_key"):
            if getattr(self, key):
                yield Fault(key, "must go with cricksy_s3_manage_users: each host has a key of its own")
        if self.s3_key_days and self.s3_key_days * 86400 < 2 * self.key_keep_seconds:
            yield Fault("s3_key_days", f"must be more than twice what a replaced key stays ({self.key_keep_seconds} s)", self.s3_key_days)

    @rule
    def _copies_are_of_versions(self) -> Iterator[Fault]:
        if bool(self.s3_replicate_to) != bool(self.s3_replicate_region):
            yield Fault("s3_replicate_to", "and cricksy_s3_replicate_region go together: give both or neither")
        if self.s3_replicate_to and self.s3_replicate_to == self.s3_bucket:
            yield Fault("s3_replicate_to", "must be another bucket than cricksy_s3_bucket", self.s3_replicate_to)
        for key in ("s3_manage_bucket", "s3_versioning", "s3_is_aws_like"):
            if self.s3_replicate_to and not getattr(self, key):
                yield Fault(key, "must be True with cricksy_s3_replicate_to", False)
        if self.s3_kms_key and not self.s3_is_aws_like:
            yield Fault("s3_kms_key", "is of a server that is like AWS (cricksy_s3_is_aws_like)")
        if self.s3_kms_key and self.s3_replicate_to:
            yield Fault("s3_replicate_to", "does not go with cricksy_s3_kms_key: copies between keys are not covered")

    @rule
    def _backup_has_a_key(self) -> Iterator[Fault]:
        if bool(self.s3_backup_access_key) != bool(self.s3_backup_secret_key):
            yield Fault("s3_backup_access_key", "and cricksy_s3_backup_secret_key go together: give both or neither")
        if self.s3_backup and {"infra", "api"} & set(self.roles) and not self.backup_key[0]:
            yield Fault("s3_backup_access_key", "is required with cricksy_s3_backup on hosts of cricksy_infra and cricksy_api, where there is no cricksy_s3_access_key")

    @rule
    def _containers_have_an_image(self) -> Iterator[Fault]:
        if not self.runs_containers:
            return
        if not self.worker_image:
            yield Fault("worker_image", "is required with cricksy_worker_mode = 'containers'", hint="write cricksy_worker_image = 'registry.example.org/cricksy-worker:1.4.0'")
        if self.s3_manage_users:
            yield Fault("worker_mode", "must be 'units' with cricksy_s3_manage_users: a container keeps the key that it was made with", "containers")

    @rule
    def _databases_are_named(self) -> Iterator[Fault]:
        if self.runs_postgres:
            for key in ("postgres_password", "postgres_owner_password"):
                if not getattr(self, key):
                    yield Fault(key, "is required on the host that has PostgreSQL")
        if self.runs_redis:
            for key in ("redis_password", "redis_admin_password"):
                if not getattr(self, key):
                    yield Fault(key, "is required on the host that has Redis")
        if self.postgres_owner == self.postgres_user:
            yield Fault("postgres_owner", "must be another role than cricksy_postgres_user", self.postgres_owner)
        if self.redis_port == self.redis_cache_port and not self.redis_external:
            yield Fault("redis_cache_port", "must be another port than cricksy_redis_port: a cache that forgets is no broker", self.redis_cache_port)

    @rule
    def _between_hosts_is_tls(self) -> Iterator[Fault]:
        if "infra" in self.roles and self.infra_address:
            for key in ("infra_ca", "infra_certificate", "infra_key"):
                if not getattr(self, key):
                    yield Fault(key, "is required with cricksy_infra_address: between hosts nothing is spoken in clear")
            if not self.infra_networks:
                yield Fault("infra_networks", "is required with cricksy_infra_address", hint="write cricksy_infra_networks = ['10.0.0.0/24']")
        if self.runs_application and not self.infra_ca:
            for service, external in (("postgres", self.postgres_external), ("redis", self.redis_external)):
                if not self._is_local(getattr(self, f"{service}_host")) and not external:
                    yield Fault("infra_ca", f"is required where cricksy_{service}_host is another host's")
                    return

    @rule
    def _limits_fit(self) -> Iterator[Fault]:
        if self.task_soft_time_limit >= self.task_time_limit:
            yield Fault("task_soft_time_limit", f"must be less than cricksy_task_time_limit ({self.task_time_limit})", self.task_soft_time_limit)
        numbers = [one.number for one in self.worker_special]
        for number in sorted({one for one in numbers if numbers.count(one) > 1}):
            yield Fault("worker_special", f"must not name instance {number} twice")
        for number in numbers:
            if number > self.worker_instances:
                yield Fault("worker_special", f"must be of 1 to cricksy_worker_instances ({self.worker_instances})", number)

    @rule
    def _extra_env_is_extra(self) -> Iterator[Fault]:
        own = self._own_names()
        for field in ("extra_env", "extra_secret_env"):
            for name in sorted(own.intersection(getattr(self, field))):
                yield Fault(f"{field}.{name}", "is set by the deploy", hint="see the settings of cricksy")
        for name in sorted(self.extra_env):
            if _SECRET_NAME.search(name):
                yield Fault(f"extra_env.{name}", "looks like a secret", hint=f"write cricksy_extra_secret_env = {{{name!r}: 'env:{name}'}}")

    # --- what follows from them

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the host, by its groups."""
        return tuple(role for role in ROLES if f"cricksy_{role}" in self._groups)

    @property
    def runs_application(self) -> bool:
        return bool({"api", "worker"} & set(self.roles))

    @property
    def runs_containers(self) -> bool:
        """Whether the host's workers are containers, for which it needs an engine."""
        return self.worker_mode == "containers" and "worker" in self.roles

    @property
    def runs_postgres(self) -> bool:
        return "infra" in self.roles and not self.postgres_external

    @property
    def runs_redis(self) -> bool:
        return "infra" in self.roles and not self.redis_external

    @property
    def domains(self) -> tuple[str, ...]:
        """The names of the host's sites."""
        return tuple(name for name in (self.domain, self.flower_domain) if name) if "api" in self.roles else ()

    @property
    def backup_key(self) -> tuple[Secret, Secret]:
        """Both halves of the key with which the bucket is backed up."""
        own = (self.s3_backup_access_key, self.s3_backup_secret_key)
        return own if own[0] else (self.s3_access_key, self.s3_secret_key)

    @property
    def key_keep_seconds(self) -> int:
        """How long a replaced key stays: the last requests of the API that had it, what they signed, and a minute for clocks that differ."""
        return self.s3_presigned_expiry + self.drain_seconds + 60 if self.s3_key_keep_seconds is None else self.s3_key_keep_seconds

    @property
    def key_file(self) -> str:
        """The file from which units read the host's own key; empty where the key is one of the settings."""
        return KEY_FILE if self.s3_manage_users else ""

    @staticmethod
    def _is_local(host: str) -> bool:
        return host in ("localhost", "127.0.0.1", "::1")

    @property
    def uses_ca(self) -> bool:
        """Whether API and workers check the databases' certificate against our own authority."""
        return bool(self.infra_ca)

    def workers(self, count: int | None = None) -> list[tuple[tuple[str, ...], int]]:
        """Return queues and concurrency of each instance on a host."""
        special = {one.number: one for one in self.worker_special}
        found = []
        for number in range(1, (self.worker_instances if count is None else count) + 1):
            own = special.get(number)
            found.append(
                ((own.queues if own and own.queues else self.worker_queues), (own.concurrency if own and own.concurrency else self.worker_concurrency))
            )
        return found

    def _redis_url(self, port: int, database: int) -> Secret:
        tls = self.redis_tls if self.redis_tls is not None else (not self._is_local(self.redis_host) or (self.runs_redis and bool(self.infra_address)))
        account = f"{self.redis_user}:{quote(self.redis_password.unmask(), safe='')}"
        host = f"[{self.redis_host}]" if ":" in self.redis_host else self.redis_host
        text = f"{'rediss' if tls else 'redis'}://{account}@{host}:{port}/{database}"
        if tls:
            text += "?" + urlencode({"ssl_cert_reqs": "required", **({"ssl_ca_certs": CA_FILE} if self.uses_ca else {})}, safe="/")
        return Secret(text)

    def database_url(self, owner: bool = False, driver: str = "") -> Secret:
        """
        Return the URL of the database for one role: of one set of settings for the synchronous and the asynchronous driver.

        + driver: what SQLAlchemy calls it; empty: libpq's own URL, which psql takes too
        """
        user, password = (self.postgres_owner, self.postgres_owner_password) if owner else (self.postgres_user, self.postgres_password)
        host = f"[{self.postgres_host}]" if ":" in self.postgres_host else self.postgres_host
        mode = "prefer" if self._is_local(self.postgres_host) else "verify-full"
        # asyncpg has a word of its own for it, and takes the authority's file from the environment, as libpq does
        options = {"ssl" if driver == "asyncpg" else "sslmode": mode}
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return Secret(
            f"{scheme}://{user}:{quote(password.unmask(), safe='')}@{host}:{self.postgres_port}/{self.postgres_database}?{urlencode(options)}"
        )

    def _own_names(self) -> frozenset[str]:
        return frozenset(
            [
                "CRICKSY_ENABLE_UPLOADS", "CRICKSY_ENABLE_OCR", "DATABASE_URL", "ASYNC_DATABASE_URL", "CRICKSY_S3_ENDPOINT_URL",
                "CRICKSY_S3_BUCKET", "CRICKSY_S3_REGION", "CRICKSY_S3_ACCESS_KEY", "CRICKSY_S3_SECRET_KEY", "CRICKSY_S3_PRESIGNED_EXPIRY",
                "CRICKSY_CELERY_BROKER_URL", "CRICKSY_CELERY_RESULT_BACKEND", "CRICKSY_REDIS_URL", "CRICKSY_USE_REDIS_ADAPTER",
                "CRICKSY_LOG_LEVEL", "CRICKSY_API_TITLE", "CRICKSY_CORS_ORIGINS", "OMP_THREAD_LIMIT", "PGSSLROOTCERT",
            ]
        )  # fmt: skip

    def environment(self, owner: bool = False) -> dict[str, str | Secret]:
        """Return the variables of API and workers; ``owner``: with the role that may change tables, for migrations."""
        return {
            "CRICKSY_ENABLE_UPLOADS": _flag(self.enable_uploads),
            "CRICKSY_ENABLE_OCR": _flag(self.enable_ocr),
            "DATABASE_URL": self.database_url(owner),
            "ASYNC_DATABASE_URL": self.database_url(owner, "asyncpg"),
            "CRICKSY_S3_ENDPOINT_URL": self.s3_endpoint_url,
            "CRICKSY_S3_BUCKET": self.s3_bucket,
            "CRICKSY_S3_REGION": self.s3_region,
            # else they stand in a file of their own, which outlives releases: nothing goes back to a key that is gone
            **({} if self.s3_manage_users else {"CRICKSY_S3_ACCESS_KEY": self.s3_access_key, "CRICKSY_S3_SECRET_KEY": self.s3_secret_key}),
            "CRICKSY_S3_PRESIGNED_EXPIRY": str(self.s3_presigned_expiry),
            "CRICKSY_CELERY_BROKER_URL": self._redis_url(self.redis_port, 0),
            "CRICKSY_CELERY_RESULT_BACKEND": self._redis_url(self.redis_port, 0),
            # an instance of its own, which may forget: not a database of the broker's
            "CRICKSY_REDIS_URL": self._redis_url(self.redis_port if self.redis_external else self.redis_cache_port, 1 if self.redis_external else 0),
            "CRICKSY_USE_REDIS_ADAPTER": _flag(self.use_redis_adapter),
            "CRICKSY_LOG_LEVEL": self.log_level,
            "CRICKSY_API_TITLE": self.api_title,
            "CRICKSY_CORS_ORIGINS": ",".join(self.cors_origins),
            # one Tesseract of four threads beside another slows both down
            "OMP_THREAD_LIMIT": "1",
            **({"PGSSLROOTCERT": CA_FILE} if self.uses_ca else {}),
            **self.extra_env,
            **self.extra_secret_env,
        }

    def ports(self) -> tuple[Port, ...]:
        """Return the ports that are open: https, and the databases to the networks of the other hosts."""
        found = []
        if "api" in self.roles:
            found += [
                Port(port=80, why="cricksy: ACME challenge and redirect to https"),
                Port(port=443, why="cricksy: https"),
            ]
        if self.infra_address and self.runs_postgres:
            found.append(Port(port=self.postgres_port, sources=self.infra_networks, why="cricksy: postgres"))
        if self.infra_address and self.runs_redis:
            found += [
                Port(port=number, sources=self.infra_networks, why="cricksy: redis")
                for number in (self.redis_port, self.redis_cache_port)
            ]
        return tuple(found)

    def needs(self) -> Requirements:
        """Return what the host must have for its roles."""
        claims = [PortClaim(number, ("nginx",)) for number in (80, 443) if "api" in self.roles]
        if self.runs_postgres:
            claims.append(PortClaim(self.postgres_port, ("postgres",)))
        if self.runs_redis:
            claims += [PortClaim(number, ("redis-server",)) for number in (self.redis_port, self.redis_cache_port)]
        tasks = sum(concurrency for _, concurrency in self.workers()) if "worker" in self.roles else 1
        return Requirements(
            cores=1 if self.worker_allow_more_than_cores else max(1, tasks),
            memory_mb=512 * len(self.roles),
            disk_root_mb=512,
            disk_var_mb=512,
            python=(3, 11) if self.python == "distribution" and self.runs_application else (0, 0),
            ports=tuple(claims),
        )


def _flag(value: bool) -> str:
    return "1" if value else "0"


def fleet_faults(fleet: Mapping[str, Cricksy]) -> Iterator[Fault]:
    """Yield what is wrong between the hosts of one system."""
    for service in ("postgres", "redis"):
        runs = [name for name, settings in fleet.items() if getattr(settings, f"runs_{service}")]
        for name in runs[1:]:
            yield Fault(f"cricksy_{service}_external", f"must be True on all hosts of cricksy_infra but one: {runs[0]} has {service} already", False, host=name)
        users = [name for name, settings in fleet.items() if settings.runs_application and not getattr(settings, f"{service}_external")]
        if users and not runs:
            yield Fault(f"cricksy_{service}_external", "must be True when no host of cricksy_infra runs it", False, host=users[0])
        others = [name for name in users if name not in runs]
        if runs and others and not fleet[runs[0]].infra_address:
            yield Fault(
                "cricksy_infra_address", f"is required: {others[0]} needs {service}", host=runs[0],
                hint="write the host's address in the private network",
            )  # fmt: skip
        yield from (
            Fault(f"cricksy_{service}_host", "must be the database's host, not loopback", getattr(fleet[name], f"{service}_host"), host=name)
            for name in others
            if runs and fleet[name]._is_local(getattr(fleet[name], f"{service}_host"))
        )
    for key in ("postgres_password", "redis_password", "s3_access_key", "s3_secret_key", "s3_bucket", "version"):
        yield from differences(key, fleet)
