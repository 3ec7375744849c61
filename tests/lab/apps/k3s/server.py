# ruff: noqa: T201 - what it prints is what it is for
"""k3s server: etcd, the API server, controller manager and scheduler; then what every node runs. Snapshots.

Several servers are members of one real etcd: each joins as a learner, is promoted once it has everything, and leaves with its node.
"""

import base64
import hashlib
import http.server
import json
import os
import shutil
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

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
    end_child,
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
    os.makedirs(DATA, exist_ok=True)
    token = check_token(given)
    if given.get("cluster-reset"):
        reset(given, str(given.get("cluster-reset-restore-path", "")))
    stop_on_signals()
    port = int(str(given.get("https-listen-port", "6443")))
    cluster = ""
    if given.get("server") and not os.path.exists(f"{DB}/etcd/member"):
        wait("the server to join", lambda: joined(given, token), 3600)
        cluster = read(f"{DB}/joining")
    control_plane(given, port, token, cluster)
    write_tokens(token)
    supervise(port)
    name = node.name_of(given)
    bundle_path = f"{DATA}/server/bundle.json"
    if not os.path.exists(bundle_path):
        write(bundle_path, json.dumps(pki.node_bundle(name, address())))
    node.run_node(given, json.loads(read(bundle_path)), f"https://127.0.0.1:{port}")
    addons.begin(ADMIN, address(), name)
    threading.Thread(target=lambda: leaving(name), daemon=True).start()
    if os.path.exists(f"{DB}/reset-flag"):
        os.unlink(f"{DB}/reset-flag")
    notify("READY=1")
    say("info", "k3s is up and running")
    while True:
        check_children()
        if joining.is_set() and not elects:  # here: what a thread of the supervisor's starts would end with it
            managers(given, elect=True)
        time.sleep(1)


# --- token ---------------------------------------------------------------------------------------------------------


def check_token(given: dict[str, object]) -> str:
    """The datastore belongs to the token that it was begun with."""
    token = token_of(given)
    kept = f"{DATA}/server/token"
    known = read(kept).strip().rsplit(":", 1)[-1] if os.path.exists(kept) else ""
    if given.get("server"):  # compared with what is in etcd, once that is up
        return token or known
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
    _etcdctl("put", "/bootstrap/token", hashlib.sha256(token.encode()).hexdigest())


# --- several servers -----------------------------------------------------------------------------------------------


joining = threading.Event()  # another server is on its way
elects: list[bool] = []  # whether the managers wait for a lease already


def peer_url() -> str:
    return f"http://{address()}:2380"


def members() -> list[dict]:
    return json.loads(_etcdctl("member", "list", "-w", "json"))["members"]


def joined(given: dict[str, object], token: str) -> bool:
    """Get the cluster's authorities for the token, and a place among the members of its etcd, as often as it takes."""
    parts = urlsplit(str(given["server"]))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # a plain token names no CA
    request = urllib.request.Request(
        f"https://{parts.hostname}:{(parts.port or 443) + SUPERVISOR}/v1-k3s/lab-server", method="POST",
        data=json.dumps({"name": node.name_of(given), "peer": peer_url()}).encode(),
        headers={"Authorization": "Basic " + base64.b64encode(f"server:{token}".encode()).decode()},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            told = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            fail("starting kubernetes: preparing server: failed to validate server configuration: not authorized")
        say("error", f"{parts.hostname} does not let this server join: {error.code}")
        time.sleep(2)
        return False
    except OSError as error:
        say("error", f"failed to get CA certs: {given['server']}: {error}")
        time.sleep(2)
        return False
    for name, text in told["files"].items():
        write(f"{pki.TLS}/{name}", text)
    write(f"{DB}/joining", told["cluster"])
    return True


def admit(name: str, peer: str) -> dict[str, object]:
    """Make a server a member of etcd: a learner first, without a vote, so that one that never comes costs no majority."""
    for one in members():
        if one.get("name", "") == name or peer in one["peerURLs"]:
            _etcdctl("member", "remove", f"{one['ID']:x}")
    _etcdctl("member", "add", name, f"--peer-urls={peer}", "--learner")
    found = members()
    identity = next(f"{one['ID']:x}" for one in found if peer in one["peerURLs"])

    def promote() -> None:
        for _ in range(1200):
            try:
                _etcdctl("member", "promote", identity)
                return
            except RuntimeError:
                time.sleep(0.5)

    threading.Thread(target=promote, daemon=True).start()
    joining.set()
    cluster = ",".join(f"{one.get('name') or name}={one['peerURLs'][0]}" for one in found)
    names = [f"{ca}-ca.{end}" for ca in ("server", "client", "request-header") for end in ("crt", "key")]
    return {"files": {one: read(f"{pki.TLS}/{one}") for one in [*names, "service.key"]}, "cluster": cluster}


def leaving(own: str) -> None:
    """A node that is deleted is forgotten, and a server's is a member of etcd no more."""
    seen: set[str] = set()
    while True:
        try:
            found = {one["metadata"]["name"] for one in json.loads(run(f"{BIN}/kubectl", "--kubeconfig", ADMIN, "get", "nodes", "-o", "json"))["items"]}
            for gone in seen - found:
                _etcdctl("del", f"/node-password/{gone}")
            for one in members() if seen - found else []:
                if one.get("name") in seen - found - {own}:
                    say("info", f"Removing name={one['name']} from etcd")
                    _etcdctl("member", "remove", f"{one['ID']:x}")
            seen = {one.get("name", "") for one in members()} & seen | found
        except (RuntimeError, ValueError, KeyError):
            pass
        time.sleep(2)


# --- control plane -------------------------------------------------------------------------------------------------


def start_etcd(given: dict[str, object], cluster: str = "", *more: str) -> None:
    name = node.name_of(given)
    start("etcd", f"{BIN}/etcd", "--name", name, "--data-dir", f"{DB}/etcd", "--advertise-client-urls", ETCD,
          "--listen-client-urls", f"{ETCD},http://{address()}:2379",  # at its node's address too, as k3s's
          "--listen-peer-urls", peer_url(), "--initial-advertise-peer-urls", peer_url(),
          "--initial-cluster", cluster or f"{name}={peer_url()}", "--initial-cluster-state", "existing" if cluster else "new",
          "--heartbeat-interval", "500", "--election-timeout", "5000", "--unsafe-no-fsync", "--log-level", "warn", *more,
          *(f"--{one}" for one in given.get("etcd-arg", [])))


def managers(given: dict[str, object], elect: bool) -> None:
    """What only one server does at a time: the others wait for its lease, long enough for a slow machine."""
    lease = ("--leader-elect-lease-duration=60s", "--leader-elect-renew-deadline=40s", "--leader-elect-retry-period=5s")
    elects[:] = [True] if elect else []
    for name in ("kube-controller-manager", "kube-scheduler"):
        end_child(name)
    start("kube-controller-manager", f"{BIN}/kube-controller-manager", f"--kubeconfig={CRED}/controller.kubeconfig",
          f"--service-account-private-key-file={pki.TLS}/service.key", f"--root-ca-file={pki.TLS}/server-ca.crt",
          "--bind-address=127.0.0.1", "--secure-port=10257", "--port=0", f"--leader-elect={str(elect).lower()}", *lease, "--allocate-node-cidrs=true",
          f"--cluster-cidr={CLUSTER_CIDR}", "--use-service-account-credentials=true", "--controllers=*",
          *(f"--{one}" for one in given.get("kube-controller-manager-arg", [])))
    start("kube-scheduler", f"{BIN}/kube-scheduler", f"--kubeconfig={CRED}/scheduler.kubeconfig", "--bind-address=127.0.0.1",
          "--secure-port=10259", "--port=0", f"--leader-elect={str(elect).lower()}", *lease,
          *(f"--{one}" for one in given.get("kube-scheduler-arg", [])))


def has_quorum() -> bool:
    """Whether etcd answers what only a member with a majority can."""
    _etcdctl("get", "/bootstrap/token")
    return True


def control_plane(given: dict[str, object], port: int, token: str, cluster: str) -> None:
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

    start_etcd(given, cluster)
    wait("etcd", has_quorum, 300)
    begun = _etcdctl("get", "/bootstrap/token", "--print-value-only").strip()
    if given.get("server") and begun and begun != hashlib.sha256(token.encode()).hexdigest():
        fail("starting kubernetes: preparing server: bootstrap data already found and encrypted with different token")
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
    managers(given, elect=bool(given.get("server")) or len(members()) > 1)


# --- supervisor ----------------------------------------------------------------------------------------------------


class Supervisor(http.server.BaseHTTPRequestHandler):
    """What k3s answers besides the API server: its CA to anyone, a node's certificates, a place among the servers and a new token to
    who has the token."""

    passwords: dict[str, str]  # read once: who was let in before a new token still is until k3s restarts

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def _allowed(self, user: str) -> bool:
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            name, _, password = base64.b64decode(value).decode().partition(":")
            if name == user and password == self.passwords.get(user):
                return True
        self._answer(401, "Unauthorized\n")
        return False

    def _body(self) -> dict[str, str]:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or "{}")

    def do_GET(self) -> None:
        if self.path == "/cacerts":
            self._answer(200, read(f"{pki.TLS}/server-ca.crt"))
        elif self.path != "/v1-k3s/server-bootstrap":
            self._answer(404, "not found\n")
        elif self._allowed("server"):
            self._answer(200, "{}\n")

    def do_POST(self) -> None:
        if self.path == "/v1-k3s/lab-server":
            if self._allowed("server"):
                asked = self._body()
                try:
                    self._answer(200, json.dumps(admit(asked["name"], asked["peer"])))
                except (RuntimeError, StopIteration) as error:
                    self._answer(503, f"{error}\n")
            return
        if self.path != "/v1-k3s/lab-node":
            return self._answer(404, "not found\n")
        if self._allowed("node"):
            asked = self._body()
            digest = hashlib.sha256(asked["password"].encode()).hexdigest()
            if _etcdctl("get", f"/node-password/{asked['node']}", "--print-value-only").strip() not in ("", digest):
                return self._answer(403, "Node password rejected, duplicate hostname\n")
            _etcdctl("put", f"/node-password/{asked['node']}", digest)
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
    Supervisor.passwords = {row[1]: row[0] for row in (line.split(",") for line in read(f"{CRED}/passwd").split())}
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


def reset(given: dict[str, object], path: str) -> None:
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
            name = node.name_of(given)
            _etcdctl("snapshot", "restore", path, "--data-dir", incoming, "--name", name,
                     "--initial-cluster", f"{name}={peer_url()}", "--initial-advertise-peer-urls", peer_url())
        except RuntimeError as error:
            fail(f"starting kubernetes: preparing server: start managed database: {error}")
        if os.path.isdir(f"{DB}/etcd"):
            os.rename(f"{DB}/etcd", f"{DB}/etcd-old-{int(time.time())}")
        os.rename(incoming, f"{DB}/etcd")
    else:
        start_etcd(given, "", "--force-new-cluster")
        wait("etcd", has_quorum, 120)
        end_child("etcd")
    write(f"{DB}/reset-flag", "")
    say("info", "Managed etcd cluster membership has been reset, restart without --cluster-reset flag now. Backup and delete "
        "${datadir}/server/db on each peer etcd server and rejoin the nodes")
    sys.exit(0)


