"""sshd, hardened by one drop-in; a change that would lock us out is taken back by the host itself."""

import hashlib
from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import FunctionCommand, OperationError, OperationValueError, StringCommand, operation

from facts.sshd import Sshd, SshdState
from operations import deadman
from operations.template import render

DROP_IN = "/etc/ssh/sshd_config.d/00-hostwright.conf"
_SOCKET_FILE = "/etc/systemd/system/ssh.socket.d/hostwright.conf"
_INCLUDE = "Include /etc/ssh/sshd_config.d/*.conf"
# What a lockout or a break-in hangs on: must count, and not only stand in our file.
_MUST_COUNT = (
    "passwordauthentication no",
    "kbdinteractiveauthentication no",
    "pubkeyauthentication yes",
    "permitemptypasswords no",
    "x11forwarding no",
    "maxauthtries 4",
)
_PERMIT_ROOT = ("prohibit-password", "no")
# Installed sshd and systemd both: whichever of them listens reads the restored files.
_RESTORE = """systemctl daemon-reload
if systemctl is-active --quiet ssh.socket; then
    systemctl stop ssh.service
    systemctl restart ssh.socket
else
    systemctl reload-or-restart ssh.service
fi"""


def wanted_lines(permit_root: str) -> tuple[str, ...]:
    """Return the lines that ``sshd -T`` must print."""
    # sshd prints the old name of prohibit-password.
    shown = {"prohibit-password": "without-password"}.get(permit_root, permit_root)
    return (*_MUST_COUNT, f"permitrootlogin {shown}")


def overridden(state: SshdState, wanted: Sequence[str], ports: Sequence[int]) -> list[str]:
    """Return what does not count although our file says so, for the message."""
    missing = [line for line in wanted if line not in state.effective]
    extra = sorted(state.ports - set(ports))
    return missing + [f"port {port} is open as well" for port in extra]


@operation()
def server(
    ports: Sequence[int] = (22,),
    permit_root: str = "prohibit-password",
    rollback_seconds: int = 120,
) -> Generator[StringCommand | FunctionCommand, None, None]:
    """
    Let people in by key only, on these ports, with current algorithms.

    + ports: all ports of SSH. To move it, declare old and new, run, change ``ssh_port`` in the inventory, and declare
      the new one alone
    + permit_root: ``prohibit-password`` (root by key) or ``no``
    + rollback_seconds: the host takes a change back after this time (s, 10 or more) unless a new SSH connection proves
      it; a change that is not proven fails the operation

    sshd is reloaded, never stopped; under ``ssh.socket``, where sshd's ``Port`` means nothing, the ports are the
    socket's. The main file is touched only when its first directive is not the Include of the drop-ins.

    Raises ``OperationError`` when another file has the last word over ours, ``OperationValueError`` for bad arguments.

    **Example:**

    .. code:: python

        sshd.server(ports=[22], permit_root="no", name="Harden sshd")
    """
    if permit_root not in _PERMIT_ROOT:
        raise OperationValueError(
            f"sshd.server: permit_root must be one of {', '.join(_PERMIT_ROOT)}, got {permit_root!r}"
        )
    if not ports or not all(0 < port < 65536 for port in ports):
        raise OperationValueError(f"sshd.server: ports must be one or more of 1 to 65535, got {ports!r}")

    content = render("sshd/00-hostwright.conf.j2", ports=sorted(ports), permit_root=permit_root)
    wanted = wanted_lines(permit_root)
    state = host.get_fact(Sshd)

    digest = hashlib.sha256(content.encode()).hexdigest()
    do_write = state.drop_in != (digest, "644", "root", "root") or state.first != _INCLUDE
    do_ports = state.ports != set(ports)
    do_read = bool(state.unread)
    others = overridden(state, wanted, ports)
    if not (do_write or do_ports or do_read or state.unproven or others):
        host.noop("sshd is as wanted")
        return
    if others and not do_write and state.socket_ports is None:
        raise OperationError(
            f"sshd.server: another configuration file of sshd has the last word: {'; '.join(others)} "
            "(look for Port and Match lines with: grep -rn . /etc/ssh/sshd_config*)"
        )

    yield from deadman.guarded(
        "sshd/apply.sh",
        deadman="sshd",
        seconds=rollback_seconds,
        saved=(DROP_IN, "/etc/ssh/sshd_config", _SOCKET_FILE),
        restore=_RESTORE,
        content=content.rstrip("\n"),
        ports=" ".join(map(str, sorted(ports))),
        wanted="\n".join(wanted),
    )
