"""What is to be done about a container, a network, a volume, images: looked at on the host by what also changes them."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyinfra.api import FactBase

from facts.records import Record

_PROGRAMS = Path(__file__).parents[1] / "files" / "container"


@dataclass(frozen=True)
class ContainerState(Record):
    """
    What ``Container`` returns.

    + engine: whether a Docker engine answers on the host
    + id: of the container, empty when there is none
    + spec_hash: of the spec that it was made from
    + environment_hash: SHA-256 of its environment's file; empty when that is missing or open to others
    + has_file: whether that file is there at all
    + anew: why it must be made anew, as far as it can be seen without the environment
    + repair: what can be put right in place
    + refused: why nothing can be said, e.g. a container that is not ours has the name
    """

    engine: bool = False
    id: str = ""
    spec_hash: str = ""
    environment_hash: str = ""
    has_file: bool = False
    anew: list[str] = field(default_factory=list)
    repair: list[str] = field(default_factory=list)
    refused: str = ""


def _program(*names: str, values: Mapping[str, Any]) -> str:
    """Return the command that runs programs of ``files/container``; a host without Python prints nothing."""
    parts = [(_PROGRAMS / name).read_text() for name in names]
    parts.append(f"main(json.loads({json.dumps(values)!r}))")
    return "! command -v python3 >/dev/null || python3 -B -c " + shlex.quote("\n".join(parts))


class Container(FactBase[ContainerState]):
    """
    Returns the ``ContainerState`` of one container.

    + container: its name
    + spec: plain data of the spec without its environment, or None to ask only whether it is there
    + pull: ``moved`` has the registry asked whether the tag means another image now

    .. code:: python

        ContainerState(engine=True, id="3f4e…", spec_hash="9f86…", anew=[], repair=["limit memory"], …)
    """

    default = ContainerState

    def command(
        self, container: str, spec: Mapping[str, Any] | None = None, pull: str = "missing"
    ) -> str:
        values = {"container": container, "spec": spec, "pull": pull}
        return _program("engine.py", "compare.py", "state.py", values=values)

    def process(self, output: list[str]) -> ContainerState:
        return ContainerState(**json.loads(output[-1]))


class _Owed(FactBase[list[str] | None]):
    """Returns what is to be done in words, or None when no engine can be asked."""

    @staticmethod
    def default() -> None:
        return None

    def process(self, output: list[str]) -> list[str] | None:
        owed: list[str] | None = json.loads(output[-1])
        return owed


class ContainerNetwork(_Owed):
    """
    Returns what is to be done about a network in words, or None when no engine can be asked.

    + network, internal, ipv6, present: as in ``operations.container.network``
    """

    def command(self, network: str, internal: bool = False, ipv6: bool = False, present: bool = True) -> str:
        values = {
            "network": network, "internal": internal, "ipv6": ipv6, "present": present, "change": False,
        }  # fmt: skip
        return _program("engine.py", "network.py", values=values)


class ContainerVolume(_Owed):
    """
    Returns what is to be done about a volume in words, or None when no engine can be asked.

    + volume, owner, mode, present: as in ``operations.container.volume``
    """

    def command(self, volume: str, owner: str = "", mode: str = "", present: bool = True) -> str:
        values = {"volume": volume, "owner": owner, "mode": mode, "present": present, "change": False}
        return _program("engine.py", "volume.py", values=values)


class ContainerImages(_Owed):
    """
    Returns those of the images that are not on the host for the platform, or None when no engine can be asked.

    + images: references; + platform: empty means the host's own
    """

    def command(self, images: Sequence[str], platform: str = "") -> str:
        values = {"images": list(images), "platform": platform, "change": False}
        return _program("engine.py", "images.py", values=values)
