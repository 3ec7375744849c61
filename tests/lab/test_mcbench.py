"""The mcbench fleet on three hosts: from containers' engine to tasks that travel through all of it, and what may happen after."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.lab import mcbench_load
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.mcbench_fleet import (
    ADMIN,
    API,
    ENV,
    FLOWER,
    Fleet,
    all_done,
    ask,
    finished,
    fleet_of,
    reaches,
    submit,
    summary,
)
from tests.lab.state import wait_for


@pytest.fixture(scope="module")
def fleet(lab: Lab) -> Iterator[Fleet]:
    with fleet_of(lab) as made:
        yield made


def test_fleet_comes_up_whole_and_a_second_run_changes_nothing(fleet: Fleet, stranger: LabHost) -> None:
    run = fleet.run()
    assert run.ok, run
    found = fleet.containers()
    here = {host: {name.partition("/")[2].removeprefix("mcbench-") for name in found if name.startswith(host.name)} for host in fleet.hosts}
    assert here[fleet.front] == {"postgres", "redis", "object", "api-blue-1", "admin-api-blue-1", "admin-flower", "scheduler"}
    assert {re.sub(r"-[0-9a-f]{12}-1$", "", name) for name in here[fleet.back]} == {"worker", "admin-worker", "render-worker"}
    assert {re.sub(r"-[0-9a-f]{12}-1$", "", name) for name in here[fleet.games]} == {"server-worker"}
    assert not [name for name, one in found.items() if "unhealthy" in one["status"] or "starting" in one["status"]]

    again = fleet.run()
    assert (again.ok, again.changed) == (True, []), again
    assert {name: one["id"] for name, one in fleet.containers().items()} == {name: one["id"] for name, one in found.items()}


def test_task_travels_through_everything_and_back(fleet: Fleet, stranger: LabHost) -> None:
    built = finished(fleet, stranger, submit(fleet, stranger, kind="build", key="a-build", script="place a tower"))
    assert built["state"] == "done", built
    # the builder's words, which a container on the games' host printed, from the object store of another host
    assert built["output"] == "built in world of 1.0.0: place a tower\n"
    steps = {one["step"]: one["worker"] for one in built["executions"]}
    assert steps["build"].startswith("mcbench-worker-")
    assert steps["build"].endswith(f"@{fleet.back.name}")
    assert steps["run_build"].startswith("mcbench-server-worker-")
    assert steps["run_build"].endswith(f"@{fleet.games.name}")
    # asked again, it is the same task: nothing is done twice
    assert submit(fleet, stranger, kind="build", key="a-build") == built["id"]

    rendered = finished(fleet, stranger, submit(fleet, stranger, kind="render", key="a-picture"))
    assert rendered["state"] == "done", rendered
    administered = finished(fleet, fleet.front, submit(fleet, fleet.front, ADMIN, kind="administer", key="models"), ADMIN)
    assert administered["result"]["providers"] == ["OPENAI"]
    wait_for("the scheduler's task", lambda: summary(fleet, stranger)["ticks"] > 0, 30)
    counted = all_done(fleet, stranger)
    assert (counted["doubled"], counted["failed"], counted["unfinished"]) == (0, 0, 0)
    left = fleet.games.run("docker ps -aq -f label=mcbench.job").stdout
    assert left == "", "a game was left behind"


def test_only_what_is_meant_can_be_reached(fleet: Fleet, stranger: LabHost) -> None:
    assert ask(stranger, fleet.front, API, "/version")[0] == 200
    seen = json.loads(ask(stranger, fleet.front, API, "/client", "-H", "X-Forwarded-For: 192.0.2.66")[1])
    assert (seen["host"], seen["scheme"]) == (stranger.address, "https")
    for domain in (ADMIN, FLOWER):
        assert ask(stranger, fleet.front, domain, "/")[0] == 403, domain
        assert ask(fleet.front, fleet.front, domain, "/")[0] != 403, domain
    assert ask(fleet.front, fleet.front, FLOWER, "/")[0] == 401
    account = f"admin:{ENV['MCBENCH_FLOWER_PASSWORD']}"
    status, page = ask(fleet.front, fleet.front, FLOWER, "/workers", "-u", account)
    assert (status, "mcbench-worker-" in page) == (200, True)

    closed = (5432, 6379, 9000, 8000, 5555, 18000, 18200)
    assert [port for port in closed if reaches(stranger, fleet.front, port)] == []
    assert [port for port in (5432, 6379, 9000) if not reaches(fleet.back, fleet.front, port)] == []
    assert [port for port in (5555, 18000, 18200) if reaches(fleet.back, fleet.front, port)] == []
    assert reaches(stranger, fleet.front, 443)


def test_each_component_has_its_own_secrets_and_the_socket_is_one_workers(fleet: Fleet) -> None:
    sockets, holders = set(), {}
    for host in fleet.hosts:
        for name in host.run("docker ps --format '{{.Names}}'").stdout.split():
            about = json.loads(host.run(f"docker inspect {name}").stdout)[0]
            if any("docker.sock" in mount["Source"] for mount in about["Mounts"]):
                sockets.add(name)
            variables = {line.partition("=")[0] for line in about["Config"]["Env"]}
            holders[name] = variables & {"SECRET_KEY", "OPENAI_API_KEY", "FLOWER_BASIC_AUTH", "POSTGRES_PASSWORD"}
            assert not [word for word in about["Args"] + [about["Path"]] if "canary" in word], name
    assert {re.sub(r"-[0-9a-f]{12}-1$", "", name) for name in sockets} == {"mcbench-server-worker"}
    short = {re.sub(r"-([0-9a-f]{12}|blue|green)-1$", "", name): those for name, those in holders.items()}
    assert short["mcbench-server-worker"] == {"POSTGRES_PASSWORD"}
    assert short["mcbench-admin-worker"] == {"POSTGRES_PASSWORD", "OPENAI_API_KEY"}
    assert short["mcbench-admin-flower"] == {"FLOWER_BASIC_AUTH"}
    assert short["mcbench-api"] == {"POSTGRES_PASSWORD", "SECRET_KEY"}
    assert fleet.games.run("grep -rlF -e flower -e sk-openai /etc/hostwright /var/lib/hostwright", check=False).stdout == ""


def test_host_says_how_well_it_is(fleet: Fleet, stranger: LabHost) -> None:
    """By a command on each, and by a page of the api's host for declared networks, of which the stranger is in none."""
    for host in fleet.hosts:
        said = host.run("mcbench-health")
        assert "NOT WELL" not in said.stdout
    assert ask(fleet.front, fleet.front, API, "/mcbench-health")[0] == 200
    assert ask(stranger, fleet.front, API, "/mcbench-health")[0] == 403
    assert ask(stranger, fleet.front, API, "/mcbench-health.json")[0] == 403

    fleet.front.run("docker pause mcbench-redis")
    try:
        status, body = ask(fleet.front, fleet.front, API, "/mcbench-health.json")
        assert status == 503
        assert [one["component"] for one in json.loads(body)["components"] if not one["well"]] == ["redis"]
        by_hand = fleet.front.run("mcbench-health", check=False)
        assert by_hand.returncode == 1
        assert re.search(r"^redis +NOT WELL 0 of 1", by_hand.stdout, re.MULTILINE), by_hand.stdout
        assert re.search(r"mcbench-redis .* paused", by_hand.stdout), by_hand.stdout
    finally:
        fleet.front.run("docker unpause mcbench-redis")
    wait_for("a host that is well", lambda: ask(fleet.front, fleet.front, API, "/mcbench-health")[0] == 200, 60)


@pytest.mark.soak
def test_failed_migration_stops_everything_everywhere(fleet: Fleet, stranger: LabHost) -> None:
    fleet.put("v1.1.0")
    fleet.put("bad-migration")
    before = {name: one["id"] for name, one in fleet.containers().items()}
    wait_for("a row that the migration falls over", lambda: summary(fleet, stranger)["ticks"] > 0, 30)
    run = fleet.run(version="bad-migration")
    assert not run.ok
    assert "mcbench | Migrate the database" in run.failed, run
    assert "column" in run.stderr, "its own words are shown"
    assert not [name for name in run.changed if "Roll out" in name], run
    assert {name: one["id"] for name, one in fleet.containers().items()} == before
    assert not [word for word in ENV.values() if word in run.stderr]
    assert ask(stranger, fleet.front, API, "/health")[0] == 200


@pytest.mark.soak
def test_what_an_operator_types_by_hand(fleet: Fleet) -> None:
    assert fleet.run().ok
    fleet.put("v1.1.0")
    before = {name: one["id"] for name, one in fleet.containers().items()}

    said = fleet.type("deploys.mcbench.status")
    assert said.returncode == 0, said.stdout
    for component in ("postgres: running, healthy", "scheduler: running", "api: release ", "server-worker: release "):
        assert component in said.stdout, said.stdout

    revision = 'docker exec mcbench-postgres psql -tA -U user -d mc_bench -c "SELECT version_num FROM alembic_version"'
    assert fleet.front.run(revision).stdout == "0001\n"
    for changed in (True, False):
        said = fleet.type("deploys.mcbench.migrate", version="v1.1.0")
        assert said.returncode == 0, said.stdout
        assert ("Migrate the database" in said.stdout, fleet.front.run(revision).stdout) == (True, "0002\n"), changed
    assert {name: one["id"] for name, one in fleet.containers().items()} == before

    for words, complaint in (
        (("component=postgres", "count=2"), "component must be one of api, admin-api, worker"),
        (("component=worker", "count=0"), "count must be 1 to 64, got 0"),
    ):
        said = fleet.type("deploys.mcbench.scale", *words)
        assert said.returncode != 0
        assert complaint in said.stdout, said.stdout
    assert {name: one["id"] for name, one in fleet.containers().items()} == before


@pytest.mark.soak
def test_more_and_fewer_workers_lose_no_task(fleet: Fleet, stranger: LabHost) -> None:
    assert fleet.run(worker_count=2).ok
    workers = "docker ps -q --filter label=hostwright.component=mcbench-worker | wc -l"
    with mcbench_load.traffic(stranger, fleet.front, API, rate=40, tasks=10**6) as traffic:
        for count in (4, 2):
            said = fleet.type("deploys.mcbench.scale", "component=worker", f"count={count}")
            assert said.returncode == 0, said.stdout
            assert fleet.back.run(workers).stdout.strip() == str(count)
    assert traffic.report.failures == []
    assert traffic.report.done["task"] > 50
    counted = all_done(fleet, stranger)
    assert (counted["doubled"], counted["failed"], counted["unfinished"], counted["waiting"]) == (0, 0, 0, 0), counted
    assert fleet.run(worker_count=2).changed == []


@pytest.mark.soak
def test_redis_and_database_come_back_with_what_they_held(fleet: Fleet, stranger: LabHost) -> None:
    assert fleet.run().ok
    before = all_done(fleet, stranger)
    task = submit(fleet, stranger, kind="count", key="across-a-reboot", seconds=0)
    finished(fleet, stranger, task)
    fleet.front.reboot()
    wait_for("the api after a reboot", lambda: ask(stranger, fleet.front, API, "/health")[0] == 200, 120)
    assert summary(fleet, stranger)["tasks"] >= before["tasks"] + 1
    assert finished(fleet, stranger, submit(fleet, stranger, kind="build", key="after-a-reboot"))["state"] == "done"
    assert fleet.run().changed == []
