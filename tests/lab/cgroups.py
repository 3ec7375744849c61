"""A control group of its own for every host, in every hierarchy of the outer machine.

Without one, hosts that are started by the same process share the cgroups below the root: two hosts' nginx.service
would be one group, and systemd on one host would wait for the processes of the other.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.lab.state import LabError, wait_for

_PARENT = "hostwright-lab"


def _hierarchies() -> list[Path]:
    lines = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return sorted({Path(words[1]) for words in lines if words[2] in ("cgroup", "cgroup2")})


def create(name: str) -> list[Path]:
    """Make the groups of a host, empty, and return them. Groups of an earlier boot are removed first."""
    remove(name)
    groups = []
    for hierarchy in _hierarchies():
        parent = hierarchy / _PARENT
        parent.mkdir(exist_ok=True)
        for above in (hierarchy, parent):
            _hand_down_controllers(above)
        group = parent / name
        group.mkdir()
        for setting in ("cpuset.cpus", "cpuset.mems"):  # cgroup v1: empty in a new group, which can then hold nothing
            for below in (parent, group):
                if (below / setting).exists() and not (hierarchy / "cgroup.controllers").exists():
                    (below / setting).write_text((hierarchy / setting).read_text())
        groups.append(group)
    return groups


def _hand_down_controllers(group: Path) -> None:
    """cgroup v2: let the children of a group have the controllers that it has."""
    listed = group / "cgroup.controllers"
    if listed.exists():
        for controller in listed.read_text().split():
            with contextlib.suppress(OSError):  # some cannot be (cpu, with realtime processes about)
                (group / "cgroup.subtree_control").write_text(f"+{controller}")


def enter(groups: list[Path]) -> None:
    """Move this process into the groups; its children follow."""
    for group in groups:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def remove(name: str) -> None:
    """Remove the groups of a host that is switched off, with what its systemd left in them."""
    for hierarchy in _hierarchies():
        group = hierarchy / _PARENT / name
        if group.exists():
            with contextlib.suppress(LabError):  # the reaping of the last process can lag behind its death
                wait_for(f"{group}: empty", lambda group=group: _remove_tree(group), 5)


def _remove_tree(group: Path) -> bool:
    """Remove a group and those below it; return whether it is gone."""
    for directory, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def remove_parent(prefix: str) -> None:
    """Remove all groups whose host name starts with ``prefix``, and the lab's own group if it is empty then."""
    for hierarchy in _hierarchies():
        for group in (hierarchy / _PARENT).glob(f"{prefix}*"):
            if group.is_dir():
                remove(group.name)
        with contextlib.suppress(OSError):
            (hierarchy / _PARENT).rmdir()
