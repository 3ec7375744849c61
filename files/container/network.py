# ruff: noqa: F821 - sent to a host behind engine.py, as one program
"""
One network of user-defined bridge type: look at it, or change it. Comes after engine.py.

    values: network, internal, ipv6, present, change (False: only say what is to be done)
"""

import hashlib


def own_prefix(name):
    """Return an IPv6 prefix that is this network's on this host: local (fd00::/8), the same every time."""
    with open("/etc/machine-id") as file:
        digest = hashlib.sha256((file.read().strip() + "/" + name).encode()).hexdigest()
    return f"fd{digest[:2]}:{digest[2:6]}:{digest[6:10]}:{digest[10:14]}::/64"


def owed(values, found):
    """Return what is to be done, in words."""
    if not values["present"]:
        return ["remove"] if found else []
    if not found:
        return ["create"]
    faults = [
        key for key, there in (("internal", "Internal"), ("ipv6", "EnableIPv6")) if bool(found.get(there)) != values[key]
    ]
    return ["make anew: {} differs".format(", ".join(faults))] if faults else []


def attached(found):
    """Return the names of the containers on a network, also of stopped ones."""
    names = []
    for one in ask("/containers/json?all=1"):
        if found["Name"] in one["NetworkSettings"]["Networks"]:
            names.append(one["Names"][0].lstrip("/"))
    return sorted(names)


def change(values, found):
    name = values["network"]
    if found:
        label = (found.get("Labels") or {}).get("hostwright.network", "")
        if not values["present"] and label != name:
            fail(f"network {name} was not made by us: remove it by hand")
        users = attached(found)
        if users:
            fail(
                f"network {name} is {'wanted otherwise' if values['present'] else 'to go'}, and {', '.join(users)} "
                "use it: remove them first, or give the network another name"
            )
        docker("network", "rm", name)
    if values["present"]:
        words = ["--driver", "bridge", "--label", "hostwright.network=" + name]
        if values["internal"]:
            words.append("--internal")
        if values["ipv6"]:
            # engine 20.10 has no pool of IPv6 addresses to choose from
            words += ["--ipv6", "--subnet", own_prefix(name)]
        docker("network", "create", *words, name)


def main(values):
    name = values["network"]

    def look():
        return owed(values, inspect("network", [name]).get(name))

    def bring():
        found = inspect("network", [name]).get(name)
        if owed(values, found):
            change(values, found)

    look_or_change(values, look, bring)
