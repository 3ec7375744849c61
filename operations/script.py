"""
Run a shell script of ``files/`` on a host.

The script, its values and any secret among them travel over stdin to ``sh -s``, so that nothing of them stands in
argv, in pyinfra's logs or in a temporary file. A script is plain POSIX sh that ``shellcheck`` can read: it defines
``main`` and takes its values from variables, which are set in front of it.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyinfra.api import Host, State, StringCommand
from pyinfra.connectors.util import CommandOutput

from settings.secret import Secret

FILES = Path(__file__).parents[1] / "files"

# Held while a program runs, and by what it starts, so that the next run's preflight can wait for what a killed run left
# running: pyinfra's death does not end a command on the host.
_HOLD = """umask 022
mkdir -p /run/hostwright
exec 8>>/run/hostwright/busy.lock
flock -s 8
"""

_HOLD_PYTHON = """import fcntl as _fcntl, os as _os
_os.umask(0o022)
_os.makedirs("/run/hostwright", exist_ok=True)
_busy = open("/run/hostwright/busy.lock", "a")
_fcntl.flock(_busy, _fcntl.LOCK_SH)
"""


class Told(StringCommand):
    """A command whose output is the result that its caller wants to see, not a log."""

    def execute(self, state: State, host: Host, connector_arguments: Any) -> tuple[bool, CommandOutput]:
        success, output = super().execute(state, host, connector_arguments)
        if success and not state.print_output:
            for line in output.stdout_lines:
                host.log(line)
        return success, output


Value = str | int | bool | Secret


def _assign(variable: str, value: Value) -> str:
    if isinstance(value, Secret):
        text = value.unmask()
    elif isinstance(value, bool):
        text = "yes" if value else ""
    else:
        text = str(value)
    return f"{variable}={shlex.quote(text)}"


def text(scripts: Sequence[str], variables: Mapping[str, Value]) -> str:
    """Return the whole program: the variables, the scripts in order, and the call of ``main``."""
    parts = [_assign(variable, value) for variable, value in variables.items()]
    parts += [(FILES / script).read_text() for script in scripts]
    # stdin is the program itself: a command that reads stdin would swallow the rest of it.
    parts.append("main </dev/null")
    return "\n".join(parts) + "\n"


def run(*scripts: str, **variables: Value) -> StringCommand:
    """
    Return the command that runs scripts of ``files/`` (paths relative to it) as one program on the host.

    While it runs it holds a shared lock on ``/run/hostwright/busy.lock``, which ``operations.preflight`` waits for.

    + scripts: read in order, the last one defines ``main``
    + variables: shell variables; ``True`` is ``yes``, ``False`` is empty, a ``Secret`` is unmasked here and only here
    """
    return StringCommand("sh -s", _stdin=_HOLD + text(scripts, variables))


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.unmask()
    raise TypeError(f"script.python: cannot send {type(value).__name__}")


def python_text(programs: Sequence[str], values: Mapping[str, Any]) -> str:
    """Return the whole Python program: the files in order, and the call of ``main`` with the values."""
    parts = [_HOLD_PYTHON, *((FILES / program).read_text() for program in programs)]
    # ASCII only, and quoted by Python itself: whatever a value holds, it stays one literal
    parts.append(f"import json as _json\nmain(_json.loads({json.dumps(values, default=_plain)!r}))")
    return "\n".join(parts) + "\n"


def python(*programs: str, values: Mapping[str, Any]) -> StringCommand:
    """
    Return the command that runs Python programs of ``files/`` as one program on the host, for what is too much for sh.

    The programs may use the standard library of Python 3.9 and nothing else, and no ``__future__`` imports. Like ``run``, everything travels over stdin and holds the shared lock.

    + programs: read in order, libraries first; the last one defines ``main(values)``
    + values: what can be written as JSON; a ``Secret`` anywhere in it is unmasked here and only here
    """
    return StringCommand("python3 -B -", _stdin=python_text(programs, values))
