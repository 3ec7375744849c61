"""Both colours of one application: what is installed, what runs and on what, and which one serves."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pyinfra.api import FactBase

from facts.records import Record

_SCRIPTS = Path(__file__).parents[1] / "files" / "rollout"

Colour = Literal["blue", "green"]
Manager = Literal["systemd", "supervisor"]


@dataclass(frozen=True)
class ColourState(Record):
    """
    One colour under one supervisor.

    + state: ``running``, ``starting``, ``stopping``, ``failed`` or ``stopped``
    + installed: hash over the files as they stand; + started: the same as it was at the last start
    + spec: id of the stored spec that the files equal, or empty
    + modes: mode:owner:group of the service file and the environment file
    + enabled: starts at boot and bears the application's plain name; + starts_at_boot: the first of the two
    + health: ``ok``, or what was answered; empty when it was not asked (only the active colour is)
    """

    state: str = "stopped"
    installed: str = ""
    started: str = ""
    spec: str = ""
    modes: str = ""
    enabled: bool = False
    starts_at_boot: bool = False
    needs_reload: bool = False
    health: str = ""


@dataclass(frozen=True)
class Stored(Record):
    """A spec in the host's store: its supervisor and its release directory."""

    manager: str
    release: str


@dataclass(frozen=True)
class RolloutState(Record):
    """What ``Rollout`` returns; ``active`` and ``previous`` (id of the spec to roll back to) may be empty."""

    active: str = ""
    colours: dict[tuple[str, str], ColourState] = field(default_factory=dict)
    previous: str = ""
    stored: dict[str, Stored] = field(default_factory=dict)


def parse(lines: list[str]) -> RolloutState:
    """Read what ``files/rollout/state.sh`` prints."""
    active, previous = "", ""
    stored: dict[str, Stored] = {}
    colours: dict[tuple[str, str], dict[str, str]] = {}
    values: dict[str, str] = {}
    for line in lines:
        key, _, value = line.strip().partition("=")
        if key == "active":
            active = value
        elif key == "previous":
            previous = value
        elif key == "stored":
            name, manager, release = value.split(" ", 2)
            stored[name] = Stored(manager, release)
        elif key == "colour":
            colour, manager, state = (word.rpartition("=")[2] for word in value.split(" "))
            values = colours.setdefault((colour, manager), {"state": state})
        else:
            values[key] = value.strip()
    return RolloutState(
        active,
        {
            pair: ColourState(
                state=found["state"],
                installed=found.get("installed", ""),
                started=found.get("started", ""),
                spec=found.get("spec", ""),
                modes=found.get("modes", ""),
                enabled=found.get("enabled") == "yes",
                starts_at_boot=found.get("starts_at_boot") == "yes",
                needs_reload=found.get("needs_reload") == "yes",
                health=found.get("health", ""),
            )
            for pair, found in colours.items()
        },
        previous,
        stored,
    )


class Rollout(FactBase[RolloutState]):
    """
    Return the ``RolloutState`` of one application.

    + app: its name
    + health_path: what the active colour is asked for; empty: what its own spec says
    """

    def command(self, app: str, health_path: str = "") -> str:
        head = f"app={shlex.quote(app)} health_path={shlex.quote(health_path)} health_seconds=3\n"
        return head + "".join((_SCRIPTS / name).read_text() for name in ("colour.sh", "state.sh"))

    @staticmethod
    def default() -> RolloutState:
        return RolloutState()

    def process(self, output: list[str]) -> RolloutState:
        return parse(output)
