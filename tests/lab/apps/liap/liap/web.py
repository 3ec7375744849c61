"""Games over websockets, held in memory; health, metrics, and what empties the process before it is replaced."""

import asyncio
import logging
import resource
import secrets
import time
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from liap import config, release
from liap.archive import Archive, now

log = logging.getLogger("liap.web")
archive = Archive()
games: dict[str, dict[str, Any]] = {}
counts = {"started": 0, "completed": 0, "refused": 0, "limited": 0}
state = {"draining": False}
limiter: Any = None
if config.REDIS_URL and config.USE_RATE_LIMITING:
    from liap import counters

    limiter = counters.client(config.REDIS_URL, config.number("REDIS_POOL_MAX", 10))


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def is_limited(player: str) -> bool:
    """More than the guide's number of new games in a minute. Without Redis nobody is limited: games go on."""
    if limiter is None:
        return False
    key = f"rate:{player}:{int(time.time() // 60)}"
    try:
        count = await limiter.incr(key)
        await limiter.expire(key, 120)
    except Exception as error:
        log.warning("rate limit: %s", error)
        return False
    return count > config.RATE_LIMIT_PER_PLAYER_PER_MINUTE


# --- games ----------------------------------------------------------------------------------------------------------


def refusal() -> str:
    if state["draining"]:
        return "draining"
    if len(games) >= config.MAX_ACTIVE_GAMES:
        return "full"
    if config.USE_MEMORY_MONITORING and memory_mb() > config.MAX_MEMORY_MB:
        return "memory"
    return ""


async def new_game(message: dict[str, Any]) -> dict[str, Any]:
    player = str(message.get("player", "anonymous"))
    if why := refusal():
        counts["refused"] += 1
        return {"type": "refused", "why": why, "retry_after": 5}
    if await is_limited(player):
        counts["limited"] += 1
        return {"type": "refused", "why": "rate", "retry_after": 60}
    game_id = secrets.token_hex(8)
    games[game_id] = {"game_id": game_id, "room_id": str(message.get("room", "lobby")), "player": player,
                      "began": time.time(), "scores": {player: 0}, "events": [], "version": release.VERSION}  # fmt: skip
    counts["started"] += 1
    return {"type": "created", "game_id": game_id, "version": release.VERSION}


def move(message: dict[str, Any]) -> dict[str, Any]:
    game = games.get(str(message.get("game_id")))
    if game is None:
        return {"type": "lost"}
    points = int(message.get("points", 1))
    game["scores"][game["player"]] += points
    if len(game["events"]) < config.MAX_EVENTS_PER_GAME:
        game["events"].append({"type": "move", "points": points, "at": now()})
    return {"type": "moved", "score": game["scores"][game["player"]], "version": release.VERSION}


def finish(message: dict[str, Any]) -> dict[str, Any]:
    game = games.pop(str(message.get("game_id")), None)
    if game is None:
        return {"type": "lost"}
    game |= {"completed_at": now(), "duration": round(time.time() - game["began"]), "winner": game["player"]}
    archive.add(game)
    counts["completed"] += 1
    return {"type": "finished", "winner": game["winner"], "score": game["scores"][game["player"]]}


async def play(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            message = await websocket.receive_json()
            kind = message.get("type")
            if kind == "new":
                answer = await new_game(message)
            elif kind == "move":
                answer = move(message)
            elif kind == "finish":
                answer = finish(message)
            else:
                answer = {"type": "unknown"}
            await websocket.send_json(answer)
    except WebSocketDisconnect:
        pass


# --- health ---------------------------------------------------------------------------------------------------------


async def _works(check: Any) -> str:
    try:
        await asyncio.wait_for(check, config.number("HEALTH_CHECK_TIMEOUT", 10))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


async def checks() -> dict[str, str]:
    found = {"release": "ok" if release.healthy() else "this release is not well"}
    if limiter is not None:
        found["redis"] = await _works(limiter.ping())
    found["archive"] = await _works(asyncio.to_thread(archive.check))
    used = memory_mb() * 100 / config.MAX_MEMORY_MB
    found["memory"] = "ok" if used < config.MEMORY_ALERT_THRESHOLD else f"{used:.0f} % used"
    return found


async def health(request: Request) -> JSONResponse:
    found = await checks()
    is_well = all(value == "ok" for value in found.values())
    answer = {"status": "healthy" if is_well else "unhealthy", "version": release.VERSION, "checks": found}
    return JSONResponse(answer, 200 if is_well else 503)


async def ready(request: Request) -> JSONResponse:
    why = "" if release.healthy() else "unhealthy"
    return JSONResponse({"status": why or refusal() or "ready"}, 503 if why or refusal() else 200)


async def live(request: Request) -> JSONResponse:
    return JSONResponse({"status": "alive" if release.healthy() else "unhealthy"}, 200 if release.healthy() else 503)


async def shown_metrics(request: Request) -> PlainTextResponse:
    lines = [
        *(f"liap_games_{name}_total {value}" for name, value in counts.items()),
        f"liap_games_active {len(games)}",
        f"liap_games_max {config.MAX_ACTIVE_GAMES}",
        f"liap_draining {int(state['draining'])}",
        f"liap_archive_queue {len(archive.waiting)}",
        f"liap_archive_written_total {archive.archived}",
        f"liap_archive_failures_total {archive.failures}",
        f"liap_memory_bytes {round(memory_mb() * 1024 * 1024)}",
        f"liap_memory_limit_bytes {config.MAX_MEMORY_MB * 1024 * 1024}",
        f'liap_build_info{{version="{release.VERSION}"}} 1',
    ]
    text = []
    for line in lines:
        name = line.split("{")[0].split(" ")[0]
        text += [f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}", line]
    return PlainTextResponse("\n".join(text) + "\n", media_type="text/plain; version=0.0.4")


# --- draining -------------------------------------------------------------------------------------------------------


async def drain(request: Request) -> JSONResponse:
    if request.method != "GET":
        state["draining"] = request.method == "POST"
        log.info("draining: %s", state["draining"])
    if state["draining"] and archive.waiting:
        await asyncio.to_thread(archive.flush)
    # A game that is over and not yet archived would be lost, too.
    left = len(games) + len(archive.waiting)
    return JSONResponse({"draining": state["draining"], "active": len(games), "unarchived": len(archive.waiting), "left": left})


async def flush(request: Request) -> JSONResponse:
    await asyncio.to_thread(archive.flush)
    return JSONResponse({"waiting": len(archive.waiting), "archived": archive.archived})


async def keep() -> None:
    """Archive when the interval is over or a batch is full."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(0.5)
        if len(archive.waiting) >= config.ARCHIVE_BATCH_SIZE or time.monotonic() - last >= config.ARCHIVE_FLUSH_INTERVAL:
            await asyncio.to_thread(archive.flush)
            last = time.monotonic()


public = Starlette(routes=[WebSocketRoute("/ws", play), Route("/health", health), Route("/health/ready", ready), Route("/health/live", live)])
admin = Starlette(
    routes=[Route("/admin/drain", drain, methods=["GET", "POST", "DELETE"]), Route("/admin/archive/flush", flush, methods=["POST"])]
)
metrics = Starlette(routes=[Route("/metrics", shown_metrics)])
