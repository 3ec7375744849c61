"""Containers that a server worker starts beside its own, through the Docker socket."""

import contextlib
from collections.abc import Iterator
from typing import Any

import docker
from docker.models.containers import Container

from mc_bench import config

LABEL = "mcbench.job"
_SECONDS = 120


def run(task_id: int, script: str) -> bytes:
    """Run a game and a builder that talks to it; return what the builder printed."""
    client = docker.from_env(timeout=_SECONDS)
    with contextlib.closing(client):
        network = _network(client)
        game = f"mcbench-game-{task_id}"
        with (
            _container(client, config.required("MINECRAFT_SERVER_IMAGE"), task_id, game, network, {}),
            _container(
                client, config.required("MINECRAFT_BUILDER_IMAGE"), task_id, f"mcbench-builder-{task_id}", network,
                {"SERVER": game, "SCRIPT": script},
            ) as builder,
        ):  # fmt: skip
            status = builder.wait(timeout=_SECONDS)["StatusCode"]
            output = builder.logs(stdout=True, stderr=True)
            if status != 0:
                raise RuntimeError(f"builder: exit status {status}: {output[-500:].decode(errors='replace')}")
            return output


def _network(client: docker.DockerClient) -> str:
    name = config.text("JOB_NETWORK", "mcbench-jobs")
    if not client.networks.list(names=[f"^{name}$"]):
        client.networks.create(name, internal=True, labels={LABEL: "network"})
    return name


@contextlib.contextmanager
def _container(
    client: docker.DockerClient, image: str, task_id: int, name: str, network: str, environment: dict[str, str]
) -> Iterator[Container]:
    """A container with limits that is gone afterwards. Its image must be there: nothing is pulled in the middle of a job."""
    options: dict[str, Any] = {
        "name": name,
        "network": network,
        "environment": environment,
        "labels": {LABEL: str(task_id)},
        "mem_limit": "128m",
        "nano_cpus": 500_000_000,
        "pids_limit": 64,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
    }
    container = client.containers.create(image, **options)
    try:
        container.start()
        yield container
    finally:
        container.remove(force=True, v=True)
