"""The variables of the guide, each with its default there."""

import os


def text(name: str, default: str = "") -> str:
    return os.environ.get(name, default)


def number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def flag(name: str, default: bool = True) -> bool:
    return os.environ.get(name, str(default)).lower() == "true"


MAX_ACTIVE_GAMES = number("MAX_ACTIVE_GAMES", 10000)
MAX_MEMORY_MB = number("MAX_MEMORY_MB", 4096)
MAX_EVENTS_PER_GAME = number("MAX_EVENTS_PER_GAME", 1000)
GC_COMPLETED_GAMES_AFTER = number("GC_COMPLETED_GAMES_AFTER", 300)
REDIS_URL = text("REDIS_URL")
ARCHIVE_BACKEND = text("ARCHIVE_BACKEND", "filesystem")
ARCHIVE_URL = text("ARCHIVE_URL", "/var/lib/liap/archive/")
ARCHIVE_BATCH_SIZE = number("ARCHIVE_BATCH_SIZE", 100)
ARCHIVE_FLUSH_INTERVAL = number("ARCHIVE_FLUSH_INTERVAL", 60)
RATE_LIMIT_PER_PLAYER_PER_MINUTE = number("RATE_LIMIT_PER_PLAYER_PER_MINUTE", 60)
METRICS_ENABLED = flag("METRICS_ENABLED")
METRICS_PORT = number("METRICS_PORT", 9464)
MEMORY_ALERT_THRESHOLD = number("MEMORY_ALERT_THRESHOLD", 80)
USE_GAME_ARCHIVAL = flag("USE_GAME_ARCHIVAL")
USE_MEMORY_MONITORING = flag("USE_MEMORY_MONITORING")
USE_RATE_LIMITING = flag("USE_RATE_LIMITING")
PORT = 8000
ADMIN_PORT = 8001
