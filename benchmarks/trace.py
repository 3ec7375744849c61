"""Run pyinfra as usual, and record every SSH command that it opens: what for, when and how long.

    python -m benchmarks.trace RECORD.json <arguments of pyinfra>

A command is counted where paramiko asks the server for it, below anything that could keep it from us. The record is
one JSON object: ``stages`` (name to seconds since the process started) and ``commands`` (``host``, ``operation``,
``fact`` or null, ``start`` and ``seconds``).
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pyinfra_cli.main import cli  # type: ignore[import-untyped]  # the first: it makes the process cooperative

# isort: split

import paramiko
from gevent.local import local  # type: ignore[import-untyped]
from pyinfra.api import facts
from pyinfra.api.state import State
from pyinfra.connectors.ssh import SSHConnector


def _process_started() -> float:
    """Return when this process was started, as a time.time() value: the interpreter's own start counts too."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))


_STARTED = _process_started()
_commands: list[dict[str, Any]] = []
_stages: dict[str, float] = {}
_doing = local()  # each host runs in a greenlet of its own


def _now() -> float:
    return time.time() - _STARTED


def _count_commands() -> None:
    """Record each exec request at the moment it goes out; whoever asked fills in the rest."""
    original = paramiko.Channel.exec_command

    def counted(channel: paramiko.Channel, command: str | bytes) -> None:
        _doing.command = {"host": getattr(_doing, "host", "?"), "operation": "", "fact": None,
                          "start": _now(), "seconds": 0.0}  # fmt: skip
        _commands.append(_doing.command)
        original(channel, command)

    paramiko.Channel.exec_command = counted  # type: ignore[assignment, method-assign]


def _name_commands() -> None:
    original_run = SSHConnector.run_shell_command
    original_fact = facts.get_fact

    def run(connector: SSHConnector, *args: Any, **kwargs: Any) -> Any:
        host = connector.host
        _doing.host, _doing.command = host.name, None
        operation = host.executing_op_hash or host.current_op_hash
        names = connector.state.op_meta[operation].names if operation in connector.state.op_meta else set()
        before = _now()
        try:
            return original_run(connector, *args, **kwargs)
        finally:
            if _doing.command is not None:
                _doing.command["operation"] = ", ".join(sorted(names))
                _doing.command["fact"] = getattr(_doing, "fact", None)
                _doing.command["seconds"] = _now() - before

    def fact(state: State, host: Any, cls: type, *args: Any, **kwargs: Any) -> Any:
        outer, _doing.fact = getattr(_doing, "fact", None), f"{cls.__module__.removeprefix('facts.')}.{cls.__name__}"
        try:
            return original_fact(state, host, cls, *args, **kwargs)
        finally:
            _doing.fact = outer

    SSHConnector.run_shell_command = run  # type: ignore[assignment, method-assign]
    for module in list(sys.modules.values()):  # others hold it by name
        if getattr(module, "get_fact", None) is original_fact:
            module.get_fact = fact  # type: ignore[attr-defined]


def _note_stages() -> None:
    original = State.set_stage

    def noted(state: State, stage: Any) -> None:
        _stages[stage.name.lower()] = _now()
        original(state, stage)

    State.set_stage = noted  # type: ignore[assignment, method-assign]


def main() -> None:
    """Run pyinfra with the arguments after the record's path."""
    record = Path(sys.argv[1])
    sys.argv = ["pyinfra", *sys.argv[2:]]
    _stages["imported"] = _now()
    _count_commands()
    _name_commands()
    _note_stages()

    def write() -> None:
        _stages["end"] = _now()
        record.write_text(json.dumps({"stages": _stages, "commands": _commands}))

    atexit.register(write)
    cli()


if __name__ == "__main__":
    main()
