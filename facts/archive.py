"""What of an archive's schema is in its database: one command."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyinfra.api import FactBase

from facts.records import Record

_PROGRAMS = Path(__file__).parents[1] / "files" / "archive"


@dataclass(frozen=True)
class SchemaState(Record):
    """
    + answers: the server does; + exists: the database does
    + version: the last migration that was made; + tables: those of the schema; + owner: of it, empty when there is none
    + roles: those that were asked for and exist; + has: (role, table, right); + verifiers: what is stored of their passwords (salted)
    """

    answers: bool = False
    exists: bool = False
    version: int = 0
    tables: tuple[str, ...] = ()
    owner: str = ""
    roles: frozenset[str] = frozenset()
    has: frozenset[tuple[str, str, str]] = frozenset()
    verifiers: Mapping[str, str] = field(default_factory=dict)


class ArchiveSchema(FactBase[SchemaState]):
    """
    Returns the state of the schema ``archive`` of a database.

    + server: ``container``, ``host``, ``port``, ``admin`` and ``database``; + roles: names of those that are to use it

    .. code:: python

        SchemaState(answers=True, exists=True, version=2, tables=("completed_games", …), owner="liap", has=frozenset({("liap_app", "game_events", "INSERT"), …}))
    """

    default = SchemaState

    def command(self, server: Mapping[str, Any], roles: Sequence[str]) -> str:
        values = {"server": dict(server), "roles": list(roles), "sql": ""}
        programs = "\n".join((_PROGRAMS / name).read_text() for name in ("psql.py", "schema.py"))
        text = f"{programs}\nmain(json.loads({json.dumps(values)!r}))"
        return f"timeout 120 python3 -B -c {shlex.quote(text)} 2>/dev/null || :"

    def process(self, output: list[str]) -> SchemaState:
        found = json.loads(output[-1])
        return SchemaState(
            answers=found["answers"], exists=found["exists"], version=found["version"], tables=tuple(found["tables"]),
            owner=found["owner"], roles=frozenset(found["roles"]), has=frozenset((role, table, right) for role, table, right in found["has"]),
            verifiers=found["verifiers"],
        )  # fmt: skip
