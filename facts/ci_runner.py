"""The runners of a CI host: which release is there, and how each runner is."""

import json
from dataclasses import dataclass, field

from pyinfra.api import FactBase

from facts.records import Record

RELEASES = "/opt/ci-runner"
PROGRAM = "/usr/local/lib/hostwright/ci-runner"


@dataclass(frozen=True)
class Runner(Record):
    """
    One runner.

    + active: as systemd has it; + enabled: whether it starts at boot
    + is_busy: whether it has a job; + mark: of the settings that it was started with, empty when it is stopped
    """

    active: str = ""
    enabled: bool = False
    is_busy: bool = False
    mark: str = ""


@dataclass(frozen=True)
class CiRunnerState(Record):
    """
    What ``CiRunners`` returns.

    + architecture: as the kernel has it; + releases: ids of those that are installed; + runners: by number
    """

    architecture: str = ""
    releases: tuple[str, ...] = ()
    runners: dict[int, Runner] = field(default_factory=dict)


class CiRunners(FactBase[CiRunnerState]):
    """
    Returns the ``CiRunnerState`` of the host.

    .. code:: python

        CiRunnerState(architecture="x86_64", releases=("2.320.0-9f86d081",), runners={1: Runner(active="active", …)})
    """

    default = CiRunnerState

    def command(self) -> str:
        return (
            f"echo architecture $(uname -m); echo releases $(ls {RELEASES} 2>/dev/null); "
            f"if [ -x {PROGRAM} ]; then {PROGRAM} status 2>/dev/null || true; fi"
        )

    def process(self, output: list[str]) -> CiRunnerState:
        found = {key: rest for key, _, rest in (line.partition(" ") for line in output)}
        status = next((line for line in output if line.startswith("{")), "")
        runners = json.loads(status)["runners"] if status else {}
        return CiRunnerState(
            found.get("architecture", ""),
            tuple(found.get("releases", "").split()),
            {int(number): Runner(**about) for number, about in runners.items()},
        )
