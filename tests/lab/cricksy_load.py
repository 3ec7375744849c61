"""Uploads to cricksy that become tasks, from a host that is none of the system's, and the account of them.

    with cricksy_load.tasks(fleet, client, 300, seconds=1) as load:
        …upgrade…
    assert load.lost == 0

What is answered by an error is asked again, as a client does: a task counts once it was accepted. One in ten is really read,
the others are slept over. Runs as a program of its own in that host's network namespace.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.cricksy_fleet import DOMAIN, IMAGE, Fleet, ask, ask_broker
from tests.lab.hosts import LabHost
from tests.lab.state import REPOSITORY, LabError, wait_for

_AT_ONCE = 6
_READ_EVERY = 10
_PATIENCE = 180  # seconds that a client goes on asking


@dataclass
class Load:
    """What became of the tasks.

    + count: how many were accepted; + lost: how many of them never were done; + held: what the broker has of them in the end
    + asked_again: requests that failed and were repeated, by what was asked
    + open_before, open_after: tasks accepted and not yet done when the block began, and when it ended
    + twice: how many were begun more than once; + reasons: of each such execution, after the first
    + seconds: from the first upload to the last task's end
    """

    count: int = 0
    lost: int = 0
    held: int = 0
    asked_again: dict[str, int] = field(default_factory=dict)
    open_before: int = 0
    open_after: int = 0
    twice: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        again = ", ".join(f"{number} {what}" for what, number in sorted(self.asked_again.items())) or "none"
        why = "; ".join(f"{number} {reason}" for reason, number in sorted(self.reasons.items()))
        return (
            f"{self.count} tasks in {self.seconds:.0f} s, {self.open_before} open before and {self.open_after} after; {self.lost} lost, "
            f"{self.twice} run twice{f' ({why})' if why else ''}; requests repeated: {again}"
        )


def summary(fleet: Fleet, source: LabHost, seconds: float = 60) -> dict[str, Any]:
    """Return how many uploads there are, how many are done, and which were begun more than once; waits for an API that is away."""
    found: dict[str, Any] = {}

    def is_told() -> bool:
        status, body = ask(fleet, source, "/api/uploads/summary")
        if status == 200:
            found.update(json.loads(body))
        return status == 200

    wait_for("summary of the uploads", is_told, seconds, pause=0.3)
    return found


def held(fleet: Fleet) -> int:
    """Return how many tasks the broker has, waiting or handed to a worker."""
    said = ask_broker(fleet, "eval 'return redis.call(\"llen\", \"celery\") + redis.call(\"hlen\", \"unacked\")' 0")
    return int(said)


def _open(found: dict[str, Any]) -> int:
    return int(found["uploads"] - found["done"])


def sending(fleet: Fleet, source: LabHost, count: int, seconds: float, *options: str) -> subprocess.Popen[str]:
    """Start to upload, as ``main`` is told by its arguments."""
    program = [sys.executable, "-m", "tests.lab.cricksy_load", fleet.front.address, str(count), str(seconds), *options]
    return subprocess.Popen(
        ["ip", "netns", "exec", source.netns, *program], cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )


@contextlib.contextmanager
def tasks(fleet: Fleet, source: LabHost, count: int, seconds: float, done_within: float = 400) -> Iterator[Load]:
    """Upload while a block runs, which begins when a third is accepted; then wait until all are done or nothing moves any more.

    + seconds: that each task takes at least; + done_within: time to the last task's end, after the block
    """
    before = summary(fleet, source)
    load = Load()
    began = time.monotonic()
    process = sending(fleet, source, count, seconds)
    try:
        wait_for("tasks", lambda: summary(fleet, source)["uploads"] >= before["uploads"] + count // 3, 120, pause=0.3)
        load.open_before = _open(summary(fleet, source))
        yield load
        load.open_after = _open(summary(fleet, source))
        said = json.loads(process.communicate(timeout=_PATIENCE + 60)[0])
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    with contextlib.suppress(LabError):  # told by the count
        wait_for("tasks to be done", lambda: _open(summary(fleet, source)) == 0, done_within, pause=0.5)
    load.seconds = time.monotonic() - began
    # what was done and could not be acknowledged is still to be delivered again, and counts too
    with contextlib.suppress(LabError):
        wait_for("an empty broker", lambda: held(fleet) == 0, 90, pause=0.5)
    load.held = held(fleet)
    after = summary(fleet, source)
    load.count = after["uploads"] - before["uploads"]
    load.lost = _open(after)
    load.asked_again = said
    load.twice = after["twice"] - before["twice"]
    load.reasons = dict(Counter(after["reasons"]) - Counter(before["reasons"]))


class _Https(http.client.HTTPSConnection):
    """To the system's name, whatever resolves it."""

    def __init__(self, address: str, tls: ssl.SSLContext) -> None:
        super().__init__(DOMAIN, timeout=20)
        self._address, self._tls = address, tls

    def connect(self) -> None:
        raw = socket.create_connection((self._address, 443), timeout=20)
        self.sock = self._tls.wrap_socket(raw, server_hostname=DOMAIN)


class _Client:
    """Uploads one after the other by connections that it keeps."""

    def __init__(self, address: str, again: Counter[str]) -> None:
        self._address = address
        self._again = again
        self._tls = ssl.create_default_context()
        self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
        self._kept: dict[str, http.client.HTTPConnection] = {}

    def _connection(self, where: str) -> http.client.HTTPConnection:
        if where not in self._kept:
            self._kept[where] = http.client.HTTPConnection(where, timeout=20) if where else _Https(self._address, self._tls)
        return self._kept[where]

    def _ask(self, what: str, method: str, path: str, body: bytes = b"", where: str = "") -> bytes:
        """Ask until the answer is good; ``where``: another server than the API."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                connection = self._connection(where)
                connection.request(method, path, body=body)
                answer = connection.getresponse()
                said = answer.read()
                if answer.status == 200:
                    return said
                why = f"{what}: {answer.status}"
            except (OSError, http.client.HTTPException) as error:
                why = f"{what}: {type(error).__name__}"
                self._kept.pop(where).close()
            if time.monotonic() > deadline:
                raise RuntimeError(f"gave up: {why}")
            self._again[why] += 1
            time.sleep(0.3)

    def upload(self, image: bytes, seconds: float, read: bool) -> None:
        announced = json.loads(self._ask("announce", "POST", "/api/uploads/initiate"))
        url = urllib.parse.urlsplit(announced["url"])
        self._ask("upload", "PUT", f"{url.path}?{url.query}", image, where=url.netloc)
        self._ask("hand over", "POST", f"/api/uploads/{announced['id']}/complete?seconds={seconds}&ocr={int(read)}")


def main() -> None:
    """Upload, and print what had to be asked again as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("count", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--image", type=Path, default=IMAGE)
    parser.add_argument("--read-every", type=int, default=_READ_EVERY)
    given = parser.parse_args()
    again: Counter[str] = Counter()
    image = given.image.read_bytes()
    numbers = iter(range(given.count))
    lock = threading.Lock()

    def work() -> None:
        client = _Client(given.address, again)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            client.upload(image, given.seconds, read=number % given.read_every == 0)

    threads = [threading.Thread(target=work) for _ in range(_AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump(again, sys.stdout)


if __name__ == "__main__":
    main()
