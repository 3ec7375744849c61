"""What is on a host of a part of the fleet that is not to be there any more: named, drained and taken away, its data never."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pyinfra import host
from pyinfra.api import FactBase, FunctionCommand, StringCommand, operation

from deploys import mcbench_health
from facts.backup import CONFIG as SOURCES
from facts.records import Record
from operations import backup, certificate, container, nginx, preflight, replicas
from operations.nginx import Upstream
from settings.mcbench import COMPONENTS, SERVICES, WEB, WORKERS

PREFIX = "mcbench-"
# Whoever makes tasks goes before whoever takes them.
ORDER = ("api", "admin-api", "scheduler", "admin-flower", "worker", "admin-worker", "render-worker", "server-worker")
_SOURCES = {"postgres": ("mcbench-postgres",), "object": ("mcbench-objects-internal", "mcbench-objects-external")}
_SITES = {"api": "api", "admin-api": "admin", "admin-flower": "admin"}
"""The sites, and the certificate of each."""

_COMMAND = f"""
if command -v docker >/dev/null; then
    form='{{{{.Label "hostwright.component"}}}}|{{{{.Label "hostwright.container"}}}}|{{{{.Label "hostwright.job"}}}}|{{{{.Status}}}}'
    docker ps -a --filter label=hostwright.container --format "container|$form" 2>/dev/null
fi
for path in /var/lib/hostwright/replicas/*/current.json /etc/nginx/sites-enabled/*.conf {SOURCES}/*.json {mcbench_health.CONFIG}; do
    [ -e "$path" ] && echo "file|$path"
done
true
"""


@dataclass(frozen=True)
class Parts(Record):
    """
    What ``PartsThere`` returns, by names of components.

    + running: those of which a container runs; + there: these, those with a stopped container, and those with a record
    + sites: that nginx has; + sources: names of the sources that are backed up; + health: the health command is there
    """

    running: frozenset[str] = frozenset()
    there: frozenset[str] = frozenset()
    sites: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    health: bool = False


def parse(lines: Iterable[str]) -> Parts:
    """Read what the fact's command prints."""
    running, there, sites, sources, health = set[str](), set[str](), set[str](), set[str](), False
    for line in lines:
        kind, _, rest = line.partition("|")
        if kind == "container":
            component, name, job, status = rest.split("|", 3)
            found = (component or name).removeprefix(PREFIX)
            if not job and (component or name).startswith(PREFIX) and found in COMPONENTS:
                there.add(found)
                running |= {found} if status.startswith("Up") else set()
        elif rest == mcbench_health.CONFIG:
            health = True
        else:
            folder, _, file = rest.rpartition("/")
            name = folder.rpartition("/")[2] if file == "current.json" else file.rpartition(".")[0]
            own = name.removeprefix(PREFIX)
            if not name.startswith(PREFIX):
                continue
            if file == "current.json":
                there |= {own} & set(COMPONENTS)
            elif folder == SOURCES:
                sources.add(name)
            else:
                sites |= {own} & set(_SITES)
    return Parts(frozenset(running), frozenset(there), frozenset(sites), frozenset(sources), health)


class PartsThere(FactBase[Parts]):
    """Return the ``Parts`` of the fleet that are on a host; empty on one without the engine."""

    default = Parts

    def command(self) -> str:
        return _COMMAND

    def process(self, output: Iterable[str]) -> Parts:
        return parse(output)


def leftovers(found: Parts, wanted: Sequence[str]) -> list[str]:
    """Return the stateless components that are on a host and should not be, in the order in which they go."""
    return [one for one in ORDER if one not in wanted and one in found.there | found.sites]


def data_left(found: Parts, wanted: Sequence[str]) -> list[str]:
    """Return the services that run on a host and should not: what they hold is nobody else's."""
    return [one for one in SERVICES if one not in wanted and one in found.running]


def data_lines(found: Parts, wanted: Sequence[str]) -> list[str]:
    """Return what is said about services that run where they should not."""
    return [
        f"{one}: runs here, and by this host's groups and settings it should not: see to its data first (docs/mcbench.md), "
        f"then docker stop {PREFIX}{one}; its volume stays"
        for one in data_left(found, wanted)
    ]


@operation()
def no_data_left(wanted: Sequence[str]) -> Generator[FunctionCommand, None, None]:
    """
    Refuse a host on which a service runs that should not: another, empty one would take its place. Changes nothing.

    + wanted: components of this host
    """
    lines = data_lines(host.get_fact(PartsThere), wanted)
    if not lines:
        host.noop("no service runs where it should not")
        return
    yield from preflight.refused(lines)


@operation()
def retired(wanted: Sequence[str], of: Sequence[str] = ORDER) -> Generator[StringCommand, None, None]:
    """
    Drain and take away the components that should not be on this host: APIs, workers, scheduler, Flower, with their sites.

    + wanted: components of this host
    + of: those that may go

    A worker finishes the tasks that it has, an API its requests, as in a roll-out. Services and volumes stay; the backups
    of a service end when somebody has stopped it.
    """
    found = host.get_fact(PartsThere)
    gone = [one for one in leftovers(found, wanted) if one in of]
    is_changed = False
    for command in _steps(found, gone, wanted):
        is_changed = True
        yield command
    if not is_changed:
        host.noop("nothing is here that should not be")


def _steps(found: Parts, gone: Sequence[str], wanted: Sequence[str]) -> Generator[StringCommand, None, Any]:
    for component in gone:
        name = PREFIX + component
        if component in found.sites:
            # its switched upstream is named by what it is called alone
            old = [Upstream(name, ("127.0.0.1:1",), switched=component in WEB)]
            yield from nginx.site._inner(site_name=name, upstreams=old, present=False)
        if component in WEB:
            yield from replicas.rollout._inner(component=name, present=False)
        elif component in WORKERS:
            yield from replicas.workers._inner(component=name, present=False)
        else:
            yield from container.container._inner(container=name, present=False)
    for certificate_name in dict.fromkeys(_SITES[one] for one in gone if one in found.sites):
        if not any(_SITES.get(one) == certificate_name for one in wanted):
            yield from certificate.certificate._inner(
                cert_name=PREFIX + certificate_name, domains=["mcbench.invalid"], present=False
            )
    for service, sources in _SOURCES.items():
        if service not in wanted and service not in found.running:
            for source in sorted(found.sources.intersection(sources)):
                yield from backup.source._inner(source=source, present=False)
    if not wanted and found.health:
        yield from mcbench_health.health._inner(components=[], is_served=False)
