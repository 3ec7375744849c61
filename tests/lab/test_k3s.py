"""k3s on booted hosts, read back with its own kubectl, systemctl and the files themselves."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from facts.k3s import K3s
from operations.k3s import SNAPSHOTS
from tests.lab import images, k3s
from tests.lab.hosts import LabHost
from tests.lab.k3s import Cluster, Mirror
from tests.lab.kill import Point, kill_run
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line
from tests.lab.state import run, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

TOKEN, NEXT_TOKEN = "canary-token-of-the-cluster-0123456789", "canary-next-token-of-it-9876543210"
PATCH, NEXT, MINOR, FAR = range(4)  # in k3s.versions(): patch release, the one after it, next minor, one that leaves a minor out

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
      containers:
      - {name: web, image: IMAGE, readinessProbe: {httpGet: {port: 8080, path: /}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 2567, targetPort: 8080}]}
"""
BUDGET = """
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
"""


def said_by_failed(done: Run, text: str) -> bool:
    """Whether a run failed and said this."""
    assert not done.ok, done
    assert text in done.stdout + done.stderr, done
    return True


class Site:
    """A server and, once a test has joined it, an agent; the release mirror; what an operator writes."""

    def __init__(self, lab: Lab, provision: Callable[..., Run]) -> None:
        self.lab, self._provision = lab, provision
        self.mirror = Mirror(lab.slot).start()
        self.registry = lab.registry()
        self.host = k3s.equip(lab.host("t-k3s"))
        self.cluster = Cluster(self.host)
        self.token, self.version, self.arguments = TOKEN, PATCH, {"tls_san": ["k3s.example.org"]}
        self.worker: LabHost | None = None

    def release(self, version: int | str, **differs: Any) -> str:
        name = version if isinstance(version, str) else k3s.versions()[version]
        values = {"url": self.mirror.url, **differs}
        sums = values.pop("sums", None) or self.mirror.sums(name)
        return f"Release({name!r}, {sums!r}, **{values!r})"

    def text(self, role: str = "server", *, version: int | str | None = None, differs: dict[str, Any] | None = None, serial: bool = True, **arguments: Any) -> str:
        access = k3s.registries_yaml(self.registry).replace("/etc/rancher/k3s/lab-ca.crt", f"/etc/rancher/k3s/registries/{self.registry.name.replace(':', '_')}.pem")
        given = {**(self.arguments if role == "server" else {}), **arguments}
        words = "".join(f", {key}={value!r}" for key, value in given.items())
        return (
            "from operations import k3s\nfrom operations.k3s import Release\nfrom settings.secret import Secret\n"
            f"k3s.{role}({'t-k3s' if role == 'server' else 't-k3s-agent'!r}, {self.release(self.version if version is None else version, **(differs or {}))}, "
            f"token=Secret({self.token!r}), registries=Secret({access!r}), registry_cas={{{self.registry.name!r}: {self.registry.ca!r}}}, "
            f"start_seconds=240, drain_seconds=120{words}, name='Run k3s {role}', _serial={serial})\n"
        )

    def run(self, dry: bool = False, **arguments: Any) -> Run:
        return self._provision(self.host, self.text(**arguments), dry=dry)

    def run_agent(self, dry: bool = False, **arguments: Any) -> Run:
        return self._provision([self.host, self.worker], self.agent_text(**arguments), dry=dry)

    def agent_text(self, **arguments: Any) -> str:
        assert self.worker is not None
        lines = self.text("agent", join=f"https://{self.host.address}:6443", control=self.host.name, **arguments).splitlines()
        return f"from pyinfra import host\nif host.name == {self.worker.name!r}:\n" + "".join(f"    {line}\n" for line in lines)

    def operation(self, call: str, dry: bool = False, host: LabHost | None = None) -> Run:
        text = f"from operations import k3s\nfrom settings.secret import Secret\nk3s.{call}\n"
        return self._provision(host or self.host, text, dry=dry)

    def life(self, host: LabHost | None = None, unit: str = "k3s") -> str:
        return (host or self.host).run(f"systemctl show -p MainPID,InvocationID --value {unit}").stdout

    def pods(self) -> list[tuple[str, str]]:
        found = [(one["metadata"]["uid"], one["status"]["containerStatuses"][0]["containerID"]) for one in self.cluster.get("pods", "-A")["items"]]
        return sorted(found)

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {one["metadata"]["name"]: one for one in self.cluster.get("nodes")["items"]}

    def installed(self) -> str:
        return self.host.run("readlink /usr/local/bin/k3s", check=False).stdout.strip()


@pytest.fixture(scope="module")
def site(lab: Lab, provision: Callable[..., Run]) -> Iterator[Site]:
    made = Site(lab, provision)
    yield made
    made.mirror.stop()
    for host in (made.host, made.worker):
        if host is not None:
            lab.destroy(host)


# --- a first server --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said"),
    [("spoilt", "sha256 must be"), ("cut", "broke off after"), ("gone", "404"), ("down", "cannot be fetched")],
)
def test_a_bad_download_installs_nothing(site, kind, said):
    version = k3s.versions()[PATCH]
    program = site.mirror.directory / version / "k3s"
    sums = site.mirror.sums(version)
    if kind == "gone":
        program.rename(program.with_name("away"))
    elif kind == "down":
        site.mirror.stop()
    else:
        site.mirror.fault(version, kind=kind)
    try:
        done = site.run(differs={"sums": sums})
    finally:
        if kind == "gone":
            program.with_name("away").rename(program)
        elif kind == "down":
            site.mirror.start()
        else:
            site.mirror.fault(version)
    assert said_by_failed(done, said)
    assert said_by_failed(done, "nothing was installed")
    left = site.host.run("ls -A /usr/local/bin /etc/rancher /etc/systemd/system/k3s.service 2>/dev/null; find /usr/local/lib/hostwright -type f", check=False).stdout
    assert "k3s" not in left, left


def test_a_server_from_a_bare_host(site):
    planned = site.run(dry=True)
    assert planned.ok, planned
    assert planned.changed == ["Run k3s server"]
    done = site.run()
    assert done.ok, done
    assert done.changed == ["Run k3s server"]
    host, version = site.host, k3s.versions()[PATCH]
    assert f"k3s version {version} " in host.run("k3s --version").stdout
    assert site.nodes()["t-k3s"]["status"]["nodeInfo"]["kubeletVersion"] == version
    modes = host.run("stat -c '%a %U %n' /etc/rancher/k3s/config.yaml /etc/rancher/k3s/registries.yaml /etc/rancher/k3s/token /etc/rancher/k3s/k3s.yaml").stdout
    assert [line.split()[:2] for line in modes.splitlines()] == [["600", "root"]] * 4
    assert host.run("systemctl is-enabled k3s").stdout == "enabled\n"
    serving = images.make(images.get("busybox"), command=["httpd", "-f", "-p", "8080", "-h", "/var/www"])
    site.cluster.apply(WEB.replace("IMAGE", site.registry.push("team/web", "1", serving)))
    site.cluster.kubectl("rollout", "status", "deployment/web", "--timeout=240s", timeout=260)


def test_the_second_run_changes_nothing(site):
    before = site.life(), site.pods()
    assert site.run(dry=True).changed == []
    done = site.run()
    assert done.ok, done
    assert done.changed == []
    assert (site.life(), site.pods()) == before


def test_the_token_is_in_no_argv_log_or_readable_file(site):
    done = site.run(dry=True)
    assert TOKEN not in done.stdout + done.stderr
    host = site.host
    assert TOKEN not in host.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    assert TOKEN not in host.run("journalctl --no-pager", timeout=120).stdout
    readable = host.run(f"find /etc /var/lib /run /tmp /usr/local -xdev -type f -perm -004 -size -2M -exec grep -l {TOKEN} {{}} +", check=False, timeout=120)
    assert readable.stdout == ""


# --- changes ---------------------------------------------------------------------------------------------------------


def test_labels_and_taints_change_without_a_restart(site):
    before = site.life()
    site.cluster.kubectl("label", "node", "t-k3s", "theirs=stays")
    site.arguments = {**site.arguments, "labels": {"role": "first"}, "taints": ["dedicated=x:PreferNoSchedule"]}
    assert site.run().changed == ["Run k3s server"]
    node = site.nodes()["t-k3s"]
    assert node["metadata"]["labels"]["role"] == "first"
    assert [(one["key"], one["effect"]) for one in node["spec"]["taints"]] == [("dedicated", "PreferNoSchedule")]
    assert site.run().changed == []
    site.arguments = {**site.arguments, "labels": {}, "taints": []}
    assert site.run().changed == ["Run k3s server"]
    node = site.nodes()["t-k3s"]
    assert "role" not in node["metadata"]["labels"]
    assert not node["spec"].get("taints")
    assert node["metadata"]["labels"]["theirs"] == "stays"
    assert site.life() == before


def test_a_changed_configuration_restarts_k3s_once_and_no_pod(site):
    before, pods = site.life(), site.pods()
    site.arguments = {**site.arguments, "tls_san": ["k3s.example.org", "k3s.example.net"]}
    assert site.run().changed == ["Run k3s server"]
    after = site.life()
    assert after != before
    assert site.pods() == pods
    names = run("sh", "-c", f"openssl s_client -connect {site.host.address}:6443 </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName")
    assert "k3s.example.net" in names
    assert site.run().changed == []
    assert site.life() == after


def test_a_configuration_that_does_not_start_gives_way_to_the_one_before(site):
    before, pods = site.host.read("/etc/rancher/k3s/config.yaml"), site.pods()
    done = site.run(config={"kube-apiserver-arg": ["no-such-flag=1"]})
    assert said_by_failed(done, "putting the old files back")
    assert site.host.read("/etc/rancher/k3s/config.yaml") == before
    site.cluster.wait_ready()
    assert site.pods() == pods
    assert site.run().changed == []


def test_another_token_is_refused_and_a_rotation_is_taken(site):
    site.token = NEXT_TOKEN
    refused = site.run()
    assert said_by_failed(refused, "token: must be the one that the cluster has")
    assert site.host.read("/etc/rancher/k3s/token") == TOKEN + "\n"
    wrong = site.operation(f"rotate_token(Secret({'x' * 20!r}), Secret({NEXT_TOKEN!r}), api_port=6445, name='Rotate')")
    assert said_by_failed(wrong, "the old token is not the cluster's")
    # the lab's supervisor has a port of its own
    rotate = f"rotate_token(Secret({TOKEN!r}), Secret({NEXT_TOKEN!r}), api_port=6445, name='Rotate')"
    before, pods = site.life(), site.pods()
    assert site.operation(rotate).changed == ["Rotate"]
    after = site.life()
    assert after != before, "a server reads the token when it starts"
    assert site.pods() == pods
    assert site.operation(rotate).changed == []
    assert site.run().changed == []
    assert site.life() == after
    assert site.host.read("/etc/rancher/k3s/token") == NEXT_TOKEN + "\n"


# --- an agent --------------------------------------------------------------------------------------------------------


def test_an_agent_joins_with_its_labels_and_taints(site):
    site.worker = k3s.equip(site.lab.host("t-k3s-agent"))
    newer = site.run_agent(version=MINOR)
    assert said_by_failed(newer, "an agent must not be newer than a server")
    arguments = {"labels": {"disk": "fast"}, "taints": ["dedicated=judge:NoSchedule"]}
    done = site.run_agent(**arguments)
    assert done.ok, done
    assert done.changed == ["Run k3s agent"]
    node = site.nodes()["t-k3s-agent"]
    assert node["metadata"]["labels"]["disk"] == "fast"
    assert [one["key"] for one in node["spec"]["taints"] if not one["key"].startswith("node.kubernetes.io")] == ["dedicated"]
    before = site.life(site.worker, "k3s-agent")
    assert site.run_agent(**arguments).changed == []
    assert site.run_agent(labels={"disk": "fast"}).changed == ["Run k3s agent"]
    assert site.life(site.worker, "k3s-agent") == before
    assert site.run_agent(labels={"disk": "fast"}).changed == []
    assert site.worker.run("stat -c %a /etc/rancher/k3s/config.yaml /etc/rancher/k3s/token").stdout == "600\n600\n"


def test_pods_of_two_nodes_reach_each_other(site):
    spread = {"spec": {"template": {"spec": {"topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}}  # fmt: skip
    # none is left of the old ones, which the scheduler would count
    site.cluster.kubectl("scale", "deployment", "web", "--replicas=0")
    wait_for("no pods", lambda: not site.cluster.get("pods", "-l", "app=web")["items"], 120, pause=1)
    site.cluster.kubectl("patch", "deployment", "web", "-p", json.dumps(spread))
    site.cluster.kubectl("scale", "deployment", "web", "--replicas=2")
    site.cluster.kubectl("rollout", "status", "deployment/web", "--timeout=240s", timeout=260)
    pods = site.cluster.get("pods", "-l", "app=web")["items"]
    assert {one["spec"]["nodeName"] for one in pods} == {"t-k3s", "t-k3s-agent"}
    for one in pods:
        for other in pods:
            assert site.cluster.kubectl("exec", one["metadata"]["name"], "--", "wget", "-qO-", f"http://{other['status']['podIP']}:8080") == "busybox\n"


# --- versions --------------------------------------------------------------------------------------------------------


def test_a_lower_version_and_a_skipped_one_are_refused(site):
    site.version = PATCH
    far = site.run(version=FAR)
    assert said_by_failed(far, "go up by one minor version at a time")
    assert not site.run(dry=True, version=FAR).ok
    assert "v1.35" not in site.host.run("ls /usr/local/lib/hostwright/k3s").stdout
    assert site.run().changed == []


def test_a_release_that_does_not_start_gives_way_to_the_one_before(site):
    broken = "v1.33.9+k3s1"
    sums = site.mirror.add_broken(broken)
    pods = site.pods()
    done = site.run(version=broken, differs={"sums": sums})
    assert said_by_failed(done, "putting the old files back")
    assert site.installed().endswith(f"{k3s.versions()[PATCH]}/k3s")
    site.cluster.wait_ready()
    node = site.nodes()["t-k3s"]
    assert not node["spec"].get("unschedulable")
    assert not [key for key in node["metadata"]["annotations"] if "out-of-service" in key]
    site.cluster.kubectl("rollout", "status", "deployment/web", "--timeout=240s", timeout=260)
    assert len(site.pods()) == len(pods)


def test_servers_are_upgraded_before_agents_each_drained_when_nothing_blocks_it(site):
    site.cluster.kubectl("patch", "deployment", "web", "--type=json", "-p", '[{"op":"remove","path":"/spec/template/spec/topologySpreadConstraints"}]')
    site.cluster.kubectl("rollout", "status", "deployment/web", "--timeout=240s", timeout=260)
    site.cluster.apply(BUDGET)
    blocked = site.run(version=NEXT)
    assert said_by_failed(blocked, "PodDisruptionBudget default/web allows no disruption even when all is well (2 pods, 2 must be healthy)")
    assert not any(one["spec"].get("unschedulable") for one in site.nodes().values())
    assert site.installed().endswith(f"{k3s.versions()[PATCH]}/k3s")

    site.cluster.apply(BUDGET.replace("minAvailable: 2", "maxUnavailable: 1"))
    site.version = NEXT
    done = site.run()
    assert done.ok, done
    assert done.changed == ["Run k3s server"]
    found = site.nodes()
    versions = {name: one["status"]["nodeInfo"]["kubeletVersion"] for name, one in found.items()}
    assert versions == {"t-k3s": k3s.versions()[NEXT], "t-k3s-agent": k3s.versions()[PATCH]}
    assert {one["spec"]["nodeName"] for one in site.cluster.get("pods", "-l", "app=web")["items"]} == {"t-k3s-agent"}
    assert not any(one["spec"].get("unschedulable") for one in found.values())
    assert "before-" in site.host.run(f"ls {SNAPSHOTS}").stdout
    assert site.run().changed == []

    done = site.run_agent(labels={"disk": "fast"})
    assert done.ok, done
    assert done.changed == ["Run k3s agent"]
    assert {one["status"]["nodeInfo"]["kubeletVersion"] for one in site.nodes().values()} == {k3s.versions()[NEXT]}
    assert not any(one["spec"].get("unschedulable") for one in site.nodes().values())
    assert site.run_agent(labels={"disk": "fast"}).changed == []


def test_going_back_is_refused(site):
    back = site.run(version=PATCH)
    assert said_by_failed(back, "must not go back from")
    assert site.installed().endswith(f"{k3s.versions()[NEXT]}/k3s")
    assert site.run().changed == []


def test_a_node_that_a_killed_upgrade_left_out_of_service_comes_back(site):
    site.cluster.kubectl("annotate", "node", "t-k3s-agent", "hostwright/out-of-service=upgrade")
    site.cluster.kubectl("cordon", "t-k3s-agent")
    assert site.run_agent(labels={"disk": "fast"}).changed == ["Run k3s agent"]
    assert not site.nodes()["t-k3s-agent"]["spec"].get("unschedulable")
    site.cluster.kubectl("cordon", "t-k3s-agent")  # by hand: none of our business
    assert site.run_agent(labels={"disk": "fast"}).changed == []
    site.cluster.kubectl("uncordon", "t-k3s-agent")


def test_an_upgrade_that_is_killed_is_finished_by_the_next_run(site, tmp_path):
    """At points from the download over the drain to the restart, each kill on top of what the one before left."""
    site.version = MINOR
    for number, seconds in enumerate((2, 6, 11, 17)):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        kill_run(command_line(scratch, site.host, site.text(serial=False)), {}, Point(0, seconds))
    done = site.run()
    assert done.ok, done
    node = site.nodes()["t-k3s"]
    assert not node["spec"].get("unschedulable"), node["metadata"]["annotations"]
    assert site.run().changed == []
    for number, seconds in enumerate((3, 9)):
        scratch = tmp_path / f"agent-{number}"
        scratch.mkdir()
        kill_run(command_line(scratch, [site.host, site.worker], site.agent_text(labels={"disk": "fast"}, serial=False)), {}, Point(0, seconds))
    done = site.run_agent(labels={"disk": "fast"})
    assert done.ok, done
    assert site.run_agent(labels={"disk": "fast"}).changed == []
    found = site.nodes()
    assert {one["status"]["nodeInfo"]["kubeletVersion"] for one in found.values()} == {k3s.versions()[MINOR]}
    assert not any(one["spec"].get("unschedulable") for one in found.values())
    left = site.host.run("find /usr/local/lib/hostwright/k3s /etc/rancher /usr/local/bin -name '.*'").stdout
    assert left == "", left


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_restored_and_a_damaged_one_refused(site):
    site.cluster.kubectl("create", "configmap", "before", "--from-literal=a=b")
    assert site.operation("snapshot('mine', name='Snapshot')").ok
    name = site.host.run(f"ls {SNAPSHOTS} | grep ^mine").stdout.strip()
    site.cluster.kubectl("delete", "configmap", "before")
    site.host.run(f"head -c 20000 {SNAPSHOTS}/{name} >{SNAPSHOTS}/cut")
    life = site.life()
    damaged = site.operation("restore('cut', name='Restore')")
    assert said_by_failed(damaged, "is damaged")
    assert site.life() == life
    done = site.operation(f"restore({name!r}, name='Restore')")
    assert done.ok, done
    site.cluster.wait_ready()
    assert site.cluster.get("configmap", "before")["data"] == {"a": "b"}
    assert site.run().changed == []


def test_a_lost_server_comes_back_on_a_fresh_host(site):
    host = site.host
    assert site.operation("snapshot('off', name='Snapshot')").ok
    kept = subprocess.run(["cat", *(host.directory / "root" / SNAPSHOTS.lstrip("/")).glob("off-*")], capture_output=True, check=True).stdout
    host.reset()
    k3s.equip(host)
    assert site.run().ok
    assert site.cluster.kubectl("get", "configmap", "before", check=False) == ""
    place = host.directory / "root" / SNAPSHOTS.lstrip("/")
    place.mkdir(parents=True, exist_ok=True)
    (place / "off").write_bytes(kept)
    done = site.operation("restore('off', name='Restore')")
    assert done.ok, done
    site.cluster.wait_ready()
    assert site.cluster.get("configmap", "before")["data"] == {"a": "b"}
    assert site.run().changed == []


# --- the end ---------------------------------------------------------------------------------------------------------


def test_uninstall_leaves_nothing_and_asks_for_the_right_name(site):
    host = site.host
    host.run("ip link add mine type bridge; ip addr add 10.99.0.1/24 dev mine")
    wrong = site.operation("uninstall_and_delete_all_data('another', name='Uninstall')")
    assert said_by_failed(wrong, "this host's node is t-k3s, got another")
    assert host.run("systemctl is-active k3s").stdout == "active\n"
    assert site.operation("uninstall_and_delete_all_data('t-k3s', name='Uninstall')").changed == ["Uninstall"]
    for path in ("/var/lib/rancher/k3s", "/etc/rancher/k3s", "/usr/local/bin/k3s", "/etc/systemd/system/k3s.service", "/run/k3s", "/var/lib/kubelet"):
        assert not host.exists(path), path
    assert "kubelet" not in host.run("ps -eo args").stdout
    assert "httpd" not in host.run("ps -eo args").stdout
    assert "cni0" not in host.run("ip -o link").stdout
    assert "mine" in host.run("ip -o link").stdout
    assert site.operation("uninstall_and_delete_all_data('t-k3s', name='Uninstall')").changed == []
    fact = K3s()
    assert fact.process(host.run(fact.command().get_raw_value()).stdout.splitlines()).installed == ""
    wait_for("the host", lambda: host.run("systemctl is-system-running", check=False).stdout.strip() in ("running", "degraded"), 30)
