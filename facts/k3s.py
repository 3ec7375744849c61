"""What a host has of k3s, and what k3s needs of a host."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand

from facts.records import Record

_FILES = Path(__file__).parents[1] / "files" / "k3s"


def _program(name: str, values: Mapping[str, Any]) -> StringCommand:
    # Exit status 0 whatever happens: pyinfra gives a host up when a fact fails.
    return StringCommand("python3", "-B", "-c", QuoteString((_FILES / name).read_text() + f"\nmain({dict(values)!r})"), "||", "true")


@dataclass(frozen=True)
class ClusterNode(Record):
    """
    One node as the API server has it.

    + taints: ``key=value:Effect``, without those that Kubernetes sets itself
    + annotations: ours alone
    + votes: nothing says that it has no vote in etcd
    + boot: of its host, in which its kubelet said all this
    """

    version: str = ""
    architecture: str = ""
    ready: bool = False
    boot: str = ""
    votes: bool = True
    schedulable: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[str, ...] = ()
    server: bool = False


@dataclass(frozen=True)
class K3sState(Record):
    """
    What ``K3s`` returns.

    + architecture: ``amd64`` or ``arm64``, else what ``uname -m`` says
    + boot: id of the host's present boot
    + installed: version that /usr/local/bin/k3s leads to, or says; "" when there is none
    + program_sha256: of the program of the wanted version; "" when it is not there
    + begun: there is a datastore; + datastore: ``etcd``, ``sqlite`` or ""
    + node: what it is called as a node; + joined: it has been one
    + has_node_password: it has what it is known by as a node
    + token_sha256: of the token in our file; + kept_token_sha256: of the one that the server keeps
    + nodes: by name; None when no API server answers here
    """

    architecture: str = ""
    boot: str = ""
    installed: str = ""
    program: str = ""
    program_sha256: str = ""
    images_sha256: str = ""
    server_unit: bool = False
    agent_unit: bool = False
    active: bool = False
    begun: bool = False
    datastore: str = ""
    node: str = ""
    joined: bool = False
    has_node_password: bool = False
    token_sha256: str = ""
    kept_token_sha256: str = ""
    nodes: Mapping[str, ClusterNode] | None = None
    snapshots: tuple[str, ...] = ()


def parse_state(text: str) -> K3sState:
    """Return the state that ``files/k3s/state.py`` tells of."""
    found = json.loads(text)
    nodes = found.pop("nodes")
    return K3sState(
        nodes=None if nodes is None else {
            name: ClusterNode(**{**one, "taints": tuple(one["taints"])}) for name, one in nodes.items()
        },
        snapshots=tuple(found.pop("snapshots")),
        **found,
    )  # fmt: skip


class K3s(FactBase[K3sState]):
    """
    Returns what a host has of k3s.

    + version: whose program is looked at
    + images: name of an archive of images, likewise
    + cluster: ask the API server for its nodes too, with this host's own kubectl

    .. code:: python

        K3sState(
            architecture="amd64", installed="v1.33.4+k3s1", program="/usr/local/lib/hostwright/k3s/v1.33.4+k3s1/k3s",
            program_sha256="9e10…", server_unit=True, active=True, begun=True, datastore="etcd", joined=True,
            token_sha256="5d41…", kept_token_sha256="5d41…", nodes={"k1": ClusterNode(version="v1.33.4+k3s1", ready=True, …)},
        )
    """

    default = K3sState

    def command(self, version: str = "", images: str = "", cluster: bool = False) -> StringCommand:
        return _program("state.py", {"version": version, "images": images, "cluster": cluster})

    def process(self, output: list[str]) -> K3sState:
        return parse_state(output[-1])


@dataclass(frozen=True)
class K3sHostState(Record):
    """
    What ``K3sHost`` returns.

    + cgroup: version of the hierarchy; + controllers: those that are on
    + missing: features that the kernel lacks, of overlay, br_netfilter, nf_conntrack and vxlan
    + swaps: what is swapped to; + rules: ``iptables -S`` by chain; + saved_rules: lines of /etc/iptables/rules.v4
    + sysctl: what the kernel has now; + forwarding_off: file of sysctl.d that turns net.ipv4.ip_forward off at boot, or ""
    + ufw, firewalld: they are active
    """

    cgroup: int = 0
    controllers: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    swaps: tuple[str, ...] = ()
    sysctl: Mapping[str, str] = field(default_factory=dict)
    forwarding_off: str = ""
    machine_id: str = ""
    rules: Mapping[str, Sequence[str]] = field(default_factory=dict)
    saved_rules: tuple[str, ...] = ()
    ufw: bool = False
    firewalld: bool = False
    hostname: str = ""


def parse_host(text: str) -> K3sHostState:
    """Return the state that ``files/k3s/host.py`` tells of."""
    found: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(text).items()}
    return K3sHostState(**found)


class K3sHost(FactBase[K3sHostState]):
    """
    Returns what k3s needs of a host.

    .. code:: python

        K3sHostState(cgroup=2, controllers=("cpuset", "cpu", "memory", "pids"), rules={"INPUT": ["-P INPUT ACCEPT"], …}, …)
    """

    default = K3sHostState

    def command(self) -> StringCommand:
        return _program("host.py", {})

    def process(self, output: list[str]) -> K3sHostState:
        return parse_host(output[-1])
