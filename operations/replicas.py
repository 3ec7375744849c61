"""
Several equal containers of one component, changed without a lost request or task.

New instances come up beside the old ones, must become healthy and stay so for ``settle_seconds``; only then requests go to
them, and the old ones finish what they have. A release that fails anywhere before that never gets a request, is taken
away again, and the operation fails with the last lines that it printed (values of its environment masked).

A *release* is a spec, named by the first 12 letters of its hash. Whatever starts an instance reads nothing else.
"""

import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from pyinfra import host
from pyinfra.api import OperationValueError, QuoteString, State, StringCommand, operation

from facts.replicas import Replicas, ReplicasState
from operations import container, script
from operations.container import Spec

_PROGRAMS = ("container/engine.py", "replicas/state.py", "replicas/work.py")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_UPSTREAM = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

# Where each component was begun in each run of pyinfra: (host, operation's hash).
_begun: WeakKeyDictionary[State, dict[str, list[tuple[str, str]]]] = WeakKeyDictionary()


def worker_name(component: str, spec: Spec, instance: int, host_name: str) -> str:
    """Return the ``WORKER_NAME`` of one worker: no two containers of all hosts have the same."""
    return f"{component}-{container.spec_hash(spec)[:12]}-{instance}@{host_name}"


# --- what is wanted -------------------------------------------------------------------------------------------------


def _name_faults(component: str) -> list[str]:
    if isinstance(component, str) and _NAME.fullmatch(component):
        return []
    return [f"component must be lower-case letters, digits and hyphens, 40 at most, got {component!r}"]


def _number_faults(**least: tuple[Any, int]) -> list[str]:
    return [
        f"{key} must be a whole number of at least {limit}, got {value!r}"
        for key, (value, limit) in least.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < limit
    ]


def _words_faults(**words: Any) -> list[str]:
    return [
        f"{key} must be a tuple of words, got {value!r}"
        for key, value in words.items()
        if isinstance(value, str) or not all(isinstance(word, str) for word in value)
    ]


def _spec_faults(component: str, spec: Spec | None) -> list[str]:
    if not isinstance(spec, Spec):
        return [f"spec must be a container.Spec, got {type(spec).__name__}"]
    found = container.faults(component if _NAME.fullmatch(str(component)) else "x", spec)
    if spec.publish:
        found.append("spec.publish must be empty: each instance has a port of its own")
    return found


def _web_faults(count: Any, upstream: Any, container_port: Any, ports: Any, health_path: Any, probe: Any) -> list[str]:
    found = _number_faults(count=(count, 1))
    if found:
        return found
    if upstream and not _UPSTREAM.fullmatch(upstream):
        found.append(f"upstream must be the name of an nginx.Upstream, got {upstream!r}")
    if not ports:
        if upstream:
            found.append("upstream needs ports: the first of the blue and the first of the green instances")
        if health_path or container_port:
            found.append("health_path and container_port need ports")
    elif len(ports) != 2 or not all(isinstance(port, int) and 1 <= port <= 65536 - count for port in ports):
        found.append(f"ports must be (first blue port, first green port), got {ports!r}")
    elif abs(ports[0] - ports[1]) < count:
        found.append(f"ports {ports[0]} and {ports[1]} are too near each other for {count} instances of each colour")
    if ports and not (isinstance(container_port, int) and 1 <= container_port <= 65535):
        found.append(f"container_port must be 1 to 65535, got {container_port!r}")
    if health_path and not re.fullmatch(r"/[!-~]*", health_path):
        found.append(f"health_path must begin with '/' and hold no space, got {health_path!r}")
    if probe and not upstream:
        found.append("probe asks through nginx: it needs upstream")
    return found


def _alias_faults(spec: Any, ports: Any) -> list[str]:
    """An alias goes from one instance to another only by taking each off the network for a moment."""
    if not isinstance(spec, Spec) or not _aliases(spec):
        return []
    found = []
    if ports:
        found.append("spec.networks: aliases and ports exclude each other: clients come by the one or by the other")
    if not spec.health:
        found.append("spec.health is needed with aliases: only an instance that is well gets them")
    if any(spec.hostname in aliases for aliases in _aliases(spec).values()):
        found.append(f"spec.hostname must not be an alias: an instance has it before it is well, got {spec.hostname!r}")
    return found


def _aliases(spec: Spec) -> dict[str, list[str]]:
    return {network.name: sorted(set(network.aliases)) for network in spec.networks if network.aliases}


def _wanted(component: str, spec: Spec, count: int, kind: str, **settings: Any) -> dict[str, Any]:
    """Return what ``files/replicas`` calls wanted: all but the spec itself, nothing of it secret."""
    return {
        "component": component,
        "spec_hash": container.spec_hash(spec),
        "count": count,
        "kind": kind,
        "has_health": spec.health is not None,
        "upstream": "",
        "container_port": 0,
        "ports": [],
        "health_path": "",
        "probe": "",
        "probe_seconds": 10,
        "quiesce": [],
        "busy": [],
        **settings,
    }


# --- commands -------------------------------------------------------------------------------------------------------


def _change(component: str, action: str, lock_seconds: int, **values: Any) -> StringCommand:
    given = {
        "component": component,
        "action": action,
        "wanted": None,
        "spec": None,
        "migrate": [],
        "migrate_seconds": 0,
        "lock_seconds": lock_seconds,
        **values,
    }
    return script.python(*_PROGRAMS, "replicas/converge.py", values=given)


def _refuse(text: str) -> StringCommand:
    """Fail on this host alone: an exception would end the whole run."""
    return StringCommand("printf '%s\\n'", QuoteString(text), ">&2; false")


def _failed_before(component: str, after: Sequence[str]) -> list[str]:
    """
    Return the hosts on which this component, or one that it comes after, failed in this run.

    pyinfra itself goes on to the next host, and to the next batch: a bad release would be tried on all of them.
    """
    run = host.state
    if not run.is_executing:
        return []
    begun = _begun.setdefault(run, {})
    failed = []
    for one in (component, *after):
        for name, op_hash in begun.get(one, []):
            other = run.inventory.get_host(name)
            data = run.ops[other].get(op_hash)
            meta = data.operation_meta if data else None
            if name != host.name and (other in run.failed_hosts or (meta and meta.is_complete() and meta.did_error())):
                failed.append(f"{one} failed on {name}")
    if not failed:
        begun.setdefault(component, []).append((host.name, str(host.current_op_hash)))
    return list(dict.fromkeys(failed))


def _held_back(component: str, after: Sequence[str]) -> StringCommand | None:
    failed = _failed_before(component, after)
    if not failed:
        return None
    return _refuse(f"{component} is not touched on {host.name}: in this run {', '.join(failed)}. Run again when that is put right")


def _converge(
    component: str, spec: Spec, wanted: Mapping[str, Any], after: Sequence[str], **values: Any
) -> Generator[StringCommand, None, None]:
    refusal = _held_back(component, after)
    if refusal:
        yield refusal
        return
    found: ReplicasState = host.get_fact(Replicas, component=component, wanted=json.dumps(wanted))
    if not found.to_do and not found.fault:
        host.noop(f"{component} serves release {found.release} with {found.count} instances")
        return
    seconds = sum(wanted[key] for key in ("start_seconds", "settle_seconds", "drain_seconds")) + spec.stop_seconds
    yield _change(
        component, "converge", seconds + 600, wanted=dict(wanted), spec=container.canonical(spec), **values
    )


def _remove(component: str) -> Generator[StringCommand, None, None]:
    found: ReplicasState = host.get_fact(Replicas, component=component)
    if not (found.release or found.stored or found.jobs or found.instances):
        host.noop(f"{component} is not there")
        return
    yield _change(component, "remove", 3600)


# --- operations -----------------------------------------------------------------------------------------------------


@operation()
def rollout(
    component: str,
    spec: Spec | None = None,
    count: int = 1,
    upstream: str = "",
    container_port: int = 0,
    ports: Sequence[int] = (),
    health_path: str = "",
    probe: str = "",
    probe_seconds: int = 10,
    start_seconds: int = 60,
    settle_seconds: int = 5,
    drain_seconds: int = 30,
    keep: int = 3,
    migrate: Sequence[str] = (),
    migrate_seconds: int = 1800,
    after: Sequence[str] = (),
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Serve a component by so many containers of exactly this spec, without a failed request on the way to it.

    + component: its name; containers are ``COMPONENT-blue-1`` …
    + spec: see ``operations.container.Spec``; ``publish`` stays empty, and the image is best named by version or digest.
      Aliases on its networks lead to healthy instances of one release alone; they need ``health`` and exclude ``ports``
    + count: how many on this host. Another number alone starts or ends only the difference
    + upstream: the ``nginx.Upstream`` with ``switched=True`` that leads to them; empty when nobody proxies them
    + container_port: where the process listens in its container
    + ports: first port of the blue and of the green instances on the host's loopback; instance n listens on first + n - 1
    + health_path: must answer below 400 on every instance's own port, besides what ``spec.health`` says
    + probe: shell command that must succeed within ``probe_seconds`` (s) after the switch, through all a client goes through
    + start_seconds: to the first sign of health; + settle_seconds: healthy without a break after it, in one process
    + drain_seconds: how long requests and websockets of the old instances may take to end; it is waited for no longer than
      needed. Then ``spec.stop_seconds`` from the stop signal to the kill
    + keep: how many specs that served stay stored to roll back to
    + migrate: words of a command that runs once, in a container of the new image, before any instance of it starts; on
      several hosts use ``once`` on one of them; + migrate_seconds: how long it may take
    + after: components whose failure on any host in this run holds this one back as well
    + present: ``False`` stops and removes the instances and forgets the stored specs; take its site away first

    With ``_serial=True`` or ``_parallel=n`` hosts go one by one or in batches. Once the component failed on a host, the
    hosts that follow are not touched, and say so.

    Raises ``OperationValueError`` for bad arguments.

    **Example:**

    .. code:: python

        replicas.rollout(
            "shop",
            Spec("registry.example.org/shop:1.4.0", environment=Secret("LOG_LEVEL=info\\n")),
            count=2,
            upstream="shop",
            container_port=8000,
            ports=(18000, 18100),
            health_path="/health",
            probe="curl -fsS --resolve shop.example.org:443:127.0.0.1 https://shop.example.org/health",
            name="Roll out shop",
            _serial=True,
        )
    """
    if not present:
        if _name_faults(component):
            raise OperationValueError("replicas.rollout: " + _name_faults(component)[0])
        yield from _remove(component)
        return
    faults = [
        *_name_faults(component),
        *_spec_faults(component, spec),
        *_web_faults(count, upstream, container_port, ports, health_path, probe),
        *_alias_faults(spec, ports),
        *_number_faults(
            probe_seconds=(probe_seconds, 1),
            start_seconds=(start_seconds, 1),
            settle_seconds=(settle_seconds, 0),
            drain_seconds=(drain_seconds, 0),
            keep=(keep, 1),
            migrate_seconds=(migrate_seconds, 1),
        ),
        *_words_faults(migrate=migrate, after=after),
    ]
    if faults or spec is None:
        raise OperationValueError(f"replicas.rollout {component}: " + "; ".join(faults))
    wanted = _wanted(
        component,
        spec,
        count,
        "web",
        upstream=upstream,
        container_port=container_port,
        ports=list(ports),
        health_path=health_path,
        probe=probe,
        probe_seconds=probe_seconds,
        start_seconds=start_seconds,
        settle_seconds=settle_seconds,
        drain_seconds=drain_seconds,
        keep=keep,
        **({"aliases": _aliases(spec)} if _aliases(spec) else {}),
    )
    yield from _converge(
        component, spec, wanted, after, migrate=list(migrate), migrate_seconds=migrate_seconds
    )


@operation()
def workers(
    component: str,
    spec: Spec | None = None,
    count: int = 1,
    quiesce: Sequence[str] = (),
    busy: Sequence[str] = (),
    start_seconds: int = 60,
    settle_seconds: int = 5,
    drain_seconds: int = 300,
    keep: int = 3,
    after: Sequence[str] = (),
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Let so many workers of exactly this spec take tasks from a queue, without losing a task or running one twice.

    New workers start beside the old ones; when they are healthy, each old one is told to take no more tasks, finishes those
    that it has, and is stopped. The same when there are to be fewer.

    + component: its name; containers are ``COMPONENT-RELEASE-1`` …
    + spec: see ``operations.container.Spec``; each worker's environment gets
      ``WORKER_NAME=COMPONENT-RELEASE-INSTANCE@HOST`` besides, which no other container has on any host
    + count: how many on this host, may be 0
    + quiesce: words of a command, run in an old worker, after which it takes no more tasks
    + busy: words of a command, run in an old worker: the number on its last line is how many tasks it has; without a
      number, exit status 0 says that it is idle. In both, and in ``spec.command``, ``{worker}`` stands for the worker's
      name, ``{instance}`` for its number and ``{host}`` for the host's name
    + start_seconds: to the first sign of health (``spec.health``); + settle_seconds: healthy without a break after it
    + drain_seconds: how long an old worker may take to become idle: the longest task's time. Then it gets its stop signal,
      and ``spec.stop_seconds`` later the kill
    + keep: how many specs that served stay stored to roll back to
    + after: components whose failure on any host in this run holds this one back as well
    + present: ``False`` lets the workers finish, removes them and forgets the stored specs

    Hosts after one that failed are not touched, see ``rollout``.

    Raises ``OperationValueError`` for bad arguments.

    **Example:**

    .. code:: python

        replicas.workers(
            "shop-worker",
            Spec("registry.example.org/shop-worker:1.4.0", command=("celery", "-A", "shop", "worker", "-n", "{worker}")),
            count=4,
            quiesce=("celery", "-A", "shop", "control", "-d", "{worker}", "cancel_consumer", "celery"),
            busy=("shop-tasks-of", "{worker}"),
            drain_seconds=3600,
            name="Roll out shop's workers",
        )
    """
    if not present:
        if _name_faults(component):
            raise OperationValueError("replicas.workers: " + _name_faults(component)[0])
        yield from _remove(component)
        return
    faults = [
        *_name_faults(component),
        *_spec_faults(component, spec),
        *_number_faults(
            count=(count, 0),
            start_seconds=(start_seconds, 1),
            settle_seconds=(settle_seconds, 0),
            drain_seconds=(drain_seconds, 0),
            keep=(keep, 1),
        ),
        *_words_faults(quiesce=quiesce, busy=busy, after=after),
    ]
    if faults or spec is None:
        raise OperationValueError(f"replicas.workers {component}: " + "; ".join(faults))
    wanted = _wanted(
        component,
        spec,
        count,
        "workers",
        quiesce=list(quiesce),
        busy=list(busy),
        start_seconds=start_seconds,
        settle_seconds=settle_seconds,
        drain_seconds=drain_seconds,
        keep=keep,
    )
    yield from _converge(component, spec, wanted, after)


@operation()
def once(
    component: str,
    job: str,
    spec: Spec,
    seconds: int = 1800,
    after: Sequence[str] = (),
) -> Generator[StringCommand, None, None]:
    """
    Run a command to its end in a container of its own, once for each spec: a migration, before any instance is changed.

    Call it on one host of all that serve the component, under the component's name: when it fails, the component is touched
    on no host in this run, and the operation fails with what it printed. A run that was killed meanwhile waits for it, or
    runs it again when it did not end well.

    + component: its name
    + job: its name among the component's jobs, e.g. ``migrate``
    + spec: image, command and environment; health check, ports and restart policy count for nothing
    + seconds: how long it may take; then it is stopped
    + after: components whose failure on any host in this run holds this one back as well

    Raises ``OperationValueError`` for bad arguments.
    """
    faults = [
        *_name_faults(component),
        *_spec_faults(component, spec),
        *_number_faults(seconds=(seconds, 1)),
        *_words_faults(after=after),
    ]
    if not _NAME.fullmatch(str(job)):
        faults.append(f"job must be lower-case letters, digits and hyphens, 40 at most, got {job!r}")
    if not faults and not spec.command:
        faults.append("spec.command is empty: what is to be run?")
    if faults:
        raise OperationValueError(f"replicas.once {component}: " + "; ".join(faults))
    # What plays no part must not make it run again.
    spec = replace(spec, health=None, restart="no")
    refusal = _held_back(component, after)
    if refusal:
        yield refusal
        return
    found: ReplicasState = host.get_fact(Replicas, component=component)
    if f"{job} {container.spec_hash(spec)[:12]}" in found.jobs:
        host.noop(f"{component}: {job} was done for this spec")
        return
    yield script.python(
        *_PROGRAMS,
        "replicas/once.py",
        values={
            "component": component,
            "job": job,
            "spec": container.canonical(spec),
            "seconds": seconds,
            "lock_seconds": seconds + 600,
        },
    )


@operation(is_idempotent=False)
def rollback(component: str) -> Generator[StringCommand, None, None]:
    """
    Serve by the release that served before the present one, by the same way as any other change.

    Image, environment, ports, checks and timings come from the host's store, as they were; the number of instances stays.
    Running it twice comes back to where it started. The inventory still names the newer release, and the next run goes
    there: change it. A host without an earlier release fails and is not touched.

    + component: its name, of ``rollout`` or ``workers``

    Raises ``OperationValueError`` for a bad name.
    """
    if _name_faults(component):
        raise OperationValueError("replicas.rollback: " + _name_faults(component)[0])
    refusal = _held_back(component, ())
    if refusal:
        yield refusal
        return
    found: ReplicasState = host.get_fact(Replicas, component=component)
    if not found.previous:
        why = found.fault or f"{component} has no earlier release on this host to go back to"
        yield _refuse(f"replicas.rollback: {why}")
        return
    yield _change(component, "rollback", 3600, release=found.previous)


@operation()
def scale(component: str, count: int) -> Generator[StringCommand, None, None]:
    """
    Serve by another number of instances on this host, of the release that serves now. Only the difference is touched.

    The inventory's number comes back with the next run: change it there.

    + component: its name, of ``rollout`` or ``workers``
    + count: how many

    Raises ``OperationValueError`` for a bad name or number.
    """
    faults = [*_name_faults(component), *_number_faults(count=(count, 0))]
    if faults:
        raise OperationValueError(f"replicas.scale {component}: " + "; ".join(faults))
    refusal = _held_back(component, ())
    if refusal:
        yield refusal
        return
    found: ReplicasState = host.get_fact(Replicas, component=component, count=count)
    if not found.release:
        yield _refuse(f"replicas.scale: {found.fault or f'{component} does not serve on this host'}")
    elif found.kind == "web" and count < 1:
        raise OperationValueError("replicas.scale: count must be at least 1 where requests are served")
    elif not found.to_do and not found.fault:
        host.noop(f"{component} serves with {count} instances")
    else:
        yield _change(component, "scale", 3600, count=count)
