"""A bucket of an S3 server backed up, drilled, emptied and restored; read back with a client of the test's own."""

import contextlib
import datetime
import hashlib
import hmac
import json
import shlex
import textwrap
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree

import pytest

from tests.lab.state import wait_for

REPOSITORY = "/var/backups/hostwright"
PROGRAM = "/usr/local/lib/hostwright/backup"
CANARY, KEY, SECRET = "canary-7c51d2e84b603f9a", "objects", "canary-s3+84b6/03f9=a7c"
OBJECTS = {
    **{f"runs/{number}/result.json": json.dumps({"run": number}).encode() for number in range(30)},
    "Bild mit Ümlaut & more.png": bytes(range(256)) * 300,
    "deep/er/still/empty": b"",
}


class S3:
    """The few calls that a test needs, signed (AWS signature version 4), with the standard library alone."""

    def __init__(self, host) -> None:
        self._address = f"{host.address}:9000"

    def call(self, method: str, path: str, body: bytes = b"", **query: str) -> bytes:
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        text = "&".join(f"{key}={urllib.parse.quote(value, safe='')}" for key, value in sorted(query.items()))
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": self._address, "x-amz-content-sha256": digest, "x-amz-date": stamp}
        quoted = urllib.parse.quote(path)
        signed = ";".join(sorted(headers))
        lines = [method, quoted, text, *(f"{key}:{headers[key]}" for key in sorted(headers)), "", signed, digest]
        scope = f"{day}/us-east-1/s3/aws4_request"
        to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256("\n".join(lines).encode()).hexdigest()])
        key = f"AWS4{SECRET}".encode()
        for part in (day, "us-east-1", "s3", "aws4_request", to_sign):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        authorization = f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={signed}, Signature={key.hex()}"
        request = urllib.request.Request(
            f"http://{self._address}{quoted}" + (f"?{text}" if text else ""), data=body or None, method=method,
            headers={**headers, "authorization": authorization},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def list(self, bucket: str = "mc-bench") -> list[str]:
        found = ElementTree.fromstring(self.call("GET", f"/{bucket}", **{"list-type": "2"}))
        return sorted(each.text or "" for each in found.iter() if each.tag.rpartition("}")[2] == "Key")

    def objects(self, bucket: str = "mc-bench") -> dict[str, bytes]:
        return {key: self.call("GET", f"/{bucket}/{key}") for key in self.list(bucket)}

    def put(self, key: str, content: bytes, bucket: str = "mc-bench") -> None:
        self.call("PUT", f"/{bucket}/{key}", content)

    def delete(self, key: str) -> None:
        self.call("DELETE", f"/mc-bench/{key}")


def start_server(host, image: str) -> S3:
    """A fresh S3 server in a container of the host, without any bucket."""
    host.write("/root/s3.env", f"MINIO_ROOT_USER={KEY}\nMINIO_ROOT_PASSWORD={SECRET}\n", mode="0600")
    host.run(f"docker rm -fv s3 >/dev/null 2>&1; docker run -d --name s3 --env-file /root/s3.env -p 9000:9000 {image} server /data >/dev/null", timeout=300)
    s3 = S3(host)

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return bool(s3.call("GET", "/"))
        return False

    wait_for("s3", answers, 120)
    return s3


def deploy(minimum: object = {"objects": 10}, **server: object) -> str:
    return textwrap.dedent(f"""\
        import os
        from operations import backup
        from deploys import current
        from settings.secret import Secret
        backup.source(
            "objects", policy=current().backup, kind="bucket", minimum={minimum!r},
            server=backup.Bucket(**{{"bucket": "mc-bench", "endpoint": "http://127.0.0.1:9000", **{server!r}}},
                                 access_key=Secret({KEY!r}), secret_key=Secret(os.environ["LAB_S3_SECRET"])),
            name="Back up the objects",
        )
        """)


@pytest.fixture(scope="module")
def converge(provision):
    def run(host, text=None, **changes: object):
        return provision(
            host, text or deploy(), data={"backup_password": "env:LAB_BACKUP_PASSWORD", **changes},
            env={"LAB_BACKUP_PASSWORD": CANARY, "LAB_S3_SECRET": SECRET},
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def image(lab) -> str:
    return lab.registry().image("s3")


@pytest.fixture(scope="module")
def host(lab, image):
    # the registry comes first: the engine remembers for seconds that a name is unknown
    fresh = lab.host("t-backup-s3", layer="docker")
    lab.registry().admit(fresh)
    yield fresh
    lab.destroy(fresh)


@pytest.fixture(scope="module")
def server(host, image):
    s3 = start_server(host, image)
    s3.call("PUT", "/mc-bench")
    return s3


@pytest.fixture
def s3(server):
    """The server with exactly OBJECTS in its bucket."""
    for key in server.list():
        if key not in OBJECTS:
            server.delete(key)
    for key, content in OBJECTS.items():
        server.put(key, content)
    return server


@pytest.fixture(scope="module")
def declared(host, server, converge):
    run = converge(host)
    assert run.ok, run
    assert run.changed == ["Back up the objects"]
    return host


def backup(host, *words: str, check: bool = True):
    return host.run(shlex.join([PROGRAM, *words]), check=check, timeout=300)


def state(host) -> dict[str, object]:
    return json.loads(host.read("/var/lib/hostwright/backup/objects.json"))


@pytest.mark.soak
def test_a_lost_bucket_comes_back_object_by_object(declared, s3):
    # as the timer runs it, in its sandbox
    declared.run("systemctl start hostwright-backup-objects.service", timeout=300)
    assert state(declared)["rows"] == {"objects": len(OBJECTS)}
    # what was copied once is not fetched again; what changed is
    s3.put("runs/1/result.json", b"changed")
    s3.delete("runs/2/result.json")
    wanted = {**OBJECTS, "runs/1/result.json": b"changed"}
    del wanted["runs/2/result.json"]
    backup(declared, "run", "objects")
    assert state(declared)["rows"] == {"objects": len(wanted)}
    drilled = backup(declared, "drill", "objects").stdout
    assert "is verified" in drilled
    assert f"of {len(wanted)} objects of the bucket have the copy's sha256" in drilled

    # a bucket that is not empty is left alone
    s3.put("newer", b"newer than the copy")
    refused = backup(declared, "restore", "objects", check=False)
    assert "bucket mc-bench is not empty and nothing was changed" in refused.stderr
    assert s3.objects() == {**wanted, "newer": b"newer than the copy"}
    assert "--into NAME" in refused.stderr

    backup(declared, "restore", "objects", "--into", "mc-bench-restored")
    assert s3.objects("mc-bench-restored") == wanted
    assert s3.list() == sorted({*wanted, "newer"})

    for key in s3.list():
        s3.delete(key)
    backup(declared, "restore", "objects", "--at", "verified")
    assert s3.objects() == wanted

    s3.put("newer", b"x")
    backup(declared, "restore", "objects", "--replace")
    assert s3.objects() == wanted


@pytest.mark.soak
def test_an_emptied_bucket_is_not_stored(declared, s3):
    backup(declared, "run", "objects")
    for key in s3.list()[5:]:
        s3.delete(key)
    few = backup(declared, "run", "objects", check=False)
    assert "objects has 5, at least 10 wanted" in few.stderr
    for key in s3.list():
        s3.delete(key)
    none = backup(declared, "run", "objects", check=False)
    assert f"holds no object, and {len(OBJECTS)} when copy" in none.stderr


# how to spoil a copy, and what is said of it
SPOILT = {
    "other content": ("printf spoilt > data/runs/7/result.json", "bytes, recorded"),
    "other bytes": ("printf '{\"run\": 8}' > data/runs/7/result.json", "sha256 differs"),
    "truncated": ("truncate -s 100 'data/Bild mit Ümlaut & more.png'", "bytes, recorded"),
    "one missing": ("rm data/deep/er/still/empty", f"objects: {len(OBJECTS) - 1}, recorded {len(OBJECTS)}"),
    "empty": ("rm -r data && mkdir data", f"objects: 0, recorded {len(OBJECTS)}"),
    "none": ("rm -r data", "it holds no objects"),
    "foreign": ("echo {} > manifest.json", "it has no manifest"),
}


@pytest.mark.soak
@pytest.mark.parametrize("kind", SPOILT)
def test_a_drill_catches_an_object_that_is_another_one(declared, s3, kind):
    how, said = SPOILT[kind]
    backup(declared, "run", "objects")
    restic = f"RESTIC_PASSWORD={CANARY} restic -q -r {REPOSITORY}"
    declared.run("rm -rf /root/forge; install -d -m 0700 /root/forge")
    declared.run(f"cd /root/forge && {restic} restore latest --target . && cd stage && {how}", timeout=120)
    declared.run(f"cd /root/forge && {restic} backup --host t-backup-s3 --tag source:objects stage && rm -rf /root/forge", timeout=120)
    drill = backup(declared, "drill", "objects", check=False)
    assert drill.returncode != 0
    assert said in state(declared)["drill_failure"]
    refused = backup(declared, "restore", "objects", "--replace", check=False)
    assert refused.returncode != 0
    assert said in refused.stderr
    assert s3.objects() == OBJECTS


@pytest.mark.soak
def test_secrets_are_in_no_argument_and_in_no_file_of_others(declared, s3):
    declared.write("/root/canaries", f"{SECRET}\n")
    declared.write("/root/watch.sh", "while [ ! -e /root/stop ]; do grep -laFf /root/canaries /proc/[0-9]*/cmdline 2>/dev/null; sleep 0.05; done >/root/seen\n")
    declared.run("rm -f /root/stop; systemd-run --quiet --unit=hw-watch sh /root/watch.sh")
    try:
        backup(declared, "run", "objects")
        backup(declared, "drill", "objects")
    finally:
        declared.run("touch /root/stop; while systemctl is-active --quiet hw-watch; do sleep 0.1; done", timeout=120)
    assert declared.read("/root/seen") == ""
    assert declared.run(f"journalctl --no-pager -o cat | grep -cF '{SECRET}'", check=False).stdout.strip() == "0"
    left = declared.run(f"grep -rlF '{SECRET}' /etc /var/lib/hostwright /var/cache /usr/local /tmp /run/hostwright 2>/dev/null", check=False)
    assert left.stdout.split() == ["/etc/hostwright/backup/objects.env"]


@pytest.mark.soak
def test_second_run_changes_nothing_and_bad_input_is_refused(declared, converge):
    assert converge(declared).changed == []
    exposure = declared.run("systemd-analyze security --no-pager hostwright-backup-objects.service").stdout.splitlines()[-1]
    # 1.5 and the network, which it needs
    assert float(exposure.split(": ")[1].split()[0]) <= 2.4, exposure
    before = declared.read("/etc/hostwright/backup/objects.json")
    assert "bucket.endpoint must be a URL" in converge(declared, deploy(endpoint="http://a:b@x")).stderr
    assert declared.read("/etc/hostwright/backup/objects.json") == before


@pytest.mark.soak
def test_a_new_host_gets_its_objects_back_from_the_offsite_copy(lab, image, converge):
    vault = lab.host("t-vault")
    offsite = {"backup_offsite_repository": f"sftp:root@{vault.address}:/srv/vault"}

    def machine():
        host = lab.host("t-s3-lost", layer="docker")
        lab.registry().admit(host)
        trust(host, vault)
        server = start_server(host, image)
        return host, server

    try:
        host, server = machine()
        server.call("PUT", "/mc-bench")
        # as long as it never held anything, an empty bucket is no loss
        run = converge(host, deploy(minimum={}), **offsite)
        assert run.ok, run
        backup(host, "run", "objects")
        backup(host, "drill", "objects")
        assert (state(host)["failure"], state(host)["rows"]) == ("", {"objects": 0})
        for key, content in OBJECTS.items():
            server.put(key, content)
        run = converge(host, **offsite)
        assert run.ok, run
        backup(host, "run", "objects")
        backup(host, "drill", "objects")
        lab.destroy(host)

        host, server = machine()
        server.call("PUT", "/mc-bench")
        run = converge(host, deploy(minimum={}), **offsite)
        assert run.ok, run
        # to this machine it is new; that it held objects its off-site copies know
        assert "holds no object, and" in backup(host, "run", "objects", check=False).stderr
        backup(host, "restore", "objects", "--at", "verified", "--repository", "offsite")
        assert server.objects() == OBJECTS
        lab.destroy(host)
    finally:
        lab.destroy(vault)


def trust(host, vault) -> None:
    """Let root of a host reach the vault by its key."""
    host.run("mkdir -p -m 0700 /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
    vault.run("cat >> /root/.ssh/authorized_keys", input=host.read("/root/.ssh/id_ed25519.pub"))
    host.run(f"ssh-keyscan -t ed25519 {vault.address} 2>/dev/null > /root/.ssh/known_hosts; test -s /root/.ssh/known_hosts")
