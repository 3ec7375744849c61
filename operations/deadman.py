"""
Changes that could lock us out: armed with a rollback on the host that only a new SSH connection disarms.

The connection that a run already has proves nothing: a firewall lets established flows pass, and sshd keeps its
sessions over a reload. So a second one is opened with the same connection data, and the rollback is disarmed over it.
Whatever else happens, a killed run, a cut line, a reboot, the host goes back to the last proven state by itself.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import gevent
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
_NEAREST_PROOF_SECONDS = 5


def guarded(
    change: str,
    *,
    deadman: str,
    seconds: int,
    saved: Sequence[str],
    restore: str,
    **variables: Value,
) -> Iterator[StringCommand | FunctionCommand]:
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
    if seconds < 2 * _NEAREST_PROOF_SECONDS:
        raise OperationValueError(f"rollback_seconds: must be 10 or more, got {seconds!r}")
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


def _connection_arguments(host: "Host") -> dict[str, object]:
    """Return the running operation's own arguments for commands, such as ``_sudo``."""
    known = ("_sudo", "_sudo_user", "_use_sudo_login", "_sudo_password", "_preserve_sudo_env", "_su_user", "_doas")
    given = host.current_op_global_arguments or {}
    return {key: given[key] for key in known if given.get(key)}  # type: ignore[literal-required]


def _prove(state: "State", host: "Host", deadman: str, seconds: int) -> bool:
    """Disarm the rollback over a new connection; without one, have the old connection run it now."""
    disarm = script.run("deadman/disarm.sh", deadman=deadman)
    arguments = {**_connection_arguments(host), **disarm.connector_arguments}
    if not isinstance(host.connector, SSHConnector):
        # @local, @docker and the like do not come in through the door that was changed.
        succeeded, output = host.run_shell_command(disarm, **arguments)
        return bool(succeeded)

    failure = ""
    deadline = max(_NEAREST_PROOF_SECONDS, seconds // 2)
    with gevent.Timeout(deadline, False):
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
    _fail(host, deadman, failure or f"no answer within {deadline} s", seconds)
    return False


def _fail(host: "Host", deadman: str, failure: str, seconds: int) -> None:
    host.log_styled(
        f"{deadman}: no new SSH connection after the change ({failure}); "
        f"it is not kept: the host goes back to its last proven state by itself, {seconds} s after the change",
        fg="red",
        log_func=logger.error,
    )


