"""What the guide asks of a cricksy host: databases that lose nothing and let nobody in, workers, and an API that answers."""

from __future__ import annotations

import shlex

import pytest

from deploys.cricksy import API, BROKER, CACHE, FLOWER_PORT, WORKER, release_directory
from deploys.cricksy_container import memory_mb
from facts.redis import PROGRAM
from settings import Cricksy, Host
from tests.verify.conftest import Machine

SYSTEM = "cricksy"
MOST_EXPOSURE = 1.5


def _cricksy(settings: Host) -> Cricksy:
    assert settings.cricksy is not None
    return settings.cricksy


def _has(settings: Host, role: str) -> bool:
    return role in _cricksy(settings).roles


def _redis(settings: Host) -> str:
    if not _cricksy(settings).runs_redis:
        return ""
    anonymous = f"for port in {_cricksy(settings).redis_port} {_cricksy(settings).redis_cache_port}; do redis-cli -p $port ping 2>&1 | tail -n 1; done"
    return f"for one in {BROKER} {CACHE}; do echo instance $one; {PROGRAM} look $one; done; echo anonymous; {anonymous}"


def _postgres(settings: Host) -> str:
    found = _cricksy(settings)
    if not found.runs_postgres:
        return ""
    sql = (
        f"SELECT 'powerful', rolname FROM pg_roles WHERE rolname IN ('{found.postgres_user}', '{found.postgres_owner}') AND (rolsuper OR rolcreatedb OR rolcreaterole); "
        "SELECT 'weak', rolname FROM pg_authid WHERE rolpassword IS NOT NULL AND rolpassword NOT LIKE 'SCRAM%'; "
        "SELECT 'open', auth_method FROM pg_hba_file_rules WHERE auth_method NOT IN ('peer', 'scram-sha-256'); "
        f"SELECT 'answers', count(*) FROM pg_database WHERE datname = '{found.postgres_database}'"
    )
    return f"cd / && printf '%s\\n' {shlex.quote(sql)} | runuser -u postgres -- psql -XAtq -h /run/postgresql -p {found.postgres_port}"


def _workers(settings: Host) -> str:
    if not _has(settings, "worker"):
        return ""
    if _cricksy(settings).runs_containers:
        form = "{{.State.Running}} {{.State.Health.Status}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Memory}} {{.Config.Image}}"
        return f"docker inspect -f {shlex.quote(form)} $(docker ps -aq --filter label=hostwright.component={WORKER}) 2>&1"
    show = "ActiveState,UnitFileState,Type,KillMode,TimeoutStopUSec,MemoryMax"
    return f"""for number in $(seq {_cricksy(settings).worker_instances}); do
unit={WORKER}@$number.service
echo $number $(systemctl show -p {show} $unit | sort | tr '\\n' ' ') $(systemd-analyze security --no-pager $unit | sed -n 's/.*: \\([0-9.]*\\) .*/exposure=\\1/p' | tail -n 1)
tr '\\0' '\\n' </proc/$(systemctl show -p MainPID --value $unit)/environ | grep -c '^OMP_THREAD_LIMIT=1$' | sed 's/^/limit /'
readlink /proc/$(systemctl show -p MainPID --value $unit)/cwd
done"""


def _api(settings: Host) -> str:
    found = _cricksy(settings)
    if not _has(settings, "api"):
        return ""
    ask = f'curl -sk -m 10 -o /dev/null -w "%{{http_code}}\\n" --resolve {found.domain}:443:127.0.0.1 '
    return (
        f"{ask} {shlex.quote(f'https://{found.domain}{found.health_path}')}; "
        f"unit=$(basename $(dirname $(readlink /etc/{API}/active.sock))).service; systemctl is-active $unit; "
        "systemd-analyze security --no-pager $unit | sed -n 's/.*: \\([0-9.]*\\) .*/\\1/p' | tail -n 1"
    )


def _listening(settings: Host) -> str:
    return "ss -Hltn | awk '{ print $4 }'"


EVIDENCE = {
    "cricksy_redis": _redis,
    "cricksy_postgres": _postgres,
    "cricksy_workers": _workers,
    "cricksy_api": _api,
    "cricksy_listening": _listening,
}


def _settings(machine: Machine, role: str) -> Cricksy:
    found = _cricksy(machine.settings)
    if role not in found.roles:
        pytest.skip(f"{machine.target.name} is no host of cricksy_{role}")
    return found


def test_broker_forgets_nothing_and_cache_may(machine: Machine) -> None:
    settings = _settings(machine, "infra")
    if settings.redis_external:
        pytest.skip("Redis is somebody else's")
    said = machine.text("cricksy_redis")
    broker, cache = said.split(f"instance {CACHE}")
    assert "live\tmaxmemory-policy\tnoeviction" in broker
    assert "live\tappendonly\tyes" in broker
    assert f"live\tmaxmemory\t{settings.broker_maxmemory_mb * 1024 * 1024}" in broker
    assert "live\tmaxmemory-policy\tallkeys-lru" in cache
    assert said.count("acl\tsame") == 2


def test_nobody_comes_into_redis_without_a_password(machine: Machine) -> None:
    if _settings(machine, "infra").redis_external:
        pytest.skip("Redis is somebody else's")
    assert "PONG" not in machine.text("cricksy_redis").split("anonymous")[1]


def test_database_has_roles_that_may_little(machine: Machine) -> None:
    if _settings(machine, "infra").postgres_external:
        pytest.skip("PostgreSQL is somebody else's")
    assert machine.lines("cricksy_postgres") == ["answers|1"]


def test_workers_outlive_their_tasks(machine: Machine) -> None:
    settings = _settings(machine, "worker")
    lines = machine.lines("cricksy_workers")
    if settings.runs_containers:
        memory = memory_mb(settings.worker_memory_max) * 1024 * 1024
        assert lines == [f"true healthy true {memory} {settings.worker_image}"] * settings.worker_instances
        return
    assert len(lines) == 3 * settings.worker_instances
    for about, limit, cwd in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        found = dict(word.split("=", 1) for word in about.split()[1:] if "=" in word)
        assert (found["ActiveState"], found["UnitFileState"], found["Type"], found["KillMode"]) == ("active", "enabled", "exec", "mixed"), about
        assert float(found["exposure"]) <= MOST_EXPOSURE, about
        assert limit == "limit 1"
        assert cwd == f"{release_directory(settings)}/src/{settings.directory}"


def test_api_answers_and_is_sealed(machine: Machine) -> None:
    _settings(machine, "api")
    status, state, exposure = machine.lines("cricksy_api")
    assert (status, state) == ("200", "active")
    assert float(exposure) <= MOST_EXPOSURE


def test_only_what_is_declared_listens_beyond_the_host(machine: Machine) -> None:
    settings = _cricksy(machine.settings)
    own = {settings.postgres_port, settings.redis_port, settings.redis_cache_port, FLOWER_PORT}
    for line in machine.lines("cricksy_listening"):
        address, _, port = line.rpartition(":")
        if int(port) in own:
            assert address in ("127.0.0.1", "[::1]", settings.infra_address, f"[{settings.infra_address}]"), line
