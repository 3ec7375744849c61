"""What a cleanup of the host's Docker engine would do: one command, which changes nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pyinfra.api import FactBase

from facts.records import Record

PROGRAM = "/usr/local/lib/hostwright/docker-cleanup"


@dataclass(frozen=True)
class Thing(Record):
    """One container, network or image: whether it goes, and why."""

    kind: str
    id: str
    name: str
    goes: bool
    why: str
    size: int


@dataclass(frozen=True)
class Plan(Record):
    """
    What would go and what would stay.

    + releases, unused_seconds: by which rules, after disk pressure and ``until``
    + percent: how full the engine's file system is; + pressed: whether that shortens the rules
    """

    things: tuple[Thing, ...]
    releases: int
    unused_seconds: int
    percent: int
    pressed: bool

    @property
    def going(self) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.goes)


@dataclass(frozen=True)
class Unplanned(Record):
    """There is no plan; ``why`` is what the program said."""

    why: str


class CleanupPlan(FactBase[Plan | Unplanned | None]):
    """
    Returns what ``docker-cleanup run`` would do; ``None`` where no cleanup is declared, ``Unplanned`` when it cannot tell.

    + until: seconds, or -1 for what the host's policy says

    .. code:: python

        Plan(things=(Thing(kind="image", name="registry.example.org/shop:1.0.0", goes=True, why="not used for 9 d", …), …), …)
    """

    def command(self, until: int = -1) -> str:
        words = f"{PROGRAM} plan --json" + (f" --until {until}" if until >= 0 else "")
        return f"[ ! -x {PROGRAM} ] || {words} 2>&1; true"

    def process(self, output: list[str]) -> Plan | Unplanned | None:
        for line in output:
            if line.startswith("{"):
                values: Mapping[str, object] = json.loads(line)
                return read_plan(values)
        return Unplanned(" ".join(output))


def read_plan(values: Mapping[str, object]) -> Plan:
    """Return the plan that the program printed as JSON."""
    found = dict(values)
    for other in ("won", "removed", "refused"):
        found.pop(other, None)
    things: list[dict[str, object]] = found.pop("things")  # type: ignore[assignment]
    return Plan(tuple(Thing(**thing) for thing in things), **found)  # type: ignore[arg-type]
