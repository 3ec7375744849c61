"""What is measured, in which order, and what the samples say. Pure: no host, no clock."""

from __future__ import annotations

import random
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

TOOLS = ("hostwright", "ansible", "floor")
RUNS = ("first", "no-change")


@dataclass(frozen=True, order=True)
class Case:
    """One thing to measure.

    + run: "first" (from pristine hosts) or "no-change" (hosts are as they should be)
    + hosts: how many at once
    + delay_ms: round trip to each of them, in milliseconds
    + tool: one of TOOLS
    """

    run: str
    hosts: int
    delay_ms: int
    tool: str

    def __str__(self) -> str:
        return f"{self.tool}, {self.run}, {self.hosts} host{'s' if self.hosts > 1 else ''}, {self.delay_ms} ms"


@dataclass(frozen=True)
class Sample:
    """One run as it went.

    + seconds: from starting the command to its end
    + changed: what it says it changed, by host or operation; empty for a run without changes
    + load: the machine's load average over one minute before the run
    """

    case: Case
    seconds: float
    changed: tuple[str, ...]
    load: float


@dataclass(frozen=True)
class Summary:
    """The samples of one case: how many, their median, fastest and slowest, in seconds."""

    case: Case
    count: int
    median: float
    fastest: float
    slowest: float


def plan(
    run: str, hosts: int, delays_ms: Sequence[int], tools: Sequence[str], rounds: int, seed: int
) -> list[Case]:
    """Return the cases of one kind of run in the order in which they are measured.

    Rounds are interleaved: each holds every tool at every delay once, in an order of its own, so that a machine which
    is busy for a minute does not slow down one tool alone.

    + seed: the same seed gives the same order
    """
    shuffled = random.Random(f"{seed} {run} {hosts}")
    order: list[Case] = []
    for _ in range(rounds):
        once = [Case(run, hosts, delay, tool) for delay, tool in product(delays_ms, tools)]
        shuffled.shuffle(once)
        order += once
    return order


def summarise(samples: Iterable[Sample]) -> dict[Case, Summary]:
    """Return the median and the spread of each case, cases in their natural order."""
    seconds: dict[Case, list[float]] = {}
    for sample in samples:
        seconds.setdefault(sample.case, []).append(sample.seconds)
    return {
        case: Summary(case, len(times), statistics.median(times), min(times), max(times))
        for case, times in sorted(seconds.items())
    }


def ratio(summaries: dict[Case, Summary], case: Case, to: str) -> float | None:
    """Return how many times as long the case's tool takes as the tool ``to``; None when either was not measured."""
    other = summaries.get(Case(case.run, case.hosts, case.delay_ms, to))
    mine = summaries.get(case)
    if mine is None or other is None or other.median == 0:
        return None
    return mine.median / other.median


def parse_recap(output: str) -> dict[str, dict[str, int]]:
    """Return Ansible's PLAY RECAP: host to its counters (ok, changed, unreachable, failed, skipped, …)."""
    _, _, recap = output.rpartition("PLAY RECAP")
    counted = {}
    for line in recap.splitlines():
        host, _, counters = line.partition(" : ")
        pairs = re.findall(r"(\w+)=(\d+)", counters)
        if pairs:
            counted[host.strip()] = {key: int(number) for key, number in pairs}
    return counted
