"""Bad: healthy, and dead five seconds after its start."""

import os
import sys
import threading

VERSION = "bad-dies"
HAS_PRIORITY = True


def _die() -> None:
    sys.stderr.write("this release gives up\n")
    sys.stderr.flush()
    os._exit(3)


def starting() -> None:
    timer = threading.Timer(5, _die)
    timer.daemon = True
    timer.start()


def healthy() -> bool:
    return True
