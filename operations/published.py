"""
Published ports of containers, open as far as they are declared, over IPv4 and IPv6.

The engine translates the address of what arrives for a published port before any firewall of the host looks at it, and
lets it through: ``docker run -p 8080:80`` is open to the world behind a firewall that drops everything. Here a table of
our own is asked before the engine's rules.
"""

import hashlib
import ipaddress
import re
import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pyinfra import host
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.published import RULES, SERVICE, UNIT, Published, PublishedState
from operations import fileset, script
from operations.fileset import File
from operations.template import render
from settings import Port

BRIDGES = ("docker0", "docker_gwbridge", "br-*")


@dataclass(frozen=True)
class Rule:
    """One declared port, open to one source; ``match`` is nft's, with a space in front, empty for anyone."""

    port: int
    proto: str
    match: str


def rules(ports: Sequence[Port]) -> list[Rule]:
    """Return the rules of the declared ports, in a fixed order, each once; one that is open to anyone says so alone."""
    sources: dict[tuple[int, str], set[str]] = {}
    for port in ports:
        sources.setdefault((port.port, port.proto), set()).update(port.sources or [""])
    found = []
    for (number, proto), networks in sorted(sources.items()):
        for network in [""] if "" in networks else sorted(networks):
            family = "ip6" if ":" in network else "ip"
            found.append(
                Rule(number, proto, f" {family} saddr {ipaddress.ip_network(network)}" if network else "")
            )
    return found


def is_bridge(interface: str, bridges: Sequence[str]) -> bool:
    """Whether an interface is one of the bridges of containers."""
    return any(fnmatchcase(interface, pattern) for pattern in bridges)


def _loading(absent: bool) -> str:
    """Return the shell program that loads the rules, for ``fileset``, which runs it and judges by its outcome."""
    return script.text(["published/load.sh"], {"unit": UNIT, "rules": RULES, "absent": absent})


def _mark(content: str) -> str:
    return f"root:root:644 {hashlib.sha256(content.encode()).hexdigest()}"


def is_loaded(state: PublishedState) -> bool:
    """Whether the kernel asks the rules of the file, now and after a boot, and no engine starts without them."""
    in_kernel = state.live and state.same and state.active
    return in_kernel and state.enabled and state.required and not state.needs_daemon_reload


@operation()
def ports(
    ports: Sequence[Port], bridges: Sequence[str] = BRIDGES, present: bool = True
) -> Generator[StringCommand, None, None]:
    """
    Let in through published ports what is declared, and nothing else, also after a restart of the engine and a boot.

    + ports: the whole of what the host exposes; a port without sources is open to anyone
    + bridges: names of the containers' bridges, a ``*`` at the end stands for any rest. New connections that arrive
      elsewhere and leave by one of them are judged; all others are left alone
    + present: ``False`` takes the rules away: the engine's own hold then, which open every published port

    Not judged: connections of the host itself (a port published on loopback), of containers to anywhere, and of
    programs with other interfaces (k3s, libvirt). What the engine's proxy takes on (a container without IPv6 reached
    over IPv6) comes in by the INPUT chain and is a matter of ``exposure.firewall``. Needs the package ``nftables``.

    Raises ``OperationError`` before anything is changed when a default route leads out of one of the bridges.

    **Example:**

    .. code:: python

        published.ports([Port(port=443, why="gateway")], name="Close published ports that are not declared")
    """
    if bad := [name for name in bridges if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}\*?", name)] or not bridges:
        raise OperationValueError(
            f"published.ports: bridges must be names of interfaces or their beginning and '*', got {bad or bridges!r}"
        )
    state = host.get_fact(Published)
    if not present:
        if not (state.rules or state.service or state.live):
            host.noop("there are no rules for published ports")
            return
        yield script.run("published/load.sh", unit=UNIT, rules=RULES, absent=True)
        return

    if uplinks := sorted(name for name in state.uplinks if is_bridge(name, bridges)):
        raise OperationError(
            f"published.ports: the default route leads out of {uplinks[0]}, which bridges={list(bridges)!r} take for a "
            "bridge of containers; name the containers' bridges more closely; nothing was changed"
        )
    rules_text = render("published/ports.nft.j2", rules=rules(ports), bridges=bridges)
    service_text = render("published/hostwright-published.service.j2", rules_file=RULES)
    if state.rules != _mark(rules_text) or state.service != _mark(service_text) or state.leftovers:
        yield from fileset.files._inner(
            entries=[File(RULES, rules_text), File(SERVICE, service_text)],
            validate=f"nft -c -f {RULES}",
            within=RULES.rpartition("/")[0],
            apply=f"sh -c {shlex.quote(_loading(absent=False))}",
        )
    elif not is_loaded(state):
        yield script.run("published/load.sh", unit=UNIT, rules=RULES, absent=False)
    else:
        host.noop("published ports are open as declared")
