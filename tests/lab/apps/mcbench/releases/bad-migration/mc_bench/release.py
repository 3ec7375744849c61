"""Good but for its migration."""

VERSION = "bad-migration"
HAS_PRIORITY = True


def starting() -> None:
    pass


def healthy() -> bool:
    return True
