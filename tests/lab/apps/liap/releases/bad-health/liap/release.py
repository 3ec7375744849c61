"""Bad: says 503 when it is asked for its health."""

VERSION = "bad-health"


def starting() -> None:
    pass


def healthy() -> bool:
    return False
