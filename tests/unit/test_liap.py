"""Settings of liap, what is refused of them, and the Compose files that are made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from deploys import liap as deploys
from deploys import liap_services as services
from deploys import liap_stacks
from operations import compose
from settings import Liap, SettingsError, load_fleet, load_host, monitoring
from settings.archive import S3
from settings.secret import Secret

ROOT = Path(__file__).parents[2]
ENV = {
    "LIAP_REDIS_PASSWORD": "p/ss@redis#password",
    "LIAP_POSTGRES_PASSWORD": "p/ss@postgres#password",
    "LIAP_POSTGRES_BACKUP_PASSWORD": "p/ss@backup#password",
    "LIAP_S3_ACCESS_KEY": "access",
    "LIAP_S3_SECRET_KEY": "a-secret-key-of-the-test",
    "LIAP_STACK_PASSWORD": "a-password-of-the-stacks",
    "BACKUP_PASSWORD": "a-backup-password-of-the-test-0123",
}
GOOD: dict[str, Any] = {
    "certificate_mode": "self-signed",
    "backup_password": "env:BACKUP_PASSWORD",
    "base_swap_size_mb": 1024,
    "liap_repository": "registry.example.org/liap-backend",
    "liap_version": "1.4.0",
    "liap_domain": "liap.example.org",
    **{key.lower(): f"env:{key}" for key in ENV if key.startswith("LIAP")},
}


def load_whole(groups: list[str], env: dict[str, str], **changes: Any) -> Any:
    with mock.patch.dict(os.environ, {**ENV, **env}):
        return load_host("host1", groups, {**GOOD, **changes})


def load(**changes: Any) -> Liap:
    found = load_whole(["liap", "lab"], {}, **{f"liap_{key}": value for key, value in changes.items()}).liap
    assert found is not None
    return found


def faults(*, groups: tuple[str, ...] = ("liap",), env: dict[str, str] | None = None, **changes: Any) -> str:
    with pytest.raises(SettingsError) as error:
        load_whole(list(groups), env or {}, **changes)
    return str(error.value)


def test_every_variable_of_the_guide_is_there_with_its_default():
    found = {key: value for key, value in load().variables().items() if isinstance(value, str)}
    guide = {
        "ENVIRONMENT": "production", "MAX_ACTIVE_GAMES": "10000", "MAX_MEMORY_MB": "4096", "MEMORY_CHECK_INTERVAL": "60",
        "GC_COMPLETED_GAMES_AFTER": "300", "REDIS_POOL_MAX": "10", "ARCHIVE_BACKEND": "s3", "ARCHIVE_URL": "s3://liap-archives/games/",
        "ARCHIVE_BATCH_SIZE": "100", "ARCHIVE_FLUSH_INTERVAL": "60", "ARCHIVE_RETENTION_DAYS": "90", "EVENT_BUFFER_SIZE": "10000",
        "MAX_EVENTS_PER_GAME": "1000", "GAME_SUMMARY_CACHE_SIZE": "1000", "RATE_LIMIT_PER_PLAYER_PER_MINUTE": "60",
        "RATE_LIMIT_PER_ROOM_PER_SECOND": "10", "RATE_LIMIT_WEBSOCKET_PER_SECOND": "5", "METRICS_ENABLED": "true",
        "METRICS_PORT": "9464", "HEALTH_CHECK_TIMEOUT": "10", "MEMORY_ALERT_THRESHOLD": "80", "USE_GAME_ARCHIVAL": "true",
        "USE_MEMORY_MONITORING": "true", "USE_RATE_LIMITING": "true", "LOG_LEVEL": "INFO", "LOG_FORMAT": "json",
        "LOG_CORRELATION_ID": "true", "USE_EVENT_SOURCING": "false", "ENABLE_PROFILING": "false", "AWS_REGION": "us-east-1",
    }  # fmt: skip
    assert guide.items() <= found.items()


def test_urls_hold_their_passwords_whatever_is_in_them():
    settings = load(archive_backend="postgresql")
    assert isinstance(settings.archive_url, Secret)
    assert isinstance(settings.redis, Secret)
    archive, redis = urlsplit(settings.archive_url.unmask()), urlsplit(settings.redis.unmask())
    assert (archive.hostname, archive.path, unquote(archive.password or "")) == ("postgres", "/liap_archive", ENV["LIAP_POSTGRES_PASSWORD"])
    assert (redis.hostname, unquote(redis.password or "")) == ("redis", ENV["LIAP_REDIS_PASSWORD"])


@pytest.mark.parametrize("printed", ["minioadmin", "admin", "archive", "test", "MinioAdmin"])
def test_passwords_that_the_guide_prints_are_refused(printed):
    for name in ("LIAP_REDIS_PASSWORD", "LIAP_POSTGRES_PASSWORD", "LIAP_S3_SECRET_KEY", "LIAP_STACK_PASSWORD"):
        said = faults(env={name: printed})
        assert f"{name.lower()}: must " in said
        assert "got" not in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"liap_metrics_port": 9090}, "liap_metrics_port: must not be 9090, which is Prometheus'"),
        ({"liap_metrics_port": 8000}, "which is the backend's own"),
        ({"liap_archive_backend": "filesystem", "liap_archive_directory": "/tmp/liap-archives"}, "must be where files stay over a reboot"),
        ({"liap_memory_limit_mb": 4096}, "must be more than liap_max_memory_mb (4096)"),
        ({"liap_enable_profiling": True}, "liap_enable_profiling: must be False in production"),
        ({"liap_stacks": ["dev"]}, "liap_stacks: must be empty outside the groups lab and dev"),
        ({"liap_allow_small": True}, "liap_allow_small: must be False outside"),
        ({"liap_version": "latest"}, "must not be 'latest'"),
        ({"liap_redis_image": "docker.io/library/redis:6-alpine"}, "liap_redis_image: must be version 7 or newer"),
        ({"liap_extra_env": {"MAX_MEMORY_MB": "1"}}, "liap_extra_env.MAX_MEMORY_MB: must not stand here"),
        ({"liap_s3_endpoint_url": "http://s3.example.org"}, "must be https:// towards a host that is not in a private network"),
        ({"liap_archive_backend": "postgresql", "liap_postgres_host": "db.example.org"}, "liap_postgres_sslmode: must be 'require' or 'verify-full'"),
        ({"base_swap_size_mb": 0}, "base_swap_size_mb: must be at least liap_swap_mb (1024)"),
        ({"base_firewall_enabled": False}, "base_firewall_enabled: must be True in production"),
        ({"docker_published_enabled": False}, "docker_published_enabled: must be True in production"),
        ({"docker_compose": "no"}, "docker_compose: must not be 'no' on hosts of liap"),
        ({"liap_redis_password": ""}, "liap_redis_password"),
        ({"liap_database_pool_min": 50}, "must not be more than liap_database_pool_max (20)"),
    ],
)  # fmt: skip
def test_what_the_guides_checklist_asks_is_refused_before_any_connection(changes, words):
    assert words in faults(**changes)


def test_debian_12_is_refused_for_its_own_compose_and_taken_with_dockers():
    own = load_whole(["liap"], {}, docker_source="distribution").requirements
    assert ("debian", "12") not in own.releases
    assert ("debian", "13") in own.releases
    assert ("debian", "12") in load_whole(["liap"], {}).requirements.releases


@pytest.mark.parametrize("backend", ["s3", "postgresql", "filesystem"])
def test_the_stack_is_a_good_compose_file(backend):
    settings = load(archive_backend=backend)
    wanted = deploys.spec(settings)
    found = compose.faults("liap", wanted, deploys.mounted(settings), trial=["backend"], drains=deploys.drains(settings))
    assert found == []
    assert sorted(wanted["services"]) == sorted(["backend", "redis", *(["postgres"] if backend == "postgresql" else [])])
    backend_service = wanted["services"]["backend"]
    assert backend_service["ports"] == ["127.0.0.1:8000:8000", "127.0.0.1:9464:9464"]
    assert (backend_service["mem_limit"], backend_service["memswap_limit"]) == ("5120m", "6144m")
    # what is secret is one: nothing in clear is left to be shown
    shown = repr(wanted) + repr(deploys.mounted(settings))
    assert not any(value in shown for value in ENV.values() if len(value) > 8)


def test_metrics_are_published_to_declared_networks_only():
    host = load_whole(["liap", "lab"], {}, liap_metrics_networks=["10.0.0.0/24"])
    assert [(port.port, port.sources) for port in host.exposure if port.port == 9464] == [(9464, ("10.0.0.0/24",))]
    wanted = deploys.spec(host.liap)
    assert compose.faults("liap", wanted, exposed=host.exposure) == []
    assert any("among the host's declared ports" in one for one in compose.faults("liap", wanted))


def test_the_guides_other_stacks_are_good_compose_files():
    images = {name: f"registry.example.org/{name}:1.0.0" for name in ("s3", "prometheus", "grafana", "test-runner")}
    settings = load(stacks=["dev", "test"], stack_images=images)
    assert compose.faults("liap-dev", liap_stacks.dev(settings), liap_stacks.dev_files(settings)) == []
    assert compose.faults("liap-test", liap_stacks.test(settings)) == []
    dev = liap_stacks.dev(settings)["services"]
    assert sorted(dev) == ["grafana", "postgres-archive", "prometheus", "redis", "s3"]
    assert [name for name, service in dev.items() if "profiles" in service] == ["postgres-archive", "s3"]
    assert all(port.startswith("127.0.0.1:") for service in dev.values() for port in service["ports"])
    assert liap_stacks.test(settings)["services"]["postgres-test"]["tmpfs"] == ["/var/lib/postgresql/data"]


AWAY: dict[str, Any] = {
    "liap_archive_backend": "postgresql", "liap_postgres_host": "10.0.0.41", "liap_pgbouncer_enabled": True, "liap_sentinel_enabled": True,
    "liap_sentinel_peers": ["10.0.0.41", "10.0.0.42", "10.0.0.43"], "liap_services_networks": ["10.0.0.0/24"], "liap_services_ca": "env:CA",
    "liap_services_certificate": "env:CERTIFICATE", "liap_services_key": "env:KEY",
    **{f"liap_{key}": f"env:{key.upper()}" for key in ("postgres_owner_password", "redis_admin_password", "redis_replica_password", "redis_sentinel_password", "redis_ask_password")},
}  # fmt: skip
AWAY_ENV = {
    "CA": "-----BEGIN CERTIFICATE-----", "CERTIFICATE": "-----BEGIN CERTIFICATE-----", "KEY": "a-key",
    **{key: f"a-good-{key.lower()}#1/2" for key in ("POSTGRES_OWNER_PASSWORD", "REDIS_ADMIN_PASSWORD", "REDIS_REPLICA_PASSWORD", "REDIS_SENTINEL_PASSWORD", "REDIS_ASK_PASSWORD")},
}  # fmt: skip


def away(group: str, name: str = "host1", address: str = "", **changes: Any) -> tuple[str, list[str], dict[str, Any]]:
    return name, [group], {**GOOD, **AWAY, "liap_services_address": address, "ssh_hostname": name, **changes}


def without(key: str, host: tuple[str, list[str], dict[str, Any]]) -> tuple[str, list[str], dict[str, Any]]:
    return host[0], host[1], {name: value for name, value in host[2].items() if name != key}


def fleet_of(*hosts: tuple[str, list[str], dict[str, Any]]) -> Any:
    with mock.patch.dict(os.environ, {**ENV, **AWAY_ENV}):
        return load_fleet(hosts, resolve=[name for name, _, _ in hosts])


WHOLE = (
    away("liap", "app"), away("liap_postgres", "db", "10.0.0.40", liap_postgres_host="10.0.0.40"),
    *(away("liap_redis", f"redis-{number}", f"10.0.0.{number}") for number in (41, 42, 43)),
)  # fmt: skip


def test_backends_reach_pgbouncer_and_sentinels_over_tls():
    fleet = fleet_of(*WHOLE)
    settings = fleet["app"].liap
    assert (settings.runs_redis, settings.runs_postgres, settings.keeps_archive) == (False, False, False)
    archive, redis = urlsplit(settings.archive_url.unmask()), urlsplit(settings.redis.unmask())
    assert (archive.hostname, archive.port, archive.query) == ("10.0.0.41", 6432, "sslmode=verify-full&sslrootcert=/etc/liap/ca.crt")
    assert (redis.scheme, redis.path, redis.netloc.rpartition("@")[2]) == ("rediss+sentinel", "/liap/0", "10.0.0.41:26379,10.0.0.42:26379,10.0.0.43:26379")
    assert parse_qs(redis.query) == {"sentinel_password": [AWAY_ENV["REDIS_ASK_PASSWORD"]], "ssl_ca_certs": ["/etc/liap/ca.crt"]}
    wanted = deploys.spec(settings)
    assert compose.faults("liap", wanted, deploys.mounted(settings), trial=["backend"], drains=deploys.drains(settings)) == []
    assert (list(wanted["services"]), wanted["services"]["backend"]["volumes"]) == (["backend"], ["./ca.crt:/etc/liap/ca.crt:ro"])
    assert deploys.questions(settings) == [], "the deploy's own services are not there yet in a first run"
    assert [(port.port, port.sources) for port in fleet["db"].exposure if port.port != 22] == [(6432, ("10.0.0.0/24",))]
    peers = ("10.0.0.41/32", "10.0.0.42/32", "10.0.0.43/32", "10.0.0.0/24")
    assert [(port.port, port.sources) for port in fleet["redis-42"].exposure if port.port != 22] == [(6379, peers), (26379, peers)]
    with mock.patch.dict(os.environ, {**ENV, **AWAY_ENV}):
        watched = load_host(*away("liap_postgres", "db", "10.0.0.40", monitoring_enabled=True, monitoring_address="10.0.0.40", monitoring_sources=["10.0.0.81/32"], monitoring_postgres_password="env:POSTGRES_OWNER_PASSWORD"))
    assert [(one.job, one.port) for one in monitoring.exporters(watched) if not one.own] == [("pgbouncer", 9127)]
    assert fleet["db"].liap_services.domains == ()
    assert services.group(fleet["redis-42"].liap_services).faults() == []
    assert services.archive_backend(fleet["db"].liap_services).faults() == []


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ((away("liap", "app"), *WHOLE[2:]), "app: liap_pgbouncer_enabled: must be False when no host is in liap_postgres"),
        (WHOLE[:2], "app: liap_sentinel_enabled: must be False when no host is in liap_redis"),
        ((*WHOLE, away("liap_postgres", "db2", "10.0.0.44")), "only one host may be in liap_postgres: db is already"),
        (WHOLE[:4], "liap_sentinel_peers: must be liap_services_address of all hosts in liap_redis"),
        ((*WHOLE[:4], away("liap_redis", "redis-44", "10.0.0.44")), "liap_sentinel_peers: must hold liap_services_address of this host (10.0.0.44)"),
        ((away("liap", "app", liap_redis_user="other"), *WHOLE[1:]), "liap_redis_user: must be the same as on host app"),
        ((away("liap", "app", liap_postgres_password="env:LIAP_STACK_PASSWORD"), *WHOLE[1:]), "liap_postgres_password: must be the same as on host app"),
        ((away("liap", "app", liap_archive_backend="s3", liap_postgres_host=""), *WHOLE[2:]), "liap_pgbouncer_enabled: must be False unless liap_archive_backend"),
        ((away("liap", "app", liap_sentinel_peers=["10.0.0.41", "10.0.0.42"]), *WHOLE[1:]), "must be three hosts or more"),
        ((away("liap", "app", liap_postgres_host=""), *WHOLE[1:]), "liap_postgres_host: is required with liap_pgbouncer_enabled"),
        ((away("liap_postgres", "db", "10.0.0.40", liap_pgbouncer_enabled=False),), "liap_pgbouncer_enabled: must be True on hosts of liap_postgres"),
        ((without("liap_services_key", away("liap_postgres", "db", "10.0.0.40")),), "liap_services_key: is required on hosts of liap_postgres"),
        ((away("liap_postgres", "db", ""),), "liap_services_address: is required on hosts of liap_postgres on host db, write liap_services_address = '10.0.0.41'"),
        ((away("liap_postgres", "db", "127.0.0.1"),), "liap_services_address: must be one by which other hosts reach it"),
        ((away("liap_postgres", "db", "10.0.0.40", liap_postgres_owner="archive"),), "liap_postgres_owner: must be another role than liap_postgres_user"),
        ((away("liap_postgres", "db", "10.0.0.40", liap_pgbouncer_metrics_port=6432),), "must be another port than liap_pgbouncer_port"),
        ((away("liap_redis", "redis-41", "10.0.0.41", liap_services_networks=["0.0.0.0/0"]),), "liap_services_networks: must not be everybody"),
    ],
)  # fmt: skip
def test_what_does_not_fit_between_hosts_is_refused(hosts, words):
    with pytest.raises(SettingsError) as error:
        fleet_of(*hosts)
    said = str(error.value)
    assert all(part in said for part in words.split(": ", 1)), said
    assert not any(value in said for value in AWAY_ENV.values())


def test_debian_12_is_refused_for_a_pgbouncer_that_keeps_no_prepared_statements():
    old = ("debian", "12")
    fleet = fleet_of(*WHOLE)
    assert old not in fleet["db"].requirements.releases
    assert old in fleet["redis-41"].requirements.releases
    plain = {"liap_pgbouncer_prepared_statements": 0, "liap_pgbouncer_metrics_port": 0}
    assert old in fleet_of(away("liap", "app", **plain), away("liap_postgres", "db", "10.0.0.40", **plain), *WHOLE[2:])["db"].requirements.releases


def test_services_can_be_planned(tmp_path):
    hosts = [(name, groups[0], data) for name, groups, data in WHOLE[1:]]
    lines = [
        f"{group} = {[(f'@fake/{name}', {**data, 'fake_delay': 0, 'fake_delay_jitter': 0}) for name, its, data in hosts if its == group]!r}"
        for group in ("liap_postgres", "liap_redis")
    ]
    (tmp_path / "inventory.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "deploy.py").write_text("from deploys.liap_services import liap_services\nliap_services()\n")
    run = subprocess.run(
        [Path(sys.executable).with_name("pyinfra"), "--dry", tmp_path / "inventory.py", tmp_path / "deploy.py"], cwd=ROOT, text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=120, env={**os.environ, **ENV, **AWAY_ENV, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    said = run.stdout + run.stderr
    assert "Traceback" not in said, said
    assert "Not planned" not in said, said
    for step in ("Run PostgreSQL", "Pool connections", "Run Redis", "Watch Redis"):
        assert f"liap services | {step}" in said, said


MANAGED: dict[str, Any] = {
    "liap_archive_bucket_managed": True, "liap_s3_admin_access_key": "env:LIAP_S3_ADMIN_ACCESS_KEY", "liap_s3_admin_secret_key": "env:LIAP_S3_ADMIN_SECRET_KEY",
}  # fmt: skip
MANAGED_ENV = {"LIAP_S3_ADMIN_ACCESS_KEY": "admin-access", "LIAP_S3_ADMIN_SECRET_KEY": "admin-secret-key-of-the-test"}


def test_a_managed_bucket_is_made_from_this_side_and_kept_with_the_hosts_own_keys():
    settings = load_whole(["liap", "lab"], MANAGED_ENV, **MANAGED).liap
    backend = deploys.archive_backend(settings)
    assert isinstance(backend, S3)
    assert backend.faults() == []
    assert (backend.prefix, backend.server.access_key.unmask(), backend.access_key.unmask()) == ("games/", "admin-access", "access")
    assert deploys.questions(settings) == [], "the bucket is not there yet in a first run"
    keeper = {"liap_s3_keeper_access_key": "env:K", "liap_s3_keeper_secret_key": "env:LIAP_STACK_PASSWORD"}
    backend = deploys.archive_backend(load_whole(["liap", "lab"], {**MANAGED_ENV, "K": "keeper-access"}, **MANAGED, **keeper).liap)
    assert backend.access_key.unmask() == "keeper-access"


def test_a_bucket_that_cannot_be_managed_is_refused():
    assert "liap_s3_admin_access_key: is required" in faults(liap_archive_bucket_managed=True)
    assert "must be False with backup_enabled = False" in faults(env=MANAGED_ENV, **MANAGED, backup_enabled=False)
    assert "must be False unless liap_archive_backend is 's3'" in faults(env=MANAGED_ENV, **MANAGED, liap_archive_backend="filesystem")
    with pytest.raises(SettingsError) as error, mock.patch.dict(os.environ, {**ENV, **MANAGED_ENV}):
        load_fleet([(name, ["liap"], {**GOOD, **MANAGED, "ssh_hostname": name}) for name in ("one", "two")], resolve=["one", "two"])
    assert "liap_archive_bucket_managed: must be True on one host alone: one has it already" in str(error.value)


def test_somebody_elses_services_are_asked_for():
    assert [one["name"] for one in deploys.questions(load(archive_backend="filesystem"))] == []
    assert deploys.questions(load())[0]["host"] == "s3.us-east-1.amazonaws.com"
    found = deploys.questions(load(archive_backend="postgresql", postgres_host="10.0.0.9", postgres_port=6432))
    assert (found[0]["host"], found[0]["port"], found[0]["database"]) == ("10.0.0.9", 6432, "liap_archive")


# not filesystem: a host that is none has no useradd
@pytest.mark.parametrize("backend", ["s3", "postgresql"])
def test_the_whole_of_it_can_be_planned(tmp_path, backend):
    data = {**GOOD, "liap_archive_backend": backend, "fake_delay": 0, "fake_delay_jitter": 0}
    (tmp_path / "inventory.py").write_text(f"liap = [('@fake/liap', {data!r})]\n")
    (tmp_path / "deploy.py").write_text("from deploys.liap import liap, preflight\npreflight()\nliap()\n")
    run = subprocess.run(
        [Path(sys.executable).with_name("pyinfra"), "--dry", tmp_path / "inventory.py", tmp_path / "deploy.py"], cwd=ROOT, text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=120, env={**os.environ, **ENV, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    said = run.stdout + run.stderr
    assert "Traceback" not in said, said
    assert "Not planned" not in said, said
    assert "liap | Run the stack" in said
    assert ("Keep the archive as long as its policy" in said) == (backend != "s3")


def test_backends_are_replaced_before_their_services_are_changed(tmp_path):
    """However the inventory orders the hosts: an operation that they share is where all of them meet."""
    (tmp_path / "inventory.py").write_text("".join(
        f"{group} = {[(f'@fake/{name}', {**data, 'fake_delay': 0, 'fake_delay_jitter': 0}) for name, its, data in WHOLE if group in its]!r}\n"
        for group in ("liap_redis", "liap_postgres", "liap")
    ))  # fmt: skip
    whole = (ROOT / "deploy.py").read_text()
    ours = whole[whole.index("if current().liap is not None:\n    liap()\n") : whole.index("if current().codeclashers is not None:\n    codeclashers()\n")]
    imports = "from deploys import current\nfrom deploys.liap import liap\nfrom deploys.liap_services import liap_services\n"
    (tmp_path / "deploy.py").write_text(imports + ours)
    run = subprocess.run(
        [Path(sys.executable).with_name("pyinfra"), "--dry", "--json", tmp_path / "inventory.py", tmp_path / "deploy.py"], cwd=ROOT, text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=120, env={**os.environ, **ENV, **AWAY_ENV, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    order = [row["name"] for row in json.loads(run.stdout)["plan"]]
    places = [order.index(name) for name in ("liap | Run the stack", "liap services | See that the backends are well", "liap services | Run PostgreSQL")]
    assert places == sorted(places), order
    assert max(number for number, name in enumerate(order) if name.startswith("liap | ")) < places[1], order
