"""Settings of the base deploy, which every host gets (`base_…`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from settings.errors import Fault, broken
from settings.exposure import Port
from settings.fields import (
    ClockTime,
    Line,
    Many,
    Model,
    Network,
    Package,
    PortNumber,
    Size,
    TimeSpan,
    User,
    matching,
)
from settings.requirements import PortClaim, Requirements
from settings.section import Section, rule

_KEY_TYPES = r"(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)|sk-ssh-ed25519@openssh\.com|sk-ecdsa-sha2-nistp256@openssh\.com)"


def _public_key(value: str) -> str:
    if "PRIVATE KEY" in value:
        raise broken("must be a public key, this is a private one", show=False)
    if not re.fullmatch(rf"{_KEY_TYPES} [A-Za-z0-9+/]+=*(?: [^\n]*)?", value):
        raise broken("must be an SSH public key such as 'ssh-ed25519 AAAA… who@where'")
    return value


PublicKey = Annotated[str, AfterValidator(_public_key)]


class Admin(Model):
    """A person's account: logs in by key only, has no password.

    + sudo: "nopasswd" may become root, "no" may not
    """

    name: User
    keys: Annotated[Many[PublicKey], Field(min_length=1)]
    sudo: Literal["nopasswd", "no"] = "nopasswd"


class Base(Section):
    """What every host has. Each part can be turned off with its `…_enabled`."""

    prefix: ClassVar[str] = "base_"

    packages_enabled: bool = Field(True, description="install `packages`")
    packages: Many[Package] = Field(
        ("ca-certificates", "curl", "htop", "less", "lsof", "rsync", "tmux", "vim-tiny"),
        description="packages that every host has",
    )
    hostname_enabled: bool = Field(True, description="set the host name")
    hostname: Annotated[
        str,
        matching(
            r"(?:[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?)?",
            "must be a host name of small letters, digits, . and -",
        ),
    ] = Field("", description="host name; empty means the name in the inventory")
    timezone_enabled: bool = Field(True, description="set the time zone")
    timezone: Annotated[
        str, matching(r"[A-Za-z]+(?:/[A-Za-z0-9_+-]+){0,2}", "must be a time zone such as 'Etc/UTC'")
    ] = Field("Etc/UTC", description="name in /usr/share/zoneinfo")
    time_sync_enabled: bool = Field(True, description="keep the clock by systemd-timesyncd")
    time_servers: Many[Line] = Field((), description="NTP servers; empty means the distribution's")

    users_enabled: bool = Field(True, description="manage `admins`")
    admins: Many[Admin] = Field(
        (),
        description="accounts of people: name, keys, sudo ('nopasswd' or 'no')",
        examples=[[{"name": "ann", "keys": ["ssh-ed25519 AAAA… ann@laptop"]}]],
    )
    removed_admins: Many[User] = Field(
        (), description="accounts that must not exist any more; their files stay"
    )

    sshd_enabled: bool = Field(True, description="harden sshd")
    ssh_ports: Annotated[Many[PortNumber], Field(min_length=1)] = Field((22,), description="ports of sshd")
    ssh_permit_root: Literal["prohibit-password", "no"] = Field(
        "prohibit-password", description="root by key, or never"
    )
    ssh_sources: Many[Network] = Field((), description="networks that may reach sshd; empty means anyone")

    firewall_enabled: bool = Field(True, description="default deny, open only what is declared")
    exposure: Many[Port] = Field(
        (),
        description="further open ports: port, proto, sources, why",
        examples=[[{"port": 9100, "sources": ["10.0.0.0/8"], "why": "node metrics"}]],
    )

    unattended_upgrades_enabled: bool = Field(True, description="install security updates daily")
    unattended_upgrades_reboot: bool = Field(False, description="reboot when an update asks for it")
    unattended_upgrades_reboot_at: ClockTime = Field("03:30", description="time of that reboot")
    unattended_upgrades_hold: Many[Package] = Field(
        ("docker-ce", "docker.io", "containerd", "containerd.io"),
        description="packages never updated unattended: an update of containerd stops dockerd and leaves it stopped",
    )

    journald_enabled: bool = Field(True, description="limit the journal")
    journald_max_use: Size = Field("500M", description="disk space of the journal")
    journald_max_retention: TimeSpan = Field("1month", description="oldest entry kept")

    sysctl_enabled: bool = Field(True, description="set kernel parameters")
    sysctl: dict[
        Annotated[str, matching(r"[a-z0-9_]+(?:[./][A-Za-z0-9_*-]+)+", "must be a kernel parameter")], Line
    ] = Field({}, description="parameters beside the hardened defaults, over which they win")

    swap_enabled: bool = Field(True, description="manage the swap file")
    swap_size_mb: Annotated[int, Field(ge=0, le=65536)] = Field(
        0, description="size in MiB; 0 means no swap file"
    )

    monitoring_enabled: bool = Field(True, description="facts of the node for monitoring")

    @rule
    def _somebody_can_log_in(self) -> Iterator[Fault]:
        if (
            self.sshd_enabled
            and self.ssh_permit_root == "no"
            and not (self.users_enabled and any(admin.sudo == "nopasswd" for admin in self.admins))
        ):
            yield Fault(
                "ssh_permit_root",
                "must not be 'no' without an admin who has sudo",
                self.ssh_permit_root,
                "write base_admins = [{'name': …, 'keys': […]}]",
            )

    @rule
    def _admins_are_distinct(self) -> Iterator[Fault]:
        names = [admin.name for admin in self.admins]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Fault("admins", f"must not name {name} twice")
        for name in sorted(set(names) & set(self.removed_admins)):
            yield Fault("removed_admins", "must not name an admin of base_admins", name)
        for name in sorted({"root", "nobody", "daemon", "www-data"} & {*names, *self.removed_admins}):
            yield Fault("admins", "must not name an account of the system", name)

    @rule
    def _reboot_is_wanted(self) -> Iterator[Fault]:
        if self.unattended_upgrades_reboot and not self.unattended_upgrades_enabled:
            yield Fault("unattended_upgrades_reboot", "needs base_unattended_upgrades_enabled = True", True)

    def ports(self) -> tuple[Port, ...]:
        """Return the ports that the base itself opens."""
        ssh = tuple(Port(port=number, sources=self.ssh_sources, why="ssh") for number in self.ssh_ports)
        return ssh + self.exposure

    def needs(self) -> Requirements:
        """Return what any host must have: a known release, and room for packages."""
        return Requirements(
            disk_root_mb=512,
            ports=tuple(
                PortClaim(number, ("sshd", "ssh.service", "ssh.socket")) for number in self.ssh_ports
            ),
        )
