"""What container engine a host has, where its packages come from, and which configuration it runs on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyinfra.api import FactBase, QuoteString, StringCommand

from facts.fileset import STAMPS
from facts.records import Record

DAEMON_JSON = "/etc/docker/daemon.json"
SOURCE_FILE = "/etc/apt/sources.list.d/docker.sources"
KEY_FILE = "/etc/apt/keyrings/docker.asc"
_FILES = Path(__file__).parents[1] / "files" / "engine"


@dataclass(frozen=True)
class EngineState(Record):
    """
    What ``Engine`` returns.

    + packages: (version, held) of those asked for that are installed
    + sources: files of apt that lead to Docker's own packages; + keys: fingerprints in its key file
    + apparmor: the kernel enforces it, so the engine needs its parser
    + version: of the installed engine, empty when there is none
    + replaced: the engine runs a program that an update has replaced since
    + daemon_keys: the keys of daemon.json, each with a hash of its value
    + stamp: (content hash, unit invocation) of our last action on daemon.json, if any
    """

    release: tuple[str, str] = ("", "")
    codename: str = ""
    packages: dict[str, tuple[str, bool]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    source_sha256: str = ""
    keys: tuple[str, ...] = ()
    apparmor: bool = False
    snap: bool = False
    version: str = ""
    load: str = ""
    active: str = ""
    enabled: str = ""
    invocation: str = ""
    replaced: bool = False
    daemon_keys: dict[str, str] = field(default_factory=dict)
    daemon_sha256: str = ""
    stamp: tuple[str, ...] = ()


def parse(text: str) -> EngineState:
    """Return the state that ``files/engine/state.py`` tells of."""
    found = json.loads(text)
    system = found.pop("system")
    return EngineState(
        release=(system["id"], system["version_id"]),
        codename=system["version_codename"],
        packages={name: (version, held) for name, (version, held) in found.pop("packages").items()},
        sources=tuple(found.pop("sources")),
        keys=tuple(found.pop("keys")),
        stamp=tuple(found.pop("stamp")),
        **found,
    )


class Engine(FactBase[EngineState]):
    """
    Returns the state of the container engine.

    + packages: names to look for
    + repository: what counts as a source of Docker's packages besides Docker's own addresses
    + stamp_key: name of the stamp file below ``/var/lib/hostwright/applied``

    .. code:: python

        EngineState(
            release=("debian", "12"), codename="bookworm", packages={"docker.io": ("20.10.24+dfsg1-1+b3", True)},
            version="20.10.24+dfsg1", load="loaded", active="active", enabled="enabled",
            daemon_keys={"live-restore": "b5bea41b…"}, …
        )
    """

    default = EngineState

    def command(
        self, packages: Sequence[str] = (), repository: str = "", stamp_key: str = ""
    ) -> StringCommand:
        values = {
            "packages": list(packages),
            "repository": repository,
            "source_file": SOURCE_FILE,
            "key_file": KEY_FILE,
            "daemon_json": DAEMON_JSON,
            "stamp": f"{STAMPS}/{stamp_key}",
        }
        parts = [(_FILES / name).read_text() for name in ("openpgp.py", "sources.py", "state.py")]
        program = "\n".join([*parts, f"main({values!r})"])
        # Exit status 0 whatever happens: pyinfra gives a host up when a fact fails.
        return StringCommand("python3", "-B", "-c", QuoteString(program), "||", "true")

    def process(self, output: list[str]) -> EngineState:
        return parse(output[-1])
