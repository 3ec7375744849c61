"""What the guide asks of codeclashers: every pod ready, MongoDB for nobody outside, workers alone, one good revision."""

from __future__ import annotations

import json
import shlex
from typing import Any

from settings import Codeclashers, Host
from settings.codeclashers import COMPONENTS
from tests.verify.conftest import Machine

SYSTEM = "codeclashers"
KINDS = "deployments,statefulsets,services,networkpolicies,poddisruptionbudgets,configmaps"


def _codeclashers(settings: Host) -> Codeclashers:
    assert settings.codeclashers is not None
    return settings.codeclashers


def _objects(settings: Host) -> str:
    found = _codeclashers(settings)
    return f"{shlex.join(found.kubectl)} -n {found.namespace} get {KINDS} -o json"


EVIDENCE = {"codeclashers_objects": _objects}


def _found(machine: Machine, kind: str) -> dict[str, dict[str, Any]]:
    items = json.loads(machine.text("codeclashers_objects"))["items"]
    return {item["metadata"]["name"]: item for item in items if item["kind"] == kind}


def test_every_workload_is_whole(machine: Machine) -> None:
    settings = _codeclashers(machine.settings)
    found = {**_found(machine, "Deployment"), **_found(machine, "StatefulSet")}
    for component in COMPONENTS:
        assert found[component]["status"].get("readyReplicas", 0) == settings.resources(component).replicas, component
        assert found[component]["spec"]["template"]["spec"]["containers"][0]["image"] == settings.image(component)


def test_databases_are_reached_from_inside_alone(machine: Machine) -> None:
    settings = _codeclashers(machine.settings)
    outside = {name for name, item in _found(machine, "Service").items() if item["spec"]["type"] != "ClusterIP"}
    allowed = {"colyseus"} | ({"mongodb-public"} if settings.mongodb_is_public else set())
    assert outside <= allowed
    assert "default-deny" in _found(machine, "NetworkPolicy")


def test_workers_alone_are_privileged_and_on_nodes_of_their_own(machine: Machine) -> None:
    settings = _codeclashers(machine.settings)
    for name, item in {**_found(machine, "Deployment"), **_found(machine, "StatefulSet")}.items():
        pod = item["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["containers"][0].get("securityContext", {}).get("privileged", False) is (name == "judge0-worker")
        assert name != "judge0-worker" or settings.judge0_shares_nodes or pod["tolerations"]


def test_no_budget_blocks_a_drain(machine: Machine) -> None:
    for name, item in _found(machine, "PodDisruptionBudget").items():
        assert item["spec"].get("maxUnavailable") == ("100%" if name == "judge0-worker" else 1), name


def test_the_newest_revision_is_good(machine: Machine) -> None:
    revisions = [item["metadata"] for item in _found(machine, "ConfigMap").values() if "hostwright.io/revision" in item["metadata"].get("labels", {})]
    newest = max(revisions, key=lambda one: int(one["labels"]["hostwright.io/revision"]))
    assert newest["annotations"]["hostwright.io/state"] in ("good", "left")
