"""
Lead nginx past the engine's port proxies, and containers past its name server, while the engine restarts, and back.

A restart for daemon.json goes between before_restart.py and after_restart.py; install.py, which exchanges the engine's
packages, calls the two functions itself.

A port published on loopback is a process of the engine, ``docker-proxy``, that passes on each connection, and it ends
with the engine, whatever live-restore does for the containers: requests on their way through it are cut off, and new ones
refused until the engine is back. The container itself is there all the time. So before the restart nginx's upstreams
(``/etc/nginx/upstreams``) that name such a port get the container's own address instead, and afterwards, when the port
answers again, what they had.

The engine is also the name server of its networks, and away as such for that time: a container that then opens a new
connection to another one by its name fails. So the names are in each container's /etc/hosts meanwhile.

A run that is killed in between leaves addresses that serve until a container starts anew; the next rollout, which looks
where its upstream leads, puts the port back. What anybody else wrote into an upstream meanwhile stays. The names are taken
out again by a timer, if by nobody else.
"""

import glob
import json
import os
import re
import socket
import subprocess
import sys
import time

_UPSTREAMS = "/etc/nginx/upstreams/*.conf"
_SERVES = "/usr/local/lib/hostwright/nginx-serves"
_KEPT = "/var/lib/hostwright/engine-detour.json"
_SERVER = re.compile(r"(?<=\bserver )127\.0\.0\.1:(\d+)")
# How long requests through the proxies may take to end, and ports to answer again (s).
_SECONDS = 60


def _said(*command: str) -> str:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout


# Written in place: the file itself is mounted into the container. Also run by a timer, from its text.
_FORGET = r"""
import glob, re
for path in glob.glob("/var/lib/docker/containers/*/hosts"):
    with open(path, "r+") as file:
        text = file.read()
        kept = re.sub(r"# hostwright >>>\n.*?# <<< hostwright\n", "", text, flags=re.DOTALL)
        if kept != text:
            file.seek(0)
            file.write(kept)
            file.truncate()
"""
_FORGETS = "hostwright-engine-names"
_FORGET_SECONDS = 300


def _running() -> "list[dict]":
    ids = _said("docker", "ps", "--quiet", "--no-trunc").split()
    return json.loads(_said("docker", "inspect", *ids) or "[]") if ids else []


def names_for(container: dict, others: "list[dict]") -> str:
    """Return lines for a container's /etc/hosts: what the engine would say of the others on its networks."""
    lines = []
    for network in container["NetworkSettings"]["Networks"]:
        for other in others:
            there = other["NetworkSettings"]["Networks"].get(network)
            # the default bridge has no names
            if network == "bridge" or other["Id"] == container["Id"] or not there or not there.get("IPAddress"):
                continue
            names = dict.fromkeys([other["Name"].lstrip("/"), *(there.get("Aliases") or [])])
            lines.append("{} {}\n".format(there["IPAddress"], " ".join(names)))
    return "# hostwright >>>\n{}# <<< hostwright\n".format("".join(lines)) if lines else ""


def _know_names() -> None:
    there = _running()
    texts = {one["HostsPath"]: names_for(one, there) for one in there if one.get("HostsPath")}
    if not any(texts.values()):
        return
    forget_names()
    subprocess.run(
        ["systemd-run", "--quiet", "--collect", f"--unit={_FORGETS}", f"--on-active={_FORGET_SECONDS}", "python3", "-c", _FORGET],
        stdin=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    for path, text in texts.items():
        if text and os.path.exists(path):
            with open(path, "a") as file:
                file.write(text)


def forget_names() -> None:
    subprocess.run(["python3", "-c", _FORGET], stdin=subprocess.DEVNULL, check=True)
    subprocess.run(["systemctl", "stop", f"{_FORGETS}.timer"], stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _addresses() -> "dict[str, str]":
    """Return the container's own address of every port that is published on loopback."""
    found = {}
    for one in _running():
        networks = one["NetworkSettings"]["Networks"].values()
        address = next((each["IPAddress"] for each in networks if each.get("IPAddress")), "")
        for inner, bindings in (one["HostConfig"].get("PortBindings") or {}).items():
            for binding in bindings or []:
                if address and inner.endswith("/tcp") and binding.get("HostIp") == "127.0.0.1":
                    found[binding["HostPort"]] = "{}:{}".format(address, inner.partition("/")[0])
    return found


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 2):
            return True
    except OSError:
        return False


def _serve(texts: "dict[str, str]") -> None:
    """Have nginx run on these files, or on those that were there."""
    before = {}
    for path, text in texts.items():
        with open(path) as file:
            before[path] = file.read()
        beside = path + ".hostwright~"
        with open(beside, "w") as file:
            file.write(text)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    tested = subprocess.run(["nginx", "-t", "-q"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if tested.returncode:
        for path, text in before.items():
            with open(path, "w") as file:
                file.write(text)
        sys.exit("engine: nginx refuses its configuration; nothing was changed: " + tested.stderr.strip())
    subprocess.run(["systemctl", "reload", "nginx.service"], stdin=subprocess.DEVNULL, check=False)
    _wait_until(lambda: all(subprocess.run([_SERVES, path], capture_output=True, check=False).returncode == 0 for path in texts))


def _wait_until(condition) -> bool:
    end = time.monotonic() + _SECONDS
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
    return True


def _is_unused(ports) -> bool:
    listed = _said("ss", "-Htn", "state", "established", " or ".join(f"dst 127.0.0.1:{port}" for port in sorted(ports)))
    return not listed.strip()


def lead_past_the_proxies() -> None:
    """Let requests go to the containers themselves, and wait for those that still go through the engine."""
    _know_names()
    paths = glob.glob(_UPSTREAMS)
    if not paths or not os.path.exists(_SERVES) or _said("systemctl", "is-active", "nginx.service").strip() != "active":
        return
    addresses = _addresses()
    kept, texts, ports = {}, {}, set()
    for path in paths:
        with open(path) as file:
            text = file.read()
        named = {port for port in _SERVER.findall(text) if port in addresses and _answers(addresses[port])}
        if named:
            texts[path] = _SERVER.sub(lambda found, named=named: addresses[found[1]] if found[1] in named else found[0], text)
            kept[path] = {"was": text, "detour": texts[path]}
            ports |= named
    if not texts:
        return
    os.makedirs(os.path.dirname(_KEPT), mode=0o700, exist_ok=True)
    with open(_KEPT, "w") as file:
        json.dump(kept, file)
    _serve(texts)
    _wait_until(lambda: _is_unused(ports))


def _text_of(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def lead_back() -> None:
    """Undo it, once the ports answer again."""
    forget_names()
    try:
        with open(_KEPT) as file:
            kept = json.load(file)
    except (OSError, ValueError):
        return
    back = {path: one["was"] for path, one in kept.items() if _text_of(path) == one["detour"]}
    ports = {port for text in back.values() for port in _SERVER.findall(text)}
    if not _wait_until(lambda: all(_answers(f"127.0.0.1:{port}") for port in ports)):
        sys.exit("engine: ports that it publishes do not answer after its restart: {}".format(", ".join(sorted(ports))))
    if back:
        _serve(back)
    os.unlink(_KEPT)
