"""Manifests applied to a cluster, whole or as it was; read back with kubectl."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.lab import images, k3s
from tests.lab.k3s import Cluster
from tests.lab.kill import kill_both_ends
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line
from tests.lab.registry import Registry
from tests.lab.state import wait_for

pytestmark = pytest.mark.soak

SECRET = "canary-of-the-shop-0123456789"

# Serves what it was given on 8080; MODE says how it is broken.
SHOP = """#!/bin/sh
trap 'exit 0' TERM INT
echo "shop starts with $SHOP_PASSWORD"
case $MODE in
crashes) echo "shop cannot find its counter" >&2; exit 3 ;;
unready) ;;
*) mkdir -p /tmp/www; echo "$GREETING" > /tmp/www/index.html; httpd -p 8080 -h /tmp/www ;;
esac
while :; do sleep 1 & wait $!; done
"""

TEMPLATE = '''
import hashlib, json
from operations import manifests
from operations.manifests import Manifest
from settings.secret import Secret
import base64

def given(name, data, kind):
    full = name + "-" + hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:10]
    return full, {"apiVersion": "v1", "kind": kind, "metadata": {"name": full, "namespace": "shop"}, "immutable": True, "data": data}

P = json.loads(%r)
config, config_object = given("shop-env", {"GREETING": P["greeting"], "MODE": P["mode"]}, "ConfigMap")
secret, secret_object = given("shop", {"SHOP_PASSWORD": base64.b64encode(P["secret"].encode()).decode()}, "Secret")
labels = {"app.kubernetes.io/name": "shop"}
workload = {
    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "shop", "namespace": "shop"},
    "spec": {
        "replicas": P["replicas"], "minReadySeconds": P["settle"], "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {
            "terminationGracePeriodSeconds": 2, "automountServiceAccountToken": False,
            "containers": [{
                "name": "shop", "image": P["image"], "envFrom": [{"configMapRef": {"name": config}}, {"secretRef": {"name": secret}}],
                "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                "resources": {"requests": {"cpu": P["cpu"], "memory": "16Mi"}},
            }],
        }},
    },
}
objects = [
    {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop", "namespace": "shop"}, "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}},
    workload,
]
if P["extra"]:
    objects.insert(0, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop-extra", "namespace": "shop"}, "spec": {"selector": labels, "ports": [{"port": 81, "protocol": "TCP"}]}})
if P["bad"]:
    workload["spec"]["replicas"] = "many"
files = [
    Manifest("namespace", json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})),
    Manifest("secrets", Secret(json.dumps(secret_object))),
    Manifest("config", json.dumps(config_object)),
    Manifest("shop", "\\n---\\n".join(json.dumps(one) for one in objects)),
]
manifests.manifests("shop", files, namespace="shop", kubectl=["k3s", "kubectl"], rollout_seconds=P["seconds"], check_images=P["check_images"],
    registry=(P["registry"], P["account"], Secret(P["password"])) if P["account"] else None, name="Shop")
'''


class Shop:
    """A cluster of one node, and an application that the tests put onto it."""

    def __init__(self, cluster: Cluster, registry: Registry, provision: Callable[..., Run]) -> None:
        self.cluster, self.registry, self._provision = cluster, registry, provision
        made = images.make(images.get("busybox"), files={"/bin/shop": SHOP}, command=["/bin/shop"])
        self.image = registry.push("team/shop", "1", made)

    def text(self, **differs: Any) -> str:
        given = {
            "greeting": "one", "mode": "", "secret": SECRET, "replicas": 2, "image": self.image, "extra": False, "bad": False, "seconds": 240,
            "settle": 0, "cpu": "10m", "check_images": False, "registry": self.registry.name, "account": "", "password": "", **differs,
        }  # fmt: skip
        return TEMPLATE % json.dumps(given)

    def run(self, dry: bool = False, extra_words: tuple[str, ...] = (), **differs: Any) -> Run:
        return self._provision(self.cluster.host, self.text(**differs), dry=dry, extra=extra_words)

    def act(self, call: str) -> Run:
        return self._provision(self.cluster.host, f"from operations import manifests\nmanifests.{call}\n")

    def pods(self) -> dict[str, str]:
        found = self.cluster.get("pods", "-n", "shop")["items"]
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found if "deletionTimestamp" not in pod["metadata"]}

    def names(self, kind: str) -> list[str]:
        return sorted(one["metadata"]["name"] for one in self.cluster.get(kind, "-n", "shop")["items"])

    def states(self) -> dict[int, str]:
        found = self.cluster.get("configmaps", "-n", "shop", "-l", "hostwright.io/revision")["items"]
        return {int(one["metadata"]["labels"]["hostwright.io/revision"]): one["metadata"]["annotations"]["hostwright.io/state"] for one in found}

    def says(self) -> str:
        address = self.cluster.get("service", "shop", "-n", "shop")["spec"]["clusterIP"]
        return self.cluster.host.run(f"curl -sS -m 5 http://{address}/").stdout.strip()


@pytest.fixture(scope="module")
def registry(lab: Lab) -> Registry:
    return lab.registry()


@pytest.fixture(scope="module")
def shop(lab: Lab, registry: Registry, provision: Callable[..., Run]) -> Iterator[Shop]:
    cluster = k3s.one_node(lab, "t-manifests", registry=registry)
    yield Shop(cluster, registry, provision)
    lab.destroy(cluster.host)


def test_set_and_noop(shop):
    planned = shop.run(dry=True)
    assert planned.ok, planned
    assert planned.changed == ["Shop"], planned
    assert "Will create Deployment/shop" in planned.stderr, planned.stderr
    assert "shop" not in shop.cluster.kubectl("get", "namespaces", "-o", "name").replace("namespace/", "").split()

    first = shop.run()
    assert first.ok, first
    assert first.changed == ["Shop"], first
    assert shop.says() == "one"
    pods = shop.pods()
    assert len(pods) == 2

    second = shop.run()
    assert second.ok, second
    assert second.changed == [], second
    assert shop.run(dry=True).changed == []
    assert shop.pods() == pods


def test_update_rotates_secret_and_config_and_removes_what_is_not_wanted(shop):
    before, secrets = shop.pods(), [name for name in shop.names("secrets") if name.startswith("shop-")]
    assert shop.run(extra=True).ok
    assert shop.pods() == before, "a service alone restarts nothing"
    planned = shop.run(dry=True, greeting="two", secret=SECRET + "x")
    assert "Will remove Service/shop-extra" in planned.stderr, planned.stderr
    changed = shop.run(greeting="two", secret=SECRET + "x")
    assert changed.ok, changed
    assert changed.changed == ["Shop"], changed
    assert shop.says() == "two"
    assert "shop-extra" not in shop.names("services")
    assert not set(shop.pods()) & set(before)
    assert set(secrets) <= set(shop.names("secrets")), "a rollback needs the old one"
    assert shop.run(greeting="two", secret=SECRET + "x").changed == []


def test_rollback_brings_config_and_secret_back(shop):
    done = shop.act("rollback('shop', namespace='shop', kubectl=['k3s', 'kubectl'], name='Back')")
    assert done.ok, done
    assert shop.says() == "one"
    [pod] = [pod for pod in shop.cluster.get("pods", "-n", "shop")["items"] if "deletionTimestamp" not in pod["metadata"]][:1]
    assert SECRET in shop.cluster.kubectl("exec", "-n", "shop", pod["metadata"]["name"], "--", "env")
    assert SECRET + "x" not in shop.cluster.kubectl("exec", "-n", "shop", pod["metadata"]["name"], "--", "env")
    planned = shop.run(dry=True, greeting="two", secret=SECRET + "x")
    assert planned.changed == ["Shop"], planned


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("image", "ImagePull"),
        ("crash", "shop cannot find its counter"),
        ("unready", "was not rolled out within"),
    ],
)
def test_what_fails_goes_back_as_a_whole(shop, kind, said):
    assert shop.run(extra=True).ok
    before, secrets, configs = shop.pods(), shop.names("secrets"), shop.names("configmaps")
    # what is seen to be hopeless ends the wait by itself; a pod may take its time to be so far
    broken: dict[str, Any] = {"greeting": f"new-{kind}", "secret": SECRET + kind, "seconds": 45 if kind == "unready" else 180}
    if kind == "image":
        broken["image"] = f"{shop.registry.name}/team/shop:gone"
    else:
        broken["mode"] = {"crash": "crashes", "unready": "unready"}[kind]
    run = shop.run(**broken)
    assert not run.ok, run
    assert run.failed == ["Shop"], run
    assert said in run.stderr, run.stderr
    assert "is back: workloads, config and secrets" in run.stderr
    assert SECRET not in run.stdout + run.stderr
    assert shop.says() == "one"
    assert shop.pods() == before, "the pods that served serve on"
    assert shop.names("secrets") == secrets
    assert [name for name in shop.names("configmaps") if not name.startswith("hostwright-")] == [name for name in configs if not name.startswith("hostwright-")]
    assert shop.run(extra=True).changed == []


def test_what_the_server_or_the_nodes_refuse_changes_nothing(shop):
    before, states = shop.pods(), shop.states()
    bad = shop.run(extra=True, bad=True)
    assert not bad.ok, bad
    assert "nothing was changed" in bad.stderr, bad
    assert "replicas" in bad.stderr, bad
    large = shop.run(extra=True, cpu="900", dry=True)
    assert "cpu: 1800000m (shop 2 x 900000m) + 900000m for one more shop while it is replaced" in large.stderr, large
    shop.cluster.host.write("/usr/local/share/ca-certificates/lab.crt", shop.registry.ca)
    shop.cluster.host.run("update-ca-certificates")
    gone = {"extra": True, "image": f"{shop.registry.name}/team/shop:gone", "check_images": True}
    nobody = shop.run(**gone)
    assert not nobody.ok, nobody
    assert "of shop: the registry refuses the account" in nobody.stderr, nobody
    nowhere = shop.run(**gone, account=shop.registry.username, password=shop.registry.password)
    assert not nowhere.ok, nowhere
    assert "of shop is not in its registry" in nowhere.stderr, nowhere
    assert shop.registry.password not in nowhere.stdout + nowhere.stderr
    assert shop.pods() == before
    assert shop.states() == states


def test_drift_is_seen_and_put_right(shop):
    shop.cluster.kubectl("scale", "-n", "shop", "deployment/shop", "--replicas=1")
    planned = shop.run(dry=True, extra=True)
    assert "Will change Deployment/shop: spec.replicas" in planned.stderr, planned.stderr
    assert shop.run(extra=True).changed == ["Shop"]
    shop.cluster.kubectl("delete", "-n", "shop", "service", "shop")
    assert shop.run(extra=True).changed == ["Shop"]
    assert shop.run(extra=True).changed == []
    assert len(shop.pods()) == 2


def test_scale_restart_status(shop):
    before = shop.pods()
    common = "namespace='shop', kubectl=['k3s', 'kubectl']"
    assert shop.act(f"scale('shop', 'shop', 3, {common}, name='Scale')").ok
    assert len(shop.pods()) == 3
    assert set(before) <= set(shop.pods())
    assert shop.act(f"scale('shop', 'shop', 2, {common}, name='Scale')").ok
    assert shop.act(f"restart('shop', 'shop', {common}, name='Restart')").ok
    assert not set(shop.pods()) & set(before)
    assert shop.run(extra=True).changed == [], "a restart is no drift"
    status = shop.act(f"status('shop', {common}, name='Status')")
    assert "shop: 2 of 2 ready" in status.stderr, status
    unknown = shop.act(f"restart('shop', 'ship', {common}, name='Restart')")
    assert not unknown.ok, unknown
    assert "no workload 'ship'; there are shop" in unknown.stderr, unknown
    well = shop.act(f"health('shop', {{'shop': ['wget', '-qO-', 'http://127.0.0.1:8080/']}}, {common}, name='Health')")
    assert well.ok, well
    assert "shop: well" in well.stderr, well
    ill = shop.act(f"health('shop', {{'shop': ['false']}}, {common}, name='Health')")
    assert not ill.ok, ill
    assert "not well: shop" in ill.stderr, ill


def test_pods_that_are_ill_already_do_not_hold_a_release_back(shop):
    """What serves cannot start again: its config is gone. The new pods take longer than such a fault is borne with."""
    settled: dict[str, Any] = {"settle": 15}
    assert shop.run(**settled, greeting="to be ill").ok
    template = shop.cluster.get("deployment", "shop", "-n", "shop")["spec"]["template"]["spec"]
    shop.cluster.kubectl("delete", "configmap", template["containers"][0]["envFrom"][0]["configMapRef"]["name"], "-n", "shop")
    # the kubelet keeps a config that is immutable as long as a pod has it
    shop.cluster.kubectl("scale", "deployment", "shop", "-n", "shop", "--replicas=0")
    wait_for("the pods' end", lambda: not shop.cluster.get("pods", "-n", "shop")["items"], 120, pause=0.5)
    shop.cluster.kubectl("scale", "deployment", "shop", "-n", "shop", "--replicas=2")

    def waiting_for() -> set[str]:
        pods = shop.cluster.get("pods", "-n", "shop")["items"]
        return {one["state"].get("waiting", {}).get("reason", "") for pod in pods for one in pod["status"].get("containerStatuses", [])}

    wait_for("pods to be ill", lambda: waiting_for() == {"CreateContainerConfigError"}, 120, pause=0.5)
    run = shop.run(**settled, greeting="well again")
    assert run.ok, run
    assert shop.says() == "well again"
    assert len(shop.pods()) == 2
    assert shop.run(**settled, greeting="well again").changed == []


def test_a_server_that_restarts_meanwhile_takes_nothing_back(shop):
    host, wanted = shop.cluster.host, {"extra": True, "greeting": "through a restart"}
    at_work = "for p in /proc/[0-9]*; do ls -l $p/fd 2>/dev/null | grep -q /run/hostwright/manifests-shop.lock && echo $p; done"
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(shop.run, **wanted)
        wait_for("the program on the host", lambda: under_way.done() or host.run(at_work, check=False).stdout, 120)
        host.run("systemctl restart k3s", timeout=300)
        assert not under_way.done(), "the run was over before the restart"
        run = under_way.result()
    assert run.ok, run
    assert run.changed == ["Shop"], run
    assert shop.says() == "through a restart"
    assert shop.run(**wanted).changed == []


@pytest.mark.parametrize("seconds", [2, 6, 12, 20])
def test_killed_anywhere_the_next_run_finishes(shop, tmp_path, seconds):
    """Both ends die: the control machine's run, and the program on the host."""
    wanted = {"extra": True, "greeting": f"killed-{seconds}", "secret": f"{SECRET}-{seconds}"}
    command = command_line(tmp_path, shop.cluster.host, shop.text(**wanted))
    kill_both_ends(command, {}, shop.cluster.host, "/run/hostwright/manifests-shop.lock", seconds)
    again = shop.run(**wanted)
    assert again.ok, again
    assert shop.says() == f"killed-{seconds}"
    assert shop.run(**wanted).changed == []
    assert "pending" not in shop.states().values()


def test_secrets_are_in_no_annotation_and_no_log(shop):
    text = json.dumps([shop.cluster.get(kind, "-n", "shop") for kind in ("configmaps", "deployments", "services", "pods")])
    for value in (SECRET, base64.b64encode(SECRET.encode()).decode()):
        assert value not in text
    assert "last-applied-configuration" not in text
    for secret in shop.cluster.get("secrets", "-n", "shop")["items"]:
        assert base64.b64encode(SECRET.encode()).decode()[:20] not in json.dumps(secret["metadata"])
    run = shop.run(extra=True, greeting="three", extra_words=("-vvv", "--debug", "--diff"))
    assert run.ok, run
    assert SECRET not in run.stdout + run.stderr
