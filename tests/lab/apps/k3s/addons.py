"""What k3s deploys as workloads and the lab has as one loop: DNS, addresses of load balancers, volumes of local-path.

The names and the outcome are those of coredns, servicelb and local-path-provisioner; the programs are not.
"""

import base64
import ipaddress
import json
import os
import socket
import ssl
import struct
import tempfile
import threading
import time
import urllib.error
import urllib.request

import yaml
from parts import DNS, read, say

STORAGE = "/var/lib/rancher/k3s/storage"
_cluster: dict[str, list] = {"services": [], "endpoints": [], "pods": []}
_here: list[str] = []  # the node that this runs on


class Api:
    """The API server, asked with the admin's certificate."""

    def __init__(self, kubeconfig: str) -> None:
        found = yaml.safe_load(read(kubeconfig))
        self.url = found["clusters"][0]["cluster"]["server"]
        self.context = ssl.create_default_context(
            cadata=base64.b64decode(found["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
        )
        user = found["users"][0]["user"]
        with tempfile.NamedTemporaryFile("wb") as pair:
            pair.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
            pair.flush()
            self.context.load_cert_chain(pair.name)

    def ask(self, path: str, method: str = "GET", body: object = None, kind: str = "application/json") -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, method=method, data=data, headers={"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=20, context=self.context) as answer:
            return json.load(answer)

    def ensure(self, path: str, body: dict) -> None:
        try:
            self.ask(path, "POST", body)
        except urllib.error.HTTPError as error:
            if error.code not in (409, 422):  # 422: its own address is taken, by itself
                raise


def begin(kubeconfig: str, address: str, node: str) -> None:
    api = Api(kubeconfig)
    _here.append(node)
    roles = {f"node-role.kubernetes.io/{role}": "true" for role in ("control-plane", "etcd", "master")}
    api.ask(f"/api/v1/nodes/{node}", "PATCH", {"metadata": {"labels": roles}}, "application/merge-patch+json")
    own = {"app.kubernetes.io/managed-by": "lab"}
    api.ensure("/apis/storage.k8s.io/v1/storageclasses", {
        "metadata": {"name": "local-path", "labels": own, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "rancher.io/local-path", "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer"})  # fmt: skip
    api.ensure("/api/v1/namespaces/kube-system/services", {
        "metadata": {"name": "kube-dns", "labels": own},
        "spec": {"clusterIP": DNS, "ports": [{"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353},
                                             {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 5353}]}})  # fmt: skip
    api.ensure("/api/v1/namespaces/kube-system/endpoints", {
        "metadata": {"name": "kube-dns", "labels": own},
        "subsets": [{"addresses": [{"ip": address}], "ports": [{"name": "dns", "port": 5353, "protocol": "UDP"},
                                                             {"name": "dns-tcp", "port": 5353, "protocol": "TCP"}]}]})  # fmt: skip
    for target in (lambda: loop(api), lambda: dns_udp(address), lambda: dns_tcp(address)):
        threading.Thread(target=target, daemon=True).start()


def loop(api: Api) -> None:
    while True:
        try:
            for kind in _cluster:
                _cluster[kind] = api.ask(f"/api/v1/{kind}?resourceVersion=0")["items"]
            balance(api)
            provision(api)
        except (OSError, ValueError, KeyError) as error:
            say("warning", f"addons: {error}")
        time.sleep(1)


def balance(api: Api) -> None:
    """A service of type LoadBalancer is reached at every node, as servicelb has it; kube-proxy does the rest."""
    waiting = [one for one in _cluster["services"] if one["spec"]["type"] == "LoadBalancer"]
    if not waiting:
        return
    nodes = api.ask("/api/v1/nodes?resourceVersion=0")["items"]
    # as its pods, which do not bear a node's own taints
    nodes = [n for n in nodes if not any(t["effect"] == "NoSchedule" and not t["key"].startswith("node-role.kubernetes.io/") for t in n["spec"].get("taints") or [])]
    addresses = sorted(a["address"] for n in nodes for a in n["status"].get("addresses", []) if a["type"] == "InternalIP")
    for service in waiting:
        meta = service["metadata"]
        has = sorted(one.get("ip", "") for one in service["status"].get("loadBalancer", {}).get("ingress") or [])
        if has != addresses:
            api.ask(f"/api/v1/namespaces/{meta['namespace']}/services/{meta['name']}/status", "PATCH",
                    {"status": {"loadBalancer": {"ingress": [{"ip": one} for one in addresses]}}}, "application/merge-patch+json")  # fmt: skip


def provision(api: Api) -> None:
    for claim in api.ask("/api/v1/persistentvolumeclaims?resourceVersion=0")["items"]:
        meta, spec = claim["metadata"], claim["spec"]
        node = (meta.get("annotations") or {}).get("volume.kubernetes.io/selected-node")
        if claim["status"].get("phase") != "Pending" or spec.get("storageClassName") != "local-path" or not node:
            continue
        name = f"pvc-{meta['uid']}"
        place = f"{STORAGE}/{name}_{meta['namespace']}_{meta['name']}"
        if node in _here:
            # as local-path's helper pod makes it on the volume's node: open to whoever the pod runs as
            os.makedirs(place, exist_ok=True)
            os.chmod(place, 0o777)
        api.ensure("/api/v1/persistentvolumes", {
            "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": "rancher.io/local-path"}},
            "spec": {"capacity": {"storage": spec["resources"]["requests"]["storage"]}, "accessModes": spec["accessModes"],
                     "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "local-path", "volumeMode": "Filesystem",
                     "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "name": meta["name"],
                                  "namespace": meta["namespace"], "uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
                     "hostPath": {"path": place, "type": "DirectoryOrCreate"},
                     "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                         {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}})  # fmt: skip


# --- DNS -----------------------------------------------------------------------------------------------------------


def lookup(name: str) -> list[str] | None:
    """Return the addresses of a name of the cluster; None when it is none of ours."""
    labels = name.rstrip(".").lower().split(".")
    if labels[-3:] != ["svc", "cluster", "local"]:
        return None
    labels = labels[:-3]
    if len(labels) < 2:
        return []
    *before, service, namespace = labels
    found = [one for one in _cluster["services"] if (one["metadata"]["name"], one["metadata"]["namespace"]) == (service, namespace)]
    if not found:
        return []
    if found[0]["spec"].get("clusterIP") not in (None, "None"):
        return [] if before else [found[0]["spec"]["clusterIP"]]
    addresses = []
    unready = found[0]["spec"].get("publishNotReadyAddresses")
    for one in _cluster["endpoints"]:
        if (one["metadata"]["name"], one["metadata"]["namespace"]) == (service, namespace):
            for subset in one.get("subsets") or []:
                listed = [*(subset.get("addresses") or []), *((subset.get("notReadyAddresses") or []) if unready else [])]
                addresses += [a["ip"] for a in listed if not before or a.get("hostname") == before[-1] or
                              (a.get("targetRef") or {}).get("name") == before[-1]]  # fmt: skip
    return addresses


def answer(query: bytes) -> bytes | None:
    ident, _flags, count = struct.unpack_from(">HHH", query)
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
        at += query[at] + 1
    kind, _class = struct.unpack_from(">HH", query, at + 1)
    question = query[12 : at + 5]
    found = lookup(".".join(labels))
    if found is None:
        if labels[-1:] == ["local"] or count != 1:
            return struct.pack(">HHHHHH", ident, 0x8583, 1, 0, 0, 0) + question
        return forward(query)
    addresses = found if kind == 1 else []
    code = 0 if found else 3
    records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + ipaddress.ip_address(one).packed for one in addresses)
    return struct.pack(">HHHHHH", ident, 0x8580 | code, 1, len(addresses), 0, 0) + question + records


def forward(query: bytes) -> bytes | None:
    for line in read("/etc/resolv.conf").splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            family = socket.AF_INET6 if ":" in words[1] else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as upstream:
                upstream.settimeout(3)
                try:
                    upstream.sendto(query, (words[1], 53))
                    return upstream.recv(4096)
                except OSError:
                    continue
    ident = struct.unpack_from(">H", query)[0]
    return struct.pack(">HHHHHH", ident, 0x8182, 0, 0, 0, 0)


def dns_udp(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, 5353))
        while True:
            query, peer = server.recvfrom(4096)

            def reply(query: bytes = query, peer: tuple = peer) -> None:
                try:
                    said = answer(query)
                    if said:
                        server.sendto(said, peer)
                except (OSError, IndexError, struct.error, ValueError):
                    pass

            threading.Thread(target=reply, daemon=True).start()


def dns_tcp(address: str) -> None:
    with socket.create_server((address, 5353)) as server:
        while True:
            peer, _ = server.accept()
            with peer:
                try:
                    peer.settimeout(3)
                    size = struct.unpack(">H", peer.recv(2))[0]
                    said = answer(peer.recv(size))
                    if said:
                        peer.sendall(struct.pack(">H", len(said)) + said)
                except (OSError, IndexError, struct.error, ValueError):
                    pass


