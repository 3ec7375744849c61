"""What a benchmark computes from what it saw: order, medians, ratios, recaps, end states, profiles. Never a speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cricksy, endstate, figures, profile, report
from benchmarks.figures import Case, Sample


def _sample(tool: str, seconds: float, run: str = "no-change", delay_ms: int = 0) -> Sample:
    return Sample(Case(run, 1, delay_ms, tool), seconds, (), 0.5)


def test_rounds_are_interleaved_and_reproducible() -> None:
    order = figures.plan("no-change", 4, [0, 50], figures.TOOLS, rounds=3, seed=7)
    assert len(order) == 2 * 3 * 3
    for start in range(0, len(order), 6):
        assert len(set(order[start : start + 6])) == 6, "each round holds every case once"
    assert order == figures.plan("no-change", 4, [0, 50], figures.TOOLS, rounds=3, seed=7)
    assert order != figures.plan("no-change", 4, [0, 50], figures.TOOLS, rounds=3, seed=8)


def test_rounds_differ_in_their_order() -> None:
    order = figures.plan("first", 1, [0, 50], figures.TOOLS, rounds=8, seed=1)
    assert len({tuple(order[start : start + 6]) for start in range(0, len(order), 6)}) > 1


def test_median_and_spread() -> None:
    found = figures.summarise([_sample("ansible", seconds) for seconds in (9.0, 1.0, 2.0, 4.0)])
    summary = found[Case("no-change", 1, 0, "ansible")]
    assert (summary.count, summary.median, summary.fastest, summary.slowest) == (4, 3.0, 1.0, 9.0)


def test_ratio_is_of_medians_of_the_same_setting() -> None:
    found = figures.summarise(
        [_sample("ansible", 30), _sample("hostwright", 4), _sample("hostwright", 6), _sample("hostwright", 90, delay_ms=50)]
    )
    assert figures.ratio(found, Case("no-change", 1, 0, "ansible"), to="hostwright") == 6.0
    assert figures.ratio(found, Case("no-change", 1, 50, "hostwright"), to="ansible") is None


def test_recap_is_read_and_nothing_else() -> None:
    output = """
TASK [Say PLAY RECAP : ok=99] ***
ok: [web1] => changed=7

PLAY RECAP *********************************************************************
web1                       : ok=41   changed=4    unreachable=0    failed=0    skipped=5    rescued=0    ignored=0
fd78:8::100                : ok=40   changed=0    unreachable=0    failed=1    skipped=5    rescued=0    ignored=0

"""
    recap = figures.parse_recap(output)
    assert set(recap) == {"web1", "fd78:8::100"}
    assert (recap["web1"]["ok"], recap["web1"]["changed"]) == (41, 4)
    assert recap["fd78:8::100"]["failed"] == 1


def test_a_run_without_recap_has_no_hosts() -> None:
    assert figures.parse_recap("ERROR! the playbook could not be found") == {}


STATE = """entry /etc/a f 644 root:root
content /etc/a 11
entry /etc/machine-id f 444 root:root
content /etc/machine-id 22
unit nginx.service active enabled
firewall Status: active
"""


def test_equal_states_do_not_differ_and_identities_are_ignored() -> None:
    assert endstate.differences(STATE, STATE.replace(" 22", " 33")) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("content /etc/a 11", "content /etc/a 12"), ["-content /etc/a 11", "+content /etc/a 12"]),
        (("f 644 root", "f 600 root"), ["-entry /etc/a f 644 root:root", "+entry /etc/a f 600 root:root"]),
        (("active enabled", "active disabled"),
         ["-unit nginx.service active enabled", "+unit nginx.service active disabled"]),
        (("firewall Status: active\n", ""), ["-firewall Status: active"]),
    ],
)  # fmt: skip
def test_each_kind_of_difference_is_seen(change: tuple[str, str], expected: list[str]) -> None:
    assert endstate.differences(STATE, STATE.replace(*change)) == expected


def test_what_was_written_is_what_is_new_or_other() -> None:
    after = STATE.replace("/etc/a 11", "/etc/a 12") + "entry /etc/b l 777 root:root /etc/a\n"
    assert endstate.written(STATE, after) == ("/etc/a", "/etc/b")


def test_profile_accounts_for_every_command_and_the_whole_time() -> None:
    record = {
        "stages": {"imported": 0.5, "connect": 0.75, "execute": 1.0, "disconnect": 3.0, "end": 3.125},
        "commands": [
            {"host": "a", "operation": "Two", "fact": "x.Y", "start": 2.0, "seconds": 0.25},
            {"host": "a", "operation": "One", "fact": "x.X", "start": 1.0, "seconds": 0.5},
            {"host": "b", "operation": "One", "fact": None, "start": 1.5, "seconds": 0.125},
        ],
    }
    assert sum(seconds for _, seconds in profile.stages(record)) == 3.125
    rows = profile.by_operation(record)
    assert [(row.operation, row.commands, row.facts, row.seconds) for row in rows] == [
        ("One", 2, 1, 0.625),
        ("Two", 1, 1, 0.25),
    ]
    assert profile.commands_per_host(record) == {"a": 2, "b": 1}


def test_a_result_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    samples = [_sample("hostwright", 1.25), _sample("ansible", 9.5, "first", 50)]
    report.save(tmp_path / "r.json", {"seed": 7, "commands": {"ansible": 9}}, samples)
    about, again = report.load(tmp_path / "r.json")
    assert about == {"seed": 7, "commands": {"ansible": 9}}
    assert again == samples


def test_table_has_medians_and_both_ratios() -> None:
    lines = report.markdown([_sample("hostwright", 2), _sample("ansible", 30), _sample("floor", 0.5)]).splitlines()
    assert len(lines) == 3
    assert "15.0×" in lines[2]
    assert "4.0×" in lines[2]


def test_pages_per_minute_are_told_against_the_limit_and_a_task_per_core() -> None:
    samples = [
        {"limited": limited, "concurrency": concurrency, "seconds": seconds}
        for limited, concurrency, seconds in ((True, 2, 10), (True, 2, 12), (True, 2, 30), (False, 2, 24), (False, 4, 48))
    ]
    table = cricksy.markdown({"pages": 20, "cores": 2, "samples": samples}).splitlines()
    assert table[2:] == [
        "| yes | 2 (1× cores) | 100.0 (40.0–120.0, n=3) | 1.00 |",
        "| no | 2 (1× cores) | 50.0 (50.0–50.0, n=1) | 0.50 |",
        "| no | 4 (2× cores) | 25.0 (25.0–25.0, n=1) | 0.25 |",
    ]
