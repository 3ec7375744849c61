# ruff: noqa: T201 - what it prints is what it is for
"""k3s server: etcd, the API server, controller manager and scheduler; then what every node runs. Snapshots."""

import http.server
import json
import os
import shutil
import ssl
import sys
import threading
import time
import urllib.request
from base64 import b64decode

import addons
import node
import pki
from parts import (
    BIN,
    BOTH,
    CLUSTER_CIDR,
    DATA,
    ETC,
    SERVER,
    SERVICE_CIDR,
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

DB = f"{DATA}/server/db"
CRED = f"{DATA}/server/cred"
ETCD = "http://127.0.0.1:2379"
ADMIN = f"{CRED}/admin.kubeconfig"


def main(words: list[str]) -> None:
    given = options(words, {**BOTH, **SERVER})
    os.environ.setdefault("HOME", "/root")
    if given.get("server"):
        fail("this stand-in has no embedded etcd to join: a further server needs a genuine k3s")
    os.makedirs(DATA, exist_ok=True)
    token = check_token(given)
    if given.get("cluster-reset"):
        reset(str(given.get("cluster-reset-restore-path", "")))
    stop_on_signals()
    port = int(str(given.get("https-listen-port", "6443")))
    control_plane(given, port)
    write_tokens(token)
    supervise(port)
    name = node.name_of(given)
    bundle_path = f"{DATA}/server/bundle.json"
    if not os.path.exists(bundle_path):
        write(bundle_path, json.dumps(pki.node_bundle(name, address())))
    node.run_node(given, json.loads(read(bundle_path)), f"https://127.0.0.1:{port}")
    addons.begin(ADMIN, address(), name)
    if os.path.exists(f"{DB}/reset-flag"):
        os.unlink(f"{DB}/reset-flag")
    notify("READY=1")
    say("info", "k3s is up and running")
    while True:
        check_children()
        time.sleep(1)


# --- token ---------------------------------------------------------------------------------------------------------


def check_token(given: dict[str, object]) -> str:
    """The datastore belongs to the token that it was begun with."""
    token = token_of(given)
    kept = f"{DATA}/server/token"
    known = read(kept).strip().rsplit(":", 1)[-1] if os.path.exists(kept) else ""
    if os.path.exists(f"{DB}/etcd/member") or os.path.exists(f"{DB}/bootstrap"):
        begun = read(f"{DB}/bootstrap") if os.path.exists(f"{DB}/bootstrap") else known
        token = token or known
        if begun and token != begun:
            fail("starting kubernetes: preparing server: bootstrap data already found and encrypted with different token")
    return token or known or os.urandom(16).hex()


def write_tokens(token: str) -> None:
    full = f"K10{pki.openssl('dgst', '-sha256', '-r', f'{pki.TLS}/server-ca.crt').split()[0]}::server:{token}\n"
    write(f"{DATA}/server/token", full)
    for name in ("node-token", "agent-token"):
        path = f"{DATA}/server/{name}"
        if not os.path.lexists(path):
            os.symlink(f"{DATA}/server/token", path)
    write(f"{CRED}/passwd", f"{token},server,server,k3s:server\n{token},node,node,k3s:agent\n")
    write(f"{DB}/bootstrap", token)


# --- control plane -------------------------------------------------------------------------------------------------


def start_etcd(given: dict[str, object]) -> None:
    start("etcd", f"{BIN}/etcd", "--data-dir", f"{DB}/etcd", "--listen-client-urls", ETCD, "--advertise-client-urls", ETCD,
          "--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
          "--initial-cluster", "default=http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level", "warn",
          *(f"--{one}" for one in given.get("etcd-arg", [])))


def control_plane(given: dict[str, object], port: int) -> None:
    own = address()
    for name in ("server-ca", "client-ca", "request-header-ca"):
        pki.authority(name)
    sans = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost",
            os.uname().nodename, "127.0.0.1", "10.43.0.1", own, *given.get("tls-san", []))
    pki.kept(f"{pki.TLS}/serving-kube-apiserver", "server-ca", "/CN=kube-apiserver", tuple(dict.fromkeys(sans)))
    pki.kept(f"{pki.TLS}/client-kube-apiserver", "client-ca", "/O=system:masters/CN=kube-apiserver")
    if not os.path.exists(f"{pki.TLS}/service.key"):
        write(f"{pki.TLS}/service.key", pki.openssl("genrsa", "2048"))
    local = f"https://127.0.0.1:{port}"
    for name, subject in (("admin", "/O=system:masters/CN=system:admin"), ("controller", "/CN=system:kube-controller-manager"),
                          ("scheduler", "/CN=system:kube-scheduler")):  # fmt: skip
        pki.kept_kubeconfig(f"{CRED}/{name}.kubeconfig", local, subject)
    output = str(given.get("write-kubeconfig", f"{ETC}/k3s.yaml"))
    write(output, read(ADMIN), int(str(given.get("write-kubeconfig-mode") or "0600"), 8))

    start_etcd(given)
    wait("etcd", lambda: b"true" in urllib.request.urlopen(f"{ETCD}/health", timeout=2).read())
    start("kube-apiserver", versioned("kube-apiserver"), f"--etcd-servers={ETCD}", "--bind-address=0.0.0.0",
          f"--advertise-address={own}", f"--secure-port={port}", f"--service-cluster-ip-range={SERVICE_CIDR}",
          f"--service-node-port-range={given.get('service-node-port-range', '30000-32767')}",
          f"--client-ca-file={pki.TLS}/client-ca.crt", f"--tls-cert-file={pki.TLS}/serving-kube-apiserver.crt",
          f"--tls-private-key-file={pki.TLS}/serving-kube-apiserver.key",
          f"--kubelet-client-certificate={pki.TLS}/client-kube-apiserver.crt",
          f"--kubelet-client-key={pki.TLS}/client-kube-apiserver.key", f"--kubelet-certificate-authority={pki.TLS}/server-ca.crt",
          "--kubelet-preferred-address-types=InternalIP", "--authorization-mode=Node,RBAC",
          "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true", "--anonymous-auth=true",
          "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
          f"--service-account-signing-key-file={pki.TLS}/service.key", f"--service-account-key-file={pki.TLS}/service.key",
          f"--requestheader-client-ca-file={pki.TLS}/request-header-ca.crt", "--profiling=false", "--event-ttl=1h0m0s",
          *(f"--{one}" for one in given.get("kube-apiserver-arg", [])))
    wait("kube-apiserver", lambda: run(f"{BIN}/kubectl", "--kubeconfig", ADMIN, "get", "--raw", "/readyz") == "ok")
    start("kube-controller-manager", f"{BIN}/kube-controller-manager", f"--kubeconfig={CRED}/controller.kubeconfig",
          f"--service-account-private-key-file={pki.TLS}/service.key", f"--root-ca-file={pki.TLS}/server-ca.crt",
          "--bind-address=127.0.0.1", "--secure-port=10257", "--port=0", "--leader-elect=false", "--allocate-node-cidrs=true",
          f"--cluster-cidr={CLUSTER_CIDR}", "--use-service-account-credentials=true", "--controllers=*",
          *(f"--{one}" for one in given.get("kube-controller-manager-arg", [])))
    start("kube-scheduler", f"{BIN}/kube-scheduler", f"--kubeconfig={CRED}/scheduler.kubeconfig", "--bind-address=127.0.0.1",
          "--secure-port=10259", "--port=0", "--leader-elect=false",
          *(f"--{one}" for one in given.get("kube-scheduler-arg", [])))


# --- supervisor ----------------------------------------------------------------------------------------------------


class Supervisor(http.server.BaseHTTPRequestHandler):
    """What k3s answers besides the API server: its CA to anyone, a node's certificates and a new token to who has the token."""

    def _passwords(self) -> dict[str, str]:
        rows = (line.split(",") for line in read(f"{CRED}/passwd").split())
        return {row[1]: row[0] for row in rows}

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def _allowed(self, user: str) -> bool:
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            name, _, password = b64decode(value).decode().partition(":")
            if name == user and password == self._passwords().get(user):
                return True
        self._answer(401, "Unauthorized\n")
        return False

    def _body(self) -> dict[str, str]:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or "{}")

    def do_GET(self) -> None:
        self._answer(200, read(f"{pki.TLS}/server-ca.crt")) if self.path == "/cacerts" else self._answer(404, "not found\n")

    def do_POST(self) -> None:
        if self.path != "/v1-k3s/lab-node":
            return self._answer(404, "not found\n")
        if self._allowed("node"):
            asked = self._body()
            self._answer(200, json.dumps(pki.node_bundle(asked["node"], asked["address"])))

    def do_PUT(self) -> None:
        if self.path != "/v1-k3s/token":
            return self._answer(404, "not found\n")
        if self._allowed("server"):
            write_tokens(self._body()["newToken"])
            self._answer(200, "")

    def log_message(self, *_words: object) -> None:
        pass


def supervise(port: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{pki.TLS}/serving-kube-apiserver.crt", f"{pki.TLS}/serving-kube-apiserver.key")
    server = http.server.ThreadingHTTPServer(("0.0.0.0", port + SUPERVISOR), Supervisor)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()


# --- snapshots -----------------------------------------------------------------------------------------------------

_SNAPSHOT = {**BOTH, **SERVER, "dir": str, "etcd-s3": bool, "snapshot-compress": bool, "snapshot-retention": str, "output": str}


def _etcdctl(*words: str) -> str:
    os.environ["ETCDCTL_API"] = "3"
    return run(f"{BIN}/etcdctl", "--endpoints", ETCD, *words)


def _snapshots() -> list[str]:
    place = f"{DB}/snapshots"
    return sorted(os.listdir(place)) if os.path.isdir(place) else []


def snapshot(words: list[str]) -> None:
    """``k3s etcd-snapshot save|ls|delete``."""
    verb = "save" if not words or words[0].startswith("-") else words.pop(0)
    names = [word for word in words if not word.startswith("-")] if verb == "delete" else []
    given = options([word for word in words if word not in names], _SNAPSHOT)
    place = f"{DB}/snapshots"
    if verb == "save":
        if not os.path.exists(f"{DB}/etcd/member"):
            fail("etcd datastore disabled")
        os.makedirs(place, mode=0o700, exist_ok=True)
        name = f"{given.get('name') or given.get('etcd-snapshot-name') or 'on-demand'}-{os.uname().nodename}-{int(time.time())}"
        try:
            _etcdctl("snapshot", "save", f"{place}/{name}.part")
        except RuntimeError as error:
            fail(f"see server log for details: {error}")
        os.chmod(f"{place}/{name}.part", 0o600)
        os.rename(f"{place}/{name}.part", f"{place}/{name}")
        say("info", f"Snapshot {name} saved.")
    elif verb in ("ls", "list"):
        print("Name Location Size Created")
        for name in _snapshots():
            about = os.stat(f"{place}/{name}")
            print(f"{name} file://{place}/{name} {about.st_size} {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(about.st_mtime))}")
    elif verb == "prune":
        base = f"{given.get('name') or given.get('etcd-snapshot-name') or 'etcd-snapshot'}-"
        mine = sorted((one for one in _snapshots() if one.startswith(base)), key=lambda one: os.stat(f"{place}/{one}").st_mtime)
        for old in mine[: -int(str(given.get("snapshot-retention") or given.get("etcd-snapshot-retention") or 5))]:
            os.unlink(f"{place}/{old}")
    elif verb == "delete":
        for name in names:
            if name not in _snapshots():
                fail(f"snapshot {name} not found")
            os.unlink(f"{place}/{name}")
    else:
        fail(f"No help topic for '{verb}'", 3)


def reset(path: str) -> None:
    """``k3s server --cluster-reset``: begin anew as the only member, from a snapshot, then end."""
    if os.path.exists(f"{DB}/reset-flag"):
        fail("cluster-reset was successfully performed, please remove the cluster-reset flag and start k3s normally, if you need to "
             f"perform another cluster reset, you must first manually delete the {DB}/reset-flag file")
    if path:
        if not os.path.exists(path):
            fail(f"etcd: snapshot path does not exist: {path}")
        incoming = f"{DB}/etcd-incoming"
        shutil.rmtree(incoming, ignore_errors=True)
        try:
            _etcdctl("snapshot", "restore", path, "--data-dir", incoming, "--name", "default",
                     "--initial-cluster", "default=http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380")
        except RuntimeError as error:
            fail(f"starting kubernetes: preparing server: start managed database: {error}")
        if os.path.isdir(f"{DB}/etcd"):
            os.rename(f"{DB}/etcd", f"{DB}/etcd-old-{int(time.time())}")
        os.rename(incoming, f"{DB}/etcd")
    write(f"{DB}/reset-flag", "")
    say("info", "Managed etcd cluster membership has been reset, restart without --cluster-reset flag now. Backup and delete "
        "${datadir}/server/db on each peer etcd server and rejoin the nodes")
    sys.exit(0)


