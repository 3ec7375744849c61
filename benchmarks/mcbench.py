"""The mcbench fleet on three lab hosts: how long its runs take, and what changes cost that are made under load."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measure import machine
from tests.lab import mcbench_load
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.mcbench_fleet import API, Fleet, all_done, fleet_of, summary
from tests.lab.provision import Run
from tests.lab.state import REPOSITORY

DEPLOY = REPOSITORY / "deploy.py"
TASKS = 500


class Figures:
    """What was measured; written to ``output`` after every step, so that an interrupted benchmark is not lost."""

    def __init__(self, fleet: Fleet, stranger: LabHost, console: Console, output: Path, rate: int) -> None:
        self._fleet, self._stranger, self._console, self._output, self._rate = fleet, stranger, console, output, rate
        self._steps: list[dict[str, Any]] = []

    def step(self, what: str, change: Callable[[], Run], **more: object) -> None:
        """Time one run, which must end well."""
        load, began = os.getloadavg()[0], time.monotonic()
        run = change()
        seconds = time.monotonic() - began
        if not run.ok:
            raise RuntimeError(f"{what}: {run}")
        self._keep({"step": what, "seconds": round(seconds, 1), "changed": len(run.changed), "load_before": round(load, 2), **more})

    def loaded(self, what: str, change: Callable[[], Run]) -> None:
        """Time one run while requests are sent and tasks are queued, and count what was lost."""
        before = all_done(self._fleet, self._stranger)
        with mcbench_load.traffic(self._stranger, self._fleet.front, API, rate=self._rate, tasks=TASKS) as traffic:
            self.step(what, change)
            while summary(self._fleet, self._stranger)["tasks"] < before["tasks"] + TASKS:
                time.sleep(0.5)
        report, after = traffic.report, all_done(self._fleet, self._stranger)
        self._steps[-1] |= {
            "requests_per_second": round(report.rate, 1), "slowest_10_s": report.lowest, "asked_per_second": report.asked,
            "answers": sum(report.done.values()), "failed": report.failed, "longest_s": report.longest,
            "tasks": after["tasks"] - before["tasks"], "tasks_lost": after["waiting"] + after["unfinished"], "tasks_twice": after["doubled"],
        }  # fmt: skip
        self._console.print(f"    {report}")
        self._save()

    def _keep(self, row: dict[str, Any]) -> None:
        self._steps.append(row)
        self._console.print(f"{row['step']}: {row['seconds']} s, load average before {row['load_before']}")
        self._save()

    def _save(self) -> None:
        about = {"date": datetime.date.today().isoformat(), "machine": machine(), "hosts": 3, "steps": self._steps}
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._output.write_text(json.dumps(about, indent=1) + "\n")


def measure(console: Console, slot: int, output: Path, rate: int) -> None:
    """Converge bare hosts, change nothing, upgrade, roll back; the last two under load.

    + rate: requests per second that are asked for
    """
    lab = Lab(slot)
    try:
        stranger = lab.host("bench-stranger")
        with fleet_of(lab, "bare") as fleet:
            figures = Figures(fleet, stranger, console, output, rate)
            fleet.put("v1.1.0")
            figures.step("converge from bare", lambda: fleet.run(DEPLOY, timeout=3600))
            for _ in range(3):
                figures.step("no change", lambda: fleet.run(DEPLOY))
            figures.loaded("upgrade", lambda: fleet.run(DEPLOY, version="v1.1.0", timeout=3600))
            figures.loaded("rollback", lambda: fleet.run("from deploys.mcbench import rollback\nrollback()\n", version="v1.1.0", timeout=3600))
    finally:
        lab.close()
    console.print(markdown(json.loads(output.read_text())))


def markdown(result: dict[str, Any]) -> str:
    """Return the table of docs/mcbench.md."""
    lines = ["| run | time | load average before | answers/s (slowest 10 s) | failed | tasks lost or done twice |", "|---|---|---|---|---|---|"]
    for row in result["steps"]:
        under_load = (
            f"{row['requests_per_second']:.0f} ({row['slowest_10_s']:.0f}) of {row['asked_per_second']}",
            f"{row['failed']} of {row['answers'] + row['failed']}",
            f"{row['tasks_lost'] + row['tasks_twice']} of {row['tasks']}",
        ) if "answers" in row else ("", "", "")  # fmt: skip
        lines.append("| " + " | ".join([row["step"], f"{row['seconds']:.0f} s", str(row["load_before"]), *under_load]) + " |")
    return "\n".join(lines)
