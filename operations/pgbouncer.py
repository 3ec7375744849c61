"""
PgBouncer of the distribution in front of one PostgreSQL server: many clients on few connections, by transaction.

What it keeps of passwords are the same SCRAM verifiers that the server keeps. They are made here, with the salt that the
server tells whoever wants to log in; so nobody who reads the file can log in with it, and PgBouncer itself can only while
the client does.
"""

import base64
import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from pyinfra import host
from pyinfra import state as run_state
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.pgbouncer import EXPORTER, PACKAGE, Pgbouncer, PgbouncerState
from operations import dpkg, fileset, script, template
from operations import unit as units_of
from operations.fileset import Absent, Directory, Entry, File
from operations.pgcluster import Tls, is_password, verifier
from settings.secret import Secret

PROGRAM = "/usr/local/lib/hostwright/pgbouncer"
UNIT, EXPORTER_UNIT = "pgbouncer.service", f"{EXPORTER}.service"
DIRECTORY = "/etc/pgbouncer"
PREPARED_SINCE = (1, 21)

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_SETTING = re.compile(r"[a-z_]+")
_PROBE_SECONDS = 30
_CONSOLE = 10


@dataclass(frozen=True)
class Server:
    """
    The PostgreSQL server behind it.

    + host: directory of its socket, or its address or name
    + port: of it
    + ca: certificate of the authority that signed the server's, in PEM; needed when the server is not on this host
    """

    host: str = "/run/postgresql"
    port: int = 5432
    ca: str = ""

    @property
    def is_here(self) -> bool:
        return self.host.startswith("/") or self.host in ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class User:
    """A role of the server that may come through. + user: its name; + password: printable ASCII, the same as on the server"""

    user: str
    password: Secret


@dataclass(frozen=True)
class Pooler:
    """What ``pooler`` was asked for."""

    databases: Mapping[str, int]
    users: tuple[User, ...]
    server: Server = field(default_factory=Server)
    port: int = 6432
    addresses: tuple[str, ...] = ()
    tls: Tls | None = None
    max_clients: int = 1000
    prepared_statements: int = 200
    wait_seconds: int = 120
    metrics_port: int = 0
    metrics_address: str = "127.0.0.1"
    settings: Mapping[str, str] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = [] if self.databases else ["databases is empty: write {'name': connections to the server}"]
        for name, connections in self.databases.items():
            if not _NAME.fullmatch(name) or name == "pgbouncer":
                faults.append(f"databases: must be lower case letters, digits and '_', and not its console, got {name!r}")
            if not 1 <= connections <= 5000:
                faults.append(f"databases: {name} must have 1 to 5000 connections, got {connections!r}")
        names = [one.user for one in self.users]
        faults += [] if self.users else ["users is empty: nobody could come in"]
        faults += [f"users: must be lower case letters, digits and '_', and no superuser, got {name!r}" for name in names
                   if not _NAME.fullmatch(name) or name in ("postgres", "pgbouncer") or name.startswith("pg_")]  # fmt: skip
        faults += [f"users: {name!r} stands twice" for name in sorted({name for name in names if names.count(name) > 1})]
        for one in self.users:
            if not one.password.resolved or not re.fullmatch(r"[ -~]{8,}", one.password.unmask()):
                faults.append(f"users: {one.user}: the password must have 8 printable ASCII characters or more")
        if not re.fullmatch(r"[^\s'\"=;]+", self.server.host):
            faults.append(f"server.host must be a directory, an address or a name, got {self.server.host!r}")
        elif not self.server.is_here and not self.server.ca:
            faults.append(f"server.ca is needed: beyond this host nothing is spoken in clear, got {self.server.host!r} without one")
        if self.server.ca and self.server.host.startswith("/"):
            faults.append("server.ca is for the network: through a socket no TLS is spoken")
        elif self.server.ca and "BEGIN CERTIFICATE" not in self.server.ca:
            faults.append("server.ca must be a certificate in PEM")
        for key, port in (("port", self.port), ("server.port", self.server.port)):
            if not 1 <= port <= 65535:
                faults.append(f"{key} must be 1 to 65535, got {port!r}")
        if self.server.host in ("127.0.0.1", "localhost") and self.server.port == self.port:
            faults.append(f"port must not be that of the server on the same host, got {self.port!r}")
        if self.metrics_port and (not 1 <= self.metrics_port <= 65535 or self.metrics_port == self.port):
            faults.append(f"metrics_port must be 0 (none) or a port of its own, got {self.metrics_port!r}")
        for key, address in (*(("addresses", one) for one in self.addresses), ("metrics_address", self.metrics_address)):
            try:
                wrong = ip_address(address).is_unspecified
            except ValueError:
                wrong = True
            if wrong:
                faults.append(f"{key}: must be addresses of the host, not all of them, got {address!r}")
        if self.addresses and self.tls is None:
            faults.append(f"addresses need tls: beyond loopback nothing is spoken in clear, got {', '.join(self.addresses)}")
        if self.tls and (not self.tls.key.resolved or "BEGIN CERTIFICATE" not in self.tls.certificate):
            faults.append("tls needs a certificate in PEM and its key")
        if not 1 <= self.max_clients <= 30000:
            faults.append(f"max_clients must be 1 to 30000, got {self.max_clients!r}")
        if not 0 <= self.prepared_statements <= 10000:
            faults.append(f"prepared_statements must be 0 (clients use none) to 10000, got {self.prepared_statements!r}")
        if not 1 <= self.wait_seconds <= 3600:
            faults.append(f"wait_seconds must be 1 to 3600, got {self.wait_seconds!r}")
        own = self.rendered()
        for key, value in self.settings.items():
            if not _SETTING.fullmatch(key) or "\n" in value:
                faults.append(f"settings: not a setting: {key!r}")
            elif key in own or key in ("user", "admin_users", "stats_users", "logfile", "pidfile"):
                faults.append(f"settings: {key} is set by an argument of its own, or by the unit")
        return faults

    def version_faults(self, version: tuple[int, ...], exporter: str = "") -> list[str]:
        """Return what these versions cannot do; an unknown one can do anything until it is installed."""
        faults = []
        if version and version < PREPARED_SINCE and self.prepared_statements:
            said = ".".join(map(str, version))
            faults.append(
                f"prepared_statements={self.prepared_statements} needs PgBouncer 1.21 (Debian 13 has it), this host has {said}: "
                "write prepared_statements=0 and have clients prepare none (psycopg: prepare_threshold=None; asyncpg: "
                "statement_cache_size=0; SQLAlchemy's asyncpg: prepared_statement_cache_size=0 too; JDBC: prepareThreshold=0)"
            )
        # The epoch came with the exporter of the Prometheus community. The one before dies of what PgBouncer says since 1.8.
        if self.metrics_port and exporter and ":" not in exporter:
            faults.append(f"metrics_port={self.metrics_port} needs the exporter that Debian 13 has, this host's is {exporter}: write metrics_port=0")
        return faults

    def rendered(self, version: tuple[int, ...] = PREPARED_SINCE) -> dict[str, str]:
        """Return the settings of the file for a version, in the words in which the console shows them."""
        found = {
            "listen_addr": ",".join(["127.0.0.1", *self.addresses]),
            "listen_port": str(self.port),
            "unix_socket_dir": "/run/pgbouncer",
            "auth_type": "scram-sha-256",
            "auth_file": f"{DIRECTORY}/userlist.txt",
            "pool_mode": "transaction",
            # besides: the console's, which health checks and metrics come in by
            "max_client_conn": str(self.max_clients + _CONSOLE),
            "default_pool_size": str(max(self.databases.values(), default=1)),
            "query_wait_timeout": str(self.wait_seconds),
            # a server that was restarted is found again at once, and not after 15 s
            "server_login_retry": "1",
            # psycopg2, JDBC and others send it with every login
            "ignore_startup_parameters": "extra_float_digits",
            "log_connections": "0",
            "log_disconnections": "0",
            "server_tls_sslmode": "verify-full" if self.server.ca else "disable",
            "client_tls_sslmode": "require" if self.tls else "disable",
        }
        if version >= PREPARED_SINCE:
            # said even when it is 0: later versions have another default
            found["max_prepared_statements"] = str(self.prepared_statements)
        if self.server.ca:
            found["server_tls_ca_file"] = f"{DIRECTORY}/server-ca.crt"
        if self.tls:
            found |= {"client_tls_cert_file": f"{DIRECTORY}/pgbouncer.crt", "client_tls_key_file": f"{DIRECTORY}/pgbouncer.key"}
        return found

    def userlist(self, verifiers: Mapping[str, str]) -> str:
        return "".join(f'"{one.user}" "{verifiers[one.user]}"\n' for one in self.users)


def needs_restart(wanted: Mapping[str, str], found: PgbouncerState) -> bool:
    """Whether what runs has to be restarted to run on these settings; else it reads them again."""
    return any(
        key in found.running and not found.running[key].changeable and found.running[key].value != value
        for key, value in wanted.items()
    )


def is_drifted(wanted: Mapping[str, str], found: PgbouncerState) -> bool:
    """Whether what runs was changed by hand at its console."""
    return any(key in found.running and found.running[key].value != value for key, value in wanted.items())


def verifiers(users: Sequence[User], found: PgbouncerState) -> tuple[dict[str, str], dict[str, str]]:
    """
    Return the verifier of each user, the same as the server's; and of those for whom none can be made, why.

    When the server does not answer, one that is in the file already and is of this password is still good.
    """
    good, missing = {}, {}
    for one in users:
        if one.user in found.salts:
            salt, rounds = found.salts[one.user]
            good[one.user] = verifier(one.password.unmask(), base64.b64decode(salt), rounds)
        elif is_password(found.userlist.get(one.user, ""), one.password):
            good[one.user] = found.userlist[one.user]
        else:
            missing[one.user] = found.faults.get(one.user, "it was not asked")
    return good, missing


@operation()
def pooler(
    databases: Mapping[str, int] | None = None,
    users: Sequence[User] = (),
    server: Server | None = None,
    port: int = 6432,
    addresses: Sequence[str] = (),
    tls: Tls | None = None,
    max_clients: int = 1000,
    prepared_statements: int = 200,
    wait_seconds: int = 120,
    metrics_port: int = 0,
    metrics_address: str = "127.0.0.1",
    settings: Mapping[str, str] | None = None,
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Run PgBouncer in front of a PostgreSQL server, pooling by transaction.

    + databases: name to the number of connections to the server that it may have, of all users together
    + users: roles of the server that may come through; nobody else may
    + server: where it is; by default on this host, through its socket. It must ask for SCRAM
    + port: on loopback, and on
    + addresses: of the host, e.g. in a private network; they need
    + tls: certificate and key. With it clients must speak TLS, on loopback too
    + max_clients: connections of clients; more are refused
    + prepared_statements: how many of them are kept per connection to the server, for clients that prepare by the protocol
      (drivers do; ``PREPARE`` in SQL never works by transaction). It needs PgBouncer 1.21, which Debian 12 does not have:
      there it is refused, and 0 says that clients prepare none
    + wait_seconds: how long a query may wait for a connection to the server (s)
    + metrics_port: of the distribution's exporter for Prometheus; 0: none. Debian 12's is refused: it dies of what PgBouncer says
    + metrics_address: of the host, where the exporter listens; it knows no password
    + settings: further ones, as in ``pgbouncer.ini``
    + present: ``False`` stops it and removes its configuration; the packages stay

    Runs as an account of its own with ``pgbouncer.service`` of the package. What can be read anew costs a reload, in which no
    client loses its connection; port, addresses and the socket's directory cost a restart, which waits for transactions.
    A PgBouncer of its own proves the files before anything changes; what the running one does not come up with is taken back.

    Raises ``OperationValueError`` for arguments that break a rule, all in one message, and ``OperationError`` when the server
    does not say the salt of a user or does not take the password, or a version cannot do what is asked.

    **Example:**

    .. code:: python

        pgbouncer.pooler({"shop": 25}, users=[pgbouncer.User("shop", settings.password)], metrics_port=9127, name="Pool connections")
    """
    if not present:
        yield from _remove()
        return
    wanted = Pooler(
        dict(databases or {}), tuple(users), server or Server(), port, tuple(addresses), tls, max_clients, prepared_statements,
        wait_seconds, metrics_port, metrics_address, dict(settings or {}),
    )  # fmt: skip
    faults = wanted.faults()
    if faults:
        raise OperationValueError("pgbouncer.pooler: " + "; ".join(faults))

    found = _look(wanted)
    if not found.installed.get(PACKAGE) or not found.account:
        _refuse(wanted, found)
        yield script.run("dpkg/install.sh", "pgbouncer/install.sh", packages=PACKAGE, list_hours=24)
        found = _look(wanted)
    _refuse(wanted, found)
    known, missing = verifiers(wanted.users, found)
    # A plan is made before anything runs: an earlier operation may well bring the server and its roles.
    if missing and run_state.is_executing:
        said = "; ".join(f"{user}: {why}" for user, why in missing.items())
        raise OperationError(f"pgbouncer.pooler: the server at {wanted.server.host} does not say the salt of {said}")
    known |= dict.fromkeys(missing, "not known before the server is there")

    yield from fileset.files._inner(
        entries=[Directory("/etc/hostwright", mode="0755"), File(PROGRAM, (script.FILES / "pgbouncer/pgbouncer.py").read_text(), mode="0755")]
    )
    fresh = {one.user: one.password.unmask() for one in wanted.users if one.user in found.salts and known[one.user] != found.userlist.get(one.user)}
    if fresh:
        asked = {"host": wanted.server.host, "port": wanted.server.port, "ca": wanted.server.ca, "database": next(iter(wanted.databases))}
        yield StringCommand(PROGRAM, "prove", _stdin=json.dumps({**asked, "users": fresh}))
    yield from fileset.files._inner(
        entries=[File(f"/etc/systemd/system/{UNIT}.d/hostwright.conf", template.render("pgbouncer/hostwright.conf.j2"))],
        unit=UNIT,
    )
    ini = {**wanted.rendered(found.version(PACKAGE)), **wanted.settings}
    ping = f"{PROGRAM} ping"
    yield from fileset.files._inner(
        entries=_files(wanted, ini, known),
        validate=f"{PROGRAM} check",
        within=DIRECTORY,
        unit=UNIT,
        action="restart" if needs_restart(ini, found) else "reload",
        probe=ping,
        probe_seconds=_PROBE_SECONDS,
    )
    yield from units_of.unit._inner(unit=UNIT, probe=ping, probe_seconds=_PROBE_SECONDS)
    # asked again: what was found before the files were written may be what they have changed
    if is_drifted(ini, found) and is_drifted(ini, _look(wanted)):
        yield StringCommand("systemctl", "reload", UNIT)
    yield from _exporter(wanted, found)


def _look(wanted: Pooler) -> PgbouncerState:
    state: PgbouncerState = host.get_fact(
        Pgbouncer, server=wanted.server.host, port=wanted.server.port, ca=wanted.server.ca, database=next(iter(wanted.databases)),
        users=[one.user for one in wanted.users],
    )  # fmt: skip
    return state


def _refuse(wanted: Pooler, found: PgbouncerState) -> None:
    faults = wanted.version_faults(found.version(PACKAGE), found.installed.get(EXPORTER) or found.candidates.get(EXPORTER, ""))
    if faults:
        raise OperationError("pgbouncer.pooler: " + "; ".join(faults))


def _own(path: str, content: str | Secret, mode: str = "0640") -> File:
    """A file that PgBouncer reads and cannot write."""
    return File(f"{DIRECTORY}/{path}", content, mode=mode, group="pgbouncer")


def _files(wanted: Pooler, ini: Mapping[str, str], known: Mapping[str, str]) -> list[Entry]:
    text = template.render("pgbouncer/pgbouncer.ini.j2", databases=wanted.databases, server=wanted.server, settings=ini)
    entries: list[Entry] = [
        _own("pgbouncer.ini", text),
        # 0600 of its own account: nobody but it has a use for verifiers
        File(f"{DIRECTORY}/userlist.txt", Secret(wanted.userlist(known)), mode="0600", owner="pgbouncer", group="pgbouncer"),
        _own("server-ca.crt", wanted.server.ca) if wanted.server.ca else Absent(f"{DIRECTORY}/server-ca.crt"),
    ]
    if wanted.tls:
        return [*entries, _own("pgbouncer.crt", wanted.tls.certificate), _own("pgbouncer.key", Secret(wanted.tls.key.unmask()))]
    return [*entries, Absent(f"{DIRECTORY}/pgbouncer.crt"), Absent(f"{DIRECTORY}/pgbouncer.key")]


def _exporter(wanted: Pooler, found: PgbouncerState) -> Generator[StringCommand, None, None]:
    """Bring the exporter, or take it away."""
    if not wanted.metrics_port:
        if found.installed.get(EXPORTER):
            yield from units_of.unit._inner(unit=EXPORTER_UNIT, running=False, enabled=False)
        return
    address = f"[{wanted.metrics_address}]" if ":" in wanted.metrics_address else wanted.metrics_address
    # before the package is there: installed, it is started, and it would listen to everybody
    files: list[Entry] = [
        File(f"/etc/systemd/system/{EXPORTER_UNIT}.d/hostwright.conf", template.render("pgbouncer/exporter.conf.j2")),
        File(f"/etc/default/{EXPORTER}", template.render("pgbouncer/exporter.default.j2", listen=f"{address}:{wanted.metrics_port}", port=wanted.port)),
    ]
    yield from fileset.files._inner(entries=files)
    yield from dpkg.packages._inner(packages=[EXPORTER])
    target = f"http://{address}:{wanted.metrics_port}/metrics"
    yield from units_of.unit._inner(
        unit=EXPORTER_UNIT,
        inputs=[one.path for one in files],
        probe=f"python3 -c 'import urllib.request as r; assert b\"pgbouncer\" in r.urlopen(\"{target}\", timeout=5).read()'",
        probe_seconds=_PROBE_SECONDS,
    )


def _remove() -> Generator[StringCommand, None, None]:
    for one in (EXPORTER_UNIT, UNIT):
        yield from units_of.unit._inner(unit=one, running=False, enabled=False)
    paths = [f"{DIRECTORY}/{name}" for name in ("pgbouncer.ini", "userlist.txt", "server-ca.crt", "pgbouncer.crt", "pgbouncer.key")]
    paths += [f"/etc/systemd/system/{one}.d/hostwright.conf" for one in (EXPORTER_UNIT, UNIT)]
    yield from fileset.files._inner(entries=[Absent(path) for path in paths])
