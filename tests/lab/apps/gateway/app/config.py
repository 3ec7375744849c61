"""The environment variables of the deployment guide, with its defaults; a bad value stops the start."""

import json
import os
from dataclasses import dataclass


class ConfigError(RuntimeError):
    pass


def _flag(key: str, default: bool) -> bool:
    value = os.environ.get(key, str(default)).strip().lower()
    if value not in ("true", "false"):
        raise ConfigError(f"{key}: true or false, got {value!r}")
    return value == "true"


def _whole(key: str, default: int) -> int:
    value = os.environ.get(key, str(default))
    if not value.isdigit():
        raise ConfigError(f"{key}: a whole number, got {value!r}")
    return int(value)


@dataclass(frozen=True)
class Config:
    admin_api_key: str
    require_client_api_key: bool
    client_api_keys: tuple[str, ...]
    database: str
    wal_mode: bool
    log_level: str
    file_logging: bool
    console_logging: bool
    request_timeout_seconds: int
    max_request_body_size: int
    health_check_interval_seconds: int


def load() -> Config:
    url = os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///./gateway.db")
    prefix = "sqlite+aiosqlite:///"
    if not url.startswith(prefix):
        raise ConfigError(f"DATABASE_URL: {prefix}PATH, got {url!r}")
    key = os.environ.get("ADMIN_API_KEY", "")
    if len(key) < 16:
        raise ConfigError("ADMIN_API_KEY: at least 16 characters")
    return Config(
        admin_api_key=key,
        require_client_api_key=_flag("REQUIRE_CLIENT_API_KEY", False),
        client_api_keys=tuple(json.loads(os.environ.get("CLIENT_API_KEYS", "[]"))),
        database=url[len(prefix) :],
        wal_mode=_flag("DATABASE_WAL_MODE", True),
        log_level=os.environ.get("LOG_LEVEL", "INFO"),
        file_logging=_flag("ENABLE_FILE_LOGGING", True),
        console_logging=_flag("ENABLE_CONSOLE_LOGGING", True),
        request_timeout_seconds=_whole("REQUEST_TIMEOUT_SECONDS", 300),
        max_request_body_size=_whole("MAX_REQUEST_BODY_SIZE", 1048576),
        health_check_interval_seconds=_whole("HEALTH_CHECK_INTERVAL_SECONDS", 60),
    )
