"""Bad: listens, and says 503 when asked for its health."""

VERSION = "1.2.1"


def starting() -> None:
    pass


def healthy() -> bool:
    return False
