"""The environment variables of the deployment guide; a component that lacks one of its own says so at once."""

import os


def required(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise SystemExit(f"{name} is not set")
    return value


def flag(name: str, default: bool = False) -> bool:
    return os.environ.get(name, str(default)).lower() in ("1", "true", "yes")


def number(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def text(name: str, default: str = "") -> str:
    return os.environ.get(name) or default
