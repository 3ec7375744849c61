"""What makes one release differ from another; the releases beside this tree replace this file."""

VERSION = "1.0.0"


def starting() -> None:
    """Run before anything listens."""


def healthy() -> bool:
    return True
