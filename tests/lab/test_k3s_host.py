"""k3s by the real deploy.py on a bare host, with its firewall, preflight and backups; and on a host with Oracle's rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab import images, k3s
from tests.lab.hosts import LabHost
from tests.lab.k3s import Cluster, Mirror
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line
from tests.lab.state import REPOSITORY, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

DEPLOY = REPOSITORY / "deploy.py"
ENV = {"K3S_TOKEN": "canary-token-of-this-cluster-01234", "BACKUP_PASSWORD": "canary-password-of-the-copies"}

# As Oracle's Ubuntu images come: everything but SSH is rejected, and the instance's own services have a chain.
ORACLE = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:InstanceServices - [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
-A OUTPUT -d 169.254.0.0/16 -j InstanceServices
-A InstanceServices -d 169.254.0.2/32 -p tcp -m owner --uid-owner 0 -m tcp --dport 3260 -j ACCEPT
COMMIT
"""


@pytest.fixture(scope="module")
def oracle(lab: Lab) -> Iterator[LabHost]:
    host = lab.host("t-k3s-oracle", layer="packages")
    host.write("/etc/iptables/rules.v4", ORACLE, "0640")
    host.run("iptables-restore </etc/iptables/rules.v4")
    yield host
    lab.destroy(host)


def accept(ports: list[tuple[int, str, tuple[str, ...]]]) -> str:
    return f"from operations import k3s\nk3s.accept({ports!r}, name='Accept')\n"


def test_accepts_go_before_the_rejects_now_and_at_boot_and_nothing_else_is_touched(oracle, stranger, provision):
    def reached() -> bool:
        return stranger.run(f"curl -sm5 http://{oracle.address}:2567/", check=False).returncode == 0

    oracle.run("mkdir -p /srv/empty; systemd-run --unit=web python3 -m http.server --directory /srv/empty 2567")
    assert not reached()
    ports = [(2567, "tcp", ()), (6443, "tcp", ("10.0.0.0/8",)), (8472, "udp", ("10.0.0.0/8",))]
    assert provision(oracle, accept(ports), dry=True).changed == ["Accept"]
    done = provision(oracle, accept(ports))
    assert done.ok, done
    assert done.changed == ["Accept"]
    wait_for("the port", reached, 20)
    live = oracle.run("iptables -S INPUT").stdout.splitlines()
    at = [number for number, line in enumerate(live) if "hostwright k3s" in line]
    assert len(at) == 5
    assert max(at) < next(number for number, line in enumerate(live) if "REJECT" in line)
    assert live[-1].startswith("-A INPUT -j REJECT")
    assert provision(oracle, accept(ports)).changed == []

    kept = oracle.read("/etc/iptables/rules.v4")
    assert [line for line in kept.splitlines() if "hostwright k3s" not in line] == ORACLE.splitlines()
    assert oracle.run("stat -c %a /etc/iptables/rules.v4").stdout == "640\n"
    oracle.run("iptables-restore </etc/iptables/rules.v4")  # as at boot
    assert reached()
    assert provision(oracle, accept(ports)).changed == []

    rule = "INPUT -p tcp -m tcp --dport 2567 -m comment --comment 'hostwright k3s' -j ACCEPT"
    oracle.run(f"iptables -D {rule}")
    oracle.run(f"iptables -A {rule}")  # behind the REJECT
    assert not reached()
    assert provision(oracle, accept(ports)).changed == ["Accept"]
    assert reached()

    assert provision(oracle, accept(ports[1:])).changed == ["Accept"]
    assert not reached()
    assert "InstanceServices" in oracle.run("iptables -S OUTPUT").stdout
    assert "--dport 2567" not in oracle.read("/etc/iptables/rules.v4")


def test_a_host_without_such_rules_is_left_alone(stranger, provision):
    done = provision(stranger, accept([(2567, "tcp", ())]))
    assert done.ok, done
    assert done.changed == []


def needs(version: str, **more: Any) -> str:
    return f"from operations import k3s\nk3s.needs({version!r}, **{more!r}, name='Check host for k3s')\n"


def test_preflight_names_what_the_host_lacks(oracle, provision):
    has_v1 = not oracle.exists("/sys/fs/cgroup/cgroup.controllers")
    assert provision(oracle, needs("v1.34.2+k3s1")).ok
    newest = provision(oracle, needs("v1.35.0+k3s1"))
    assert newest.ok != has_v1
    if has_v1:
        assert "cgroup version: must be 2 for k3s v1.35.0+k3s1, whose kubelet does not start on 1, got 1" in newest.stderr
    other = provision(oracle, needs("v1.34.2+k3s1", cgroup_versions=[2 if has_v1 else 1]))
    assert not other.ok
    assert f"cgroup version: must be {2 if has_v1 else 1}, got {1 if has_v1 else 2}" in other.stderr
    both = provision(oracle, needs("v1.34.2+k3s1", ufw=True))
    assert not both.ok
    assert "must be ufw or the rules that Oracle's image came with" in both.stderr


def test_a_release_without_a_sum_for_the_architecture_is_refused(lab, provision):
    host = lab.host("t-k3s-arm64", architecture="arm64")
    try:
        text = (
            "from operations import k3s\nfrom operations.k3s import Release\nfrom settings.secret import Secret\n"
            f"k3s.server('a1', Release('v1.33.4+k3s1', {{'amd64': {'a' * 64!r}}}), token=Secret('canary-token-0123456789'), name='Run k3s')\n"
        )
        done = provision(host, text)
        assert not done.ok
        assert "k3s v1.33.4+k3s1: must have a sum for arm64, has them for amd64" in done.stderr, done
        assert not host.exists("/usr/local/bin/k3s")
        assert not host.exists("/etc/rancher")
    finally:
        lab.destroy(host)


# --- the whole deploy ------------------------------------------------------------------------------------------------


class Bare:
    def __init__(self, lab: Lab, provision: Callable[..., Run]) -> None:
        self.mirror, self._provision = Mirror(lab.slot).start(), provision
        self.host = k3s.equip(lab.host("t-k3s-bare"))
        self.registry = lab.registry()
        version = k3s.versions()[0]
        self.data: dict[str, Any] = {
            "k3s_version": version,
            "k3s_sums": self.mirror.sums(version),
            "k3s_release_url": self.mirror.url,
            "k3s_token": "env:K3S_TOKEN",
            "k3s_node_networks": [f"{self.host.address}/32"],
            # the lab's stand-in for CoreDNS runs on the node itself
            "base_exposure": [{"port": 5353, "proto": proto, "sources": ["10.42.0.0/16"], "why": "DNS of the lab"} for proto in ("udp", "tcp")],
            "k3s_public_ports": [{"port": 2567, "why": "web"}],
            "k3s_registries": {self.registry.name: {"username": self.registry.username, "password": "env:REGISTRY_PASSWORD", "ca": self.registry.ca}},
            "backup_password": "env:BACKUP_PASSWORD",
        }
        self.cluster = Cluster(self.host)

    def run(self, deploy: Any = DEPLOY, **more: Any) -> Run:
        env = {**ENV, "REGISTRY_PASSWORD": self.registry.password}
        return self._provision(self.host, deploy, data=self.data, groups={"k3s_server": [self.host]}, env=env, **more)


@pytest.fixture(scope="module")
def bare(lab: Lab, provision: Callable[..., Run]) -> Iterator[Bare]:
    made = Bare(lab, provision)
    yield made
    made.mirror.stop()
    lab.destroy(made.host)


def test_a_bare_host_becomes_a_cluster_and_the_second_run_changes_nothing(bare):
    first = bare.run()
    assert first.ok, first
    node = bare.cluster.get("nodes")["items"][0]
    assert node["metadata"]["name"] == "t-k3s-bare"
    life = bare.host.run("systemctl show -p InvocationID --value k3s").stdout
    second = bare.run()
    assert second.ok, second
    assert second.changed == []
    assert bare.host.run("systemctl show -p InvocationID --value k3s").stdout == life
    assert not any(secret in text for secret in ENV.values() for text in (first.stdout, first.stderr, second.stdout, second.stderr))


def test_the_checks_for_production_pass(bare, tmp_path):
    command_line(tmp_path, bare.host, DEPLOY, data=bare.data, groups={"k3s_server": [bare.host]})
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/verify/test_k3s.py", "--inventory", str(tmp_path / "inventory.py")],
        cwd=REPOSITORY, env={**os.environ, **ENV, "REGISTRY_PASSWORD": bare.registry.password}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "4 passed" in done.stdout


def test_what_is_declared_is_reached_from_outside_and_nothing_else_is(bare, stranger):
    serving = images.make(images.get("busybox"), command=["httpd", "-f", "-p", "8080", "-h", "/var/www"])
    reference = bare.registry.push("team/web", "1", serving)
    bare.cluster.kubectl("create", "deployment", "web", f"--image={reference}")
    bare.cluster.kubectl("rollout", "status", "deployment/web", "--timeout=240s", timeout=260)
    bare.cluster.kubectl("expose", "deployment", "web", "--type=LoadBalancer", "--port=2567", "--target-port=8080")

    def answers(port: int) -> bool:
        return stranger.run(f"curl -sm5 http://{bare.host.address}:{port}/", check=False).stdout == "busybox\n"

    wait_for("the load balancer", lambda: answers(2567), 60)
    node_port = bare.cluster.get("service", "web")["spec"]["ports"][0]["nodePort"]
    assert not answers(node_port)
    for port in (6443, 10250):
        assert stranger.run(f"curl -skm5 https://{bare.host.address}:{port}/healthz", check=False).returncode != 0, port
    # pods reach the API and each other by name, through the firewall
    for name, port in (("kubernetes.default", 443), ("web", 2567)):
        bare.cluster.kubectl("exec", "deployment/web", "--", "sh", "-c", f"nc -w 5 {name} {port} </dev/null")


def test_the_datastore_comes_back_from_a_backup(bare):
    host = bare.host
    bare.cluster.kubectl("create", "configmap", "before", "--from-literal=a=b")
    assert bare.run("from operations import k3s\nk3s.snapshot('mine', name='Snapshot')\n").ok
    ran = bare.run("from deploys.backup import run\nrun(source='k3s')\n")
    assert ran.ok, ran
    drilled = bare.run("from deploys.backup import drill\ndrill(source='k3s')\n")
    assert drilled.ok, drilled
    host.run("rm -r /var/lib/rancher/k3s/server/db/snapshots")
    bare.cluster.kubectl("delete", "configmap", "before")
    back = bare.run("from deploys.backup import restore\nrestore(source='k3s')\n")
    assert back.ok, back
    name = host.run("ls /var/lib/rancher/k3s/server/db/snapshots | grep ^mine").stdout.strip()
    done = bare.run(f"from deploys.k3s import restore\nrestore(snapshot={name!r})\n")
    assert done.ok, done
    bare.cluster.wait_ready()
    assert json.loads(bare.cluster.kubectl("get", "configmap", "before", "-o", "json"))["data"] == {"a": "b"}
    assert bare.run().changed == []
