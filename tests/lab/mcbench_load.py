"""Requests of all kinds to the mcbench api, sent from a host that is none of the fleet, and the account of what came back.

Run as a program inside of that host's network namespace; ``traffic`` starts it and reads its report.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.lab.hosts import LabHost
from tests.lab.state import REPOSITORY

_SECONDS = 40


@dataclass
class Report:
    """What was sent and what came back.

    + done: complete, right answers by kind: ``get``, ``upload``, ``websocket``, ``task``
    + failures: one line each; + versions: of the application, in the order in which they first answered
    + tasks: ids of the tasks that were accepted; + seconds: how long it went on
    """

    done: dict[str, int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    seconds: float = 0.0


class _Wrong(Exception):
    """An answer that is not what it should be."""


class _Load:
    def __init__(self, address: str, name: str, pause: float) -> None:
        self._address, self._name, self._pause = address, name, pause
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._begin = time.monotonic()
        self._number = iter(range(10**9))
        self._tls = ssl.create_default_context()
        self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
        self.report = Report()

    def run(self, counts: dict[str, int]) -> Report:
        threads = [threading.Thread(target=self._repeat, args=(kind,)) for kind, count in counts.items() for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.report.seconds = time.monotonic() - self._begin
        return self.report

    def stop(self) -> None:
        self._stop.set()

    def _repeat(self, kind: str) -> None:
        once: Callable[[], str] = getattr(self, f"_{kind}")
        while not self._stop.is_set():
            try:
                version = once()
            except (OSError, ValueError, http.client.HTTPException, _Wrong) as error:
                at = time.monotonic() - self._begin
                with self._lock:
                    self.report.failures.append(f"{at:.2f}s {kind}: {type(error).__name__}: {error}")
                self._stop.wait(0.5)
                continue
            with self._lock:
                self.report.done[kind] += 1
                if version and version not in self.report.versions:
                    self.report.versions.append(version)
            self._stop.wait(self._pause)

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection((self._address, 443), _SECONDS)
        return self._tls.wrap_socket(plain, server_hostname=self._name)

    def _exchange(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, object]]:
        connection = http.client.HTTPSConnection(self._name, timeout=_SECONDS)
        connection.sock = self._connect()
        with contextlib.closing(connection):
            connection.request(method, path, body)
            response = connection.getresponse()
            text = response.read()
            if response.status >= 300:
                raise _Wrong(f"{response.status} {text[:200]!r}")
            return response.status, json.loads(text)

    def _get(self) -> str:
        return str(self._exchange("GET", "/version")[1]["version"])

    def _upload(self) -> str:
        content = os.urandom(200_000)
        answer = self._exchange("POST", "/upload?keep=no", content)[1]
        if answer.get("sha256") != hashlib.sha256(content).hexdigest():
            raise _Wrong(f"upload arrived as {answer}")
        return ""

    def _task(self) -> str:
        with self._lock:
            key = f"load-{os.getpid()}-{next(self._number)}"
        answer = self._exchange("POST", "/tasks", json.dumps({"kind": "count", "key": key, "seconds": 0.3}).encode())[1]
        with self._lock:
            self.report.tasks.append(int(str(answer["id"])))
        return ""

    def _websocket(self) -> str:
        """A short conversation; each sentence must come back, from one and the same server."""
        with self._connect() as stream:
            key = base64.b64encode(os.urandom(16)).decode()
            stream.sendall(
                f"GET /ws HTTP/1.1\r\nHost: {self._name}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            reader = stream.makefile("rb")
            status = reader.readline()
            if b" 101 " not in status:
                raise _Wrong(f"websocket: {status!r}")
            while reader.readline().strip():
                pass
            versions = set()
            for number in range(6):
                word = f"{number} {os.urandom(4).hex()}".encode()
                mask = os.urandom(4)
                stream.sendall(bytes([0x81, 0x80 | len(word)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(word)))
                head = reader.read(2)
                if len(head) < 2 or head[0] & 0x0F != 1:
                    raise _Wrong(f"websocket: cut off after {number} of 6 sentences: {head!r}")
                version, _, echo = reader.read(head[1] & 0x7F).partition(b" ")
                if echo != word:
                    raise _Wrong(f"websocket: {echo!r} came back for {word!r}")
                versions.add(version.decode())
                time.sleep(0.2)
            stream.sendall(bytes([0x88, 0x80]) + os.urandom(4))
            if len(versions) != 1:
                raise _Wrong(f"websocket: changed its server: {versions}")
            return versions.pop()


class Traffic:
    """Traffic that flows; ``report`` is there once it has ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.report = Report()

    def end(self) -> Report:
        """Send no more, let what runs come to its end, and return the account."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        stdout, stderr = self._process.communicate(timeout=3 * _SECONDS)
        if self._process.returncode != 0:
            raise AssertionError(f"the load generator failed:\n{stderr}")
        self.report = Report(**json.loads(stdout))
        return self.report


@contextlib.contextmanager
def traffic(
    source: LabHost, target: LabHost, name: str, *, pause: float = 0.1, get: int = 2, upload: int = 1, websocket: int = 2,
    task: int = 1,
) -> Iterator[Traffic]:  # fmt: skip
    """Send requests from ``source`` to ``target``'s port 443 while the block runs.

    + get, upload, websocket, task: how many clients of each kind, each with one request at a time
    + pause: between two requests of one client (s)
    """
    counts = {"get": get, "upload": upload, "websocket": websocket, "task": task}
    words = ["ip", "netns", "exec", source.netns, sys.executable, "-m", "tests.lab.mcbench_load", target.address, name]
    words += [f"--pause={pause}", *(f"--{kind}={count}" for kind, count in counts.items())]
    flowing = Traffic(subprocess.Popen(words, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        yield flowing
    finally:
        flowing.end()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("name")
    parser.add_argument("--pause", type=float, default=0.1)
    for kind in ("get", "upload", "websocket", "task"):
        parser.add_argument(f"--{kind}", type=int, default=1)
    options = parser.parse_args()
    load = _Load(options.address, options.name, options.pause)
    signal.signal(signal.SIGTERM, lambda *_: load.stop())
    report = load.run({kind: getattr(options, kind) for kind in ("get", "upload", "websocket", "task")})
    print(json.dumps(vars(report)))  # noqa: T201 (this is a program)


if __name__ == "__main__":
    _main()
