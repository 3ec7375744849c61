"""The swap file of a host."""

from dataclasses import dataclass

from pyinfra.api import FactBase

from facts import records
from facts.records import Record

FSTAB = "/etc/fstab"


@dataclass(frozen=True)
class SwapState(Record):
    """
    What ``SwapFile`` returns.

    + size: bytes, ``None`` when there is no such file; + owner: owner and octal mode
    + signed: it has the header that ``mkswap`` writes
    + fstab: lines of /etc/fstab for it; + active: the kernel uses it
    + container: swap belongs to the machine outside; the host cannot switch it on
    """

    size: int | None = None
    owner: str = ""
    signed: bool = False
    fstab: tuple[str, ...] = ()
    active: bool = False
    container: bool = False


class SwapFile(FactBase[SwapState]):
    """
    Returns the state of a swap file.

    .. code:: python

        SwapState(size=1073741824, owner="root:600", signed=True, fstab=("/swapfile none swap sw 0 0",), active=True)
    """

    default = SwapState

    def command(self, path: str) -> str:
        return records.program("swap/state.sh", path=path, fstab=FSTAB)

    def process(self, output: list[str]) -> SwapState:
        found = records.read(output)
        size, _, owner = (found["file"] or [""])[0].partition(" ")
        return SwapState(
            size=int(size) if size else None,
            owner=owner,
            signed="yes" in found["signed"],
            fstab=tuple(found["fstab"]),
            active="yes" in found["active"],
            container="yes" in found["container"],
        )
