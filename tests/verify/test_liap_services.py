"""What liap's backends use on hosts of its own: PgBouncer, by transaction and over TLS; Redis and a sentinel who knows the primary."""

from __future__ import annotations

import json
import shlex

from deploys.liap_services import ARCHIVE
from facts.sentinel import PROGRAM as ROLE_PROGRAM
from operations.pgbouncer import PROGRAM, UNIT
from settings import Host, LiapServices
from settings.liap import REDIS
from tests.verify import archive
from tests.verify.conftest import Machine

SYSTEM = "liap_services"


def _services(settings: Host) -> LiapServices:
    assert settings.liap_services is not None
    return settings.liap_services


def _pool(settings: Host) -> str:
    found = _services(settings)
    if not found.runs_pgbouncer:
        return ""
    ask = f"runuser -u pgbouncer -- psql -XAtq -h /run/pgbouncer -p {found.pgbouncer_port} -U pgbouncer pgbouncer -c"
    return f"{PROGRAM} ping && systemctl is-active {UNIT} && cd / && {ask} 'SHOW CONFIG' | cut -d'|' -f1,2"


def _rights(settings: Host) -> str:
    found = _services(settings)
    if not found.runs_pgbouncer:
        return ""
    sql = f"SELECT has_table_privilege('{found.postgres_user}', 'archive.completed_games', 'DELETE')"
    return f"cd / && runuser -u postgres -- psql -XAtq -p {found.postgres_port} -d {found.postgres_db} -c {shlex.quote(sql)}"


def _sentinel(settings: Host) -> str:
    found = _services(settings)
    return f"systemctl is-active redis-server@{REDIS} redis-sentinel@{REDIS} && {ROLE_PROGRAM} look {REDIS}" if found.runs_sentinel else ""


def _retention(settings: Host) -> str:
    return archive.question(ARCHIVE) if _services(settings).runs_pgbouncer and settings.backup.enabled else ""


EVIDENCE = {
    "liap_pool": _pool,
    "liap_rights": _rights,
    "liap_services_retention": _retention,
    "liap_sentinel": _sentinel,
    "liap_services_listening": "ss -Hltn | awk '{ print $4 }'",
}


def test_pgbouncer_answers_and_pools_as_it_should(machine: Machine) -> None:
    settings = _services(machine.settings)
    if settings.runs_pgbouncer:
        state, *lines = machine.lines("liap_pool")
        found = dict(line.split("|", 1) for line in lines)
        assert state == "active"
        wanted = {
            "pool_mode": "transaction", "default_pool_size": str(settings.pgbouncer_pool_size), "client_tls_sslmode": "require", "auth_type": "scram-sha-256",
        }  # fmt: skip
        if settings.pgbouncer_prepared_statements:
            wanted["max_prepared_statements"] = str(settings.pgbouncer_prepared_statements)
        assert {key: found.get(key) for key in wanted} == wanted


def test_backends_may_not_remove_games(machine: Machine) -> None:
    if _services(machine.settings).runs_pgbouncer:
        assert machine.lines("liap_rights") == ["f"]


def test_archive_is_kept_in_bounds(machine: Machine) -> None:
    settings = _services(machine.settings)
    if settings.runs_pgbouncer and machine.settings.backup.enabled:
        archive.assert_in_bounds(machine.lines("liap_services_retention"), settings.archive_retention_days)


def test_the_sentinel_knows_a_primary_and_all_of_its_peers(machine: Machine) -> None:
    settings = _services(machine.settings)
    if settings.runs_sentinel:
        redis, sentinel, said = machine.lines("liap_sentinel")
        found = json.loads(said)
        assert (redis, sentinel) == ("active", "active")
        assert found["ip"] in settings.sentinel_peers
        assert found["flags"] == "master"
        assert (int(found["num-slaves"]), int(found["num-other-sentinels"])) == (len(settings.sentinel_peers) - 1,) * 2


def test_databases_listen_where_they_should(machine: Machine) -> None:
    settings = _services(machine.settings)
    inside = {settings.postgres_port} if settings.runs_pgbouncer else set()
    private = {settings.pgbouncer_port} if settings.runs_pgbouncer else set()
    private |= {settings.redis_port, settings.sentinel_port} if settings.runs_sentinel else set()
    for line in machine.lines("liap_services_listening"):
        address, _, port = line.rpartition(":")
        allowed = {"127.0.0.1", "[::1]"} | ({settings.services_address, f"[{settings.services_address}]"} if int(port) in private else set())
        if int(port) in inside | private:
            assert address in allowed, line
