"""How long finished things are kept, and where: one policy for every kind of archive."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from settings.s3 import AWS, Lifecycle, Server, bucket_name_faults
from settings.secret import Secret

TAG = "hostwright-archive=backed-up"
"""What an object carries that is in a verified backup: the bucket's own rule removes no other."""
SYSTEM_PATHS = (
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var",
    "/var/lib", "/var/cache", "/var/log", "/var/tmp", "/var/backups",
)  # fmt: skip

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


@dataclass(frozen=True)
class Retention:
    """
    What goes, and when. The same for every backend.

    + days: how long a game is kept after it was finished; then it goes, if a verified backup holds it
    + at: when that is looked at (``OnCalendar``), after the backup and its drill
    + fresh_days: how old the newest verified copy may be for anything to go; drills are weekly by default
    """

    days: int = 90
    at: str = "05:30"
    fresh_days: int = 9

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = []
        if not isinstance(self.days, int) or not 1 <= self.days <= 36500:
            faults.append(f"days must be 1 to 36500, got {self.days!r}")
        if not isinstance(self.fresh_days, int) or not 1 <= self.fresh_days <= 60:
            faults.append(f"fresh_days must be 1 to 60, got {self.fresh_days!r}")
        return faults


@dataclass(frozen=True)
class Filesystem:
    """
    A directory with a file for each game.

    + path: absolute, of its own: every file below it that was last written before the limit goes
    """

    path: str
    kind = "filesystem"

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", self.path) or "/../" in f"{self.path}/":
            return [f"filesystem.path must be absolute and normalised, without blanks, got {self.path!r}"]
        if self.path in SYSTEM_PATHS or self.path.startswith(("/tmp/", "/var/tmp/", "/run/", "/dev/", "/proc/", "/sys/")):
            return [f"filesystem.path must be a directory of the archive's own that outlives a reboot, such as '/var/lib/liap/archive', got {self.path!r}"]
        return []


@dataclass(frozen=True)
class Postgres:
    """
    The schema ``archive`` of a database.

    + database: its name
    + container: the container that the server runs in; empty: on the host
    + host, port: directory of the server's socket, and its port; they count inside the container
    + admin: who may do anything to the server, and is trusted at the socket
    + owner: role that owns the schema; empty: ``admin``
    + writers: roles that put games in, and may remove none; + readers: roles that read them
    """

    database: str
    container: str = ""
    host: str = "/run/postgresql"
    port: int = 5432
    admin: str = "postgres"
    owner: str = ""
    writers: Sequence[str] = ()
    readers: Sequence[str] = ()
    kind = "postgresql"

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = []
        names = [("database", self.database), ("admin", self.admin), *((("owner", self.owner),) if self.owner else ())]
        names += [(key, name) for key in ("writers", "readers") for name in getattr(self, key)]
        faults += [
            f"postgresql.{key} must be lower case letters, digits and '_', got {name!r}" for key, name in names if not _NAME.fullmatch(name)
        ]
        twice = sorted(set(self.writers) & set(self.readers))
        faults += [f"postgresql.readers: {name!r} is among writers, who read too" for name in twice]
        if self.container and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.container):
            faults.append(f"postgresql.container must be the name of a container, got {self.container!r}")
        if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", self.host):
            faults.append(f"postgresql.host must be the directory of the server's socket, where its administrator is trusted, got {self.host!r}")
        if not 1 <= self.port <= 65535:
            faults.append(f"postgresql.port must be 1 to 65535, got {self.port!r}")
        return faults


@dataclass(frozen=True)
class S3:
    """
    A bucket, or what is below a prefix in it.

    + bucket: its name; + prefix: of the games' keys, ending in ``/``; empty: all
    + server: where it is; for what the control side does to the bucket
    + endpoint: URL by which the host reaches it; ``server``'s, or AWS's, when empty
    + access_key, secret_key: with which the host lists objects and tags them (``s3.Access(…, tag=True)`` gives the right)
    """

    bucket: str
    prefix: str = ""
    server: Server = AWS
    endpoint: str = ""
    access_key: Secret = field(default_factory=Secret.unset)
    secret_key: Secret = field(default_factory=Secret.unset)
    kind = "s3"

    @property
    def url(self) -> str:
        """The endpoint for the host, no slash at its end."""
        return (self.endpoint or self.server.endpoint_url or f"https://s3.{self.server.region}.amazonaws.com").rstrip("/")

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = [f"s3.{fault}" for fault in bucket_name_faults(self.bucket)]
        if self.prefix and not re.fullmatch(r"([A-Za-z0-9!_.'()-]+/)+", self.prefix):
            faults.append(f"s3.prefix must be like 'games/', got {self.prefix!r}")
        if not re.fullmatch(r"https?://[^\s/@]+", self.url):
            faults.append(f"s3.endpoint must be a URL without account and path, got {self.url!r}")
        faults += [f"s3.{key} is not set" for key in ("access_key", "secret_key") if not getattr(self, key).resolved]
        return faults

    def lifecycle(self, policy: Retention) -> tuple[Lifecycle, ...]:
        """Return the rules for ``settings.s3.Bucket``: what is tagged goes by itself, and so do halves of uploads."""
        return (
            Lifecycle(self.prefix, abort_multipart_days=7),
            Lifecycle(self.prefix, abort_multipart_days=0, expire_days=policy.days, tag=TAG),
        )


Backend = Filesystem | Postgres | S3
