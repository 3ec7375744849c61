#!/usr/bin/python3 -I
"""
Remove from a Docker host what its own deploys left behind, and nothing else.

    docker-cleanup run [--until SECONDS] [--json]     remove, and say what went, what stayed and why
    docker-cleanup plan [--until SECONDS] [--json]    only say it; nothing at all is written
    docker-cleanup look                               note which images are in use now
    docker-cleanup watch                              note it whenever a container is made or ends, without end

What stays: images of containers, running or not; of the last releases of every component; images that the policy or the
environment of a container names; whatever was used or came here less than --until ago; and everything that is not
ours. Volumes, build cache, and networks and containers of others are not looked at.

The policy is /etc/hostwright/cleanup.json. Needs Python 3.9 and nothing else; speaks to the engine over its socket.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import fnmatch
import http.client
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

# The newest version of the engine's API that this program was written for; older and newer engines speak it too.
API = (1, 44)
LOCK_POLL = 1
CONTAINER_STOP_SECONDS = 10


class Failure(Exception):
    """Something that the operator has to know."""


@dataclass(frozen=True)
class Places:
    """Where everything is; tests have their own."""

    config: Path = Path("/etc/hostwright/cleanup.json")
    journal: Path = Path("/var/lib/hostwright/cleanup/used")
    replicas: Path = Path("/var/lib/hostwright/replicas")
    lock: Path = Path("/run/hostwright/containers.lock")
    socket: Path = Path("/run/docker.sock")


@dataclass(frozen=True)
class Pressure:
    """From which use of the engine's file system on (percent) fewer releases and a shorter time are kept."""

    percent: int = 85
    releases: int = 2
    unused_seconds: int = 6 * 3600


@dataclass(frozen=True)
class Policy:
    """
    What /etc/hostwright/cleanup.json says.

    + ours: name patterns (``registry.example.com/shop/*``) and labels (``label:key``, ``label:key=value``) of our images
    + keep_images: images that stay although no container uses them; names or patterns
    + releases: how many releases of each component stay
    + unused_seconds: what was used or came here less long ago stays
    + job_label: label of the containers and networks that a job makes for itself; empty: there are none
    + job_seconds: older ones are orphans
    """

    ours: tuple[str, ...] = ()
    keep_images: tuple[str, ...] = ()
    releases: int = 3
    unused_seconds: int = 7 * 86400
    job_label: str = ""
    job_seconds: int = 25 * 3600
    lock_seconds: int = 900
    pressure: Pressure = Pressure()

    @classmethod
    def load(cls, path: Path) -> Policy:
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise Failure(f"{path} does not exist: no cleanup is declared on this host") from None
        values["ours"], values["keep_images"] = tuple(values["ours"]), tuple(values["keep_images"])
        values["pressure"] = Pressure(**values["pressure"])
        return cls(**values)


# --- the engine ----------------------------------------------------------------------------------------------------


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("engine")
        self._path, self._patience = path, timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._patience)
        self.sock.connect(str(self._path))


class Refused(Exception):
    """The engine does not do it; the text is its own."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Engine:
    """The few calls of the engine's API that are needed here."""

    def __init__(self, path: Path) -> None:
        self._path = path
        about = self._request("GET", "/version")
        least, most = (_version(about[key]) for key in ("MinAPIVersion", "ApiVersion"))
        self.api = max(least, min(most, API))

    def get(self, path: str, **query: str) -> Any:
        return self._request("GET", self._url(path, query))

    def find(self, path: str) -> Any:
        """Return what ``get`` does; None for what is gone meanwhile."""
        try:
            return self.get(path)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def delete(self, path: str, **query: str) -> Any:
        return self._request("DELETE", self._url(path, query))

    def post(self, path: str, **query: str) -> Any:
        return self._request("POST", self._url(path, query))

    def events(self, since: float, until: float | None = None) -> Iterator[Mapping[str, Any]]:
        """Yield when containers were made, started and ended; without ``until`` it waits for the next one for ever."""
        query = {
            "since": f"{since:.6f}",
            "filters": json.dumps({"type": ["container"], "event": ["create", "start", "die"]}),
        }
        if until is not None:
            query["until"] = f"{until:.6f}"
        with self._answer("GET", self._url("/events", query), timeout=None) as answer:
            for line in answer:
                yield json.loads(line)

    def used_bytes(self) -> int:
        """Return what images and containers take, as ``docker system df`` adds it up: shared layers once."""
        # older engines know no types and also measure volumes, which takes longer
        types = "?type=image&type=container" if self.api >= (1, 42) else ""
        found = self.get(f"/system/df{types}")
        return int(found["LayersSize"] + sum(each.get("SizeRw", 0) for each in found["Containers"] or ()))

    def _url(self, path: str, query: Mapping[str, str]) -> str:
        return f"/v{self.api[0]}.{self.api[1]}{path}" + (f"?{urlencode(query)}" if query else "")

    def _request(self, method: str, url: str) -> Any:
        with self._answer(method, url, timeout=600) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else None

    @contextlib.contextmanager
    def _answer(self, method: str, url: str, timeout: float | None) -> Iterator[http.client.HTTPResponse]:
        connection = _Connection(self._path, timeout)
        try:
            connection.request(method, url, headers={"Host": "engine"})
            answer = connection.getresponse()
            if answer.status >= 400:
                text = answer.read().decode(errors="replace")
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    text = json.loads(text)["message"]
                raise Refused(answer.status, text.strip())
            yield answer
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"the engine does not answer on {self._path}: {error}") from None
        finally:
            connection.close()


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


# --- what is there -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    labels: Mapping[str, str]
    size: int
    parent: str = ""
    # when it came here, as far as the engine knows (seconds since 1970; 0: unknown)
    arrived: float = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Return what it is called; one whose tag moved on still has the digest that it was pulled by."""
        return self.tags or self.digests

    def __str__(self) -> str:
        return ", ".join(self.names) if self.names else self.id.partition(":")[2][:12]


@dataclass(frozen=True)
class Container:
    id: str
    name: str
    image: str
    running: bool
    created: float
    finished: float
    labels: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def last_used(self, now: float) -> float:
        return now if self.running else max(self.finished, self.created)


@dataclass(frozen=True)
class Network:
    id: str
    name: str
    created: float
    attached: bool
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Release:
    """A stored release of a component, as the rollout keeps it for the way back."""

    component: str
    release: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Host:
    """All that a decision needs. ``used``: image id to when it was last seen in use."""

    images: tuple[Image, ...]
    containers: tuple[Container, ...]
    networks: tuple[Network, ...]
    # newest first, by component
    releases: Mapping[str, Sequence[Release]]
    used: Mapping[str, float]
    percent: int
    now: float


def moment(text: str) -> float:
    """Return seconds since 1970 of the engine's times; 0 for its "never"."""
    text = re.sub(r"\.(\d+)", lambda match: "." + match[1][:6].ljust(6, "0"), text)
    try:
        at = datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))
    except ValueError:
        return 0
    return at.timestamp() if at.year > 1 else 0


def images(engine: Engine, root: Path) -> tuple[Image, ...]:
    found = []
    for entry in engine.get("/images/json"):
        about = engine.find(f"/images/{entry['Id']}/json")
        if about is None:
            continue
        # None where the engine keeps its images elsewhere; the file is written when an image comes, and never again
        arrived = moment(about.get("Metadata", {}).get("LastTagTime") or "")
        for stored in root.glob(f"image/*/imagedb/content/sha256/{entry['Id'].partition(':')[2]}"):
            arrived = max(arrived, stored.stat().st_mtime)
        found.append(
            Image(
                entry["Id"],
                tuple(name for name in entry.get("RepoTags") or () if name != "<none>:<none>"),
                tuple(name for name in entry.get("RepoDigests") or () if name != "<none>@<none>"),
                entry.get("Labels") or {},
                entry["Size"],
                about.get("Parent") or "",
                arrived,
            )
        )
    return tuple(found)


def containers(engine: Engine) -> tuple[Container, ...]:
    found = []
    for entry in engine.get("/containers/json", all="1"):
        about = engine.find(f"/containers/{entry['Id']}/json")
        if about is None:
            continue
        state = about["State"]
        pairs = (line.partition("=")[::2] for line in about["Config"].get("Env") or ())
        found.append(
            Container(
                entry["Id"],
                about["Name"].lstrip("/"),
                about["Image"],
                state["Running"] or state["Paused"] or state["Restarting"],
                moment(about["Created"]),
                moment(state["FinishedAt"]),
                about["Config"].get("Labels") or {},
                # no more of it than what names images: the rest is nobody's business here
                {key: value for key, value in pairs if images_named({key: value})},
            )
        )
    return tuple(found)


def networks(engine: Engine, label: str) -> tuple[Network, ...]:
    if not label:
        return ()
    found = []
    for entry in engine.get("/networks", filters=json.dumps({"label": [label]})):
        about = engine.find(f"/networks/{entry['Id']}")
        if about is None:
            continue
        found.append(
            Network(about["Id"], about["Name"], moment(about["Created"]), bool(about.get("Containers")), about["Labels"])
        )  # fmt: skip
    return tuple(found)


def releases(root: Path) -> dict[str, list[Release]]:
    """Return the stored releases by component, newest first: the one that serves now, then those before it."""
    found: dict[str, list[Release]] = {}
    for directory in sorted(root.glob("*/specs")):
        component = directory.parent.name
        order: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            served = (directory.parent / "history").read_text().split()
            order = {release: place for place, release in enumerate(served)}
        stored = sorted(
            directory.glob("*.json"), key=lambda path: (order.get(path.stem, -1), path.stat().st_mtime), reverse=True
        )
        for path in stored:
            try:
                values = json.loads(path.read_text())
            except (OSError, ValueError):
                # what cannot be read may name anything: better nothing goes than the wrong thing
                raise Failure(f"{path} cannot be read: nothing was removed") from None
            found.setdefault(component, []).append(Release(component, path.stem, tuple(_images_in(values))))
    return found


def _images_in(values: Any) -> Iterator[str]:
    """Yield the images of a stored release, by name and by id, and those that its environment names."""
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        if key in ("image", "image_id") and isinstance(value, str) and value:
            yield value
        elif key == "environment" and isinstance(value, str):
            yield from images_named(dict(line.partition("=")[::2] for line in value.splitlines()))
        else:
            yield from _images_in(value)


def images_named(environment: Mapping[str, str]) -> list[str]:
    """Return the images that variables like ``MINECRAFT_SERVER_IMAGE`` name."""
    texts = [value for key, value in environment.items() if re.search(r"(^|_)IMAGES?$", key)]
    return [name for text in texts for name in re.split(r"[\s,;]+", text) if name]


def percent_used(path: Path) -> int:
    about = os.statvfs(path)
    used = about.f_blocks - about.f_bfree
    return round(100 * used / max(1, used + about.f_bavail))


# --- names ---------------------------------------------------------------------------------------------------------


def full_name(name: str) -> str:
    """Return an image's name as the engine means it: ``redis`` is ``docker.io/library/redis:latest``."""
    first, slash, _ = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        name = f"docker.io/{name}" if slash else f"docker.io/library/{name}"
    if "@" in name:
        # a digest alone says which image it is; a tag in front of it is decoration
        repository, digest = name.split("@", 1)
        return f"{repository_of(repository)}@{digest}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def repository_of(name: str) -> str:
    name = name.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def means(wanted: str, image: Image) -> bool:
    """Return whether a name, a pattern or an id means this image."""
    if wanted.startswith("sha256:"):
        return image.id == wanted
    if re.search(r"[*?[]", wanted):
        return any(_matches(name, wanted) for name in (*image.tags, *image.digests))
    return full_name(wanted) in map(full_name, (*image.tags, *image.digests))


def _matches(name: str, pattern: str) -> bool:
    whole = full_name(name)
    forms = {name, repository_of(name), whole, repository_of(whole)}
    return any(fnmatch.fnmatchcase(form, pattern) for form in forms)


def foreign(image: Image, ours: Sequence[str]) -> str:
    """Return why an image is not ours; empty when it is."""
    labels = [pattern.partition(":")[2] for pattern in ours if pattern.startswith("label:")]
    patterns = [pattern for pattern in ours if not pattern.startswith("label:")]
    for label in labels:
        key, equals, value = label.partition("=")
        if key in image.labels and (not equals or image.labels[key] == value):
            return ""
    if not image.names:
        return "not ours: it has no name and no label of ours"
    others = [name for name in image.names if not any(_matches(name, pattern) for pattern in patterns)]
    if not others:
        return ""
    if len(others) < len(image.names):
        return f"not ours alone: it is also {others[0]}"
    return "not ours"


# --- the decision --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What becomes of one thing, and why."""

    kind: str
    id: str
    name: str
    goes: bool
    why: str
    size: int = 0


@dataclass(frozen=True)
class Decision:
    """All verdicts, and by which rules they were made."""

    verdicts: tuple[Verdict, ...]
    releases: int
    unused_seconds: int
    percent: int
    pressed: bool

    @property
    def going(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if verdict.goes)


def decide(host: Host, policy: Policy, until: int | None = None) -> Decision:
    """
    Say of every container of ours, every job network and every image whether it goes, and why.

    + until: seconds; what was used less long ago stays, whatever the policy and the pressure say
    """
    pressed = host.percent >= policy.pressure.percent
    number = min(policy.releases, policy.pressure.releases) if pressed else policy.releases
    unused = policy.unused_seconds
    if pressed:
        unused = min(unused, policy.pressure.unused_seconds)
    if until is not None:
        unused = until
    kept = {component: stored[:number] for component, stored in host.releases.items()}

    verdicts = []
    for container in host.containers:
        verdict = _judge_container(container, host, policy, kept, unused)
        if verdict is not None:
            verdicts.append(verdict)
    for network in host.networks:
        verdicts.append(_judge_network(network, host, policy))
    going = {verdict.id for verdict in verdicts if verdict.goes}
    staying = [container for container in host.containers if container.id not in going]
    for image in host.images:
        why = _keep_image(image, host, policy, kept, staying, unused)
        goes = not why
        since = ago(host.now - _last_used(image, host))
        verdicts.append(
            Verdict("image", image.id, str(image), goes, why or f"not used for {since}", image.size)
        )
    return Decision(tuple(verdicts), number, unused, host.percent, pressed)


def _judge_container(
    container: Container, host: Host, policy: Policy, kept: Mapping[str, Sequence[Release]], unused: int
) -> Verdict | None:
    def verdict(goes: bool, why: str) -> Verdict:
        return Verdict("container", container.id, container.name, goes, why)

    if policy.job_label and policy.job_label in container.labels:
        age = host.now - container.created
        if age >= policy.job_seconds:
            return verdict(True, f"of a job, {ago(age)} old")
        return verdict(False, f"of a job, {ago(age)} old")
    component, release = (container.labels.get(f"hostwright.{key}", "") for key in ("component", "release"))
    if not component or not release:
        return None
    if container.running:
        return verdict(False, "runs")
    if component not in kept:
        return verdict(False, f"no release of {component} is stored")
    if any(each.release.startswith(release) for each in kept[component]):
        return verdict(False, f"of release {release} of {component}, which is kept")
    idle = host.now - container.last_used(host.now)
    if idle < unused:
        return verdict(False, f"ended {ago(idle)} ago")
    return verdict(True, f"of the old release {release} of {component}, ended {ago(idle)} ago")


def _judge_network(network: Network, host: Host, policy: Policy) -> Verdict:
    age = host.now - network.created
    goes = age >= policy.job_seconds and not network.attached
    why = f"of a job, {ago(age)} old" + (", in use" if network.attached else "")
    return Verdict("network", network.id, network.name, goes, why)


def _last_used(image: Image, host: Host) -> float:
    # of one that nobody knows anything about, the safe thing is to say that it came just now
    return max(image.arrived, host.used.get(image.id, 0)) or host.now


def _keep_image(
    image: Image,
    host: Host,
    policy: Policy,
    kept: Mapping[str, Sequence[Release]],
    staying: Sequence[Container],
    unused: int,
) -> str:
    """Return why an image stays; empty when nothing speaks for it."""
    users = sorted((each for each in staying if each.image == image.id), key=lambda each: not each.running)
    if users:
        return f"container {users[0].name} {'runs it' if users[0].running else 'is made from it'}"
    if any(means(wanted, image) for wanted in policy.keep_images):
        return "named in the settings"
    for container in staying:
        for key, value in container.environment.items():
            if any(means(name, image) for name in images_named({key: value})):
                return f"{key} of container {container.name} names it"
    for component, stored in kept.items():
        for place, release in enumerate(stored):
            if any(means(name, image) for name in release.images):
                return f"release {release.release} of {component}" + (" (the newest)" if place == 0 else "")
    why = foreign(image, policy.ours)
    if why:
        return why
    children = [each for each in host.images if each.parent == image.id]
    if children:
        return f"{children[0]} is built on it"
    idle = host.now - _last_used(image, host)
    if idle < unused:
        return f"used or fetched {ago(idle)} ago"
    return ""


def ago(seconds: float) -> str:
    seconds = max(0, int(seconds))
    if seconds >= 2 * 86400:
        return f"{seconds // 86400} d"
    if seconds >= 2 * 3600:
        return f"{seconds // 3600} h"
    return f"{seconds // 60} min"


# --- the journal: one empty file per image, its time is when the image was last in use ------------------------------


class Journal:
    """The engine does not know when an image was last used, so we write it down."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def read(self) -> dict[str, float]:
        if not self.directory.is_dir():
            return {}
        return {f"sha256:{path.name}": path.stat().st_mtime for path in self.directory.glob("[0-9a-f]*")}

    @property
    def looked(self) -> float:
        """Return when it was last brought up to date; 0: never."""
        try:
            return (self.directory / "looked").stat().st_mtime
        except FileNotFoundError:
            return 0

    def write(self, used: Mapping[str, float], now: float) -> None:
        """Write down what is known, and forget images that are gone."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        before = self.read()
        for image, at in used.items():
            if at > before.get(image, 0):
                self.touch(image.partition(":")[2], at)
        for image in before.keys() - used.keys():
            (self.directory / image.partition(":")[2]).unlink(missing_ok=True)
        self.touch("looked", now)

    def touch(self, name: str, at: float) -> None:
        path = self.directory / name
        path.touch(mode=0o600)
        os.utime(path, (at, at))


def last_uses(
    engine: Engine, found: Sequence[Image], there: Sequence[Container], journal: Journal, since: float, now: float
) -> dict[str, float]:
    """Return for every image when it was last in use, as far as the journal, the containers and the engine know."""
    before = journal.read()
    used = {image.id: max(image.arrived, before.get(image.id, 0)) or now for image in found}

    def note(image: str, at: float) -> None:
        if image in used:
            used[image] = max(used[image], at)

    for container in there:
        note(container.image, container.last_used(now))
    # The engine remembers its last 256 events of all kinds; what it forgot, `watch` has written down.
    named = {full_name(name): image.id for image in found for name in (*image.tags, *image.digests)}
    for event in engine.events(since, now):
        name = event.get("from") or event.get("Actor", {}).get("Attributes", {}).get("image", "")
        note(name if name.startswith("sha256:") else named.get(full_name(name), ""), event["time"])
    return used


# --- commands ------------------------------------------------------------------------------------------------------


def gather(engine: Engine, policy: Policy, places: Places, oldest: float) -> Host:
    """Look at everything; ``oldest``: how far back in time it matters (s)."""
    root = Path(engine.get("/info")["DockerRootDir"])
    now = time.time()
    there, found = containers(engine), images(engine, root)
    journal = Journal(places.journal)
    used = last_uses(engine, found, there, journal, max(journal.looked - 60, now - oldest), now)
    return Host(
        found, there, networks(engine, policy.job_label), releases(places.replicas), used, percent_used(root), now
    )


@dataclass(frozen=True)
class Report:
    """What a run did. ``refused``: what the engine did not remove, what it said, and its status: 409 is "in use"."""

    decision: Decision
    removed: tuple[Verdict, ...] = ()
    refused: tuple[tuple[Verdict, str], ...] = ()
    statuses: tuple[int, ...] = ()
    won: int | None = None

    def json(self) -> str:
        return json.dumps(
            {
                "releases": self.decision.releases, "unused_seconds": self.decision.unused_seconds,
                "percent": self.decision.percent, "pressed": self.decision.pressed, "won": self.won,
                "things": [asdict(verdict) for verdict in self.decision.verdicts],
                "removed": [verdict.id for verdict in self.removed],
                "refused": {verdict.id: text for verdict, text in self.refused},
            }
        )  # fmt: skip

    def lines(self) -> list[str]:
        decision = self.decision
        lines = [
            f"{decision.percent} % of the engine's disk is used"
            + (": pressed" if decision.pressed else "")
            + f"; kept are {decision.releases} releases and what was used in the last {ago(decision.unused_seconds)}"
        ]
        texts = dict((verdict.id, text) for verdict, text in self.refused)
        order = sorted(decision.verdicts, key=lambda each: (not each.goes, each.kind, each.name))
        for verdict in order:
            size = f" {human(verdict.size)}" if verdict.kind == "image" else ""
            if verdict.id in texts:
                lines.append(f"stays   {verdict.kind} {verdict.name}{size}: the engine says: {texts[verdict.id]}")
                continue
            word = ("goes  " if self.won is None else "removed") if verdict.goes else "stays "
            lines.append(f"{word:7} {verdict.kind} {verdict.name}{size}: {verdict.why}")
        total = len(decision.going)
        if self.won is None:
            lines.append(f"{total} would go; nothing was changed")
        else:
            lines.append(f"{len(self.removed)} removed, {self.won} bytes won ({human(self.won)})")
        return lines


def human(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def run(engine: Engine, policy: Policy, places: Places, until: int | None) -> Report:
    """Decide and remove, one thing after the other; nothing is forced."""
    host = gather(engine, policy, places, _oldest(policy, until))
    Journal(places.journal).write(host.used, host.now)
    decision = decide(host, policy, until)
    before = engine.used_bytes()
    removed, refused, statuses = [], [], []
    by_id = {image.id: image for image in host.images}
    for verdict in decision.going:
        try:
            if verdict.kind == "container":
                _remove_container(engine, verdict.id)
            elif verdict.kind == "network":
                engine.delete(f"/networks/{verdict.id}")
            else:
                _remove_image(engine, by_id[verdict.id])
            removed.append(verdict)
        except Refused as error:
            if error.status == 404:
                removed.append(verdict)
            else:  # somebody began to use it just now, for one
                refused.append((verdict, str(error)))
                statuses.append(error.status)
    won = before - engine.used_bytes() if removed else 0
    return Report(decision, tuple(removed), tuple(refused), tuple(statuses), won)


def _remove_container(engine: Engine, container: str) -> None:
    with contextlib.suppress(Refused):
        engine.post(f"/containers/{container}/stop", t=str(CONTAINER_STOP_SECONDS))
    # v=0: volumes stay, the nameless ones too
    engine.delete(f"/containers/{container}", v="0", force="1")


def _remove_image(engine: Engine, image: Image) -> None:
    for name in image.names or (image.id,):
        with contextlib.suppress(_Gone):
            # noprune: layers below that have no name are build cache, and that is not ours
            _delete_image(engine, name)


class _Gone(Exception):
    pass


def _delete_image(engine: Engine, name: str) -> None:
    try:
        engine.delete(f"/images/{quote(name, safe='/:@')}", noprune="1", force="0")
    except Refused as error:
        if error.status == 404:
            raise _Gone from None
        raise


def _oldest(policy: Policy, until: int | None) -> int:
    return max(policy.unused_seconds, until or 0)


def plan(engine: Engine, policy: Policy, places: Places, until: int | None) -> Report:
    host = gather(engine, policy, places, _oldest(policy, until))
    return Report(decide(host, policy, until))


def look(engine: Engine, policy: Policy, places: Places) -> None:
    host = gather(engine, policy, places, policy.unused_seconds)
    Journal(places.journal).write(host.used, host.now)


def watch(engine: Engine, policy: Policy, places: Places) -> NoReturn:
    """Write down every use of an image. Ends with the engine's connection; whoever started it starts it again."""
    began = time.time()
    look(engine, policy, places)
    journal = Journal(places.journal)
    for event in engine.events(began):
        container = event.get("id") or event["Actor"]["ID"]
        name = event.get("from") or event.get("Actor", {}).get("Attributes", {}).get("image", "")
        about = engine.find(f"/containers/{container}/json")
        image = about["Image"] if about else (engine.find(f"/images/{quote(name, safe='/:@')}/json") or {}).get("Id")
        if image:
            journal.touch(image.partition(":")[2], event["time"])
    raise Failure("the engine ended the connection")


@contextlib.contextmanager
def locked(path: Path, seconds: int) -> Iterator[None]:
    """Hold the lock that every deploy of containers holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        end, told = time.monotonic() + seconds, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise Failure(
                        f"a deploy has held {path} for {seconds} s (fuser -v {path} names it): nothing was removed"
                    ) from None
                if not told:
                    tell("waiting for a deploy that is under way")
                    told = True
            time.sleep(LOCK_POLL)
        yield


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Failure(f"stopped by {signal.Signals(number).name}")


def main(argv: Sequence[str], places: Places) -> None:
    parser = argparse.ArgumentParser(
        prog="docker-cleanup", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("run", "plan"):
        command = commands.add_parser(name)
        command.add_argument("--until", type=int)
        command.add_argument("--json", action="store_true")
    commands.add_parser("look")
    commands.add_parser("watch")
    arguments = parser.parse_args(argv)
    if arguments.command != "watch":
        signal.signal(signal.SIGTERM, _stop)
    os.umask(0o077)
    policy = Policy.load(places.config)
    engine = Engine(places.socket)
    if arguments.command == "look":
        return look(engine, policy, places)
    if arguments.command == "watch":
        watch(engine, policy, places)
    if arguments.command == "plan":
        report = plan(engine, policy, places, arguments.until)
    else:
        with locked(places.lock, policy.lock_seconds):
            report = run(engine, policy, places, arguments.until)
    for line in [report.json()] if arguments.json else report.lines():
        tell(line)
    if any(status != 409 for status in report.statuses):
        sys.exit(1)
    return None


if __name__ == "__main__":
    try:
        main(sys.argv[1:], Places())
    except (Failure, Refused) as failure:
        sys.exit(f"docker-cleanup: {failure}")
    except OSError as error:
        sys.exit(f"docker-cleanup: {error.strerror}: {error.filename or ''}")
