# ruff: noqa: F821 - sent to a host behind engine.py and project.py, as one program
"""
Bring a Compose project up as its file says, stop it, or take it away. Comes after engine.py and project.py.

A change goes so that whatever can fail does so before anything stops:

    next.yaml is written, Compose reads it; images, ports and paths are looked at; trials start and are well
    services that will be replaced are drained; Compose brings next.yaml up; all of it becomes well
    next.yaml becomes compose.yaml; or it is not well: compose.yaml, its images and its containers come back

Killed at any point, compose.yaml is what was last well, and the next run goes the same way again.

    values: project, do (up, down, stop, reset), drains {service: quiesce, busy, resume, seconds}, secrets (never shown)
            with up: text, sha256, files, profiles, pull, trial, start_seconds
"""

import shutil

TRIAL = "{}-{}-trial"


def tell(text):
    """Say what the operator has to know although the run goes on, and may end well."""
    with contextlib.suppress(OSError):  # whoever started us may be gone
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


class Project:
    """One project while it is changed."""

    def __init__(self, values):
        self.name = values["project"]
        self.values = values
        self.state = read_state(self.name)
        self.end = 0

    def path(self, *names):
        return place(self.name, *names)

    # --- what Compose does ----------------------------------------------------------------------------------------

    def compose(self, file, profiles, *words, seconds=3600):
        """Run one command of Compose with nothing of this program's surroundings in it."""
        argv = ["compose", "--progress", "quiet", "--project-name", self.name, "--project-directory", self.path()]
        argv += ["--env-file", "/dev/null", "--file", file]
        for profile in profiles:
            argv += ["--profile", profile]
        try:
            return docker(*argv, *words, seconds=seconds)
        except EngineError as error:
            raise EngineError(self.cover(str(error))) from None

    def cover(self, text):
        for secret in sorted(self.values["secrets"], key=len, reverse=True):
            if len(secret) >= 4:
                text = text.replace(secret, "*MASKED*")
        return text

    def up(self, file, profiles, *words):
        self.compose(file, profiles, "up", "--detach", "--no-build", "--pull", "never", "--quiet-pull", *words)

    # --- containers -----------------------------------------------------------------------------------------------

    def containers_of(self, service):
        return members(self.name)[0].get(service, [])

    def await_well(self, services, seconds):
        """Wait until all containers of the services are well; a job that ended well is."""
        end = time.monotonic() + seconds
        for service in services:
            for one in self.containers_of(service):
                if has_ended_well(one):
                    continue
                try:
                    wait_healthy(name_of(one), max(1, round(end - time.monotonic())), restarts=one["RestartCount"])
                except EngineError as error:
                    found = inspect("container", [name_of(one)]).get(name_of(one))
                    if found and has_ended_well(found):
                        continue
                    fail(f"{self.cover(str(error))}\nlast lines of {name_of(one)}:\n{self.cover(last_lines(name_of(one)))}")

    def last_words(self, services):
        """Return what those printed last that are not well."""
        ill = [one for service in services for one in self.containers_of(service) if one["State"]["Status"] != "created"]
        ill = [one for one in ill if ailment(one) or health_of(one) == "starting"]
        return "".join(f"\nlast lines of {name_of(one)}:\n{self.cover(last_lines(name_of(one), 15))}" for one in ill[:3])

    def needs_of(self, container):
        """Return the services that a container's service depends on."""
        words = label_of(container, "com.docker.compose.depends_on").split(",")
        was = self.state.get("services", {}).get(label_of(container, SERVICE), {})
        return {word.partition(":")[0] for word in words if word} | set(was.get("needs", ()))

    def end_containers(self, those):
        """Stop and remove containers, whoever needs others before those."""
        needs = {name_of(one): self.needs_of(one) for one in those}
        left = list(those)
        while left:
            needed = set().union(*(needs[name_of(one)] for one in left))
            free = [one for one in left if label_of(one, SERVICE) not in needed] or left
            for one in free:
                if is_running(one):
                    stop(name_of(one))
                remove(name_of(one))
            left = [one for one in left if one not in free]

    # --- drains ---------------------------------------------------------------------------------------------------

    def exec(self, container, words, seconds=60):
        return docker("exec", name_of(container), *words, seconds=seconds).strip()

    def drain(self, services):
        """Have services take no more work and wait until they have none; what never answers has none to lose."""
        empties = []
        for service in services:
            drain = self.values["drains"].get(service)
            for one in self.containers_of(service) if drain else ():
                if not is_running(one) or one["State"].get("Paused") or health_of(one) == "unhealthy":
                    tell(f"{name_of(one)} is not well: it is not drained")
                else:
                    empties.append((drain, one))
        if not empties:
            return
        marked = set(read_text(self.path("draining")).split()) | {label_of(one, SERVICE) for _, one in empties}
        write_private(self.path("draining"), "".join(f"{service}\n" for service in sorted(marked)))
        for drain, one in empties:
            try:
                self.exec(one, drain["quiesce"])
            except EngineError as error:
                fail(f"{name_of(one)} cannot be drained: {self.cover(str(error))}; set its drain's seconds to 0 to go on without")
        for drain, one in empties:
            self._await_empty(drain, one)

    def _await_empty(self, drain, one):
        end = time.monotonic() + drain["seconds"]
        left = "?"
        while True:
            try:
                left = self.exec(one, drain["busy"])
            except EngineError as error:
                found = inspect("container", [name_of(one)]).get(name_of(one))
                if not found or not is_running(found):
                    tell(f"{name_of(one)} ended while it was drained")
                    return
                tell(f"{name_of(one)}: {self.cover(str(error))}")
            if left == "0":
                return
            if time.monotonic() >= end:
                tell(f"{name_of(one)} still has {left} after {drain['seconds']} s: that is cut off")
                return
            time.sleep(1)

    def resume(self):
        """Those that still run and were told to take no more work take it again."""
        for service in read_text(self.path("draining")).split():
            drain = self.values["drains"].get(service)
            for one in self.containers_of(service) if drain else ():
                if is_running(one):
                    try:
                        self.exec(one, drain["resume"])
                    except EngineError as error:
                        # It takes no work for ever, else: better anew than shut.
                        tell(f"{name_of(one)} does not resume ({self.cover(str(error))}): it is restarted")
                        stop(name_of(one))
                        start(name_of(one))
        forget(self.path("draining"))


def forget(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


# --- up -----------------------------------------------------------------------------------------------------------------


def write_files(project):
    """Put what services mount where they look for it; one that was changed by hand is written over in place."""
    for path, text in project.values["files"].items():
        target = project.path(path)
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        if os.path.isfile(target) and read_text(target) == text:
            continue
        # The same file, so that a mount of it sees it. Containers read it as whoever they are; above it, all is root's alone.
        with open(target, "w") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def ground(project):
    os.makedirs(project.path(), mode=0o700, exist_ok=True)
    for path in (STORE, project.path()):
        os.chmod(path, 0o700)


def read_model(project, file, profiles):
    """Have Compose read a file and return it whole, as JSON."""
    try:
        return json.loads(project.compose(file, profiles, "config", "--format", "json", seconds=120))
    except EngineError as error:
        fail(f"Compose refuses the file: {error}; nothing was changed")


def hashes(project, file, profiles):
    lines = project.compose(file, profiles, "config", "--hash", "*", seconds=120).splitlines()
    return dict(line.split()[:2] for line in lines if len(line.split()) >= 2)


def published(service):
    """Return what a service publishes, in the words of ``ports_taken``."""
    return [
        {"port": int(one["published"]), "address": one.get("host_ip", ""), "proto": one.get("protocol", "tcp")}
        for one in service.get("ports") or []
        if str(one.get("published", "")).isdigit()
    ]


def check(project, model):
    """Look at all that could fail before anything stops; return {service: image id}."""
    faults, images = [], {}
    ours = [one["Id"] for those in members(project.name)[0].values() for one in those]
    for name, service in model["services"].items():
        try:
            images[name] = ensure_image(service["image"], service.get("platform") or "", project.values["pull"])["Id"]
        except EngineError as error:
            faults.append(f"{name}: {error}")
        faults += [f"{name}: {fault}" for fault in ports_taken(published(service), ours)]
        for mount in service.get("volumes") or []:
            # the engine would make a directory of it, whatever it should have been
            if mount.get("type") == "bind" and not os.path.exists(mount["source"]):
                faults.append("{}: {}, to be mounted on {}, does not exist on this host".format(name, mount["source"], mount["target"]))
    for kind, key in (("network", "networks"), ("volume", "volumes")):
        external = [one["name"] for one in (model.get(key) or {}).values() if one.get("external")]
        there = inspect(kind, external)
        faults += [f"{kind} {one} does not exist on this host" for one in external if one not in there]
    if faults:
        fail("; ".join(faults) + "; nothing was changed")
    return images


def try_out(project, services, file, profiles):
    """Start services of the new file beside the old ones, and see them well."""
    for service in services:
        name = TRIAL.format(project.name, service)
        remove(name)
        try:
            project.compose(file, profiles, "run", "--detach", "--no-deps", "--quiet-pull", "--name", name, service)
            wait_healthy(name, project.values["start_seconds"])
        except EngineError as error:
            words = f"the trial of {service} failed: {project.cover(str(error))}\nlast lines of {name}:\n"
            fail(words + project.cover(last_lines(name)) + "\nnothing of the project was stopped")
        finally:
            if inspect("container", [name]):
                with contextlib.suppress(EngineError):
                    stop(name, 10)
                remove(name)


def in_order(model):
    """Return the services of a file, each after those that it depends on."""
    left, found = sorted(model["services"]), []
    while left:
        free = [one for one in left if not set(model["services"][one].get("depends_on") or {}) & (set(left) - {one})] or left
        found += free
        left = [one for one in left if one not in free]
    return found


def follows(service, other):
    """Whether a service is made anew with another one: it is inside of it, or asks for it (``restart: true``)."""
    inside = {service.get(key) for key in ("network_mode", "ipc", "pid")} | set(service.get("volumes_from") or [])
    asks = ((service.get("depends_on") or {}).get(other) or {}).get("restart")
    return bool(asks) or any(other in str(one).split(":") for one in inside if one)


def replaced(project, file, model, images):
    """
    Return the services whose containers a change ends: they differ, or are gone from the file.

    The new file is compared with the one that is up, by the Compose of today: a newer one has other hashes for the same.
    """
    state, current = project.state, project.path("compose.yaml")
    profiles = project.values["profiles"]
    wanted = hashes(project, file, profiles)
    is_whole = state and sha256_of(current) == state["sha256"]
    before = hashes(project, current, state["profiles"]) if is_whole else {}
    ended = set()
    for service, those in members(project.name)[0].items():
        was = state.get("services", {}).get(service, {}).get("hash")
        for one in those:
            is_same = wanted.get(service) in (before.get(service), label_of(one, HASH)) and label_of(one, HASH) in (was, wanted.get(service))
            if not is_same or one["Image"] != images.get(service):
                ended.add(service)
    while True:
        more = {name for name, one in model["services"].items() if name not in ended and any(follows(one, other) for other in ended)}
        if not more:
            return sorted(ended)
        ended |= more


def switch(project, file, profiles, model, ends):
    """
    Have Compose make anew what ends, one after the other, then make what is missing; wait until all is well.

    One by one and without their dependents: Compose 2.26 makes anew whatever depends on what it makes anew.
    """
    end = time.monotonic() + project.values["start_seconds"]
    for service in in_order(model):
        if service in ends and project.containers_of(service):
            project.up(file, profiles, "--no-deps", "--force-recreate", service)
            project.await_well([service], max(1, end - time.monotonic()))
    project.up(file, profiles, "--no-recreate")
    project.await_well(model["services"], max(1, end - time.monotonic()))


def record(project, model, sha256, profiles):
    """
    Write down from what the containers were made that are well now.

    The label counts, and not what Compose says of the file: it makes another hash where it was told to leave out dependencies.
    """
    services = {}
    for name, service in model["services"].items():
        those = project.containers_of(name)
        services[name] = {
            "hash": label_of(those[0], HASH) if those else "",
            "image": service["image"],
            "image_id": those[0]["Image"] if those else "",
            "count": len(those),
            "needs": sorted(service.get("depends_on") or {}),
        }
    project.state = {"sha256": sha256, "profiles": profiles, "services": services}
    write_private(project.path("state.json"), json.dumps(project.state))


def remember(project, model, profiles):
    """Let what is well now be what is gone back to; what was well before stays to be looked at."""
    for old, kept in (("compose.yaml", "previous.yaml"), ("state.json", "previous.json")):
        text = read_text(project.path(old))
        if text and project.state.get("sha256") != project.values["sha256"]:
            write_private(project.path(kept), text)
    write_private(project.path("compose.yaml"), project.values["text"])
    # Last: until it says so, the file from before is the one that was well.
    record(project, model, project.values["sha256"], profiles)
    forget(project.path("next.yaml"))


def sweep(project, model):
    """Take away what the file no longer has: containers, networks, files."""
    services, strays = members(project.name)
    project.end_containers([one for name, those in services.items() if name not in model["services"] for one in those] + strays)
    kept = {one["name"] for one in (model.get("networks") or {}).values()}
    for name in named("networks", project.name):
        if name not in kept:
            with contextlib.suppress(EngineError):
                docker("network", "rm", name)
    named_by = project.values["text"] + read_text(project.path("previous.yaml"))
    folder = project.path("files")
    for digest in os.listdir(folder) if os.path.isdir(folder) else ():
        if f"files/{digest}/" not in named_by:
            shutil.rmtree(os.path.join(folder, digest), ignore_errors=True)


def go_back(project):
    """Bring back what was well before: its file, the images that its names meant, its containers."""
    state = project.state
    if not state:
        services, strays = members(project.name)
        project.end_containers([one for those in services.values() for one in those] + strays)
        for name in named("networks", project.name):
            with contextlib.suppress(EngineError):
                docker("network", "rm", name)
        forget(project.path("next.yaml"))
        forget(project.path("draining"))
        return "there was nothing before to go back to; its volumes stay"
    for was in state["services"].values():
        here = inspect("image", [was["image"]]).get(was["image"])
        if was["image_id"] and not is_pinned(was["image"]) and (not here or here["Id"] != was["image_id"]):
            with contextlib.suppress(EngineError):
                docker("tag", was["image_id"], was["image"])
    try:
        file = project.path("compose.yaml")
        model = read_model(project, file, state["profiles"])
        images = {name: was["image_id"] for name, was in state["services"].items()}
        services = members(project.name)[0]
        ends = [
            name for name, was in state["services"].items()
            if any(label_of(one, HASH) != was["hash"] or one["Image"] != images[name] for one in services.get(name, []))
        ]  # fmt: skip
        project.end_containers([one for name, those in services.items() if name not in state["services"] for one in those])
        switch(project, file, state["profiles"], model, ends)
        record(project, model, state["sha256"], state["profiles"])
    except EngineError as error:
        project.resume()
        return f"what was before does not come back either: {project.cover(str(error))}"
    project.resume()
    forget(project.path("next.yaml"))
    return "what was before runs again"


def change(project):
    values, profiles = project.values, project.values["profiles"]
    file = project.path("next.yaml")
    write_private(file, values["text"])
    write_files(project)
    try:
        model = read_model(project, file, profiles)
        images = check(project, model)
        ends = replaced(project, file, model, images)
        try_out(project, [one for one in values["trial"] if one in ends and one in images], file, profiles)
        project.drain(ends)
    except EngineError:
        project.resume()
        forget(file)
        raise
    try:
        switch(project, file, profiles, model, ends)
    except Exception as error:  # whatever it is: what was before comes first
        words = str(error)
        if "last lines of" not in words:
            words += project.last_words(model["services"])
        fail(f"{words}\n{go_back(project)}")
    remember(project, model, profiles)
    forget(project.path("draining"))
    sweep(project, model)


def repair(project):
    """Put right what can be without touching what is well."""
    state, file = project.state, project.path("compose.yaml")
    if sha256_of(file) != project.values["sha256"]:
        write_private(file, project.values["text"])
    write_files(project)
    model = read_model(project, file, state["profiles"])
    sweep(project, model)
    services = members(project.name)[0]
    for service in state["services"]:
        for one in services.get(service, []):
            if one["State"].get("Paused"):
                docker("unpause", name_of(one))
            elif not is_running(one) and not one["State"].get("Restarting") and not has_ended_well(one):
                start(name_of(one))
    if any(len(services.get(name, [])) < was["count"] for name, was in state["services"].items()):
        check(project, model)
        project.up(file, state["profiles"], "--no-recreate")
    project.resume()
    forget(project.path("next.yaml"))
    heal(project)
    remember(project, model, state["profiles"])


def heal(project):
    """Wait until all is well; what stays unhealthy is restarted once."""
    seconds = project.values["start_seconds"]
    end = time.monotonic() + seconds
    services = project.state["services"]
    while time.monotonic() < end:
        ill = [one for name in services for one in project.containers_of(name) if health_of(one) == "unhealthy" or one["State"].get("Restarting")]
        if not ill:
            break
        time.sleep(0.5)
    else:
        for one in ill:
            tell(f"{name_of(one)} stays unhealthy: it is restarted")
            stop(name_of(one))
            start(name_of(one))
    project.await_well(services, seconds)


def bring_up(project):
    ground(project)
    values, state = project.values, project.state
    is_same = state.get("sha256") == values["sha256"] and sorted(state["profiles"]) == sorted(values["profiles"])
    if is_same and not compare(project.name, state, values["pull"])[0]:
        repair(project)
    else:
        change(project)


# --- down ---------------------------------------------------------------------------------------------------------------


def take_away(project, with_data):
    services, strays = members(project.name)
    if not with_data:
        project.drain(services)
    project.end_containers([one for those in services.values() for one in those] + strays)
    for name in named("networks", project.name):
        docker("network", "rm", name)
    if with_data:
        for name in named("volumes", project.name):
            docker("volume", "rm", name)
    shutil.rmtree(project.path(), ignore_errors=True)


def stop_all(project):
    services, _ = members(project.name)
    project.drain(services)
    those = [one for each in services.values() for one in each if is_running(one)]
    needed = set().union(*(project.needs_of(one) for one in those))
    for one in sorted(those, key=lambda one: label_of(one, SERVICE) in needed):
        if one["State"].get("Paused"):
            docker("unpause", name_of(one))
        stop(name_of(one))
    forget(project.path("draining"))


def main(values):
    outlive_the_caller()
    project = Project(values)
    try:
        patience = sum(drain["seconds"] for drain in values["drains"].values())
        with locked(values.get("start_seconds", 60) + patience + 900):
            project.state = read_state(project.name)
            if values["do"] == "up":
                bring_up(project)
            elif values["do"] == "stop":
                stop_all(project)
            else:
                take_away(project, with_data=values["do"] == "reset")
    except EngineError as error:
        say("compose project {}: {}".format(values["project"], error))
        sys.exit(1)
