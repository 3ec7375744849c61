"""Bad: healthy, and dead five seconds after its start."""

import asyncio
import logging
import os

VERSION = "1.2.2"


def _die() -> None:
    logging.getLogger("gateway").critical("release 1.2.2 gives up")
    logging.shutdown()
    os._exit(3)


def starting() -> None:
    asyncio.get_running_loop().call_later(5, _die)


def healthy() -> bool:
    return True
