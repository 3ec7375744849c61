"""The lab of one slot: hosts, their ACME server, delayed links; and its removal."""

from __future__ import annotations

import contextlib
import shutil
from concurrent.futures import ThreadPoolExecutor

from tests.lab import cache, cgroups, hosts, image, network
from tests.lab.hosts import LabHost
from tests.lab.state import Process, default_slot, lock, run, slot_directory


class Lab:
    """Hosts of one slot; everything made through this object ends with :meth:`close`.

    + slot: 0 to 9; separates labs that run at the same time
    """

    def __init__(self, slot: int | None = None) -> None:
        self.slot = default_slot() if slot is None else slot
        self.hosts: dict[str, LabHost] = {}

    def host(self, name: str, release: str = "bookworm", layer: str = "bare", index: int | None = None) -> LabHost:
        """Boot a fresh host and return it once it answers by SSH.

        + release: "bookworm" or "trixie"
        + layer: "bare" (as a cloud image) or "packages" (nginx, certbot, … installed already)
        + index: last part of its addresses; by default a free one
        """
        host = LabHost.create(self.slot, name, release, layer, index)
        self.hosts[name] = host
        return host

    def boot_all(self, *wanted: tuple[str, str, str]) -> list[LabHost]:
        """Boot several fresh hosts at once, each given as (name, release, layer); return them in that order."""
        with ThreadPoolExecutor(max(1, len(wanted))) as pool:
            return list(pool.map(lambda words: self.host(*words), wanted))

    def destroy(self, host: LabHost) -> None:
        """Remove one host."""
        self.hosts.pop(host.name, None)
        host.destroy()

    def close(self) -> None:
        """Remove the hosts and services made through this object, and the slot's network with its last host."""
        for host in list(self.hosts.values()):
            self.destroy(host)
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
            removed += network.remove_shared()
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
