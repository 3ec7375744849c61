"""Calendars, command lines and arguments of `operations.schedule`."""

import pytest

from operations.schedule import Calendar, Sandbox, calendar, exec_words, job_faults
from operations.template import render


@pytest.mark.parametrize(
    ("when", "on_calendar", "crontab"),
    [
        ("02:00", "*-*-* 02:00:00", "0 2 * * *"),
        ("23:09", "*-*-* 23:09:00", "9 23 * * *"),
        ("Sun 04:00", "Sun *-*-* 04:00:00", "0 4 * * 0"),
        ("Mon,Thu 04:30", "Mon,Thu *-*-* 04:30:00", "30 4 * * 1,4"),
        ("Mon..Fri 04:30", "Mon..Fri *-*-* 04:30:00", "30 4 * * 1,2,3,4,5"),
        ("Sat..Sun,Thu 04:30", "Sat..Sun,Thu *-*-* 04:30:00", "30 4 * * 0,4,6"),
        ("*-*-15 03:30", "*-*-15 03:30:00", "30 3 15 * *"),
        ("*-03-01 00:00:00", "*-03-01 00:00:00", "0 0 1 3 *"),
        ("02:00:30", "*-*-* 02:00:30", ""),
        ("Mon *-*-01 02:00", "Mon *-*-01 02:00:00", ""),
        ("0/6:17", "*-*-* 00/6:17:00", "17 */6 * * *"),
        ("*:05", "*-*-* *:05:00", "5 * * * *"),
        ("*:0/10", "*-*-* *:00/10:00", "*/10 * * * *"),
    ],
)
def test_calendar_says_the_same_to_systemd_and_cron(when: str, on_calendar: str, crontab: str) -> None:
    assert calendar(when) == Calendar(on_calendar, crontab)


@pytest.mark.parametrize(
    "when",
    ["", "2:00", "24:00", "02:60", "daily", "Sun", "sun 04:00", "Sun, 04:00", "15 03:00", "*-*-32 03:00",
     "*:0/7", "*:0/0", "0/5:00", "0/0:00", "1/6:00", "0/6:60", "2026-01-01 02:00", " 02:00", "02:00 ", "02:00\n"],
)  # fmt: skip
def test_calendar_refuses_what_is_no_such_moment(when: str) -> None:
    with pytest.raises(ValueError, match="when must be 'HH:MM'"):
        calendar(when)


def test_calendar_refuses_a_range_past_sunday() -> None:
    with pytest.raises(ValueError, match="may not run past Sunday"):
        calendar("Sat..Mon 04:30")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/bin/true"], "/bin/true"),
        (["/bin/echo", "a b", ""], '/bin/echo "a b" ""'),
        (["/bin/date", "+%s"], '/bin/date "+%%s"'),
        (["/bin/echo", "$HOME", ";"], '/bin/echo "$$HOME" ";"'),
        (["/bin/echo", 'say "hi" \\n'], '/bin/echo "say \\"hi\\" \\\\n"'),
    ],
)
def test_exec_words_keep_every_argument_literal(command: list[str], words: str) -> None:
    assert exec_words(command) == words


@pytest.mark.parametrize(
    "command", [[], ["true"], ["-/bin/true"], ["/bin/echo", "a\nb"], ["/bin/echo", "a\x00"]]
)
def test_exec_words_refuse_what_systemd_cannot_carry(command: list[str]) -> None:
    with pytest.raises(ValueError, match="command"):
        exec_words(command)


def test_job_faults_are_all_listed() -> None:
    faults = job_faults("report", when="noon", by="at", command=["report"], timeout_seconds=0)
    assert len(faults) == 4
    assert all(fault.startswith("report: ") for fault in faults)
    assert job_faults("report", when="12:00", by="cron", command=["/bin/true"], timeout_seconds=1) == []
    assert job_faults("report", when="12:00:30", by="timer", command=["/bin/true"], timeout_seconds=1) == []
    (fault,) = job_faults("report", when="12:00:30", by="cron", command=["/bin/true"], timeout_seconds=1)
    assert "cron cannot say" in fault


def _service(sandbox: Sandbox) -> list[str]:
    text = render(
        "schedule/job.service.j2", job="j", description="j", at=calendar("02:00"),
        exec_start="/bin/true", user="root", timeout_seconds=5, sandbox=sandbox,
    )  # fmt: skip
    return text.splitlines()


def test_service_is_closed_unless_something_is_named() -> None:
    closed = _service(Sandbox())
    assert {
        "PrivateNetwork=true",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "TimeoutStartSec=5",
    } <= set(closed)
    assert not any(line.startswith(("ReadWritePaths=", "CacheDirectory=")) for line in closed)


def test_service_opens_what_is_named() -> None:
    lines = _service(
        Sandbox(writable=("/srv/a", "/srv/b"), network=True, capabilities=("CAP_CHOWN",), cache="x")
    )
    assert {"ReadWritePaths=-/srv/a -/srv/b", "CapabilityBoundingSet=CAP_CHOWN", "CacheDirectory=x"} <= set(
        lines
    )
    assert "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6" in lines
    assert not any(line.startswith("PrivateNetwork") for line in lines)


def test_service_on_loopback_reaches_this_host_alone() -> None:
    lines = _service(Sandbox(loopback=True))
    assert {"IPAddressDeny=any", "IPAddressAllow=localhost", "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"} <= set(lines)
    assert not any(line.startswith(("PrivateNetwork", "Wants=network-online")) for line in lines)
    assert not any(line.startswith("IPAddressAllow") for line in _service(Sandbox(network=True)) + _service(Sandbox()))
