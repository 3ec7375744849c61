"""Hostwright, Ansible and the floor: what each is told to run, and how its answer is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.fleet import STATE, Target
from tests.lab.provision import environment
from tests.lab.state import REPOSITORY, LabError, run

PLAYBOOK = Path(__file__).with_name("ansible")
PYINFRA = Path(sys.executable).with_name("pyinfra")
_TIMEOUT = 3600


@dataclass(frozen=True)
class Outcome:
    """How one run ended: how long it took, what it says it changed, all that it printed."""

    seconds: float
    changed: tuple[str, ...]
    output: str


def _timed(command: Sequence[str | Path], env: Mapping[str, str], what: str) -> tuple[float, str]:
    """Run a command from the repository's root; return the seconds it took and its standard output.

    Raise LabError, with the end of what it printed, when it fails.
    """
    before = time.monotonic()
    done = subprocess.run(
        [str(word) for word in command], cwd=REPOSITORY, env=environment(env), text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT,
    )  # fmt: skip
    seconds = time.monotonic() - before
    if done.returncode != 0:
        raise LabError(f"{what}: exit status {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return seconds, done.stdout


class Hostwright:
    """``pyinfra -y INVENTORY deploy.py``, as an operator or a CI job runs it.

    + data: settings of all hosts
    + secrets: environment variables that the settings refer to
    """

    name = "hostwright"

    def __init__(self, deploy: Path, data: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
        self._deploy, self._data, self._secrets = deploy, data, secrets

    def run(self, targets: Sequence[Target], record: Path | None = None) -> Outcome:
        """Converge the targets.

        + record: trace the run into this file (see trace), which slows it down a little
        """
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            inventory = Path(scratch) / "inventory.py"
            entries = [(target.name, {**target.data, **self._data}) for target in targets]
            inventory.write_text(f"gateway = {entries!r}\n")
            program = [PYINFRA] if record is None else [sys.executable, "-m", "benchmarks.trace", record]
            seconds, output = _timed(
                [*program, "--json", "-y", inventory, self._deploy], self._secrets, "pyinfra"
            )
        payload = json.loads(output[output.rindex('{"plan"') :])
        changed = tuple(row["name"] for row in payload["results"]["operations"] if row["success"])
        return Outcome(seconds, changed, output)


class Ansible:
    """``ansible-playbook`` with ansible-core as a careful user sets it up: see ansible/ansible.cfg.

    Every run starts without open connections, as a run after a coffee does; within the run they are shared.
    """

    name = "ansible"

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = dict(variables)
        self._bin = _ansible_environment() / "bin"

    @property
    def version(self) -> str:
        """What ``ansible --version`` says first."""
        return run(self._bin / "ansible", "--version").splitlines()[0]

    def run(self, targets: Sequence[Target]) -> Outcome:
        """Converge the targets."""
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            inventory = Path(scratch) / "inventory.json"
            inventory.write_text(json.dumps({"all": {"hosts": {t.name: _ansible_host(t) for t in targets},
                                                     "vars": self._variables}}))  # fmt: skip
            sockets = Path(scratch) / "cp"
            env = {
                "ANSIBLE_CONFIG": str(PLAYBOOK / "ansible.cfg"),
                "ANSIBLE_HOME": str(STATE / "ansible-home"),
                "ANSIBLE_SSH_CONTROL_PATH_DIR": str(sockets),
                "PATH": f"{self._bin}:{os.environ['PATH']}",
            }
            try:
                seconds, output = _timed(
                    [self._bin / "ansible-playbook", "-i", inventory, PLAYBOOK / "site.yml"], env, "ansible-playbook"
                )
            finally:
                for control in sockets.glob("*"):  # the masters would stay for ControlPersist's minute
                    run("ssh", "-o", f"ControlPath={control}", "-O", "exit", "any", check=False)
        recap = figures.parse_recap(output)
        changed = tuple(f"{host}: {counted['changed']} tasks" for host, counted in recap.items() if counted["changed"])
        return Outcome(seconds, changed, output)


def _ansible_host(target: Target) -> dict[str, Any]:
    data = target.data
    return {
        "ansible_host": target.address,
        "ansible_port": target.port,
        "ansible_user": data["ssh_user"],
        "ansible_ssh_private_key_file": data["ssh_key"],
        "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={data['ssh_known_hosts_file']}"
        " -o StrictHostKeyChecking=yes",
        "ansible_python_interpreter": "/usr/bin/python3",
    }


def _ansible_environment() -> Path:
    """Return Ansible's own virtual environment, made on first use from ansible/requirements.txt."""
    pinned = PLAYBOOK / "requirements.txt"
    version = pinned.read_text().partition("==")[2].split()[0]
    home = STATE / f"ansible-{version}"
    if not (home / "bin/ansible-playbook").exists():
        venv.create(home, with_pip=True, clear=True)
        run(home / "bin/pip", "install", "--quiet", "--requirement", pinned, timeout=900)
    return home


class Floor:
    """One SSH connection and one shell script per host, all hosts at once: what checking costs at the very least.

    + script: prints what the hosts are; a host has changed when it does not print what it printed at first
    """

    name = "floor"

    def __init__(self, script: str) -> None:
        self._script = script
        self._expected: dict[str, str] = {}

    def run(self, targets: Sequence[Target]) -> Outcome:
        """Check the targets; the first run of a target is taken for what it should be."""
        before = time.monotonic()
        with ThreadPoolExecutor(len(targets)) as pool:
            states = list(pool.map(self._check, targets))
        seconds = time.monotonic() - before
        changed = []
        for target, state in zip(targets, states, strict=True):
            if self._expected.setdefault(target.name, state) != state:
                changed.append(target.name)
        return Outcome(seconds, tuple(changed), "\n".join(states))

    def _check(self, target: Target) -> str:
        data = target.data
        return run(
            "ssh", "-F", "none", "-i", data["ssh_key"], "-p", str(target.port), "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={data['ssh_known_hosts_file']}", "-o", "StrictHostKeyChecking=yes",
            f"{data['ssh_user']}@{target.address}", "sh", input=self._script,
        )  # fmt: skip
