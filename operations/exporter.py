"""
Exporters: small programs that show Prometheus how something is.

Debian's packages start each of them on every address, as one user for all, with its password in a file that anybody may
read. Here each is a unit of its own in a sandbox, listens on one address, and its password stands in a file of root's.
"""

import os
import re
from collections.abc import Generator, Mapping, Sequence

from pyinfra import host
from pyinfra import state as run_state
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.exporter import Exporters
from facts.pgcluster import PgCluster, literals
from operations import dpkg, fileset, pgcluster, script, template, unit
from operations.fileset import Absent, Directory, Entry, File, Symlink
from settings.env import EnvError, render
from settings.secret import Secret

DIRECTORY = "/etc/hostwright/exporters"

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PACKAGE = re.compile(r"prometheus-[a-z0-9-]+-exporter")
_LISTEN = re.compile(r"(?:[0-9.]+|\[[0-9a-f:]+\]):[0-9]{1,5}")
# what systemd takes as it is in ExecStart=
_WORD = re.compile(r"[A-Za-z0-9_./:=,@\[\]+-]+")
_ROLE = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def unit_name(exporter: str) -> str:
    """Return the name of an exporter's unit."""
    return f"hostwright-exporter-{exporter}.service"


def exporter_faults(exporter: str, package: str, listen: str, arguments: Sequence[str], environment: Mapping[str, str | Secret]) -> list[str]:
    """Return every rule that is broken, one line each."""
    faults = []
    if not _NAME.fullmatch(exporter):
        faults.append(f"exporter must be lower case letters, digits and '-', got {exporter!r}")
    if not _PACKAGE.fullmatch(package):
        faults.append(f"package must be like 'prometheus-redis-exporter', got {package!r}")
    if not _LISTEN.fullmatch(listen):
        faults.append(f"listen must be an address and a port such as '10.0.0.11:9121', got {listen!r}")
    elif listen.startswith(("0.0.0.0:", "[::]:")):
        faults.append(f"listen must be one address, not all of them, got {listen!r}")
    faults += [f"not an argument: {word!r}" for word in arguments if not _WORD.fullmatch(word)]
    try:
        render(environment, consumer="systemd")
    except (EnvError, ValueError) as error:
        faults.append(f"environment: {error}")
    return faults


@operation()
def exporter(
    exporter: str,
    package: str = "",
    listen: str = "",
    arguments: Sequence[str] = (),
    environment: Mapping[str, str | Secret] | None = None,
    configuration: str = "",
    expects: str = "",
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Run one exporter of the distribution: ``hostwright-exporter-EXPORTER.service``.

    + exporter: its name
    + package: Debian's package, which is also what its program is called
    + listen: the one address and port on which it listens, e.g. ``10.0.0.11:9121``
    + arguments: further ones of the program
    + environment: variables of the program; with a secret among them or not, their file is root's alone
    + configuration: text of the program's ``--config.file``, which it must itself find right before anything changes
    + expects: a line that its page must have for it to be well, e.g. ``redis_up 1``; empty: the page must be there
    + present: ``False`` stops it and removes what belongs to it; the package stays

    The package's own unit is kept from starting. A change that the exporter does not come up with, or with which it does
    not reach what it is there to watch, is taken back.

    Raises ``OperationValueError`` for arguments that break a rule, all in one message.

    **Example:**

    .. code:: python

        exporter.exporter(
            "redis-broker", package="prometheus-redis-exporter", listen="10.0.0.11:9121",
            environment={"REDIS_ADDR": "redis://127.0.0.1:6379", "REDIS_USER": "monitoring", "REDIS_PASSWORD": password},
            expects="redis_up 1", name="Show how the broker is",
        )
    """
    own = unit_name(exporter)
    variables, settings = f"{DIRECTORY}/{exporter}.env", f"{DIRECTORY}/{exporter}.yml"
    unit_file = f"/etc/systemd/system/{own}"
    if not present:
        if not _NAME.fullmatch(exporter):
            raise OperationValueError(f"exporter.exporter: no exporter can be called {exporter!r}")
        yield from unit.unit._inner(unit=own, running=False, enabled=False)
        yield from fileset.files._inner(entries=[Absent(unit_file), Absent(variables), Absent(settings)])
        return
    environment = dict(environment or {})
    faults = exporter_faults(exporter, package, listen, arguments, environment)
    if faults:
        raise OperationValueError("exporter.exporter: " + "; ".join(faults))

    words = [f"--web.listen-address={listen}", *([f"--config.file={settings}"] if configuration else []), *arguments]
    text = template.render(
        "exporter/hostwright-exporter.service.j2", exporter=exporter, package=package, arguments=words,
        environment=variables if environment else "",
    )  # fmt: skip
    entries: list[Entry] = [
        Directory("/etc/hostwright", mode="0755"),
        Directory(DIRECTORY, mode="0755"),
        # what `systemctl mask` does; before the package is there, so that it never starts
        Symlink(f"/etc/systemd/system/{package}.service", "/dev/null"),
        File(variables, Secret(render(environment, consumer="systemd")), mode="0600") if environment else Absent(variables),
        File(settings, configuration) if configuration else Absent(settings),
        File(unit_file, text),
    ]
    program = f"/usr/bin/{package}"
    probe = _probe(listen, expects)
    yield from fileset.files._inner(
        entries=entries,
        # nothing to ask on the first run: the program is installed after its files
        validate=f"! test -x {program} || {program} --config.check --config.file={settings}" if configuration else None,
        within=DIRECTORY if configuration else None,
        unit=own,
        probe=probe,
        probe_seconds=30,
    )
    yield from dpkg.packages._inner(packages=[package, "curl"])
    inputs = [unit_file, variables, settings]
    yield from unit.unit._inner(unit=own, inputs=inputs, probe=probe, probe_seconds=30, settle_seconds=1)


def _probe(listen: str, expects: str) -> str:
    ask = f"curl -gfsS -m 10 http://{listen}/metrics"
    # the whole page before grep: one that stops reading early makes curl fail
    return f"page=$({ask}) && printf '%s\\n' \"$page\" | grep -qxF '{expects}'" if expects else f"{ask} >/dev/null"


@operation()
def only(exporters: Sequence[str]) -> Generator[StringCommand, None, None]:
    """
    Stop and remove exporters that a host should not run any more.

    + exporters: names of those that stay

    **Example:**

    .. code:: python

        exporter.only(["nginx"], name="Retire exporters")
    """
    surplus = [one for one in host.get_fact(Exporters) if one not in exporters]
    if not surplus:
        host.noop("no exporter is too many")
        return
    for one in surplus:
        yield from exporter._inner(exporter=one, present=False)


def role_statements(role: str, password: Secret, found: object) -> list[str]:
    """Return the SQL that makes a role what it is to be; empty when it is. + found: its ``RoleState``, or None"""
    state = found
    quoted = f'"{role}"'
    options = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 5"
    sql = []
    if state is None:
        sql.append(f"CREATE ROLE {quoted} {options}")
    elif state.powerful or not state.login or state.connections != 5:  # type: ignore[attr-defined]
        sql.append(f"ALTER ROLE {quoted} {options}")
    if state is None or not state.member:  # type: ignore[attr-defined]
        sql.append(f"GRANT pg_monitor TO {quoted}")
    if state is None or not pgcluster.is_password(state.verifier, password):  # type: ignore[attr-defined]
        sql.append(f"ALTER ROLE {quoted} PASSWORD '{pgcluster.verifier(password.unmask(), os.urandom(16))}'")
    if state is None:
        # whatever somebody makes of it: it looks, and waits for nobody
        sql.append(f"ALTER ROLE {quoted} SET default_transaction_read_only = on; ALTER ROLE {quoted} SET statement_timeout = '10s'")
    return sql


@operation()
def postgres_role(role: str, password: Secret, cluster: str = "main") -> Generator[StringCommand, None, None]:
    """
    Have the role with which the exporter of PostgreSQL comes in: it sees statistics (``pg_monitor``) and no table.

    + role: its name; + password: printable ASCII, of which the server gets a SCRAM verifier
    + cluster: of the distribution's PostgreSQL

    Raises ``OperationError`` when there is no such cluster.

    **Example:**

    .. code:: python

        exporter.postgres_role("hostwright_monitor", password, name="Let the exporter of PostgreSQL in")
    """
    if not _ROLE.fullmatch(role) or role.startswith("pg_") or role == "postgres":
        raise OperationValueError(f"exporter.postgres_role: role must be small letters, digits and _, and not the server's own, got {role!r}")
    if not password.resolved or not re.fullmatch(r"[ -~]{8,}", password.unmask()):
        raise OperationValueError("exporter.postgres_role: the password must have 8 printable ASCII characters or more")
    found = host.get_fact(PgCluster, cluster=cluster, settings=["port"], database="postgres", roles=[role])
    # A plan is made before anything runs: an earlier operation may well bring the server.
    if not found.settings and run_state.is_executing:
        raise OperationError(f"exporter.postgres_role: there is no cluster {cluster} that answers: pgcluster.cluster makes one")
    due = role_statements(role, password, found.roles.get(role))
    if not due:
        host.noop(f"role {literals([role])} is as wanted")
        return
    yield script.run("pgcluster/sql.sh", port=str(found.port), sql=Secret(";\n".join(due) + ";\n"))
