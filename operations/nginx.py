"""
nginx: one main configuration, and sites that reach the running server only when the whole tree is valid.

Every file goes through ``fileset``: the candidate tree passes ``nginx -t`` before anything changes, and when nginx does
not come to serve the new files, the old ones are put back. A copy of each managed file is kept on the host, so that a
file broken by hand does not stand in the way of the run that repairs it.
"""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from pyinfra import host
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.nginx import COPIES, UPSTREAMS, Nginx, NginxState
from operations import fileset, script, template, unit
from operations.fileset import Absent, Directory, Entry, File

CONFIGURATION = "/etc/nginx"
ACME_WEBROOT = "/var/www/hostwright-acme"
"""Where every site answers HTTP-01 challenges from. Not below /var/lib/hostwright: nginx's workers cannot go there."""

SERVES = "/usr/local/lib/hostwright/nginx-serves"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SERVER_NAME = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ABSOLUTE = re.compile(r"/[A-Za-z0-9._~%/+@-]*")
_ADDRESS = re.compile(
    r"(unix:/[A-Za-z0-9._/-]+|(\[[0-9a-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5})( (backup|down|weight=\d+))*"
)
_UPSTREAM = re.compile(r"upstream\s+(?P<name>\S+)\s*\{([^;{}]+;)*?\s*server [^;{}]+;([^;{}]+;)*\s*\}")

_MATCHES = {"prefix": "", "exact": "= ", "first": "^~ "}


@dataclass(frozen=True)
class Upstream:
    """
    The servers behind a location.

    + name: what locations call it
    + servers: ``127.0.0.1:8000`` or ``unix:/run/app.sock``, with nginx's ``backup``, ``down`` or ``weight=`` if wanted
    + keepalive: idle connections that each worker keeps open to it; 0 makes a new one for each request
    + keepalive_seconds: for how long (s). It must be less than the server's own: one that closes first makes a POST
      fail that was just sent (uvicorn closes after 5 s, nginx alone would keep 60)
    + switched: the servers are switched by a rollout in ``/etc/nginx/upstreams/<name>.conf``. The site makes that file
      once, and afterwards only when it is gone or no longer an upstream
    """

    name: str
    servers: tuple[str, ...]
    keepalive: int = 16
    keepalive_seconds: int = 4
    switched: bool = False


@dataclass(frozen=True)
class RateLimit:
    """
    Requests that one client address may send; more are answered 429. Locations with an equal limit share one count.

    + per_second: sustained requests per second
    + burst: how many more at once are let through without delay
    + per_minute: instead of per_second, for less than one in a second
    """

    per_second: int = 0
    burst: int = 0
    per_minute: int = 0

    @property
    def rate(self) -> str:
        return f"{self.per_minute}r/m" if self.per_minute else f"{self.per_second}r/s"


@dataclass(frozen=True)
class Location:
    """
    One path of a site, passed to an upstream or served from a directory.

    + path: begins with ``/``
    + match: ``prefix``, ``exact``, or ``first`` (a prefix that beats longer rules of other kinds)
    + upstream: name of one of the site's upstreams; or else
    + root: directory on the host, with ``fallback`` as the path to serve for what does not exist (else 404)
    + timeout_seconds: longest silence of the upstream (s): nginx's default of 60 cuts slow answers with a 504
    + streaming: pass each byte on as it comes (Server-Sent Events, token streams)
    + websocket: let clients upgrade the connection
    + request_buffering: ``False`` passes an upload on while it arrives, instead of when it is complete
    + max_body_size: largest request body (bytes), when it differs from the site's
    + rate_limit: see ``RateLimit``
    + networks: who may come here: ``None`` is anyone, ``()`` is nobody but the host itself
    """

    path: str
    upstream: str = ""
    match: str = "prefix"
    root: str = ""
    fallback: str = ""
    timeout_seconds: int = 60
    streaming: bool = False
    websocket: bool = False
    request_buffering: bool = True
    max_body_size: int | None = None
    rate_limit: RateLimit | None = None
    networks: tuple[str, ...] | None = None

    @property
    def modifier(self) -> str:
        return _MATCHES[self.match]

    @property
    def allowed(self) -> tuple[str, ...]:
        """The networks and the host itself; empty when anyone may come."""
        return () if self.networks is None else ("127.0.0.1", "::1", *self.networks)


@dataclass(frozen=True)
class Site:
    """What ``site`` was asked for, as the template reads it."""

    server_names: tuple[str, ...]
    locations: tuple[Location, ...]
    upstreams: tuple[Upstream, ...] = ()
    certificate_directory: str = ""
    hsts_seconds: int = 0
    max_body_size: int = 1024 * 1024
    proxied_by: tuple[str, ...] = ()


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def _location_faults(location: Location, upstreams: Sequence[str]) -> list[str]:
    where = f"location {location.path!r}"
    faults = []
    if not _ABSOLUTE.fullmatch(location.path):
        faults.append(f"{where}: path must begin with '/' and hold no space, quote or brace")
    if location.match not in _MATCHES:
        faults.append(f"{where}: match must be one of {', '.join(_MATCHES)}, got {location.match!r}")
    if bool(location.upstream) == bool(location.root):
        faults.append(f"{where}: needs either upstream or root")
    if location.upstream and location.upstream not in upstreams:
        faults.append(
            f"{where}: no upstream {location.upstream!r}, the site has: {', '.join(upstreams) or 'none'}"
        )
    for key, text in (("root", location.root), ("fallback", location.fallback)):
        if text and not _ABSOLUTE.fullmatch(text):
            faults.append(f"{where}: {key} must be an absolute path, got {text!r}")
    if location.timeout_seconds < 1:
        faults.append(f"{where}: timeout_seconds must be at least 1, got {location.timeout_seconds!r}")
    if location.max_body_size is not None and location.max_body_size < 0:
        faults.append(f"{where}: max_body_size must be 0 (no limit) or bytes, got {location.max_body_size!r}")
    limit = location.rate_limit
    if limit and (min(limit.per_second, limit.per_minute, limit.burst) < 0 or bool(limit.per_second) == bool(limit.per_minute)):
        faults.append(f"{where}: rate_limit needs per_second >= 1 or per_minute >= 1, and burst >= 0, got {limit!r}")
    for network in location.networks or ():
        if not _is_network(network):
            faults.append(f"{where}: not a network: {network!r}")
    return faults


def site_faults(site_name: str, wanted: Site) -> list[str]:
    """Return every rule that a site breaks, one line each. What passes cannot inject a directive."""
    faults = []
    if not _NAME.fullmatch(site_name):
        faults.append(f"site_name must be lower case letters, digits, '-' and '_', got {site_name!r}")
    if not wanted.server_names:
        faults.append("server_names is empty: the catch-all server is nginx.server's")
    for server_name in wanted.server_names:
        if not _SERVER_NAME.fullmatch(server_name):
            faults.append(f"not a host name in lower case: {server_name!r}")
    if wanted.certificate_directory and not _ABSOLUTE.fullmatch(wanted.certificate_directory):
        faults.append(f"certificate_directory must be an absolute path, got {wanted.certificate_directory!r}")
    if wanted.hsts_seconds < 0 or wanted.max_body_size < 0:
        faults.append("hsts_seconds and max_body_size must not be negative")
    if wanted.hsts_seconds and not wanted.certificate_directory:
        faults.append("hsts_seconds needs a certificate: browsers ignore it over http")
    for network in wanted.proxied_by:
        if not _is_network(network):
            faults.append(f"proxied_by: not a network: {network!r}")
    if not wanted.locations:
        faults.append("locations is empty")
    seen = set()
    for location in wanted.locations:
        key = (location.match == "exact", location.path)
        if key in seen:
            faults.append(f"location {location.path!r}: stands twice")
        seen.add(key)
        faults += _location_faults(location, [upstream.name for upstream in wanted.upstreams])
    names = [upstream.name for upstream in wanted.upstreams]
    if len(set(names)) != len(names):
        faults.append(f"upstreams: a name stands twice in {', '.join(names)}")
    for upstream in wanted.upstreams:
        if not _NAME.fullmatch(upstream.name):
            faults.append(
                f"upstream name must be lower case letters, digits, '-' and '_', got {upstream.name!r}"
            )
        if upstream.keepalive < 0 or upstream.keepalive_seconds < 1:
            faults.append(f"upstream {upstream.name}: keepalive must be >= 0 and keepalive_seconds >= 1")
        if not upstream.servers:
            faults.append(f"upstream {upstream.name}: has no servers")
        for server in upstream.servers:
            if not _ADDRESS.fullmatch(server):
                faults.append(f"upstream {upstream.name}: not host:port or unix:/path: {server!r}")
    return faults


def http2_style(version: tuple[int, ...]) -> str:
    """Return how this nginx is told to speak HTTP/2: 1.25.1 made it a ``directive`` and deprecated it in ``listen``."""
    return "directive" if version >= (1, 25, 1) else "listen"


def site_text(site_name: str, wanted: Site, version: tuple[int, ...], ipv6: bool) -> str:
    """Return the site's configuration file."""
    limits = list(dict.fromkeys(location.rate_limit for location in wanted.locations if location.rate_limit))
    return template.render(
        "nginx/site.conf.j2",
        site_name=site_name,
        site=wanted,
        zones={limit: f"{site_name}_{number}" for number, limit in enumerate(limits, 1)},
        acme_webroot=ACME_WEBROOT,
        http2=http2_style(version),
        ipv6=ipv6,
    )


def is_upstream(name: str, text: str) -> bool:
    """Return whether the text, without comments, is one complete upstream of this name."""
    match = _UPSTREAM.fullmatch(text.strip())
    return match is not None and match["name"] == name


def _managed(path: str, text: str) -> tuple[File, File]:
    """A file below /etc/nginx, and the copy that it is healed from."""
    return File(path, text), File(path.replace(CONFIGURATION, COPIES, 1), text)


def _install(state: NginxState) -> Generator[StringCommand, None, NginxState]:
    # A runtime mask is what a killed installation leaves behind.
    if not state.installed or state.masked:
        yield script.run("dpkg/install.sh", "nginx/install.sh", packages="nginx openssl")
        state = host.get_fact(Nginx)
    if state.installed and state.version < (1, 19, 4):
        raise OperationError(
            f"nginx.server: needs nginx 1.19.4 (ssl_reject_handshake), got {'.'.join(map(str, state.version))}"
        )
    return state


@operation()
def server(shutdown_timeout_seconds: int = 3600) -> Generator[StringCommand, None, None]:
    """
    Install nginx and own its main configuration: TLS 1.2 and 1.3, HTTP/2, log format, and default servers that close the
    connection to any name that no site declares, on port 80 and 443, over IPv4 and IPv6.

    nginx is not started before that configuration stands, so its package's welcome page is never seen. A stopped or
    failed nginx is started, and enabled.

    + shutdown_timeout_seconds: how long the workers of an old configuration may take to finish their streams (s)

    Files of ours that were broken by hand are put back first, so that they cannot block the repair. Call it before
    the sites, and after ``certificate.bootstrap`` (a site whose certificate is gone does not pass ``nginx -t``).

    Raises ``OperationError`` for an nginx older than 1.19.4.
    """
    if shutdown_timeout_seconds < 1:
        raise OperationValueError(
            f"nginx.server: shutdown_timeout_seconds must be at least 1, got {shutdown_timeout_seconds!r}"
        )
    state = yield from _install(host.get_fact(Nginx))
    if state.drifted and state.fault:
        yield script.run("nginx/heal.sh", kept=COPIES)

    main = f"{CONFIGURATION}/nginx.conf"
    text = template.render(
        "nginx/nginx.conf.j2",
        shutdown_timeout_seconds=shutdown_timeout_seconds,
        http2=http2_style(state.version),
        ipv6=state.ipv6,
    )
    serves = (Path(script.FILES) / "nginx/nginx-serves.sh").read_text()
    entries: list[Entry] = [
        Directory("/var/lib/hostwright", mode="0700"),
        Directory(ACME_WEBROOT),
        Directory(UPSTREAMS),
        Directory(f"{CONFIGURATION}/conf.d"),
        Directory(f"{CONFIGURATION}/sites-enabled"),
        File(SERVES, serves, mode="0755"),
        Absent(f"{CONFIGURATION}/sites-enabled/default"),
        *_managed(main, text),
    ]
    yield from fileset.files._inner(
        entries=entries,
        validate="nginx -t -q",
        within=CONFIGURATION,
        unit="nginx.service",
        action="reload",
        probe=f"{SERVES} {main}",
        settle_seconds=1,
    )
    if not (state.active and state.enabled):
        yield from unit.unit._inner(unit="nginx.service", running=True, enabled=True, settle_seconds=1)


@operation()
def site(
    site_name: str,
    server_names: Sequence[str] = (),
    locations: Sequence[Location] = (),
    upstreams: Sequence[Upstream] = (),
    certificate_directory: str = "",
    hsts_seconds: int = 0,
    max_body_size: int = 1024 * 1024,
    proxied_by: Sequence[str] = (),
    probe: str | None = None,
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Manage one site: its https server, and a server on port 80 that answers ACME challenges and redirects the rest.

    + site_name: name of ``/etc/nginx/sites-enabled/<site_name>.conf``
    + server_names: host names, lower case; the first one is the one that is probed
    + locations, upstreams: see ``Location`` and ``Upstream``
    + certificate_directory: holds ``fullchain.pem`` and ``privkey.pem``; empty serves plain http, without a redirect
    + hsts_seconds: Strict-Transport-Security's max-age (s), 0 for none
    + max_body_size: largest request body (bytes), 0 for no limit
    + proxied_by: networks of the load balancers in front, whose X-Forwarded-For tells the client's address
    + probe: shell command that must succeed on the host after a reload, besides the TLS handshake for the first name
    + present: ``False`` removes the site and its switched upstreams

    The application gets ``X-Forwarded-For`` with exactly one address, the client's. When nginx refuses the new site,
    or does not come to serve it, the old one stays and the operation fails with what nginx said.

    Raises ``OperationValueError`` for values that break a rule, all of them in one message.

    **Example:**

    .. code:: python

        nginx.site(
            "shop",
            server_names=["shop.example.org"],
            certificate_directory="/etc/hostwright/tls/shop",
            upstreams=[Upstream("shop", ("127.0.0.1:8000",), switched=True)],
            locations=[
                Location("/", upstream="shop", timeout_seconds=330, streaming=True, rate_limit=RateLimit(20, 40)),
                Location("/admin", upstream="shop", networks=("10.0.0.0/8",)),
            ],
            name="Upload nginx site",
        )
    """
    wanted = Site(
        server_names=tuple(server_names),
        locations=tuple(locations),
        upstreams=tuple(upstreams),
        certificate_directory=certificate_directory,
        hsts_seconds=hsts_seconds,
        max_body_size=max_body_size,
        proxied_by=tuple(proxied_by),
    )
    faults = site_faults(site_name, wanted) if present else []
    if faults:
        raise OperationValueError(f"nginx.site {site_name}: " + "; ".join(faults))

    state = host.get_fact(Nginx)
    path = f"{CONFIGURATION}/sites-enabled/{site_name}.conf"
    switched = [upstream for upstream in wanted.upstreams if upstream.switched]
    entries: list[Entry]
    if present:
        entries = [
            *_managed(path, site_text(site_name, wanted, state.version, state.ipv6)),
            *(
                File(
                    f"{UPSTREAMS}/{upstream.name}.conf",
                    template.render("nginx/upstream.conf.j2", upstream=upstream),
                )
                for upstream in switched
                if upstream.name not in state.upstreams
                # A rollout may write it in its own words: only one that nginx cannot load is made anew.
                or (state.fault and not is_upstream(upstream.name, state.upstreams[upstream.name]))
            ),
        ]
    else:
        removed = [path, path.replace(CONFIGURATION, COPIES, 1)]
        entries = [
            Absent(gone)
            for gone in (*removed, *(f"{UPSTREAMS}/{upstream.name}.conf" for upstream in switched))
        ]

    served = server_names[0].replace("*", "probe") if present and certificate_directory else ""
    probes = [
        f"{SERVES} {path if present else CONFIGURATION + '/sites-enabled'} {served}".strip(),
        *filter(None, [probe]),
    ]
    is_changed = False
    for command in fileset.files._inner(
        entries=entries,
        validate="nginx -t -q",
        within=CONFIGURATION,
        unit="nginx.service",
        action="reload",
        probe=" && ".join(probes),
        settle_seconds=1,
    ):
        is_changed = True
        yield command
    if state.fault and not is_changed:
        # Nothing of this site is wrong, and yet nginx would not come back from a restart: that is no state to call good.
        yield StringCommand("nginx -t -q")
