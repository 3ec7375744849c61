"""Light traffic of every kind from one host to another's https, and an exact account of what went wrong.

    with load.traffic(stranger, host, "gateway.example.test") as traffic:
        …upgrade, reload, renew…
    assert traffic.report.failures == []

Runs as a process of its own in the stranger's network namespace. Certificates are not judged here.

A server may close an idle connection at any moment, and a client that just then sends on it sees it closed without one
byte of an answer. HTTP has clients repeat such a request (RFC 9112, 9.3.1), and so does this one, once, on a new
connection; how often is in the report. Everything else that is not a complete, right answer is a failure.
"""

from __future__ import annotations

import argparse
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

_ANSWER_SECONDS = 30


@dataclass
class Report:
    """What was sent and what came back.

    + done: complete, right answers by kind: ``get``, ``slow``, ``stream``, ``upload``
    + failures: one line each: when (seconds since the start), kind, what was wrong
    + repeated: requests sent again because the server closed the idle connection they went out on
    + versions: of the application, in the order in which they first answered
    + longest: slowest ``get`` in seconds
    """

    done: dict[str, int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    repeated: int = 0
    versions: list[str] = field(default_factory=list)
    longest: float = 0.0


class _Pinned(http.client.HTTPSConnection):
    """Connects to an address, asks for a name."""

    def __init__(self, address: str, name: str) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        super().__init__(name, timeout=_ANSWER_SECONDS, context=context)
        self._address, self._tls = address, context

    def connect(self) -> None:
        self.sock = self._tls.wrap_socket(
            socket.create_connection((self._address, 443), self.timeout), server_hostname=self.host
        )


class _Wrong(Exception):
    """An answer that is not what it should be."""


class _Load:
    def __init__(self, address: str, name: str) -> None:
        self._target = (address, name)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._begin = time.monotonic()
        self.report = Report()

    def run(self, **counts: int) -> Report:
        """Send until told to stop, then let every request end."""
        threads = [
            threading.Thread(target=self._repeat, args=(kind,))
            for kind, count in counts.items()
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.report

    def stop(self) -> None:
        self._stop.set()

    def _repeat(self, kind: str) -> None:
        connection: list[_Pinned] = []
        ask: Callable[[list[_Pinned]], str] = getattr(self, f"_{kind}")
        while not self._stop.is_set():
            try:
                version = ask(connection)
            except (OSError, http.client.HTTPException, _Wrong) as error:
                with self._lock:
                    at = time.monotonic() - self._begin
                    self.report.failures.append(f"{at:.2f}s {kind}: {type(error).__name__}: {error}")
                connection.clear()
                self._stop.wait(0.2)
                continue
            with self._lock:
                self.report.done[kind] += 1
                if version and version not in self.report.versions:
                    self.report.versions.append(version)

    def _exchange(
        self, connections: list[_Pinned], path: str, body: bytes | None = None
    ) -> tuple[http.client.HTTPResponse, _Pinned]:
        for is_new in (not connections, True):
            connection = _Pinned(*self._target) if is_new else connections.pop()
            try:
                connection.request("POST" if body is not None else "GET", path, body)
                response = connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                connection.close()
                if is_new:
                    raise
                with self._lock:
                    self.report.repeated += 1
                continue
            if response.status != 200:
                raise _Wrong(f"{response.status} {response.read(200)!r}")
            return response, connection
        raise AssertionError("unreachable")

    def _get(self, connections: list[_Pinned]) -> str:
        begin = time.monotonic()
        response, connection = self._exchange(connections, "/version")
        version = json.loads(response.read())["version"]
        self.report.longest = max(self.report.longest, time.monotonic() - begin)
        if not response.will_close:
            connections.append(connection)
        self._stop.wait(0.1)
        return str(version)

    def _slow(self, connections: list[_Pinned]) -> str:
        response, connection = self._exchange([], "/slow?seconds=3")
        version = json.loads(response.read())["version"]
        connection.close()
        return str(version)

    def _stream(self, connections: list[_Pinned]) -> str:
        response, connection = self._exchange([], "/stream?count=8&interval=0.5")
        lines = response.read().decode().splitlines()
        connection.close()
        events = [json.loads(line[6:]) for line in lines if line.startswith('data: {"n')]
        if [event["number"] for event in events] != list(range(8)) or "event: end" not in lines:
            raise _Wrong(f"stream broke after {len(events)} of 8 events")
        if len({event["version"] for event in events}) != 1:
            raise _Wrong("stream changed its server")
        return str(events[0]["version"])

    def _upload(self, connections: list[_Pinned]) -> str:
        content = os.urandom(300_000)

        def slowly() -> Iterator[bytes]:
            for at in range(0, len(content), 30_000):
                time.sleep(0.05)
                yield content[at : at + 30_000]

        connection = _Pinned(*self._target)
        connection.request("POST", "/upload", slowly(), {"Content-Length": str(len(content))})
        response = connection.getresponse()
        answer = json.loads(response.read()) if response.status == 200 else {}
        connection.close()
        if answer.get("sha256") != hashlib.sha256(content).hexdigest():
            raise _Wrong(f"{response.status}, upload arrived as {answer}")
        self._stop.wait(0.3)
        return ""


class Traffic:
    """Traffic that flows; ``report`` is there once it has ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.report = Report()

    def end(self) -> Report:
        """Send no more, let what runs come to its end, and return the account."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        stdout, stderr = self._process.communicate(timeout=2 * _ANSWER_SECONDS)
        if self._process.returncode != 0:
            raise AssertionError(f"the load generator failed:\n{stderr}")
        self.report = Report(**json.loads(stdout))
        return self.report


@contextlib.contextmanager
def traffic(
    source: LabHost,
    target: LabHost,
    name: str,
    *,
    get: int = 3,
    slow: int = 1,
    stream: int = 2,
    upload: int = 1,
) -> Iterator[Traffic]:
    """Send requests from ``source`` to ``target``'s port 443 while the block runs.

    + name: what is asked for, by SNI and Host
    + get, slow, stream, upload: how many clients of each kind, each with one request at a time
    """
    counts = [
        f"--{kind}={count}"
        for kind, count in (("get", get), ("slow", slow), ("stream", stream), ("upload", upload))
    ]
    command = [
        "ip", "netns", "exec", source.netns, sys.executable, "-m", "tests.lab.load", target.address, name, *counts,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    flowing = Traffic(process)
    try:
        yield flowing
    finally:
        flowing.end()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("name")
    for kind in ("get", "slow", "stream", "upload"):
        parser.add_argument(f"--{kind}", type=int, default=1)
    options = parser.parse_args()
    load = _Load(options.address, options.name)
    signal.signal(signal.SIGTERM, lambda *_: load.stop())
    report = load.run(get=options.get, slow=options.slow, stream=options.stream, upload=options.upload)
    print(json.dumps(vars(report)))  # noqa: T201 (this is a program)


if __name__ == "__main__":
    _main()
