"""Rules of the firewall, without a host."""

import ipaddress

import pytest

from facts.exposure import Connection, FirewallState, parse
from operations.exposure import _is_live, rules, with_ssh
from settings import Port
from settings.exposure import in_order


def test_port_without_sources_is_open_to_anyone_over_both_families():
    lines = [rule.file_lines for rule in rules([Port(port=80, why="web")])]
    assert lines == [
        (
            "### tuple ### allow tcp 80 0.0.0.0/0 any 0.0.0.0/0 in comment=776562",
            "-A ufw-user-input -p tcp --dport 80 -j ACCEPT",
        ),
        ("### tuple ### allow tcp 80 ::/0 any ::/0 in comment=776562", "-A ufw6-user-input -p tcp --dport 80 -j ACCEPT"),
    ]


@pytest.mark.parametrize(
    ("source", "in_file", "live"),
    [
        ("10.0.0.0/8", "-A ufw-user-input -p udp --dport 53 -s 10.0.0.0/8 -j ACCEPT",
         "-A ufw-user-input -s 10.0.0.0/8 -p udp -m udp --dport 53 -j ACCEPT"),
        ("192.0.2.7/32", "-A ufw-user-input -p udp --dport 53 -s 192.0.2.7 -j ACCEPT",
         "-A ufw-user-input -s 192.0.2.7/32 -p udp -m udp --dport 53 -j ACCEPT"),
        ("2001:db8::/32", "-A ufw6-user-input -p udp --dport 53 -s 2001:db8::/32 -j ACCEPT",
         "-A ufw6-user-input -s 2001:db8::/32 -p udp -m udp --dport 53 -j ACCEPT"),
    ],
)  # fmt: skip
def test_source_restricts_one_family(source, in_file, live):
    (rule,) = rules([Port(port=53, proto="udp", sources=(source,), why="names")])
    assert rule.file_lines[1] == in_file
    assert rule.live_line == live


def test_one_port_of_several_systems_has_the_same_words_in_every_run():
    """Sets of words have another order in each process: the rule's comment changed from run to run."""
    ports = [Port(port=9127, sources=("192.0.2.9/32",), why=f"metrics of {letter}") for letter in "hgfedcba"]
    assert [port.why[-1] for port in in_order([*ports, *ports])] == list("abcdefgh")
    assert {rule.why for rule in rules(in_order(ports))} == {"metrics of a"}


def test_rules_are_sorted_and_each_stands_once():
    ports = [Port(port=443, why="a"), Port(port=80, why="b"), Port(port=443, why="c")]
    found = [(rule.family, rule.port, rule.why) for rule in rules(ports)]
    assert found == [(4, 80, "b"), (4, 443, "a"), (6, 80, "b"), (6, 443, "a")]


def test_undeclared_ssh_port_is_added_and_declared_one_keeps_its_sources():
    declared = Port(port=22, sources=("192.0.2.0/24",), why="ssh")
    assert with_ssh([declared], frozenset({22, 2222})) == [declared, Port(port=2222, why="ssh")]


def test_udp_port_of_the_same_number_is_not_the_ssh_port():
    assert Port(port=22, why="ssh") in with_ssh([Port(port=22, proto="udp", why="x")], frozenset({22}))


@pytest.mark.parametrize(
    ("sources", "address", "passes"),
    [
        ((), "192.0.2.7", True),
        ((), "2001:db8::7", True),
        (("192.0.2.0/24",), "192.0.2.7", True),
        (("192.0.2.0/24",), "198.51.100.7", False),
        (("192.0.2.0/24",), "2001:db8::7", False),
        (("192.0.2.0/24", "2001:db8::/32"), "2001:db8::7", True),
    ],
)
def test_connection_is_let_in_by_its_own_family_and_source(sources, address, passes):
    connection = Connection(ipaddress.ip_address(address), 22)
    found = rules([Port(port=22, sources=sources, why="ssh"), Port(port=22, proto="udp", why="x")])
    assert any(rule.lets_in(connection) for rule in found) is passes


RECORDS = """\
installed\tyes
enabled\tyes
at_boot\tenabled
ipv6\tyes
default\tIPV6=yes
default\tDEFAULT_INPUT_POLICY="DROP"
readable\t4
rules4\t### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in
rules4\t-A ufw-user-input -p tcp --dport 22 -j ACCEPT
live4\t-P INPUT DROP
live4\t-A INPUT -j ufw-before-logging-input
live4\t-A INPUT -j ufw-before-input
live4\t-A INPUT -j ufw-after-input
live4\t-A INPUT -j ufw-after-logging-input
live4\t-N ufw-user-input
ssh\t[::]:22
ssh\t0.0.0.0:2222
ssh\t127.0.0.1:6010
ssh\t[fe80::1%host0]:2022
connection\t2001:db8::7 43552 2001:db8::1 22"""


def test_records_are_read():
    state = parse(RECORDS.splitlines())
    assert (state.installed, state.enabled, state.at_boot, state.ipv6, state.unproven) == (True, True, True, True, False)
    assert state.defaults == {"IPV6": "yes", "DEFAULT_INPUT_POLICY": "DROP"}
    assert state.rules[4] is not None
    assert len(state.rules[4]) == 2
    assert state.rules[6] is None
    assert state.ssh_ports == {22, 2222, 2022}
    assert state.connection == Connection(ipaddress.ip_address("2001:db8::7"), 22)
    assert _is_live(state, 4)
    assert not _is_live(state, 6)


@pytest.mark.parametrize("missing", [line for line in RECORDS.splitlines() if line.startswith("live4")])
def test_firewall_is_not_live_when_a_hook_is_missing(missing):
    assert not _is_live(parse([line for line in RECORDS.splitlines() if line != missing]), 4)


@pytest.mark.parametrize("connection", ["", "garbage", "192.0.2.7 43552"])
def test_run_without_an_ssh_connection_has_none(connection):
    assert parse([f"connection\t{connection}"]).connection is None


def test_nothing_known_is_a_host_without_firewall():
    assert parse([]) == FirewallState()
