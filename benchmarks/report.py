"""What came out of a benchmark: as a table on the screen, as JSON to keep, as Markdown and a plot for the documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import figures, profile
from benchmarks.figures import Case, Sample, Summary

_COLOURS = {"hostwright": "#2563eb", "ansible": "#b91c1c", "floor": "#9ca3af"}
_RUNS = {"first": "first converge", "no-change": "no-change run"}


def save(path: Path, about: Mapping[str, Any], samples: Iterable[Sample]) -> None:
    """Write everything measured so far; called after every sample, so that an interrupted benchmark is not lost."""
    rows = [
        {"run": s.case.run, "hosts": s.case.hosts, "delay_ms": s.case.delay_ms, "tool": s.case.tool,
         "seconds": round(s.seconds, 3), "changed": len(s.changed), "load": s.load}
        for s in samples
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    # One sample a line: small, and readable as a difference.
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    head = json.dumps(about, indent=2).removesuffix("\n}")
    path.write_text(f'{head},\n  "samples": [\n{lines}\n  ]\n}}\n')


def load(path: Path) -> tuple[dict[str, Any], list[Sample]]:
    """Return what :func:`save` wrote."""
    content = json.loads(path.read_text())
    samples = [
        Sample(Case(row["run"], row["hosts"], row["delay_ms"], row["tool"]), row["seconds"],
               ("?",) * row["changed"], row["load"])
        for row in content.pop("samples")
    ]  # fmt: skip
    return content, samples


def _cells(summaries: dict[Case, Summary]) -> list[tuple[str, ...]]:
    rows = []
    for run, hosts, delay in sorted({(c.run, c.hosts, c.delay_ms) for c in summaries}, key=lambda k: (k[0] != "no-change", k)):
        case = {tool: Case(run, hosts, delay, tool) for tool in figures.TOOLS}
        seconds = [_seconds(summaries.get(case[tool])) for tool in figures.TOOLS]
        faster = figures.ratio(summaries, case["ansible"], to="hostwright")
        above = figures.ratio(summaries, case["hostwright"], to="floor")
        rows.append((_RUNS[run], str(hosts), f"{delay} ms", *seconds, _times(faster), _times(above)))
    return rows


_HEADINGS = ("", "hosts", "round trip", "Hostwright", "Ansible", "floor", "Ansible / Hostwright", "Hostwright / floor")


def _seconds(summary: Summary | None) -> str:
    if summary is None:
        return "–"
    return f"{summary.median:.2f} s ({summary.fastest:.2f}–{summary.slowest:.2f}, n={summary.count})"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}×"


def print_table(console: Console, samples: Iterable[Sample]) -> None:
    """Print medians, spread and ratios."""
    table = Table(title="Medians (fastest to slowest, number of runs)")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if not heading else "right")
    for row in _cells(figures.summarise(samples)):
        table.add_row(*row)
    console.print(table)


def markdown(samples: Iterable[Sample]) -> str:
    """Return the same table in Markdown."""
    rows = [_HEADINGS, ("---", *["---:"] * (len(_HEADINGS) - 1)), *_cells(figures.summarise(samples))]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def plot(path: Path, samples: Iterable[Sample], caption: str) -> None:
    """Draw the medians as bars, one panel per kind of run, with the spread as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    summaries = figures.summarise(samples)
    runs = [run for run in ("no-change", "first") if any(case.run == run for case in summaries)]
    figure, panels = pyplot.subplots(1, len(runs), figsize=(5.4 * len(runs), 3.8), squeeze=False)
    for panel, run in zip(panels[0], runs, strict=True):
        settings = sorted({(case.hosts, case.delay_ms) for case in summaries if case.run == run})
        tools = [tool for tool in figures.TOOLS if any(c.run == run and c.tool == tool for c in summaries)]
        width = 0.8 / len(tools)
        for index, tool in enumerate(tools):
            for place, (hosts, delay) in enumerate(settings):
                summary = summaries.get(Case(run, hosts, delay, tool))
                if summary is None:
                    continue
                at = place + (index - (len(tools) - 1) / 2) * width
                spread = [[summary.median - summary.fastest], [summary.slowest - summary.median]]
                panel.bar(at, summary.median, width * 0.92, color=_COLOURS[tool], yerr=spread, capsize=2,
                          error_kw={"elinewidth": 0.8}, label=tool if place == 0 else None)  # fmt: skip
                panel.text(at, summary.slowest, f"{summary.median:.3g}", ha="center", va="bottom", fontsize=7)
        panel.set_xticks(range(len(settings)))
        panel.set_xticklabels([f"{h} host{'s' * (h > 1)}\n{d} ms" for h, d in settings], fontsize=8)
        panel.set_title(_RUNS[run], fontsize=10)
        panel.set_ylabel("seconds, median")
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(y=0.12)
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.text(0.5, 0.005, caption, ha="center", va="bottom", fontsize=6.5, color="#555")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


def print_profile(console: Console, title: str, record: Mapping[str, Any]) -> None:
    """Print where the time of a traced run went."""
    stages = Table(title=title)
    stages.add_column("stage")
    stages.add_column("ms", justify="right")
    for name, seconds in profile.stages(record):
        stages.add_row(name, f"{seconds * 1000:.0f}")
    console.print(stages)
    operations = Table()
    for heading in ("operation", "commands", "of which facts", "ms in commands", "ms per command"):
        operations.add_column(heading, justify="left" if heading == "operation" else "right")
    rows = profile.by_operation(record)
    for row in sorted(rows, key=lambda row: -row.seconds):
        operations.add_row(row.operation, str(row.commands), str(row.facts), f"{row.seconds * 1000:.0f}",
                           f"{row.seconds * 1000 / row.commands:.0f}")  # fmt: skip
    total = sum(row.seconds for row in rows)
    operations.add_section()
    operations.add_row("all", str(sum(row.commands for row in rows)), str(sum(row.facts for row in rows)), f"{total * 1000:.0f}", "")
    console.print(operations)
    counted = ", ".join(f"{host} {count}" for host, count in sorted(profile.commands_per_host(record).items()))
    console.print(f"SSH commands: {counted}")
