# ruff: noqa: T201 - what it prints is what it is for
"""What all commands share: where things are, processes that end with us, flags and config.yaml."""

import ctypes
import glob
import json
import os
import signal
import socket
import subprocess
import sys
import time

from release import VERSION

PARTS = "/usr/local/lib/lab-kubernetes"
DATA = "/var/lib/rancher/k3s"
BIN = f"{PARTS}/bin"
ETC = "/etc/rancher/k3s"
LOGS = f"{DATA}/lab-logs"
CLUSTER_CIDR, SERVICE_CIDR = "10.42.0.0/16", "10.43.0.0/16"
DNS = "10.43.0.10"
SUPERVISOR = 2  # the supervisor's port, counted from the API server's: k3s has both on one

__all__ = ["VERSION"]

BOTH = {
    "config": str, "debug": bool, "v": str, "data-dir": str, "token": str, "token-file": str, "server": str, "node-name": str,
    "with-node-id": bool, "node-label": list, "node-taint": list, "node-ip": list, "node-external-ip": list, "kubelet-arg": list,
    "kube-proxy-arg": list, "private-registry": str, "protect-kernel-defaults": bool, "selinux": bool, "flannel-iface": str,
    "pause-image": str, "snapshotter": str, "resolv-conf": str, "image-credential-provider-config": str,
}  # fmt: skip
SERVER = {
    "bind-address": str, "https-listen-port": str, "advertise-address": str, "tls-san": list, "cluster-cidr": list, "service-cidr": list,
    "service-node-port-range": str, "cluster-dns": list, "cluster-domain": str, "flannel-backend": str, "write-kubeconfig": str,
    "write-kubeconfig-mode": str, "write-kubeconfig-group": str, "agent-token": str, "agent-token-file": str, "cluster-init": bool,
    "cluster-reset": bool, "cluster-reset-restore-path": str, "kube-apiserver-arg": list, "etcd-arg": list,
    "kube-controller-manager-arg": list, "kube-scheduler-arg": list, "datastore-endpoint": str, "etcd-expose-metrics": bool,
    "etcd-disable-snapshots": bool, "etcd-snapshot-name": str, "etcd-snapshot-schedule-cron": str, "etcd-snapshot-retention": str,
    "etcd-snapshot-dir": str, "etcd-snapshot-compress": bool, "default-local-storage-path": str, "disable": list,
    "disable-cloud-controller": bool, "disable-kube-proxy": bool, "disable-network-policy": bool, "disable-helm-controller": bool,
    "secrets-encryption": bool, "embedded-registry": bool, "egress-selector-mode": str, "name": str, "tls-san-security": bool,
}  # fmt: skip
SHORT = {"t": "token", "s": "server", "d": "data-dir", "c": "config"}


def say(level: str, text: str) -> None:
    print(f'time="{time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}" level={level} msg={json.dumps(text)}', file=sys.stderr, flush=True)


def fail(text: str, status: int = 1) -> None:
    say("fatal", text)
    sys.exit(status)


def call(*argv: str) -> None:
    sys.stdout.flush()
    os.execve(argv[0], list(argv), environment())


def environment() -> dict[str, str]:
    path = f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    mine = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
    return {**mine, "PATH": path, "XTABLES_LIBDIR": f"{PARTS}/lib/xtables", "LD_LIBRARY_PATH": f"{PARTS}/lib"}


def run(*argv: str, check: bool = True, **more: object) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, env=environment(), **more)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def write(path: str, text: str, mode: int = 0o600) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
    os.rename(path + ".new", path)


# --- flags ---------------------------------------------------------------------------------------------------------


def options(words: list[str], known: dict[str, type]) -> dict[str, object]:
    """Return the flags, with those of config.yaml and config.yaml.d before them; a list is added to, else the last one counts."""
    import yaml  # here: kubectl is called often, and has no use for it

    given = parse(words, known)
    path = str(given.get("config") or os.environ.get("K3S_CONFIG_FILE") or f"{ETC}/config.yaml")
    found: dict[str, object] = {}
    for file in [path, *sorted(glob.glob(f"{path}.d/*.y*ml"))]:
        if not os.path.exists(file):
            continue
        try:
            values = yaml.safe_load(read(file)) or {}
        except yaml.YAMLError as error:
            fail(f"error parsing {file}: {error}")
        for key, value in values.items():
            plain = key.rstrip("+")
            if plain not in known:
                say("warning", f"Unknown flag --{plain} found in config.yaml, skipping")
                continue
            kind = known[plain]
            if kind is list:
                value = [str(one) for one in (value if isinstance(value, list) else [value])]
                value = [*found.get(plain, []), *value] if key.endswith("+") else value
            elif kind is bool:
                value = value is True or str(value).lower() == "true"
            else:
                value = str(value)
            found[plain] = value
    for key, value in given.items():
        found[key] = [*found.get(key, []), *value] if known[key] is list else value
    return found


def parse(words: list[str], known: dict[str, type]) -> dict[str, object]:
    found: dict[str, object] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, sign, value = word.lstrip("-").partition("=")
        flag = SHORT.get(flag, flag)
        if not word.startswith("-") or flag not in known:
            fail(f"flag provided but not defined: -{flag}")
        if known[flag] is bool:
            found[flag] = value != "false"
        else:
            if not sign:
                if not rest:
                    fail(f"flag needs an argument: -{flag}")
                value = rest.pop(0)
            found[flag] = [*found.get(flag, []), *value.split(",")] if known[flag] is list else value
    return found


def token_of(given: dict[str, object]) -> str:
    """Return the shared secret: of the flag, the file, the environment; without the prefix of the secure form."""
    token = str(given.get("token") or os.environ.get("K3S_TOKEN") or "")
    if not token and given.get("token-file"):
        path = str(given["token-file"])
        if not os.path.exists(path):
            fail(f"open {path}: no such file or directory")
        token = read(path).rstrip("\n")
    return token.rsplit("::", 1)[-1].rsplit(":", 1)[-1]


def address() -> str:
    """Return this host's own address: the one that the default route uses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]


# --- processes -----------------------------------------------------------------------------------------------------

children: dict[str, subprocess.Popen] = {}


def start(name: str, *argv: str) -> None:
    """Start a component that ends when we end, however we end."""
    os.makedirs(LOGS, exist_ok=True)
    libc = ctypes.CDLL(None)
    with open(f"{LOGS}/{name}.log", "ab") as log:
        children[name] = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(),
            preexec_fn=lambda: libc.prctl(1, signal.SIGTERM if name in ("etcd", "containerd") else signal.SIGKILL),
        )  # fmt: skip
    say("info", f"Running {name}")


def end_child(name: str) -> None:
    child = children.pop(name, None)
    if child:
        child.terminate()
        child.wait()


def check_children() -> None:
    for name, child in list(children.items()):
        if child.poll() is not None:
            tail = read(f"{LOGS}/{name}.log").strip().splitlines()[-3:]
            end_children()
            fail(f"{name} exited: {' / '.join(tail)[-600:]}")


def end_children() -> None:
    for name in ("kubelet", "kube-proxy", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "containerd", "etcd"):
        child = children.get(name)
        if child and child.poll() is None:
            child.send_signal(signal.SIGTERM)
    end = time.monotonic() + 5
    for child in list(children.values()):
        try:
            child.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()


def wait(what: str, ready, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        check_children()
        try:
            if ready():
                return
        except Exception as error:
            last = error
        else:
            last = None
        if time.monotonic() > end:
            fail(f"{what}: not within {seconds:.0f} s{f': {last}' if last else ''}")
        time.sleep(0.2)


def notify(text: str) -> None:
    where = os.environ.get("NOTIFY_SOCKET")
    if where:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect("\0" + where[1:] if where.startswith("@") else where)
            sender.sendall(text.encode())


def stop_on_signals() -> None:
    def stop(_signal, _frame) -> None:
        end_children()
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def versioned(component: str) -> str:
    """Return the path of a component that says our version where it would say 1.20.2: what nodes report is read back by tests."""
    return f"{PARTS}/versions/{VERSION}/{component}"
