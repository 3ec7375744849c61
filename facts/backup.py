"""What a declared backup source was last opened with, and how it went since: one command for all sources."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyinfra.api import FactBase

from facts.records import Record

CONFIG = "/etc/hostwright/backup"
STATE = "/var/lib/hostwright/backup"


@dataclass(frozen=True)
class SourceState(Record):
    """
    One source.

    + digest: sha256 of its configuration and of its secrets file, as they stand
    + opened_with: the same, as they stood when the repositories were last opened; empty when they never were
    + state: the whole state file that the backup program writes
    """

    digest: str
    opened_with: str
    state: dict[str, Any]


class BackupSources(FactBase[dict[str, SourceState]]):
    """
    Returns what is known of the given backup sources; those without configuration are left out.

    + sources: their names

    .. code:: python

        {"gateway": SourceState(digest="9f86… 60303…", opened_with="9f86… 60303…", state={"last_success": "2026-…", …})}
    """

    default = dict

    def command(self, sources: Sequence[str]) -> str:
        parts = []
        for source in sources:
            config = f"{CONFIG}/{source}"
            parts.append(
                f"[ ! -e {config}.json ] || {{ "
                f"printf 'source\\t%s\\t%s %s\\n' {source} $(sha256sum <{config}.json | cut -c1-64) "
                f"$(sha256sum <{config}.env | cut -c1-64); "
                f"tr -d '\\n' <{STATE}/{source}.json; echo; }} 2>/dev/null"
            )
        return "; ".join([*parts, "true"])

    def process(self, output: list[str]) -> dict[str, SourceState]:
        found: dict[str, SourceState] = {}
        name = ""
        for line in output:
            if line.startswith("source\t"):
                _, name, digest = line.split("\t")
                found[name] = SourceState(digest, "", {})
            elif line.startswith("{") and name:
                try:
                    state = json.loads(line)
                except ValueError:
                    continue
                found[name] = SourceState(found[name].digest, state.get("config", ""), state)
        return found


class DeclaredSources(FactBase[list[str]]):
    """
    Returns the names of the backup sources that are declared on the host, sorted: ``["gateway"]``.
    """

    default = list

    def command(self) -> str:
        return f"find {CONFIG} -maxdepth 1 -name '*.json' -printf '%f\\n' 2>/dev/null | sort; true"

    def process(self, output: list[str]) -> list[str]:
        return [line.removesuffix(".json") for line in output]
