"""
A Docker Compose project from one file that is data, and the way back when a new one is not well.

pyinfra's ``docker.compose`` always reports a change, waits for nothing, and knows no way back. Here the file is compared,
and of the containers what each was made from; ``up`` runs only when something differs.
"""

import hashlib
import ipaddress
import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from pyinfra import host
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.compose import Compose, ComposeState
from operations import script
from settings import Port
from settings.secret import Secret

HOME = "/etc/hostwright/compose"
LEAST_VERSION = (2, 20)
"""Compose that the operation needs: the guide's least, which knows every flag that is used here."""


@dataclass(frozen=True)
class Drain:
    """
    How the containers of a service are emptied before they are replaced or stopped; commands run inside of them.

    + quiesce: has it take no more work; + busy: prints how much it still has, a whole number
    + resume: has it take work again, when the change was called off
    + seconds: how long it may take; what is not finished then is cut off, with a warning. 0 does not wait at all
    """

    quiesce: tuple[str, ...]
    busy: tuple[str, ...]
    resume: tuple[str, ...]
    seconds: int = 1800


_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_KEY = re.compile(r"[A-Za-z0-9._-]{1,63}")
# As in operations.container: a tag or a digest is demanded.
_IMAGE = re.compile(
    r"(?:(?=[^/]*[.:]|localhost/)[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}(?:@sha256:[0-9a-f]{64})?|@sha256:[0-9a-f]{64})"
)
_TOP = ("services", "networks", "volumes", "configs", "secrets")
_INSTEAD = {
    "version": "Compose v2 takes no notice of it: leave it out",
    "name": "the operation's own argument is the name: leave it out",
    "include": "one file is the whole project",
}
_INSTEAD_IN_SERVICE = {
    "build": "build and push elsewhere, and name the image by a tag or a digest",
    "env_file": "write the values in environment; a Secret may stand there",
    "extends": "write the service out",
    "container_name": "the project's name makes the container's: leave it out",
    "pull_policy": "the operation's pull says it",
    "scale": "write deploy: {replicas: …}",
}
_PROGRAMS = ("container/engine.py", "compose/project.py", "compose/converge.py")
_PULL = ("missing", "moved", "never")


# --- what the file says: pure --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """One published port of a service, as far as it could be read; ``port`` 0 means that the engine chooses one."""

    address: str
    port: int
    proto: str


def published(entry: Any) -> Published | None:
    """Return what an entry of ``ports`` publishes, or None when it cannot be read (a range, a mistake)."""
    if isinstance(entry, Mapping):
        port, address, proto = entry.get("published", 0), entry.get("host_ip", ""), entry.get("protocol", "tcp")
        if not re.fullmatch(r"[0-9]{1,5}", str(port)) or proto not in ("tcp", "udp"):
            return None
        return Published(str(address).strip("[]"), int(port), proto)
    match = re.fullmatch(
        r"(?:(?:(?P<address>[0-9.]+|\[[0-9A-Fa-f:.]+\]):)?(?P<port>[0-9]{0,5}):)?[0-9]{1,5}(?:/(?P<proto>tcp|udp))?", str(entry)
    )
    if not match:
        return None
    return Published((match["address"] or "").strip("[]"), int(match["port"] or 0), match["proto"] or "tcp")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _port_faults(where: str, entries: Any, exposed: Sequence[Port]) -> Iterator[str]:
    declared = {(port.port, port.proto) for port in exposed}
    seen = set()
    for number, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
        key = f"{where}.ports[{number}]"
        found = published(entry)
        if found is None:
            yield f"{key}: must be 'ADDRESS:PORT:CONTAINER_PORT', one port in each, got {entry!r}"
        elif not found.port:
            yield f"{key}: must name the host's port, got {entry!r}; the engine would choose one, on all addresses"
        elif not _is_loopback(found.address) and (found.port, found.proto) not in declared:
            yield (
                f"{key}: must be on 127.0.0.1 or among the host's declared ports, got {entry!r}; "
                f"write '127.0.0.1:{found.port}:…', or declare {found.port}/{found.proto} (base_exposure)"
            )
        elif (found.address, found.port, found.proto) in seen:
            yield f"{key}: stands twice, got {entry!r}"
        if found:
            seen.add((found.address, found.port, found.proto))


def _service_faults(name: str, service: Any, exposed: Sequence[Port]) -> Iterator[str]:
    where = f"services.{name}"
    if not _KEY.fullmatch(name):
        yield f"{where}: must be a name of letters, digits, '.', '_' and '-'"
    if not isinstance(service, Mapping):
        yield f"{where}: must be a mapping, got {type(service).__name__}"
        return
    for key, instead in _INSTEAD_IN_SERVICE.items():
        if key in service:
            yield f"{where}.{key}: must not be there: {instead}"
    image = service.get("image")
    if not isinstance(image, str) or not _IMAGE.fullmatch(image):
        yield f"{where}.image: must be 'registry/path:tag' or 'registry/path@sha256:…', got {image!r}"
    elif image.endswith(":latest"):
        yield f"{where}.image: must not be ':latest': nobody could say what runs, or go back to it, got {image!r}"
    yield from _port_faults(where, service.get("ports"), exposed)
    environment = service.get("environment", {})
    if not isinstance(environment, Mapping):
        yield f"{where}.environment: must be a mapping of names to text"
        return
    for variable, value in environment.items():
        if not isinstance(value, str | Secret):
            # not shown: it may be a secret
            yield f"{where}.environment.{variable}: must be text in quotes, got {type(value).__name__}"


def faults(
    project: str,
    spec: Any,
    files: Mapping[str, Any] | None = None,
    exposed: Sequence[Port] = (),
    trial: Sequence[str] = (),
    drains: Mapping[str, Drain] | None = None,
) -> list[str]:
    """Return every rule that a project breaks, one line each: key, rule, value seen. A secret is never shown."""
    found = [] if isinstance(project, str) and _NAME.fullmatch(project) else [_name_fault(project)]
    if not isinstance(spec, Mapping):
        return [*found, f"spec must be the Compose file as a mapping, got {type(spec).__name__}"]
    for key in spec:
        if key in _INSTEAD:
            found.append(f"{key}: must not be there: {_INSTEAD[key]}")
        elif key not in _TOP and not str(key).startswith("x-"):
            found.append(f"{key}: must be one of {', '.join(_TOP)}")
    services = spec.get("services")
    if not isinstance(services, Mapping) or not services:
        return [*found, "services: must be a mapping with at least one service"]
    for name, service in services.items():
        found += _service_faults(str(name), service, exposed)
    for path in files or {}:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or str(PurePosixPath(path)) != path:
            found.append(f"files.{path}: must be a relative path without '..'")
    for key, names in (("trial", trial), ("drains", drains or {})):
        found += [f"{key}: must name services of the project, got {name!r}" for name in names if name not in services]
    for name, drain in (drains or {}).items():
        for key in ("quiesce", "busy", "resume"):
            if not getattr(drain, key) or isinstance(getattr(drain, key), str):
                found.append(f"drains.{name}.{key}: must be words like ('app', 'drain')")
        if not isinstance(drain.seconds, int) or isinstance(drain.seconds, bool) or drain.seconds < 0:
            found.append(f"drains.{name}.seconds: must be a whole number of at least 0, got {drain.seconds!r}")
    return found


def _name_fault(project: Any) -> str:
    return f"a project's name must be 1 to 63 lower-case letters, digits, '-' and '_', got {project!r}"


@dataclass(frozen=True)
class Rendered:
    """
    A project as it lies on a host.

    + text: the file; JSON, which is YAML. Its secrets are in clear
    + files: what it mounts from beside it, by path below the project's directory
    + secrets: what must not be shown
    """

    text: Secret
    files: Mapping[str, Secret]
    secrets: tuple[Secret, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.unmask().encode()).hexdigest()


def rendered(spec: Mapping[str, Any], files: Mapping[str, str | Secret] | None = None) -> Rendered:
    """
    Return the file's text.

    Every ``$`` is doubled: text is what it says, and nothing is filled from the environment of whoever runs Compose.
    A service without ``restart`` gets ``unless-stopped``. A mount of ``./path`` that ``files`` has is given a path that
    is made of the content: so a service is made anew when what it mounts has changed, and no other is.
    """
    secrets: list[Secret] = []
    placed: dict[str, Secret] = {}
    plain = _plain(spec, secrets)
    texts = {path: _clear(content, secrets) for path, content in (files or {}).items()}
    for service in plain["services"].values():
        service.setdefault("restart", "unless-stopped")
        service["volumes"] = [_mount(entry, texts, placed) for entry in service.get("volumes", ())]
        if not service["volumes"]:
            del service["volumes"]
    text = json.dumps(plain, indent=1, sort_keys=True)
    return Rendered(Secret(text + "\n"), placed, tuple(secrets))


def _clear(value: str | Secret, secrets: list[Secret]) -> str:
    if isinstance(value, Secret):
        secrets.append(value)
        return value.unmask()
    return value


def _plain(value: Any, secrets: list[Secret]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one, secrets) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, secrets) for one in value]
    if isinstance(value, str | Secret):
        return _clear(value, secrets).replace("$", "$$")
    return value


def _mount(entry: Any, texts: Mapping[str, str], placed: dict[str, Secret]) -> Any:
    if isinstance(entry, Mapping):
        if entry.get("type") == "bind":
            return {**entry, "source": _placed(str(entry.get("source")), texts, placed)}
        return entry
    source, sign, rest = str(entry).partition(":")
    return _placed(source, texts, placed) + sign + rest


def _placed(source: str, texts: Mapping[str, str], placed: dict[str, Secret]) -> str:
    """Return where a mounted file or directory of ``files`` lies: below a directory named by the content."""
    if not source.startswith("./"):
        return source
    wanted = str(PurePosixPath(source))
    inside = {path: text for path, text in texts.items() if path == wanted or path.startswith(wanted + "/")}
    if not inside:
        return source
    digest = hashlib.sha256(json.dumps(inside, sort_keys=True).encode()).hexdigest()[:16]
    top = f"files/{digest}"
    for path, text in inside.items():
        relative = PurePosixPath(path).relative_to(PurePosixPath(wanted).parent)
        placed[f"{top}/{relative}"] = Secret(text)
    return f"./{top}/{PurePosixPath(wanted).name}"


def owed(wanted: Rendered, profiles: Sequence[str], found: ComposeState) -> list[str]:
    """Return why a project is not as its file says, in words; empty when it is."""
    if not found.engine:
        return ["no engine answers yet"]
    if not found.sha256:
        return ["it is not there"]
    if found.sha256 != wanted.sha256:
        return ["its file differs"]
    if sorted(found.profiles) != sorted(profiles):
        return ["its profiles differ"]
    reasons = [*found.anew, *found.repair]
    if found.file_sha256 != wanted.sha256:
        reasons.append("its file on the host was changed")
    present = {path: hashlib.sha256(text.unmask().encode()).hexdigest() for path, text in wanted.files.items()}
    return reasons + [f"{path} was changed" for path, digest in present.items() if found.files.get(path) != digest]


# --- operations ----------------------------------------------------------------------------------------------------


@operation()
def project(
    project: str,
    spec: Mapping[str, Any] | None = None,
    files: Mapping[str, str | Secret] | None = None,
    profiles: Sequence[str] = (),
    pull: str = "missing",
    exposed: Sequence[Port] = (),
    trial: Sequence[str] = (),
    drains: Mapping[str, Drain] | None = None,
    start_seconds: int = 120,
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Run one Compose project that is as its file says.

    ``up`` runs when, and only when, the file, what an image's name means, or what a container was made from differs; a
    container that was stopped, paused, removed or is unhealthy is put right without touching the others. When a service of
    the new file does not become healthy, the file, the images and the containers from before come back, and the operation
    fails with the last lines of what was not well.

    + project: its name, which its containers, networks and volumes begin with
    + spec: the Compose file as data, without ``version``, ``name``, ``build`` and ``env_file``; a ``Secret`` may stand wherever
      text may
    + files: what services mount as ``./path``, by path: configuration files, a ``Secret`` where they hold one
    + profiles: those that are on
    + pull: ``missing``; ``moved`` asks the registry whether a tag means another image now; ``never``
    + exposed: the host's declared ports. A service may publish these on any address, and all others on loopback only
    + trial: services that a change starts once beside the old ones, without ports, and sees healthy before anything stops
    + drains: services that are emptied before they are replaced, see ``Drain``
    + start_seconds: how long all of it may take to become healthy; without a health check a container must run for 3 s
    + present: ``False`` drains, stops and removes containers and networks. Volumes stay

    Needs Compose 2.20 or newer on the host. Raises ``OperationValueError`` for a file that breaks a rule, all in one message.

    **Example:**

    .. code:: python

        compose.project(
            "shop",
            {"services": {"web": {"image": "registry.example/shop:1.4.0", "ports": ["127.0.0.1:8000:8000"]}}},
            name="Run the shop",
        )
    """
    wrong = faults(project, spec, files, exposed, trial, drains) if spec is not None else []
    if spec is None and present:
        wrong.append("spec is needed")
    if spec is None and not _NAME.fullmatch(project):
        wrong.append(_name_fault(project))
    if pull not in _PULL:
        wrong.append(f"pull must be 'missing', 'moved' or 'never', got {pull!r}")
    wrong += [f"profiles: not a profile's name: {one!r}" for one in profiles if not _KEY.fullmatch(one)]
    if not isinstance(start_seconds, int) or isinstance(start_seconds, bool) or start_seconds < 1:
        wrong.append(f"start_seconds must be a whole number of at least 1, got {start_seconds!r}")
    if wrong:
        raise OperationValueError(f"compose.project {project}: " + "; ".join(wrong))

    found = host.get_fact(Compose, project=project, pull=pull)
    if found.refused:
        raise OperationError(f"compose.project {project}: {found.refused}")
    values = _values(project, drains)
    if spec is None or not present:
        if not (found.sha256 or found.repair or found.anew):
            host.noop(f"project {project} is not there")
            return
        yield _command({**values, "do": "down"})
        return
    _check_version(project, found)
    wanted = rendered(spec, files)
    if not owed(wanted, profiles, found):
        host.noop(f"project {project} runs as its file says")
        return
    yield _command(
        {
            **values,
            "do": "up",
            "text": wanted.text,
            "sha256": wanted.sha256,
            "files": dict(wanted.files),
            "secrets": list(wanted.secrets),
            "profiles": list(profiles),
            "pull": pull,
            "trial": list(trial),
            "start_seconds": start_seconds,
        }
    )


def _command(values: Mapping[str, Any]) -> script.Told:
    """What it says although all went well, is for the operator: work that was cut off, for one."""
    return script.Told("python3 -B -", _stdin=script.python_text(_PROGRAMS, values))


def _values(project: str, drains: Mapping[str, Drain] | None) -> dict[str, Any]:
    return {
        "project": project,
        "drains": {name: asdict(drain) for name, drain in (drains or {}).items()},
        "secrets": [],
    }


def _check_version(project: str, found: ComposeState) -> None:
    """An engine that is not there yet is installed by an earlier operation of the same run."""
    if not found.engine:
        return
    numbers = tuple(int(number) for number in re.findall(r"\d+", found.version)[:2])
    if numbers < LEAST_VERSION:
        raise OperationError(
            f"compose.project {project}: needs Compose {'.'.join(map(str, LEAST_VERSION))} or newer as `docker compose`, "
            f"got {found.version or 'none'}; Debian 12's own docker-compose is 1.29: write docker_source = 'docker' for "
            "Docker's own packages, or use Debian 13; nothing was changed"
        )


@operation()
def stopped(project: str, drains: Mapping[str, Drain] | None = None) -> Generator[StringCommand, None, None]:
    """
    Stop a project's containers until the next ``compose.project``, or a start of the host, starts them.

    + project: its name
    + drains: services that are emptied first, see ``Drain``
    """
    found = _asked("stopped", project)
    if not found.running:
        host.noop(f"nothing of project {project} runs")
        return
    yield _command({**_values(project, drains), "do": "stop"})


@operation()
def remove_project_with_its_data(project: str) -> Generator[StringCommand, None, None]:
    """
    Remove a project with its containers, networks and volumes, and all that is in them. There is no way back.

    + project: its name. Volumes that it only uses (``external``) and directories of the host stay
    """
    found = _asked("remove_project_with_its_data", project)
    if not (found.sha256 or found.repair or found.anew or found.volumes):
        host.noop(f"project {project} is not there, and has no volumes")
        return
    yield _command({**_values(project, None), "do": "reset"})


def _asked(operation: str, project: str) -> ComposeState:
    if not isinstance(project, str) or not _NAME.fullmatch(project):
        raise OperationValueError(f"compose.{operation}: {_name_fault(project)}")
    found: ComposeState = host.get_fact(Compose, project=project, pull="never")
    if found.refused:
        raise OperationError(f"compose.{operation} {project}: {found.refused}")
    return found
