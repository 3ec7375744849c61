"""The lab's application with all its parts, in containers started by hand: what the tests of its deploy rely on."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from tests.lab import images
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.registry import Registry
from tests.lab.state import wait_for

pytestmark = pytest.mark.soak

VARIABLES = {
    "CELERY_BROKER_URL": "redis://default:secret@redis:6379/0", "POSTGRES_HOST": "postgres", "POSTGRES_PORT": "5432",
    "POSTGRES_USER": "bench", "POSTGRES_PASSWORD": "secret", "POSTGRES_DB": "mc_bench", "LOG_LEVEL": "INFO",
    "HUMANIZE_LOGS": "true", "SECRET_KEY": "k" * 32, "CORS_ALLOWED_ORIGIN": "https://frontend.example.org",
    "INTERNAL_OBJECT_BUCKET": "internal", "EXTERNAL_OBJECT_BUCKET": "public", "OBJECT_STORE_DSN": "object:9000",
    "OBJECT_STORE_ACCESS_KEY": "root", "OBJECT_STORE_SECRET_KEY": "secret-key", "OBJECT_STORE_SECURE": "false",
    "NUM_WORKERS": "1", "BUILD_DELAY_MS": "10", "FAST_RENDER": "true", "OPENAI_API_KEY": "key",
}  # fmt: skip


class Bench:
    """The application on one host, each component a container started by hand."""

    def __init__(self, host: LabHost, registry: Registry) -> None:
        self.host, self.registry = host, registry

    def pull(self, name: str, tag: str) -> str:
        reference = self.registry.image(name, tag)
        self.host.run(f"docker pull -q {reference}", timeout=180)
        return reference

    def start(self, name: str, image: str, options: str = "", words: str = "") -> None:
        self.host.run(f"docker run -d --name {name} --network bench --cap-drop ALL --env-file /bench.env {options} {image} {words}", timeout=180)

    def component(self, command: str, tag: str = "v1.0.0", options: str = "") -> str:
        """Start a component under a name of its own, and return that."""
        name = f"{command}-{tag.replace('.', '-')}"
        self.start(name, self.pull(f"mc-bench-{command}", tag), f"-e WORKER_NAME={name}@t-bench {options}")
        return name

    def once(self, tag: str, words: str) -> tuple[int, str]:
        image = self.pull("mc-bench-api", tag)
        done = self.host.run(f"docker run --rm --network bench --env-file /bench.env {image} {words}", check=False, timeout=180)
        return done.returncode, done.stdout + done.stderr

    def ask(self, path: str, body: dict[str, Any] | None = None, port: int = 8000) -> Any:
        data = f"--json {shlex.quote(json.dumps(body))}" if body is not None else ""
        return json.loads(self.host.run(f"curl -sS --max-time 50 {data} http://127.0.0.1:{port}{path}").stdout)

    def finished(self, task: int, port: int = 8000) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def ended() -> bool:
            found.update(self.ask(f"/tasks/{task}", port=port))
            return found["state"] in ("done", "failed")

        wait_for(f"task {task} to end", ended, 180, pause=0.3)
        return found

    def logs(self, name: str) -> str:
        done = self.host.run(f"docker logs {name}")
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def bench(lab: Lab) -> Bench:
    """Postgres, Redis, the object store with its buckets, and a migrated database."""
    registry = lab.registry()
    engine = lab.host("t-bench", layer="docker")
    registry.admit(engine)
    bench = Bench(engine, registry)
    server, builder = (bench.pull(f"mc-bench-{name}", "v1") for name in ("minecraft-server", "builder-runner"))
    variables = {**VARIABLES, "MINECRAFT_SERVER_IMAGE": server, "MINECRAFT_BUILDER_IMAGE": builder}
    engine.write("/bench.env", "".join(f"{key}={value}\n" for key, value in variables.items()), "0600")
    engine.run("docker network create bench")
    bench.start("postgres", bench.pull("postgres", "latest"), "--user 999:999")
    bench.start("redis", bench.pull("redis", "latest"), "--user 999:999", "redis-server --requirepass secret")
    bench.start("object", bench.pull("s3", "latest"), "-p 127.0.0.1:9000:9000 -e MINIO_ROOT_USER=root -e MINIO_ROOT_PASSWORD=secret-key")
    for bucket in ("internal", "public"):
        engine.run(
            "curl -sSf -X PUT -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' --aws-sigv4 aws:amz:us-east-1:s3 --retry 20 "
            f"--retry-all-errors --retry-delay 1 -u root:secret-key http://127.0.0.1:9000/{bucket}"
        )
    ready = "docker exec postgres pg_isready -h 127.0.0.1 -U bench"
    wait_for("postgres", lambda: engine.run(ready, check=False).returncode == 0, 180, pause=0.3)
    status, output = bench.once("v1.0.0", "alembic upgrade head")
    assert status == 0, output
    return bench


@pytest.fixture(scope="module")
def running(bench: Bench) -> Bench:
    """All components of the application, healthy."""
    bench.component("api", options="-p 127.0.0.1:8000:8000 --read-only --tmpfs /tmp")
    bench.component("admin-api", options="-p 127.0.0.1:8001:8000")
    workers = [bench.component(kind) for kind in ("worker", "admin-worker", "render-worker", "scheduler")]
    workers.append(bench.component("server-worker", options="-v /var/run/docker.sock:/var/run/docker.sock"))
    for port in (8000, 8001):
        wait_for("api", lambda port=port: bench.host.run(f"curl -sf http://127.0.0.1:{port}/health", check=False).returncode == 0, 180, pause=0.3)
    for name in workers:
        if not name.startswith("scheduler"):
            ping = f"docker exec {name} python -m mc_bench ping"
            wait_for(name, lambda ping=ping: bench.host.run(ping, check=False).returncode == 0, 180, pause=0.5)
    return bench


def test_task_goes_through_all_parts_and_its_result_comes_back(running: Bench) -> None:
    ask = running.ask
    assert ask("/health") == {"status": "ok", "version": "1.0.0"}
    built = running.finished(ask("/tasks", {"kind": "build", "script": "a tower"})["id"])
    assert built["output"] == "built in world of v1: a tower\n", built
    assert [(each["step"], each["worker"].partition("-v")[0], each["ended"]) for each in built["executions"]] == [
        ("build", "worker", True), ("run_build", "server-worker", True)]  # fmt: skip
    left = running.host.run("docker ps -aq --filter label=mcbench.job; docker network inspect mcbench-jobs --format '{{.Internal}}'").stdout
    assert left == "true\n"

    rendered = running.finished(ask("/tasks", {"kind": "render"})["id"])
    assert len(rendered["output"]) == 64
    assert rendered["executions"][0]["worker"].startswith("render-worker")
    administered = running.finished(ask("/tasks", {}, port=8001)["id"], port=8001)
    assert administered["result"] == {"providers": ["OPENAI"], "version": "1.0.0"}


def test_every_task_is_counted_once(running: Bench) -> None:
    before = running.ask("/tasks/summary")
    first = running.ask("/tasks", {"key": "once", "seconds": 0.1})
    again = running.ask("/tasks", {"key": "once", "seconds": 0.1})
    assert (first["new"], again["new"], again["id"]) == (True, False, first["id"])
    for _ in range(10):
        running.ask("/tasks", {})
    wait_for("tasks", lambda: running.ask("/tasks/summary")["done"] == before["done"] + 11, 180, pause=0.3)
    after = running.ask("/tasks/summary")
    assert (after["failed"], after["waiting"], after["unfinished"], after["doubled"]) == (0, 0, 0, 0), after
    wait_for("scheduler", lambda: running.ask("/tasks/summary")["ticks"] > 0, 180, pause=0.5)
    # A task that was executed twice is seen.
    running.host.run(
        "docker exec postgres psql -U bench -d mc_bench -c \"insert into execution (task_id, step, worker, version) "
        f"select task_id, step, worker, version from execution where task_id = {first['id']}\""
    )
    doubled = running.ask("/tasks/summary")
    assert (doubled["doubled"], doubled["unfinished"]) == (1, 1)


def test_worker_that_is_stopped_finishes_what_it_has(running: Bench) -> None:
    task = running.ask("/tasks", {"seconds": 3})["id"]
    wait_for("task to begin", lambda: running.ask(f"/tasks/{task}")["state"] == "running", 120, pause=0.1)
    running.host.run("docker stop -t 60 worker-v1-0-0", timeout=180)
    assert running.ask(f"/tasks/{task}")["state"] == "done"
    running.host.run("docker start worker-v1-0-0")


def test_uploads_and_websockets(running: Bench) -> None:
    host = running.host
    host.run("head -c 3000000 /dev/urandom > /tmp/upload")
    expected = host.run("sha256sum < /tmp/upload").stdout.split()[0]
    uploaded = json.loads(host.run("curl -sSf --data-binary @/tmp/upload -X POST http://127.0.0.1:8000/upload").stdout)
    assert (uploaded["bytes"], uploaded["sha256"]) == (3000000, expected)
    fetch = f"curl -sSf -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' --aws-sigv4 aws:amz:us-east-1:s3 -u root:secret-key http://127.0.0.1:9000/internal/{uploaded['object']}"
    assert host.run(f"{fetch} | sha256sum").stdout.split()[0] == expected
    client = "from websockets.sync.client import connect; s = connect('ws://127.0.0.1:8000/ws'); s.send('hi'); print(s.recv())"
    assert host.run(f'docker exec api-v1-0-0 python -c "{client}"').stdout == "1.0.0 hi\n"
    assert host.run("docker exec api-v1-0-0 id -u").stdout == "1000\n"


def test_flower_shows_the_workers_to_who_knows_the_password(running: Bench) -> None:
    image = running.pull("mc-bench-admin-worker", "v1.0.0")
    options = "-p 127.0.0.1:5555:5555 -e FLOWER_BASIC_AUTH=admin:secret -e FLOWER_PORT=5555"
    running.start("flower", image, options, "celery -A mc_bench.apps.admin_worker flower")
    wait_for("flower", lambda: running.host.run("curl -sf http://127.0.0.1:5555/healthcheck", check=False).returncode == 0, 180, pause=0.5)
    code = "curl -s -o /dev/null -w '%{http_code}'"
    assert running.host.run(f"{code} http://127.0.0.1:5555/workers").stdout == "401"
    assert running.host.run(f"{code} -u admin:secret http://127.0.0.1:5555/workers").stdout == "200"
    running.host.run("docker rm -f flower")


def test_next_release_migrates_beside_the_old_one(running: Bench) -> None:
    status, output = running.once("v1.1.0", "alembic upgrade head")
    assert status == 0, output
    running.component("api", "v1.1.0", "-p 127.0.0.1:8002:8000")
    wait_for("api", lambda: running.host.run("curl -sf http://127.0.0.1:8002/health", check=False).returncode == 0, 180, pause=0.3)
    for port, version in ((8000, "1.0.0"), (8002, "1.1.0")):
        assert running.ask("/version", port=port)["version"] == version
        task = running.ask("/tasks", {"priority": 3}, port=port)["id"]
        assert running.finished(task, port=port)["priority"] == (3 if port == 8002 else 0)
    running.host.run("docker rm -f api-v1-1-0")

    status, output = running.once("bad-migration", "alembic upgrade head")
    assert status != 0
    assert "NotNullViolation" in output
    tables = running.host.run("docker exec postgres psql -U bench -d mc_bench -Atc 'select version_num from alembic_version' -c '\\dt'").stdout
    assert tables.startswith("0002\n")
    assert "half_done" not in tables


def test_bad_releases_are_bad_as_they_say(running: Bench) -> None:
    host = running.host
    dead = [running.component(kind, tag, "--restart no") for tag in ("bad-start", "bad-dies") for kind in ("api", "worker")]
    ill_api = running.component("api", "bad-health", "-p 127.0.0.1:8003:8000")
    ill_worker = running.component("worker", "bad-health")
    state = "docker inspect --format '{{.State.Status}} {{.State.ExitCode}}'"
    for name, code in zip(dead, (1, 1, 3, 3), strict=True):
        wait_for(name, lambda name=name, code=code: host.run(f"{state} {name}").stdout == f"exited {code}\n", 180, pause=0.3)
    assert "this release cannot start" in running.logs(dead[0])
    assert "this release gives up" in running.logs(dead[2])
    health = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8003/health"
    wait_for("api", lambda: host.run(health, check=False).stdout == "503", 180, pause=0.3)
    wait_for("worker", lambda: "release bad-health" in running.logs(ill_worker), 180, pause=0.3)
    assert host.run(f"docker exec {ill_worker} python -m mc_bench ping", check=False).returncode == 1
    host.run(f"docker rm -f {' '.join([*dead, ill_api, ill_worker])}")

    other = running.registry.image("mc-bench-api", "bad-platform")
    assert isinstance(image := images.get("mc-bench-api", "bad-platform"), images.Image)
    assert image.architecture == "arm64"
    assert "does not match the detected host platform" in host.run(f"docker run --rm {other} true", check=False).stderr
