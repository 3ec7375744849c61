"""A host below the guide's minimum is refused, with all that it lacks, and nothing of it is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab.fingerprint import Fingerprint
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.mcbench_fleet import Fleet, fleet_of
from tests.lab.state import REPOSITORY

pytestmark = pytest.mark.soak

DEPLOY = REPOSITORY / "deploy.py"


@pytest.fixture
def fleet(lab: Lab) -> Iterator[Fleet]:
    with fleet_of(lab, "bare", one_host=True) as made:
        yield made


def numbers(host: LabHost) -> tuple[int, int]:
    cores, kilobytes = host.run("nproc; awk '/^MemTotal/ { print $2 }' /proc/meminfo").stdout.split()
    return int(cores), int(kilobytes) // 1024


def test_host_below_the_guides_minimum_is_refused_before_any_change(fleet: Fleet) -> None:
    host = fleet.front
    cores, memory_mb = numbers(host)
    # One server worker needs four cores; so many workers need more memory than there is, whatever this machine has.
    workers = memory_mb * 10 // 9 // 4096 + 1
    fleet.roles = {"lab": [host], "mcbench": [host], "mcbench_infra": [], "mcbench_server": [host], "mcbench_worker": [host]}
    elsewhere = {"postgres_host": "127.0.0.1", "redis_host": "127.0.0.1", "object_store_dsn": "127.0.0.1:9000", "server_shares_host": True,
                 "postgres_external": True, "redis_external": True, "object_external": True}  # fmt: skip
    needed = (8192 + workers * 4096) * 9 // 10
    host.fill_disk("/var", free_kib=512 * 1024)
    before = Fingerprint.of(host)
    for dry in (True, False):
        run = fleet.run(DEPLOY, dry=dry, allow_small=False, limits={}, worker_count=workers, **elsewhere)
        assert run.rc == 1, run
        assert run.changed == [], run
        lines = [line.strip() for line in run.stderr.splitlines()]
        start = next(number for number, line in enumerate(lines) if "Preflight: this host is not touched" in line)
        said = lines[start + 1 : start + 4]
        assert said[:2] == [f"cores: must be 4 or more, got {cores}", f"memory: must be {needed} MB or more, got {memory_mb} MB"], run
        assert re.fullmatch(r"disk /var: must have 4096 MB free or more, got \d{1,3} MB", said[2]), run
    assert before.differences(Fingerprint.of(host)) == []
    # The same host passes preflight where the inventory says that small is meant: what stops it then is next.
    run = fleet.run(DEPLOY, dry=True, allow_small=True, worker_count=workers, **elsewhere)
    assert "memory: must be" not in run.stderr
    assert run.stderr.count("PostgreSQL at 127.0.0.1:5432: does not answer: [Errno 111] Connection refused") == 1, run
