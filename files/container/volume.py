# ruff: noqa: F821 - sent to a host behind engine.py, as one program
"""
One named volume: look at it, or change it. Comes after engine.py.

    values: volume, present, with_data (removal takes the data, too), owner, mode (of its top directory; empty: as it is),
            change (False: only say what is to be done)
"""


def top_of(found):
    return found["Mountpoint"] if found.get("Driver") == "local" else ""


def owed(values, found):
    """Return what is to be done, in words."""
    if not values["present"]:
        return ["remove"] if found else []
    if not found:
        return ["create"]
    steps = []
    try:
        state = os.stat(top_of(found))
    except OSError:
        return ["its directory is missing"]
    if values["owner"] and f"{state.st_uid}:{state.st_gid}" != values["owner"]:
        steps.append("owner")
    if values["mode"] and state.st_mode & 0o7777 != int(values["mode"], 8):
        steps.append("mode")
    return steps


def holds_data(found):
    try:
        return bool(os.listdir(top_of(found)))
    except OSError:
        return False


def users_of(name):
    filters = urllib.parse.quote(json.dumps({"volume": [name]}))
    return sorted(one["Names"][0].lstrip("/") for one in ask("/containers/json?all=1&filters=" + filters))


def change(values, found):
    name = values["volume"]
    if not values["present"]:
        users = users_of(name)
        if users:
            fail("volume {} is used by {}: remove that first".format(name, ", ".join(users)))
        if holds_data(found) and not values["with_data"]:
            fail(f"volume {name} holds data: container.remove_volume_with_its_data takes it away with all of it")
        docker("volume", "rm", name)
        return
    if not found:
        docker("volume", "create", "--label", "hostwright.volume=" + name, name)
        found = inspect("volume", [name])[name]
    top = top_of(found)
    os.makedirs(top, exist_ok=True)
    if values["owner"]:
        os.chown(top, *(int(part) for part in values["owner"].split(":")))
    if values["mode"]:
        os.chmod(top, int(values["mode"], 8))


def main(values):
    name = values["volume"]

    def look():
        return owed(values, inspect("volume", [name]).get(name))

    def bring():
        found = inspect("volume", [name]).get(name)
        if owed(values, found):
            change(values, found)

    look_or_change(values, look, bring)
