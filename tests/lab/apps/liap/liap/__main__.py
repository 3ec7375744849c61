"""`python -m liap` serves; `drain`, `resume`, `busy`, `flush` and `health` ask the one that serves in the same container."""

import asyncio
import json
import logging
import signal
import sys
import urllib.request

from liap import config, release


def ask(method: str, path: str, port: int = config.ADMIN_PORT) -> dict:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


async def serve() -> None:
    import uvicorn

    from liap import web

    servers = [(web.public, "0.0.0.0", config.PORT), (web.admin, "127.0.0.1", config.ADMIN_PORT)]
    if config.METRICS_ENABLED:
        servers.append((web.metrics, "0.0.0.0", config.METRICS_PORT))
    running = [
        uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning", ws_ping_interval=20, timeout_graceful_shutdown=2))
        for app, host, port in servers
    ]

    def end() -> None:
        for server in running:
            server.should_exit = True

    async def one(server: uvicorn.Server) -> None:
        server.install_signal_handlers = lambda: None  # type: ignore[method-assign]
        await server._serve()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    keeper = asyncio.create_task(web.keep())
    try:
        await asyncio.gather(*(one(server) for server in running))
    finally:
        keeper.cancel()
        await asyncio.to_thread(web.archive.flush)


def main(words: list[str]) -> None:
    if words == ["busy"]:
        sys.stdout.write(f"{ask('GET', '/admin/drain')['left']}\n")
    elif words in (["drain"], ["resume"]):
        ask("POST" if words == ["drain"] else "DELETE", "/admin/drain")
    elif words == ["flush"]:
        ask("POST", "/admin/archive/flush")
    elif words == ["health"]:
        ask("GET", "/health/live", config.PORT)
    elif not words:
        logging.basicConfig(level=config.text("LOG_LEVEL", "INFO"), format="%(levelname)s %(name)s %(message)s")
        release.starting()
        asyncio.run(serve())
    else:
        sys.exit(f"unknown: {' '.join(words)}")


main(sys.argv[1:])
