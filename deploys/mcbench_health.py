"""How well a host's components are: a command for operators, and a page of its web sites for declared networks."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import StringCommand, operation

from operations import fileset, script, template, unit
from operations.fileset import Absent, Directory, Entry, File
from settings.mcbench import WEB, WORKERS

PROGRAM = "/usr/local/bin/mcbench-health"
CONFIG = "/etc/hostwright/mcbench-health.json"
SOCKET = "/run/mcbench-health.sock"
PATH = "/mcbench-health"
"""The page; with ``.json`` after it, the same for programs."""

_PARTS = ("container/engine.py", "mcbench/health.py")
_LISTENER = "mcbench-health.socket"
_UNITS = tuple(f"/etc/systemd/system/{name}" for name in (_LISTENER, "mcbench-health@.service"))


def program_text() -> str:
    """Return the program for the host: one file, put together from those of ``files``."""
    return "#!/usr/bin/python3 -I\n" + "\n\n".join((script.FILES / part).read_text() for part in _PARTS)


def config_text(name: str, components: Sequence[str]) -> str:
    """Return what the program reads: the host's name, and of each component whether it is one of several replicas."""
    return json.dumps({"host": name, "components": {each: each in (*WEB, *WORKERS) for each in components}}, indent=1) + "\n"


@operation()
def health(components: Sequence[str], is_served: bool) -> Generator[StringCommand, None, None]:
    """
    Have the command ``mcbench-health`` on a host, and what nginx asks for its page.

    + components: that are to run there
    + is_served: whether nginx has the page; then a socket is there that starts the command for each request
    """
    command: list[Entry] = [
        Directory("/etc/hostwright", mode="0755"),
        File(PROGRAM, program_text(), mode="0755"),
        File(CONFIG, config_text(host.name, components)),
    ]
    if not is_served:
        yield from unit.unit._inner(unit=_LISTENER, running=False, enabled=False)
        yield from fileset.files._inner(entries=[*command, *map(Absent, _UNITS)])
        return
    texts = (
        template.render("mcbench/mcbench-health.socket.j2", socket=SOCKET),
        template.render("mcbench/mcbench-health@.service.j2", program=PROGRAM),
    )
    yield from fileset.files._inner(entries=[*command, *map(File, _UNITS, texts)])
    yield from unit.unit._inner(unit=_LISTENER, inputs=[_UNITS[0]])
