"""
An archive of what is finished: its place, its backup, and what goes from it when.

One declaration for every backend: `archive("liap", backend, policy, backups=current().backup, …)`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyinfra.api import DeployError, deploy

from operations import archive as archives
from operations import backup, fileset, s3
from operations.fileset import Directory
from settings import Backup, Secret
from settings.archive import Backend, Filesystem, Postgres, Retention
from settings.s3 import Bucket


@deploy("Archive")
def archive(
    archive: str,
    backend: Backend,
    policy: Retention,
    backups: Backup,
    password: Secret | None = None,
    owner: str = "root",
    minimum: Mapping[str, int] | None = None,
    bucket: Bucket | None = None,
) -> None:
    """
    Make an archive on this host, back it up, and have what is older than the policy's limit removed.

    + archive: its name, and that of its backup source
    + backend: `settings.archive.Filesystem`, `Postgres` or `S3`
    + policy: `settings.archive.Retention`
    + backups: the host's `settings.Backup`
    + password: of the role that backs the database up; for `Postgres`
    + owner: account that writes the files; for `Filesystem`
    + minimum: what a good copy has at least, as `backup.source` has it; of files nothing, as before the first game
    + bucket: further properties of the bucket; its lifecycle is the policy's; for `S3`

    Raises DeployError for a database without `password`, and for a backend that breaks a rule.
    """
    faults = [*backend.faults(), *policy.faults()]
    if isinstance(backend, Postgres) and not (password and password.resolved):
        faults.append("password is needed: of the role that backs the database up")
    if faults:
        raise DeployError(f"archive {archive}: " + "; ".join(faults))
    if isinstance(backend, Postgres):
        archives.schema(backend, name="Make the archive's schema")
        _back_up_database(archive, backend, backups, password or Secret.unset(), minimum)
    elif isinstance(backend, Filesystem):
        directory = Directory(backend.path, mode="0750", owner=owner, group=owner)
        fileset.files([directory], name="Make the archive's directory")
        # before the first game there is nothing, which is no loss; once there was something it is one
        least = {"files": 0} if minimum is None else minimum
        backup.source(
            archive, policy=backups, kind="directory", path=backend.path, owner=owner, group=owner, mode="0750", minimum=least,
            name="Back up the archive's files",
        )  # fmt: skip
    else:
        wanted = bucket or Bucket()
        values = {**vars(wanted), "lifecycle": backend.lifecycle(policy)}
        s3.bucket(backend.bucket, backend.server, Bucket(**values), name="Make the archive's bucket")
        server = backup.Bucket(backend.bucket, backend.url, backend.access_key, backend.secret_key, backend.server.region)
        backup.source(archive, policy=backups, kind="bucket", server=server, minimum=minimum, name="Back up the archive's objects")
    archives.retention(archive, backend=backend, policy=policy, source=archive, backups=backups, name="Keep the archive as long as its policy")


def _back_up_database(archive: str, backend: Postgres, backups: Backup, password: Secret, minimum: Mapping[str, int] | None) -> None:
    # Debian's server asks everybody but its owner for a password, and would not at the socket of a container
    where = {"container": backend.container} if backend.container else {"host": "127.0.0.1"}
    server = backup.Postgres(backend.database, password, port=backend.port, admin=backend.admin, owner=backend.owner, **where)
    backup.source(archive, policy=backups, kind="postgres", server=server, minimum=minimum, name="Back up the archive's database")
