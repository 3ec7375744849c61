"""What is asked of a CI host: its runners are up, one job's user cannot become more, and the token is root's."""

from __future__ import annotations

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


EVIDENCE = {
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
