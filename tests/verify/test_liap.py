"""What the guide asks of a liap host: a stack that is well and sealed, a Redis that forgets, and nothing open but nginx."""

from __future__ import annotations

import shlex

from deploys.liap import ARCHIVE, PROJECT, archive_backend, spec
from settings import Host, Liap
from settings.liap import APP_PORT
from tests.verify import archive
from tests.verify.conftest import Machine

SYSTEM = "liap"


def _liap(settings: Host) -> Liap:
    assert settings.liap is not None
    return settings.liap


def _stack(settings: Host) -> str:
    form = (
        '{{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} {{.State.Health.Status}} {{.HostConfig.Memory}} '
        "{{.HostConfig.CapDrop}} {{.HostConfig.ReadonlyRootfs}} {{.Config.Image}}"
    )
    return f"docker inspect -f {shlex.quote(form)} $(docker ps -aq --filter label=com.docker.compose.project={PROJECT}) | sort"


def _health(settings: Host) -> str:
    domain = _liap(settings).domain
    ask = f'curl -sk -m 10 -o /dev/null -w "%{{http_code}}\\n" --resolve {domain}:443:127.0.0.1'
    return "; ".join(f"{ask} https://{domain}{path}" for path in ("/health", "/health/ready", "/health/live"))


def _redis(settings: Host) -> str:
    if not _liap(settings).runs_redis:
        return ""
    ask = f"docker exec {PROJECT}-redis-1 redis-cli config get"
    return f"for key in maxmemory maxmemory-policy appendonly save; do {ask} $key; done; docker exec -e REDISCLI_AUTH= {PROJECT}-redis-1 redis-cli ping 2>&1"


def _metrics(settings: Host) -> str:
    found = _liap(settings)
    return f"curl -sS -m 10 http://127.0.0.1:{found.metrics_port}/metrics | grep -v '^#' | head -c 10000" if found.metrics_enabled else ""


def _retention(settings: Host) -> str:
    backend = archive_backend(_liap(settings))
    return archive.question(f"{ARCHIVE}-{backend.kind}") if backend and settings.backup.enabled else ""


EVIDENCE = {
    "liap_stack": _stack,
    "liap_health": _health,
    "liap_redis": _redis,
    "liap_metrics": _metrics,
    "liap_retention": _retention,
    "liap_listening": "ss -Hltn | awk '{ print $4 }'",
}


def test_stack_is_well_limited_and_of_the_version_that_is_wanted(machine: Machine) -> None:
    settings = _liap(machine.settings)
    wanted = spec(settings)["services"]
    found = {line.split()[0]: line.split()[1:] for line in machine.lines("liap_stack")}
    assert sorted(found) == sorted(wanted)
    for name, (state, health, memory, capabilities, _, image) in found.items():
        assert (state, health, capabilities, image) == ("running", "healthy", "[ALL]", wanted[name]["image"]), name
        assert int(memory) == int(wanted[name]["mem_limit"].rstrip("m")) * 1024 * 1024, name
    assert found["backend"][4] == "true"


def test_every_health_endpoint_answers(machine: Machine) -> None:
    assert machine.lines("liap_health") == ["200", "200", "200"]


def test_redis_forgets_rather_than_grows_and_asks_for_a_password(machine: Machine) -> None:
    settings = _liap(machine.settings)
    if settings.runs_redis:
        said = machine.text("liap_redis").split("\n")
        found = dict(zip(said[0:8:2], said[1:8:2], strict=True))
        maximum = str(settings.redis_maxmemory_mb * 1024 * 1024)
        assert found == {"maxmemory": maximum, "maxmemory-policy": "allkeys-lru", "appendonly": "no", "save": ""}
        assert "PONG" not in "".join(said[8:])


def test_metrics_are_shown(machine: Machine) -> None:
    if _liap(machine.settings).metrics_enabled:
        assert machine.lines("liap_metrics")


def test_archive_is_kept_in_bounds(machine: Machine) -> None:
    settings = _liap(machine.settings)
    if settings.keeps_archive and machine.settings.backup.enabled:
        archive.assert_in_bounds(machine.lines("liap_retention"), settings.archive_retention_days)


def test_only_nginx_listens_beyond_the_host(machine: Machine) -> None:
    settings = _liap(machine.settings)
    own = {APP_PORT, *(() if settings.metrics_networks else (settings.metrics_port,))}
    for line in machine.lines("liap_listening"):
        address, _, port = line.rpartition(":")
        if int(port) in own:
            assert address in ("127.0.0.1", "[::1]"), line
