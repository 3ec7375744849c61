"""Requests of all kinds to the mcbench api at a given rate, from a host that is none of the fleet, and the account of them.

    with mcbench_load.traffic(stranger, fleet.front, API, rate=200, tasks=500) as traffic:
        …upgrade…
    assert traffic.report.failures == []

Requests begin at fixed moments, whether or not earlier ones have ended, each on a connection of its own: nothing is sent
twice, and nothing that waits makes the next one come later. Only when ``_AT_ONCE`` are on their way is one held back; the
rate that was reached is in the report. Runs as a program of its own in that host's network namespace.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.lab.hosts import LabHost
from tests.lab.state import REPOSITORY

# Of each twenty requests; a task takes the place of every fourth until all are sent.
_MIX = ("get", "get", "get", "upload", "get", "get", "get", "get", "get", "websocket",
        "get", "get", "get", "upload", "get", "get", "get", "get", "get", "get")  # fmt: skip
_AT_ONCE = 400
_SECONDS = 40
_UPLOAD_BYTES = 50_000
_SENTENCES, _SENTENCE_SECONDS = 6, 0.5
_WINDOW = 10


@dataclass
class Report:
    """What was sent and what came back.

    + asked: requests per second that were wanted; + seconds: how long it went on
    + done: complete, right answers by kind: ``get``, ``upload``, ``websocket`` (a conversation), ``task``
    + sentences: that came back in websockets
    + lowest: answers per second in the slowest ten seconds; + longest: slowest answer by kind (s)
    + failures: one line each, the first hundred; + failed: how many there were
    + versions: of the application, in the order in which they first answered
    """

    asked: int = 0
    seconds: float = 0.0
    done: dict[str, int] = field(default_factory=Counter)
    sentences: int = 0
    lowest: float = 0.0
    longest: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    failed: int = 0
    versions: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Right answers per second, of all kinds."""
        return sum(self.done.values()) / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.done.items()))
        longest = ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in sorted(self.longest.items()))
        return (
            f"{sum(self.done.values())} answers in {self.seconds:.0f} s: {self.rate:.0f}/s of {self.asked} asked for, "
            f"{self.lowest:.0f}/s in the slowest {_WINDOW} s ({kinds}; {self.sentences} websocket sentences; "
            f"longest in s: {longest}); {self.failed} failed"
        )


class _Wrong(Exception):
    """An answer that is not what it should be."""


class _Load:
    def __init__(self, address: str, name: str, rate: int, tasks: int, task_seconds: float) -> None:
        self._address, self._name, self._pause = address, name, 1 / rate
        self._tasks, self._task_seconds = tasks, task_seconds
        self._stop = asyncio.Event()
        self._tls = ssl.create_default_context()
        self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
        self._content = os.urandom(_UPLOAD_BYTES)
        self._sha256 = hashlib.sha256(self._content).hexdigest()
        self._answered: Counter[int] = Counter()
        self._begin = 0.0
        self.report = Report(asked=rate)

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> Report:
        """Send until told to stop, then let every request end."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop)
        running: set[asyncio.Task[None]] = set()
        self._begin = due = time.monotonic()
        number = 0
        while not self._stop.is_set():
            if len(running) >= _AT_ONCE:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                due = time.monotonic()  # what was held back is not made up for: that would be a burst
            elif (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            else:
                once = asyncio.create_task(self._once(self._kind(number), number))
                running.add(once)
                once.add_done_callback(running.discard)
                number, due = number + 1, due + self._pause
                await asyncio.sleep(0)
        self.report.seconds = round(time.monotonic() - self._begin, 2)
        if running:
            await asyncio.wait(running)
        window = min(_WINDOW, max(1, int(self.report.seconds)))
        windows = range(int(self.report.seconds) - window + 1)
        self.report.lowest = min(sum(self._answered[at + second] for second in range(window)) / window for at in windows)
        return self.report

    def _kind(self, number: int) -> str:
        if self._tasks and number % 8 == 3:
            self._tasks -= 1
            return "task"
        return _MIX[number % len(_MIX)]

    async def _once(self, kind: str, number: int) -> None:
        report, begin = self.report, time.monotonic()
        try:
            version = await asyncio.wait_for(getattr(self, f"_{kind}")(number), _SECONDS)
        except (OSError, ValueError, EOFError, KeyError, asyncio.TimeoutError, _Wrong) as error:
            report.failed += 1
            if len(report.failures) < 100:
                report.failures.append(f"{begin - self._begin:.2f}s {kind}: {type(error).__name__}: {error}")
            return
        now = time.monotonic()
        report.done[kind] += 1
        self._answered[int(now - self._begin)] += 1
        report.longest[kind] = round(max(report.longest.get(kind, 0.0), now - begin), 2)
        if version and version not in report.versions:
            report.versions.append(version)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(self._address, 443, ssl=self._tls, server_hostname=self._name)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def _exchange(self, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._name}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        async with self._connection() as (reader, writer):
            writer.write(head.encode() + body)
            status = await reader.readline()
            length = -1
            while line := (await reader.readline()).strip():
                key, _, value = line.partition(b":")
                if key.lower() == b"content-length":
                    length = int(value)
            text = await reader.readexactly(length) if length >= 0 else await reader.read()
        if status[9:10] != b"2":
            raise _Wrong(f"{status.decode(errors='replace').strip() or 'closed without an answer'} {text[:200]!r}")
        found: dict[str, Any] = json.loads(text)
        return found

    async def _get(self, number: int) -> str:
        return str((await self._exchange("GET", "/version"))["version"])

    async def _upload(self, number: int) -> str:
        answer = await self._exchange("POST", "/upload?keep=no", self._content)
        if answer.get("sha256") != self._sha256:
            raise _Wrong(f"upload arrived as {answer}")
        return ""

    async def _task(self, number: int) -> str:
        task = {"kind": "count", "key": f"load-{os.getpid()}-{number}", "seconds": self._task_seconds}
        answer = await self._exchange("POST", "/tasks", json.dumps(task).encode())
        if not answer["new"]:
            raise _Wrong(f"task was there before: {answer}")
        return ""

    async def _websocket(self, number: int) -> str:
        """A short conversation; each sentence must come back, from one and the same server."""
        async with self._connection() as (reader, writer):
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(
                f"GET /ws HTTP/1.1\r\nHost: {self._name}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            status = await reader.readline()
            if b" 101 " not in status:
                raise _Wrong(f"websocket: {status!r}")
            while (await reader.readline()).strip():
                pass
            versions = set()
            for sentence in range(_SENTENCES):
                word = f"{sentence} {os.urandom(4).hex()}".encode()
                mask = os.urandom(4)
                writer.write(bytes([0x81, 0x80 | len(word)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(word)))
                head = await reader.readexactly(2)
                if head[0] & 0x0F != 1:
                    raise _Wrong(f"websocket: cut off after {sentence} of {_SENTENCES} sentences: {head!r}")
                version, _, echo = (await reader.readexactly(head[1] & 0x7F)).partition(b" ")
                if echo != word:
                    raise _Wrong(f"websocket: {echo!r} came back for {word!r}")
                versions.add(version.decode())
                self.report.sentences += 1
                await asyncio.sleep(_SENTENCE_SECONDS)
            writer.write(bytes([0x88, 0x80]) + os.urandom(4))
            await writer.drain()
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
    source: LabHost, target: LabHost, name: str, *, rate: int = 200, tasks: int = 500, task_seconds: float = 0.3
) -> Iterator[Traffic]:
    """Send requests from ``source`` to ``target``'s port 443 while the block runs.

    + rate: requests per second, tasks included
    + tasks: how many are submitted, in the first of them; + task_seconds: how long each takes a worker
    """
    words = ["ip", "netns", "exec", source.netns, sys.executable, "-m", "tests.lab.mcbench_load", target.address, name]
    words += [f"--rate={rate}", f"--tasks={tasks}", f"--task-seconds={task_seconds}"]
    flowing = Traffic(subprocess.Popen(words, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        yield flowing
    finally:
        flowing.end()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("name")
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--task-seconds", type=float, default=0.3)
    options = parser.parse_args()
    load = _Load(options.address, options.name, options.rate, options.tasks, options.task_seconds)
    report = asyncio.run(load.run())
    print(json.dumps(vars(report)))  # noqa: T201 (this is a program)


if __name__ == "__main__":
    _main()
