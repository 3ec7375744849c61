"""What the firewall lets in, in its files and in the kernel, and where SSH listens: one command for all of it."""

import ipaddress
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from pyinfra.api import FactBase, QuoteString, StringCommand

from facts.records import Record

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_STATE = Path(__file__).parents[1] / "files" / "exposure" / "state.sh"


@dataclass(frozen=True)
class Connection(Record):
    """Where the SSH connection of this run comes from, as the host sees it, and the port that it came in by."""

    address: Address
    port: int


@dataclass(frozen=True)
class FirewallState(Record):
    """
    What ``Firewall`` returns. The dictionaries have the keys 4 and 6, for IPv4 and IPv6.

    + rules: the lines of ufw's rule files; ``None`` when the file is not in the form that ufw itself writes
    + live: the kernel's INPUT chain and ufw's user chain, as ``iptables -S`` prints them
    + unproven: an earlier change is armed with a rollback that nobody has disarmed yet
    """

    installed: bool = False
    enabled: bool = False
    at_boot: bool = False
    ipv6: bool = False
    unproven: bool = False
    defaults: dict[str, str] = field(default_factory=dict)
    rules: dict[int, tuple[str, ...] | None] = field(default_factory=lambda: {4: None, 6: None})
    live: dict[int, tuple[str, ...]] = field(default_factory=lambda: {4: (), 6: ()})
    ssh_ports: frozenset[int] = frozenset()
    connection: Connection | None = None


def _ssh_port(listen: str) -> int | None:
    """Return the port of ``0.0.0.0:22``, ``[::]:22`` or ``*:22``; ``None`` for one that only this host reaches."""
    address, _, port = listen.rpartition(":")
    address = address.strip("[]").partition("%")[0]
    if not port.isdigit():
        return None
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    return None if loopback else int(port)


def _connection(text: str) -> Connection | None:
    """Read ``SSH_CONNECTION``: client address, client port, server address, server port."""
    parts = text.split()
    if len(parts) != 4:
        return None
    return Connection(ipaddress.ip_address(parts[0].partition("%")[0]), int(parts[3]))


def parse(output: list[str]) -> FirewallState:
    """Return the state that the records of ``files/exposure/state.sh`` tell of."""
    records: dict[str, list[str]] = defaultdict(list)
    for line in output:
        key, _, value = line.partition("\t")
        records[key].append(value)
    defaults = (line.partition("=") for line in records["default"])
    ports = (_ssh_port(listen) for listen in records["ssh"])
    return FirewallState(
        installed="yes" in records["installed"],
        enabled="yes" in records["enabled"],
        at_boot="enabled" in records["at_boot"],
        ipv6="yes" in records["ipv6"],
        unproven="yes" in records["unproven"],
        defaults={key: value.strip().strip("\"'") for key, _, value in defaults},
        rules={
            family: tuple(records[f"rules{family}"]) if str(family) in records["readable"] else None
            for family in (4, 6)
        },
        live={family: tuple(records[f"live{family}"]) for family in (4, 6)},
        ssh_ports=frozenset(port for port in ports if port is not None),
        connection=_connection(records["connection"][0]) if records["connection"] else None,
    )


class Firewall(FactBase[FirewallState]):
    """
    Returns the state of ufw and of the doors of SSH.

    .. code:: python

        FirewallState(
            installed=True, enabled=True, at_boot=True, ipv6=True, unproven=False,
            defaults={"IPV6": "yes", "DEFAULT_INPUT_POLICY": "DROP", ...},
            rules={4: ("### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in", ...), 6: (...)},
            live={4: ("-P INPUT DROP", "-A INPUT -j ufw-before-input", ...), 6: (...)},
            ssh_ports=frozenset({22}),
            connection=Connection(IPv4Address("192.0.2.7"), 22),
        )
    """

    default = FirewallState

    def command(self) -> StringCommand:
        return StringCommand("sh", "-c", QuoteString(_STATE.read_text()))

    def process(self, output: list[str]) -> FirewallState:
        return parse(output)
