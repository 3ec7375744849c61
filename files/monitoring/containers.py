"""
What the containers of this host are doing, for node_exporter's textfile collector: `containers.py DIRECTORY`.

Python 3.9, standard library. It asks the engine's socket, and changes nothing. A container that is started for one task and
ends (restart policy "no") is none that has to run.
"""

import http.client
import json
import os
import socket
import sys
import time

SOCKET = "/var/run/docker.sock"
# no container is asked for longer than this (s): the engine of a host without memory answers late
PATIENCE = 20


class Engine(http.client.HTTPConnection):
    def __init__(self):
        super().__init__("localhost", timeout=PATIENCE)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(SOCKET)


def ask(path):
    """Return the JSON of one GET; None for what is gone meanwhile."""
    engine = Engine()
    try:
        engine.request("GET", path)
        answer = engine.getresponse()
        body = answer.read()
        return json.loads(body) if answer.status == 200 else None
    finally:
        engine.close()


def memory(stats):
    """Return bytes in use and the limit; the cache that the kernel can give back does not count, as in `docker stats`."""
    found = stats.get("memory_stats") or {}
    if "usage" not in found:
        return None
    details = found.get("stats") or {}
    back = details.get("inactive_file", details.get("total_inactive_file", 0))
    return max(0, found["usage"] - back), found.get("limit", 0)


def figures(about, stats):
    """Return (metric, value) of one container, as `inspect` and `stats` tell of it."""
    state = about["State"]
    found = [
        ("running", int(bool(state["Running"]) and not state.get("Restarting"))),
        ("restarts_total", about.get("RestartCount", 0)),
    ]
    health = (state.get("Health") or {}).get("Status", "none")
    if health in ("healthy", "unhealthy"):
        found.append(("healthy", int(health == "healthy")))
    used = memory(stats or {})
    if used:
        found.append(("memory_bytes", used[0]))
        if about["HostConfig"].get("Memory"):
            found.append(("memory_limit_bytes", about["HostConfig"]["Memory"]))
    return found


def escaped(text):
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def text(containers, now):
    """Return the page: (name, image, figures) of each container."""
    samples = {}
    for name, image, values in containers:
        labels = f'container="{escaped(name)}",image="{escaped(image)}"'
        for metric, value in values:
            samples.setdefault(metric, []).append(f"hostwright_container_{metric}{{{labels}}} {value}")
    lines = []
    for metric, rows in samples.items():
        kind = "counter" if metric.endswith("_total") else "gauge"
        lines += [f"# TYPE hostwright_container_{metric} {kind}", *sorted(rows)]
    lines += ["# TYPE hostwright_containers_timestamp_seconds gauge", f"hostwright_containers_timestamp_seconds {int(now)}"]
    return "\n".join(lines) + "\n"


def collected():
    found = []
    for one in ask("/containers/json?all=1") or []:
        about = ask(f"/containers/{one['Id']}/json")
        if about is None or about["HostConfig"]["RestartPolicy"]["Name"] in ("", "no"):
            continue
        stats = ask(f"/containers/{one['Id']}/stats?stream=false&one-shot=true") if about["State"]["Running"] else None
        found.append((about["Name"].lstrip("/"), about["Config"]["Image"], figures(about, stats)))
    return found


def main(directory):
    page = text(collected(), time.time())
    new = os.path.join(directory, ".containers.prom.new")
    with open(new, "w") as file:
        file.write(page)
    os.chmod(new, 0o644)
    os.replace(new, os.path.join(directory, "containers.prom"))


if __name__ == "__main__":
    main(sys.argv[1])
