"""What a host must be before the first change: each system states its needs, the host has to meet them all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

RELEASES = (("debian", "12"), ("debian", "13"), ("ubuntu", "22.04"), ("ubuntu", "24.04"))
ARCHITECTURES = ("x86_64", "aarch64")


@dataclass(frozen=True)
class PortClaim:
    """A port that a system will listen on: free now, or already held by one of these processes.

    + holders: patterns (fnmatch) of process names, at most 15 characters, or of systemd units
    """

    port: int
    holders: tuple[str, ...]
    proto: str = "tcp"


@dataclass(frozen=True)
class Requirements:
    """Minimum values. `a.merge(b)` asks for what both ask for.

    + releases: accepted (ID, VERSION_ID) of /etc/os-release
    + architectures: accepted `uname -m`
    + memory_mb, disk_root_mb, disk_var_mb: MiB; memory in total, disk free
    + cgroup_versions: accepted versions of the cgroup hierarchy
    + clock_seconds: greatest distance of the host's clock from this machine's
    + python: least python3 of the distribution; (0, 0) asks for none
    """

    releases: tuple[tuple[str, str], ...] = RELEASES
    architectures: tuple[str, ...] = ARCHITECTURES
    cores: int = 1
    memory_mb: int = 0
    disk_root_mb: int = 0
    disk_var_mb: int = 0
    cgroup_versions: tuple[int, ...] = (1, 2)
    ports: tuple[PortClaim, ...] = ()
    clock_seconds: int = 60
    python: tuple[int, int] = (0, 0)

    def merge(self, other: Requirements) -> Requirements:
        """Return the requirements that satisfy both; disk needs add up, the others take the stricter one."""
        return Requirements(
            releases=tuple(release for release in self.releases if release in other.releases),
            architectures=tuple(name for name in self.architectures if name in other.architectures),
            cores=max(self.cores, other.cores),
            memory_mb=max(self.memory_mb, other.memory_mb),
            disk_root_mb=self.disk_root_mb + other.disk_root_mb,
            disk_var_mb=self.disk_var_mb + other.disk_var_mb,
            cgroup_versions=tuple(
                number for number in self.cgroup_versions if number in other.cgroup_versions
            ),
            ports=self.ports + other.ports,
            clock_seconds=min(self.clock_seconds, other.clock_seconds),
            python=max(self.python, other.python),
        )


def merged(parts: list[Requirements]) -> Requirements:
    """Return the requirements of all parts of a host."""
    return reduce(Requirements.merge, parts)
