"""
A PostgreSQL server of the distribution: its cluster, and the databases and roles of applications in it.

A cluster is what Debian calls one server: ``postgresql@VERSION-NAME.service`` with its configuration in
``/etc/postgresql/VERSION/NAME``. Passwords reach it as SCRAM verifiers, which are made here: neither arguments nor logs nor
the server itself ever see one.
"""

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from pyinfra import host
from pyinfra import state as run_state
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.pgcluster import PgCluster, PgClusterState, literals
from operations import fileset, script, template, unit
from operations.fileset import Entry, File
from settings.secret import Secret

RIGHTS: dict[str, tuple[str, ...]] = {"write": ("SELECT", "INSERT", "UPDATE", "DELETE"), "read": ("SELECT",)}

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_SETTING = re.compile(r"[a-z_]+(\.[a-z_]+)?")
_EXTENSION = re.compile(r"[a-z][a-z0-9_-]*")
_ROUNDS = 4096
_OPTIONS = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"


# --- the server -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tls:
    """What the server proves itself with. + certificate: PEM, with its chain; + key: PEM"""

    certificate: str
    key: Secret


def cluster_faults(
    cluster: str, port: int, addresses: Sequence[str], networks: Sequence[str], tls: Tls | None, memory_mb: int,
    connections: int, settings: Mapping[str, str],
) -> list[str]:  # fmt: skip
    """Return every rule that is broken, one line each."""
    faults = []
    if not _NAME.fullmatch(cluster):
        faults.append(f"cluster must be lower case letters, digits and '_', got {cluster!r}")
    if not 1 <= port <= 65535:
        faults.append(f"port must be 1 to 65535, got {port!r}")
    for address in addresses:
        try:
            wrong = ip_address(address).is_unspecified
        except ValueError:
            wrong = True
        if wrong:
            faults.append(f"addresses: must be addresses of the host, not all of them, got {address!r}")
    for network in networks:
        try:
            if ip_network(network).prefixlen == 0:
                faults.append(f"networks: must not be everybody, got {network!r}")
        except ValueError:
            faults.append(f"networks: must be a network such as '10.0.0.0/24', got {network!r}")
    if bool(addresses) != bool(networks):
        faults.append("addresses and networks go together: where it listens, and who may come")
    if addresses and tls is None:
        faults.append("addresses need tls: beyond loopback nothing is spoken in clear")
    if tls and (not tls.key.resolved or "BEGIN CERTIFICATE" not in tls.certificate):
        faults.append("tls needs a certificate in PEM and its key")
    if memory_mb and memory_mb < 128:
        faults.append(f"memory_mb must be 0 (the host's) or at least 128, got {memory_mb!r}")
    if not 10 <= connections <= 5000:
        faults.append(f"connections must be 10 to 5000, got {connections!r}")
    own = server_settings(port, addresses, memory_mb or 1024, connections, tls is not None, "/")
    for key, value in settings.items():
        if not _SETTING.fullmatch(key) or "\n" in value:
            faults.append(f"settings: not a setting: {key!r}")
        elif key in own:
            faults.append(f"settings: {key} is set by an argument of its own, or from memory_mb")
    return faults


def server_settings(
    port: int, addresses: Sequence[str], memory_mb: int, connections: int, tls: bool, directory: str
) -> dict[str, str]:
    """
    Return the settings of a server that may reckon with so much memory (MiB).

    A quarter for its own cache, three quarters as what the kernel caches for it; what one sort may take is such that all
    connections together stay below a quarter.
    """
    found = {
        "listen_addresses": ", ".join(["localhost", *addresses]),
        "port": str(port),
        "max_connections": str(connections),
        "shared_buffers": f"{max(32, memory_mb // 4)}MB",
        "effective_cache_size": f"{max(96, memory_mb * 3 // 4)}MB",
        "work_mem": f"{max(1, min(64, memory_mb // 4 // connections))}MB",
        "maintenance_work_mem": f"{max(16, min(1024, memory_mb // 16))}MB",
        "password_encryption": "scram-sha-256",
        "log_connections": "off",
        "log_lock_waits": "on",
        "log_temp_files": "10MB",
    }
    if tls:
        found |= {
            "ssl": "on",
            "ssl_cert_file": f"{directory}/server.crt",
            "ssl_key_file": f"{directory}/server.key",
            "ssl_min_protocol_version": "TLSv1.2",
        }
    return found


def needs_restart(wanted: Mapping[str, str], found: PgClusterState) -> bool:
    """Whether the running server has to be restarted to run on these settings; else it reads them again."""
    for key, value in wanted.items():
        running = found.settings.get(key)
        if running and running.context == "postmaster" and value not in (running.raw, running.shown):
            if value.endswith("MB") and int(value[:-2]) * 128 == int(running.raw or -1):
                continue  # the server counts its cache in pages of 8 KiB, and shows 1024MB as 1GB
            return True
    return False


def _rounded(memory_mb: int) -> int:
    """Memory of the host in steps: it differs by some KiB from boot to boot, and no restart is worth that."""
    return max(256, memory_mb // 256 * 256)


@operation()
def cluster(
    cluster: str = "main",
    port: int = 5432,
    addresses: Sequence[str] = (),
    networks: Sequence[str] = (),
    tls: Tls | None = None,
    memory_mb: int = 0,
    connections: int = 100,
    settings: Mapping[str, str] | None = None,
) -> Generator[StringCommand, None, None]:
    """
    Run the distribution's PostgreSQL: one cluster, with its configuration and who may come in.

    + cluster: its name; the package makes ``main``. Of several versions the newest that has one of this name
    + port: on loopback, and on
    + addresses: of the host, e.g. in a private network; they need ``networks`` and ``tls``
    + networks: who may come over the network: with TLS and a password
    + tls: certificate and key of the server
    + memory_mb: what it may reckon with (MiB): caches and sorts are derived from it; 0: all of the host's
    + connections: at most
    + settings: further ones, as in ``postgresql.conf``

    On the host ``postgres`` comes in by the socket as itself, everybody else by SCRAM. What can be read anew costs a reload,
    the rest one restart. Configuration that the server does not take, or does not come up with, is taken back.

    Never removes a cluster.

    Raises ``OperationValueError`` for arguments that break a rule, all in one message.

    **Example:**

    .. code:: python

        pgcluster.cluster(addresses=["10.0.0.41"], networks=["10.0.0.0/24"], tls=pgcluster.Tls(certificate, key), name="Run PostgreSQL")
    """
    extra = dict(settings or {})
    faults = cluster_faults(cluster, port, addresses, networks, tls, memory_mb, connections, extra)
    if faults:
        raise OperationValueError("pgcluster.cluster: " + "; ".join(faults))

    names = [*server_settings(port, addresses, 1024, connections, True, "/"), *extra]
    found = host.get_fact(PgCluster, cluster=cluster, settings=names)
    if not found.installed:
        yield script.run("dpkg/install.sh", packages="postgresql", list_hours=24)
        found = host.get_fact(PgCluster, cluster=cluster, settings=names)
    if not found.version and found.installed:
        yield script.run("pgcluster/create.sh", version=found.installed[-1], cluster=cluster)
        found = host.get_fact(PgCluster, cluster=cluster, settings=names)

    directory = f"/etc/postgresql/{found.version}/{cluster}"
    service = f"postgresql@{found.version}-{cluster}.service"
    wanted = server_settings(port, addresses, memory_mb or _rounded(found.memory_mb), connections, tls is not None, directory) | extra
    action = "restart" if needs_restart(wanted, found) else "reload"
    overridden = [key for key in wanted if key in found.overridden]
    if overridden:
        # ALTER SYSTEM by hand: read after our file
        yield script.run("pgcluster/sql.sh", port=str(found.port), sql="".join(f"ALTER SYSTEM RESET {key};\n" for key in overridden))
        yield StringCommand("systemctl", action, service)
    entries: list[Entry] = [
        File(f"{directory}/conf.d/hostwright.conf", template.render("pgcluster/hostwright.conf.j2", settings=wanted)),
        File(
            f"{directory}/pg_hba.conf", template.render("pgcluster/pg_hba.conf.j2", networks=networks), mode="0640",
            owner="postgres", group="postgres",
        ),
    ]  # fmt: skip
    if tls:
        entries += [
            File(f"{directory}/server.crt", tls.certificate),
            File(f"{directory}/server.key", tls.key, mode="0600", owner="postgres", group="postgres"),
        ]
    programs = f"/usr/lib/postgresql/{found.version}/bin"
    yield from fileset.files._inner(
        entries=entries,
        validate=f"cd / && runuser -u postgres -- {programs}/postgres -C data_directory -c config_file={directory}/postgresql.conf",
        within=directory,
        unit=service,
        action=action,
        probe=_well(port),
        probe_seconds=60,
    )
    yield from unit.unit._inner(unit=service, enabled=None, probe=_well(port), probe_seconds=60)


def _well(port: int) -> str:
    # what pg_hba.conf has wrong does not stop a server: it goes on with the rules it had
    sql = "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL"
    return f"cd / && [ \"$(runuser -u postgres -- psql -XAtq -h /run/postgresql -p {port} -c '{sql}')\" = 0 ]"


# --- databases and roles ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Role:
    """
    An account of a database.

    + role: its name; + password: printable ASCII
    + rights: ``write`` (rows of all tables) or ``read``, in the schema ``public``
    + connections: at most; -1: no limit of its own
    """

    role: str
    password: Secret
    rights: str = "write"
    connections: int = -1


@dataclass(frozen=True)
class Database:
    """What ``database`` was asked for."""

    database: str
    owner: Role
    roles: tuple[Role, ...] = ()
    extensions: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    guests: tuple[str, ...] = ()

    @property
    def all_roles(self) -> tuple[Role, ...]:
        return (self.owner, *self.roles)

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = []
        names = [one.role for one in self.all_roles]
        for key, name in (("database", self.database), *(("role", name) for name in (*names, *self.former, *self.guests))):
            if not _NAME.fullmatch(name) or name.startswith("pg_") or name == "postgres":
                faults.append(f"{key} must be lower case letters, digits and '_', and not the server's own, got {name!r}")
        faults += [f"role {name!r} stands twice" for name in sorted({name for name in names if names.count(name) > 1})]
        faults += [f"former: {name!r} is a role of the database too" for name in self.former if name in names]
        for one in self.all_roles:
            if not one.password.resolved or not re.fullmatch(r"[ -~]{8,}", one.password.unmask()):
                faults.append(f"role {one.role}: the password must have 8 printable ASCII characters or more")
            if one.rights not in RIGHTS:
                faults.append(f"role {one.role}: rights must be 'write' or 'read', got {one.rights!r}")
            if one.connections < -1:
                faults.append(f"role {one.role}: connections must be -1 (no limit) or more, got {one.connections!r}")
        faults += [f"not an extension: {name!r}" for name in self.extensions if not _EXTENSION.fullmatch(name)]
        return faults


def verifier(password: str, salt: bytes, rounds: int = _ROUNDS) -> str:
    """Return what PostgreSQL stores of a password (RFC 5803)."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    client = hmac.new(salted, b"Client Key", hashlib.sha256).digest()
    server = hmac.new(salted, b"Server Key", hashlib.sha256).digest()
    text = [base64.b64encode(part).decode() for part in (salt, hashlib.sha256(client).digest(), server)]
    return f"SCRAM-SHA-256${rounds}:{text[0]}${text[1]}:{text[2]}"


def is_password(stored: str, password: Secret) -> bool:
    """Whether a stored verifier was made of this password."""
    parts = re.fullmatch(r"SCRAM-SHA-256\$(\d+):([A-Za-z0-9+/=]+)\$.*", stored)
    return bool(parts) and hmac.compare_digest(
        stored, verifier(password.unmask(), base64.b64decode(parts[2]), int(parts[1])) if parts else ""
    )


def _quoted(name: str) -> str:
    return f'"{name}"'


def statements(wanted: Database, found: PgClusterState) -> list[str]:
    """Return the SQL that brings a database and its roles from what they are to what is wanted; empty when they are."""
    sql = []
    for one in wanted.all_roles:
        sql += _role_statements(one, found)
    for name in wanted.former:
        if name in found.roles and found.roles[name].login:
            sql.append(f"ALTER ROLE {_quoted(name)} NOLOGIN PASSWORD NULL")
            sql.append(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = {literals([name])} \\g /dev/null")
    database, owner = _quoted(wanted.database), _quoted(wanted.owner.role)
    if not found.owner:
        sql.append(f"CREATE DATABASE {database} OWNER {owner} TEMPLATE template0 ENCODING 'UTF8'")
    elif found.owner != wanted.owner.role:
        sql.append(f"ALTER DATABASE {database} OWNER TO {owner}")
    if not found.owner or found.open_database:
        sql.append(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    inner = _inner_statements(wanted, found)
    return [*sql, f"\\connect {database}", *inner] if inner else sql


def _role_statements(one: Role, found: PgClusterState) -> list[str]:
    state, role = found.roles.get(one.role), _quoted(one.role)
    sql = []
    if state is None:
        sql.append(f"CREATE ROLE {role} {_OPTIONS}")
    elif state.powerful or not state.login:
        sql.append(f"ALTER ROLE {role} {_OPTIONS}")
    if state and state.member:
        sql.append(
            f"SELECT format('REVOKE %I FROM %I', m.roleid::regrole, m.member::regrole) FROM pg_auth_members m "
            f"WHERE m.member = {literals([one.role])}::regrole \\gexec"
        )
    if state is None or state.connections != one.connections:
        sql.append(f"ALTER ROLE {role} CONNECTION LIMIT {one.connections}")
    if state is None or not is_password(state.verifier, one.password):
        sql.append(f"ALTER ROLE {role} PASSWORD '{verifier(one.password.unmask(), os.urandom(16))}'")
    return sql


def _inner_statements(wanted: Database, found: PgClusterState) -> list[str]:
    owner = _quoted(wanted.owner.role)
    sql = []
    if found.schema_owner != wanted.owner.role:
        sql.append(f"ALTER SCHEMA public OWNER TO {owner}")
    if not found.owner or found.open_schema:
        sql.append("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    # Who comes in because everybody does is out once that is taken back: so it is with a database that a restore has made.
    connects = frozenset() if found.open_database or found.open_schema else found.connects
    sql += [
        f"GRANT CONNECT ON DATABASE {_quoted(wanted.database)} TO {_quoted(name)}"
        for name in wanted.guests
        if name in found.roles and name not in connects
    ]
    sql += [f'CREATE EXTENSION IF NOT EXISTS "{name}"' for name in wanted.extensions if name not in found.extensions]
    for one in wanted.roles:
        role, rights = _quoted(one.role), RIGHTS[one.rights]
        due = {(one.role, "r", right) for right in rights} | {(one.role, "S", "USAGE")}
        given = {default for default in found.defaults if default[0] == one.role and default[1] in "rS"}
        too_much = {right for role_, right in found.has if role_ == one.role} - set(rights)
        too_little = {right for role_, right in found.lacks if role_ == one.role} & {*rights, "USAGE"}
        # likewise what it may do as an administrator, or as a member of another role
        state = found.roles.get(one.role)
        borrowed = state is not None and (state.powerful or state.member)
        if borrowed or one.role not in connects:
            sql.append(f"GRANT CONNECT ON DATABASE {_quoted(wanted.database)} TO {role}; GRANT USAGE ON SCHEMA public TO {role}")
        if too_much:
            sql.append(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}")
        if too_much or too_little or borrowed:
            sql.append(f"GRANT {', '.join(rights)} ON ALL TABLES IN SCHEMA public TO {role}")
            sql.append(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
        if given != due:
            for_owner = f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public"
            sql += [
                f"{for_owner} REVOKE ALL ON TABLES FROM {role}; {for_owner} REVOKE ALL ON SEQUENCES FROM {role}",
                f"{for_owner} GRANT {', '.join(rights)} ON TABLES TO {role}; {for_owner} GRANT USAGE ON SEQUENCES TO {role}",
            ]
    return sql


@operation()
def database(
    database: str,
    owner: Role | None = None,
    roles: Sequence[Role] = (),
    extensions: Sequence[str] = (),
    former: Sequence[str] = (),
    guests: Sequence[str] = (),
    cluster: str = "main",
) -> Generator[StringCommand, None, None]:
    """
    Manage a database with the roles of its application.

    + database: its name
    + owner: who makes and changes tables: migrations come in as this one
    + roles: who works with the rows: everybody else, with no right to change a table
    + extensions: made where they are not; others are left alone
    + former: names of roles that may not log in any more, and are out at once; what they own stays
    + guests: roles that something else makes, and that may connect once they are there: that of backups
    + cluster: the cluster it is in

    Everybody else may not even connect. A password that is not the stored one is a change, here and in the plan. Rights
    hold for tables that are there and for those that the owner makes later.

    Never removes a database.

    Raises ``OperationValueError`` for arguments that break a rule, and ``OperationError`` when there is no such cluster.

    **Example:**

    .. code:: python

        pgcluster.database(
            "shop", owner=Role("shop_owner", migration_password), roles=[Role("shop", password), Role("shop_reports", other, "read")],
            extensions=["pg_trgm"], name="Make the database",
        )
    """
    if owner is None:
        raise OperationValueError("pgcluster.database: owner is needed")
    wanted = Database(database, owner, tuple(roles), tuple(extensions), tuple(former), tuple(guests))
    faults = wanted.faults()
    if faults:
        raise OperationValueError("pgcluster.database: " + "; ".join(faults))

    names = [*(one.role for one in wanted.all_roles), *former, *guests]
    found = host.get_fact(PgCluster, cluster=cluster, settings=["port"], database=database, roles=names)
    # A plan is made before anything runs: an earlier operation may well bring the server.
    if not found.settings and run_state.is_executing:
        raise OperationError(f"pgcluster.database: there is no cluster {cluster} that answers: pgcluster.cluster makes one")
    due = statements(wanted, found)
    if not due:
        host.noop(f"database {database} and its roles are as wanted")
        return
    lines = [one if one.startswith("\\") or "\\g" in one else f"{one};" for one in due]
    yield script.run("pgcluster/sql.sh", port=str(found.port), sql=Secret("\n".join(lines) + "\n"))
