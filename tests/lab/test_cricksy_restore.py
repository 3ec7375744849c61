"""The host of the databases is lost: rows and queued tasks come back from the off-site copy, on a host that is new."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.cricksy_fleet import (
    TEXT,
    Fleet,
    ask,
    ask_broker,
    assert_converged,
    fleet_of,
    give_image,
    read,
    upload,
)
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.state import REPOSITORY, wait_for
from tests.lab.test_backup_bucket import trust

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

DEPLOY = REPOSITORY / "deploy.py"
SOURCES = ("cricksy", "cricksy-broker")
VERSION = "v1.1.0"


@pytest.fixture(scope="module")
def vault(lab: Lab) -> Iterator[LabHost]:
    made = lab.host("t-cricksy-vault")
    yield made
    lab.destroy(made)


@pytest.fixture(scope="module")
def fleet(lab: Lab, vault: LabHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(lab, tmp_path_factory.mktemp("cricksy")) as made:
        trust(made.front, vault)
        made.shared = {"backup_offsite_repository": f"sftp:root@{vault.address}:/srv/vault"}
        made.more = {"version": VERSION}
        run = made.run(DEPLOY)
        assert run.ok, run
        yield made


@pytest.fixture(scope="module")
def client(stranger: LabHost) -> LabHost:
    give_image(stranger)
    return stranger


def rows(fleet: Fleet) -> list[str]:
    """Every row that the application has, in a sum for each table; and what the tables are at."""
    sums = "SELECT '{0}', count(*), md5(string_agg(t::text, ';' ORDER BY t::text)) FROM {0} AS t;"
    sql = "".join(map(sums.format, ("upload", "execution", "alembic_version")))
    told = fleet.front.run("cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d cricksy_scorer", input=sql).stdout
    return told.splitlines()


def access(fleet: Fleet) -> list[str]:
    """Who may do what with the database as such."""
    sql = "SELECT acl::text FROM pg_database, unnest(datacl) AS acl WHERE datname = 'cricksy_scorer' ORDER BY 1"
    return fleet.front.run("cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1", input=sql).stdout.splitlines()


def queued(fleet: Fleet) -> list[str]:
    return ask_broker(fleet, "lrange celery 0 -1").splitlines()


def stop_workers(fleet: Fleet) -> None:
    done = fleet.type("deploys.cricksy.scale", "count=0")
    assert done.returncode == 0, done.stdout
    wait_for("workers to end", lambda: not any("cricksy-worker@" in name for name in fleet.pids()), 120)


def backup(fleet: Fleet, job: str, *words: str) -> None:
    done = fleet.type(f"deploys.backup.{job}", *words, "--limit", fleet.front.name)
    assert done.returncode == 0, done.stdout


def test_a_new_front_gets_rows_and_queued_tasks_from_the_offsite_copy(lab: Lab, fleet: Fleet, vault: LabHost, client: LabHost) -> None:
    done = [upload(fleet, client) for _ in range(5)]
    for image in done:
        read(fleet, client, image)
    stop_workers(fleet)
    waiting = [upload(fleet, client) for _ in range(15)]
    known, tasks = rows(fleet), queued(fleet)
    assert (known[0].split("|")[1], len(tasks)) == ("20", 15)
    backup(fleet, "run")
    backup(fleet, "drill")

    lost = fleet.front
    lab.destroy(lost)
    fleet.front = fleet.hosts[0] = lab.host(lost.name, "bookworm", "packages", lost.plan.index)
    trust(fleet.front, vault)
    run = fleet.run(DEPLOY)
    assert run.ok, run
    assert ask(fleet, client, f"/api/uploads/{done[0]}")[0] == 404
    shut = access(fleet)
    assert shut
    assert not any(line.startswith("=") for line in shut), shut
    stop_workers(fleet)
    for source in SOURCES:
        backup(fleet, "restore", f"source={source}", "at=verified", "repository=offsite")
    assert rows(fleet) == known
    assert queued(fleet) == tasks
    assert access(fleet) == shut

    run = fleet.run(DEPLOY)
    assert (run.ok, run.changed) == (True, ["cricksy | Roll out workers"]), run
    assert [read(fleet, client, image, 120)["text"] for image in done + waiting] == [TEXT] * 20
    assert read(fleet, client, upload(fleet, client))["text"] == TEXT
    assert_converged(fleet, DEPLOY)


def test_a_release_older_than_the_restored_database_fails_before_the_switch(fleet: Fleet, client: LabHost) -> None:
    """The new front never migrated with it: that it is older than the database is no rollback, and nobody knows whether it can run."""
    before, known = fleet.pids(), rows(fleet)
    refused = fleet.run(DEPLOY, version="v1.0.0")
    assert (refused.ok, refused.failed) == (False, ["cricksy | Migrate the database"]), refused
    assert "Can't locate revision identified by '0002'" in refused.stderr, refused
    assert fleet.pids() == before
    assert rows(fleet) == known
    assert json.loads(ask(fleet, client, "/api/health")[1])["version"] == "1.1.0"
    found = read(fleet, client, upload(fleet, client))
    assert (found["text"], found["executions"][0]["version"]) == (TEXT, "1.1.0")
    assert_converged(fleet, DEPLOY)
