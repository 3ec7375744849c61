"""The hosts of a pyinfra inventory, with their settings, as ssh reaches them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import testinfra
from testinfra.host import Host as Shell

from settings import Host, SettingsError, load_host

REPOSITORY = Path(__file__).parents[2]
PYINFRA = Path(sys.executable).with_name("pyinfra")
CONNECT_SECONDS = 10
# pyinfra's words for host key checking, in ssh_config's; pyinfra's default is accept-new as well.
_HOST_KEYS = {"yes": "yes", "accept-new": "accept-new", "no": "no", "off": "no", "ask": "yes"}


class FleetError(Exception):
    """The inventory cannot be used; the text says why, in pyinfra's or in the settings' own words."""


@dataclass(frozen=True)
class Target:
    """One host of the inventory: its settings without secrets, and its connection data."""

    name: str
    settings: Host
    data: Mapping[str, Any]

    @property
    def address(self) -> str:
        """Where ssh connects to; "" for this machine itself."""
        return "" if self.name == "@local" else str(self.data.get("ssh_hostname") or self.alias)

    @property
    def alias(self) -> str:
        """Its name in the ssh configuration."""
        return self.name.removeprefix("@ssh/")

    @property
    def is_reached_directly(self) -> bool:
        """Whether no ssh configuration of the operator's, and so no jump host, stands between."""
        return not self.data.get("ssh_config_file")


def load(inventory: str, limits: Sequence[str] = ()) -> list[Target]:
    """Return the hosts of a pyinfra inventory, read by pyinfra itself, so that group_data and imports work alike.

    + limits: names or patterns of hosts, or groups; without one all hosts

    No connection is made and no secret is read. Raises FleetError for bad settings and for a limit without hosts.
    """
    done = subprocess.run(
        [str(PYINFRA), "--json", inventory, "debug-inventory"],
        cwd=REPOSITORY, text=True, capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        raise FleetError(f"{inventory}: pyinfra cannot read it\n{done.stderr.strip()}")
    targets = []
    for entry in json.loads(done.stdout):
        try:
            settings = load_host(entry["name"], entry["groups"], entry["data"], resolve=False)
        except SettingsError as error:
            raise FleetError(str(error)) from None
        targets.append(Target(entry["name"], settings, entry["data"]))
    for limit in limits:
        if not any(_is_within(target, limit) for target in targets):
            raise FleetError(f"--limit {limit}: matches no host of {inventory}")
    return [target for target in targets if not limits or any(_is_within(target, limit) for limit in limits)]


def _is_within(target: Target, limit: str) -> bool:
    return limit in target.settings.groups or fnmatch(target.name, limit)


class Connections:
    """One multiplexed ssh connection per host, opened by the first command and closed by :meth:`close`.

    testinfra's own command line sets no ControlPath, so each of its commands would log in anew.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        # /tmp and not $TMPDIR: a socket's path has at most about 100 characters, and ssh adds 17 to the 40 of %C.
        self._directory = Path(tempfile.mkdtemp(prefix="hw-", dir="/tmp"))
        self._config = self._directory / "config"
        self._aliases = [target.alias for target in targets if target.address]
        self._config.write_text(ssh_config(targets, self._directory))

    def shell(self, target: Target) -> Shell:
        """Return testinfra's view of a host, as root where the inventory says so."""
        if not target.address:
            return testinfra.get_host("local://", sudo=bool(target.data.get("_sudo")))
        return testinfra.get_host(
            f"ssh://{target.alias}", ssh_config=str(self._config), timeout=CONNECT_SECONDS,
            sudo=bool(target.data.get("_sudo")), sudo_user=target.data.get("_sudo_user"),
        )  # fmt: skip

    def close(self) -> None:
        """End the connections and remove what they were made with."""
        for alias in self._aliases:
            subprocess.run(["ssh", "-F", str(self._config), "-O", "exit", alias], capture_output=True)
        shutil.rmtree(self._directory, ignore_errors=True)


def ssh_config(targets: Sequence[Target], directory: Path) -> str:
    """Return an OpenSSH configuration that reaches the targets as pyinfra does, host keys checked as strictly.

    + directory: where the connections' sockets are made
    """
    blocks = []
    for target in targets:
        data = target.data
        strict = str(data.get("ssh_strict_host_key_checking", "accept-new"))
        options = {
            "HostName": target.address,
            "Port": data.get("ssh_port"),
            "User": data.get("ssh_user"),
            "IdentityFile": data.get("ssh_key"),
            "IdentitiesOnly": "yes" if data.get("ssh_key") else None,
            "UserKnownHostsFile": data.get("ssh_known_hosts_file"),
            "StrictHostKeyChecking": _HOST_KEYS.get(strict, "yes"),
            "ForwardAgent": "yes" if data.get("ssh_forward_agent") else None,
            "BatchMode": "yes",
            "ControlMaster": "auto",
            "ControlPath": f"{directory}/%C",
        }
        lines = [f"    {key} {_quoted(value)}" for key, value in options.items() if value not in (None, "")]
        blocks.append("\n".join([f"Host {target.alias}", *lines]))
    # An operator's own files come last: ssh takes the first value it sees of each option. pyinfra reads the default
    # one as well; -F would make ssh leave it out.
    files = {str(target.data.get("ssh_config_file") or "~/.ssh/config") for target in targets if target.address}
    return "\n\n".join([*blocks, *(f"Match all\nInclude {_quoted(file)}" for file in sorted(files))]) + "\n"


def _quoted(value: object) -> str:
    text = str(value)
    return f'"{text}"' if re.search(r"\s", text) else text
