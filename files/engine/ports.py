"""
Have the engine give back the ports that it holds for no container. Comes after detour.py; runs at each start of the engine.

A host that loses its power, or an engine that is killed, while a container starts leaves that container's port in the
engine's records. At its next start the engine publishes it again, for nobody: docker-proxy listens, packets are led to
whatever container has the address by then, and each container that wants the port is refused with "port is already
allocated" (moby/libnetwork#2448; seen with engines 20.10 and 26.1). Its records are in order by then, so that one more
start ends it. Removing the container, or disconnecting it by force, does not.
"""

import fcntl

# That of all that changes containers on this host (files/container/engine.py).
_LOCK = "/run/hostwright/containers.lock"
# A container that starts has its proxy before the engine lists it as running (s).
_STARTS_WITHIN = 3


def published(containers: "list[dict]") -> "set[tuple[str, str]]":
    """Return (port, protocol) of all that these containers publish."""
    found = set()
    for one in containers:
        for inner, bindings in (one["NetworkSettings"].get("Ports") or {}).items():
            found.update((binding["HostPort"], inner.partition("/")[2]) for binding in bindings or [])
    return found


def _proxies() -> "dict[str, tuple[str, str]]":
    """Return (port, protocol) of each process that passes connections on."""
    found = {}
    for path in glob.glob("/proc/[0-9]*/cmdline"):  # noqa: F821
        try:
            with open(path, "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if os.path.basename(words[0]) == "docker-proxy":  # noqa: F821
            port, proto = (words[words.index(option) + 1] for option in ("-host-port", "-proto"))
            found[path] = (port, proto)
    return found


def lost() -> "dict[str, tuple[str, str]]":
    """Return the proxies that belong to no running container."""
    proxies = _proxies()
    ours = published(_running()) if proxies else set()  # noqa: F821
    return {path: port for path, port in proxies.items() if port not in ours}


def main() -> None:
    os.makedirs(os.path.dirname(_LOCK), exist_ok=True)  # noqa: F821
    with open(_LOCK, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = lost()
        if not found:
            return
        time.sleep(_STARTS_WITHIN)  # noqa: F821
        found = {path: port for path, port in lost().items() if found.get(path) == port}
        if not found:
            return
        names = ", ".join(sorted("{}/{}".format(*port) for port in found.values()))
        sys.stderr.write(f"the engine holds ports for no container, and is started once more to give them back: {names}\n")  # noqa: F821
        # Without live-restore its containers end with it, which started them a moment ago.
        are_kept = _said("docker", "info", "--format", "{{.LiveRestoreEnabled}}").strip() == "true"  # noqa: F821
        if are_kept:
            lead_past_the_proxies()  # noqa: F821
        subprocess.run(["systemctl", "restart", "docker.service"], check=True)  # noqa: F821
        if are_kept:
            lead_back()  # noqa: F821
        if lost():
            sys.exit(f"the engine still holds ports for no container: {names}")  # noqa: F821


if __name__ == "__main__":
    main()
