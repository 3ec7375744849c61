"""
Refuse a host before the first change, with everything that is wrong with it.

The first operation of a deploy: pyinfra runs operation by operation over all hosts, so that the faults of all hosts
are read before any of them is changed. A refused host takes no part in the rest of the run; the others go on, and
pyinfra exits with a status that is not 0.
"""

from __future__ import annotations

from collections.abc import Generator
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

from pyinfra import logger
from pyinfra.api import DeployError, FunctionCommand, operation
from pyinfra.context import ctx_host, ctx_state

from facts.preflight import HostState, Listener, Preflight
from settings import PortClaim, Requirements

DISTRIBUTION_PYTHON = {
    ("debian", "12"): (3, 11),
    ("debian", "13"): (3, 13),
    ("ubuntu", "22.04"): (3, 10),
    ("ubuntu", "24.04"): (3, 12),
}
"""The python3 that a release installs, for a host that has none yet."""


def faults(needed: Requirements, found: HostState) -> list[str]:
    """Return one line for each requirement that the host does not meet; pure, no host needed.

    What the host could not say counts as not met: a preflight that guesses is none.
    """
    release = (found.distribution, found.release)
    python = found.python or DISTRIBUTION_PYTHON.get(release)
    checks = [
        (
            not found.busy,
            "commands of another run",
            "finished (fuser -v /run/hostwright/busy.lock names them)",
            "still at work after 15 minutes",
        ),
        (found.uid == 0, "user", "root, directly or by sudo without a password", f"uid {found.uid}"),
        (
            release in needed.releases,
            "release",
            _any(" ".join(one) for one in needed.releases),
            " ".join(release),
        ),
        (
            found.architecture in needed.architectures,
            "architecture",
            _any(needed.architectures),
            found.architecture,
        ),
        (found.systemd in {"running", "degraded", "starting"}, "systemd", "running", found.systemd or "none"),
        (
            found.cgroup in needed.cgroup_versions,
            "cgroup version",
            _any(map(str, needed.cgroup_versions)),
            found.cgroup,
        ),
        ((found.cores or 0) >= needed.cores, "cores", f"{needed.cores} or more", found.cores),
        (
            (found.memory_mb or 0) >= needed.memory_mb,
            "memory",
            f"{needed.memory_mb} MB or more",
            _mb(found.memory_mb),
        ),
        (
            found.clock_offset is not None and abs(found.clock_offset) <= needed.clock_seconds,
            "clock",
            f"within {needed.clock_seconds} s of this machine's",
            "unknown" if found.clock_offset is None else f"{found.clock_offset:+.0f} s",
        ),
        (
            needed.python == (0, 0) or (python is not None and python >= needed.python),
            "python3",
            f"{_dotted(needed.python)} or newer",
            _dotted(python) if python else "none",
        ),
    ]
    lines = [f"{what}: must be {rule}, got {got}" for met, what, rule, got in checks if not met]
    return lines + _disk_faults(needed, found) + _port_faults(needed.ports, found.listeners)


def _disk_faults(needed: Requirements, found: HostState) -> list[str]:
    root, var = found.disks.get("/"), found.disks.get("/var")
    if root is None or var is None:
        return ["disk: must be readable by df, got nothing for / or /var"]
    if root.mounted_at == var.mounted_at:
        wanted = [("/", root.free_mb, needed.disk_root_mb + needed.disk_var_mb)]
    else:
        wanted = [("/", root.free_mb, needed.disk_root_mb), ("/var", var.free_mb, needed.disk_var_mb)]
    return [
        f"disk {path}: must have {least} MB free or more, got {free} MB"
        for path, free, least in wanted
        if free < least
    ]


def _port_faults(claims: tuple[PortClaim, ...], listeners: tuple[Listener, ...] | None) -> list[str]:
    if listeners is None:
        return ["ports: must be readable by ss, got no ss: apt-get install iproute2"] if claims else []
    lines = []
    for claim in claims:
        strangers = sorted(
            {
                f"{name} ({unit})" if unit else name
                for listener in listeners
                if (listener.port, listener.proto) == (claim.port, claim.proto)
                for name, unit in listener.holders or (("a process that cannot be seen", ""),)
                if not any(fnmatchcase(name, holder) or fnmatchcase(unit, holder) for holder in claim.holders)
            }
        )
        if strangers:
            lines.append(
                f"port {claim.port}/{claim.proto}: must be free or held by {_any(claim.holders)}, "
                f"got {', '.join(strangers)}"
            )
    return lines


def _any(words: Any) -> str:
    *first, last = list(words) or ["nothing: the host's systems exclude each other"]
    return f"{', '.join(first)} or {last}" if first else last


def _mb(value: int | None) -> str:
    return "unknown" if value is None else f"{value} MB"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


# What was said about each host while the plan was made.
_planned: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def _refuse(state: Any, host: Any, lines: list[str]) -> bool:
    """Say what is wrong and fail this host. An exception here would end the run of the other hosts too."""
    host.log("\n    ".join(["Preflight: this host is not touched", *lines]), logger.error)
    return False


@operation()
def host(requirements: Requirements) -> Generator[FunctionCommand, None, None]:
    """
    Check that the host is what its systems need; never changes anything.

    + requirements: `current().requirements`, or one's own

    A host with faults fails with one message that holds them all: also in `--dry`, where `end_if_refused` leaves it out of
    the plan.

    **Example:**

    .. code:: python

        preflight.host(current().requirements, name="Check host")
    """
    this = ctx_host.get()  # type: ignore[no-untyped-call]
    lines = faults(requirements, this.get_fact(Preflight))
    if not lines:
        this.noop("the host meets its requirements")
        return
    yield from refused(lines)


def refused(lines: list[str]) -> Generator[FunctionCommand, None, None]:
    """Yield, in an operation that checks a host, what fails it with these faults: in a run, and while a plan is made."""
    state, this = ctx_state.get(), ctx_host.get()  # type: ignore[no-untyped-call]
    if not state.is_executing:
        # planning: pyinfra runs no command now, so the host is failed here, without a word to the others. Its deploy code
        # runs on all the same, and may come by here again.
        said = _planned.setdefault(this, set())
        if fresh := [line for line in lines if line not in said]:
            said.update(fresh)
            _refuse(state, this, fresh)
        state.failed_hosts.add(this)
        state.active_hosts.discard(this)
        return  # what is yielded would stand in the plan as a change
    yield FunctionCommand(_refuse, (lines,), {})


def end_if_refused() -> None:
    """
    End the deploy code of a host that was refused while a plan is made: pyinfra would go on, and plan what never runs.

    To be called after the last check and before the first change; not in a run, where a check fails its host itself.

    Raises ``DeployError``, which ``config.py`` turns into the end of this host's plan alone.
    """
    if ctx_host.get() in _planned:  # type: ignore[no-untyped-call]
        raise DeployError("see above what preflight says")
