"""How the clock is kept."""

from dataclasses import dataclass

from pyinfra.api import FactBase

from facts import records
from facts.records import Record

FILE = "/etc/systemd/timesyncd.conf.d/50-hostwright.conf"


@dataclass(frozen=True)
class ClockState(Record):
    """
    What ``Clock`` returns.

    + file: (owner and octal mode, sha256) of our drop-in
    + container: the clock belongs to the machine outside, and systemd does not start timesyncd here
    + unread: our drop-in is newer than the running daemon
    """

    file: tuple[str, str] = ("-", "")
    loaded: bool = False
    enabled: bool = False
    active: bool = False
    container: bool = False
    unread: bool = False


class Clock(FactBase[ClockState]):
    """
    Returns the state of systemd-timesyncd.

    .. code:: python

        ClockState(file=("root:644", "9f86d081…"), loaded=True, enabled=True, active=True, container=False, unread=False)
    """

    default = ClockState

    def command(self) -> str:
        return records.program("clock/state.sh", file=FILE)

    def process(self, output: list[str]) -> ClockState:
        found = records.read(output)
        owner, _, sha256 = (found["file"] or ["- "])[0].partition(" ")
        return ClockState(
            file=(owner, sha256),
            loaded="loaded" in found["load"],
            enabled="enabled" in found["enabled"],
            active="active" in found["active"],
            container="yes" in found["container"],
            unread=bool(found["unread"]),
        )
