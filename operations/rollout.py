"""
Blue/green: a new spec of an application comes up beside the one that serves, proves itself, and takes over.

A *spec* is everything a start reads: release, service file, environment. Every change of any of them goes this one way:
installed on the colour that does not serve, started, asked for its health, watched for ``settle_seconds``. Only then
requests go to it, and the old colour finishes what it is doing. Rolling back is the same with a spec from the host's store.

Each colour listens on a Unix socket, ``/run/APP-COLOUR/app.sock``, and nginx's upstream is the symlink
``/etc/APP/active.sock``, which nginx follows anew for every request. So a switch is one rename: nginx is not reloaded, no
client connection is closed, no request can meet a half-made change, and the link says after a reboot who serves.
"""

import hashlib
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import get_args

from pyinfra import host
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.rollout import Colour, ColourState, Manager, Rollout, RolloutState
from operations import script
from settings.secret import Secret

# Stands for the colour's name in a spec's texts; replaced on the host when the spec is installed.
COLOUR = "@COLOUR@"

_MODES = "644:root:root 600:root:root"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")


def upstream(app: str) -> str:
    """Return what nginx proxies to: ``server unix:…`` in an upstream block, without ``keepalive`` (see the docs page)."""
    return f"unix:/etc/{app}/active.sock"


def _service_path(app: str, manager: Manager) -> str:
    if manager == "systemd":
        return f"/etc/systemd/system/{app}-{COLOUR}.service"
    return f"/etc/supervisor/conf.d/{app}-{COLOUR}.conf"


def names(app: str, manager: Manager) -> dict[str, str]:
    """
    Return what a service file is written with, for either colour.

    + app, colour
    + socket: path to listen on, as a Unix socket
    + env_file: path of the environment
    + stamp: shell command that must run as root before the process. It writes down what the process reads, so that it is
      known what a process runs on, whatever happened since: a file changed by hand, a crash, a reboot, a wrong clock
    """
    service, env_file = _service_path(app, manager), f"/etc/{app}/{COLOUR}.env"
    stamp = f"/run/hostwright/{app}-{COLOUR}.started"
    return {
        "app": app,
        "colour": COLOUR,
        "socket": f"/run/{app}-{COLOUR}/app.sock",
        "env_file": env_file,
        "stamp": (
            f"mkdir -p /run/hostwright && cat {service} {env_file} {service}.d/*.conf 2>/dev/null | sha256sum >{stamp}"
        ),
    }


@dataclass(frozen=True)
class Spec:
    """Everything that a start of an application reads, with ``@COLOUR@`` where the colour's name goes."""

    manager: Manager
    release: str
    service: str
    environment: Secret
    health_path: str

    @property
    def about(self) -> str:
        return f"manager={self.manager}\nrelease={self.release}\nhealth_path={self.health_path}\n"

    @property
    def name(self) -> str:
        """The spec's id: a hash over all of it."""
        whole = "\0".join((self.about, self.service, self.environment.unmask()))
        return hashlib.sha256(whole.encode()).hexdigest()[:12]

    def fingerprint(self, colour: Colour) -> str:
        """What ``facts.rollout.ColourState.installed`` is when a colour holds this spec and nothing else."""
        files = (self.service + self.environment.unmask()).replace(COLOUR, colour)
        return hashlib.sha256(files.encode()).hexdigest()


@dataclass(frozen=True)
class Decision:
    """
    What is to be done.

    + switch: put the spec on the other colour and let it take over; includes all the others
    + start: the active colour holds the spec and is down
    + repair: it runs on the spec, and its files or its start at boot are not as they should be: no restart for that
    + retire: the other colour, or the other supervisor, still has something that runs or would start
    """

    switch: bool = False
    start: bool = False
    repair: bool = False
    retire: bool = False


def _is_left_over(manager: str, wanted_manager: str, state: ColourState) -> bool:
    if state.state == "stopping":
        return False
    foreign = manager != wanted_manager and bool(state.installed)
    return foreign or state.starts_at_boot or state.state in ("running", "starting")


def decide(manager: Manager, fingerprints: Mapping[str, str], found: RolloutState) -> Decision:
    """Compare a spec, given by its supervisor and its fingerprint on each colour, with a host."""
    state = found.colours.get((found.active, manager))
    if state is None:
        return Decision(switch=True)
    wanted = fingerprints[found.active]
    has_right_files = state.installed == wanted and state.modes == _MODES
    runs_on_spec = state.state == "running" and state.started == wanted and state.health == "ok"
    retire = any(
        _is_left_over(other_manager, manager, other)
        for (colour, other_manager), other in found.colours.items()
        if (colour, other_manager) != (found.active, manager)
    )
    if runs_on_spec:
        repair = not has_right_files or not state.enabled or state.needs_reload
        return Decision(repair=repair, retire=retire)
    if state.installed == wanted and state.state in ("stopped", "failed"):
        return Decision(start=True, repair=True, retire=retire)
    return Decision(switch=True)


def _check(app: str, settle_seconds: int, **positive: int) -> None:
    faults = []
    if not _NAME.fullmatch(app):
        faults.append(f"app must be lower-case letters, digits and hyphens, got {app!r}")
    faults += [f"{key} must be at least 1, got {value!r}" for key, value in positive.items() if value < 1]
    if settle_seconds < 0:
        faults.append(f"settle_seconds must be at least 0, got {settle_seconds!r}")
    if faults:
        raise OperationValueError("rollout: " + "; ".join(faults))


def _command(
    app: str,
    decision: Decision,
    spec_name: str,
    spec: Spec | None,
    probe: str | None,
    probe_seconds: int,
    start_seconds: int,
    settle_seconds: int,
    drain_seconds: int,
    keep: int,
) -> StringCommand:
    return script.run(
        "rollout/colour.sh",
        "rollout/switch.sh",
        app=app,
        do_switch=decision.switch,
        do_start=decision.start,
        do_repair=decision.repair,
        do_retire=decision.retire,
        spec=spec_name,
        about=spec.about if spec else "",
        service=spec.service if spec else "",
        environment=spec.environment if spec else "",
        probe=probe or "",
        probe_seconds=probe_seconds,
        start_seconds=start_seconds,
        settle_seconds=settle_seconds,
        drain_seconds=drain_seconds,
        keep=keep,
    )


@operation()
def rollout(
    app: str,
    service: str = "",
    environment: Secret | None = None,
    release: str = "",
    manager: Manager = "systemd",
    health_path: str = "/health",
    probe: str | None = None,
    probe_seconds: int = 10,
    start_seconds: int = 60,
    settle_seconds: int = 8,
    drain_seconds: int = 330,
    keep: int = 3,
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Serve an application in exactly this spec, without a failed request on the way to it.

    + app: its name; units are ``APP-blue.service`` and ``APP-green.service``, ``APP.service`` means the enabled one
    + service: text of the unit or the supervisor program, written with ``names(app, manager)``
    + environment: content of ``/etc/APP/COLOUR.env`` (0600)
    + release: directory that the service file names, e.g. of ``operations.release.release_path``
    + manager: ``systemd`` or ``supervisor``; the other one's files are removed
    + health_path: must answer below 400 on the colour's own socket
    + probe: shell command that must succeed within ``probe_seconds`` (s) after the switch, through all a client goes through
    + start_seconds: to the first healthy answer; + settle_seconds: healthy without a break after it, in the same process
    + drain_seconds: how long the old colour may take to finish running requests; it does so after the run has ended
    + keep: how many specs that served stay stored to roll back to
    + present: ``False`` stops and removes both colours, their environment and the stored specs

    A spec that fails anywhere never gets a request: its colour is taken away again, the serving one is not touched, and
    the operation fails with the last lines the process printed (values of secret variables masked).

    Raises ``OperationValueError`` for bad arguments.

    **Example:**

    .. code:: python

        rollout.rollout(
            "shop",
            service=template.render("shop/shop.service.j2", release=path, **rollout.names("shop", "systemd")),
            environment=Secret("LOG_LEVEL=info\\n"),
            release=path,
            probe="curl -fsS --resolve shop.example:443:127.0.0.1 https://shop.example/health",
            name="Roll out release",
        )
    """
    _check(
        app,
        start_seconds=start_seconds,
        settle_seconds=settle_seconds,
        drain_seconds=drain_seconds,
        keep=keep,
    )
    if manager not in get_args(Manager):
        raise OperationValueError(f"rollout: manager must be 'systemd' or 'supervisor', got {manager!r}")
    if not present:
        if host.get_fact(Rollout, app=app) == RolloutState():
            host.noop(f"{app} is not there")
        else:
            yield script.run("rollout/colour.sh", "rollout/remove.sh", app=app)
        return
    if environment is None or not release.startswith("/"):
        raise OperationValueError("rollout: service, environment and release (a path) are needed")
    missing = [key for key in ("socket", "env_file", "stamp") if names(app, manager)[key] not in service]
    if missing or release not in service:
        raise OperationValueError(f"rollout: the service file does not use {', '.join(missing) or 'release'}")
    spec = Spec(manager, release, service, environment, health_path)

    found = host.get_fact(Rollout, app=app, health_path=health_path)
    decision = decide(manager, {"blue": spec.fingerprint("blue"), "green": spec.fingerprint("green")}, found)
    if decision == Decision():
        host.noop(f"{app} serves spec {spec.name} on {found.active}")
        return
    yield _command(
        app,
        decision,
        spec.name,
        spec,
        probe,
        probe_seconds,
        start_seconds,
        settle_seconds,
        drain_seconds,
        keep,
    )


@operation(is_idempotent=False)
def rollback(
    app: str,
    probe: str | None = None,
    probe_seconds: int = 10,
    start_seconds: int = 60,
    settle_seconds: int = 8,
    drain_seconds: int = 330,
    keep: int = 3,
) -> Generator[StringCommand, None, None]:
    """
    Serve the spec that served before the present one, by the same way as any other change.

    Release, service file and environment come from the host's store, as they were. Arguments are those of ``rollout``.
    Running it twice comes back to where it started.

    Raises ``OperationError`` when there is no earlier spec, or its release is gone.
    """
    _check(
        app,
        start_seconds=start_seconds,
        settle_seconds=settle_seconds,
        drain_seconds=drain_seconds,
        keep=keep,
    )
    found = host.get_fact(Rollout, app=app)
    if not found.previous:
        raise OperationError(f"rollout.rollback: {app} has no earlier spec on this host to go back to")
    yield _command(
        app,
        Decision(switch=True),
        found.previous,
        None,
        probe,
        probe_seconds,
        start_seconds,
        settle_seconds,
        drain_seconds,
        keep,
    )
