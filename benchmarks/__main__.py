"""Measure Hostwright against Ansible and against the floor, on lab hosts of this machine (docs/speed.md).

    python -m benchmarks                      all of it: about an hour
    python -m benchmarks --quick              one host, few rounds: about ten minutes
    python -m benchmarks mcbench              the mcbench fleet: its runs, and changes under load: about 15 minutes
    python -m benchmarks cricksy              OCR of cricksy with other limits: about 20 minutes
    python -m benchmarks profile              where the time of a no-change run goes
    python -m benchmarks render RESULT.json   table and plot from a result
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks import cricksy, mcbench, report
from benchmarks.fleet import fleet
from benchmarks.measure import Bench

RESULTS = Path(__file__).with_name("results")
PLOT = Path(__file__).parents[1] / "docs" / "images" / "speed.png"


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("command", nargs="?", default="compare", choices=("compare", "cricksy", "mcbench", "profile", "render"))
    parser.add_argument("result", nargs="?", type=Path, help="a result to render")
    parser.add_argument("--slot", type=int, default=int(os.environ.get("HOSTWRIGHT_LAB_SLOT", "8")))
    parser.add_argument("--hosts", type=_numbers, default=[1, 4], help="how many at once, such as 1,4")
    parser.add_argument("--delays", type=_numbers, default=[0, 50], help="round trips in ms, such as 0,50")
    parser.add_argument("--rounds", type=int, default=7, help="of no-change runs")
    parser.add_argument("--first-rounds", type=int, default=3, help="of first converges; 0 for none")
    parser.add_argument("--layer", default="packages", choices=("bare", "packages"),
                        help="what fresh hosts have: see tests/lab/image.py")  # fmt: skip
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the order of the runs")
    parser.add_argument("--quick", action="store_true", help="1 host, 3 rounds, 1 first converge")
    parser.add_argument("--rate", type=int, default=200, help="mcbench: requests per second that are asked for")
    parser.add_argument("--pages", type=int, default=cricksy.TASKS, help="cricksy: pages in each of --first-rounds rounds")
    parser.add_argument("--output", type=Path, help="the result; by default a new file in benchmarks/results")
    parser.add_argument("--no-plot", action="store_true", help=f"leave {PLOT.name} as it is")
    given, _ = parser.parse_known_args()
    if given.quick:
        parser.set_defaults(hosts=[1], rounds=3, first_rounds=1)
    return parser.parse_args()


def _compare(console: Console, given: argparse.Namespace) -> None:
    output = given.output or RESULTS / f"{datetime.date.today()}-{given.layer}.json"
    console.print(f"seed {given.seed}, fresh hosts of layer {given.layer}, results in {output}")
    with fleet(given.slot, max(given.hosts), given.layer) as hosts:
        bench = Bench(hosts, console, output, given.seed)
        bench.prepare()
        for count in given.hosts:
            bench.first(count, given.delays, given.first_rounds)
            bench.no_change(count, given.delays, given.rounds)
        console.print(f"SSH commands of a no-change run, by sshd's log: {bench.count_commands()}")
    _show(console, output, plot=not given.no_plot)


def _show(console: Console, result: Path, plot: bool) -> None:
    about, samples = report.load(result)
    console.print_json(json.dumps(about))
    report.print_table(console, samples)
    console.print(report.markdown(samples))
    if plot:
        report.plot(PLOT, samples, about["machine"])
        console.print(f"plot: {PLOT}")


def _profile(console: Console, given: argparse.Namespace) -> None:
    with fleet(given.slot, 1, given.layer) as hosts, tempfile.TemporaryDirectory() as scratch:
        bench = Bench(hosts, console, Path(scratch) / "none.json", given.seed)
        bench.prepare(ansible=False)
        for delay in given.delays:
            record = bench.trace(delay, Path(scratch) / "record.json")
            report.print_profile(console, f"no-change run, 1 host, {delay} ms round trip", record)
        console.print(f"SSH commands of a no-change run, by sshd's log: {bench.count_commands()}")


def main() -> None:
    """Do what the command line says."""
    given = _arguments()
    console = Console(width=max(120, Console().width))
    if given.command == "render":
        _show(console, given.result, plot=not given.no_plot)
    elif given.command == "mcbench":
        mcbench.measure(console, given.slot, given.output or RESULTS / f"{datetime.date.today()}-mcbench.json", given.rate)
    elif given.command == "cricksy":
        output = given.output or RESULTS / f"{datetime.date.today()}-cricksy.json"
        cricksy.measure(console, given.slot, output, given.first_rounds, given.seed, given.pages)
    elif given.command == "profile":
        _profile(console, given)
    else:
        _compare(console, given)


if __name__ == "__main__":
    main()
