#!/usr/bin/python3 -I
"""
Back up what a host declares in /etc/hostwright/backup, prove that it can be restored, restore it.

    backup run NAME [--accept-smaller]     copy, check, store in every repository, apply the retention
    backup drill NAME                      restore the newest copy into a scratch place and check it
    backup restore NAME [--at WHEN] [--repository LABEL] [--into BUCKET] [--replace]
    backup list NAME [--json]
    backup init NAME                       open the repositories, create those that do not exist yet
    backup restic NAME [--repository LABEL] -- ARGUMENTS     restic itself, with the right repository and password

WHEN is latest, verified, a snapshot id, a day or a time (the newest copy that is not younger).

One copy goes the same way everywhere: a *kind* makes a consistent copy of the source in a directory of its own, with a
manifest beside it (size, sha256, rows); restic stores that directory; drill and restore bring the directory back and
hold it against its manifest and against the checks that the source declares. A copy that passed a drill carries the tag
`verified` in its repository; the retention keeps it, whatever else it removes.

Only the standard library, Python 3.9 or newer, restic 0.14 or newer. Secrets reach restic in its environment.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn
from urllib.parse import quote

# How long another process may hold the source or its repository before we give up (s), and how often we look again.
LOCK_WAIT = 900
LOCK_POLL = 5
# What a process gets between "please stop" and "stop" (s).
GRACE = 15
# Left free on the file system that takes the copy, so that a backup never is what fills a disk (bytes).
SPARE = 16 * 1024 * 1024
VERIFIED = "verified"


class Failure(Exception):
    """Something that the operator has to know, said in one message without a secret in it."""


class Empty(Failure):
    """The source is there, and holds nothing: a loss, unless it never held anything."""


# --- configuration -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    """The three directories. Copies wait in ``work``: the owner of a database must be able to reach its own there."""

    config: Path = Path("/etc/hostwright/backup")
    state: Path = Path("/var/lib/hostwright/backup")
    work: Path = Path("/var/cache/hostwright/backup")


@dataclass(frozen=True)
class Source:
    """One declared source, as /etc/hostwright/backup/NAME.json has it."""

    name: str
    host: str
    kind: str
    path: str
    owner: str
    group: str
    mode: str
    repositories: dict[str, str]
    keep: dict[str, int]
    minimum: dict[str, int] = field(default_factory=dict)
    min_size_ratio: float = 0.5
    units: tuple[str, ...] = ()
    health: str = ""
    health_seconds: int = 30
    timeout_seconds: int = 3600
    textfiles: str = "/var/lib/prometheus/node-exporter"
    postgres: dict[str, Any] = field(default_factory=dict)
    bucket: dict[str, Any] = field(default_factory=dict)
    redis: dict[str, Any] = field(default_factory=dict)
    mongodb: dict[str, Any] = field(default_factory=dict)
    redis_pod: dict[str, Any] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        return f"source:{self.name}"


def load_source(places: Places, name: str) -> Source:
    path = places.config / f"{name}.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        declared = ", ".join(sorted(entry.stem for entry in places.config.glob("*.json"))) or "none"
        raise Failure(f"no such source; declared on this host: {declared}") from None
    values["units"] = tuple(values.get("units", ()))
    return Source(**values)


def load_secrets(places: Places, name: str) -> dict[str, str]:
    """Read NAME.env: ``KEY=value`` lines, the rest of the line is the value, as ``docker --env-file`` has it."""
    secrets = {}
    for line in (places.config / f"{name}.env").read_text().splitlines():
        key, sign, value = line.partition("=")
        if sign:
            secrets[key] = value
    return secrets


def config_digest(places: Places, name: str) -> str:
    """Return what facts/backup.py computes with sha256sum: what the repositories were last opened with."""
    digests = [
        hashlib.sha256((places.config / f"{name}{end}").read_bytes()).hexdigest() for end in (".json", ".env")
    ]
    return " ".join(digests)


# --- processes -----------------------------------------------------------------------------------------------------


class Deadline:
    """A moment after which everything that is still running is stopped."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


def execute(
    argv: Sequence[str],
    deadline: Deadline,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    account: tuple[int, int] | None = None,
) -> Ended:
    """
    Run a program to its end and return its status and output.

    It gets a session of its own and dies with us or at the deadline, with all that it started.

    + account: uid and gid to run it as, when we are root
    """
    process = subprocess.Popen(
        list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", env=dict(env) if env is not None else None, cwd=cwd, start_new_session=True,
        **_identity(account),
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=deadline.left())
    except subprocess.TimeoutExpired:
        _end_group(process)
        raise Failure(
            f"{Path(argv[0]).name} {argv[1]}: did not end within {deadline.seconds:.0f} s"
        ) from None
    except BaseException:
        _end_group(process)
        raise
    return Ended(process.returncode, out, err)


def _identity(account: tuple[int, int] | None) -> dict[str, Any]:
    """Return the arguments of Popen that let a program run as an account, when we are root."""
    if account is None or os.geteuid() != 0:
        return {}
    return {"user": account[0], "group": account[1], "extra_groups": []}


def _end_group(process: subprocess.Popen[Any]) -> None:
    for sign, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=patience)
            return


# --- copies --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What a copy holds. ``counts`` are rows by table, or ``{"files": n}``."""

    size: int
    sha256: str
    counts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True)
class Manifest:
    """What stands beside a copy in its snapshot."""

    source: str
    kind: str
    path: str
    taken: str
    content: Content
    accepted_smaller: bool = False

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str) -> Manifest:
        values = json.loads(text)
        values["content"] = Content(**values["content"])
        return cls(**values)


MANIFEST = "manifest.json"


def minimum_faults(content: Content, minimum: Mapping[str, int], may_be_empty: bool = False) -> list[str]:
    """Return what the copy has too little of: the checks that the source declares."""
    faults = []
    if not may_be_empty and (not content.counts or not content.size):
        faults.append("it is empty")
    for label, least in sorted(minimum.items()):
        if label not in content.counts:
            faults.append(f"{label} is missing")
        elif content.counts[label] < least:
            faults.append(f"{label} has {content.counts[label]}, at least {least} wanted")
    return faults


def shrink_faults(content: Content, before: Snapshot, ratio: float) -> list[str]:
    """Return what became suspiciously small against an earlier copy."""
    faults = []
    if content.size < before.size * ratio:
        faults.append(f"{content.size} bytes, was {before.size}")
    if content.total < before.total * ratio:
        faults.append(f"{content.total} rows or files, was {before.total}")
    return faults


def difference_faults(content: Content, manifest: Manifest) -> list[str]:
    """Return how a copy that came back differs from what was put in."""
    faults = []
    recorded = manifest.content
    if content.size != recorded.size:
        faults.append(f"{content.size} bytes, recorded {recorded.size}")
    for label in sorted(content.counts.keys() | recorded.counts.keys()):
        here, then = content.counts.get(label), recorded.counts.get(label)
        if here != then:
            faults.append(f"{label}: {here}, recorded {then}")
    if not faults and content.sha256 != recorded.sha256:
        faults.append("its sha256 differs from the recorded one")
    return faults


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- kinds: how a consistent copy of a source is made, looked at and put in place -----------------------------------
#
# A further kind (mongodb) is one more class with these methods and its line in KINDS, in a file of its own:
# drill, restore, retention and state know nothing else about it.


class Kind:
    """A way to copy a source. A directory that holds one copy holds it under the name ``data``."""

    # endings of files that belong to the source and move with it
    COMPANIONS: tuple[str, ...] = ()
    # whether a source that never held anything is in order, as a new one is
    MAY_BE_EMPTY = False

    def __init__(
        self,
        source: Source,
        deadline: Deadline,
        secrets: Mapping[str, str] | None = None,
        work: Path = Path("/nonexistent"),
    ) -> None:
        self.source = source
        self.deadline = deadline
        self.secrets = dict(secrets or {})
        self.work = work
        # what the operator said of a restore besides which copy
        self.options: dict[str, Any] = {}

    @property
    def may_be_empty(self) -> bool:
        return self.MAY_BE_EMPTY

    @property
    def where(self) -> str:
        """Return the source for the operator."""
        return self.source.path

    def ready(self) -> None:
        """Make sure that the source can be read, when it is declared. Raise Failure when it cannot."""

    def done(self, stage: Path) -> None:
        """Take from the stage what the next copy can use."""

    def prove(self, directory: Path) -> Content:
        """Look at a copy that came back, harder than ``inspect`` where that is possible."""
        return self.inspect(directory)

    def compare(self, directory: Path) -> str:
        """Compare a copy with the live source where that is possible; return what was found to be the same."""
        return ""

    @property
    def path(self) -> Path:
        return Path(self.source.path)

    def size(self) -> int:
        """Return about how much room a copy needs (bytes). Raise Failure, or Empty, when there is nothing to copy."""
        raise NotImplementedError

    def copy(self, stage: Path) -> None:
        """Make a consistent copy of the live source as ``stage/data``."""
        raise NotImplementedError

    def inspect(self, directory: Path) -> Content:
        """Look at ``directory/data``. Raise Failure when it is not whole in itself."""
        raise NotImplementedError

    def prepare(self, directory: Path) -> Path:
        """Put ``directory/data`` beside the source, with its final owner and mode; return where it waits."""
        raise NotImplementedError

    def exchange(self, incoming: Path, stamp: str) -> list[str]:
        """
        Rename what stands at the source's path aside and ``incoming`` to it; return the names of what was kept.

        Nothing is deleted, and when it fails, everything stands where it stood.
        """
        path = self.path.resolve()
        moved = []
        try:
            for ending in ("", *self.COMPANIONS):
                old = path.with_name(path.name + ending)
                if old.exists() or old.is_symlink():
                    aside = path.with_name(f"{path.name}.before-restore-{stamp}{ending}")
                    os.rename(old, aside)
                    moved.append((old, aside))
            os.rename(incoming, path)
        except OSError:
            for old, aside in moved:
                os.rename(aside, old)
            raise
        _sync(path.parent)
        return [str(aside) for _, aside in moved]

    def _give(self, incoming: Path) -> None:
        """Set owner and mode of what is going to stand at the source's path."""
        incoming.chmod(int(self.source.mode, 8))
        if os.geteuid() == 0:
            try:
                shutil.chown(incoming, self.source.owner, self.source.group)
            except LookupError as error:
                raise Failure(f"{error}: provision the host first") from None

    def _waiting(self) -> Path:
        path = self.path.resolve()
        if not path.parent.is_dir():
            raise Failure(f"{path.parent} does not exist: provision the host first")
        return path.with_name(f".{path.name}.incoming")


class Sqlite(Kind):
    """
    One SQLite database, copied with SQLite's backup interface while others write to it.

    SQLite itself only ever runs as the owner of the database: opening one in WAL mode makes -wal and -shm files, and
    root's would lock the application out of its own database.
    """

    COMPANIONS = ("-wal", "-shm", "-journal")

    def size(self) -> int:
        if not self.path.is_file():
            raise Failure(f"{self.path} does not exist")
        return sum(path.stat().st_size for path in self._files() if path.exists())

    def copy(self, stage: Path) -> None:
        account = self.path.stat()
        if os.geteuid() == 0:
            os.chown(stage, account.st_uid, account.st_gid)
        self._sqlite(
            "sqlite-copy", str(self.path), str(stage / "data"), account=(account.st_uid, account.st_gid)
        )

    def inspect(self, directory: Path) -> Content:
        data = directory / "data"
        if not data.is_file():
            raise Failure("it holds no database")
        account = self._account()
        if os.geteuid() == 0:
            os.chown(directory, *account)
            os.chown(data, *account)
        counts = json.loads(self._sqlite("sqlite-inspect", str(data), account=account))
        return Content(data.stat().st_size, _file_digest(data), counts)

    def prepare(self, directory: Path) -> Path:
        incoming = self._waiting()
        incoming.unlink(missing_ok=True)
        shutil.copyfile(directory / "data", incoming)
        self._give(incoming)
        _sync(incoming)
        return incoming

    def exchange(self, incoming: Path, stamp: str) -> list[str]:
        # The files move together and keep belonging together: under the new name SQLite opens them as one database.
        _refuse_open_files(self._files())
        return super().exchange(incoming, stamp)

    def _files(self) -> list[Path]:
        path = self.path.resolve()
        return [path, *(path.with_name(path.name + end) for end in self.COMPANIONS)]

    def _account(self) -> tuple[int, int]:
        """Who reads a restored database: its owner to be, or nobody on a host that does not have them."""
        try:
            entry = pwd.getpwnam(self.source.owner)
        except KeyError:
            entry = pwd.getpwnam("nobody")
        return entry.pw_uid, entry.pw_gid

    def _sqlite(self, *arguments: str, account: tuple[int, int]) -> str:
        ended = execute(
            [sys.executable, "-I", os.path.abspath(__file__), *arguments],
            self.deadline,
            env={"PATH": os.defpath},
            cwd=Path("/"),
            account=account,
        )
        if ended.status:
            raise Failure(
                ended.err.strip().splitlines()[-1] if ended.err.strip() else f"{arguments[0]} failed"
            )
        return ended.out


def sqlite_copy(source: str, target: str) -> None:
    # mode=ro: a database that is not there is an error, and is not created.
    origin = sqlite3.connect(f"file:{quote(source)}?mode=ro", uri=True, timeout=60)
    copy = sqlite3.connect(target)
    # all pages in one step: one read transaction, so that writers go on and the copy never starts over
    origin.backup(copy, pages=-1)
    copy.close()
    origin.close()


def sqlite_inspect(path: str) -> dict[str, int]:
    # immutable: nobody writes to a copy, and looking at it must not leave -wal and -shm files beside it
    database = sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True)
    faults = [row[0] for row in database.execute("PRAGMA integrity_check(5)")]
    if faults != ["ok"]:
        raise Failure("integrity_check: " + " ".join("; ".join(faults).split()))
    counts = {}
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    for (table,) in database.execute(query).fetchall():
        name = '"' + table.replace('"', '""') + '"'
        try:
            counts[table] = database.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
        except sqlite3.OperationalError as error:
            # a virtual table whose module only the application has; its shadow tables are counted
            if "no such module" not in str(error):
                raise
    return counts


class Directory(Kind):
    """A directory tree, copied with ``cp -a``. Files that change meanwhile are copied as they are at that moment."""

    @property
    def may_be_empty(self) -> bool:
        # who wants no file at least says that there may be none yet
        return self.MAY_BE_EMPTY or self.source.minimum.get("files") == 0

    def size(self) -> int:
        if not self.path.is_dir():
            raise Failure(f"{self.path} does not exist or is no directory")
        entries = self._entries(self.path)
        if self.may_be_empty and not any(entry.is_file() and not entry.is_symlink() for entry in entries):
            raise Empty(f"{self.path} holds no file")
        return sum(entry.lstat().st_size for entry in entries)

    def copy(self, stage: Path) -> None:
        ended = execute(["cp", "-a", "--", str(self.path), str(stage / "data")], self.deadline)
        if ended.status:
            raise Failure(f"cp: {ended.err.strip().splitlines()[-1]}")

    def inspect(self, directory: Path) -> Content:
        data = directory / "data"
        if not data.is_dir():
            raise Failure("it holds no directory")
        digest, size, files = hashlib.sha256(), 0, 0
        for entry in self._entries(data):
            about = entry.lstat()
            mark = ""
            if entry.is_symlink():
                mark = os.readlink(entry)
            elif entry.is_file():
                mark, size, files = _file_digest(entry), size + about.st_size, files + 1
            digest.update(
                f"{entry.relative_to(data)}\0{about.st_mode:o}\0{mark}\n".encode(errors="surrogateescape")
            )
        return Content(size, digest.hexdigest(), {"files": files})

    def prepare(self, directory: Path) -> Path:
        incoming = self._waiting()
        shutil.rmtree(incoming, ignore_errors=True)
        ended = execute(["cp", "-a", "--", str(directory / "data"), str(incoming)], self.deadline)
        if ended.status:
            raise Failure(f"cp: {ended.err.strip().splitlines()[-1]}")
        self._give(incoming)
        return incoming

    @staticmethod
    def _entries(root: Path) -> list[Path]:
        return sorted(root.rglob("*"), key=str)


KINDS: dict[str, type[Kind]] = {"sqlite": Sqlite, "directory": Directory}

# <<< parts >>>


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_open_files(paths: Sequence[Path]) -> None:
    """Raise Failure when a process still has one of the files open: it would go on writing to what was moved aside."""
    wanted = {(about.st_dev, about.st_ino) for path in paths if path.exists() for about in [path.stat()]}
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            about = handle.stat()
            if (about.st_dev, about.st_ino) in wanted:
                process = handle.parts[2]
                command = (
                    Path(f"/proc/{process}/cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode(errors="replace")
                )
                raise Failure(
                    f"process {process} ({command.strip()[:80]}) has {os.readlink(handle)} open: stop it first"
                )
        except OSError:
            continue


# --- restic --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """One copy in a repository. restic gives a snapshot a new id when its tags change; ``key`` stays."""

    id: str
    key: str
    time: datetime
    tags: tuple[str, ...]

    @property
    def short(self) -> str:
        return self.id[:8]

    @property
    def verified(self) -> bool:
        return VERIFIED in self.tags

    def __str__(self) -> str:
        return f"{self.short} of {said(self.time)}"

    @property
    def size(self) -> int:
        return int(self._value("bytes") or 0)

    @property
    def total(self) -> int:
        """Return the number of rows or files."""
        return int(self._value("rows") or 0)

    @property
    def verified_at(self) -> str:
        return self._value("verified-at")

    def _value(self, key: str) -> str:
        value = next((tag.partition(":")[2] for tag in self.tags if tag.startswith(f"{key}:")), "")
        return value if key == "verified-at" or value.isdigit() else ""


def parse_snapshots(text: str) -> list[Snapshot]:
    """Read ``restic snapshots --json``; oldest first."""
    found = [
        Snapshot(
            id=entry["id"],
            key=entry.get("original") or entry["id"],
            # Python 3.9 reads six digits of a second, restic writes nine
            time=moment(re.sub(r"(\.\d{6})\d*", r"\1", entry["time"])),
            tags=tuple(entry.get("tags") or ()),
        )
        for entry in json.loads(text or "[]") or []
    ]
    return sorted(found, key=lambda snapshot: snapshot.time)


def moment(text: str) -> datetime:
    """Parse an ISO time; without a zone it is the host's."""
    text = re.sub(r"\.(\d{1,5})(?=[Z+-]|$)", lambda match: "." + match[1].ljust(6, "0"), text)
    return datetime.fromisoformat(re.sub(r"Z$", "+00:00", text)).astimezone(timezone.utc)


def said(at: datetime) -> str:
    return at.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def choose(snapshots: Sequence[Snapshot], at: str) -> Snapshot:
    """Return the snapshot that ``at`` means. Raise Failure when there is none."""
    if not snapshots:
        raise Failure("the repository holds no copy of this source")
    if at == "latest":
        return snapshots[-1]
    if at == "verified":
        verified = [snapshot for snapshot in snapshots if snapshot.verified]
        if not verified:
            raise Failure("no copy is verified yet")
        return verified[-1]
    if re.fullmatch(r"[0-9a-f]{6,64}", at):
        named = [each for each in snapshots if each.id.startswith(at) or each.key.startswith(at)]
        if len(named) == 1:
            return named[0]
        raise Failure(f"{len(named) or 'no'} copies are called {at!r}")
    try:
        latest = moment(at)
    except ValueError:
        raise Failure(f"at must be latest, verified, a snapshot id, a day or a time, got {at!r}") from None
    if re.fullmatch(r"\d{4}-\d\d-\d\d", at):
        latest += timedelta(days=1) - timedelta(microseconds=1)
    older = [snapshot for snapshot in snapshots if snapshot.time <= latest]
    if not older:
        raise Failure(f"no copy is as old as {at}; the oldest is {snapshots[0]}")
    return older[-1]


class Repository:
    """One restic repository, as this source uses it."""

    def __init__(
        self, label: str, url: str, source: Source, secrets: Mapping[str, str], deadline: Deadline
    ) -> None:
        self.label = label
        self.url = url
        self.source = source
        self.deadline = deadline
        self.env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "RESTIC_CACHE_DIR": "/var/cache/hostwright/restic",
            "RESTIC_PROGRESS_FPS": "0.01",
            **secrets,
            "RESTIC_REPOSITORY": url,
        }
        self._mask = [value for value in secrets.values() if value]

    @property
    def _filter(self) -> list[str]:
        return ["--host", self.source.host, "--tag", self.source.tag]

    def open(self) -> str | None:
        """Return the repository's id, or None when there is certainly no repository yet."""
        ended = self._try("cat", "config")
        if ended.status == 0:
            return str(json.loads(ended.out)["id"])
        if ended.status == 12 or "wrong password" in ended.err:
            raise Failure(f"{self}: is there and does not open with this password; nothing was changed")
        missing = (
            r"no such file or directory|does not exist|NoSuchKey|NoSuchBucket|key does not exist|\b404\b"
        )
        if ended.status == 10 or re.search(missing, ended.err, re.IGNORECASE):
            return None
        raise self._failure("cannot be opened", ended)

    def create(self) -> str:
        # restic refuses to initialise a place that already holds a repository
        self._call("init")
        found = self.open()
        if found is None:
            raise Failure(f"{self}: is not there after it was made")
        return found

    def snapshots(self) -> list[Snapshot]:
        return parse_snapshots(self._call("snapshots", "--json", *self._filter).out)

    def backup(self, stage: Path, manifest: Manifest) -> str:
        """Store ``stage`` and return the snapshot's id."""
        content = manifest.content
        tags = [self.source.tag, f"bytes:{content.size}", f"rows:{content.total}"]
        ended = self._call(
            "backup",
            "--json",
            "--host",
            self.source.host,
            *(f"--tag={tag}" for tag in tags),
            stage.name,
            cwd=stage.parent,
        )
        for line in ended.out.splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("message_type") == "summary":
                return str(entry["snapshot_id"])
        raise self._failure("said nothing of the snapshot it made", ended)

    def restore(self, snapshot: Snapshot, target: Path) -> None:
        self._call("restore", snapshot.id, "--target", str(target))

    def mark_verified(self, snapshot: Snapshot, snapshots: Sequence[Snapshot], at: datetime) -> None:
        """Move the tag: first on the new, then off the others, so that there is one at every moment."""
        add = [f"--add={VERIFIED}", f"--add=verified-at:{at.strftime('%Y-%m-%dT%H:%M:%SZ')}"]
        before = [f"--remove=verified-at:{snapshot.verified_at}"] if snapshot.verified_at else []
        self._call("tag", *add, *before, snapshot.id)
        others = [each.id for each in snapshots if each.verified and each.key != snapshot.key]
        if others:  # without an id restic would take all snapshots
            self._call("tag", f"--remove={VERIFIED}", *others)

    def forget(self) -> int:
        """Apply the retention and return how many copies are left. What is verified stays, whatever its age."""
        keep = [f"--keep-{period}={number}" for period, number in self.source.keep.items() if number]
        policy = ["--group-by", "host", *keep, f"--keep-tag={VERIFIED}", "--prune"]
        out = self._call("forget", "--json", *self._filter, *policy).out
        # --prune adds its own lines, as text, after the JSON
        groups = json.loads(next((line for line in out.splitlines() if line.startswith("[")), "[]"))
        return sum(len(group["keep"]) for group in groups)

    def check(self) -> None:
        self._call("check", "--quiet")

    def __str__(self) -> str:
        # credentials may stand in an URL
        return f"{self.label} repository {re.sub(r'//[^/@]*@', '//***@', self.url)}"

    def _try(self, *arguments: str, cwd: Path | None = None) -> Ended:
        """Run restic. A repository that another process holds is waited for; a lock that is stale is removed."""
        patience = Deadline(min(LOCK_WAIT, self.deadline.left()))
        while True:
            ended = execute(["restic", *arguments], self.deadline, env=self.env, cwd=cwd or Path("/"))
            locked = ended.status == 11 or (ended.status != 0 and "already locked" in ended.err)
            if not locked:
                return ended
            # Without --remove-all restic removes only what is stale by its own rules: a dead process of this host, or
            # a lock that was not renewed for 30 minutes. A lock that lives is never touched.
            execute(["restic", "unlock"], self.deadline, env=self.env, cwd=Path("/"))
            if patience.left() == 0:
                raise self._failure(
                    "another process holds it; if you know that it is dead: "
                    f"backup restic {self.source.name} --repository {self.label} -- unlock --remove-all",
                    ended,
                )
            time.sleep(min(LOCK_POLL, patience.left()))

    def _call(self, *arguments: str, cwd: Path | None = None) -> Ended:
        ended = self._try(*arguments, cwd=cwd)
        if ended.status == 12 or (ended.status and "wrong password" in ended.err):
            raise Failure(f"{self}: does not open with this password")
        if ended.status:
            raise self._failure(f"restic {arguments[0]} failed", ended)
        return ended

    def _failure(self, what: str, ended: Ended) -> Failure:
        lines = [line for line in (ended.err or ended.out).splitlines() if line.strip()]
        text = " / ".join(lines[-4:])
        for secret in self._mask:
            text = text.replace(secret, "***")
        return Failure(f"{self}: {what}: {text}")


# --- state ---------------------------------------------------------------------------------------------------------


class State:
    """What is known of a source on this host, as a JSON file and for Prometheus."""

    def __init__(self, places: Places, source: Source) -> None:
        self.source = source
        self.path = places.state / f"{source.name}.json"
        try:
            self.values: dict[str, Any] = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            self.values = {}
        self.values["source"] = source.name
        known = self.values.get("repositories", {})
        self.values["repositories"] = {
            label: {
                **(known.get(label, {}) if known.get(label, {}).get("url", url) == url else {}),
                "url": url,
            }
            for label, url in source.repositories.items()
        }

    def repository(self, label: str) -> dict[str, Any]:
        entry: dict[str, Any] = self.values["repositories"][label]
        return entry

    def note(self, **values: Any) -> None:
        self.values.update(values)

    def save(self) -> None:
        """Write both files. A full disk is no reason to hide why the run itself failed."""
        verified = [entry.get("last_verified", "") for entry in self.values["repositories"].values()]
        self.values["last_verified"] = min(verified) if all(verified) else ""
        _write(self.path, json.dumps(self.values, indent=1, sort_keys=True) + "\n", 0o600)
        directory = Path(self.source.textfiles)
        if directory.is_dir():
            _write(directory / f"hostwright_backup_{self.source.name}.prom", metrics(self.values), 0o644)


def metrics(values: Mapping[str, Any]) -> str:
    """Return the state for node_exporter's textfile collector; what never happened has no sample."""
    samples: dict[str, list[str]] = {}

    def add(metric: str, value: object, **labels: str) -> None:
        if value not in ("", None):
            text = ",".join(
                f'{key}="{label}"' for key, label in {"source": values["source"], **labels}.items()
            )
            samples.setdefault(metric, []).append(f"hostwright_backup_{metric}{{{text}}} {value}")

    def seconds(text: str) -> object:
        return int(moment(text).timestamp()) if text else ""

    add("last_run_timestamp_seconds", seconds(values.get("last_run", "")))
    add("last_run_success", "" if "failure" not in values else int(not values["failure"]))
    add("last_success_timestamp_seconds", seconds(values.get("last_success", "")))
    add("last_drill_success", "" if "drill_failure" not in values else int(not values["drill_failure"]))
    add("size_bytes", values.get("size"))
    for label, entry in sorted(values["repositories"].items()):
        add("last_stored_timestamp_seconds", seconds(entry.get("last_success", "")), repository=label)
        add("last_verified_timestamp_seconds", seconds(entry.get("last_verified", "")), repository=label)
        add("snapshots", entry.get("snapshots"), repository=label)
    for table, rows in sorted(values.get("rows", {}).items()):
        add("rows", rows, table=table.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
    lines = []
    for metric, rows_of in samples.items():
        lines += [f"# TYPE hostwright_backup_{metric} gauge", *rows_of]
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str, mode: int) -> None:
    new = path.with_name(f".{path.name}.new")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w") as file:
        os.fchmod(handle, mode)
        file.write(text)
        file.flush()
        os.fsync(handle)
    os.replace(new, path)


# --- units ---------------------------------------------------------------------------------------------------------


class Units:
    """
    What has to stand still while the source is replaced: systemd units (patterns too), ``supervisor:NAME``,
    ``container:NAME`` and ``container:label=VALUE`` (all that carry it).
    """

    RUNNING = ("active", "activating", "reloading", "deactivating")

    def __init__(self, names: Sequence[str], deadline: Deadline) -> None:
        self.names = names
        self.deadline = deadline

    def running(self) -> list[str]:
        """Return those that run, try to (a crash loop), or failed although they are to start at boot."""
        found = []
        for name in self.names:
            if name.startswith("supervisor:"):
                if shutil.which("supervisorctl") is None:
                    continue
                status = self._run("supervisorctl", "status", name.partition(":")[2]).out
                if re.search(r"\b(RUNNING|STARTING|BACKOFF|FATAL|EXITED)\b", status):
                    found.append(name)
                continue
            if name.startswith("container:"):
                found += [f"container:{each}" for each in self._containers(name.partition(":")[2])]
                continue
            listed = self._run(
                "systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "--", name
            ).out
            for line in listed.splitlines():
                unit, _, active = line.split()[:3]
                if active in self.RUNNING or (active == "failed" and self._is_enabled(unit)):
                    found.append(unit)
        return found

    def _containers(self, named: str) -> list[str]:
        """Return the names of those that run or are about to."""
        choice = f"label={named}" if "=" in named else f"name=^/?{re.escape(named)}$"
        states = [f"--filter=status={state}" for state in ("running", "restarting", "paused")]
        listed = self._run("docker", "ps", "--all", "--format={{.Names}}", f"--filter={choice}", *states)
        if listed.status:
            raise Failure(f"docker ps: {listed.err.strip()[-300:]}")
        return sorted(listed.out.split())

    def stop(self, names: Sequence[str]) -> None:
        self._each(names, "stop", "does not stop")

    def start(self, names: Sequence[str]) -> None:
        for name in names:
            if not name.startswith(("supervisor:", "container:")):
                self._run("systemctl", "reset-failed", "--", name)
        self._each(names, "start", "does not start")

    def _each(self, names: Sequence[str], verb: str, fault: str) -> None:
        for name in names:
            if name.startswith("supervisor:"):
                ended = self._run("supervisorctl", verb, name.partition(":")[2])
            elif name.startswith("container:"):
                ended = self._run("docker", verb, name.partition(":")[2])
            else:
                ended = self._run("systemctl", verb, "--", name)
            if ended.status:
                raise Failure(f"{name} {fault}: {(ended.err or ended.out).strip()}")

    def _is_enabled(self, unit: str) -> bool:
        return self._run("systemctl", "is-enabled", "--quiet", "--", unit).status == 0

    def _run(self, *argv: str) -> Ended:
        return execute(argv, self.deadline)


# --- commands ------------------------------------------------------------------------------------------------------


class Backup:
    """One source with its repositories, its state and its lock: what the commands work on."""

    STAGE = "stage"

    def __init__(self, places: Places, name: str) -> None:
        self.places = places
        self.source = load_source(places, name)
        self.deadline = Deadline(self.source.timeout_seconds)
        secrets = load_secrets(places, name)
        # those of the source are not the repository's, which may have keys of the same kind
        others = {key: value for key, value in secrets.items() if not key.startswith("SOURCE_")}
        self.repositories = {
            label: Repository(label, url, self.source, others, self.deadline)
            for label, url in self.source.repositories.items()
        }
        self.work = places.work / name
        self.kind = KINDS[self.source.kind](self.source, self.deadline, secrets, self.work)
        self.pending = places.state / f"{name}.restore.json"
        self.state = State(places, self.source)

    # .. run

    def run(self, accept_smaller: bool = False) -> None:
        """Make a copy, check it, store it everywhere, apply the retention."""
        self.state.note(last_run=_now(), failure="stopped before its end")
        with self._recorded("failure"):
            if self.pending.exists():
                raise Failure("a restore was cut short: run it again first (backup restore)")
            stage = self._fresh(self.STAGE)
            try:
                self._require_space(self._size(accept_smaller))
                self.kind.copy(stage)
                content = self.kind.inspect(stage)
                faults = minimum_faults(content, self.source.minimum, self.kind.may_be_empty)
                self._judge("the copy is not stored", faults)
                if not accept_smaller:
                    self._judge_size(content)
                manifest = Manifest(
                    self.source.name,
                    self.source.kind,
                    self.kind.where,
                    _now(),
                    content,
                    accepted_smaller=accept_smaller,
                )
                (stage / MANIFEST).write_text(manifest.text())
                self._for_each_repository(lambda repository: self._store(repository, stage, manifest))
                self.state.note(last_success=_now(), size=content.size, rows=content.counts)
                tell(
                    f"{content.size} bytes, {content.total} rows or files, stored in: {', '.join(self.repositories)}"
                )
            finally:
                self.kind.done(stage)

    def _size(self, accept_smaller: bool) -> int:
        """Return how much room a copy needs; an empty source is asked about before anything of it is touched."""
        try:
            return self.kind.size()
        except Empty as empty:
            if not self.kind.may_be_empty:
                raise
            # A repository that does not answer cannot say that nothing was lost: its failure is this run's.
            newest = [snapshots[-1] for each in self.repositories.values() if (snapshots := each.snapshots())]
            held = [snapshot for snapshot in newest if snapshot.total]
            if held and not accept_smaller:
                raise Failure(
                    f"{empty}, and {held[0].total} when copy {held[0]} was made: nothing is stored "
                    f"(if that is right: backup run {self.source.name} --accept-smaller)"
                ) from None
            return 0

    def _store(self, repository: Repository, stage: Path, manifest: Manifest) -> None:
        snapshot = repository.backup(stage, manifest)
        entry = self.state.repository(repository.label)
        entry.update(snapshot=snapshot, last_success=_now())
        tell(f"{repository}: snapshot {snapshot[:8]}")
        entry["snapshots"] = repository.forget()

    def _judge_size(self, content: Content) -> None:
        """Compare with the last verified copy, or with the newest as long as none is verified."""
        for repository in self.repositories.values():
            try:
                snapshots = repository.snapshots()
            except Failure:
                continue  # it fails again when the copy is stored, and is told then: the other one still gets its copy
            # A verified copy of a source that was empty then says nothing about what it holds since.
            good = [each for each in snapshots[::-1] if each.verified][:1]
            for snapshot in [*(each for each in good if each.total), *snapshots[::-1]][:1]:
                which = "the last verified copy" if snapshot.verified else "the last copy"
                self._judge(
                    f"the copy is much smaller than {which} {snapshot} and is not stored "
                    f"(if that is right: backup run {self.source.name} --accept-smaller)",
                    shrink_faults(content, snapshot, self.source.min_size_ratio),
                )
                return

    # .. drill

    def drill(self) -> None:
        """Restore the newest copy of every repository into a scratch place, check it, mark it verified."""
        self.state.note(last_drill=_now(), drill_failure="stopped before its end")
        with self._recorded("drill_failure"):
            self._for_each_repository(self._drill)

    def _drill(self, repository: Repository) -> None:
        snapshots = repository.snapshots()
        if not snapshots and not self.state.values.get("last_run"):
            tell(f"{repository}: no copy yet, and no backup was due so far: nothing to restore")
            return
        snapshot = choose(snapshots, "latest")
        content = self._bring_back(repository, snapshot, snapshots)
        try:
            same = self.kind.compare(self.work / "restored")
        except Failure as failure:
            raise Failure(f"{repository}: copy {snapshot}: {failure}") from None
        repository.check()
        now = datetime.now(timezone.utc)
        repository.mark_verified(snapshot, snapshots, now)
        self.state.repository(repository.label).update(
            last_verified=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            verified_snapshot=snapshot.key,
            snapshots=len(snapshots),
        )
        tell(
            f"{repository}: copy {snapshot} is verified: {content.size} bytes, {content.total} rows or files"
            + (f"; {same}" if same else "")
        )

    def _bring_back(
        self, repository: Repository, snapshot: Snapshot, snapshots: Sequence[Snapshot]
    ) -> Content:
        """Restore a snapshot to ``restored`` and return what it holds. Raise Failure when it is not good."""
        scratch = self._fresh("scratch")
        try:
            repository.restore(snapshot, scratch)
            directory = self._fresh("restored")
            if (scratch / self.STAGE).is_dir():
                os.replace(scratch / self.STAGE, directory)
            try:
                manifest = Manifest.parse((directory / MANIFEST).read_text())
            except (OSError, ValueError, KeyError, TypeError):
                raise Failure("it has no manifest") from None
            content = self.kind.prove(directory)
            faults = difference_faults(content, manifest)
            faults += minimum_faults(content, self.source.minimum, self.kind.may_be_empty)
            verified = [each for each in snapshots if each.verified and each.key != snapshot.key]
            if (
                not faults
                and verified
                and not manifest.accepted_smaller
                and snapshot.time > verified[-1].time
            ):
                faults += shrink_faults(content, verified[-1], self.source.min_size_ratio)
            self._judge("it does not pass", faults)
            return content
        except Failure as failure:
            good = [each for each in snapshots if each.verified]
            last = f"the last verified copy is {good[-1]}" if good else "no copy is verified"
            raise Failure(f"{repository}: copy {snapshot}: {failure}; {last}") from None

    # .. restore

    def restore(self, at: str, label: str, **options: Any) -> None:
        """Put a checked copy in place of the source. What stood there is kept beside it."""
        if any(options.values()) and self.source.kind != "bucket":
            raise Failure("--into and --replace are for buckets")
        self.kind.options = options
        repository = self._repository(label)
        snapshots = repository.snapshots()
        snapshot = choose(snapshots, at)
        tell(f"{repository}: copy {snapshot}, {_verified_words(snapshot)}")
        content = self._bring_back(repository, snapshot, snapshots)
        tell(f"checked: {content.size} bytes, {_counts(content)}")

        incoming = self.kind.prepare(self.work / "restored")
        units = Units(self.source.units, self.deadline)
        running = units.running()
        cut_short = self.pending.exists()
        if cut_short:
            # an earlier restore stopped them and did not come to its end: they are to run again all the same
            running = sorted({*running, *json.loads(self.pending.read_text())["units"]})
        note = {"units": running, "snapshot": snapshot.id, "began": _now()}
        _write(self.pending, json.dumps(note) + "\n", 0o600)
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        try:
            units.stop(running)
            kept = self.kind.exchange(incoming, stamp)
        except BaseException:
            # Everything stands as before. After an earlier restore that can mean: nothing stands there, and what would
            # start now would begin an empty database.
            if not cut_short:
                with contextlib.suppress(Failure):
                    units.start(running)
                self.pending.unlink()
            raise
        tell(f"restored to {self.kind.where}; what stood there: {', '.join(kept) or 'nothing'}")
        units.start(running)
        tell(f"started: {', '.join(running) or 'nothing, because nothing ran'}")
        self.pending.unlink()
        self.state.note(
            last_restore={"at": _now(), "snapshot": snapshot.id, "repository": label, "kept": kept}
        )
        self.state.save()
        if running and self.source.health:
            self._probe()
            tell("the health probe succeeds")

    def _probe(self) -> None:
        patience = Deadline(self.source.health_seconds)
        while True:
            ended = execute(["sh", "-c", self.source.health], self.deadline)
            if ended.status == 0:
                return
            if patience.left() == 0:
                raise Failure(
                    f"restored and started, but the health probe fails for {self.source.health_seconds} s: "
                    f"{self.source.health}: {(ended.err or ended.out).strip()[-300:]}"
                )
            time.sleep(0.5)

    # .. init, list

    def init(self) -> None:
        """Open every repository; create one only where there certainly is none and never was one."""

        def ensure(repository: Repository) -> None:
            entry = self.state.repository(repository.label)
            known, found = entry.get("id"), repository.open()
            if found is None and known:
                raise Failure(
                    f"{repository}: was there before (id {known[:8]}) and is gone: is its disk mounted? No new one is made. "
                    f"To begin a new one, remove {self.state.path}"
                )
            if found and known and found != known:
                raise Failure(
                    f"{repository}: is another one (id {found[:8]}) than before ({known[:8]}). "
                    f"If that is right, remove {self.state.path}"
                )
            if found is None:
                found = repository.create()
                tell(f"{repository}: created")
            entry["id"] = found

        self._fresh("ready")
        self.kind.ready()
        self._for_each_repository(ensure)
        self.state.note(config=config_digest(self.places, self.source.name))
        self.state.save()

    def list(self, as_json: bool) -> None:
        rows = [
            {"repository": label, "id": each.short, "time": each.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
             "bytes": each.size, "rows": each.total,
             "verified": each.verified_at, "last_verified": each.verified}
            for label, repository in self.repositories.items() for each in repository.snapshots()
        ]  # fmt: skip
        if as_json:
            tell(json.dumps(rows, indent=1))
            return
        for row in rows:
            verified = f"  verified {row['verified']}" if row["verified"] else ""
            kept = "  (the last one, always kept)" if row["last_verified"] else ""
            tell(
                "{repository:8} {id}  {time}  {bytes:>12} bytes {rows:>9} rows".format(**row)
                + verified
                + kept
            )
        if not rows:
            tell(f"no copy of {self.source.name} yet")

    def restic(self, label: str, arguments: Sequence[str]) -> NoReturn:
        os.execvpe("restic", ["restic", *arguments], self._repository(label).env)

    # .. shared

    @contextlib.contextmanager
    def locked(self, command: str) -> Iterator[None]:
        """Hold the lock of this source; it goes with the process, however that ends."""
        path = self.places.state / f"{self.source.name}.lock"
        with open(path, "a+") as file:
            patience, told = Deadline(min(LOCK_WAIT, self.deadline.left())), False
            while not _flocked(file):
                file.seek(0)
                holder = file.read().strip() or "another command"
                if patience.left() == 0:
                    raise Failure(f"busy: {holder} works on it")
                if not told:
                    # after a boot both timers may make up for what they missed
                    tell(f"waiting for: {holder}")
                    told = True
                time.sleep(min(1, patience.left()))
            file.seek(0)
            file.truncate()
            file.write(f"backup {command}, process {os.getpid()}, since {_now()}")
            file.flush()
            try:
                yield
            finally:
                shutil.rmtree(self.work, ignore_errors=True)

    @contextlib.contextmanager
    def _recorded(self, key: str) -> Iterator[None]:
        """Write the state whether it went well or not; the failure goes on."""
        try:
            yield
            self.state.note(**{key: ""})
        except BaseException as failure:
            self.state.note(**{key: str(failure) or type(failure).__name__})
            # room for the state on a full disk
            shutil.rmtree(self.work, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.state.save()
            raise
        self.state.save()

    def _for_each_repository(self, action: Any) -> None:
        """Do it for all: a broken repository is no reason to leave out the other one."""
        failures = []
        for repository in self.repositories.values():
            try:
                action(repository)
            except Failure as failure:
                failures.append(str(failure))
        if failures:
            raise Failure("; ".join(failures))

    def _repository(self, label: str) -> Repository:
        try:
            return self.repositories[label]
        except KeyError:
            raise Failure(f"no repository {label!r}; there is: {', '.join(self.repositories)}") from None

    def _fresh(self, name: str) -> Path:
        """Return an empty directory that only we (and whom we give it to) can enter."""
        for level in (self.work.parent, self.work):
            # enterable, not readable: the owner of a database has to reach its own directory further down
            level.mkdir(parents=True, exist_ok=True)
            level.chmod(0o711)
        directory = self.work / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        return directory

    def _require_space(self, size: int) -> None:
        about = os.statvfs(self.work)
        free = about.f_bavail * about.f_frsize
        if free < size + SPARE:
            raise Failure(
                f"{self.work} has {free} bytes free, the copy needs {size + SPARE}: nothing was done"
            )

    @staticmethod
    def _judge(what: str, faults: Sequence[str]) -> None:
        if faults:
            raise Failure(f"{what}: {'; '.join(faults)}")


def _flocked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def tell(text: str) -> None:
    """Print one line for the operator, at once: a journal that ends early must not lose it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _counts(content: Content) -> str:
    return ", ".join(f"{label} {number}" for label, number in sorted(content.counts.items()))


def _verified_words(snapshot: Snapshot) -> str:
    at = snapshot.verified_at
    return f"verified {at}" if at else "never verified by a drill"


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Failure(f"stopped by {signal.Signals(number).name}")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="backup", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    of = {name: commands.add_parser(name) for name in ("run", "drill", "restore", "list", "init", "restic")}
    for command in of.values():
        command.add_argument("name")
    of["run"].add_argument("--accept-smaller", action="store_true")
    of["restore"].add_argument("--at", default="latest")
    of["restore"].add_argument("--into", default="", metavar="BUCKET")
    of["restore"].add_argument("--replace", action="store_true")
    of["list"].add_argument("--json", action="store_true")
    of["restic"].add_argument("arguments", nargs="+")
    for name in ("restore", "restic"):
        of[name].add_argument("--repository", default="primary")
    return parser.parse_args(argv)


def main(argv: Sequence[str], places: Places) -> None:
    # what runs as the owner of a database, see Sqlite
    if argv[:1] == ["sqlite-copy"]:
        return sqlite_copy(*argv[1:3])
    if argv[:1] == ["sqlite-inspect"]:
        tell(json.dumps(sqlite_inspect(argv[1])))
        return None

    arguments = _arguments(argv)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    backup = Backup(places, arguments.name)
    if arguments.command == "list":
        return backup.list(arguments.json)
    if arguments.command == "restic":
        backup.restic(arguments.repository, arguments.arguments)
    with backup.locked(arguments.command):
        if arguments.command == "run":
            backup.run(arguments.accept_smaller)
        elif arguments.command == "drill":
            backup.drill()
        elif arguments.command == "restore":
            backup.restore(
                arguments.at, arguments.repository, into=arguments.into, replace=arguments.replace
            )
        else:
            backup.init()
    return None


if __name__ == "__main__":
    try:
        main(sys.argv[1:], Places())
    except Failure as failure:
        sys.exit(f"backup: {failure}")
    except sqlite3.Error as error:
        sys.exit(f"backup: {error}")
    except OSError as error:
        sys.exit(f"backup: {error.strerror}: {error.filename or ''}")
