"""The lab's container registry, its images, and hosts with a Docker engine."""

from __future__ import annotations

import pytest

from tests.lab import images
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.registry import Registry


@pytest.fixture(scope="module")
def registry(lab: Lab) -> Registry:
    return lab.registry()


@pytest.fixture(scope="module")
def engine(lab: Lab, registry: Registry) -> LabHost:
    """A host with Docker that the registry has admitted."""
    host = lab.host("t-registry", layer="docker")
    registry.admit(host)
    return host


def test_registry_asks_for_an_account_and_a_trusted_authority(lab: Lab, engine: LabHost, registry: Registry) -> None:
    reference = registry.image("busybox")
    trust = f"/etc/docker/certs.d/{registry.name}/ca.crt"
    engine.run(f"mv {trust} /tmp/ca && mv /root/.docker/config.json /tmp/account")
    assert "unknown authority" in engine.run(f"docker pull {reference}", check=False).stderr
    engine.run(f"mv /tmp/ca {trust}")
    assert "no basic auth credentials" in engine.run(f"docker pull {reference}", check=False).stderr
    engine.run("mv /tmp/account /root/.docker/config.json")
    engine.run(f"docker pull -q {reference}")

    registry.set_password(registry.username, "rotated")
    try:
        assert "unauthorized" in engine.run(f"docker pull {reference}", check=False).stderr
        log_in = f"docker login -u {registry.username} --password-stdin {registry.name}"
        assert engine.run(log_in, input=registry.password, check=False).returncode != 0
        engine.run(log_in, input="rotated")
        engine.run(f"docker pull -q {reference}")
    finally:
        registry.set_password(registry.username, registry.password)
    registry.admit(engine)
    assert {(r.method, r.status) for r in registry.requests if "busybox/manifests" in r.path} >= {("HEAD", 200), ("HEAD", 401)}


def test_registry_goes_and_comes_back_with_what_it_holds(engine: LabHost, registry: Registry) -> None:
    reference = registry.image("busybox")
    registry.stop()
    try:
        refused = engine.run(f"docker pull {reference}", check=False)
    finally:
        registry.start()
    assert refused.returncode != 0
    assert "connection refused" in refused.stderr
    engine.run(f"docker pull -q {reference}")


def test_image_that_was_made_is_the_image_that_runs(engine: LabHost, registry: Registry) -> None:
    made = images.make(
        images.get("busybox"), files={"/usr/bin/greet": "#!/bin/sh\necho $GREETING $1 as $(id -u)\n"},
        environment={"GREETING": "hello"}, entrypoint=["/usr/bin/greet"], command=["world"], user="65534",
        labels={"of": "the lab"}, created="2026-03-01T12:00:00Z",
    )  # fmt: skip
    reference = registry.push("team/greeter", "1.0", made)
    engine.run(f"docker pull -q {reference}")
    assert engine.run(f"docker run --rm {reference}").stdout == "hello world as 65534\n"
    seen = engine.run(f"docker image inspect {reference} --format '{{{{.Id}}}} {{{{.Created}}}} {{{{.Config.Labels.of}}}}'")
    assert seen.stdout == f"{made.id} 2026-03-01T12:00:00Z the lab\n"

    moved = registry.push("team/greeter", "1.0", images.make(made, environment={"GREETING": "goodbye"}))
    assert moved == reference
    assert registry.digest(reference) != images.digest(made.manifest)
    engine.run(f"docker pull -q {reference}")
    assert engine.run(f"docker run --rm {reference}").stdout == "goodbye world as 65534\n"

    registry.remove(reference)
    assert "not found" in engine.run(f"docker pull {reference}", check=False).stderr


def test_manifests_say_for_which_platforms_they_are(engine: LabHost, registry: Registry) -> None:
    def pulled(tag: str, platform: str) -> str:
        reference = registry.image("platforms", tag)
        engine.run(f"docker image rm -f {reference}", check=False)
        done = engine.run(f"docker pull -q --platform {platform} {reference}", check=False)
        if done.returncode != 0:
            return done.stderr
        return engine.run(f"docker image inspect {reference} --format '{{{{.Architecture}}}}'").stdout.strip()

    assert pulled("both", "linux/amd64") == "amd64"
    assert pulled("both", "linux/arm64") == "arm64"
    assert "no match" in pulled("amd64", "linux/arm64")
    assert pulled("arm64", "linux/arm64") == "arm64"


@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_docker_works_at_once_and_after_every_kind_of_boot(
    lab: Lab, engine: LabHost, registry: Registry, release: str
) -> None:
    host = engine if release == "bookworm" else lab.host("t-registry-trixie", release, layer="docker")
    registry.admit(host)
    image = registry.image("busybox")
    memory = f"docker run --rm -m 64m {image} cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"

    def works() -> None:
        assert host.run(memory, check=False).stdout == f"{64 * 2**20}\n"
        assert engine.run(f"curl -sS --retry 20 --retry-connrefused http://{host.address}:8080/").stdout == "busybox\n"

    host.run("docker network create inner")
    host.run(f"docker run -d --name web --network inner --restart always --init -p 8080:80 {image} httpd -f -h /var/www")
    assert host.run(f"docker run --rm --network inner {image} wget -qO- http://web/").stdout == "busybox\n"
    works()
    host.kill()
    host.boot()
    works()
    if release == "bookworm":
        return
    host.reboot()
    works()
    host.reset()
    registry.admit(host)
    assert host.run(memory, check=False).stdout == f"{64 * 2**20}\n"
    lab.destroy(host)
