"""Kernel parameters: in our file and live."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pyinfra.api import FactBase

from facts import records
from facts.records import Record

FILE = "/etc/sysctl.d/99-zz-hostwright.conf"


@dataclass(frozen=True)
class KernelState(Record):
    """
    What ``KernelParameters`` returns.

    + file: (owner and octal mode, sha256) of our file
    + live: value by path below /proc/sys, of the parameters that exist and can be set on this host
    """

    file: tuple[str, str] = ("-", "")
    live: dict[str, str] = field(default_factory=dict)


class KernelParameters(FactBase[KernelState]):
    """
    Returns the state of the parameters with these paths below /proc/sys.

    .. code:: python

        KernelState(file=("root:644", "9f86d081…"), live={"net/ipv4/tcp_syncookies": "1"})
    """

    default = KernelState

    def command(self, paths: Sequence[str]) -> str:
        return records.program("kernel/state.sh", file=FILE, paths="\n".join(paths))

    def process(self, output: list[str]) -> KernelState:
        found = records.read(output)
        owner, _, sha256 = (found["file"] or ["- "])[0].partition(" ")
        pairs = (line.partition(" ") for line in found["live"])
        return KernelState((owner, sha256), {path: value.strip() for path, _, value in pairs})
