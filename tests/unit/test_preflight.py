"""What a host must be, against what it says: every rule, each with the words that reach the user."""

from dataclasses import replace

import pytest

from facts.preflight import Disk, HostState, Listener, parse
from operations.preflight import faults
from settings import PortClaim, Requirements

OUTPUT = """\
clock=1000
uid=0
architecture=x86_64
distribution=debian
release=12
cgroup=2
cores=2
memory_kb=2048000
disk=/ 3072000 /dev/vda1 /
disk=/var 1024000 /dev/vda2 /var
systemd=running
python=3.11
ports=known
port=tcp 0.0.0.0:22 sshd|ssh.service systemd|init.scope
port=tcp [::]:80 nginx|nginx.service
port=udp 127.0.0.53%lo:53 systemd-resolve|systemd-resolved.service
port=tcp *:2024
""".splitlines()

FIT = parse(OUTPUT, now=990.0)
NEEDS = Requirements(
    memory_mb=512,
    disk_root_mb=512,
    disk_var_mb=512,
    python=(3, 11),
    ports=(PortClaim(80, ("nginx",)), PortClaim(8000, ("gateway*.service",))),
)


def test_output_is_read():
    assert (
        replace(FIT, listeners=FIT.listeners[:3])
        == HostState(
            uid=0, architecture="x86_64", distribution="debian", release="12", cgroup=2, cores=2, memory_mb=2000,
            disks={"/": Disk(3000, "/"), "/var": Disk(1000, "/var")}, systemd="running", python=(3, 11),
            clock_offset=10.0,
            listeners=(
                Listener("tcp", "0.0.0.0", 22, (("sshd", "ssh.service"), ("systemd", "init.scope"))),
                Listener("tcp", "::", 80, (("nginx", "nginx.service"),)),
                Listener("udp", "127.0.0.53%lo", 53, (("systemd-resolve", "systemd-resolved.service"),)),
            ),
        )
    )  # fmt: skip
    assert FIT.listeners[3] == Listener("tcp", "*", 2024, ())


def test_fit_host_has_no_fault():
    assert faults(NEEDS, FIT) == []


def test_host_that_says_nothing_fails_every_check():
    lines = faults(NEEDS, parse(["x=y"], now=0.0))
    assert [line.partition(":")[0] for line in lines] == [
        "user", "release", "architecture", "systemd", "cgroup version", "cores", "memory", "clock", "python3", "disk",
        "ports",
    ]  # fmt: skip


def listening(*listeners):
    return {"listeners": tuple(listeners)}


@pytest.mark.parametrize(
    ("needs", "state", "line"),
    [
        ({}, {"uid": 1000}, "user: must be root, directly or by sudo without a password, got uid 1000"),
        (
            {},
            {"distribution": "debian", "release": "11", "python": (3, 11)},
            "release: must be debian 12, debian 13, ubuntu 22.04 or ubuntu 24.04, got debian 11",
        ),
        ({}, {"architecture": "armv7l"}, "architecture: must be x86_64 or aarch64, got armv7l"),
        (
            {"architectures": ("x86_64",)},
            {"architecture": "aarch64"},
            "architecture: must be x86_64, got aarch64",
        ),
        ({}, {"systemd": ""}, "systemd: must be running, got none"),
        ({}, {"systemd": "stopping"}, "systemd: must be running, got stopping"),
        ({"cgroup_versions": (2,)}, {"cgroup": 1}, "cgroup version: must be 2, got 1"),
        ({"cores": 4}, {}, "cores: must be 4 or more, got 2"),
        ({"memory_mb": 2001}, {}, "memory: must be 2001 MB or more, got 2000 MB"),
        ({}, {"clock_offset": 61.0}, "clock: must be within 60 s of this machine's, got +61 s"),
        ({}, {"clock_offset": -3600.0}, "clock: must be within 60 s of this machine's, got -3600 s"),
        ({}, {"python": (3, 10)}, "python3: must be 3.11 or newer, got 3.10"),
        (
            {},
            {"python": None, "distribution": "ubuntu", "release": "22.04"},
            "python3: must be 3.11 or newer, got 3.10",
        ),
        ({"disk_root_mb": 3001}, {}, "disk /: must have 3001 MB free or more, got 3000 MB"),
        ({"disk_var_mb": 1001}, {}, "disk /var: must have 1001 MB free or more, got 1000 MB"),
        (
            {"disk_root_mb": 600, "disk_var_mb": 500},
            {"disks": {"/": Disk(1000, "/"), "/var": Disk(1000, "/")}},
            "disk /: must have 1100 MB free or more, got 1000 MB",
        ),
        ({}, {"listeners": None}, "ports: must be readable by ss, got no ss: apt-get install iproute2"),
        (
            {},
            listening(Listener("tcp", "0.0.0.0", 80, (("apache2", "apache2.service"),))),
            "port 80/tcp: must be free or held by nginx, got apache2 (apache2.service)",
        ),
        (
            {},
            listening(Listener("tcp", "127.0.0.1", 8000, (("python3", "jupyter.service"),))),
            "port 8000/tcp: must be free or held by gateway*.service, got python3 (jupyter.service)",
        ),
        (
            {},
            listening(Listener("tcp", "::", 80)),
            "port 80/tcp: must be free or held by nginx, got a process that cannot be seen",
        ),
    ],
)
def test_unmet_requirement_is_said(needs, state, line):
    assert faults(replace(NEEDS, **needs), replace(FIT, **state)) == [line]


@pytest.mark.parametrize(
    "state",
    [
        {"systemd": "degraded"},
        {"clock_offset": -60.0},
        listening(Listener("udp", "0.0.0.0", 80, (("quic", ""),))),
        listening(Listener("tcp", "127.0.0.1", 8000, (("python3", "gateway@8000.service"),))),
    ],
)
def test_what_is_near_a_limit_passes(state):
    assert faults(NEEDS, replace(FIT, **state)) == []


def test_merged_requirements_ask_for_both():
    arm = Requirements(
        architectures=("aarch64",), memory_mb=100, disk_var_mb=10, clock_seconds=5, ports=(PortClaim(1, ()),)
    )
    both = NEEDS.merge(arm)
    assert (both.architectures, both.memory_mb, both.disk_var_mb, both.clock_seconds) == (
        ("aarch64",),
        512,
        522,
        5,
    )
    assert [claim.port for claim in both.ports] == [80, 8000, 1]


def test_systems_that_exclude_each_other_fit_no_host():
    both = Requirements(architectures=("x86_64",)).merge(Requirements(architectures=("aarch64",)))
    assert faults(both, FIT) == [
        "architecture: must be nothing: the host's systems exclude each other, got x86_64"
    ]
