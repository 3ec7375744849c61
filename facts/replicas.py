"""The replicas of one component on a host: which containers there are, which release serves, what is stored."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinfra.api import FactBase

from facts.records import Record

_FILES = Path(__file__).parents[1] / "files"
_PROGRAMS = ("container/engine.py", "replicas/state.py", "replicas/look.py")


@dataclass(frozen=True)
class Instance(Record):
    """
    One container of a component.

    + release: first 12 letters of the hash of the spec that it was made from
    + color: ``blue`` or ``green``; empty for a worker
    + state: as Docker has it (``running``, ``exited`` …); + health: of its health check, empty when it has none
    + port: of the host's loopback, 0 when it has none
    """

    name: str
    release: str
    color: str
    instance: int
    state: str
    health: str
    port: int


@dataclass(frozen=True)
class ReplicasState(Record):
    """
    What ``Replicas`` returns.

    + release, color, count, kind: what serves according to the record; empty when nothing does
    + spec_hash: of the spec that serves
    + previous: release to roll back to, may be empty; + stored: releases in the store, the oldest first
    + jobs: jobs that were done, as ``job release``
    + to_do: what is to be done to come to what is wanted, in words; without ``wanted``: to what is recorded
    + fault: why the engine could not be asked
    """

    release: str = ""
    spec_hash: str = ""
    color: str = ""
    count: int = 0
    kind: str = ""
    previous: str = ""
    stored: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    instances: tuple[Instance, ...] = ()
    to_do: tuple[str, ...] = ()
    fault: str = ""


def parse(output: list[str]) -> ReplicasState:
    """Read what ``files/replicas/look.py`` prints."""
    if not output:
        return ReplicasState(fault="the host could not be asked: python3 is missing")
    found = json.loads(output[-1])
    current = found["current"]
    return ReplicasState(
        release=current.get("release", ""),
        spec_hash=current.get("spec_hash", ""),
        color=current.get("color", ""),
        count=current.get("count", 0),
        kind=current.get("settings", {}).get("kind", ""),
        previous=found["previous"],
        stored=tuple(found["stored"]),
        jobs=tuple(found["jobs"]),
        instances=tuple(
            Instance(**{key: one[key] for key in Instance.__dataclass_fields__}) for one in found["containers"]
        ),
        to_do=tuple(found["to_do"]),
        fault=found["fault"],
    )


class Replicas(FactBase[ReplicasState]):
    """
    Return the ``ReplicasState`` of one component.

    + component: its name
    + wanted: what it is compared with, as JSON of ``operations.replicas``; empty: what the host has recorded
    + count: compare the record with another number of instances

    .. code:: shell

        pyinfra inventories/prod.py fact replicas.Replicas component=mcbench-api
    """

    def command(self, component: str, wanted: str = "", count: int | None = None) -> str:
        values: dict[str, Any] = {
            "component": component,
            "wanted": json.loads(wanted) if wanted else None,
            "count": count,
        }
        program = "".join((_FILES / name).read_text() for name in _PROGRAMS)
        program += f"main(json.loads({json.dumps(values)!r}))\n"
        return f"! command -v python3 >/dev/null || python3 -B -c {shlex.quote(program)}"

    @staticmethod
    def default() -> ReplicasState:
        return ReplicasState(fault="not asked yet")

    def process(self, output: list[str]) -> ReplicasState:
        return parse(output)
