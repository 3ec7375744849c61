"""``pytest tests/verify --inventory inventories/prod.py [--limit HOST_OR_GROUP]``: each check once per host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import pytest

from settings import Host
from tests.verify import evidence, fleet
from tests.verify.evidence import Output

Command = str | Callable[[Host], str]

# Known on every host: whether its kernel is its own.
# By name: the command, and the system whose hosts alone are asked (None: all hosts).
_COMMON: dict[str, tuple[Command, str | None]] = {"container": ("systemd-detect-virt --container", None)}


class Machine:
    """One host under check: ``settings``, and ``text(name)`` of what the modules' ``EVIDENCE`` commands printed."""

    def __init__(self, target: fleet.Target) -> None:
        self.target = target
        self.settings = target.settings
        self.evidence: Future[dict[str, Output]] = Future()

    def runs(self, system: str | None) -> bool:
        """Whether this host is one of a system's; every host is one of ``None``. Monitoring has settings everywhere: it says itself."""
        if system is None:
            return True
        section = getattr(self.settings, system)
        return section is not None and getattr(section, "is_on", True)

    def output(self, name: str) -> Output:
        """Return what a command printed; the check fails when the host was not reached."""
        if (error := self.evidence.exception()) is not None:
            pytest.fail(f"{self.target.name} cannot be checked: {error}", pytrace=False)
        return self.evidence.result()[name]

    def text(self, name: str) -> str:
        """Return what a command printed; the check fails when the command did."""
        output = self.output(name)
        assert output.rc == 0, f"{name}: exit status {output.rc}: {output.text.strip()}"
        return output.text

    def lines(self, name: str) -> list[str]:
        """Return the lines that a command printed; the check fails when the command did."""
        return [line.rstrip() for line in self.text(name).splitlines() if line.strip()]

    def skip_unless(self, key: str) -> None:
        """Skip the check when a setting, given by its flat key such as ``base_sshd_enabled``, is off."""
        section, _, field = key.partition("_")
        if not getattr(getattr(self.settings, section), field):
            pytest.skip(f"{key} is off on {self.target.name}")

    def skip_in_container(self, why: str) -> None:
        """Skip the check on a host that shares its kernel with others."""
        if self.is_container:
            pytest.skip(f"{self.target.name} is a container ({self.output('container').text.strip()}): {why}")

    @cached_property
    def is_container(self) -> bool:
        """Whether the kernel is not the host's own."""
        return self.output("container").rc == 0


class Session:
    """The hosts that are checked in this process."""

    def __init__(self, inventory: str, limits: list[str]) -> None:
        self.machines = [Machine(target) for target in fleet.load(inventory, limits)]
        self._connections = fleet.Connections([machine.target for machine in self.machines])
        self._pool = ThreadPoolExecutor(max(1, len(self.machines)))

    def gather(self, commands: Mapping[str, tuple[Command, str | None]]) -> None:
        """Start reading all hosts at once; the first check of each waits for its own."""
        for machine in self.machines:
            self._pool.submit(self._gather, machine, commands)

    def _gather(self, machine: Machine, commands: Mapping[str, tuple[Command, str | None]]) -> None:
        try:
            texts = {
                name: command(machine.settings) if callable(command) else command
                for name, (command, system) in commands.items()
                if machine.runs(system)
            }
            nothing_to_ask = {name: Output(0, "") for name, text in texts.items() if not text}
            found = evidence.gather(self._connections.shell(machine.target), {n: t for n, t in texts.items() if t})
            machine.evidence.set_result(nothing_to_ask | found)
        except Exception as error:
            machine.evidence.set_exception(error)

    def close(self) -> None:
        """Wait for readings that nobody asked for, and close the connections."""
        self._pool.shutdown()
        self._connections.close()


_SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("verify", "checks of provisioned hosts")
    group.addoption("--inventory", help="pyinfra inventory whose hosts are checked, from the repository's root")
    group.addoption("--limit", action="append", default=[], help="only this host, pattern or group (repeatable)")


def pytest_configure(config: pytest.Config) -> None:
    inventory = config.getoption("--inventory")
    if inventory is not None:
        try:
            config.stash[_SESSION] = Session(inventory, config.getoption("--limit"))
        except fleet.FleetError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_unconfigure(config: pytest.Config) -> None:
    if _SESSION in config.stash:
        config.stash[_SESSION].close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "machine" not in metafunc.fixturenames:
        return
    if _SESSION not in metafunc.config.stash:
        raise pytest.UsageError("tests/verify: which hosts? Give --inventory inventories/prod.py")
    # A module about one system names it in SYSTEM and is asked only of the hosts that run it.
    system = getattr(metafunc.module, "SYSTEM", None)
    machines = [machine for machine in metafunc.config.stash[_SESSION].machines if machine.runs(system)]
    metafunc.parametrize("machine", machines, ids=[machine.target.name for machine in machines], scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the checks of systems that no host of the inventory runs: pytest keeps one of each, without a host."""
    if _SESSION in config.stash:
        machines = config.stash[_SESSION].machines
        idle = [item for item in items if not any(one.runs(getattr(item.module, "SYSTEM", None)) for one in machines)]  # type: ignore[attr-defined]
        config.hook.pytest_deselected(items=idle)
        items[:] = [item for item in items if item not in idle]


def pytest_collection_finish(session: pytest.Session) -> None:
    if _SESSION not in session.config.stash or session.config.option.collectonly:
        return
    commands = dict(_COMMON)
    for module in {item.module for item in session.items if isinstance(item, pytest.Function)}:
        for name, command in getattr(module, "EVIDENCE", {}).items():
            if commands.setdefault(name, (command, getattr(module, "SYSTEM", None)))[0] is not command:
                raise pytest.UsageError(f"{module.__name__}: EVIDENCE {name!r} is another command elsewhere")
    session.config.stash[_SESSION].gather(commands)
