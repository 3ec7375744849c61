"""PostgreSQL: tasks, and a record of every execution, so that lost and doubled ones can be counted."""

import functools
import json
from typing import Any

from sqlalchemy import URL, Engine, create_engine, text

from mc_bench import config, release


@functools.cache
def engine() -> Engine:
    url = URL.create(
        "postgresql+psycopg",
        username=config.required("POSTGRES_USER"),
        password=config.required("POSTGRES_PASSWORD"),
        host=config.required("POSTGRES_HOST"),
        port=config.number("POSTGRES_PORT", 5432),
        database=config.required("POSTGRES_DB"),
    )
    return create_engine(
        url,
        echo=config.flag("SHOW_VERBOSE_SQL"),
        pool_pre_ping=True,
        pool_size=4,
        max_overflow=8,
        connect_args={"sslmode": config.text("POSTGRES_SSLMODE", "prefer"), "connect_timeout": 10},
    )


def check() -> None:
    with engine().connect() as connection:
        connection.execute(text("SELECT 1"))


def add_task(key: str, kind: str, arguments: dict[str, Any], priority: int) -> tuple[int, bool]:
    """Add a task; return its id, and whether it is new: a client that asks again gets the task it has."""
    values = {"key": key, "kind": kind, "arguments": json.dumps(arguments)}
    if release.HAS_PRIORITY:
        values["priority"] = priority  # type: ignore[assignment]
    names = ", ".join(values)
    slots = ", ".join(f":{name}" for name in values)
    with engine().begin() as connection:
        added = connection.execute(
            text(f"INSERT INTO task ({names}) VALUES ({slots}) ON CONFLICT (key) DO NOTHING RETURNING id"), values
        ).scalar()
        if added is not None:
            return added, True
        return connection.execute(text("SELECT id FROM task WHERE key = :key"), {"key": key}).scalar_one(), False


def task(task_id: int) -> dict[str, Any] | None:
    with engine().connect() as connection:
        found = connection.execute(text("SELECT * FROM task WHERE id = :id"), {"id": task_id}).mappings().first()
        if found is None:
            return None
        executions = connection.execute(
            text("SELECT step, worker, version, ended IS NOT NULL AS ended FROM execution WHERE task_id = :id ORDER BY id"),
            {"id": task_id},
        ).mappings()
        return {**found, "created": found["created"].isoformat(), "executions": [dict(row) for row in executions]}


def begin(task_id: int, step: str) -> int:
    with engine().begin() as connection:
        connection.execute(text("UPDATE task SET state = 'running' WHERE id = :id AND state = 'queued'"), {"id": task_id})
        return connection.execute(
            text("INSERT INTO execution (task_id, step, worker, version) VALUES (:id, :step, :worker, :version) RETURNING id"),
            {"id": task_id, "step": step, "worker": config.text("WORKER_NAME", "unnamed"), "version": release.VERSION},
        ).scalar_one()


def end(execution_id: int) -> None:
    with engine().begin() as connection:
        connection.execute(text("UPDATE execution SET ended = now() WHERE id = :id"), {"id": execution_id})


def finish(task_id: int, state: str, result: dict[str, Any]) -> None:
    with engine().begin() as connection:
        connection.execute(
            text("UPDATE task SET state = :state, result = :result WHERE id = :id"),
            {"id": task_id, "state": state, "result": json.dumps(result)},
        )


def tick() -> None:
    with engine().begin() as connection:
        connection.execute(text("INSERT INTO tick (worker) VALUES (:worker)"), {"worker": config.text("WORKER_NAME", "unnamed")})


def summary() -> dict[str, int]:
    """Count tasks: those that no worker ever began, that were begun and not ended, that were executed more than once."""
    query = """
        SELECT count(*) AS tasks,
               count(*) FILTER (WHERE state = 'done') AS done,
               count(*) FILTER (WHERE state = 'failed') AS failed,
               count(*) FILTER (WHERE begun IS NULL) AS waiting,
               count(*) FILTER (WHERE begun > ended) AS unfinished,
               count(*) FILTER (WHERE begun > steps) AS doubled,
               (SELECT count(*) FROM tick) AS ticks
        FROM task LEFT JOIN (
            SELECT task_id, count(*) AS begun, count(ended) AS ended, count(DISTINCT step) AS steps
            FROM execution GROUP BY task_id
        ) AS each ON task_id = task.id
    """
    with engine().connect() as connection:
        return dict(connection.execute(text(query)).mappings().one())
