"""What a host is called and which time zone it lives in."""

from dataclasses import dataclass

from pyinfra.api import FactBase

from facts import records
from facts.records import Record


@dataclass(frozen=True)
class NodeState(Record):
    """
    What ``Node`` returns.

    + hostname: in /etc/hostname; + live: in the kernel; + hosts: names of 127.0.1.1, one text per line of /etc/hosts
    + localtime: where /etc/localtime points to; + timezone: in /etc/timezone, ``None`` when there is no such file
    """

    hostname: str = ""
    live: str = ""
    hosts: tuple[str, ...] = ()
    localtime: str = ""
    timezone: str | None = None


class Node(FactBase[NodeState]):
    """
    Returns name and time zone.

    .. code:: python

        NodeState("web1", "web1", ("web1",), "/usr/share/zoneinfo/Etc/UTC", "Etc/UTC")
    """

    default = NodeState

    def command(self) -> str:
        return records.program("node/state.sh")

    def process(self, output: list[str]) -> NodeState:
        found = records.read(output)
        return NodeState(
            hostname=(found["file"] or [""])[0],
            live=(found["live"] or [""])[0],
            hosts=tuple(" ".join(names.split()) for names in found["hosts"]),
            localtime=(found["localtime"] or [""])[0],
            timezone=found["timezone"][0] if found["timezone"] else None,
        )
