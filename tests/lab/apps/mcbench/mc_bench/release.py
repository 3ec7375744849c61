"""What makes one release differ from another; the releases beside this tree replace this file."""

VERSION = "1.0.0"
HAS_PRIORITY = False


def starting() -> None:
    """Run in every component when it starts."""


def healthy() -> bool:
    return True
