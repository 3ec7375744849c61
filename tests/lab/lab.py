"""The lab of one slot: hosts, their ACME server, delayed links; and its removal."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.lab import cache, cgroups, emulation, hosts, image, network, wan
from tests.lab.acme import Acme
from tests.lab.hosts import LabHost
from tests.lab.registry import Registry
from tests.lab.state import ROOT, LabError, Process, default_slot, lock, run, slot_directory, wait_for
from tests.lab.wan import DelayedLink


class Lab:
    """Hosts of one slot; everything made through this object ends with :meth:`close`.

    + slot: 0 to 9; separates labs that run at the same time
    """

    def __init__(self, slot: int | None = None) -> None:
        self.slot = default_slot() if slot is None else slot
        self.hosts: dict[str, LabHost] = {}
        self._acme: Acme | None = None
        self._registry: Registry | None = None
        self._servers: list[Process] = []

    def host(
        self, name: str, release: str = "bookworm", layer: str = "bare", index: int | None = None, architecture: str = "amd64"
    ) -> LabHost:
        """Boot a fresh host and return it once it answers by SSH.

        + release: "bookworm" or "trixie"
        + layer: "bare" (as a cloud image), "packages" (nginx, certbot, … installed already) or "docker" (the
          distribution's engine as well, running)
        + index: last part of its addresses; by default a free one
        + architecture: "arm64" for an emulated host: bare only, slow, and the image takes 10 min to build
        """
        try:
            self.hosts[name] = LabHost.create(self.slot, name, release, layer, index, architecture)
        except LabError:
            if name in {plan.name for plan in hosts.plans(self.slot)}:
                self.hosts[name] = LabHost.find(self.slot, name)  # half made: to be removed with the others
            raise
        return self.hosts[name]

    def boot_all(self, *wanted: tuple[str, str, str] | tuple[str, str, str, int]) -> list[LabHost]:
        """Boot several fresh hosts at once, each given as (name, release, layer[, index]); return them in that order."""
        with ThreadPoolExecutor(max(1, len(wanted))) as pool:
            return list(pool.map(lambda words: self.host(*words), wanted))

    def acme(self) -> Acme:
        """Return the slot's ACME server, running."""
        if self._acme is None:
            self._acme = Acme(self.slot)
        return self._acme.start()

    def registry(self) -> Registry:
        """Return the slot's container registry, running."""
        if self._registry is None:
            self._registry = Registry(self.slot)
        return self._registry.start()

    def delayed(self, host: LabHost, round_trip_ms: float) -> DelayedLink:
        """Return a link to the host's sshd with the given round trip time; use it in a ``with`` statement."""
        return wan.delayed(host, round_trip_ms)

    def serve(self, directory: Path, port: int = 8090) -> str:
        """Serve a directory of the outer machine to the slot's hosts by plain HTTP; return its URL, no slash at the end.

        Git repositories (after ``git update-server-info``) and archives can be fetched from it. An earlier server on
        the same port is replaced.
        """
        network.create(self.slot)
        process = Process(slot_directory(self.slot) / "processes" / f"http-{port}.pid")
        process.stop()
        address = network.gateway(self.slot)
        process.start(sys.executable, "-m", "http.server", "--bind", address, "--directory", directory, str(port),
                      log=slot_directory(self.slot) / "http.log")  # fmt: skip
        self._servers.append(process)

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((address, port)) == 0

        wait_for(f"http server for {directory}", answers, 10)
        return f"http://{address}:{port}"

    def destroy(self, host: LabHost) -> None:
        """Remove one host."""
        self.hosts.pop(host.name, None)
        host.destroy()

    def close(self) -> None:
        """Remove the hosts and services made through this object, and the slot's network with its last host."""
        for host in list(self.hosts.values()):
            self.destroy(host)
        if self._acme is not None:
            self._acme.close()
        if self._registry is not None:
            self._registry.close()
        for server in self._servers:
            server.stop()
        if not hosts.plans(self.slot):
            down([self.slot])


def down(slots: list[int]) -> list[str]:
    """Remove the labs of the given slots, also what crashed runs left; return what was removed.

    What all slots share (package cache process, its address, forwarding) goes with the last slot; images and cached
    packages stay.
    """
    removed: list[str] = []
    for slot in slots:
        removed += _down(slot)
    # An image build needs the cache as well, so it is waited for; locks are taken in the order a build takes them.
    with contextlib.ExitStack() as locks:
        for release in image.RELEASES:
            locks.enter_context(lock(f"image-{release}"))
        locks.enter_context(lock("network"))
        if not network.in_use():
            if cache.stop():
                removed.append("package cache (process)")
            removed += network.remove_shared() + emulation.stop()
    return removed


def clean() -> list[str]:
    """Remove what :func:`down` keeps: images, cached packages, keys; return what was removed. No slot may be in use."""
    known = ("images", "packages", "pip", "bytecode", "slots", "acme-ca", "key", "key.pub", "cache.log", *(f.name for f in ROOT.glob("*.lock")))
    removed = [str(ROOT / name) for name in known if (ROOT / name).exists()]
    if removed:
        run("rm", "-rf", "--one-file-system", "--", *removed)
    with contextlib.suppress(OSError):  # somebody else's files may be in it
        ROOT.rmdir()
    return removed


def _down(slot: int) -> list[str]:
    removed = []
    home = slot_directory(slot)
    for record in sorted(home.glob("processes/*.pid")):
        if Process(record).stop():
            removed.append(f"process {record.stem}")
    for plan in hosts.plans(slot):
        LabHost(plan).destroy()
        removed.append(f"host {plan.name}")
    # A crash may have left a host half made, with a mount but without a plan: take the mounts from the kernel's list.
    with open("/proc/mounts") as mounts:
        points = [line.split()[1] for line in mounts if line.split()[1].startswith(f"{home}/")]
    for point in reversed(points):
        run("umount", point)
        removed.append(f"mount {point}")
    cgroups.remove_parent(f"{slot}-")
    removed += network.remove(slot)
    if home.exists():
        shutil.rmtree(home)
    return removed
