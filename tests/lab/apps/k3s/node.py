"""k3s agent: containerd, kubelet, kube-proxy; the same on a server."""

import base64
import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.request
from urllib.parse import urlsplit

import pki
import yaml
from parts import (
    BIN,
    BOTH,
    CLUSTER_CIDR,
    DATA,
    DNS,
    ETC,
    PARTS,
    SUPERVISOR,
    address,
    check_children,
    fail,
    notify,
    options,
    read,
    run,
    say,
    start,
    stop_on_signals,
    token_of,
    versioned,
    wait,
    write,
)

AGENT = f"{DATA}/agent"
SOCKET = "/run/k3s/containerd/containerd.sock"


def name_of(given: dict[str, object]) -> str:
    return str(given.get("node-name") or os.uname().nodename).lower()


def main(words: list[str]) -> None:
    given = options(words, BOTH)
    url, token = str(given.get("server") or os.environ.get("K3S_URL") or ""), token_of(given)
    if not token:
        fail("--token is required")
    if not url:
        fail("--server is required")
    stop_on_signals()
    os.makedirs(AGENT, mode=0o700, exist_ok=True)
    bundle = f"{AGENT}/bundle.json"
    if not os.path.exists(bundle):
        wait("the server", lambda: join(url, token, name_of(given), bundle), 3600)
    run_node(given, json.loads(read(bundle)), url)
    notify("READY=1")
    say("info", "k3s agent is up and running")
    while True:
        check_children()
        time.sleep(1)


def join(url: str, token: str, node: str, path: str) -> bool:
    """Get this node's certificates for the token, as often as it takes."""
    parts = urlsplit(url)
    port = (parts.port or 443) + SUPERVISOR
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # a plain token names no CA
    request = urllib.request.Request(
        f"https://{parts.hostname}:{port}/v1-k3s/lab-node", method="POST",
        data=json.dumps({"node": node, "address": address(), "password": node_password()}).encode(),
        headers={"Authorization": "Basic " + base64.b64encode(f"node:{token}".encode()).decode()},
    )
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            write(path, answer.read().decode())
        return True
    except OSError as error:
        say("error", f"failed to get CA certs or node password: {url}: {error}")
        time.sleep(2)
        return False


def node_password() -> str:
    """What a node is known by beside its name: a host that takes another one's name has not got it."""
    path = "/etc/rancher/node/password"
    if not os.path.exists(path):
        write(path, os.urandom(16).hex() + "\n")
    return read(path).strip()


def run_node(given: dict[str, object], bundle: dict[str, str], url: str) -> None:
    node = name_of(given)
    kernel()
    for name in ("kubelet", "serving", "proxy"):
        for end in ("crt", "key"):
            write(f"{AGENT}/{name}.{end}", bundle[f"{name}_{end}"])
    for name in ("server_ca", "client_ca"):
        write(f"{AGENT}/{name}.crt", bundle[name])
    write(f"{AGENT}/kubelet.kubeconfig", pki.kubeconfig(url, bundle["server_ca"], bundle["kubelet_crt"], bundle["kubelet_key"]))
    write(f"{AGENT}/kubeproxy.kubeconfig", pki.kubeconfig(url, bundle["server_ca"], bundle["proxy_crt"], bundle["proxy_key"]))
    containerd(str(given.get("private-registry", f"{ETC}/registries.yaml")))
    kubelet(given, node)
    start("kube-proxy", f"{BIN}/kube-proxy", f"--kubeconfig={AGENT}/kubeproxy.kubeconfig", "--proxy-mode=iptables",
          f"--cluster-cidr={CLUSTER_CIDR}", f"--hostname-override={node}", "--conntrack-max-per-core=0",
          "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s", "--healthz-bind-address=127.0.0.1:10256",
          *(f"--{one}" for one in given.get("kube-proxy-arg", [])))
    network(node)


def kernel() -> None:
    """What the kubelet sets in /proc/sys, which is read-only in a host of the lab: bind the wanted values over it."""
    if not os.path.exists("/dev/kmsg"):
        os.symlink("/dev/null", "/dev/kmsg")
    wanted = {"vm/overcommit_memory": 1, "vm/panic_on_oom": 0, "kernel/panic": 10, "kernel/panic_on_oops": 1,
              "kernel/keys/root_maxkeys": 1000000, "kernel/keys/root_maxbytes": 25000000}  # fmt: skip
    for key, value in wanted.items():
        path, own = f"/proc/sys/{key}", f"/run/k3s/sys/{key.replace('/', '_')}"
        if int(read(path)) != value:
            write(own, f"{value}\n", 0o644)
            run("mount", "--bind", own, path)
    for path in ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/bridge/bridge-nf-call-iptables"):
        try:
            with open(path, "w") as file:
                file.write("1")
        except OSError as error:
            say("warning", f"{path}: {error}")


# --- containerd ----------------------------------------------------------------------------------------------------


def containerd(registries: str) -> None:
    """Start containerd, its data where overlayfs works; mirrors and accounts as registries.yaml has them."""
    home = f"{AGENT}/etc/containerd"
    shutil.rmtree(f"{home}/certs.d", ignore_errors=True)
    known = (yaml.safe_load(read(registries)) or {}) if os.path.exists(registries) else {}
    configs = known.get("configs") or {}
    lines = ["version = 2", f'root = "{data_root()}"', 'state = "/run/k3s/containerd"', 'oom_score = 0', "[grpc]", f'address = "{SOCKET}"',
             '[plugins."io.containerd.internal.v1.opt"]', f'path = "{AGENT}/containerd"',
             '[plugins."io.containerd.grpc.v1.cri"]', 'sandbox_image = "rancher/mirrored-pause:3.6"', "restrict_oom_score_adj = true",
             "disable_apparmor = true", 'stream_server_address = "127.0.0.1"', 'stream_server_port = "10010"', "enable_selinux = false",
             '[plugins."io.containerd.grpc.v1.cri".containerd]', 'snapshotter = "overlayfs"',
             '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]', 'runtime_type = "io.containerd.runc.v2"',
             '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]', f'BinaryName = "{BIN}/runc"',
             '[plugins."io.containerd.grpc.v1.cri".cni]', f'bin_dir = "{PARTS}/cni"', f'conf_dir = "{AGENT}/etc/cni/net.d"',
             '[plugins."io.containerd.grpc.v1.cri".registry]', f'config_path = "{home}/certs.d"']  # fmt: skip
    for name, config in configs.items():
        account = config.get("auth") or {}
        if account:
            lines.append(f'[plugins."io.containerd.grpc.v1.cri".registry.configs."{name}".auth]')
            lines += [f"{key} = {json.dumps(str(account[key]))}" for key in ("username", "password", "auth") if key in account]
    write(f"{home}/config.toml", "\n".join(lines) + "\n")
    for name in {*(known.get("mirrors") or {}), *configs}:
        endpoints = ((known.get("mirrors") or {}).get(name) or {}).get("endpoint") or [f"https://{name}"]
        folder = "_default" if name == "*" else name
        hosts = [] if name == "*" else [f'server = "https://{name}"', *trusted(configs, name)]
        for endpoint in endpoints:
            hosts += [f'[host."{endpoint}"]', 'capabilities = ["pull", "resolve"]', *trusted(configs, urlsplit(endpoint).netloc, name)]
        write(f"{home}/certs.d/{folder}/hosts.toml", "\n".join(hosts) + "\n")
    start("containerd", f"{BIN}/containerd", "--config", f"{home}/config.toml")
    wait("containerd", lambda: "Version" in run(f"{BIN}/ctr", "--address", SOCKET, "version"), 60)
    present = run(f"{BIN}/ctr", "--address", SOCKET, "--namespace", "k8s.io", "images", "ls", "-q")
    archives = [f"{PARTS}/images/{name}" for name in os.listdir(f"{PARTS}/images")] if "mirrored-pause" not in present else []
    place = f"{AGENT}/images"
    if os.path.isdir(place):
        archives += [f"{place}/{name}" for name in sorted(os.listdir(place)) if name.endswith((".tar", ".tar.gz", ".tar.zst"))]
    for archive in archives:
        mark = f"{AGENT}/imported/{os.path.basename(archive)}-{int(os.stat(archive).st_mtime_ns)}"
        if os.path.exists(mark) and archive.startswith(place):
            continue
        say("info", f"Importing images from {archive}")
        with open(archive, "rb") as file:
            unpacked = file.read()
        if archive.endswith(".gz"):
            import gzip

            unpacked = gzip.decompress(unpacked)
        done = subprocess.run([f"{BIN}/ctr", "--address", SOCKET, "--namespace", "k8s.io", "images", "import", "-"], input=unpacked,
                              capture_output=True)
        if done.returncode:
            fail(f"failed to import {archive}: {done.stderr.decode()[-300:]}")
        write(mark, "")


def trusted(configs: dict[str, dict], *names: str) -> list[str]:
    """What is trusted of the first of these registries that has a configuration: of its mirrors, and of itself when they have not got an image."""
    tls = next((configs[name].get("tls") or {} for name in names if configs.get(name)), {})
    found = [f'ca = "{tls["ca_file"]}"'] if tls.get("ca_file") else []
    return [*found, "skip_verify = true"] if tls.get("insecure_skip_verify") else found


def data_root() -> str:
    """An overlay on the lab's own overlay does not mount: the lab's hosts have one directory that is none."""
    root = "/var/lib/docker/k3s" if os.path.ismount("/var/lib/docker") else f"{AGENT}/containerd"
    os.makedirs(root, exist_ok=True)
    return root


# --- kubelet -------------------------------------------------------------------------------------------------------


def kubelet(given: dict[str, object], node: str) -> None:
    labels = ["node.kubernetes.io/instance-type=k3s", *given.get("node-label", [])]
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "cgroupDriver": "cgroupfs", "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [], "failSwapOn": False, "address": "0.0.0.0", "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": f"{AGENT}/client_ca.crt"}},
        "authorization": {"mode": "Webhook"}, "clusterDNS": [DNS], "clusterDomain": "cluster.local",
        "tlsCertFile": f"{AGENT}/serving.crt", "tlsPrivateKeyFile": f"{AGENT}/serving.key", "nodeStatusUpdateFrequency": "5s",
    }  # fmt: skip
    write(f"{AGENT}/etc/kubelet.json", json.dumps(config))
    start("kubelet", versioned("kubelet"), f"--kubeconfig={AGENT}/kubelet.kubeconfig", f"--config={AGENT}/etc/kubelet.json",
          "--container-runtime=remote", f"--container-runtime-endpoint=unix://{SOCKET}", f"--hostname-override={node}",
          f"--node-ip={(given.get('node-ip') or [address()])[0]}", f"--node-labels={','.join(labels)}",
          f"--register-with-taints={','.join(given.get('node-taint', []))}", "--pod-infra-container-image=rancher/mirrored-pause:3.6",
          *(f"--{one}" for one in given.get("kubelet-arg", [])))


# --- network: a bridge on each node, and routes to the others' ------------------------------------------------------


def network(node: str) -> None:
    import threading

    def own_range() -> str:
        said = run(f"{BIN}/kubectl", "--kubeconfig", f"{AGENT}/kubelet.kubeconfig", "get", "node", node, "-o", "jsonpath={.spec.podCIDR}")
        return said.strip()

    wait("this node's range of pod addresses", own_range, 300)
    write(f"{AGENT}/etc/cni/net.d/10-lab.conflist", json.dumps({
        "cniVersion": "0.4.0", "name": "lab",
        "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
                     "ipam": {"type": "host-local", "ranges": [[{"subnet": own_range()}]], "routes": [{"dst": "0.0.0.0/0"}]}},
                    {"type": "portmap", "capabilities": {"portMappings": True}}],
    }), 0o644)

    # as flannel does, whatever the host's own policy for forwarded packets is
    for way in ("-s", "-d"):
        rule = ("FORWARD", way, CLUSTER_CIDR, "-m", "comment", "--comment", "flanneld forward", "-j", "ACCEPT")
        try:
            run("iptables", "-w", "-C", *rule)
        except RuntimeError:
            run("iptables", "-w", "-A", *rule)

    def routes() -> None:
        while True:
            try:
                found = json.loads(run(f"{BIN}/kubectl", "--kubeconfig", f"{AGENT}/kubelet.kubeconfig", "get", "nodes", "-o", "json"))
                for other in found["items"]:
                    where = [one["address"] for one in other["status"].get("addresses", []) if one["type"] == "InternalIP"]
                    cidr = other["spec"].get("podCIDR")
                    if other["metadata"]["name"] != node and where and cidr:
                        run("ip", "route", "replace", cidr, "via", where[0])
            except (RuntimeError, ValueError, KeyError):
                pass
            time.sleep(5)

    threading.Thread(target=routes, daemon=True).start()
