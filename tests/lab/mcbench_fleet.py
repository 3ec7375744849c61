"""The mcbench fleet on three hosts of the lab, its inventory, and what a client asks of it."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.lab import images
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import PYINFRA, Run, command_line, environment, provision
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
    """Three hosts: ``front`` (databases, APIs, scheduler), ``back`` (workers), ``games``; or one that is all of them.

    + more: further host data of all of them, flat keys, laid over what ``data`` has
    + roles: hosts of each group; a test may change it
    """

    def __init__(self, lab: Lab, layer: str = "docker", release: str = "bookworm", one_host: bool = False) -> None:
        names = [f"t-mcbench-{layer}-{part}" for part in (("all",) if one_host else ("front", "back", "games"))]
        self.registry: Registry = lab.registry()
        self.hosts: list[LabHost] = lab.boot_all(*((name, release, layer) for name in names))
        self.front, self.back, self.games = self.hosts * 3 if one_host else self.hosts
        self.more: dict[str, object] = {}
        front, back, games = self.front, self.back, self.games
        self.roles: dict[str, list[LabHost]] = {
            "lab": self.hosts,
            "mcbench": self.hosts,
            "mcbench_infra": [front],
            "mcbench_api": [front],
            "mcbench_admin": [front],
            "mcbench_scheduler": [front],
            "mcbench_worker": [back],
            "mcbench_admin_worker": [back],
            "mcbench_render": [back],
            "mcbench_server": [games],
        }
        self.put("v1.0.0")

    def replace(self, old: LabHost, new: LabHost) -> None:
        """Have another machine in a host's place, in all of its groups."""
        self.hosts = [new if host is old else host for host in self.hosts]
        self.front, self.back, self.games = self.hosts
        self.roles = {group: [new if host is old else host for host in members] for group, members in self.roles.items()}

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
            "server_shares_host": len(self.hosts) == 1,
            "api_domain": API,
            "admin_domain": ADMIN,
            "flower_domain": FLOWER,
            "cors_allowed_origin": "https://frontend.mcbench.test",
            "allow_small": True,
            "limits": {name: SMALL for name in ("postgres", "redis", "object", "scheduler", "admin-flower", *WEB, *WORKERS)},
            "num_workers": 2,
            "build_delay_ms": 0,
            "fast_render": True,
            "check_interval_seconds": 8,  # each check of a worker starts a Python
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

    def _words(self, **settings: object) -> dict[str, Any]:
        return {
            "data": {**self.data(**settings), **self.more},
            "groups": self.roles,
            "host_data": {
                host.name: {"mcbench_internal_address": host.address} for host in self.roles["mcbench_infra"] if len(self.hosts) > 1
            },
        }

    def run(
        self, deploy: str | Path = DEPLOY, dry: bool = False, limit: str | None = None, extra: Sequence[str] = (),
        timeout: float = 900, **settings: object,
    ) -> Run:  # fmt: skip
        """Run pyinfra over the three hosts; keyword arguments are settings without their prefix."""
        return provision(
            list(self.hosts), deploy, env=ENV, dry=dry, limit=limit, extra=extra, timeout=timeout, **self._words(**settings)
        )

    def command(self, scratch: Path, deploy: str | Path = DEPLOY, **settings: object) -> list[str]:
        """Return the command line of such a run, to be started by the caller with ``ENV`` in its environment."""
        return command_line(scratch, list(self.hosts), deploy, **self._words(**settings))

    def type(self, *words: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run pyinfra as an operator types it: ``pyinfra -y INVENTORY deploys.mcbench.status``; output in one."""
        with tempfile.TemporaryDirectory(prefix="lab-typed-") as scratch:
            self.command(Path(scratch), **settings)
            return subprocess.run(
                [str(PYINFRA), "-y", f"{scratch}/inventory.py", *words], cwd=REPOSITORY, text=True, timeout=900,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env=environment(ENV),
            )  # fmt: skip

    def containers(self) -> dict[str, dict[str, str]]:
        """Every running container of the three hosts by its name: id, status."""
        found = {}
        for host in self.hosts:
            listing = host.run("docker ps --no-trunc --format '{{.Names}} {{.ID}} {{.Status}}'").stdout
            for line in listing.splitlines():
                name, container, status = line.split(maxsplit=2)
                found[f"{host.name}/{name}"] = {"id": container, "status": status}
        return found


@contextlib.contextmanager
def fleet_of(
    lab: Lab, layer: str = "docker", release: str = "bookworm", one_host: bool = False
) -> Iterator[Fleet]:
    """Give a fleet of fresh hosts, and remove it at the end."""
    made = Fleet(lab, layer, release, one_host)
    try:
        yield made
    finally:
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


def all_done(fleet: Fleet, source: LabHost, seconds: float = 240) -> dict[str, int]:
    """Wait until no task is left to do and no worker is at one, and return the count of them.

    A worker writes down what came of a task, and then that it has ended.
    """
    found: dict[str, int] = {}

    def are_done() -> bool:
        found.update(summary(fleet, source))
        return found["done"] + found["failed"] == found["tasks"] and found["unfinished"] == 0

    wait_for("all tasks", are_done, seconds)
    return found


def versions(fleet: Fleet) -> set[str]:
    """The tags of the application's running images."""
    listing = "\n".join(host.run("docker ps --format '{{.Image}}'").stdout for host in fleet.hosts)
    return {line.rpartition(":")[2] for line in listing.splitlines() if "/mc-bench-" in line}


def containers_by_component(fleet: Fleet) -> dict[str, str]:
    """Ids of the running containers by host and component, where a component has one container alone."""
    return {re.sub(r"-(?:[0-9a-f]{12}|blue|green)-1$", "", name): one["id"] for name, one in fleet.containers().items()}
