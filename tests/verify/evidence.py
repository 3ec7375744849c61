"""What the checks of one host look at, read by one remote command: over 50 ms a check for each would take minutes."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from testinfra.host import Host as Shell

SECONDS_PER_COMMAND = 20


class Unreachable(Exception):
    """No command ran on the host; the text is what ssh or sudo said."""


@dataclass(frozen=True)
class Output:
    """What one command printed on both of its outputs, and its exit status (124: it took too long)."""

    rc: int
    text: str

    @property
    def lines(self) -> list[str]:
        """The lines that are not empty."""
        return [line.rstrip() for line in self.text.splitlines() if line.strip()]


def gather(shell: Shell, commands: Mapping[str, str]) -> dict[str, Output]:
    """Run shell commands that only read, in the given order, in one round trip; return their outputs by name.

    Raises Unreachable when ssh does not get in or sudo is refused.
    """
    mark = secrets.token_hex(8)  # a line of a log that looks like our separator must not end an output
    script = "".join(
        f"timeout {SECONDS_PER_COMMAND} sh -c {shlex.quote(command)} </dev/null 2>&1\n"
        f"printf '\\n%s %s %s\\n' {mark} {shlex.quote(name)} $?\n"
        for name, command in commands.items()
    )
    try:
        done = shell.run(f"LC_ALL=C.UTF-8; export LC_ALL\n{script}")
    except RuntimeError as error:  # testinfra's word for ssh's exit status 255, with the whole command in it
        raise Unreachable(error.args[0].stderr.strip()) from None
    pieces = re.split(rf"\n{mark} (\S+) (\d+)\n", done.stdout)
    found = {name: Output(int(rc), text) for text, name, rc in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=False)}
    if missing := [name for name in commands if name not in found]:
        raise Unreachable(f"no output of {missing[0]}, exit status {done.rc}: {done.stderr.strip() or done.stdout[-300:]}")
    return found
