"""Where the lab keeps what it makes, and how it ends its own processes and nothing else.

Layout below :data:`ROOT`: ``images/``, ``packages/`` (package cache), ``pip/``, ``slots/<n>/`` and the SSH key pair.
Every long-running process is recorded as a file holding its pid and its start time, so that a later process (also
after a crash) can end exactly that one, even if the pid has been given away in the meantime.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(os.environ.get("HOSTWRIGHT_LAB_DIR", "/var/lib/hostwright-lab"))
REPOSITORY = Path(__file__).resolve().parents[2]
SLOTS = range(10)


class LabError(Exception):
    """The lab could not do what was asked; the message says what and why."""


def default_slot() -> int:
    """Return the slot of this process: HOSTWRIGHT_LAB_SLOT, plus N in pytest-xdist's worker gwN.

    Raises LabError outside 0..9 (the slot is a byte of the addresses and a digit of the interface names).
    """
    slot = int(os.environ.get("HOSTWRIGHT_LAB_SLOT", "0"))
    slot += int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    if slot not in SLOTS:
        raise LabError(f"HOSTWRIGHT_LAB_SLOT: a slot is a number from 0 to 9, got {slot}")
    return slot


def slot_directory(slot: int) -> Path:
    """Return the directory of one slot (it may not exist)."""
    return ROOT / "slots" / str(slot)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a lock that all lab processes of this machine share, for example around building an image."""
    ROOT.mkdir(parents=True, exist_ok=True)
    with open(ROOT / f"{name}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run(*argv: str | Path, check: bool = True, input: str | None = None, timeout: float = 600) -> str:
    """Run a command of the outer machine and return what it printed.

    Raises LabError with the command and its standard error when it fails and ``check`` is set.
    """
    done = subprocess.run(
        [str(word) for word in argv], text=True, input=input, capture_output=True, timeout=timeout,
        stdin=subprocess.DEVNULL if input is None else None,
    )  # fmt: skip
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(map(str, argv))}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def wait_for(what: str, ready: Callable[[], object], seconds: float, pause: float = 0.03) -> None:
    """Wait until ``ready()`` is true. Raises LabError naming ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {seconds:g} s")
        time.sleep(pause)


def _start_time(pid: int) -> str | None:
    """Return field 22 of /proc/PID/stat: with the pid it names one process for as long as the machine is up."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Process:
    """One recorded process of the lab.

    + record: file that holds the pid and the start time
    """

    def __init__(self, record: Path) -> None:
        self.record = record
        self._child: subprocess.Popen[bytes] | None = None

    def start(
        self,
        *argv: str | Path,
        log: Path,
        env: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Start a process in a session of its own, and record it.

        + prepare: called in the new process before it becomes the program
        """
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            self._child = subprocess.Popen(
                [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, cwd=REPOSITORY, env={**os.environ, **(env or {})},
                preexec_fn=prepare,
            )  # fmt: skip
        self.record.write_text(f"{self._child.pid} {_start_time(self._child.pid)}\n")

    @property
    def pid(self) -> int | None:
        """The pid, or None when the recorded process is gone."""
        if self._child is not None:
            self._child.poll()  # reap it if it ended
        try:
            pid, started = self.record.read_text().split()
        except (OSError, ValueError):
            return None
        alive = _start_time(int(pid)) == started and not _zombie(int(pid))
        return int(pid) if alive else None

    def join(self) -> int:
        """Wait for a process that this very object started, and return its exit status."""
        assert self._child is not None
        return self._child.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it is still there."""
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the process; return whether it ended in time."""
        try:
            wait_for("process", lambda: self.pid is None, seconds)
        except LabError:
            return False
        return True

    def stop(self, seconds: float = 3) -> bool:
        """End the process (SIGTERM, then SIGKILL) and its record. Return whether there was one."""
        was_running = self.pid is not None
        self.signal(signal.SIGTERM)
        if not self.wait(seconds):
            self.signal(signal.SIGKILL)
            self.wait(seconds)
        self.record.unlink(missing_ok=True)
        return was_running


def ssh_key() -> Path:
    """Return the lab's private SSH key, made on first use; its public half is authorized for root on every host."""
    key = ROOT / "key"
    with lock("key"):
        if not key.exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "hostwright-lab", "-f", key)
    return key
