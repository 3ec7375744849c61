"""A host lets in what its settings declare, and nothing listens for the world that nobody declared."""

from __future__ import annotations

import re

import pytest

from settings import Port
from tests.verify.conftest import Machine

EVIDENCE = {
    "firewall": "ufw status verbose",
    "firewall-at-boot": "systemctl is-enabled ufw.service",
    "input-policy": "iptables -S INPUT | head -1; ip6tables -S INPUT 2>/dev/null | head -1",
    "listeners": "ss -Hltunp",
}

# Bound by DHCP clients to talk to a server that answers from port 67 or 547; no service listens there.
_DHCP_CLIENT = {("udp", 68), ("udp", 546)}

Opening = tuple[int, str, int, str]  # family, protocol, port, source


def declared_openings(ports: tuple[Port, ...]) -> set[Opening]:
    """Return what the firewall must let in: one entry per port, source and family."""
    openings: set[Opening] = set()
    for port in ports:
        for source in map(str, port.sources or ("Anywhere",)):
            families = (4, 6) if source == "Anywhere" else (6 if ":" in source else 4,)
            openings |= {(family, port.proto, port.port, source) for family in families}
    return openings


def openings_of_status(lines: list[str]) -> set[Opening]:
    """Return what ``ufw status`` lists; a line of a form that Hostwright does not write is an opening of its own."""
    openings: set[Opening] = set()
    # The rules follow a line of dashes; without a rule there is none.
    for line in lines[next((number + 1 for number, line in enumerate(lines) if line.startswith("--")), len(lines)) :]:
        rule = line.partition("#")[0].rstrip()
        found = re.fullmatch(r"(\d+)/(tcp|udp)(?: \(v6\))?\s+ALLOW IN\s+(\S+)(?: \(v6\))?", rule)
        if found is None:
            openings.add((0, rule, 0, ""))
            continue
        port, proto, source = found.groups()
        family = 6 if "(v6)" in rule or ":" in source else 4
        openings.add((family, proto, int(port), _network(source)))
    return openings


def _network(source: str) -> str:
    """ufw writes one address without its prefix length, the settings write networks."""
    if source == "Anywhere" or "/" in source:
        return source
    return f"{source}/128" if ":" in source else f"{source}/32"


def listeners(lines: list[str]) -> dict[tuple[str, int], str]:
    """Return the (protocol, port) pairs that are bound to more than loopback, each with the line of ``ss``."""
    found = {}
    for line in lines:
        words = line.split()
        address, _, port = words[4].rpartition(":")
        if re.match(r"127\.|\[::1\]|\[::ffff:127\.", address):
            continue
        found[words[0], int(port)] = line
    return found


def test_firewall_is_up_and_starts_at_boot(machine: Machine) -> None:
    machine.skip_unless("base_firewall_enabled")
    assert "Status: active" in machine.lines("firewall")
    assert machine.text("firewall-at-boot").strip() == "enabled"


def test_firewall_drops_by_default_over_both_families(machine: Machine) -> None:
    machine.skip_unless("base_firewall_enabled")
    assert "deny (incoming)" in machine.text("firewall")
    assert machine.lines("input-policy") == ["-P INPUT DROP"] * 2


def test_firewall_opens_exactly_the_declared_ports(machine: Machine) -> None:
    machine.skip_unless("base_firewall_enabled")
    assert openings_of_status(machine.lines("firewall")) == declared_openings(machine.settings.exposure)


def test_nothing_listens_outside_loopback_that_is_not_declared(machine: Machine) -> None:
    declared = {(port.proto, port.port) for port in machine.settings.exposure} | _DHCP_CLIENT
    undeclared = {key: line for key, line in listeners(machine.lines("listeners")).items() if key not in declared}
    assert undeclared == {}, "close these, bind them to 127.0.0.1, or declare them in base_exposure"


def test_every_declared_tcp_port_has_a_listener(machine: Machine) -> None:
    bound = listeners(machine.lines("listeners"))
    # what a load balancer of the cluster has is passed on by rules, no process listens on it
    passed_on = {*(machine.settings.k3s.public_ports if machine.settings.k3s else ()), *(machine.settings.codeclashers.ports() if machine.settings.codeclashers else ())}
    silent = [port for port in machine.settings.exposure if port.proto == "tcp" and ("tcp", port.port) not in bound and port not in passed_on]
    if silent and all(port in machine.settings.base.exposure for port in silent):
        pytest.skip(f"nothing listens yet on {[port.port for port in silent]}, which only base_exposure declares")
    assert silent == []
