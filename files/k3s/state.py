# What a host has of k3s, as JSON in one line. Reads only. main(values): version, node, cluster (ask the API server too)
import hashlib
import json
import os
import platform
import re
import subprocess
import sys

LINK = "/usr/local/bin/k3s"
PROGRAMS = "/usr/local/lib/hostwright/k3s"
DATA = "/var/lib/rancher/k3s"
ETC = "/etc/rancher/k3s"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def text(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def digest(path):
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""


def secret_digest(path):
    """The last part of a token: the password, whatever stands in front of it in the secure form."""
    found = text(path).strip().rsplit("::", 1)[-1].rsplit(":", 1)[-1]
    return hashlib.sha256(found.encode()).hexdigest() if found else ""


def ask(*argv, seconds=20):
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def installed():
    """The version that the link leads to; of a program that is not ours, what it says itself."""
    if not os.path.lexists(LINK):
        return "", ""
    target = os.readlink(LINK) if os.path.islink(LINK) else ""
    if target.startswith(PROGRAMS + "/"):
        return os.path.basename(os.path.dirname(target)), target
    found = re.search(r"k3s version (v\S+)", ask(LINK, "--version"))
    return (found.group(1) if found else "unknown"), target or LINK


def node_name():
    """What this host's node is called: as our configuration says, else as k3s would."""
    found = re.search(r"^node-name: *['\"]?([^'\"\s]+)", text(ETC + "/config.yaml"), re.MULTILINE)
    return found.group(1) if found else platform.node().lower()


def unit(name):
    shown = ask("systemctl", "show", "-p", "LoadState,ActiveState,NRestarts,FragmentPath", "--", name)
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def nodes():
    """The nodes of the cluster as a server's own kubectl lists them; None when nobody answers."""
    said = ask(LINK, "kubectl", "get", "nodes", "-o", "json", "--request-timeout=15s")
    if not said:
        return None
    found = {}
    for one in json.loads(said)["items"]:
        meta, spec, status = one["metadata"], one["spec"], one["status"]
        ready = [c["status"] for c in status.get("conditions", []) if c["type"] == "Ready"]
        found[meta["name"]] = {
            "version": status["nodeInfo"]["kubeletVersion"],
            "architecture": status["nodeInfo"]["architecture"],
            "ready": ready == ["True"],
            "boot": status["nodeInfo"].get("bootID", ""),
            "votes": all(c["status"] == "True" for c in status.get("conditions", []) if c["type"] == "EtcdIsVoter"),
            "schedulable": not spec.get("unschedulable", False),
            "labels": meta.get("labels", {}),
            "annotations": {key: value for key, value in (meta.get("annotations") or {}).items() if key.startswith("hostwright/")},
            "taints": sorted(
                "{}{}:{}".format(t["key"], "=" + t["value"] if t.get("value") else "", t["effect"])
                for t in spec.get("taints") or []
                if not t["key"].startswith("node.kubernetes.io/")
            ),
            "server": "node-role.kubernetes.io/control-plane" in meta.get("labels", {}) or "node-role.kubernetes.io/master" in meta.get("labels", {}),
        }
    return found


def main(values):
    version, target = installed()
    server, agent = unit("k3s.service"), unit("k3s-agent.service")
    begun = os.path.isdir(DATA + "/server/db/etcd") or os.path.exists(DATA + "/server/db/state.db")
    wanted = values["version"]
    sys.stdout.write(json.dumps({
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "boot": text("/proc/sys/kernel/random/boot_id").strip(),
        "installed": version,
        "program": target,
        "program_sha256": digest(f"{PROGRAMS}/{wanted}/k3s") if wanted else "",
        "images_sha256": digest("{}/agent/images/{}".format(DATA, values["images"])) if values.get("images") else "",
        "server_unit": server.get("LoadState") == "loaded",
        "agent_unit": agent.get("LoadState") == "loaded",
        "active": server.get("ActiveState") == "active" or agent.get("ActiveState") == "active",
        "begun": begun,
        "datastore": "etcd" if os.path.isdir(DATA + "/server/db/etcd") else "sqlite" if os.path.exists(DATA + "/server/db/state.db") else "",
        "node": node_name(),
        "joined": os.path.isdir(DATA + "/agent") and bool(set(os.listdir(DATA + "/agent")) - {"images"}),  # those we bring
        "has_node_password": os.path.exists("/etc/rancher/node/password"),
        "token_sha256": secret_digest(ETC + "/token"),
        "kept_token_sha256": secret_digest(DATA + "/server/token"),
        "nodes": nodes() if values.get("cluster") and version else None,
        # a .part is what a killed snapshot left
        "snapshots": sorted(name for name in os.listdir(DATA + "/server/db/snapshots") if not name.endswith(".part")) if os.path.isdir(DATA + "/server/db/snapshots") else [],
    }) + "\n")
