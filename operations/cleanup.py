"""
Space back from a Docker host, without taking what its jobs, its way back or anybody else needs.

``docker system prune`` takes idle images that the next job wants, every image of the last release, stopped databases
and the build cache of others. Here one program on the host (``files/cleanup/cleanup.py``) knows what is ours, what is
in use, what was in use lately and what the way back needs; all else of ours goes. It is the same program by hand, by
schedule and for the plan.
"""

import json
import re
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pyinfra import host
from pyinfra import state as run_state
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.cleanup import PROGRAM, CleanupPlan, Plan, Unplanned
from operations import fileset, script, template, unit
from operations import schedule as schedules
from operations.fileset import Absent, Directory, File
from operations.schedule import Sandbox

CONFIG = "/etc/hostwright/cleanup.json"
STATE = "/var/lib/hostwright/cleanup"
RUN = "/run/hostwright"
JOB = "hostwright-docker-cleanup"
JOURNAL = "hostwright-docker-journal.service"

_PROGRAM_SOURCE = Path(__file__).parents[1] / "files" / "cleanup" / "cleanup.py"
_TMPFILES = "/etc/tmpfiles.d/hostwright-containers.conf"
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
# What a deploy has just fetched and does not run yet must not go.
_LEAST = 3600
_LOCK_SECONDS = 900
_TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class Pressure:
    """
    When the disk fills up, less is kept; the rules stay the same.

    + percent: from which use of the engine's file system on; + releases: how many of each component stay then
    + unused: what was used less long ago stays then
    """

    percent: int = 85
    releases: int = 2
    unused: str = "6h"


def span_seconds(text: object, what: str) -> int:
    """Return the seconds of ``'90m'``, ``'24h'``, ``'7d'`` or ``'2w'``. Raise ``ValueError`` for anything else."""
    if isinstance(text, int):
        raise ValueError(f"{what} needs a unit: write {text}h or {text}d, got {text!r}")
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhdw])", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"{what} must be a span such as '90m', '24h', '7d' or '2w', got {text!r}")
    seconds = int(found[1]) * _UNITS[found[2]]
    if seconds < _LEAST:
        raise ValueError(
            f"{what} must be at least an hour: what was just fetched for a deploy is not used yet, got {text!r}"
        )
    return seconds


def policy_faults(
    ours: Sequence[str],
    keep_images: Sequence[str],
    releases: int,
    unused: str,
    job_label: str,
    job_limit: str,
    pressure: Pressure,
    every_hours: int,
) -> list[str]:
    """Return every rule that a policy breaks, one line each."""
    faults = []
    for word, patterns in (("ours", ours), ("keep_images", keep_images)):
        if isinstance(patterns, str):
            faults.append(f"{word} must be a list, got {patterns!r}")
            continue
        faults += [
            f"{word}: must be a name or pattern without blanks, got {pattern!r}"
            for pattern in patterns
            if not isinstance(pattern, str) or not pattern or re.search(r"\s", pattern)
        ]
    if not isinstance(ours, str):
        faults += [
            f"ours: {pattern!r} would make images of everybody ours; name a registry, a path or a label"
            for pattern in ours
            if re.fullmatch(r"[*?/]+|docker\.io/\*+|label:=?", pattern)
        ]
    if releases < 2:
        faults.append(f"releases must be at least 2, the one that runs and the way back, got {releases!r}")
    if pressure.releases < 2 or pressure.releases > max(2, releases):
        faults.append(f"pressure.releases must be from 2 to releases ({releases}), got {pressure.releases!r}")
    if not 1 <= pressure.percent <= 100:
        faults.append(f"pressure.percent must be from 1 to 100, got {pressure.percent!r}")
    if job_label and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", job_label):
        faults.append(f"job_label must be the key of a label such as 'shop.job', got {job_label!r}")
    if every_hours not in (1, 2, 3, 4, 6, 8, 12, 24):
        faults.append(f"every_hours must divide a day: 1, 2, 3, 4, 6, 8, 12 or 24, got {every_hours!r}")
    for what, text in (("unused", unused), ("job_limit", job_limit), ("pressure.unused", pressure.unused)):
        try:
            span_seconds(text, what)
        except ValueError as error:
            faults.append(str(error))
    return faults


def policy_text(
    ours: Sequence[str],
    keep_images: Sequence[str],
    releases: int,
    unused: str,
    job_label: str,
    job_limit: str,
    pressure: Pressure,
) -> str:
    """Return the JSON that the program reads."""
    tight = {**asdict(pressure), "unused_seconds": span_seconds(pressure.unused, "pressure.unused")}
    del tight["unused"]
    values = {
        "ours": list(ours),
        "keep_images": list(keep_images),
        "releases": releases,
        "unused_seconds": span_seconds(unused, "unused"),
        "job_label": job_label,
        "job_seconds": span_seconds(job_limit, "job_limit"),
        "lock_seconds": _LOCK_SECONDS,
        "pressure": tight,
    }
    return json.dumps(values, indent=1) + "\n"


def plan_lines(plan: Plan) -> list[str]:
    """Return a plan for the operator: what goes first."""
    lines = [
        f"{plan.percent} % of the engine's disk is used{': pressed' if plan.pressed else ''}; kept are "
        f"{plan.releases} releases and what was used in the last {plan.unused_seconds // 3600} h"
    ]
    for thing in sorted(plan.things, key=lambda each: (not each.goes, each.kind, each.name)):
        size = f" ({thing.size / 1e6:.1f} MB)" if thing.kind == "image" else ""
        lines.append(f"{'goes ' if thing.goes else 'stays'} {thing.kind} {thing.name}{size}: {thing.why}")
    return [*lines, f"{len(plan.going)} of {len(plan.things)} go"]


def _show(lines: Sequence[str]) -> None:
    """Show it once: in the plan when there is one, else when it is executed."""
    if not (run_state.is_executing and run_state.check_for_changes):
        for line in lines:
            host.log(line)


@operation()
def docker(until: str = "", dry: bool = False) -> Generator[StringCommand, None, None]:
    """
    Clean up the host's Docker engine now, by the policy that ``cleanup.schedule`` declared.

    + until: what was used or fetched less long ago stays: ``24h``, ``7d``; without it the policy's own time, which
      disk pressure shortens
    + dry: only show what would go, what would stay and why, as ``pyinfra --dry`` does

    Waits for a deploy of containers that is under way. No change when nothing is to go.

    Raises ``OperationValueError`` for an ``until`` without unit (``until=24`` could be hours or days), ``OperationError``
    where no cleanup is declared.

    **Example:**

    .. code:: shell

        pyinfra inventories/prod.py operations.cleanup.docker until=24h
    """
    seconds = -1
    if until != "":
        try:
            seconds = span_seconds(until, "until")
        except ValueError as error:
            raise OperationValueError(f"cleanup.docker: {error}") from None
    if not isinstance(dry, bool):
        raise OperationValueError(f"cleanup.docker: dry must be true or false, got {dry!r}")
    plan = host.get_fact(CleanupPlan, until=seconds)
    if plan is None:
        raise OperationError("cleanup.docker: no cleanup is declared on this host (cleanup.schedule)")
    if isinstance(plan, Unplanned):
        raise OperationError(f"cleanup.docker: {plan.why}")
    if dry or not plan.going:
        _show(plan_lines(plan))
        host.noop("dry: nothing is removed" if dry else "nothing is to be removed: 0 bytes won")
        return
    if not run_state.is_executing:
        _show(plan_lines(plan))
    yield script.Told(f"{PROGRAM} run" + (f" --until {seconds}" if seconds >= 0 else ""))


@operation()
def schedule(
    ours: Sequence[str] = (),
    keep_images: Sequence[str] = (),
    releases: int = 3,
    unused: str = "7d",
    job_label: str = "",
    job_limit: str = "25h",
    pressure: Pressure = Pressure(),
    every_hours: int = 6,
    by: str = "timer",
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Declare what the cleanup of the host's Docker engine keeps, and run it every few hours.

    + ours: which images are ours: name patterns (``registry.example.org/shop/*``) and labels (``label:org.shop`` or
      ``label:key=value``). All other images stay; without any, every image stays
    + keep_images: images that stay although nothing runs them, by name or pattern: those that jobs start
    + releases: how many releases of each component stay; at least 2
    + unused: what was used or fetched less long ago stays (``24h``, ``7d``)
    + job_label: key of the label that containers and networks carry which a job made for itself; empty: there are none
    + job_limit: those that are older are orphans and go, running or not
    + pressure: less is kept when the engine's disk is fuller than that
    + every_hours: 1, 2, 3, 4, 6, 8, 12 or 24
    + by: ``timer`` or ``cron``; the other one is removed
    + present: ``False`` removes schedule, journal and program; nothing of the engine is touched

    Images of containers (running or stopped), of stored releases, and those that a variable ``…_IMAGE`` of a container
    names stay without being declared. Volumes, build cache, and networks and containers of others are never touched.
    A small service notes which images containers are made from, because the engine does not remember it.

    Raises ``OperationValueError`` for a policy that breaks a rule, all faults in one message.

    **Example:**

    .. code:: python

        cleanup.schedule(
            ours=["registry.example.org/shop/*"], keep_images=[settings.shop.job_image], job_label="shop.job",
            name="Schedule the cleanup of images",
        )
    """
    if not present:
        yield from schedules.job._inner(job=JOB, present=False)
        yield from unit.unit._inner(unit=JOURNAL, running=False, enabled=False)
        yield from fileset.files._inner(
            entries=[Absent(path) for path in (f"{schedules.UNITS}/{JOURNAL}", CONFIG, PROGRAM, _TMPFILES)]
        )
        return
    faults = policy_faults(ours, keep_images, releases, unused, job_label, job_limit, pressure, every_hours)
    if faults:
        raise OperationValueError("cleanup.schedule: " + "; ".join(faults))
    service = f"{schedules.UNITS}/{JOURNAL}"
    yield from fileset.files._inner(
        entries=[
            Directory("/etc/hostwright", mode="0755"),
            Directory("/var/lib/hostwright", mode="0700"),
            Directory(STATE, mode="0700"),
            # of the lock of all deploys of containers: the job cannot make it after a boot
            File(_TMPFILES, f"d {RUN} 0755 root root\n"),
            File(CONFIG, policy_text(ours, keep_images, releases, unused, job_label, job_limit, pressure)),
            File(PROGRAM, _PROGRAM_SOURCE.read_text(), mode="0755"),
            File(service, template.render("cleanup/hostwright-docker-journal.service.j2", program=PROGRAM)),
        ]
    )
    yield from unit.unit._inner(unit=JOURNAL, inputs=[service, PROGRAM, CONFIG])
    yield from schedules.job._inner(
        job=JOB,
        command=[PROGRAM, "run"],
        # not at the full hour, when everything else runs
        when=f"0/{every_hours}:17" if every_hours < 24 else "00:17",
        by=by,
        timeout_seconds=_LOCK_SECONDS + _TIMEOUT_SECONDS,
        sandbox=Sandbox(writable=(RUN, STATE)),
        description="cleanup of Docker images",
    )
