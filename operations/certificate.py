"""
Certificates: self-signed from the first boot, then from an ACME server, under one path that nginx reads throughout.

``/etc/hostwright/tls/<cert_name>`` is a link to the pair that is to be served. ``bootstrap`` sees that it holds one
that nginx can start with; ``certificate`` gets the real one and moves the link. nginx is only ever reloaded.
"""

import re
from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.certificate import LIVE, SELF_SIGNED, TLS, CertificateState
from facts.certificate import Certificate as CertificateFact
from operations import dpkg, fileset, script, template, unit
from operations.fileset import Absent, Entry, File
from operations.nginx import ACME_WEBROOT
from settings.secret import Secret

HOOK = "/etc/letsencrypt/renewal-hooks/deploy/hostwright-nginx"
_DROP_IN = "/etc/systemd/system/certbot.service.d/hostwright-ca.conf"

_CERT_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")
_DOMAIN = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def directory(cert_name: str) -> str:
    """Return the directory to give to ``nginx.site``: it holds ``fullchain.pem`` and ``privkey.pem`` at all times."""
    return f"{TLS}/{cert_name}"


def _name_faults(cert_name: str, domains: Sequence[str]) -> list[str]:
    faults = []
    if not _CERT_NAME.fullmatch(cert_name):
        faults.append(f"cert_name must be lower case letters, digits, '.' and '-', got {cert_name!r}")
    if not domains:
        faults.append("domains is empty")
    faults += [
        f"not a host name in lower case: {domain!r}" for domain in domains if not _DOMAIN.fullmatch(domain)
    ]
    if len(set(domains)) != len(domains):
        faults.append(f"a domain stands twice in {', '.join(domains)}")
    return faults


def acme_faults(
    cert_name: str,
    domains: Sequence[str],
    directory: str,
    challenge: str,
    ca_bundle: str,
    dns_plugin: str,
    dns_credentials: Secret | None,
) -> list[str]:
    """Return every rule that a request for a certificate breaks, one line each."""
    faults = _name_faults(cert_name, domains)
    if not re.fullmatch(r"https://[^\s\"'\\]+", directory):
        faults.append(f"directory must be the https:// URL of an ACME directory, got {directory!r}")
    if challenge not in ("http-01", "dns-01"):
        faults.append(f"challenge must be 'http-01' or 'dns-01', got {challenge!r}")
    if challenge == "dns-01" and not re.fullmatch(r"[a-z0-9]+", dns_plugin):
        faults.append(
            f"dns_plugin must be the name of a certbot plugin, like 'cloudflare', got {dns_plugin!r}"
        )
    if challenge == "http-01":
        if dns_plugin or dns_credentials:
            faults.append("dns_plugin and dns_credentials go with challenge='dns-01'")
        wild = [domain for domain in domains if domain.startswith("*.")]
        if wild:
            faults.append(f"a wildcard needs challenge='dns-01': {', '.join(wild)}")
    if ca_bundle and not re.fullmatch(r"/[A-Za-z0-9._/-]+", ca_bundle):
        faults.append(f"ca_bundle must be an absolute path on the host, got {ca_bundle!r}")
    return faults


def bootstrap_source(state: CertificateState, cert_name: str, domains: Sequence[str]) -> str | None:
    """
    Return what the stable path must be pointed at: a directory, ``""`` for a new self-signed pair, ``None`` for nothing.

    A pair that nginx can load stays, whoever made it; only a self-signed one must also have the names and be valid.
    """
    pair = state.pair
    if pair and pair.key_matches:
        is_fit = not state.is_self_signed or (
            pair.names == frozenset(domains) and not pair.expires_soon(state.now)
        )
        if is_fit:
            return None
    if state.live and state.live.key_matches and not state.is_self_signed:
        return f"{LIVE}/{cert_name}"
    return ""


def issue_reason(state: CertificateState, domains: Sequence[str], directory: str, authenticator: str) -> str:
    """Return why a certificate must be asked for, or ``""`` when the one that certbot has is as wanted."""
    live, renewal = state.live, dict(state.renewal)
    if live is None:
        return "there is none yet"
    if not live.key_matches:
        return "its private key is missing or another's"
    if renewal.get("server") is None:
        return "certbot no longer knows how to renew it"
    if live.names != frozenset(domains):
        return f"it is for {', '.join(sorted(live.names))}"
    if renewal["server"] != directory:
        return f"it is from {renewal['server']}"
    if renewal.get("authenticator") != authenticator:
        return f"it is renewed by {renewal.get('authenticator')}"
    if live.expires_soon(state.now):
        return "it runs out soon, and was not renewed"
    return ""


def is_damaged(state: CertificateState) -> bool:
    """Return whether certbot has something under the name that it could not read, and would number a new one after."""
    is_whole = state.live is not None and state.live.key_matches and "server" in dict(state.renewal)
    return state.remains and not is_whole


@operation()
def bootstrap(cert_name: str, domains: Sequence[str]) -> Generator[StringCommand, None, None]:
    """
    See that ``/etc/hostwright/tls/<cert_name>`` holds a pair that nginx can start with, self-signed if there is no other.

    + cert_name: name of the certificate
    + domains: its host names, lower case

    Call it before ``nginx.server`` and ``nginx.site``: nginx does not start while a site's certificate is missing.
    A certificate of an ACME server is never replaced while it and its key are there.

    Raises ``OperationValueError`` for bad names.

    **Example:**

    .. code:: python

        certificate.bootstrap("shop", domains=["shop.example.org"], name="Make a certificate to start with")
    """
    faults = _name_faults(cert_name, domains)
    if faults:
        raise OperationValueError(f"certificate.bootstrap {cert_name}: " + "; ".join(faults))
    state = host.get_fact(CertificateFact, cert_name=cert_name, server_name=_asked(domains))
    source = bootstrap_source(state, cert_name, domains)
    if source is None:
        host.noop(f"{directory(cert_name)} holds a pair, serial {state.pair.serial if state.pair else ''}")
        return
    yield script.run(
        "certificate/link.sh",
        "certificate/bootstrap.sh",
        link=f"{TLS}/{cert_name}",
        self_signed=f"{SELF_SIGNED}/{cert_name}",
        existing=source,
        domains=" ".join(domains),
    )


def _asked(domains: Sequence[str]) -> str:
    return domains[0].replace("*", "probe")


def _scheduler(ca_bundle: str, credentials: Entry | None) -> list[Entry]:
    """The deploy hook, and certbot.timer as the only scheduler: its package brings a cron job as well."""
    hook = (script.FILES / "certificate/hostwright-nginx.sh").read_text()
    drop_in = template.render("certificate/certbot.service.conf.j2", ca_bundle=ca_bundle) if ca_bundle else ""
    entries: list[Entry] = [
        File(HOOK, hook, mode="0755"),
        Absent("/etc/cron.d/certbot"),
        File(_DROP_IN, drop_in) if drop_in else Absent(_DROP_IN),
    ]
    return [*entries, credentials] if credentials else entries


@operation()
def certificate(
    cert_name: str,
    domains: Sequence[str],
    email: str = "",
    directory: str = "https://acme-v02.api.letsencrypt.org/directory",
    challenge: str = "http-01",
    ca_bundle: str = "",
    dns_plugin: str = "",
    dns_credentials: Secret | None = None,
    dns_propagation_seconds: int | None = None,
    limit_seconds: int = 300,
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Get a certificate from an ACME server, serve it, and have it renewed by certbot.timer and nothing else.

    It is asked for again only when the names, the server or the challenge are others, its key is gone, or it runs out
    within 30 days (a third of its life if that is shorter). nginx must already answer for the names: call this after
    ``nginx.site``, best as the last operation of a deploy. When it fails, https goes on with what it had: the
    self-signed pair of ``bootstrap`` on a fresh host.

    + cert_name: name given to ``bootstrap``
    + domains: all host names, lower case; a wildcard needs ``dns-01``
    + email: contact that the CA writes to; empty registers without
    + directory: URL of the ACME directory
    + challenge: ``http-01`` (webroot below every site's port 80) or ``dns-01``
    + ca_bundle: path on the host of the CA that signed the ACME server's own certificate, for a private one
    + dns_plugin: ``cloudflare``, ``route53``, ``rfc2136``…: Debian's python3-certbot-dns-<plugin>
    + dns_credentials: content of the plugin's credentials file, written 0600
    + dns_propagation_seconds: how long the plugin waits for the record to be seen (s); ``None`` leaves it its default
    + limit_seconds: how long certbot may take (s)
    + present: ``False`` makes certbot forget it, and puts a self-signed pair in its place

    Raises ``OperationValueError`` for values that break a rule. Fails with what the CA said: rate limit, challenge, or
    no answer.

    **Example:**

    .. code:: python

        certificate.certificate(
            "shop", domains=["shop.example.org"], email="ops@example.org", name="Get the certificate",
        )
    """
    faults = acme_faults(cert_name, domains, directory, challenge, ca_bundle, dns_plugin, dns_credentials)
    if faults:
        raise OperationValueError(f"certificate.certificate {cert_name}: " + "; ".join(faults))

    packages = ["certbot", *([f"python3-certbot-dns-{dns_plugin}"] if dns_plugin else [])]
    state = host.get_fact(
        CertificateFact, cert_name=cert_name, server_name=_asked(domains), packages=packages
    )
    paths = {"link": f"{TLS}/{cert_name}", "self_signed": f"{SELF_SIGNED}/{cert_name}"}
    if not present:
        if not state.remains:
            host.noop(f"certbot knows nothing of {cert_name}")
            return
        yield script.run(
            "certificate/link.sh",
            "certificate/remove.sh",
            cert_name=cert_name,
            domains=" ".join(domains),
            **paths,
        )
        return

    if missing := [package for package in packages if package not in state.packages]:
        yield from dpkg.packages._inner(packages=missing)
        state = host.get_fact(
            CertificateFact, cert_name=cert_name, server_name=_asked(domains), packages=packages
        )

    credentials = (
        File(f"/etc/letsencrypt/hostwright-dns-{dns_plugin}.ini", dns_credentials, mode="0600")
        if dns_credentials
        else None
    )
    yield from fileset.files._inner(entries=_scheduler(ca_bundle, credentials))
    if not state.scheduled:
        yield from unit.unit._inner(unit="certbot.timer", running=True, enabled=True, settle_seconds=0)

    authenticator = "webroot" if challenge == "http-01" else f"dns-{dns_plugin}"
    if issue_reason(state, domains, directory, authenticator):
        yield script.run(
            "certificate/link.sh",
            "certificate/issue.sh",
            cert_name=cert_name,
            domains=" ".join(domains),
            email=email,
            directory=directory,
            challenge=challenge,
            webroot=ACME_WEBROOT,
            dns_plugin=dns_plugin,
            dns_credentials=credentials.path if credentials else "",
            dns_seconds="" if dns_propagation_seconds is None else dns_propagation_seconds,
            ca_bundle=ca_bundle,
            set_aside=is_damaged(state),
            limit=limit_seconds,
            hook=HOOK,
            **paths,
        )
        return
    is_linked = state.link == f"{LIVE}/{cert_name}"
    is_served = state.live is not None and state.served_serial in ("", state.live.serial)
    if not (is_linked and is_served):
        # Issued, and then the run was killed, or a renewal's hook failed: nginx still has the one before.
        yield StringCommand(f"RENEWED_LINEAGE={LIVE}/{cert_name}", HOOK)
