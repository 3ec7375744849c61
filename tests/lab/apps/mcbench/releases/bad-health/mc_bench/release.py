"""Bad: the APIs say 503 when asked for their health, the workers do not answer when they are asked for theirs."""

VERSION = "bad-health"
HAS_PRIORITY = True


def starting() -> None:
    pass


def healthy() -> bool:
    return False
