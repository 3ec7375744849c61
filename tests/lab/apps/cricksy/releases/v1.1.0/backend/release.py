"""What this release is, and how good."""

VERSION = "1.1.0"
HAS_CONFIDENCE = True


def healthy() -> bool:
    return True
