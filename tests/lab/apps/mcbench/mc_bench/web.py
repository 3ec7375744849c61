"""The HTTP APIs: health, a websocket, uploads, tasks."""

import asyncio
import hashlib
import json
import logging
import os
import secrets
import socket
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from mc_bench import config, database, objects, release
from mc_bench.celery import app as celery

log = logging.getLogger("mc_bench.web")

KINDS = {"count": "mc_bench.count", "build": "mc_bench.build", "render": "mc_bench.render"}
ADMIN_KINDS = {"administer": "mc_bench.administer"}


def health(request: Request) -> JSONResponse:
    if not release.healthy():
        raise HTTPException(503, "not healthy")
    try:
        database.check()
    except Exception as error:
        log.error("health: %s", error)
        raise HTTPException(503, "no database") from None
    return JSONResponse({"status": "ok", "version": release.VERSION})


async def version(request: Request) -> JSONResponse:
    return JSONResponse({"version": release.VERSION, "host": socket.gethostname(), "pid": os.getpid()})


async def client(request: Request) -> JSONResponse:
    """What the application believes about who asks: shows whether the proxy's headers arrive."""
    seen = request.client.host if request.client else None
    return JSONResponse({"host": seen, "scheme": request.url.scheme, "name": request.headers.get("host")})


async def slow(request: Request) -> JSONResponse:
    seconds = min(float(request.query_params.get("seconds", 5)), 300)
    await asyncio.sleep(seconds)
    return JSONResponse({"slept": seconds, "version": release.VERSION})


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(f"{release.VERSION} {await websocket.receive_text()}")
    except WebSocketDisconnect:
        pass


async def upload(request: Request) -> JSONResponse:
    """Keep the body under the name ``uploads/<sha256>``, unless ``?keep=no``."""
    content, total = bytearray(), hashlib.sha256()
    async for part in request.stream():
        content += part
        total.update(part)
    name = f"uploads/{total.hexdigest()}"
    if request.query_params.get("keep") != "no":
        await run_in_threadpool(objects.put, "INTERNAL_OBJECT_BUCKET", name, bytes(content))
    return JSONResponse({"bytes": len(content), "sha256": total.hexdigest(), "object": name}, 201)


def _submit(kinds: dict[str, str], body: dict[str, Any]) -> JSONResponse:
    kind = body.pop("kind", next(iter(kinds)))
    if kind not in kinds:
        raise HTTPException(400, f"kind: one of {', '.join(kinds)}")
    key = str(body.pop("key", "") or secrets.token_hex(8))
    task_id, is_new = database.add_task(key, kind, body, int(body.pop("priority", 0)))
    if is_new:
        celery.send_task(kinds[kind], (task_id, body))
    return JSONResponse({"id": task_id, "key": key, "new": is_new}, 202 if is_new else 200)


async def _body(request: Request) -> dict[str, Any]:
    try:
        found = json.loads(await request.body() or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise HTTPException(400, "a JSON object is wanted")
    return found


async def add_task(request: Request) -> JSONResponse:
    return await run_in_threadpool(_submit, KINDS, await _body(request))


async def add_admin_task(request: Request) -> JSONResponse:
    return await run_in_threadpool(_submit, ADMIN_KINDS, await _body(request))


def task(request: Request) -> JSONResponse:
    found = database.task(request.path_params["id"])
    if found is None:
        raise HTTPException(404, "no such task")
    result = found["result"] or {}
    if "object" in result and config.text("OBJECT_STORE_DSN"):
        content = objects.get(result["bucket"], result["object"])
        found["output"] = content.decode() if result["object"].endswith(".log") else content.hex()
    return JSONResponse(found)


def summary(request: Request) -> JSONResponse:
    return JSONResponse(database.summary())


_COMMON = [Route("/health", health), Route("/version", version), Route("/client", client),
           Route("/tasks/summary", summary), Route("/tasks/{id:int}", task)]  # fmt: skip
_API = [Route("/slow", slow), Route("/upload", upload, methods=["POST"]), Route("/tasks", add_task, methods=["POST"]),
        WebSocketRoute("/ws", echo)]  # fmt: skip
_ADMIN = [Route("/tasks", add_admin_task, methods=["POST"])]


async def _fault(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


def application(*, is_admin: bool) -> Starlette:
    config.required("SECRET_KEY")
    origins = [origin for origin in config.text("CORS_ALLOWED_ORIGIN").split(",") if origin]
    return Starlette(
        routes=_COMMON + (_ADMIN if is_admin else _API),
        middleware=[Middleware(CORSMiddleware, allow_origins=origins, allow_credentials=True)],
        exception_handlers={HTTPException: _fault},
    )
