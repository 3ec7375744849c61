"""The lab's own cluster: what the stand-in for k3s has to be able to do before anything is shown on it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab import images, k3s
from tests.lab.lab import Lab
from tests.lab.state import run, wait_for

pytestmark = pytest.mark.soak

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
      containers:
      - {name: web, image: IMAGE, readinessProbe: {httpGet: {port: 8080, path: /}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 2567, targetPort: 8080}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers: [{name: db, image: IMAGE, volumeMounts: [{name: data, mountPath: /data}]}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
"""


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[k3s.Cluster]:
    made = k3s.one_node(lab, "t-k3s-lab", registry=lab.registry())
    yield made
    lab.destroy(made.host)


@pytest.fixture(scope="module")
def web(lab: Lab, cluster: k3s.Cluster) -> k3s.Cluster:
    serving = images.make(images.get("busybox"), command=["httpd", "-f", "-p", "8080", "-h", "/var/www"])
    cluster.apply(WEB.replace("IMAGE", lab.registry().push("team/web", "1", serving)))
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=180s", timeout=200)
    cluster.kubectl("rollout", "status", "statefulset/db", "--timeout=180s", timeout=200)
    return cluster


def test_a_node_says_the_version_of_its_release(cluster):
    assert f"k3s version {k3s.versions()[0]} " in cluster.host.run("k3s --version").stdout
    assert cluster.kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.kubeletVersion}") == k3s.versions()[0]
    assert "STATUS: pass" in cluster.host.run("k3s check-config").stdout


def test_pods_reach_each_other_by_service_and_by_name_and_are_reached_from_outside(web):
    def ask(url: str) -> str:
        return web.kubectl("exec", "db-0", "--", "wget", "-qO-", url)

    assert ask("http://web:2567") == ask("http://db-0.db.default.svc.cluster.local:8080") == "busybox\n"
    wait_for("the load balancer's address", lambda: run("curl", "-sm5", f"http://{web.host.address}:2567", check=False) == "busybox\n", 60)


def test_a_volume_holds_what_a_pod_wrote(web):
    web.kubectl("exec", "db-0", "--", "sh", "-c", "echo kept >/data/note")
    web.kubectl("delete", "pod", "db-0", "--grace-period=1")
    web.kubectl("rollout", "status", "statefulset/db", "--timeout=180s", timeout=200)
    assert web.kubectl("exec", "db-0", "--", "cat", "/data/note") == "kept\n"


def test_pods_outlive_a_restart_of_k3s(web):
    before = [(one["metadata"]["uid"], one["status"]["containerStatuses"][0]["containerID"]) for one in web.get("pods")["items"]]
    web.host.run("systemctl restart k3s", timeout=200)
    web.wait_ready()
    assert [(one["metadata"]["uid"], one["status"]["containerStatuses"][0]["containerID"]) for one in web.get("pods")["items"]] == before
    assert run("curl", "-sm5", f"http://{web.host.address}:2567") == "busybox\n"


def test_a_snapshot_brings_back_what_was_there(web):
    host = web.host
    web.kubectl("create", "configmap", "before", "--from-literal=a=b")
    host.run("k3s etcd-snapshot save --name here")
    web.kubectl("delete", "configmap", "before")
    name = host.run("ls /var/lib/rancher/k3s/server/db/snapshots").stdout.split()[0]
    host.run("systemctl stop k3s")
    host.run(f"k3s server --cluster-reset --cluster-reset-restore-path=/var/lib/rancher/k3s/server/db/snapshots/{name}", timeout=120)
    host.run("systemctl start k3s", timeout=200)
    web.wait_ready()
    assert json.loads(web.kubectl("get", "configmap", "before", "-o", "json"))["data"] == {"a": "b"}
