"""What workers do. Every execution is written down before its work begins, and again when it has ended."""

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from mc_bench import config, database, objects, release
from mc_bench.celery import app

log = logging.getLogger("mc_bench.tasks")


@contextlib.contextmanager
def execution(task_id: int, step: str) -> Iterator[None]:
    """One execution of one step of a task; what goes wrong in it fails the task."""
    number = database.begin(task_id, step)
    log.info("task %s: %s begins", task_id, step)
    try:
        yield
    except Exception as error:
        database.finish(task_id, "failed", {"error": f"{type(error).__name__}: {error}"})
        raise
    finally:
        database.end(number)


@app.task(name="mc_bench.tick")
def tick() -> None:
    """Sent by the scheduler."""
    database.tick()


@app.task(name="mc_bench.count")
def count(task_id: int, arguments: dict[str, Any]) -> None:
    """Take a while, and be counted."""
    with execution(task_id, "count"):
        time.sleep(float(arguments.get("seconds", 0)))
        database.finish(task_id, "done", {"version": release.VERSION})


@app.task(name="mc_bench.build")
def build(task_id: int, arguments: dict[str, Any]) -> None:
    """Prepare a build, and leave the building to a server worker."""
    with execution(task_id, "build"):
        script = str(arguments.get("script", "place block"))
        app.send_task("mc_bench.run_build", (task_id, {**arguments, "script": script}))


@app.task(name="mc_bench.run_build")
def run_build(task_id: int, arguments: dict[str, Any]) -> None:
    """Run a game and a builder beside it; what the builder prints goes to the object store."""
    from mc_bench import siblings

    with execution(task_id, "run_build"):
        time.sleep(config.number("BUILD_DELAY_MS", 0) / 1000)
        output = siblings.run(task_id, str(arguments["script"]))
        name = f"builds/{task_id}.log"
        objects.put("INTERNAL_OBJECT_BUCKET", name, output)
        database.finish(task_id, "done", {"bucket": "INTERNAL_OBJECT_BUCKET", "object": name, "version": release.VERSION})


@app.task(name="mc_bench.render")
def render(task_id: int, arguments: dict[str, Any]) -> None:
    """Work the processor; the picture goes to the public bucket."""
    with execution(task_id, "render"):
        picture = hashlib.sha256(str(task_id).encode()).digest()
        for _ in range(1000 if config.flag("FAST_RENDER") else 100_000):
            picture = hashlib.sha256(picture).digest()
        name = f"renders/{task_id}.bin"
        objects.put("EXTERNAL_OBJECT_BUCKET", name, picture)
        database.finish(task_id, "done", {"bucket": "EXTERNAL_OBJECT_BUCKET", "object": name, "version": release.VERSION})


@app.task(name="mc_bench.administer")
def administer(task_id: int, arguments: dict[str, Any]) -> None:
    """Say which language models this worker has a key for."""
    with execution(task_id, "administer"):
        providers = [name for name in ("ANTHROPIC", "OPENAI", "GEMINI", "MISTRAL") if config.text(f"{name}_API_KEY")]
        database.finish(task_id, "done", {"providers": providers, "version": release.VERSION})
