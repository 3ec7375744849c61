"""One set of variables, written for the program that reads it. Each consumer has its own idea of quotes.

    systemd      EnvironmentFile= of a unit
    shell        `set -a; . FILE` in a POSIX shell
    supervisor   the value of `environment=` in a [program:x] section
    docker       docker --env-file
    compose      env_file: of Docker Compose (v2)

What a consumer cannot hold is refused, never bent: the round trips through the real consumers are in
tests/lab/test_env.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

from settings.secret import Secret

Consumer = Literal["systemd", "docker", "compose", "shell", "supervisor"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class EnvError(ValueError):
    """A variable that the consumer cannot hold: names the key and the rule, never the value."""


def render(variables: Mapping[str, str | Secret], *, consumer: Consumer) -> str:
    """Return the file (for supervisor: the one line) that gives `consumer` exactly these variables, in this order.

    The result holds the secrets in clear: hand it on as `Secret(render(...))`.
    Raise EnvError for a name that is no variable, a value that is not text, and characters that
    the consumer cannot hold.
    """
    quote = _QUOTERS[consumer]
    rows = []
    for name, given in variables.items():
        if not _NAME.fullmatch(name):
            raise EnvError(f"{name}: must be a variable name of letters, digits and _")
        value = given.unmask() if isinstance(given, Secret) else given
        if not isinstance(value, str):
            raise EnvError(f"{name}: must be text, got {type(value).__name__}")
        control = re.search(r"[\x00-\x08\x0b-\x1f\x7f]", value)
        if control:
            raise EnvError(f"{name}: must not hold the control character {ord(control[0]):#04x}")
        if "\n" in value and consumer not in {"systemd", "shell", "compose"}:
            raise EnvError(f"{name}: {consumer} cannot hold a newline")
        rows.append(f"{name}={quote(name, value)}")
    return ",".join(rows) if consumer == "supervisor" else "".join(f"{row}\n" for row in rows)


def _systemd(name: str, value: str) -> str:
    """Double quotes; inside them systemd takes a backslash as escape only before these four (env-file.c)."""
    return '"' + re.sub(r'(["\\`$])', r"\\\1", value) + '"'


def _shell(name: str, value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def _supervisor(name: str, value: str) -> str:
    """Whichever quote the value has not: supervisor knows no escape inside them, and strips quotes at both ends.

    `%` is doubled because supervisor expands %(here)s first; ` ;` and ` #` start a comment even inside quotes.
    """
    if re.search(r"\s[;#]", value):
        raise EnvError(f"{name}: supervisor cannot hold ; or # after a space")
    if "%(here)s" in value:  # replaced before % is expanded: doubling the % does not help
        raise EnvError(f"{name}: supervisor cannot hold %(here)s")
    if value[:1] in {"'", '"'} or value[-1:] in {"'", '"'}:
        raise EnvError(f"{name}: supervisor cannot hold a quote at the beginning or end")
    quote = "'" if '"' in value else '"'
    if quote in value:
        raise EnvError(f"{name}: supervisor cannot hold both kinds of quotes")
    return quote + value.replace("%", "%%") + quote


def _docker(name: str, value: str) -> str:
    """No quoting at all: the rest of the line is the value, quotes and # included."""
    if value != value.strip():
        raise EnvError(f"{name}: docker cannot hold a space at the beginning or end")
    return value


def _compose(name: str, value: str) -> str:
    """Double quotes, in which everything has its escape. In single quotes nothing says a backslash before a quote."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("\n", "\\n")
    return f'"{escaped}"'


_QUOTERS: dict[str, Callable[[str, str], str]] = {
    "systemd": _systemd,
    "docker": _docker,
    "compose": _compose,
    "shell": _shell,
    "supervisor": _supervisor,
}
