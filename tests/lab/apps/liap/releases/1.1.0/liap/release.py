"""Good, and newer."""

VERSION = "1.1.0"


def starting() -> None:
    pass


def healthy() -> bool:
    return True
