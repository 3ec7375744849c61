"""The lab's images of services behave as those that they stand for."""

from __future__ import annotations

import pytest

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
    host = lab.host("t-images", layer="docker")
    registry.admit(host)
    return host


def test_postgres_initialises_keeps_its_data_and_asks_for_the_password(engine: LabHost, registry: Registry) -> None:
    image = registry.image("postgres")
    start = (f"docker run -d --name postgres --network services --user 999:999 --cap-drop ALL -v pg:/var/lib/postgresql/data "
             f"-e POSTGRES_USER=bench -e POSTGRES_PASSWORD=secret -e POSTGRES_DB=mc_bench {image}")  # fmt: skip
    engine.run("docker network create services")
    engine.run(f"docker pull -q {image} && {start}", timeout=180)

    def sql(query: str, password: str = "secret") -> str:
        client = f"docker run --rm --network services -e PGPASSWORD={password} {image} psql -h postgres -U bench -d mc_bench -Atc"
        done = engine.run(f'{client} "{query}"', check=False)
        return done.stdout.strip() or done.stderr

    ready = "docker exec postgres pg_isready -h 127.0.0.1 -U bench"
    wait_for("postgres", lambda: engine.run(ready, check=False).returncode == 0, 180, pause=0.3)
    assert "password authentication failed" in sql("select 1", "wrong")
    assert sql("create table kept (n int); insert into kept values (7); select n from kept").splitlines()[-1] == "7"
    engine.run("docker stop -t 60 postgres && docker rm postgres", timeout=180)
    engine.run(start)
    wait_for("postgres", lambda: engine.run(ready, check=False).returncode == 0, 180, pause=0.3)
    assert sql("select n from kept") == "7"
    engine.run("docker rm -f postgres && docker volume rm pg")


def test_redis_answers_and_keeps_its_data(engine: LabHost, registry: Registry) -> None:
    image = registry.image("redis")
    engine.run(f"docker pull -q {image}", timeout=180)
    engine.run(f"docker run -d --name redis -v queue:/data {image} --requirepass secret --appendonly yes")
    client = "docker exec -e REDISCLI_AUTH=secret redis redis-cli"
    wait_for("redis", lambda: engine.run(f"{client} ping", check=False).stdout == "PONG\n", 120, pause=0.2)
    assert "NOAUTH" in engine.run("docker exec redis redis-cli ping").stdout
    assert engine.run("docker exec redis cat /proc/1/status | grep ^Uid:").stdout.split()[1] == "999"
    engine.run(f"{client} set kept 7 && docker restart redis")
    wait_for("redis", lambda: engine.run(f"{client} get kept", check=False).stdout == "7\n", 120, pause=0.2)
    engine.run("docker rm -f redis && docker volume rm queue")


def test_object_store_asks_for_keys_and_keeps_its_objects(engine: LabHost, registry: Registry) -> None:
    image = registry.image("s3")
    engine.run(f"docker pull -q {image}", timeout=180)
    start = f"docker run -d --name s3 --cap-drop ALL -v objects:/data -p 127.0.0.1:9000:9000 -e MINIO_ROOT_USER=root -e MINIO_ROOT_PASSWORD=secret-key {image}"
    live = "curl -fsS http://127.0.0.1:9000/minio/health/live"

    def request(arguments: str, secret: str = "secret-key") -> str:
        signed = f"curl -sS -w '%{{http_code}}' -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' --aws-sigv4 aws:amz:us-east-1:s3 -u root:{secret}"
        return engine.run(f"{signed} http://127.0.0.1:9000/{arguments}").stdout

    engine.run(start)
    wait_for("object store", lambda: engine.run(live, check=False).returncode == 0, 120, pause=0.2)
    assert request("bench -X PUT") == "200"
    assert request("bench/a/b.txt -X PUT -H 'Content-Type: text/plain' -d content") == "200"
    assert request("bench/a/b.txt", "wrong-secret").endswith("403")
    assert engine.run("curl -sS -o /dev/null -w '%{http_code}' http://127.0.0.1:9000/bench/a/b.txt").stdout == "403"
    engine.run("docker rm -f s3")
    engine.run(start)
    wait_for("object store", lambda: engine.run(live, check=False).returncode == 0, 120, pause=0.2)
    assert request("bench/a/b.txt") == "content200"
    assert "<Key>a/b.txt</Key>" in request("'bench?list-type=2'")
    engine.run("docker rm -f s3 && docker volume rm objects")
