"""The buckets of the object store that the mcbench deploy runs itself. Whoever has an external one makes them there."""

from __future__ import annotations

import json
import shlex
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

from pyinfra import host
from pyinfra.api import FactBase, OperationError, StringCommand, operation

from operations import script

_PROGRAM = "mcbench/buckets.py"


class Buckets(FactBase[dict[str, Any]]):
    """
    Return ``{"missing": [bucket, …]}`` of an object store in a container, or ``{"fault": why it cannot be asked}``.

    + wanted: what ``files/mcbench/buckets.py`` takes, as JSON; it holds no secret
    """

    def command(self, wanted: str) -> str:
        program = (script.FILES / _PROGRAM).read_text() + f"main(__import__('json').loads({wanted!r}))\n"
        return f"! command -v python3 >/dev/null || python3 -B -c {shlex.quote(program)}"

    @staticmethod
    def default() -> dict[str, Any]:
        return {"fault": "not asked yet"}

    def process(self, output: Iterable[str]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(list(output)[-1])
        return found


def buckets_wanted(
    container: str, network: str, port: int, access: str, secret: str, buckets: Sequence[str]
) -> Mapping[str, Any]:
    """Return what the program takes."""
    return {
        "container": container,
        "network": network,
        "port": port,
        "access": access,
        "secret": secret,
        "buckets": list(buckets),
        "make": False,
    }


@operation()
def buckets(
    container: str, network: str, port: int, access: str, secret: str, buckets: Sequence[str]
) -> Generator[StringCommand, None, None]:
    """
    Make the buckets that an object store in a container lacks; private ones, and none is ever removed.

    + container: its name; + network: the network on which the host asks it; + port: its port there
    + access, secret: names of the variables by which the container was told its keys
    + buckets: names
    """
    wanted = buckets_wanted(container, network, port, access, secret, buckets)
    found = host.get_fact(Buckets, wanted=json.dumps(wanted))
    if "missing" in found and not found["missing"]:
        host.noop("all buckets are there")
        return
    if not buckets:
        raise OperationError("buckets: none is named")
    yield script.python(_PROGRAM, values={**wanted, "make": True})
