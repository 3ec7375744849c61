"""What this release is, and how good."""

VERSION = "1.0.0"
HAS_CONFIDENCE = False


def healthy() -> bool:
    return True
