"""Where the time of a traced run went, stage by stage and operation by operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """The SSH commands of one operation, on all hosts together.

    + facts: of these commands, how many only read
    + seconds: sum of the time between asking for a command and its end
    """

    operation: str
    commands: int
    facts: int
    seconds: float


def stages(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the parts of a run in order, each with its seconds; together they are the whole run."""
    marks = sorted(record["stages"].items(), key=lambda mark: mark[1])
    starts_with = {
        "imported": "start Python, import pyinfra",
        "setup": "before pyinfra's own set-up",
        "connect": "read inventory and settings",
        "prepare": "connect",
        "execute": "read deploy code",
        "disconnect": "run operations",
        "end": "disconnect and print",
    }
    parts, before = [], 0.0
    for name, at in marks:
        parts.append((starts_with.get(name, f"until {name}"), at - before))
        before = at
    return parts


def by_operation(record: Mapping[str, Any]) -> list[Row]:
    """Return one row per operation, in the order in which their first command went out."""
    rows: dict[str, Row] = {}
    for command in sorted(record["commands"], key=lambda command: command["start"]):
        name = command["operation"] or "(before the operations)"
        row = rows.get(name, Row(name, 0, 0, 0.0))
        rows[name] = Row(
            name, row.commands + 1, row.facts + bool(command["fact"]), row.seconds + float(command["seconds"])
        )
    return list(rows.values())


def commands_per_host(record: Mapping[str, Any]) -> dict[str, int]:
    """Return how many SSH commands each host was sent."""
    counted: dict[str, int] = {}
    for command in record["commands"]:
        counted[command["host"]] = counted.get(command["host"], 0) + 1
    return counted
