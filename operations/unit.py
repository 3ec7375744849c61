"""
The state of one systemd unit, restarted when what runs is older than what it was configured with.

pyinfra's ``systemd.service`` restarts by ``_if=`` on what this run changed: when a run dies between the change and the
restart, the next run sees no change and never restarts. Here the host is asked what the unit runs on.
"""

from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra import state as run_state
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.fileset import FileSet, FileSetState
from operations import script
from operations.fileset import ACTIONS, content_hash, owes_action, stamp_name

# What `systemctl is-enabled` calls a unit that needs no enabling: it has no [Install], or another unit pulls it in.
_ENABLED = ("enabled", "static", "alias", "indirect", "generated", "linked")


def _inputs_hash(inputs: Sequence[str], state: FileSetState) -> str:
    marks = []
    for path in inputs:
        found = state.paths.get(path)
        marks.append((path, "absent" if found is None else found.sha256 or found.target or found.kind))
    return content_hash(marks)


@operation()
def unit(
    unit: str,
    running: bool = True,
    enabled: bool | None = True,
    masked: bool = False,
    inputs: Sequence[str] = (),
    action: str = "restart",
    probe: str | None = None,
    probe_seconds: int = 10,
    settle_seconds: int = 3,
) -> Generator[StringCommand, None, None]:
    """
    Manage the state of one systemd unit.

    + unit: full name with its suffix, e.g. ``nginx.service``, ``certbot.timer``
    + running: whether it is to be active now; a unit in a crash loop does not count as active
    + enabled: whether it is to start at boot; ``None`` leaves that as it is
    + masked: whether it is to be impossible to start; goes with ``running=False``
    + inputs: paths that the unit reads when it starts (configuration, unit file, the link to its release). When one of
      them is newer than what the unit runs on, ``action`` is due, whoever changed it and whenever
    + action: ``restart`` or ``reload``
    + probe: shell command that must succeed within ``probe_seconds`` (s) after a start, restart or reload
    + settle_seconds: how long the unit must stay up after that (s); a unit that dies sooner fails the operation, with
      its last journal lines. Not for ``Type=oneshot`` units, which are not up after they ran

    ``daemon-reload`` is run only when systemd says that it needs one.

    Raises ``OperationError`` when the unit does not exist, ``OperationValueError`` for contradicting arguments.

    **Example:**

    .. code:: python

        unit.unit("redis-server.service", inputs=["/etc/redis/redis.conf"], name="Run Redis")
    """
    if "." not in unit:
        raise OperationValueError(f"unit.unit: the unit needs its suffix, e.g. {unit}.service, got {unit!r}")
    if action not in ACTIONS:
        raise OperationValueError(f"unit.unit: action must be 'reload' or 'restart', got {action!r}")
    if masked and (running or enabled):
        raise OperationValueError(f"unit.unit: {unit}: masked=True goes with running=False and enabled=False")

    stamp_key = stamp_name(unit, inputs) if inputs else ""
    state = host.get_fact(FileSet, paths=list(inputs), unit=unit, stamp_key=stamp_key or None)
    current = state.unit
    exists = current.load not in ("not-found", "bad-setting", "error") or current.file == "masked"
    # A plan is made before anything runs: an earlier operation may well bring the unit.
    if not exists and (running or enabled) and run_state.is_executing:
        raise OperationError(f"unit.unit: {unit}: systemd cannot load it (LoadState={current.load})")

    is_masked = current.load == "masked" or current.file.startswith("masked")
    inputs_hash = _inputs_hash(inputs, state)
    newest = max((found.changed for found in state.paths.values()), default=0.0)

    do_unmask = is_masked and not masked
    do_mask = masked and not is_masked
    do_enable = enabled is True and not masked and (is_masked or current.file not in _ENABLED)
    do_disable = enabled is False and not masked and current.file in ("enabled", "enabled-runtime")
    do_start = running and not current.is_active
    do_stop = not running and current.active not in ("inactive", "failed")
    do_reload_files = exists and current.needs_daemon_reload
    do_act = (
        running and current.is_active and bool(inputs) and owes_action(state, inputs_hash, action, newest)
    )
    # A unit file that systemd has not read yet is one that the unit does not run on.
    do_restart = running and current.is_active and do_reload_files and action == "restart"

    if not any((do_unmask, do_mask, do_enable, do_disable, do_start, do_stop, do_reload_files, do_act)):
        host.noop(f"{unit} is as wanted")
        return

    chosen = ""
    if do_stop:
        chosen = "stop"
    elif do_start or do_restart:
        chosen = "restart"
    elif do_act:
        chosen = action
    yield script.run(
        "unit/act.sh",
        "unit/state.sh",
        unit=unit,
        unmask=do_unmask,
        daemon_reload=do_reload_files,
        enablement="mask" if do_mask else "enable" if do_enable else "disable" if do_disable else "",
        action=chosen,
        settle_seconds=settle_seconds,
        probe=probe or "",
        probe_seconds=probe_seconds,
        stamp_key=stamp_key,
        stamp_hash=inputs_hash,
    )
