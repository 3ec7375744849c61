"""What is asked of a CI host: its runners are up on the pinned release, one job's user cannot become more, the token is root's, it is cleaned."""

from __future__ import annotations

import ipaddress

from operations.ci_runner import release_id
from settings import CiRunner, Host
from tests.verify.conftest import Machine

SYSTEM = "ci_runner"
MOST_EXPOSURE = 1.5


def _runner(settings: Host) -> CiRunner:
    assert settings.ci_runner is not None
    return settings.ci_runner


def _units(settings: Host) -> str:
    return f"""for number in $(seq {_runner(settings).count}); do
unit=ci-runner@$number.service
echo $(systemctl show -p ActiveState -p UnitFileState --value $unit) $(systemd-analyze security --no-pager $unit | sed -n 's/.*: \\([0-9.]*\\) .*/\\1/p' | tail -n 1)
done"""


def _networks(settings: Host) -> str:
    return "systemctl show -p IPAddressDeny --value ci-runner@1.service" if _runner(settings).count else "true"


EVIDENCE = {
    "ci_runner_networks": _networks,
    "ci_runner_releases": "ls /opt/ci-runner",
    "ci_runner_sweep": "systemctl show -p UnitFileState -p ActiveState --value ci-runner-sweep.timer; systemctl show -p Result --value ci-runner-sweep.service",
    "ci_runner_units": _units,
    "ci_runner_token": "stat -c '%a %U %n' /etc/hostwright/ci-runner /etc/hostwright/ci-runner/token",
    "ci_runner_users": "for user in $(getent passwd | grep -o '^ci-runner-[0-9]*'); do id -Gn $user; getent shadow $user | cut -d: -f2; done",
}


def test_runners_are_up_and_sealed(machine: Machine) -> None:
    settings = _runner(machine.settings)
    lines = machine.lines("ci_runner_units")
    assert len(lines) == settings.count
    for line in lines:
        active, enabled, exposure = line.split()
        # between two jobs an ephemeral one is on its way up
        assert active in ("active", "activating")
        assert enabled == "enabled"
        assert settings.docker or float(exposure) <= MOST_EXPOSURE


def test_jobs_are_kept_from_private_networks(machine: Machine) -> None:
    settings = _runner(machine.settings)
    told = {ipaddress.ip_network(word) for word in machine.text("ci_runner_networks").split()}
    assert not settings.count or {ipaddress.ip_network(one) for one in settings.denied_networks} <= told


def test_the_pinned_release_is_the_only_one(machine: Machine) -> None:
    settings = _runner(machine.settings)
    [release] = machine.lines("ci_runner_releases")
    assert release in {release_id(settings.version, one) for one in settings.sha256.values()}


def test_the_host_is_cleaned_every_night(machine: Machine) -> None:
    state = [word for line in machine.lines("ci_runner_sweep") for word in line.split()]
    assert sorted(state) == ["active", "enabled", "success"]


def test_the_token_is_roots(machine: Machine) -> None:
    assert machine.lines("ci_runner_token") == [
        "700 root /etc/hostwright/ci-runner",
        "600 root /etc/hostwright/ci-runner/token",
    ]


def test_users_have_no_password_and_no_further_group(machine: Machine) -> None:
    lines = machine.lines("ci_runner_users")
    for groups, password in zip(lines[::2], lines[1::2], strict=True):
        assert len(groups.split()) == 1, groups
        assert password.startswith(("!", "*"))
