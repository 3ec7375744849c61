"""cricksy on three hosts: an image that is uploaded by a presigned URL comes back as its text, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.lab.ceph import Ceph
from tests.lab.cricksy_fleet import (
    FLOWER,
    SECRETS,
    TEXT,
    Fleet,
    ask,
    colour,
    fleet_of,
    give_image,
    read,
    upload,
)
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import PYINFRA
from tests.lab.state import REPOSITORY, wait_for


@pytest.fixture(scope="module")
def fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(lab, tmp_path_factory.mktemp("cricksy")) as made:
        yield made


@pytest.fixture(scope="module")
def client(stranger: LabHost) -> LabHost:
    """A host that is none of the system's, with the image."""
    give_image(stranger)
    return stranger


def test_bare_hosts_read_an_image(fleet, client):
    run = fleet.run()
    assert run.ok, run
    for host in fleet.workers:
        wait_for("workers", lambda host=host: host.run("systemctl is-active cricksy-worker@1", check=False).stdout == "active\n", 10)
    images = [upload(fleet, client) for _ in range(6)]
    found = [read(fleet, client, image) for image in images]
    assert [one["text"] for one in found] == [TEXT] * 6
    assert {one["executions"][0]["version"] for one in found} == {"1.0.0"}

    before = fleet.pids()
    assert len([name for name in before if "cricksy-worker@" in name]) == 2, before
    again = fleet.run()
    assert (again.ok, again.changed) == (True, []), again
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
    assert "rediss://cricksy:" in environment
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
def test_whole_deploy_passes_the_checks_and_is_asked_by_hand(fleet, client, tmp_path):
    """With base: hardened, behind a firewall that knows only what is declared."""
    for host in fleet.workers:
        host.run("systemctl disable --now nginx.service")  # the layer's own: nobody declared it here
    run = fleet.run(REPOSITORY / "deploy.py")
    assert run.ok, run
    again = fleet.run(REPOSITORY / "deploy.py")
    assert (again.ok, again.changed) == (True, []), again
    assert read(fleet, client, upload(fleet, client))["text"].split() == TEXT.split()
    for port in (5432, 6379, 6380, 5555):
        knock = f"timeout 4 bash -c '</dev/tcp/{fleet.front.address}/{port}'"
        assert client.run(knock, check=False).returncode != 0, port

    inventory = fleet.inventory(tmp_path)
    environment = {**os.environ, **fleet.secrets, "NO_COLOR": "1"}
    for command in (
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/verify", "--inventory", str(inventory)],
        [str(PYINFRA), "-y", str(inventory), "deploys.cricksy.status"],
    ):
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:]
    for words in ("api blue: serves, running", "worker 1: active", "worker: 1 are wanted"):
        assert words in done.stdout, done.stdout


@pytest.mark.soak
def test_upgrade_bad_release_and_rollback_lose_no_task(fleet, client):
    assert fleet.run().ok
    slow = [upload(fleet, client, seconds=3) for _ in range(8)]
    run = fleet.run(version="v1.1.0")
    assert run.ok, run
    assert {"cricksy | Migrate the database", "cricksy | Roll out workers", "cricksy | Roll out the API"} <= set(run.changed)
    assert json.loads(ask(fleet, client, "/api/health")[1])["version"] == "1.1.0"
    assert [read(fleet, client, image)["text"] for image in slow] == [TEXT] * 8

    before = fleet.pids()
    more = [upload(fleet, client) for _ in range(4)]
    bad = fleet.run(version="v1.2.0-unhealthy")
    assert not bad.ok
    assert "canary" not in bad.stdout + bad.stderr
    assert json.loads(ask(fleet, client, "/api/health")[1])["version"] == "1.1.0"
    assert [read(fleet, client, image)["text"] for image in more] == [TEXT] * 4
    api = f"{fleet.front.name}/cricksy-api-{colour(fleet)}.service"
    assert fleet.pids()[api] == before[api]
    assert fleet.run(version="v1.1.0").ok

    more = [upload(fleet, client, seconds=2) for _ in range(6)]
    back = fleet.run("from deploys.cricksy import rollback\nrollback()\n", version="v1.1.0")
    assert back.ok, back
    assert json.loads(ask(fleet, client, "/api/health")[1])["version"] == "1.0.0"
    assert [read(fleet, client, image)["text"] for image in more] == [TEXT] * 6
    assert read(fleet, client, upload(fleet, client))["executions"][0]["version"] == "1.0.0"
    assert fleet.run().changed == []


@pytest.mark.soak
def test_scaling_kills_and_restarts_lose_no_task(fleet, client):
    # a task of a worker that was killed is another one's after this time, which must be longer than any task takes
    lost = {"extra_env": {"CRICKSY_VISIBILITY_SECONDS": "30"}, "task_time_limit": 25, "task_soft_time_limit": 20}
    assert fleet.run(**lost).ok
    images = [upload(fleet, client, seconds=1) for _ in range(40)]
    assert fleet.run("from deploys.cricksy import scale\nscale(count=3)\n", **lost).ok
    assert len([name for name in fleet.pids() if "cricksy-worker@" in name]) == 6
    fleet.workers[0].run("systemctl kill -s KILL cricksy-worker@1")
    fleet.front.run("systemctl restart redis-server@cricksy-broker")
    images += [upload(fleet, client, seconds=1) for _ in range(10)]
    fleet.front.run("systemctl restart postgresql@15-main")
    assert fleet.run("from deploys.cricksy import scale\nscale(count=1)\n", **lost).ok
    assert [read(fleet, client, image, 180)["text"] for image in images] == [TEXT] * len(images)
    wait_for("spare workers to end", lambda: len([name for name in fleet.pids() if "cricksy-worker@" in name]) == 2, 60)
    assert fleet.run(**lost).changed == []
    assert fleet.run().ok


@pytest.mark.soak
def test_hung_worker_is_found_and_started_anew(fleet, client):
    assert fleet.run().ok
    host = fleet.workers[0]
    pid = host.run("systemctl show -p MainPID --value cricksy-worker@1").stdout.strip()
    host.run(f"kill -STOP {pid}")
    for _ in range(3):
        host.run("systemctl start cricksy-worker-check.service", timeout=120)
    said = host.run("journalctl -u cricksy-worker-check --no-pager -o cat").stdout
    assert "cricksy-worker@1 is hung" in said, said
    wait_for(
        "the worker",
        lambda: host.run("systemctl show -p MainPID --value cricksy-worker@1").stdout.strip() not in (pid, "0"),
        30,
    )
    assert fleet.run().changed == []
    assert read(fleet, client, upload(fleet, client))["text"] == TEXT


@pytest.mark.soak
def test_one_host_and_a_server_that_checks_signatures(lab, client, tmp_path):
    """What moto lets pass on the three hosts: real signatures, policies and preflights, by Ceph."""
    ceph_host = lab.host("t-cricksy-ceph")
    ceph = Ceph(ceph_host).start()
    keys = ceph.user("cricksy")
    fleet = Fleet(lab, tmp_path, ceph.url, alone=True)
    try:
        fleet.secrets |= {"CRICKSY_S3_ACCESS_KEY": keys.access_key, "CRICKSY_S3_SECRET_KEY": keys.secret_key}
        own = {
            "postgres_host": "127.0.0.1", "redis_host": "127.0.0.1", "s3_region": "default", "s3_is_aws_like": False,
            "worker_concurrency": 1,
        }  # fmt: skip
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
