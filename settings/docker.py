"""Settings of the Docker engine of hosts that run containers (`docker_…`)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from settings.errors import Fault, broken
from settings.fields import Certificates, Line, Many, Model, Network, matching
from settings.secret import Secret
from settings.section import Section, rule

REPOSITORY = "https://download.docker.com/linux"
FINGERPRINT = "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"
ENGINE_VERSION = "28.5.2"

_REGISTRY = r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?"

# What daemon.json says through a setting of its own, by key.
SETTING_OF_KEY = {
    "default-address-pools": "address_pools",
    "default-network-opts": "publish_address",
    "experimental": "ipv6_network",
    "fixed-cidr-v6": "ipv6_network",
    "insecure-registries": "insecure_registries",
    "ip": "publish_address",
    "ip6tables": "ipv6_network",
    "ipv6": "ipv6_network",
    "live-restore": "live_restore",
    "log-driver": "log_driver",
    "log-opts": "log_max_size_mb and docker_log_files",
    "registry-mirrors": "registry_mirrors",
}
# What would lock the engine out or everybody in: said with the reason.
_REFUSED_KEYS = {
    "hosts": "the engine's unit names its socket, with both it does not start; a TCP socket is root for whoever reaches it",
    "tls": "it belongs to a TCP socket, which is root for whoever reaches it",
    "tlsverify": "it belongs to a TCP socket, which is root for whoever reaches it",
    "iptables": "containers would have no network, and published ports no rule",
    "data-root": "the engine would start without any of the images, volumes and containers that it has",
}


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", value):
        raise broken("must be an http:// or https:// URL")
    if parts.username or parts.password:
        raise broken("must not hold a password", show=False)
    return value.rstrip("/")


def _mirror(value: str) -> str:
    value = _url(value)
    if urlsplit(value).path or urlsplit(value).query:
        raise broken(
            "must be the URL of a registry without a path",
            f"write {value.split('/', 3)[0]}//{urlsplit(value).netloc}",
        )
    return value


def _registry(value: str) -> str:
    if "//" in value:
        raise broken(
            "must be the name of a registry, not a URL", f"write {value.split('//')[1].split('/')[0]!r}"
        )
    if value != value.lower():
        raise broken("must be in lower case", f"write {value.lower()!r}")
    if not re.fullmatch(_REGISTRY, value):
        raise broken("must be the name of a registry such as 'registry.example.org:5000'")
    return value


def _insecure(value: str) -> str:
    if "/" in value and "//" not in value:
        try:
            return str(ipaddress.ip_network(value))
        except ValueError:
            raise broken("must be the name of a registry, or a network such as '10.0.0.0/8'") from None
    return _registry(value)


def _fingerprint(value: str) -> str:
    packed = value.replace(" ", "").upper()
    if not re.fullmatch(r"[0-9A-F]{40}", packed):
        raise broken("must be the whole fingerprint of a key, 40 hexadecimal digits")
    return packed


def _address(value: str) -> str:
    if value:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            raise broken("must be an IP address such as '127.0.0.1', or empty for all addresses") from None
    return value


RegistryName = Annotated[str, AfterValidator(_registry)]
Version = Annotated[str, matching(r"(?:[0-9][A-Za-z0-9.+:~-]*)?", "must be a version such as '28.5.2'")]


class Registry(Model):
    """A registry that the host logs in to.

    + ca: text of the CA that signed its certificate; empty: a public one
    """

    username: Annotated[Line, Field(min_length=1)]
    password: Secret
    ca: Certificates = ""


class AddressPool(Model):
    """Addresses that networks of containers are cut from.

    + size: prefix length of each network
    """

    base: Network
    size: Annotated[int, Field(ge=8, le=124)]


class Docker(Section):
    """The engine of hosts that run containers; without effect on others."""

    prefix: ClassVar[str] = "docker_"

    source: Literal["docker", "distribution"] = Field(
        "docker", description="Docker's own packages, or those of the distribution"
    )
    version: Version = Field(
        "",
        description=f"engine to install; empty means {ENGINE_VERSION} of Docker's own, or what the distribution has",
    )
    containerd_version: Version = Field(
        "", description="containerd.io to install; empty means the newest, once; Docker's own packages only"
    )
    repository: Annotated[str, AfterValidator(_url)] = Field(
        REPOSITORY, description="apt repository of Docker's own packages, without the distribution's name"
    )
    key_url: Annotated[str, AfterValidator(lambda value: value and _url(value))] = Field(
        "", description="where its signing key is; empty means `gpg` in the repository"
    )
    key_fingerprint: Annotated[str, AfterValidator(_fingerprint)] = Field(
        FINGERPRINT, description="the only signing key that is accepted"
    )
    compose: Literal["yes", "no", "available"] = Field(
        "available", description="Compose v2; available: where the source has it (Debian 12 itself has not)"
    )
    buildx: Literal["yes", "no", "available"] = Field("available", description="buildx, likewise")

    log_driver: Literal["json-file", "local", "journald"] = Field(
        "json-file", description="where containers log to that do not say so themselves"
    )
    log_max_size_mb: Annotated[int, Field(ge=1, le=10240)] = Field(10, description="size of one log file")
    log_files: Annotated[int, Field(ge=1, le=100)] = Field(3, description="log files per container")
    live_restore: bool = Field(True, description="containers outlive the engine; must be False for a swarm")
    registry_mirrors: Many[Annotated[str, AfterValidator(_mirror)]] = Field(
        (), description="mirrors of Docker Hub"
    )
    insecure_registries: Many[Annotated[str, AfterValidator(_insecure)]] = Field(
        (), description="registries or networks that need no valid certificate"
    )
    address_pools: Many[AddressPool] = Field(
        (),
        description="where networks of containers get their addresses; empty means the engine's own choice",
        examples=[[{"base": "172.30.0.0/16", "size": 24}]],
    )
    ipv6_network: str = Field(
        "", description="IPv6 network of the default bridge, such as 'fd00:d0c::/64'; empty: no IPv6 there"
    )
    publish_address: Annotated[str, AfterValidator(_address)] = Field(
        "",
        description="address that ports are published on by who names none (`docker run -p 80:80`), such as '127.0.0.1'; empty: all",
    )
    daemon: dict[str, Any] = Field(
        {}, description="further keys of daemon.json", examples=[{"max-concurrent-downloads": 6}]
    )

    registries: dict[RegistryName, Registry] = Field(
        {},
        description="registries to log in to",
        examples=[{"registry.example.org": {"username": "puller", "password": "env:REGISTRY_PASSWORD"}}],
    )
    removed_registries: Many[RegistryName] = Field((), description="registries to log out of")

    published_enabled: bool = Field(
        True, description="close published ports that are not among the host's declared ones"
    )
    bridges: Annotated[
        Many[
            Annotated[
                str,
                matching(
                    r"[A-Za-z0-9_.-]{1,15}\*?", "must be the name of an interface, or its beginning and '*'"
                ),
            ]
        ],
        Field(min_length=1),
    ] = Field(("docker0", "docker_gwbridge", "br-*"), description="bridges of containers")

    @rule
    def _distribution_has_one_version(self) -> Iterator[Fault]:
        if self.source == "distribution":
            for field in ("version", "containerd_version"):
                if getattr(self, field):
                    yield Fault(
                        field, "must be empty when docker_source is 'distribution'", getattr(self, field)
                    )

    @rule
    def _ipv6_network_is_one(self) -> Iterator[Fault]:
        if not self.ipv6_network:
            return
        try:
            network = ipaddress.ip_network(self.ipv6_network)
        except ValueError:
            network = None
        if network is None or network.version != 6 or network.prefixlen > 80:
            rule_text = "must be an IPv6 network of /80 or larger such as 'fd00:d0c::/64'"
            yield Fault("ipv6_network", rule_text, self.ipv6_network)

    @rule
    def _pools_are_cut_smaller(self) -> Iterator[Fault]:
        networks = [ipaddress.ip_network(pool.base) for pool in self.address_pools]
        for index, (pool, network) in enumerate(zip(self.address_pools, networks, strict=True)):
            if not network.prefixlen <= pool.size <= network.max_prefixlen - 2:
                yield Fault(
                    f"address_pools[{index}].size",
                    f"must be from {network.prefixlen} to {network.max_prefixlen - 2} within {pool.base}",
                    pool.size,
                )
            for other in networks[:index]:
                if network.version == other.version and network.overlaps(other):
                    yield Fault(f"address_pools[{index}].base", f"must not overlap {other}", pool.base)

    @rule
    def _daemon_keys_are_free(self) -> Iterator[Fault]:
        for key in self.daemon:
            if key in SETTING_OF_KEY:
                yield Fault(f"daemon.{key}", f"must be set by docker_{SETTING_OF_KEY[key]}")
            elif key in _REFUSED_KEYS:
                yield Fault(f"daemon.{key}", f"must not be set: {_REFUSED_KEYS[key]}")

    @rule
    def _registries_are_in_or_out(self) -> Iterator[Fault]:
        for name in sorted(set(self.registries) & set(self.removed_registries)):
            yield Fault("removed_registries", "must not name a registry of docker_registries", name)

    @property
    def engine_version(self) -> str:
        """The pinned version of the engine; empty: what the distribution has."""
        return self.version or (ENGINE_VERSION if self.source == "docker" else "")
