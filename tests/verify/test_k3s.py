"""What is asked of a node: its version, Ready, in service, with closed files and, on a server, a snapshot that is young enough."""

from __future__ import annotations

import json
import shlex

import pytest

from operations.k3s import DATA, ETC, LINK, SNAPSHOTS, UNITS
from settings import Host, K3s
from tests.verify.conftest import Machine

SYSTEM = "k3s"
# k3s takes one every few hours, and none is taken while a server is down.
OLDEST_SNAPSHOT_DAYS = 2


def _k3s(settings: Host) -> K3s:
    assert settings.k3s is not None
    return settings.k3s


def _node_name(settings: Host) -> str:
    return _k3s(settings).node_name or settings.hostname.lower()


def _node(settings: Host) -> str:
    kubectl = f"{LINK} kubectl" if _k3s(settings).role == "server" else f"{LINK} kubectl --kubeconfig {DATA}/agent/kubelet.kubeconfig"
    return f"{kubectl} get node {shlex.quote(_node_name(settings))} -o json"


def _unit(settings: Host) -> str:
    return f"systemctl show -p ActiveState,UnitFileState,NRestarts {UNITS[_k3s(settings).role]}; {LINK} --version"


def _files(settings: Host) -> str:
    kubeconfig = f" {ETC}/k3s.yaml" if _k3s(settings).role == "server" else ""
    return f"stat -c '%a %U %n' {ETC} {ETC}/config.yaml {ETC}/token{kubeconfig}; ls {ETC}/registries.yaml 2>/dev/null | xargs -r stat -c '%a %U %n'"


def _snapshots(settings: Host) -> str:
    if _k3s(settings).role != "server" or _k3s(settings).datastore != "etcd":
        return ""
    return f"find {SNAPSHOTS} -type f -mtime -{OLDEST_SNAPSHOT_DAYS} | wc -l"


EVIDENCE = {"k3s_node": _node, "k3s_unit": _unit, "k3s_files": _files, "k3s_snapshots": _snapshots}


def test_node_is_ready_on_its_version_and_in_service(machine: Machine) -> None:
    settings = _k3s(machine.settings)
    node = json.loads(machine.text("k3s_node"))
    assert node["status"]["nodeInfo"]["kubeletVersion"] == settings.version
    assert [one["status"] for one in node["status"]["conditions"] if one["type"] == "Ready"] == ["True"]
    assert not node["spec"].get("unschedulable")
    assert settings.labels.items() <= node["metadata"]["labels"].items()


def test_k3s_runs_and_starts_at_boot(machine: Machine) -> None:
    lines = machine.lines("k3s_unit")
    assert {"ActiveState=active", "UnitFileState=enabled"} <= set(lines)
    assert any(f"k3s version {_k3s(machine.settings).version} " in line for line in lines), lines


def test_token_and_kubeconfig_are_roots_alone(machine: Machine) -> None:
    for line in machine.lines("k3s_files"):
        mode, owner, path = line.split()
        assert (mode, owner) == ("700" if path == ETC else "600", "root"), line


def test_datastore_has_a_young_snapshot(machine: Machine) -> None:
    if not machine.text("k3s_snapshots"):
        pytest.skip(f"{machine.target.name} has no etcd")
    assert int(machine.text("k3s_snapshots")) > 0
