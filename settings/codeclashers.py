"""Settings of codeclashers on Kubernetes (`codeclashers_…`): the host of the group `codeclashers`, whose kubectl is used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

from pydantic import AfterValidator, Field

from settings.errors import Fault, broken, nearest
from settings.exposure import Port
from settings.fields import Certificates, EnvName, Line, Many, Network, matching, narrow
from settings.mcbench import EXPERIMENTAL, ApiKey, Image, Password, Path
from settings.secret import Secret
from settings.section import Section, rule

COMPONENTS = ("mongodb", "redis", "postgres", "colyseus", "bots", "judge0-server", "judge0-worker")
"""Every workload of the guide, in the order in which they are rolled out: what others need comes first."""

ROLLING = ("colyseus", "bots", "judge0-server", "judge0-worker")
"""Workloads of several equal pods, which are replaced one by one with one more than wanted."""

SINGLE = ("mongodb", "redis", "postgres")
"""Workloads that keep data: one pod each."""

COLYSEUS_PORT = 2567
MONGODB_NODE_PORT = 32017
JUDGE0_PORT = 2358
JUDGE0_SAFE = (1, 13, 1)
"""Before it, what a submission runs gets out of its sandbox (CVE-2024-28185, CVE-2024-28189, CVE-2024-29021)."""

_NUMBER = r"(?:0|[1-9][0-9]*)(?:\.[0-9]{1,3})?"


def cpu_millis(text: str) -> int:
    """Return a CPU quantity of Kubernetes in thousandths of a core: ``500m`` is 500, ``2`` is 2000."""
    return round(float(text[:-1])) if text.endswith("m") else round(float(text) * 1000)


_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def memory_bytes(text: str) -> int:
    """Return a memory quantity of Kubernetes in bytes: ``512Mi`` is 536870912."""
    found = re.fullmatch(rf"({_NUMBER})([kMGT]i?|Ki|)", text)
    if not found:
        raise ValueError(f"not a quantity: {text!r}")
    return round(float(found[1]) * _UNITS[found[2]])


def _cpu(value: str) -> str:
    if not re.fullmatch(rf"[1-9][0-9]*m|{_NUMBER}", value) or cpu_millis(value) == 0:
        raise broken("must be a CPU quantity such as '500m' or '2'")
    return value


def _memory(value: str) -> str:
    if re.fullmatch(r"[0-9]+m", value):
        raise broken("must be a memory quantity: 'm' means thousandths of a byte", f"write '{value[:-1]}Mi'")
    if not re.fullmatch(rf"{_NUMBER}(?:[KMGT]i|[kMGT])", value) or memory_bytes(value) < 2**20:
        raise broken("must be a memory quantity such as '512Mi' or '2Gi'")
    return value


def _storage(value: str) -> str:
    return _memory(value) if value else value


def _pull_token(value: Secret) -> Secret:
    """The token of a job is gone with the job: a pod that moves a day later could not get its image any more."""
    if value.resolved and value.unmask().startswith("ghs_"):
        raise broken(
            "must not be the GITHUB_TOKEN of a job (ghs_…), which ends with the job", "make a token that may only read packages", show=False
        )
    return value


def _key(value: Secret) -> Secret:
    if value.resolved and "PRIVATE KEY-----" not in value.unmask():
        raise broken("must be the text of a private key in PEM form", show=False)
    return value


def _component(value: str) -> str:
    if value not in COMPONENTS:
        near = nearest(value, COMPONENTS)
        raise broken(f"must be one of {', '.join(COMPONENTS)}", f"did you mean {near}?" if near else "")
    return value


Cpu = Annotated[str, AfterValidator(_cpu)]
Memory = Annotated[str, AfterValidator(_memory)]
Storage = Annotated[str, AfterValidator(_storage)]
Replicas = Annotated[int, Field(ge=1, le=100)]
Seconds = Annotated[int, Field(ge=1, le=86400)]
Label = Annotated[
    str,
    matching(
        r"(?:[a-z0-9.-]+/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?=[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?",
        "must be a label of a node such as 'dedicated=judge0'",
    ),
]
Name = Annotated[
    str, matching(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", "must be a name of small letters, digits and -")
]
DatabaseName = Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_-]{0,62}", "must be a name of letters, digits, _ and -")]
ComponentName = Annotated[str, AfterValidator(_component)]


@dataclass(frozen=True)
class Resources:
    """What one pod of a workload asks for, and what it may use at most."""

    replicas: int
    memory_request: str
    memory_limit: str
    cpu_request: str
    cpu_limit: str


class Codeclashers(Section):
    """codeclashers on a Kubernetes cluster. The host is a server of the cluster: manifests are applied by its kubectl."""

    prefix: ClassVar[str] = "codeclashers_"

    # the cluster
    namespace: Name = Field("codeclashers", description="namespace, with everything of the system in it")
    kubectl: Annotated[Many[Line], Field(min_length=1)] = Field(
        ("k3s", "kubectl"), description="kubectl on this host, as words; it must be allowed everything in the namespace"
    )
    storage_class: Annotated[str, matching(r"[a-z0-9.-]*", "must be the name of a storage class")] = Field(
        "", description="of the volumes; empty means the cluster's default, in k3s `local-path`: on the node's own disk"
    )
    rollout_seconds: Seconds = Field(
        600, description="time that one workload has to become available; past it everything goes back to what was good"
    )
    keep_revisions: Annotated[int, Field(ge=2, le=50)] = Field(
        5, description="good revisions kept, the running one included, with their config and secrets"
    )
    capacity_check: bool = Field(
        True, description="refuse what the nodes cannot hold: requests of all pods, and those more while a workload is replaced"
    )
    image_check: bool = Field(
        True, description="ask the registries whether each image is there for the nodes' architectures; one that does not answer is passed over"
    )

    # images
    registry: Annotated[str, matching(r"(?:[a-z0-9.-]+(?::[0-9]{1,5})?(?:/[a-z0-9._-]+)*)?", "must be a registry, with its path, such as 'ghcr.io/team'")] = Field(
        "", description="registry, with its path, of the images `codeclashers-colyseus` and `codeclashers-bots`", examples=["ghcr.io/team"]
    )
    version: Annotated[str, matching(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?", "must be a tag such as '1.4.0' or a commit")] = Field(
        "", description="tag of those images; never `latest`", examples=["1.4.0"]
    )
    colyseus_image: Image = Field("", description="image of Colyseus instead of `registry/codeclashers-colyseus:version`")
    bots_image: Image = Field("", description="image of the bots instead of `registry/codeclashers-bots:version`")
    judge0_image: Image = Field("docker.io/judge0/judge0:1.13.1", description="Judge0, 1.13.1 or newer, for amd64")
    mongodb_image: Image = Field("docker.io/library/mongo:7.0.16", description="MongoDB")
    redis_image: Image = Field("docker.io/library/redis:7.4.2", description="Redis 7 or newer")
    postgres_image: Image = Field("docker.io/library/postgres:16.8", description="PostgreSQL of Judge0")
    registry_username: Line = Field("", description="account that pulls the images; empty pulls without one")
    registry_password: Annotated[Secret, AfterValidator(_pull_token)] = Field(
        default_factory=Secret.unset,
        description="its password or token, which must not end with a job",
        examples=["env:REGISTRY_PASSWORD"],
    )

    # the guide's secrets
    redis_password: Password = Field(default_factory=Secret.unset, description="REDIS_PASSWORD", examples=["env:REDIS_PASSWORD"])
    judge0_postgres_user: DatabaseName = Field("judge0", description="JUDGE0_POSTGRES_USER")
    judge0_postgres_password: Password = Field(
        default_factory=Secret.unset, description="JUDGE0_POSTGRES_PASSWORD", examples=["env:JUDGE0_POSTGRES_PASSWORD"]
    )
    judge0_postgres_db: DatabaseName = Field("judge0", description="JUDGE0_POSTGRES_DB")
    judge0_authn_token: Password = Field(
        default_factory=Secret.unset,
        description="token that Judge0 asks of its clients (X-Auth-Token), for them in JUDGE0_AUTHN_TOKEN; empty asks for none",
    )
    mongodb_username: DatabaseName = Field("admin", description="MONGODB_USERNAME")
    mongodb_password: Password = Field(
        default_factory=Secret.unset, description="MONGODB_PASSWORD", examples=["env:MONGODB_PASSWORD"]
    )
    mongodb_database: DatabaseName = Field("codeclashers", description="database in MONGODB_URI")
    openai_api_key: ApiKey = Field(default_factory=Secret.unset, description="OPENAI_API_KEY", examples=["env:OPENAI_API_KEY"])
    internal_service_secret: Password = Field(
        default_factory=Secret.unset, description="INTERNAL_SERVICE_SECRET", examples=["env:INTERNAL_SERVICE_SECRET"]
    )
    bot_service_secret: Password = Field(
        default_factory=Secret.unset, description="BOT_SERVICE_SECRET", examples=["env:BOT_SERVICE_SECRET"]
    )
    colyseus_reservation_secret: Password = Field(
        default_factory=Secret.unset, description="COLYSEUS_RESERVATION_SECRET", examples=["env:COLYSEUS_RESERVATION_SECRET"]
    )
    aws_access_key_id: ApiKey = Field(default_factory=Secret.unset, description="AWS_ACCESS_KEY_ID", examples=["env:AWS_ACCESS_KEY_ID"])
    aws_secret_access_key: ApiKey = Field(
        default_factory=Secret.unset, description="AWS_SECRET_ACCESS_KEY", examples=["env:AWS_SECRET_ACCESS_KEY"]
    )
    s3_bucket_name: Annotated[
        str, matching(r"(?:[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?", "must be the name of a bucket: 3 to 63 small letters, digits, . and -")
    ] = Field("", description="S3_BUCKET_NAME; required", examples=["codeclashers-prod"])
    aws_region: Annotated[str, matching(r"[a-z]{2}(?:-[a-z]+)+-[0-9]", "must be a region such as 'us-east-1'")] = Field(
        "us-east-1", description="AWS_REGION"
    )
    extra_env: dict[ComponentName, dict[EnvName, Line]] = Field(
        {}, description="further variables by component (colyseus, bots, judge0-server, judge0-worker), no secrets"
    )
    extra_secret_env: dict[ComponentName, dict[EnvName, Secret]] = Field(
        {}, description="further variables that are secrets, likewise"
    )

    # the guide's numbers
    mongodb_replicas: Replicas = Field(1, description="K8S_MONGODB_REPLICAS; 1: the members of a replica set are not made here")
    mongodb_memory_request: Memory = Field("2Gi", description="K8S_MONGODB_MEMORY_REQUEST")
    mongodb_memory_limit: Memory = Field("4Gi", description="K8S_MONGODB_MEMORY_LIMIT")
    mongodb_cpu_request: Cpu = Field("500m", description="K8S_MONGODB_CPU_REQUEST")
    mongodb_cpu_limit: Cpu = Field("1000m", description="K8S_MONGODB_CPU_LIMIT")
    redis_replicas: Replicas = Field(1, description="K8S_REDIS_REPLICAS; 1")
    redis_memory_request: Memory = Field("512Mi", description="K8S_REDIS_MEMORY_REQUEST")
    redis_memory_limit: Memory = Field("1Gi", description="K8S_REDIS_MEMORY_LIMIT")
    redis_cpu_request: Cpu = Field("250m", description="K8S_REDIS_CPU_REQUEST")
    redis_cpu_limit: Cpu = Field("500m", description="K8S_REDIS_CPU_LIMIT")
    postgres_replicas: Replicas = Field(1, description="K8S_POSTGRES_REPLICAS; 1")
    postgres_memory_request: Memory = Field("256Mi", description="K8S_POSTGRES_MEMORY_REQUEST")
    postgres_memory_limit: Memory = Field("512Mi", description="K8S_POSTGRES_MEMORY_LIMIT")
    postgres_cpu_request: Cpu = Field("250m", description="K8S_POSTGRES_CPU_REQUEST")
    postgres_cpu_limit: Cpu = Field("500m", description="K8S_POSTGRES_CPU_LIMIT")
    colyseus_replicas: Replicas = Field(2, description="K8S_COLYSEUS_REPLICAS")
    colyseus_memory_request: Memory = Field("512Mi", description="K8S_COLYSEUS_MEMORY_REQUEST")
    colyseus_memory_limit: Memory = Field("1Gi", description="K8S_COLYSEUS_MEMORY_LIMIT")
    colyseus_cpu_request: Cpu = Field("500m", description="K8S_COLYSEUS_CPU_REQUEST")
    colyseus_cpu_limit: Cpu = Field("1000m", description="K8S_COLYSEUS_CPU_LIMIT")
    judge0_server_replicas: Replicas = Field(2, description="K8S_JUDGE0_SERVER_REPLICAS")
    judge0_server_memory_request: Memory = Field("512Mi", description="K8S_JUDGE0_SERVER_MEMORY_REQUEST")
    judge0_server_memory_limit: Memory = Field("1Gi", description="K8S_JUDGE0_SERVER_MEMORY_LIMIT")
    judge0_server_cpu_request: Cpu = Field("500m", description="K8S_JUDGE0_SERVER_CPU_REQUEST")
    judge0_server_cpu_limit: Cpu = Field("1000m", description="K8S_JUDGE0_SERVER_CPU_LIMIT")
    judge0_worker_replicas: Replicas = Field(2, description="K8S_JUDGE0_WORKER_REPLICAS")
    judge0_worker_memory_request: Memory = Field("1Gi", description="K8S_JUDGE0_WORKER_MEMORY_REQUEST")
    judge0_worker_memory_limit: Memory = Field("2Gi", description="K8S_JUDGE0_WORKER_MEMORY_LIMIT")
    judge0_worker_cpu_request: Cpu = Field("1000m", description="K8S_JUDGE0_WORKER_CPU_REQUEST")
    judge0_worker_cpu_limit: Cpu = Field("2000m", description="K8S_JUDGE0_WORKER_CPU_LIMIT")
    bots_replicas: Replicas = Field(2, description="K8S_BOTS_REPLICAS")
    bots_memory_request: Memory = Field("256Mi", description="K8S_BOTS_MEMORY_REQUEST")
    bots_memory_limit: Memory = Field("512Mi", description="K8S_BOTS_MEMORY_LIMIT")
    bots_cpu_request: Cpu = Field("250m", description="K8S_BOTS_CPU_REQUEST")
    bots_cpu_limit: Cpu = Field("500m", description="K8S_BOTS_CPU_LIMIT")

    # volumes
    mongodb_storage: Memory = Field("20Gi", description="volume of MongoDB")
    redis_storage: Memory = Field("2Gi", description="volume of Redis")
    postgres_storage: Storage = Field(
        "5Gi", description="volume of Judge0's PostgreSQL; empty: none, as in the guide, and submissions are gone with its pod"
    )

    # who may reach what
    colyseus_service: Literal["LoadBalancer", "NodePort", "ClusterIP"] = Field(
        "LoadBalancer", description="type of Colyseus' service; ClusterIP for a proxy in front of it"
    )
    colyseus_sources: Many[Network] = Field((), description=f"networks that may reach port {COLYSEUS_PORT}; empty means anyone")
    colyseus_sticky: bool = Field(
        True, description="one client address stays with one pod: rooms live in one process, and a seat is reserved by a request before the websocket"
    )
    mongodb_public_sources: Many[Annotated[Network, narrow(hint="write the addresses of the clients")]] = Field(
        (), description=f"networks that may reach MongoDB from outside, on port {MONGODB_NODE_PORT} with TLS; empty: nobody"
    )
    mongodb_tls_certificate: Certificates = Field(
        "", description="PEM of MongoDB's certificate for the names `mongodb` and its public one, with the CA's behind it; required with public sources"
    )
    mongodb_tls_key: Annotated[Secret, AfterValidator(_key)] = Field(default_factory=Secret.unset, description="its private key")
    mongodb_tls_ca: Certificates = Field("", description="PEM of the CA that clients check it by")

    # how pods end and are looked at
    colyseus_grace_seconds: Seconds = Field(
        1800, description="time that an old Colyseus has to end its matches: as long as a match may be"
    )
    grace_seconds: Seconds = Field(60, description="time that any other pod has to end")
    prestop_seconds: Annotated[int, Field(ge=0, le=300)] = Field(
        10, description="time between a pod's last new connection and its SIGTERM, by `sleep` in its container; 0 for images without"
    )
    min_ready_seconds: Annotated[int, Field(ge=0, le=600)] = Field(
        5, description="time that a new pod must stay ready before the next one is replaced"
    )
    start_seconds: Seconds = Field(300, description="time that a pod has to start before it is started again")
    colyseus_health_path: Path = Field("/health", description="path that answers 200 when Colyseus is up: an open port is no proof")
    judge0_health_path: Path = Field("/about", description="path that answers 200 when Judge0's server is up")
    colyseus_health_command: Many[Line] = Field(
        ("nc", "-z", "localhost", str(COLYSEUS_PORT)), description="what `deploys.codeclashers.health` runs in a container of Colyseus; empty: nothing"
    )
    judge0_health_command: Many[Line] = Field(
        ("curl", "-fsS", "-o", "/dev/null", f"http://localhost:{JUDGE0_PORT}/about"), description="likewise in one of Judge0's server"
    )
    bots_health_command: Annotated[Many[Line], Field(min_length=1)] = Field(
        ("sh", "-c", "test -e /proc/1/exe"), description="what ends with 0 in a container of the bots that is well; give the application's own"
    )
    judge0_worker_health_command: Annotated[Many[Line], Field(min_length=1)] = Field(
        ("sh", "-c", "pgrep -f resque"), description="likewise in a Judge0 worker"
    )

    # Judge0's nodes
    judge0_node_label: Label = Field("dedicated=judge0", description="label of the nodes for workers, which must be amd64")
    judge0_node_taint: Label = Field("dedicated=judge0", description="their taint (NoSchedule), so that nothing else is put there")
    judge0_shares_nodes: bool = Field(
        False, description="privileged workers may be on any amd64 node; only on hosts of the group lab or dev: a way out of the sandbox is root there"
    )
    judge0_submission_network: bool = Field(False, description="submissions may use the network (ENABLE_NETWORK)")

    # processes
    colyseus_user: Annotated[int, Field(ge=1, le=65535)] = Field(1000, description="user of Colyseus' and the bots' processes")
    data_user: Annotated[int, Field(ge=1, le=65535)] = Field(999, description="user of MongoDB, Redis and PostgreSQL, as in the official Debian images")
    applications_read_only: bool = Field(True, description="Colyseus and the bots write to /tmp only")

    # backups
    backup_mongodb_enabled: bool = Field(True, description="back MongoDB up on this host, if backups are made")
    backup_redis_enabled: bool = Field(True, description="back Redis up likewise")

    # --- what follows from it ----------------------------------------------------------------------------------------

    @property
    def is_experimental(self) -> bool:
        """Whether the host is one on which unsafe values are allowed."""
        return bool(self._groups & EXPERIMENTAL)

    def image(self, component: str) -> str:
        """Return the image of a component."""
        if component.startswith("judge0"):
            return self.judge0_image
        given = str(getattr(self, f"{component}_image"))
        return given or f"{self.registry}/codeclashers-{component}:{self.version}"

    def resources(self, component: str) -> Resources:
        """Return the replicas, requests and limits of a component."""
        stem = component.replace("-", "_")
        fields = ("replicas", "memory_request", "memory_limit", "cpu_request", "cpu_limit")
        return Resources(*(getattr(self, f"{stem}_{field}") for field in fields))

    @property
    def mongodb_is_public(self) -> bool:
        """Whether MongoDB can be reached from outside the cluster."""
        return bool(self.mongodb_public_sources)

    @property
    def mongodb_uri(self) -> Secret:
        """MONGODB_URI inside the cluster."""
        if not self.mongodb_password.resolved:
            return self.mongodb_password
        user, password = quote(self.mongodb_username, safe=""), quote(self.mongodb_password.unmask(), safe="")
        tls = "&tls=true&tlsCAFile=/etc/mongodb-ca/ca.crt" if self.mongodb_is_public else ""
        return Secret(f"mongodb://{user}:{password}@mongodb:27017/{self.mongodb_database}?authSource=admin{tls}")

    def environment(self, component: str) -> dict[str, str]:
        """Return the variables of a component that are no secrets."""
        found: dict[str, str] = {}
        if component in ("colyseus", "bots"):
            found = {
                "NODE_ENV": "production",
                "REDIS_HOST": "redis",
                "REDIS_PORT": "6379",
                "JUDGE0_URL": f"http://judge0-server:{JUDGE0_PORT}",
                "COLYSEUS_URL": f"http://colyseus:{COLYSEUS_PORT}",
                "COLYSEUS_PORT": str(COLYSEUS_PORT),
                "S3_BUCKET_NAME": self.s3_bucket_name,
                "AWS_REGION": self.aws_region,
            }
        elif component.startswith("judge0"):
            found = {
                "REDIS_HOST": "redis",
                "REDIS_PORT": "6379",
                "POSTGRES_HOST": "postgres",
                "POSTGRES_PORT": "5432",
                "POSTGRES_DB": self.judge0_postgres_db,
                "POSTGRES_USER": self.judge0_postgres_user,
                "ENABLE_NETWORK": _flag(self.judge0_submission_network),
                "ALLOW_ENABLE_NETWORK": _flag(self.judge0_submission_network),
            }
        return found | self.extra_env.get(component, {})

    def secret_environment(self, component: str) -> dict[str, Secret]:
        """Return the variables of a component that are secrets: its own, and none of another's."""
        found: dict[str, Secret] = {}
        if component in ("colyseus", "bots"):
            found = {
                "REDIS_PASSWORD": self.redis_password,
                "MONGODB_URI": self.mongodb_uri,
                "OPENAI_API_KEY": self.openai_api_key,
                "INTERNAL_SERVICE_SECRET": self.internal_service_secret,
                "BOT_SERVICE_SECRET": self.bot_service_secret,
            }
            if component == "colyseus":
                found |= {
                    "COLYSEUS_RESERVATION_SECRET": self.colyseus_reservation_secret,
                    "AWS_ACCESS_KEY_ID": self.aws_access_key_id,
                    "AWS_SECRET_ACCESS_KEY": self.aws_secret_access_key,
                }
            if self.judge0_authn_token:
                found["JUDGE0_AUTHN_TOKEN"] = self.judge0_authn_token
        elif component.startswith("judge0"):
            found = {"REDIS_PASSWORD": self.redis_password, "POSTGRES_PASSWORD": self.judge0_postgres_password}
            if self.judge0_authn_token:
                found["AUTHN_TOKEN"] = self.judge0_authn_token
        return found | self.extra_secret_env.get(component, {})

    def ports(self) -> tuple[Port, ...]:
        """Return the ports that are open to the outside."""
        found = []
        if self.colyseus_service == "LoadBalancer":
            found.append(Port(port=COLYSEUS_PORT, sources=self.colyseus_sources, why="colyseus"))
        if self.mongodb_is_public:
            found.append(Port(port=MONGODB_NODE_PORT, sources=self.mongodb_public_sources, why="mongodb with TLS"))
        return tuple(found)

    # --- rules -------------------------------------------------------------------------------------------------------

    @rule
    def _images_are_known(self) -> Iterator[Fault]:
        for component in ("colyseus", "bots"):
            if not getattr(self, f"{component}_image"):
                for name, example in (("registry", "ghcr.io/team"), ("version", "1.4.0")):
                    if not getattr(self, name):
                        yield Fault(name, "is required", hint=f"write codeclashers_{name} = '{example}'")
                break
        if self.version == "latest":
            yield Fault("version", "must not be 'latest': nobody could say what runs, or go back to it", "latest")
        for name in ("judge0", "mongodb", "redis", "postgres"):
            if not getattr(self, f"{name}_image"):
                yield Fault(f"{name}_image", "is required")
        tag = self.judge0_image.partition("@")[0].rpartition(":")[2]
        if (found := re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", tag)) and tuple(int(part or 0) for part in found.groups()) < JUDGE0_SAFE:
            yield Fault(
                "judge0_image", "must be 1.13.1 or newer: before it, submissions get out of their sandbox", self.judge0_image
            )

    @rule
    def _secrets_are_given(self) -> Iterator[Fault]:
        for name in _REQUIRED_SECRETS:
            if not getattr(self, name):
                yield Fault(name, "is required", hint=f"write codeclashers_{name} = 'env:{name.upper()}'")
        if bool(self.registry_username) != bool(self.registry_password):
            missing = "password" if self.registry_username else "username"
            yield Fault(f"registry_{missing}", "is required with the other half of the account")
        given = {name: secret.unmask() for name in _REQUIRED_SECRETS if (secret := getattr(self, name)).resolved}
        for name, value in given.items():
            others = [other for other in given if other < name and given[other] == value]
            if others:
                yield Fault(name, f"must not be the same as codeclashers_{others[0]}")

    @rule
    def _bucket_is_given(self) -> Iterator[Fault]:
        if not self.s3_bucket_name:
            yield Fault("s3_bucket_name", "is required", hint="write codeclashers_s3_bucket_name = 'codeclashers-prod'")

    @rule
    def _data_has_one_pod(self) -> Iterator[Fault]:
        for component in SINGLE:
            if (number := getattr(self, f"{component}_replicas")) != 1:
                yield Fault(
                    f"{component}_replicas", "must be 1: each further pod would have data of its own", number,
                    f"write codeclashers_{component}_replicas = 1",
                )  # fmt: skip

    @rule
    def _limits_hold_requests(self) -> Iterator[Fault]:
        for component in COMPONENTS:
            stem, its = component.replace("-", "_"), self.resources(component)
            if memory_bytes(its.memory_limit) < memory_bytes(its.memory_request):
                yield Fault(f"{stem}_memory_limit", f"must be at least the request, {its.memory_request}", its.memory_limit)
            if cpu_millis(its.cpu_limit) < cpu_millis(its.cpu_request):
                yield Fault(f"{stem}_cpu_limit", f"must be at least the request, {its.cpu_request}", its.cpu_limit)

    @rule
    def _mongodb_is_public_with_tls_only(self) -> Iterator[Fault]:
        for name in ("mongodb_tls_certificate", "mongodb_tls_key", "mongodb_tls_ca"):
            if self.mongodb_is_public and not getattr(self, name):
                yield Fault(name, "is required with codeclashers_mongodb_public_sources: passwords would cross the internet in clear")
            if not self.mongodb_is_public and getattr(self, name):
                yield Fault(name, "must be empty without codeclashers_mongodb_public_sources")

    @rule
    def _workers_are_alone(self) -> Iterator[Fault]:
        if self.judge0_shares_nodes and not self.is_experimental:
            yield Fault("judge0_shares_nodes", "must be False outside the groups lab and dev", True)

    @rule
    def _pods_can_end(self) -> Iterator[Fault]:
        for name in ("colyseus_grace_seconds", "grace_seconds"):
            if getattr(self, name) <= self.prestop_seconds:
                yield Fault(
                    name, f"must be more than codeclashers_prestop_seconds ({self.prestop_seconds}): it counts into it", getattr(self, name)
                )

    @rule
    def _extra_variables_are_new(self) -> Iterator[Fault]:
        for key, table in (("extra_env", self.extra_env), ("extra_secret_env", self.extra_secret_env)):
            for component, variables in table.items():
                if component in SINGLE:
                    yield Fault(f"{key}.{component}", "must not stand here: its variables are the image's own")
                    continue
                own = {**self._own_names(component)}
                for name in variables:
                    if name in own:
                        yield Fault(f"{key}.{component}.{name}", f"must not be given here, {own[name]}")
        for component in set(self.extra_env) & set(self.extra_secret_env):
            for name in set(self.extra_env[component]) & set(self.extra_secret_env[component]):
                yield Fault(f"extra_env.{component}.{name}", "must not stand in codeclashers_extra_secret_env too")

    def _own_names(self, component: str) -> Mapping[str, str]:
        bare = self.model_copy(update={"extra_env": {}, "extra_secret_env": {}})
        names = [*bare.environment(component), *bare.secret_environment(component)]
        return dict.fromkeys((name for name in names if name not in ("NODE_ENV",)), "it follows from the other settings")


_REQUIRED_SECRETS = (
    "redis_password",
    "judge0_postgres_password",
    "mongodb_password",
    "openai_api_key",
    "internal_service_secret",
    "bot_service_secret",
    "colyseus_reservation_secret",
    "aws_access_key_id",
    "aws_secret_access_key",
)


def _flag(value: bool) -> str:
    return "true" if value else "false"
