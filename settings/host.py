"""All settings of one host and of a whole inventory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from settings import inventory
from settings import monitoring as watching
from settings.backup import Backup
from settings.base import Base
from settings.certificate import Certificate
from settings.ci_runner import CiRunner
from settings.codeclashers import Codeclashers
from settings.cricksy import GROUPS as CRICKSY_GROUPS
from settings.cricksy import Cricksy
from settings.cricksy import fleet_faults as cricksy_faults
from settings.docker import Docker
from settings.errors import Fault, SettingsError
from settings.exposure import Port, in_order
from settings.gateway import Gateway
from settings.k3s import GROUPS as K3S_GROUPS
from settings.k3s import K3s
from settings.k3s import fleet_faults as k3s_faults
from settings.liap import Liap
from settings.liap import host_faults as liap_faults
from settings.liap import host_needs as liap_needs
from settings.liap_services import GROUPS as LIAP_SERVICES_GROUPS
from settings.liap_services import LiapServices
from settings.liap_services import fleet_faults as liap_fleet_faults
from settings.liap_services import host_faults as liap_services_faults
from settings.mcbench import GROUPS as MCBENCH_GROUPS
from settings.mcbench import Mcbench, fleet_faults
from settings.monitoring import Monitoring
from settings.requirements import Requirements, merged
from settings.secret_sources import Sources
from settings.section import Section, load_section, run_rule

COMMON: dict[str, type[Section]] = {
    "base": Base,
    "certificate": Certificate,
    "backup": Backup,
    "docker": Docker,
    "monitoring": Monitoring,
}
"""Sections of every host."""

SYSTEMS: dict[str, type[Section]] = {"gateway": Gateway, "mcbench": Mcbench, "cricksy": Cricksy, "k3s": K3s, "liap": Liap, "liap_services": LiapServices, "codeclashers": Codeclashers, "ci_runner": CiRunner}
"""Sections of the hosts in the groups of a system. A new system is added here and as a field of Host."""

SYSTEM_GROUPS: dict[str, tuple[str, ...]] = {
    "gateway": ("gateway",), "mcbench": MCBENCH_GROUPS, "cricksy": CRICKSY_GROUPS, "k3s": K3S_GROUPS, "liap": ("liap",),
    "liap_services": LIAP_SERVICES_GROUPS, "codeclashers": ("codeclashers",), "ci_runner": ("ci_runner",),
}  # fmt: skip
"""The groups whose hosts a system runs on: one of its own name, or one for each of its roles."""

SECTIONS = COMMON | SYSTEMS
ROLE_GROUPS = (watching.GROUP,)
"""Groups without settings of their own yet."""

EXPERIMENTAL_GROUPS = frozenset({"lab", "dev"})
"""Groups (an inventory's file name is one) in which debug settings are allowed."""

CONTAINER_GROUPS = ("mcbench", "codeclashers", "k3s", "liap", "ci_runner")
"""Systems whose containers need the kernel to forward packets."""


@dataclass(frozen=True)
class Host:
    """The settings of one host: what deploy code reads instead of host data."""

    name: str
    groups: frozenset[str]
    base: Base
    certificate: Certificate
    backup: Backup
    docker: Docker
    monitoring: Monitoring
    gateway: Gateway | None = None
    mcbench: Mcbench | None = None
    cricksy: Cricksy | None = None
    k3s: K3s | None = None
    liap: Liap | None = None
    liap_services: LiapServices | None = None
    codeclashers: Codeclashers | None = None
    ci_runner: CiRunner | None = None

    @property
    def systems(self) -> tuple[Section, ...]:
        """The settings of the systems that run here."""
        return tuple(system for name in SYSTEMS if (system := getattr(self, name, None)) is not None)

    @property
    def exposure(self) -> tuple[Port, ...]:
        """Every port that may be reached from outside, in numerical order."""
        return in_order([*self.base.ports(), *(port for system in self.systems for port in system.ports()), *watching.ports(self)])

    @property
    def requirements(self) -> Requirements:
        """What the host must be before the first change."""
        own = Requirements(ports=watching.claims(self))
        of_pairs = [liap_needs(self)] if self.liap else []
        return merged([self.base.needs(), *(system.needs() for system in self.systems), own, *of_pairs])

    @property
    def backed_up(self) -> tuple[str, ...]:
        """What has something on this host that must be backed up, in words; nothing where backups are off."""
        has_data = {
            "the gateway": self.gateway is not None,
            "mcbench": self.mcbench is not None and bool({"postgres", "object"} & set(self.mcbench.components)),
            "cricksy": self.cricksy is not None and (self.cricksy.runs_postgres or self.cricksy.runs_redis),
            "k3s": self.k3s is not None and self.k3s.role == "server",
            "liap": self.liap is not None and self.liap.keeps_archive,
            "liap's archive": self.liap_services is not None and self.liap_services.runs_pgbouncer,
            "codeclashers": self.codeclashers is not None and (self.codeclashers.backup_mongodb_enabled or self.codeclashers.backup_redis_enabled),
        }
        return tuple(system for system, needs in has_data.items() if needs and self.backup.enabled)

    @property
    def hostname(self) -> str:
        """The host name to set: `base_hostname`, or the name in the inventory."""
        return self.base.hostname or self.name


def load_host(name: str, groups: Iterable[str], data: Mapping[str, Any], *, resolve: bool = True) -> Host:
    """Return the settings of one host. Raise SettingsError with all of its faults.

    + resolve: False leaves secrets unresolved (for plans of an inventory, checks and documentation)
    """
    host, faults = _load(name, frozenset(groups), data, Sources() if resolve else None)
    if faults:
        raise SettingsError(faults)
    return host


def load_fleet(
    hosts: Iterable[tuple[str, Iterable[str], Mapping[str, Any]]],
    *,
    resolve: Collection[str] = (),
    groups: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Host]:
    """Return the settings of all hosts of an inventory by name. Raise SettingsError with every fault of every host.

    + hosts: (name, groups, data) of each
    + resolve: names of the hosts whose secrets are needed now
    + groups: all groups of the inventory with their hosts' names, also those that have none
    """
    listed = [(name, frozenset(its_groups), data) for name, its_groups, data in hosts]
    if groups is None:
        groups = _members(listed)
    known = [*SYSTEMS, *(group for names in SYSTEM_GROUPS.values() for group in names), *ROLE_GROUPS]
    faults = list(inventory.group_faults(groups, known, _list_keys()))
    faults += inventory.address_faults({name: data for name, _, data in listed})
    sources = Sources()
    loaded: dict[str, Host] = {}
    for name, its_groups, data in listed:
        loaded[name], its_faults = _load(name, its_groups, data, sources if name in resolve else None)
        faults += its_faults
    if not faults:  # rules between hosts need whole ones
        faults += fleet_faults({name: host.mcbench for name, host in loaded.items() if host.mcbench})
        faults += cricksy_faults({name: host.cricksy for name, host in loaded.items() if host.cricksy})
        faults += watching.fleet_faults(loaded)
        faults += liap_fleet_faults(
            {name: host.liap for name, host in loaded.items() if host.liap},
            {name: host.liap_services for name, host in loaded.items() if host.liap_services},
        )
        faults += k3s_faults({name: host.k3s for name, host in loaded.items() if host.k3s})
    if faults:
        raise SettingsError(faults)
    return loaded


def _members(listed: Iterable[tuple[str, frozenset[str], Mapping[str, Any]]]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = defaultdict(list)
    for name, its_groups, _ in listed:
        for group in its_groups:
            members[group].append(name)
    return members


def _all_keys() -> list[str]:
    return [key for section in SECTIONS.values() for key in section.flat_keys()]


def _list_keys() -> list[str]:
    return [
        section.prefix + name
        for section in SECTIONS.values()
        for name, info in section.model_fields.items()
        if isinstance(info.default, tuple)
    ]


def _load(
    name: str, groups: frozenset[str], data: Mapping[str, Any], sources: Sources | None
) -> tuple[Host, list[Fault]]:
    """Return the host and its faults; with faults the host may be incomplete and is not for use."""
    prefixes = tuple(section.prefix for section in SECTIONS.values())
    faults = list(inventory.key_faults(name, data, prefixes, _all_keys()))
    sections: dict[str, Section] = {}
    for key, section in SECTIONS.items():
        if key in COMMON or groups.intersection(SYSTEM_GROUPS[key]):
            sections[key], its_faults = load_section(section, name, data, sources, groups)
            faults += its_faults
        else:
            # group_data/all.py and --data reach every host: a known key of a system that is not here is no fault
            faults += inventory.unknown_keys(name, data, section.prefix, section.flat_keys())
    host = Host(name=name, groups=groups, **sections)  # type: ignore[arg-type]
    checks = (
        _debug_faults, _certificate_faults, _backup_faults, _server_faults, _domain_faults, _sysctl_faults, _port_faults,
        watching.host_faults,
        _swap_faults,
        _liap_faults,
        _node_port_faults,
    )  # fmt: skip
    for check in checks:
        faults += run_rule(partial(check, host), incomplete=bool(faults))
    return host, faults


def _node_port_faults(host: Host) -> Iterator[Fault]:
    public = host.codeclashers is not None and host.codeclashers.mongodb_is_public
    if public and host.k3s is not None and host.k3s.node_ports_closed:
        yield Fault(
            "k3s_node_ports_closed",
            "must be False with codeclashers_mongodb_public_sources: MongoDB would answer on loopback alone",
            True,
            host=host.name,
            hint="write k3s_node_ports_closed = False",
        )


def _backup_faults(host: Host) -> Iterator[Fault]:
    if (wanted := host.backed_up) and not host.backup.password:
        yield Fault(
            "backup_password",
            f"is required to back up {' and '.join(wanted)}",
            host=host.name,
            hint="write backup_password = 'env:BACKUP_PASSWORD', or backup_enabled = False",
        )
    has_database = host.mcbench is not None and "postgres" in host.mcbench.components
    if has_database and host.backup.enabled and host.mcbench and not host.mcbench.postgres_backup_password:
        yield Fault(
            "mcbench_postgres_backup_password",
            "is required to back up mcbench",
            host=host.name,
            hint="write mcbench_postgres_backup_password = 'env:MCBENCH_POSTGRES_BACKUP_PASSWORD', or backup_enabled = False",
        )
    if host.cricksy and host.cricksy.runs_postgres and host.backup.enabled and not host.cricksy.postgres_backup_password:
        yield Fault(
            "cricksy_postgres_backup_password",
            "is required to back up cricksy",
            host=host.name,
            hint="write cricksy_postgres_backup_password = 'env:CRICKSY_POSTGRES_BACKUP_PASSWORD', or backup_enabled = False",
        )


def _liap_faults(host: Host) -> Iterator[Fault]:
    if host.liap:
        yield from liap_faults(host)
    if host.liap_services:
        yield from liap_services_faults(host)


def _server_faults(host: Host) -> Iterator[Fault]:
    """Who has the Docker socket of a server host reads every secret on it: another system's too."""
    if host.mcbench and "server" in host.mcbench.roles and host.gateway and not host.mcbench.server_shares_host:
        yield Fault(
            "mcbench_server_shares_host",
            "must be True for a host of mcbench_server that is also in gateway",
            False,
            "better give it a host of its own: who has its Docker socket has the secrets of all of them",
            host.name,
        )


def _domain_faults(host: Host) -> Iterator[Fault]:
    if host.gateway and host.mcbench:
        for domain in host.mcbench.domains:
            if domain in host.gateway.domains:
                yield Fault("gateway_domain", "must not be a name of mcbench on the same host", domain, host=host.name)
    if host.cricksy:
        others = [*(host.gateway.domains if host.gateway else ()), *(host.mcbench.domains if host.mcbench else ())]
        for domain in host.cricksy.domains:
            if domain in others:
                yield Fault("cricksy_domain", "must not be a name of another system on the same host", domain, host=host.name)
    if host.liap:
        others = [name for system in (host.gateway, host.mcbench, host.cricksy) if system for name in system.domains]
        for domain in host.liap.domains:
            if domain in others:
                yield Fault("liap_domain", "must not be a name of another system on the same host", domain, host=host.name)


def _sysctl_faults(host: Host) -> Iterator[Fault]:
    if any(group.startswith(CONTAINER_GROUPS) for group in host.groups):
        for key, value in host.base.sysctl.items():
            if value == "0" and ("forward" in key or key.startswith("net.bridge.bridge-nf-call")):
                yield Fault(f"base_sysctl.{key}", "must not be 0: containers need it", value, host=host.name)


def _swap_faults(host: Host) -> Iterator[Fault]:
    if host.k3s and not host.k3s.allow_swap and host.base.swap_enabled and host.base.swap_size_mb:
        yield Fault(
            "base_swap_size_mb", "must be 0 on a node of k3s: limits of pods do not count what is swapped", host.base.swap_size_mb,
            "or write k3s_allow_swap = True", host.name,
        )  # fmt: skip


def _debug_faults(host: Host) -> Iterator[Fault]:
    if host.gateway and not host.groups & EXPERIMENTAL_GROUPS:
        for field in ("debug", "reload"):
            if getattr(host.gateway, field):
                yield Fault(
                    f"gateway_{field}", "must be False outside the groups lab and dev", True, host=host.name
                )


def _certificate_faults(host: Host) -> Iterator[Fault]:
    domains = [
        *(host.gateway.domains if host.gateway else ()),
        *(host.mcbench.domains if host.mcbench else ()),
        *(host.cricksy.domains if host.cricksy else ()),
        *(host.liap.domains if host.liap else ()),
    ]
    if not domains or host.certificate.mode != "acme":
        return
    if not host.certificate.email:
        yield Fault(
            "certificate_email",
            "is required when certificate_mode is 'acme'",
            host=host.name,
            hint="write certificate_email = 'ops@example.org'",
        )
    wild = [name for name in domains if name.startswith("*.")]
    if wild and host.certificate.challenge == "http-01":
        of_gateway = host.gateway is not None and wild[0] in host.gateway.domains
        of_liap = host.liap is not None and wild[0] in host.liap.domains
        yield Fault(
            "gateway_extra_domains" if of_gateway else "liap_alias_domains" if of_liap else "mcbench_api_extra_domains",
            "must hold no wildcard when certificate_challenge is 'http-01'",
            wild[0],
            "write certificate_challenge = 'dns-01'",
            host.name,
        )


def _port_faults(host: Host) -> Iterator[Fault]:
    """sshd and further open ports must leave the systems theirs."""
    owners = {
        (claim.port, claim.proto): system.prefix.rstrip("_")
        for system in host.systems
        for claim in system.needs().ports
    }
    for number in host.base.ssh_ports:
        if owner := owners.get((number, "tcp")):
            yield Fault("base_ssh_ports", f"must not be a port of {owner}", number, host=host.name)
    owners |= {(number, "tcp"): "base_ssh_ports" for number in host.base.ssh_ports}
    for index, port in enumerate(host.base.exposure):
        if owner := owners.get((port.port, port.proto)):
            yield Fault(
                f"base_exposure[{index}].port", f"must not be a port of {owner}", port.port, host=host.name
            )
