"""Which rules for the published ports of containers stand in the files and in the kernel."""

import shlex
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pyinfra.api import FactBase, QuoteString, StringCommand

from facts.records import Record

UNIT = "hostwright-published.service"
RULES = "/etc/hostwright/published/ports.nft"
SERVICE = f"/etc/systemd/system/{UNIT}"
_STATE = Path(__file__).parents[1] / "files" / "published" / "state.sh"


@dataclass(frozen=True)
class PublishedState(Record):
    """
    What ``Published`` returns.

    + rules, service: "owner:group:mode sha256" of the two files, empty when there is none
    + same: the kernel's table is what the file of rules says
    + required: the engine does not start without the unit
    + uplinks: interfaces that a default route leads out of
    """

    nft: bool = False
    rules: str = ""
    service: str = ""
    leftovers: tuple[str, ...] = ()
    active: bool = False
    enabled: bool = False
    required: bool = False
    needs_daemon_reload: bool = False
    live: bool = False
    same: bool = False
    uplinks: frozenset[str] = frozenset()


def parse(output: list[str]) -> PublishedState:
    """Return the state that the records of ``files/published/state.sh`` tell of."""
    records: dict[str, list[str]] = defaultdict(list)
    for line in output:
        key, _, value = line.partition("\t")
        records[key].append(value)
    unit = dict(line.split("=", 1) for line in records["unit"])
    return PublishedState(
        nft="yes" in records["nft"],
        rules="".join(records["rules"]).strip(),
        service="".join(records["service"]).strip(),
        leftovers=tuple(records["leftover"]),
        active=unit.get("ActiveState") == "active",
        enabled=unit.get("UnitFileState") == "enabled",
        required="yes" in records["required"],
        needs_daemon_reload=unit.get("NeedDaemonReload") == "yes",
        live="yes" in records["live"],
        same="yes" in records["same"],
        uplinks=frozenset(records["uplink"]),
    )


class Published(FactBase[PublishedState]):
    """
    Returns the state of the rules for published ports.

    .. code:: python

        PublishedState(nft=True, rules="root:root:644 9f86d0…", service="root:root:644 6b86b2…", active=True,
                       enabled=True, required=True, live=True, same=True, uplinks=frozenset({"eth0"}))
    """

    default = PublishedState

    def command(self) -> StringCommand:
        values = "\n".join(
            f"{name}={shlex.quote(value)}"
            for name, value in (("unit", UNIT), ("rules", RULES), ("service", SERVICE))
        )
        return StringCommand("sh", "-c", QuoteString(f"{values}\n{_STATE.read_text()}"))

    def process(self, output: list[str]) -> PublishedState:
        return parse(output)
