"""A run of pyinfra that is killed somewhere: points spread over its operations, made from a seed, and the kill itself."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.lab.hosts import LabHost
from tests.lab.provision import environment
from tests.lab.state import REPOSITORY, wait_for

SEED = int(os.environ.get("HOSTWRIGHT_KILL_SEED", random.SystemRandom().randrange(10**6)))
_STARTED = re.compile(r"--> Starting operation: (.*?)\s*$")


@dataclass(frozen=True)
class Point:
    """Where a run is killed: so many seconds after the start of an operation.

    + operation: its number in the run, from 0
    """

    operation: int
    seconds: float


def spread(count: int, operations: int, longest: float = 2) -> list[Point]:
    """Return kill points spread evenly over a run, each somewhere within its stretch; the same for the same seed.

    + longest: most seconds after an operation's start
    """
    dice = random.Random(SEED)
    places = [(number + dice.random()) / count * operations for number in range(count)]
    return [Point(int(place), round(dice.uniform(0, longest), 2)) for place in places]


def kill_run(command: Sequence[str], env: Mapping[str, str], point: Point) -> str:
    """Start a run and kill it, with all of its processes, at a point or at its end; return the operation it was in.

    What it had started on the hosts goes on there for as long as it likes, as in life.

    + command: as ``provision.command_line`` returns it; + env: further environment variables
    """
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(env),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    names: list[str] = []
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if started := _STARTED.search(re.sub(r"\x1b\[[0-9;]*m", "", line)):
            names.append(started[1])
        if len(names) > point.operation:
            break
    time.sleep(point.seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(names) > point.operation, "the run ended before its kill point:\n" + "".join(said[-40:])
    return names[-1]


def moments(count: int, shortest: float, longest: float) -> list[float]:
    """Return so many times (s) after a run's start, anywhere between two; the same for the same seed, which is printed."""
    print(f"HOSTWRIGHT_KILL_SEED={SEED}")  # noqa: T201 - pytest shows it when the test fails
    dice = random.Random(SEED)
    return [dice.uniform(shortest, longest) for _ in range(count)]


def kill_after(command: Sequence[str], seconds: float, host: LabHost | None = None) -> None:
    """Start a run and kill it some time after that, not gently.

    + host: whose power fails a moment before, so that nothing ends there in good order; it boots again
    """
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    if host:
        host.kill()
    process.kill()
    process.wait()
    if host:
        host.boot()


def kill_both_ends(command: Sequence[str], env: Mapping[str, str], host: LabHost, lock: str, seconds: float) -> None:
    """Start a run, and kill it and the program that works for it on the host, some time after that has begun.

    + lock: file on the host that the program holds open while it works; + seconds: after it was seen to
    """
    run = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(env), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    holders = f"for p in /proc/[0-9]*; do ls -l $p/fd 2>/dev/null | grep -q {lock} && echo ${{p#/proc/}}; done"
    try:
        wait_for("the program on the host", lambda: host.run(holders, check=False).stdout.strip(), 120)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(seconds)
        host.run(f"kill -9 $({holders}) 2>/dev/null", check=False)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
