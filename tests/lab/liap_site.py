"""liap on one host of the lab, its inventory, and players who play over websockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import PYINFRA, Run, command_line, environment, provision
from tests.lab.registry import Registry
from tests.lab.state import REPOSITORY

DOMAIN = "liap.example.test"
DEPLOY = """
from deploys.docker_engine import docker_engine
from deploys.liap import liap
docker_engine()
liap()
"""
SECRETS = {
    "LIAP_REDIS_PASSWORD": "canary/redis#pass$word",
    "LIAP_POSTGRES_PASSWORD": "canary-postgres/p@ss#wo$rd",
    "LIAP_POSTGRES_BACKUP_PASSWORD": "canary-reader-password",
    "LIAP_S3_ACCESS_KEY": "canary-access-key",
    "LIAP_S3_SECRET_KEY": "canary-s3-secret-key",
    "LIAP_STACK_PASSWORD": "canary-stack-password",
    "BACKUP_PASSWORD": "canary-backup-password",
    "REGISTRY_PASSWORD": Registry.password,
}


class Site:
    """One host with all of it; keyword arguments of ``run`` are settings without their prefix."""

    def __init__(self, lab: Lab, name: str = "t-liap", layer: str = "docker", release: str = "trixie") -> None:
        self.registry: Registry = lab.registry()
        for version in ("1.0.0", "1.1.0", "bad-start", "bad-health"):
            self.registry.image("liap-backend", version)
        self.host: LabHost = lab.host(name, release, layer=layer)
        self.secrets = dict(SECRETS)
        self.more: dict[str, object] = {}

    def _words(self, settings: dict[str, object]) -> dict[str, Any]:
        own = {
            "environment": "staging",
            "repository": f"{self.registry.name}/liap-backend",
            "version": "1.0.0",
            "redis_image": self.registry.image("redis", "7"),
            "postgres_image": self.registry.image("postgres", "16"),
            "domain": DOMAIN,
            "archive_backend": "filesystem",
            "archive_flush_interval": 2,
            "max_memory_mb": 256,
            "redis_maxmemory_mb": 32,
            "postgres_memory_mb": 256,
            "rate_limit_per_player_per_minute": 1000,
            "allow_small": True,
            "swap_mb": 0,
            "drain_seconds": 120,
            "start_timeout_seconds": 60,
            "health_interval_seconds": 3,
            **{
                key: f"env:LIAP_{key.upper()}"
                for key in ("redis_password", "postgres_password", "postgres_backup_password", "s3_access_key", "s3_secret_key")
            },
            **self.more,
            **settings,
        }
        return {
            "data": {
                "certificate_mode": "self-signed",
                "backup_password": "env:BACKUP_PASSWORD",
                "docker_source": "distribution",
                "docker_registries": {
                    self.registry.name: {
                        "username": self.registry.username, "password": "env:REGISTRY_PASSWORD", "ca": self.registry.ca,
                    }
                },
                **{f"liap_{key}": value for key, value in own.items() if value is not None},
            },
            "groups": {"lab": [self.host], "liap": [self.host]},
        }  # fmt: skip

    def run(
        self, deploy: str | Path = DEPLOY, dry: bool = False, timeout: float = 1500, extra: Sequence[str] = (), **settings: object
    ) -> Run:
        self.registry.start()  # a run of another part of the lab may have ended it
        return provision(self.host, deploy, env=self.secrets, dry=dry, timeout=timeout, extra=extra, **self._words(settings))

    def command(self, scratch: Path, deploy: str | Path = DEPLOY, **settings: object) -> list[str]:
        """Return the command line of such a run, to be started by the caller with ``secrets`` in its environment."""
        return command_line(scratch, self.host, deploy, **self._words(settings))

    def type(self, *words: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run pyinfra as an operator types it: ``pyinfra -y INVENTORY deploys.liap.stop``; output in one."""
        with tempfile.TemporaryDirectory(prefix="lab-typed-") as scratch:
            self.command(Path(scratch), **settings)
            return subprocess.run(
                [str(PYINFRA), "-y", f"{scratch}/inventory.py", *words], cwd=REPOSITORY, text=True, timeout=900,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env=environment(self.secrets),
            )  # fmt: skip

    def ids(self) -> dict[str, str]:
        """Running containers of the stack, and since when, by name."""
        listing = self.host.run("docker ps -q --filter label=com.docker.compose.project=liap | xargs -r docker inspect").stdout
        return {one["Name"].lstrip("/"): one["Id"] + one["State"]["StartedAt"] for one in json.loads(listing or "[]")}

    def ask(self, path: str) -> tuple[int, str]:
        """Ask as a client does, by name and over TLS; return the status and the body."""
        url = f"https://{DOMAIN}{path}"
        found = self.host.run(
            f"curl -sk -m 20 -w '\\n%{{http_code}}' --resolve {DOMAIN}:443:{self.host.address} {url}", check=False
        ).stdout
        body, _, code = found.rpartition("\n")
        return int(code or 0), body

    def metrics(self) -> dict[str, float]:
        lines = self.host.run("curl -sS -m 10 http://127.0.0.1:9464/metrics").stdout.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def archived(self) -> set[str]:
        """Ids of the games that lie in the directory of the backend filesystem."""
        return set(self.host.run("find /var/lib/liap/archive -name '*.json' -printf '%f\\n' | sed 's/.json$//'").stdout.split())


@contextlib.contextmanager
def site_of(lab: Lab, name: str = "t-liap", layer: str = "docker") -> Iterator[Site]:
    """Give a fresh host, and remove it at the end."""
    made = Site(lab, name, layer)
    try:
        yield made
    finally:
        lab.destroy(made.host)


# --- players ------------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """
    + finished: ids of games that ended as games do; + lost: what happened to the others
    + refused: how often a new game was refused, by reason; + versions: that games were begun on
    """

    finished: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)


class Players:
    """
    People who each play one game after the other, until told that the one they are at is the last.

    + moves, pause: of one game; + rounds: how many games each plays, 0 as many as there is time
    """

    def __init__(self, address: str, count: int, moves: int = 5, pause: float = 0.2, rounds: int = 0) -> None:
        self.address, self.count, self.moves, self.pause, self.rounds = address, count, moves, pause, rounds
        self.report = Report()
        self.begun: set[str] = set()
        self._last = threading.Event()
        self._tls = ssl.create_default_context()
        self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), daemon=True)

    def start(self) -> Players:
        self._thread.start()
        return self

    def end(self, timeout: float = 300) -> Report:
        """Let each player end the game that it is at, and return the account."""
        self._last.set()
        return self.wait(timeout)

    def wait(self, timeout: float = 300) -> Report:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "players are still at it"
        return self.report

    async def _all(self) -> None:
        await asyncio.gather(*(self._player(number) for number in range(self.count)))

    async def _player(self, number: int) -> None:
        played = 0
        while not (self._last.is_set() or (self.rounds and played >= self.rounds)):
            game = ""
            try:
                reader, writer = await asyncio.open_connection(self.address, 443, ssl=self._tls, server_hostname=DOMAIN)
                try:
                    await _upgrade(reader, writer)
                    answer = await _say(reader, writer, type="new", player=f"player-{number}", room="lab")
                    if answer["type"] == "refused":
                        self.report.refused[answer["why"]] += 1
                        await asyncio.sleep(0.5)
                        continue
                    game = answer["game_id"]
                    self.begun.add(game)
                    self.report.versions[answer["version"]] += 1
                    for _ in range(self.moves):
                        answer = await _say(reader, writer, type="move", game_id=game)
                        assert answer["type"] == "moved", answer
                        await asyncio.sleep(self.pause)
                    answer = await _say(reader, writer, type="finish", game_id=game)
                    assert answer == {"type": "finished", "winner": f"player-{number}", "score": self.moves}, answer
                    self.report.finished.add(game)
                    played += 1
                finally:
                    writer.transport.abort()
            except (OSError, EOFError, AssertionError, KeyError, ValueError) as error:
                if game:
                    self.report.lost.append(f"{game}: {type(error).__name__}: {error}")
                    played += 1
                else:
                    self.report.refused["no answer"] += 1
                await asyncio.sleep(0.5)


async def _upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET /ws HTTP/1.1\r\nHost: {DOMAIN}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    status = await reader.readline()
    if b" 101 " not in status:
        raise ValueError(f"{status!r}")
    while (await reader.readline()).strip():
        pass


def _frame(opcode: int, content: bytes) -> bytes:
    mask = os.urandom(4)
    assert len(content) < 65536
    length = bytes([0x80 | len(content)]) if len(content) < 126 else bytes([0xFE]) + len(content).to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(content))


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, **message: Any) -> dict[str, Any]:
    writer.write(_frame(1, json.dumps(message).encode()))
    while True:
        head = await asyncio.wait_for(reader.readexactly(2), 60)
        size = head[1] & 0x7F
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2), "big")
        content = await reader.readexactly(size)
        if head[0] & 0x0F == 9:  # a ping
            writer.write(_frame(10, content))
        elif head[0] & 0x0F == 8:
            raise EOFError("the server closed the game's connection")
        else:
            found: dict[str, Any] = json.loads(content)
            return found


def play(site: Site, games: int, players: int = 10, **words: Any) -> Report:
    """Have so many games played to their end."""
    return Players(site.host.address, players, rounds=games // players, **words).start().wait()


def wait_until(what: str, seconds: float, reached: Any) -> None:
    """Wait for something of the players' side, without a lab host asked."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.2)


def names(found: Sequence[str]) -> set[str]:
    """Return the games' ids of keys or paths that end in ID.json."""
    return {one.rpartition("/")[2].removesuffix(".json") for one in found}
