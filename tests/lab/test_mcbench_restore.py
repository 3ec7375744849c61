"""The fleet's front is lost with its databases: rows and objects come back on a new machine from the off-site copy."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator

import pytest

from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.mcbench_fleet import API, ENV, Fleet, all_done, ask, finished, fleet_of, submit, summary
from tests.lab.state import wait_for
from tests.lab.test_backup_bucket import trust

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

SOURCES = ("mcbench-postgres", "mcbench-objects-internal", "mcbench-objects-external")


@pytest.fixture(scope="module")
def vault(lab: Lab) -> Iterator[LabHost]:
    made = lab.host("t-mcbench-vault")
    yield made
    lab.destroy(made)


@pytest.fixture(scope="module")
def fleet(lab: Lab, vault: LabHost) -> Iterator[Fleet]:
    with fleet_of(lab) as made:
        trust(made.front, vault)
        made.more = {"backup_offsite_repository": f"sftp:root@{vault.address}:/srv/vault"}
        assert made.run().ok
        yield made


def backup(fleet: Fleet, job: str, *words: str) -> str:
    done = fleet.type(f"deploys.backup.{job}", *words, "--limit", fleet.front.name)
    assert done.returncode == 0, done.stdout
    return done.stdout


def state(fleet: Fleet, source: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(fleet.front.read(f"/var/lib/hostwright/backup/{source}.json"))
    return found


def workers(fleet: Fleet, verb: str) -> None:
    """Stop or start the application on the hosts that a restore of the front does not reach."""
    listed = "docker ps -aq --filter label=hostwright.component"
    for host in (fleet.back, fleet.games):
        host.run(f"{listed} | xargs -r docker {verb}", timeout=180)


def test_backup_of_a_new_fleet_does_not_fail_for_its_empty_buckets(fleet: Fleet) -> None:
    for source in SOURCES:
        fleet.front.run(f"systemctl start hostwright-backup-{source}.service", timeout=300)
        assert state(fleet, source)["failure"] == ""
    assert state(fleet, SOURCES[1])["rows"] == {"objects": 0}


def test_drill_catches_a_dump_that_is_spoilt(fleet: Fleet, stranger: LabHost) -> None:
    assert finished(fleet, stranger, submit(fleet, stranger, kind="build", key="before", script="place a wall"))["state"] == "done"
    assert finished(fleet, stranger, submit(fleet, stranger, kind="render", key="picture"))["state"] == "done"
    backup(fleet, "run")
    backup(fleet, "drill")
    restic = f"RESTIC_PASSWORD={ENV['BACKUP_PASSWORD']} restic -q -r /var/backups/hostwright"
    front = fleet.front
    taken = f"--host {front.name} --tag source:mcbench-postgres"
    front.run(f"rm -rf /root/forge; install -d -m 0700 /root/forge; cd /root/forge && {restic} restore latest {taken} --target .", timeout=120)
    # in the middle of the data, its length as before
    front.run("dd if=/dev/zero of=/root/forge/stage/data bs=1 seek=$(($(stat -c %s /root/forge/stage/data) / 2)) count=64 conv=notrunc status=none")
    front.run(f"cd /root/forge && {restic} backup {taken} stage && rm -rf /root/forge", timeout=120)
    done = fleet.type("deploys.backup.drill", "source=mcbench-postgres", "--limit", front.name)
    assert done.returncode != 0
    assert re.search(r"copy [0-9a-f]{8} of .*the last verified copy is", done.stdout), done.stdout
    backup(fleet, "run", "source=mcbench-postgres")
    backup(fleet, "drill", "source=mcbench-postgres")


def test_a_new_front_gets_rows_and_objects_from_the_offsite_copy(
    lab: Lab, fleet: Fleet, vault: LabHost, stranger: LabHost
) -> None:
    upload = "the body of an upload"
    kept = json.loads(ask(stranger, fleet.front, API, "/upload", "--data-binary", upload)[1])
    built = finished(fleet, stranger, submit(fleet, stranger, kind="build", key="to-be-kept", script="place a bridge"))
    rendered = finished(fleet, stranger, submit(fleet, stranger, kind="render", key="to-be-kept-too"))
    assert kept["sha256"] == hashlib.sha256(upload.encode()).hexdigest()
    before = all_done(fleet, stranger)
    backup(fleet, "run")
    backup(fleet, "drill")

    name = fleet.front.name
    lab.destroy(fleet.front)
    fleet.replace(fleet.front, lab.host(name, "bookworm", "docker"))
    trust(fleet.front, vault)
    run = fleet.run()
    assert run.ok, run
    assert summary(fleet, stranger)["tasks"] == 0

    workers(fleet, "stop")
    for source in SOURCES:
        backup(fleet, "restore", f"source={source}", "at=verified", "repository=offsite")
    workers(fleet, "start")

    # a container whose health check has not run yet counts as owed
    starting = "docker ps -q --filter label=hostwright.component --filter health=starting"
    for host in (fleet.front, fleet.back, fleet.games):
        wait_for(f"the containers of {host.name}", lambda host=host: host.run(starting).stdout == "", 180)
    wait_for("the api", lambda: ask(stranger, fleet.front, API, "/health")[0] == 200, 60)
    assert {key: summary(fleet, stranger)[key] for key in ("tasks", "done")} == {key: before[key] for key in ("tasks", "done")}
    for was in (built, rendered):
        now = json.loads(ask(stranger, fleet.front, API, f"/tasks/{was['id']}")[1])
        assert (now["key"], now["output"], now["executions"]) == (was["key"], was["output"], was["executions"])
    # a new task does not take the number of one that was restored
    again = finished(fleet, stranger, submit(fleet, stranger, kind="build", key="after", script="place a roof"))
    assert (again["state"], again["output"]) == ("done", "built in world of 1.0.0: place a roof\n")
    assert again["id"] > max(built["id"], rendered["id"])
    assert fleet.run().changed == []
