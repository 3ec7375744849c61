"""Replicas on a real host, under traffic: read back with docker, curl and the files themselves."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.lab.hosts import LabHost
from tests.lab.kill import kill_after, moments
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line
from tests.lab.state import REPOSITORY, wait_for

SECRET = "canary-key-of-the-lamp-0123456789"
DIRECTORY = "/var/lib/hostwright/replicas/lamp"

# A small web application with a health path and a websocket that echoes.
SERVER = r"""
import base64, hashlib, http.server, os, signal, sys, threading, time
print("lamp", os.environ["NAME"], "with", os.environ["LAMP_API_KEY"], flush=True)
mode = os.environ.get("MODE", "")
if mode == "crashes":
    sys.exit("lamp cannot find its bulb")
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5
    def answer(self, text, status=200):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        if self.path == "/health":
            return self.answer("health", 503 if mode == "unhealthy" or os.path.exists("/tmp/sick") else 200)
        if self.path == "/ws":
            return self.echo()
        if self.path == "/slow":
            open("/tmp/slow", "w").close()
            while not os.path.exists("/tmp/go"):
                time.sleep(0.1)
        self.answer(os.environ["VERSION"] + " " + os.environ["NAME"])
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(hashlib.sha256(body).hexdigest())
    def echo(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        self.connection.settimeout(None)
        while True:
            head = self.rfile.read(6)
            if len(head) < 6 or head[0] & 15 == 8:
                return
            data = bytes(byte ^ head[2 + at % 4] for at, byte in enumerate(self.rfile.read(head[1] & 127)))
            self.wfile.write(bytes([0x81, len(data)]) + data)
    def log_message(self, *words): pass
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    def handle_error(self, *words): pass
server = Server(("0.0.0.0", 8000), Handler)
# At once: whoever stops this has to wait for what it does.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
if mode == "dies":
    threading.Timer(2.5, lambda: os._exit(3)).start()
server.serve_forever()
"""

# Takes tasks (files) from a directory by renaming them; a task that is cut off stays in `running`, one run twice shows.
WORKER = r"""
import os, pathlib, signal, sys, time
queue = pathlib.Path("/queue")
name = os.environ["WORKER_NAME"]
mode = os.environ.get("MODE", "")
if mode == "crashes":
    sys.exit("no bulb to screw in")
ending = []
signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
def tasks(number):
    (queue / "state" / (name + ".new")).write_text(number)
    (queue / "state" / (name + ".new")).rename(queue / "state" / name)
(queue / "seen" / name).touch()
(queue / "quiet" / name).unlink(missing_ok=True)  # said to an earlier one of this name
while not ending:
    pathlib.Path("/tmp/alive").touch()
    task = None
    tasks("1")
    if not (queue / "quiet" / name).exists():
        for one in sorted((queue / "todo").iterdir()):
            try:
                task = one.rename(queue / "running" / one.name)
                break
            except FileNotFoundError:
                continue
    if task is None:
        tasks("0")
        time.sleep(0.05)
        continue
    time.sleep(float(task.read_text()))
    with open(queue / "done" / task.name, "a") as file:
        file.write(name + "\n")
    task.unlink()
"""

IMAGES = r"""
set -eu
root=/tmp/rootfs
mkdir -p $root/tmp $root/app
cd /
python=$(readlink -f /usr/bin/python3)
libraries=$(find /usr/lib/python3.* -name '*.so' | xargs ldd "$python" /bin/dash /bin/touch 2>/dev/null |
    awk '/=> \// { print $3 } /^\t\/lib/ { print $1 }' | sort -u)
tar -ch --exclude=__pycache__ --exclude='*/test' --exclude='*/idlelib' --exclude='*/config-*' \
    "$python" /bin/dash /bin/touch /usr/lib/python3.[0-9]* $libraries 2>/dev/null | tar -x -C $root
ln -sf "$(basename "$python")" $root/usr/bin/python3
[ -e $root/bin/dash ] || { mkdir -p $root/bin; cp $root/usr/bin/dash $root/usr/bin/touch $root/bin; }
ln -sf dash $root/bin/sh
[ -e $root/lib64 ] || [ ! -d $root/usr/lib64 ] || ln -s usr/lib64 $root/lib64
chmod 1777 $root/tmp
cp /tmp/server.py /tmp/worker.py $root/app/
for version in 1 2 3; do
    tar -C $root -c . | docker import -c "ENV VERSION=$version PATH=/usr/bin:/bin" -c 'CMD ["python3", "-B", "/app/server.py"]' \
        - registry.example.test/lamp:$version >/dev/null
done
rm -rf $root
"""

NGINX = """
from operations import nginx
from operations.nginx import Location, Upstream
nginx.server(name="nginx")
nginx.site("lamp", server_names=["lamp.example.test"], upstreams=[Upstream("lamp", ("127.0.0.1:18000",), switched=True)],
           locations=[Location("/", upstream="lamp", websocket=True)], name="Site")
"""

Roll = Callable[..., Run]


def spec_text(version: int = 1, lamp: str = "one", mode: str = "ok", environment: str = "", **more: Any) -> str:
    rows = f"NAME={lamp}\nMODE={mode}\nLAMP_API_KEY={SECRET}\n{environment}"
    given = {"image": f"registry.example.test/lamp:{version}", "stop_seconds": 5, **more}
    words = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return f"Spec(environment=Secret({rows!r}), {words})"


def rollout_text(
    version: int = 1, lamp: str = "one", mode: str = "ok", spec: dict[str, Any] | None = None, extra: str = "", **arguments: Any
) -> str:
    given = {
        "count": 2,
        "upstream": "lamp",
        "container_port": 8000,
        "ports": (18000, 18100),
        "health_path": "/health",
        "probe": "curl -fsS -H 'Host: lamp.example.test' http://127.0.0.1/",
        "probe_seconds": 5,
        "start_seconds": 60,
        "settle_seconds": 0,
        "drain_seconds": 10,
        **arguments,
    }
    return (
        "from operations import replicas\n"
        "from operations.container import Health, Mount, Spec\n"
        "from settings.secret import Secret\n"
        f"replicas.rollout('lamp', {spec_text(version, lamp, mode, **(spec or {}))}, "
        f"{', '.join(f'{key}={value!r}' for key, value in given.items())}, name='Roll out'{extra})\n"
    )


def one_text(call: str, name: str) -> str:
    return f"from operations import replicas\nreplicas.{call.removesuffix(')')}, name={name!r})\n"


ROLLBACK = one_text("rollback('lamp')", "Roll back")
REMOVE = one_text("rollout('lamp', present=False)", "Remove")


def prepare(host: LabHost) -> None:
    """Give a host the images of the test application."""
    host.write("/tmp/server.py", SERVER)
    host.write("/tmp/worker.py", WORKER)
    host.run(IMAGES, timeout=300)


@pytest.fixture(scope="module")
def host(lab: Lab, provision: Roll) -> Iterator[LabHost]:
    fresh = lab.host("t-replicas", layer="docker")
    prepare(fresh)
    # hosts of this module lose their power
    assert provision(fresh, NGINX + "from deploys.docker_engine import give_back_ports\ngive_back_ports()\n").ok
    yield fresh
    lab.destroy(fresh)


@pytest.fixture
def roll(host: LabHost, provision: Roll) -> Roll:
    return lambda dry=False, **arguments: provision(host, rollout_text(**arguments), dry=dry)


@pytest.fixture
def served(host: LabHost, roll: Roll) -> Roll:
    """The host serves version 1 by two instances, whatever the test before did to it."""
    assert roll().ok
    return roll


def containers(host: LabHost, component: str = "lamp") -> dict[str, dict[str, Any]]:
    """What `docker inspect` says of every container of a component, by name."""
    listed = host.run(f"docker ps -aq --no-trunc --filter label=hostwright.component={component}").stdout.split()
    if not listed:
        return {}
    found = json.loads(host.run(f"docker inspect {' '.join(listed)}").stdout)
    return {one["Name"].lstrip("/"): one for one in found}


def ids(host: LabHost, component: str = "lamp") -> dict[str, tuple[str, str]]:
    return {name: (one["Id"], one["State"]["StartedAt"]) for name, one in containers(host, component).items()}


def ask(host: LabHost) -> str:
    return host.run("curl -fsS -m 10 -H 'Host: lamp.example.test' http://127.0.0.1/").stdout


def upstream(host: LabHost) -> list[int]:
    """The ports that nginx's file names, in order."""
    text = host.read("/etc/nginx/upstreams/lamp.conf")
    return [int(line.split(":")[1].rstrip(";")) for line in text.splitlines() if "server 127.0.0.1:" in line]


class Traffic:
    """Clients of every kind from outside; every request that has no complete, right answer is a failure."""

    def __init__(self, host: LabHost, *kinds: str) -> None:
        self.address = host.address
        self.kinds = kinds or ("get", "upload", "websocket")
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self.answers: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(kind,))
            for kind in (self._get, self._get, self._get, self._upload, self._websocket)
            if kind.__name__[1:] in self.kinds
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        wait_for("traffic of every kind", lambda: self.failures or len(self.done) == len(self.kinds), 30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)

    def _repeat(self, kind: Callable[[list[http.client.HTTPConnection]], None]) -> None:
        kept: list[http.client.HTTPConnection] = []
        while not self._stop.is_set():
            try:
                kind(kept)
                self.done[kind.__name__] += 1
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(f"{kind.__name__}: {type(error).__name__}: {error}")
                kept.clear()
                self._stop.wait(0.2)

    def _exchange(self, kept: list[http.client.HTTPConnection], send: Callable[[http.client.HTTPConnection], None]) -> bytes:
        """HTTP has clients repeat a request whose idle connection was closed without one byte of an answer."""
        for is_last in (False, True):
            if not kept:
                kept.append(http.client.HTTPConnection(self.address, timeout=30))
            is_fresh = kept[0].sock is None
            try:
                send(kept[0])
                answer = kept[0].getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                kept.pop().close()
                if is_fresh or is_last:
                    raise
                continue
            body = answer.read()
            assert answer.status == 200, f"status {answer.status}"
            if answer.will_close:
                kept.pop().close()
            return body
        raise AssertionError

    def _get(self, kept: list[http.client.HTTPConnection]) -> None:
        body = self._exchange(kept, lambda one: one.request("GET", "/", headers={"Host": "lamp.example.test"})).decode()
        if body not in self.answers:
            self.answers.append(body)
        time.sleep(0.02)

    def _upload(self, kept: list[http.client.HTTPConnection]) -> None:
        """In pieces: nginx has the whole of it before the application hears of it, maybe from an old worker by then."""
        pieces = [random.randbytes(4000) for _ in range(8)]

        def send(one: http.client.HTTPConnection) -> None:
            one.putrequest("POST", "/upload", skip_host=True)
            one.putheader("Host", "lamp.example.test")
            one.putheader("Content-Length", "32000")
            one.endheaders()
            for piece in pieces:
                one.send(piece)
                time.sleep(0.1)

        body = self._exchange(kept, send).decode()
        assert body == hashlib.sha256(b"".join(pieces)).hexdigest()

    def _websocket(self, _: list[http.client.HTTPConnection]) -> None:
        with Websocket(self.address) as one:
            for number in range(20):
                assert one.echo(f"message {number}") == f"message {number}"
                time.sleep(0.05)


class Websocket:
    """A client of the application's echo."""

    def __init__(self, address: str) -> None:
        self.socket = socket.create_connection((address, 80), timeout=30)
        self.socket.sendall(
            b"GET /ws HTTP/1.1\r\nHost: lamp.example.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = self.socket.recv(1)
            assert piece, f"websocket: closed after {head!r}"
            head += piece
        assert b" 101 " in head.split(b"\r\n")[0], head

    def __enter__(self) -> Websocket:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.socket.sendall(b"\x88\x80\0\0\0\0")
        self.socket.close()

    def echo(self, text: str) -> str:
        data = text.encode()
        self.socket.sendall(bytes([0x81, 0x80 | len(data)]) + b"\0\0\0\0" + data)
        answer = b""
        while len(answer) < 2 or len(answer) < 2 + answer[1]:
            piece = self.socket.recv(200)
            assert piece, "websocket: cut"
            answer += piece
        return answer[2:].decode()


# --- requests ---------------------------------------------------------------------------------------------------------


def test_set_noop_update_and_nothing_in_dry(host, roll):
    first = roll()
    assert first.changed == ["Roll out"], first
    assert sorted(containers(host)) == ["lamp-blue-1", "lamp-blue-2"]
    assert upstream(host) == [18000, 18001]
    assert ask(host) == "1 one"
    one = containers(host)["lamp-blue-2"]
    assert one["HostConfig"]["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18001"}]}
    labels = one["Config"]["Labels"]
    assert labels["hostwright.component"] == "lamp"
    assert labels["hostwright.release"] == labels["hostwright.spec"][:12]
    assert (labels["hostwright.instance"], labels["hostwright.color"]) == ("2", "blue")
    assert labels["hostwright.image"] == one["Image"]
    modes = host.run(f"find {DIRECTORY} -printf '%y %m %u\\n' | sort -u").stdout.splitlines()
    assert modes == ["d 700 root", "f 600 root"]
    assert host.run("ls /etc/hostwright/containers", check=False).stdout == ""
    assert host.run(f"ps -ef | grep -c {SECRET[:12]}[-]", check=False).stdout.strip() == "0"

    before = ids(host)
    assert roll().changed == []
    assert roll(dry=True).changed == []
    assert roll(dry=True, version=2).changed == ["Roll out"]
    assert ids(host) == before

    with Traffic(host) as traffic:
        second = roll(version=2, lamp="two")
        assert roll(version=2, lamp="two").changed == []
    assert second.changed == ["Roll out"], second
    assert traffic.failures == []
    assert traffic.answers == ["1 one", "2 two"]
    assert sorted(containers(host)) == ["lamp-green-1", "lamp-green-2"]
    assert upstream(host) == [18100, 18101]


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_release_that_fails_anywhere_never_serves(host, served, all_of_them):
    before, ports = ids(host), upstream(host)
    bad = [
        ("crashes", {}, "ended with exit status 1", "lamp cannot find its bulb"),
        ("unhealthy", {"start_seconds": 6}, "did not become healthy within 6 s", "answers /health with status 503"),
        ("dies", {"settle_seconds": 4}, "ended", "exit status 3"),
        ("ok", {"probe_seconds": 1, "probe": "curl -fsS -H 'Host: lamp.example.test' http://127.0.0.1/ | grep one"}, "no good answer through nginx"),
    ]
    with Traffic(host) as traffic:
        for mode, arguments, *words in bad if all_of_them else (bad[0], bad[-1]):
            run = served(version=2, lamp="two", mode=mode, spec={"restart": "no"}, **arguments)
            assert run.failed == ["Roll out"], mode
            for word in [*words, "lamp two with *MASKED*" if mode != "ok" else "", "serves as before"]:
                assert word in run.stderr, mode
            assert SECRET not in run.stderr + run.stdout, mode
            assert ids(host) == before, mode
            assert upstream(host) == ports, mode
        missing = served(version=9)
        assert "image registry.example.test/lamp:9 is not on this host and cannot be pulled" in missing.stderr
        assert served().changed == []
    assert traffic.failures == []
    # Only the one that starts well and is refused by its probe answered for a moment, and well.
    assert set(traffic.answers) <= {"1 one", "2 two"}
    assert ids(host) == before
    assert len(host.run(f"ls {DIRECTORY}/specs").stdout.split()) == len(set(host.read(f"{DIRECTORY}/history").split()))


@pytest.mark.soak
def test_crash_loop_is_a_death(host, served):
    """With a restart policy it looks up at any one moment."""
    run = served(version=2, mode="dies", settle_seconds=6)
    assert run.failed == ["Roll out"]
    assert "ended by itself and was started again" in run.stderr
    assert ask(host) == "1 one"


def test_another_number_touches_only_the_difference(host, served, provision):
    before = ids(host)
    assert len(before) == 2
    with Traffic(host) as traffic:
        assert served(count=4).changed == ["Roll out"]
        more = ids(host)
        assert len(more) == 4
        assert before.items() <= more.items()
        first = min(upstream(host))
        assert upstream(host) == [first, first + 1, first + 2, first + 3]
        assert served(count=4).changed == []
        assert provision(host, one_text("scale('lamp', 4)", "Scale")).changed == []
        assert provision(host, one_text("scale('lamp', 2)", "Scale")).changed == ["Scale"]
        assert ids(host) == before
        assert upstream(host) == [first, first + 1]
        assert served().changed == []
    assert traffic.failures == []


_FIRST = [
    "docker rm -f {second}",
    pytest.param("docker stop {first}", marks=pytest.mark.soak),
    pytest.param("docker pause {first}", marks=pytest.mark.soak),
    pytest.param("docker exec {second} touch /tmp/sick", marks=pytest.mark.soak),
]


@pytest.mark.parametrize("damage", _FIRST)
def test_instance_broken_by_hand_is_made_anew_and_no_other_touched(host, served, damage):
    first, second = sorted(ids(host))
    damage = damage.format(first=first, second=second)
    ports = upstream(host)
    others = {name: one for name, one in ids(host).items() if name not in damage}
    # What a client had going on in the one that was taken away is lost; nginx asks the other for what only gets.
    with Traffic(host, "get") as traffic:
        host.run(damage)
        assert served().changed == ["Roll out"]
    assert traffic.failures == []
    assert others.items() <= ids(host).items()
    assert (sorted(ids(host)), upstream(host)) == ([first, second], ports)
    assert served().changed == []


_FILE = "/etc/nginx/upstreams/lamp.conf"
_DAMAGES = [
    f"sed -i 's/:18/:9/' {_FILE}",
    f"rm {DIRECTORY}/current.json",
    *(
        pytest.param(damage, marks=pytest.mark.soak)
        for damage in (
            f"rm {_FILE}",
            f"printf 'upstream lamp {{ nonsense }}' >{_FILE}",
            f"touch {_FILE}",
            f"rm {DIRECTORY}/specs/*",
            f"sed -i s/registry/hacked/ {DIRECTORY}/specs/*",
            f"chmod 0644 {DIRECTORY}/current.json",
            f"rm {DIRECTORY}/history",
            f"echo nonsense >{DIRECTORY}/current.json",
        )
    ),
]


@pytest.mark.parametrize("damage", _DAMAGES)
def test_file_broken_by_hand_is_put_right_and_no_instance_touched(host, served, damage):
    before, ports = ids(host), upstream(host)
    with Traffic(host) as traffic:
        host.run(damage)
        assert served().changed == ["Roll out"]
    assert traffic.failures == []
    assert (ids(host), upstream(host)) == (before, ports)
    assert served().changed == []


@pytest.mark.soak
def test_the_last_one_that_is_sick_is_replaced_from_beside(host, served):
    assert served(count=1).ok
    (name,) = ids(host)
    with Traffic(host) as traffic:
        host.run(f"docker exec {name} touch /tmp/sick")
        assert served(count=1).changed == ["Roll out"]
    assert traffic.failures == []
    assert name not in ids(host)
    assert served(count=1).changed == []


def test_rollback_goes_back_and_forth_with_the_whole_spec(host, served, provision):
    assert served(version=2, lamp="two", spec={"environment": "EXTRA=yes\n"}, drain_seconds=11).ok
    assert served(version=3, lamp="three").ok
    before = host.read(f"{DIRECTORY}/history").split()
    with Traffic(host) as traffic:
        back = provision(host, ROLLBACK)
        assert back.changed == ["Roll back"], back
        assert ask(host) == "2 two"
        assert all("EXTRA=yes" in one["Config"]["Env"] for one in containers(host).values())
        assert json.loads(host.read(f"{DIRECTORY}/current.json"))["settings"]["drain_seconds"] == 11
        assert provision(host, ROLLBACK).ok
    assert traffic.failures == []
    assert traffic.answers == ["3 three", "2 two"]
    assert ask(host) == "3 three"
    assert host.read(f"{DIRECTORY}/history").split()[-2:] == before[-2:]
    assert served(version=3, lamp="three").changed == []


def test_old_instances_finish_what_they_do_and_websockets_get_their_time(host, served):
    assert served(count=1).ok
    (old,) = ids(host)
    before = upstream(host)

    def ask_slowly() -> bytes:
        one = http.client.HTTPConnection(host.address, timeout=120)
        one.request("GET", "/slow", headers={"Host": "lamp.example.test"})
        return one.getresponse().read()

    with ThreadPoolExecutor() as pool:
        slow = pool.submit(ask_slowly)
        look = f"docker exec {old} sh -c 'test -e /tmp/slow'"
        wait_for("the request to be at work", lambda: host.run(look, check=False).returncode == 0, 30)
        run = pool.submit(served, version=2, lamp="two", count=1, settle_seconds=0, drain_seconds=120)
        wait_for("the switch", lambda: upstream(host) != before, 60)
        wait_for("the new one to answer", lambda: ask(host) == "2 two", 30)
        assert old in ids(host)
        assert not slow.done()
        host.run(f"docker exec {old} touch /tmp/go")
        assert slow.result(60) == b"1 one"
        assert run.result(120).ok
    assert old not in ids(host)

    with Websocket(host.address) as websocket:
        assert websocket.echo("hello") == "hello"
        began = time.monotonic()
        assert served(count=1, settle_seconds=0, drain_seconds=4).ok
        assert time.monotonic() - began >= 4
        with pytest.raises((AssertionError, OSError)):
            websocket.echo("still there?")


def test_nothing_to_roll_back_to_is_said_and_removal_leaves_nothing(host, served, provision):
    assert provision(host, REMOVE).changed == ["Remove"]
    assert containers(host) == {}
    assert not host.exists(DIRECTORY)
    assert provision(host, REMOVE).changed == []
    assert not provision(host, one_text("scale('lamp', 2)", "Scale")).ok
    assert served(count=1).ok
    run = provision(host, ROLLBACK)
    assert not run.ok
    assert "lamp has no earlier release on this host to go back to" in run.stderr


@pytest.mark.soak
def test_migration_runs_before_the_switch_once_and_a_failed_one_stops_it(host, served, provision):
    script = "echo migrating with $LAMP_API_KEY; echo ran >>/log/migrations; exit {}"
    host.run("mkdir -p /srv/log && chmod 0777 /srv/log && rm -f /srv/log/*")
    before = ids(host)

    def text(step: int, status: int) -> str:
        spec = {"environment": f"STEP={step}\n"}
        whole = rollout_text(version=2, lamp="two", spec=spec, migrate=("sh", "-c", script.format(status)))
        return whole.replace("stop_seconds=5", "stop_seconds=5, mounts=(Mount('/srv/log', '/log'),)")

    run = provision(host, text(1, 7))
    assert run.failed == ["Roll out"]
    assert "lamp-migrate failed: exit status 7" in run.stderr
    assert "migrating with *MASKED*" in run.stderr
    assert ids(host) == before
    assert provision(host, text(2, 0)).changed == ["Roll out"]
    assert provision(host, text(2, 0)).changed == []
    assert host.read("/srv/log/migrations") == "ran\nran\n"
    assert ask(host) == "2 two"


def test_bad_input_is_refused(host, roll):
    before = ids(host)
    run = roll(version=2, count=0, settle_seconds=-1, spec={"cpus": -1})
    assert not run.ok
    for words in ("cpus must be 0 (no limit)", "count must be a whole number of at least 1, got 0", "settle_seconds must be"):
        assert words in run.stderr
    assert SECRET not in run.stderr
    assert ids(host) == before


# --- workers ----------------------------------------------------------------------------------------------------------

FOLDERS = "/srv/queue/todo /srv/queue/running /srv/queue/done /srv/queue/seen /srv/queue/state /srv/queue/quiet"


def workers_text(version: int = 1, mode: str = "ok", count: int = 2, **arguments: Any) -> str:
    spec = spec_text(version, mode=mode, command=("python3", "-B", "/app/worker.py"), stop_seconds=2)
    spec = spec.replace("Spec(", "Spec(mounts=(Mount('/srv/queue', '/queue'),), health=Health(('test', '-e', '/tmp/alive'), 1, 20, 5), ")
    given = {
        "quiesce": ("touch", "/queue/quiet/{worker}"),
        "busy": ("sh", "-c", "read tasks </queue/state/{worker} || :; echo $tasks"),
        "start_seconds": 60,
        "settle_seconds": 0,
        "drain_seconds": 40,
        **arguments,
    }
    return (
        "from operations import replicas\n"
        "from operations.container import Health, Mount, Spec\n"
        "from settings.secret import Secret\n"
        f"replicas.workers('digger', {spec}, count={count}, "
        f"{', '.join(f'{key}={value!r}' for key, value in given.items())}, name='Workers')\n"
    )


def add_tasks(host: LabHost, prefix: str, number: int) -> None:
    """Most are short; some take longer than a worker has from its stop signal to the kill."""
    host.run(
        f"cd /srv/queue && for n in $(seq -w {number}); do "
        f"case $n in *5) s=3 ;; *) s=0.2 ;; esac; echo $s >$n.new && mv $n.new todo/{prefix}-$n; done"
    )


def await_tasks(host: LabHost, number: int) -> None:
    """Every task was done once, and none is left."""
    wait_for("the tasks", lambda: int(host.run("ls /srv/queue/done | wc -l").stdout) >= number, 120)
    wait_for("the last task to be put away", lambda: host.run("ls /srv/queue/running").stdout == "", 20)
    assert host.run("ls /srv/queue/todo").stdout == ""
    lines = host.run("cat /srv/queue/done/* | wc -l; ls /srv/queue/done | wc -l").stdout.split()
    assert lines == [str(number), str(number)]


def names_of_workers(host: LabHost) -> list[str]:
    found = containers(host, "digger").values()
    return sorted(word[12:] for one in found for word in one["Config"]["Env"] if word.startswith("WORKER_NAME="))


def test_workers_lose_no_task_and_run_none_twice(host, provision):
    host.run(f"rm -rf /srv/queue && mkdir -p {FOLDERS}")
    assert provision(host, workers_text()).changed == ["Workers"]
    before = ids(host, "digger")
    release = next(iter(containers(host, "digger").values()))["Config"]["Labels"]["hostwright.release"]
    assert sorted(before) == [f"digger-{release}-1", f"digger-{release}-2"]
    assert names_of_workers(host) == [f"digger-{release}-{n}@t-replicas" for n in (1, 2)]
    assert provision(host, workers_text()).changed == []

    add_tasks(host, "a", 40)
    assert provision(host, workers_text(2, "crashes")).failed == ["Workers"]
    assert ids(host, "digger") == before
    assert provision(host, workers_text(2)).changed == ["Workers"]
    assert not before.keys() & ids(host, "digger").keys()
    assert len(ids(host, "digger")) == 2
    assert provision(host, workers_text(2, count=3)).changed == ["Workers"]
    add_tasks(host, "b", 20)
    assert provision(host, workers_text(2, count=1)).changed == ["Workers"]
    assert len(ids(host, "digger")) == 1
    assert provision(host, one_text("rollback('digger')", "Roll back")).changed == ["Roll back"]
    assert sorted(ids(host, "digger")) == [f"digger-{release}-1"]
    await_tasks(host, 60)
    assert provision(host, workers_text(count=1)).changed == []

    host.run(f"docker kill digger-{release}-1")
    assert provision(host, workers_text(count=1)).changed == ["Workers"]
    assert provision(host, one_text("workers('digger', present=False)", "Remove")).changed == ["Remove"]
    assert containers(host, "digger") == {}


# --- jobs -------------------------------------------------------------------------------------------------------------


def once_text(command: str, seconds: int = 30, image: int = 1) -> str:
    spec = spec_text(image, command=("sh", "-c", command), stop_seconds=1)
    spec = spec.replace("Spec(", "Spec(mounts=(Mount('/srv/log', '/log'),), ")
    return (
        "from operations import replicas\n"
        "from operations.container import Mount, Spec\n"
        "from settings.secret import Secret\n"
        f"replicas.once('digger', 'migrate', {spec}, seconds={seconds}, name='Migrate')\n"
    )


def test_job_runs_once_for_its_spec_and_says_why_it_failed(host, provision):
    host.run("mkdir -p /srv/log && rm -f /srv/log/*")
    run = provision(host, once_text("echo with $LAMP_API_KEY; echo no such table >&2; echo ran >>/log/jobs; exit 3"))
    assert run.failed == ["Migrate"]
    for word in ("digger-migrate failed: exit status 3", "no such table", "with *MASKED*"):
        assert word in run.stderr
    assert SECRET not in run.stderr
    good = once_text("echo ran >>/log/jobs")
    assert provision(host, good).changed == ["Migrate"]
    assert provision(host, good).changed == []
    assert provision(host, once_text("echo ran >>/log/jobs", image=2)).changed == ["Migrate"]
    assert host.read("/srv/log/jobs") == "ran\n" * 3
    assert containers(host, "digger") == {}
    slow = provision(host, once_text("echo begun; while :; do :; done", seconds=3))
    assert slow.failed == ["Migrate"]
    assert "did not end within 3 s" in slow.stderr


@pytest.mark.soak
def test_job_killed_half_way_is_waited_for_or_run_again(host, provision, tmp_path):
    host.run("mkdir -p /srv/log && rm -f /srv/log/*")
    text = once_text("echo begun >>/log/jobs; while ! [ -e /log/go ]; do read x </dev/null || :; done; echo done >>/log/jobs", 120)
    process = subprocess.Popen(
        command_line(tmp_path, host, text), cwd=REPOSITORY, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for("the job to begin", lambda: host.exists("/srv/log/jobs"), 60)
    finally:
        process.kill()
        process.wait()
    # Its program too, as a full memory would: the container goes on alone.
    host.run("kill -KILL $(pgrep -f 'python3 -B -$')")
    threading.Timer(4, lambda: host.run("touch /srv/log/go")).start()
    assert provision(host, text).changed == ["Migrate"]
    assert host.read("/srv/log/jobs") == "begun\ndone\n"
    assert provision(host, text).changed == []


# --- several hosts, and kills -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("serial", ["_serial=True", pytest.param("_parallel=1", marks=pytest.mark.soak)])
def test_after_a_failed_host_the_next_is_not_touched(host, lab, provision, served, serial):
    others = [lab.host(f"t-replicas-{number}", layer="docker") for number in (2, 3)]
    try:
        # Two hosts have no image. pyinfra takes hosts in any order: whichever of the two comes first fails.
        run = provision([host, *others], rollout_text(version=2, lamp="two", upstream="", probe="", extra=f", {serial}"))
        assert not run.ok
        (failed,) = (other for other in others if f"[{other.name}] lamp: image" in run.stderr)
        (spared,) = (other for other in others if other is not failed)
        assert f"lamp is not touched on {spared.name}: in this run lamp failed on {failed.name}." in run.stderr
        assert not spared.exists("/var/lib/hostwright/replicas")
        assert len(containers(host)) == 2
        assert run.changed == ["Roll out"] or f"lamp is not touched on {host.name}: in this run lamp failed" in run.stderr
        # A job on one host holds the component back on all of them.
        once = once_text("exit 3").replace("'digger'", "'lamp'")
        once = "from pyinfra import host\nif host.name == 't-replicas':\n    " + once.replace("\n", "\n    ") + "\n"
        run = provision([host, *others], once + rollout_text(version=3, upstream="", probe="", extra=f", {serial}"))
        for name in ("t-replicas-2", "t-replicas-3"):
            assert f"lamp is not touched on {name}: in this run lamp failed on t-replicas." in run.stderr
    finally:
        for other in others:
            lab.destroy(other)


@pytest.mark.parametrize("number", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_anywhere_one_more_run_converges(host, served, tmp_path, number):
    for turn, seconds in enumerate(moments(number, 0.5, 7)):
        power, version = turn % 2 == 1, turn % 2 + 2
        with Traffic(host) if not power else contextlib.nullcontext() as traffic:
            kill_after(command_line(tmp_path, host, rollout_text(version=version)), seconds, host if power else None)
            at = f"killed after {seconds:.2f}s, {'host' if power else 'run'}"
            run = served(version=version)
        assert run.ok, f"{at}: {run}"
        assert not traffic or traffic.failures == [], at
        assert ask(host) == f"{version} one", at
        assert served(version=version).changed == [], at
        assert len(ids(host)) == 2, at
        assert len({one["Config"]["Labels"]["hostwright.color"] for one in containers(host).values()}) == 1, at
        assert host.run("ls /etc/hostwright/containers", check=False).stdout == "", at


# --- an alias ---------------------------------------------------------------------------------------------------------

# A client on the network. It asks for the alias each time; every request without a complete, right answer is a failure.
CLIENT = r"""
import collections, hashlib, http.client, json, os, random, threading, time
done, failures, answers = collections.Counter(), [], []
def exchange(method, body=None):
    one = http.client.HTTPConnection("lantern", 8000, timeout=20)
    one.putrequest(method, "/")
    one.putheader("Content-Length", str(sum(map(len, body or []))))
    one.endheaders()
    for piece in body or []:
        one.send(piece)
        time.sleep(0.2)
    answer = one.getresponse()
    text = answer.read().decode()
    one.close()
    assert answer.status == 200, answer.status
    return text
def get():
    text = exchange("GET")
    if text not in answers:
        answers.append(text)
    time.sleep(0.02)
def upload():
    pieces = [random.randbytes(2000) for _ in range(5)]
    assert exchange("POST", pieces) == hashlib.sha256(b"".join(pieces)).hexdigest()
def repeat(kind):
    while not os.path.exists("/out/stop"):
        try:
            kind()
            done[kind.__name__] += 1
        except (OSError, http.client.HTTPException, AssertionError) as error:
            failures.append(f"{time.time():.2f} {kind.__name__}: {type(error).__name__}: {error}")
            time.sleep(0.2)
threads = [threading.Thread(target=repeat, args=(kind,)) for kind in (get, get, get, upload, upload)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    with open("/out/new", "w") as file:
        json.dump({"done": dict(done), "failures": failures, "answers": answers}, file)
    os.rename("/out/new", "/out/report")
    time.sleep(0.2)
with open("/out/report", "w") as file:
    json.dump({"done": dict(done), "failures": failures, "answers": answers}, file)
"""

HEALTHY = (
    "python3", "-I", "-S", "-c",
    "import socket; s = socket.create_connection(('127.0.0.1', 8000)); "
    "s.send(b'GET /health HTTP/1.0' + bytes((13, 10, 13, 10))); raise SystemExit(b' 200 ' not in s.recv(99))",
)  # fmt: skip


def lantern_text(version: int = 1, lamp: str = "one", mode: str = "ok", count: int = 2, **arguments: Any) -> str:
    networks = "Network('oil'), Network('street', aliases=('lantern',))"
    spec = spec_text(version, lamp, mode).replace(
        "Spec(", f"Spec(networks=({networks}), health=Health({HEALTHY!r}, 1, 5, 3, 20), ", 1
    )
    given = {"count": count, "start_seconds": 60, "settle_seconds": 1, "drain_seconds": 10, **arguments}
    return (
        "from operations import replicas\n"
        "from operations.container import Health, Network, Spec\n"
        "from settings.secret import Secret\n"
        f"replicas.rollout('lantern', {spec}, {', '.join(f'{key}={value!r}' for key, value in given.items())}, "
        "name='Roll out')\n"
    )


class Street:
    """Traffic from a container that knows the component by its alias alone."""

    def __init__(self, host: LabHost) -> None:
        self.host = host
        self.failures: list[str] = []
        self.answers: list[str] = []
        self.done: dict[str, int] = {}

    def _report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.host.read("/srv/street/report"))
        return found

    def __enter__(self) -> Street:
        self.host.run("docker rm -f walker; rm -rf /srv/street; mkdir -p /srv/street", check=False)
        self.host.write("/srv/street/client.py", CLIENT)
        self.host.run(
            "docker run -d --name walker --network street -v /srv/street:/out registry.example.test/lamp:1 "
            "python3 -B /out/client.py"
        )
        wait_for("traffic of every kind", lambda: self.host.exists("/srv/street/report") and len(self._report()["done"]) == 2, 60)
        return self

    def __exit__(self, *_: object) -> None:
        self.host.run("touch /srv/street/stop && docker wait walker", timeout=60)
        found = self._report()
        self.host.run("docker rm -f walker")
        self.failures, self.answers, self.done = found["failures"], found["answers"], found["done"]


def on_street(host: LabHost) -> dict[str, bool]:
    """Which instances are on the network, and whether they have the alias there."""
    found = {name: one["NetworkSettings"]["Networks"] for name, one in containers(host, "lantern").items()}
    assert all("oil" in networks and "lantern" not in (networks["oil"]["Aliases"] or []) for networks in found.values())
    return {name: "lantern" in (one["street"]["Aliases"] or []) for name, one in found.items() if "street" in one}


@pytest.fixture(scope="module")
def street(host: LabHost) -> LabHost:
    host.run("docker network create oil && docker network create street")
    return host


def show_alias(host: LabHost, provision: Roll) -> None:
    """Up, again, update and again, under traffic."""
    assert provision(host, lantern_text()).changed == ["Roll out"]
    assert on_street(host) == {"lantern-blue-1": True, "lantern-blue-2": True}
    before = ids(host, "lantern")
    assert provision(host, lantern_text()).changed == []
    assert ids(host, "lantern") == before
    with Street(host) as traffic:
        assert provision(host, lantern_text(2, "two")).changed == ["Roll out"]
        assert on_street(host) == {"lantern-green-1": True, "lantern-green-2": True}
        assert provision(host, lantern_text(2, "two")).changed == []
    assert traffic.failures == []
    assert traffic.answers == ["1 one", "2 two"]
    # Whoever was off the network for a moment asks and reaches others as before.
    for name in ("lantern", "lantern-green-2"):
        ask = f"import urllib.request as r; print(r.urlopen('http://{name}:8000').read().decode())"
        assert host.run(f'docker exec lantern-green-1 python3 -c "{ask}"').stdout == "2 two\n"


def show_alias_and_what_goes_wrong(host: LabHost, provision: Roll) -> None:
    """A migration, releases that never get well, and back: nobody hears of any of them by the alias."""
    assert provision(host, lantern_text(2, "two")).ok
    with Street(host) as traffic:
        program = (
            "import http.server as h, os, threading; threading.Timer(3, os._exit, (0,)).start(); "
            "h.HTTPServer(('', 8000), h.BaseHTTPRequestHandler).serve_forever()"
        )
        assert provision(host, lantern_text(3, "three", migrate=("python3", "-c", program))).changed == ["Roll out"]
        before = ids(host, "lantern")
        bad = provision(host, lantern_text(1, "bad", mode="unhealthy", start_seconds=4))
        assert bad.failed == ["Roll out"]
        assert "did not become healthy" in bad.stderr
        assert provision(host, lantern_text(1, "bad", mode="dies", settle_seconds=4)).failed == ["Roll out"]
        assert ids(host, "lantern") == before
        assert list(on_street(host).values()) == [True, True]
        assert provision(host, one_text("rollback('lantern')", "Roll back")).changed == ["Roll back"]
    assert traffic.failures == []
    assert traffic.answers == ["2 two", "3 three"]
    assert list(on_street(host).values()) == [True, True]


@pytest.mark.soak
def test_alias_leads_to_what_is_healthy_and_no_request_fails(street, provision):
    show_alias(street, provision)


@pytest.mark.soak
def test_alias_never_leads_to_a_release_that_fails(street, provision):
    show_alias_and_what_goes_wrong(street, provision)


@pytest.mark.soak
def test_alias_with_another_number_of_instances(street, provision):
    assert provision(street, lantern_text()).ok
    before = ids(street, "lantern")
    with Street(street) as traffic:
        assert provision(street, lantern_text(count=4)).changed == ["Roll out"]
        assert list(on_street(street).values()) == [True] * 4
        assert provision(street, lantern_text(count=4)).changed == []
        assert provision(street, one_text("scale('lantern', 2)", "Scale")).changed == ["Scale"]
    assert traffic.failures == []
    assert ids(street, "lantern") == before
    assert provision(street, lantern_text()).changed == []


@pytest.mark.soak
@pytest.mark.parametrize(
    "damage",
    [
        "docker network disconnect street {}",
        "docker network disconnect street {0} && docker network connect street {0}",
        "docker network disconnect street {0} && docker network connect --alias lantern --alias moon street {0}",
    ],
)
def test_alias_taken_away_by_hand_comes_back(street, provision, damage):
    assert provision(street, lantern_text()).ok
    before = ids(street, "lantern")
    street.run(damage.format(sorted(before)[0]))
    assert provision(street, lantern_text(), dry=True).changed == ["Roll out"]
    assert provision(street, lantern_text()).changed == ["Roll out"]
    assert list(on_street(street).values()) == [True, True]
    for one in containers(street, "lantern").values():
        assert "moon" not in one["NetworkSettings"]["Networks"]["street"]["Aliases"]
    assert ids(street, "lantern") == before
    assert provision(street, lantern_text()).changed == []


@pytest.mark.soak
def test_alias_leaves_and_what_is_open_goes_on_even_where_the_address_is_given_to_nobody(street, provision):
    """An engine gives the lowest free address: the old one would come back to the network with another one."""
    assert provision(street, one_text("rollout('lantern', present=False)", "Remove")).ok
    stones = " ".join(f"stone{number}" for number in range(4))
    street.run(f"for one in {stones}; do docker run -d --name $one --network street registry.example.test/lamp:1 sh -c 'read x </dev/zero'; done")
    assert provision(street, lantern_text(count=1)).ok
    (old,) = ids(street, "lantern")
    street.run(f"docker rm -f {stones}")
    ask = "import urllib.request as r; print(r.urlopen('http://lantern:8000/slow', timeout=60).read().decode())"
    street.run(f'docker run -d --name walker --network street registry.example.test/lamp:1 python3 -c "{ask}"')
    look = f"docker exec {old} sh -c 'test -e /tmp/slow'"
    wait_for("the request to be at work", lambda: street.run(look, check=False).returncode == 0, 30)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(provision, street, lantern_text(2, "two", count=1, drain_seconds=60))
        wait_for("the old one to lose the alias", lambda: on_street(street).get(old) is False, 60)
        pid = street.run(f"docker inspect -f '{{{{.State.Pid}}}}' {old}").stdout.strip()
        addresses = street.run(f"nsenter -t {pid} -n ip -o -4 addr show").stdout
        assert addresses.count("/32 ") == 1, addresses
        street.run(f"docker exec {old} touch /tmp/go")
        assert run.result(120).ok
    assert street.run("docker wait walker && docker logs walker").stdout == "0\n1 one\n"
    street.run("docker rm -f walker")
    assert on_street(street) == {"lantern-green-1": True}


@pytest.mark.soak
def test_alias_and_a_run_killed_anywhere(street, provision, tmp_path):
    assert provision(street, lantern_text()).ok
    for turn, seconds in enumerate(moments(10, 1, 14)):
        power, version = turn % 2 == 1, turn % 2 + 2
        with Street(street) if not power else contextlib.nullcontext() as traffic:
            kill_after(command_line(tmp_path, street, lantern_text(version)), seconds, street if power else None)
            at = f"killed after {seconds:.2f}s, {'host' if power else 'run'}"
            run = provision(street, lantern_text(version))
        assert run.ok, f"{at}: {run}"
        assert not traffic or traffic.failures == [], at
        assert list(on_street(street).values()) == [True, True], at
        assert provision(street, lantern_text(version)).changed == [], at
        assert {one["Image"] for one in containers(street, "lantern").values()} == {
            street.run(f"docker image inspect -f '{{{{.Id}}}}' registry.example.test/lamp:{version}").stdout.strip()
        }


@pytest.mark.soak
def test_the_same_on_debian_13(lab, provision):
    newer = lab.host("t-replicas-13", release="trixie", layer="docker")
    try:
        prepare(newer)
        assert provision(newer, NGINX).ok
        assert provision(newer, rollout_text()).changed == ["Roll out"]
        with Traffic(newer) as traffic:
            assert provision(newer, rollout_text(version=2)).changed == ["Roll out"]
            assert provision(newer, rollout_text(version=3, mode="crashes")).failed == ["Roll out"]
            assert provision(newer, rollout_text(version=2, count=3)).changed == ["Roll out"]
            assert provision(newer, rollout_text(version=2, count=3)).changed == []
            assert provision(newer, ROLLBACK).changed == ["Roll back"]
        assert traffic.failures == []
        assert ask(newer) == "1 one"
        assert len(ids(newer)) == 3
        newer.run("docker network create oil && docker network create street")
        show_alias(newer, provision)
        show_alias_and_what_goes_wrong(newer, provision)
    finally:
        lab.destroy(newer)
