"""Types of single values that several models share: each says its rule in words when a value breaks it."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from settings.errors import broken
from settings.secret import Secret


class Model(BaseModel):
    """Frozen, strict (no '8000' for 8000), and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def matching(pattern: str, rule: str, hint: str = "") -> AfterValidator:
    """Return a validator for text that must match `pattern` as a whole."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise broken(rule, hint)
        return value

    return AfterValidator(check)


def _sequence(value: Any) -> Any:
    """Take a list where a tuple is meant; a text would silently become its letters."""
    if isinstance(value, str):
        raise broken("must be a list", f"write [{value!r}]")
    if not isinstance(value, list | tuple):
        raise broken("must be a list")
    return tuple(value)


def _distinct(value: tuple[Any, ...]) -> tuple[Any, ...]:
    doubles = sorted({str(item) for item in value if value.count(item) > 1 and isinstance(item, str | int)})
    if doubles:
        raise broken(f"must not name {', '.join(doubles)} twice")
    return value


def _one_line(value: str) -> str:
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise broken("must be one line without control characters")
    return value


_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"


def _domain(value: str) -> str:
    if "//" in value:
        raise broken("must be a domain name, not a URL", f"write {value.split('//')[1].split('/')[0]!r}")
    if value != value.lower():
        raise broken("must be in lower case", f"write {value.lower()!r}")
    if len(value) > 253 or not re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})+", value.removeprefix("*.")):
        raise broken("must be a domain name such as 'gateway.example.org'")
    if re.fullmatch(r"[0-9.]+", value):
        raise broken("must be a domain name, not an IP address")
    return value


def _host_domain(value: str) -> str:
    if value.startswith("*."):
        raise broken("must not be a wildcard")
    return _domain(value)


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        try:
            wider = str(ipaddress.ip_network(value, strict=False))
        except ValueError:
            raise broken("must be an IP network such as '10.0.0.0/8' or '2001:db8::/32'") from None
        raise broken("must be an IP network without host bits", f"write {wider!r}") from None


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY = rf"(?:{'|'.join(_DAYS)})"
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9])?"
_CALENDAR = (
    rf"(?:(?:{_DAY}(?:(?:,|\.\.){_DAY})*) )?"
    rf"(?:\*-(?:\*|0[1-9]|1[0-2])-(?:\*|0[1-9]|[12][0-9]|3[01]) )?{_CLOCK}"
)

def _no_range_past_sunday(value: str) -> str:
    for first, last in re.findall(rf"({_DAY})\.\.({_DAY})", value):
        if _DAYS.index(first) >= _DAYS.index(last):  # what systemd refuses
            raise broken("must not have a range of days that goes past Sunday", "write 'Sat,Sun,Mon 04:30'")
    return value


def narrow(rule: str = "must not be everybody", hint: str = "") -> AfterValidator:
    """Return a validator for a network that must not be the whole internet."""

    def check(value: str) -> str:
        if ipaddress.ip_network(value).prefixlen == 0:
            raise broken(rule, hint)
        return value

    return AfterValidator(check)


def _own_address(value: str) -> str:
    if value:
        try:
            found = ipaddress.ip_address(value)
        except ValueError:
            raise broken("must be an IP address of the host") from None
        if found.is_unspecified:
            raise broken("must be one address, not all of them", "write the address in the private network")
    return value


def reached_by_others(rule: str = "must be one by which other hosts reach it", hint: str = "") -> AfterValidator:
    """Return a validator for an address, or none, that must not be loopback."""

    def check(value: str) -> str:
        if value and ipaddress.ip_address(value).is_loopback:
            raise broken(rule, hint)
        return value

    return AfterValidator(check)


def _certificates(value: str) -> str:
    if "PRIVATE KEY" in value:
        raise broken("must be certificates, this holds a private key", show=False)
    if value and not re.match(r"\s*-----BEGIN CERTIFICATE-----\n", value):
        raise broken("must be the text of a certificate in PEM form", show=False)
    return value


def _redis_url(value: Secret) -> Secret:
    if value.resolved and not re.fullmatch(r"rediss?://[^\s]+", value.unmask()):
        raise broken("must be a redis:// or rediss:// URL", show=False)
    return value


T = TypeVar("T")
Many = Annotated[tuple[T, ...], AfterValidator(_distinct), BeforeValidator(_sequence)]
"""A list in the inventory, a tuple in the model; no member twice."""

Line = Annotated[str, AfterValidator(_one_line)]
"""Text that is safe in a line of a configuration file."""

PortNumber = Annotated[int, Field(ge=1, le=65535)]

Domain = Annotated[str, AfterValidator(_host_domain)]
WildcardDomain = Annotated[str, AfterValidator(_domain)]
Network = Annotated[str, AfterValidator(_network)]
OwnAddress = Annotated[str, AfterValidator(_own_address)]
"""One IP address that the host has, or empty."""

Certificates = Annotated[str, AfterValidator(_certificates)]
"""Text of certificates in PEM form, or empty; it is no secret."""

RedisUrl = Annotated[Secret, AfterValidator(_redis_url)]
Email = Annotated[str, matching(r"[^@\s]+@[^@\s.]+(?:\.[^@\s.]+)+", "must be an e-mail address")]
Calendar = Annotated[
    str,
    matching(
        _CALENDAR, "must be a time of systemd's OnCalendar such as '02:00', 'Sun 04:00' or '*-*-01 03:30'"
    ),
    AfterValidator(_no_range_past_sunday),
]
"""The subset of systemd.time(7) that is documented here; in the host's time zone."""
ClockTime = Annotated[
    str, matching(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]", "must be a time of day such as '03:30'")
]
Size = Annotated[str, matching(r"[1-9][0-9]*[KMGT]", "must be a size such as '500M' or '2G'")]
TimeSpan = Annotated[
    str,
    matching(
        r"[1-9][0-9]*(?:s|min|h|day|week|month|year)s?", "must be a time span such as '12h' or '1month'"
    ),
]
Package = Annotated[str, matching(r"[a-z0-9][a-z0-9+.-]+", "must be the name of a Debian package")]
User = Annotated[
    str, matching(r"[a-z_][a-z0-9_-]{0,31}", "must be a user name of small letters, digits, _ and -")
]
EnvName = Annotated[
    str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "must be a variable name of letters, digits and _")
]
AbsolutePath = Annotated[
    str, matching(r"/[^\s\x00-\x1f'\"\\$*?]*", "must be an absolute path without spaces")
]
