"""
Many files as one change: the only way this project writes files on hosts.

pyinfra's own ``files.put`` uploads through a predictable, world-readable temporary file and replaces the target in
place. Here one fact reads all paths and one command writes them: content over stdin, staged beside the target with its
final owner and mode, validated together as they will stand, renamed into place. The unit that reads the files is
reloaded or restarted in the same command, and when it does not come back well, the old files are put back.
"""

import base64
import hashlib
import io
import tarfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pyinfra import host, logger
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation
from pyinfra.facts.files import FileContents
from pyinfra.operations.util.files import generate_color_diff

from facts.fileset import FileSet, FileSetState, PathState
from operations import script
from settings.secret import Secret

ACTIONS = ("reload", "restart")


@dataclass(frozen=True)
class File:
    """
    A regular file with exactly this content.

    + path: absolute path
    + content: text (written as UTF-8) or bytes; a ``Secret`` demands a mode without access for others
    + mode: octal text; + owner, group: names that exist on the host
    """

    path: str
    content: str | bytes | Secret = field(repr=False)
    mode: str = "0644"
    owner: str = "root"
    group: str = "root"

    kind = "file"
    target = ""

    @property
    def data(self) -> bytes:
        content = self.content.unmask() if isinstance(self.content, Secret) else self.content
        return content if isinstance(content, bytes) else content.encode()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Directory:
    """A directory with this owner and mode; missing parents are made 0755 root. Its content is not looked at."""

    path: str
    mode: str = "0755"
    owner: str = "root"
    group: str = "root"

    kind = "directory"
    target = ""


@dataclass(frozen=True)
class Symlink:
    """A symbolic link; ``target`` is stored as given and need not exist."""

    path: str
    target: str

    kind = "symlink"
    mode = owner = group = ""


@dataclass(frozen=True)
class Absent:
    """No file and no link at this path. A directory there is refused: data goes only by a command that says so."""

    path: str

    kind = "absent"
    mode = owner = group = target = ""


Entry = File | Directory | Symlink | Absent


def entry_faults(entries: Sequence[Entry], validate: str | None, within: str | None) -> list[str]:
    """Return every rule the entries break, one line each."""
    faults = []
    seen: set[str] = set()
    for entry in entries:
        path = entry.path
        if not path.startswith("/") or str(PurePosixPath(path)) != path or ".." in PurePosixPath(path).parts:
            faults.append(f"{path!r}: must be an absolute, normalised path")
        if any(sign in text for text in (path, entry.target) for sign in "|\n\t"):
            faults.append(f"{path!r}: a path or link target may not hold '|', tab or newline")
        if path in seen:
            faults.append(f"{path!r}: stands twice in one file set")
        seen.add(path)
        if entry.mode:
            digits = entry.mode.lstrip("0") or "0"
            if not 3 <= len(entry.mode) <= 4 or any(digit not in "01234567" for digit in entry.mode):
                faults.append(f"{path!r}: mode must be octal text like '0644', got {entry.mode!r}")
            elif isinstance(entry, File) and isinstance(entry.content, Secret) and int(digits, 8) & 0o037:
                faults.append(f"{path!r}: holds a secret, mode must be 0600 or 0640, got {entry.mode!r}")
    if validate and not within:
        faults.append("validate needs within=, the directory that the validator looks at")
    return faults


def _is_as_wanted(entry: Entry, state: PathState | None) -> bool:
    if isinstance(entry, Absent):
        return state is None
    if state is None:
        return False
    if isinstance(entry, Symlink):
        return state.kind == "l" and state.target == entry.target
    attributes = (state.mode.lstrip("0"), state.owner, state.group)
    if attributes != (entry.mode.lstrip("0"), entry.owner, entry.group):
        return False
    if isinstance(entry, Directory):
        return state.kind == "d"
    return state.kind == "f" and state.sha256 == entry.sha256


def _content_differs(entry: Entry, state: PathState | None) -> bool:
    """Whether a reader of the path would read something else: owner and mode alone do not count."""
    if isinstance(entry, Directory):
        return False
    if isinstance(entry, File):
        return state is None or state.kind != "f" or state.sha256 != entry.sha256
    return not _is_as_wanted(entry, state)


def staged_path(path: str) -> str:
    """Where a file waits for its rename: hidden and ``.dpkg-new``, so that no include pattern of a daemon reads it."""
    pure = PurePosixPath(path)
    return str(pure.parent / f".{pure.name}.dpkg-new")


def kept_path(path: str) -> str:
    """Where the old file waits until the new one has proved itself."""
    pure = PurePosixPath(path)
    return str(pure.parent / f".{pure.name}.dpkg-old")


def content_hash(lines: Sequence[tuple[str, str]]) -> str:
    """Return one hash over (path, content mark) pairs, whatever their order."""
    return hashlib.sha256("\n".join(f"{path}|{mark}" for path, mark in sorted(lines)).encode()).hexdigest()


def stamp_name(unit: str | None, paths: Sequence[str]) -> str:
    """Name the stamp of one unit and one set of paths."""
    digest = hashlib.sha256("\n".join(sorted(paths)).encode()).hexdigest()[:16]
    return f"{(unit or 'files').replace('/', '_')}.{digest}"


def owes_action(state: FileSetState, wanted_hash: str, action: str, newest_change: float) -> bool:
    """
    Return whether the unit runs on something older than its files, which already are as wanted.

    The stamp of the last action answers for the invocation it was made in, whatever the clock did since. For any
    other invocation (a reboot, a restart by hand) the time at which the unit loaded its files decides.
    """
    if not state.unit.is_active:
        return state.unit.active in ("activating", "failed")
    if state.stamp and state.stamp[1] == state.unit.invocation:
        return state.stamp[0] != wanted_hash
    loaded = state.unit.reloaded if action == "reload" else state.unit.started
    return newest_change > loaded


def _payload(files: Sequence[File]) -> str:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file in files:
            info = tarfile.TarInfo(staged_path(file.path).lstrip("/"))
            info.size = len(file.data)
            info.mode = int(file.mode, 8)
            info.uname, info.gname = file.owner, file.group
            archive.addfile(info, io.BytesIO(file.data))
    return base64.b64encode(buffer.getvalue()).decode()


def _may_be_shown(entry: File, found: PathState | None) -> bool:
    """Whether neither the new nor the old content is closed to others on the host."""
    return int(entry.mode, 8) & 0o004 != 0 and (found is None or int(found.mode, 8) & 0o004 != 0)


def _show_diff(entries: Sequence[Entry], state: FileSetState) -> None:
    """Log what ``--diff`` asks for; of a file that others may not read on the host, only its name."""
    for entry in entries:
        found = state.paths.get(entry.path)
        host.log(f"Will {'modify' if found else 'create'} {entry.kind} {entry.path}", logger.info)
        if not isinstance(entry, File) or not _content_differs(entry, found):
            continue
        if isinstance(entry.content, Secret) or not _may_be_shown(entry, found):
            logger.info("  (content not shown: the file is closed to others)")
            continue
        try:
            wanted = entry.data.decode().splitlines()
        except UnicodeDecodeError:
            logger.info("  (binary)")
            continue
        current = host.get_fact(FileContents, path=entry.path) if found and found.kind == "f" else []
        for line in generate_color_diff(current or [], wanted):
            logger.info("  %s", line)


def _manifest(entries: Sequence[Entry]) -> str:
    return "\n".join("|".join((e.kind, e.path, e.mode, e.owner, e.group, e.target)) for e in entries)


@operation()
def files(
    entries: Sequence[Entry],
    validate: str | None = None,
    within: str | None = None,
    unit: str | None = None,
    action: str = "restart",
    probe: str | None = None,
    probe_seconds: int = 10,
    settle_seconds: int = 2,
    apply: str | None = None,
) -> Generator[StringCommand, None, None]:
    """
    Put a set of files in place as one change.

    + entries: ``File``, ``Directory``, ``Symlink`` and ``Absent``, in the order in which they are made
    + validate: shell command that must succeed before anything changes; it runs in a mount namespace of its own, in
      which the new files already stand at their real paths
    + within: the directory that ``validate`` looks at, e.g. ``/etc/nginx``; it is copied for it, so keep it small
    + unit: the unit that reads the files. It is acted on when their content changed, and also when it runs on older
      content than theirs: the action that a killed run still owed. A stopped unit stays stopped, a failed one is restarted
    + action: ``restart`` or ``reload``
    + probe: shell command that must succeed within ``probe_seconds`` (s) after the action
    + settle_seconds: how long the unit must stay up after the action (s)
    + apply: shell command to run after a change, for files that no unit reads; also repeated when a killed run owed it

    When the action, the settling or the probe fails, the old files are put back, the unit is acted on again, and the
    operation fails with the unit's last journal lines.

    Raises ``OperationValueError`` for entries that break a rule, all of them in one message.

    **Example:**

    .. code:: python

        fileset.files(
            [File("/etc/nginx/sites-enabled/shop.conf", text)],
            validate="nginx -t", within="/etc/nginx", unit="nginx.service", action="reload",
            name="Upload nginx site",
        )
    """
    faults = entry_faults(entries, validate, within)
    if action not in ACTIONS:
        faults.append(f"action must be 'reload' or 'restart', got {action!r}")
    if faults:
        raise OperationValueError("fileset.files: " + "; ".join(faults))

    paths = [entry.path for entry in entries]
    read_paths = [entry.path for entry in entries if not isinstance(entry, Directory)]
    leftovers = [name(path) for path in read_paths for name in (staged_path, kept_path)]
    stamp_key = stamp_name(unit, read_paths) if (unit or apply) and read_paths else ""
    state = host.get_fact(FileSet, paths=[*paths, *leftovers], unit=unit, stamp_key=stamp_key or None)

    for entry in entries:
        found = state.paths.get(entry.path)
        if found and found.kind == "d" and not isinstance(entry, Directory):
            raise OperationError(f"fileset.files: {entry.path}: is a directory, wanted: {entry.kind}")
    changed = [entry for entry in entries if not _is_as_wanted(entry, state.paths.get(entry.path))]
    # A staged or kept copy is what a killed run left behind: that path is gone through once more.
    unfinished = {path for path in read_paths if {staged_path(path), kept_path(path)} & state.paths.keys()}
    changed += [entry for entry in entries if entry.path in unfinished and entry not in changed]

    wanted_hash = content_hash(
        [
            (e.path, e.sha256 if isinstance(e, File) else e.target or e.kind)
            for e in entries
            if e.kind != "directory"
        ]
    )
    newest = max((state.paths[path].changed for path in read_paths if path in state.paths), default=0.0)
    content_changed = any(_content_differs(entry, state.paths.get(entry.path)) for entry in changed)
    do_act = bool(unit) and (content_changed or owes_action(state, wanted_hash, action, newest))
    do_apply = bool(apply) and (content_changed or (state.stamp or ("", ""))[0] != wanted_hash)

    if not changed and not do_act and not do_apply:
        host.noop(f"{len(entries)} paths are as wanted")
        return

    if host.state.config.DIFF:
        _show_diff(changed, state)

    yield script.run(
        "unit/act.sh",
        "fileset/swap.sh",
        manifest=_manifest(changed),
        payload=_payload(contents) if (contents := [e for e in changed if isinstance(e, File)]) else "",
        validate=validate or "",
        within=within or "",
        unit=unit or "",
        action=action if do_act else "",
        probe=probe or "",
        probe_seconds=probe_seconds,
        settle_seconds=settle_seconds,
        apply=apply if do_apply and apply else "",
        daemon_reload=any(entry.path.startswith("/etc/systemd/system/") for entry in changed),
        stamp_key=stamp_key,
        stamp_hash=wanted_hash,
    )
