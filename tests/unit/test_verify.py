"""The parts of tests/verify that decide without a host."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from settings import Port, load_host
from tests.verify import evidence, fleet, test_backup, test_exposure
from tests.verify.evidence import Unreachable
from tests.verify.fleet import FleetError, Target


def target(name: str = "web1", **data: object) -> Target:
    return Target(name, load_host(name, [], {}, resolve=False), data)


def lines_of(config: str) -> list[str]:
    return [line.strip() for line in config.splitlines() if line.strip()]


def test_ssh_reaches_a_host_as_pyinfra_does() -> None:
    config = fleet.ssh_config(
        [target(ssh_hostname="192.0.2.11", ssh_port=2222, ssh_user="ops", ssh_key="~/.ssh/id", ssh_strict_host_key_checking="yes",
                ssh_known_hosts_file="/a b/known_hosts")],
        Path("/tmp/x"),
    )  # fmt: skip
    for line in ("Host web1", "HostName 192.0.2.11", "Port 2222", "User ops", "IdentityFile ~/.ssh/id", "IdentitiesOnly yes",
                 'UserKnownHostsFile "/a b/known_hosts"', "StrictHostKeyChecking yes", "ControlPath /tmp/x/%C"):  # fmt: skip
        assert line in lines_of(config)


def test_ssh_reads_the_operators_own_file_last() -> None:
    assert lines_of(fleet.ssh_config([target()], Path("/tmp/x")))[-1] == "Include ~/.ssh/config"
    own = fleet.ssh_config([target(ssh_config_file="deploy/ssh_config")], Path("/tmp/x"))
    assert lines_of(own)[-1] == "Include deploy/ssh_config"


@pytest.mark.parametrize(("given", "strict"), [({}, "accept-new"), ({"ssh_strict_host_key_checking": "odd"}, "yes")])
def test_unknown_strictness_is_the_strictest(given: dict[str, object], strict: str) -> None:
    assert f"StrictHostKeyChecking {strict}" in lines_of(fleet.ssh_config([target(**given)], Path("/tmp/x")))


def test_sample_production_inventory_is_read_without_its_secrets() -> None:
    targets = fleet.load("inventories/prod.py", ["gateway-eu-*"])
    assert [(each.name, each.address) for each in targets] == [("gateway-eu-1", "2001:db8::11")]
    gateway = targets[0].settings.gateway
    assert gateway is not None
    assert not gateway.admin_api_key.resolved


def test_limit_without_hosts_is_refused() -> None:
    with pytest.raises(FleetError, match="--limit gateway-9: matches no host"):
        fleet.load("inventories/prod.py", ["gateway-9"])


PORTS = (Port(port=22, sources=("192.0.2.0/24", "2001:db8::1/128"), why="ssh"), Port(port=443, why="https"))
STATUS = """
Status: active
Logging: on (low)
Default: deny (incoming), allow (outgoing), disabled (routed)
New profiles: skip

To                         Action      From
--                         ------      ----
22/tcp                     ALLOW IN    192.0.2.0/24               # ssh
443/tcp                    ALLOW IN    Anywhere                   # https
22/tcp                     ALLOW IN    2001:db8::1                # ssh
443/tcp (v6)               ALLOW IN    Anywhere (v6)              # https
"""


def test_firewall_status_is_read_as_declared() -> None:
    assert test_exposure.openings_of_status(STATUS.splitlines()) == test_exposure.declared_openings(PORTS)


@pytest.mark.parametrize(
    "rule",
    ["8080/tcp                   ALLOW IN    Anywhere", "Anywhere                   ALLOW IN    203.0.113.7", "80,443/tcp   ALLOW IN    Anywhere",
     "443/tcp on eth1            ALLOW IN    Anywhere", "443                        LIMIT IN    Anywhere"],
)  # fmt: skip
def test_rule_that_nobody_declared_is_seen(rule: str) -> None:
    found = test_exposure.openings_of_status([*STATUS.splitlines(), rule])
    assert len(found - test_exposure.declared_openings(PORTS)) == 1


def test_inactive_firewall_opens_nothing_by_itself() -> None:
    assert test_exposure.openings_of_status(["Status: inactive"]) == set()


def test_listeners_on_loopback_are_left_out() -> None:
    lines = [
        'tcp   LISTEN 0 128    0.0.0.0:22    0.0.0.0:*  users:(("sshd",pid=1,fd=3))',
        "tcp   LISTEN 0 128  127.0.0.1:9100   0.0.0.0:*",
        "tcp   LISTEN 0 128      [::1]:9100      [::]:*",
        "udp   UNCONN 0 0   127.0.0.53%lo:53  0.0.0.0:*",
        "tcp   LISTEN 0 128          *:8080         *:*",
        "udp   UNCONN 0 0   [fe80::1]%eth0:546     [::]:*",
    ]
    assert set(test_exposure.listeners(lines)) == {("tcp", 22), ("tcp", 8080), ("udp", 546)}


@pytest.mark.parametrize(
    ("when", "days"), [("02:00", 1), ("Sun 04:00", 7), ("Mon,Thu 04:00", 7), ("15 03:00", 31), ("*:15", 1 / 24)]
)
def test_interval_of_a_schedule(when: str, days: float) -> None:
    assert test_backup.interval(when) == timedelta(days=days)


class Shell:
    """testinfra's view of this very machine, without ssh."""

    def run(self, script: str) -> SimpleNamespace:
        done = subprocess.run(["sh", "-c", script], text=True, capture_output=True)
        return SimpleNamespace(rc=done.returncode, stdout=done.stdout, stderr=done.stderr)


def test_evidence_keeps_each_output_and_status_apart() -> None:
    commands = {"fails": "echo one; echo two >&2; exit 3", "no-newline": "printf x", "reads": "cat", "quotes": "echo \"it's $((1+1))\""}
    found = evidence.gather(Shell(), commands)  # type: ignore[arg-type]
    assert [(output.rc, output.lines) for output in found.values()] == [(3, ["one", "two"]), (0, ["x"]), (0, []), (0, ["it's 2"])]


def test_host_that_says_nothing_was_not_checked() -> None:
    shell = SimpleNamespace(run=lambda _: SimpleNamespace(rc=1, stdout="", stderr="sudo: a password is required"))
    with pytest.raises(Unreachable, match="a password is required"):
        evidence.gather(shell, {"a": "true"})  # type: ignore[arg-type]
