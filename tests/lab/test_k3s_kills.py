"""A first install that is killed at ten points, and the plug pulled at every other one: the next run ends like an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.lab import images, k3s
from tests.lab.fingerprint import leftovers
from tests.lab.hosts import LabHost
from tests.lab.k3s import Cluster, Mirror
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line
from tests.lab.state import REPOSITORY, run, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

TOKEN = "canary-token-of-the-killed-0123456789"
PROGRAMS, ETC, DATA = "/usr/local/lib/hostwright/k3s", "/etc/rancher/k3s", "/var/lib/rancher/k3s"
READY = """test "$(k3s kubectl {more} get node {node} -o jsonpath='{{.status.conditions[?(@.type=="Ready")].status}}')" = True"""
# What has just happened on the host when the run is killed, in the order in which it happens.
SERVER_POINTS = {
    "half of the program is there": f"test -s {PROGRAMS}/*/.part/k3s",
    "the program is in its place": f"test -x {PROGRAMS}/*/k3s",
    "the token is written": f"test -e {ETC}/token",
    "the configuration is written": f"test -e {ETC}/config.yaml",
    "the unit is written": "test -e /etc/systemd/system/k3s.service",
    "k3s starts": "systemctl is-active k3s | grep -q activating",
    "etcd has begun": f"test -d {DATA}/server/db/etcd/member",
    "the API answers": "k3s kubectl get --raw=/readyz",
    "the node is Ready": READY.format(node="t-k3s-kills", more=""),
    "the first snapshot is begun": f"ls {DATA}/server/db/snapshots/*",
}
AGENT_POINTS = {
    "half of the program is there": f"test -s {PROGRAMS}/*/.part/k3s",
    "the program is in its place": f"test -x {PROGRAMS}/*/k3s",
    "the token is written": f"test -e {ETC}/token",
    "the configuration is written": f"test -e {ETC}/config.yaml",
    "the unit is written": "test -e /etc/systemd/system/k3s-agent.service",
    "k3s starts": "systemctl is-active k3s-agent | grep -q active",
    "it has its certificates": f"test -e {DATA}/agent/kubelet.kubeconfig",
    "the kubelet answers": "curl -sf http://127.0.0.1:10248/healthz",
    "it is a node": f"k3s kubectl --kubeconfig {DATA}/agent/kubelet.kubeconfig get node t-k3s-kills-w",
    "the node is Ready": READY.format(node="t-k3s-kills-w", more=f"--kubeconfig {DATA}/agent/kubelet.kubeconfig"),
}


def of_the_host(host: LabHost, unit: str) -> Mapping[str, Any]:
    """What an install leaves on a host, read with the raw tools; certificates and the datastore are each cluster's own."""
    files = host.run(
        f"find {ETC} {PROGRAMS} /usr/local/bin /etc/systemd/system -xdev -name k3s.yaml -prune -o -printf '%p %y %m %u %l\\n' | sort; "
        f"sha256sum {ETC}/config.yaml {ETC}/token {ETC}/config.yaml.d/* {PROGRAMS}/*/k3s /etc/systemd/system/{unit}.service"
    ).stdout
    states = host.run(f"systemctl is-active {unit}; systemctl is-enabled {unit}; systemctl show -p NeedDaemonReload --value {unit}; k3s --version").stdout
    snapshots = host.run(f"ls {DATA}/server/db/snapshots 2>/dev/null | grep -c '^first-.*[0-9]$'", check=False).stdout.strip()
    return {"has a snapshot": snapshots != "0", "files": files.splitlines(), "states": states.splitlines(), "failed": host.run("systemctl --failed --plain --no-legend").stdout, "left": [line for line in leftovers(host) if not line.startswith(f"{DATA}/") or "/snapshots/" in line]}


class Site:
    def __init__(self, lab: Lab, provision: Callable[..., Run]) -> None:
        self.mirror, self._provision = Mirror(lab.slot).start(), provision
        self.server = k3s.equip(lab.host("t-k3s-kills"))
        self.worker = k3s.equip(lab.host("t-k3s-kills-w"))
        self.cluster = Cluster(self.server)
        self.registry = lab.registry()

    def text(self, role: str) -> str:
        version = k3s.versions()[0]
        name = self.server.name if role == "server" else self.worker.name
        more = "" if role == "server" else f", join='https://{self.server.address}:6443', control={self.server.name!r}"
        access = k3s.registries_yaml(self.registry).replace("/etc/rancher/k3s/lab-ca.crt", f"{ETC}/registries/{self.registry.name.replace(':', '_')}.pem")
        return (
            "from pyinfra import host\nfrom operations import k3s, preflight\nfrom operations.k3s import Release\nfrom settings import Requirements\n"
            "from settings.secret import Secret\npreflight.host(Requirements(), name='Check host')\n"  # waits for what a killed run left at work
            f"if host.name == {name!r}:\n"
            f"    k3s.{role}({name!r}, Release({version!r}, {self.mirror.sums(version)!r}, url={self.mirror.url!r}), token=Secret({TOKEN!r}), "
            f"registries=Secret({access!r}), registry_cas={{{self.registry.name!r}: {self.registry.ca!r}}}, "
            f"labels={{'role': 'first'}}, start_seconds=300{more}, name='Run k3s {role}')\n"
        )

    def hosts(self, role: str) -> Sequence[LabHost]:
        return [self.server] if role == "server" else [self.server, self.worker]

    def run(self, role: str) -> Run:
        return self._provision(self.hosts(role), self.text(role))

    def kill_at(self, role: str, scratch: Any, seen: str) -> bool:
        """Begin a run and kill it as soon as ``seen`` succeeds on the host; return whether it was before the run's end."""
        host = self.hosts(role)[-1]
        command = command_line(scratch, self.hosts(role), self.text(role))
        with (scratch / "said").open("w") as said:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env={**os.environ, "NO_COLOR": "1"}, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        wait_for(seen, lambda: process.poll() is not None or host.run(seen, check=False).returncode == 0, 400)
        was_before = process.poll() is None
        if was_before:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            print((scratch / "said").read_text()[-4000:])  # noqa: T201 - pytest shows it when the test fails
        process.wait()
        return was_before

    def node(self, name: str) -> Mapping[str, Any]:
        found = self.cluster.get("node", name)
        # those of its condition come and go by themselves, a while after it is Ready
        taints = [(one["key"], one.get("value"), one["effect"]) for one in found["spec"].get("taints", []) if not one["key"].startswith("node.kubernetes.io/")]
        return {
            "labels": found["metadata"]["labels"], "unschedulable": found["spec"].get("unschedulable"), "taints": taints,
            "marks": {key: value for key, value in found["metadata"]["annotations"].items() if key.startswith("hostwright/")},
            "ready": [one["status"] for one in found["status"]["conditions"] if one["type"] == "Ready"], "version": found["status"]["nodeInfo"]["kubeletVersion"],
        }  # fmt: skip

    def state(self, role: str) -> Mapping[str, Any]:
        host = self.hosts(role)[-1]
        return {**of_the_host(host, "k3s" if role == "server" else "k3s-agent"), "node": self.node(host.name)}

    def fresh(self, role: str) -> None:
        if role == "agent":
            self.cluster.kubectl("delete", "node", self.worker.name, "--ignore-not-found")
        k3s_host = self.hosts(role)[-1]
        k3s_host.reset()
        k3s.equip(k3s_host)


@pytest.fixture(scope="module")
def site(lab: Lab, provision: Callable[..., Run]) -> Iterator[Site]:
    made = Site(lab, provision)
    yield made
    made.mirror.stop()
    for host in (made.server, made.worker):
        lab.destroy(host)


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> Mapping[str, Any]:
    """What both roles look like when nothing happens to them. Leaves a server behind."""
    found = {}
    for role in ("server", "agent"):
        done = site.run(role)
        assert done.ok, done
        found[role] = site.state(role)
    return found


def killed(site: Site, undisturbed: Mapping[str, Any], role: str, points: Mapping[str, str], number: int, scratch: Any) -> None:
    what, seen = list(points.items())[number]
    site.fresh(role)
    host = site.hosts(role)[-1]
    site.mirror.fault(k3s.versions()[0], kind="slow" if number == 0 else "")
    try:
        assert site.kill_at(role, scratch, seen), f"the run ended before {what}"
    finally:
        site.mirror.fault(k3s.versions()[0])
    if number % 2 == 0:  # besides, the host loses its power
        host.kill()
        host.boot()
        k3s.equip(host)
    done = site.run(role)
    assert done.ok, done
    assert site.state(role) == undisturbed[role], what
    assert site.run(role).changed == []


@pytest.mark.parametrize("number", range(10))
def test_an_agents_first_install_is_finished_by_the_next_run(site, undisturbed, number, tmp_path):
    killed(site, undisturbed, "agent", AGENT_POINTS, number, tmp_path)


def test_a_fresh_host_with_the_name_of_a_node_is_refused_until_that_one_is_deleted(site, undisturbed):
    site.worker.reset()
    k3s.equip(site.worker)
    refused = site.run("agent")
    assert not refused.ok
    assert f"k3s kubectl delete node {site.worker.name}" in refused.stderr, refused
    assert not site.worker.exists("/etc/rancher/k3s/config.yaml")
    assert not site.worker.exists(PROGRAMS)
    site.cluster.kubectl("delete", "node", site.worker.name)
    done = site.run("agent")
    assert done.ok, done
    assert site.state("agent") == undisturbed["agent"]


@pytest.mark.parametrize("number", range(10))
def test_a_servers_first_install_is_finished_by_the_next_run(site, undisturbed, number, tmp_path):
    killed(site, undisturbed, "server", SERVER_POINTS, number, tmp_path)


WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - {name: web, image: IMAGE, readinessProbe: {httpGet: {port: 8080, path: /}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 2567, targetPort: 8080}]}
"""


@pytest.mark.parametrize("how", ["reboot", "power loss"])
def test_nodes_come_back_by_themselves(site, undisturbed, how):
    """Both nodes at once: the workload is served again, and the next run has nothing to do."""
    assert site.run("server").ok
    if not site.cluster.kubectl("get", "node", site.worker.name, "--ignore-not-found"):  # it is a former cluster's
        site.fresh("agent")
    assert site.run("agent").ok
    serving = images.make(images.get("busybox"), command=["httpd", "-f", "-p", "8080", "-h", "/var/www"])
    site.cluster.apply(WEB.replace("IMAGE", site.registry.push("team/web", "1", serving)))
    site.cluster.kubectl("rollout", "status", "deployment/web", "--timeout=240s", timeout=260)
    uids = sorted(one["metadata"]["uid"] for one in site.cluster.get("pods")["items"])
    with ThreadPoolExecutor() as both:
        if how == "power loss":
            list(both.map(LabHost.kill, (site.server, site.worker)))
        list(both.map(LabHost.reboot if how == "reboot" else LabHost.boot, (site.server, site.worker)))
    for host in (site.server, site.worker):
        site.cluster.wait_ready(host.name, 400)
    for host in (site.server, site.worker):
        wait_for(f"{host.name} to serve", lambda host=host: run("curl", "-sm5", f"http://{host.address}:2567/", check=False) == "busybox\n", 300, pause=1)
    site.cluster.kubectl("rollout", "status", "deployment/web", "--timeout=240s", timeout=260)
    assert sorted(one["metadata"]["uid"] for one in json.loads(site.cluster.kubectl("get", "pods", "-o", "json"))["items"]) == uids
    for role in ("server", "agent"):
        assert site.run(role).changed == []
