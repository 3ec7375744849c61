"""
The clock, kept by systemd-timesyncd.

timesyncd and not chrony: it is the default of Debian and Ubuntu, opens no port, and stays out of the way in containers.
Whoever needs to serve time or to follow a hardware clock turns this part off and runs chrony.
"""

import hashlib
from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.clock import FILE, Clock
from operations import script


@operation()
def synchronised(servers: Sequence[str] = ()) -> Generator[StringCommand, None, None]:
    """
    Keep the clock by NTP; needs the package ``systemd-timesyncd``.

    + servers: names or addresses of NTP servers; none: the distribution's

    In a container the unit is enabled and not started: the clock is that of the machine outside.

    Raises ``OperationValueError`` for a server that is more than one word.

    **Example:**

    .. code:: python

        clock.synchronised(servers=["ntp1.example.org"], name="Keep the clock")
    """
    if bad := [server for server in servers if not server or any(letter.isspace() for letter in server)]:
        raise OperationValueError(f"clock.synchronised: servers must be names or addresses, got {bad[0]!r}")
    content = f"# Written by Hostwright\n[Time]\nNTP={' '.join(servers)}\n" if servers else ""
    state = host.get_fact(Clock)

    digest = hashlib.sha256(content.encode()).hexdigest()
    do_file = state.file != (("root:644", digest) if content else ("-", ""))
    do_start = not state.container and (not state.active or state.unread)
    if state.loaded and state.enabled and not (do_file or do_start):
        host.noop("the clock is kept as wanted")
        return
    yield script.run("clock/apply.sh", file=FILE, content=content.rstrip("\n"), container=state.container)
