"""The settings of the mcbench fleet, what is said about bad ones, and what they become."""

from __future__ import annotations

import contextlib
import json
import runpy
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from deploys import mcbench as deploy
from deploys import mcbench_external, mcbench_health, mcbench_retired
from operations import container, nginx
from settings import Mcbench, Secret, SettingsError, load_fleet, load_host
from settings.mcbench import COMPONENTS, GROUPS, OWN_VARIABLES, ROLES, SERVICES

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "a" * 64
SECRETS = {
    "MCBENCH_POSTGRES_PASSWORD": "postgres-password-1",
    "MCBENCH_POSTGRES_BACKUP_PASSWORD": "backup-role-password-1",
    "MCBENCH_REDIS_PASSWORD": "redis/pass@word#1",
    "MCBENCH_OBJECT_STORE_ACCESS_KEY": "object-access",
    "MCBENCH_OBJECT_STORE_SECRET_KEY": "object-secret-key-1",
    "MCBENCH_SECRET_KEY": "s" * 32,
    "MCBENCH_FLOWER_PASSWORD": "flower-password-1",
    "BACKUP_PASSWORD": "backup-password-long-enough",
    "OPENAI": "sk-1234",
    "WEAK": "minioadmin",
    "PLACEHOLDER": "your-anthropic-key",
    "SHORT": "0123456789",
    "QUOTED": 'a "quoted" password\\',
    "NO_URL": "amqp://localhost",
    "BROKER": "redis://queue:p%231@broker.internal:6380/2",
}
GOOD = {
    "certificate_email": "ops@example.org",
    "backup_password": "env:BACKUP_PASSWORD",
    "mcbench_registry": "registry.example.org",
    "mcbench_version": "1.4.0",
    "mcbench_minecraft_server_image": "registry.example.org/mc-bench-minecraft-server:1.4.0",
    "mcbench_minecraft_builder_image": f"registry.example.org/mc-bench-builder-runner@{DIGEST}",
    "mcbench_object_image": "registry.example.org/s3:1.0",
    "mcbench_postgres_password": "env:MCBENCH_POSTGRES_PASSWORD",
    "mcbench_postgres_backup_password": "env:MCBENCH_POSTGRES_BACKUP_PASSWORD",
    "mcbench_redis_password": "env:MCBENCH_REDIS_PASSWORD",
    "mcbench_object_store_access_key": "env:MCBENCH_OBJECT_STORE_ACCESS_KEY",
    "mcbench_object_store_secret_key": "env:MCBENCH_OBJECT_STORE_SECRET_KEY",
    "mcbench_secret_key": "env:MCBENCH_SECRET_KEY",
    "mcbench_flower_password": "env:MCBENCH_FLOWER_PASSWORD",
    "mcbench_api_domain": "api.example.org",
    "mcbench_admin_domain": "admin.example.org",
    "mcbench_flower_domain": "flower.example.org",
    "mcbench_cors_allowed_origin": "https://frontend.example.org",
}
ALL = [*GROUPS]
ELSEWHERE = {
    "mcbench_postgres_host": "10.0.0.5",
    "mcbench_redis_host": "10.0.0.5",
    "mcbench_object_store_dsn": "10.0.0.5:9000",
}


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def settings(*groups: str, **values: object) -> Mcbench:
    """The settings of one host that is in these groups, all of them with one-host settings by default."""
    wanted = groups or tuple(ALL)
    data = {**GOOD, "mcbench_server_shares_host": True}
    if "mcbench_infra" not in wanted:
        data |= ELSEWHERE
    data |= {f"mcbench_{key}": value for key, value in values.items()}
    found = load_host("box", wanted, {key: value for key, value in data.items() if value is not None}).mcbench
    assert found is not None
    return found


def report(groups, data):
    merged = {**GOOD, "mcbench_server_shares_host": True, **data}
    try:
        load_host("box", groups, {key: value for key, value in merged.items() if value is not None})
    except SettingsError as error:
        return str(error).splitlines()
    return []


# --- the guide's tables -----------------------------------------------------------------------------------------------

LOG = {"LOG_LEVEL", "HUMANIZE_LOGS", "SHOW_VERBOSE_SQL"}
POSTGRES = {f"POSTGRES_{key}" for key in ("HOST", "PORT", "USER", "PASSWORD", "DB", "SSLMODE")}
REDIS = {f"REDIS_{key}" for key in ("HOST", "PORT", "USERNAME", "PASSWORD", "USE_AUTH", "USE_SSL")}
COMMON = LOG | POSTGRES | REDIS | {"CELERY_BROKER_URL"}
SESSION = {"SECRET_KEY", "CORS_ALLOWED_ORIGIN", "ACCESS_TOKEN_EXPIRE_MINUTES", "REFRESH_TOKEN_EXPIRE_MINUTES"}
LOGIN = {
    "GITHUB_CLIENT_ID", "GITHUB_CLIENT_SECRET", "GOOGLE_CLIENT_ID", "GOOGLE_CLIENT_SECRET", "AUTO_GRANT_ADMIN_ROLE",
}  # fmt: skip
BUCKETS = {"INTERNAL_OBJECT_BUCKET", "EXTERNAL_OBJECT_BUCKET"}
OBJECT = BUCKETS | {
    "OBJECT_STORE_DSN", "OBJECT_STORE_ACCESS_KEY", "OBJECT_STORE_SECRET_KEY", "OBJECT_STORE_SECURE",
}  # fmt: skip
MODELS = {"ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "MISTRAL_API_KEY"}
RENDER = {"FAST_RENDER", "LOG_INTERVAL_BLOCKS", "LOG_INTERVAL_MATERIALS"}
SERVER = {"MINECRAFT_SERVER_IMAGE", "MINECRAFT_BUILDER_IMAGE", "NUM_WORKERS", "BUILD_DELAY_MS"}

EXPECTED = {
    "api": COMMON | SESSION | LOGIN | OBJECT,
    "admin-api": COMMON | SESSION | BUCKETS,
    "admin-flower": {"CELERY_BROKER_URL", "FLOWER_BASIC_AUTH", "FLOWER_PORT"} | BUCKETS,
    "worker": COMMON,
    "admin-worker": COMMON | OBJECT | MODELS,
    "render-worker": COMMON | OBJECT | RENDER,
    "server-worker": COMMON | OBJECT | SERVER,
    "scheduler": COMMON,
    "postgres": {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"},
    "redis": {"REDIS_PASSWORD"},
    "object": {"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"},
}


@pytest.mark.parametrize("component", COMPONENTS)
def test_component_gets_exactly_its_own_variables(component):
    assert set(settings().environment(component)) == EXPECTED[component]


def test_every_variable_of_the_guide_reaches_somebody_and_has_its_default():
    found = settings()
    plain = {}
    for component in COMPONENTS:
        for key, value in found.environment(component).items():
            plain[key] = value.unmask() if isinstance(value, Secret) else value
    assert plain == {
        # the guide's, where a default is safe
        "POSTGRES_HOST": "postgres", "POSTGRES_PORT": "5432", "POSTGRES_USER": "user", "POSTGRES_DB": "mc_bench",
        "REDIS_HOST": "redis", "REDIS_PORT": "6379", "LOG_LEVEL": "INFO", "HUMANIZE_LOGS": "true",
        "SHOW_VERBOSE_SQL": "false", "ACCESS_TOKEN_EXPIRE_MINUTES": "60", "REFRESH_TOKEN_EXPIRE_MINUTES": "1440",
        "AUTO_GRANT_ADMIN_ROLE": "false", "INTERNAL_OBJECT_BUCKET": "mc-bench-internal",
        "EXTERNAL_OBJECT_BUCKET": "mc-bench-public", "OBJECT_STORE_DSN": "object:9000", "OBJECT_STORE_SECURE": "false",
        "FAST_RENDER": "false", "LOG_INTERVAL_BLOCKS": "1000", "LOG_INTERVAL_MATERIALS": "1000", "NUM_WORKERS": "2",
        "BUILD_DELAY_MS": "500",
        # what the operator must say, or may leave out
        "POSTGRES_PASSWORD": "postgres-password-1", "REDIS_PASSWORD": "redis/pass@word#1",
        "CELERY_BROKER_URL": "redis://default:redis%2Fpass%40word%231@redis:6379/0",
        "SECRET_KEY": "s" * 32, "CORS_ALLOWED_ORIGIN": "https://frontend.example.org",
        "GITHUB_CLIENT_ID": "", "GITHUB_CLIENT_SECRET": "", "GOOGLE_CLIENT_ID": "", "GOOGLE_CLIENT_SECRET": "",
        "OBJECT_STORE_ACCESS_KEY": "object-access", "OBJECT_STORE_SECRET_KEY": "object-secret-key-1",
        "ANTHROPIC_API_KEY": "", "OPENAI_API_KEY": "", "GEMINI_API_KEY": "", "MISTRAL_API_KEY": "",
        "MINECRAFT_SERVER_IMAGE": GOOD["mcbench_minecraft_server_image"],
        "MINECRAFT_BUILDER_IMAGE": GOOD["mcbench_minecraft_builder_image"],
        # beyond the guide: the application's own defaults ask for TLS to both, and for a login to Redis
        "POSTGRES_SSLMODE": "disable", "REDIS_USERNAME": "default", "REDIS_USE_AUTH": "true", "REDIS_USE_SSL": "false",
        "FLOWER_BASIC_AUTH": "admin:flower-password-1", "FLOWER_PORT": "5555",
        "MINIO_ROOT_USER": "object-access", "MINIO_ROOT_PASSWORD": "object-secret-key-1",
    }  # fmt: skip


def test_secret_variables_are_secrets():
    found = settings(openai_api_key="env:OPENAI")
    shown = {
        key
        for component in COMPONENTS
        for key, value in found.environment(component).items()
        if not isinstance(value, Secret) and value
    }
    assert not [key for key in shown if key.endswith(("PASSWORD", "SECRET", "SECRET_KEY", "ACCESS_KEY", "API_KEY", "AUTH", "URL")) and key != "REDIS_USE_AUTH"]  # fmt: skip
    assert "postgres-password-1" not in repr(found)


def test_own_variables_are_all_guarded():
    given = {name for component in COMPONENTS if component not in SERVICES for name in EXPECTED[component]}
    assert given - {"NUM_WORKERS"} <= OWN_VARIABLES


def test_variables_lead_to_the_services_where_they_are():
    there = settings("mcbench_worker", postgres_port=6432, redis_port=7379).environment("worker")
    assert (there["POSTGRES_HOST"], there["POSTGRES_PORT"]) == ("10.0.0.5", "6432")
    assert (there["REDIS_HOST"], there["REDIS_PORT"]) == ("10.0.0.5", "7379")
    assert there["CELERY_BROKER_URL"].unmask().endswith("@10.0.0.5:7379/0")
    # on the host of the services themselves, by the network of its containers
    here = settings("mcbench_infra", "mcbench_worker", postgres_port=6432, redis_port=7379, object_store_dsn="10.0.0.5:9900")
    variables = here.environment("worker")
    assert (variables["POSTGRES_HOST"], variables["POSTGRES_PORT"]) == ("postgres", "5432")
    assert (variables["REDIS_HOST"], variables["REDIS_PORT"]) == ("redis", "6379")
    assert here.environment("admin-worker")["OBJECT_STORE_DSN"] == "object:9000"


def test_external_services_are_reached_by_tls():
    found = settings(
        "mcbench_worker",
        postgres_external=True, postgres_host="db.example.com", redis_external=True, redis_host="redis.example.com",
        redis_tls=True, redis_username="fleet", object_external=True,
    )  # fmt: skip
    variables = found.environment("worker")
    assert variables["POSTGRES_SSLMODE"] == "require"
    assert variables["REDIS_USE_SSL"] == "true"
    assert variables["CELERY_BROKER_URL"].unmask().startswith("rediss://fleet:")
    # without it Celery takes any certificate
    assert variables["CELERY_BROKER_URL"].unmask().endswith(":6379/0?ssl_cert_reqs=CERT_REQUIRED")


def test_extra_variables_arrive_where_they_are_meant():
    found = settings(
        extra_env={"all": {"A": "1", "B": "1"}, "api": {"B": "2"}, "worker": {"NUM_WORKERS": "4"}},
        extra_secret_env={"api": {"GITHUB_EMAIL_SALT": "env:OPENAI"}},
    )
    assert {key: found.environment("api")[key] for key in ("A", "B")} == {"A": "1", "B": "2"}
    assert found.environment("api")["GITHUB_EMAIL_SALT"].unmask() == "sk-1234"
    assert found.environment("worker")["NUM_WORKERS"] == "4"
    assert found.environment("server-worker")["NUM_WORKERS"] == "2"
    assert "A" not in found.environment("postgres")


# --- roles ------------------------------------------------------------------------------------------------------------


def test_groups_are_roles():
    assert settings().roles == ROLES
    assert settings().components == tuple(COMPONENTS)
    assert settings("mcbench_infra", "prod").components == SERVICES
    assert settings("mcbench_admin", "mcbench_worker").components == ("admin-api", "admin-flower", "worker")
    assert load_host("box", ["mcbench", "prod"], {"certificate_email": "ops@example.org"}).mcbench is None


def test_external_and_unwanted_parts_do_not_run():
    assert settings("mcbench_infra", redis_external=True, redis_host="10.9.9.9").components == ("postgres", "object")
    assert settings("mcbench_infra", services=["object"]).components == ("object",)
    assert settings("mcbench_admin", flower_enabled=False).components == ("admin-api",)


def test_images_are_named_by_registry_and_version_or_one_by_one():
    found = settings(images={"worker": f"registry.example.org/other@{DIGEST}"})
    assert found.image("api") == "registry.example.org/mc-bench-api:1.4.0"
    assert found.image("worker") == f"registry.example.org/other@{DIGEST}"
    assert found.image("admin-flower") == "registry.example.org/mc-bench-admin-worker:1.4.0"
    assert found.image("postgres") == "docker.io/library/postgres:16"
    assert GOOD["mcbench_minecraft_server_image"] in found.managed_images


def test_host_without_the_application_needs_no_version():
    assert report(["mcbench_infra"], {"mcbench_version": None, "mcbench_registry": None}) == []


def test_minimum_of_the_guide_is_asked_for():
    api = settings("mcbench_api").needs()
    assert (api.cores, api.memory_mb, api.architectures) == (1, 2048 * 9 // 10, ("x86_64", "aarch64"))
    three = settings("mcbench_worker", worker_count=3).needs()
    assert (three.cores, three.memory_mb) == (2, 3 * 4096 * 9 // 10)
    assert settings("mcbench_server").needs().cores == 4
    infra = settings("mcbench_infra").needs()
    assert (infra.cores, infra.memory_mb) == (2, (4096 + 2048 + 4096) * 9 // 10)
    assert settings("mcbench_worker", limits={"worker": {"cpus": 8.0, "memory_mb": 16384}}).needs().cores == 8


def test_render_host_must_be_amd64_however_small():
    assert settings("mcbench_render").needs().architectures == ("x86_64",)
    small = settings("mcbench_render", "dev", allow_small=True).needs()
    assert (small.architectures, small.cores, small.memory_mb) == (("x86_64",), 1, 0)


def test_only_https_and_the_fleets_own_ports_are_open():
    def opened(found):
        return {(port.port, port.sources) for port in found.ports()}

    networks = ("10.0.0.0/24",)
    assert opened(settings("mcbench_api")) == {(80, ()), (443, ())}
    assert opened(settings("mcbench_admin")) == {(80, ())}
    assert opened(settings("mcbench_admin", admin_networks=["192.0.2.0/24"])) == {(80, ()), (443, ("192.0.2.0/24",))}
    assert opened(settings("mcbench_worker", "mcbench_server", "mcbench_render", "mcbench_scheduler")) == set()
    assert opened(settings("mcbench_infra")) == set()
    infra = settings("mcbench_infra", internal_address="10.0.0.5", internal_networks=list(networks), redis_port=7379)
    assert opened(infra) == {(5432, networks), (7379, networks), (9000, networks)}


# --- bad ones, and exactly what is said about each ----------------------------------------------------------------------

INFRA, API, ADMIN = ["mcbench_infra"], ["mcbench_infra", "mcbench_api"], ["mcbench_infra", "mcbench_admin"]
WORKER, SERVER = ["mcbench_infra", "mcbench_worker"], ["mcbench_infra", "mcbench_server"]
MAKE_ONE = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"

BAD = {
    "typo": (API, {"mcbench_verison": "1"}, "mcbench_verison: unknown setting on host box, did you mean mcbench_version?"),
    "version latest": (
        API, {"mcbench_version": "latest"},
        "mcbench_version: must not be 'latest': nobody could say what runs, or go back to it on host box, got 'latest', "
        "write mcbench_version = '1.4.0'",
    ),
    "version with a colon": (
        API, {"mcbench_version": "v1:2"}, "mcbench_version: must be a tag such as '1.4.0' on host box, got 'v1:2'",
    ),
    "no version": (
        API, {"mcbench_version": None}, "mcbench_version: is required on host box, write mcbench_version = '1.4.0'",
    ),
    "no registry": (
        WORKER, {"mcbench_registry": None},
        "mcbench_registry: is required on host box, write mcbench_registry = 'registry.example.org'",
    ),
    "registry as URL": (
        API, {"mcbench_registry": "https://registry.example.org/"},
        "mcbench_registry: must be a registry, not a URL on host box, got 'https://registry.example.org/', "
        "write 'registry.example.org'",
    ),
    "registry without a name": (
        API, {"mcbench_registry": "mc-bench"},
        "mcbench_registry: must be a registry, with a path or without, such as 'registry.example.org/team' on host box, "
        "got 'mc-bench'",
    ),
    "the guide's image of the games": (
        SERVER, {"mcbench_minecraft_server_image": "mc-bench-minecraft-server:latest"},
        "mcbench_minecraft_server_image: must name its registry on host box, got 'mc-bench-minecraft-server:latest', "
        "write 'registry.example.org/mc-bench-minecraft-server:latest'",
    ),
    "latest image of the games": (
        SERVER, {"mcbench_minecraft_builder_image": "registry.example.org/builder:latest"},
        "mcbench_minecraft_builder_image: must not be ':latest': nobody could say what runs, or go back to it on host box, "
        "got 'registry.example.org/builder:latest', write a version or a digest",
    ),
    "image without tag": (
        SERVER, {"mcbench_minecraft_server_image": "registry.example.org:5000/games"},
        "mcbench_minecraft_server_image: must have a tag or a digest on host box, got 'registry.example.org:5000/games', "
        "write 'registry.example.org:5000/games:1.4.0'",
    ),
    "image of a user of Docker Hub": (
        API, {"mcbench_images": {"api": "mcbench/api:1"}},
        "mcbench_images.api: must name its registry on host box, got 'mcbench/api:1', write 'registry.example.org/mcbench/api:1'",
    ),
    "image as URL": (
        INFRA, {"mcbench_object_image": "https://registry.example.org/s3:1"},
        "mcbench_object_image: must be an image, not a URL on host box, got 'https://registry.example.org/s3:1', "
        "write 'registry.example.org/s3:1'",
    ),
    "image with a short digest": (
        INFRA, {"mcbench_redis_image": "docker.io/library/redis@sha256:abc"},
        "mcbench_redis_image: must be an image such as 'registry.example.org/team/name:1.4.0' or '…@sha256:…' on host box, "
        "got 'docker.io/library/redis@sha256:abc'",
    ),
    "image of no component": (
        API, {"mcbench_images": {"admin-apy": "registry.example.org/a:1"}},
        "mcbench_images.admin-apy: must be a component of mcbench on host box, got 'admin-apy', did you mean admin-api?",
    ),
    "image of a service": (
        API, {"mcbench_images": {"postgres": "registry.example.org/a:1"}},
        "mcbench_images.postgres: must not stand here on host box, write mcbench_postgres_image",
    ),
    "no S3 server": (
        INFRA, {"mcbench_object_image": None},
        "mcbench_object_image: is required where the object store runs on host box, "
        "write the image of an S3 server, or mcbench_object_external = True",
    ),
    "no image of the games": (
        SERVER, {"mcbench_minecraft_builder_image": None},
        "mcbench_minecraft_builder_image: is required on hosts of mcbench_server on host box, "
        "write mcbench_minecraft_builder_image = 'registry.example.org/…:1.4.0'",
    ),
    "the guide's password": (
        INFRA, {"mcbench_object_store_secret_key": "env:WEAK"},
        f"mcbench_object_store_secret_key: must not be a value that guides print on host box, {MAKE_ONE}",
    ),
    "the guide's access key": (
        INFRA, {"mcbench_object_store_access_key": "env:WEAK"},
        "mcbench_object_store_access_key: must not be a value that guides print on host box",
    ),
    "placeholder": (
        ["mcbench_infra", "mcbench_admin_worker"], {"mcbench_anthropic_api_key": "env:PLACEHOLDER"},
        "mcbench_anthropic_api_key: must not be a value that guides print on host box",
    ),
    "password in clear": (
        INFRA, {"mcbench_postgres_password": "password"},
        "mcbench_postgres_password: must be a reference to a secret, not the secret itself on host box, "
        "write a reference: 'env:NAME', 'file:PATH#KEY', 'sops:PATH#KEY' or 'age:PATH#KEY'",
    ),
    "short password": (
        INFRA, {"mcbench_redis_password": "env:SHORT"},
        f"mcbench_redis_password: must have at least 16 characters, has 10 on host box, {MAKE_ONE}",
    ),
    "password that a configuration file cannot hold": (
        INFRA, {"mcbench_redis_password": "env:QUOTED"},
        f"mcbench_redis_password: must be printable ASCII without spaces, quotes and backslashes on host box, {MAKE_ONE}",
    ),
    "short secret key": (
        API, {"mcbench_secret_key": "env:MCBENCH_FLOWER_PASSWORD"},
        f"mcbench_secret_key: must have at least 32 characters, has 17 on host box, {MAKE_ONE}",
    ),
    "no secret key": (
        API, {"mcbench_secret_key": None},
        "mcbench_secret_key: is required on host box, write mcbench_secret_key = 'env:MCBENCH_SECRET_KEY'",
    ),
    "no password of Redis": (
        WORKER, {"mcbench_redis_password": None},
        "mcbench_redis_password: is required on host box, write mcbench_redis_password = 'env:MCBENCH_REDIS_PASSWORD'",
    ),
    "broker of another kind": (
        WORKER, {"mcbench_celery_broker_url": "env:NO_URL"},
        "mcbench_celery_broker_url: must be a redis:// or rediss:// URL on host box",
    ),
    "no domain": (
        API, {"mcbench_api_domain": None},
        "mcbench_api_domain: is required on hosts of mcbench_api on host box, write mcbench_api_domain = 'api.example.org'",
    ),
    "no domain of the admin-api": (
        ADMIN, {"mcbench_admin_domain": None},
        "mcbench_admin_domain: is required on hosts of mcbench_admin on host box, write mcbench_admin_domain = 'admin.example.org'",
    ),
    "no domain of Flower": (
        ADMIN, {"mcbench_flower_domain": None},
        "mcbench_flower_domain: is required on hosts of mcbench_admin on host box, "
        "write mcbench_flower_domain = 'flower.example.org', or mcbench_flower_enabled = False",
    ),
    "one name for two sites": (
        ADMIN, {"mcbench_flower_domain": "admin.example.org"},
        "mcbench_api_domain: must be a name of its own for each site on host box, got 'admin.example.org'",
    ),
    "no password of Flower": (
        ADMIN, {"mcbench_flower_password": None},
        "mcbench_flower_password: is required on host box, "
        "write mcbench_flower_password = 'env:MCBENCH_FLOWER_PASSWORD'",
    ),
    "user of Flower with a colon": (
        ADMIN, {"mcbench_flower_user": "a:b"},
        "mcbench_flower_user: must be a name without spaces and colons on host box, got 'a:b'",
    ),
    "admin for everybody": (
        ADMIN, {"mcbench_admin_networks": ["0.0.0.0/0"]},
        "mcbench_admin_networks[0]: must not be the whole internet on host box, got '0.0.0.0/0', name the networks of the admins",
    ),
    "any origin": (
        API, {"mcbench_cors_allowed_origin": "*"},
        "mcbench_cors_allowed_origin: must not be '*': any site could act as its visitor on host box, got '*', "
        "write the frontend's origin",
    ),
    "origin with a path": (
        API, {"mcbench_cors_allowed_origin": "https://a.example.org/"},
        "mcbench_cors_allowed_origin: must be origins such as 'https://frontend.example.org', comma between them, no path "
        "on host box, got 'https://a.example.org/'",
    ),
    "origin in clear": (
        API, {"mcbench_cors_allowed_origin": "http://a.example.org"},
        "mcbench_cors_allowed_origin: must be https:// outside the groups lab and dev on host box, got 'http://a.example.org'",
    ),
    "no origin": (
        API, {"mcbench_cors_allowed_origin": None},
        "mcbench_cors_allowed_origin: is required on hosts of mcbench_api on host box, "
        "write mcbench_cors_allowed_origin = 'https://frontend.example.org'",
    ),
    "everybody an admin": (
        API, {"mcbench_auto_grant_admin_role": True},
        "mcbench_auto_grant_admin_role: must be False outside the groups lab and dev on host box, got True",
    ),
    "small in production": (
        API, {"mcbench_allow_small": True},
        "mcbench_allow_small: must be False outside the groups lab and dev on host box, got True",
    ),
    "limit below the minimum": (
        WORKER, {"mcbench_limits": {"worker": {"memory_mb": 512}}},
        "mcbench_limits.worker.memory_mb: must be at least 4096 on host box, got 512",
    ),
    "cores below the minimum": (
        WORKER, {"mcbench_limits": {"server-worker": {"cpus": 2.0}}},
        "mcbench_limits.server-worker.cpus: must be at least 4 on host box, got 2.0",
    ),
    "typo in a limit": (
        WORKER, {"mcbench_limits": {"worker": {"memory": 512}}},
        "mcbench_limits.worker.memory: unknown setting on host box, did you mean mcbench_limits.worker.memory_mb?",
    ),
    "half a login": (
        API, {"mcbench_github_client_id": "abc"},
        "mcbench_github_client_secret: is required with mcbench_github_client_id on host box",
    ),
    "tokens that end at once": (
        API, {"mcbench_access_token_expire_minutes": 1440},
        "mcbench_refresh_token_expire_minutes: must be more than mcbench_access_token_expire_minutes (1440) on host box, got 1440",
    ),
    "object store in clear across the internet": (
        WORKER, {"mcbench_object_external": True, "mcbench_object_store_dsn": "s3.amazonaws.com:443"},
        "mcbench_object_store_secure: must be True towards s3.amazonaws.com:443 on host box, got False",
    ),
    "object store as URL": (
        WORKER, {"mcbench_object_store_dsn": "https://s3.amazonaws.com:443"},
        "mcbench_object_store_dsn: must be host:port, without a scheme on host box, got 'https://s3.amazonaws.com:443', "
        "write 's3.amazonaws.com:443'",
    ),
    "Redis in clear across the internet": (
        WORKER, {"mcbench_redis_external": True, "mcbench_redis_host": "redis.example.com"},
        "mcbench_redis_tls: must be True towards redis.example.com on host box, got False",
    ),
    "database in clear across the internet": (
        WORKER,
        {"mcbench_postgres_external": True, "mcbench_postgres_host": "8.8.8.8", "mcbench_postgres_sslmode": "prefer"},
        "mcbench_postgres_sslmode: must be 'require' or stricter towards 8.8.8.8 on host box, got 'prefer'",
    ),
    "TLS to our own Redis": (
        WORKER, {"mcbench_redis_tls": True},
        "mcbench_redis_tls: must be False: this deploy's Redis speaks no TLS on host box, got True, "
        "write mcbench_redis_external = True",
    ),
    "no way to the database": (
        ["mcbench_worker"], {**ELSEWHERE, "mcbench_postgres_host": None},
        "mcbench_postgres_host: is required on a host without postgres on host box, got 'postgres', "
        "write the address of the host that runs it, or where mcbench_postgres_external is",
    ),
    "published to nobody": (
        INFRA, {"mcbench_internal_address": "10.0.0.5"},
        "mcbench_internal_networks: is required with mcbench_internal_address on host box, "
        "write mcbench_internal_networks = ['10.0.0.0/24']",
    ),
    "published on every address": (
        INFRA, {"mcbench_internal_address": "0.0.0.0"},
        "mcbench_internal_address: must be one address, not all of them on host box, got '0.0.0.0', "
        "write the address in the private network",
    ),
    "published on a public address": (
        INFRA, {"mcbench_internal_address": "8.8.8.8"},
        "mcbench_internal_address: must be an address in a private network: what goes there is not encrypted on host box, "
        "got '8.8.8.8'",
    ),
    "published to the internet": (
        INFRA, {"mcbench_internal_networks": ["0.0.0.0/0"]},
        "mcbench_internal_networks[0]: must be a private network: what goes there is not encrypted on host box, got '0.0.0.0/0'",
    ),
    "one port for two": (
        INFRA,
        {"mcbench_internal_address": "10.0.0.5", "mcbench_internal_networks": ["10.0.0.0/24"], "mcbench_redis_port": 5432},
        "mcbench_object_store_dsn: must have a port of its own: postgres, redis and object store share the host on host box, "
        "got 'object:9000'",
    ),
    "server worker among others": (
        SERVER, {"mcbench_server_shares_host": False},
        "mcbench_server_shares_host: must be True for a host of mcbench_server that is also in mcbench_infra on host box, "
        "got False, better give it a host of its own: who has its Docker socket has the secrets of all of them",
    ),
    "logs to nowhere": (
        WORKER, {"mcbench_log_driver": "gelf", "mcbench_humanize_logs": False},
        "mcbench_log_address: is required when mcbench_log_driver is 'gelf' on host box, "
        "write mcbench_log_address = 'udp://logs.internal:12201'",
    ),
    "logs for people to a collector": (
        WORKER, {"mcbench_log_driver": "gelf", "mcbench_log_address": "udp://logs.internal:12201"},
        "mcbench_humanize_logs: must be False when mcbench_log_driver is 'gelf': collectors read JSON on host box, got True",
    ),
    "collector that nothing is sent to": (
        WORKER, {"mcbench_log_address": "udp://logs.internal:12201"},
        "mcbench_log_address: must be empty when mcbench_log_driver is 'json-file' on host box, got 'udp://logs.internal:12201'",
    ),
    "no command that says how busy": (
        WORKER, {"mcbench_quiesce_command": ["stop-taking"]},
        "mcbench_busy_command: is required with mcbench_quiesce_command on host box",
    ),
    "variable of the deploy": (
        WORKER, {"mcbench_extra_env": {"worker": {"LOG_LEVEL": "DEBUG"}}},
        "mcbench_extra_env.worker.LOG_LEVEL: is set by the deploy on host box, see the settings of mcbench",
    ),
    "secret among plain variables": (
        WORKER, {"mcbench_extra_env": {"admin-worker": {"XAI_API_KEY": "x"}}},
        "mcbench_extra_env.admin-worker.XAI_API_KEY: looks like a secret on host box, "
        "write mcbench_extra_secret_env = {'admin-worker': {'XAI_API_KEY': 'env:XAI_API_KEY'}}",
    ),
    "collector that containers wait for": (
        WORKER, {"mcbench_log_driver": "syslog", "mcbench_log_address": "tcp://logs.internal:514", "mcbench_humanize_logs": False},
        "mcbench_log_address: must begin with udp:// when mcbench_log_driver is 'syslog': over TCP the engine starts no container "
        "while the collector is away on host box, got 'tcp://logs.internal:514', fluentd ships over TCP and waits for nobody",
    ),
    "variable of a database": (
        WORKER, {"mcbench_extra_env": {"postgres": {"TZ": "UTC"}}},
        "mcbench_extra_env.postgres: must be a component of the application on host box",
    ),
    "no worker": (WORKER, {"mcbench_worker_count": 0}, "mcbench_worker_count: must be at least 1 on host box, got 0"),
    "nothing migrates": (WORKER, {"mcbench_migrate_command": []}, "mcbench_migrate_command: must not be empty on host box, got []"),
    "bucket in capitals": (
        WORKER, {"mcbench_internal_object_bucket": "Bench"},
        "mcbench_internal_object_bucket: must be the name of a bucket: 3 to 63 small letters, digits, . and - on host box, got 'Bench'",
    ),
    "no password of the backups": (
        INFRA, {"backup_password": None},
        "backup_password: is required to back up mcbench on host box, "
        "write backup_password = 'env:BACKUP_PASSWORD', or backup_enabled = False",
    ),
    "no password of the role for backups": (
        INFRA, {"mcbench_postgres_backup_password": None},
        "mcbench_postgres_backup_password: is required to back up mcbench on host box, "
        "write mcbench_postgres_backup_password = 'env:MCBENCH_POSTGRES_BACKUP_PASSWORD', or backup_enabled = False",
    ),
    "one password for two": (
        INFRA, {"mcbench_postgres_backup_password": "env:MCBENCH_POSTGRES_PASSWORD"},
        "mcbench_postgres_backup_password: must not be mcbench_postgres_password on host box",
    ),
    "wildcard": (
        API, {"mcbench_api_extra_domains": ["*.example.org"]},
        "mcbench_api_extra_domains: must hold no wildcard when certificate_challenge is 'http-01' on host box, "
        "got '*.example.org', write certificate_challenge = 'dns-01'",
    ),
    "health page for everybody": (
        API, {"mcbench_health_networks": ["0.0.0.0/0"]},
        "mcbench_health_networks[0]: must not be the whole internet on host box, got '0.0.0.0/0', name the networks of the admins",
    ),
    "health path twice": (
        API, {"mcbench_health_path": "/mcbench-health"},
        "mcbench_health_path: must not be the path of the host's health page on host box, got '/mcbench-health'",
    ),
    "no packets for containers": (
        API, {"base_sysctl": {"net.ipv4.ip_forward": "0"}},
        "base_sysctl.net.ipv4.ip_forward: must not be 0: containers need it on host box, got '0'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("groups", "data", "line"), BAD.values(), ids=BAD)
def test_bad_setting_is_said_in_one_line(groups, data, line):
    assert report(groups, data) == [line]


def test_good_settings_have_no_fault():
    assert report(ALL, {}) == []


def test_unsafe_values_are_for_experiments():
    for group in ("lab", "dev"):
        data = {
            "mcbench_auto_grant_admin_role": True, "mcbench_allow_small": True,
            "mcbench_cors_allowed_origin": "http://localhost:5173", "mcbench_limits": {"worker": {"memory_mb": 64}},
        }  # fmt: skip
        assert report([*ALL, group], data) == []


# --- rules between hosts ----------------------------------------------------------------------------------------------

BOXES = {
    "infra": (["mcbench_infra"], {"mcbench_internal_address": "10.0.0.5", "mcbench_internal_networks": ["10.0.0.0/24"]}),
    "api1": (["mcbench_api"], ELSEWHERE),
    "api2": (["mcbench_api"], ELSEWHERE),
    "beat": (["mcbench_scheduler"], ELSEWHERE),
}


def fleet_report(boxes):
    hosts = [
        (name, groups, {**GOOD, "ssh_hostname": f"192.0.2.{number}", **data})
        for number, (name, (groups, data)) in enumerate(boxes.items(), 1)
    ]
    try:
        load_fleet(hosts)
    except SettingsError as error:
        return str(error).splitlines()
    return []


def without(name):
    return {key: value for key, value in BOXES.items() if key != name}


def changed(name, **data):
    groups, own = BOXES[name]
    return BOXES | {name: (groups, {**own, **{f"mcbench_{key}": value for key, value in data.items()}})}


def test_good_fleet_has_no_fault():
    assert fleet_report(BOXES) == []


@pytest.mark.parametrize(
    ("boxes", "lines"),
    [
        (
            without("infra"),
            [
                f"mcbench_{service}_external: must be True when no host of mcbench_infra runs {service} on host {user}, got False"
                for service, user in (("postgres", "api1"), ("redis", "api1"), ("object", "api1"))
            ],
        ),
        (
            BOXES | {"infra2": (["mcbench_infra"], {"mcbench_services": ["redis"]})},
            [
                "mcbench_services: must not hold 'redis' on two hosts: infra runs it already on host infra2, "
                "write which of the three run where"
            ],
        ),
        (
            BOXES | {"infra": (["mcbench_infra"], {})},
            [
                f"mcbench_internal_address: is required: api1 needs {service} on host infra, "
                "write the host's address in the private network"
                for service in SERVICES
            ],
        ),
        (
            BOXES | {"beat2": (["mcbench_scheduler"], ELSEWHERE)},
            ["mcbench_scheduler: must hold one host: beat runs it already on host beat2"],
        ),
        (changed("api2", batch=2), ["mcbench_batch: must be the same as on host infra on host api2, got 2"]),
        (
            changed("api2", secret_key="env:OTHER"),
            ["mcbench_secret_key: must be the same as on host infra on host api2"],
        ),
    ],
    ids=["no infra", "two of one service", "infra that is not reached", "two schedulers", "batches", "secret keys"],
)
def test_fault_between_hosts(boxes, lines):
    assert fleet_report(boxes) == lines


def test_host_that_migrates_is_one_of_the_apis():
    boxes = {name: (groups, {**data, "mcbench_migrate_host": "api3"}) for name, (groups, data) in BOXES.items()}
    assert fleet_report(boxes) == [
        "mcbench_migrate_host: must be a host of mcbench_api on hosts api1, api2, beat, infra, got 'api3', write one of api1, api2"
    ]


def test_services_may_be_on_hosts_of_their_own():
    infra, place = BOXES["infra"]
    split = {
        "infra": (infra, {**place, "mcbench_services": ["postgres", "redis"]}),
        "store": (infra, {**place, "mcbench_services": ["object"]}),
    }
    assert fleet_report(BOXES | split) == []


@pytest.mark.parametrize(
    ("group", "line"),
    [
        ("mcbench_rendr", "mcbench_rendr: unknown group, did you mean mcbench_render?"),
        ("mcbench_workers", "mcbench_workers: unknown group, did you mean mcbench_worker?"),
        (
            "mcbench_admin_networks",
            "mcbench_admin_networks: a list in an inventory file is a group of hosts, here of box, "
            "write mcbench_admin_networks in group_data or in a host's data",
        ),
    ],
)
def test_group_that_is_no_role_is_refused(group, line):
    assert fleet_report({"box": ([group, "prod"], {})}) == [line]


def test_gateway_on_a_server_host_is_refused():
    gateway = {
        "gateway_domain": "gateway.example.org", "gateway_repository": "https://git.example.org/g.git",
        "gateway_version": "v1.0.0", "gateway_admin_api_key": "env:MCBENCH_SECRET_KEY",
        "mcbench_server_shares_host": False, **ELSEWHERE,
    }  # fmt: skip
    assert report(["mcbench_server", "gateway"], gateway) == [
        "mcbench_server_shares_host: must be True for a host of mcbench_server that is also in gateway on host box, got False, "
        "better give it a host of its own: who has its Docker socket has the secrets of all of them"
    ]


@pytest.mark.parametrize("inventory", ["prod", "staging", "dev", "lab_mcbench"])
def test_sample_inventory_has_every_role_and_no_secret(inventory):
    done = subprocess.run(
        [Path(sys.executable).with_name("pyinfra"), "--json", f"inventories/{inventory}.py", "debug-inventory"],
        cwd=ROOT, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    hosts = json.loads(done.stdout)
    assert {group for host in hosts for group in host["groups"]} >= set(GROUPS) - {"mcbench_scheduler"}
    for host in hosts:
        for key in ("postgres_password", "redis_password", "secret_key", "flower_password", "object_store_secret_key"):
            assert host["data"].get(f"mcbench_{key}", "env:").startswith("env:")


# --- what containers are to be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", COMPONENTS)
def test_container_is_one_that_the_engine_takes(component):
    spec = deploy.spec(settings(), component)
    assert container.faults(deploy.name(component), spec) == []
    cpus, memory_mb = (COMPONENTS[component].cpus, COMPONENTS[component].memory_mb)
    assert (spec.cpus, spec.memory_mb) == (cpus, memory_mb)
    assert (spec.cap_drop, spec.no_new_privileges) == (("ALL",), True)
    assert spec.log.max_size_mb > 0


def test_only_the_server_worker_has_the_socket():
    mounts = {name: deploy.spec(settings(), name).mounts for name in COMPONENTS}
    assert [name for name, those in mounts.items() if any("docker.sock" in mount.source for mount in those)] == [
        "server-worker"
    ]
    assert {name: those[0].source for name, those in mounts.items() if those and name != "server-worker"} == {
        "postgres": "mcbench-postgres",
        "redis": "mcbench-redis",
        "object": "mcbench-object",
    }


def test_games_have_a_network_of_their_own_that_only_the_server_worker_shares():
    on = {name: [network.name for network in deploy.spec(settings(), name).networks] for name in COMPONENTS}
    assert on.pop("server-worker") == ["mcbench", "mcbench-jobs"]
    assert set(map(tuple, on.values())) == {("mcbench",)}


def test_rendering_is_for_amd64():
    platforms = {name: deploy.spec(settings(), name).platform for name in COMPONENTS}
    assert {name for name, platform in platforms.items() if platform} == {"render-worker"}
    assert platforms["render-worker"] == "linux/amd64"
    assert settings().image("render-worker") not in deploy.images(settings())


def test_nothing_is_published_but_flower_on_loopback_and_services_in_private():
    found = settings(internal_address="10.0.0.5", internal_networks=["10.0.0.0/24"], postgres_port=6432)
    published = {
        name: [(one.address, one.port, one.container_port) for one in deploy.spec(found, name).publish] for name in COMPONENTS
    }
    assert {name: those for name, those in published.items() if those} == {
        "admin-flower": [("127.0.0.1", 5555, 5555)],
        "postgres": [("10.0.0.5", 6432, 5432)],
        "redis": [("10.0.0.5", 6379, 6379)],
        "object": [("10.0.0.5", 9000, 9000)],
    }
    alone = {name: [(one.address, one.port) for one in deploy.spec(settings(), name).publish] for name in SERVICES}
    assert alone == {"postgres": [], "redis": [], "object": [("127.0.0.1", 9000)]}  # for the host's own backups
    assert deploy.bucket(found, "b").endpoint == "http://10.0.0.5:9000"
    assert deploy.bucket(settings(), "b").endpoint == "http://127.0.0.1:9000"


def test_redis_keeps_every_task():
    text = " ".join(deploy.spec(settings(), "redis").command)
    for line in ("appendonly yes", "maxmemory 1536mb", "maxmemory-policy noeviction", 'requirepass "$REDIS_PASSWORD"'):
        assert line in text
    assert SECRETS["MCBENCH_REDIS_PASSWORD"] not in repr(deploy.spec(settings(), "redis"))


def test_migration_is_of_the_new_image_and_publishes_nothing():
    spec = deploy.migration(settings(version="1.5.0"))
    assert spec.image == "registry.example.org/mc-bench-api:1.5.0"
    assert spec.command == ("alembic", "upgrade", "head")
    assert (spec.publish, spec.health, spec.restart) == ((), None, "no")


def test_logs_go_to_the_collector():
    log = deploy.spec(settings(log_driver="gelf", log_address="udp://logs.internal:12201", humanize_logs=False), "api").log
    assert (log.driver, log.address) == ("gelf", "udp://logs.internal:12201")


def test_admin_sites_are_for_declared_networks_and_the_api_for_all():
    found = settings(admin_networks=["10.1.0.0/16"], health_networks=["10.2.0.0/16"])
    for component in ("admin-api", "admin-flower"):
        own = [each for each in deploy.locations(found, component) if "/mcbench-health" not in each.path]
        assert [each.allowed for each in own] == [("127.0.0.1", "::1", "10.1.0.0/16")] * len(own)
    everything, health, *page = deploy.locations(found, "api")
    assert (everything.networks, health.networks) == (None, None)
    assert {each.path: each.allowed for each in page} == {
        "/mcbench-health": ("127.0.0.1", "::1", "10.2.0.0/16"),
        "/mcbench-health.json": ("127.0.0.1", "::1", "10.2.0.0/16"),
    }
    assert deploy.locations(settings(), "api")[-1].allowed == ("127.0.0.1", "::1")
    assert (everything.websocket, everything.timeout_seconds) == (True, 300)
    assert everything.rate_limit is not None
    assert health.rate_limit is None
    assert deploy.locations(settings(), "admin-api")[0].allowed == ("127.0.0.1", "::1")


@pytest.mark.parametrize("component", ["api", "admin-api", "admin-flower"])
def test_site_is_one_that_nginx_takes(component):
    found = settings()
    wanted = nginx.Site(
        server_names=("api.example.org",),
        locations=tuple(deploy.locations(found, component)),
        upstreams=tuple(deploy.upstreams(component)),
    )
    assert nginx.site_faults(deploy.name(component), wanted) == []


def test_own_commands_may_ask_a_worker():
    assert deploy.ask_worker(settings(quiesce_command=["stop-taking"], busy_command=["how-many"])) == (
        ("stop-taking",),
        ("how-many",),
    )
    quiesce, busy = deploy.ask_worker(settings())
    assert (quiesce[-1], busy[-1]) == ("quiesce", "busy")


# --- the health of a host ---------------------------------------------------------------------------------------------


def its_container(component: str, state: str = "running", health: str = "healthy", release: str = "", **more: object) -> dict[str, object]:
    labels = {"hostwright.container": f"mcbench-{component}", "hostwright.release": release}
    if release:
        labels |= {"hostwright.component": f"mcbench-{component}", "hostwright.container": f"mcbench-{component}-{release}-1"}
    return {
        "Name": f"/mcbench-{component}",
        "State": {"Status": state, "Running": state == "running", "Health": {"Status": health}, "StartedAt": "2026-11-25T10:00:00.5Z"},
        "Config": {"Image": f"registry/mc-bench-{component}:1", "Labels": labels},
        "RestartCount": 2,
        **more,
    }


@pytest.fixture
def health(tmp_path, monkeypatch):
    """The program of a host with PostgreSQL and two workers of release ``new``, and what its engine says."""
    module = types.ModuleType("mcbench_health")
    exec(compile(mcbench_health.program_text(), "mcbench-health", "exec"), module.__dict__)
    (tmp_path / "config.json").write_text(mcbench_health.config_text("box", ("postgres", "worker")))
    (tmp_path / "mcbench-worker").mkdir()
    (tmp_path / "mcbench-worker" / "current.json").write_text('{"release": "new", "count": 2}')
    monkeypatch.setitem(module.__dict__, "CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setitem(module.__dict__, "STORE", str(tmp_path))

    def look(*there: dict[str, object]) -> dict[str, object]:
        monkeypatch.setitem(module.__dict__, "containers", lambda label: list(there))
        found = module.__dict__["host_health"]()
        return {**found, "status": module.__dict__["status_of"](found), "page": module.__dict__["page"](found)}

    look.module = module
    return look


def test_host_is_well_when_all_of_the_release_that_serves_are(health):
    workers = [its_container("worker", release="new"), its_container("worker", release="new")]
    found = health(its_container("postgres"), *workers, its_container("worker", "exited", "", release="old"))
    assert (found["well"], found["status"]) == (True, 0)
    assert "worker         well     2 of 2  release new\n" in found["page"]
    assert "mcbench-postgres  registry/mc-bench-postgres:1  running and healthy  2 restarts, since 2026-11-25T10:00:00Z" in found["page"]


@pytest.mark.parametrize(
    ("there", "unwell"),
    [
        ([its_container("postgres"), its_container("worker", release="new")], "worker"),
        ([its_container("postgres"), *[its_container("worker", release="old")] * 2], "worker"),
        ([its_container("postgres", health="unhealthy"), *[its_container("worker", release="new")] * 2], "postgres"),
        ([its_container("postgres", "exited", ""), *[its_container("worker", release="new")] * 2], "postgres"),
        ([its_container("worker", release="new")] * 2, "postgres"),
    ],
)
def test_host_is_not_well_when_one_component_is_not(health, there, unwell):
    found = health(*there)
    assert (found["well"], found["status"]) == (False, 1)
    assert [one["component"] for one in found["components"] if not one["well"]] == [unwell]
    assert "NOT WELL" in found["page"].splitlines()[0]


def test_host_whose_engine_is_silent_is_not_well(health):
    def silent(label):
        raise health.module.__dict__["EngineError"]("no Docker engine answers on this host: gone")

    health.module.__dict__["containers"] = silent
    found = health.module.__dict__["host_health"]()
    assert (found["well"], health.module.__dict__["status_of"](found)) == (False, 2)
    assert "no Docker engine answers" in health.module.__dict__["page"](found)


@pytest.mark.parametrize(("path", "kind"), [("/mcbench-health", "text/plain"), ("/mcbench-health.json?x=1", "application/json")])
def test_page_is_answered_over_a_socket(tmp_path, path, kind):
    """The real program, without an engine: it says so, and that is 503."""
    program, config = tmp_path / "mcbench-health", tmp_path / "config.json"
    config.write_text(mcbench_health.config_text("box", ("postgres",)))
    program.write_text(mcbench_health.program_text().replace(mcbench_health.CONFIG, str(config)))
    done = subprocess.run(
        [sys.executable, "-I", str(program), "--http"], input=f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n", text=True,
        capture_output=True, env={"DOCKER_HOST": "unix:///nonexistent"}, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.partition("\n\n")
    assert head.startswith("HTTP/1.0 503 ")
    assert f"Content-Type: {kind}" in head
    assert "no Docker engine answers" in body


# --- services of somebody else's --------------------------------------------------------------------------------------

OUTSIDE = {
    "postgres_external": True, "postgres_host": "10.9.0.1", "redis_external": True, "redis_host": "10.9.0.1", "redis_tls": True,
    "redis_username": "fleet", "object_external": True, "object_store_dsn": "10.9.0.1:9443", "object_store_secure": True,
}  # fmt: skip
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def test_each_host_asks_the_external_services_that_it_uses():
    def kinds(*groups, **more):
        return [(one["kind"], one["host"], one["port"]) for one in mcbench_external.questions(settings(*groups, **{**OUTSIDE, **more}))]

    postgres, redis, store = ("postgres", "10.9.0.1", 5432), ("redis", "10.9.0.1", 6379), ("object", "10.9.0.1", 9443)
    assert kinds("mcbench_worker") == [postgres, redis]
    assert kinds("mcbench_api", "mcbench_worker") == [postgres, redis, store]
    assert kinds("mcbench_api", postgres_external=False, redis_external=False, redis_tls=False, redis_username="default") == [store]
    assert kinds("mcbench_infra") == []
    assert mcbench_external.questions(settings()) == []
    asked = mcbench_external.questions(settings("mcbench_worker", **OUTSIDE, celery_broker_url="env:BROKER"))
    assert [(one["name"], one["host"], one["user"], one["tls"]) for one in asked[1:]] == [
        ("Redis", "10.9.0.1", "fleet", True), ("the broker", "broker.internal", "queue", False),
    ]  # fmt: skip
    assert [one["password"].unmask() for one in asked] == ["postgres-password-1", "redis/pass@word#1", "p#1"]


def test_private_ca_of_external_services_reaches_containers():
    found = settings(*[group for group in ALL if group != "mcbench_infra"], **ELSEWHERE_OUTSIDE, external_ca=PEM)
    for component in found.applications:
        spec = deploy.spec(found, component)
        assert container.faults(deploy.name(component), spec) == []
        assert [(one.source, one.target, one.read_only) for one in spec.mounts if "docker.sock" not in one.source] == [
            ("/etc/hostwright/mcbench-ca", "/etc/mcbench-ca", True)
        ]
        assert found.environment(component)["SSL_CERT_FILE"] == "/etc/mcbench-ca/bundle.pem"
    other = settings(*[group for group in ALL if group != "mcbench_infra"], **ELSEWHERE_OUTSIDE, external_ca=PEM.replace("MIIB", "MIIC"))
    assert container.spec_hash(deploy.spec(found, "api")) != container.spec_hash(deploy.spec(other, "api"))
    assert report(["mcbench_worker"], {"mcbench_external_ca": PEM, **ELSEWHERE}) == [
        "mcbench_external_ca: must be empty when no service is external on host box, this deploy's own services speak no TLS"
    ]
    assert report(["mcbench_worker"], {"mcbench_external_ca": "/etc/ca.pem", "mcbench_redis_external": True, **ELSEWHERE}) == [
        "mcbench_external_ca: must be the text of a certificate in PEM form on host box"
    ]


ELSEWHERE_OUTSIDE = {key: value for key, value in OUTSIDE.items() if key != "redis_username"}


@pytest.fixture(scope="module")
def external() -> dict[str, object]:
    return runpy.run_path(str(ROOT / "files/mcbench/external.py"))


@contextlib.contextmanager
def speaker(*answers: bytes):
    """A server that answers the n-th thing it is sent with the n-th of these; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionError):
                for answer in answers:
                    connection.recv(4096)
                    connection.sendall(answer)
                connection.recv(4096)

        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


def told(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


READY = told(b"R", bytes(4)) + told(b"S", b"server_version\0%s\0") + told(b"Z", b"I")


@pytest.mark.parametrize(
    ("kind", "more", "answers", "fault"),
    [
        ("redis", {}, (b"+OK\r\n", b"$6\r\nrole:m\r\n"), "must be the primary, is a replica"),
        ("redis", {}, (b"+OK\r\n", b"$11\r\nrole:master\r\n"), ""),
        ("redis", {}, (b"+OK\r\n", b"-NOPERM no\r\n"), ""),
        ("redis", {}, (b"-WRONGPASS invalid username-password pair\r\n",), "WRONGPASS invalid username-password pair"),
        ("redis", {}, (b"+OK\r\n", b"$17\r\ncluster_enabled:1\r\n"), "must not be a cluster: Celery does not work with one"),
        (
            "redis", {}, (b"+OK\r\n", b"$40\r\nmaxmemory:9\r\nmaxmemory_policy:allkeys-lru\r\n"),
            "forgets tasks when its memory is full (maxmemory-policy allkeys-lru): must be noeviction",
        ),
        ("redis", {"tls": True}, (b"-ERR Protocol error\r\n",), "does not answer with TLS: WRONG_VERSION_NUMBER"),
        ("postgres", {"sslmode": "require"}, (b"N",), "offers no TLS, and mcbench_postgres_sslmode is 'require'"),
        ("postgres", {"sslmode": "prefer"}, (b"N", READY.replace(b"%s", b"17")), ""),
        ("postgres", {}, (READY.replace(b"%s", b"15"),), "must be PostgreSQL 16 or newer, is 15"),
        ("postgres", {}, (told(b"E", b"SFATAL\0Mno database \"x\"\0\0"),), 'no database "x"'),
        ("object", {}, (b"HTTP/1.1 403 No\r\n\r\n",), "refuses the access key, or bucket in to it"),
        ("object", {}, (b"HTTP/1.1 404 No\r\n\r\n",), "has no bucket in: make it there"),
        ("object", {}, (b"HTTP/1.1 200 OK\r\n\r\n",), ""),
    ],
)  # fmt: skip
def test_fault_of_an_external_service_is_said(external, kind, more, answers, fault):
    questions = {
        "postgres": {"user": "u", "password": "p", "database": "d", "sslmode": "disable"},
        "redis": {"user": "default", "password": "p", "tls": False},
        "object": {"access": "a", "secret": "s", "tls": False, "buckets": ["in"]},
    }
    answers = tuple(answer.replace(b"%s", b"17") for answer in answers)
    if kind == "redis" and answers[-1].startswith(b"$"):
        _, _, body = answers[-1].partition(b"\r\n")
        answers = (*answers[:-1], b"$%d\r\n%s\r\n" % (len(body), body))
    with speaker(*answers) as port:
        question = {"kind": kind, "name": kind, "host": "127.0.0.1", "port": port, **questions[kind], **more}
        assert external["fault_of"](question, "") == fault


def test_external_service_that_is_away_is_said(external):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    question = {"kind": "redis", "host": "127.0.0.1", "port": port, "user": "default", "password": "p", "tls": False}
    assert external["fault_of"](question, "") == "does not answer: [Errno 111] Connection refused"


# --- what a host should not run any more ------------------------------------------------------------------------------


def test_what_is_there_and_should_not_be_is_found_and_goes_in_order():
    found = mcbench_retired.parse(
        [
            "container|mcbench-worker|mcbench-worker-0123456789ab-1||Up 3 hours (healthy)",
            "container|mcbench-api|mcbench-api-migrate|migrate|Exited (0) 3 hours ago",
            "container||mcbench-scheduler||Exited (1) 2 hours ago",
            "container||mcbench-postgres||Up 3 hours",
            "container||mcbench-redis||Exited (0) 1 hour ago",
            "container|shop-worker|shop-worker-1||Up 3 hours",
            "file|/var/lib/hostwright/replicas/mcbench-admin-api/current.json",
            "file|/etc/nginx/sites-enabled/mcbench-api.conf",
            "file|/etc/nginx/sites-enabled/shop.conf",
            "file|/etc/hostwright/backup/mcbench-postgres.json",
            "file|/etc/hostwright/mcbench-health.json",
        ]
    )
    assert found.running == {"worker", "postgres"}
    assert found.there == {"worker", "scheduler", "postgres", "redis", "admin-api"}
    assert (found.sites, found.sources, found.health) == ({"api"}, {"mcbench-postgres"}, True)
    assert mcbench_retired.leftovers(found, ()) == ["api", "admin-api", "scheduler", "worker"]
    assert mcbench_retired.leftovers(found, ("worker", "api")) == ["admin-api", "scheduler"]
    assert mcbench_retired.data_left(found, ("redis",)) == ["postgres"]
    assert mcbench_retired.data_left(found, ("postgres",)) == [], "a stopped one waits for whoever stopped it"
    assert set(mcbench_retired.ORDER) | set(SERVICES) == set(COMPONENTS)
