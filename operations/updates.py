"""Security updates that install themselves, by the distribution's unattended-upgrades."""

import hashlib
import re
from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.updates import FILE, Updates
from operations import script
from operations.template import render

_TIMERS = {"apt-daily.timer", "apt-daily-upgrade.timer"}


@operation()
def unattended(
    hold: Sequence[str] = (), reboot: bool = False, reboot_at: str = "03:30"
) -> Generator[StringCommand, None, None]:
    """
    Install security updates daily; needs the package ``unattended-upgrades``.

    + hold: packages that are never updated unattended. Docker's and containerd's belong here: their update stops all
      containers, and may leave dockerd stopped
    + reboot: reboot when an update asks for it; + reboot_at: at this time of day (``HH:MM``, the host's time zone)

    Whose updates are installed stays as the distribution has it: its security updates.

    Raises ``OperationValueError`` for names and times that apt would not understand.

    **Example:**

    .. code:: python

        updates.unattended(hold=["containerd.io"], name="Install security updates daily")
    """
    if bad := [name for name in hold if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name)]:
        raise OperationValueError(f"updates.unattended: hold must be names of packages, got {bad[0]!r}")
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", reboot_at):
        raise OperationValueError(
            f"updates.unattended: reboot_at must be a time such as '03:30', got {reboot_at!r}"
        )

    content = render("base/99hostwright-updates.j2", hold=sorted(hold), reboot=reboot, reboot_at=reboot_at)
    state = host.get_fact(Updates)
    if state.file == ("root:644", hashlib.sha256(content.encode()).hexdigest()) and state.timers == _TIMERS:
        host.noop("security updates install themselves")
        return
    yield script.run("updates/apply.sh", file=FILE, content=content.rstrip("\n"))
