"""arm64 programs on this machine, by qemu-user: the kernel is asked to start them with it, until the lab is removed.

Enough for a host's userland (systemd, sshd, a shell, Python), about ten times slower. Not for Docker.
"""

from __future__ import annotations

from pathlib import Path

from tests.lab import image
from tests.lab.state import ROOT, lock, run

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_ENTRY = _BINFMT / "hostwright-aarch64"
_MOUNTED = ROOT / "binfmt-mounted"
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


def start() -> None:
    """Let the kernel run arm64 programs, where it does not yet."""
    qemu = image.unpacked("qemu-user-static") / "usr/bin/qemu-aarch64-static"
    with lock("binfmt"):
        if not (_BINFMT / "register").exists():
            run("mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT)
            _MOUNTED.touch()
        # This machine may have qemu of its own; two handlers for the same programs do not disturb each other.
        if not _ENTRY.exists():
            # F: opened now, so that it is found in every root; C: sudo stays sudo; P: programs see their own name.
            (_BINFMT / "register").write_text(f":{_ENTRY.name}:M::{_MAGIC}:{_MASK}:{qemu}:POCF")


def stop() -> list[str]:
    """Take back what :func:`start` did; return what was removed."""
    removed = []
    with lock("binfmt"):
        if _ENTRY.exists():
            _ENTRY.write_text("-1")
            removed.append("arm64 programs (kernel)")
        if _MOUNTED.exists():
            run("umount", _BINFMT, check=False)
            _MOUNTED.unlink()
    return removed
