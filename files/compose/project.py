# ruff: noqa: F821 - sent to a host behind engine.py, as one program
"""
What there is of a Compose project on a host, and what it lacks. Comes after engine.py; fact and change both go by it.

    /etc/hostwright/compose/PROJECT/     root's alone
        compose.yaml    the file that was last well; state.json: what its containers were made from
        files/          what is mounted from beside it, each below a directory named by its content
        next.yaml       a file on its way; left by a run that was killed
        draining        the services that were told to take no more work, one a line
        previous.yaml, previous.json    what was well before, for who wants to look
"""

import hashlib

STORE = "/etc/hostwright/compose"
OF_PROJECT = "com.docker.compose.project"
SERVICE = "com.docker.compose.service"
ONE_OFF = "com.docker.compose.oneoff"
HASH = "com.docker.compose.config-hash"


def place(project, *names):
    return os.path.join(STORE, project, *names)


def read_text(path):
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def read_state(project):
    """Return what was written down when the project was last well, or nothing."""
    try:
        return json.loads(read_text(place(project, "state.json")) or "{}")
    except ValueError:
        return {}


def sha256_of(path):
    """Return the SHA-256 of a file that only root may read, or nothing."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o7777
            return hashlib.sha256(file.read()).hexdigest() if mode == 0o600 else ""
    except OSError:
        return ""


def mounted_files(project):
    """Return {path below the project's directory: SHA-256} of what services mount from there."""
    top, found = place(project), {}
    for folder, _, names in os.walk(place(project, "files")):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, top)] = hashlib.sha256(file.read()).hexdigest()
    return found


def compose_version():
    try:
        return docker("compose", "version", "--short", seconds=60).strip().lstrip("v")
    except EngineError:
        return ""


def members(project):
    """Return ({service: [containers]}, [one-off containers]) of a project, stopped ones too."""
    services, strays = {}, []
    for one in containers(OF_PROJECT + "=" + project):
        if label_of(one, ONE_OFF).lower() == "true":
            strays.append(one)
        else:
            services.setdefault(label_of(one, SERVICE), []).append(one)
    return services, strays


def named(kind, project):
    """Return the names of the networks or volumes that were made for a project."""
    filters = urllib.parse.quote(json.dumps({"label": [OF_PROJECT + "=" + project]}))
    answer = ask(f"/{kind}?filters=" + filters)
    return sorted(one["Name"] for one in (answer["Volumes"] or [] if kind == "volumes" else answer))


def moved(container, image, pull):
    """Return whether an image's name no longer means what a container was made from."""
    here = inspect("image", [image]).get(image)
    if here and here["Id"] != container["Image"]:
        return True
    if pull != "moved" or is_pinned(image):
        return False
    digest, _, refused = registry_look(image)
    if refused:
        fail(f"cannot ask the registry whether {image} has moved: {refused}")
    own = inspect("image", [container["Image"]]).get(container["Image"])
    return not own or digest not in digests_of(own)


def has_ended_well(container):
    """A job: ran once, and is not to be started again."""
    policy = (container["HostConfig"].get("RestartPolicy") or {}).get("Name") or "no"
    state = container["State"]
    return state["Status"] == "exited" and state["ExitCode"] == 0 and policy in ("no", "on-failure")


def ailment(container):
    """Return what can be put right about a container as it is, or nothing."""
    state = container["State"]
    if state.get("Paused"):
        return "is paused"
    if state.get("Restarting") or (container["RestartCount"] > 0 and 0 <= age(container) < 15):
        return "keeps ending"
    if not is_running(container):
        return "" if has_ended_well(container) else "is stopped"
    return "is unhealthy" if health_of(container) == "unhealthy" else ""


def compare(project, state, pull):
    """
    Return (why ``up`` is needed, what can be put right in place); two empty lists mean that all is as it was left.

    What is asked is what was written down when the project was last well, and not what Compose would say today: a newer
    Compose has other hashes, and is no reason to make anything anew.
    """
    services, strays = members(project)
    anew, repair = [], []
    wanted = state.get("services", {})
    for service, was in sorted(wanted.items()):
        there = services.get(service, [])
        if any(label_of(one, HASH) != was["hash"] for one in there):
            anew.append(f"{service} was made from something else")
        elif any(moved(one, was["image"], pull) for one in there):
            anew.append(f"the image of {service} differs")
        elif len(there) > was["count"]:
            anew.append(f"{service} has {len(there)} containers instead of {was['count']}")
        elif len(there) < was["count"]:
            repair.append(f"{service} is missing")
        else:
            repair += [f"{name_of(one)} {ailment(one)}" for one in there if ailment(one)]
    repair += [f"{name_of(one)} is of no service" for name, those in sorted(services.items()) if name not in wanted for one in those]
    repair += [f"{name_of(one)} is left of a run" for one in strays]
    if os.path.exists(place(project, "next.yaml")):
        repair.append("a change was not finished")
    if os.path.exists(place(project, "draining")):
        repair.append("it takes no more work")
    return anew, repair
