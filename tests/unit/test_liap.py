"""Settings of liap, what is refused of them, and the Compose files that are made of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

import pytest

from deploys import liap as deploys
from deploys import liap_stacks
from operations import compose
from settings import Liap, SettingsError, load_host
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
