"""Several servers with embedded etcd, by k3s's own deploy: members of one real etcd, read back with etcdctl and kubectl."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab import k3s
from tests.lab.hosts import LabHost
from tests.lab.k3s import Cluster, Mirror
from tests.lab.lab import Lab
from tests.lab.provision import Run

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]

NAMES = ("t-k3s-a", "t-k3s-b", "t-k3s-c")
TOKEN, NEXT_TOKEN = "canary-token-of-the-servers-0123456", "canary-next-token-of-them-987654"
DEPLOY = "from deploys.k3s import k3s, preflight\npreflight()\nk3s()\n"
ETCDCTL = "ETCDCTL_API=3 LD_LIBRARY_PATH=/usr/local/lib/lab-kubernetes/lib /usr/local/lib/lab-kubernetes/bin/etcdctl --endpoints http://127.0.0.1:2379"


class Servers:
    """Three hosts, and what an operator writes."""

    def __init__(self, lab: Lab, provision: Callable[..., Run]) -> None:
        self.mirror, self._provision = Mirror(lab.slot).start(), provision
        self.hosts = {name: k3s.equip(lab.host(name)) for name in NAMES}
        self.a, self.b, self.c = self.hosts.values()
        version = k3s.versions()[0]
        self.token = TOKEN
        self.data: dict[str, Any] = {
            "k3s_version": version,
            "k3s_sums": self.mirror.sums(version),
            "k3s_release_url": self.mirror.url,
            "k3s_token": "env:K3S_TOKEN",
            "k3s_node_networks": [f"{host.address}/32" for host in self.hosts.values()],
            "k3s_start_seconds": 600,
            "base_firewall_enabled": False,
            "backup_enabled": False,
        }
        self.lead(self.a)

    def lead(self, host: LabHost) -> None:
        """Say which server the others join."""
        self.data |= {"k3s_first_server": host.name, "k3s_url": f"https://{host.address}:6443"}

    def run(self, deploy: str = DEPLOY, **more: Any) -> Run:
        hosts = list(self.hosts.values())
        return self._provision(hosts, deploy, data=self.data, groups={"k3s_server": hosts}, env={"K3S_TOKEN": self.token}, timeout=2400, **more)

    def lives(self) -> list[str]:
        return [host.run("systemctl show -p InvocationID --value k3s").stdout.strip() for host in self.hosts.values()]

    def members(self, host: LabHost | None = None) -> dict[str, bool]:
        """Name of each member to whether it has no vote yet, as etcd itself says."""
        found = json.loads((host or self.a).run(f"{ETCDCTL} member list -w json").stdout)["members"]
        return {one.get("name", ""): bool(one.get("isLearner")) for one in found}

    def create(self, name: str, host: LabHost | None = None) -> None:
        Cluster(host or self.a).kubectl("create", "configmap", name, "--from-literal=a=b")

    def has(self, name: str, host: LabHost | None = None) -> bool:
        return bool(Cluster(host or self.a).kubectl("get", "configmap", name, "--ignore-not-found").strip())

    def all_ready(self, host: LabHost | None = None) -> None:
        for name in self.hosts:
            Cluster(host or self.a).wait_ready(name, 400)


@pytest.fixture(scope="module")
def servers(lab: Lab, provision: Callable[..., Run]) -> Iterator[Servers]:
    made = Servers(lab, provision)
    yield made
    made.mirror.stop()
    for host in made.hosts.values():
        lab.destroy(host)


def test_three_bare_hosts_become_members_of_one_etcd_one_after_the_other(servers):
    done = servers.run()
    assert done.ok, done
    assert servers.members() == dict.fromkeys(NAMES, False)
    for host in servers.hosts.values():
        assert set(servers.members(host)) == set(NAMES)
        found = Cluster(host).get("nodes")["items"]
        assert {one["metadata"]["name"] for one in found} == set(NAMES)
    begun = [host.run("systemctl show -p ActiveEnterTimestampMonotonic --value k3s").stdout for host in servers.hosts.values()]
    assert sorted(begun, key=int) == begun
    assert "cluster-init: true" in servers.a.read("/etc/rancher/k3s/config.yaml")
    for host in (servers.b, servers.c):
        assert f"server: https://{servers.a.address}:6443" in host.read("/etc/rancher/k3s/config.yaml")
    servers.create("one", servers.b)
    assert servers.has("one", servers.c)


def test_the_second_run_restarts_none(servers):
    before = servers.lives()
    done = servers.run()
    assert done.ok, done
    assert done.changed == []
    assert servers.lives() == before


def test_a_changed_configuration_restarts_each_server_once_while_the_others_serve(servers):
    before = servers.lives()
    servers.b.write("/root/watch.sh", WATCH)
    servers.b.run(f"systemd-run --unit=watch sh /root/watch.sh https://{servers.a.address}:6443 https://{servers.b.address}:6443 https://{servers.c.address}:6443")
    servers.data["k3s_tls_san"] = ["api.example.org"]
    done = servers.run()
    servers.b.run("systemctl stop watch")
    assert done.ok, done
    after = servers.lives()
    assert not set(before) & set(after)
    seen = [line.split() for line in servers.b.read("/root/answers").splitlines()]
    assert len(seen) > 5
    assert min(sum(word == "200" for word in line) for line in seen) >= 2, "one server at a time"
    for at in range(3):
        assert any(line[at] != "200" for line in seen), "each was away for a moment"
    servers.all_ready()
    assert servers.run().changed == []
    assert servers.lives() == after


WATCH = """while :; do
line=
for url in "$@"; do line="$line $(curl -sk -m 20 -o /dev/null -w '%{http_code}' "$url/version")"; done
echo $line >>/root/answers
sleep 0.5
done
"""


def test_the_plan_of_a_server_that_is_refused_ends_there(servers):
    servers.token = NEXT_TOKEN
    plan = servers.run(DEPLOY + "from pyinfra.operations import server\nserver.shell('true', name='Later')\n", dry=True)
    servers.token = TOKEN
    assert not plan.ok
    assert plan.stderr.count("token: must be the one that the cluster has, got another") == 3
    assert plan.changed == []
    assert "Later" not in [row["name"] for row in plan.results["plan"]]
