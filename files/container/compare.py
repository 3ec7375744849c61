# ruff: noqa: F821 - sent to a host behind engine.py, as one program
"""
What a container lacks to be as its spec says. Comes after engine.py; the fact and the change both go by it.

    values: container   its name
            spec        as operations.container.canonical returns it
            pull        missing, moved or never
            spec_hash   over all of the spec; environment_hash: over its environment's text. The fact is not given these
                        two, nor the environment: it stands in the process list
"""

import hashlib


def env_path(name):
    return f"{ENVIRONMENTS}/{name}.env"


def candidate_of(name):
    return name + ".new"


def aside_of(name):
    return name + ".old"


def is_ours(container, name):
    """A container made from an image of one of ours (docker commit) has our labels, too; its image tells it apart."""
    label = label_of(container, "hostwright.image")
    image = container["Image"]
    return (
        label_of(container, "hostwright.container") == name
        and not label_of(container, "hostwright.component")
        and (label == image or inspect("image", [image]).get(image, {}).get("Id") == label)
    )


def find(name):
    """
    Return (the container of this name, {name: leftovers of a run that did not come to its end}).

    It may have another name: then somebody has renamed it. One that has the name and is not ours is an error.
    """
    names = (name, candidate_of(name), aside_of(name))
    found = inspect("container", names)
    for one in names:
        if one in found and label_of(found[one], "hostwright.container") != name:
            fail(
                f"a container named {one} is there already and is not ours "
                f"(image {found[one]['Config']['Image']}): remove or rename it"
            )
    current = found.get(name)
    leftovers = {one: found[one] for one in names[1:] if one in found}
    strays = [
        one for one in containers("hostwright.container=" + name) if is_ours(one, name) and name_of(one) not in names
    ]
    if strays and (current or len(strays) > 1):
        names = sorted(name_of(one) for one in [*strays, current] if one)
        fail(f"more than one container is {name}: {', '.join(names)}; remove all but one")
    return current or (strays[0] if strays else None), leftovers


def wanted_networks(spec):
    return {network["name"]: set(network["aliases"]) for network in spec["networks"]} or {"bridge": set()}


def network_drift(container, spec):
    """Return (networks that it must be put on anew, networks that it must leave)."""
    wanted = wanted_networks(spec)
    attached = container["NetworkSettings"]["Networks"] or {}
    there = inspect("network", wanted) if is_running(container) else {}
    # engines before 25 list these among the aliases
    own_names = {container["Id"][:12], container["Config"]["Hostname"]}
    anew = []
    for name, aliases in wanted.items():
        found = attached.get(name)
        replaced = found and name in there and found.get("NetworkID") != there[name]["Id"]
        if not found or replaced or set(found.get("Aliases") or []) - own_names != aliases - own_names:
            anew.append(name)
    return anew, sorted(set(attached) - set(wanted))


# What `docker update` can change and a spec never sets: 0 or nothing.
_UNTOUCHED = (
    "CpuShares", "CpuPeriod", "CpuQuota", "CpuRealtimePeriod", "CpuRealtimeRuntime", "CpusetCpus", "CpusetMems",
    "MemoryReservation", "BlkioWeight",
)  # fmt: skip


def limit_drift(container, spec):
    """Return which of the limits that `docker update` can change are not as wanted."""
    found = container["HostConfig"]
    memory = spec["memory_mb"] * 1024 * 1024
    name, _, tries = spec["restart"].partition(":")
    policy = found.get("RestartPolicy") or {}
    faults = []
    if (policy.get("Name") or "no", policy.get("MaximumRetryCount") or 0) != (name, int(tries or 0)):
        faults.append("restart")
    if (found.get("NanoCpus") or 0) != round(spec["cpus"] * 1e9):
        faults.append("cpus")
    if (found.get("Memory") or 0) != memory:
        faults.append("memory")
    elif info().get("SwapLimit") and (found.get("MemorySwap") or 0) != memory:
        faults.append("swap")
    if max(found.get("PidsLimit") or 0, 0) != spec["pids"]:
        faults.append("pids")
    return faults + [key for key in _UNTOUCHED if found.get(key)]


def is_flapping(container):
    """Between two lives, or just come back from the last: it may be in a loop."""
    if container["State"].get("Restarting"):
        return True
    return container["RestartCount"] > 0 and 0 <= age(container) < 15


def half_written(name):
    """Return the files that a killed run has left."""
    paths = [env_path(candidate_of(name))] + [env_path(one) + ".part" for one in (name, candidate_of(name))]
    return [path for path in paths if os.path.exists(path)]


def environment_file(name):
    """Return the SHA-256 of the environment's file, or nothing when it is missing or open to others."""
    try:
        with open(env_path(name), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o7777
            return hashlib.sha256(file.read()).hexdigest() if mode == 0o600 else ""
    except OSError:
        return ""


def image_moved(container, spec, pull):
    """Return whether the container's image is no longer what the spec's reference means."""
    here = inspect("image", [spec["image"]]).get(spec["image"])
    if here and here["Id"] != label_of(container, "hostwright.image"):
        return True
    if pull != "moved" or is_pinned(spec["image"]):
        return False
    digest, _, refused = registry_look(spec["image"])
    if refused:
        fail("cannot ask the registry whether {} has moved: {}".format(spec["image"], refused))
    own = inspect("image", [container["Image"]]).get(container["Image"])
    return not own or digest not in digests_of(own)


def compare(values):
    """
    Return (container or None, why it must be made anew, what can be put right in place).

    Both are lists of words for the reader; two empty ones mean that nothing is to be done.
    """
    name, spec = values["container"], values["spec"]
    current, leftovers = find(name)
    repair = [f"leftover {one}" for one in [*leftovers, *half_written(name)]]
    if not current:
        return None, ["it is missing"], repair
    if current["State"]["Status"] in ("created", "dead", "removing"):
        return current, ["it was never started" if current["State"]["Status"] == "created" else "it is dead"], repair
    if "spec_hash" in values and label_of(current, "hostwright.spec") != values["spec_hash"]:
        return current, ["its spec differs"], repair
    if image_moved(current, spec, values["pull"]):
        return current, ["its image differs"], repair
    if name_of(current) != name:
        repair.append(f"its name is {name_of(current)}")
    repair += [f"limit {one}" for one in limit_drift(current, spec)]
    anew, leave = network_drift(current, spec)
    repair += [f"network {one}" for one in anew + leave]
    if "environment_hash" in values and environment_file(name) != values["environment_hash"]:
        repair.append("its environment file")
    if current["State"].get("Paused"):
        repair.append("it is paused")
    elif is_flapping(current):
        repair.append("it keeps ending")
    elif not is_running(current):
        repair.append("it is stopped")
    elif health_of(current) == "unhealthy":
        repair.append("it is unhealthy")
    return current, [], repair
