"""What makes one release differ from another; the releases beside this tree replace this file alone."""

VERSION = "1.0.0"


def starting() -> None:
    """Run inside the event loop, once the database is open."""


def healthy() -> bool:
    return True
