"""
The Docker engine: its packages, and its configuration.

pyinfra's ``apt`` and ``files`` operations can put packages and a file there. What they leave open is what breaks hosts: a
second source of the same packages with another key, an update that stops containers, a daemon.json on which the engine
does not start, and a restart that ends every container where a reload would do.
"""

import difflib
import hashlib
import json
import re
import shlex
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from pyinfra import host
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.engine import DAEMON_JSON, KEY_FILE, SOURCE_FILE, Engine, EngineState
from operations import fileset, script
from operations.fileset import File
from operations.template import render
from settings.docker import FINGERPRINT, REPOSITORY

UNIT = "docker.service"
_PARTS = ("yes", "no", "available")


@dataclass(frozen=True)
class _Source:
    """What one source calls the parts of the engine; empty where it lacks one."""

    engine: tuple[str, ...]
    compose: str
    buildx: str
    held: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        return {*self.engine, *self.held, self.compose, self.buildx} - {""}


_DOCKER = _Source(
    ("docker-ce", "docker-ce-cli", "containerd.io"), "docker-compose-plugin", "docker-buildx-plugin"
)
# Debian 12 has Compose v1 alone, which Docker ended in 2023, and no buildx.
_DISTRIBUTIONS = {
    ("debian", "12"): _Source(("docker.io",), "", "", ("containerd",)),
    ("debian", "13"): _Source(
        ("docker.io", "docker-cli"), "docker-compose", "docker-buildx", ("containerd",)
    ),
    ("ubuntu", "22.04"): _Source(("docker.io",), "docker-compose-v2", "docker-buildx", ("containerd",)),
    ("ubuntu", "24.04"): _Source(("docker.io",), "docker-compose-v2", "docker-buildx", ("containerd",)),
}
# What stands in the way of either source, besides the packages of the other one.
_OLD = {"docker-engine", "lxc-docker", "podman-docker"}
_OF_DOCKER = _DOCKER.names | {"docker-ce-rootless-extras", "docker-scan-plugin", "docker-model-plugin"}
_OF_DISTRIBUTIONS = {"docker-doc", "docker-compose"}.union(*(one.names for one in _DISTRIBUTIONS.values()))
ALL_PACKAGES = sorted(_OF_DOCKER | _OF_DISTRIBUTIONS | _OLD | {"apparmor"})


@dataclass(frozen=True)
class Plan:
    """What has to be done to the packages: to install with a version or none, to remove, to hold afterwards."""

    install: dict[str, str]
    remove: tuple[str, ...]
    hold: tuple[str, ...]


def is_version(installed: str, wanted: str) -> bool:
    """Whether a package's version is the wanted one, said in full (``5:28.5.2-1~debian…``) or as ``28.5.2``."""
    upstream = re.sub(r"^[0-9]+:", "", installed)
    return wanted in (installed, upstream) or bool(re.match(re.escape(wanted) + r"[-~+]", upstream))


def _chosen(state: EngineState, source: str) -> _Source:
    if source == "docker":
        return _DOCKER
    found = _DISTRIBUTIONS.get(state.release)
    if found is None:
        raise OperationError(
            f"engine.engine: {' '.join(state.release)}: its own packages are not known; write docker_source = 'docker'"
        )
    return found


def plan(
    state: EngineState,
    source: str,
    versions: Mapping[str, str],
    compose: str = "available",
    buildx: str = "available",
) -> Plan:
    """Return what has to be done. Raise OperationError for what the source does not have."""
    chosen = _chosen(state, source)
    wanted = list(chosen.engine)
    unwanted = _OLD | (_OF_DISTRIBUTIONS if source == "docker" else _OF_DOCKER)
    for part, choice, package in (
        ("Compose v2", compose, chosen.compose),
        ("buildx", buildx, chosen.buildx),
    ):
        if choice == "yes" and not package:
            key = part.split()[0].lower()
            raise OperationError(
                f"engine.engine: {' '.join(state.release)} has no {part} among its own packages; write docker_source = "
                f"'docker', or docker_{key} = 'no'; nothing was changed"
            )
        if package and choice == "no":
            unwanted = unwanted | {package}
        elif package:
            wanted.append(package)
    install = {}
    for package in wanted:
        version = versions.get(package, "")
        if package not in state.packages or (version and not is_version(state.packages[package][0], version)):
            install[package] = version
    # Without its parser, an engine under AppArmor starts no container.
    if state.apparmor and "apparmor" not in state.packages:
        install["apparmor"] = ""
    remove = tuple(sorted((unwanted - set(wanted)) & set(state.packages)))
    held = [*wanted, *(name for name in chosen.held if name in state.packages or install)]
    loose = tuple(name for name in held if name in install or not state.packages.get(name, ("", False))[1])
    return Plan(install, remove, loose)


@operation()
def engine(
    source: str = "docker",
    version: str = "",
    containerd_version: str = "",
    repository: str = REPOSITORY,
    key_url: str = "",
    key_fingerprint: str = FINGERPRINT,
    compose: str = "available",
    buildx: str = "available",
    keep_containers: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Install the engine, hold it at its version, and have it run, now and after every boot.

    + source: ``docker`` for Docker's own packages, ``distribution`` for those of Debian or Ubuntu
    + version: of docker-ce and docker-ce-cli, such as ``28.5.2``; empty: the newest, once. Another version than the
      installed one is installed, older ones too; for ``docker`` only
    + containerd_version: of containerd.io, likewise
    + repository: URL of the apt repository, without the name of the distribution
    + key_url: where its signing key is; empty: ``gpg`` in the repository
    + key_fingerprint: the key that must be there, and no other beside it
    + compose: ``yes`` wants Compose v2, ``available`` takes it where the source has it, ``no`` removes it
    + buildx: the same for buildx
    + keep_containers: containers outlive a change of packages (the engine gets live-restore before), and what nginx sends
      them goes past the engine meanwhile. ``False`` for a swarm, which cannot have live-restore

    Every source of Docker's packages that somebody else has set up, in either form, makes room for one of our own, so
    that apt finds no two keys for one source. Packages of the other source are removed and never purged: images,
    containers and volumes in ``/var/lib/docker`` stay. The installed packages are held (``apt-mark hold``).

    Raises ``OperationError`` before anything is changed for what the source does not have, and for Docker from a snap.

    **Example:**

    .. code:: python

        engine.engine(version="28.5.2", name="Install the Docker engine")
    """
    faults = []
    if source not in ("docker", "distribution"):
        faults.append(f"source must be 'docker' or 'distribution', got {source!r}")
    if source == "distribution" and (version or containerd_version):
        faults.append("version and containerd_version go with source='docker'")
    if not re.fullmatch(r"[0-9A-F]{40}", key_fingerprint):
        faults.append(f"key_fingerprint must be 40 hexadecimal digits in capitals, got {key_fingerprint!r}")
    for name, choice in (("compose", compose), ("buildx", buildx)):
        if choice not in _PARTS:
            faults.append(f"{name} must be one of {', '.join(_PARTS)}, got {choice!r}")
    if faults:
        raise OperationValueError("engine.engine: " + "; ".join(faults))

    state = host.get_fact(Engine, packages=ALL_PACKAGES, repository=repository)
    if state.snap:
        raise OperationError(
            "engine.engine: Docker is installed from a snap: snap remove docker; nothing was changed"
        )
    versions = {"docker-ce": version, "docker-ce-cli": version, "containerd.io": containerd_version}
    todo = plan(state, source, versions, compose, buildx)
    source_text = ""
    if source == "docker":
        uri = f"{repository}/{state.release[0]}"
        source_text = render("engine/docker.sources.j2", uri=uri, suite=state.codename, key_file=KEY_FILE)
        is_sourced = (
            state.sources == (SOURCE_FILE,)
            and state.source_sha256 == hashlib.sha256(source_text.encode()).hexdigest()
            and state.keys == (key_fingerprint,)
        )
    else:
        is_sourced = not state.sources
    runs = state.active == "active" and state.enabled == "enabled" and not state.replaced
    if is_sourced and runs and not (todo.install or todo.remove or todo.hold):
        host.noop(f"engine {state.version} is installed, held and runs")
        return
    yield script.python(
        "engine/openpgp.py",
        "engine/sources.py",
        "engine/keep.py",
        "engine/detour.py",
        "engine/install.py",
        values={
            "repository": repository,
            "source_file": SOURCE_FILE,
            "source_text": source_text,
            "key_file": KEY_FILE,
            "key_url": key_url or f"{repository}/{state.release[0]}/gpg",
            "fingerprint": key_fingerprint,
            "daemon_json": DAEMON_JSON,
            "install": todo.install,
            "remove": todo.remove,
            "hold": todo.hold,
            "keep_containers": keep_containers,
            "restart": state.replaced,
        },
    )


# What a reload changes, on every engine from 20.10 (daemon/reload.go).
_RELOADABLE = {
    "debug",
    "insecure-registries",
    "labels",
    "live-restore",
    "registry-mirrors",
    "shutdown-timeout",
}
# The same, and a key that is gone is gone: for all others, a reload keeps the value of a key that it does not find.
_RESET = {"features", "max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts"}
# Engine 20.10 cannot check a file without running on it; this is what its documentation lists.
_KEYS_20_10 = frozenset(
    re.findall(
        r"\S+",
        """allow-nondistributable-artifacts api-cors-header authorization-plugins bip bridge builder cgroup-parent
    cluster-advertise cluster-store cluster-store-opts containerd containerd-namespace containerd-plugin-namespace
    cpu-rt-period cpu-rt-runtime data-root debug default-address-pools default-cgroupns-mode default-gateway
    default-gateway-v6 default-ipc-mode default-runtime default-shm-size default-ulimits dns dns-opts dns-search
    exec-opts exec-root experimental features fixed-cidr fixed-cidr-v6 group host-gateway-ip hosts icc init init-path
    insecure-registries ip ip-forward ip-masq ip6tables iptables ipv6 labels live-restore log-driver log-level log-opts
    max-concurrent-downloads max-concurrent-uploads max-download-attempts metrics-addr mtu network-control-plane-mtu
    network-diagnostic-port no-new-privileges node-generic-resources oom-score-adjust pidfile raw-logs registry-mirrors
    runtimes seccomp-profile selinux-enabled shutdown-timeout storage-driver storage-opts swarm-default-advertise-addr
    tls tlscacert tlscert tlskey tlsverify userland-proxy userland-proxy-path userns-remap""",
    )
)
_VALIDATE = f"dockerd --validate --config-file {DAEMON_JSON}"


def number(version: str) -> tuple[int, ...]:
    """Return (20, 10) of ``20.10.24+dfsg1``; (0,) when there is no engine."""
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    return tuple(int(part) for part in found.groups() if part) if found else (0,)


def fitted(options: Mapping[str, Any], version: str) -> dict[str, Any]:
    """
    Return the keys as this version of the engine takes them.

    ``ip6tables`` was experimental before 27; ``default-network-opts`` is from 24 on.
    """
    found = dict(options)
    if found.get("ip6tables") and number(version) < (27,):
        found["experimental"] = True
    if number(version) < (24,):
        found.pop("default-network-opts", None)
    return found


def text(options: Mapping[str, Any]) -> str:
    """Return daemon.json."""
    return json.dumps(options, indent=2, sort_keys=True) + "\n"


def changed_keys(state: EngineState, options: Mapping[str, Any]) -> set[str]:
    """Return the keys that the file says otherwise than wanted, or not at all, or that it should not have."""
    wanted = {
        key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        for key, value in options.items()
    }
    return {key for key in {*wanted, *state.daemon_keys} if wanted.get(key) != state.daemon_keys.get(key)}


def action(state: EngineState, options: Mapping[str, Any]) -> str:
    """
    Return what brings the engine to these options: ``reload`` where it is known to do, else ``restart``.

    It is known when the engine runs on the file as it is (our stamp says so) and all that changes can be reloaded, or
    when it already runs on the wanted file, and only the file was changed.
    """
    path = DAEMON_JSON

    def runs_on(sha256: str) -> bool:
        return state.stamp == (fileset.content_hash([(path, sha256)]), state.invocation)

    if runs_on(hashlib.sha256(text(options).encode()).hexdigest()):
        return "reload"
    changed = changed_keys(state, options)
    reloadable = changed <= _RESET | (_RELOADABLE & options.keys())
    return "reload" if reloadable and runs_on(state.daemon_sha256) else "restart"


def probe(options: Mapping[str, Any]) -> str:
    """Return the shell command that asks the engine whether it runs on these options, as far as it says so."""
    asked, wanted = ["{{.ServerVersion}}"], [""]
    if "live-restore" in options:
        asked.append("{{.LiveRestoreEnabled}}")
        wanted.append(json.dumps(options["live-restore"]))
    if "debug" in options:
        asked.append("{{.Debug}}")
        wanted.append(json.dumps(options["debug"]))
    if "registry-mirrors" in options:
        asked.append("{{range .RegistryConfig.Mirrors}}{{.}} {{end}}")
        wanted.append("".join(f"{mirror.rstrip('/')}/ " for mirror in options["registry-mirrors"]))
    for registry in options.get("insecure-registries", ()):
        if "/" not in registry:
            asked.append(
                f'{{{{with index .RegistryConfig.IndexConfigs "{registry}"}}}}{{{{.Secure}}}}{{{{end}}}}'
            )
            wanted.append("false")
    asking = shlex.join(["docker", "info", "--format", "|".join(asked)])
    # The version is anything but nothing.
    return (
        f'said=$({asking}) && test "${{said#*|}}" = {shlex.quote("|".join(wanted[1:]))}'
        if asked[1:]
        else asking
    )


@operation()
def daemon(options: Mapping[str, Any], start_seconds: int = 90) -> Generator[StringCommand, None, None]:
    """
    Configure the engine by daemon.json, with the least that makes it run on it.

    + options: the whole of the file. Write out what may be reloaded later (``"registry-mirrors": []``): on a reload
      the engine keeps the value of a key that the file has no more
    + start_seconds: how long the engine may take to run on it (s)

    The file is checked before it goes live: by the engine itself from version 23, by the names of its keys before. What
    the engine can reload is reloaded; for the rest it is restarted, and containers outlive that when the options say
    ``"live-restore": true``, also when the running engine has not got it yet. An engine that does not come back gets the
    old file back.

    Keys are fitted to the engine: ``ip6tables`` brings ``experimental`` before version 27, and
    ``default-network-opts`` is left out before 24.

    Raises ``OperationValueError`` for keys that the engine does not know.

    **Example:**

    .. code:: python

        engine.daemon({"live-restore": True, "registry-mirrors": []}, name="Configure the Docker engine")
    """
    state = host.get_fact(Engine, stamp_key=fileset.stamp_name(UNIT, [DAEMON_JSON]))
    wanted = fitted(options, state.version)
    if unknown := sorted(wanted.keys() - _KEYS_20_10) if (0,) < number(state.version) < (23,) else []:
        near = difflib.get_close_matches(unknown[0], _KEYS_20_10, n=1)
        raise OperationValueError(
            f"engine.daemon: engine {state.version} does not know {', '.join(map(repr, unknown))} in daemon.json"
            + (f", did you mean {near[0]!r}?" if near else "")
        )
    content = text(wanted)
    chosen = action(state, wanted)
    do_keep = (
        chosen == "restart"
        and wanted.get("live-restore")
        and state.active == "active"
        and state.daemon_sha256 != hashlib.sha256(content.encode()).hexdigest()
    )
    if do_keep:
        yield script.python(
            "engine/keep.py", "engine/detour.py", "engine/before_restart.py", values={"daemon_json": DAEMON_JSON}
        )
    yield from fileset.files._inner(
        entries=[File(DAEMON_JSON, content)],
        validate=_VALIDATE if number(state.version) >= (23,) else None,
        within="/etc/docker" if number(state.version) >= (23,) else None,
        unit=UNIT,
        action=chosen,
        probe=probe(wanted),
        probe_seconds=start_seconds,
    )
    if do_keep:
        yield script.python("engine/detour.py", "engine/after_restart.py", values={})
