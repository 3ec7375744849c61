"""What would change in a cluster if manifests were applied, and what its nodes have."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyinfra.api import FactBase

from facts.records import Record
from settings.secret import Secret

_FILES = Path(__file__).parents[1] / "files" / "manifests"


@dataclass(frozen=True)
class ManifestsState(Record):
    """
    What ``Manifests`` returns.

    + engine: whether a cluster answers kubectl on the host
    + changes: what applying would do, e.g. ``change Deployment/bots: spec.replicas``
    + refused: why the server would not take the manifests
    + revision: the newest good one that is stored; 0 for none
    + unfinished: what a killed run left to be done
    + nodes: by name: architecture, labels, taints, allocatable (cpu in thousandths, memory in bytes), what other pods ask for
    + images: those that no workload has yet, with the workloads that want them; + image_faults: what is wrong with them
    + failure: why nothing can be said
    """

    engine: bool = False
    changes: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    revision: int = 0
    unfinished: str = ""
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: dict[str, list[str]] = field(default_factory=dict)
    image_faults: list[str] = field(default_factory=list)
    failure: str = ""


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.unmask()
    raise TypeError(f"facts.manifests: cannot send {type(value).__name__}")


def question(values: Mapping[str, Any]) -> str:
    """Return the program that answers the fact: it holds secrets, so it travels over stdin (``_stdin=``) and nowhere else."""
    parts = [(_FILES / name).read_text() for name in ("cluster.py", "registry.py", "observe.py")]
    parts.append(f"main(json.loads({json.dumps(values, default=_plain)!r}))")
    return "\n".join(parts) + "\n"


class Manifests(FactBase[ManifestsState]):
    """
    Returns the ``ManifestsState`` of an application; give the program as ``_stdin=question(…)``.

    + application: its name

    .. code:: python

        ManifestsState(engine=True, changes=["change Deployment/bots: spec.replicas"], revision=4, …)
    """

    default = ManifestsState

    def command(self, application: str) -> str:
        # a host without Python, or a fact without its program, prints nothing
        return "! command -v python3 >/dev/null || python3 -B -"

    def process(self, output: list[str]) -> ManifestsState:
        return ManifestsState(**json.loads(output[-1]))
