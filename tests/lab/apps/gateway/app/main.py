"""A small inference gateway: quick, slow, streamed, uploaded and stored answers."""

import asyncio
import hashlib
import json
import logging
import logging.handlers
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.responses import StreamingResponse

from app import release
from app.config import load
from app.utils.database import open_database

config = load()
log = logging.getLogger("gateway")


def set_up_logging() -> None:
    handlers: list[logging.Handler] = []
    if config.console_logging:
        handlers.append(logging.StreamHandler())
    if config.file_logging:
        Path("logs").mkdir(exist_ok=True)
        # WatchedFileHandler: opens the file anew when logrotate has moved it away.
        handlers.append(logging.handlers.WatchedFileHandler("logs/gateway.log"))
    logging.basicConfig(
        level=config.log_level, handlers=handlers, format="%(asctime)s %(levelname)s %(message)s"
    )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    set_up_logging()
    app.state.database = await open_database()
    release.starting()
    log.info("gateway %s started", release.VERSION)
    yield
    log.info("gateway %s stops", release.VERSION)
    await app.state.database.close()


app = FastAPI(title="gateway", version=release.VERSION, lifespan=lifespan)


@app.get("/health")
async def health(request: Request) -> dict[str, str]:
    await request.app.state.database.execute("SELECT 1")
    if not release.healthy():
        raise HTTPException(503, "not healthy")
    return {"status": "ok", "version": release.VERSION}


@app.get("/version")
async def version() -> dict[str, object]:
    return {"version": release.VERSION, "pid": os.getpid()}


@app.get("/client")
async def client(request: Request) -> dict[str, object]:
    """What the application believes about who asks: shows whether the proxy's headers arrive and hold."""
    return {"host": request.client.host if request.client else None, "scheme": request.url.scheme}


@app.get("/slow")
async def slow(seconds: float = 5) -> dict[str, object]:
    await asyncio.sleep(min(seconds, config.request_timeout_seconds))
    return {"slept": seconds, "version": release.VERSION}


@app.get("/stream")
async def stream(count: int = 10, interval: float = 1) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        for number in range(count):
            yield f"data: {json.dumps({'number': number, 'version': release.VERSION})}\n\n"
            await asyncio.sleep(interval)
        yield "event: end\ndata: {}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > config.max_request_body_size:
            raise HTTPException(413, f"at most {config.max_request_body_size} bytes")
        parts.append(part)
    return b"".join(parts)


@app.post("/upload")
async def upload(request: Request) -> dict[str, object]:
    content = await body(request)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def check_client_key(key: str | None) -> None:
    if config.require_client_api_key and not any(
        secrets.compare_digest(known, key or "") for known in config.client_api_keys
    ):
        raise HTTPException(401, "X-API-Key")


@app.post("/v1/inference")
async def inference(request: Request, x_api_key: str | None = Header(None)) -> dict[str, object]:
    check_client_key(x_api_key)
    prompt = (await body(request)).decode()
    database = request.app.state.database
    cursor = await database.execute("INSERT INTO requests (prompt) VALUES (?)", (prompt,))
    await database.commit()
    return {"id": cursor.lastrowid, "answer": prompt[::-1], "version": release.VERSION}


@app.get("/admin/stats")
async def stats(request: Request, x_api_key: str | None = Header(None)) -> dict[str, object]:
    if not secrets.compare_digest(config.admin_api_key, x_api_key or ""):
        raise HTTPException(401, "X-API-Key")
    async with request.app.state.database.execute("SELECT count(*) FROM requests") as cursor:
        row = await cursor.fetchone()
    return {"requests": row[0], "version": release.VERSION}
