"""
Self-hosted runners of GitHub Actions: a pinned release, and a number of runners with a user and a cage each.

The runner's own ``svc.sh`` wants a registration token in argv, updates itself, and leaves one job's files to the next.
Here a program of root's registers, cleans and unregisters (``files/ci_runner/ci-runner.py``); jobs have no way to it.
"""

import hashlib
import json
import re
from collections.abc import Generator, Mapping
from typing import Any

from pyinfra import host
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.ci_runner import RELEASES, CiRunners, CiRunnerState
from operations import script
from settings.ci_runner import ARCHITECTURES

CONFIG = "/etc/hostwright/ci-runner"
UNIT = "/etc/systemd/system/ci-runner@.service"

_NAMES = {kernel: name for name, kernel in ARCHITECTURES.items()}


def release_id(version: str, sha256: str) -> str:
    """Name a release after what it is: known before anything is fetched."""
    return f"{version}-{sha256[:8]}"


def mark(config: Mapping[str, Any], unit: str) -> str:
    """Return a hash of what a runner is started with: one that has another is to be started anew."""
    return hashlib.sha256((json.dumps(config, sort_keys=True) + unit).encode()).hexdigest()[:16]


@operation()
def release(version: str, sha256: Mapping[str, str], url: str) -> Generator[StringCommand, None, None]:
    """
    Have one release of the runner in ``/opt/ci-runner``, for the host's architecture.

    + version: e.g. ``2.320.0``; + sha256: of the archive by architecture, ``x64`` and ``arm64``
    + url: with ``{version}`` and ``{architecture}`` where they stand in it

    An archive with another sum is refused with nothing installed. Older releases are removed.
    """
    faults = []
    if not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", version):
        faults.append(f"version must be like '2.320.0', got {version!r}")
    faults += [f"sha256 of {key} must be 64 hex digits, got {value!r}" for key, value in sha256.items() if not re.fullmatch(r"[0-9a-f]{64}", value)]
    if faults:
        raise OperationValueError("ci_runner.release: " + "; ".join(faults))
    state = host.get_fact(CiRunners)
    architecture = _NAMES.get(state.architecture, state.architecture)
    if architecture not in sha256:
        raise OperationError(f"ci_runner.release: no sum is pinned for {architecture}, write ci_runner_sha256 = {{{architecture!r}: …}}")
    wanted = release_id(version, sha256[architecture])
    if state.releases == (wanted,):
        host.noop(f"release {wanted} is there")
        return
    yield script.run(
        "ci_runner/install.sh",
        releases=RELEASES,
        id=wanted,
        url=url.format(version=version, architecture=architecture),
        sha256=sha256[architecture],
    )


def steps(state: CiRunnerState, count: int, wanted: str) -> dict[str, list[int]]:
    """
    Return the numbers of the runners to remove, create, start and restart, and of those that wait for the end of a job.

    A runner with a job is never stopped for new settings: an ephemeral one takes them when its job is over.
    """
    found: dict[str, list[int]] = {"remove": [], "create": [], "start": [], "restart": [], "wait": []}
    for number in range(1, count + 1):
        runner = state.runners.get(number)
        if runner is None:
            found["create"].append(number)
        elif not runner.enabled or runner.active in ("inactive", "failed"):
            found["start"].append(number)
        elif runner.mark and runner.mark != wanted:
            found["wait" if runner.is_busy else "restart"].append(number)
    found["remove"] = sorted(number for number in state.runners if number > count)
    return found


@operation()
def runners(count: int, mark: str, ephemeral: bool = True, seconds: int = 180) -> Generator[StringCommand, None, None]:
    """
    Have this number of runners, each started with the present settings.

    + count: 0 to 32; those above it are stopped, unregistered and removed with their users
    + mark: of what they are started with, see ``mark``; + ephemeral: whether they end after a job; + seconds: time that they have to come up (s)

    What is written to ``/etc/hostwright/ci-runner`` and the unit are a matter of ``fileset``, before this.
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 32:
        raise OperationValueError(f"ci_runner.runners: count must be a whole number of 0 to 32, got {count!r}")
    found = steps(host.get_fact(CiRunners), count, mark)
    for number in found.pop("wait"):
        host.log(f"runner {number} has a job, it takes the new settings " + ("after it" if ephemeral else "in a run after it: run again then"))
    if not any(found.values()):
        host.noop(f"{count} runners are as wanted")
        return
    command = script.run("ci_runner/runners.sh", seconds=seconds, mark="" if ephemeral else mark,
                         **{key: " ".join(map(str, numbers)) for key, numbers in found.items()})  # fmt: skip
    # told: what is left to do by hand, with a runner that cannot be taken out of the list from here
    yield script.Told(*command.bits, _stdin=command.connector_arguments["_stdin"])
