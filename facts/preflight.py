"""What cannot change in a run: read once, in one command, before the first change."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pyinfra.api import FactBase

from facts.records import Record

_SCRIPT = Path(__file__).parents[1] / "files" / "preflight" / "state.sh"


@dataclass(frozen=True)
class Listener(Record):
    """One listening socket. `holders`: (process name, systemd unit or "") of each process that holds it."""

    proto: str
    address: str
    port: int
    holders: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Disk(Record):
    """The file system under a path: MiB that are free for root, and where it is mounted."""

    free_mb: int
    mounted_at: str


@dataclass(frozen=True)
class HostState(Record):
    """What `Preflight` returns; None or an empty text where the host could not say.

    + clock_offset: seconds by which the host's clock is ahead of this machine's
    + systemd: what `systemctl is-system-running` says; empty when systemd is not PID 1
    + listeners: None when there is no `ss` on the host
    + busy: a command of an earlier run still worked after 15 minutes of waiting for it
    """

    uid: int | None = None
    architecture: str = ""
    distribution: str = ""
    release: str = ""
    cgroup: int | None = None
    cores: int | None = None
    memory_mb: int | None = None
    disks: dict[str, Disk] = field(default_factory=dict)
    systemd: str = ""
    python: tuple[int, int] | None = None
    clock_offset: float | None = None
    listeners: tuple[Listener, ...] | None = None
    busy: bool = False


def parse(output: Iterable[str], now: float) -> HostState:
    """Return the state that the lines of files/preflight/state.sh describe; `now`: this machine's clock."""
    values: dict[str, str] = {}
    disks: dict[str, Disk] = {}
    listeners: list[Listener] = []
    for line in output:
        key, _, value = line.partition("=")
        if key == "disk":
            path, free_kb, *_device, mounted_at = value.split()
            disks[path] = Disk(int(free_kb) // 1024, mounted_at)
        elif key == "port":
            listeners.append(_listener(value))
        else:
            values[key] = value.strip()
    return HostState(
        uid=_number(values.get("uid")),
        architecture=values.get("architecture", ""),
        distribution=values.get("distribution", ""),
        release=values.get("release", ""),
        cgroup=_number(values.get("cgroup")),
        cores=_number(values.get("cores")),
        memory_mb=memory // 1024 if (memory := _number(values.get("memory_kb"))) is not None else None,
        disks=disks,
        systemd=values.get("systemd", ""),
        python=_version(values.get("python", "")),
        clock_offset=clock - now if (clock := _number(values.get("clock"))) is not None else None,
        listeners=tuple(listeners) if "ports" in values else None,
        busy="busy" in values,
    )


def _listener(value: str) -> Listener:
    """Parse `tcp 0.0.0.0:80 nginx|nginx.service`, the address of ss: [::]:80, *:80, 127.0.0.1%lo:80."""
    proto, address, *holders = value.split()
    ip, _, port = address.rpartition(":")
    pairs = (holder.partition("|") for holder in holders)
    return Listener(proto, ip.strip("[]"), int(port), tuple((name, unit) for name, _, unit in pairs))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _version(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


class Preflight(FactBase[HostState]):
    """
    Return a `HostState`: architecture, release, memory, disks, clock, and who holds which port.

    Waits up to 15 minutes for commands that a killed or a simultaneous run has left at work on the host.

    .. code:: python

        HostState(uid=0, architecture="x86_64", distribution="debian", release="12", cgroup=2, cores=2,
                  memory_mb=1973, disks={"/": Disk(free_mb=18211, mounted_at="/"), ...}, systemd="running",
                  python=(3, 11), clock_offset=0.2, listeners=(Listener("tcp", "0.0.0.0", 22, (("sshd", "ssh.service"),)),))
    """

    @staticmethod
    def default() -> HostState:
        return HostState()

    def command(self) -> str:
        return _SCRIPT.read_text()

    def process(self, output: Iterable[str]) -> HostState:
        return parse(output, time.time())
