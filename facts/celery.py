"""What the instances of a Celery worker are on a host: one command."""

import shlex
from dataclasses import dataclass, field

from pyinfra.api import FactBase

from facts.records import Record

PROGRAM = "/usr/local/lib/hostwright/celery-workers"


@dataclass(frozen=True)
class WorkerState(Record):
    """One instance. ``state``: systemd's; ``enabled``: starts at boot; ``fits``: was started with the files that stand there."""

    state: str
    enabled: bool
    fits: bool


@dataclass(frozen=True)
class CeleryState(Record):
    """+ workers: by number; + previous: there is an earlier release to go back to"""

    workers: dict[int, WorkerState] = field(default_factory=dict)
    previous: bool = False

    def is_right(self, count: int) -> bool:
        """Whether exactly the instances 1 to ``count`` run as their files say; one that is on its way out does not count."""
        return all(
            (one.state == "active" and one.enabled and one.fits)
            if number <= count
            else (one.state in ("inactive", "deactivating") and not one.enabled)
            for number, one in self.workers.items()
        ) and set(range(1, count + 1)) <= set(self.workers)


class CeleryWorkers(FactBase[CeleryState]):
    """
    Returns the instances of a Celery worker.

    + app: the template's name, e.g. ``shop-worker`` of ``shop-worker@.service``

    .. code:: python

        CeleryState(workers={1: WorkerState("active", True, True)}, previous=False)
    """

    default = CeleryState

    def command(self, app: str) -> str:
        return f"[ ! -x {PROGRAM} ] || {PROGRAM} look {shlex.quote(app)} 2>/dev/null; true"

    def process(self, output: list[str]) -> CeleryState:
        rows = [line.split("\t") for line in output]
        return CeleryState(
            {int(row[1]): WorkerState(row[2], row[3] == "yes", row[4] == "yes") for row in rows if row[0] == "worker"},
            any(row[0] == "previous" for row in rows),
        )
