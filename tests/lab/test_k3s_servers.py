"""Several servers with embedded etcd, by k3s's own deploy: members of one real etcd, read back with etcdctl and kubectl."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from operations.k3s import SNAPSHOTS
from tests.lab import k3s
from tests.lab.hosts import LabHost
from tests.lab.k3s import Cluster, Mirror
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line
from tests.lab.state import REPOSITORY, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]

NAMES = ("t-k3s-a", "t-k3s-b", "t-k3s-c")
TOKEN, NEXT_TOKEN, LAST_TOKEN = "canary-token-of-the-servers-0123456", "canary-next-token-of-them-987654", "canary-last-token-of-them-555555"
DEPLOY = "from deploys.k3s import k3s, preflight\npreflight()\nk3s()\n"
ETCDCTL = "ETCDCTL_API=3 LD_LIBRARY_PATH=/usr/local/lib/lab-kubernetes/lib /usr/local/lib/lab-kubernetes/bin/etcdctl --endpoints http://127.0.0.1:2379"


class Servers:
    """Three hosts, and what an operator writes."""

    def __init__(self, lab: Lab, provision: Callable[..., Run]) -> None:
        self.mirror, self._provision = Mirror(lab.slot).start(), provision
        self.hosts = {name: k3s.equip(lab.host(name)) for name in NAMES}
        self.a, self.b, self.c = self.hosts.values()
        version = k3s.versions()[0]
        self.token, self.former = TOKEN, ""
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
        return self._provision(hosts, deploy, data=self.data, groups={"k3s_server": hosts}, env={"K3S_TOKEN": self.token, "K3S_FORMER": self.former}, timeout=2400, **more)

    def kill(self, scratch: Path, deploy: str, seen: Callable[[], bool]) -> None:
        """Begin a run and kill it as soon as this is seen; what it has begun on a host goes on there."""
        hosts = list(self.hosts.values())
        process = subprocess.Popen(
            command_line(scratch, hosts, deploy, data=self.data, groups={"k3s_server": hosts}), cwd=REPOSITORY,
            env={**os.environ, "K3S_TOKEN": self.token, "K3S_FORMER": self.former}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_for("what the kill waits for", lambda: process.poll() is not None or seen(), 400)
        assert process.poll() is None, "the run ended before"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def lives(self) -> list[str]:
        return [host.run("systemctl show -p InvocationID --value k3s").stdout.strip() for host in self.hosts.values()]

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Ask all three API servers all the while: two must answer at any time, and each be away for a moment."""
        self.b.write("/root/watch.sh", WATCH)
        self.b.run("rm -f /root/answers; systemd-run --collect --unit=watch sh /root/watch.sh " + " ".join(f"https://{host.address}:6443" for host in self.hosts.values()))
        yield
        self.b.run("systemctl stop watch")
        seen = [line.split() for line in self.b.read("/root/answers").splitlines()]
        assert len(seen) > 5
        assert min(sum(word == "200" for word in line) for line in seen) >= 2, "one server at a time"
        for at in range(3):
            assert any(line[at] != "200" for line in seen), "each was away for a moment"

    def lets_in(self, host: LabHost, token: str) -> bool:
        """Whether a server gives a further one what it needs to join; the lab's supervisor has a port of its own."""
        asked = "curl -sk -K - -o /dev/null -w '%{http_code}' https://127.0.0.1:6445/v1-k3s/server-bootstrap"
        return host.run(asked, input=f'user = "server:{token}"\n').stdout == "200"

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
    began = [
        [int(host.run(f"systemctl show -p {when}TimestampMonotonic --value k3s").stdout) for when in ("InactiveExit", "ActiveEnter")]
        for host in servers.hosts.values()
    ]
    assert min(began) == began[0], "the first one first"
    times = [time for one in sorted(began) for time in one]
    assert times == sorted(times), "one after the other"
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
    servers.data["k3s_tls_san"] = ["api.example.org"]
    with servers.watched():
        done = servers.run()
        assert done.ok, done
    after = servers.lives()
    assert not set(before) & set(after)
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


# the lab's supervisor has a port of its own
ROTATE = (
    "from functools import partial\nfrom deploys import k3s\n"
    "k3s.node.rotate_token = partial(k3s.node.rotate_token, api_port=6445)\n"
    "from operations import preflight\nfrom settings import Requirements\n"
    "preflight.host(Requirements(), name='Check host')\n"  # waits for what a killed run left at work
    "k3s.preflight()\nk3s.k3s()\n"
)
ROWS = ["k3s | Rotate the cluster's token", "k3s | Take the cluster's new token"]


def test_a_new_token_is_told_by_the_first_server_and_taken_by_all_of_them_one_at_a_time(servers):
    before = servers.lives()
    servers.token, servers.former = NEXT_TOKEN, TOKEN
    servers.data["k3s_former_token"] = "env:K3S_FORMER"
    alone = servers.run(ROTATE, limit=servers.b.name)
    assert not alone.ok
    assert f"token: must be told to the cluster by {servers.a.name} first, which has not got it" in alone.stderr
    plan = servers.run(ROTATE, dry=True)
    assert plan.ok, plan
    assert plan.changed == ROWS
    assert servers.lives() == before
    assert {host.read("/etc/rancher/k3s/token") for host in servers.hosts.values()} == {TOKEN + "\n"}

    with servers.watched():
        done = servers.run(ROTATE)
        assert done.ok, done
    assert done.changed == ROWS
    after = servers.lives()
    assert not set(before) & set(after)
    for host in servers.hosts.values():
        assert host.read("/var/lib/rancher/k3s/server/token").strip().endswith(NEXT_TOKEN)
        assert host.read("/etc/rancher/k3s/token") == NEXT_TOKEN + "\n"
        assert host.run("stat -c %a /etc/rancher/k3s/token").stdout == "600\n"
        assert servers.lets_in(host, NEXT_TOKEN)
        assert not servers.lets_in(host, TOKEN)
    for secret in (TOKEN, NEXT_TOKEN):
        assert secret not in done.stdout + done.stderr + plan.stdout + plan.stderr
    servers.all_ready()
    assert servers.run(ROTATE).changed == []
    del servers.data["k3s_former_token"]
    assert servers.run().changed == []
    assert servers.lives() == after
    servers.create("with-the-next-token", servers.c)
    assert servers.has("with-the-next-token", servers.a)


def test_a_new_token_that_is_killed_half_way_is_taken_by_the_next_run(servers, tmp_path):
    servers.token, servers.former = LAST_TOKEN, NEXT_TOKEN
    servers.data["k3s_former_token"] = "env:K3S_FORMER"
    for number, (host, file) in enumerate(((servers.a, "/var/lib/rancher/k3s/server/token"), (servers.b, "/etc/rancher/k3s/token"))):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        servers.kill(scratch, ROTATE, lambda host=host, file=file: LAST_TOKEN in host.read(file))
    done = servers.run(ROTATE)
    assert done.ok, done
    servers.all_ready()
    for host in servers.hosts.values():
        assert servers.lets_in(host, LAST_TOKEN)
        assert not servers.lets_in(host, NEXT_TOKEN)
    assert servers.run(ROTATE).changed == []
    del servers.data["k3s_former_token"]


def test_no_server_restarts_while_etcd_would_lose_its_majority(servers):
    servers.c.run("systemctl stop k3s", timeout=120)
    wait_for("its node to be missed", lambda: "True" not in Cluster(servers.a).kubectl(
        "get", "node", servers.c.name, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"), 300, pause=1)  # fmt: skip
    lives = servers.lives()[:2]
    servers.data["k3s_tls_san"] = ["other.example.org"]
    for dry in (True, False):
        refused = servers.run(dry=dry, limit=servers.a.name)
        assert not refused.ok
        assert f"2 of 3 servers must go on, and without this one 1 would, since {servers.c.name} is not Ready or has no vote" in refused.stderr, refused
    assert servers.lives()[:2] == lives
    assert "other.example.org" not in servers.a.read("/etc/rancher/k3s/config.yaml")
    servers.c.run("systemctl start k3s", timeout=300)
    servers.all_ready()
    done = servers.run()
    assert done.ok, done
    assert not set(lives) & set(servers.lives())


def test_servers_are_upgraded_one_at_a_time(servers):
    before, version = servers.lives(), k3s.versions()[1]
    servers.data |= {"k3s_version": version, "k3s_sums": servers.mirror.sums(version)}
    with servers.watched():
        done = servers.run()
        assert done.ok, done
    assert not set(before) & set(servers.lives())
    servers.all_ready()
    found = Cluster(servers.b).get("nodes")["items"]
    assert {one["metadata"]["name"]: one["status"]["nodeInfo"]["kubeletVersion"] for one in found} == dict.fromkeys(NAMES, version)
    assert not any(one["spec"].get("unschedulable") for one in found)
    assert servers.members() == dict.fromkeys(NAMES, False)
    assert servers.run().changed == []


def test_a_snapshot_is_restored_and_the_other_servers_join_again(servers):
    servers.create("before")
    assert servers.run("from pyinfra import host\nfrom operations import k3s\nk3s.snapshot('mine', name='Snapshot')\n", limit=servers.a.name).ok
    name = servers.a.run(f"ls {SNAPSHOTS} | grep ^mine").stdout.strip()
    servers.create("after")
    alone = servers.run(f"from deploys.k3s import restore\nrestore(snapshot={name!r})\n", limit=servers.a.name)
    assert not alone.ok
    assert f"{servers.b.name} still serves the cluster" in alone.stdout + alone.stderr
    servers.a.run(f"head -c 20000 {SNAPSHOTS}/{name} >{SNAPSHOTS}/cut")
    lives = servers.lives()
    damaged = servers.run("from deploys.k3s import restore\nrestore(snapshot='cut')\n")
    assert not damaged.ok
    assert "is damaged" in damaged.stdout + damaged.stderr
    servers.all_ready()
    assert servers.lives() == lives
    assert servers.has("after", servers.b), "nobody lost anything"

    done = servers.run(f"from deploys.k3s import restore\nrestore(snapshot={name!r})\n")
    assert done.ok, done
    servers.all_ready()
    assert servers.members() == dict.fromkeys(NAMES, False)
    for host in servers.hosts.values():
        assert servers.has("before", host)
        assert not servers.has("after", host)
    servers.a.run(f"rm {SNAPSHOTS}/cut")
    assert servers.run().changed == []


def test_a_lost_first_server_does_not_begin_a_second_cluster_and_joins_the_one_that_is_left(servers):
    servers.a.power_off()
    wait_for("the two others", lambda: Cluster(servers.b).kubectl("get", "--raw=/readyz", check=False) == "ok", 240, pause=1)
    servers.create("without-the-first", servers.b)
    servers.a.reset()
    k3s.equip(servers.a)
    refused = servers.run()
    assert not refused.ok
    assert f"must not begin a second cluster: {servers.b.name} has the datastore of one" in refused.stdout + refused.stderr
    assert not servers.a.exists("/usr/local/bin/k3s")
    Cluster(servers.b).kubectl("delete", "node", servers.a.name)
    servers.lead(servers.b)
    done = servers.run()
    assert done.ok, done
    servers.all_ready(servers.b)
    assert servers.members(servers.b) == dict.fromkeys(NAMES, False)
    assert servers.has("without-the-first", servers.a)
    assert servers.run().changed == []


def test_a_server_that_is_uninstalled_is_a_member_no_more(servers):
    done = servers.run(f"from deploys.k3s import uninstall_and_delete_all_data\nuninstall_and_delete_all_data(node_name={servers.c.name!r})\n")
    assert done.ok, done
    wait_for("the member's end", lambda: set(servers.members(servers.b)) == {servers.a.name, servers.b.name}, 120, pause=1)
    assert {one["metadata"]["name"] for one in Cluster(servers.b).get("nodes")["items"]} == {servers.a.name, servers.b.name}
    assert not servers.c.exists("/var/lib/rancher/k3s")
    servers.create("after-the-third", servers.a)
