"""What a cluster of PostgreSQL is on a host, and what it has of one database: one command."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyinfra.api import FactBase

from facts.records import Record, program


@dataclass(frozen=True)
class SettingState(Record):
    """A setting of the running server: ``raw`` in its own unit, ``shown`` as SHOW has it; ``postmaster`` needs a restart."""

    raw: str
    context: str
    shown: str


@dataclass(frozen=True)
class RoleState(Record):
    """A role. ``powerful``: it is or may make more than a client; ``verifier``: what is stored of its password (salted)."""

    powerful: bool
    login: bool
    connections: int
    verifier: str
    member: bool


@dataclass(frozen=True)
class PgClusterState(Record):
    """
    + memory_mb: of the host
    + installed: versions of the server whose programs are there; + version, port: of the cluster, empty when there is none
    + settings: of the running server, those that were asked for; empty when it does not run
    + overridden: those of them that ``ALTER SYSTEM`` has set
    + roles: those that were asked for and exist
    + owner: of the database, empty when it does not exist; + open_database, open_schema: everybody may connect, may use it
    + connects: roles that can come in; + defaults: (role, kind of object, right) that a new table or sequence will give
    + lacks, has: (role, right) on at least one table or sequence that is there
    """

    memory_mb: int = 0
    installed: tuple[str, ...] = ()
    version: str = ""
    port: int = 0
    settings: dict[str, SettingState] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()
    roles: dict[str, RoleState] = field(default_factory=dict)
    owner: str = ""
    open_database: bool = False
    schema_owner: str = ""
    open_schema: bool = False
    extensions: tuple[str, ...] = ()
    connects: frozenset[str] = frozenset()
    defaults: frozenset[tuple[str, str, str]] = frozenset()
    lacks: frozenset[tuple[str, str]] = frozenset()
    has: frozenset[tuple[str, str]] = frozenset()


def literals(names: Sequence[str]) -> str:
    """Return a list of SQL literals."""
    return ", ".join("'" + name.replace("'", "''") + "'" for name in names)


class PgCluster(FactBase[PgClusterState]):
    """
    Returns the state of a cluster of PostgreSQL.

    + cluster: its name, e.g. ``main``
    + settings: names of settings that are wanted; + database: a database; + roles: names of its roles

    .. code:: python

        PgClusterState(memory_mb=3936, installed=("15",), version="15", port=5432,
                       settings={"port": SettingState("5432", "postmaster", "5432")}, roles={…}, owner="shop_owner", …)
    """

    default = PgClusterState

    def command(self, cluster: str, settings: Sequence[str] = (), database: str = "", roles: Sequence[str] = ()) -> str:
        text = program(
            "pgcluster/state.sh", cluster=cluster, settings=literals(settings), database=database, roles=literals(roles)
        )
        return f"sh -c {shlex.quote(text)}"

    def process(self, output: list[str]) -> PgClusterState:
        rows: dict[str, list[list[str]]] = {}
        for line in output:
            tag, *rest = line.split("\t")
            rows.setdefault(tag, []).append(rest)

        def one(tag: str, *otherwise: str) -> list[str]:
            return rows.get(tag, [list(otherwise)])[0]

        version, port = one("cluster", "", "0")
        owner, open_database = one("database", "", "f")
        schema_owner, open_schema = one("schema", "", "f")
        return PgClusterState(
            memory_mb=int(one("memory", "0")[0]),
            installed=tuple(sorted((row[0] for row in rows.get("installed", [])), key=int)),
            version=version,
            port=int(port),
            settings={name: SettingState(raw, context, shown) for name, raw, context, shown in rows.get("setting", [])},
            overridden=frozenset(row[0] for row in rows.get("overridden", [])),
            roles={
                role: RoleState(powerful == "t", login == "t", int(limit), verifier, member == "t")
                for role, powerful, login, limit, verifier, member in rows.get("role", [])
            },
            owner=owner,
            open_database=open_database == "t",
            schema_owner=schema_owner,
            open_schema=open_schema == "t",
            extensions=tuple(row[0] for row in rows.get("extension", [])),
            connects=frozenset(row[0] for row in rows.get("connect", [])),
            defaults=frozenset((role, kind, right) for role, kind, right in rows.get("right", [])),
            lacks=frozenset((role, right) for role, right in rows.get("lacks", [])),
            has=frozenset((role, right) for role, right in rows.get("has", [])),
        )
