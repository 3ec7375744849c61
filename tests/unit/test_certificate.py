"""What makes a certificate due, and what the fact reads."""

from dataclasses import replace

import pytest

from facts.certificate import Certificate, CertificateState, Pair
from operations.certificate import acme_faults, bootstrap_source, is_damaged, issue_reason
from settings.secret import Secret

DAY = 86400.0
CA = "https://ca.example.org/directory"
PAIR = Pair(
    names=frozenset({"shop.example.org"}),
    issuer="CN = A CA",
    serial="04C9",
    not_before=0.0,
    not_after=90 * DAY,
    key_matches=True,
)
ISSUED = CertificateState(
    now=10 * DAY,
    link="/etc/letsencrypt/live/shop",
    pair=PAIR,
    live=PAIR,
    renewal=(("server", CA), ("authenticator", "webroot")),
    remains=True,
    served_serial="04C9",
    packages=frozenset({"certbot"}),
    scheduled=True,
)
SELF_SIGNED = CertificateState(
    now=10 * DAY,
    link="/var/lib/hostwright/tls/self-signed/shop/Xy12",
    pair=replace(PAIR, not_after=3650 * DAY),
)
NAMES = ["shop.example.org"]


def reason(
    state: CertificateState, domains: list[str] = NAMES, directory: str = CA, by: str = "webroot"
) -> str:
    return issue_reason(state, domains, directory, by)


def test_a_certificate_as_wanted_is_not_asked_for_again() -> None:
    assert reason(ISSUED) == ""


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (SELF_SIGNED, "there is none yet"),
        (replace(ISSUED, live=replace(PAIR, key_matches=False)), "its private key is missing"),
        (replace(ISSUED, renewal=()), "no longer knows how to renew"),
        (replace(ISSUED, now=61 * DAY), "runs out soon"),
        (
            replace(ISSUED, renewal=(("server", "https://other/"), ("authenticator", "webroot"))),
            "from https://other/",
        ),
        (
            replace(ISSUED, renewal=(("server", CA), ("authenticator", "dns-route53"))),
            "renewed by dns-route53",
        ),
        (replace(ISSUED, live=replace(PAIR, names=PAIR.names | {"www.shop.example.org"})), "it is for shop"),
    ],
)
def test_each_reason_to_ask_for_a_certificate(state: CertificateState, why: str) -> None:
    assert why in reason(state)


def test_the_order_of_names_is_no_reason() -> None:
    both = replace(ISSUED, live=replace(PAIR, names=frozenset({"a.example.org", "b.example.org"})))
    assert reason(both, ["b.example.org", "a.example.org"]) == ""


@pytest.mark.parametrize(
    ("life", "left", "soon"),
    [(90, 31, False), (90, 29, True), (6, 3, False), (6, 1, True), (3650, 31, False)],
)
def test_soon_is_30_days_or_a_third_of_a_short_life(life: int, left: int, soon: bool) -> None:
    pair = replace(PAIR, not_after=life * DAY)
    assert pair.expires_soon((life - left) * DAY) is soon


@pytest.mark.parametrize(
    ("state", "source"),
    [
        (ISSUED, None),
        (replace(ISSUED, now=89 * DAY), None),
        (SELF_SIGNED, None),
        (CertificateState(), ""),
        (replace(SELF_SIGNED, now=3640 * DAY), ""),
        (replace(SELF_SIGNED, pair=replace(PAIR, names=frozenset({"old.example.org"}))), ""),
        (replace(SELF_SIGNED, pair=replace(PAIR, key_matches=False)), ""),
        (replace(ISSUED, link="", pair=None), "/etc/letsencrypt/live/shop"),
        (replace(ISSUED, pair=replace(PAIR, key_matches=False), live=replace(PAIR, key_matches=False)), ""),
        # a directory that somebody put there, with a pair of their own
        (replace(ISSUED, link=""), None),
    ],
)
def test_what_the_stable_path_is_pointed_at(state: CertificateState, source: str | None) -> None:
    assert bootstrap_source(state, "shop", NAMES) == source


def test_what_certbot_cannot_read_is_damaged_and_nothing_is_not() -> None:
    assert not is_damaged(ISSUED)
    assert not is_damaged(SELF_SIGNED)
    assert is_damaged(replace(ISSUED, renewal=()))
    assert is_damaged(replace(ISSUED, live=None))
    assert is_damaged(CertificateState(remains=True))


def faults(**values: object) -> list[str]:
    wanted: dict[str, object] = {
        "cert_name": "shop", "domains": NAMES, "directory": CA, "challenge": "http-01", "ca_bundle": "",
        "dns_plugin": "", "dns_credentials": None,
    }  # fmt: skip
    return acme_faults(**{**wanted, **values})  # type: ignore[arg-type]


def test_a_good_request_has_no_faults() -> None:
    assert faults() == []
    assert faults(challenge="dns-01", dns_plugin="route53", domains=["*.example.org"]) == []


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"cert_name": "../shop"}, "cert_name must be lower case letters"),
        ({"cert_name": "-d"}, "cert_name must be lower case letters"),
        ({"domains": []}, "domains is empty"),
        ({"domains": ["Shop.example.org"]}, "not a host name in lower case: 'Shop.example.org'"),
        ({"domains": ["a b"]}, "not a host name in lower case: 'a b'"),
        ({"domains": NAMES * 2}, "a domain stands twice"),
        ({"domains": ["*.example.org"]}, "a wildcard needs challenge='dns-01'"),
        ({"directory": "http://ca.example.org"}, "must be the https:// URL"),
        ({"challenge": "tls-alpn-01"}, "challenge must be 'http-01' or 'dns-01', got 'tls-alpn-01'"),
        ({"challenge": "dns-01"}, "dns_plugin must be the name of a certbot plugin"),
        ({"dns_plugin": "route53"}, "go with challenge='dns-01'"),
        ({"dns_credentials": Secret("x")}, "go with challenge='dns-01'"),
        ({"ca_bundle": "ca.pem"}, "ca_bundle must be an absolute path"),
    ],
)
def test_a_request_that_breaks_a_rule_is_refused(values: dict[str, object], fault: str) -> None:
    found = faults(**values)
    assert len(found) == 1, found
    assert fault in found[0]


def test_no_fault_shows_a_secret() -> None:
    assert "hunter2" not in str(faults(dns_credentials=Secret("hunter2")))


def test_the_fact_reads_what_openssl_and_certbot_say() -> None:
    pair = [
        "serial=04C9", "issuer=C = US, O = A CA, CN = R11", "notBefore=Nov  2 02:52:06 2026 GMT",
        "notAfter=Jan 31 02:52:06 2027 GMT", "X509v3 Subject Alternative Name: ",
        "DNS:shop.example.org, DNS:www.Shop.example.org", "key=matches",
    ]  # fmt: skip
    state = Certificate().process(
        ["now 1795920000", "link /etc/letsencrypt/live/shop"]
        + [f"pair {line}" for line in pair]
        + [f"live {line}" for line in pair[:-1]]
        + ["remains", "renewal server https://ca.example.org/directory", "renewal authenticator webroot"]
        + ["served serial=04C9", "package certbot", "timer ActiveState=active", "timer UnitFileState=enabled"]
    )
    assert state.pair is not None
    assert state.pair.names == {"shop.example.org", "www.shop.example.org"}
    assert state.pair.not_after - state.pair.not_before == 90 * DAY
    assert state.pair.issuer == "C = US, O = A CA, CN = R11"
    assert state.pair.key_matches
    assert state.live is not None
    assert not state.live.key_matches
    assert dict(state.renewal)["server"] == CA
    assert (state.served_serial, state.packages, state.scheduled) == ("04C9", {"certbot"}, True)
    assert not state.is_self_signed


def test_a_bare_host_has_nothing() -> None:
    state = Certificate().process(["now 1795920000", "link "])
    assert (state.pair, state.live, state.remains, state.scheduled) == (None, None, False, False)
