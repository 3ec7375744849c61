"""Limits of the systemd journal: without one it may take a tenth of the file system."""

import re
from collections.abc import Generator

from pyinfra.api import OperationValueError, StringCommand, operation

from operations import fileset, template
from operations.fileset import Absent, File

DROP_IN = "/etc/systemd/journald.conf.d/50-hostwright.conf"

# journald only warns about a value that it cannot read, and goes on without the limit: so it is refused here.
_SIZE = re.compile(r"[1-9]\d*[KMGT]")
_SPAN = re.compile(r"[1-9]\d*(s|min|h|day|days|week|weeks|month|months|year|years)")


def limit_faults(max_use: str, max_retention: str, keep_free: str) -> list[str]:
    """Return every rule that the limits break, one line each."""
    faults = [
        f"{key} must be a number with K, M, G or T, e.g. '500M', got {value!r}"
        for key, value in (("max_use", max_use), ("keep_free", keep_free))
        if not _SIZE.fullmatch(value) and not (key == "keep_free" and value == "")
    ]
    if not _SPAN.fullmatch(max_retention):
        faults.append(f"max_retention must be a time span, e.g. '1month' or '14days', got {max_retention!r}")
    return faults


@operation()
def limits(
    max_use: str = "500M",
    max_retention: str = "1month",
    keep_free: str = "",
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Keep the journal on disk, within these limits.

    + max_use: most space it takes, e.g. ``500M``, ``2G``
    + max_retention: oldest entry it keeps, e.g. ``1month``, ``14days``
    + keep_free: space it leaves to others; empty: the default of systemd, 15 % of the file system
    + present: ``False`` goes back to the distribution's defaults

    journald is restarted when it runs on other limits than these; messages logged meanwhile are kept by its sockets.

    Raises ``OperationValueError`` for values that journald would ignore.

    **Example:**

    .. code:: python

        journald.limits(max_use="500M", max_retention="1month", name="Limit the journal")
    """
    if not present:
        entry: File | Absent = Absent(DROP_IN)
    else:
        faults = limit_faults(max_use, max_retention, keep_free)
        if faults:
            raise OperationValueError("journald.limits: " + "; ".join(faults))
        entry = File(
            DROP_IN,
            template.render(
                "journald/50-hostwright.conf.j2",
                max_use=max_use,
                max_retention=max_retention,
                keep_free=keep_free,
            ),
        )
    yield from fileset.files._inner(entries=[entry], unit="systemd-journald.service", action="restart")
