"""Rules for the inventory itself: keys that are not ours, groups, addresses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from settings.errors import Fault, nearest, unknown_setting

SSH_KEYS = [
    "ssh_hostname",
    "ssh_port",
    "ssh_user",
    "ssh_key",
    "ssh_allow_agent",
    "ssh_look_for_keys",
    "ssh_forward_agent",
    "ssh_config_file",
    "ssh_known_hosts_file",
    "ssh_strict_host_key_checking",
    "ssh_paramiko_connect_kwargs",
    "ssh_connect_retries",
    "ssh_connect_retry_min_delay",
    "ssh_connect_retry_max_delay",
    "ssh_file_transfer_protocol",
]
"""Keys of pyinfra's SSH connector (3.10.0) that are allowed; a unit test compares them with the installed one."""

GLOBAL_KEYS = [
    "_sudo",
    "_sudo_user",
    "_use_sudo_login",
    "_preserve_sudo_env",
    "_su_user",
    "_use_su_login",
    "_preserve_su_env",
    "_su_shell",
    "_doas",
    "_doas_user",
    "_dzdo",
    "_dzdo_user",
    "_shell_executable",
    "_chdir",
    "_env",
    "_success_exit_codes",
    "_timeout",
    "_get_pty",
    "_temp_dir",
    "_retries",
    "_retry_delay",
    "_retry_until",
    "_ignore_errors",
    "_continue_on_error",
    "_parallel",
    "_run_once",
    "_serial",
    "_if",
    "_stdin",
]
"""pyinfra's global arguments that are allowed as host data; compared likewise."""

REFUSED_KEYS = {
    "ssh_password": "log in with a key: pyinfra --debug prints passwords",
    "ssh_key_password": "load the key into ssh-agent: pyinfra --debug prints passwords",
    "_sudo_password": "allow sudo without a password (NOPASSWD): it would show in the host's process list",
    "_su_password": "allow sudo without a password (NOPASSWD): it would show in the host's process list",
}
"""pyinfra's keys that would leak a password, with what to do instead."""

FREE_PREFIXES = ("lab_", "fake_")
"""Keys of the lab's topology and of pyinfra's @fake connector."""


def key_faults(
    host: str, data: Mapping[str, Any], prefixes: tuple[str, ...], keys: Iterable[str]
) -> Iterator[Fault]:
    """Yield faults of the keys that belong to no section: pyinfra's own are allowed, others unknown."""
    known = [*keys, *SSH_KEYS]
    for key, value in data.items():
        if key in REFUSED_KEYS:
            yield Fault(key, "must not be used", hint=REFUSED_KEYS[key], host=host)
        elif key.startswith("_"):
            # other underscored names are private variables of a group_data file
            if key not in GLOBAL_KEYS and (near := nearest(key, GLOBAL_KEYS, cutoff=0.85)):
                yield Fault(key, "unknown global argument", hint=f"did you mean {near}?", host=host)
        elif key == "ssh_port":
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
                yield Fault(key, "must be a whole number from 1 to 65535", value, host=host)
        elif key not in SSH_KEYS and not key.startswith((*prefixes, *FREE_PREFIXES)):
            yield unknown_setting(key, host, known)


def unknown_keys(host: str, data: Mapping[str, Any], prefix: str, keys: Collection[str]) -> Iterator[Fault]:
    """Yield the keys of a system that no setting has; for hosts on which the system does not run."""
    for key in data:
        if key.startswith(prefix) and key not in keys:
            yield unknown_setting(key, host, keys)


def group_faults(
    groups: Mapping[str, Collection[str]], known: Collection[str], list_keys: Collection[str]
) -> Iterator[Fault]:
    """Yield groups that look like a misspelled system, and lists of settings that pyinfra took for groups."""
    fields = {key.partition("_")[2]: key for key in list_keys}
    roles = [name for name in known if "_" in name]
    for group, members in groups.items():
        if group in known:
            continue
        is_below = group.startswith(tuple(f"{name}_" for name in known))
        if key := group if group in list_keys else fields.get(group):
            if members:
                names = ", ".join(sorted(members)[:3])
                yield Fault(
                    group,
                    f"a list in an inventory file is a group of hosts, here of {names}",
                    hint=f"write {key} in group_data or in a host's data",
                )
        elif near := nearest(group, roles if is_below else known, cutoff=0.85):
            yield Fault(group, "unknown group", hint=f"did you mean {near}?")


def address_faults(data_of: Mapping[str, Mapping[str, Any]]) -> Iterator[Fault]:
    """Yield hosts that are reached at one and the same address: two names would fight over one machine."""
    at: dict[tuple[str, Any], list[str]] = defaultdict(list)
    for host, data in data_of.items():
        name = host.removeprefix("@ssh/")
        if not name.startswith("@"):
            at[str(data.get("ssh_hostname") or name).lower(), data.get("ssh_port", 22)].append(host)
    for (address, port), hosts in at.items():
        for host in hosts[1:]:
            yield Fault(
                "ssh_hostname", f"must not be the address of host {hosts[0]}", f"{address}:{port}", host=host
            )
