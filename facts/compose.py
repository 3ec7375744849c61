"""What is to be done about a Compose project: looked at on the host by what also changes it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from pyinfra.api import FactBase

from facts.records import Record

_FILES = Path(__file__).parents[1] / "files"


@dataclass(frozen=True)
class ComposeState(Record):
    """
    What ``Compose`` returns.

    + engine: whether a Docker engine answers on the host
    + version: of Compose v2, such as ``2.26.1``; empty when there is none
    + sha256: of the file that was last brought up and was well; empty when there is none
    + file_sha256: of the file that lies on the host now, empty when it is missing or open to others
    + files: SHA-256 of what the project mounts from its own directory, by path in it
    + profiles: that were on
    + running: services of which a container runs
    + volumes: its volumes, by name
    + anew: why ``up`` is needed although the file is the same
    + repair: what can be put right in place
    + refused: why nothing can be said
    """

    engine: bool = False
    version: str = ""
    sha256: str = ""
    file_sha256: str = ""
    files: dict[str, str] = field(default_factory=dict)
    profiles: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    anew: list[str] = field(default_factory=list)
    repair: list[str] = field(default_factory=list)
    refused: str = ""


class Compose(FactBase[ComposeState]):
    """
    Returns the ``ComposeState`` of one project.

    + project: its name
    + pull: ``moved`` has the registry asked whether a tag means another image now

    .. code:: python

        ComposeState(engine=True, version="2.26.1", sha256="3f4e…", running=["redis", "web"], anew=[], repair=[], …)
    """

    default = ComposeState

    def command(self, project: str, pull: str = "missing") -> str:
        programs = ("container/engine.py", "compose/project.py", "compose/state.py")
        parts = [(_FILES / name).read_text() for name in programs]
        parts.append(f"main({{'project': {project!r}, 'pull': {pull!r}}})")
        return "! command -v python3 >/dev/null || python3 -B -c " + quote("\n".join(parts))

    def process(self, output: list[str]) -> ComposeState:
        return ComposeState(**json.loads(output[-1]))
