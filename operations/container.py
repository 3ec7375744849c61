"""
One container from one typed spec, and what it stands on: networks, volumes, images.

A container is made anew when, and only when, its spec or its image differs from what it was made from. What a container
is to be is a frozen dataclass, ``Spec``; its hash stands in a label of the container, so that the host itself knows what
it runs.
"""

import hashlib
import ipaddress
import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from pyinfra import host
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.container import Container, ContainerImages, ContainerNetwork, ContainerState, ContainerVolume
from operations import script
from settings.secret import Secret


@dataclass(frozen=True)
class Mount:
    """
    A volume or a path of the host inside the container.

    + source: name of a volume, or an absolute path on the host; it must exist
    + target: absolute path in the container
    """

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Network:
    """A network that the container is on; ``aliases`` are further names for it there. ``host`` and ``none`` stand alone."""

    name: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Publish:
    """A port of the host that leads into the container. ``address`` "" means all of the host's, IPv4 and IPv6."""

    port: int
    container_port: int
    address: str = "127.0.0.1"
    proto: str = "tcp"


@dataclass(frozen=True)
class Health:
    """
    The command that tells whether the container is well: exit status 0. The image's ``/bin/sh`` runs it.

    + interval_seconds: between two checks, and before the first; + timeout_seconds: longer is a failure
    + retries: failures in a row that make it unhealthy; + start_seconds: failures in this time do not count
    """

    command: tuple[str, ...]
    interval_seconds: int = 5
    timeout_seconds: int = 5
    retries: int = 3
    start_seconds: int = 30


@dataclass(frozen=True)
class Log:
    """
    Where what the container prints goes: ``json-file`` or ``local``, with limits, ``journald``, which has its own, or to a
    collector: ``syslog``, ``gelf`` and ``fluentd``.

    + address: of the collector, in the words of its driver; what it does not take in time is dropped, so that the
      application never waits for it
    """

    driver: str = "json-file"
    max_size_mb: int = 10
    files: int = 3
    address: str = ""


@dataclass(frozen=True)
class Spec:
    """
    Everything that makes a container what it is.

    + image: ``registry/path:tag`` or ``registry/path@sha256:…``
    + command, entrypoint: words, not a shell line; empty: what the image says
    + environment: text rendered by ``settings.env.render(…, consumer="docker")``
    + cpus, memory_mb, pids, shm_mb: 0 means no limit (``shm_mb``: Docker's default)
    + restart: ``no``, ``on-failure``, ``on-failure:N``, ``always`` or ``unless-stopped``
    + groups: further groups of the process, names or numbers
    + tmpfs: ``/path`` or ``/path:size=64m,mode=1777``
    + platform: e.g. ``linux/amd64``; empty: the host's. An image for another one is refused
    + extra_hosts: name to address, or to ``host-gateway``
    """

    image: str
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    environment: str | Secret = field(default="", repr=False)
    mounts: tuple[Mount, ...] = ()
    networks: tuple[Network, ...] = ()
    publish: tuple[Publish, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 0
    memory_mb: int = 0
    pids: int = 0
    restart: str = "unless-stopped"
    health: Health | None = None
    log: Log = field(default_factory=Log)
    user: str = ""
    groups: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ("ALL",)
    cap_add: tuple[str, ...] = ()
    no_new_privileges: bool = True
    read_only: bool = False
    tmpfs: tuple[str, ...] = ()
    shm_mb: int = 0
    stop_signal: str = "SIGTERM"
    stop_seconds: int = 30
    platform: str = ""
    hostname: str = ""
    extra_hosts: Mapping[str, str] = field(default_factory=dict)


_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{1,62}")
_OBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,127}")
# host[:port]/path/path:tag@digest, as the engine's reference grammar has it, with a tag or a digest demanded
_IMAGE = re.compile(
    r"(?:(?=[^/]*[.:]|localhost/)[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}(?:@sha256:[0-9a-f]{64})?|@sha256:[0-9a-f]{64})"
)
_PLATFORM = re.compile(r"linux/[a-z0-9]+(?:/v[0-9]+)?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?::[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_CAPABILITY = re.compile(r"(?:CAP_)?[A-Z][A-Z0-9_]*")
_SIGNAL = re.compile(r"SIG[A-Z0-9+-]+")
_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
_RESTART = re.compile(r"no|always|unless-stopped|on-failure(?::[1-9][0-9]*)?")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")

_WORDS = ("command", "entrypoint", "groups", "cap_drop", "cap_add", "tmpfs")
_SHIPPING_DRIVERS = ("syslog", "gelf", "fluentd")
_LOG_DRIVERS = ("json-file", "local", "journald", *_SHIPPING_DRIVERS)


def environment_text(spec: Spec) -> str:
    """Return the environment in clear: where it is used, it must not be shown."""
    given = spec.environment
    return given.unmask() if isinstance(given, Secret) else given


def name_faults(name: str) -> list[str]:
    """Return what is wrong with a container's name, if anything."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return []
    return [f"a container's name must be 2 to 63 lower-case letters, digits, '-' and '_', got {name!r}"]


def _is_path(text: Any) -> bool:
    return (
        isinstance(text, str)
        and text.startswith("/")
        and str(PurePosixPath(text)) == text
        and ".." not in PurePosixPath(text).parts
        and not any(sign in text for sign in ',"\n\t:')
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _whole(value: Any, least: int, most: int | None = None) -> bool:
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= least
        and (most is None or value <= most)
    )


def _environment_faults(spec: Spec) -> list[str]:
    """A line that is no assignment would be dropped, or filled from the environment of whoever runs docker."""
    if not isinstance(spec.environment, (str, Secret)):
        return ["environment must be text, see settings.env.render(…, consumer='docker')"]
    faults = []
    for number, line in enumerate(environment_text(spec).split("\n"), 1):
        if line and not _VARIABLE.match(line):
            faults.append(f"environment: line {number} must be NAME=value")  # not shown: it may be a secret
        elif "\r" in line or "\0" in line:
            faults.append(f"environment: line {number} holds a control character")
    return faults


def _mount_faults(spec: Spec) -> list[str]:
    faults = []
    targets = [mount.target for mount in spec.mounts] + [entry.partition(":")[0] for entry in spec.tmpfs]
    for mount in spec.mounts:
        if not (_is_path(mount.source) or _OBJECT.fullmatch(mount.source)):
            faults.append(f"mount: source must be a volume's name or an absolute path, got {mount.source!r}")
        if not _is_path(mount.target) or mount.target == "/":
            faults.append(f"mount: target must be an absolute path below /, got {mount.target!r}")
    for entry in spec.tmpfs:
        path, _, options = entry.partition(":")
        if not _is_path(path) or path == "/" or re.search(r"[\s:]", options):
            faults.append(f"tmpfs: must be '/path' or '/path:options', got {entry!r}")
    faults += [f"mount: {target} stands twice" for target in sorted({t for t in targets if targets.count(t) > 1})]
    return faults


def _network_faults(spec: Spec) -> list[str]:
    faults = []
    names = [network.name for network in spec.networks]
    special = {"host", "none"} & set(names)
    if special and len(names) > 1:
        faults.append(f"network {sorted(special)[0]!r} must be the only one")
    if special and spec.publish:
        faults.append(f"network {sorted(special)[0]!r} cannot publish ports")
    for network in spec.networks:
        if not _OBJECT.fullmatch(network.name):
            faults.append(f"network: not a network's name: {network.name!r}")
        if network.aliases and network.name in ("bridge", "host", "none"):
            faults.append(f"network {network.name!r} has no aliases; use one of your own")
        faults += [
            f"network {network.name}: not a host name: {alias!r}"
            for alias in network.aliases
            if not _HOSTNAME.fullmatch(alias.replace("_", "-"))
        ]
    faults += [f"network {name} stands twice" for name in sorted({n for n in names if names.count(n) > 1})]
    return faults


def _publish_faults(spec: Spec) -> list[str]:
    faults = []
    seen: set[tuple[str, int, str]] = set()
    for one in spec.publish:
        for key in ("port", "container_port"):
            if not _whole(getattr(one, key), 1, 65535):
                faults.append(f"publish: {key} must be 1 to 65535, got {getattr(one, key)!r}")
        if one.proto not in ("tcp", "udp"):
            faults.append(f"publish: proto must be 'tcp' or 'udp', got {one.proto!r}")
        if one.address and not _is_address(one.address):
            faults.append(f"publish: address must be an IP address or '', got {one.address!r}")
        key_ = (one.address, one.port, one.proto)
        if key_ in seen:
            faults.append(f"publish: {one.address or '*'}:{one.port}/{one.proto} stands twice")
        seen.add(key_)
    return faults


def _limit_faults(spec: Spec) -> list[str]:
    faults = []
    if isinstance(spec.cpus, bool) or not isinstance(spec.cpus, (int, float)) or not (spec.cpus == 0 or spec.cpus >= 0.01):
        faults.append(f"cpus must be 0 (no limit) or at least 0.01, got {spec.cpus!r}")
    if not (_whole(spec.memory_mb, 6) or spec.memory_mb == 0):
        faults.append(f"memory_mb must be 0 (no limit) or at least 6, got {spec.memory_mb!r}")
    for key in ("pids", "shm_mb", "stop_seconds"):
        if not _whole(getattr(spec, key), 0):
            faults.append(f"{key} must be a whole number of at least 0, got {getattr(spec, key)!r}")
    if spec.health:
        health = spec.health
        if not health.command or isinstance(health.command, str):
            faults.append(f"health: command must be words like ('curl', '-f', …), got {health.command!r}")
        for key, least in (("interval_seconds", 1), ("timeout_seconds", 1), ("retries", 1), ("start_seconds", 0)):
            if not _whole(getattr(health, key), least):
                faults.append(f"health: {key} must be a whole number of at least {least}, got {getattr(health, key)!r}")
    if spec.log.driver not in _LOG_DRIVERS:
        faults.append(f"log: driver must be one of {', '.join(_LOG_DRIVERS)}, got {spec.log.driver!r}")
    if bool(spec.log.address) != (spec.log.driver in _SHIPPING_DRIVERS):
        faults.append(f"log: address goes with {', '.join(_SHIPPING_DRIVERS)}, got {spec.log.address!r} for {spec.log.driver!r}")
    if re.search(r"[\s,]", spec.log.address):
        faults.append(f"log: address must hold no blank and no comma, got {spec.log.address!r}")
    for key in ("max_size_mb", "files"):
        if not _whole(getattr(spec.log, key), 1):
            faults.append(f"log: {key} must be a whole number of at least 1, got {getattr(spec.log, key)!r}")
    return faults


def faults(name: str, spec: Spec) -> list[str]:
    """Return every rule that a container's name and spec break, one line each. A value of the environment is never shown."""
    if not isinstance(spec, Spec):
        return [*name_faults(name), f"spec must be a container.Spec, got {type(spec).__name__}"]
    found = name_faults(name)
    if not _IMAGE.fullmatch(spec.image):
        found.append(f"image must be 'registry/path:tag' or 'registry/path@sha256:…', got {spec.image!r}")
    for key in _WORDS:
        value = getattr(spec, key)
        if isinstance(value, str) or not all(isinstance(word, str) and "\0" not in word for word in value):
            found.append(f"{key} must be a tuple of words, got {value!r}")
    if any(isinstance(getattr(spec, key), str) for key in _WORDS):
        return found  # what follows would take a text apart letter by letter
    found += _environment_faults(spec)
    found += _mount_faults(spec)
    found += _network_faults(spec)
    found += _publish_faults(spec)
    found += _limit_faults(spec)
    for key, value in spec.labels.items():
        if not _LABEL.fullmatch(key) or not isinstance(value, str) or "\n" in value:
            found.append(f"labels: {key!r} must be a name with one line of text")
        elif key.startswith("hostwright."):
            found.append(f"labels: {key!r}: names that begin with 'hostwright.' are taken")
    for key, pattern, example in (
        ("restart", _RESTART, "no, on-failure, on-failure:3, always or unless-stopped"),
        ("stop_signal", _SIGNAL, "like SIGTERM"),
    ):
        if not pattern.fullmatch(getattr(spec, key)):
            found.append(f"{key} must be {example}, got {getattr(spec, key)!r}")
    for key, pattern, example in (
        ("user", _USER, "a user or user:group"),
        ("platform", _PLATFORM, "like linux/amd64"),
        ("hostname", _HOSTNAME, "a host name"),
    ):
        if getattr(spec, key) and not pattern.fullmatch(getattr(spec, key)):
            found.append(f"{key} must be {example}, got {getattr(spec, key)!r}")
    found += [f"groups: not a group: {group!r}" for group in spec.groups if not _GROUP.fullmatch(group)]
    found += [
        f"capability must be written like NET_BIND_SERVICE, got {capability!r}"
        for capability in (*spec.cap_drop, *spec.cap_add)
        if not _CAPABILITY.fullmatch(capability)
    ]
    for host_name, address in spec.extra_hosts.items():
        if not _HOSTNAME.fullmatch(host_name) or not (address == "host-gateway" or _is_address(address)):
            found.append(f"extra_hosts: must be a name with an IP address or 'host-gateway', got {host_name!r}: {address!r}")
    return found


def canonical(spec: Spec) -> dict[str, Any]:
    """
    Return the spec as plain data for ``script.python``: what ``files/container/engine.py`` takes.

    The environment in it is a ``Secret``, whatever was given; all else can be shown.
    """
    plain = {
        key: value for key, value in asdict(_without_environment(spec)).items() if key != "environment"
    }
    plain["labels"] = dict(sorted(spec.labels.items()))
    plain["extra_hosts"] = dict(sorted(spec.extra_hosts.items()))
    plain["environment"] = Secret(environment_text(spec))
    return plain


def _without_environment(spec: Spec) -> Spec:
    return replace(spec, environment="")


def spec_hash(spec: Spec) -> str:
    """Return the SHA-256 over the whole spec, its environment included."""
    plain = canonical(spec)
    plain["environment"] = plain["environment"].unmask()
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


_PULL = ("missing", "moved", "never")
_PROGRAMS = ("container/engine.py", "container/compare.py", "container/converge.py")


def _public(spec: Spec) -> dict[str, Any]:
    """Return the spec's plain data without the environment: what may stand in a command line."""
    return {key: value for key, value in canonical(spec).items() if key != "environment"}


def _hash_of_environment(spec: Spec) -> str:
    return hashlib.sha256(environment_text(spec).encode()).hexdigest()


def _values(container: str, spec: Spec | None, pull: str, start_seconds: int) -> dict[str, Any]:
    """Return what ``files/container/converge.py`` takes; without a spec it takes the container away."""
    values: dict[str, Any] = {"container": container, "spec": None, "start_seconds": start_seconds}
    if spec:
        values |= {
            "spec": canonical(spec),
            "spec_hash": spec_hash(spec),
            "environment_hash": _hash_of_environment(spec),
            "pull": pull,
        }
    return values


def owed(spec: Spec, found: ContainerState) -> list[str]:
    """Return why a container is not as its spec says, in words; empty when it is."""
    if not found.engine:
        return ["no engine answers yet"]
    if found.id and found.spec_hash != spec_hash(spec):
        return ["its spec differs"]
    if found.id and not found.anew and found.environment_hash != _hash_of_environment(spec):
        return [*found.repair, "its environment file"]
    return found.anew + found.repair


@operation()
def container(
    container: str,
    spec: Spec | None = None,
    pull: str = "missing",
    start_seconds: int = 60,
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Run one container that is as its spec says.

    It is made anew when, and only when, its spec or its image differs from what it was made from; what somebody changed by
    hand (stopped, removed, renamed, paused, other limits, other networks) is put right in place where the engine can.
    The old one stops only when the new one has been created; when the new one does not become healthy, the old one runs
    again and the operation fails with the new one's last lines.

    + container: its name
    + spec: all that it is, see ``Spec``
    + pull: ``missing``; ``moved`` asks the registry whether the tag means another image now, and pulls only then;
      ``never``
    + start_seconds: how long it may take to become healthy; without a health check it must run for 3 s
    + present: ``False`` stops and removes it, and its environment's file. Its volumes stay

    Raises ``OperationValueError`` for a spec that breaks a rule, all of them in one message.

    **Example:**

    .. code:: python

        container.container(
            "redis",
            container.Spec(
                image="registry.example/redis:7.2",
                command=("redis-server", "--appendonly", "yes"),
                mounts=(container.Mount("redis", "/data"),),
                networks=(container.Network("backend", aliases=("cache",)),),
                memory_mb=2048,
                health=container.Health(("redis-cli", "ping")),
            ),
            name="Run redis",
        )
    """
    wrong = name_faults(container) if spec is None else faults(container, spec)
    if spec is None and present:
        wrong.append("spec is needed")
    if pull not in _PULL:
        wrong.append(f"pull must be 'missing', 'moved' or 'never', got {pull!r}")
    if not _whole(start_seconds, 1):
        wrong.append(f"start_seconds must be a whole number of at least 1, got {start_seconds!r}")
    elif spec is not None and spec.health and not wrong and start_seconds <= spec.health.interval_seconds:
        wrong.append(
            f"start_seconds must be more than the health check's interval of {spec.health.interval_seconds}, "
            f"got {start_seconds!r}"
        )
    if wrong:
        raise OperationValueError(f"container.container {container}: " + "; ".join(wrong))

    found = host.get_fact(
        Container, container=container, spec=_public(spec) if spec and present else None, pull=pull
    )
    if found.refused:
        raise OperationError(f"container.container {container}: {found.refused}")
    if spec is None or not present:
        if not (found.id or found.repair or found.has_file):
            host.noop(f"container {container} is not there")
            return
        spec = None
    elif not owed(spec, found):
        host.noop(f"container {container} runs as its spec says")
        return
    yield script.python(*_PROGRAMS, values=_values(container, spec, pull, start_seconds))


@operation()
def network(
    network: str, internal: bool = False, ipv6: bool = False, present: bool = True
) -> Generator[StringCommand, None, None]:
    """
    Have one bridge network of our own.

    + network: its name
    + internal: no way out of it, and none in
    + ipv6: IPv6 besides IPv4, with a local prefix of its own
    + present: ``False`` removes it

    It is made anew when one of the two differs, and refused as long as a container is on it.
    """
    if not isinstance(network, str) or not _OBJECT.fullmatch(network) or network in ("bridge", "host", "none"):
        raise OperationValueError(f"container.network: must be a name of your own, got {network!r}")
    values = {"network": network, "internal": bool(internal), "ipv6": bool(ipv6), "present": bool(present)}
    steps = host.get_fact(ContainerNetwork, **values)
    if steps == [] or (steps is None and not present):
        host.noop(f"network {network} is {'as wanted' if present else 'not there'}")
        return
    yield script.python("container/engine.py", "container/network.py", values={**values, "change": True})


@operation()
def volume(
    volume: str, owner: str = "", mode: str = "", present: bool = True
) -> Generator[StringCommand, None, None]:
    """
    Have one named volume.

    + volume: its name
    + owner: ``uid:gid`` of its top directory, as numbers; empty: as it is
    + mode: octal text, of its top directory; empty: as it is
    + present: ``False`` removes it when it is empty; one with data is refused
    """
    wrong = _volume_faults(volume)
    if owner and not re.fullmatch(r"[0-9]+:[0-9]+", owner):
        wrong.append(f"owner must be numbers like '999:999', got {owner!r}")
    if mode and not re.fullmatch(r"[0-7]{3,4}", mode):
        wrong.append(f"mode must be octal text like '0750', got {mode!r}")
    if wrong:
        raise OperationValueError("container.volume: " + "; ".join(wrong))
    values = {"volume": volume, "owner": owner, "mode": mode, "present": bool(present)}
    steps = host.get_fact(ContainerVolume, **values)
    if steps == [] or (steps is None and not present):
        host.noop(f"volume {volume} is {'as wanted' if present else 'not there'}")
        return
    yield _volume_command(values, with_data=False)


@operation()
def remove_volume_with_its_data(volume: str) -> Generator[StringCommand, None, None]:
    """
    Remove a named volume and all that is in it. There is no way back.

    + volume: its name; refused as long as a container uses it
    """
    wrong = _volume_faults(volume)
    if wrong:
        raise OperationValueError("container.remove_volume_with_its_data: " + "; ".join(wrong))
    if not host.get_fact(ContainerVolume, volume=volume, present=False):
        host.noop(f"volume {volume} is not there")
        return
    yield _volume_command({"volume": volume, "owner": "", "mode": "", "present": False}, with_data=True)


def _volume_faults(volume: str) -> list[str]:
    if isinstance(volume, str) and _OBJECT.fullmatch(volume):
        return []
    return [f"volume must be a volume's name, got {volume!r}"]


def _volume_command(values: dict[str, Any], with_data: bool) -> StringCommand:
    return script.python(
        "container/engine.py",
        "container/volume.py",
        values={**values, "with_data": with_data, "change": True},
    )


@operation()
def pulled(images: Sequence[str], platform: str = "") -> Generator[StringCommand, None, None]:
    """
    Have images on the host before anything needs them.

    + images: references with a tag or a digest. A tag that is here stays as it is, even if it has moved
    + platform: e.g. ``linux/amd64``; empty: the host's. An image for another one is refused, if the registry says so before
      it is pulled
    """
    wrong = ["images must be a list"] if isinstance(images, str) else []
    wrong += [
        f"image must be 'registry/path:tag' or 'registry/path@sha256:…', got {one!r}"
        for one in ([] if wrong else images)
        if not isinstance(one, str) or not _IMAGE.fullmatch(one)
    ]
    if platform and not _PLATFORM.fullmatch(platform):
        wrong.append(f"platform must be like linux/amd64, got {platform!r}")
    if wrong:
        raise OperationValueError("container.pulled: " + "; ".join(wrong))
    if host.get_fact(ContainerImages, images=list(images), platform=platform) == []:
        host.noop(f"{len(images)} images are here")
        return
    values = {"images": list(images), "platform": platform, "change": True}
    yield script.python("container/engine.py", "container/images.py", values=values)
