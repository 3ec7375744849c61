"""Settings of the host's backups (`backup_…`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from settings.errors import Fault, broken
from settings.fields import Calendar, EnvName
from settings.secret import Secret
from settings.section import Section, rule

_URL = r"(?:s3|b2|azure|gs|swift|rclone|rest|sftp):.+"
PASSWORD_LENGTH = 16


def _repository(value: str) -> str:
    if re.search(r"://[^/@\s]*:[^/@\s]*@", value):
        raise broken("must not hold a password", "write it in backup_offsite_env", show=False)
    if not re.fullmatch(rf"/[^\s]*|{_URL}", value) or re.search(r"\s", value):
        raise broken(
            "must be an absolute path or a restic repository such as 's3:https://s3.example.org/bucket'"
        )
    return value


def _optional_repository(value: str) -> str:
    return _repository(value) if value else value


def _password(value: Secret) -> Secret:
    if value.resolved and len(value.unmask()) < PASSWORD_LENGTH:
        raise broken(
            f"must have at least {PASSWORD_LENGTH} characters, has {len(value.unmask())}", show=False
        )
    return value


class Backup(Section):
    """One restic repository per host; the systems of the host declare what goes in."""

    prefix: ClassVar[str] = "backup_"

    enabled: bool = Field(True, description="back up what the host's systems declare")
    repository: Annotated[str, AfterValidator(_repository)] = Field(
        "/var/backups/hostwright", description="restic repository: a directory on the host or a URL"
    )
    password: Annotated[Secret, AfterValidator(_password)] = Field(
        default_factory=Secret.unset,
        description="encrypts the repository; lost password, lost backups; required with something to back up",
        examples=["env:BACKUP_PASSWORD"],
    )
    offsite_repository: Annotated[str, AfterValidator(_optional_repository)] = Field(
        "", description="second repository to which snapshots are copied"
    )
    offsite_env: dict[EnvName, Secret] = Field(
        {},
        description="credentials of the off-site repository",
        examples=[{"AWS_ACCESS_KEY_ID": "env:BACKUP_S3_ID"}],
    )
    keep_daily: Annotated[int, Field(ge=1, le=3650)] = Field(7, description="daily snapshots kept")
    keep_weekly: Annotated[int, Field(ge=0, le=520)] = Field(4, description="weekly snapshots kept")
    keep_monthly: Annotated[int, Field(ge=0, le=240)] = Field(6, description="monthly snapshots kept")
    at: Calendar = Field("02:00", description="when to back up")
    drill_at: Calendar = Field("Sun 04:00", description="when to restore into a scratch place and check")
    min_size_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.5, description="a copy smaller than this share of the last one fails"
    )

    @rule
    def _offsite_is_elsewhere(self) -> Iterator[Fault]:
        if self.offsite_repository and self.offsite_repository == self.repository:
            yield Fault("offsite_repository", "must differ from backup_repository", self.offsite_repository)
        if self.offsite_repository.startswith("/"):
            yield Fault(
                "offsite_repository", "must be a URL: a path is on the same host", self.offsite_repository
            )

    @rule
    def _offsite_has_credentials(self) -> Iterator[Fault]:
        if re.match(r"(?:s3|b2|azure|gs|swift):", self.offsite_repository) and not self.offsite_env:
            yield Fault(
                "offsite_env",
                "is required with backup_offsite_repository",
                hint="write backup_offsite_env = {'AWS_ACCESS_KEY_ID': 'env:…', …}",
            )
        if self.offsite_env and not self.offsite_repository:
            yield Fault("offsite_repository", "is required with backup_offsite_env")

    @rule
    def _drill_follows(self) -> Iterator[Fault]:
        if self.drill_at == self.at:
            yield Fault("drill_at", "must not be the time of backup_at", self.drill_at)
