"""cricksy on one host and on three: an image that is uploaded by a presigned URL comes back as its text, and nobody else comes in."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

import pytest

from tests.lab.ceph import Ceph
from tests.lab.cricksy_fleet import (
    FLOWER,
    SECRETS,
    TEXT,
    Fleet,
    ask,
    assert_converged,
    colour,
    fleet_of,
    give_image,
    read,
    upload,
)
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.state import wait_for


@pytest.fixture(scope="module", params=["alone", pytest.param("three", marks=pytest.mark.soak)])
def fleet(lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    alone = request.param == "alone"
    # The gate's host begins as one that had an older release; on the three everything is installed.
    with fleet_of(lab, tmp_path_factory.mktemp("cricksy"), "cricksy" if alone else "packages", alone) as made:
        # and it does without copies: installing the tools is a sixth of the time
        made.shared = {"backup_enabled": not alone}
        yield made


@pytest.fixture(scope="module")
def client(stranger: LabHost) -> LabHost:
    """A host that is none of the system's, with the image."""
    give_image(stranger)
    return stranger


def test_new_hosts_read_an_image(fleet, client):
    run = fleet.run()
    assert run.ok, run
    for host in fleet.workers:
        wait_for("workers", lambda host=host: host.run("systemctl is-active cricksy-worker@1", check=False).stdout == "active\n", 10)
    images = [upload(fleet, client) for _ in range(6)]
    found = [read(fleet, client, image) for image in images]
    assert [one["text"] for one in found] == [TEXT] * 6
    assert {one["executions"][0]["version"] for one in found} == {"1.0.0"}

    before = fleet.pids()
    assert len([name for name in before if "cricksy-worker@" in name]) == len(fleet.workers), before
    assert_converged(fleet)
    if not fleet.alone:
        assert fleet.run(dry=True).changed == []
    assert fleet.pids() == before


def test_services_are_sealed_and_nobody_else_comes_in(fleet, client):
    for host, unit in (
        (fleet.front, f"cricksy-api-{colour(fleet)}"), (fleet.front, "cricksy-flower"), (fleet.workers[0], "cricksy-worker@1"),
    ):  # fmt: skip
        exposure = host.run(f"systemd-analyze security --no-pager {unit}.service").stdout.splitlines()[-1]
        assert float(exposure.split(": ")[1].split()[0]) <= 1.5, f"{unit}: {exposure}"
    assert fleet.workers[0].run("systemctl show -p TimeoutStopUSec --value cricksy-worker@1").stdout == "5min 30s\n"
    environment = fleet.workers[0].run("tr '\\0' '\\n' </proc/$(systemctl show -p MainPID --value cricksy-worker@1)/environ").stdout
    assert "OMP_THREAD_LIMIT=1" in environment.splitlines()
    assert f"{'redis' if fleet.alone else 'rediss'}://cricksy:" in environment
    # the account of API and workers changes no table
    url = next(line for line in environment.splitlines() if line.startswith("DATABASE_URL="))
    python = fleet.workers[0].run("ls -d /opt/cricksy/releases/v1.0.0-*/venv/bin/python").stdout.strip()
    program = "import os, psycopg; psycopg.connect(os.environ['DATABASE_URL']).execute('DROP TABLE upload')"
    refused = fleet.workers[0].run(f"{shlex.quote(url)} PGSSLROOTCERT=/etc/cricksy/ca.pem {python} -c {shlex.quote(program)} 2>&1".replace("'DATABASE_URL=", "env 'DATABASE_URL=", 1), check=False)
    assert "must be owner of table upload" in refused.stdout, refused.stdout
    # Flower: by its account, and from declared networks only
    assert ask(fleet, client, "/", domain=FLOWER)[0] == 403
    assert ask(fleet, fleet.front, "/", domain=FLOWER)[0] == 401
    status, body = ask(fleet, fleet.front, "/", "-u", f"cricksy:{SECRETS['CRICKSY_FLOWER_PASSWORD']}", domain=FLOWER)
    assert (status, "Flower" in body) == (200, True)
    for host in fleet.hosts:
        assert host.run("ss -Hltn 'sport = :5555'").stdout.split()[3:4] in ([], ["127.0.0.1:5555"])


def test_health_says_what_is_wrong(fleet):
    said = fleet.front.run("cricksy-health", timeout=90).stdout
    assert [line.split(":")[0] for line in said.splitlines()] == ["ok   api", "ok   broker", "ok   database", "ok   s3"], said
    assert "done 6" in said
    fleet.workers[0].run("mkdir -p /var/lib/prometheus/node-exporter && systemctl start cricksy-health.service", timeout=120)
    figures = fleet.workers[0].read("/var/lib/prometheus/node-exporter/cricksy.prom").splitlines()
    assert 'cricksy_uploads{status="done"} 6' in figures
    assert 'cricksy_queue_depth{queue="celery"} 0' in figures
    fleet.front.run("systemctl stop redis-server@cricksy-broker")
    broken = fleet.workers[0].run("cricksy-health", check=False, timeout=120)
    fleet.front.run("systemctl start redis-server@cricksy-broker")
    assert (broken.returncode, "FAIL broker" in broken.stdout) == (1, True), broken.stdout
    assert "canary" not in broken.stdout + broken.stderr


def test_announcing_is_limited_and_pages_are_named(fleet, client):
    assert fleet.run(initiate_per_minute=10, initiate_burst=2, limit="cricksy_api").ok
    said = [ask(fleet, client, "/api/uploads/initiate", "-X", "POST")[0] for _ in range(8)]
    assert said.count(200) in (3, 4), said
    assert said[-1] == 429
    assert ask(fleet, client, "/api/health")[0] == 200
    allowed = ask(fleet, client, "/api/health", "-i", "-H", "Origin: https://app.example.test")[1]
    assert "access-control-allow-origin: https://app.example.test" in allowed.lower()
    other = ask(fleet, client, "/api/health", "-i", "-H", "Origin: https://other.example.test")[1]
    assert "access-control-allow-origin" not in other.lower()
    assert fleet.s3 is not None
    rules = fleet.s3.client("s3").get_bucket_cors(Bucket="cricksy-uploads")["CORSRules"]
    assert rules[0]["AllowedOrigins"] == ["https://app.example.test"]


@pytest.mark.soak
def test_one_host_and_a_server_that_checks_signatures(lab, client, tmp_path):
    """What moto lets pass on the three hosts: real signatures, policies and preflights, by Ceph."""
    ceph_host = lab.host("t-cricksy-ceph")
    ceph = Ceph(ceph_host).start()
    keys = ceph.user("cricksy")
    fleet = Fleet(lab, tmp_path, ceph.url, alone=True)
    try:
        fleet.secrets |= {"CRICKSY_S3_ACCESS_KEY": keys.access_key, "CRICKSY_S3_SECRET_KEY": keys.secret_key}
        own = {"s3_region": "default", "s3_is_aws_like": False, "worker_concurrency": 1}
        assert "cricksy | Run PostgreSQL" in fleet.run(dry=True, **own).changed
        run = fleet.run(**own)
        assert run.ok, run
        assert read(fleet, client, upload(fleet, client))["text"] == TEXT
        again = fleet.run(**own)
        assert (again.ok, again.changed) == (True, []), again
        # nothing of it but https leaves the host
        assert "0.0.0.0:6379" not in fleet.front.run("ss -Hltn").stdout
        beyond = {line.split()[3] for line in fleet.front.run("ss -Hltn").stdout.splitlines()}
        assert {one for one in beyond if not one.startswith(("127.", "[::1]"))} <= {"0.0.0.0:22", "[::]:22", "0.0.0.0:80", "[::]:80", "0.0.0.0:443", "[::]:443"}

        announced = json.loads(ask(fleet, client, "/api/uploads/initiate", "-X", "POST")[1])
        put = "curl -s -o /dev/null -w '%{{http_code}}' -m 20 {} {}"
        forged = announced["url"].replace("X-Amz-Signature=", "X-Amz-Signature=0")
        assert client.run(put.format("-T /root/image.png", shlex.quote(forged))).stdout == "403"
        assert client.run(put.format("-T /root/image.png", shlex.quote(announced["url"]))).stdout == "200"
        plain = shlex.quote(announced["url"].split("?")[0])
        assert client.run(put.format("", plain)).stdout == "403"
        assert client.run(put.format("", shlex.quote(f"{ceph.url}/cricksy-uploads"))).stdout == "403"
        preflight = "-X OPTIONS -H 'Access-Control-Request-Method: PUT' -H 'Origin: {}'"
        assert client.run(put.format(preflight.format("https://app.example.test"), plain)).stdout == "200"
        assert client.run(put.format(preflight.format("https://other.example.test"), plain)).stdout == "403"
    finally:
        for host in (*fleet.hosts, ceph_host):
            lab.destroy(host)
