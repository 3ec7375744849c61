"""Things that go wrong on a host: a full disk, a clock that is elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import image

if TYPE_CHECKING:
    from tests.lab.hosts import LabHost

_FILLER = ".lab-filler"
_FAKETIME = "/usr/local/lib/lab/libfaketime.so.1"


def fill_disk(host: LabHost, path: str, free_kib: int = 0) -> None:
    """Let a directory of a host run full: writes below it fail with ENOSPC, what was in it can still be read.

    A small file system holding a copy of the directory is mounted over it and filled. Files that a process has open
    already are not affected: restart it to let it feel the fault.

    + free_kib: KiB left free
    """
    quoted = shlex.quote(path)
    host.run(f"""set -e
used=$(du -sk {quoted} | cut -f1)
scratch=$(mktemp -d)
mount -t tmpfs -o size=$((used * 2 + 1024 + {free_kib}))k,mode=$(stat -c %a {quoted}) lab-full "$scratch"
chown --reference={quoted} "$scratch"
cp -a {quoted}/. "$scratch"
mount --move "$scratch" {quoted} || {{ mount --bind "$scratch" {quoted}; umount "$scratch"; }}
rmdir "$scratch"
room=$(($(df -k --output=avail {quoted} | tail -1) - {free_kib}))
fallocate -l "$room"k {quoted}/{_FILLER} || dd if=/dev/zero of={quoted}/{_FILLER} bs=1k count="$room" status=none
""")


def free_disk(host: LabHost) -> None:
    """End all full disks of a host: what was written meanwhile is kept, the small file systems are gone.

    Raises LabError when a process still has files open there: stop it first.
    """
    host.run(rf"""set -e
awk '$1 == "lab-full" {{ print $2 }}' /proc/mounts | while read -r full; do
    rm -f "$full/{_FILLER}"
    scratch=$(mktemp -d)
    cp -a "$full/." "$scratch"
    umount "$full"
    find "$full" -mindepth 1 -delete
    cp -a "$scratch/." "$full"
    rm -rf "$scratch"
done
""")


def faked_clock(host: LabHost, offset: str) -> dict[str, str]:
    """Return environment variables under which a process of the host sees another time (libfaketime).

    All hosts share the kernel's clock, so time is faked per process: put them before a command or into a unit's
    drop-in.

    + offset: as faketime(1) takes it: "+90d", "-2h", "@2030-01-01 00:00:00"
    """
    library = next(image.unpacked("libfaketime", host.plan.release).rglob("libfaketime.so.1"))
    target = Path(host.directory, "root", _FAKETIME.lstrip("/"))
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(library.read_bytes())
        target.chmod(0o755)
    return {"LD_PRELOAD": _FAKETIME, "FAKETIME": offset}
