"""What k3s needs of a host: a host that has none of it is refused by deploy.py with all of it in one message, and is not touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.state import REPOSITORY, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

DEPLOY = REPOSITORY / "deploy.py"
DATA: dict[str, Any] = {
    "k3s_version": "v1.35.0+k3s1", "k3s_sums": {"amd64": "a" * 64}, "k3s_release_url": "http://192.0.2.1", "k3s_token": "env:K3S_TOKEN",
    "k3s_node_networks": ["10.0.0.0/16"], "k3s_config": {"protect-kernel-defaults": True}, "backup_enabled": False,
}  # fmt: skip
ENV = {"K3S_TOKEN": "canary-token-of-this-cluster-01234"}
# What the host says of itself, bound over what its kernel says: it shares that with the machine that the tests run on.
LIES = """set -e
mkdir -p /run/lies
sed 's/^MemTotal:.*/MemTotal: 1000000 kB/' /proc/meminfo >/run/lies/meminfo
printf 'Filename Type Size Used Priority\\n/swapfile file 1048572 0 -2\\n' >/run/lies/swaps
grep -v '^memory' /proc/cgroups >/run/lies/cgroups
echo 0 >/run/lies/overcommit
for file in meminfo swaps cgroups; do mount --bind /run/lies/$file /proc/$file; done
mount --bind /run/lies/overcommit /proc/sys/vm/overcommit_memory
mount -t tmpfs none /proc/sys/net
"""


@pytest.fixture(scope="module")
def bad(lab: Lab) -> Iterator[LabHost]:
    host = lab.host("t-k3s-bad", layer="packages")
    host.run("systemd-run --unit=other-api python3 -m http.server 6443; systemd-run --unit=firewalld sleep infinity")
    host.write("/etc/iptables/rules.v4", "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j REJECT --reject-with icmp-host-prohibited\nCOMMIT\n")
    host.write("/etc/sysctl.d/90-hardening.conf", "net.ipv4.ip_forward = 0\n")
    wait_for("the other program", lambda: host.run("ss -Hltn 'sport = :6443'").stdout, 20)
    host.run(LIES)
    yield host
    lab.destroy(host)


def refused(provision: Callable[..., Run], host: LabHost, role: str = "server", **differs: Any) -> str:
    done = provision(host, DEPLOY, data={**DATA, **differs}, groups={f"k3s_{role}": [host]}, env=ENV)
    assert not done.ok, done
    assert not host.exists("/usr/local/bin/k3s")
    assert not host.exists("/etc/rancher")
    assert not host.exists("/etc/hostwright")
    return done.stderr


def test_everything_that_is_wrong_is_said_at_once(bad, provision):
    said = refused(provision, bad)
    for line in (
        "memory: must be 1900 MB or more, got 976 MB",
        "port 6443/tcp: must be free or held by k3s*, etcd, kubelet or kube-*, got python3 (other-api.service)",
    ):
        assert line in said, line


def test_what_k3s_alone_needs_is_said_at_once(bad, provision):
    """The host's own needs are met, so that the next check comes to its turn."""
    bad.run("umount /proc/meminfo; systemctl stop other-api")
    v1 = not bad.exists("/sys/fs/cgroup/cgroup.controllers")
    said = refused(provision, bad, k3s_cgroup_versions=[2 if v1 else 1])
    for line in (
        f"cgroup version: must be {2 if v1 else 1}, got {1 if v1 else 2}",
        "kernel: must have br_netfilter, nf_conntrack, got neither built in nor as a module",
        "swap: must be off, since memory limits of pods do not count what is swapped, got /swapfile: base_swap_size_mb = 0, or k3s_allow_swap = True",
        "firewall: must not be firewalld",
        "firewall: must be ufw or the rules that Oracle's image came with (REJECT in /etc/iptables/rules.v4), got both",
        "sysctl net.ipv4.ip_forward: must not be set to 0, which ends the pods' network at every boot, got it from /etc/sysctl.d/90-hardening.conf",
        "sysctl vm.overcommit_memory: must be 1 for the kubelet's protect-kernel-defaults, got 0",
        *(("cgroup: must have the memory controller, got ",) if v1 else ()),
    ):
        assert line in said, f"{line}\n{said}"
    if v1:
        assert "must be 2 for k3s v1.35.0+k3s1, whose kubelet does not start on 1" in refused(provision, bad)


def test_a_host_that_is_put_right_passes(bad, provision):
    bad.run("umount /proc/sys/net /proc/swaps /proc/cgroups; systemctl stop firewalld; rm /etc/iptables/rules.v4 /etc/sysctl.d/90-hardening.conf; "
            "echo 1 >/run/lies/overcommit")  # fmt: skip
    text = (
        "from operations import k3s\n"
        "k3s.needs('v1.34.2+k3s1', protect_kernel_defaults=False, name='Check host for k3s')\n"
    )
    done = provision(bad, text)
    assert done.ok, done
    assert done.changed == []


def test_a_clock_that_is_elsewhere_and_a_full_disk_are_said(bad, provision):
    said = provision(
        bad,
        "import facts.preflight, time\nreal = time.time\nfacts.preflight.time = type('T', (), {'time': lambda: real() - 500})\n"
        "from operations import preflight\nfrom deploys import current\nfrom dataclasses import replace\n"
        "preflight.host(replace(current().requirements, disk_root_mb=10**8), name='Check host')\n",
        data=DATA, groups={"k3s_server": [bad]}, env=ENV,
    ).stderr  # fmt: skip
    assert "clock: must be within 60 s of this machine's, got +" in said
    assert "disk /: must have 100002048 MB free or more, got " in said
