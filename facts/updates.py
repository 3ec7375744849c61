"""Whether a host updates itself."""

from dataclasses import dataclass

from pyinfra.api import FactBase

from facts import records
from facts.records import Record

FILE = "/etc/apt/apt.conf.d/99hostwright-updates"


@dataclass(frozen=True)
class UpdatesState(Record):
    """What ``Updates`` returns: (owner and octal mode, sha256) of our file, and apt's timers that run."""

    file: tuple[str, str] = ("-", "")
    timers: frozenset[str] = frozenset()


class Updates(FactBase[UpdatesState]):
    """
    Returns the state of unattended updates.

    .. code:: python

        UpdatesState(("root:644", "9f86d081…"), frozenset({"apt-daily.timer", "apt-daily-upgrade.timer"}))
    """

    default = UpdatesState

    def command(self) -> str:
        return records.program("updates/state.sh", file=FILE)

    def process(self, output: list[str]) -> UpdatesState:
        found = records.read(output)
        owner, _, sha256 = (found["file"] or ["- "])[0].partition(" ")
        return UpdatesState((owner, sha256), frozenset(found["timer"]))
