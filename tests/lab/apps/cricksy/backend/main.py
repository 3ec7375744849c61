"""The API: an image is announced, uploaded by a presigned URL, handed to a worker, and asked for as text."""

import os
import uuid
from typing import Any

import release
import store
from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from sqlalchemy import text
from worker.celery_app import app as celery
from worker.celery_app import read

import config

app = FastAPI(title=os.environ.get("CRICKSY_API_TITLE", "Cricksy"))
app.add_middleware(
    CORSMiddleware,
    allow_origins=[origin for origin in os.environ.get("CRICKSY_CORS_ORIGINS", "").split(",") if origin],
    allow_methods=["*"],
    allow_headers=["*"],
)


async def rows(query: str, **values: object) -> list[dict[str, Any]]:
    async with store.async_engine().begin() as connection:
        found = await connection.execute(text(query), values)
        return [dict(row) for row in found.mappings()] if found.returns_rows else []


@app.get("/api/health")
async def health() -> dict[str, str]:
    await rows("SELECT 1")
    if not release.healthy():
        raise HTTPException(503, "unhealthy")
    return {"status": "ok", "version": release.VERSION}


@app.get("/api/client")
async def client(request: Request) -> dict[str, str | None]:
    return {"host": request.client.host if request.client else None, "scheme": request.url.scheme}


@app.post("/api/uploads/initiate")
async def initiate() -> dict[str, str]:
    if not config.flag("CRICKSY_ENABLE_UPLOADS"):
        raise HTTPException(404)
    upload = str(uuid.uuid4())
    await rows("INSERT INTO upload (id) VALUES (:id)", id=upload)
    return {"id": upload, "url": await run_in_threadpool(store.upload_url, f"uploads/{upload}")}


@app.post("/api/uploads/{upload}/complete")
async def complete(upload: str, seconds: float = 0, ocr: bool = True) -> dict[str, str]:
    found = await rows("UPDATE upload SET state = 'queued' WHERE id = :id RETURNING id", id=upload)
    if not found:
        raise HTTPException(404)
    await run_in_threadpool(read.apply_async, (upload, seconds, ocr))
    return {"id": upload}


@app.get("/api/uploads/summary")
async def summary() -> dict[str, Any]:
    query = """
        SELECT count(*) FILTER (WHERE state <> 'announced') AS uploads, count(*) FILTER (WHERE state = 'done') AS done,
               (SELECT count(*) FROM (SELECT FROM execution GROUP BY upload HAVING count(*) > 1) AS again) AS twice
        FROM upload
    """
    # why each execution after an upload's first one
    reasons = """
        SELECT CASE
            WHEN retries > retries_before THEN 'tried again after an error'
            WHEN NOT redelivered THEN 'handed over twice'
            WHEN ended_before IS NULL THEN 'delivered again, was cut off'
            WHEN ended_before < at THEN 'delivered again, was done but not acknowledged'
            ELSE 'delivered again, was still at work' END AS reason, count(*) AS executions
        FROM (
            SELECT at, retries, redelivered, lag(at) OVER before AS at_before, lag(retries) OVER before AS retries_before,
                   lag(ended) OVER before AS ended_before
            FROM execution WINDOW before AS (PARTITION BY upload ORDER BY id)
        ) AS one WHERE at_before IS NOT NULL GROUP BY reason
    """
    return {**(await rows(query))[0], "reasons": {row["reason"]: row["executions"] for row in await rows(reasons)}}


@app.get("/api/uploads/{upload}")
async def status(upload: str) -> dict[str, Any]:
    found = await rows("SELECT id::text, state, text FROM upload WHERE id = :id", id=upload)
    if not found:
        raise HTTPException(404)
    executions = await rows("SELECT worker, version FROM execution WHERE upload = :id ORDER BY at", id=upload)
    return {**found[0], "executions": executions}


@app.websocket("/socket.io/")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(release.VERSION)
    await websocket.close()


__all__ = ["app", "celery"]
