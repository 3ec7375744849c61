"""
A host's Docker engine, for the programs that follow this file: what is there, images, one container's life.

It is put in front of another program by ``operations.script.python``; Python 3.9, standard library, nothing runs here by
itself. What is read comes as JSON from the engine's socket, one request each; what changes something goes through the
``docker`` command. Works with engine 20.10 and every later one.

    EngineError(text)                     what the operator has to know; ``fail(text)`` raises it, ``say(text)`` says it
    api(path)                             -> (status, JSON) of one GET; info() -> /info; host_platform() -> "linux/amd64"
    docker(*argv)                         -> what the command printed; EngineError with its own words
    locked(seconds)                       context manager: the one lock of all that changes containers on this host
    inspect(kind, names)                  -> {name: JSON}, kind container, image, network or volume; missing: left out
    containers(*labels)                   -> JSON of all that carry the labels ("key" or "key=value"), stopped ones too
    ensure_image(image, platform, pull)   -> JSON of the image; pull "missing", "moved" or "never"
    missing(spec)                         -> networks, volumes and paths that a spec names and the host has not
    unlimited(spec)                       -> limits that this host's kernel cannot keep
    ports_taken(publish, ours)            -> ports that somebody else holds, one line each, naming the holder
    create(name, spec, labels, env_file)  -> id of a container that is not started yet
    start(name); stop(name); remove(name); rename(name, new)
    wait_healthy(name, seconds, settle_seconds=3)   EngineError when it dies or takes too long
    last_lines(name)                      -> what it printed last, with the values of its environment masked
    write_private(path, text)             0600 from the first byte, renamed into place

A spec is what ``operations.container.canonical`` returns.
"""

import base64
import calendar
import contextlib
import fcntl
import http.client
import ipaddress
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.parse

LOCK = "/run/hostwright/containers.lock"
ENVIRONMENTS = "/etc/hostwright/containers"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386", "i386": "386"}
# What a processor runs besides its own, without emulation.
ALSO_RUNS = {"amd64": ("386",), "arm64": ("arm",)}

# Held by what is started here as well: a killed program's last command may still be at work.
held_files = []


class EngineError(Exception):
    """Something that the operator has to know, said in one message without a secret in it."""


def fail(text):
    raise EngineError(text)


def say(text):
    with contextlib.suppress(OSError):  # whoever started us may be gone
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def report(value):
    """Answer a fact."""
    sys.stdout.write(json.dumps(value) + "\n")


def answer_fact(values, look):
    """Answer a fact with what ``look(values, answer)`` puts into it, or that the engine is not there, or what it refused."""
    answer = {"engine": True}
    try:
        info()
    except EngineError:
        answer["engine"] = False
    else:
        try:
            look(values, answer)
        except EngineError as error:
            answer["refused"] = str(error)
    report(answer)


def look_or_change(values, look, change):
    """Answer a fact with ``look()``, null when the engine refuses; or ``change()`` under the lock, to the end."""
    try:
        if not values["change"]:
            report(look())
            return
        outlive_the_caller()
        with locked(900):
            change()
    except EngineError as error:
        if not values["change"]:
            report(None)
            return
        say(str(error))
        sys.exit(1)


def outlive_the_caller():
    """A run whose controller died goes on here to its end; the next one waits for it and then looks again."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


# --- the engine ----------------------------------------------------------------------------------------------------


class _SocketConnection(http.client.HTTPConnection):
    def connect(self):
        path = os.environ.get("DOCKER_HOST", "")
        path = path[len("unix://") :] if path.startswith("unix://") else "/var/run/docker.sock"
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(path)


def api(path, headers=None, seconds=60):
    """Ask the engine; return (status, parsed answer)."""
    connection = _SocketConnection("docker", timeout=seconds)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise EngineError(f"no Docker engine answers on this host: {error}") from None
    finally:
        connection.close()
    try:
        return answer.status, json.loads(body)
    except ValueError:
        return answer.status, {"message": body.decode("utf-8", "replace").strip()}


def ask(path):
    """Return the engine's answer, or None when it has no such thing."""
    status, answer = api(path)
    if status == 404:
        return None
    if status >= 400:
        fail("the Docker engine says: {}".format(answer.get("message", status)))
    return answer


_about = {}


def info():
    """Return what the engine says of itself; asked once."""
    if not _about:
        _about.update(ask("/info"))
    return _about


def docker(*argv, seconds=1800):
    """Run one docker command and return what it printed."""
    try:
        done = subprocess.run(
            ["docker", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=seconds, pass_fds=[file.fileno() for file in held_files],
        )  # fmt: skip
    except FileNotFoundError:
        raise EngineError("the docker command is not installed on this host") from None
    except subprocess.TimeoutExpired:
        raise EngineError(f"docker {argv[0]} did not end within {seconds} s") from None
    if done.returncode != 0:
        words = re.sub(r"^Error response from daemon: |\n?See 'docker .*", "", done.stderr.strip())
        fail(f"docker {argv[0]}: {words or done.returncode}")
    return done.stdout


@contextlib.contextmanager
def locked(seconds):
    """Hold the lock of everything that changes containers on this host."""
    os.makedirs(os.path.dirname(LOCK), exist_ok=True)
    with open(LOCK, "a") as file:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= end:
                    fail(f"somebody else has been changing containers for {seconds} s ({LOCK}): run again")
                time.sleep(0.2)
        held_files.append(file)
        try:
            yield
        finally:
            held_files.remove(file)


_PATHS = {
    "container": "/containers/{}/json",
    "image": "/images/{}/json",
    "network": "/networks/{}",
    "volume": "/volumes/{}",
}


def inspect(kind, names):
    """Return what there is under exactly these names (of an image: references) or full ids."""
    found = {}
    for name in names:
        one = ask(_PATHS[kind].format(urllib.parse.quote(name, safe="/:@")))
        # The engine takes the beginning of an id for a name, too.
        if one and (kind == "image" or name in (one.get("Name", "").lstrip("/"), one.get("Id"))):
            found[name] = one
    return found


def containers(*labels):
    """Return all containers, running or not, that carry all of these labels."""
    filters = urllib.parse.quote(json.dumps({"label": list(labels)}))
    ids = [one["Id"] for one in ask("/containers/json?all=1&filters=" + filters)]
    return list(inspect("container", ids).values())


def name_of(container):
    return container["Name"].lstrip("/")


def label_of(container, key):
    return (container["Config"].get("Labels") or {}).get(key, "")


def age(container):
    """Return how long ago a container was started (s), by this host's clock."""
    started = time.strptime(container["State"]["StartedAt"][:19], "%Y-%m-%dT%H:%M:%S")
    return time.time() - calendar.timegm(started)


def is_running(container):
    return bool(container["State"]["Running"])


# --- images --------------------------------------------------------------------------------------------------------


def host_platform():
    about = info()
    return "{}/{}".format(about["OSType"], ARCHITECTURES.get(about["Architecture"], about["Architecture"]))


def image_platform(image):
    parts = [image.get("Os") or "linux", image.get("Architecture") or "", image.get("Variant") or ""]
    return "/".join(part for part in parts if part)


def fits(have, want):
    """Whether an image's platform is the one wanted; a variant counts when both name one."""
    have, want = have.split("/"), want.split("/")
    return have[:2] == want[:2] and (len(have) < 3 or len(want) < 3 or have[2] == want[2])


def check_host_runs(platform):
    """Refuse what this host could only emulate."""
    system, architecture = host_platform().split("/")
    wanted = (platform or host_platform()).split("/")
    if wanted[0] != system or wanted[1] not in (architecture, *ALSO_RUNS.get(architecture, ())):
        fail(f"this host is {system}/{architecture} and does not run {platform}: put it on another host")


def registry_of(image):
    first, slash, _ = image.partition("/")
    return first if slash and (re.search("[.:]", first) or first == "localhost") else "docker.io"


def _credentials(registry):
    """Return the X-Registry-Auth header for a registry from docker's own configuration, or none."""
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    try:
        with open(os.path.join(folder, "config.json")) as file:
            configuration = json.load(file)
    except (OSError, ValueError):
        return {}
    keys = (registry, "https://" + registry, "https://index.docker.io/v1/" if registry == "docker.io" else registry)
    helpers = configuration.get("credHelpers") or {}
    helper = next((helpers[key] for key in keys if key in helpers), configuration.get("credsStore"))
    user, password = "", ""
    if helper:
        for key in keys:
            done = subprocess.run(
                ["docker-credential-" + helper, "get"], input=key, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, timeout=60,
            )  # fmt: skip
            if done.returncode == 0:
                entry = json.loads(done.stdout)
                user, password = entry.get("Username", ""), entry.get("Secret", "")
                break
    else:
        known = configuration.get("auths") or {}
        entry = next((known[key] for key in keys if key in known), {})
        user, _, password = base64.b64decode(entry.get("auth") or "").decode().partition(":")
        if entry.get("identitytoken"):
            user, password = "<token>", entry["identitytoken"]
    if not user:
        return {}
    login = {"identitytoken": password} if user == "<token>" else {"username": user, "password": password}
    login["serveraddress"] = registry
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(login).encode()).decode()}


def registry_look(image):
    """
    Ask the registry what an image is there, without pulling it: (digest, [platforms], what went wrong).

    The engine asks, with its own trust, mirrors and proxies. Platforms are empty when the manifest does not say.
    """
    try:
        status, answer = api(
            f"/distribution/{urllib.parse.quote(image, safe='/:@')}/json", _credentials(registry_of(image))
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return "", [], str(error)
    if status != 200:
        return "", [], answer.get("message", str(status))
    platforms = []
    for one in answer.get("Platforms") or []:
        parts = (one.get("os") or "", one.get("architecture") or "", one.get("variant") or "")
        # "unknown" is an attestation, and no image
        if parts[0] and parts[1] and "unknown" not in parts:
            platforms.append("/".join(part for part in parts if part))
    return answer["Descriptor"]["digest"], platforms, ""


def is_pinned(image):
    return "@sha256:" in image


def digests_of(image):
    """Return the registry digests under which an image that is here was pulled."""
    return {entry.partition("@")[2] for entry in image.get("RepoDigests") or []}


def _platform_fault(image, platforms, want):
    return f"image {image} is for {', '.join(platforms)}, wanted: {want}"


def ensure_image(image, platform="", pull="missing"):
    """
    Return an image of this host, pulled if need be and never for another platform than wanted.

    + platform: empty means the host's own
    + pull: ``missing``, ``moved`` (asks the registry whether the tag means something else now) or ``never``
    """
    check_host_runs(platform)
    want = platform or host_platform()
    here = inspect("image", [image]).get(image)
    wrong = here and not fits(image_platform(here), want)
    if here and not wrong and (pull != "moved" or is_pinned(image)):
        return here
    if pull == "never":
        if wrong:
            fail(_platform_fault(image, [image_platform(here)], want))
        fail(f"image {image} is not on this host, and may not be pulled")
    digest, platforms, refused = registry_look(image)
    if refused and here and not wrong:
        fail(f"cannot ask the registry whether {image} has moved: {refused}")
    if here and not wrong and digest in digests_of(here):
        return here
    if platforms and not any(fits(one, want) for one in platforms):
        fail(_platform_fault(image, platforms, want))
    try:
        docker("pull", "--quiet", *(("--platform", want) if platform or wrong else ()), image)
    except EngineError as error:
        if wrong:
            fail(f"{_platform_fault(image, [image_platform(here)], want)}; another one cannot be pulled: {error}")
        fail(f"image {image} is not on this host and cannot be pulled: {error}")
    here = inspect("image", [image]).get(image) or fail(f"image {image} was pulled, and is not there")
    if not fits(image_platform(here), want):
        fail(_platform_fault(image, [image_platform(here)], want))
    return here


# --- what a container stands on ------------------------------------------------------------------------------------


def missing(spec):
    """Return what a spec names and the host has not, one line each."""
    found = []
    names = [network["name"] for network in spec["networks"]]
    there = inspect("network", names)
    found += [f"network {name} does not exist on this host" for name in names if name not in there]
    volumes = [mount["source"] for mount in spec["mounts"] if not mount["source"].startswith("/")]
    there = inspect("volume", volumes)
    found += [f"volume {name} does not exist on this host" for name in volumes if name not in there]
    for mount in spec["mounts"]:
        if mount["source"].startswith("/") and not os.path.exists(mount["source"]):
            found.append("{}, to be mounted on {}, does not exist on this host".format(mount["source"], mount["target"]))
    return found


def unlimited(spec):
    """Return the limits of a spec that this host's kernel cannot keep: the engine would drop them with a warning."""
    kinds = (("memory_mb", "MemoryLimit"), ("pids", "PidsLimit"), ("cpus", "CpuCfsQuota"))
    return [f"this host cannot limit {key}: see docker info" for key, known in kinds if spec[key] and not info().get(known)]


def overlap(one, other):
    """Whether two listening addresses get in each other's way; "" and "*" are all addresses."""
    if one in ("", "*") or other in ("", "*"):
        return True
    one, other = ipaddress.ip_address(one.partition("%")[0]), ipaddress.ip_address(other.partition("%")[0])
    return one.version == other.version and (one == other or one.is_unspecified or other.is_unspecified)


def _listeners():
    """Return (protocol, address, port, process) of every listening socket."""
    done = subprocess.run(["ss", "-Hlntup"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found = []
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) < 5:
            continue
        address, _, port = words[4].rpartition(":")
        process = re.search(r'\(\("([^"]*)",pid=(\d+)', line)
        holder = "{} (pid {})".format(*process.groups()) if process else "a process"
        found.append((words[0], address.strip("[]"), int(port), holder))
    return found


def ports_taken(publish, ours=()):
    """
    Return which ports cannot be published, one line each.

    + ours: ids of containers that do not count, because they will be gone by then
    """
    if not publish:
        return []
    taken = []
    for container in ask("/containers/json"):
        if container["Id"] in ours:
            continue
        holder = "container {}".format(container["Names"][0].lstrip("/"))
        for port in container.get("Ports") or []:
            if port.get("PublicPort"):
                taken.append((port["Type"], port.get("IP", ""), port["PublicPort"], holder))
    # The engine's own listeners are the containers above.
    taken += [one for one in _listeners() if not one[3].startswith("docker-proxy ")]
    faults = []
    for one in publish:
        for proto, address, port, holder in taken:
            if (proto, port) == (one["proto"], one["port"]) and overlap(address, one["address"]):
                faults.append(f"port {one['address'] or '*'}:{port}/{proto} is in use by {holder}")
                break
    return faults


# --- one container -------------------------------------------------------------------------------------------------


def create_arguments(name, spec, labels, env_file):
    """Return the words of ``docker create``. No value of the environment is among them."""
    words = ["--name", name, "--pull", "never", "--restart", spec["restart"]]

    def add(option, *values):
        for value in values:
            words.extend((option, str(value)))

    for key, value in sorted(list(spec["labels"].items()) + list(labels.items())):
        add("--label", f"{key}={value}")
    if env_file:
        add("--env-file", env_file)
    for mount in spec["mounts"]:
        kind = "bind" if mount["source"].startswith("/") else "volume"
        text = "type={},source={},target={}".format(kind, mount["source"], mount["target"])
        add("--mount", text + (",readonly" if mount["read_only"] else ""))
    if spec["networks"]:
        # one at creation: engine 20.10 takes no more
        add("--network", spec["networks"][0]["name"])
        add("--network-alias", *spec["networks"][0]["aliases"])
    for port in spec["publish"]:
        address = f"[{port['address']}]" if ":" in port["address"] else port["address"]
        leads_to = f"{port['port']}:{port['container_port']}/{port['proto']}"
        add("--publish", f"{address}:{leads_to}" if address else leads_to)
    for name_, address in spec["extra_hosts"].items():
        add("--add-host", f"{name_}:{address}")
    if spec["cpus"]:
        add("--cpus", spec["cpus"])
    if spec["memory_mb"]:
        # the same number twice: no swap besides
        add("--memory", f"{spec['memory_mb']}m")
        add("--memory-swap", f"{spec['memory_mb']}m")
    if spec["pids"]:
        add("--pids-limit", spec["pids"])
    if spec["shm_mb"]:
        add("--shm-size", f"{spec['shm_mb']}m")
    health = spec["health"]
    if health:
        add("--health-cmd", " ".join(shlex.quote(word) for word in health["command"]))
        add("--health-interval", f"{health['interval_seconds']}s")
        add("--health-timeout", f"{health['timeout_seconds']}s")
        add("--health-retries", health["retries"])
        add("--health-start-period", f"{health['start_seconds']}s")
    driver = spec["log"]["driver"]
    add("--log-driver", driver)
    if spec["log"]["address"]:
        add("--log-opt", "{}-address={}".format(driver, spec["log"]["address"]), "mode=non-blocking", "tag={{.Name}}")
        if driver == "fluentd":
            add("--log-opt", "fluentd-async=true")
    elif driver != "journald":
        add("--log-opt", f"max-size={spec['log']['max_size_mb']}m", f"max-file={spec['log']['files']}")
    for option, key in (("--user", "user"), ("--hostname", "hostname"), ("--platform", "platform")):
        if spec[key]:
            add(option, spec[key])
    add("--group-add", *spec["groups"])
    add("--cap-drop", *spec["cap_drop"])
    add("--cap-add", *spec["cap_add"])
    if spec["no_new_privileges"]:
        add("--security-opt", "no-new-privileges")
    if spec["read_only"]:
        words.append("--read-only")
    add("--tmpfs", *spec["tmpfs"])
    add("--stop-signal", spec["stop_signal"])
    add("--stop-timeout", spec["stop_seconds"])
    command = list(spec["command"])
    if spec["entrypoint"]:
        add("--entrypoint", spec["entrypoint"][0])
        command = list(spec["entrypoint"][1:]) + command
    return [*words, spec["image"], *command]


def connect(network, name):
    """Put a container on a network of its spec."""
    aliases = [word for alias in network["aliases"] for word in ("--alias", alias)]
    docker("network", "connect", *aliases, network["name"], name)


def create(name, spec, labels, env_file=""):
    """
    Create a container, on all its networks and not started, and return its id.

    + labels: ours, besides those of the spec
    + env_file: path of a file with the spec's environment, or empty
    """
    ident = docker("create", *create_arguments(name, spec, labels, env_file)).strip()
    for network in spec["networks"][1:]:
        connect(network, name)
    return ident


def start(name):
    try:
        docker("start", name)
    except EngineError as error:
        if "port is already allocated" not in str(error):
            raise
        # Other holders were asked about before anything was made (ports_taken): see engine/ports.py.
        fail(
            f"{error}; when no container has that port, the engine holds it for one that was starting when the power "
            "failed: systemctl restart docker, and run again"
        )


def stop(name, seconds=None):
    """Stop by the container's own stop signal and within its own stop timeout, or within ``seconds``."""
    docker("stop", *(("-t", str(seconds)) if seconds is not None else ()), name, seconds=7200)


def remove(name):
    """Remove a container, whatever it does. Its volumes stay."""
    if inspect("container", [name]):
        docker("rm", "--force", name)


def rename(name, new):
    docker("rename", name, new)


def _death(container, restarts):
    """Return how a container died, or nothing. A crash loop looks up at any one moment: what was repeated, has died."""
    state = container["State"]
    if state.get("OOMKilled") and not is_running(container):
        return "was killed: it needs more memory than its limit"
    if state.get("Restarting") or container["RestartCount"] > restarts:
        return "ended by itself and was started again (last exit status {})".format(state["ExitCode"])
    if not is_running(container):
        return "ended with exit status {} {}".format(state["ExitCode"], state.get("Error") or "")
    return ""


def health_of(container):
    """Return healthy, unhealthy, starting, or nothing when there is no health check."""
    status = (container["State"].get("Health") or {}).get("Status", "")
    return "" if status == "none" else status


def _last_check(container):
    checks = (container["State"].get("Health") or {}).get("Log") or [{}]
    words = mask((checks[-1].get("Output") or "").strip(), environment_of(container))
    return ": " + words if words else ""


def wait_healthy(name, seconds, settle_seconds=3, restarts=0):
    """
    Wait until a container is well: its health check says so or, without one, it runs for ``settle_seconds``.

    + restarts: how often it had been restarted before
    """
    end = time.monotonic() + seconds
    began = time.monotonic()
    while True:
        container = inspect("container", [name]).get(name) or fail(f"{name} has been removed")
        death = _death(container, restarts)
        if death:
            fail(f"{name} {death.strip()}")
        health = health_of(container)
        if health == "healthy":
            return
        if health == "unhealthy":
            fail(f"{name} is unhealthy{_last_check(container)}")
        # Its age is in whole seconds, and a clock may jump.
        if not health and max(age(container) - 1, time.monotonic() - began) >= settle_seconds:
            return
        if time.monotonic() >= end:
            fail(f"{name} did not become healthy within {seconds} s{_last_check(container)}")
        time.sleep(0.2)


_SECRET_NAMES = re.compile("KEY|SECRET|TOKEN|PASS|CREDENTIAL")
_ADDRESS_NAMES = re.compile("DSN|URL")


def environment_of(container):
    return "\n".join(container["Config"].get("Env") or [])


def mask(text, environment):
    """
    Return a text without the values of an environment (lines of NAME=value).

    A program that refuses its configuration likes to print it. Taken out is every value of a variable that sounds
    secret, and every long one besides: too much masked does no harm.
    """
    values = set()
    for line in environment.splitlines():
        name, sign, value = line.partition("=")
        if not sign:
            continue
        secret = bool(_SECRET_NAMES.search(name.upper()))
        least = 4 if secret else 8 if _ADDRESS_NAMES.search(name.upper()) else 16
        parts = [value, *re.split(r"[\"' ,\[\]\\]+", value)]
        values.update(part for part in parts if len(part) >= least and (secret or not part.startswith("/")))
        # the password of an address
        values.update(part for part in re.findall(r"//[^:/@]*:([^@]+)@", value) if len(part) >= 4)
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "*MASKED*")
    return text


def last_lines(name, count=30):
    """Return what a container printed last, indented, without the values of its environment."""
    container = inspect("container", [name]).get(name)
    if not container:
        return "    (it is gone)"
    done = subprocess.run(
        ["docker", "logs", "--tail", str(count), name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    lines = mask(done.stdout, environment_of(container)).splitlines()
    return "\n".join("    " + line for line in lines) or "    (it printed nothing)"


def write_private(path, text):
    """Write a file that only root may read, at no moment anything else."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    staged = path + ".part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(staged)
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
