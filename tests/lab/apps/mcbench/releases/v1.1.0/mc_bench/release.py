"""Tasks have a priority."""

VERSION = "1.1.0"
HAS_PRIORITY = True


def starting() -> None:
    pass


def healthy() -> bool:
    return True
