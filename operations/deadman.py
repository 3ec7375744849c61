"""
Changes that could lock us out: armed with a rollback on the host that only a new SSH connection disarms.

The connection that a run already has proves nothing: a firewall lets established flows pass, and sshd keeps its
sessions over a reload. So a second one is opened with the same connection data, and the rollback is disarmed over it.
Whatever else happens, a killed run, a cut line, a reboot, the host goes back to the last proven state by itself.
"""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import gevent  # type: ignore[import-untyped]
from pyinfra import logger
from pyinfra.api import FunctionCommand, OperationValueError, StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.connectors.ssh import SSHConnector

from operations import script
from operations.script import Value

if TYPE_CHECKING:
    from pyinfra.api import Host, State

# One attempt is not enough: sshd closes its listening socket for an instant when it reloads.
_ATTEMPT_PAUSE_SECONDS = 1.0
_TAKE_BACK_SECONDS = 20.0
_SHORTEST_SECONDS = 10
_BECOME = (
    "_sudo",
    "_sudo_user",
    "_use_sudo_login",
    "_sudo_password",
    "_preserve_sudo_env",
    "_su_user",
    "_doas",
    "_doas_user",
)


def guarded(
    change: str,
    *,
    deadman: str,
    seconds: int,
    saved: Sequence[str],
    restore: str,
    **variables: Value,
) -> Generator[StringCommand | FunctionCommand, None, None]:
    """
    Yield the commands that arm the rollback, make the change and prove it.

    + change: script of ``files/`` that defines the shell function ``change``; when that fails, or the proof does not
      come within ``seconds``, the host takes everything back
    + deadman: what is changed, e.g. ``sshd``; one rollback per such name
    + seconds: until the host takes the change back unless it is proven, 10 or more
    + saved: absolute paths of the files that the change may write or create
    + restore: shell commands that make the restored files live again
    + variables: shell variables for the change

    A copy that an earlier, killed run left behind is kept: it is the last state that was proven.
    """
    if seconds < _SHORTEST_SECONDS:
        raise OperationValueError(f"rollback_seconds: must be {_SHORTEST_SECONDS} or more, got {seconds!r}")
    yield script.run(
        change,
        "deadman/arm.sh",
        deadman=deadman,
        seconds=seconds,
        saved=" ".join(saved),
        restore=restore,
        **variables,
    )
    yield FunctionCommand(_prove, (deadman, seconds), {})


def _connection_arguments(host: "Host") -> Any:
    """Return the running operation's own arguments for commands, such as ``_sudo``."""
    given: dict[str, Any] = dict(host.current_op_global_arguments or {})
    return {key: given[key] for key in _BECOME if given.get(key)}


def _prove(state: "State", host: "Host", deadman: str, seconds: int) -> bool:
    """Disarm the rollback over a new connection; without one, have the old connection run it at once."""
    disarm = script.run("deadman/disarm.sh", deadman=deadman)
    arguments = {**_connection_arguments(host), **disarm.connector_arguments}
    if not isinstance(host.connector, SSHConnector):
        # @local, @docker and the like do not come in through the door that was changed.
        succeeded, _ = host.run_shell_command(disarm, **arguments)
        return bool(succeeded)

    failure = f"no answer within {seconds // 2} s"
    with gevent.Timeout(seconds // 2, False):
        while True:
            fresh = SSHConnector(state, host)
            try:
                fresh.connect()
            except ConnectError as error:
                failure = str(error)
                gevent.sleep(_ATTEMPT_PAUSE_SECONDS)
                continue
            try:
                succeeded, output = fresh.run_shell_command(disarm, **arguments)
            finally:
                if fresh.client is not None:
                    fresh.client.close()
            if succeeded:
                return True
            failure = output.stderr.strip() or "the rollback could not be disarmed"
            break

    # Established flows outlive most mistakes. Where this one does not, the host's own timer is still there.
    take_back = StringCommand("systemctl", "start", f"hostwright-{deadman}-rollback.service")
    taken_back = False
    with gevent.Timeout(_TAKE_BACK_SECONDS, False):
        taken_back, _ = host.run_shell_command(take_back, **_connection_arguments(host))
    outcome = (
        "it was taken back at once"
        if taken_back
        else f"the host takes it back by itself, {seconds} s after the change"
    )
    host.log_styled(
        f"{deadman}: no new SSH connection after the change ({failure}); {outcome}",
        fg="red",
        log_func=logger.error,
    )
    return False
