"""What stands at a set of paths, and what the unit that reads them is running on: one command for all of it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from pyinfra.api import FactBase

from facts.records import Record

STAMPS = "/var/lib/hostwright/applied"

# -P: a symlink is reported as itself. %C@ is the change time: a rename sets it, whatever the file's mtime says.
_FIND = r"find -P {paths} -maxdepth 0 -printf 'path\t%y\t%m\t%u\t%g\t%C@\t%p\t%l\n'"
_UNIT_PROPERTIES = (
    "LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload,InvocationID,"
    "ExecMainStartTimestamp,ActiveEnterTimestamp,StateChangeTimestamp"
)


@dataclass(frozen=True)
class PathState(Record):
    """One path as it is. ``kind`` is find's letter: ``f`` file, ``d`` directory, ``l`` symlink."""

    kind: str
    mode: str
    owner: str
    group: str
    changed: float
    target: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class UnitState(Record):
    """One systemd unit as ``systemctl show`` reports it; times are seconds since the epoch, 0.0 when never."""

    load: str = "not-found"
    active: str = "inactive"
    sub: str = "dead"
    file: str = ""
    needs_daemon_reload: bool = False
    invocation: str = ""
    started: float = 0.0
    reloaded: float = 0.0

    @property
    def is_active(self) -> bool:
        """Running now; a unit in a crash loop (``activating``/``auto-restart``) is not."""
        return self.active in ("active", "reloading")


@dataclass(frozen=True)
class FileSetState(Record):
    """What ``FileSet`` returns. ``stamp`` is (content hash, unit invocation) of the last action, if any."""

    paths: dict[str, PathState] = field(default_factory=dict)
    unit: UnitState = field(default_factory=UnitState)
    stamp: tuple[str, str] | None = None


def _seconds(text: str) -> float:
    """Parse a ``--timestamp=us+utc`` time, e.g. ``Sun 2026-11-22 02:19:11.123456 UTC``."""
    if not text or text == "n/a":
        return 0.0
    parsed = datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S.%f UTC")
    return parsed.replace(tzinfo=timezone.utc).timestamp()


def parse_unit(properties: dict[str, str]) -> UnitState:
    """Turn the properties of ``systemctl show`` into a ``UnitState``."""
    return UnitState(
        load=properties.get("LoadState", "not-found"),
        active=properties.get("ActiveState", "inactive"),
        sub=properties.get("SubState", "dead"),
        file=properties.get("UnitFileState", ""),
        needs_daemon_reload=properties.get("NeedDaemonReload") == "yes",
        invocation=properties.get("InvocationID", ""),
        # A unit without a main process (timer, socket, target) started when it became active.
        started=_seconds(properties.get("ExecMainStartTimestamp", ""))
        or _seconds(properties.get("ActiveEnterTimestamp", "")),
        # A reload passes through "reloading" and back: the last change of state is when it was over.
        reloaded=_seconds(properties.get("StateChangeTimestamp", "")),
    )


class FileSet(FactBase[FileSetState]):
    """
    Returns the state of paths, of the unit that reads them, and of our stamp about the two.

    + paths: absolute paths; those that do not exist are left out of the answer
    + unit: unit name, optional
    + stamp_key: name of the stamp file below ``/var/lib/hostwright/applied``, optional

    .. code:: python

        FileSetState(
            paths={"/etc/a.conf": PathState(kind="f", mode="644", owner="root", group="root",
                                            changed=1763777951.1, target="", sha256="9f86d0…")},
            unit=UnitState(load="loaded", active="active", sub="running", file="enabled", …),
            stamp=("6b86b2…", "0f0e…"),
        )
    """

    default = FileSetState

    def command(self, paths: Sequence[str], unit: str | None = None, stamp_key: str | None = None) -> str:
        parts = []
        if paths:
            quoted = " ".join(shlex.quote(path) for path in paths)
            parts.append(_FIND.format(paths=quoted) + " 2>/dev/null")
            parts.append(f"sha256sum -- {quoted} 2>/dev/null | sed 's/^/sum\\t/'")
        if unit:
            parts.append(
                f"systemctl show --timestamp=us+utc -p {_UNIT_PROPERTIES} -- {shlex.quote(unit)} 2>/dev/null"
                " | sed 's/^/unit\\t/'"
            )
        if stamp_key:
            parts.append(f"sed 's/^/stamp\\t/' {STAMPS}/{shlex.quote(stamp_key)} 2>/dev/null")
        return "; ".join([*parts, "true"])

    def process(self, output: list[str]) -> FileSetState:
        paths: dict[str, PathState] = {}
        sums: dict[str, str] = {}
        properties: dict[str, str] = {}
        stamp: tuple[str, str] | None = None
        for line in output:
            tag, _, rest = line.partition("\t")
            if tag == "path":
                kind, mode, owner, group, changed, path, target = rest.split("\t")
                paths[path] = PathState(kind, mode, owner, group, float(changed), target)
            elif tag == "sum":
                digest, _, path = rest.partition("  ")
                sums[path] = digest
            elif tag == "unit":
                key, _, value = rest.partition("=")
                properties[key] = value
            elif tag == "stamp":
                content, _, invocation = rest.partition(" ")
                stamp = (content, invocation)
        # sha256sum follows symlinks; only a regular file's own content counts.
        for path, state in paths.items():
            if state.kind == "f":
                paths[path] = PathState(
                    state.kind, state.mode, state.owner, state.group, state.changed, "", sums.get(path, "")
                )
        return FileSetState(paths, parse_unit(properties), stamp)
