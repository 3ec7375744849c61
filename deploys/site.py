"""What a public site of any system has from its host's settings: the certificate, and its check as a client makes it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from deploys import current
from operations import certificate


def get_certificate(site: str, domains: Sequence[str], name: str = "Get certificate") -> None:
    """
    Have a certificate for a site as the settings ``certificate_*`` ask for; the one of ``certificate.bootstrap`` stays else.

    + site: as in ``certificate.certificate``; + domains: the first one is its common name; + name: of the operation
    """
    wanted = current().certificate
    certificate.certificate(
        site,
        domains=list(domains),
        email=wanted.email or "",
        directory=wanted.acme_directory,
        challenge=wanted.challenge,
        ca_bundle=wanted.ca_bundle,
        dns_plugin=wanted.dns_plugin,
        dns_credentials=wanted.dns_credentials,
        present=wanted.mode == "acme",
        name=name,
    )


def probe(domain: str, path: str) -> str:
    """Return a shell command that asks as a client does: name, TLS, nginx. Who signed the certificate is not its question."""
    url = f"https://{domain}{path}"
    return shlex.join(["curl", "-fsSk", "-o", "/dev/null", "-m", "10", "--resolve", f"{domain}:443:127.0.0.1", url])
