"""
The inference gateway: a FastAPI application behind nginx, from bare host to answering over TLS.

Read top to bottom, it is the run book. What each step guards against is told in docs/gateway.md.
"""

import json
from dataclasses import replace

from pyinfra import host, logger
from pyinfra.api import deploy
from pyinfra.operations import server

from deploys import current, site
from facts.rollout import Rollout
from operations import backup, certificate, dpkg, fileset, logrotate, nginx, release, rollout, template, unit
from operations.fileset import Directory, Symlink
from operations.nginx import Location, RateLimit, Upstream
from settings import Backup, Gateway
from settings.env import render
from settings.secret import Secret

APP = "multiverse-gateway"
USER = "gateway"
APP_ROOT = f"/opt/{APP}"
STATE = f"/var/lib/{APP}"
LOGS = f"/var/log/{APP}"
DATABASE = f"{STATE}/gateway.db"

# nginx allows this much more than the application, so that clients read the application's own 413.
_BODY_MARGIN = 64 * 1024


@deploy("Gateway")
def gateway() -> None:
    """Converge one host to its gateway settings."""
    settings = current().gateway
    if settings is None:
        return
    _packages(settings)
    _user_and_directories()
    _release(settings)
    _site(settings)
    _rollout(settings)
    _logs()
    _backup(settings, current().backup)
    # Last, since it needs nginx to answer from outside: where it fails, all else is done and served self-signed.
    site.get_certificate(APP, settings.domains)


@deploy("Gateway rollback")
def rollback() -> None:
    """
    Go back to the release, unit and environment that served before the present ones.

    The inventory still names the newer version: the next converge goes forward again, unless it is changed.
    """
    settings = current().gateway
    if settings is None:
        return
    rollout.rollback(
        APP,
        probe=site.probe(settings.domain, settings.health_path),
        start_seconds=settings.start_timeout_seconds,
        settle_seconds=settings.settle_seconds,
        drain_seconds=settings.drain_seconds,
        keep=settings.keep_releases,
        name="Roll back to the previous release",
    )


@deploy("Gateway status")
def status() -> None:
    """Say which colour serves which release, and what a rollback would go to. Changes nothing."""
    if current().gateway is None:
        return
    found = host.get_fact(Rollout, app=APP)
    lines = [] if found.colours else ["nothing is rolled out"]
    for (colour, manager), state in sorted(found.colours.items()):
        stored = found.stored.get(state.spec)
        lines.append(
            f"{colour}: {'serves' if colour == found.active else 'idle'}, {state.state} under {manager}, "
            f"{stored.release if stored else 'changed by hand'}{', health ' + state.health if state.health else ''}"
        )
    if found.previous:
        lines.append(f"rollback goes to {found.stored[found.previous].release}")
    for line in lines:
        logger.info(f"    [{host.name}] {line}")


def _packages(settings: Gateway) -> None:
    wanted = ["ca-certificates", "curl", "git", "logrotate", "python3-venv"]
    if settings.supervisor == "supervisor":
        wanted.append("supervisor")
    dpkg.packages(wanted, name="Install packages")
    if settings.supervisor == "supervisor":
        unit.unit("supervisor.service", settle_seconds=1, name="Run supervisor")


def _user_and_directories() -> None:
    server.user(  # noqa: S604 (a login shell, not a subprocess)
        USER,
        system=True,
        home=STATE,
        create_home=False,
        ensure_home=False,
        shell="/usr/sbin/nologin",
        name="Create service user",
    )
    fileset.files(
        [
            Directory(STATE, mode="0700", owner=USER, group=USER),
            Directory(LOGS, mode="0750", owner=USER, group=USER),
            # The application writes logs/gateway.log below its working directory.
            Symlink(f"{STATE}/logs", target=LOGS),
        ],
        name="Create directories",
    )


def _source(settings: Gateway) -> release.Source:
    if settings.source == "archive":
        return release.ArchiveSource(settings.archive_url, settings.archive_sha256)
    return release.GitSource(settings.repository, settings.version)


def _release(settings: Gateway) -> None:
    release.release(
        APP_ROOT,
        _source(settings),
        requirements=settings.requirements,
        python=settings.python,
        keep=settings.keep_releases,
        name="Build release",
    )


def environment(settings: Gateway) -> Secret:
    """Return the variables of the guide, and the extra ones, in the words of the supervisor that reads them."""
    variables: dict[str, str | Secret] = {
        "ADMIN_API_KEY": settings.admin_api_key,
        "REQUIRE_CLIENT_API_KEY": _flag(settings.require_client_api_key),
        "CLIENT_API_KEYS": Secret(json.dumps([key.unmask() for key in settings.client_api_keys])),
        "DEBUG": _flag(settings.debug),
        "RELOAD": _flag(settings.reload),
        "REQUEST_TIMEOUT_SECONDS": str(settings.request_timeout_seconds),
        "MAX_RETRY_ATTEMPTS": str(settings.max_retry_attempts),
        "MAX_REQUEST_BODY_SIZE": str(settings.max_request_body_size),
        "HEALTH_CHECK_INTERVAL_SECONDS": str(settings.health_check_interval_seconds),
        "HEALTH_CHECK_TIMEOUT_SECONDS": str(settings.health_check_timeout_seconds),
        "MAX_CONSECUTIVE_FAILURES": str(settings.max_consecutive_failures),
        "AUTO_DEREGISTER_AFTER_FAILURES": _flag(settings.auto_deregister_after_failures),
        "LOG_LEVEL": settings.log_level,
        "ENABLE_FILE_LOGGING": _flag(settings.file_logging),
        "ENABLE_CONSOLE_LOGGING": _flag(settings.console_logging),
        "DATABASE_URL": f"sqlite+aiosqlite:///{DATABASE}",
        "DATABASE_WAL_MODE": _flag(settings.database_wal_mode),
        **settings.extra_env,
        **settings.extra_secret_env,
    }
    return Secret(render(variables, consumer="systemd" if settings.supervisor == "systemd" else "shell"))


def _flag(value: bool) -> str:
    return "true" if value else "false"


def uvicorn_options(settings: Gateway) -> str:
    """Return what follows the application's name on uvicorn's command line, besides the socket."""
    options = [
        "--proxy-headers",
        # Whoever can connect to the socket is nginx (see the unit), and it sends one address, which it has seen itself.
        "--forwarded-allow-ips=*",
        f"--timeout-graceful-shutdown={settings.drain_seconds}",
        f"--log-level={settings.log_level.lower()}",
        # nginx writes down every request.
        "--no-access-log",
    ]
    if settings.workers > 1:
        options.append(f"--workers={settings.workers}")
    if settings.reload:
        options.append("--reload")
    return " ".join(options)


def service(settings: Gateway, release_directory: str) -> str:
    """Return the unit, or the supervisor program, of either colour."""
    kind = {"systemd": "service", "supervisor": "conf"}[settings.supervisor]
    return template.render(
        f"gateway/{APP}.{kind}.j2",
        user=USER,
        state_directory=STATE,
        release=release_directory,
        application=settings.app,
        uvicorn_options=uvicorn_options(settings),
        drain_seconds=settings.drain_seconds,
        memory_max=settings.memory_max,
        **rollout.names(APP, settings.supervisor),
    )


def _rollout(settings: Gateway) -> None:
    built = release.release_path(APP_ROOT, _source(settings), settings.requirements, settings.python)
    rollout.rollout(
        APP,
        service=service(settings, built),
        environment=environment(settings),
        release=built,
        manager=settings.supervisor,
        health_path=settings.health_path,
        probe=site.probe(settings.domain, settings.health_path),
        start_seconds=settings.start_timeout_seconds,
        settle_seconds=settings.settle_seconds,
        drain_seconds=settings.drain_seconds,
        keep=settings.keep_releases,
        name="Roll out release",
    )


def locations(settings: Gateway) -> list[Location]:
    """Return what nginx passes on: everything, with the admin routes for declared networks only."""
    limit = (
        RateLimit(settings.rate_limit_per_second, settings.rate_limit_burst)
        if settings.rate_limit_per_second
        else None
    )
    everything = Location(
        "/", upstream=APP, timeout_seconds=settings.proxy_timeout_seconds, streaming=True, rate_limit=limit
    )
    return [
        everything,
        # Health is asked often and by many behind one address; it is cheap.
        replace(everything, path=settings.health_path, match="exact", rate_limit=None),
        replace(everything, path="/admin", match="first", networks=tuple(map(str, settings.admin_networks))),
    ]


def _site(settings: Gateway) -> None:
    certificate.bootstrap(APP, domains=settings.domains, name="Have a certificate to start with")
    nginx.server(name="Install nginx")
    nginx.site(
        APP,
        server_names=settings.domains,
        certificate_directory=certificate.directory(APP),
        # No keepalive: after a switch, an idle connection would still lead to the colour that goes.
        upstreams=[Upstream(APP, (rollout.upstream(APP),), keepalive=0)],
        locations=locations(settings),
        hsts_seconds=settings.hsts_seconds,
        max_body_size=settings.max_request_body_size + _BODY_MARGIN,
        name="Upload nginx site",
    )


def _logs() -> None:
    logrotate.log(
        APP,
        paths=[f"{LOGS}/*.log"],
        su=f"{USER} {USER}",
        # For applications that do not open their log anew when it was moved away.
        copy_truncate=True,
        name="Rotate logs",
    )


def _backup(settings: Gateway, policy: Backup) -> None:
    backup.source(
        "gateway",
        policy=policy,
        kind="sqlite",
        path=DATABASE,
        owner=USER,
        group=USER,
        mode="0600",
        units=[
            f"{kind}{APP}-{colour}{suffix}"
            for kind, suffix in (("", ".service"), ("supervisor:", ""))
            for colour in ("blue", "green")
        ],
        health=site.probe(settings.domain, settings.health_path),
        present=policy.enabled,
        name="Back up the database",
    )

