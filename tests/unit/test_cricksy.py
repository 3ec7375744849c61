"""Settings of cricksy, what is refused of them, and what its units are written with."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

import pytest

from deploys import cricksy as deploys
from operations import container
from settings import Cricksy, SettingsError, load_fleet, load_host
from settings.secret import Secret

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
    wanted = deploys.bucket(load(cors_origins=["https://a.example.org"]))
    assert wanted.public_access_blocked is True
    assert wanted.tls_only
    other = load(s3_endpoint_url="http://s3.example.org:9000", s3_is_aws_like=False)
    wanted = deploys.bucket(other)
    assert deploys.store(other).path_style
    assert (wanted.public_access_blocked, wanted.encryption, wanted.tls_only) == (None, None, False)


def own_key(groups: list[str] = GROUPS, **changes: Any) -> Cricksy:
    with mock.patch.dict(os.environ, ENV):
        data = {key: value for key, value in GOOD.items() if key not in ("cricksy_s3_access_key", "cricksy_s3_secret_key")}
        data |= {"cricksy_s3_manage_users": True, **{f"cricksy_{key}": value for key, value in changes.items()}}
        found = load_host("host1", groups, data).cricksy
    assert found is not None
    return found


def test_a_hosts_own_key_is_in_a_file_that_no_release_holds():
    settings = own_key()
    assert not {"CRICKSY_S3_ACCESS_KEY", "CRICKSY_S3_SECRET_KEY"} & set(settings.environment())
    file = deploys.key_file(settings)
    assert (file.access_variable, file.restarts, file.keep_seconds, file.faults()) == ("CRICKSY_S3_ACCESS_KEY", False, 3720, [])
    for text in (deploys.worker_service(settings), deploys.api_service(settings)):
        assert text.index("EnvironmentFile=/etc/cricksy") < text.index("EnvironmentFile=/etc/cricksy/s3.env\n")
        assert f"ExecStartPre=+/bin/sh -c '{file.stamp}'" in text
    for text in (deploys.worker_service(load()), deploys.api_service(load())):
        assert "s3.env" not in text
    assert own_key(s3_key_keep_seconds=0).key_keep_seconds == 0


def test_a_worker_host_may_do_less():
    server = deploys.store(own_key())
    actions = [one["Action"] for one in deploys.access(own_key(["cricksy_worker"])).statements(server)]
    assert actions == [["s3:GetObject"], ["s3:ListBucket"]]
    api = [one["Action"] for one in deploys.access(own_key(["cricksy_api", "cricksy_worker"])).statements(server)]
    assert {"s3:PutObject", "s3:DeleteObject"} <= set(api[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"s3_access_key": "env:CRICKSY_S3_ACCESS_KEY"}, "cricksy_s3_access_key: must go with cricksy_s3_manage_users"),
        ({"s3_key_before": "yesterday"}, "must be like '2026-11-22T10:00:00Z'"),
        ({"s3_key_days": 1, "s3_presigned_expiry": 86400}, "must be more than twice what a replaced key stays"),
        ({"s3_worker_access": ["all"]}, "s3_worker_access"),
        ({"s3_user_prefix": "a b"}, "s3_user_prefix"),
    ],
)
def test_bad_settings_of_a_key_are_named(changes, said):
    with pytest.raises(SettingsError) as error:
        own_key(**changes)
    assert said in str(error.value)


def test_bucket_is_versioned_copied_and_backed_up_where_that_is_asked():
    asked = {"s3_manage_bucket": True, "s3_versioning": True, "s3_expire_days": 90, "s3_replicate_to": "copies", "s3_replicate_region": "eu-west-1"}
    wanted = deploys.bucket(load(**asked))
    assert (wanted.versioning, wanted.lifecycle[0].expire_days, wanted.lifecycle[0].abort_multipart_days) == (True, 90, 7)
    assert wanted.faults("cricksy-uploads", deploys.store(load(**asked))) == []
    keyed = deploys.bucket(load(s3_kms_key="arn:aws:kms:eu-west-1:123456789012:key/1"))
    assert (keyed.encryption, keyed.faults("cricksy-uploads", deploys.store(load()))) == ("aws:kms", [])
    copy = deploys.backup_bucket(load(s3_backup=True, s3_region="eu-central-1"))
    assert (copy.endpoint, copy.access_key.unmask()) == ("https://s3.eu-central-1.amazonaws.com", ENV["CRICKSY_S3_ACCESS_KEY"])
    assert copy.faults() == []
    own = load(s3_backup_access_key="env:CRICKSY_REDIS_PASSWORD", s3_backup_secret_key="env:CRICKSY_FLOWER_PASSWORD")
    assert deploys.backup_bucket(own).access_key.unmask() == ENV["CRICKSY_REDIS_PASSWORD"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"s3_replicate_to": "copies"}, "cricksy_s3_replicate_region go together"),
        ({"s3_replicate_to": "copies", "s3_replicate_region": "eu-west-1"}, "cricksy_s3_versioning: must be True with cricksy_s3_replicate_to"),
        ({"s3_kms_key": "mine"}, "must be the ARN of a key"),
        ({"s3_backup_access_key": "env:CRICKSY_REDIS_PASSWORD"}, "give both or neither"),
        ({"worker_mode": "containers"}, "cricksy_worker_image: is required"),
        ({"worker_mode": "containers", "worker_image": "cricksy:1"}, "must name its registry"),
        ({"postgres_extensions": ["x; DROP"]}, "must be the name of an extension"),
        ({"health_figures": "DELETE FROM upload"}, "must be a SELECT"),
    ],
)
def test_bad_settings_of_the_bucket_and_of_containers_are_named(changes, said):
    assert said in faults(**changes)


def test_a_container_is_what_the_unit_is():
    settings = load(
        worker_mode="containers", worker_image="registry.example.org/cricksy-worker:1.4.0", worker_instances=3, worker_concurrency=1,
        worker_special=[{"number": 2, "queues": ["slow"], "concurrency": 2}], worker_memory_max="2G", task_time_limit=600,
    )  # fmt: skip
    spec = deploys.container_spec(settings)
    assert container.faults("cricksy-worker-1", spec) == []
    assert (spec.memory_mb, spec.stop_seconds, spec.read_only, spec.user) == (2048, 630, True, "65534:65534")
    environment = spec.environment
    assert isinstance(environment, Secret)
    assert "OMP_THREAD_LIMIT=1" in environment.unmask().splitlines()
    program = spec.command[-1].replace("exec celery", "echo celery")
    for instance, queues, concurrency in ((1, "celery", 1), (2, "slow", 2), (3, "celery", 1)):
        words = program.replace("{instance}", str(instance)).replace("{worker}", "w@h")
        said = subprocess.run(["sh", "-c", words], check=True, capture_output=True, text=True).stdout
        assert f"--hostname=w@h --loglevel=info --queues={queues} --concurrency={concurrency} " in said
        assert "--time-limit=600 --soft-time-limit=270" in said
    assert not any(value in repr(spec) for value in ENV.values())
    with pytest.raises(SettingsError) as error:
        own_key(worker_mode="containers", worker_image="registry.example.org/cricksy-worker:1.4.0")
    assert "a container keeps the key that it was made with" in str(error.value)


def test_announcing_is_limited():
    limited = deploys.locations(load())[1]
    assert (limited.path, limited.match, limited.rate_limit.rate) == ("/api/uploads/initiate", "exact", "10r/m")
    assert len(deploys.locations(load(initiate_per_minute=0))) == 1


def test_health_has_what_the_application_writes_down(monkeypatch):
    health = runpy.run_path(str(ROOT / "files/cricksy/health.py"))
    rows = {"counts": [("done", 6)], "figures": [("ocr_seconds", Decimal("1.5")), ("of_nothing", None)]}
    connection = mock.MagicMock()
    connection.__enter__.return_value.execute.side_effect = lambda sql: mock.Mock(fetchall=lambda: rows.get(sql, []))
    monkeypatch.setitem(sys.modules, "psycopg", mock.Mock(connect=mock.Mock(return_value=connection)))
    monkeypatch.setenv("DATABASE_URL", "postgresql://x")
    report = health["Report"]()
    report.check("database", health["database"]({"counts": "counts", "figures": "figures"}))
    assert (report.faults, report.lines) == ([], ["ok   database: done 6"])
    assert {'cricksy_uploads{status="done"} 6', 'cricksy_figure{figure="ocr_seconds"} 1.5'} <= set(report.metrics)
    assert not any("of_nothing" in line for line in report.metrics)


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


UNKNOWN = "FAILED: Can't locate revision identified by '0002'"


def migrate(directory: Path, release: str, said: str, status: int) -> subprocess.CompletedProcess[str]:
    """Run the program that migrates, with a migration that says something and ends so."""
    program = (ROOT / "files/cricksy/migrate.sh").read_text()
    for path in ("/var/lib/hostwright", "/run/hostwright"):
        assert path in program
        program = program.replace(path, str(directory))
    stand_in = directory / "systemd-run"
    stand_in.write_text(f"#!/bin/sh\necho \"{said}\"\nexit {status}\n")
    stand_in.chmod(0o755)
    path = f"{directory}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-s", "cricksy", release, "/src"], input=program, env={"PATH": path}, text=True, capture_output=True, check=False
    )


def test_only_a_release_that_has_migrated_may_find_the_database_ahead(tmp_path):
    refused = migrate(tmp_path, "/releases/v1", UNKNOWN, 255)
    assert (refused.returncode, refused.stderr) == (255, f"{UNKNOWN}\n")
    for _ in range(2):
        assert migrate(tmp_path, "/releases/v1", "Running upgrade", 0).returncode == 0
    assert (tmp_path / "cricksy-migrated").read_text() == "/releases/v1\n"
    ahead = migrate(tmp_path, "/releases/v1", UNKNOWN, 255)
    assert (ahead.returncode, ahead.stderr.splitlines()[-1]) == (0, "a newer release has migrated the database: it stays as it is")
    # of which other ones have, says nothing of this one; and whatever else goes wrong, goes wrong
    assert migrate(tmp_path, "/releases/v1.1", UNKNOWN, 255).returncode == 255
    assert migrate(tmp_path, "/releases/v", UNKNOWN, 255).returncode == 255
    assert migrate(tmp_path, "/releases/v1", "connection refused", 1).returncode == 1
