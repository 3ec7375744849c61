"""Players of the stand-in of Colyseus: matches over websockets, and requests, while something happens to its pods."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from types import TracebackType

_HEAD = "GET /match HTTP/1.1\r\nHost: colyseus\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"


class Players:
    """Begin matches and requests in the background; what failed is in ``faults`` when the ``with`` ends.

    + matches: how many are open at a time, each ``seconds`` long (s), then another begins
    + rate: requests per second, each over a new connection; ``pace`` is what was reached
    """

    def __init__(self, address: str, port: int, matches: int = 10, seconds: float = 20, rate: float = 10) -> None:
        self._where, self._seconds, self._rate = (address, port), seconds, rate
        self.finished, self.answers = 0, 0
        self.faults: list[str] = []
        self.releases: set[str] = set()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._play, daemon=True) for _ in range(matches)]
        self._askers = max(1, round(rate))  # one each a second: a slow answer holds nobody else up
        self._threads += [threading.Thread(target=self._ask, daemon=True) for _ in range(self._askers)]
        self._began, self.pace = 0.0, 0.0

    def __enter__(self) -> Players:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pace = self.answers / (time.monotonic() - self._began)
        self._stop.set()
        for thread in self._threads:
            thread.join(self._seconds + 60)

    def _play(self) -> None:
        while not self._stop.is_set():
            try:
                self._match()
            except OSError as error:
                self._fault(f"match: {error}")

    def _match(self) -> None:
        with socket.create_connection(self._where, timeout=15) as line:
            line.settimeout(15)
            line.sendall(_HEAD.encode())
            if b" 101 " not in line.recv(4096).split(b"\r\n")[0]:
                raise OSError("no websocket")
            until = time.monotonic() + self._seconds
            while time.monotonic() < until:
                line.sendall(b"\x81\x81\x00\x00\x00\x00m")
                answer = line.recv(200)
                if len(answer) < 3:
                    raise OSError("the match was cut off")
                with self._lock:
                    self.releases.add(answer[2:].decode())
                time.sleep(0.5)
            line.sendall(b"\x88\x80\x00\x00\x00\x00")
        with self._lock:
            self.finished += 1

    def _ask(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                connection = http.client.HTTPConnection(*self._where, timeout=15)
                connection.request("GET", "/version", headers={"Connection": "close"})
                answer = connection.getresponse()
                answer.read()
                connection.close()
                if answer.status != 200:
                    self._fault(f"request: status {answer.status}")
                with self._lock:
                    self.answers += 1
            except (OSError, http.client.HTTPException) as error:
                self._fault(f"request: {error!r}")
            self._stop.wait(max(0.0, self._askers / self._rate - (time.monotonic() - began)))

    def _fault(self, text: str) -> None:
        with self._lock:
            self.faults.append(text)
        self._stop.wait(0.5)
