"""
A host's name and time zone.

pyinfra's ``server.hostname`` and ``server.timezone`` ask five facts for it and leave /etc/hosts alone, after which sudo
complains that it cannot resolve the host's own name.
"""

import re
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.node import Node
from operations import script

_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?")
_ZONES = "/usr/share/zoneinfo/"


@operation()
def identity(hostname: str = "", timezone: str = "") -> Generator[StringCommand, None, None]:
    """
    Set the host's name, in the kernel, at boot and in /etc/hosts, and its time zone.

    + hostname: short or full name, at most 64 letters; empty leaves it as it is
    + timezone: name in /usr/share/zoneinfo, such as ``Etc/UTC``; empty leaves it as it is

    cron and rsyslog, which read the time zone once, are restarted when they run.

    Raises ``OperationValueError`` for a name that the kernel or /etc/hosts cannot hold.

    **Example:**

    .. code:: python

        node.identity(hostname="web1", timezone="Etc/UTC", name="Set name and time zone")
    """
    if hostname and not _HOSTNAME.fullmatch(hostname):
        raise OperationValueError(f"node.identity: hostname must be a host name, got {hostname!r}")
    if timezone.startswith("/") or ".." in timezone or any(letter.isspace() for letter in timezone):
        raise OperationValueError(
            f"node.identity: timezone must be a name such as 'Etc/UTC', got {timezone!r}"
        )

    # The full name first: that is what `hostname --fqdn` answers.
    names = " ".join(dict.fromkeys([hostname, hostname.partition(".")[0]]))
    state = host.get_fact(Node)
    do_name = bool(hostname) and (
        state.hostname != hostname or state.live != hostname or state.hosts != (names,)
    )
    do_zone = bool(timezone) and (
        state.localtime != _ZONES + timezone or state.timezone not in (None, timezone)
    )
    if not (do_name or do_zone):
        host.noop("name and time zone are as wanted")
        return
    yield script.run(
        "node/apply.sh",
        hostname=hostname if do_name else "",
        names=names,
        timezone=timezone if do_zone else "",
    )
