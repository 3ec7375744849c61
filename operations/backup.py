"""
Backups of what a system cannot get back from anywhere else: declared, scheduled, drilled, restored.

The work is done on the host by one program (``files/backup/backup.py``), which also runs when the control machine does
not. Here its sources are declared, its repositories are opened, its two jobs are scheduled, and it is asked to do
something now.
"""

import json
import re
import shlex
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.backup import CONFIG, STATE, BackupSources
from operations import dpkg, fileset, schedule, script
from operations.fileset import Absent, Directory, File
from operations.schedule import Sandbox
from settings import Backup
from settings.env import render
from settings.secret import Secret

PROGRAM = "/usr/local/lib/hostwright/backup"
WORK = "/var/cache/hostwright"
TEXTFILES = "/var/lib/prometheus/node-exporter"
KINDS = ("sqlite", "directory")

_PROGRAM_SOURCE = Path(__file__).parents[1] / "files" / "backup" / "backup.py"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
# restic is to stop by itself and let go of its locks before systemd stops it.
_TIMEOUT_SECONDS = 4 * 3600
_MARGIN_SECONDS = 120


def source_faults(
    source: str, kind: str, path: str, mode: str, minimum: Mapping[str, int], units: Sequence[str]
) -> list[str]:
    """Return every rule that the declaration breaks, one line each."""
    faults = []
    if not _NAME.fullmatch(source):
        faults.append(f"source must be lower case letters, digits, '-' and '_', got {source!r}")
    if kind not in KINDS:
        faults.append(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not path.startswith("/") or "/../" in path or path.endswith("/") or re.search(r"\s", path):
        faults.append(f"path must be absolute and normalised, without blanks, got {path!r}")
    if not re.fullmatch(r"0?[0-7]{3}", mode):
        faults.append(f"mode must be octal text like '0600', got {mode!r}")
    faults += [f"minimum: {label!r} must be 0 or more, got {n!r}" for label, n in minimum.items() if n < 0]
    for unit in units:
        if unit.startswith("-") or not (unit.startswith("supervisor:") or "." in unit):
            faults.append(f"units: must be 'x.service', a pattern of it, or 'supervisor:x', got {unit!r}")
    return faults


def source_config(
    source: str,
    kind: str,
    path: str,
    owner: str,
    group: str,
    mode: str,
    minimum: Mapping[str, int],
    units: Sequence[str],
    health: str,
    health_seconds: int,
    policy: Backup,
) -> str:
    """Return the JSON that the program reads; it holds no secret."""
    values = {
        "name": source,
        # the inventory's name: a machine that replaces this one finds its copies by it
        "host": host.name,
        "kind": kind,
        "path": path,
        "owner": owner,
        "group": group,
        "mode": mode,
        "repositories": repositories(policy),
        "keep": {"daily": policy.keep_daily, "weekly": policy.keep_weekly, "monthly": policy.keep_monthly},
        "minimum": dict(minimum),
        "min_size_ratio": policy.min_size_ratio,
        "units": list(units),
        "health": health,
        "health_seconds": health_seconds,
        "timeout_seconds": _TIMEOUT_SECONDS,
        "textfiles": TEXTFILES,
    }
    return json.dumps(values, indent=1) + "\n"


def repositories(policy: Backup) -> dict[str, str]:
    """Return the repositories by label; the off-site one is written on its own, not copied from the first."""
    found = {"primary": policy.repository}
    if policy.offsite_repository:
        found["offsite"] = policy.offsite_repository
    return found


def job_sandbox(kind: str, path: str, policy: Backup) -> Sandbox:
    """Return what a scheduled run may do."""
    urls = repositories(policy).values()
    # Beside a database in WAL mode SQLite must be able to make -shm, even to read.
    beside = [str(Path(path).parent)] if kind == "sqlite" else []
    remote = any(not url.startswith("/") for url in urls)
    return Sandbox(
        writable=(*beside, STATE, TEXTFILES, *(url for url in urls if url.startswith("/"))),
        network=remote,
        # sftp repositories are reached with root's ssh key
        home=remote or path.startswith(("/home/", "/root/")),
        capabilities=(
            # to read databases of any owner, to hand them their copy, to become them, and to stop what runs as them
            "CAP_DAC_OVERRIDE",
            "CAP_CHOWN",
            "CAP_FOWNER",
            "CAP_SETUID",
            "CAP_SETGID",
            "CAP_KILL",
        ),
        cache="hostwright",
    )


@operation()
def source(
    source: str,
    policy: Backup | None = None,
    kind: str = "sqlite",
    path: str = "",
    owner: str = "root",
    group: str = "root",
    mode: str = "0600",
    minimum: Mapping[str, int] | None = None,
    units: Sequence[str] = (),
    health: str = "",
    health_seconds: int = 30,
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Declare something that is backed up every day, drilled every week, and can be restored.

    + source: its name, e.g. that of its system
    + policy: the host's ``settings.Backup``: repositories, password, retention, when
    + kind: ``sqlite`` (one database, copied while it is in use) or ``directory``
    + path: the database or the directory; + owner, group, mode: what a restored one gets
    + minimum: what a good copy has at least: rows by table, or ``{"files": n}``
    + units: what a restore stops and, where it ran, starts again: ``x.service``, a pattern like ``x@*.service`` (both
      colours, whichever runs), or ``supervisor:x``
    + health: shell command that must succeed within ``health_seconds`` (s) after a restore
    + present: ``False`` stops the schedule and forgets the configuration; copies and their repositories stay

    Installs restic. The repositories are opened when their configuration or password is not what they were last opened
    with; one that does not exist yet is made. One that has another password fails the operation and is left alone.

    Raises ``OperationValueError`` for a declaration that breaks a rule.

    **Example:**

    .. code:: python

        backup.source(
            "shop", policy=settings.backup, path="/var/lib/shop/shop.db", owner="shop", group="shop",
            minimum={"customers": 1}, units=["shop@*.service"], health="curl -fsS http://127.0.0.1:8000/health",
            name="Back up the shop's database",
        )
    """
    job, drill = f"hostwright-backup-{source}", f"hostwright-backup-{source}-drill"
    config, secrets = f"{CONFIG}/{source}.json", f"{CONFIG}/{source}.env"
    if not present:
        yield from schedule.job._inner(job=job, present=False)
        yield from schedule.job._inner(job=drill, present=False)
        yield from fileset.files._inner(entries=[Absent(config), Absent(secrets)])
        return

    faults = source_faults(source, kind, path, mode, minimum or {}, units)
    if policy is None:
        faults.append("policy is needed: the host's settings.backup")
    elif not policy.password.resolved:
        faults.append("policy.password is not set: it encrypts the repository")
    if faults or policy is None:
        raise OperationValueError("backup.source: " + "; ".join(f"{source}: {fault}" for fault in faults))

    yield from dpkg.packages._inner(packages=["restic", "python3"])
    yield from fileset.files._inner(
        entries=[
            Directory("/etc/hostwright", mode="0755"),
            Directory(CONFIG, mode="0700"),
            Directory("/var/lib/hostwright", mode="0700"),
            Directory(STATE, mode="0700"),
            # systemd would make it, but the program is also run by hand
            Directory(WORK, mode="0711"),
            File(PROGRAM, _PROGRAM_SOURCE.read_text(), mode="0755"),
            File(
                config,
                source_config(
                    source,
                    kind,
                    path,
                    owner,
                    group,
                    mode,
                    minimum or {},
                    units,
                    health,
                    health_seconds,
                    policy,
                ),
                mode="0600",
            ),
            File(
                secrets,
                Secret(render({"RESTIC_PASSWORD": policy.password, **policy.offsite_env}, consumer="docker")),
                mode="0600",
            ),
        ]
    )
    found = host.get_fact(BackupSources, sources=[source]).get(source)
    if found is None or found.opened_with != found.digest:
        yield script.Told(_program("init", source))

    sandbox = job_sandbox(kind, path, policy)
    for name, command, when, words in (
        (job, "run", policy.at, "backup of"),
        (drill, "drill", policy.drill_at, "restore drill of"),
    ):
        yield from schedule.job._inner(
            job=name,
            command=[PROGRAM, command, source],
            when=when,
            timeout_seconds=_TIMEOUT_SECONDS + _MARGIN_SECONDS,
            sandbox=sandbox,
            description=f"{words} {source}",
        )


def _start(unit: str) -> StringCommand:
    return script.Told("sh -s", _stdin=script.text(["backup/start.sh"], {"unit": unit}))


def _program(*words: str) -> str:
    return shlex.join([PROGRAM, *words])


@operation(is_idempotent=False)
def run(source: str, accept_smaller: bool = False) -> Generator[StringCommand, None, None]:
    """
    Make a backup now, in the unit that the timer starts.

    + source: its name
    + accept_smaller: store the copy although it is much smaller than the last verified one
    """
    if accept_smaller:
        yield script.Told(_program("run", source, "--accept-smaller"))
    else:
        yield _start(f"hostwright-backup-{source}.service")


@operation(is_idempotent=False)
def drill(source: str) -> Generator[StringCommand, None, None]:
    """
    Restore the newest copy into a scratch place now and check it, in the unit that the timer starts.

    + source: its name
    """
    yield _start(f"hostwright-backup-{source}-drill.service")


@operation(is_idempotent=False)
def restore(
    source: str, at: str = "latest", repository: str = "primary"
) -> Generator[StringCommand, None, None]:
    """
    Restore a checked copy in place of the source; what stood there is kept beside it.

    + source: its name
    + at: ``latest``, ``verified``, a snapshot id, a day (``2026-11-22``) or a time (``2026-11-22T02:00``, in the host's zone)
    + repository: ``primary`` or ``offsite``

    Raises ``OperationValueError`` for an ``at`` that is no text: the command line reads ``12345678`` as a number, quote it
    as ``'at="12345678"'``.
    """
    if not isinstance(at, str):
        raise OperationValueError(
            f"""backup.restore: at must be text, write 'at="..."' with the quotes, got {at!r}"""
        )
    # In a unit of its own: a connection that breaks must not leave a half restored host behind.
    yield script.Told(
        f"systemd-run --quiet --wait --pipe --collect --unit={shlex.quote(f'hostwright-backup-{source}-restore')}",
        _program("restore", source, f"--at={at}", f"--repository={repository}"),
    )


@operation(is_idempotent=False)
def copies(source: str) -> Generator[StringCommand, None, None]:
    """
    Show the copies of a source: when taken, how large, when verified, in which repository.

    + source: its name
    """
    yield script.Told(_program("list", source))
