"""
Everything of one application in a Kubernetes cluster, as one change that goes back as a whole.

``kubectl apply`` leaves what it no longer finds, waits for nothing, and its ``rollout undo`` brings back neither config
nor secrets. Here the wanted objects are compared by the server itself (a dry run), applied in order with server-side
apply, each step gated by its roll-out; what fails is taken back to the last good revision with its config and secrets,
which are kept under names that change with their content.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pyinfra import host
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.manifests import Manifests, question
from operations import script
from settings import capacity
from settings.capacity import Node
from settings.secret import Secret

LABEL = "hostwright.io/application"
MANAGED_BY = "app.kubernetes.io/managed-by"

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,40}[a-z0-9])?")
_CLUSTER_WIDE = ("Namespace",)
_DATA = ("Secret", "ConfigMap")


@dataclass(frozen=True)
class Manifest:
    """
    One file of manifests.

    + name: for reports; + text: YAML documents, a ``Secret`` when it holds any
    """

    name: str
    text: str | Secret = field(repr=False)

    def objects(self) -> list[dict[str, Any]]:
        """Return its objects."""
        text = self.text.unmask() if isinstance(self.text, Secret) else self.text
        return [item for item in yaml.safe_load_all(text) if item]


def _labelled(item: dict[str, Any], application: str) -> dict[str, Any]:
    metadata = {**item["metadata"]}
    metadata["labels"] = {**metadata.get("labels", {}), LABEL: application, MANAGED_BY: "hostwright"}
    return {**item, "metadata": metadata}


def plain(application: str, files: Sequence[Manifest]) -> list[dict[str, Any]]:
    """Return the files as plain data, with the labels by which we know what is ours."""
    return [{"name": file.name, "objects": [_labelled(item, application) for item in file.objects()]} for file in files]


def faults(application: str, namespace: str, kubectl: Sequence[str], files: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every rule that the arguments break, one line each. No value of a secret is shown."""
    found = []
    for key, value in (("application", application), ("namespace", namespace)):
        if not _NAME.fullmatch(value):
            found.append(f"{key} must be small letters, digits and -, got {value!r}")
    if isinstance(kubectl, str) or not kubectl:
        found.append(f"kubectl must be a list of words such as ['k3s', 'kubectl'], got {kubectl!r}")
    seen: set[str] = set()
    for file in files:
        for item in file["objects"]:
            where = f"{file['name']}: {item.get('kind')}/{item['metadata'].get('name')}"
            if not item.get("apiVersion") or not item.get("kind"):
                found.append(f"{where}: needs apiVersion and kind")
            if item.get("kind") in _CLUSTER_WIDE:
                if item["metadata"].get("name") != namespace:
                    found.append(f"{where}: must be the namespace {namespace}")
            elif item["metadata"].get("namespace") != namespace:
                found.append(f"{where}: must be in the namespace {namespace}, got {item['metadata'].get('namespace')!r}")
            if where.partition(": ")[2] in seen:
                found.append(f"{where}: stands twice")
            seen.add(where.partition(": ")[2])
            if item.get("kind") in _DATA and not item.get("immutable"):
                found.append(f"{where}: must be immutable, with a name that changes with its content: a rollback must find the old one")
            if item.get("kind") == "Secret" and "stringData" in item:
                found.append(f"{where}: must have data, not stringData")
    return found


def _values(application: str, namespace: str, kubectl: Sequence[str], **more: Any) -> dict[str, Any]:
    return {"application": application, "namespace": namespace, "kubectl": list(kubectl), **more}


@operation()
def manifests(
    application: str,
    files: Sequence[Manifest],
    namespace: str,
    kubectl: Sequence[str] = ("kubectl",),
    rollout_seconds: int = 600,
    keep: int = 5,
    check_capacity: bool = True,
    check_images: bool = True,
    registry: tuple[str, str, Secret] | None = None,
    registry_given_by: str = "registry",
) -> Generator[StringCommand, None, None]:
    """
    Have one application in a cluster, whole or as it was.

    + application: its name, by which what is ours is labelled (``hostwright.io/application``)
    + files: ``Manifest``, in the order in which they are applied; the workloads of each must be rolled out before the next.
      Every object but the namespace is in ``namespace``; secrets and config maps are immutable, with hashed names
    + kubectl: its words on the host; + rollout_seconds: for each file (s)
    + keep: good revisions kept, the present one included
    + check_capacity: refuse what the nodes cannot hold, see ``settings.capacity``
    + check_images: ask registries for the images that are new; one that does not answer is passed over
    + registry: (registry, account, password) for that; + registry_given_by: where the operator writes it, told when it is refused

    The plan tells what the server would change. What is ours and no longer wanted is removed, but never a
    PersistentVolumeClaim. When a roll-out fails, the last good revision comes back with its config and secrets, and the
    operation fails with events and last log lines of the pods. A killed run is finished by the next.

    Raises ``OperationValueError`` for bad arguments, ``OperationError`` for what the server, the nodes or a registry refuse:
    before the first change, all of it in one message.

    **Example:**

    .. code:: python

        manifests.manifests("shop", [Manifest("shop", text)], namespace="shop", kubectl=["k3s", "kubectl"], name="Apply manifests")
    """
    wanted = plain(application, files)
    wrong = faults(application, namespace, kubectl, wanted)
    if wrong:
        raise OperationValueError("manifests.manifests: " + "; ".join(wrong))
    values = _values(
        application, namespace, kubectl,
        files=wanted, keep=keep, check_images=check_images, account=registry, account_given_by=registry_given_by,
        rollout_seconds=rollout_seconds, action="converge",
    )  # fmt: skip
    state = host.get_fact(Manifests, application=application, _stdin=question(values))
    if state.failure:
        raise OperationError(f"manifests.manifests {application}: {state.failure}")
    refused = [*state.refused, *state.image_faults]
    # what the server refuses may not even have numbers in it
    if check_capacity and not refused and state.engine and (state.changes or state.unfinished):
        nodes = [_node(name, about) for name, about in state.nodes.items()]
        refused += capacity.faults(capacity.demands(item for file in wanted for item in file["objects"]), nodes)
    if refused:
        raise OperationError(f"manifests.manifests {application}: nothing was changed:\n" + "\n".join(f"  {line}" for line in refused))
    owed = [*state.changes, *([state.unfinished] if state.unfinished else [])]
    if state.engine and not owed:
        host.noop(f"{application} is as wanted, revision {state.revision}")
        return
    for line in owed[:60]:
        host.log(f"Will {line}" if line.partition(" ")[0] in ("create", "change", "remove", "make") else line)
    yield _told("cluster.py", "rollout.py", "apply.py", values=values)


def _node(name: str, about: Mapping[str, Any]) -> Node:
    known = {key: value for key, value in about.items() if key in Node.__dataclass_fields__}
    return Node(name, **known)


def _told(*programs: str, values: Mapping[str, Any]) -> StringCommand:
    """What the program prints is the report of the run."""
    command = script.python(*(f"manifests/{program}" for program in programs), values=values)
    return script.Told(*command.bits, _stdin=command.connector_arguments["_stdin"])


def _managed(action: str, application: str, namespace: str, kubectl: Sequence[str], **more: Any) -> StringCommand:
    wrong = faults(application, namespace, kubectl, [])
    workload = more.get("workload", "x")
    if not _NAME.fullmatch(workload):
        wrong.append(f"workload must be the name of a workload, got {workload!r}")
    replicas = more.get("replicas", 1)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or not 0 <= replicas <= 1000:
        wrong.append(f"replicas must be a whole number of 0 to 1000, got {replicas!r}")
    if wrong:
        raise OperationValueError(f"manifests.{action}: " + "; ".join(wrong))
    return _told("cluster.py", "rollout.py", "manage.py", values=_values(application, namespace, kubectl, action=action, **more))


@operation(is_idempotent=False)
def rollback(
    application: str, namespace: str, kubectl: Sequence[str] = ("kubectl",), rollout_seconds: int = 600
) -> Generator[StringCommand, None, None]:
    """
    Go back to the good revision before the present one, with its config and secrets, by the code that applies.

    + application, namespace, kubectl, rollout_seconds: as for ``manifests``
    """
    wrong = faults(application, namespace, kubectl, [])
    if wrong:
        raise OperationValueError("manifests.rollback: " + "; ".join(wrong))
    values = _values(application, namespace, kubectl, action="rollback", rollout_seconds=rollout_seconds)
    yield _told("cluster.py", "rollout.py", "apply.py", values=values)


@operation(is_idempotent=False)
def scale(
    application: str, workload: str, replicas: int, namespace: str, kubectl: Sequence[str] = ("kubectl",), rollout_seconds: int = 600
) -> Generator[StringCommand, None, None]:
    """
    Have another number of pods of one workload, until the next converge brings back what the settings say.

    + workload: its name; + replicas: 0 to 1000. Pods that do not come are taken back
    + application, namespace, kubectl, rollout_seconds: as for ``manifests``
    """
    yield _managed("scale", application, namespace, kubectl, workload=workload, replicas=replicas, rollout_seconds=rollout_seconds)


@operation(is_idempotent=False)
def restart(
    application: str, workload: str, namespace: str, kubectl: Sequence[str] = ("kubectl",), rollout_seconds: int = 600
) -> Generator[StringCommand, None, None]:
    """
    Replace all pods of one workload, as a roll-out does.

    + workload: its name
    + application, namespace, kubectl, rollout_seconds: as for ``manifests``
    """
    yield _managed("restart", application, namespace, kubectl, workload=workload, rollout_seconds=rollout_seconds)


@operation(is_idempotent=False)
def status(application: str, namespace: str, kubectl: Sequence[str] = ("kubectl",)) -> Generator[StringCommand, None, None]:
    """
    Say which revision serves, how each workload and its pods are, and where services are reached. Changes nothing.

    + application, namespace, kubectl: as for ``manifests``
    """
    yield _managed("status", application, namespace, kubectl)


@operation(is_idempotent=False)
def health(
    application: str, checks: Mapping[str, Sequence[str]], namespace: str, kubectl: Sequence[str] = ("kubectl",)
) -> Generator[StringCommand, None, None]:
    """
    Ask workloads whether they are well, from inside their containers; fails when one is not.

    + checks: workload to the command that ends with 0 when it is well; empty asks only whether all of its pods are ready
    + application, namespace, kubectl: as for ``manifests``
    """
    plain_checks = [{"workload": workload, "command": list(command)} for workload, command in checks.items()]
    yield _managed("health", application, namespace, kubectl, checks=plain_checks)
