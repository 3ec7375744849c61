"""
The swap file, read back with stat, blkid and fstab.

A lab host is a container, which cannot switch swap on: that step alone runs on the outer machine, with its real kernel,
on a scratch file with a scratch fstab.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from operations import script

HEAD = "from operations import swap\n"


def swap(size_mb: object, path: str = "/swapfile") -> str:
    return f"{HEAD}swap.file(size_mb={size_mb!r}, path={path!r}, name='Swap')\n"


def seen(host) -> list[str]:
    return host.run(
        "stat -c '%s %a %U' /swapfile; blkid -p -s TYPE -o value /swapfile; grep -F swap /etc/fstab", check=False
    ).stdout.splitlines()


def test_set_no_op_update_heal_unset(host, provision):
    fstab = host.read("/etc/fstab")
    line = "/swapfile none swap sw 0 0"
    assert provision(host, swap(4)).changed == ["Swap"]
    assert seen(host) == [f"{4 * 2**20} 600 root", "swap", line]
    assert provision(host, swap(4)).changed == []
    assert provision(host, swap(6)).changed == ["Swap"]
    assert seen(host) == [f"{6 * 2**20} 600 root", "swap", line]
    for by_hand in ("chmod 644 /swapfile", "sed -i 's/ sw / defaults /' /etc/fstab", "truncate -s 0 /swapfile"):
        host.run(by_hand)
        assert provision(host, swap(6)).changed == ["Swap"], by_hand
        assert seen(host) == [f"{6 * 2**20} 600 root", "swap", line], by_hand
    assert provision(host, swap(0)).changed == ["Swap"]
    assert seen(host) == []
    assert host.read("/etc/fstab") == fstab
    assert provision(host, swap(0)).changed == []


def test_full_disk_keeps_the_old_file(host, provision):
    host.run("mkdir -p /small && mount -t tmpfs -o size=8m none /small")
    assert provision(host, swap(4, "/small/swapfile")).changed == ["Swap"]
    assert provision(host, swap(64, "/small/swapfile")).failed == ["Swap"]
    assert host.run("stat -c %s /small/swapfile; ls /small").stdout.split() == [str(4 * 2**20), "swapfile"]
    assert provision(host, swap(0, "/small/swapfile")).ok


@pytest.mark.parametrize(("size_mb", "path"), [(-1, "/swapfile"), (1, "swapfile"), (1, "/swap file")])
def test_bad_input_is_refused(host, provision, size_mb, path):
    run = provision(host, swap(size_mb, path))
    assert not run.ok
    assert "swap.file: " in run.stderr


def test_kernel_takes_and_gives_back_the_file():
    """The script of the operation as it is, on the outer machine: on, resized while in use, off."""
    directory = Path("/var/tmp/hostwright-swap-test")
    directory.mkdir(exist_ok=True)
    path, fstab = directory / "swapfile", directory / "fstab"
    fstab.write_text("# one line that stays\n")

    def run(size_mb: int, active: bool) -> list[int]:
        program = script.text(
            ["swap/apply.sh"],
            {"path": str(path), "size_mb": size_mb, "fstab": str(fstab), "line": f"{path} none swap sw 0 0",
             "rebuild": True, "active": active, "container": False},
        )  # fmt: skip
        without_daemon_reload = "systemctl() { :; }\n" + program
        subprocess.run(["sh", "-s"], input=without_daemon_reload, text=True, check=True)
        in_use = [line.split() for line in Path("/proc/swaps").read_text().splitlines()]
        return [int(words[2]) for words in in_use if words[0] == str(path)]

    try:
        # /proc/swaps counts KiB, without the page that holds the header.
        assert run(4, active=False) == [4 * 1024 - 4]
        assert run(6, active=True) == [6 * 1024 - 4]
        assert fstab.read_text() == f"# one line that stays\n{path} none swap sw 0 0\n"
        assert run(0, active=True) == []
        assert not path.exists()
        assert fstab.read_text() == "# one line that stays\n"
    finally:
        subprocess.run(["swapoff", str(path)], check=False, capture_output=True)
        for file in (path, fstab, directory / "swapfile.new"):
            file.unlink(missing_ok=True)
        directory.rmdir()
