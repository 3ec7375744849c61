# What k3s needs of a host, as JSON in one line. Reads only. main({})
import json
import os
import re
import shutil
import subprocess
import sys


def text(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def ask(*argv):
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def loadable(name):
    return ask("modprobe", "-n", "-q", name) is not None


def has(name):
    """Whether the kernel has a feature, or a module for it; vxlan is asked in a network of its own that vanishes with the question."""
    if name == "overlay":
        return bool(re.search(r"\boverlay$", text("/proc/filesystems"), re.M)) or loadable(name)
    if name == "br_netfilter":
        return os.path.isdir("/proc/sys/net/bridge") or loadable(name)
    if name == "nf_conntrack":
        return os.path.exists("/proc/sys/net/netfilter/nf_conntrack_max") or loadable(name)
    if name == "vxlan":
        return ask("unshare", "-n", "ip", "link", "add", "probe", "type", "vxlan", "id", "1", "dstport", "4789") is not None
    return loadable(name)


def cgroup():
    """Version, and the controllers that are on."""
    unified = text("/sys/fs/cgroup/cgroup.controllers")
    if unified:
        return 2, unified.split()
    rows = [line.split() for line in text("/proc/cgroups").splitlines()[1:]]
    return 1, [row[0] for row in rows if len(row) == 4 and row[3] == "1" and os.path.isdir("/sys/fs/cgroup/" + row[0])] or [row[0] for row in rows if row[3] == "1"]


def forwarding_off():
    """The file that turns forwarding off at every boot, after all others that speak of it; "" when none does."""
    where, value, file = "", "", ""
    for line in (ask("/usr/lib/systemd/systemd-sysctl", "--cat-config") or ask("/lib/systemd/systemd-sysctl", "--cat-config") or "").splitlines():
        if line.startswith("# /"):
            file = line[2:]
        found = re.fullmatch(r"\s*-?net[./]ipv4[./](?:ip_forward|conf[./]all[./]forwarding)\s*=\s*(\d+)\s*", line)
        if found:
            value, where = found.group(1), file
    return where if value == "0" else ""


SYSCTL = ("vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops", "kernel.keys.root_maxkeys", "kernel.keys.root_maxbytes")


def main(_values):
    version, controllers = cgroup()
    chains = {}
    for chain in ("INPUT", "FORWARD"):
        chains[chain] = (ask("iptables", "-w", "10", "-S", chain) or "").splitlines() if shutil.which("iptables") else []
    ufw = ask("ufw", "status") or ""
    sys.stdout.write(json.dumps({
        "cgroup": version,
        "controllers": controllers,
        "missing": [name for name in ("overlay", "br_netfilter", "nf_conntrack", "vxlan") if not has(name)],
        "swaps": [line.split()[0] for line in text("/proc/swaps").splitlines()[1:]],
        "sysctl": {key: text("/proc/sys/" + key.replace(".", "/")).strip() for key in SYSCTL},
        "forwarding_off": forwarding_off(),
        "machine_id": text("/etc/machine-id").strip(),
        "rules": chains,
        "saved_rules": text("/etc/iptables/rules.v4").splitlines(),
        "ufw": "Status: active" in ufw,
        "firewalld": (ask("systemctl", "is-active", "firewalld.service") or "").strip() == "active",
        "hostname": os.uname().nodename,
    }) + "\n")
