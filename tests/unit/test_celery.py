"""Which workers are right, and which arguments are refused."""

import pytest

from facts.celery import CeleryState, CeleryWorkers, WorkerState
from operations.celery import Program, Worker, faults, names

PROGRAM = Program("/opt/shop/venv/bin/python", "shop.celery", "/opt/shop/src", "shop")
SERVICE = "Type=exec\nExecStart=celery worker --hostname=worker%i@%%h {env_file} {instance_file} {stamp}\n".format(**names("shop-worker"))
RIGHT = WorkerState("active", True, True)


@pytest.mark.parametrize(
    ("workers", "count", "right"),
    [
        ({1: RIGHT, 2: RIGHT}, 2, True),
        ({1: RIGHT}, 2, False),
        ({1: RIGHT, 2: WorkerState("failed", True, True)}, 2, False),
        ({1: RIGHT, 2: WorkerState("active", False, True)}, 2, False),
        ({1: RIGHT, 2: WorkerState("active", True, False)}, 2, False),
        ({1: RIGHT, 2: RIGHT}, 1, False),
        # on its way out
        ({1: RIGHT, 2: WorkerState("deactivating", False, True)}, 1, True),
        ({1: RIGHT, 2: WorkerState("inactive", True, True)}, 1, False),
        ({}, 0, True),
    ],
)
def test_what_is_right(workers, count, right):
    assert CeleryState(workers).is_right(count) is right


def test_fact_reads_what_the_program_prints():
    state = CeleryWorkers.__new__(CeleryWorkers).process(["worker\t1\tactive\tyes\tyes", "worker\t2\tfailed\tno\tno", "previous\tyes"])
    assert state == CeleryState({1: RIGHT, 2: WorkerState("failed", False, False)}, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"app": "Shop Worker"}, "app must be"),
        ({"service": "ExecStart=celery worker"}, "does not use env_file, instance_file, stamp"),
        ({"service": SERVICE.replace("%%h", "%h")}, "write %%h or %%H"),
        ({"service": SERVICE.replace("Type=exec", "Type=forking")}, "write Type=exec"),
        ({"workers": [Worker(("a b",))]}, "worker 1: not a queue: 'a b'"),
        ({"workers": [Worker(())]}, "not a queue"),
        ({"workers": [Worker(concurrency=0)]}, "concurrency must be"),
        ({"workers": [Worker()] * 65}, "at most 64"),
        ({"program": None}, "program is needed"),
        ({"program": Program("python", "shop.celery", "/opt/shop/src", "shop")}, "program.python: not good"),
        ({"program": Program("/p", "shop celery", "/opt/shop/src", "shop")}, "program.celery_app: not good"),
        ({"start_seconds": 0}, "start_seconds must be"),
    ],
)
def test_bad_arguments_are_named(change, said):
    good = {"app": "shop-worker", "service": SERVICE, "workers": [Worker()], "program": PROGRAM, "start_seconds": 60}
    assert faults(**good) == []
    found = faults(**{**good, **change})
    assert any(said in fault for fault in found), found
