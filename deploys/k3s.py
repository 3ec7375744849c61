"""
k3s: the nodes of one cluster at a pinned version, servers before agents, one node at a time.

Read top to bottom, it is the run book; docs/k3s.md tells why each step is so. What runs on the cluster is not its business.
"""

import json
from typing import Any

from pyinfra import host as this
from pyinfra.api import deploy
from pyinfra.api.exceptions import DeployError

from deploys import current
from operations import backup
from operations import k3s as node
from operations.k3s import Release
from operations.preflight import end_if_refused
from settings import Host, K3s
from settings.secret import Secret


def preflight() -> None:
    """Refuse a host that cannot be a node, before the first change of the run."""
    host, settings = current(), _settings()
    node.needs(
        settings.version,
        cgroup_versions=settings.cgroup_versions,
        allow_swap=settings.allow_swap,
        vxlan=str(settings.config.get("flannel-backend", "vxlan")) == "vxlan",
        ufw=host.base.firewall_enabled,
        fails_cgroup_v1=settings.fails_cgroup_v1,
        protect_kernel_defaults=str(settings.config.get("protect-kernel-defaults", "")).lower() == "true",
        name="Check host for k3s",
    )


@deploy("k3s")
def k3s() -> None:
    """Converge one node to its settings."""
    settings = _settings()
    if settings.oracle_rules:
        node.accept(accepted(current()), networks=(settings.cluster_cidr, settings.service_cidr), name="Accept what is declared before Oracle's rules reject it")
    if settings.former_token:
        tokens = {"old": settings.former_token, "new": settings.token, "start_seconds": settings.start_seconds}
        if settings.role == "server" and is_first(settings):
            node.rotate_token(**tokens, name="Rotate the cluster's token", _serial=True)
        else:
            node.rotate_token(**tokens, told_by=first_server(settings), name="Take the cluster's new token", _serial=True)
    common = _common(settings)
    if settings.role == "server" and is_first(settings):
        node.server(**common, **_server(settings), peers=other_servers(), name="Run the first server", _serial=True)
    if settings.role == "server" and not is_first(settings):
        node.server(**common, **_server(settings), join=settings.url, name="Run servers, one at a time", _serial=True)
    if settings.role == "agent":
        node.agent(**common, join=settings.url, control=first_server(settings), config=_config(settings), name="Run agents, one at a time", _serial=True)
    end_if_refused()
    if settings.role == "server" and current().backup.enabled:
        _backup(settings)


def _settings() -> K3s:
    settings = current().k3s
    if settings is None:
        raise DeployError("k3s: the host must be in k3s_server or k3s_agent")
    return settings


def first_server(settings: K3s) -> str:
    """Return the inventory name of the server that begins the cluster: the declared one, or the only one."""
    servers = sorted(one.name for one in this.inventory.get_group("k3s_server", []))
    return settings.first_server or (servers[0] if servers else this.name)


def is_first(settings: K3s) -> bool:
    """Whether this host is that server."""
    return this.name == first_server(settings)


def other_servers() -> list[str]:
    """Return the inventory names of the servers that this host is not."""
    return sorted(one.name for one in this.inventory.get_group("k3s_server", []) if one.name != this.name)


def _common(settings: K3s) -> dict[str, Any]:
    return {
        "node_name": settings.node_name or current().hostname.lower(),
        "release": Release(settings.version, settings.sums, settings.release_url, settings.images, settings.images_sha256),
        "token": settings.token,
        "former_token": settings.former_token,
        "node_ip": settings.node_ip,
        "labels": settings.labels,
        "taints": settings.taints,
        "registries": registries_yaml(settings),
        "registry_cas": {name: one.ca for name, one in settings.registries.items() if one.ca},
        "start_seconds": settings.start_seconds,
        "drain_seconds": settings.drain_seconds,
    }


def _config(settings: K3s) -> dict[str, Any]:
    config = dict(settings.config)
    if settings.node_ports_closed:
        config["kube-proxy-arg"] = [*config.get("kube-proxy-arg", []), "nodeport-addresses=127.0.0.0/8"]
    return config


def _server(settings: K3s) -> dict[str, Any]:
    networks = {"cluster-cidr": settings.cluster_cidr, "service-cidr": settings.service_cidr}
    return {
        "datastore": settings.datastore,
        "tls_san": settings.tls_san,
        "disable": settings.disable,
        "snapshot_schedule": settings.snapshot_schedule,
        "snapshot_retention": settings.snapshot_retention,
        "config": {**networks, **_config(settings)},
    }


def registries_yaml(settings: K3s) -> Secret | None:
    """Return the text of registries.yaml; JSON is YAML, and holds any password as it is."""
    if not settings.registries and not settings.mirrors:
        return None
    configs: dict[str, Any] = {}
    for name, access in sorted(settings.registries.items()):
        one: dict[str, Any] = {}
        if access.username:
            one["auth"] = {"username": access.username, "password": access.password.unmask()}
        if access.ca:
            one["tls"] = {"ca_file": node.ca_path(name)}
        configs[name] = one
    mirrors = {name: {"endpoint": list(urls)} for name, urls in sorted(settings.mirrors.items())}
    return Secret(json.dumps({"mirrors": mirrors, "configs": configs}, indent=1) + "\n")


def accepted(host: Host) -> list[tuple[int, str, tuple[str, ...]]]:
    """Return the declared ports of all that runs here, as ``operations.k3s.accept`` takes them: where Oracle's rules are, no ufw opens any."""
    return [(port.port, port.proto, tuple(port.sources)) for system in host.systems for port in system.ports()]


def _backup(settings: K3s) -> None:
    """Snapshots of etcd are files that k3s makes; sqlite is copied while it is in use."""
    host = current()
    if settings.datastore == "etcd":
        backup.source("k3s", policy=host.backup, kind="directory", path=node.SNAPSHOTS, mode="0700", minimum={"files": 1}, name="Back up snapshots of etcd")
    else:
        backup.source(
            "k3s", policy=host.backup, kind="sqlite", path=f"{node.DATA}/server/db/state.db", units=["k3s.service"],
            minimum={"kine": 1}, name="Back up k3s's database",
        )  # fmt: skip


@deploy("Restore k3s")
def restore(snapshot: str = "latest", repository: str = "primary") -> None:
    """
    Bring the cluster back on its first server; **what is newer is lost**. Further servers join again.

    + snapshot: of etcd: path, name or ``latest``, of those in k3s's own directory; ``deploys.backup.restore source=k3s``
      brings them there from a repository. With sqlite: a copy in the repository, ``latest``, ``verified``, an id, a day or a time
    + repository: with sqlite, ``primary`` or ``offsite``
    """
    settings = _settings()
    if settings.datastore == "sqlite":
        if settings.role == "server":
            node.restore_database(snapshot, repository, name="Restore the database")
        return
    is_further = settings.role == "server" and not is_first(settings)
    if settings.role == "server" and is_first(settings):
        node.check_snapshot(snapshot, name="Check the snapshot")
    if is_further:
        node.stop_server(first_server(settings), name="Stop the other servers")
    if settings.role == "server" and is_first(settings):
        node.restore(snapshot, peers=other_servers(), name="Restore the datastore")
    if is_further:
        node.rejoin(first_server(settings), name="Let the other servers join again", _serial=True)


@deploy("Uninstall k3s and delete all data")
def uninstall_and_delete_all_data(node_name: str) -> None:
    """
    End k3s on the host whose node has this name, and delete its data: pods, local volumes, the datastore and its snapshots.

    + node_name: of the node; hosts of other nodes are left alone
    """
    settings = _settings()
    if (settings.node_name or current().hostname.lower()) == node_name:
        control = [first_server(settings), *other_servers()]
        node.uninstall_and_delete_all_data(node_name, control=[name for name in control if name != this.name], drain_seconds=settings.drain_seconds, name="Uninstall k3s and delete all data")
