"""The lab's container registry, its images, and hosts with a Docker engine."""

from __future__ import annotations

import pytest

from tests.lab import images
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.registry import Registry
from tests.lab.state import wait_for


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


def test_postgres_initialises_keeps_its_data_and_asks_for_the_password(engine: LabHost, registry: Registry) -> None:
    image = registry.image("postgres")
    start = (f"docker run -d --name postgres --network services --user 999:999 --cap-drop ALL -v pg:/var/lib/postgresql/data "
             f"-e POSTGRES_USER=bench -e POSTGRES_PASSWORD=secret -e POSTGRES_DB=mc_bench {image}")  # fmt: skip
    engine.run("docker network create services")
    engine.run(f"docker pull -q {image} && {start}", timeout=120)

    def sql(query: str, password: str = "secret") -> str:
        client = f"docker run --rm --network services -e PGPASSWORD={password} {image} psql -h postgres -U bench -d mc_bench -Atc"
        done = engine.run(f'{client} "{query}"', check=False)
        return done.stdout.strip() or done.stderr

    ready = "docker exec postgres pg_isready -h 127.0.0.1 -U bench"
    wait_for("postgres", lambda: engine.run(ready, check=False).returncode == 0, 60, pause=0.3)
    assert "password authentication failed" in sql("select 1", "wrong")
    assert sql("create table kept (n int); insert into kept values (7); select n from kept").splitlines()[-1] == "7"
    engine.run("docker stop -t 30 postgres && docker rm postgres")
    engine.run(start)
    wait_for("postgres", lambda: engine.run(ready, check=False).returncode == 0, 60, pause=0.3)
    assert sql("select n from kept") == "7"
    engine.run("docker rm -f postgres && docker volume rm pg")


def test_redis_answers_and_keeps_its_data(engine: LabHost, registry: Registry) -> None:
    image = registry.image("redis")
    engine.run(f"docker pull -q {image}", timeout=120)
    engine.run(f"docker run -d --name redis -v queue:/data {image} --requirepass secret --appendonly yes")
    client = "docker exec -e REDISCLI_AUTH=secret redis redis-cli"
    wait_for("redis", lambda: engine.run(f"{client} ping", check=False).stdout == "PONG\n", 30, pause=0.2)
    assert "NOAUTH" in engine.run("docker exec redis redis-cli ping").stdout
    assert engine.run("docker exec redis cat /proc/1/status | grep ^Uid:").stdout.split()[1] == "999"
    engine.run(f"{client} set kept 7 && docker restart redis")
    wait_for("redis", lambda: engine.run(f"{client} get kept", check=False).stdout == "7\n", 30, pause=0.2)
    engine.run("docker rm -f redis && docker volume rm queue")


def test_object_store_asks_for_keys_and_keeps_its_objects(engine: LabHost, registry: Registry) -> None:
    image = registry.image("s3")
    engine.run(f"docker pull -q {image}", timeout=120)
    start = f"docker run -d --name s3 --cap-drop ALL -v objects:/data -p 127.0.0.1:9000:9000 -e MINIO_ROOT_USER=root -e MINIO_ROOT_PASSWORD=secret-key {image}"
    live = "curl -fsS http://127.0.0.1:9000/minio/health/live"

    def request(arguments: str, secret: str = "secret-key") -> str:
        signed = f"curl -sS -w '%{{http_code}}' -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' --aws-sigv4 aws:amz:us-east-1:s3 -u root:{secret}"
        return engine.run(f"{signed} http://127.0.0.1:9000/{arguments}").stdout

    engine.run(start)
    wait_for("object store", lambda: engine.run(live, check=False).returncode == 0, 30, pause=0.2)
    assert request("bench -X PUT") == "200"
    assert request("bench/a/b.txt -X PUT -H 'Content-Type: text/plain' -d content") == "200"
    assert request("bench/a/b.txt", "wrong-secret").endswith("403")
    assert engine.run("curl -sS -o /dev/null -w '%{http_code}' http://127.0.0.1:9000/bench/a/b.txt").stdout == "403"
    engine.run("docker rm -f s3")
    engine.run(start)
    wait_for("object store", lambda: engine.run(live, check=False).returncode == 0, 30, pause=0.2)
    assert request("bench/a/b.txt") == "content200"
    assert "<Key>a/b.txt</Key>" in request("'bench?list-type=2'")
    engine.run("docker rm -f s3 && docker volume rm objects")
