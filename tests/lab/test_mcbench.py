"""The mcbench fleet on three hosts: from containers' engine to tasks that travel through all of it, and what may happen after."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import images, mcbench_load
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.registry import Registry
from tests.lab.state import REPOSITORY, wait_for

API, ADMIN, FLOWER = "api.mcbench.test", "admin.mcbench.test", "flower.mcbench.test"
DEPLOY = """
from deploys.docker_engine import docker_engine
from deploys.mcbench import mcbench
docker_engine()
mcbench()
"""
ENV = {
    "MCBENCH_POSTGRES_PASSWORD": "canary-postgres-password",
    "MCBENCH_POSTGRES_BACKUP_PASSWORD": "canary-backup-role-password",
    "MCBENCH_REDIS_PASSWORD": "canary/redis#pass@word",
    "MCBENCH_OBJECT_STORE_ACCESS_KEY": "canary-access",
    "MCBENCH_OBJECT_STORE_SECRET_KEY": "canary-object-secret",
    "MCBENCH_SECRET_KEY": "canary-secret-key-of-the-application",
    "MCBENCH_FLOWER_PASSWORD": "canary-flower-password",
    "MCBENCH_OPENAI_API_KEY": "canary-sk-openai",
    "BACKUP_PASSWORD": "canary-backup-password",
    "REGISTRY_PASSWORD": Registry.password,
}
SMALL = {"cpus": 1.0, "memory_mb": 256}
WEB = {"api", "admin-api"}
WORKERS = {"worker", "admin-worker", "render-worker", "server-worker"}


class Fleet:
    """Three hosts, and one that is none of them: ``front`` (databases, APIs, scheduler), ``back`` (workers), ``games``."""

    def __init__(self, lab: Lab, provision: Callable[..., Run], layer: str = "docker", release: str = "bookworm") -> None:
        names = [f"t-mcbench-{layer}-{part}" for part in ("front", "back", "games")]
        self._provision = provision
        self.front, self.back, self.games = self.hosts = lab.boot_all(*((name, release, layer) for name in names))
        self.registry: Registry = lab.registry()
        self.put("v1.0.0")

    @property
    def groups(self) -> dict[str, list[LabHost]]:
        front, back, games = self.hosts
        return {
            "lab": [front, back, games],
            "mcbench": [front, back, games],
            "mcbench_infra": [front],
            "mcbench_api": [front],
            "mcbench_admin": [front],
            "mcbench_scheduler": [front],
            "mcbench_worker": [back],
            "mcbench_admin_worker": [back],
            "mcbench_render": [back],
            "mcbench_server": [games],
        }

    def put(self, version: str) -> None:
        """Have a release of the application in the registry."""
        for component in images.MCBENCH:
            self.registry.image(f"mc-bench-{component}", version)

    def data(self, **settings: object) -> dict[str, object]:
        address = self.front.address
        own = {
            "registry": self.registry.name,
            "version": "v1.0.0",
            "postgres_image": self.registry.image("postgres", "16"),
            "redis_image": self.registry.image("redis", "7"),
            "object_image": self.registry.image("s3", "1"),
            "object_command": ["server", "/data"],
            "minecraft_server_image": self.registry.image("mc-bench-minecraft-server", "1.0.0"),
            "minecraft_builder_image": self.registry.image("mc-bench-builder-runner", "1.0.0"),
            "flower_command": ["celery", "-A", "mc_bench.apps.admin_worker", "flower"],
            "internal_address": None,
            "internal_networks": [f"{host.address}/32" for host in self.hosts],
            "postgres_host": address,
            "redis_host": address,
            "object_store_dsn": f"{address}:9000",
            "api_domain": API,
            "admin_domain": ADMIN,
            "flower_domain": FLOWER,
            "cors_allowed_origin": "https://frontend.mcbench.test",
            "allow_small": True,
            "limits": {name: SMALL for name in ("postgres", "redis", "object", "scheduler", "admin-flower", *WEB, *WORKERS)},
            "num_workers": 2,
            "build_delay_ms": 0,
            "fast_render": True,
            "check_interval_seconds": 4,
            "settle_seconds": 1,
            "start_timeout_seconds": 60,
            "web_drain_seconds": 20,
            "task_drain_seconds": 60,
            "rate_limit_per_second": 0,
            **{key: f"env:MCBENCH_{key.upper()}" for key in (
                "postgres_password", "postgres_backup_password", "redis_password", "object_store_access_key", "object_store_secret_key", "secret_key",
                "flower_password", "openai_api_key",
            )},
            **settings,
        }  # fmt: skip
        return {
            "certificate_mode": "self-signed",
            "backup_password": "env:BACKUP_PASSWORD",
            "docker_source": "distribution",
            "docker_registries": {
                self.registry.name: {
                    "username": self.registry.username, "password": "env:REGISTRY_PASSWORD", "ca": self.registry.ca,
                }
            },
            **{f"mcbench_{key}": value for key, value in own.items() if value is not None},
        }

    def run(self, deploy: str | Path = DEPLOY, dry: bool = False, limit: str | None = None, **settings: object) -> Run:
        """Run pyinfra over the three hosts; keyword arguments are settings without their prefix."""
        return self._provision(
            list(self.hosts),
            deploy,
            data=self.data(**settings),
            groups=self.groups,
            env=ENV,
            dry=dry,
            limit=limit,
            host_data={self.front.name: {"mcbench_internal_address": self.front.address}},
        )

    def containers(self) -> dict[str, dict[str, str]]:
        """Every running container of the three hosts by its name: id, status."""
        found = {}
        for host in self.hosts:
            listing = host.run("docker ps --no-trunc --format '{{.Names}} {{.ID}} {{.Status}}'").stdout
            for line in listing.splitlines():
                name, container, status = line.split(maxsplit=2)
                found[f"{host.name}/{name}"] = {"id": container, "status": status}
        return found


@pytest.fixture(scope="module")
def fleet(lab: Lab, provision: Callable[..., Run]) -> Iterator[Fleet]:
    made = Fleet(lab, provision)
    yield made
    for host in made.hosts:
        lab.destroy(host)


def ask(source: LabHost, target: LabHost, domain: str, path: str, *options: str) -> tuple[int, str]:
    """Ask over https for a path, a host itself by loopback; return the status and the body."""
    to = "127.0.0.1" if source is target else target.address
    command = ["curl", "-sk", "-m", "20", "-w", "\\n%{http_code}", "--resolve", f"{domain}:443:{to}", *options,
               f"https://{domain}{path}"]  # fmt: skip
    body, _, code = source.run(shlex.join(command), check=False).stdout.rpartition("\n")
    return int(code or 0), body


def reaches(source: LabHost, target: LabHost, port: int) -> bool:
    """Whether a host lets another one in by a port."""
    return source.run(f"timeout 4 bash -c '</dev/tcp/{target.address}/{port}'", check=False).returncode == 0


def submit(fleet: Fleet, source: LabHost, domain: str = API, **task: object) -> int:
    status, body = ask(source, fleet.front, domain, "/tasks", "--json", json.dumps(task))
    assert status in (200, 202), body
    return int(json.loads(body)["id"])


def finished(fleet: Fleet, source: LabHost, task: int, domain: str = API) -> dict[str, Any]:
    """Wait for a task to end, and return all that is known of it."""

    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(json.loads(ask(source, fleet.front, domain, f"/tasks/{task}")[1]))
        return found["state"] in ("done", "failed")

    wait_for(f"task {task}", has_ended, 90)
    return found


def summary(fleet: Fleet, source: LabHost) -> dict[str, int]:
    status, body = ask(source, fleet.front, API, "/tasks/summary")
    assert status == 200, body
    found: dict[str, int] = json.loads(body)
    return found


def all_done(fleet: Fleet, source: LabHost) -> dict[str, int]:
    """Wait until no task is left to do, and return the count of them."""

    found: dict[str, int] = {}

    def are_done() -> bool:
        found.update(summary(fleet, source))
        return found["done"] + found["failed"] == found["tasks"]

    wait_for("all tasks", are_done, 120)
    return found


def versions(fleet: Fleet) -> set[str]:
    """The tags of the application's running images."""
    listing = "\n".join(host.run("docker ps --format '{{.Image}}'").stdout for host in fleet.hosts)
    return {line.rpartition(":")[2] for line in listing.splitlines() if "/mc-bench-" in line}


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
def test_upgrade_costs_no_request_and_no_task(fleet: Fleet, stranger: LabHost) -> None:
    fleet.put("v1.1.0")
    with mcbench_load.traffic(stranger, fleet.front, API) as traffic:
        run = fleet.run(version="v1.1.0")
    assert run.ok, run
    assert traffic.report.failures == []
    assert traffic.report.versions == ["1.0.0", "1.1.0"]
    assert versions(fleet) == {"v1.1.0"}
    counted = all_done(fleet, stranger)
    assert (counted["doubled"], counted["failed"], counted["unfinished"], counted["waiting"]) == (0, 0, 0, 0), counted
    assert fleet.run(version="v1.1.0", dry=True).changed == []


@pytest.mark.soak
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("bad-start", "no module named mc_bench.missing"),
        ("bad-health", "not healthy|unhealthy|does not answer"),
        ("bad-dies", "this release gives up"),
        ("bad-platform", "linux/amd64|platform"),
        ("v9.9.9", "not found|manifest unknown|no such"),
    ],
)
def test_bad_release_goes_nowhere(fleet: Fleet, stranger: LabHost, bad: str, words: str) -> None:
    fleet.put("v1.1.0")
    if bad.startswith("bad-"):
        fleet.put(bad)
    assert fleet.run(version="v1.1.0").ok
    before = {name: one["id"] for name, one in fleet.containers().items()}
    with mcbench_load.traffic(stranger, fleet.front, API) as traffic:
        run = fleet.run(version=bad, settle_seconds=8, start_timeout_seconds=40)
    assert not run.ok
    assert re.search(words, run.stderr), run
    assert traffic.report.failures == []
    assert traffic.report.versions == ["1.1.0"]
    after = {name: one["id"] for name, one in fleet.containers().items()}
    # what makes tasks and what answers is untouched, whoever was tried first
    kept = {name for name in before if "api" in name or "scheduler" in name or "postgres" in name}
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}
    counted = all_done(fleet, stranger)
    assert (counted["doubled"], counted["failed"], counted["unfinished"]) == (0, 0, 0), counted
    assert fleet.run(version="v1.1.0").ok
    assert versions(fleet) == {"v1.1.0"}


@pytest.mark.soak
def test_rollback_costs_nothing_either_and_status_says_what_runs(fleet: Fleet, stranger: LabHost) -> None:
    fleet.put("v1.1.0")
    assert fleet.run(version="v1.0.0").ok
    assert fleet.run(version="v1.1.0").ok
    said = fleet.run("from deploys.mcbench import status\nstatus()\n", version="v1.1.0")
    assert "api: release " in said.stderr
    assert "1 of 1 well" in said.stderr
    assert "rollback goes to release" in said.stderr
    with mcbench_load.traffic(stranger, fleet.front, API) as traffic:
        run = fleet.run("from deploys.mcbench import rollback\nrollback()\n", version="v1.1.0")
    assert run.ok, run
    assert traffic.report.failures == []
    assert traffic.report.versions == ["1.1.0", "1.0.0"]
    counted = all_done(fleet, stranger)
    assert (counted["doubled"], counted["failed"], counted["unfinished"]) == (0, 0, 0), counted
    assert versions(fleet) - {"v1.0.0"} == {"v1.1.0"}, "Flower and the scheduler wait for the next converge"


@pytest.mark.soak
def test_more_and_fewer_workers_lose_no_task(fleet: Fleet, stranger: LabHost) -> None:
    assert fleet.run().ok
    workers = "docker ps -q --filter label=hostwright.component=mcbench-worker | wc -l"
    with mcbench_load.traffic(stranger, fleet.front, API, get=0, upload=0, websocket=0, task=3):
        for count in (3, 1):
            run = fleet.run(f"from deploys.mcbench import scale\nscale(component='worker', count={count})\n")
            assert run.ok, run
            assert fleet.back.run(workers).stdout.strip() == str(count)
    counted = all_done(fleet, stranger)
    assert (counted["doubled"], counted["failed"], counted["unfinished"], counted["waiting"]) == (0, 0, 0, 0), counted
    assert fleet.run().changed == []


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


@pytest.mark.soak
@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_bare_hosts_become_the_fleet_by_the_real_deploy(
    lab: Lab, provision: Callable[..., Run], stranger: LabHost, release: str
) -> None:
    bare = Fleet(lab, provision, "bare", release)
    try:
        run = bare.run(REPOSITORY / "deploy.py")
        assert run.ok, run
        built = finished(bare, stranger, submit(bare, stranger, kind="build", key="from-bare", script="place a house"))
        assert (built["state"], built.get("output")) == ("done", "built in world of 1.0.0: place a house\n")
        before = {name: one["id"] for name, one in bare.containers().items()}
        again = bare.run(REPOSITORY / "deploy.py")
        assert (again.ok, again.changed) == (True, []), again
        assert {name: one["id"] for name, one in bare.containers().items()} == before
        for host in bare.hosts:
            host.reboot()
        wait_for("the api after a reboot", lambda: ask(stranger, bare.front, API, "/health")[0] == 200, 180)
        assert finished(bare, stranger, submit(bare, stranger, kind="build", key="after-reboot"))["state"] == "done"
        closed = (5432, 6379, 9000, 8000, 5555, 18000, 18200)
        assert [port for port in closed if reaches(stranger, bare.front, port)] == []
        assert [port for port in (5432, 6379, 9000) if not reaches(bare.back, bare.front, port)] == []
    finally:
        for host in bare.hosts:
            lab.destroy(host)
