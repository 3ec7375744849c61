"""The lab hosts of a benchmark, how far away they seem, and what they fetch: all on this machine."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.lab import network
from tests.lab.apps import gateway_repository
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.state import ROOT, Process, slot_directory
from tests.lab.wan import DelayedLink, delayed

STATE = ROOT / "benchmark"
_REPOSITORY_PORT = 8418


@dataclass(frozen=True)
class Target:
    """One host as a tool reaches it: its name, and connection data in pyinfra's terms."""

    name: str
    data: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.data["ssh_hostname"])

    @property
    def port(self) -> int:
        return int(self.data.get("ssh_port", 22))


class Fleet:
    """Some fresh lab hosts, which can be made pristine again and seen from near or from far.

    + slot: of the lab; other hosts in it are left alone, though every host that runs costs accuracy
    + layer: what the hosts have before the first run: "bare" or "packages"
    """

    def __init__(self, slot: int, count: int, layer: str) -> None:
        self._links: dict[tuple[str, int], DelayedLink] = {}
        self._lab = Lab(slot)
        self._served = STATE / f"repository-{slot}"
        self._server = Process(slot_directory(slot) / "processes" / "bench-repository.pid")
        try:
            self.hosts: list[LabHost] = self._lab.boot_all(
                *((f"bench{number}", "bookworm", layer) for number in range(1, count + 1))
            )
            self.repository_url = self._serve_repository(slot)
        except BaseException:
            self.close()
            raise

    def _serve_repository(self, slot: int) -> str:
        """Serve the lab's application by git's plain-file HTTP transport, from the outer machine."""
        gateway_repository(self._served)
        address = network.gateway(slot)
        self._server.start(
            sys.executable, "-m", "http.server", str(_REPOSITORY_PORT), "--bind", address,
            "--directory", self._served, log=slot_directory(slot) / "bench-repository.log",
        )  # fmt: skip
        return f"http://{address}:{_REPOSITORY_PORT}/gateway.git"

    def targets(self, count: int, delay_ms: int) -> list[Target]:
        """Return the first ``count`` hosts at the given round trip; 0 is the bridge itself, without a relay."""
        return [Target(host.name, self._data(host, delay_ms)) for host in self.hosts[:count]]

    def _data(self, host: LabHost, delay_ms: int) -> dict[str, Any]:
        if delay_ms == 0:
            return host.data
        key = (host.name, delay_ms)
        if key not in self._links:
            self._links[key] = delayed(host, delay_ms)
        return self._links[key].data

    def reset(self, count: int) -> None:
        """Make the first ``count`` hosts pristine, at once."""
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(LabHost.reset, self.hosts[:count]))

    def close(self) -> None:
        """Remove hosts, links and the repository's server."""
        for link in self._links.values():
            link.close()
        self._server.stop()
        self._lab.close()


@contextlib.contextmanager
def fleet(slot: int, count: int, layer: str) -> Iterator[Fleet]:
    """Give a fleet and remove it at the end, whatever happened."""
    made = Fleet(slot, count, layer)
    try:
        yield made
    finally:
        made.close()
