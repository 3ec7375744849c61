"""Settings of the certificates of a host's web systems (`certificate_…`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from settings.errors import Fault, broken
from settings.fields import Email, matching
from settings.secret import Secret
from settings.section import Section, rule

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
LETS_ENCRYPT_STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"


def _directory(value: str) -> str:
    if "acme-v01." in value:
        raise broken("must be an ACME v2 directory", f"write {LETS_ENCRYPT!r}")
    if not value.startswith("https://") or any(letter.isspace() for letter in value):
        raise broken("must be an https:// URL of an ACME directory")
    return value


class Certificate(Section):
    """One certificate account per host; every web system of the host gets its names from it."""

    prefix: ClassVar[str] = "certificate_"

    mode: Literal["acme", "self-signed"] = Field(
        "acme", description="acme starts self-signed, then asks the CA"
    )
    email: Email | None = Field(
        None, description="the CA's contact; required for acme", examples=["ops@example.org"]
    )
    directory: Annotated[str, AfterValidator(_directory)] = Field(
        LETS_ENCRYPT, description="URL of the ACME directory"
    )
    staging: bool = Field(False, description="use Let's Encrypt's staging CA: no rate limits, not trusted")
    challenge: Literal["http-01", "dns-01"] = Field("http-01", description="how the CA checks the names")
    dns_plugin: Annotated[
        str, matching(r"(?:[a-z0-9]+(?:-[a-z0-9]+)*)?", "must be the name of a certbot DNS plugin")
    ] = Field("", description="certbot plugin for dns-01, such as 'cloudflare' or 'route53'")
    dns_credentials: Secret | None = Field(None, description="text of the plugin's credentials file")
    ca_bundle: Annotated[str, matching(r"(?:/[^\s]+)?", "must be an absolute path")] = Field(
        "", description="path on the host of the CA file that signs the ACME server itself; for a private CA"
    )

    @rule
    def _staging_is_lets_encrypts(self) -> Iterator[Fault]:
        if self.staging and self.directory not in {LETS_ENCRYPT, LETS_ENCRYPT_STAGING}:
            rule_text = "must be False when certificate_directory is not Let's Encrypt's"
            yield Fault("staging", rule_text, self.staging)

    @rule
    def _dns_has_plugin(self) -> Iterator[Fault]:
        if self.challenge == "dns-01" and not self.dns_plugin:
            yield Fault(
                "dns_plugin", "is required for dns-01", hint="write certificate_dns_plugin = 'cloudflare'"
            )
        if self.challenge == "http-01" and self.dns_plugin:
            yield Fault(
                "dns_plugin",
                "must be empty for http-01",
                self.dns_plugin,
                "write certificate_challenge = 'dns-01'",
            )

    @property
    def acme_directory(self) -> str:
        """The directory that is really asked: `staging` replaces Let's Encrypt's own."""
        return LETS_ENCRYPT_STAGING if self.staging else self.directory
