# ruff: noqa: F821 - names of container/engine.py, which comes before this file
"""
mcbench-health: how well the components of this host are.

    mcbench-health            one line for each component
    mcbench-health --json     the same for programs
    mcbench-health --http     answer one HTTP request on stdin: the page, or the JSON where the path ends in .json

Exit status 0 (HTTP 200): all are well; 1 (503): one is not; 2 (503): the engine cannot be asked. A component is well when
as many containers of the release that serves run as are recorded, and none of them fails its health check.
Changes nothing; root's, as it asks the engine.
"""

import argparse

CONFIG = "/etc/hostwright/mcbench-health.json"
STORE = "/var/lib/hostwright/replicas"
STATUSES = {0: "200 OK", 1: "503 Service Unavailable", 2: "503 Service Unavailable"}


def container_health(container):
    state = container["State"]
    return {
        "name": name_of(container),
        "image": container["Config"]["Image"],
        "release": label_of(container, "hostwright.release"),
        "state": "restarting" if state.get("Restarting") else state["Status"],
        "health": health_of(container),
        "restarts": container.get("RestartCount", 0),
        "started": state.get("StartedAt", "")[:19] + "Z",
    }


def serving(component):
    """Return release and number of what serves, as the rollout has recorded it."""
    try:
        with open(f"{STORE}/mcbench-{component}/current.json") as file:
            current = json.load(file)
        return current["release"], current["count"]
    except (OSError, ValueError, KeyError):
        return "", 0


def component_health(component, is_replicated, known):
    """Return one component's health; known: all containers of ours on the host."""
    if is_replicated:
        release, wanted = serving(component)
        of = "hostwright.component"
    else:
        release, wanted = "", 1
        of = "hostwright.container"
    mine = [one for one in known if label_of(one, of) == "mcbench-" + component and not label_of(one, "hostwright.job")]
    each = sorted((container_health(one) for one in mine), key=lambda one: one["name"])
    good = [one for one in each if one["release"] == release or not is_replicated]
    good = [one for one in good if one["state"] == "running" and one["health"] in ("", "healthy")]
    return {
        "component": component,
        "well": bool(wanted) and len(good) >= wanted,
        "release": release,
        "wanted": wanted,
        "well_containers": len(good),
        "containers": each,
    }


def host_health():
    with open(CONFIG) as file:
        config = json.load(file)
    found = {"host": config["host"], "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "fault": ""}
    try:
        known = containers("hostwright.container")
        found["components"] = [component_health(name, kind, known) for name, kind in config["components"].items()]
    except EngineError as error:
        found.update(fault=str(error), components=[])
    found["well"] = not found["fault"] and all(one["well"] for one in found["components"])
    return found


def status_of(found):
    return 2 if found["fault"] else 0 if found["well"] else 1


def page(found):
    """Return the lines for people."""
    lines = ["{} {}: {}".format(found["at"], found["host"], "well" if found["well"] else "NOT WELL")]
    if found["fault"]:
        lines.append(found["fault"])
    for one in found["components"]:
        head = "{:14} {:8} {} of {}".format(
            one["component"], "well" if one["well"] else "NOT WELL", one["well_containers"], one["wanted"]
        )
        if one["release"]:
            head += "  release {}".format(one["release"])
        lines.append(head)
        lines += [
            "    {name}  {image}  {words}  {restarts} restarts, since {started}".format(
                words=" and ".join(word for word in (each["state"], each["health"]) if word), **each
            )
            for each in one["containers"]
        ]
        if not one["wanted"]:
            lines.append("    nothing is rolled out yet")
    return "\n".join(lines) + "\n"


def answer():
    """Answer one request; the whole of its head is read, or the other side would see a reset."""
    path = "/"
    for number, line in enumerate(iter(sys.stdin.buffer.readline, b"")):
        if number == 0:
            path = [*line.split(), b"", b""][1].partition(b"?")[0].decode(errors="replace")
        if not line.strip() or number > 200:
            break
    found = host_health()
    as_json = path.endswith(".json")
    body = (json.dumps(found) + "\n" if as_json else page(found)).encode()
    kind = "application/json" if as_json else "text/plain; charset=utf-8"
    head = f"HTTP/1.0 {STATUSES[status_of(found)]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nCache-Control: no-store\r\n\r\n"
    sys.stdout.buffer.write(head.encode() + body)
    sys.stdout.buffer.flush()


def command():
    parser = argparse.ArgumentParser(prog="mcbench-health", description="How well the components of this host are.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--http", action="store_true", help="answer one HTTP request on stdin")
    options = parser.parse_args()
    if options.http:
        return answer()
    found = host_health()
    sys.stdout.write(json.dumps(found, indent=1) + "\n" if options.json else page(found))
    sys.exit(status_of(found))


if __name__ == "__main__":
    command()
