"""Rotation of log files, checked by logrotate itself together with everything else it reads."""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pyinfra.api import OperationValueError, StringCommand, operation

from operations import fileset, template
from operations.fileset import Absent, File

RULES = "/etc/logrotate.d"
FREQUENCIES = ("hourly", "daily", "weekly", "monthly")

_LOG = re.compile(r"[a-z0-9][a-z0-9_-]*")
_SIZE = re.compile(r"[1-9]\d*[kMG]?")
_ACCOUNT = r"[a-z_][a-z0-9_-]*"


@dataclass(frozen=True)
class Rules:
    """The arguments of ``logrotate.log``, as the template takes them."""

    paths: Sequence[str]
    frequency: str
    keep: int
    max_size: str
    create: str
    su: str
    copy_truncate: bool
    post_rotate: str

    def faults(self) -> list[str]:
        """Return every rule that they break, one line each."""
        faults = []
        if not self.paths:
            faults.append("paths must name at least one log file")
        for path in self.paths:
            # logrotate splits at blanks, and '{' starts its block: quoting works, but globs inside quotes do not everywhere
            if not path.startswith("/") or re.search(r"[\s\"'{}#]", path) or "/../" in path:
                faults.append(f"paths must be absolute, without blanks, quotes, braces or '#', got {path!r}")
        if self.frequency not in FREQUENCIES:
            faults.append(f"frequency must be one of {', '.join(FREQUENCIES)}, got {self.frequency!r}")
        if not 1 <= self.keep <= 1000:
            faults.append(f"keep must be 1 to 1000, got {self.keep!r}")
        if self.max_size and not _SIZE.fullmatch(self.max_size):
            faults.append(f"max_size must be a number with k, M or G, e.g. '100M', got {self.max_size!r}")
        if self.create and not re.fullmatch(rf"0?[0-7]{{3}} {_ACCOUNT} {_ACCOUNT}", self.create):
            faults.append(f"create must be 'MODE OWNER GROUP', e.g. '0640 www-data adm', got {self.create!r}")
        if self.su and not re.fullmatch(rf"{_ACCOUNT} {_ACCOUNT}", self.su):
            faults.append(f"su must be 'USER GROUP', got {self.su!r}")
        if self.copy_truncate and self.create:
            faults.append("create has no effect with copy_truncate: give one of them")
        if re.search(r"^\s*endscript\s*$", self.post_rotate, re.MULTILINE):
            faults.append("post_rotate may not hold a line 'endscript'")
        return faults


@operation()
def log(
    log: str,
    paths: Sequence[str] = (),
    frequency: str = "daily",
    keep: int = 14,
    max_size: str = "",
    create: str = "",
    su: str = "",
    copy_truncate: bool = False,
    post_rotate: str = "",
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Rotate a set of log files; old ones are compressed, missing ones are no error.

    + log: name of the rule file below ``/etc/logrotate.d``; lower case, digits, ``-`` and ``_``
    + paths: log files or globs, absolute
    + frequency: ``hourly``, ``daily``, ``weekly`` or ``monthly``; hourly works only where logrotate runs every hour
    + keep: how many old files stay
    + max_size: rotate also before its time when the file is larger, e.g. ``100M``; seen only when logrotate runs
    + create: ``MODE OWNER GROUP`` of the new file; empty: like the old one
    + su: ``USER GROUP`` that rotates; needed when the directory belongs to the application
    + copy_truncate: for a writer that cannot reopen its file; lines written during the copy may be lost
    + post_rotate: shell lines that make the writer reopen its file
    + present: ``False`` removes the rules; the logs stay

    logrotate exits 0 on an option that it does not know, so its messages decide: nothing is changed when it has an error
    to tell about these rules, or about a log file that two rules name.

    Raises ``OperationValueError`` for arguments that break a rule.

    **Example:**

    .. code:: python

        logrotate.log("shop", paths=["/var/log/shop/*.log"], su="shop shop", copy_truncate=True, name="Rotate shop logs")
    """
    if not _LOG.fullmatch(log):
        raise OperationValueError(
            f"logrotate.log: log must be lower case letters, digits, '-' and '_', got {log!r}"
        )
    path = f"{RULES}/{log}"
    if not present:
        yield from fileset.files._inner(entries=[Absent(path)])
        return
    rules = Rules(tuple(paths), frequency, keep, max_size, create, su, copy_truncate, post_rotate.strip("\n"))
    if faults := rules.faults():
        raise OperationValueError("logrotate.log: " + "; ".join(f"{log}: {fault}" for fault in faults))
    yield from fileset.files._inner(
        entries=[File(path, template.render("logrotate/rules.j2", rules=rules))],
        validate=_check(log, rules.paths),
        within=RULES,
    )


def _check(log: str, paths: Sequence[str]) -> str:
    # The whole configuration is read, for its global lines (Ubuntu: `su root adm`) and to find a log named twice. What
    # is wrong with rules of others does not concern us.
    directories = {re.escape(str(PurePosixPath(path).parent)) for path in paths}
    about_us = "|".join(
        [re.escape(log) + ":", ".*duplicate log entry", *(f".*{d}/" for d in sorted(directories))]
    )
    return (
        "command -v logrotate >/dev/null || { echo logrotate is not installed; exit 1; }; "
        f"! logrotate -d /etc/logrotate.conf 2>&1 | grep -E '^error: ({about_us})'"
    )
