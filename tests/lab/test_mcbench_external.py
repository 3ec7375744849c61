"""Two hosts of a fleet whose PostgreSQL, Redis and object store are somebody else's; logs that leave; parts that move away."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.lab.fingerprint import Fingerprint
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.mcbench_fleet import (
    ADMIN,
    ENV,
    FLOWER,
    Fleet,
    all_done,
    ask,
    finished,
    fleet_of,
    submit,
)
from tests.lab.outside import COLLECTOR_PORT, Outside
from tests.lab.state import REPOSITORY, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1500)]

DEPLOY = REPOSITORY / "deploy.py"


@pytest.fixture(scope="module")
def outside(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    made = Outside(lab, tmp_path_factory.mktemp("outside"))
    yield made
    lab.destroy(made.host)


@pytest.fixture(scope="module")
def fleet(lab: Lab, outside: Outside) -> Iterator[Fleet]:
    with fleet_of(lab, one_host=True) as made:
        made.back = lab.host("t-mcbench-docker-back", layer="docker")
        made.hosts.append(made.back)
        made.more = {**outside.settings, "mcbench_server_shares_host": True}
        made.roles |= {
            "mcbench_infra": [], "mcbench_worker": [made.front, made.back], "mcbench_admin_worker": [made.back],
        }  # fmt: skip
        yield made


def ids(fleet: Fleet) -> dict[str, str]:
    return {name: one["id"] for name, one in fleet.containers().items()}


def here(host: LabHost) -> set[str]:
    """The fleet's components of which a container runs on a host."""
    names = host.run("docker ps --filter label=hostwright.container --format '{{.Names}}'").stdout.split()
    return {re.sub(r"-(?:[0-9a-f]{12}|blue|green)-[0-9]+$", "", name).removeprefix("mcbench-") for name in names}


def assert_travels(fleet: Fleet, stranger: LabHost, key: str) -> None:
    """A task goes API, Redis, worker, server worker, sibling container, database and object store, and back."""
    built = finished(fleet, stranger, submit(fleet, stranger, kind="build", key=key, script="place a bridge"))
    assert (built["state"], built.get("output")) == ("done", "built in world of 1.0.0: place a bridge\n"), built


def test_service_that_lets_nobody_in_is_said_before_the_first_change(
    fleet: Fleet, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Fingerprint.of(fleet.front)
    monkeypatch.setitem(ENV, "MCBENCH_WRONG", "canary-of-a-wrong-password")
    wrong = {key: "env:MCBENCH_WRONG" for key in ("postgres_password", "redis_password", "object_store_secret_key")}
    at = outside.host.address
    refused = [
        f"PostgreSQL at {at}:5432: password authentication failed for user \"user\"",
        f"Redis at {at}:6379: WRONGPASS invalid username-password pair or user is disabled.",
        f"the object store at {at}:9443: refuses the access key, or bucket mc-bench-internal to it",
    ]
    usual = fleet.more
    for settings, lines in (
        (wrong, refused),
        ({"redis_port": 6380}, [f"Redis at {at}:6380: does not answer: [Errno 111] Connection refused"]),
        ({"postgres_db": "absent"}, [f"PostgreSQL at {at}:5432: database \"absent\" does not exist"]),
        ({"internal_object_bucket": "absent"}, [f"the object store at {at}:9443: has no bucket absent: make it there"]),
        ({"external_ca": ""}, [
            f"{one} at {at}:{port}: its certificate is not trusted (self-signed certificate in certificate chain); "
            "one of a private CA needs mcbench_external_ca"
            for one, port in (("PostgreSQL", 5432), ("Redis", 6379), ("the object store", 9443))
        ]),
    ):  # fmt: skip
        fleet.more = {**usual, **{f"mcbench_{key}": value for key, value in settings.items()}}
        try:
            for dry in (False, True):
                run = fleet.run(DEPLOY, dry=dry, limit=fleet.front.name)
                assert not run.ok
                # a plan goes on to say what would be done to a host that was put right
                assert dry or run.changed == [], run
                said = re.sub(r"unable to get local issuer certificate|unable to verify the first certificate",
                              "self-signed certificate in certificate chain", run.stderr)  # fmt: skip
                assert [line for line in lines if line not in said] == [], run
                assert "Preflight: this host is not touched" in run.stderr
                assert not [word for word in ENV.values() if word in run.stderr + run.stdout]
        finally:
            fleet.more = usual
    assert before.differences(Fingerprint.of(fleet.front)) == []


def test_fleet_lives_on_services_of_somebody_elses(fleet: Fleet, outside: Outside, stranger: LabHost) -> None:
    run = fleet.run()
    assert run.ok, run
    assert here(fleet.front) == {"api", "admin-api", "admin-flower", "scheduler", "worker", "render-worker", "server-worker"}
    assert here(fleet.back) == {"worker", "admin-worker"}
    for host in fleet.hosts:
        assert host.run("docker volume ls -q").stdout == ""
        assert not host.exists("/etc/hostwright/backup/mcbench-postgres.json"), "what is external is its provider's to back up"
    assert_travels(fleet, stranger, "outside")
    assert finished(fleet, stranger, submit(fleet, stranger, kind="render", key="outside-render"))["state"] == "done"
    administered = finished(fleet, fleet.front, submit(fleet, fleet.front, ADMIN, kind="administer", key="outside-models"), ADMIN)
    assert administered["state"] == "done"
    over_tls = "SELECT bool_and(ssl), count(*) > 3 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr << '10.0.0.0/8'"
    assert outside.sql(over_tls) == "t|t"
    before = ids(fleet)
    again = fleet.run()
    assert (again.ok, again.changed) == (True, []), again
    assert ids(fleet) == before
    assert fleet.run(dry=True).changed == []

    # A password that is wrong from now on stops the run, and nobody notices.
    outside.sql("ALTER ROLE \"user\" PASSWORD 'canary-of-another-password'")
    try:
        run = fleet.run(version="v1.0.0", log_level="DEBUG")
        assert (run.ok, run.changed) == (False, []), run
        assert run.stderr.count('password authentication failed for user "user"') >= 2, run
        assert ids(fleet) == before
    finally:
        outside.sql(f"ALTER ROLE \"user\" PASSWORD '{ENV['MCBENCH_POSTGRES_PASSWORD']}'")
    assert_travels(fleet, stranger, "outside-again")


def test_logs_go_to_a_collector_as_json_and_nobody_waits_for_it(fleet: Fleet, outside: Outside, stranger: LabHost) -> None:
    shipped = {"log_driver": "gelf", "log_address": f"udp://{outside.host.address}:{COLLECTOR_PORT}", "humanize_logs": False}
    # Why only UDP: over TCP the engine starts no container while nobody listens.
    image = fleet.registry.image("busybox")
    for driver in ("syslog", "gelf"):
        there = f"--log-driver {driver} --log-opt {driver}-address=tcp://{outside.host.address}:1 --log-opt mode=non-blocking"
        said = fleet.front.run(f"docker run --rm {there} {image} true 2>&1", check=False, timeout=120)
        assert (said.returncode != 0, "failed to initialize logging driver" in said.stdout) == (True, True), (driver, said.stdout)

    outside.collect()
    run = fleet.run(**shipped)
    assert run.ok, run
    assert_travels(fleet, stranger, "shipped")

    def lines_of(component: str) -> list[dict[str, object]]:
        found = [one for one in outside.collected() if str(one["_container_name"]).startswith(f"mcbench-{component}-")]
        return [json.loads(str(one["short_message"])) for one in found if str(one["short_message"]).startswith("{")]

    wait_for("the worker's words", lambda: any("build begins" in str(line["message"]) for line in lines_of("worker")), 30)
    for component in ("api", "worker", "server-worker"):
        line = lines_of(component)[-1]
        assert {"time", "level", "logger", "message", "version"} <= line.keys(), line
        assert line["version"] == "1.0.0"
    assert {one["host"] for one in outside.collected()} == {host.name for host in fleet.hosts}
    collected = outside.host.read("/srv/collected")
    assert [word for word in ENV.values() if word in collected] == []
    again = fleet.run(**shipped)
    assert (again.ok, again.changed) == (True, []), again

    # The collector is away: tasks go on, containers start, and the engine has what they say all the same.
    outside.host.run("systemctl stop collector")
    assert_travels(fleet, stranger, "collector-down")
    worker = fleet.back.run("docker ps -q --filter label=hostwright.component=mcbench-worker").stdout.strip()
    fleet.back.run(f"docker restart -t 60 {worker}", timeout=120)
    wait_for("the worker", lambda: fleet.back.run(f"docker inspect -f '{{{{.State.Health.Status}}}}' {worker}").stdout == "healthy\n", 90)
    assert_travels(fleet, stranger, "collector-still-down")
    assert "release" in fleet.back.run(f"docker logs {worker} 2>&1").stdout
    assert fleet.run(**shipped).changed == []

    # Unset, nothing is sent any more.
    run = fleet.run()
    assert run.ok, run
    outside.host.run("rm /srv/collected")
    outside.collect()
    assert_travels(fleet, stranger, "kept-here")
    assert outside.collected() == []
    for host in fleet.hosts:
        drivers = host.run("docker inspect -f '{{.HostConfig.LogConfig.Type}}' $(docker ps -q)").stdout.split()
        assert set(drivers) == {"json-file"}
    assert fleet.run().changed == []


def test_what_a_host_should_not_run_any_more_is_drained_and_gone(fleet: Fleet, stranger: LabHost) -> None:
    assert fleet.run().ok
    usual = dict(fleet.roles)
    front, back = fleet.front, fleet.back
    fleet.roles = usual | {"mcbench_worker": [front], "mcbench_admin": []}
    try:
        said = fleet.type("deploys.mcbench.status")
        assert said.returncode == 0, said.stdout
        for line in (f"[{back.name}] worker: is here", f"[{front.name}] admin-api: is here", f"[{front.name}] admin-flower: is here"):
            assert f"{line}, and this host should not run it: the next converge retires it" in said.stdout, said.stdout
        assert "worker" in here(back)
        # Half of these are begun on the host that loses its worker.
        for number in range(30):
            submit(fleet, stranger, kind="count", key=f"retiring-{number}", seconds=8)
        run = fleet.run()
        assert run.ok, run
        assert "mcbench | Retire what this host should not run" in run.changed
        counted = all_done(fleet, stranger)
        assert (counted["doubled"], counted["failed"], counted["unfinished"], counted["waiting"]) == (0, 0, 0, 0), counted
        assert here(back) == {"admin-worker"}
        assert here(front) == {"api", "scheduler", "worker", "render-worker", "server-worker"}
        assert not back.exists("/var/lib/hostwright/replicas/mcbench-worker")
        assert front.run("ls /etc/nginx/sites-enabled").stdout.split() == ["mcbench-api.conf"]
        for domain in (ADMIN, FLOWER):
            assert ask(front, front, domain, "/")[0] == 0, "no site answers to the name"
        again = fleet.run()
        assert (again.ok, again.changed) == (True, []), again
        assert "NOT WELL" not in back.run("mcbench-health").stdout + front.run("mcbench-health").stdout

        # Out of all groups: no converge comes by any more, a command does.
        fleet.roles = fleet.roles | {"mcbench": [front], "mcbench_admin_worker": [front]}
        assert fleet.run().ok
        assert here(back) == {"admin-worker"}
        assert "admin-worker: is here, and this host should not run it: deploys.mcbench.retire retires it" in (
            fleet.type("deploys.mcbench.status").stdout
        )
        said = fleet.type("deploys.mcbench.retire")
        assert said.returncode == 0, said.stdout
        assert (here(back), "admin-worker" in here(front)) == (set(), True)
        assert "NOT WELL" not in back.run("mcbench-health").stdout
        said = fleet.type("deploys.mcbench.retire")
        assert "is here" not in fleet.type("deploys.mcbench.status").stdout
    finally:
        fleet.roles = usual
    run = fleet.run()
    assert run.ok, run
    assert here(back) == {"worker", "admin-worker"}
    assert {"admin-api", "admin-flower"} <= here(front)
    administered = finished(fleet, front, submit(fleet, front, ADMIN, kind="administer", key="set-again"), ADMIN)
    assert administered["state"] == "done"
    assert fleet.run().changed == []


def test_data_that_would_be_left_behind_stops_the_run(fleet: Fleet) -> None:
    """A service of ours where none should run: an empty one elsewhere would take its place."""
    back = fleet.back
    image = fleet.registry.image("busybox")
    back.run(f"docker run -d --init --name mcbench-postgres --label hostwright.container=mcbench-postgres -v mcbench-postgres:/data {image} "
             "sh -c 'echo precious > /data/kept; sleep infinity'")  # fmt: skip
    before = ids(fleet)
    run = fleet.run(DEPLOY, limit=back.name)
    assert (run.ok, run.changed) == (False, []), run
    line = "postgres: runs here, and by this host's groups and settings it should not"
    assert line in run.stderr, run
    assert line in fleet.type("deploys.mcbench.status").stdout
    assert ids(fleet) == before
    back.run("docker stop -t 1 mcbench-postgres")
    run = fleet.run(limit=back.name)
    assert (run.ok, run.changed) == (True, []), run
    assert back.run("cat $(docker volume inspect -f '{{.Mountpoint}}' mcbench-postgres)/kept").stdout == "precious\n"
    back.run("docker rm mcbench-postgres && docker volume rm mcbench-postgres")
