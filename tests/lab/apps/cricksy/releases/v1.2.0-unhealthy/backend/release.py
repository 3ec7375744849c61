"""What this release is, and how good: neither its API nor its workers are."""

import sys

VERSION = "1.2.0"
HAS_CONFIDENCE = True

if any("celery" in word for word in sys.argv[:1]) and "worker" in sys.argv:
    raise SystemExit("release 1.2.0 has workers that do not start")


def healthy() -> bool:
    return False
