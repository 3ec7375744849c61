"""
The guide's stacks for people who work on liap's backend: docker-compose.dev.yml and docker-compose.test.yml.

As the guide has them, but for what is wrong in it: every port on loopback, no password that it prints, no ``:latest``,
health checks that others wait for.
"""

from __future__ import annotations

from typing import Any

from operations.template import render
from settings import Liap

_SHORT = {"interval": "5s", "timeout": "5s", "retries": 5, "start_period": "30s"}
_REDIS_WELL = {"test": ["CMD", "redis-cli", "ping"], **_SHORT}


def _postgres_well(user: str) -> dict[str, Any]:
    return {"test": ["CMD", "pg_isready", "--quiet", "--username", user, "--host", "127.0.0.1"], **_SHORT}


def dev(settings: Liap) -> dict[str, Any]:
    """Return docker-compose.dev.yml: Redis; with the profile archive PostgreSQL and S3; Prometheus and Grafana."""
    password, images = settings.stack_password, settings.stack_images
    services: dict[str, Any] = {
        "redis": {
            "image": settings.redis_image,
            "command": ["redis-server", "--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru", "--save", "", "--appendonly", "no"],
            "ports": ["127.0.0.1:6379:6379"],
            "healthcheck": _REDIS_WELL,
        },
        "postgres-archive": {
            "image": settings.postgres_image,
            "environment": {"POSTGRES_USER": "archive", "POSTGRES_PASSWORD": password, "POSTGRES_DB": "liap_archive"},
            "ports": ["127.0.0.1:5432:5432"],
            "volumes": ["archive_data:/var/lib/postgresql/data"],
            "healthcheck": _postgres_well("archive"),
            "profiles": ["archive"],
        },
    }
    volumes: dict[str, Any] = {"archive_data": {}}
    if "s3" in images:
        services["s3"] = {
            "image": images["s3"],
            "command": ["server", "/data"],
            "environment": {"MINIO_ROOT_USER": "liap-dev", "MINIO_ROOT_PASSWORD": password},
            "ports": ["127.0.0.1:9000:9000"],
            "volumes": ["s3_data:/data"],
            "profiles": ["archive"],
        }
        volumes["s3_data"] = {}
    if "prometheus" in images:
        services["prometheus"] = {
            "image": images["prometheus"],
            "command": ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus", "--storage.tsdb.retention.time=7d"],
            "ports": ["127.0.0.1:9090:9090"],
            "volumes": ["./prometheus.yml:/etc/prometheus/prometheus.yml:ro", "prometheus_data:/prometheus"],
            "extra_hosts": ["host.docker.internal:host-gateway"],
        }
        volumes["prometheus_data"] = {}
    if "grafana" in images:
        services["grafana"] = {
            "image": images["grafana"],
            "environment": {"GF_SECURITY_ADMIN_PASSWORD": password, "GF_USERS_ALLOW_SIGN_UP": "false"},
            "ports": ["127.0.0.1:3000:3000"],
            "volumes": ["grafana_data:/var/lib/grafana"],
        }
        volumes["grafana_data"] = {}
    return {"services": services, "volumes": volumes}


def dev_files(settings: Liap) -> dict[str, str]:
    """Return what its services mount."""
    if "prometheus" not in settings.stack_images:
        return {}
    return {"prometheus.yml": render("liap/prometheus.yml.j2", metrics_port=settings.metrics_port)}


def test(settings: Liap) -> dict[str, Any]:
    """Return docker-compose.test.yml: databases in memory, and the tests once those are well."""
    password = settings.stack_password
    services: dict[str, Any] = {
        "postgres-test": {
            "image": settings.postgres_image,
            "environment": {"POSTGRES_USER": "test", "POSTGRES_PASSWORD": password, "POSTGRES_DB": "liap_test"},
            "tmpfs": ["/var/lib/postgresql/data"],
            "ports": ["127.0.0.1:5434:5432"],
            "healthcheck": _postgres_well("test"),
        },
        "redis-test": {
            "image": settings.redis_image,
            "command": ["redis-server", "--maxmemory", "64mb", "--save", ""],
            "tmpfs": ["/data"],
            "ports": ["127.0.0.1:6380:6379"],
            "healthcheck": _REDIS_WELL,
        },
    }
    if "test-runner" in settings.stack_images:
        services["test-runner"] = {
            "image": settings.stack_images["test-runner"],
            "environment": {
                "POSTGRES_HOST": "postgres-test", "POSTGRES_USER": "test", "POSTGRES_PASSWORD": password, "POSTGRES_DB": "liap_test",
                "REDIS_URL": "redis://redis-test:6379/0",
            },
            "depends_on": {name: {"condition": "service_healthy"} for name in ("postgres-test", "redis-test")},
            "restart": "no",
        }  # fmt: skip
    return {"services": services}
