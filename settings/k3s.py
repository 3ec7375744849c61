"""Settings of k3s (`k3s_…`): hosts of the groups `k3s_server` and `k3s_agent`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from settings.errors import Fault, broken
from settings.exposure import Port
from settings.fields import Line, Many, Model, Network, matching, narrow
from settings.requirements import PortClaim, Requirements
from settings.secret import Secret
from settings.section import Section, rule

ROLES = ("server", "agent")
GROUPS = tuple(f"k3s_{role}" for role in ROLES)
VERSION = r"v\d+\.\d+\.\d+(?:-rc\d+)?\+k3s\d+"
_LABEL = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"
_LABEL_KEY = r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"

Seconds = Annotated[int, Field(ge=10, le=86400)]
Sum = Annotated[str, matching(r"[0-9a-f]{64}", "must be a sha256: 64 hexadecimal digits", "the release has them in sha256sum-amd64.txt")]
RegistryName = Annotated[str, matching(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::[0-9]{1,5})?", "must be the name of a registry such as 'ghcr.io', not a URL")]
Url = Annotated[str, matching(r"https?://[^\s/@]+(?:/[^\s]*)?", "must be an http:// or https:// URL without an account")]


def _token(value: Secret) -> Secret:
    if value.resolved and not re.fullmatch(r"(?!K10)[A-Za-z0-9._-]{16,128}", value.unmask()):
        raise broken("must be 16 to 128 letters, digits, '.', '_' and '-', and not begin with K10", "openssl rand -hex 32 makes one", show=False)
    return value


def _address(value: str) -> str:
    if value:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            raise broken("must be an IP address such as '10.0.0.11'") from None
    return value


Token = Annotated[Secret, AfterValidator(_token)]
Narrow = Annotated[Network, narrow("must not be everybody: whoever reaches it has the cluster's API, or its nodes")]


class RegistryAccess(Model):
    """An account at a registry, and whom it is trusted by.

    + username, password: empty for none; + ca: PEM of the authority that signed its certificate; empty: a public one
    """

    username: Line = ""
    password: Secret = Field(default_factory=Secret.unset)
    ca: str = ""


class K3s(Section):
    """Nodes of one cluster: servers, which run the API and the datastore, and agents."""

    prefix: ClassVar[str] = "k3s_"

    version: Annotated[str, matching(rf"(?:{VERSION})?", "must be a version such as 'v1.33.5+k3s1'")] = Field(
        "", description="version to run; required. A higher one upgrades node by node, a lower one is refused", examples=["v1.33.5+k3s1"]
    )
    sums: dict[Literal["amd64", "arm64"], Sum] = Field({}, description="sha256 of the program of that version by architecture; required")
    release_url: Annotated[
        str, matching(r"https?://[^\s/@]+(?:/[^\s]*)?|file:///[^\s]+", "must be an http(s):// URL without an account, or file:///directory on the host")
    ] = Field("https://github.com/k3s-io/k3s/releases/download", description="where the releases are: a mirror, or a directory of the host itself")
    images: Annotated[str, matching(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*\.tar(?:\.gz|\.zst)?)?", "must be the name of a .tar, .tar.gz or .tar.zst")] = Field(
        "", description="archive of images in the release, for hosts that cannot pull", examples=["k3s-airgap-images-amd64.tar.zst"]
    )
    images_sha256: Annotated[str, matching(r"(?:[0-9a-f]{64})?", "must be a sha256: 64 hexadecimal digits")] = Field("", description="its sum; required with it")

    token: Token = Field(default_factory=Secret.unset, description="what nodes join with; required, and never changed by itself", examples=["env:K3S_TOKEN"])
    former_token: Token = Field(
        default_factory=Secret.unset, description="the token that the cluster has, to give it k3s_token instead; take it away afterwards"
    )
    first_server: str = Field("", description="inventory name of the server that begins the cluster; required with several servers")
    url: Annotated[str, matching(r"(?:https://(?:[A-Za-z0-9.-]+|\[[0-9a-f:]+\]):\d+)?", "must be like 'https://10.0.0.11:6443'")] = Field(
        "", description="where the other nodes reach the first server, or a load balancer before the servers; required with several nodes"
    )
    node_name: Annotated[str, matching(r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)?", "must be lower-case letters, digits, '-' and '.'")] = Field(
        "", description="of this host's node; empty means the host's name"
    )
    node_ip: Annotated[str, AfterValidator(_address)] = Field("", description="its address in the nodes' network; empty: that of the default route")
    datastore: Literal["etcd", "sqlite"] = Field("etcd", description="embedded etcd, which has snapshots and can grow, or sqlite, for one server alone")
    tls_san: Many[Line] = Field((), description="further names and addresses of the API server")
    disable: Many[Literal["coredns", "servicelb", "traefik", "local-storage", "metrics-server", "runtimes"]] = Field(
        ("traefik",), description="packaged components that are not wanted"
    )
    labels: dict[Annotated[str, matching(_LABEL_KEY, "must be a label's key")], Annotated[str, matching(_LABEL, "must be a label's value")]] = Field(
        {}, description="labels of the node; a change restarts nothing", examples=[{"codeclashers/judge0": "worker"}]
    )
    taints: Many[Annotated[str, matching(r"[^\s=:]+(?:=[^\s=:]*)?:(?:NoSchedule|PreferNoSchedule|NoExecute)", "must be like 'judge0=only:NoSchedule'")]] = Field(
        (), description="taints of the node, likewise"
    )
    registries: dict[RegistryName, RegistryAccess] = Field(
        {}, description="accounts at registries, for all pods of the node", examples=[{"ghcr.io": {"username": "puller", "password": "env:GHCR_TOKEN"}}]
    )
    mirrors: dict[str, Many[Url]] = Field({}, description="where images of a registry ('*': of any) are fetched instead", examples=[{"docker.io": ["https://mirror.example.org"]}])
    config: dict[str, Any] = Field({}, description="further keys of config.yaml", examples=[{"kubelet-arg": ["max-pods=150"]}])

    snapshot_schedule: Annotated[str, matching(r"\S+( \S+){4}", "must be five fields of cron")] = Field(
        "0 */6 * * *", description="when k3s takes a snapshot of etcd; backups copy them away once a day"
    )
    snapshot_retention: Annotated[int, Field(ge=1, le=1000)] = Field(8, description="snapshots kept on the server")
    start_seconds: Seconds = Field(300, description="how long a node may take to be Ready on its version (s); then the one before comes back")
    drain_seconds: Seconds = Field(300, description="how long pods may take to leave a node before its upgrade (s); longer than their longest grace period")

    cgroup_versions: Annotated[Many[Literal[1, 2]], Field(min_length=1)] = Field((1, 2), description="accepted on this node; Judge0's worker needs [1]")
    allow_swap: bool = Field(False, description="nodes may have swap, which limits of pods do not count")
    cluster_cidr: Network = Field("10.42.0.0/16", description="addresses of pods")
    service_cidr: Network = Field("10.43.0.0/16", description="addresses of services")
    api_networks: Many[Narrow] = Field((), description="who may reach the API (6443) besides nodes and pods")
    node_networks: Many[Narrow] = Field((), description="the nodes' networks: API, etcd, kubelet and flannel are open to them")
    public_ports: Many[Port] = Field(
        (), description="ports of load balancers and NodePorts that are public on this node", examples=[[{"port": 2567, "why": "Colyseus"}]]
    )
    node_ports_closed: bool = Field(True, description="NodePorts answer on loopback alone; must be False to publish one. A firewall does not close them")
    oracle_rules: bool = Field(True, description="accept what is declared in front of the REJECT rules of Oracle's images")

    @property
    def role(self) -> str:
        """`server` or `agent`: of this host."""
        return "server" if "k3s_server" in self._groups else "agent"

    @property
    def fails_cgroup_v1(self) -> bool:
        """Whether the kubelet is left to refuse cgroup v1."""
        return not any("fail-cgroupv1=false" in str(one) for one in self.config.get("kubelet-arg", []))

    @rule
    def _is_complete(self) -> Iterator[Fault]:
        for field, hint in (("version", "write k3s_version = 'v1.33.5+k3s1'"), ("sums", "write k3s_sums = {'amd64': '…'} from the release's sha256sum-amd64.txt")):
            if not getattr(self, field):
                yield Fault(field, "is required on the nodes of a cluster", hint=hint)
        if not self.token:
            yield Fault("token", "is required on the nodes of a cluster", hint="write k3s_token = 'env:K3S_TOKEN'")

    @rule
    def _has_one_role(self) -> Iterator[Fault]:
        if set(GROUPS) <= self._groups:
            yield Fault("version", "the host must be in k3s_server or in k3s_agent, got both", hint="a server runs pods as well")

    @rule
    def _images_have_a_sum(self) -> Iterator[Fault]:
        if bool(self.images) != bool(self.images_sha256):
            yield Fault("images_sha256", "goes with k3s_images")

    @rule
    def _own_keys_are_free(self) -> Iterator[Fault]:
        own = {"token": "token", "token-file": "token", "server": "url", "cluster-init": "datastore", "node-name": "node_name", "node-label": "labels",
               "node-taint": "taints", "tls-san": "tls_san", "disable": "disable", "node-ip": "node_ip", "cluster-cidr": "cluster_cidr",
               "service-cidr": "service_cidr", "etcd-snapshot-schedule-cron": "snapshot_schedule",
               "etcd-snapshot-retention": "snapshot_retention"}  # fmt: skip
        for key in self.config:
            if key in own:
                yield Fault(f"config.{key}", f"must be set by k3s_{own[key]}")
            elif key in ("write-kubeconfig-mode", "write-kubeconfig-group"):
                yield Fault(f"config.{key}", "must not be set: the kubeconfig is root's alone (0600)", self.config[key])
            elif key.startswith("cluster-reset") or key in ("data-dir", "config", "agent-token"):
                yield Fault(f"config.{key}", "must not be set")

    @rule
    def _node_ports_are_open_on_purpose(self) -> Iterator[Fault]:
        for index, port in enumerate(self.public_ports):
            if 30000 <= port.port <= 32767 and self.node_ports_closed:
                yield Fault(f"public_ports[{index}].port", "must not be a NodePort while k3s_node_ports_closed", port.port, "write k3s_node_ports_closed = False")

    @rule
    def _networks_are_apart(self) -> Iterator[Fault]:
        pods, services = ipaddress.ip_network(self.cluster_cidr), ipaddress.ip_network(self.service_cidr)
        if pods.version == services.version and pods.overlaps(services):
            yield Fault("service_cidr", f"must not overlap k3s_cluster_cidr ({pods})", self.service_cidr)
        for one in self.node_networks:
            network = ipaddress.ip_network(one)
            if any(network.version == other.version and network.overlaps(other) for other in (pods, services)):
                yield Fault("node_networks", "must not overlap the addresses of pods and services", one)

    def ports(self) -> tuple[Port, ...]:
        """Return what must be reachable: of the API and between nodes only to declared networks, and to the pods."""
        nodes = self.node_networks
        inside = (*nodes, self.cluster_cidr)
        found = [Port(port=10250, sources=inside, why="k3s kubelet"), *self.public_ports]
        if self.role == "server":
            found.append(Port(port=6443, sources=tuple(dict.fromkeys((*self.api_networks, *inside))), why="k3s API"))
        if nodes:
            found.append(Port(port=8472, proto="udp", sources=nodes, why="k3s flannel"))
            if self.role == "server" and self.datastore == "etcd":
                found += [Port(port=number, sources=nodes, why="k3s etcd") for number in (2379, 2380)]
        return tuple(found)

    def needs(self) -> Requirements:
        """Return what k3s asks for: https://docs.k3s.io/installation/requirements"""
        holders = ("k3s*", "etcd", "kubelet", "kube-*")
        if self.role == "agent":
            return Requirements(memory_mb=500, disk_var_mb=1024, python=(3, 9), ports=(PortClaim(10250, holders),))
        return Requirements(
            cores=2, memory_mb=1900, disk_var_mb=2048, python=(3, 9),
            ports=(PortClaim(6443, holders), PortClaim(10250, holders), PortClaim(2379, holders), PortClaim(2380, holders)),
        )  # fmt: skip


def fleet_faults(nodes: Mapping[str, K3s]) -> Iterator[Fault]:
    """Yield what is wrong between the nodes of an inventory: one cluster, begun by one server."""
    servers = sorted(name for name, one in nodes.items() if one.role == "server")
    for name, one in sorted(nodes.items()):
        if not servers:
            yield Fault("k3s_version", "an agent needs a host in k3s_server", host=name)
        elif len(servers) > 1 and not one.first_server:
            yield Fault("k3s_first_server", f"is required with several servers: one of {', '.join(servers)}", host=name)
        elif one.first_server and one.first_server not in servers:
            yield Fault("k3s_first_server", f"must be a host of k3s_server: {', '.join(servers)}", one.first_server, host=name)
        if len(nodes) > 1 and not one.url:
            yield Fault("k3s_url", "is required with several nodes", host=name, hint="write k3s_url = 'https://10.0.0.11:6443'")
        if len(servers) > 1 and one.datastore == "sqlite":
            yield Fault("k3s_datastore", "must be etcd with several servers", "sqlite", host=name)
    for key in ("version", "first_server", "url", "datastore", "cluster_cidr", "service_cidr"):
        values = sorted({str(getattr(one, key)) for one in nodes.values()})
        if len(values) > 1 and key != "version":
            yield Fault(f"k3s_{key}", f"must be the same on all nodes, got {', '.join(map(repr, values))}", host=sorted(nodes)[0])
    if len({name for name, one in nodes.items()}) != len({one.node_name or name for name, one in nodes.items()}):
        yield Fault("k3s_node_name", "must be another one on each node", host=sorted(nodes)[0])
