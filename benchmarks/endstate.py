"""What a host has become: read by one script, compared between tools, and the script that is the floor."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("endstate.sh")

# Differs between two hosts that were made by the same tool: identities, caches, clocks, and what embeds them.
VOLATILE = (
    r"/etc/(machine-id|hostname|hosts|mtab|ld\.so\.cache|resolv\.conf|\.pwd\.lock|\.updated)",
    r"/etc/(passwd|group|shadow|gshadow|subuid|subgid)-",
    r"/etc/shadow",  # the day of the last password change; accounts are compared by themselves
    r"/etc/ssh/ssh_host_.*",
    r"/etc/ssl/certs(/.*)?",
    r".*/__pycache__(/.*)?",
    r".*\.pyc",
)


@dataclass(frozen=True)
class Interest:
    """What of a host is looked at.

    + packages: Debian packages; none for all
    + domain: name under which the gateway must answer on the host itself
    """

    paths: tuple[str, ...]
    units: tuple[str, ...]
    users: tuple[str, ...]
    domain: str
    packages: tuple[str, ...] = ()


def script(interest: Interest, recurse: bool) -> str:
    """Return the shell script that prints the state of a host.

    + recurse: look at everything below the paths; else at the paths alone
    """
    words = {
        "paths": interest.paths, "packages": interest.packages, "units": interest.units, "users": interest.users,
    }  # fmt: skip
    lines = [f"{key}={shlex.quote(' '.join(value))}" for key, value in words.items()]
    lines += [f"domain={shlex.quote(interest.domain)}", f"recurse={'yes' if recurse else 'no'}"]
    return "\n".join(lines) + "\n" + _SCRIPT.read_text()


def _key(line: str) -> tuple[str, str]:
    kind, _, rest = line.partition(" ")
    if kind in ("entry", "content", "package", "unit", "user"):
        return kind, rest.partition(" ")[0]
    return kind, rest


def parse(state: str, ignore: Iterable[str] = VOLATILE) -> dict[tuple[str, str], str]:
    """Return (kind, what) to its line, without the paths that match ``ignore``."""
    pattern = re.compile("|".join(f"(?:{part})" for part in ignore) or r"(?!)")
    found = {}
    for line in state.splitlines():
        kind, what = _key(line)
        if kind not in ("entry", "content") or not pattern.fullmatch(what):
            found[kind, what] = line
    return found


def differences(left: str, right: str, ignore: Iterable[str] = VOLATILE) -> list[str]:
    """Return what differs between two states, as lines of a diff: "-" only left, "+" only right."""
    ours, theirs = parse(left, ignore), parse(right, ignore)
    found = []
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            found += [f"{sign}{side[key]}" for sign, side in (("-", ours), ("+", theirs)) if key in side]
    return found


def written(before: str, after: str, ignore: Iterable[str] = VOLATILE) -> tuple[str, ...]:
    """Return the paths that were made or changed between two states of one host."""
    was, now = parse(before, ignore), parse(after, ignore)
    return tuple(
        sorted({what for (kind, what), line in now.items() if kind in ("entry", "content") and was.get((kind, what)) != line})
    )
