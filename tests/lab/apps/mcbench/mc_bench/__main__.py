"""``python -m mc_bench COMMAND``: api, admin-api, worker, admin-worker, render-worker, server-worker, scheduler, ping."""

import sys

from mc_bench import config, log, release

QUEUES = {"worker": "default", "admin-worker": "admin", "render-worker": "render", "server-worker": "server"}


def serve(*, is_admin: bool) -> None:
    import uvicorn

    from mc_bench.web import application

    log.set_up()
    # What is in front of it is on this host, and says whom it asks for.
    uvicorn.run(
        application(is_admin=is_admin), host="0.0.0.0", port=config.number("PORT", 8000), log_config=None,
        access_log=config.text("LOG_LEVEL") == "DEBUG", proxy_headers=True, forwarded_allow_ips="*",
        ws_max_size=1024 * 1024, timeout_graceful_shutdown=config.number("SHUTDOWN_SECONDS", 25),
    )  # fmt: skip


def work(kind: str) -> None:
    from mc_bench.celery import app

    if kind == "server-worker":
        config.required("MINECRAFT_SERVER_IMAGE")
        config.required("MINECRAFT_BUILDER_IMAGE")
    concurrency = config.number("NUM_WORKERS", 2)
    app.worker_main(["worker", "--hostname", config.required("WORKER_NAME"), "--queues", QUEUES[kind], "--events",
                     "--concurrency", str(concurrency), "--without-mingle", "--without-gossip"])  # fmt: skip


def schedule() -> None:
    from mc_bench.celery import app

    app.start(["beat", "--pidfile="])


def ping() -> None:
    from mc_bench.celery import app

    node = config.required("WORKER_NAME")
    if node not in (app.control.inspect([node], timeout=10, limit=1).ping() or {}):
        sys.exit(f"{node} does not answer")


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in ("api", "admin-api", "scheduler", "ping", *QUEUES):
        sys.exit(__doc__)
    if command == "ping":
        return ping()
    release.starting()
    if command == "scheduler":
        schedule()
    elif command in QUEUES:
        work(command)
    else:
        serve(is_admin=command == "admin-api")


main()
