"""cricksy on Debian 13: PostgreSQL 17, Redis 8 and Tesseract 5.5 of the distribution, and systemd 257."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.cricksy_fleet import TEXT, Fleet, ask, colour, fleet_of, give_image, read, upload
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.state import wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(lab, tmp_path_factory.mktemp("cricksy"), release="trixie") as made:
        yield made


@pytest.fixture(scope="module")
def client(fleet: Fleet, stranger: LabHost) -> LabHost:
    give_image(stranger)
    return stranger


OWN = {
    "s3_backup": True, "s3_versioning": True, "s3_replicate_to": "cricksy-copies", "s3_replicate_region": "eu-west-1",
    "postgres_extensions": ["pg_trgm"],
    "health_figures": "SELECT 'done_ratio', avg((state = 'done')::int) FROM upload",
}  # fmt: skip


def converge(fleet: Fleet, dry: bool = False, **settings: object) -> Run:
    return fleet.run(dry=dry, **{**OWN, **settings})


def objects(fleet: Fleet) -> dict[str, bytes]:
    s3 = fleet.s3.client("s3")
    listed = s3.list_objects_v2(Bucket="cricksy-uploads").get("Contents", [])
    return {one["Key"]: s3.get_object(Bucket="cricksy-uploads", Key=one["Key"])["Body"].read() for one in listed}


def test_trixie_reads_images_through_an_upgrade(fleet, client):
    run = converge(fleet)
    assert run.ok, run
    images = [upload(fleet, client) for _ in range(4)]
    assert [read(fleet, client, image)["text"] for image in images] == [TEXT] * 4
    before = fleet.pids()
    again = converge(fleet)
    assert (again.ok, again.changed) == (True, []), again
    assert converge(fleet, dry=True).changed == []
    assert fleet.pids() == before

    assert fleet.front.run("redis-server --version").stdout.startswith("Redis server v=8.")
    assert "(PostgreSQL) 17." in fleet.front.run("psql --version").stdout
    assert fleet.workers[0].run("tesseract --version 2>&1").stdout.startswith("tesseract 5.5")
    for host, unit in (
        (fleet.front, f"cricksy-api-{colour(fleet)}"), (fleet.front, "cricksy-flower"), (fleet.workers[0], "cricksy-worker@1"),
    ):  # fmt: skip
        exposure = host.run(f"systemd-analyze security --no-pager {unit}.service").stdout.splitlines()[-1]
        assert float(exposure.split(": ")[1].split()[0]) <= 1.5, f"{unit}: {exposure}"
    said = fleet.front.run("cricksy-health", timeout=90).stdout
    assert [line.split(":")[0] for line in said.splitlines()] == ["ok   api", "ok   broker", "ok   database", "ok   s3"], said

    slow = [upload(fleet, client, seconds=3) for _ in range(8)]
    run = converge(fleet, version="v1.1.0")
    assert run.ok, run
    assert json.loads(ask(fleet, client, "/api/health")[1])["version"] == "1.1.0"
    assert [read(fleet, client, image)["text"] for image in slow] == [TEXT] * 8
    bad = converge(fleet, version="v1.2.0-unhealthy")
    assert not bad.ok
    assert json.loads(ask(fleet, client, "/api/health")[1])["version"] == "1.1.0"
    assert converge(fleet, version="v1.1.0").ok


def test_bucket_is_versioned_and_copied(fleet):
    s3 = fleet.s3.client("s3")
    rule = s3.get_bucket_replication(Bucket="cricksy-uploads")["ReplicationConfiguration"]["Rules"][0]
    assert rule["Destination"]["Bucket"] == "arn:aws:s3:::cricksy-copies"
    assert [s3.get_bucket_versioning(Bucket=name)["Status"] for name in ("cricksy-uploads", "cricksy-copies")] == ["Enabled"] * 2
    assert s3.get_bucket_location(Bucket="cricksy-copies")["LocationConstraint"] == "eu-west-1"
    assert "arn:aws:s3:::cricksy-copies/*" in json.dumps(fleet.s3.client("iam").get_role_policy(RoleName="cricksy-uploads-replication", PolicyName="hostwright"))
    fleet.front.run("mkdir -p /var/lib/prometheus/node-exporter && systemctl start cricksy-health.service", timeout=120)
    assert 'cricksy_figure{figure="done_ratio"} 1.0' in fleet.front.read("/var/lib/prometheus/node-exporter/cricksy.prom").splitlines()
    psql = "runuser -u postgres -- psql -XAtc \"SELECT extname FROM pg_extension WHERE extname = 'pg_trgm'\" cricksy_scorer"
    assert fleet.front.run(psql).stdout == "pg_trgm\n"


def test_rows_tasks_and_objects_come_back_from_their_copies(fleet, client):
    run = converge(fleet, version="v1.1.0")
    assert run.ok, run
    for image in [upload(fleet, client) for _ in range(6)]:
        read(fleet, client, image)
    backup, count = "/usr/local/lib/hostwright/backup", "runuser -u postgres -- psql -XAtc 'SELECT count(*) FROM upload' cricksy_scorer"
    for source in ("cricksy", "cricksy-broker", "cricksy-uploads"):
        fleet.front.run(f"systemctl start hostwright-backup-{source}.service", timeout=300)
        assert "is verified" in fleet.front.run(f"{backup} drill {source}", timeout=300).stdout
    rows, before = fleet.front.run(count).stdout, objects(fleet)
    assert len(before) >= 6
    sql = "SELECT acl::text FROM pg_database, unnest(datacl) AS acl WHERE datname = 'cricksy_scorer' ORDER BY 1"
    access = f'runuser -u postgres -- psql -XAtc "{sql}"'
    may_connect = fleet.front.run(access).stdout
    fleet.front.run("runuser -u postgres -- psql -qc 'TRUNCATE upload CASCADE' cricksy_scorer")
    fleet.front.run(f"{backup} restore cricksy --at verified", timeout=300)
    assert fleet.front.run(count).stdout == rows
    # who may connect is no part of a dump: it is taken from the database that the copy replaces
    assert fleet.front.run(access).stdout == may_connect

    s3 = fleet.s3.client("s3")
    # with their versions: this server goes on to list a prefix under which there are deletions alone, which S3 does not
    versions = s3.list_object_versions(Bucket="cricksy-uploads")["Versions"]
    s3.delete_objects(Bucket="cricksy-uploads", Delete={"Objects": [{key: one[key] for key in ("Key", "VersionId")} for one in versions]})
    assert objects(fleet) == {}
    refused = fleet.front.run(f"{backup} run cricksy-uploads", check=False, timeout=300)
    assert f"holds no object, and {len(before)} when copy" in refused.stderr
    fleet.front.run(f"{backup} restore cricksy-uploads --at verified", timeout=300)
    assert objects(fleet) == before
    wait_for("the API that the restore has started again", lambda: ask(fleet, client, "/api/health")[0] == 200, 120)
    assert read(fleet, client, upload(fleet, client))["text"] == TEXT
    assert converge(fleet, version="v1.1.0").changed == []
