"""Completed games go to one of three places, in batches; a batch that fails stays and is tried again."""

import json
import logging
import os
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from liap import config

log = logging.getLogger("liap.archive")
Game = dict[str, Any]


class Filesystem:
    """One file for each game, below a directory for each day."""

    def __init__(self) -> None:
        self.directory = Path(config.ARCHIVE_URL)

    def write(self, games: list[Game]) -> None:
        for game in games:
            day = self.directory / game["completed_at"][:10]
            day.mkdir(parents=True, exist_ok=True)
            beside = day / f".{game['game_id']}.new"
            with open(beside, "w") as file:
                json.dump(game, file)
                file.flush()
                os.fsync(file.fileno())
            beside.rename(day / f"{game['game_id']}.json")

    def check(self) -> None:
        if not os.access(self.directory, os.W_OK):
            raise OSError(f"{self.directory} cannot be written to")


class Postgresql:
    """The guide's schema: a row for each game, and one for each of its events."""

    def _connect(self) -> Any:
        import psycopg

        # a pooler by transactions keeps no prepared statements
        return psycopg.connect(config.ARCHIVE_URL, connect_timeout=5, prepare_threshold=None)

    def write(self, games: list[Game]) -> None:
        with self._connect() as connection:
            for game in games:
                made = connection.execute(
                    "INSERT INTO archive.completed_games (game_id, room_id, game_data, completed_at, game_duration_seconds,"
                    " winner_name, final_scores) VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    (game["game_id"], game["room_id"], json.dumps(game), game["completed_at"], game["duration"],
                     game["winner"], json.dumps(game["scores"])),
                )  # fmt: skip
                for event in game["events"] if made.rowcount else ():
                    connection.execute(
                        "INSERT INTO archive.game_events (game_id, event_type, event_data, event_timestamp) VALUES (%s, %s, %s, %s)",
                        (game["game_id"], event["type"], json.dumps(event), event["at"]),
                    )

    def check(self) -> None:
        with self._connect() as connection:
            connection.execute("SELECT 1 FROM archive.completed_games LIMIT 1")


class S3:
    """One object for each game, below a prefix and a day."""

    def __init__(self) -> None:
        from minio import Minio

        where = urlsplit(config.ARCHIVE_URL)
        self.bucket, self.prefix = where.netloc, where.path.strip("/")
        endpoint = urlsplit(config.text("AWS_ENDPOINT_URL", "https://s3.amazonaws.com"))
        self.client = Minio(
            endpoint.netloc, config.text("AWS_ACCESS_KEY_ID"), config.text("AWS_SECRET_ACCESS_KEY"),
            secure=endpoint.scheme == "https", region=config.text("AWS_REGION", "us-east-1"),
        )  # fmt: skip

    def write(self, games: list[Game]) -> None:
        import io

        for game in games:
            body = json.dumps(game).encode()
            name = "/".join(part for part in (self.prefix, game["completed_at"][:10], f"{game['game_id']}.json") if part)
            self.client.put_object(self.bucket, name, io.BytesIO(body), len(body), content_type="application/json")

    def check(self) -> None:
        if not self.client.bucket_exists(self.bucket):
            raise OSError(f"there is no bucket {self.bucket}")


BACKENDS = {"filesystem": Filesystem, "postgresql": Postgresql, "s3": S3}


class Archive:
    """What waits to be archived, oldest first. Only one thread writes at a time."""

    def __init__(self) -> None:
        self.waiting: list[Game] = []
        self.archived = self.failures = 0
        self._one_at_a_time = threading.Lock()
        self.backend = BACKENDS[config.ARCHIVE_BACKEND]() if config.USE_GAME_ARCHIVAL else None

    def add(self, game: Game) -> None:
        if self.backend:
            self.waiting.append(game)

    def flush(self) -> None:
        with self._one_at_a_time:
            while self.backend and self.waiting:
                batch = self.waiting[: config.ARCHIVE_BATCH_SIZE]
                try:
                    self.backend.write(batch)
                except Exception as error:
                    self.failures += 1
                    log.error("archive: %s", error)
                    return
                del self.waiting[: len(batch)]
                self.archived += len(batch)
                log.info("Archive completed: %d games", len(batch))

    def check(self) -> None:
        if self.backend:
            self.backend.check()


def now() -> str:
    return datetime.now(timezone.utc).isoformat()
