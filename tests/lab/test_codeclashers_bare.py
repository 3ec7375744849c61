"""codeclashers by the whole deploy.py: a server and Judge0's own node, both bare; checks, exposure, drains, the loss of the server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import canary, k3s
from tests.lab.codeclashers_site import BACKUP, PROGRAM, SECRETS, Site
from tests.lab.hosts import LabHost
from tests.lab.k3s import Cluster, Mirror
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line
from tests.lab.scan import scan
from tests.lab.state import REPOSITORY, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]

DEPLOY = REPOSITORY / "deploy.py"
TOKEN = "canary-token-of-this-cluster-01234"
REPOSITORY_OF_COPIES = "/var/backups/hostwright"


class Fleet(Site):
    """A server, and a node for Judge0's workers alone, as production has them."""

    def __init__(self, lab: Lab, provision: Callable[..., Run]) -> None:
        self.mirror = Mirror(lab.slot).start()
        self.worker = k3s.equip(lab.host("t-cc-judge0"))
        super().__init__(Cluster(k3s.equip(lab.host("t-cc-server"))), lab.registry(), provision)

    def replace_server(self, lab: Lab) -> None:
        lab.destroy(self.host)
        self.host = k3s.equip(lab.host("t-cc-server"))
        self.cluster = Cluster(self.host)

    def everything(self, **differs: Any) -> dict[str, Any]:
        version, nodes = k3s.versions()[0], [f"{self.host.address}/32", f"{self.worker.address}/32"]
        return {
            **self.data(judge0_shares_nodes=False, **differs),
            "k3s_version": version, "k3s_sums": self.mirror.sums(version), "k3s_release_url": self.mirror.url,
            "k3s_token": "env:K3S_TOKEN", "k3s_url": f"https://{self.host.address}:6443", "k3s_node_networks": nodes,
            "k3s_registries": {self.registry.name: {"username": self.registry.username, "password": "env:PULL", "ca": self.registry.ca}},
            # the lab's stand-in for CoreDNS and the supervisor's own port are on the server itself
            "base_exposure": [
                *({"port": 5353, "proto": proto, "sources": ["10.42.0.0/16", *nodes], "why": "DNS of the lab"} for proto in ("udp", "tcp")),
                {"port": 6445, "sources": nodes, "why": "supervisor of the lab"},
            ],
        }  # fmt: skip

    @property
    def own(self) -> dict[str, dict[str, Any]]:
        return {self.worker.name: {"k3s_labels": {"dedicated": "judge0"}, "k3s_taints": ["dedicated=judge0:NoSchedule"]}}

    @property
    def groups(self) -> dict[str, list[LabHost]]:
        return {"k3s_server": [self.host], "k3s_agent": [self.worker], "codeclashers": [self.host]}

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "K3S_TOKEN": TOKEN}

    def converge(self, deploy: Any = DEPLOY, **differs: Any) -> Run:
        return self._provision(
            [self.host, self.worker], deploy, data=self.everything(**differs), groups=self.groups, host_data=self.own, env=self.environment, timeout=1800
        )

    def verify(self, scratch: Path) -> subprocess.CompletedProcess[str]:
        command_line(scratch, [self.host, self.worker], DEPLOY, data=self.everything(), groups=self.groups, host_data=self.own)
        return subprocess.run(
            [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/verify", "--inventory", str(scratch / "inventory.py")],
            cwd=REPOSITORY, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    def nodes_of(self, component: str) -> set[str]:
        found = self.cluster.get("pods", "-n", "codeclashers", "-l", f"app.kubernetes.io/name={component}")["items"]
        return {one["spec"].get("nodeName", "") for one in found if "deletionTimestamp" not in one["metadata"]}

    def judges(self) -> None:
        self.redis("DEL", "results")
        self.redis("RPUSH", "submissions", "'job echo $((6*7))'")
        wait_for("the result", lambda: self.redis("LRANGE", "results", "0", "-1") == "42", 60)


@pytest.fixture(scope="module")
def fleet(lab: Lab, provision: Callable[..., Run]) -> Iterator[Fleet]:
    made = Fleet(lab, provision)
    yield made
    made.mirror.stop()
    lab.destroy(made.host)
    lab.destroy(made.worker)


def assert_exposure(fleet: Fleet, stranger: LabHost) -> None:
    seen = scan(stranger, fleet.host)
    assert {family: (set(found.open), set(found.refused)) for family, found in seen.items()} == {4: ({22, 2567}, set()), 6: ({22}, {2567})}
    seen = scan(stranger, fleet.worker)
    assert {family: (set(found.open), set(found.refused)) for family, found in seen.items()} == {4: ({22}, set()), 6: ({22}, set())}


def open_to_others(host: LabHost, secrets: dict[str, str]) -> list[str]:
    """Return the files with a secret that not only their owner may read. Images are not looked into."""
    patterns = "\n".join(form for value in secrets.values() for form in canary.forms(value)) + "\n"
    # what containers have of secrets is theirs, behind a directory that only root enters
    assert host.run("stat -c %a /var/lib/kubelet/pods").stdout.strip() == "750"
    found = host.run(
        "grep -rlaF -f - --devices=skip --exclude-dir=docker --exclude-dir=pods /etc /home /opt /root /srv /tmp /usr/local /var 2>/dev/null | "
        "xargs -r -d '\\n' stat -c '%a %n'", check=False, input=patterns, timeout=300,
    ).stdout  # fmt: skip
    return [line for line in found.splitlines() if int(line.split()[0], 8) & 0o077]


def test_two_bare_hosts_become_codeclashers_and_the_second_run_changes_nothing(fleet):
    secrets = {**SECRETS, "BACKUP": BACKUP, "K3S_TOKEN": TOKEN}
    with canary.sampled(fleet.host, secrets) as samples:
        first = fleet.converge()
    assert first.ok, first
    pods = fleet.pods()
    assert len(pods) == 11
    assert fleet.nodes_of("judge0-worker") == {fleet.worker.name}
    assert fleet.nodes_of("colyseus") == {fleet.host.name}
    second = fleet.converge()
    assert second.ok, second
    assert second.changed == []
    assert fleet.pods() == pods
    with fleet.players(matches=2, seconds=3, rate=5) as players:
        wait_for("two matches", lambda: players.finished >= 2, 30)
    assert players.faults == []
    fleet.judges()
    # secrets: in no argv, no output, no journal, and in no file that others may read
    assert samples.count > 100
    assert samples.arguments == set()
    assert canary.in_text(first.stdout + first.stderr + second.stdout + second.stderr, secrets) == []
    assert canary.journal(fleet.host, secrets) == []
    assert open_to_others(fleet.host, secrets) == []


def test_the_checks_for_production_pass(fleet, tmp_path):
    done = fleet.verify(tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]


def test_what_is_declared_is_reached_from_outside_and_nothing_else(fleet, stranger):
    assert_exposure(fleet, stranger)


def test_judge0s_only_node_is_drained_and_its_queue_waits(fleet):
    drain = ("drain", fleet.worker.name, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
    with fleet.players(matches=5, seconds=5, rate=10) as players:
        fleet.cluster.kubectl(*drain, timeout=180)
        assert fleet.nodes_of("judge0-worker") == {""}
        fleet.redis("DEL", "results")
        fleet.redis("RPUSH", "submissions", "'job echo $((6*7))'")
        fleet.cluster.kubectl("uncordon", fleet.worker.name)
        wait_for("the result", lambda: fleet.redis("LRANGE", "results", "0", "-1") == "42", 120)
    assert players.faults == []
    assert fleet.converge().changed == []


def test_a_reboot_of_each_node_brings_everything_back(fleet, stranger):
    for host in (fleet.worker, fleet.host):
        host.reboot()
        fleet.cluster.wait_ready(host.name)
    health = "from pyinfra import host\nfrom deploys.codeclashers import health\nif 'codeclashers' in host.groups:\n    health()\n"
    wait_for("all components", lambda: fleet.converge(health).ok, 300, pause=3)
    fleet.judges()
    assert_exposure(fleet, stranger)
    assert fleet.converge().changed == []


def test_the_databases_come_back_on_a_fresh_server(fleet, lab):
    """The server is lost with its cluster; its copies were elsewhere."""
    inside = ("exec", "-n", "codeclashers", "mongodb-0", "--", "sh", "-c")
    fleet.cluster.kubectl(*inside, "printf '{}\\n{}\\n{}\\n' > /data/db/matches.json")
    fleet.redis("RPUSH", "queue", *(f"task-{number}" for number in range(50)))
    for source in ("codeclashers-mongodb", "codeclashers-redis"):
        fleet.host.run(f"systemctl start hostwright-backup-{source}.service", timeout=400)
    kept = fleet.host.run(f"tar -C {REPOSITORY_OF_COPIES} -c . | base64 -w0", timeout=120).stdout
    fleet.replace_server(lab)
    fleet.host.run(f"install -d -m 0700 {REPOSITORY_OF_COPIES}; base64 -d | tar -C {REPOSITORY_OF_COPIES} -x", input=kept, timeout=120)
    # the node knows the cluster that is gone: its k3s is taken off by the command whose name says so
    off = f"k3s.uninstall_and_delete_all_data({fleet.worker.name!r}, name='Uninstall')"
    gone = fleet.converge(f"from pyinfra import host\nfrom operations import k3s\nif 'k3s_agent' in host.groups:\n    {off}\n")
    assert gone.ok, gone
    again = fleet.converge()
    assert again.ok, again
    assert fleet.redis("LLEN", "queue") == "0"
    for source in ("codeclashers-mongodb", "codeclashers-redis"):
        fleet.host.run(f"{PROGRAM} restore {source}", timeout=600)
    assert fleet.cluster.kubectl(*inside, "wc -l < /data/db/matches.json").strip() == "3"
    assert fleet.redis("LLEN", "queue") == "50"
    fleet.judges()
    assert fleet.converge().changed == []
