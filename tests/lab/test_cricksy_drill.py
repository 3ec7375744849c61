"""A broker that is full, and a copy that is spoilt: nothing is evicted, and the drill tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.lab.cricksy_fleet import (
    SECRETS,
    TEXT,
    Fleet,
    ask,
    ask_broker,
    fleet_of,
    give_image,
    read,
    upload,
)
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.test_backup_bucket import trust

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

SOURCES = ("cricksy", "cricksy-broker")
METRICS = "/var/lib/prometheus/node-exporter"


@pytest.fixture(scope="module")
def vault(lab: Lab) -> Iterator[LabHost]:
    made = lab.host("t-cricksy-vault")
    yield made
    lab.destroy(made)


@pytest.fixture(scope="module")
def fleet(lab: Lab, vault: LabHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(lab, tmp_path_factory.mktemp("cricksy")) as made:
        trust(made.front, vault)
        made.shared = {"backup_offsite_repository": f"sftp:root@{vault.address}:/srv/vault"}
        made.more = {"broker_maxmemory_mb": 8}
        run = made.run()
        assert run.ok, run
        yield made


@pytest.fixture(scope="module")
def client(stranger: LabHost) -> LabHost:
    give_image(stranger)
    return stranger


def queued(fleet: Fleet) -> list[str]:
    return ask_broker(fleet, "lrange celery 0 -1").splitlines()


def workers(fleet: Fleet, verb: str) -> None:
    for host in fleet.workers:
        host.run(f"systemctl {verb} cricksy-worker@1", timeout=120)


def backup(fleet: Fleet, job: str, *words: str) -> str:
    done = fleet.type(f"deploys.backup.{job}", *words, "--limit", fleet.front.name)
    assert done.returncode == 0, done.stdout
    return done.stdout


def hand_over(fleet: Fleet, client: LabHost) -> tuple[str, int]:
    """Announce and upload an image and hand it over; return its id and what the last was answered by."""
    announced = json.loads(ask(fleet, client, "/api/uploads/initiate", "-X", "POST")[1])
    client.run(f"curl -fsS -m 20 -T /root/image.png '{announced['url']}'")
    return announced["id"], ask(fleet, client, f"/api/uploads/{announced['id']}/complete", "-X", "POST")[0]


@pytest.fixture
def filled(fleet: Fleet) -> Iterator[None]:
    """A broker that has next to no room, and nobody who takes tasks from it."""
    workers(fleet, "stop")
    for size, count in ((60000, 200), (1000, 1000)):  # by a connection each: what that takes itself is room afterwards
        said = ask_broker(fleet, "", input=f"rpush filler {'x' * size}\n" * count)
        assert said.splitlines()[-1].startswith("OOM command not allowed"), said[-300:]
    yield
    ask_broker(fleet, "del filler")
    workers(fleet, "start")


def test_full_broker_refuses_and_alerts_and_forgets_nothing(fleet: Fleet, client: LabHost, filled: None) -> None:
    kept: list[str] = []
    while (answered := hand_over(fleet, client))[1] == 200 and len(kept) < 200:
        kept.append(answered[0])
    refused, status = answered
    assert status == 500, f"a broker without room took {len(kept)} tasks"
    waiting = queued(fleet)
    assert all(any(image in json.loads(task)["headers"]["argsrepr"] for task in waiting) for image in kept)
    assert len(waiting) == len(kept)
    stats = ask_broker(fleet, "info stats")
    assert "evicted_keys:0" in stats, stats

    # told by the check that monitoring reads, and by its unit
    fleet.front.run(f"mkdir -p {METRICS}; systemctl start cricksy-health.service", check=False, timeout=120)
    assert fleet.front.run("systemctl is-failed cricksy-health.service").stdout == "failed\n"
    health = fleet.front.run("cricksy-health", check=False, timeout=90)
    assert health.returncode == 1
    assert re.search(rf"FAIL broker: its memory is \d+ % full: soon it refuses tasks; {len(kept)} tasks wait", health.stdout), health.stdout
    figures = fleet.front.read(f"{METRICS}/cricksy.prom").splitlines()
    assert 'cricksy_up{check="broker"} 0' in figures
    assert 'cricksy_up{check="database"} 1' in figures

    assert ask_broker(fleet, "del filler") == "1"
    assert ask(fleet, client, f"/api/uploads/{refused}/complete", "-X", "POST")[0] == 200
    workers(fleet, "start")
    assert [read(fleet, client, image)["text"] for image in [*kept, refused]] == [TEXT] * (len(kept) + 1)
    assert fleet.front.run("cricksy-health", timeout=90).stdout.count("ok ") == 4


@pytest.mark.parametrize("source", SOURCES)
def test_drill_catches_a_copy_that_is_spoilt(fleet: Fleet, client: LabHost, source: str) -> None:
    assert read(fleet, client, upload(fleet, client))["text"] == TEXT
    backup(fleet, "run", f"source={source}")
    backup(fleet, "drill", f"source={source}")
    front = fleet.front
    restic = f"RESTIC_PASSWORD={SECRETS['BACKUP_PASSWORD']} restic -q -r /var/backups/hostwright"
    taken = f"--host {front.name} --tag source:{source}"
    front.run(f"rm -rf /root/forge; install -d -m 0700 /root/forge; cd /root/forge && {restic} restore latest {taken} --target .", timeout=120)
    # in the middle of the data, its length as before
    front.run("dd if=/dev/zero of=/root/forge/stage/data bs=1 seek=$(($(stat -c %s /root/forge/stage/data) / 2)) count=64 conv=notrunc status=none")
    front.run(f"cd /root/forge && {restic} backup {taken} stage && rm -rf /root/forge", timeout=120)
    done = fleet.type("deploys.backup.drill", f"source={source}", "--limit", front.name)
    assert done.returncode != 0
    assert re.search(r"copy [0-9a-f]{8} of .*the last verified copy is", done.stdout), done.stdout
    backup(fleet, "run", f"source={source}")
    backup(fleet, "drill", f"source={source}")
