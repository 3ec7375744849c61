"""What the hosts of one system do together in a run."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import OperationError, StringCommand, operation
from pyinfra.context import ctx_state


def first_of(group: str) -> str:
    """Return the name of the first host of a group in the inventory; empty when it has none."""
    members = ctx_state.get().inventory.groups.get(group, [])  # type: ignore[no-untyped-call]
    return str(members[0].name) if members else ""


@operation()
def all_well(system: str, groups: Sequence[str]) -> Generator[StringCommand, None, None]:
    """
    Go on only when no host of the fleet has failed in this run, and only when all of them have come as far as this.

    + system: its name, for the message; + groups: those whose hosts are its fleet

    pyinfra runs an operation on all hosts before the next one, but knows no order between operations of different hosts:
    one that all of them share is where they meet. Hosts that were not reached do not count: they switch when they are back.
    """
    state = ctx_state.get()  # type: ignore[no-untyped-call]
    fleet = {one.name for group, members in state.inventory.groups.items() if group in groups for one in members}
    failed = sorted({one.name for one in state.failed_hosts & state.activated_hosts} & fleet)
    if failed:
        raise OperationError(
            f"{system}: {', '.join(failed)} failed in this run: nothing more is switched, what is not yet serves on as it is; "
            "put that right, or leave the host out (--exclude), and run again"
        )
    host.noop("no host of the fleet has failed")
    yield from ()
