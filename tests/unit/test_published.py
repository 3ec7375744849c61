"""Which rules published ports get, and when nothing is to be done."""

import dataclasses

import pytest

from facts.published import parse
from operations.published import Rule, is_bridge, is_loaded, rules
from operations.template import render
from settings import Port


def port(number: int, *sources: str, proto: str = "tcp") -> Port:
    return Port(port=number, proto=proto, sources=sources, why="test")


def test_each_source_is_a_rule_in_a_fixed_order():
    assert rules([port(443), port(80, "2001:db8::/32", "10.0.0.0/8"), port(53, proto="udp")]) == [
        Rule(53, "udp", ""),
        Rule(80, "tcp", " ip saddr 10.0.0.0/8"),
        Rule(80, "tcp", " ip6 saddr 2001:db8::/32"),
        Rule(443, "tcp", ""),
    ]


def test_port_that_is_open_to_anyone_says_so_alone():
    assert rules([port(80, "10.0.0.0/8"), port(80)]) == [Rule(80, "tcp", "")]
    assert rules([port(80, "10.0.0.0/8"), port(80, "10.0.0.0/8")]) == [Rule(80, "tcp", " ip saddr 10.0.0.0/8")]


def test_without_a_declared_port_everything_is_closed():
    text = render("published/ports.nft.j2", rules=rules([]), bridges=["docker0"])
    assert "proto-dst" not in text
    assert '\t\toifname "docker0" jump from_outside\n' in text
    assert text.count("drop") >= 1


# What needs a mount namespace: systemd.exec(5), PrivateMounts= and "Sandboxing".
MOUNTS = {
    "BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "InaccessiblePaths", "MountAPIVFS", "NoExecPaths",
    "PrivateDevices", "PrivateMounts", "PrivateTmp", "ProcSubset", "ProtectControlGroups", "ProtectHome", "ProtectKernelLogs",
    "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "ProtectSystem", "ReadOnlyPaths", "ReadWritePaths",
    "RootDirectory", "RootImage", "TemporaryFileSystem",
}  # fmt: skip


def test_unit_that_the_engine_needs_asks_for_no_mount_namespace():
    """Early in a boot setting one up failed in two of ten reboots under load, and the engine was not started."""
    text = render("published/hostwright-published.service.j2", rules_file="/etc/rules.nft")
    set_here = {line.split("=")[0] for line in text.splitlines() if "=" in line and not line.startswith("#")}
    assert "CapabilityBoundingSet" in set_here
    assert set_here.isdisjoint(MOUNTS)


@pytest.mark.parametrize(
    ("interface", "found"),
    [("docker0", True), ("br-1a2b3c4d5e6f", True), ("docker01", False), ("br0", False), ("eth0", False), ("cni0", False)],
)
def test_bridges_of_containers_are_told_from_others(interface, found):
    assert is_bridge(interface, ("docker0", "docker_gwbridge", "br-*")) is found


GOOD = [
    "nft\tyes",
    "rules\troot:root:644 aa",
    "service\troot:root:644 bb",
    "unit\tLoadState=loaded",
    "unit\tActiveState=active",
    "unit\tUnitFileState=enabled",
    "unit\tNeedDaemonReload=no",
    "required\tyes",
    "live\tyes",
    "same\tyes",
    "uplink\teth0",
    "uplink\teth0",
]


def test_fact_reads_the_records():
    state = parse(GOOD)
    assert (state.rules, state.service, state.uplinks) == ("root:root:644 aa", "root:root:644 bb", frozenset({"eth0"}))
    assert is_loaded(state)
    assert parse(["rules\t ", "service\t "]).rules == ""


@pytest.mark.parametrize(
    "change",
    [
        {"active": False},
        {"enabled": False},
        {"required": False},
        {"needs_daemon_reload": True},
        {"live": False},
        {"same": False},
    ],
)
def test_any_of_these_is_something_to_do(change):
    assert not is_loaded(dataclasses.replace(parse(GOOD), **change))
