"""
Kernel parameters, for the next boot and now.

pyinfra's ``server.sysctl`` asks and sets one parameter at a time, and fails where a kernel cannot be changed.
"""

import hashlib
from collections.abc import Generator, Mapping

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.kernel import FILE, KernelParameters
from operations import script


def path_of(key: str) -> str:
    """
    Return the path of a parameter below /proc/sys.

    As sysctl.d(5) has it, the first separator decides: after a slash, dots are letters (``net/ipv4/conf/eth0.5/…``).
    """
    dot, slash = key.find("."), key.find("/")
    return key if slash != -1 and (dot == -1 or slash < dot) else key.translate(str.maketrans("./", "/."))


def text(parameters: Mapping[str, str]) -> str:
    """Return the content of our file."""
    lines = [f"{key} = {value}" for key, value in sorted(parameters.items())]
    return "\n".join(["# Written by Hostwright; changes made here by hand are undone.", *lines]) + "\n"


@operation()
def parameters(parameters: Mapping[str, str]) -> Generator[StringCommand, None, None]:
    """
    Set kernel parameters in one file of /etc/sysctl.d and, where this host can, live.

    + parameters: value by key, such as ``net.ipv4.tcp_syncookies``. No parameter: the file goes away, what is live
      stays until the next boot

    A parameter that the kernel does not have (a module that is not loaded), or that a container cannot set, is
    written to the file alone. Keys with ``*`` are for sysctl.d alone as well.

    Raises ``OperationValueError`` for turning IPv4 forwarding off: it cuts containers off their network, and not
    setting it is enough for a host that has none.

    **Example:**

    .. code:: python

        kernel.parameters({"net.ipv4.tcp_syncookies": "1"}, name="Set kernel parameters")
    """
    by_path = {path_of(key): " ".join(value.split()) for key, value in parameters.items()}
    if by_path.get("net/ipv4/ip_forward") == "0" or by_path.get("net/ipv4/conf/all/forwarding") == "0":
        raise OperationValueError(
            "kernel.parameters: net.ipv4.ip_forward must not be 0: it would cut containers off"
        )
    content = text(parameters) if parameters else ""
    state = host.get_fact(KernelParameters, paths=sorted(path for path in by_path if "*" not in path))

    digest = hashlib.sha256(content.encode()).hexdigest()
    do_file = state.file != (("root:644", digest) if content else ("-", ""))
    live = [f"{path} {by_path[path]}" for path, value in sorted(state.live.items()) if value != by_path[path]]
    if not (do_file or live):
        host.noop("the kernel parameters are as wanted")
        return
    yield script.run("kernel/apply.sh", file=FILE, content=content.rstrip("\n"), live="\n".join(live))
