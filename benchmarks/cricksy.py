"""OCR of cricksy on one lab host: pages per minute with and without the thread limit, with as many tasks as cores and twice as many."""

from __future__ import annotations

import datetime
import json
import os
import random
import statistics
import tempfile
import textwrap
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measure import machine
from tests.lab import cricksy_load
from tests.lab.cricksy_fleet import Fleet, fleet_of
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.state import wait_for

TASKS = 24
UNIT = "cricksy-worker@1"
_WORDS = (
    "The quick brown fox jumps over the lazy dog while seventeen patient clerks count 4711 sheets of paper, fold them twice and "
    "put every one of them into the drawer that is marked with the number of the year. "
)


def page(target: Path) -> None:
    """Write an image of a page of text, as a scanner of 150 dots per inch would."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.27, 11.69), dpi=150)
    lines = textwrap.wrap(_WORDS * 14, 78)[:44]
    figure.text(0.08, 0.95, "\n".join(lines), va="top", family="DejaVu Serif", fontsize=11, linespacing=1.4)
    figure.savefig(target)


class Reading:
    """One worker of one host, restarted for each round with what the round wants."""

    def __init__(self, fleet: Fleet, client: LabHost, image: Path, tasks: int) -> None:
        self._fleet, self._client, self._image, self._tasks = fleet, client, image, tasks

    def round(self, limited: bool, concurrency: int) -> float:
        """Return the seconds from the first task's begin to the last one's end, by the database's clock."""
        host = self._fleet.front
        host.run(f"systemctl stop {UNIT}", timeout=120)
        host.write("/etc/bench.env", f"CELERY_CONCURRENCY={concurrency}\n")
        unset = "" if limited else "UnsetEnvironment=OMP_THREAD_LIMIT\n"
        host.write(f"/etc/systemd/system/{UNIT.partition('@')[0]}@.service.d/bench.conf", f"[Service]\nEnvironmentFile=/etc/bench.env\n{unset}")
        self._sql("TRUNCATE upload, execution")
        sending = cricksy_load.sending(self._fleet, self._client, self._tasks, 0, "--image", str(self._image), "--read-every", "1")
        if sending.wait(180) != 0:
            raise RuntimeError("the tasks could not be queued")
        host.run(f"systemctl daemon-reload && systemctl start {UNIT}", timeout=60)
        done = "SELECT count(*) FROM upload WHERE state = 'done' AND length(text) > 1000"
        wait_for("the pages", lambda: self._sql(done) == str(self._tasks), 900, pause=1)
        return float(self._sql("SELECT extract(epoch FROM max(ended) - min(at)) FROM execution"))

    def _sql(self, text: str) -> str:
        return self._fleet.front.run("cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d cricksy_scorer", input=text).stdout.strip()


def measure(console: Console, slot: int, output: Path, rounds: int, seed: int, tasks: int = TASKS) -> None:
    """Measure every combination in every round, each round in an order of its own.

    + rounds: how often; + tasks: pages in each
    """
    lab = Lab(slot)
    cores = os.cpu_count() or 1
    shuffled = random.Random(seed)
    samples: list[dict[str, Any]] = []
    about = {"date": datetime.date.today().isoformat(), "machine": machine(), "cores": cores, "pages": tasks, "seed": seed, "samples": samples}
    try:
        with tempfile.TemporaryDirectory(prefix="bench-cricksy-") as scratch:
            image = Path(scratch) / "page.png"
            page(image)
            client = lab.host("bench-stranger")
            with fleet_of(lab, Path(scratch) / "fleet", alone=True) as fleet:
                run = fleet.run(worker_concurrency=cores)
                if not run.ok:
                    raise RuntimeError(str(run))
                reading = Reading(fleet, client, image, tasks)
                for number in range(rounds):
                    cases = list(product((True, False), (cores, 2 * cores)))
                    shuffled.shuffle(cases)
                    for limited, concurrency in cases:
                        load = os.getloadavg()[0]
                        seconds = reading.round(limited, concurrency)
                        samples.append({"limited": limited, "concurrency": concurrency, "seconds": round(seconds, 2), "load_before": round(load, 2)})
                        console.print(f"round {number + 1}: {samples[-1]}")
                        output.parent.mkdir(parents=True, exist_ok=True)
                        output.write_text(json.dumps(about, indent=1) + "\n")
    finally:
        lab.close()
    console.print(markdown(json.loads(output.read_text())))


def markdown(result: dict[str, Any]) -> str:
    """Return the table of docs/cricksy.md: medians, and how many times as fast as with the limit and a task per core."""
    found: dict[tuple[bool, int], list[float]] = {}
    for one in result["samples"]:
        found.setdefault((one["limited"], one["concurrency"]), []).append(60 * result["pages"] / one["seconds"])
    base = statistics.median(found[True, result["cores"]])
    lines = ["| `OMP_THREAD_LIMIT=1` | tasks at a time | pages per minute | ratio |", "|---|---|---|---|"]
    for (limited, concurrency), rates in sorted(found.items(), key=lambda item: (not item[0][0], item[0][1])):
        middle = statistics.median(rates)
        lines.append(
            f"| {'yes' if limited else 'no'} | {concurrency} ({concurrency // result['cores']}× cores) "
            f"| {middle:.1f} ({min(rates):.1f}–{max(rates):.1f}, n={len(rates)}) | {middle / base:.2f} |"
        )
    return "\n".join(lines)
