"""A k3s server that watches itself: what it tells of its cluster, and what becomes an alert. In the lab the real Kubernetes 1.20."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploys import dashboards
from tests.lab import canary, images, k3s
from tests.lab.k3s import Cluster, Mirror
from tests.lab.lab import Lab
from tests.lab.provision import Run, provision
from tests.lab.scan import scan
from tests.lab.state import run, wait_for
from tests.lab.watched import DEPLOY, Watcher

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]

FIGURES = "/var/lib/prometheus/node-exporter/k3s.prom"
KUBELET = "/var/lib/kubelet"
TLS = "/var/lib/rancher/k3s/server/tls"
OFTEN = "while :; do systemctl start hostwright-k3s-health.service; sleep 4; done"
JOB = """apiVersion: batch/v1
kind: Job
metadata: {name: migrate}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: migrate, image: IMAGE, command: ["false"]}]
"""
SHAKY = """apiVersion: v1
kind: Pod
metadata: {name: shaky}
spec:
  volumes: [{name: state, emptyDir: {}}]
  containers:
  - name: shaky
    image: IMAGE
    command: [sh, -c, "while ! test -e /state/ill; do sleep 1; done; exit 1"]
    volumeMounts: [{name: state, mountPath: /state}]
"""
CLAIM = """apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  storageClassName: there-is-none
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Mi}}
"""


class Server(Watcher):
    """The host: groups k3s_server and monitoring."""

    def __init__(self, lab: Lab) -> None:
        self.mirror, self.registry = Mirror(lab.slot).start(), lab.registry()
        self.host = k3s.equip(lab.host("t-watch-k3s"))
        self.cluster = Cluster(self.host)
        self._own_disk()
        super().__init__(self.host)
        self.own = canary.new(("K3S_TOKEN", "BACKUP_PASSWORD", "HOOK_TOKEN"))
        self.env = {**self.own, "MONITORING_WEBHOOK_URL": f"http://127.0.0.1:18080/{self.own['HOOK_TOKEN']}", "REGISTRY_PASSWORD": self.registry.password}

    def _own_disk(self) -> None:
        """Give the kubelet a file system of its own, small enough to be filled: the host's is that of the whole machine."""
        image = self.host.directory / "kubelet.img"
        run("truncate", "-s", "64M", image)
        run("mkfs.ext4", "-q", "-m", "0", image)
        self.device = run("losetup", "--find", "--show", image).strip()
        number = self.device.removeprefix("/dev/loop")
        self.host.run(f"test -e {self.device} || mknod -m 660 {self.device} b 7 {number}; mkdir -p {KUBELET} && mount {self.device} {KUBELET}")

    def run(self, deploy: str | Path = DEPLOY, **settings: Any) -> Run:
        version, account = k3s.versions()[0], {"username": self.registry.username, "password": "env:REGISTRY_PASSWORD", "ca": self.registry.ca}
        monitoring = {
            "enabled": True, "webhook_url": "env:MONITORING_WEBHOOK_URL", "scrape_seconds": 2, "hold_seconds": 2, "group_seconds": 1, "window_seconds": 150, **settings,
        }  # fmt: skip
        data = {
            "k3s_version": version,
            "k3s_sums": self.mirror.sums(version),
            "k3s_release_url": self.mirror.url,
            "k3s_token": "env:K3S_TOKEN",
            # five minutes, if it is not told: so long a node says that it is short of something when it is not any more
            "k3s_config": {"kubelet-arg": ["eviction-pressure-transition-period=10s"]},
            "k3s_node_networks": [f"{self.host.address}/32"],
            "k3s_registries": {self.registry.name: account},
            "base_exposure": [{"port": 5353, "proto": proto, "sources": ["10.42.0.0/16"], "why": "DNS of the lab"} for proto in ("udp", "tcp")],
            "backup_password": "env:BACKUP_PASSWORD",
            **{f"monitoring_{key}": value for key, value in monitoring.items()},
        }
        groups = {"k3s_server": [self.host], "monitoring": [self.host]}
        return provision(self.host, deploy, data=data, groups=groups, env=self.env, timeout=2000)


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Server]:
    made = Server(lab)
    try:
        done = made.run()
        assert done.ok, done
        # what is asked for every minute is asked for more often here
        made.host.run(f"systemd-run --quiet --collect --unit=often sh -c '{OFTEN}'")
        yield made
    finally:
        made.mirror.stop()
        lab.destroy(made.host)
        run("losetup", "--detach", made.device)


def test_the_cluster_is_told_and_a_second_run_changes_nothing(server, stranger):
    name = server.host.name
    jobs = ("node", "prometheus", "alertmanager", "blackbox")
    wait_for("all targets", lambda: server.targets() == {(name, job): "up" for job in jobs}, 180, pause=1)
    wait_for("the node", lambda: server.query("hostwright_k3s_up == 1") and server.query(f'hostwright_k3s_node_ready{{node="{name}"}} == 1'), 120, pause=1)
    assert server.value("hostwright_k3s_certificate_expiry_timestamp_seconds - time()") > 14 * 86400
    done = server.run()
    assert (done.ok, done.changed) == (True, []), done
    wait_for("no alert", lambda: server.alerts() == set(), 180, pause=1)
    assert {frozenset(family.reached) for family in scan(stranger, server.host).values()} == {frozenset({22})}
    # what it reads with stands in no file but k3s's own, and is nobody's to see
    assert server.host.run(f"stat -c '%a %U' {FIGURES}").stdout.split() == ["644", "root"]
    assert "PRIVATE KEY" not in server.host.run("journalctl -u hostwright-k3s-health.service -o cat --no-pager; ls -lR /tmp").stdout
    verdict = server.host.run("systemd-analyze security --no-pager hostwright-k3s-health.service | tail -1").stdout
    assert float(verdict.split()[-3]) <= 1.5, verdict


def test_workload_short(server):
    image = server.registry.push("team/web", "1", images.make(images.get("busybox"), command=["httpd", "-f", "-p", "8080", "-h", "/var/www"]))
    server.cluster.kubectl("create", "deployment", "web", f"--image={image}")
    server.cluster.kubectl("rollout", "status", "deployment/web", "--timeout=240s", timeout=260)
    missing = f"{server.registry.name}/team/web:there-is-none"

    def spoil() -> None:
        server.cluster.kubectl("delete", "deployment", "web")
        server.cluster.kubectl("create", "deployment", "web", f"--image={missing}")

    server.fires_and_resolves("WorkloadShort", server.host, spoil, lambda: server.cluster.kubectl("set", "image", "deployment/web", f"web={image}"))
    # every panel has something to show of a cluster with a workload
    for title, query in dashboards.queries(dashboards.k3s()):
        assert server.query(query), title
    page = server.host.run("curl -fsS -m 20 http://127.0.0.1:9090/consoles/hostwright.html").stdout
    assert "1 of 1" in page[page.index("Clusters") :]
    assert "error" not in page.lower()


def test_job_failed(server):
    image = server.registry.image("busybox", "1")
    server.fires_and_resolves("JobFailed", server.host, lambda: server.cluster.apply(JOB.replace("IMAGE", image)), lambda: server.cluster.kubectl("delete", "job", "migrate"))


def test_claim_pending(server):
    server.fires_and_resolves("ClaimPending", server.host, lambda: server.cluster.apply(CLAIM), lambda: server.cluster.kubectl("delete", "pvc", "data"))


def test_a_pod_starts_again_and_again(server):
    image = server.registry.image("busybox", "1")
    server.cluster.apply(SHAKY.replace("IMAGE", image))
    server.cluster.kubectl("wait", "--for=condition=Ready", "pod/shaky", "--timeout=240s", timeout=260)
    wait_for("its figure", lambda: server.query('hostwright_k3s_container_restarts_total{pod="shaky"} == 0'), 120, pause=1)
    state = server.host.run(f"find {KUBELET}/pods -type d -path '*/volumes/*empty-dir/state'").stdout.strip()
    server.fires_and_resolves("PodRestarts", server.host, lambda: server.host.run(f"touch {state}/ill"), lambda: server.host.run(f"rm {state}/ill"))
    server.cluster.kubectl("delete", "pod", "shaky", "--grace-period=1")


def test_node_short_of_disk(server):
    host = server.host
    fill = f"fallocate -l $(($(df --output=avail -B1 {KUBELET} | tail -n 1) - 262144)) {KUBELET}/filler"
    server.fires_and_resolves("NodePressure", host, lambda: host.run(fill), lambda: host.run(f"rm {KUBELET}/filler"))
    wait_for("room for pods", lambda: "disk-pressure" not in server.cluster.kubectl("get", "node", host.name, "-o", "jsonpath={.spec.taints}"), 120, pause=1)


def test_node_not_ready(server):
    """Its kubelet hangs: the cluster hears nothing of the node any more."""
    host = server.host
    server.fires_and_resolves("NodeNotReady", host, lambda: host.run("kill -STOP $(pidof kubelet)"), lambda: host.run("kill -CONT $(pidof kubelet)"))
    server.cluster.wait_ready()


def test_certificate_of_the_api_server_aged(server):
    """It is signed by the cluster's own authority, as k3s's is; the API server takes a new one within a minute."""
    host, pair = server.host, f"{TLS}/serving-kube-apiserver"

    def age() -> None:
        names = f"subjectAltName=IP:127.0.0.1,IP:10.43.0.1,IP:{host.address},DNS:localhost,DNS:kubernetes,DNS:{host.name}"
        host.run(
            f"cp -p {pair}.crt /run/kept.crt; openssl req -new -key {pair}.key -subj /CN=kube-apiserver -out /run/aged.csr && printf '%s\n' {names} > /run/aged.ext && "
            f"openssl x509 -req -days 5 -CA {TLS}/server-ca.crt -CAkey {TLS}/server-ca.key -set_serial 7 -extfile /run/aged.ext -in /run/aged.csr -out /run/aged.crt && "
            f"cat /run/aged.crt > {pair}.crt"
        )

    server.fires_and_resolves("ClusterCertificateExpires", host, age, lambda: host.run(f"cat /run/kept.crt > {pair}.crt; rm /run/kept.crt /run/aged.*"))


def test_api_server_gone(server):
    def cure() -> None:
        server.host.run("systemctl start k3s.service", timeout=300)
        server.cluster.wait_ready()

    server.fires_and_resolves("ClusterDown", server.host, lambda: server.host.run("systemctl stop k3s.service", timeout=120), cure)
    # of a server that does not answer only that was told, and nothing that was true before
    wait_for("no alert", lambda: server.alerts() == set(), 240, pause=1)
