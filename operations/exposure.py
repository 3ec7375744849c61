"""
What a host lets in from outside: the declared ports, and nothing else, over IPv4 and IPv6.

The declared ports are the only source. A rule that nobody declared, whoever made it, is drift and goes away.
The rules are written into ufw's own files, between its own markers, so that ``ufw status`` tells the truth and an
administrator can go on using ufw; but they are compared whole, which neither misreads a rule of an unknown form nor
depends on the words of ``ufw show added``.
"""

import ipaddress
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pyinfra import host
from pyinfra.api import FunctionCommand, OperationError, OperationValueError, StringCommand, operation

from facts.exposure import Connection, Firewall, FirewallState
from operations import deadman
from settings import Port

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
_CHAIN = {4: "ufw-user-input", 6: "ufw6-user-input"}
_HOOKS = ("before-logging-input", "before-input", "after-input", "after-logging-input")
_DEFAULTS = {"IPV6": "yes", "DEFAULT_INPUT_POLICY": "DROP", "DEFAULT_OUTPUT_POLICY": "ACCEPT"}
_FILES = ("/etc/default/ufw", "/etc/ufw/ufw.conf", "/etc/ufw/user.rules", "/etc/ufw/user6.rules")


@dataclass(frozen=True)
class Rule:
    """One port, open to one source (``None``: anyone) in one address family (4 or 6)."""

    family: int
    port: int
    proto: str
    source: Network | None
    why: str

    @property
    def _source(self) -> str:
        if self.source is None:
            return _ANYWHERE[self.family]
        return str(self.source.network_address if self.source.num_addresses == 1 else self.source)

    @property
    def file_lines(self) -> tuple[str, str]:
        """The two lines that ufw keeps for it: its own record, and the line for ``iptables-restore``."""
        anywhere = _ANYWHERE[self.family]
        comment = f" comment={self.why.encode().hex()}" if self.why else ""
        match = "" if self.source is None else f" -s {self._source}"
        return (
            f"### tuple ### allow {self.proto} {self.port} {anywhere} any {self._source} in{comment}",
            f"-A {_CHAIN[self.family]} -p {self.proto} --dport {self.port}{match} -j ACCEPT",
        )

    @property
    def live_line(self) -> str:
        """The line that ``iptables -S`` prints for it."""
        match = "" if self.source is None else f" -s {self.source}"
        return (
            f"-A {_CHAIN[self.family]}{match} -p {self.proto} -m {self.proto} --dport {self.port} -j ACCEPT"
        )

    def lets_in(self, connection: Connection) -> bool:
        """Whether a new connection like this one passes."""
        return (
            self.proto == "tcp"
            and self.port == connection.port
            and self.family == connection.address.version
            and (self.source is None or connection.address in self.source)
        )


def rules(ports: Sequence[Port]) -> list[Rule]:
    """
    Return the rules of the declared ports, in a fixed order, each once.

    A port without sources is open to anyone over both families. A port that one declaration opens to anyone and
    another to a network stays open to anyone: each declaration is a promise of its own.
    """
    found: dict[tuple[int, int, str, str], Rule] = {}
    for port in ports:
        sources: list[Network | None] = [ipaddress.ip_network(source) for source in port.sources] or [None]
        for source in sources:
            for family in (4, 6) if source is None else (source.version,):
                rule = Rule(family, port.port, port.proto, source, port.why)
                found.setdefault((rule.family, rule.port, rule.proto, str(source or "")), rule)
    return [found[key] for key in sorted(found)]


def with_ssh(ports: Sequence[Port], ssh_ports: frozenset[int]) -> list[Port]:
    """Return the ports and, open to anyone, those of SSH that are not among them: never close the way in."""
    declared = {port.port for port in ports if port.proto == "tcp"}
    return [*ports, *(Port(port=port, why="ssh") for port in sorted(ssh_ports - declared))]


def _is_live(state: FirewallState, family: int) -> bool:
    """Whether the kernel drops by default and asks ufw's chains, whatever rules these hold."""
    live, prefix = state.live[family], _CHAIN[family].removesuffix("user-input")
    hooks = all(f"-A INPUT -j {prefix}{hook}" in live for hook in _HOOKS)
    return "-P INPUT DROP" in live and f"-N {_CHAIN[family]}" in live and hooks


def _live_rules(state: FirewallState, family: int) -> list[str]:
    return [line for line in state.live[family] if line.startswith(f"-A {_CHAIN[family]} ")]


@operation()
def firewall(
    ports: Sequence[Port],
    ssh_ports: Sequence[int] | str = "detected",
    rollback_seconds: int = 120,
) -> Generator[StringCommand | FunctionCommand, None, None]:
    """
    Let in what is declared and drop everything else, over IPv4 and IPv6, now and after every boot.

    + ports: the whole of what the host exposes; rules that are not among them are removed
    + ssh_ports: ports that stay open whatever is declared; ``detected`` asks ``sshd -T``, the listening sockets,
      ``ssh.socket`` and the connection of this run. A declared SSH port keeps its declared sources
    + rollback_seconds: the host takes a change back after this time (s, 10 or more) unless a new SSH connection proves
      it; a change that is not proven fails the operation

    Outgoing traffic is allowed. The forward policy, ufw's ``before.rules`` and ``after.rules`` and rules that other
    programs keep outside ufw's chains (Docker, k3s, fail2ban) are not touched.

    Raises ``OperationError`` before anything is changed when the declared sources of SSH do not cover the address that
    this run comes from.

    **Example:**

    .. code:: python

        exposure.firewall(
            [Port(port=22, sources=("192.0.2.0/24",), why="ssh"), Port(port=443, why="gateway")],
            name="Open the declared ports",
        )
    """
    if isinstance(ssh_ports, str) and ssh_ports != "detected":
        raise OperationValueError(
            f"exposure.firewall: ssh_ports must be 'detected' or ports, got {ssh_ports!r}"
        )

    state = host.get_fact(Firewall)
    detected = state.ssh_ports | ({state.connection.port} if state.connection else set())
    doors = frozenset(detected if isinstance(ssh_ports, str) else ssh_ports)
    wanted = rules(with_ssh(ports, doors))
    if state.connection and not any(rule.lets_in(state.connection) for rule in wanted):
        raise OperationError(
            f"exposure.firewall: the declared sources of port {state.connection.port} do not cover "
            f"{state.connection.address}, where this run connects from; nothing was changed"
        )

    file_lines = {
        family: tuple(line for rule in wanted if rule.family == family for line in rule.file_lines)
        for family in (4, 6)
    }
    live_lines = {family: [rule.live_line for rule in wanted if rule.family == family] for family in (4, 6)}
    families = (4, 6) if state.ipv6 else (4,)

    do_enable = not (state.installed and state.enabled and state.at_boot)
    do_defaults = any(state.defaults.get(key) != value for key, value in _DEFAULTS.items())
    do_load = not all(_is_live(state, family) for family in families)
    do_rules = any(state.rules[family] != file_lines[family] for family in (4, 6)) or any(
        _live_rules(state, family) != live_lines[family] for family in families
    )
    if not (do_enable or do_defaults or do_load or do_rules or state.unproven):
        host.noop("exactly the declared ports are open")
        return

    yield from deadman.guarded(
        "exposure/apply.sh",
        deadman="exposure",
        seconds=rollback_seconds,
        saved=_FILES,
        # ufw may have been off, or on in its files and yet not in the kernel: each comes back as it was.
        restore="ufw reload" if _is_live(state, 4) else "/lib/ufw/ufw-init force-stop",
        rules4=_sections(file_lines[4]),
        rules6=_sections(file_lines[6]),
        live4="\n".join(live_lines[4]),
        live6="\n".join(live_lines[6]),
        ipv6=state.ipv6,
        ssh_port=min(doors, default=22),
        only_rules=not (do_enable or do_defaults or do_load),
    )


def _sections(lines: Sequence[str]) -> str:
    """Return the lines in pairs with an empty line between, as ufw writes them."""
    pairs = ["\n".join(lines[index : index + 2]) for index in range(0, len(lines), 2)]
    return "\n\n".join(pairs)
