# ruff: noqa: F821 - names of the programs that come before this one
"""
What a component's replicas are on this host, and what they lack of what is wanted. It changes nothing.

Comes after container/engine.py. facts/replicas.py runs it with look.py; converge.py runs it again under the lock, since
another run may have been there meanwhile.

A *release* is a spec, named by the first 12 letters of its hash. Which one serves stands in ``current.json`` of the
component's directory, written at the moment of the switch; everything else is read from the engine and from nginx.
"""

import hashlib
import http.client
import json
import os
import re
import stat
import subprocess

STORE = "/var/lib/hostwright/replicas"
UPSTREAM_FILES = "/etc/nginx/upstreams"
NGINX_SERVES = "/usr/local/lib/hostwright/nginx-serves"
COLORS = ("blue", "green")
RECORDED = ("release", "spec_hash", "color", "count", "settings")


def read_json(path):
    """Return what a JSON file holds when it is an object, else None."""
    try:
        with open(path) as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def hash_of_spec(spec):
    """Return the hash of a spec, as operations.container.spec_hash does."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def answer_fault(port, path):
    """Return what is wrong with the answer of an instance to its health path; empty when nothing is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": "localhost", "Connection": "close"})
        answer = connection.getresponse()
        answer.read(65536)
    except (OSError, http.client.HTTPException) as error:
        return f"no answer on {path}: {error or type(error).__name__}"
    finally:
        connection.close()
    return "" if answer.status < 400 else f"answers {path} with status {answer.status}"


def servers_of(text, upstream):
    """Return (servers, other directives) of a file that is one upstream of this name and nothing else, or None."""
    bare = re.sub(r"#.*", "", text)
    match = re.fullmatch(r"\s*upstream\s+(\S+)\s*\{([^{}]*)\}\s*", bare)
    if match is None or match.group(1) != upstream:
        return None
    directives = [" ".join(part.split()) for part in match.group(2).split(";")]
    if directives.pop():
        return None
    servers = [one[len("server ") :] for one in directives if one.startswith("server ")]
    return servers, [one for one in directives if not one.startswith("server ")]


def wanted_servers(ports):
    return [f"127.0.0.1:{port}" for port in ports]


class Component:
    """The replicas of one component on this host: what they are, read when it is asked for."""

    def __init__(self, name):
        self.name = name
        self.directory = os.path.join(STORE, name)

    # --- the store ------------------------------------------------------------------------------------------

    def current(self):
        """What serves: release, spec_hash, color, count, and the settings it was switched to with; {} when nothing does."""
        found = read_json(os.path.join(self.directory, "current.json")) or {}
        return found if set(RECORDED) <= set(found) else {}

    def path_of(self, release):
        return os.path.join(self.directory, "specs", release + ".json")

    def stored(self, release):
        """What the store holds of a release: spec, settings, image_id. None when it is gone or not as it was stored."""
        found = read_json(self.path_of(release))
        if found is None or not {"spec", "settings", "image_id"} <= set(found):
            return None
        return found if hash_of_spec(found["spec"])[:12] == release else None

    def history(self):
        try:
            with open(os.path.join(self.directory, "history")) as file:
                return file.read().split()
        except OSError:
            return []

    def previous(self):
        """The release that served before the present one and is still stored; empty when there is none."""
        present = self.current().get("release")
        for release in reversed(self.history()):
            if release != present and self.stored(release):
                return release
        return ""

    def releases(self):
        """The releases in the store, the oldest first as far as it is known."""
        try:
            names = {name[: -len(".json")] for name in os.listdir(os.path.join(self.directory, "specs"))}
        except OSError:
            return []
        order = {release: place for place, release in enumerate(self.history())}
        return sorted((name for name in names if self.stored(name)), key=lambda name: (order.get(name, -1), name))

    def jobs_done(self):
        """The jobs that have come to their end, as ``job spec_hash``."""
        found = []
        folder = os.path.join(self.directory, "jobs")
        for job in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            found += [f"{job} {mark}" for mark in sorted(os.listdir(os.path.join(folder, job)))]
        return found

    def recorded(self, count=None):
        """What is wanted according to the record alone, with another number of instances if one is given."""
        current = self.current()
        wanted = {"component": self.name, "spec_hash": current["spec_hash"], "count": current["count"]}
        if count is not None:
            wanted["count"] = count
        return dict(current["settings"], **wanted)

    # --- the engine -----------------------------------------------------------------------------------------

    def containers(self):
        """Every container of the component, jobs apart, by what they say of themselves."""
        found = [described(one) for one in containers("hostwright.component=" + self.name)]
        found = [one for one in found if not one["job"]]
        return sorted(found, key=lambda one: (one["color"], one["release"], one["instance"], one["id"]))

    # --- nginx ----------------------------------------------------------------------------------------------

    def upstream_fault(self, upstream, ports):
        """Return what is wrong with nginx's upstream file, or with what nginx runs on; empty when nothing is."""
        path = os.path.join(UPSTREAM_FILES, upstream + ".conf")
        try:
            with open(path) as file:
                found = servers_of(file.read(), upstream)
        except OSError as error:
            return f"{path}: {error.strerror}"
        if found is None:
            return f"{path}: is not one upstream of this name"
        if found[0] != wanted_servers(ports):
            return "{}: leads to {}".format(path, ", ".join(found[0]) or "nothing")
        return nginx_fault(path)

    # --- the comparison -------------------------------------------------------------------------------------

    def fault(self, container, wanted, color):
        """Return why a container is not what an instance of the wanted release should be; empty when it is."""
        if container["spec"] != wanted["spec_hash"]:
            return "is of release {}".format(container["release"] or "unknown")
        if wanted["ports"]:
            port = port_of(wanted, color, container["instance"])
            if (container["port"], container["container_port"]) != (port, wanted["container_port"]):
                return f"is not on port {port}"
        if container["state"] != "running":
            return "is {}".format(container["state"])
        if wanted["has_health"] and container["health"] != "healthy":
            return "is {}".format(container["health"] or "without a health check")
        if wanted["health_path"] and wanted["ports"]:
            return answer_fault(container["port"], wanted["health_path"])
        return ""

    def needs(self, wanted, containers):
        """
        Return what is to be done to come to what is wanted; all empty when nothing is.

        + switch: why another release, or the same one on the other colour, has to take over
        + replace: instance number to why it has to be made (anew)
        + retire: names of containers that are too many
        + aliases: which instances do not have their names on a network
        + upstream: what is wrong with nginx's side
        + record: what is wrong with the store
        """
        needs = {"switch": "", "replace": {}, "retire": [], "aliases": [], "upstream": "", "record": ""}
        current = self.current()
        if not current:
            needs["switch"] = "nothing serves yet"
        elif current["spec_hash"] != wanted["spec_hash"]:
            needs["switch"] = "release {} serves".format(current["release"])
        elif [current["settings"].get(key) for key in ("kind", "ports", "container_port")] != [
            wanted[key] for key in ("kind", "ports", "container_port")
        ]:
            needs["switch"] = "its ports are others"
        if needs["switch"]:
            return needs

        color = current["color"]
        mine = [one for one in containers if one["color"] == color and one["release"] == current["release"]]
        for number in range(1, wanted["count"] + 1):
            of_number = [one for one in mine if one["instance"] == number]
            if not of_number:
                needs["replace"][str(number)] = "is missing"
                continue
            fault = self.fault(of_number[0], wanted, color)
            if fault:
                needs["replace"][str(number)] = fault
                continue
            needs["aliases"] += [
                "{} is not {} on network {}".format(of_number[0]["name"], " and ".join(aliases), network)
                for network, aliases in wanted.get("aliases", {}).items()
                if of_number[0]["aliases"].get(network) != sorted(aliases)
            ]
        needs["retire"] = [
            one["name"] for one in containers if one not in mine or one["instance"] not in range(1, wanted["count"] + 1)
        ]
        if wanted["upstream"]:
            ports = [port_of(wanted, color, number) for number in range(1, wanted["count"] + 1)]
            needs["upstream"] = self.upstream_fault(wanted["upstream"], ports)
        needs["record"] = self.record_fault(current, wanted)
        return needs

    def record_fault(self, current, wanted):
        if current["count"] != wanted["count"]:
            return "{} instances are recorded".format(current["count"])
        if current["settings"] != settings_of(wanted):
            return "other settings are recorded"
        if self.stored(current["release"]) is None:
            return "the stored spec is not as it was"
        if self.history()[-1:] != [current["release"]]:
            return "the history does not end with it"
        for path in (self.path_of(current["release"]), os.path.join(self.directory, "current.json")):
            found = os.stat(path)
            if (stat.S_IMODE(found.st_mode), found.st_uid) != (0o600, 0):
                return f"{path} is not root's alone"
        return ""


def aliases_of(container):
    """Return {network: aliases} of all networks that a container is on, without the names that the engine gives it itself."""
    own = {container["Id"][:12], container["Config"].get("Hostname") or ""}
    networks = container["NetworkSettings"].get("Networks") or {}
    return {name: sorted(set((found or {}).get("Aliases") or []) - own) for name, found in networks.items()}


def described(container):
    """The few things that matter of what the engine tells of a container."""
    container_port, port = 0, 0
    for name, bindings in (container["HostConfig"].get("PortBindings") or {}).items():
        for binding in bindings or []:
            if binding.get("HostIp") == "127.0.0.1":
                container_port, port = int(name.partition("/")[0]), int(binding.get("HostPort") or 0)
    number = label_of(container, "hostwright.instance")
    return {
        "id": container["Id"],
        "name": name_of(container),
        "job": label_of(container, "hostwright.job"),
        "spec": label_of(container, "hostwright.spec"),
        "release": label_of(container, "hostwright.release"),
        "color": label_of(container, "hostwright.color"),
        "instance": int(number) if number.isdigit() else 0,
        "image": container["Image"],
        "state": "restarting" if container["State"].get("Restarting") else container["State"]["Status"],
        "started": container["State"].get("StartedAt", ""),
        "health": health_of(container),
        "port": port,
        "container_port": container_port,
        "aliases": aliases_of(container),
    }


def port_of(wanted, color, number):
    return wanted["ports"][COLORS.index(color)] + number - 1


def settings_of(wanted):
    """What is recorded beside a spec: all that a later rollback or scale needs, besides the number of instances."""
    return {key: value for key, value in wanted.items() if key not in ("component", "spec_hash", "count")}


def nginx_fault(path):
    """Return why nginx does not run on a file as it stands; empty when it does."""
    if not os.path.exists(NGINX_SERVES):
        return f"{NGINX_SERVES} is missing: nginx.server makes it"
    said = subprocess.run(
        [NGINX_SERVES, path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return "" if said.returncode == 0 else said.stdout.strip() or f"nginx does not run on {path}"


def reasons(needs):
    """What is to be done, in words."""
    said = [needs["switch"]] if needs["switch"] else []
    said += [f"instance {number} {why}" for number, why in sorted(needs["replace"].items())]
    said += [f"{name} is one too many" for name in needs["retire"]]
    said += needs["aliases"]
    return said + [needs[key] for key in ("upstream", "record") if needs[key]]
