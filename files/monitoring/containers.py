"""
What the containers of this host are doing, for node_exporter's textfile collector:

    containers.py DIRECTORY [redis=CONTAINER | postgres=CONTAINER …]

Python 3.9, standard library. It asks the engine's socket, and changes nothing. A container that is started for one task and
ends (restart policy "no") is none that has to run.

Of databases in containers it tells what the exporters of Debian tell of those without, in the same words. They are asked by
their own programs inside the container, with the password that is in its environment: none of them has to listen to
anything outside, and no password leaves it.
"""

import http.client
import json
import os
import socket
import sys
import time
import urllib.parse

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


def talk(path, post=None):
    """Return the body of one request that the engine has answered well, else None."""
    engine = Engine()
    try:
        if post is None:
            engine.request("GET", path)
        else:
            engine.request("POST", path, json.dumps(post), {"Content-Type": "application/json"})
        answer = engine.getresponse()
        body = answer.read()
        return body if answer.status in (200, 201) else None
    finally:
        engine.close()


def ask(path):
    """Return the JSON of one GET; None for what is gone meanwhile."""
    body = talk(path)
    return None if body is None else json.loads(body)


def said(stream):
    """Return what a command wrote to stdout: the engine puts 8 bytes before each piece, which one it is and how long."""
    found, at = b"", 0
    while at + 8 <= len(stream):
        size = int.from_bytes(stream[at + 4 : at + 8], "big")
        if stream[at] == 1:
            found += stream[at + 8 : at + 8 + size]
        at += 8 + size
    return found.decode("utf-8", "replace")


def run(container, command):
    """Return what a command in a container printed; None when it failed, or nobody could run it."""
    name = urllib.parse.quote(container, safe="")
    made = talk(f"/containers/{name}/exec", {"AttachStdout": True, "AttachStderr": True, "Cmd": command})
    if made is None:
        return None
    ident = json.loads(made)["Id"]
    stream = talk(f"/exec/{ident}/start", {"Detach": False, "Tty": False})
    done = ask(f"/exec/{ident}/json")
    return said(stream) if stream is not None and done and done["ExitCode"] == 0 else None


# --- databases in containers ------------------------------------------------------------------------------------------

# the official image knows its password as the first, ours of mcbench as the second
INFO = ["sh", "-c", 'REDISCLI_AUTH="${REDISCLI_AUTH:-${REDIS_PASSWORD:-}}" exec redis-cli --no-auth-warning info']
FROM_INFO = {
    "used_memory": "redis_memory_used_bytes",
    "maxmemory": "redis_memory_max_bytes",
    "connected_clients": "redis_connected_clients",
    "total_commands_processed": "redis_commands_processed_total",
    "evicted_keys": "redis_evicted_keys_total",
    "rejected_connections": "redis_rejected_connections_total",
}
SQL = """
SELECT 'pg_settings_max_connections', '', '', setting::bigint FROM pg_settings WHERE name = 'max_connections'
UNION ALL SELECT 'pg_database_size_bytes', datname, '', pg_database_size(oid) FROM pg_database WHERE NOT datistemplate
UNION ALL SELECT 'pg_stat_activity_count', datname, coalesce(state, ''), count(*) FROM pg_stat_activity WHERE datname IS NOT NULL GROUP BY 2, 3
"""
# by the socket in the container, where the image trusts whoever is there
ROWS = ["sh", "-c", 'exec psql -XAtq -F "|" -U "${POSTGRES_USER:-postgres}" -d "${POSTGRES_DB:-${POSTGRES_USER:-postgres}}" -c "$1"', "sh", SQL]


def redis_figures(info):
    """Return (metric, labels, value) of what `INFO` says; None is a server that nobody reaches."""
    known = dict(line.split(":", 1) for line in (info or "").splitlines() if ":" in line)
    if "used_memory" not in known:
        return [("redis_up", {}, "0")]
    return [("redis_up", {}, "1"), *((metric, {}, known[key].strip()) for key, metric in FROM_INFO.items() if key in known)]


def postgres_figures(rows):
    """Return (metric, labels, value) of what the statement says; None is a server that nobody reaches."""
    found = [line.split("|") for line in (rows or "").splitlines() if line.count("|") == 3]
    if not found:
        return [("pg_up", {}, "0")]
    labelled = [(metric, {key: word for key, word in (("datname", database), ("state", state)) if word}, value) for metric, database, state, value in found]
    return [("pg_up", {}, "1"), *labelled]


ASKED = {"redis": (INFO, redis_figures), "postgres": (ROWS, postgres_figures)}


def databases(wanted):
    """Return (metric, labels, value) of databases, each `KIND=CONTAINER`."""
    found = []
    for word in wanted:
        kind, _, container = word.partition("=")
        command, figures_of = ASKED[kind]
        found += [(metric, {**labels, "part": container}, value) for metric, labels, value in figures_of(run(container, command))]
    return found


# --- containers -------------------------------------------------------------------------------------------------------


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


def text(containers, now, further=()):
    """Return the page: (name, image, figures) of each container, and (metric, labels, value) besides."""
    samples = {}
    for name, image, values in containers:
        labels = {"container": name, "image": image}
        further = [*further, *((f"hostwright_container_{metric}", labels, value) for metric, value in values)]
    for metric, labels, value in further:
        words = ",".join(f'{key}="{escaped(word)}"' for key, word in sorted(labels.items()))
        samples.setdefault(metric, []).append(f"{metric}{{{words}}} {value}")
    lines = []
    for metric, rows in samples.items():
        kind = "counter" if metric.endswith("_total") else "gauge"
        lines += [f"# TYPE {metric} {kind}", *sorted(rows)]
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


def main(directory, *wanted):
    page = text(collected(), time.time(), databases(wanted))
    new = os.path.join(directory, ".containers.prom.new")
    with open(new, "w") as file:
        file.write(page)
    os.chmod(new, 0o644)
    os.replace(new, os.path.join(directory, "containers.prom"))


if __name__ == "__main__":
    main(*sys.argv[1:])
