"""
Archives of what is finished: their schema, and what goes when its time is over.

One policy (``settings.archive.Retention``) is rendered to each backend. Nothing goes that a verified copy of the archive's
backup does not hold: the job on the host asks the repositories first. A bucket removes by itself, so there the job only
tags what is in a verified copy, and the bucket's rule removes what is tagged.
"""

import json
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra import state as run_state
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.archive import ArchiveSchema, SchemaState
from facts.pgcluster import literals
from operations import backup as backups_of
from operations import fileset, schedule, script
from operations.fileset import Absent, Directory, Entry, File
from operations.pgcluster import is_password, verifier
from operations.schedule import Sandbox
from settings import Backup
from settings.archive import TAG, Backend, Filesystem, Postgres, Retention
from settings.env import render
from settings.secret import Secret

PROGRAM = "/usr/local/lib/hostwright/archive"
CONFIG, STATE = "/etc/hostwright/archive", "/var/lib/hostwright/archive"
RIGHTS: dict[str, tuple[str, ...]] = {"writers": ("SELECT", "INSERT", "UPDATE"), "readers": ("SELECT",)}
TABLES = ("completed_games", "game_events")

_FILES = Path(__file__).parents[1] / "files" / "archive"
_HERE = "# <<< psql >>>\n"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_TIMEOUT_SECONDS = 2 * 3600

# Only ever added to: what a database has been through, it has been through.
MIGRATIONS = (
    # 1: as the guide has it; what a script of its own made is taken over
    """
CREATE TABLE IF NOT EXISTS archive.completed_games (
    game_id VARCHAR(50) PRIMARY KEY,
    room_id VARCHAR(50) NOT NULL,
    game_data JSONB NOT NULL,
    completed_at TIMESTAMPTZ NOT NULL,
    archived_at TIMESTAMPTZ DEFAULT now(),
    game_duration_seconds INTEGER,
    winner_name VARCHAR(100),
    final_scores JSONB
);
CREATE INDEX IF NOT EXISTS idx_completed_games_room ON archive.completed_games (room_id);
CREATE INDEX IF NOT EXISTS idx_completed_games_completed ON archive.completed_games (completed_at);
CREATE INDEX IF NOT EXISTS idx_completed_games_winner ON archive.completed_games (winner_name);
CREATE TABLE IF NOT EXISTS archive.game_events (
    id BIGSERIAL PRIMARY KEY,
    game_id VARCHAR(50) REFERENCES archive.completed_games (game_id),
    event_type VARCHAR(100) NOT NULL,
    event_data JSONB NOT NULL,
    event_timestamp TIMESTAMPTZ NOT NULL,
    archived_at TIMESTAMPTZ DEFAULT now()
);
CREATE INDEX IF NOT EXISTS idx_game_events_game ON archive.game_events (game_id);
CREATE INDEX IF NOT EXISTS idx_game_events_type ON archive.game_events (event_type);
""",
    # 2: what the retention needs: events go with their game, and everything says when it came, which is what a copy is judged by
    """
UPDATE archive.completed_games SET archived_at = now() WHERE archived_at IS NULL;
UPDATE archive.game_events SET archived_at = now() WHERE archived_at IS NULL;
ALTER TABLE archive.completed_games ALTER COLUMN archived_at SET NOT NULL;
ALTER TABLE archive.game_events ALTER COLUMN archived_at SET NOT NULL;
ALTER TABLE archive.game_events DROP CONSTRAINT IF EXISTS game_events_game_id_fkey;
ALTER TABLE archive.game_events ADD CONSTRAINT game_events_game_id_fkey
    FOREIGN KEY (game_id) REFERENCES archive.completed_games (game_id) ON DELETE CASCADE;
CREATE INDEX IF NOT EXISTS idx_game_events_orphans ON archive.game_events (event_timestamp) WHERE game_id IS NULL;
""",
)


def statements(wanted: Postgres, found: SchemaState) -> list[str]:
    """Return the SQL that brings the schema from what it is to what is wanted; empty when it is. A newer one is left as it is."""
    owner = wanted.owner or wanted.admin
    sql = []
    if not found.owner:
        sql.append(f'CREATE SCHEMA IF NOT EXISTS archive AUTHORIZATION "{owner}"')
    elif found.owner != owner:
        sql.append(f'ALTER SCHEMA archive OWNER TO "{owner}"')
    due = range(found.version, len(MIGRATIONS))
    if due:
        sql.append("SELECT pg_advisory_xact_lock(hashtext('archive.schema_version')) \\g /dev/null")
        if "schema_version" not in found.tables:
            sql.append(
                "CREATE TABLE IF NOT EXISTS archive.schema_version (version INTEGER PRIMARY KEY, applied_at TIMESTAMPTZ NOT NULL DEFAULT now())"
            )
        for number in due:
            sql += [MIGRATIONS[number].strip().rstrip(";"), f"INSERT INTO archive.schema_version (version) VALUES ({number + 1})"]
    if due or found.owner != owner:
        sql += [f'ALTER TABLE archive.{table} OWNER TO "{owner}"' for table in ("schema_version", *TABLES)]
    for kind, rights in RIGHTS.items():
        for role in getattr(wanted, kind):
            sql += _grants(role, rights, found)
    return sql


def _grants(role: str, rights: tuple[str, ...], found: SchemaState) -> list[str]:
    has = {(table, right) for one, table, right in found.has if one == role}
    if has == {(table, right) for table in TABLES for right in rights}:
        return []
    tables = ", ".join(f"archive.{table}" for table in TABLES)
    sql = [
        f'GRANT USAGE ON SCHEMA archive TO "{role}"',
        f'REVOKE ALL ON {tables} FROM "{role}"',
        f'GRANT {", ".join(rights)} ON {tables} TO "{role}"',
    ]
    if "INSERT" in rights:
        # the sequence may have another name where a table was made by hand
        sql.append(
            f"SELECT format('GRANT USAGE ON SEQUENCE %s TO %I', pg_get_serial_sequence('archive.game_events', 'id'), {literals([role])}) \\gexec"
        )
    return sql


def _server(wanted: Postgres) -> dict[str, Any]:
    return {key: getattr(wanted, key) for key in ("container", "host", "port", "admin", "database")}


@operation()
def schema(backend: Postgres) -> Generator[StringCommand, None, None]:
    """
    Manage the schema ``archive`` of a database: made once, then migrated forward, each step once and in one transaction.

    + backend: where it is, who owns it, who writes and who reads

    Writers may add and change games and remove none: that is the retention's alone. A schema that a newer release has
    migrated further is left as it is. Never removes anything.

    Raises ``OperationValueError`` for a backend that breaks a rule, and ``OperationError`` when the server does not answer, or
    the database or a role is not there.

    **Example:**

    .. code:: python

        archive.schema(Postgres("liap_archive", owner="liap_archive", writers=["liap"]), name="Make the archive's schema")
    """
    faults = backend.faults() if isinstance(backend, Postgres) else [f"backend must be a Postgres, got {type(backend).__name__}"]
    if faults:
        raise OperationValueError("archive.schema: " + "; ".join(faults))
    roles = sorted({backend.owner or backend.admin, *backend.writers, *backend.readers})
    found = host.get_fact(ArchiveSchema, server=_server(backend), roles=roles)
    # A plan is made before anything runs: an earlier operation may well bring the server, the database and the roles.
    if run_state.is_executing:
        missing = [role for role in roles if role not in found.roles]
        if not found.answers:
            raise OperationError(f"archive.schema: the server at {backend.container or backend.host} does not answer {backend.admin}")
        if not found.exists or missing:
            raise OperationError(
                f"archive.schema: make it first: {', '.join([*([] if found.exists else [f'database {backend.database}']), *(f'role {one}' for one in missing)])}"
            )
    if found.version > len(MIGRATIONS):
        host.log(f"archive.schema: version {found.version} is newer than {len(MIGRATIONS)}, which is known here: left as it is", logger.info)
    due = statements(backend, found)
    if not due:
        host.noop(f"the schema archive of {backend.database} is as wanted")
        return
    lines = [one if "\\g" in one else f"{one};" for one in due]
    values = {"server": _server(backend), "roles": [], "sql": "\n".join(lines) + "\n"}
    yield script.python("archive/psql.py", "archive/schema.py", values=values)


@operation()
def role(backend: Postgres, role: str, password: Secret) -> Generator[StringCommand, None, None]:
    """
    Have a role of the archive's server come in with a password, of which the server gets a SCRAM verifier: the image of a
    container takes the password of its environment when its volume is empty, and never again.

    + backend: where the server is
    + role: its name, of one that exists
    + password: printable ASCII, 8 characters or more

    Raises ``OperationValueError`` for arguments that break a rule, and ``OperationError`` when the server does not answer, or has
    no such role.

    **Example:**

    .. code:: python

        archive.role(Postgres("liap_archive", container="liap-postgres-1", admin="archive"), role="archive", password=…, name="…")
    """
    faults = backend.faults() if isinstance(backend, Postgres) else [f"backend must be a Postgres, got {type(backend).__name__}"]
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,62}", role):
        faults.append(f"role must be lower case letters, digits, '-' and '_', got {role!r}")
    if not password.resolved or not re.fullmatch(r"[ -~]{8,}", password.unmask()):
        faults.append("password must have 8 printable ASCII characters or more")
    if faults:
        raise OperationValueError("archive.role: " + "; ".join(faults))
    found = host.get_fact(ArchiveSchema, server=_server(backend), roles=[role])
    # A plan is made before anything runs: an earlier operation may well bring the server.
    if run_state.is_executing and role not in found.roles:
        why = f"has no role {role}" if found.answers else f"does not answer {backend.admin}"
        raise OperationError(f"archive.role: the server at {backend.container or backend.host} {why}")
    if is_password(found.verifiers.get(role, ""), password):
        host.noop(f"{role} has the password already")
        return
    text = f"ALTER ROLE \"{role}\" PASSWORD '{verifier(password.unmask(), os.urandom(16))}';\n"
    values = {"server": _server(backend), "roles": [], "sql": Secret(text)}
    yield script.python("archive/psql.py", "archive/schema.py", values=values)


def program_text() -> str:
    """Return the program for the host: one file."""
    core = (_FILES / "archive.py").read_text()
    if core.count(_HERE) != 1:
        raise AssertionError(f"files/archive/archive.py has no line {_HERE!r}")
    return core.replace(_HERE, (_FILES / "psql.py").read_text())


def config_text(archive: str, backend: Backend, policy: Retention, source: str) -> str:
    """Return the JSON that the program reads; it holds no secret."""
    values: dict[str, Any] = {
        "name": archive, "kind": backend.kind, "days": policy.days, "fresh_days": policy.fresh_days, "backup": source,
        "textfiles": backups_of.TEXTFILES,
    }  # fmt: skip
    if isinstance(backend, Postgres):
        values["server"] = _server(backend)
    elif isinstance(backend, Filesystem):
        values["path"] = backend.path
    else:
        values |= {"bucket": backend.bucket, "prefix": backend.prefix, "url": backend.url, "region": backend.server.region, "tag": TAG}
    return json.dumps(values, indent=1) + "\n"


def job_sandbox(backend: Backend, backups: Backup) -> Sandbox:
    """Return what the job may do: ask the repositories as their backup does, and remove what is its own."""
    urls = backups_of.repositories(backups).values()
    away = any(not url.startswith("/") for url in urls)
    # to list copies, restic writes a lock into the repository
    writable = [STATE, "/var/lib/hostwright/backup", backups_of.TEXTFILES, *(url for url in urls if url.startswith("/"))]
    if isinstance(backend, Filesystem):
        writable.append(backend.path)
    return Sandbox(
        writable=writable,
        network=away or backend.kind == "s3",
        home=away,
        capabilities=("CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETUID", "CAP_SETGID"),
        cache="hostwright",
    )


@operation()
def retention(
    archive: str,
    backend: Backend | None = None,
    policy: Retention | None = None,
    source: str = "",
    backups: Backup | None = None,
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Have what is older than the policy's limit removed every day, as far as a verified backup holds it.

    + archive: its name: ``hostwright-archive-NAME.service`` and ``.timer``
    + backend: ``settings.archive.Filesystem``, ``Postgres`` or ``S3``. For a bucket, give it the rules of ``backend.lifecycle(policy)``
      by ``s3.bucket`` as well: the job only tags
    + policy: ``settings.archive.Retention``
    + source: the backup source that holds the archive, as ``backup.source`` has declared it on this host
    + backups: the host's ``settings.Backup``, for what the job must reach
    + present: ``False`` stops it; what is archived stays

    The job refuses, and fails, when a repository of the source holds no verified copy, or the newest is older than
    ``policy.fresh_days``. What was archived after that copy stays until the next one is verified.

    Raises ``OperationValueError`` for arguments that break a rule, all in one message.

    **Example:**

    .. code:: python

        archive.retention("liap", backend=Filesystem("/var/lib/liap/archive"), policy=Retention(days=90), source="liap-archive",
                          backups=current().backup, name="Keep the archive for 90 days")
    """
    job = f"hostwright-archive-{archive}"
    config, secrets = f"{CONFIG}/{archive}.json", f"{CONFIG}/{archive}.env"
    if not _NAME.fullmatch(archive):
        raise OperationValueError(f"archive.retention: archive must be lower case letters, digits and '-', got {archive!r}")
    if not present:
        yield from schedule.job._inner(job=job, present=False)
        yield from fileset.files._inner(entries=[Absent(config), Absent(secrets)])
        return
    faults = []
    if backend is None:
        faults.append("backend is needed: a Filesystem, Postgres or S3 of settings.archive")
    else:
        faults += backend.faults()
    policy = policy or Retention()
    faults += [f"policy.{fault}" for fault in policy.faults()]
    if not source:
        faults.append("source is needed: nothing goes from an archive that is not backed up")
    if backups is None or not backups.enabled:
        faults.append("backups must be the host's settings.backup, enabled: nothing goes from an archive that is not backed up")
    elif isinstance(backend, Filesystem) and any(
        url == backend.path or url.startswith(f"{backend.path}/") for url in backups_of.repositories(backups).values()
    ):
        faults.append(f"backend: the repository of the backups is below {backend.path}: its files would go as well")
    if faults or backend is None or backups is None:
        raise OperationValueError("archive.retention: " + "; ".join(faults))

    entries: list[Entry] = [
        Directory("/etc/hostwright", mode="0755"),
        Directory(CONFIG, mode="0700"),
        Directory("/var/lib/hostwright", mode="0700"),
        Directory(STATE, mode="0700"),
        File(PROGRAM, program_text(), mode="0755"),
        File(config, config_text(archive, backend, policy, source), mode="0600"),
    ]
    if backend.kind == "s3":
        keys = {"ACCESS_KEY": backend.access_key, "SECRET_KEY": backend.secret_key}  # type: ignore[union-attr]
        entries.append(File(secrets, Secret(render(keys, consumer="docker")), mode="0600"))
    else:
        entries.append(Absent(secrets))
    yield from fileset.files._inner(entries=entries)
    yield from schedule.job._inner(
        job=job,
        command=[PROGRAM, "purge", archive],
        when=policy.at,
        timeout_seconds=_TIMEOUT_SECONDS,
        sandbox=job_sandbox(backend, backups),
        description=f"retention of archive {archive}",
    )


@operation(is_idempotent=False)
def purge(archive: str) -> Generator[StringCommand, None, None]:
    """
    Remove now what the retention would remove, in the unit that the timer starts.

    + archive: its name
    """
    yield script.Told("sh -s", _stdin=script.text(["backup/start.sh"], {"unit": f"hostwright-archive-{archive}.service"}))


@operation(is_idempotent=False)
def look(archive: str) -> Generator[StringCommand, None, None]:
    """
    Say what would go, and remove nothing.

    + archive: its name
    """
    yield script.Told(PROGRAM, "look", archive)
