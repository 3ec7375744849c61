"""pyinfra's own configuration file, read from the directory that pyinfra is started in.

The CLI runs it, then makes the inventory, calls `state.init`, and connects. Everything that can be refused without a
connection is refused at `state.init`: bad settings, an inventory or a --limit without hosts, options that leak.
"""

import socket
import sys
from fnmatch import fnmatch

import click
import paramiko
import pyinfra.api.operations
import pyinfra_cli.util
from pyinfra import logger
from pyinfra.api.exceptions import DeployError, OperationError
from pyinfra.connectors.util import CommandOutput
from pyinfra.context import ctx_host, ctx_state
from pyinfra_cli.exceptions import CliError

from settings import SettingsError, load_fleet


def _patterns_without_hosts(inventory, options):
    """Yield each --limit and --exclude that matches no host: pyinfra itself goes on and exits 0."""
    for option in ("limit", "exclude"):
        for pattern in options.get(option) or ():
            members = inventory.groups.get(pattern)
            if not (members if members is not None else [h for h in inventory if fnmatch(h.name, pattern)]):
                yield f"--{option} {pattern}: matches no host of the inventory"


def _leaking_options(config, options):
    """Yield options with which pyinfra would put a secret on a screen, in a log or in a process list."""
    if options.get("use_sudo_password") or options.get("same_sudo_password") or config.SUDO_PASSWORD:
        yield (
            "--use-sudo-password, --same-sudo-password: must not be used, allow sudo without a password (NOPASSWD): "
            "the password would show in the host's process list"
        )
    if options.get("ssh_password_prompt"):
        yield "--ssh-password-prompt: must not be used, log in with a key: pyinfra --debug prints passwords"


def _check(inventory, config, initial_limit):
    """Raise CliError with everything that is wrong with this run."""
    context = click.get_current_context(silent=True)
    options = context.params if context else {}
    faults = [*_patterns_without_hosts(inventory, options), *_leaking_options(config, options)]
    if not len(inventory):
        faults.append("the inventory has no host")
    elif initial_limit == [] and not faults:
        faults.append("--limit and --exclude leave no host")

    # debug-inventory, fact and exec need no secret; functions of deploys/ and operations/ ask for theirs when they run
    runs_deploy = all(str(command).endswith(".py") for command in options.get("operations", ()))
    wanted = inventory if initial_limit is None else initial_limit
    try:
        load_fleet(
            [(host.name, host.groups, host.data.dict()) for host in inventory],
            resolve=[host.name for host in wanted] if runs_deploy else [],
            groups={name: [host.name for host in hosts] for name, hosts in inventory.groups.items()},
        )
    except SettingsError as error:
        faults += error.lines()
    if faults:
        raise CliError(
            "\n".join([f"{len(faults)} fault{'s' * (len(faults) > 1)} found before any connection", *faults])
        )


def _wrap(init):
    def checked_init(inventory, config, initial_limit=None):
        _check(inventory, config, initial_limit)
        init(inventory, config, initial_limit=initial_limit)

    return checked_init


def _contain(run_host_op):
    """Fail the one host whose operation raises: pyinfra 3.10 lets the error end the run of all other hosts."""

    def contained(state, host, op_hash):
        try:
            return run_host_op(state, host, op_hash)
        except OperationError as error:
            host.log_styled(f"Operation error: {error}", fg="red", log_func=logger.error)
            state.get_results_for_host(host).error_ops += 1
            state.trigger_callbacks("operation_host_error", host, op_hash, 0, 0)
            state.get_op_data_for_host(host, op_hash).operation_meta.set_complete(False, [], CommandOutput([]))
            return False

    contained.is_contained = True
    return contained


def _contain_planning(load_for_hosts):
    """The same while the plan is made: the host is left out of it, and of the run, and the exit status is not 0."""

    def contained(state, callback, name):
        def planned():
            try:
                callback()
            except (DeployError, OperationError) as error:
                host = ctx_host.get()
                host.log_styled(f"Not planned: {error}", fg="red", log_func=logger.error)
                state.failed_hosts.add(host)
                state.active_hosts.discard(host)

        return load_for_hosts(state, planned, name)

    contained.is_contained = True
    return contained


# How a host that lost its power is noticed: silent for so long, then asked so often, every so many seconds.
_IDLE_SECONDS, _PROBES, _PROBE_SECONDS = 20, 4, 10


def _tune(start_client):
    """Let every message of a connection leave when it is written, and let a connection end whose host is gone.

    An SSH command is several small messages; paramiko leaves Nagle's algorithm on, so each command on a near host waits
    40 ms for a delayed acknowledgement. OpenSSH switches it off for sessions likewise.

    Whoever waits for the output of a long command sends nothing himself: without keepalive he waits for ever for a host
    that lost its power, and all other hosts of the run with him. With it the host has failed after a minute.
    """

    def started(transport, *args, **kwargs):
        connection = transport.sock
        if getattr(connection, "family", None) in (socket.AF_INET, socket.AF_INET6):  # not a ProxyCommand's pipe
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; elsewhere the system's own times
                patience = _IDLE_SECONDS + _PROBES * _PROBE_SECONDS
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_SECONDS)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_SECONDS)
                # what was sent and is not acknowledged: the kernel itself would repeat it for a quarter of an hour
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience * 1000)
        return start_client(transport, *args, **kwargs)

    started.is_tuned = True
    return started


if "pyinfra_cli.cli" in sys.modules:
    _state = ctx_state.get()
    _state.init = _wrap(_state.init)
    if not hasattr(pyinfra.api.operations.run_host_op, "is_contained"):
        pyinfra.api.operations.run_host_op = _contain(pyinfra.api.operations.run_host_op)
    if not hasattr(pyinfra_cli.util._parallel_load_hosts, "is_contained"):
        pyinfra_cli.util._parallel_load_hosts = _contain_planning(pyinfra_cli.util._parallel_load_hosts)
    if not hasattr(paramiko.Transport.start_client, "is_tuned"):
        paramiko.Transport.start_client = _tune(paramiko.Transport.start_client)
