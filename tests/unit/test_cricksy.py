"""Settings of cricksy, what is refused of them, and what its units are written with."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

import pytest

from deploys import cricksy as deploys
from settings import Cricksy, SettingsError, load_fleet, load_host

ROOT = Path(__file__).parents[2]
GROUPS = ["cricksy_infra", "cricksy_api", "cricksy_worker"]
NAMES = (
    "POSTGRES_PASSWORD", "POSTGRES_OWNER_PASSWORD", "POSTGRES_BACKUP_PASSWORD", "REDIS_PASSWORD", "REDIS_ADMIN_PASSWORD",
    "FLOWER_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY",
)  # fmt: skip
ENV = {f"CRICKSY_{name}": f"p/ss@{name.lower().replace('_', '-')}" for name in NAMES} | {
    "BACKUP_PASSWORD": "a-backup-password-of-the-test-0123",
    "CRICKSY_PEM": "-----BEGIN CERTIFICATE-----\nx\n",
}
GOOD: dict[str, Any] = {
    "certificate_mode": "self-signed",
    "backup_password": "env:BACKUP_PASSWORD",
    "cricksy_repository": "https://git.example.org/cricksy.git",
    "cricksy_version": "v1.0.0",
    "cricksy_domain": "cricksy.example.org",
    **{f"cricksy_{name.lower()}": f"env:CRICKSY_{name}" for name in NAMES},
}
REMOTE = {
    "cricksy_postgres_host": "10.0.0.5", "cricksy_redis_host": "10.0.0.5", "cricksy_infra_ca": "env:CRICKSY_PEM",
    "cricksy_infra_certificate": "env:CRICKSY_PEM", "cricksy_infra_key": "env:CRICKSY_PEM", "cricksy_infra_networks": ["10.0.0.0/24"],
}  # fmt: skip


def load(groups: list[str] = GROUPS, **changes: Any) -> Cricksy:
    with mock.patch.dict(os.environ, ENV):
        data = {**GOOD, **{f"cricksy_{key}": value for key, value in changes.items()}}
        found = load_host("host1", groups, data).cricksy
    assert found is not None
    return found


def faults(groups: list[str] = GROUPS, **changes: Any) -> str:
    with pytest.raises(SettingsError) as error:
        load(groups, **changes)
    return str(error.value)


def test_one_set_of_settings_gives_both_urls():
    settings = load()
    plain, asynchronous = settings.database_url().unmask(), settings.database_url(driver="asyncpg").unmask()
    for url, scheme, word in ((plain, "postgresql", "sslmode=prefer"), (asynchronous, "postgresql+asyncpg", "ssl=prefer")):
        parts = urlsplit(url)
        assert (parts.scheme, parts.hostname, parts.port, parts.path, parts.query) == (scheme, "127.0.0.1", 5432, "/cricksy_scorer", word)
        assert (parts.username, unquote(parts.password or "")) == ("cricksy", ENV["CRICKSY_POSTGRES_PASSWORD"])
    assert urlsplit(settings.database_url(owner=True).unmask()).username == "cricksy_owner"


def test_beyond_the_host_everything_is_checked_tls():
    remote = {key.removeprefix("cricksy_"): value for key, value in REMOTE.items()}
    environment = load(["cricksy_worker"], **remote).environment()
    assert environment["DATABASE_URL"].unmask().endswith("?sslmode=verify-full")
    assert environment["ASYNC_DATABASE_URL"].unmask().endswith("?ssl=verify-full")
    assert environment["PGSSLROOTCERT"] == "/etc/cricksy/ca.pem"
    broker = environment["CRICKSY_CELERY_BROKER_URL"].unmask()
    assert broker.startswith("rediss://cricksy:")
    assert broker.endswith("@10.0.0.5:6379/0?ssl_cert_reqs=required&ssl_ca_certs=/etc/cricksy/ca.pem")
    assert environment["CRICKSY_REDIS_URL"].unmask().split("@")[1].startswith("10.0.0.5:6380/0")


def test_the_guides_variables_are_all_there():
    environment = load(use_redis_adapter=True, cors_origins=["https://a.example.org", "https://b.example.org"]).environment()
    assert environment["CRICKSY_ENABLE_UPLOADS"] == environment["CRICKSY_USE_REDIS_ADAPTER"] == "1"
    assert environment["CRICKSY_CORS_ORIGINS"] == "https://a.example.org,https://b.example.org"
    assert environment["OMP_THREAD_LIMIT"] == "1"
    assert environment["CRICKSY_S3_ENDPOINT_URL"] == ""


def test_each_worker_has_its_queues():
    settings = load(worker_instances=3, worker_concurrency=1, worker_special=[{"number": 2, "queues": ["slow"], "concurrency": 2}])
    assert settings.workers() == [(("celery",), 1), (("slow",), 2), (("celery",), 1)]
    assert len(settings.workers(5)) == 5
    assert settings.needs().cores == 4
    assert load(worker_instances=3, worker_allow_more_than_cores=True).needs().cores == 1


def test_only_what_a_role_needs_is_open():
    assert [port.port for port in load(["cricksy_api"], postgres_external=True, redis_external=True).ports()] == [80, 443]
    remote = {key.removeprefix("cricksy_"): value for key, value in REMOTE.items()}
    ports = load(["cricksy_infra"], infra_address="10.0.0.5", **remote).ports()
    assert {(port.port, port.sources) for port in ports} == {(number, ("10.0.0.0/24",)) for number in (5432, 6379, 6380)}
    assert load(["cricksy_infra"]).ports() == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "main"}, "must be a tag or a full commit, not a branch"),
        ({"version": ""}, "cricksy_version: is required"),
        ({"domain": None}, "cricksy_domain: is required"),
        ({"postgres_password": "secret"}, "must be a reference to a secret"),
        ({"postgres_owner": "cricksy"}, "another role than cricksy_postgres_user"),
        ({"postgres_user": "postgres"}, "not the server's own"),
        ({"redis_cache_port": 6379}, "a cache that forgets is no broker"),
        ({"task_soft_time_limit": 300}, "must be less than cricksy_task_time_limit"),
        ({"worker_special": [{"number": 2}]}, "cricksy_worker_instances (1)"),
        ({"infra_address": "10.0.0.5"}, "between hosts nothing is spoken in clear"),
        ({"infra_address": "0.0.0.0"}, "must be one address"),
        ({"infra_networks": ["0.0.0.0/0"]}, "must not be everybody"),
        ({"postgres_host": "10.0.0.5"}, "cricksy_infra_ca: is required where cricksy_postgres_host is another host's"),
        ({"cors_origins": ["https://app.example.org/x"]}, "must be an origin"),
        ({"flower_domain": "cricksy.example.org"}, "another name than cricksy_domain"),
        ({"tesseract_languages": ["English"]}, "must be a language"),
        ({"extra_env": {"DATABASE_URL": "x"}}, "is set by the deploy"),
        ({"extra_env": {"MAIL_PASSWORD": "x"}}, "looks like a secret"),
        ({"s3_bucket": "My Bucket"}, "must be the name of a bucket"),
        ({"health_counts": "DELETE FROM upload"}, "must be a SELECT"),
        ({"worker_memory_max": "1 GB"}, "must be a size"),
    ],
)
def test_bad_settings_are_named(changes, said):
    assert said in faults(**changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"infra": {"cricksy_infra_address": ""}}, "cricksy_infra_address: is required: api needs postgres"),
        ({"api": {"cricksy_postgres_host": "127.0.0.1"}}, "must be the database's host, not loopback"),
        ({"api": {"cricksy_version": "v2.0.0"}}, "cricksy_version: must be the same as on host"),
    ],
)
def test_faults_between_hosts(change, said):
    hosts = {"infra": {"cricksy_infra_address": "10.0.0.5"}, "api": {}, "worker": {}}
    listed = [(name, [f"cricksy_{name}"], {**GOOD, **REMOTE, **own, **change.get(name, {})}) for name, own in hosts.items()]
    if not said:
        assert set(load_fleet(listed)) == set(hosts)
        return
    with pytest.raises(SettingsError) as error:
        load_fleet(listed)
    assert said in str(error.value)


def test_units_hold_no_secret_and_outlive_their_tasks():
    settings = load(task_time_limit=600, task_soft_time_limit=500)
    worker, api = deploys.worker_service(settings), deploys.api_service(settings)
    assert "TimeoutStopSec=630" in worker
    assert "--time-limit=600 --soft-time-limit=500" in worker
    assert "--hostname=worker%i@%%h" in worker
    assert "Type=exec" in worker
    assert "MemoryMax=1G" in worker
    for text in (worker, api, deploys.migration(settings)):
        assert not any(value in text for value in ENV.values())


def test_bucket_is_private():
    _, wanted = deploys.bucket(load(cors_origins=["https://a.example.org"]))
    assert wanted.public_access_blocked is True
    assert wanted.tls_only
    where, wanted = deploys.bucket(load(s3_endpoint_url="http://s3.example.org:9000", s3_is_aws_like=False))
    assert where.path_style
    assert (wanted.public_access_blocked, wanted.encryption, wanted.tls_only) == (None, None, False)


def test_announcing_is_limited():
    limited = deploys.locations(load())[1]
    assert (limited.path, limited.match, limited.rate_limit.rate) == ("/api/uploads/initiate", "exact", "10r/m")
    assert len(deploys.locations(load(initiate_per_minute=0))) == 1


def test_health_tells_faults_and_no_secret():
    report = runpy.run_path(str(ROOT / "files/cricksy/health.py"))["Report"]()

    def broken(_: object) -> str:
        raise OSError("postgresql://cricksy:canary@10.0.0.5 does not answer")

    report.check("database", broken)
    report.check("broker", lambda _: "!its memory is 90 % full")
    report.check("s3", lambda _: "bucket can be listed")
    assert report.faults == ["database", "broker"]
    assert [line.split(":")[0] for line in report.lines] == ["FAIL database", "FAIL broker", "ok   s3"]
    assert "canary" not in "".join(report.lines + report.metrics)
    assert 'cricksy_up{check="s3"} 1' in report.metrics
    assert 'cricksy_up{check="database"} 0' in report.metrics
