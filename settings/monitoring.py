"""Settings of monitoring (`monitoring_…`): exporters on every watched host; Prometheus and Alertmanager on hosts of the group `monitoring`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from settings.errors import Fault, broken
from settings.exposure import Port
from settings.fields import (
    Email,
    Line,
    Many,
    Model,
    Network,
    OwnAddress,
    PortNumber,
    matching,
    narrow,
    reached_by_others,
)
from settings.liap import REDIS as LIAP_REDIS
from settings.mcbench import Image, Password, is_private
from settings.requirements import PortClaim
from settings.secret import Secret
from settings.section import Section, rule

if TYPE_CHECKING:
    from settings.host import Host

GROUP = "monitoring"
NODE, NGINX, POSTGRES, REDIS, CONTAINERS, SENTINEL = "node", "nginx", "postgres", "redis", "containers", "sentinel"
_PORTS = {NODE: 9100, NGINX: 9113, POSTGRES: 9187, REDIS: 9121, CONTAINERS: 9338}
SITES_PORT = 9115
"""Where the monitoring host's blackbox exporter listens, on loopback alone."""

_TOKEN_LENGTH = 12
_KNOWN_PASSWORDS = ("admin", "password", "changeme", "grafana", "prometheus", "secret")

Seconds = Annotated[int, Field(ge=1, le=86400)]
Percent = Annotated[int, Field(ge=1, le=100)]


def _url(value: Secret) -> Secret:
    if value.resolved and not re.fullmatch(r"https?://[^\s\"'\\]+", value.unmask()):
        raise broken("must be an http:// or https:// URL", show=False)
    return value


def _admin_password(value: Secret) -> Secret:
    if not value.resolved:
        return value
    text = value.unmask()
    if any(text.lower().startswith(known) and len(text) < len(known) + 8 for known in _KNOWN_PASSWORDS):
        raise broken("must not be a password that everybody tries first", show=False)
    if len(text) < _TOKEN_LENGTH or re.search(r"[\x00-\x1f\x7f]", text):
        raise broken(f"must have at least {_TOKEN_LENGTH} printable characters, has {len(text)}", show=False)
    return value


class Scrape(Model):
    """A page of metrics that something on the host has itself, beside the exporters.

    + job: what Prometheus calls it; + port: on `monitoring_address`; + path: of the page
    """

    job: Annotated[str, matching(r"[a-z][a-z0-9_-]{0,62}", "must be a name of small letters, digits, _ and -")]
    port: PortNumber
    path: Annotated[str, matching(r"/[A-Za-z0-9._~/-]*", "must be a URL path")] = "/metrics"


class RedisServer(Model):
    """A Redis, or a sentinel, that a deploy of your own has made on the host (`operations.redis`, `operations.sentinel`).

    + name: of the instance; + port: on which it listens on loopback; + exporter_port: of its exporter, on `monitoring_address`
    + sentinel: whether it is one; + tls: whether it speaks TLS, which sentinels always do
    """

    name: Annotated[str, matching(r"[a-z][a-z0-9-]{0,30}", "must be lower case letters, digits and '-'")]
    port: PortNumber
    exporter_port: PortNumber
    sentinel: bool = False
    tls: bool = False


class Monitoring(Section):
    """What every watched host shows to Prometheus, and on hosts of the group `monitoring` the watching itself.

    Thresholds, receivers and Grafana are read on hosts of the group `monitoring` alone.
    """

    prefix: ClassVar[str] = "monitoring_"

    # --- watched hosts
    enabled: bool = Field(False, description="watch this host: exporters of what runs on it, which `monitoring_sources` may reach")
    address: Annotated[OwnAddress, reached_by_others("must be an address that the monitoring host reaches", "leave it out to listen on loopback")] = Field(
        "", description="address of the host, in a private network, on which its exporters listen; empty: loopback, for a monitoring host that watches itself alone"
    )
    sources: Many[Annotated[Network, narrow(hint="name the monitoring hosts, such as '10.0.0.5/32'")]] = Field(
        (), description="networks of the monitoring hosts: who may reach the exporters", examples=[["10.0.0.5/32"]]
    )
    postgres_password: Password = Field(
        default_factory=Secret.unset, description="of the role that the exporter of PostgreSQL comes in with; required on watched hosts that run one"
    )
    redis_password: Password = Field(
        default_factory=Secret.unset, description="of the user that the exporters of Redis come in with; required on watched hosts that run one"
    )
    cadvisor_image: Image | None = Field(
        None, description="image of cAdvisor, which Debian has no package of; on hosts with containers", examples=["registry.example.org/cadvisor:v0.49.1"]
    )
    redis_servers: Many[RedisServer] = Field(
        (), description="further instances of Redis, and sentinels, on the host: each gets an exporter",
        examples=[[{"name": "limits", "port": 6379, "exporter_port": 9125, "tls": True}, {"name": "limits", "port": 26379, "exporter_port": 9126, "sentinel": True}]],
    )  # fmt: skip
    sentinel_password: Secret = Field(default_factory=Secret.unset, description="with which sentinels are asked (a group's `ask_password`); required with one")
    scrapes: Many[Scrape] = Field((), description="further pages of metrics on the host", examples=[[{"job": "liap", "port": 9091}]])
    journal_url: Annotated[str, matching(r"(?:https?://[A-Za-z0-9.:\[\]-]+)?", "must be a URL without path such as 'https://logs.example.org:19532'")] = Field(
        "", description="send the journal to this systemd-journal-remote; empty: it stays on the host"
    )
    journal_ca: Secret = Field(default_factory=Secret.unset, description="PEM of the authority that signed that server's certificate; required with https")
    journal_certificate: Secret = Field(default_factory=Secret.unset, description="PEM of the certificate by which the server knows its hosts; required likewise")
    journal_key: Secret = Field(default_factory=Secret.unset, description="PEM of its key")

    # --- Prometheus
    prometheus_port: PortNumber = Field(9090, description="of Prometheus, on loopback")
    alertmanager_port: PortNumber = Field(9093, description="of Alertmanager, on loopback")
    scrape_seconds: Annotated[int, Field(ge=1, le=120)] = Field(15, description="time between two looks at a target, and at the rules")
    retention_days: Annotated[int, Field(ge=1, le=3650)] = Field(30, description="how long samples are kept")
    retention_gb: Annotated[int, Field(ge=1, le=10000)] = Field(5, description="what they may take at most (GB)")

    # --- when an alert is raised
    hold_seconds: Seconds = Field(300, description="how long a cause must hold")
    window_seconds: Annotated[int, Field(ge=30, le=86400)] = Field(
        900, description="how far back restarts, games that could not be archived and messages that were not delivered are counted"
    )
    memory_percent: Percent = Field(80, description="memory of a host, a Redis and a process with a limit of its own")
    disk_percent: Percent = Field(85, description="a file system, its space or its inodes")
    certificate_days: Annotated[int, Field(ge=1, le=365)] = Field(14, description="least time that a certificate has left")
    backup_hours: Annotated[int, Field(ge=1, le=24 * 90)] = Field(26, description="age of the newest copy")
    verified_days: Annotated[int, Field(ge=1, le=366)] = Field(8, description="age of the newest copy that was restored and checked")
    queue_depth: Annotated[int, Field(ge=1)] = Field(1000, description="tasks that wait in a Celery queue")

    # --- whom it is told
    webhook_url: Annotated[Secret, AfterValidator(_url)] = Field(
        default_factory=Secret.unset, description="where alerts are posted to; a secret, since most hold a token", examples=["env:MONITORING_WEBHOOK_URL"]
    )
    mail_to: Email | None = Field(None, description="who gets them as mail")
    mail_from: Email | None = Field(None, description="from whom; required with mail_to")
    mail_server: Annotated[str, matching(r"(?:[A-Za-z0-9.-]+:[0-9]{1,5})?", "must be host:port")] = Field("", description="host:port of the mail server; required with mail_to")
    mail_user: Line = Field("", description="its account; empty: none is needed")
    mail_password: Secret = Field(default_factory=Secret.unset, description="its password; required with mail_user")
    mail_tls: bool = Field(True, description="refuse to send without TLS")
    group_seconds: Seconds = Field(30, description="how long alerts are gathered before the first message")
    repeat_hours: Annotated[int, Field(ge=1, le=24 * 14)] = Field(12, description="an alert that stays is told again")

    # --- Grafana
    grafana_image: Image | None = Field(
        None, description="image of Grafana; without one its provisioning is not written either", examples=["registry.example.org/grafana:11.4.0"]
    )
    grafana_port: PortNumber = Field(3000, description="of Grafana, on loopback")
    grafana_admin_password: Annotated[Secret, AfterValidator(_admin_password)] = Field(
        default_factory=Secret.unset, description="of its account admin; required with grafana_image", examples=["env:MONITORING_GRAFANA_ADMIN_PASSWORD"]
    )

    # --- rules

    @rule
    def _exporters_are_reached(self) -> Iterator[Fault]:
        if not self.enabled:
            return
        if not self.address and not self.is_server:
            yield Fault("address", "is required on a watched host that is not in the group monitoring", hint="write monitoring_address = '10.0.0.11'")
        if self.address and not self.sources:
            yield Fault("sources", "is required with monitoring_address", hint="write monitoring_sources = ['10.0.0.5/32']")

    @rule
    def _journal_is_not_overheard(self) -> Iterator[Fault]:
        if self.journal_url.startswith("https://"):
            for key in ("journal_ca", "journal_certificate", "journal_key"):
                if not getattr(self, key):
                    yield Fault(key, "is required with an https:// monitoring_journal_url", hint=f"write monitoring_{key} = 'file:secrets/journal.yaml#{key}'")
        elif self.journal_url:
            there = re.sub(r":[0-9]+$", "", self.journal_url.removeprefix("http://"))
            if not is_private(there):
                yield Fault("journal_url", "must be https:// beyond a private network: a journal holds everything", self.journal_url)

    @rule
    def _counted_causes_hold(self) -> Iterator[Fault]:
        # Alertmanager gives a message up, and tries the next one, once in a group_interval: ten times group_seconds
        least = self.hold_seconds + 20 * self.group_seconds
        if self.is_server and self.window_seconds < least:
            yield Fault(
                "window_seconds", "must be monitoring_hold_seconds and twenty times monitoring_group_seconds or more: else what is counted is forgotten before it is told",
                self.window_seconds, f"write monitoring_window_seconds = {least}",
            )  # fmt: skip

    @rule
    def _somebody_is_told(self) -> Iterator[Fault]:
        if not self.is_server:
            return
        if not self.webhook_url and not self.mail_to:
            yield Fault(
                "webhook_url", "or monitoring_mail_to is required on a host of the group monitoring: alerts that nobody gets are none",
                hint="write monitoring_webhook_url = 'env:MONITORING_WEBHOOK_URL'",
            )  # fmt: skip
        for key in ("mail_from", "mail_server"):
            if self.mail_to and not getattr(self, key):
                yield Fault(key, "is required with monitoring_mail_to")
        if self.mail_user and not self.mail_password:
            yield Fault("mail_password", "is required with monitoring_mail_user")
        if self.mail_user and not self.mail_tls:
            yield Fault("mail_tls", "must be True with monitoring_mail_user: else its password is sent in clear", False)

    @rule
    def _grafana_has_an_owner(self) -> Iterator[Fault]:
        if self.is_server and self.grafana_image and not self.grafana_admin_password:
            yield Fault(
                "grafana_admin_password", "is required with monitoring_grafana_image: its own is admin",
                hint="write monitoring_grafana_admin_password = 'env:MONITORING_GRAFANA_ADMIN_PASSWORD'",
            )  # fmt: skip

    @rule
    def _ports_differ(self) -> Iterator[Fault]:
        own = {
            **{name: port for name, port in _PORTS.items() if self.enabled},
            **({"sites": SITES_PORT, "redis_2": _PORTS[REDIS] + 1} if self.is_server else {}),
        }
        keys = ("prometheus_port", "alertmanager_port", *(("grafana_port",) if self.grafana_image else ())) if self.is_server else ()
        taken = {port: f"the exporter of {name}" for name, port in own.items()}
        for key in keys:
            port = getattr(self, key)
            if port in taken:
                yield Fault(key, f"must not be the port of {taken[port]}", port)
            taken[port] = f"monitoring_{key}"
        further = [(f"scrapes[{index}].port", one.port, one.job) for index, one in enumerate(self.scrapes)]
        further += [(f"redis_servers[{index}].exporter_port", one.exporter_port, one.name) for index, one in enumerate(self.redis_servers)]
        for key, port, name in further:
            if port in taken:
                yield Fault(key, f"must not be the port of {taken[port]}", port)
            taken[port] = f"the exporter of {name}"

    # --- what follows from them

    @property
    def is_on(self) -> bool:
        """Whether this host is watched, or watches others."""
        return self.enabled or self.is_server

    @property
    def is_server(self) -> bool:
        """Whether Prometheus and Alertmanager run here."""
        return GROUP in self._groups

    @property
    def runs_containers(self) -> bool:
        """Whether something of monitoring runs in a container here, for which the host needs an engine."""
        return self.is_server and self.grafana_image is not None

    @property
    def listen(self) -> str:
        """Where the host's exporters listen."""
        return self.address or "127.0.0.1"


@dataclass(frozen=True)
class Exporter:
    """One page of metrics of a host.

    + job: what it is of; + instance: which one, where a host has several; + port, path: where it is
    + own: whether monitoring runs it, or something else has it anyway
    """

    job: str
    port: int
    instance: str = ""
    path: str = "/metrics"
    own: bool = True

    @property
    def label(self) -> str:
        """What its unit and its file are called."""
        return f"{self.job}-{self.instance}" if self.instance else self.job


@dataclass(frozen=True)
class Site:
    """A name of a host that is asked for from the monitoring host. + trusted: whether its certificate must be good"""

    domain: str
    path: str
    trusted: bool


def exporters(host: Host) -> tuple[Exporter, ...]:
    """Return the pages of metrics of a host, by what runs on it; none of a host that is not watched."""
    settings = host.monitoring
    if not settings.enabled:
        return ()
    found = [Exporter(NODE, _PORTS[NODE])] if host.base.monitoring_enabled else []
    if any(getattr(system, "domains", ()) for system in host.systems):
        found.append(Exporter(NGINX, _PORTS[NGINX]))
    if host.cricksy and host.cricksy.runs_postgres:
        found.append(Exporter(POSTGRES, _PORTS[POSTGRES]))
    if host.cricksy and host.cricksy.runs_redis:
        found += [Exporter(REDIS, _PORTS[REDIS], "cricksy-broker"), Exporter(REDIS, _PORTS[REDIS] + 1, "cricksy-cache")]
    found += [Exporter(SENTINEL if one.sentinel else REDIS, one.exporter_port, one.name) for one in settings.redis_servers]
    if host.liap and host.liap.metrics_enabled:
        found.append(Exporter("liap", host.liap.metrics_port, own=False))
    served = host.liap_services
    if served and served.runs_pgbouncer:
        found.append(Exporter(POSTGRES, _PORTS[POSTGRES]))
        if served.pgbouncer_metrics_port:
            found.append(Exporter("pgbouncer", served.pgbouncer_metrics_port, own=False))
    if served and served.runs_sentinel:
        found += [Exporter(REDIS, _PORTS[REDIS] + 2, LIAP_REDIS), Exporter(SENTINEL, _PORTS[REDIS] + 3, LIAP_REDIS)]
    if settings.cadvisor_image:
        found.append(Exporter(CONTAINERS, _PORTS[CONTAINERS]))
    return (*found, *(Exporter(one.job, one.port, path=one.path, own=False) for one in settings.scrapes))


def has_containers(host: Host) -> bool:
    """Whether something on the host runs in containers that have to stay."""
    return bool(
        host.mcbench
        or (host.cricksy and host.cricksy.runs_containers)
        or host.liap
        or host.monitoring.runs_containers
        or host.monitoring.cadvisor_image
    )


def container_databases(host: Host) -> tuple[tuple[str, str], ...]:
    """Return (kind, container) of the databases that a host runs in containers: `redis` or `postgres`."""
    found = []
    if host.mcbench:
        found += [(kind, f"mcbench-{kind}") for kind in (POSTGRES, REDIS) if kind in host.mcbench.components]
    if host.liap:
        # what Compose calls the containers of the project
        found += [(kind, f"liap-{kind}-1") for kind, runs in ((POSTGRES, host.liap.runs_postgres), (REDIS, host.liap.runs_redis)) if runs]
    return tuple(found)


def tells_of_cluster(host: Host) -> bool:
    """Whether the host has an API server of k3s, which tells how the cluster is."""
    return host.k3s is not None and host.k3s.role == "server"


def sites(host: Host) -> tuple[Site, ...]:
    """Return the names of a watched host at which an application answers."""
    if not host.monitoring.enabled:
        return ()
    trusted = host.certificate.mode == "acme" and not host.certificate.staging and not host.certificate.ca_bundle
    found: list[tuple[str, str]] = []
    if host.gateway:
        found += [(domain, host.gateway.health_path) for domain in host.gateway.domains if not domain.startswith("*.")]
    if host.cricksy and host.cricksy.domains and host.cricksy.domain:
        found.append((host.cricksy.domain, host.cricksy.health_path))
    if host.liap and host.liap.domain:
        found.append((host.liap.domain, "/health"))
    if host.mcbench and "api" in host.mcbench.roles:
        found += [(domain, host.mcbench.health_path) for domain in host.mcbench.api_domains if not domain.startswith("*.")]
    return tuple(Site(domain, path, trusted) for domain, path in found)


def ports(host: Host) -> tuple[Port, ...]:
    """Return what of a host monitoring must reach from outside."""
    settings = host.monitoring
    if not settings.address:
        return ()
    return tuple(Port(port=one.port, sources=settings.sources, why=f"metrics of {one.label}") for one in exporters(host))


def claims(host: Host) -> tuple[PortClaim, ...]:
    """Return the ports on which something of monitoring listens on a host."""
    settings = host.monitoring
    # The node exporter is there before monitoring is, and holds its port.
    found = [PortClaim(one.port, ("prometheus*", "hostwright-exporter-*")) for one in exporters(host) if one.own]
    if settings.is_server:
        found += [PortClaim(port, ("prometheus*", "hostwright-exporter-*")) for port in (settings.prometheus_port, settings.alertmanager_port, SITES_PORT)]
        if settings.grafana_image:
            found.append(PortClaim(settings.grafana_port, ("grafana*",)))
    return tuple(found)


def host_faults(host: Host) -> Iterator[Fault]:
    """Yield what of monitoring does not go with the rest of a host."""
    settings = host.monitoring
    if settings.enabled and not host.base.monitoring_enabled:
        yield Fault("base_monitoring_enabled", "must be True with monitoring_enabled", False, host=host.name)
    if settings.address and settings.enabled and host.liap and host.liap.metrics_enabled and not host.liap.metrics_networks:
        yield Fault(
            "liap_metrics_networks", "is required with monitoring_address: without it the figures stay on loopback", host=host.name,
            hint=f"write liap_metrics_networks = {list(settings.sources)!r}",
        )  # fmt: skip
    jobs = {one.job for one in exporters(host)}
    for job, key in ((POSTGRES, "postgres_password"), (REDIS, "redis_password"), (SENTINEL, "sentinel_password")):
        # the sentinels' that liap's settings bring along is theirs
        known = key == "sentinel_password" and not any(one.sentinel for one in settings.redis_servers)
        if job in jobs and not getattr(settings, key) and not known:
            yield Fault(
                f"monitoring_{key}", f"is required on a watched host that runs {job}", host=host.name,
                hint=f"write monitoring_{key} = 'env:MONITORING_{key.upper()}'",
            )  # fmt: skip
    taken = {(claim.port, claim.proto): system.prefix.rstrip("_") for system in host.systems for claim in system.needs().ports}
    free = {settings.prometheus_port: "prometheus_port", settings.alertmanager_port: "alertmanager_port", settings.grafana_port: "grafana_port"}
    for claim in claims(host):
        owner = taken.get((claim.port, claim.proto))
        if owner and claim.port in free:
            yield Fault(
                f"monitoring_{free[claim.port]}", f"must not be a port of {owner}", claim.port,
                f"write monitoring_{free[claim.port]} = {claim.port + 1000}", host.name,
            )  # fmt: skip
        elif owner:
            yield Fault(f"{owner}_…", f"must leave port {claim.port} to an exporter of monitoring", host=host.name)


def fleet_faults(hosts: Mapping[str, Host]) -> Iterator[Fault]:
    """Yield what does not go together between hosts: an exporter that does not let its Prometheus in."""
    servers = {name: host.monitoring for name, host in hosts.items() if host.monitoring.is_server}
    watched = {name: host.monitoring for name, host in hosts.items() if host.monitoring.enabled and host.monitoring.address}
    for server, settings in servers.items():
        others = [name for name in watched if name != server]
        if not settings.address and others:
            yield Fault(
                "monitoring_address", f"is required: {', '.join(sorted(others)[:3])} must know who asks", host=server,
                hint="write monitoring_address = '10.0.0.5'",
            )  # fmt: skip
        elif settings.address:
            asks = ipaddress.ip_address(settings.address)
            for name in others:
                if not any(asks in ipaddress.ip_network(source) for source in watched[name].sources):
                    yield Fault(
                        "monitoring_sources", f"must hold {settings.address}, from where {server} asks", list(watched[name].sources), host=name,
                    )  # fmt: skip
