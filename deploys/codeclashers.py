"""
codeclashers on Kubernetes: databases first, then what uses them, each gated before the next.

Read top to bottom, it is the run book. What each step guards against is told in docs/codeclashers.md.
"""

import base64
import hashlib
import json
from collections.abc import Mapping

from pyinfra.api import DeployError, deploy

from deploys import current
from operations import backup, manifests, template
from operations.manifests import Manifest
from settings import Backup, Codeclashers
from settings.codeclashers import COMPONENTS, ROLLING
from settings.secret import Secret

APP = "codeclashers"

_OPAQUE = "Opaque"
_REGISTRY = "kubernetes.io/dockerconfigjson"
_FIRST = ("namespace", "secrets", "account", "config", "network")


@deploy("codeclashers")
def codeclashers() -> None:
    """Converge the cluster that this host is a server of to its settings."""
    settings = current().codeclashers
    if settings is None:
        return
    manifests.manifests(
        APP,
        rendered(settings),
        namespace=settings.namespace,
        kubectl=settings.kubectl,
        rollout_seconds=settings.rollout_seconds,
        keep=settings.keep_revisions,
        check_capacity=settings.capacity_check,
        check_images=settings.image_check,
        registry=pull_account(settings),
        registry_given_by="codeclashers_registry_username and codeclashers_registry_password",
        name="Apply manifests",
    )
    _backup(settings, current().backup)


@deploy("codeclashers rollback")
def rollback() -> None:
    """
    Go back to the good revision before the present one: workloads, config and secrets.

    The inventory still names what was left: the next converge goes forward again, unless it is changed.
    """
    settings = current().codeclashers
    if settings is not None:
        manifests.rollback(
            APP, settings.namespace, settings.kubectl, settings.rollout_seconds, name="Roll back to the revision before"
        )


@deploy("codeclashers status")
def status() -> None:
    """Say which revision serves, how every workload and its pods are, and where services are reached. Changes nothing."""
    settings = current().codeclashers
    if settings is not None:
        manifests.status(APP, settings.namespace, settings.kubectl, name="Look at the cluster")


@deploy("codeclashers health")
def health() -> None:
    """Ask every component from inside its own container whether it is well, as the guide does by hand. Changes nothing."""
    settings = current().codeclashers
    if settings is not None:
        manifests.health(APP, health_checks(settings), settings.namespace, settings.kubectl, name="Check health")


@deploy("codeclashers scale")
def scale(component: str, replicas: int) -> None:
    """
    Have another number of pods of one component, until the next converge.

    + component: colyseus, bots, judge0-server or judge0-worker; + replicas: 1 to 100
    """
    settings = current().codeclashers
    if settings is None:
        return
    if component not in ROLLING:
        raise DeployError(f"codeclashers.scale: component must be one of {', '.join(ROLLING)}, got {component!r}")
    if not isinstance(replicas, int) or isinstance(replicas, bool) or not 1 <= replicas <= 100:
        raise DeployError(f"codeclashers.scale: replicas must be a whole number of 1 to 100, got {replicas!r}")
    manifests.scale(
        APP, component, replicas, settings.namespace, settings.kubectl, settings.rollout_seconds, name="Scale"
    )


@deploy("codeclashers restart")
def restart(component: str) -> None:
    """
    Replace all pods of one component, one after another where it has several.

    + component: any of the guide's
    """
    settings = current().codeclashers
    if settings is None:
        return
    if component not in COMPONENTS:
        raise DeployError(f"codeclashers.restart: component must be one of {', '.join(COMPONENTS)}, got {component!r}")
    manifests.restart(APP, component, settings.namespace, settings.kubectl, settings.rollout_seconds, name="Restart")


def health_checks(settings: Codeclashers) -> dict[str, list[str]]:
    """Return the guide's checks, with no password in argv; a container that lacks the command is not well."""
    shell = ["mongosh", "--quiet"]
    if settings.mongodb_is_public:
        shell += ["--tls", "--tlsCAFile", "/etc/mongodb-ca/ca.crt", "--tlsAllowInvalidHostnames"]
    ready = 'pg_isready -h 127.0.0.1 -U "$POSTGRES_USER" -d "$POSTGRES_DB"'
    return {
        "mongodb": [*shell, "--eval", "quit(db.adminCommand('ping').ok ? 0 : 1)"],
        "redis": ["sh", "-c", "REDISCLI_AUTH=$(cat /etc/redis/password) redis-cli ping | grep -q PONG"],
        "postgres": ["sh", "-c", ready],
        "colyseus": list(settings.colyseus_health_command),
        "bots": list(settings.bots_health_command),
        "judge0-server": list(settings.judge0_health_command),
        "judge0-worker": list(settings.judge0_worker_health_command),
    }


def _backup(settings: Codeclashers, policy: Backup) -> None:
    backup.source(
        "codeclashers-mongodb",
        policy=policy,
        kind="mongodb",
        server=mongodb_server(settings),
        present=policy.enabled and settings.backup_mongodb_enabled,
        name="Back up MongoDB",
    )
    backup.source(
        "codeclashers-redis",
        policy=policy,
        kind="redis_pod",
        server=redis_server(settings),
        present=policy.enabled and settings.backup_redis_enabled,
        name="Back up Redis",
    )


def mongodb_server(settings: Codeclashers) -> backup.MongoDB:
    """Return how MongoDB is dumped, and restored into a pod of its own."""
    tls = settings.mongodb_is_public
    return backup.MongoDB(
        database=settings.mongodb_database,
        image=settings.image("mongodb"),
        namespace=settings.namespace,
        username=settings.mongodb_username,
        kubectl=tuple(settings.kubectl),
        options=("--ssl", "--sslCAFile=/etc/mongodb-ca/ca.crt", "--sslAllowInvalidHostnames") if tls else (),
        url_options="&tls=true&tlsCAFile=/etc/mongodb-ca/ca.crt&tlsAllowInvalidHostnames=true" if tls else "",
        pull_secrets=_pull_secrets(settings),
        user=settings.data_user,
    )


def redis_server(settings: Codeclashers) -> backup.RedisPod:
    """Return how Redis is copied, and loaded into a pod of its own."""
    return backup.RedisPod(
        image=settings.image("redis"),
        namespace=settings.namespace,
        kubectl=tuple(settings.kubectl),
        pull_secrets=_pull_secrets(settings),
        user=settings.data_user,
    )


def _pull_secrets(settings: Codeclashers) -> tuple[str, ...]:
    return tuple(hashed(name, kind, data) for name, (kind, data) in _secrets(settings).items() if kind == _REGISTRY)


# --- manifests -----------------------------------------------------------------------------------------------------


def rendered(settings: Codeclashers) -> list[Manifest]:
    """Return the manifests of every component, in the order in which they are applied."""
    secrets = {hashed(name, kind, data): {"type": kind, "data": data} for name, (kind, data) in _secrets(settings).items()}
    configs = {hashed(name, "", _plain(data)): data for name, data in _configs(settings).items()}
    names = {full.rpartition("-")[0]: full for full in (*secrets, *configs)}
    given = {"settings": settings, "secrets": secrets, "configs": configs, "names": names}
    texts = {name: template.render(f"codeclashers/{name}.yaml.j2", **given) for name in (*_FIRST, *COMPONENTS)}
    return [Manifest(name, Secret(text) if name == "secrets" else text) for name, text in texts.items()]


def hashed(name: str, kind: str, data: Mapping[str, Secret]) -> str:
    """
    Return a name that changes with the content: who uses it is rolled out anew, and a rollback finds the old one.

    >>> hashed("bots", "Opaque", {})
    'bots-…10 hex digits…'
    """
    content = json.dumps([kind, {key: value.unmask() for key, value in sorted(data.items())}])
    return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def _plain(data: Mapping[str, str]) -> dict[str, Secret]:
    return {key: Secret(value) for key, value in data.items()}


def _encoded(value: Secret | str) -> Secret:
    text = value.unmask() if isinstance(value, Secret) else value
    return Secret(base64.b64encode(text.encode()).decode())


def _secrets(settings: Codeclashers) -> dict[str, tuple[str, dict[str, Secret]]]:
    """Return the secrets by name: one for each component, so that a rotation reaches none but its users."""
    mongodb: dict[str, Secret | str] = {"username": settings.mongodb_username, "password": settings.mongodb_password}
    if settings.mongodb_is_public:
        mongodb["tls.pem"] = Secret(settings.mongodb_tls_certificate.rstrip() + "\n" + settings.mongodb_tls_key.unmask())
    found: dict[str, tuple[str, Mapping[str, Secret | str]]] = {
        "mongodb": (_OPAQUE, mongodb),
        "redis": (_OPAQUE, {"password": settings.redis_password, "redis.conf": redis_configuration(settings)}),
        "postgres": (_OPAQUE, {"password": settings.judge0_postgres_password}),
        **{component: (_OPAQUE, settings.secret_environment(component)) for component in ROLLING},
    }
    if account := pull_account(settings):
        found["registry"] = (_REGISTRY, {".dockerconfigjson": _docker_configuration(*account)})
    return {name: (kind, {key: _encoded(value) for key, value in data.items()}) for name, (kind, data) in found.items()}


def _configs(settings: Codeclashers) -> dict[str, dict[str, str]]:
    found = {f"{component}-env": settings.environment(component) for component in ROLLING}
    if settings.mongodb_is_public:
        found["mongodb-ca"] = {"ca.crt": settings.mongodb_tls_ca}
    return found


def redis_configuration(settings: Codeclashers) -> Secret:
    """Return redis.conf: kept on disk, nothing evicted (it holds Judge0's queue and the matches), a password."""
    lines = [
        "bind * -::*",
        "port 6379",
        "dir /data",
        "appendonly yes",
        "appendfsync everysec",
        "maxmemory-policy noeviction",
        f"requirepass {settings.redis_password.unmask()}",
    ]
    return Secret("\n".join(lines) + "\n")


def pull_account(settings: Codeclashers) -> tuple[str, str, Secret] | None:
    """Return the registry, the account and its password that images are pulled by."""
    if not settings.registry_username:
        return None
    registry = settings.image("colyseus").partition("/")[0]
    return registry, settings.registry_username, settings.registry_password


def _docker_configuration(registry: str, username: str, password: Secret) -> Secret:
    pair = base64.b64encode(f"{username}:{password.unmask()}".encode()).decode()
    return Secret(json.dumps({"auths": {registry: {"auth": pair}}}))
