"""What the environment says, in the words of the guide."""

import os


def required(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise SystemExit(f"{name} is not set") from None


def flag(name: str) -> bool:
    return os.environ.get(name, "0") == "1"
