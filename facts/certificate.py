"""A certificate by its name: what nginx would read, what certbot has, what is served, and who renews it."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from pyinfra.api import FactBase

from facts.records import Record

TLS = "/etc/hostwright/tls"
SELF_SIGNED = "/var/lib/hostwright/tls/self-signed"
LIVE = "/etc/letsencrypt/live"

_COMMAND = r"""
examine() {{
    [ -e "$2/fullchain.pem" ] || return 0
    openssl x509 -in "$2/fullchain.pem" -noout -serial -issuer -startdate -enddate -ext subjectAltName 2>/dev/null |
        sed "s/^ */$1 /"
    key=$(openssl pkey -in "$2/privkey.pem" -pubout 2>/dev/null)
    [ -z "$key" ] || [ "$key" != "$(openssl x509 -in "$2/fullchain.pem" -noout -pubkey 2>/dev/null)" ] || echo "$1 key=matches"
}}
echo "now $(date +%s)"
echo "link $(readlink {link} 2>/dev/null)"
examine pair {link}
examine live {live}
for path in {live} {archive} {renewal}; do
    [ ! -e "$path" ] && [ ! -L "$path" ] || echo remains
done
sed -n 's/^\(server\|authenticator\|webroot_path\) *= */renewal \1 /p' {renewal} 2>/dev/null
timeout 5 openssl s_client -connect 127.0.0.1:443 -servername {served} </dev/null 2>/dev/null |
    openssl x509 -noout -serial 2>/dev/null | sed 's/^/served /'
dpkg-query -W -f='package ${{Status}} ${{Package}}\n' {packages} 2>/dev/null | sed -n 's/^package install ok installed/package/p'
systemctl show -p ActiveState -p UnitFileState -- certbot.timer 2>/dev/null | sed 's/^/timer /'
true
"""


@dataclass(frozen=True)
class Pair(Record):
    """One certificate and its key; times are seconds since the epoch."""

    names: frozenset[str]
    issuer: str
    serial: str
    not_before: float
    not_after: float
    key_matches: bool

    def expires_soon(self, now: float) -> bool:
        """Within 30 days, or the last third of a life shorter than 90 days: certbot renews at the same time."""
        return self.not_after - now < min(30 * 86400, (self.not_after - self.not_before) / 3)


@dataclass(frozen=True)
class CertificateState(Record):
    """
    + link: where the stable path points to, empty when it is no link
    + pair: what the stable path holds; + live: what certbot holds under the name
    + renewal: ``server``, ``authenticator`` and ``webroot_path`` of certbot's renewal configuration, empty without one
    + remains: certbot has anything at all under the name, readable or not
    + served_serial: serial that nginx on the host answers with for the name, empty when it does not
    + packages: those asked for that are installed
    + scheduled: certbot.timer is active and enabled
    """

    now: float = 0.0
    link: str = ""
    pair: Pair | None = None
    live: Pair | None = None
    renewal: tuple[tuple[str, str], ...] = ()
    remains: bool = False
    served_serial: str = ""
    packages: frozenset[str] = frozenset()
    scheduled: bool = False

    @property
    def is_self_signed(self) -> bool:
        return self.link.startswith(f"{SELF_SIGNED}/")


def _seconds(text: str) -> float:
    """Parse openssl's ``Nov 22 02:52:06 2026 GMT``."""
    return datetime.strptime(text, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=timezone.utc).timestamp()


def _pair(lines: Sequence[str]) -> Pair | None:
    values = dict(line.partition("=")[::2] for line in lines if re.match(r"[A-Za-z]+=", line))
    if not {"serial", "notBefore", "notAfter"} <= values.keys():
        return None
    return Pair(
        names=frozenset(name.lower() for line in lines for name in re.findall(r"DNS:([^,\s]+)", line)),
        issuer=values.get("issuer", "").strip(),
        serial=values["serial"],
        not_before=_seconds(values["notBefore"]),
        not_after=_seconds(values["notAfter"]),
        key_matches=values.get("key") == "matches",
    )


class Certificate(FactBase[CertificateState]):
    """
    Returns the state of one certificate.

    + cert_name: certbot's name of it
    + server_name: host name to ask nginx for
    + packages: packages to look for

    .. code:: python

        CertificateState(
            link="/etc/letsencrypt/live/shop",
            pair=Pair(names=frozenset({"shop.example.org"}), issuer="CN = R11, …", serial="04C9…",
                      not_before=1763777951.0, not_after=1771553951.0, key_matches=True),
            live=Pair(…), renewal=(("server", "https://…"), ("authenticator", "webroot")),
            remains=True, served_serial="04C9…", packages=frozenset({"certbot"}), scheduled=True,
        )
    """

    default = CertificateState

    def command(self, cert_name: str, server_name: str, packages: Sequence[str] = ()) -> str:
        return _COMMAND.format(
            link=shlex.quote(f"{TLS}/{cert_name}"),
            live=shlex.quote(f"{LIVE}/{cert_name}"),
            archive=shlex.quote(f"/etc/letsencrypt/archive/{cert_name}"),
            renewal=shlex.quote(f"/etc/letsencrypt/renewal/{cert_name}.conf"),
            served=shlex.quote(server_name),
            packages=" ".join(shlex.quote(package) for package in packages) or "certbot",
        )

    def process(self, output: list[str]) -> CertificateState:
        lines: dict[str, list[str]] = {}
        for line in output:
            tag, _, rest = line.partition(" ")
            lines.setdefault(tag, []).append(rest.strip())
        timer = lines.get("timer", [])
        return CertificateState(
            now=float(lines.get("now", ["0"])[0]),
            link=lines.get("link", [""])[0],
            pair=_pair(lines.get("pair", [])),
            live=_pair(lines.get("live", [])),
            renewal=tuple(
                (key, value) for key, _, value in (line.partition(" ") for line in lines.get("renewal", []))
            ),
            remains="remains" in lines,
            served_serial=lines.get("served", [""])[0].removeprefix("serial="),
            packages=frozenset(lines.get("package", [])),
            scheduled="ActiveState=active" in timer and "UnitFileState=enabled" in timer,
        )
