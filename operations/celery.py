"""
Celery workers as instances of one systemd template: ``APP@1.service`` to ``APP@N.service``.

A new release, a changed variable, another number: all go the same way. One instance is restarted first, warmly (it finishes
its tasks), and asked by Celery itself whether it answers; only then the others follow. When it does not, the old files are
put back, and the others never were on the new ones.
"""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pyinfra import host
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.celery import PROGRAM, CeleryWorkers
from operations import fileset, schedule, script
from operations.fileset import Directory, Entry, File
from settings.env import render
from settings.secret import Secret

_APP = re.compile(r"[a-z][a-z0-9-]{0,40}")
_QUEUE = re.compile(r"[A-Za-z0-9_.-]+")
_PATH = re.compile(r"(/[A-Za-z0-9._@+-]+)+")
_CELERY_APP = re.compile(r"[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Worker:
    """
    One instance.

    + queues: that it takes tasks from; + concurrency: how many at a time

    Its unit reads them as ``CELERY_QUEUES`` and ``CELERY_CONCURRENCY``.
    """

    queues: tuple[str, ...] = ("celery",)
    concurrency: int = 1


@dataclass(frozen=True)
class Program:
    """
    How Celery is asked about its workers.

    + python: of the release's virtual environment: ``python -m celery`` asks; + celery_app: as after ``--app``
    + directory: where the application is imported from; + user: of the workers
    + node: what ``--hostname`` has before the instance's number: ``worker`` of ``worker%i@%%H``
    + env_files: further ``EnvironmentFile=`` of the unit, which somebody else writes, as ``s3.user`` does: when one changes,
      the instances are restarted as for any other change
    """

    python: str
    celery_app: str
    directory: str
    user: str
    node: str = "worker"
    env_files: tuple[str, ...] = ()


def names(app: str, env_files: Sequence[str] = ()) -> dict[str, str]:
    """
    Return what the template is written with.

    + env_files: those of ``Program``
    + app; + env_file, instance_file: ``EnvironmentFile=`` of all instances and of one
    + stamp: shell command that must run as root before the worker: it writes down what the worker reads
    """
    unit, env = f"/etc/systemd/system/{app}@.service", f"/etc/{app}"
    return {
        "app": app,
        "env_file": f"{env}/env",
        "instance_file": f"{env}/%i.env",
        "stamp": (
            f"mkdir -p /run/hostwright && cat {' '.join([unit, f'{env}/env', f'{env}/%i.env', *env_files])} "
            f"{unit}.d/*.conf 2>/dev/null | sha256sum "
            f">/run/hostwright/{app}@%i.started"
        ),
    }


def faults(app: str, service: str, workers: Sequence[Worker], program: Program | None, start_seconds: int) -> list[str]:
    """Return every rule that is broken, one line each."""
    found = []
    if not _APP.fullmatch(app):
        found.append(f"app must be lower case letters, digits and '-', got {app!r}")
    env_files = program.env_files if program else ()
    missing = [key for key in ("env_file", "instance_file", "stamp") if names(app, env_files)[key] not in service]
    if missing:
        found.append(f"the service does not use {', '.join(missing)}")
    if re.search(r"--hostname[= ]\S*(?<!%)%[hH]", service):
        found.append("the service: systemd replaces %h and %H before Celery sees them: write %%h or %%H")
    if re.search(r"^Type=(forking|oneshot)", service, re.M):
        found.append("the service: a worker stays in the foreground: write Type=exec")
    for number, one in enumerate(workers, 1):
        found += [f"worker {number}: not a queue: {queue!r}" for queue in one.queues or ("",) if not _QUEUE.fullmatch(queue)]
        if not 1 <= one.concurrency <= 512:
            found.append(f"worker {number}: concurrency must be 1 to 512, got {one.concurrency!r}")
    if len(workers) > 64:
        found.append(f"workers: at most 64 on a host, got {len(workers)}")
    if program is None:
        found.append("program is needed")
    else:
        rules = {"python": _PATH, "directory": _PATH, "celery_app": _CELERY_APP, "user": _USER, "node": _APP}
        found += [
            f"program.{key}: not good: {getattr(program, key)!r}" for key, rule in rules.items() if not rule.fullmatch(getattr(program, key))
        ]
        found += [f"program.env_files: not a path: {path!r}" for path in program.env_files if not _PATH.fullmatch(path)]
        found += [f"the service does not read {path}" for path in program.env_files if f"EnvironmentFile={path}" not in service]
    if start_seconds < 1:
        found.append(f"start_seconds must be at least 1, got {start_seconds!r}")
    return found


@operation()
def workers(
    app: str,
    service: str,
    environment: Secret,
    workers: Sequence[Worker] = (Worker(),),
    program: Program | None = None,
    start_seconds: int = 60,
    check_when: str = "*:0/1",
) -> Generator[StringCommand, None, None]:
    """
    Run these workers on the host, and no others of this name.

    + app: instances are ``APP@1.service`` and so on
    + service: text of ``APP@.service``, written with ``names(app)``. Its stop timeout must be above the tasks' limit
    + environment: content of ``/etc/APP/env`` (0600), as systemd reads it
    + workers: one for each instance; none ends all
    + program: how Celery is asked
    + start_seconds: to the first answer of a restarted instance
    + check_when: how often hung ones are looked for, see ``schedule.job``: an instance that does not answer three times in a
      row, while the broker does, is killed and starts anew

    Instances that are too many take no new task and end when they have finished theirs, after the run.

    Raises ``OperationValueError`` for arguments that break a rule, all in one message.

    **Example:**

    .. code:: python

        celery.workers(
            "shop-worker",
            service=template.render("shop/shop-worker@.service.j2", release=path, **celery.names("shop-worker")),
            environment=Secret(render(variables, consumer="systemd")),
            workers=[Worker(("celery",), 2), Worker(("mail",), 1)],
            program=Program(f"{path}/venv/bin/python", "shop.celery", f"{path}/src", "shop"),
            name="Roll out workers",
        )
    """
    found = faults(app, service, workers, program, start_seconds)
    if found or program is None:
        raise OperationValueError("celery.workers: " + "; ".join(found))
    conf = "".join(
        f"{key}={value}\n"
        for key, value in {
            **vars(program),
            "env_files": " ".join(program.env_files),
            "count": len(workers),
            "start_seconds": start_seconds,
        }.items()
        if value != ""
    )
    instances: list[Entry] = [
        File(
            f"/etc/{app}/{number}.env",
            render({"CELERY_QUEUES": ",".join(one.queues), "CELERY_CONCURRENCY": str(one.concurrency)}, consumer="systemd"),
        )
        for number, one in enumerate(workers, 1)
    ]
    yield from fileset.files._inner(
        entries=[
            Directory("/var/lib/hostwright", mode="0700"),
            File(PROGRAM, (script.FILES / "celery/celery-workers.sh").read_text(), mode="0755"),
        ]
    )
    yield from fileset.files._inner(
        entries=[
            *instances,
            File(f"/etc/{app}/env", environment, mode="0600"),
            File(f"/etc/{app}/workers.conf", conf),
            File(f"/etc/systemd/system/{app}@.service", service),
        ],
        apply=f"{PROGRAM} apply {app}",
    )
    if not host.get_fact(CeleryWorkers, app=app).is_right(len(workers)):
        yield StringCommand(PROGRAM, "apply", app)
    # systemd is asked by its socket: it needs no right of its own for what it has done there
    yield from schedule.job._inner(
        job=f"{app}-check",
        command=[PROGRAM, "check", app],
        when=check_when,
        timeout_seconds=120,
        sandbox=schedule.Sandbox(writable=("/run/hostwright",)),
        description=f"look for hung workers of {app}",
    )


@operation(is_idempotent=False)
def rollback(app: str) -> Generator[StringCommand, None, None]:
    """
    Run the workers on the release, unit and variables of before, in the number that they are now.

    + app: as for ``workers``

    What does not come up well is taken back. Running it twice comes back to where it started.

    Raises ``OperationError`` when there is no earlier release on the host.
    """
    if not host.get_fact(CeleryWorkers, app=app).previous:
        raise OperationError(f"celery.rollback: {app} has no earlier release on this host to go back to")
    yield script.Told(PROGRAM, "rollback", app)
