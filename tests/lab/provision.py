"""pyinfra in a subprocess against lab hosts, and its result read back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.hosts import LabHost
from tests.lab.state import REPOSITORY, ROOT

PYINFRA = Path(sys.executable).with_name("pyinfra")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Run:
    """The result of one pyinfra run.

    + changed: names of operations that changed something on any host (with ``dry``: that would)
    + failed: names of operations that failed on any host
    + results: pyinfra's own JSON, None when it stopped before printing it
    """

    rc: int
    stdout: str
    stderr: str
    changed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    results: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether pyinfra ended with status 0."""
        return self.rc == 0

    def __str__(self) -> str:
        return f"pyinfra: exit status {self.rc}\n--- stdout\n{self.stdout[-4000:]}\n--- stderr\n{self.stderr[-8000:]}"

    def __repr__(self) -> str:  # what pytest shows of a failed `assert run.ok`
        return f"<{self}>"


def provision(
    hosts: LabHost | Sequence[LabHost],
    deploy: str | Path,
    data: Mapping[str, Any] | None = None,
    groups: Mapping[str, Sequence[LabHost]] | None = None,
    dry: bool = False,
    env: Mapping[str, str] | None = None,
    limit: str | None = None,
    extra: Sequence[str] = (),
    host_data: Mapping[str, Mapping[str, Any]] | None = None,
    timeout: float = 900,
) -> Run:
    """Run pyinfra from the repository's root against lab hosts.

    + deploy: deploy code as text, or the path of a deploy file
    + data: host data of all hosts (must be literals: the inventory is written to a file)
    + groups: group name to hosts; names become groups of the inventory
    + dry: only plan (``--dry``) instead of changing anything (``-y``)
    + env: further environment variables of the pyinfra process
    + extra: further arguments of pyinfra
    + host_data: host name to data of that host alone, laid over ``data``
    """
    with tempfile.TemporaryDirectory(prefix="lab-provision-") as scratch:
        command = command_line(
            Path(scratch), hosts, deploy, data=data, groups=groups, dry=dry, limit=limit, extra=extra,
            host_data=host_data,
        )  # fmt: skip
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment(env or {}), text=True,
            capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout,
        )  # fmt: skip
    run = _read(done)
    if not run.ok:
        print(run)  # noqa: T201 - pytest shortens what an assertion shows; of a failed test it shows this whole
    return run


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a pyinfra process: ours, and ``more``.

    make forbids Python to write its bytecode into the tree; an operator's shell does not. Here it is kept beside the
    hosts: without it a fifth of what it takes to start pyinfra is spent on compiling the same modules again.
    """
    known = {**os.environ, "NO_COLOR": "1", "PYTHONPYCACHEPREFIX": str(ROOT / "bytecode"), **more}
    known.pop("PYTHONDONTWRITEBYTECODE", None)
    return known


def command_line(
    scratch: Path,
    hosts: LabHost | Sequence[LabHost],
    deploy: str | Path,
    data: Mapping[str, Any] | None = None,
    groups: Mapping[str, Sequence[LabHost]] | None = None,
    dry: bool = False,
    limit: str | None = None,
    extra: Sequence[str] = (),
    host_data: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[str]:
    """Write inventory and deploy file into ``scratch`` and return the pyinfra command line that uses them.

    For tests that start pyinfra themselves, to kill it half-way for example; to be run from the repository's root.
    """
    several = [hosts] if isinstance(hosts, LabHost) else list(hosts)
    everyone = {host.name: host for host in [*several, *(h for members in (groups or {}).values() for h in members)]}
    entries = {
        name: (name, {**host.data, **(data or {}), **(host_data or {}).get(name, {})}) for name, host in everyone.items()
    }
    inventory = scratch / "inventory.py"
    lines = [f"lab_hosts = {list(entries.values())!r}"]
    lines += [f"{group} = {[entries[host.name] for host in members]!r}" for group, members in (groups or {}).items()]
    inventory.write_text("\n".join(lines) + "\n")
    inventory.chmod(0o600)
    if isinstance(deploy, str):
        file = scratch / "deploy.py"
        file.write_text(deploy)
    else:
        file = deploy.resolve()
    command = [str(PYINFRA), "--json", "--dry" if dry else "-y", str(inventory), str(file)]
    if limit is not None:
        command += ["--limit", limit]
    return [*command, *extra]


def _read(done: subprocess.CompletedProcess[str]) -> Run:
    stderr = _ANSI.sub("", done.stderr)
    start = done.stdout.rfind('\n{"plan"')
    try:
        payload = json.loads(done.stdout[start + 1 :])
    except json.JSONDecodeError:
        # pyinfra prints no JSON when no host is left; its log still names the operation that ended it.
        return Run(done.returncode, done.stdout, stderr, failed=_failed_by_log(stderr))
    results = payload["results"]
    if results is None:
        changed = [row["name"] for row in payload["plan"] if row["hosts_with_change"] or row["hosts_with_conditional_change"]]
        return Run(done.returncode, done.stdout, stderr, changed=changed, results=payload)
    changed = [row["name"] for row in results["operations"] if row["success"]]
    failed = [row["name"] for row in results["operations"] if row["error"]]
    return Run(done.returncode, done.stdout, stderr, changed, failed, payload)


def _failed_by_log(stderr: str) -> list[str]:
    failed, current = [], ""
    for line in stderr.splitlines():
        started = re.match(r"--> Starting operation: (.*?)\s*$", line)
        if started:
            current = started[1]
        elif re.match(r"\s*\[[^]]+\]:?\s+Error", line) and current and current not in failed:
            failed.append(current)
    return failed
