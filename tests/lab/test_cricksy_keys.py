"""Each host's own key of the bucket: made, told to nobody, and replaced with tasks and requests in flight, whatever breaks off."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.lab import cricksy_load, network
from tests.lab.ceph import Ceph
from tests.lab.cricksy_fleet import IMAGE, TEXT, Fleet, ask, give_image, read, upload
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.s3server import Keys, S3Server
from tests.lab.state import REPOSITORY, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

FILE = "/etc/cricksy/s3.env"
OWN: dict[str, object] = {"s3_manage_users": True, "s3_region": "eu-central-1", "s3_access_key": None, "s3_secret_key": None}
GIVE, WORKERS, API, FLOWER = (
    f"cricksy | {step}" for step in ("Give the host its key of the bucket", "Roll out workers", "Roll out the API", "Run Flower")
)


@pytest.fixture(scope="module")
def fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three hosts and a server that checks whose key it is and what it may; it knows no presigned URLs then."""
    network.create(lab.slot)
    s3 = S3Server(lab.slot, network.gateway(lab.slot)).start()
    made = Fleet(lab, tmp_path_factory.mktemp("cricksy"), s3.url)
    made.s3 = s3
    made.secrets |= {"CRICKSY_S3_ACCESS_KEY": s3.owner.access_key, "CRICKSY_S3_SECRET_KEY": s3.owner.secret_key}
    yield made
    for host in made.hosts:
        lab.destroy(host)
    s3.stop()


def run(fleet: Fleet, dry: bool = False, **settings: object) -> Any:
    done = fleet.run(dry=dry, **{**OWN, **settings})
    said = done.stdout + done.stderr
    for host in fleet.hosts:
        secret = in_file(host).secret_key
        assert not secret or secret not in said
    return done


def in_file(host: LabHost) -> Keys:
    """The key as the host's file has it."""
    lines = dict(line.split("=", 1) for line in host.run(f"grep ^CRICKSY {FILE} 2>/dev/null", check=False).stdout.splitlines())
    return Keys(lines.get("CRICKSY_S3_ACCESS_KEY", ""), lines.get("CRICKSY_S3_SECRET_KEY", ""))


def known(fleet: Fleet, host: LabHost) -> list[str]:
    """The keys of a host's user, as IAM knows them."""
    assert fleet.s3 is not None
    listed = fleet.s3.client("iam").list_access_keys(UserName=f"cricksy-{host.name}")["AccessKeyMetadata"]
    return [one["AccessKeyId"] for one in listed]


def in_use(host: LabHost) -> dict[str, str]:
    """The key in the environment of every process that has one, by unit."""
    script = """for unit in $(systemctl list-units --type=service --plain --no-legend 'cricksy-*' | cut -d ' ' -f 1); do
        pid=$(systemctl show -p MainPID --value $unit)
        [ "$pid" = 0 ] || echo $unit $(tr '\\0' '\\n' </proc/$pid/environ | sed -n 's/^CRICKSY_S3_ACCESS_KEY=//p')
    done"""
    return {words[0]: words[1] for line in host.run(script).stdout.splitlines() if len(words := line.split()) == 2}


def now() -> str:
    # moto keeps whole seconds
    time.sleep(1.1)
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def hand_in(fleet: Fleet, seconds: float = 0) -> str:
    """Announce an image, lay it into the bucket with the owner's rights, and hand it over; return its id."""
    assert fleet.s3 is not None
    status, body = ask(fleet, fleet.front, "/api/uploads/initiate", "-X", "POST")
    assert status == 200, (status, body)
    upload = str(json.loads(body)["id"])
    fleet.s3.client("s3").put_object(Bucket="cricksy-uploads", Key=f"uploads/{upload}", Body=IMAGE.read_bytes())
    status, body = ask(fleet, fleet.front, f"/api/uploads/{upload}/complete?seconds={seconds}", "-X", "POST")
    assert status == 200, (status, body)
    return upload


class Traffic(threading.Thread):
    """Hands in one image after the other until it is told to stop; keeps what went wrong."""

    def __init__(self, fleet: Fleet, one_more: Callable[[], str] | None = None) -> None:
        super().__init__()
        self.one_more = one_more or partial(hand_in, fleet, 1)
        self.uploads: list[str] = []
        self.faults: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                self.uploads.append(self.one_more())
            except Exception as error:
                self.faults.append(repr(error))
            self.over.wait(0.5)

    def __enter__(self) -> Traffic:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return "allowed"


def everything_is_old(fleet: Fleet) -> bool:
    """Whether the colour that went has ended, so that nothing but the present key is in use."""
    return all(set(in_use(host).values()) == {in_file(host).access_key} for host in fleet.hosts)


def test_each_host_has_a_key_of_its_own(fleet):
    done = run(fleet)
    assert done.ok, done
    again = run(fleet)
    assert (again.ok, again.changed) == (True, []), again
    assert run(fleet, dry=True).changed == []
    keys = {host.name: in_file(host) for host in fleet.hosts}
    assert len({one.access_key for one in keys.values()}) == 3
    for host in fleet.hosts:
        assert host.run(f"stat -c '%a %U' {FILE}").stdout == "600 root\n"
        assert known(fleet, host) == [keys[host.name].access_key]
        assert set(in_use(host).values()) == {keys[host.name].access_key}
        others = [one.secret_key for name, one in keys.items() if name != host.name]
        assert host.run(f"grep -rlF -e {others[0]} -e {others[1]} /etc /var/lib/hostwright /run /opt/cricksy", check=False).stdout == ""
    assert read(fleet, fleet.front, hand_in(fleet))["text"] == TEXT
    # a worker reads and no more
    put = {"Bucket": "cricksy-uploads", "Key": "uploads/x", "Body": b"x"}
    worker, api = (fleet.s3.client("s3", keys[host.name]) for host in (fleet.workers[0], fleet.front))
    assert refusal(lambda: worker.put_object(**put)) == "AccessDenied"
    assert refusal(lambda: api.put_object(**put)) == "allowed"
    assert refusal(lambda: worker.get_object(Bucket="cricksy-uploads", Key="uploads/x")) == "allowed"
    assert refusal(lambda: worker.delete_object(Bucket="cricksy-uploads", Key="uploads/x")) == "AccessDenied"
    assert refusal(lambda: api.list_buckets()) == "AccessDenied"
    said = fleet.workers[0].run("cricksy-health", timeout=90).stdout
    assert "ok   s3" in said, said


def test_keys_are_replaced_under_way_and_no_task_notices(fleet):
    assert run(fleet, version="v1.1.0").ok
    wait_for("the old colour to end", partial(everything_is_old, fleet), 60)
    before, moment = {host.name: in_file(host) for host in fleet.hosts}, now()
    planned = run(fleet, dry=True, version="v1.1.0", s3_key_before=moment)
    assert set(planned.changed) == {GIVE, WORKERS, API, FLOWER}
    tasks = [hand_in(fleet, 2) for _ in range(20)]
    with Traffic(fleet) as traffic:
        done = run(fleet, version="v1.1.0", s3_key_before=moment)
    assert done.ok, done
    assert set(done.changed) == {GIVE, WORKERS, API, FLOWER}
    assert traffic.faults == []
    assert len(traffic.uploads) >= 5
    for host in fleet.hosts:
        old, new = before[host.name].access_key, in_file(host).access_key
        assert sorted(known(fleet, host)) == sorted([old, new])
        running = in_use(host)
        assert all(key == new for unit, key in running.items() if "api" not in unit), running
    # what the old key signed is good for an hour: until then it stays, and a second run has nothing to do
    wait_for("the old colour to end", partial(everything_is_old, fleet), 60)
    pids = fleet.pids()
    again = run(fleet, version="v1.1.0", s3_key_before=moment)
    assert (again.ok, again.changed) == (True, []), again
    assert fleet.pids() == pids
    assert [read(fleet, fleet.front, one, 120)["text"] for one in (*tasks, *traffic.uploads)] == [TEXT] * (20 + len(traffic.uploads))

    over: dict[str, object] = {"version": "v1.1.0", "s3_key_before": moment, "s3_key_keep_seconds": 0}
    assert run(fleet, dry=True, **over).changed == [GIVE]
    assert run(fleet, **over).changed == [GIVE]
    for host in fleet.hosts:
        assert known(fleet, host) == [in_file(host).access_key]
        assert refusal(lambda host=host: fleet.s3.client("s3", before[host.name]).list_objects_v2(Bucket="cricksy-uploads")) == "InvalidAccessKeyId"
    assert run(fleet, **over).changed == []
    assert fleet.pids() == pids

    # what is gone back to has the present key, not the one that it had
    back = fleet.run("from deploys.cricksy import rollback\nrollback()\n", **{**OWN, **over})
    assert back.ok, back
    found = read(fleet, fleet.front, hand_in(fleet))
    assert (found["text"], found["executions"][0]["version"]) == (TEXT, "1.0.0")


def killed(fleet: Fleet, scratch: Path, moment: str, when: Callable[[], bool]) -> bool:
    """Start a rotation and kill it when something has come about; return whether it had."""
    command = fleet.command(scratch, **{**OWN, "s3_key_before": moment})
    with open(scratch / "log", "ab") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, **fleet.secrets}, stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, start_new_session=True)  # fmt: skip
        wait_for("the moment", lambda: process.poll() is not None or when(), 300, pause=0.01)
        came_about = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return came_about


def test_a_rotation_that_is_killed_leaves_no_host_without_a_key(fleet, tmp_path):
    assert run(fleet).ok
    wait_for("the old colour to end", partial(everything_is_old, fleet), 60)
    assert run(fleet, s3_key_keep_seconds=0).ok
    for moment_of in ("made", "written", "taken up"):
        old = {host.name: in_file(host).access_key for host in fleet.hosts}
        stage = {
            "made": lambda: any(len(known(fleet, host)) == 2 for host in fleet.hosts),
            "written": lambda old=old: all(in_file(host).access_key != old[host.name] for host in fleet.hosts),
            "taken up": lambda old=old: set(in_use(fleet.workers[0]).values()) not in (set(), {old[fleet.workers[0].name]}),
        }
        before = now()
        assert killed(fleet, tmp_path, before, stage[moment_of]), f"{moment_of}: {(tmp_path / 'log').read_text()[-3000:]}"
        for host in fleet.hosts:
            keys = known(fleet, host)
            assert len(keys) <= 2
            assert in_file(host).access_key in keys
            assert set(in_use(host).values()) <= set(keys), (moment_of, host.name)
        assert read(fleet, fleet.front, hand_in(fleet))["text"] == TEXT
        done = run(fleet, s3_key_before=before)
        assert done.ok, done
        assert all(in_file(host).access_key != old[host.name] and len(known(fleet, host)) <= 2 for host in fleet.hosts)
        wait_for("the old colour to end", partial(everything_is_old, fleet), 60)
        assert run(fleet, s3_key_before=before).changed == []
        assert run(fleet, s3_key_before=before, s3_key_keep_seconds=0).ok
        assert all(known(fleet, host) == [in_file(host).access_key] for host in fleet.hosts)
        assert read(fleet, fleet.front, hand_in(fleet))["text"] == TEXT


def test_from_a_key_of_ones_own_to_one_of_the_settings_and_back(fleet):
    assert run(fleet).ok
    plain = {"s3_region": "eu-central-1"}
    done = fleet.run(**plain)
    assert done.ok, done
    for host in fleet.hosts:
        assert host.run(f"test -e {FILE}", check=False).returncode == 1
    wait_for("the old colour to end", lambda: all(set(in_use(host).values()) == {fleet.s3.owner.access_key} for host in fleet.hosts), 60)
    assert fleet.run(**plain).changed == []
    assert read(fleet, fleet.front, hand_in(fleet))["text"] == TEXT
    assert run(fleet).ok
    wait_for("the old colour to end", partial(everything_is_old, fleet), 60)
    assert read(fleet, fleet.front, hand_in(fleet))["text"] == TEXT
    assert run(fleet).changed == []


def test_key_of_the_settings_is_replaced_and_uploads_go_on(lab, stranger, tmp_path, capsys):
    """By presigned URLs, at a server that checks them (Ceph), with 300 tasks: the key is another one of the same user."""
    give_image(stranger)
    ceph_host = lab.host("t-cricksy-ceph")
    ceph = Ceph(ceph_host).start()
    old, new = ceph.user("cricksy"), Keys("AKCRICKSYNEXT", "secret-of-cricksy-next")
    fleet = Fleet(lab, tmp_path, ceph.url, alone=True)
    own: dict[str, object] = {"s3_region": "default", "s3_is_aws_like": False, "worker_concurrency": 1}
    try:
        fleet.secrets |= {"CRICKSY_S3_ACCESS_KEY": old.access_key, "CRICKSY_S3_SECRET_KEY": old.secret_key}
        assert fleet.run(**own).ok
        announced = json.loads(ask(fleet, stranger, "/api/uploads/initiate", "-X", "POST")[1])
        ceph_host.run(f"radosgw-admin key create --uid cricksy --access-key {new.access_key} --secret-key {new.secret_key} >/dev/null", timeout=60)
        fleet.secrets |= {"CRICKSY_S3_ACCESS_KEY": new.access_key, "CRICKSY_S3_SECRET_KEY": new.secret_key}
        with cricksy_load.tasks(fleet, stranger, 300, 0.7) as load:
            done = fleet.run(**own)
        with capsys.disabled():
            print(f"\nrotation of the settings' key of the bucket: {load}")  # noqa: T201 - the figures that docs and readers want
        assert done.ok, done
        assert {WORKERS, API} <= set(done.changed)
        assert (load.count, load.lost, load.held, load.twice, load.asked_again) == (300, 0, 0, 0, {}), load
        assert min(load.open_before, load.open_after) > 0, f"nothing was in flight: {load}"
        # what was signed before is good as long as the key is there
        put = f"curl -s -o /dev/null -w '%{{http_code}}' -m 20 -T /root/image.png {shlex.quote(announced['url'])}"
        assert stranger.run(put).stdout == "200"
        ceph_host.run(f"radosgw-admin key rm --uid cricksy --access-key {old.access_key} >/dev/null", timeout=60)
        assert stranger.run(put).stdout == "403"
        assert read(fleet, stranger, upload(fleet, stranger))["text"] == TEXT
        assert fleet.run(**own).changed == []
    finally:
        for host in (*fleet.hosts, ceph_host):
            lab.destroy(host)
