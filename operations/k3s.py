"""
Nodes of a k3s cluster: servers and agents at a pinned version, upgraded one at a time, and what keeps them safe.

No installer script: the program is fetched by its pinned sum, the unit is our own, and every version has a directory of
its own, so that a version that does not come up gives way to the one before it. Which version a node runs, whether it is
out of service and which labels are ours stands on the node itself, so that a killed run is finished by the next one.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import shlex
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote
from weakref import WeakKeyDictionary

import yaml
from pyinfra import host, logger
from pyinfra import state as run_state
from pyinfra.api import FunctionCommand, Host, OperationValueError, State, StringCommand, operation
from pyinfra.api.exceptions import ConnectError

from facts.k3s import ClusterNode, K3s, K3sHost, K3sHostState, K3sState
from operations import backup, fileset, preflight, script
from operations import unit as unit_operation
from operations.fileset import Absent, Directory, Entry, File, Symlink
from operations.template import render
from settings.secret import Secret

RELEASES = "https://github.com/k3s-io/k3s/releases/download"
LINK = "/usr/local/bin/k3s"
PROGRAMS = "/usr/local/lib/hostwright/k3s"
DATA = "/var/lib/rancher/k3s"
ETC = "/etc/rancher/k3s"
SNAPSHOTS = f"{DATA}/server/db/snapshots"
RULES_FILE = "/etc/iptables/rules.v4"
UNITS = {"server": "k3s.service", "agent": "k3s-agent.service"}
DATASTORES = ("etcd", "sqlite")
NO_CGROUP_V1 = (1, 35)
"""From this Kubernetes on the kubelet does not start on cgroup v1 (KEP 5573, ``failCgroupV1``)."""

_ETCD = f"{DATA}/server/db/etcd"
KERNEL_DEFAULTS = {"vm.overcommit_memory": "1", "vm.panic_on_oom": "0", "kernel.panic": "10", "kernel.panic_on_oops": "1",
                   "kernel.keys.root_maxkeys": "1000000", "kernel.keys.root_maxbytes": "25000000"}  # fmt: skip
"""What the kubelet sets, or with ``protect-kernel-defaults`` asks for and does not start without (its setupKernelTunables)."""

_MARK, _OWNED = "hostwright/out-of-service", "hostwright/described"
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)(?:-rc\d+)?\+k3s(\d+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NODE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_LABEL_KEY = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_TAINT = re.compile(r"[^\s=:]+(?:=[^\s=:]*)?:(?:NoSchedule|PreferNoSchedule|NoExecute)")
_URL = re.compile(r"(?:https?://[^\s/@]+(?:/[^\s]*)?|file:///[^\s]+)")
_SERVER_URL = re.compile(r"https://(?:[A-Za-z0-9.-]+|\[[0-9a-f:]+\]):\d+")
_TOKEN = re.compile(r"(?!K10)[A-Za-z0-9._-]{16,128}")  # K10… would be read as the secure form
# What the operation itself writes into config.yaml.
_OWN_KEYS = {"token", "token-file", "server", "cluster-init", "node-name", "node-label", "node-taint", "write-kubeconfig", "write-kubeconfig-mode",
             "data-dir", "config", "cluster-reset", "cluster-reset-restore-path", "agent-token"}  # fmt: skip
_BECOME = ("_sudo", "_sudo_user", "_use_sudo_login", "_su_user", "_doas", "_doas_user")


@dataclass(frozen=True)
class Release:
    """
    One version of k3s and the sums that its files must have.

    + version: as upstream names it, e.g. ``v1.33.5+k3s1``
    + sums: sha256 of the program by architecture (``amd64``, ``arm64``), from the release's ``sha256sum-ARCH.txt``
    + url: of the releases: ``URL/VERSION/k3s`` and ``k3s-arm64``. ``https://``, ``http://`` (a mirror: the sum is what is
      trusted) or ``file:///directory`` on the host itself, for hosts without a way out
    + images: name of an archive of images in the release for hosts that cannot pull, e.g.
      ``k3s-airgap-images-amd64.tar.zst``; with its sum in ``images_sha256``
    """

    version: str
    sums: Mapping[str, str]
    url: str = RELEASES
    images: str = ""
    images_sha256: str = ""

    def faults(self) -> list[str]:
        """Return every rule that it breaks."""
        found = []
        if not isinstance(self.version, str) or not _VERSION.fullmatch(self.version):
            found.append(f"version must be like 'v1.33.5+k3s1', got {self.version!r}")
        if not self.sums:
            found.append("sums must hold the sha256 of the program by architecture, got nothing")
        for architecture, value in self.sums.items():
            if architecture not in ("amd64", "arm64"):
                found.append(f"sums: the architecture must be 'amd64' or 'arm64', got {architecture!r}")
            if not _SHA256.fullmatch(str(value)):
                found.append(f"sums.{architecture} must be 64 hexadecimal digits, got {value!r}")
        if not _URL.fullmatch(self.url):
            found.append(f"url must be https://…, http://… or file:///…, without an account, got {self.url!r}")
        if bool(self.images) != bool(self.images_sha256):
            found.append("images and images_sha256 go together")
        if self.images and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar(?:\.gz|\.zst)?", self.images):
            found.append(f"images must be the name of a .tar, .tar.gz or .tar.zst, got {self.images!r}")
        if self.images_sha256 and not _SHA256.fullmatch(self.images_sha256):
            found.append(f"images_sha256 must be 64 hexadecimal digits, got {self.images_sha256!r}")
        return found

    def program_url(self, architecture: str) -> str:
        """Return where the program for an architecture is."""
        name = "k3s" if architecture == "amd64" else f"k3s-{architecture}"
        return f"{self.url.rstrip('/')}/{quote(self.version)}/{name}"


def number(version: str) -> tuple[int, ...]:
    """
    Return a version for comparisons; () for what is none.

    >>> number("v1.33.5+k3s1")
    (1, 33, 5, 1)
    """
    found = _VERSION.fullmatch(version)
    return tuple(int(part) for part in found.groups()) if found else ()


@dataclass(frozen=True)
class _Node:
    """One node as it is to be."""

    role: str
    node_name: str
    release: Release
    token: Secret
    config: Mapping[str, Any]
    labels: Mapping[str, str]
    taints: tuple[str, ...]
    registries: Secret | None
    registry_cas: Mapping[str, str]
    join: str
    control: str
    start_seconds: int
    drain_seconds: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    peers: tuple[str, ...] = ()
    former_token: Secret | None = None

    @property
    def unit(self) -> str:
        return UNITS[self.role]

    @property
    def program(self) -> str:
        return f"{PROGRAMS}/{self.release.version}/k3s"

    def faults(self) -> list[str]:
        found = self.release.faults()
        if not _NODE.fullmatch(self.node_name):
            found.append(f"node_name must be lower-case letters, digits, '-' and '.', got {self.node_name!r}")
        if not self.token.resolved or not _TOKEN.fullmatch(self.token.unmask()):
            found.append("token must be a Secret of 16 to 128 letters, digits, '.', '_' and '-'")
        if self.join and not _SERVER_URL.fullmatch(self.join):
            found.append(f"the server must be like 'https://k1.example.org:6443', got {self.join!r}")
        found += [f"labels: not a label: {key!r}: {value!r}" for key, value in self.labels.items()
                  if not _LABEL_KEY.fullmatch(key) or not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value)]  # fmt: skip
        found += [f"taints: must be like 'key=value:NoSchedule', got {one!r}" for one in self.taints if not _TAINT.fullmatch(one)]
        found += [f"registry_cas: not a registry: {name!r}" for name in self.registry_cas if not re.fullmatch(r"[A-Za-z0-9.-]+(?::[0-9]+)?", name)]
        found += [f"config.{key}: is written by the operation itself" for key in sorted(_OWN_KEYS & self.extra.keys())]
        for key, least in (("start_seconds", 10), ("drain_seconds", 10)):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < least:
                found.append(f"{key} must be a whole number of at least {least}, got {getattr(self, key)!r}")
        return found

    def described(self) -> str:
        """What only counts when the node joins; afterwards labels and taints are changed through the API, without a restart."""
        return _yaml({"node-label": [f"{key}={value}" for key, value in sorted(self.labels.items())], "node-taint": sorted(self.taints)})

    def before(self) -> list[Entry]:
        """Files whose change needs no restart."""
        return [
            Directory("/etc/rancher", mode="0755"),
            Directory(ETC, mode="0700"),
            Directory(f"{ETC}/config.yaml.d", mode="0700"),
            File(f"{ETC}/token", Secret(self.token.unmask() + "\n"), mode="0600"),
            File(f"{ETC}/config.yaml.d/50-hostwright-node.yaml", self.described(), mode="0600"),
        ]

    def started_on(self) -> list[Entry]:
        """Files that k3s reads when it starts, the link to its version among them: they change, and go back, as one."""
        registries = f"{ETC}/registries.yaml"
        # images are taken in when k3s starts: another archive is another configuration
        images = f"# images: {self.release.images} {self.release.images_sha256}\n" if self.release.images else ""
        return [
            Symlink(LINK, self.program),
            File(f"{ETC}/config.yaml", _yaml(self.config) + images, mode="0600"),
            File(registries, self.registries, mode="0600") if self.registries else Absent(registries),
            Absent(f"/etc/systemd/system/{self.unit}.env"),  # k3s's own installer leaves the token there
            *(File(ca_path(name), text) for name, text in sorted(self.registry_cas.items())),
            File(f"/etc/systemd/system/{self.unit}", render("k3s/k3s.service.j2", unit=self.unit, role=self.role)),
        ]

    def probe(self) -> str:
        """Return the shell command that tells whether this node is up on its version."""
        kubectl = [LINK, "kubectl"]
        if self.role == "agent":
            kubectl += ["--kubeconfig", f"{DATA}/agent/kubelet.kubeconfig"]
        shown = '{.status.conditions[?(@.type=="Ready")].status} {.status.nodeInfo.kubeletVersion}'
        asked = shlex.join([*kubectl, "get", "node", self.node_name, "-o", f"jsonpath={shown}"])
        healthy = "import urllib.request as u; u.urlopen('http://127.0.0.1:10248/healthz', timeout=5)"
        parts = [shlex.join(["python3", "-c", healthy]), f'said=$({asked}) && {{ echo "node: $said"; test "$said" = "True {self.release.version}"; }}']
        if self.role == "server":
            parts.insert(0, shlex.join([*kubectl, "get", "--raw=/readyz"]) + " >/dev/null")
        return " && ".join(parts)


def ca_path(registry: str) -> str:
    """Return where the authority of a registry stands, for the ``ca_file`` of registries.yaml."""
    return f"{ETC}/registries/{registry.replace(':', '_')}.pem"


def _yaml(values: Mapping[str, Any]) -> str:
    return "# written by Hostwright\n" + yaml.safe_dump(dict(values), sort_keys=True, default_flow_style=False, allow_unicode=True)


def refusals(node: Any, state: K3sState, nodes: Mapping[str, ClusterNode] | None, is_plan: bool = False) -> list[str]:
    """
    Return why this node must not become what is wanted, one line each: before anything is fetched or changed.

    + nodes: of the cluster; None when nobody could be asked
    + is_plan: of a run that has not begun: what it does before is not done yet, so it is not missed
    """
    wanted, found = node.release.version, []
    if state.architecture not in node.release.sums:
        found.append(f"k3s {wanted}: must have a sum for {state.architecture or 'this architecture'}, has them for {', '.join(node.release.sums)}")
    other = "agent" if node.role == "server" else "server"
    if getattr(state, f"{other}_unit"):
        found.append(f"this host is a k3s {other}: it must be taken out first by operations.k3s.uninstall_and_delete_all_data to become {node.role}")
    if state.begun and node.role == "server":
        if state.kept_token_sha256 and state.kept_token_sha256 != _sha256(node.token):
            found.append("token: must be the one that the cluster has, got another: a new one comes by k3s.rotate_token (k3s_former_token), never by itself")
        kind = "sqlite" if "cluster-init" not in node.config and not node.join else "etcd"
        if state.datastore == "etcd" and kind == "sqlite":
            found.append("datastore: must stay etcd: k3s has no way back from it, got sqlite")
    if node.role == "agent" and node.node_name in (nodes or {}) and not state.joined and not state.has_node_password:
        found.append(f"k3s: the cluster has a node {node.node_name} already, and this host has not its password (/etc/rancher/node/password), without which it is "
                     f"rejected. When it takes that one's place, first on a server: k3s kubectl delete node {node.node_name}")  # fmt: skip
    found += _version_refusals(node, state, nodes or {}, is_plan)
    return found


def _sha256(secret: Secret) -> str:
    return hashlib.sha256(secret.unmask().encode()).hexdigest()


def _version_refusals(node: Any, state: K3sState, nodes: Mapping[str, ClusterNode], is_plan: bool) -> list[str]:
    wanted, has = node.release.version, state.installed
    if not has or has == wanted or not number(has):
        behind: list[str] = []
    elif number(wanted) < number(has):
        behind = [f"k3s: must not go back from {has} to {wanted}: the datastore is not written for it; restore a snapshot on new hosts instead"]
    elif node.role == "server" and number(wanted)[1] > number(has)[1] + 1:
        behind = [f"k3s: must go up by one minor version at a time, got {wanted} after {has}: go to v{number(has)[0]}.{number(has)[1] + 1} first"]
    else:
        behind = []
    servers = {name: one for name, one in nodes.items() if one.server and name != node.node_name}
    agents = {name: one for name, one in nodes.items() if not one.server and name != node.node_name}
    if node.role == "agent" and not is_plan:
        behind += [f"k3s: an agent must not be newer than a server, got {wanted} and {one.version} on {name}: upgrade the servers first"
                   for name, one in sorted(servers.items()) if number(one.version) and number(one.version)[:2] < number(wanted)[:2]]  # fmt: skip
    if node.role == "server":
        behind += [f"k3s: a server must not be more than three minor versions ahead of an agent, got {wanted} and {one.version} on {name}"
                   for name, one in sorted(agents.items()) if number(one.version) and number(one.version)[1] + 3 < number(wanted)[1]]  # fmt: skip
    return behind


def _not_ready(node: Any, nodes: Mapping[str, ClusterNode]) -> list[str]:
    return [f"k3s: nodes are upgraded one at a time, and {name} is not Ready: see to it first"
            for name, one in sorted(nodes.items()) if not one.ready and name != node.node_name]  # fmt: skip


def majority_lost(own: str, nodes: Mapping[str, ClusterNode]) -> list[str]:
    """
    Return why this server must not restart now, nothing when it may: etcd goes on with more than half of its members alone.

    + own: name of its node; + nodes: of the cluster

    Two servers have no majority without either: there the restart itself is the outage, and cannot be had otherwise.
    """
    servers = {name: one for name, one in nodes.items() if one.server}
    needed, away = len(servers) // 2 + 1, sorted(name for name, one in servers.items() if name != own and not (one.ready and one.votes))
    left = len(servers) - 1 - len(away)
    if own not in servers or len(servers) < 3 or left >= needed:
        return []
    return [f"k3s: must not restart while etcd would lose its majority: {needed} of {len(servers)} servers must go on, and without this one {left} would, since "
            f"{', '.join(away)} {'is' if len(away) == 1 else 'are'} not Ready or has no vote. Bring it up first, or when it is lost: k3s kubectl delete node {away[0]}"]  # fmt: skip


# --- other hosts -----------------------------------------------------------------------------------------------------

# The hosts on which k3s was taken up in a run, and whether that came to its end: pyinfra goes on to the next one by itself, whatever
# became of the last, and in an operation that is serial says which hosts failed only when it was on all of them.
_taken_up: WeakKeyDictionary[Any, dict[Any, bool]] = WeakKeyDictionary()


def _held_back() -> list[str]:
    if not run_state.is_executing:
        return []
    given: dict[str, Any] = dict(host.current_op_global_arguments or {})
    taken, serial = _taken_up.setdefault(host.state, {}), bool(given.get("_serial"))
    failed = sorted(one.name for one, ended in taken.items()
                    if one.name != host.name and (one in host.state.failed_hosts or (serial and not ended)))  # fmt: skip
    taken[host.state.inventory.get_host(host.name)] = False
    return [f"k3s is not touched here: in this run it failed on {name}. Run again when that is put right" for name in failed]


def _came_to_its_end() -> None:
    if run_state.is_executing:
        _taken_up[host.state][host.state.inventory.get_host(host.name)] = True


def _arguments(of: Host) -> dict[str, Any]:
    given: dict[str, Any] = dict(of.current_op_global_arguments or {})
    return {key: value for key in _BECOME if (value := given.get(key) or of.data.get(key))}


def _say(this: Host, output: Any, failed: bool) -> None:
    for line in output.stdout_lines if not failed else output.stderr_lines:
        this.log(line, logger.error if failed else logger.info)


def _run(state: State, host: Host, command: StringCommand, control: str, undo: StringCommand | None, on: str) -> bool:
    """
    Run a command here or on ``control``; when it fails, run ``undo`` on ``control``.

    + on: ``here`` or ``control``
    """
    this, there = host, state.inventory.get_host(control) if control else host
    if not there.connected:
        there.connect(raise_exceptions=True)
    where = this if on == "here" else there
    succeeded, output = where.run_shell_command(command, **{**_arguments(where), **command.connector_arguments})
    _say(this, output, not succeeded)
    if not succeeded and undo is not None:
        put_right, said = there.run_shell_command(undo, **{**_arguments(there), **undo.connector_arguments})
        if not put_right:
            _say(this, said, True)
    return bool(succeeded)


def _control(node: _Node, **values: Any) -> StringCommand:
    return script.python("k3s/node.py", values={"node": node.node_name, **values})


def _on_control(node: _Node, **values: Any) -> FunctionCommand:
    return FunctionCommand(_run, (_control(node, **values), node.control, None, "control"), {})


def _cluster(node: _Node, own: K3sState | None = None) -> Mapping[str, ClusterNode] | None:
    """Return the nodes, from this server itself or from the one that an agent is led by."""
    if not node.control:
        return (own or host.get_fact(K3s, cluster=True)).nodes
    found: K3sState = host.state.inventory.get_host(node.control).get_fact(K3s, cluster=True)
    return found.nodes


def _peers(names: Sequence[str]) -> dict[str, K3sState | None]:
    """Return what other servers have of k3s; None for one that cannot be asked."""
    found: dict[str, K3sState | None] = {}
    for name in names:
        try:
            found[name] = host.state.inventory.get_host(name).get_fact(K3s)
        except ConnectError:
            found[name] = None
    return found


def _second_cluster(node: _Node, state: K3sState) -> list[str]:
    """A first server without a datastore begins a cluster: it must not while another server has one."""
    if node.role != "server" or node.join or state.begun:
        return []
    lines = []
    for name, peer in _peers(node.peers).items():
        if peer is None:
            lines.append(f"k3s: must know of every server that it has no cluster before this one begins one, and {name} cannot be asked: "
                         "bring it up, or take it out of the inventory when it is lost")  # fmt: skip
        elif peer.begun:
            lines.append(f"k3s: must not begin a second cluster: {name} has the datastore of one. Write k3s_first_server = {name!r} and its address "
                         "in k3s_url, and this host joins it; or end it there by uninstall_and_delete_all_data, to restore a snapshot here")  # fmt: skip
    return lines


def _patiently(
    judge: Callable[[Mapping[str, ClusterNode]], list[str]], nodes: Mapping[str, ClusterNode] | None, again: Callable[[], Mapping[str, ClusterNode] | None]
) -> list[str]:
    """Return what speaks against something for a whole minute: a node that this run has just restarted may be on its way to Ready once more."""
    lines = judge(nodes or {})
    for _ in range(12 if run_state.is_executing else 0):
        if not lines:
            break
        time.sleep(5)
        lines = judge(again() or {})
    return lines


def _is_up(own: ClusterNode | None, boot: str) -> bool:
    """Whether a node is Ready in this boot of its host: until its kubelet reports anew, the API has what it said before the power failed."""
    return own is not None and own.ready and own.boot in ("", boot)


def _awaited(node: _Node, boot: str) -> ClusterNode | None:
    """Return the node once it is Ready: k3s that began with the host's boot, and not in this run, may be on its way up."""
    end = time.monotonic() + node.start_seconds
    while True:
        own = (_cluster(node) or {}).get(node.node_name)
        if _is_up(own, boot) or time.monotonic() > end:
            return own
        time.sleep(5)


# --- one node --------------------------------------------------------------------------------------------------------


def _converge(node: _Node) -> Generator[StringCommand | FunctionCommand, None, None]:
    if faults := node.faults():
        raise OperationValueError(f"k3s.{node.role}: " + "; ".join(faults))
    release = node.release
    state: K3sState = host.get_fact(K3s, version=release.version, images=release.images, cluster=node.role == "server")
    if not run_state.is_executing and node.former_token and _sha256(node.former_token) in (state.kept_token_sha256, state.token_sha256):
        node = replace(node, token=node.former_token)  # until rotate_token, earlier in the run that is planned
    nodes = _cluster(node, state)
    lines = refusals(node, state, nodes, is_plan=not run_state.is_executing) or _second_cluster(node, state)
    if not lines and state.installed and state.installed != release.version:
        lines = _patiently(lambda found: _not_ready(node, found), nodes, lambda: _cluster(node))
    restart = [] if lines else list(fileset.files._inner(
        entries=node.started_on(), unit=node.unit, action="restart", probe=node.probe(), probe_seconds=node.start_seconds, settle_seconds=5
    ))  # fmt: skip
    if restart and state.active and state.datastore == "etcd":
        lines = _patiently(lambda found: majority_lost(node.node_name, found), nodes, lambda: _cluster(node))
    lines = lines or _held_back()
    if not lines and node.control and nodes is None and run_state.is_executing:
        lines = [f"the server {node.control} must answer `k3s kubectl get nodes`, it does not"]
    if lines:
        yield from preflight.refused(lines)
        return

    changed = False
    for command in _fetch(node, state):
        changed = True
        yield command
    for command in fileset.files._inner(entries=node.before()):
        changed = True
        yield command
    own = (nodes or {}).get(node.node_name)
    is_upgrade = bool(state.installed) and state.installed != release.version and state.joined
    back = {"action": "return", "seconds": node.start_seconds}
    if is_upgrade:
        if state.datastore == "etcd" and state.active:
            yield _snapshot("before-upgrade", keep=3)
        yield _on_control(node, action="leave", seconds=node.drain_seconds, reason=f"upgrade-to-{release.version.replace('+', '-')}")
    for command in restart:
        changed = True
        # the version before comes back, and its node goes back into service
        undo = _control(node, **back, version=state.installed)
        yield FunctionCommand(_run, (command, node.control, undo, "here"), {}) if is_upgrade else command
    for command in unit_operation.unit._inner(
        unit=node.unit, probe=node.probe(), probe_seconds=node.start_seconds, settle_seconds=5
    ):
        changed = True
        yield command
    if is_upgrade:
        changed = True
        yield _on_control(node, **back, version=release.version)
    if changed and run_state.is_executing:
        nodes = _cluster(node)
        own = (nodes or {}).get(node.node_name)
    if not _is_up(own, state.boot) and run_state.is_executing:
        own = _awaited(node, state.boot)
        if not _is_up(own, state.boot):
            yield from preflight.refused([f"k3s: {node.unit} runs, and {node.node_name} is no node that is Ready within {node.start_seconds} s: journalctl -u {node.unit}"])
            return
    # only now: a run that was killed while k3s restarted leaves an API that answers nobody when the next one begins
    if own is not None and _MARK in own.annotations:
        changed = True
        yield _on_control(node, **back, version=release.version)
    if own is not None and (wanted := _description(node, own)):
        changed = True
        yield _on_control(node, action="describe", **wanted)
    if "cluster-init" in node.config and not state.snapshots:
        # backups copy snapshots away, and the first scheduled one is hours off
        changed = True
        yield _snapshot("first", keep=1)
    if is_upgrade:
        yield script.run("k3s/tidy.sh", programs=PROGRAMS, keep=f"{release.version} {state.installed}")
    if not changed:
        host.noop(f"k3s {node.role} {release.version} runs as wanted")
    _came_to_its_end()


def _snapshot(label: str, keep: int) -> StringCommand:
    """k3s drops old snapshots only of those that it takes by itself."""
    save = shlex.join([LINK, "etcd-snapshot", "save", "--name", label])
    half = f"rm -f -- {SNAPSHOTS}/{label}-*.part"  # of one that was killed
    return StringCommand(f"{half} && {save} && {shlex.join([LINK, 'etcd-snapshot', 'prune', '--name', label, '--snapshot-retention', str(keep)])}")


def _fetch(node: _Node, state: K3sState) -> Generator[StringCommand, None, None]:
    release = node.release
    wanted = release.sums[state.architecture]
    if state.program_sha256 != wanted:
        yield script.python("k3s/download.py", values={
            "url": release.program_url(state.architecture), "sha256": wanted, "path": node.program, "mode": "0755",
            "runs_as": release.version, "seconds": 900})  # fmt: skip
    if release.images and state.images_sha256 != release.images_sha256:
        yield script.python("k3s/download.py", values={
            "url": f"{release.url.rstrip('/')}/{quote(release.version)}/{release.images}", "sha256": release.images_sha256,
            "path": f"{DATA}/agent/images/{release.images}", "mode": "0600", "runs_as": "", "seconds": 1800})  # fmt: skip


def _description(node: _Node, own: ClusterNode) -> dict[str, Any]:
    """Return what is to be done about labels and taints, ours alone; nothing when they are as wanted."""
    try:
        owned = json.loads(own.annotations.get(_OWNED, "{}"))
    except ValueError:
        owned = {}
    wanted = {"labels": sorted(node.labels), "taints": sorted(node.taints)}
    good = all(own.labels.get(key) == value for key, value in node.labels.items()) and set(node.taints) <= set(own.taints)
    if good and (owned or {"labels": [], "taints": []}) == wanted:
        return {}
    return {"labels": dict(node.labels), "taints": list(node.taints), "owned": owned}


# --- operations ------------------------------------------------------------------------------------------------------


@operation()
def server(
    node_name: str,
    release: Release,
    token: Secret,
    former_token: Secret | None = None,
    join: str = "",
    peers: Sequence[str] = (),
    datastore: str = "etcd",
    tls_san: Sequence[str] = (),
    node_ip: str = "",
    disable: Sequence[str] = (),
    snapshot_schedule: str = "0 */6 * * *",
    snapshot_retention: int = 8,
    labels: Mapping[str, str] | None = None,
    taints: Sequence[str] = (),
    registries: Secret | None = None,
    registry_cas: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    start_seconds: int = 300,
    drain_seconds: int = 300,
) -> Generator[StringCommand | FunctionCommand, None, None]:
    """
    Run a k3s server at this version.

    + node_name: of the node, lower case
    + release: version and sums; a higher one upgrades this node, a lower one is refused
    + token: what nodes join with, 16 to 128 letters, digits, ``.``, ``_`` and ``-``. It is written once: another one is
      refused, see ``rotate_token``
    + former_token: that it has until ``rotate_token``, which comes before, has run: only a plan looks at it
    + join: URL of a server to join, e.g. ``https://k1:6443``; empty on the first server, which begins the cluster
    + peers: inventory names of the other servers: without ``join`` and without a datastore of its own, this one does not
      begin a cluster while one of them has one
    + datastore: ``etcd`` (embedded, has snapshots, can grow to several servers) or ``sqlite``
    + tls_san: further names and addresses of the API server
    + node_ip: address of the node in the cluster's network; empty: that of the default route
    + disable: packaged components that are not wanted, e.g. ``traefik``
    + snapshot_schedule, snapshot_retention: when k3s takes a snapshot of etcd by itself (cron), and how many it keeps
    + labels, taints: of the node; ours alone are changed and taken away, through the API and without a restart
    + registries: the text of registries.yaml, which holds passwords
    + registry_cas: authorities of registries by name, as PEM; they stand at ``ca_path(name)``
    + config: further keys of config.yaml
    + start_seconds: how long it may take to be Ready on its version (s), after which the version before comes back
    + drain_seconds: how long pods may take to leave before an upgrade (s). A node whose pods no other takes is not drained: they run on

    To be called with ``_serial=True`` where there are several. Nothing is restarted unless config.yaml, registries.yaml,
    the unit or the version changed, or a killed run owes it.

    Raises ``OperationValueError`` for bad arguments, all in one message. What the host or the cluster forbids (a lower
    version, a skipped minor one, another token, a PodDisruptionBudget that blocks a drain) fails this host unchanged.

    **Example:**

    .. code:: python

        k3s.server("k1", Release("v1.33.5+k3s1", {"amd64": "9e10…"}), token=settings.token, name="Run k3s server", _serial=True)
    """
    faults = []
    if datastore not in DATASTORES:
        faults.append(f"datastore must be one of {', '.join(DATASTORES)}, got {datastore!r}")
    if datastore == "sqlite" and join:
        faults.append("join needs datastore='etcd': sqlite has one server")
    if not re.fullmatch(r"\S+( \S+){4}", snapshot_schedule):
        faults.append(f"snapshot_schedule must be five fields of cron, got {snapshot_schedule!r}")
    if not isinstance(snapshot_retention, int) or snapshot_retention < 1:
        faults.append(f"snapshot_retention must be at least 1, got {snapshot_retention!r}")
    if faults:
        raise OperationValueError("k3s.server: " + "; ".join(faults))
    values: dict[str, Any] = {"token-file": f"{ETC}/token", "node-name": node_name, "write-kubeconfig-mode": "0600", **(config or {})}
    if datastore == "etcd":
        values |= {"etcd-snapshot-schedule-cron": snapshot_schedule, "etcd-snapshot-retention": snapshot_retention}
        values |= {"server": join} if join else {"cluster-init": True}
    values |= {key: value for key, value in (("tls-san", list(tls_san)), ("disable", list(disable)), ("node-ip", node_ip)) if value}
    yield from _converge(
        _Node("server", node_name, release, token, values, labels or {}, tuple(taints), registries, registry_cas or {}, join, "", start_seconds, drain_seconds, config or {}, tuple(peers), former_token)
    )


@operation()
def agent(
    node_name: str,
    release: Release,
    token: Secret,
    join: str,
    control: str,
    former_token: Secret | None = None,
    node_ip: str = "",
    labels: Mapping[str, str] | None = None,
    taints: Sequence[str] = (),
    registries: Secret | None = None,
    registry_cas: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    start_seconds: int = 300,
    drain_seconds: int = 300,
) -> Generator[StringCommand | FunctionCommand, None, None]:
    """
    Run a k3s agent at this version.

    + node_name, release, token, former_token, node_ip, labels, taints, registries, registry_cas, config, start_seconds, drain_seconds: as
      for ``server``; before an upgrade the node is drained onto the others
    + join: URL of a server, e.g. ``https://k1:6443``
    + control: inventory name of a server: there kubectl takes this node out of service and back, and describes it

    **Example:**

    .. code:: python

        k3s.agent(
            "w1", release, token=settings.token, join="https://k1:6443", control="k1.example.org",
            labels={"role": "judge"}, taints=["judge0=only:NoSchedule"], name="Run k3s agent", _serial=True,
        )
    """
    if not join or not control:
        raise OperationValueError("k3s.agent: join must be the URL of a server, and control its name in the inventory")
    values: dict[str, Any] = {"token-file": f"{ETC}/token", "node-name": node_name, "server": join, **(config or {})}
    values |= {"node-ip": node_ip} if node_ip else {}
    yield from _converge(
        _Node("agent", node_name, release, token, values, labels or {}, tuple(taints), registries, registry_cas or {}, join, control, start_seconds, drain_seconds, config or {}, (), former_token)
    )


@operation()
def rotate_token(
    old: Secret, new: Secret, api_port: int = 6443, told_by: str = "", start_seconds: int = 300
) -> Generator[StringCommand | FunctionCommand, None, None]:
    """
    Give the cluster a new token: one server tells it, every server restarts for it, an agent has it written down for its next join.

    + old, new: the token that the cluster has, and the one that it is to have
    + api_port: of the server on this host
    + told_by: inventory name of the server that tells the cluster, for all hosts but that one
    + start_seconds: how long a server may take to be up again (s)

    To be called with ``_serial=True``, for the one that tells before the others. A server reads tokens when it starts: until
    then it lets in who has the old one. With the new one it would not start before the cluster was told, so a host is
    refused while ``told_by`` has not done so, and as long as its restart would take the majority from etcd. Nodes that have
    joined keep their certificates. Changes nothing once all of that is done.

    **Example:**

    .. code:: python

        k3s.rotate_token(settings.former_token, settings.token, name="Rotate the cluster's token", _serial=True)  # k1 alone
        k3s.rotate_token(settings.former_token, settings.token, told_by="k1", name="Take the cluster's new token", _serial=True)
    """
    for key, secret in (("old", old), ("new", new)):
        if not secret.resolved or not _TOKEN.fullmatch(secret.unmask()):
            raise OperationValueError(f"k3s.rotate_token: {key} must be a Secret of 16 to 128 letters, digits, '.', '_' and '-'")
    state: K3sState = host.get_fact(K3s, cluster=True)
    wanted = _sha256(new)
    if not (state.server_unit or state.agent_unit):
        host.noop("this host is no node yet")
        return
    tell = state.begun and not told_by and state.kept_token_sha256 != wanted
    steps: list[StringCommand] = [script.python("k3s/token.py", values={"old": old, "new": new, "port": api_port})] if tell else []
    steps += fileset.files._inner(entries=[File(f"{ETC}/token", Secret(new.unmask() + "\n"), mode="0600")])
    restarts = state.server_unit and (state.begun or state.active)
    if not steps and not (restarts and _restart_for_token(start_seconds)):
        host.noop("the token is the new one")
        return
    lines = _untold(told_by, wanted)
    if not lines and restarts and state.active and state.datastore == "etcd":
        lines = _patiently(lambda found: majority_lost(state.node, found), state.nodes, lambda: host.get_fact(K3s, cluster=True).nodes)
    if lines := lines or _held_back():
        yield from preflight.refused(lines)
        return
    yield from steps
    if restarts:
        yield from _restart_for_token(start_seconds)
    _came_to_its_end()


def _untold(told_by: str, wanted: str) -> list[str]:
    """Return why no host may take the new token yet: it would not come up again with what its cluster does not know."""
    if not told_by or not run_state.is_executing:
        return []
    peer = _peers([told_by])[told_by]
    if peer is not None and peer.kept_token_sha256 == wanted:
        return []
    return [f"token: must be told to the cluster by {told_by} first, which {'cannot be asked' if peer is None else 'has not got it'}: run on that one too, without --limit"]


def _restart_for_token(seconds: int) -> list[StringCommand]:
    """What was started before the file was written is restarted, and a server that is down started; not put back when it fails: the old token is no way back."""
    probe = shlex.join([LINK, "kubectl", "get", "--raw=/readyz"])
    return list(unit_operation.unit._inner(unit=UNITS["server"], inputs=[f"{ETC}/token"], probe=probe, probe_seconds=seconds, settle_seconds=5))


@operation(is_idempotent=False)
def snapshot(label: str = "on-demand", keep: int = 5) -> Generator[StringCommand, None, None]:
    """
    Take a snapshot of etcd now, on a server; it stands in ``/var/lib/rancher/k3s/server/db/snapshots``.

    + label: what its name begins with
    + keep: how many of that name stay, newest first
    """
    if not isinstance(keep, int) or keep < 1:
        raise OperationValueError(f"k3s.snapshot: keep must be at least 1, got {keep!r}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", label):
        raise OperationValueError(f"k3s.snapshot: label must be lower-case letters, digits, '-' and '.', got {label!r}")
    yield script.Told(_snapshot(label, keep).get_raw_value())


@operation(is_idempotent=False)
def restore(snapshot: str = "latest", seconds: int = 600, peers: Sequence[str] = ()) -> Generator[StringCommand | FunctionCommand, None, None]:
    """
    Bring the cluster back from a snapshot of etcd, on its first server; **what is newer is lost**.

    + snapshot: path, or a name in the snapshots' directory, or ``latest``
    + seconds: how long it may take
    + peers: inventory names of the other servers, which must not run meanwhile: see ``stop_server`` and ``rejoin``

    The host must have k3s with the token that the snapshot was made with. A damaged snapshot is refused before k3s is
    stopped; what was there is kept by k3s as ``etcd-old-…``.
    """
    if not re.fullmatch(r"/?[A-Za-z0-9][A-Za-z0-9._/-]*", snapshot) or ".." in snapshot:
        raise OperationValueError(f"k3s.restore: snapshot must be a path, a name or 'latest', got {snapshot!r}")
    running = [name for name, peer in _peers(peers).items() if peer is None or peer.active] if run_state.is_executing else []
    if running:
        yield from preflight.refused([f"k3s: {name} still serves the cluster, or cannot be asked: run this on all servers at once, without --limit; or take it "
                                      "out of the inventory when it is lost" for name in running])  # fmt: skip
        return
    # In a unit of its own: a connection that breaks must not leave a half restored host behind.
    program = script.python_text(["k3s/restore.py"], {"snapshot": snapshot, "seconds": seconds})
    yield script.Told(
        "systemd-run --quiet --wait --pipe --collect --unit=hostwright-k3s-restore python3 -B -", _stdin=program
    )


@operation(is_idempotent=False)
def restore_database(at: str = "latest", repository: str = "primary", seconds: int = 900) -> Generator[StringCommand, None, None]:
    """
    Bring the cluster back from a backup of sqlite, on its only server; **what is newer is lost**.

    + at: ``latest``, ``verified``, a snapshot's id, a day or a time, as for ``operations.backup.restore``
    + repository: ``primary`` or ``offsite``
    + seconds: how long it may take

    The host must have k3s with the token of the copy's time. The keys on its disk are set aside (``tls-old-TIME``) and come
    back from the database: k3s refuses one that is older than they are. A copy that is not whole changes nothing.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 :T.-]*", at) or repository not in ("primary", "offsite"):
        raise OperationValueError(f"k3s.restore_database: at must be a copy, and repository 'primary' or 'offsite', got {at!r}, {repository!r}")
    program = script.text(["k3s/restore_database.sh"], {"program": backup.PROGRAM, "at": at, "repository": repository})
    yield script.Told(f"timeout {seconds} systemd-run --quiet --wait --pipe --collect --unit=hostwright-k3s-restore sh -s", _stdin=program)


@operation(is_idempotent=False)
def check_snapshot(snapshot: str = "latest") -> Generator[StringCommand, None, None]:
    """
    Fail unless a snapshot of etcd is there and whole; changes nothing.

    + snapshot: as for ``restore``
    """
    yield script.Told("python3 -B -", _stdin=script.python_text(["k3s/restore.py"], {"snapshot": snapshot, "seconds": 0, "only_check": True}))


@operation(is_idempotent=False)
def stop_server(first: str) -> Generator[StringCommand | FunctionCommand, None, None]:
    """
    Stop k3s on a further server before the first one is restored; its pods run on.

    + first: inventory name of the server that is restored; when the run failed there, nothing is done
    """
    if _has_failed(first):
        yield from preflight.refused([f"k3s: {first} was not restored: this server goes on"])
        return
    yield StringCommand("systemctl stop k3s.service")


@operation(is_idempotent=False)
def rejoin(first: str) -> Generator[StringCommand, None, None]:
    """
    Start k3s on a further server after the first one was restored: it joins anew, and its former datastore stays as ``etcd-old-TIME``.

    + first: inventory name of the server that was restored; when that failed there, k3s starts with the datastore that it has
    """
    aside = "" if _has_failed(first) else f'{{ test ! -d {_ETCD} || mv {_ETCD} "{_ETCD}-old-$(date +%s)"; }} && '
    yield StringCommand(f"{aside}systemctl start k3s.service")


def _has_failed(name: str) -> bool:
    return any(one.name == name for one in host.state.failed_hosts)


@operation(is_idempotent=False)
def uninstall_and_delete_all_data(
    node_name: str, control: str | Sequence[str] = "", drain_seconds: int = 300
) -> Generator[StringCommand | FunctionCommand, None, None]:
    """
    End k3s on this host and delete all of its data: pods, local volumes, the datastore with its snapshots.

    + node_name: of this host's node, so that nobody does it to another one; it must be the one that is installed
    + control: inventory name of another server, or several of which the first that runs is taken: it takes the node out of the
      cluster before, drained, and with a server's node its place in etcd. Empty, or none runs: nobody does
    + drain_seconds: how long its pods may take to leave (s)

    Backups in restic repositories stay.
    """
    state: K3sState = host.get_fact(K3s)
    if not (state.installed or state.server_unit or state.agent_unit or state.joined or state.begun):
        host.noop("there is no k3s here")
        return
    names = [control] if isinstance(control, str) and control else list(control)
    running = [name for name, peer in _peers(names).items() if peer is not None and peer.active and peer.begun]
    for action in ("leave", "delete") if running else ():
        values = {"node": node_name, "action": action, "seconds": drain_seconds, "reason": "uninstall"}
        yield FunctionCommand(_run, (script.python("k3s/node.py", values=values), running[0], None, "control"), {})
    yield script.run("k3s/uninstall.sh", programs=PROGRAMS, node_name=node_name)


# --- the host --------------------------------------------------------------------------------------------------------


def host_faults(
    found: K3sHostState,
    version: str,
    cgroup_versions: Sequence[int] = (1, 2),
    allow_swap: bool = False,
    vxlan: bool = True,
    ufw: bool = False,
    fails_cgroup_v1: bool = True,
    protect_kernel_defaults: bool = False,
) -> list[str]:
    """Return one line for each thing that k3s needs and the host has not."""
    lines = []
    if found.cgroup not in cgroup_versions:
        lines.append(f"cgroup version: must be {' or '.join(map(str, cgroup_versions))}, got {found.cgroup or 'unknown'}")
    elif found.cgroup == 1 and fails_cgroup_v1 and number(version)[:2] >= NO_CGROUP_V1:
        lines.append(
            f"cgroup version: must be 2 for k3s {version}, whose kubelet does not start on 1, got 1: boot without systemd.unified_cgroup_hierarchy=0, "
            "or stay below v1.35, or write kubelet-arg: [fail-cgroupv1=false] in k3s_config"
        )
    if "memory" not in found.controllers:
        lines.append("cgroup: must have the memory controller, got "
                     f"{', '.join(found.controllers) or 'none'}: boot with cgroup_enable=memory cgroup_memory=1")  # fmt: skip
    missing = [name for name in found.missing if vxlan or name != "vxlan"]
    if missing:
        lines.append(f"kernel: must have {', '.join(missing)}, got neither built in nor as a module: install the distribution's full kernel "
                     "(linux-modules-extra on Ubuntu)")  # fmt: skip
    if found.swaps and not allow_swap:
        lines.append(f"swap: must be off, since memory limits of pods do not count what is swapped, got {', '.join(found.swaps)}: "
                     "base_swap_size_mb = 0, or k3s_allow_swap = True")  # fmt: skip
    if found.forwarding_off:
        lines.append("sysctl net.ipv4.ip_forward: must not be set to 0, which ends the pods' network at every boot, "
                     f"got it from {found.forwarding_off}: take the line out of it")  # fmt: skip
    if protect_kernel_defaults:
        lines += [f"sysctl {key}: must be {value} for the kubelet's protect-kernel-defaults, got {found.sysctl.get(key) or 'nothing'}: write it into base_sysctl"
                  for key, value in KERNEL_DEFAULTS.items() if found.sysctl.get(key) != value]  # fmt: skip
    if found.firewalld:
        lines.append("firewall: must not be firewalld, which drops the pods' traffic on every reload, got it active: systemctl disable --now firewalld")
    if ufw and oracle_chains(found):
        lines.append("firewall: must be ufw or the rules that Oracle's image came with (REJECT in /etc/iptables/rules.v4), got both: "
                     "base_firewall_enabled = False leaves Oracle's, which this deploy opens for k3s")  # fmt: skip
    return lines


def oracle_chains(found: K3sHostState) -> list[str]:
    """Return the chains that end in a REJECT, as Oracle's images have them."""
    listed = {**{chain: list(lines) for chain, lines in found.rules.items()}}
    for chain in ("INPUT", "FORWARD"):
        listed[chain] = [*listed.get(chain, []), *(line for line in found.saved_rules if line.startswith(f"-A {chain} "))]
    return [chain for chain, lines in listed.items() if any(line.startswith(f"-A {chain} -j REJECT") for line in lines)]


@operation()
def needs(
    version: str,
    cgroup_versions: Sequence[int] = (1, 2),
    allow_swap: bool = False,
    vxlan: bool = True,
    ufw: bool = False,
    fails_cgroup_v1: bool = True,
    protect_kernel_defaults: bool = False,
) -> Generator[FunctionCommand, None, None]:
    """
    Check that the host is what k3s needs; never changes anything. What every system needs is checked by ``preflight.host``.

    + version: of k3s
    + cgroup_versions: that what runs in it can work with; Judge0 has none but 1
    + allow_swap: swap may be on; + vxlan: flannel is to use it; + ufw: the base firewall is on
    + fails_cgroup_v1: False where the kubelet was told to start on cgroup v1
    + protect_kernel_defaults: the kubelet is to find the kernel's settings as it needs them instead of setting them
    """
    lines = host_faults(host.get_fact(K3sHost), version, cgroup_versions, allow_swap, vxlan, ufw, fails_cgroup_v1, protect_kernel_defaults)
    if not lines:
        host.noop("the host has what k3s needs")
        return
    yield from preflight.refused(lines)


def accept_rules(ports: Sequence[tuple[int, str, Sequence[str]]], networks: Sequence[str]) -> dict[str, list[str]]:
    """Return the rules as ``iptables -S`` prints them, without the ``-A CHAIN`` in front."""
    mark = '-m comment --comment "hostwright k3s" -j ACCEPT'
    rules: dict[str, list[str]] = {"INPUT": [], "FORWARD": []}
    for port, proto, sources in ports:
        for source in sorted(sources) or [""]:
            if not source or ipaddress.ip_network(source).version == 4:
                rules["INPUT"].append(f"{f'-s {ipaddress.ip_network(source)} ' if source else ''}-p {proto} -m {proto} --dport {port} {mark}")
    for network in networks:
        rules["INPUT"].append(f"-s {network} {mark}")
        rules["FORWARD"] += [f"-s {network} {mark}", f"-d {network} {mark}"]
    return rules


def _accepted(found: K3sHostState, rules: Mapping[str, Sequence[str]]) -> bool:
    """Whether each rule stands in front of the chain's REJECT, now and in what is loaded at boot, and no other one of ours does."""
    for chain, wanted in rules.items():
        for lines in (list(found.rules.get(chain, [])), list(found.saved_rules)):
            if not lines:
                continue
            mine = [line.removeprefix(f"-A {chain} ") for line in lines if line.startswith(f"-A {chain} ")]
            end = next((at for at, rule in enumerate(mine) if rule.startswith("-j REJECT")), len(mine))
            if sorted(rule for rule in mine if '--comment "hostwright k3s"' in rule) != sorted(wanted):
                return False
            if any(mine.index(rule) > end for rule in wanted):
                return False
    return True


@operation()
def accept(
    ports: Sequence[tuple[int, str, Sequence[str]]], networks: Sequence[str] = ("10.42.0.0/16", "10.43.0.0/16")
) -> Generator[StringCommand, None, None]:
    """
    On a host with Oracle's firewall rules, accept these ports and the pods' traffic in front of the REJECT that ends its chains.

    + ports: (port, ``tcp`` or ``udp``, networks that may come; none: anybody)
    + networks: of pods and services

    Rules go in front of the first REJECT of INPUT and FORWARD, live and in ``/etc/iptables/rules.v4``, which
    netfilter-persistent loads at boot. Nothing is flushed and no rule but our own (comment ``hostwright k3s``) is touched,
    Oracle's InstanceServices chain least of all. A host without such rules is left alone. IPv4; the cloud's own security
    list is not seen from here.
    """
    for port, proto, _ in ports:
        if not 1 <= port <= 65535 or proto not in ("tcp", "udp"):
            raise OperationValueError(f"k3s.accept: must be (port, 'tcp' or 'udp', networks), got {(port, proto)!r}")
    found: K3sHostState = host.get_fact(K3sHost)
    if not oracle_chains(found):
        host.noop("no chain of the firewall ends in a REJECT")
        return
    rules = accept_rules(ports, networks)
    if _accepted(found, rules):
        host.noop("the rules stand in front of the REJECT")
        return
    yield script.python("k3s/accept.py", values={"rules": rules, "file": RULES_FILE})
