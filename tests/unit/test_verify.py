"""The parts of tests/verify that decide without a host."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

from settings import Port, load_host
from settings.backup import Backup
from tests.verify import evidence, fleet, test_backup, test_exposure
from tests.verify.conftest import Machine
from tests.verify.evidence import Output, Unreachable
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


def asked_of(*sources: tuple[str, str, int, str, int, dict[str, object]], backed_up: tuple[str, ...] = ("the shop",)) -> Machine:
    """Return a host with backups every night and drills every Sunday.

    + sources: of each its name, how its last backup ended and how long ago that was due (s), the same of its drill, what was noted
    """
    now = int(datetime.now(timezone.utc).timestamp())
    lines = [
        f"{name} active enabled {run} {now - run_age} active enabled {drill} {now - drill_age}\t{json.dumps(state)}"
        for name, run, run_age, drill, drill_age, state in sources
    ]
    target = SimpleNamespace(name="shop", settings=SimpleNamespace(backup=Backup(), backed_up=backed_up))
    machine = Machine(target)  # type: ignore[arg-type]
    machine.evidence.set_result({"backup-sources": Output(0, "\n".join(lines))})
    return machine


def outcomes(machine: Machine) -> list[str]:
    """Return how each check of backups ends."""
    found = []
    for check in (
        test_backup.test_backups_are_configured, test_backup.test_last_backup_is_recent_and_good,
        test_backup.test_every_repository_has_the_last_backup, test_backup.test_backup_was_restored_and_checked_lately,
    ):  # fmt: skip
        try:
            check(machine)
        except (AssertionError, pytest.skip.Exception) as error:
            found.append(str(error).splitlines()[0])
        else:
            found.append("passed")
    return found


HOUR, DAY = 3600, 86400


def noted(age: int) -> str:
    return (datetime.now(timezone.utc) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%SZ")


def good(age: int = HOUR) -> dict[str, object]:
    """Return what is noted where both jobs succeeded so many seconds ago."""
    return {"last_success": noted(age), "last_verified": noted(age), "failure": "", "drill_failure": "", "repositories": {"primary": {"last_success": noted(age)}}}


def test_good_backups_pass() -> None:
    assert outcomes(asked_of(("a", "success", HOUR, "success", HOUR, good()), ("b", "success", HOUR, "success", HOUR, good()))) == ["passed"] * 4


def test_backups_that_were_not_due_so_far_are_not_missed() -> None:
    new = ("a", "success", HOUR, "success", HOUR, {})
    not_due = "none was due so far: pyinfra INVENTORY deploys.backup"
    assert outcomes(asked_of(new)) == ["passed", *[f"{not_due}.run makes one now"] * 2, f"{not_due}.drill makes one now"]
    # a new source beside an old one hides nothing of that one
    old = ("b", "success", HOUR, "success", HOUR, good(8 * DAY))
    assert [said.partition(" ")[0] for said in outcomes(asked_of(new, old))] == ["passed", "b", "b:", "b"]


def test_backups_that_were_due_and_did_not_come_are_missed() -> None:
    no_backup, no_drill = "b: there is no backup: pyinfra INVENTORY deploys.backup.run", "b: no copy was ever restored: pyinfra INVENTORY deploys.backup.drill"
    never = asked_of(("a", "success", HOUR, "success", HOUR, good()), ("b", "success", 31 * HOUR, "success", 8 * DAY, {}))
    assert outcomes(never) == ["passed", no_backup, "b", no_drill]
    broken = asked_of(("b", "exit-code", HOUR, "exit-code", HOUR, {}))
    assert outcomes(broken) == ["passed", no_backup, "b", no_drill]
    failed = asked_of(("b", "success", HOUR, "success", HOUR, good() | {"failure": "disk full", "drill_failure": "truncated"}))
    assert outcomes(failed) == ["passed", "b: disk full", "passed", "b: truncated"]


def test_hosts_that_declare_nothing_are_asked_whether_they_should() -> None:
    assert outcomes(asked_of())[0] == "nothing is backed up of the shop"
    assert outcomes(asked_of(backed_up=())) == ["no system of shop has something to back up"] * 4


def test_sources_are_read_where_there_are_none_and_where_nothing_ran_yet(tmp_path: Path) -> None:
    command = test_backup.EVIDENCE["backup-sources"].replace(test_backup.CONFIG, str(tmp_path / "config")).replace(test_backup.STATE, str(tmp_path))
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\necho active\n")
    systemctl.chmod(0o755)

    def read() -> Output:
        return evidence.gather(Shell(), {"it": f"PATH={tmp_path}:$PATH; {command}"})["it"]  # type: ignore[arg-type]

    assert (read().rc, read().lines) == (0, [])
    (tmp_path / "config").mkdir()
    assert (read().rc, read().lines) == (0, [])
    (tmp_path / "config" / "a.json").write_text("{}")
    (tmp_path / "config" / "b.json").write_text("{}")
    (tmp_path / "b.json").write_text('{\n  "failure": "x"\n}\n')
    first, second = map(test_backup.parsed, read().lines)
    assert (first.name, first.state, first.run.since > timedelta(days=365)) == ("a", {}, True)
    assert (second.name, second.state) == ("b", {"failure": "x"})


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
