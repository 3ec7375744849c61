"""
A command that runs on a calendar: one sandboxed service, and exactly one thing that starts it.

The service is always a systemd unit, so a job has one sandbox, one journal, one visible failure (``systemctl --failed``)
and never overlaps itself, whichever of the two starts it: a systemd timer, or a line in ``/etc/cron.d`` for hosts whose
owner wants all schedules there.
"""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pyinfra.api import OperationValueError, StringCommand, operation

from operations import fileset, template, unit
from operations.fileset import Absent, File

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
STARTERS = ("timer", "cron")
UNITS = "/etc/systemd/system"

_WHEN_FORMS = (
    "'HH:MM' (daily), 'Sun HH:MM', 'Mon,Thu HH:MM' or 'Mon..Fri HH:MM' (weekly), '*-*-15 HH:MM' (monthly), "
    "'0/N:MM' (every N hours, N divides 24), '*:MM' (hourly) or '*:0/N' (every N minutes, N divides 60)"
)
# cron reads a file of /etc/cron.d only when its name has none but these characters (man cron, "run-parts" rules).
_JOB = re.compile(r"[a-z0-9][a-z0-9_-]*")
_DAY = f"(?:{'|'.join(DAYS)})"
_MOMENT = re.compile(
    rf"(?:(?P<days>{_DAY}(?:(?:,|\.\.){_DAY})*) )?"
    r"(?:\*-(?P<month>\*|0[1-9]|1[0-2])-(?P<date>\*|0[1-9]|[12]\d|3[01]) )?"
    r"(?P<hour>[01]\d|2[0-3]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?"
)
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:=,@+-]+")


@dataclass(frozen=True)
class Sandbox:
    """
    What a job may do; everything that is not named here is closed.

    + writable: paths it may write to besides its own /tmp; a missing one is skipped
    + network: whether it may open sockets to other hosts; + loopback: or to this host alone
    + home: whether it may read ``/root`` and ``/home``, e.g. an ssh key
    + capabilities: what is left of root's rights, e.g. ``("CAP_CHOWN",)``
    + system_calls: groups allowed besides ``@system-service``, which lacks e.g. ``@setuid``
    + cache: name below ``/var/cache`` of a directory that systemd makes for it, or empty
    """

    writable: Sequence[str] = ()
    network: bool = False
    loopback: bool = False
    home: bool = False
    capabilities: Sequence[str] = ()
    system_calls: Sequence[str] = ()
    cache: str = ""


@dataclass(frozen=True)
class Calendar:
    """
    A moment that comes back, as both schedulers write it.

    + on_calendar: for ``OnCalendar=``
    + crontab: the five fields of cron; empty for what cron cannot say
    """

    on_calendar: str
    crontab: str


def calendar(when: str) -> Calendar:
    """
    Translate ``when`` for systemd and for cron; times are in the host's time zone.

    The message of the ``ValueError`` names the forms. cron knows no seconds, and takes a day of the week and a day of
    the month together as *or*, where systemd means *and*.
    """
    if moment := _MOMENT.fullmatch(when):
        days, month, date = moment["days"] or "", moment["month"] or "*", moment["date"] or "*"
        hour, minute, second = moment["hour"], moment["minute"], moment["second"] or "00"
        on_calendar = f"{days} *-{month}-{date} {hour}:{minute}:{second}".strip()
        if second != "00" or (days and date != "*"):
            return Calendar(on_calendar, "")
        fields = [str(int(text)) if text != "*" else text for text in (minute, hour, date, month)]
        return Calendar(on_calendar, " ".join([*fields, _cron_days(days)]))
    if hourly := re.fullmatch(r"\*:([0-5]\d)", when):
        return Calendar(f"*-*-* *:{hourly[1]}:00", f"{int(hourly[1])} * * * *")
    if (hours := re.fullmatch(r"0/([1-9]\d?):([0-5]\d)", when)) and 24 % int(hours[1]) == 0:
        return Calendar(f"*-*-* 00/{int(hours[1])}:{hours[2]}:00", f"{int(hours[2])} */{int(hours[1])} * * *")
    if (every := re.fullmatch(r"\*:0/([1-9]\d?)", when)) and 60 % int(every[1]) == 0:
        return Calendar(f"*-*-* *:00/{int(every[1])}:00", f"*/{int(every[1])} * * * *")
    raise ValueError(f"when must be {_WHEN_FORMS}, got {when!r}")


def _cron_days(days: str) -> str:
    numbers: list[int] = []
    for part in days.split(",") if days else ():
        first, *last = (DAYS.index(name) for name in part.split(".."))
        end = last[-1] if last else first
        if end < first:
            raise ValueError(
                f"when: a range of days may not run past Sunday (systemd refuses it), got {part!r}"
            )
        numbers += [(day + 1) % 7 for day in range(first, end + 1)]
    return ",".join(map(str, sorted(set(numbers)))) or "*"


def exec_words(command: Sequence[str]) -> str:
    """
    Return the value of ``ExecStart=`` that runs exactly these arguments.

    systemd expands ``%`` and ``$`` and strips quotes and backslashes (systemd.service(5), "Command lines"). Raises
    ``ValueError`` for what it cannot carry: an argument with a control character, a program without absolute path.
    """
    if not command or not command[0].startswith("/"):
        raise ValueError(f"command must start with the absolute path of a program, got {list(command)!r}")
    words = []
    for argument in command:
        if any(ord(sign) < 32 or ord(sign) == 127 for sign in argument):
            raise ValueError(f"command: an argument may not hold control characters, got {argument!r}")
        text = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
        words.append(argument if _PLAIN_WORD.fullmatch(argument) else f'"{text}"')
    return " ".join(words)


def job_faults(job: str, when: str, by: str, command: Sequence[str], timeout_seconds: int) -> list[str]:
    """Return every rule that the arguments of a present job break, one line each."""
    faults = []
    if by not in STARTERS:
        faults.append(f"by must be 'timer' or 'cron', got {by!r}")
    if timeout_seconds < 1:
        faults.append(f"timeout_seconds must be at least 1, got {timeout_seconds!r}")
    for check, value in ((calendar, when), (exec_words, command)):
        try:
            check(value)  # type: ignore[arg-type]
        except ValueError as error:
            faults.append(str(error))
    if by == "cron" and not faults and not calendar(when).crontab:
        faults.append(f"cron cannot say {when!r}: use by='timer'")
    return [f"{job}: {fault}" for fault in faults]


@operation()
def job(
    job: str,
    command: Sequence[str] = (),
    when: str = "",
    by: str = "timer",
    user: str = "root",
    timeout_seconds: int = 3600,
    sandbox: Sandbox = Sandbox(),
    description: str = "",
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Manage a command that runs on a calendar.

    + job: its name: ``<job>.service`` and ``<job>.timer`` or ``/etc/cron.d/<job>``; lower case, digits, ``-`` and ``_``
    + command: program with absolute path, then its arguments; no shell reads them
    + description: what ``systemctl status`` and the log call it; its name when empty
    + when: ``'02:00'``, ``'Sun 04:00'``, ``'Mon..Fri 04:00'``, ``'*-*-01 03:30'``, ``'0/6:17'``, ``'*:15'``, ``'*:0/10'``, in the host's time zone
    + by: ``timer`` (a run that a powered-off host missed is made up for) or ``cron`` (it is not)
    + user: who runs it
    + timeout_seconds: after that it is killed and the run has failed
    + sandbox: what it may write and reach
    + present: ``False`` removes the job from both schedulers; a run that is under way ends by itself

    Raises ``OperationValueError`` for arguments that break a rule.

    **Example:**

    .. code:: python

        schedule.job("report", command=["/usr/local/bin/report", "--daily"], when="06:30", name="Schedule report")
    """
    if not _JOB.fullmatch(job):
        raise OperationValueError(
            f"schedule.job: job must be lower case letters, digits, '-' and '_', got {job!r}"
        )
    timer, service = f"{job}.timer", f"{job}.service"
    timer_path, service_path, cron_path = f"{UNITS}/{timer}", f"{UNITS}/{service}", f"/etc/cron.d/{job}"

    if not present:
        yield from unit.unit._inner(unit=timer, running=False, enabled=False)
        yield from fileset.files._inner(
            entries=[Absent(cron_path), Absent(timer_path), Absent(service_path)],
            # else a job that failed before it was removed stands in `systemctl --failed` until the next boot
            apply=f"systemctl reset-failed {service} 2>/dev/null || :",
        )
        return

    faults = job_faults(job, when, by, command, timeout_seconds)
    if faults:
        raise OperationValueError("schedule.job: " + "; ".join(faults))
    at = calendar(when)
    values = {"job": job, "description": description or job, "at": at}
    service_text = template.render(
        "schedule/job.service.j2",
        **values,
        exec_start=exec_words(command),
        user=user,
        timeout_seconds=timeout_seconds,
        sandbox=sandbox,
    )
    entries: list[fileset.Entry] = [File(service_path, service_text)]
    if by == "timer":
        entries += [File(timer_path, template.render("schedule/job.timer.j2", **values)), Absent(cron_path)]
    else:
        # first the timer, else a run that dies in between leaves two starters
        yield from unit.unit._inner(unit=timer, running=False, enabled=False)
        entries += [Absent(timer_path), File(cron_path, template.render("schedule/job.cron.j2", **values))]

    yield from fileset.files._inner(entries=entries, validate=_verify(service), within=UNITS)
    if by == "timer":
        yield from unit.unit._inner(unit=timer, inputs=[timer_path])
    else:
        yield from unit.unit._inner(unit="cron.service")


def _verify(service: str) -> str:
    # Without the option systemd 250 and later exit 0 whatever they find; older ones do not know it and exit 1.
    return (
        f"recursive=; systemd-analyze --help | grep -q -- --recursive-errors && recursive=--recursive-errors=no; "
        f"systemd-analyze verify $recursive {UNITS}/{service}"
    )
