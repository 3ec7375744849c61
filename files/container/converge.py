# ruff: noqa: F821 - sent to a host behind engine.py, as one program
"""
Make one container what its spec says, or have it be no more. Comes after engine.py and compare.py.

The new one is made beside the old one, so that the engine itself has looked at it before anything stops:

    NAME runs          NAME.new is created, not started
    NAME is stopped    and becomes NAME.old; NAME.new becomes NAME and starts
    NAME is healthy    NAME.old goes; or NAME is not: it goes, and NAME.old is NAME again and starts

Killed at any point, the names tell the next run how far it came: it puts back what was aside, or ends what had succeeded.
"""


def hold_back(name):
    """An old one that waits must not start by itself: an engine that restarts starts what has the policy `always`."""
    docker("update", "--restart", "no", name)


def unhold(container):
    docker("update", "--restart", label_of(container, "hostwright.restart") or "unless-stopped", container["Id"])


def put_back(name, start_it):
    """Let the one that was set aside be the one again, as it was."""
    aside = aside_of(name)
    old = inspect("container", [aside])[aside]
    unhold(old)
    rename(aside, name)
    if start_it:
        start(name)


def recover(values):
    """End what an earlier run, killed half-way, had begun: afterwards there is neither NAME.new nor NAME.old."""
    name = values["container"]
    for path in half_written(name):
        forget(path)
    current, leftovers = find(name)
    candidate, aside = candidate_of(name), aside_of(name)
    if candidate in leftovers:
        remove(candidate)
        if current and not is_running(current):
            # Stopped to give way, and needed until its successor is there.
            with contextlib.suppress(EngineError):
                unhold(current)
                start(name_of(current))
    if aside not in leftovers:
        return
    if current and is_running(current):
        try:
            wait_healthy(name, values["start_seconds"], restarts=current["RestartCount"])
        except EngineError as error:
            say(f"{name}, started by a run that did not end, is not well ({error}): back to the one before")
        else:
            remove(aside)
            return
    if current:
        remove(name_of(current))
    put_back(name, start_it=True)


def check(values, current):
    """Look at all that could fail before anything is stopped; return the image."""
    spec = values["spec"]
    image = ensure_image(spec["image"], spec["platform"], values["pull"])
    faults = missing(spec) + unlimited(spec) + ports_taken(spec["publish"], [current["Id"]] if current else [])
    if faults:
        fail("; ".join(faults))
    return image


def make_anew(values, current):
    name, spec = values["container"], values["spec"]
    candidate, aside = candidate_of(name), aside_of(name)
    image = check(values, current)
    labels = {
        "hostwright.container": name,
        "hostwright.spec": values["spec_hash"],
        "hostwright.image": image["Id"],
        "hostwright.restart": spec["restart"],
    }
    try:
        write_private(env_path(candidate), spec["environment"])
        create(candidate, spec, labels, env_path(candidate))
        if inspect("image", [spec["image"]]).get(spec["image"], {}).get("Id") != image["Id"]:
            fail(f"image {spec['image']} has changed meanwhile: run again")
    except EngineError:
        remove(candidate)
        forget(env_path(candidate))
        raise
    was_running = bool(current) and is_running(current)
    if current:
        if name_of(current) != name:
            rename(name_of(current), name)
        if current["State"].get("Paused"):
            docker("unpause", name)
        stop(name)
        hold_back(name)
        rename(name, aside)
    try:
        rename(candidate, name)
        start(name)
        wait_healthy(name, values["start_seconds"])
    except Exception as error:  # whatever it is: the old one comes first
        words = f"{error}\nlast lines of {name}:\n{last_lines(name)}"
        remove_gently(name, spec)
        remove(candidate)
        forget(env_path(candidate))
        if current:
            put_back(name, was_running)
            words += "\nthe container from before " + ("runs again" if was_running else "is back, stopped as it was")
        fail(words)
    os.replace(env_path(candidate), env_path(name))
    if current:
        remove(aside)


def remove_gently(name, spec):
    if inspect("container", [name]):
        with contextlib.suppress(EngineError):
            stop(name, min(10, spec["stop_seconds"]))
        remove(name)


def forget(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def repair(values, current):
    """Put right what can be put right without a new container."""
    name, spec = values["container"], values["spec"]
    if name_of(current) != name:
        rename(name_of(current), name)
    if environment_file(name) != values["environment_hash"]:
        write_private(env_path(name), spec["environment"])
    faults = limit_drift(current, spec)
    if faults:
        update(name, spec)
    anew, leave = network_drift(current, spec)
    for network in anew + leave:
        if network in current["NetworkSettings"]["Networks"]:
            docker("network", "disconnect", "--force", network, name)
    for network in spec["networks"] or [{"name": "bridge", "aliases": []}]:
        if network["name"] in anew:
            connect(network, name)
    if current["State"].get("Paused"):
        docker("unpause", name)
    elif not is_running(current) and not current["State"].get("Restarting"):
        taken = ports_taken(spec["publish"], [current["Id"]])
        if taken:
            fail("; ".join(taken))
        start(name)


def update(name, spec):
    words = ["--restart", spec["restart"]]
    if spec["cpus"]:
        words += ["--cpus", str(spec["cpus"])]
    if spec["memory_mb"]:
        words += ["--memory", f"{spec['memory_mb']}m", "--memory-swap", f"{spec['memory_mb']}m"]
    if spec["pids"]:
        words += ["--pids-limit", str(spec["pids"])]
    docker("update", *words, name)


def see_it_well(values):
    """Wait until it is well; one that stays unhealthy is restarted once."""
    name, seconds = values["container"], values["start_seconds"]
    end = time.monotonic() + seconds
    while True:
        container = inspect("container", [name])[name]
        if health_of(container) != "unhealthy":
            break
        if time.monotonic() >= end:
            say(f"{name} stays unhealthy: it is restarted")
            stop(name)
            start(name)
            container = inspect("container", [name])[name]
            break
        time.sleep(0.5)
    while container["State"].get("Restarting") and time.monotonic() < end:
        time.sleep(0.5)
        container = inspect("container", [name])[name]
    try:
        wait_healthy(name, seconds, restarts=container["RestartCount"])
    except EngineError as error:
        fail(f"{error}\nlast lines of {name}:\n{last_lines(name)}")


def repair_or_make_anew(values):
    current, anew, owed = compare(values)
    if not anew and owed:
        try:
            repair(values, current)
            # What docker update cannot take back, and what a start cannot bring up, is left.
            current, anew, _ = compare(values)
            networks_anew, networks_left = network_drift(current, values["spec"])
            left = limit_drift(current, values["spec"]) + networks_anew + networks_left
            anew = anew or [f"{one} cannot be put right in place" for one in left]
        except EngineError as error:
            # A network that is gone for good, say: only a new container comes up then.
            if missing(values["spec"]) or ports_taken(values["spec"]["publish"], [current["Id"]]):
                raise
            say(f"{error}: made anew")
            anew = [str(error)]
            current, _ = find(values["container"])
        if not anew:
            see_it_well(values)
    if anew:
        make_anew(values, current)


def take_away(name):
    current, leftovers = find(name)
    for one in [current] if current else []:
        if is_running(one):
            stop(name_of(one))
        remove(name_of(one))
    for one in leftovers:
        remove(one)
    for path in [env_path(name), *half_written(name)]:
        forget(path)


def main(values):
    outlive_the_caller()
    try:
        with locked(values["start_seconds"] + 900):
            if values["spec"] is None:
                take_away(values["container"])
            else:
                recover(values)
                repair_or_make_anew(values)
    except EngineError as error:
        say("container {}: {}".format(values["container"], error))
        sys.exit(1)
