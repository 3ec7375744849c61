"""One SQLite file; two processes share it for a moment during an upgrade, hence the busy timeout."""

import aiosqlite

from app.config import load


async def open_database() -> aiosqlite.Connection:
    config = load()
    database = await aiosqlite.connect(config.database)
    await database.execute("PRAGMA busy_timeout = 5000")
    await database.execute(f"PRAGMA journal_mode = {'WAL' if config.wal_mode else 'DELETE'}")
    await database.execute(
        "CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY, prompt TEXT NOT NULL)"
    )
    await database.commit()
    return database


async def init_database() -> None:
    await (await open_database()).close()
