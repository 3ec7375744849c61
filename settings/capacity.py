"""
Whether nodes can hold what a cluster is asked to run, reckoned before it is asked.

The scheduler says no by leaving a pod Pending, with the old release still serving and a roll-out that hangs. Here all
requests are laid onto the nodes first, with one more pod of a workload while it is replaced.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from settings.codeclashers import cpu_millis, memory_bytes


@dataclass(frozen=True)
class Node:
    """
    A node of a cluster, with what pods of others leave on it.

    + cpu: allocatable, in thousandths of a core; + memory: in bytes; + others_…: what pods ask for that are not counted here
    + taints: as the API has them
    """

    name: str
    cpu: int
    memory: int
    pods: int = 110
    architecture: str = "amd64"
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Mapping[str, str]] = ()
    ready: bool = True
    unschedulable: bool = False
    others_cpu: int = 0
    others_memory: int = 0
    others_pods: int = 0


LONG_GRACE_SECONDS = 120
"""A pod that may take longer to end is still there when the next one is replaced: all old ones and all new ones at once."""


@dataclass(frozen=True)
class Demand:
    """
    What one workload asks for.

    + surge: pods more than ``replicas`` while it is replaced
    + selector: labels that its nodes must have; + tolerations: taints that it puts up with, as the API has them
    """

    workload: str
    replicas: int
    cpu: int
    memory: int
    surge: int = 0
    selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str]] = ()


def demands(objects: Iterable[Mapping[str, Any]]) -> list[Demand]:
    """Return what the Deployments and StatefulSets among these objects ask for."""
    found = []
    for item in objects:
        if item["kind"] not in ("Deployment", "StatefulSet"):
            continue
        spec, pod = item["spec"], item["spec"]["template"]["spec"]
        asked = [container.get("resources", {}).get("requests", {}) for container in pod["containers"]]
        strategy = spec.get("strategy", {})
        surge = strategy.get("rollingUpdate", {}).get("maxSurge", 1) if item["kind"] == "Deployment" and strategy.get("type") != "Recreate" else 0
        if surge and pod.get("terminationGracePeriodSeconds", 30) > LONG_GRACE_SECONDS:
            surge = max(surge, spec.get("replicas", 1))
        found.append(
            Demand(
                item["metadata"]["name"],
                spec.get("replicas", 1),
                sum(cpu_millis(one["cpu"]) for one in asked if "cpu" in one),
                sum(memory_bytes(one["memory"]) for one in asked if "memory" in one),
                int(surge),
                pod.get("nodeSelector", {}),
                pod.get("tolerations", ()),
            )
        )
    return found


def _tolerates(demand: Demand, taint: Mapping[str, str]) -> bool:
    if taint.get("effect") == "PreferNoSchedule":
        return True
    return any(
        one.get("key") in (None, taint.get("key"))
        and (one.get("operator") == "Exists" or one.get("value", "") == taint.get("value", ""))
        and one.get("effect") in (None, "", taint.get("effect"))
        for one in demand.tolerations
    )


def _takes(node: Node, demand: Demand) -> bool:
    labels = {"kubernetes.io/arch": node.architecture, **node.labels}
    return (
        node.ready
        and not node.unschedulable
        and all(labels.get(key) == value for key, value in demand.selector.items())
        and all(_tolerates(demand, taint) for taint in node.taints)
    )


def faults(wanted: Sequence[Demand], nodes: Sequence[Node]) -> list[str]:
    """
    Return why the nodes cannot hold the workloads, one line each, with the arithmetic; empty when they can.

    Workloads are replaced one after another, so the surge of one at a time is counted: of that which needs most.
    """
    homeless = [_homeless(demand, nodes) for demand in wanted if not any(_takes(node, demand) for node in nodes)]
    if homeless:
        return homeless
    short = [line for unit in ("cpu", "memory") if (line := _sum_fault(unit, wanted, nodes))]
    if short:
        return short
    steady = [demand for demand in wanted for _ in range(demand.replicas)]
    if line := _place(steady, nodes, ""):
        return [line]
    for demand in wanted:
        if demand.surge and (line := _place([*steady, *[demand] * demand.surge], nodes, demand.workload)):
            return [line]
    return []


def _homeless(demand: Demand, nodes: Sequence[Node]) -> str:
    needs = ", ".join(f"{key}={value}" for key, value in sorted(demand.selector.items())) or "any node"
    return f"{demand.workload}: no node takes it; it needs {needs}. There are: {', '.join(_about(node, demand) for node in nodes) or 'no nodes'}"


def _about(node: Node, demand: Demand) -> str:
    labels = {"kubernetes.io/arch": node.architecture, **node.labels}
    lacking = [f"{key}={labels.get(key, '(none)')}" for key, value in demand.selector.items() if labels.get(key) != value]
    taints = [f"taint {one.get('key')}={one.get('value', '')}:{one.get('effect')}" for one in node.taints if not _tolerates(demand, one)]
    state = [] if node.ready else ["not ready"]
    state += ["cordoned"] if node.unschedulable else []
    return f"{node.name} ({', '.join([*lacking, *taints, *state])})"


def _sum_fault(unit: str, wanted: Sequence[Demand], nodes: Sequence[Node]) -> str:
    usable = [node for node in nodes if any(_takes(node, demand) for demand in wanted)]
    steady = sum(getattr(demand, unit) * demand.replicas for demand in wanted)
    widest = max(wanted, key=lambda demand: getattr(demand, unit) * demand.surge, default=None)
    surge = getattr(widest, unit) * widest.surge if widest else 0
    others = sum(getattr(node, f"others_{unit}") for node in usable)
    room = sum(getattr(node, unit) for node in usable)
    if steady + surge + others <= room:
        return ""
    parts = ", ".join(f"{demand.workload} {demand.replicas} x {_amount(unit, getattr(demand, unit))}" for demand in wanted)
    more = f" + {_amount(unit, surge)} for {widest.surge if widest.surge > 1 else 'one'} more {widest.workload} while it is replaced" if surge and widest else ""
    return (
        f"{unit}: {_amount(unit, steady)} ({parts}){more} + {_amount(unit, others)} of other pods = "
        f"{_amount(unit, steady + surge + others)}; allocatable on {', '.join(node.name for node in usable)}: {_amount(unit, room)}, "
        f"{_amount(unit, steady + surge + others - room)} too few. Write fewer replicas or smaller requests, or add a node"
    )


def _place(pods: Sequence[Demand], nodes: Sequence[Node], replaced: str) -> str:
    """Lay the pods onto the nodes, those with the least choice and the largest first. Return what did not fit."""
    free = {node.name: [node.cpu - node.others_cpu, node.memory - node.others_memory, node.pods - node.others_pods] for node in nodes}
    choice = {demand.workload: [node.name for node in nodes if _takes(node, demand)] for demand in pods}
    for pod in sorted(pods, key=lambda one: (len(choice[one.workload]), -one.cpu, -one.memory)):
        fitting = [name for name in choice[pod.workload] if free[name][0] >= pod.cpu and free[name][1] >= pod.memory and free[name][2] >= 1]
        if not fitting:
            left = ", ".join(f"{name}: {_amount('cpu', free[name][0])} cpu and {_amount('memory', free[name][1])}" for name in choice[pod.workload])
            when = f" while {replaced} is replaced" if replaced else ""
            return (
                f"{pod.workload}: no node has room for one of its pods{when}: {_amount('cpu', pod.cpu)} cpu and {_amount('memory', pod.memory)} wanted, "
                f"free beside the others {left}. Write fewer replicas or smaller requests, or add a node"
            )
        best = min(fitting, key=lambda name: free[name][0] - pod.cpu)
        free[best][0] -= pod.cpu
        free[best][1] -= pod.memory
        free[best][2] -= 1
    return ""


def _amount(unit: str, value: int) -> str:
    return f"{value}m" if unit == "cpu" else f"{value / 2**20:.0f}Mi"
