"""Rules and text of nginx sites."""

import re
from dataclasses import replace

import pytest

from facts.nginx import Nginx
from operations.nginx import (
    Location,
    RateLimit,
    Site,
    Upstream,
    http2_style,
    is_upstream,
    site_faults,
    site_text,
)

SHOP = Site(
    server_names=("shop.example.org",),
    certificate_directory="/etc/hostwright/tls/shop",
    upstreams=(Upstream("shop", ("127.0.0.1:8000",)),),
    locations=(Location("/", upstream="shop"),),
)
DEBIAN_12, DEBIAN_13 = (1, 22, 1), (1, 26, 3)


def text(wanted: Site = SHOP, version: tuple[int, ...] = DEBIAN_12, ipv6: bool = True) -> str:
    return site_text("shop", wanted, version, ipv6)


def location_of(text: str, head: str) -> str:
    match = re.search(rf"^    location {re.escape(head)} \{{\n(.*?)^    \}}", text, re.S | re.M)
    assert match, f"no location {head} in:\n{text}"
    return match[1]


def with_location(**values: object) -> Site:
    return replace(SHOP, locations=(replace(SHOP.locations[0], **values),))  # type: ignore[arg-type]


def test_a_good_site_has_no_faults() -> None:
    assert site_faults("shop", SHOP) == []


@pytest.mark.parametrize(
    ("wanted", "fault"),
    [
        (replace(SHOP, server_names=()), "server_names is empty"),
        (
            replace(SHOP, server_names=("Shop.example.org",)),
            "not a host name in lower case: 'Shop.example.org'",
        ),
        (replace(SHOP, server_names=("a b",)), "not a host name"),
        (replace(SHOP, server_names=("a;return 200",)), "not a host name"),
        (replace(SHOP, server_names=("-shop.example.org",)), "not a host name"),
        (replace(SHOP, certificate_directory="tls/shop"), "certificate_directory must be an absolute path"),
        (replace(SHOP, hsts_seconds=-1), "must not be negative"),
        (replace(SHOP, certificate_directory="", hsts_seconds=60), "hsts_seconds needs a certificate"),
        (replace(SHOP, proxied_by=("10.0.0.1/8",)), "proxied_by: not a network: '10.0.0.1/8'"),
        (replace(SHOP, locations=()), "locations is empty"),
        (replace(SHOP, locations=SHOP.locations * 2), "location '/': stands twice"),
        (replace(SHOP, upstreams=SHOP.upstreams * 2), "a name stands twice"),
        (replace(SHOP, upstreams=(Upstream("shop", ("a:1",), keepalive=-1),)), "keepalive must be >= 0"),
        (replace(SHOP, upstreams=(Upstream("shop", ()),)), "upstream shop: has no servers"),
        (
            replace(SHOP, upstreams=(Upstream("shop", ("localhost",)),)),
            "not host:port or unix:/path: 'localhost'",
        ),
        (replace(SHOP, upstreams=(Upstream("shop", ("a:1; }",)),)), "not host:port or unix:/path"),
        (with_location(path="shop"), "path must begin with '/'"),
        (with_location(path="/ { } #"), "path must begin with '/'"),
        (with_location(match="regex"), "match must be one of prefix, exact, first, got 'regex'"),
        (with_location(upstream="other"), "no upstream 'other', the site has: shop"),
        (with_location(upstream=""), "needs either upstream or root"),
        (with_location(root="/srv"), "needs either upstream or root"),
        (with_location(upstream="", root="srv"), "root must be an absolute path, got 'srv'"),
        (with_location(timeout_seconds=0), "timeout_seconds must be at least 1, got 0"),
        (with_location(max_body_size=-1), "max_body_size must be 0 (no limit) or bytes, got -1"),
        (with_location(rate_limit=RateLimit(0, 1)), "rate_limit needs per_second >= 1"),
        (with_location(networks=("everywhere",)), "not a network: 'everywhere'"),
    ],
)
def test_a_site_that_breaks_a_rule_is_refused(wanted: Site, fault: str) -> None:
    faults = site_faults("shop", wanted)
    assert len(faults) == 1, faults
    assert fault in faults[0]


def test_a_site_name_is_a_plain_file_name() -> None:
    assert "site_name must be" in site_faults("../shop", SHOP)[0]


def test_all_faults_are_listed_at_once() -> None:
    assert len(site_faults("Shop", replace(SHOP, server_names=(), locations=()))) == 3


def test_http2_is_asked_for_in_the_way_of_each_version() -> None:
    assert http2_style(DEBIAN_12) == "listen"
    assert http2_style(DEBIAN_13) == http2_style((1, 25, 1)) == "directive"
    assert "listen [::]:443 ssl http2;" in text(version=DEBIAN_12)
    assert "listen [::]:443 ssl;" in text(version=DEBIAN_13)


def test_a_host_without_ipv6_listens_on_ipv4_only() -> None:
    assert "[::]" in text()
    assert "[::]" not in text(ipv6=False)


def test_port_80_answers_challenges_and_redirects_the_rest() -> None:
    plain, _, _ = text().partition("listen 443")
    assert "root /var/www/hostwright-acme;" in location_of(plain, "^~ /.well-known/acme-challenge/")
    assert "return 301 https://$host$request_uri;" in location_of(plain, "/")


def test_without_a_certificate_the_site_is_served_on_port_80() -> None:
    plain = text(replace(SHOP, certificate_directory=""))
    assert "443" not in plain
    assert "proxy_pass http://shop;" in location_of(plain, "/")


def test_the_client_cannot_claim_another_address() -> None:
    proxied = location_of(text().partition("listen 443")[2], "/")
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in proxied
    assert "proxy_add_x_forwarded_for" not in text()


def test_an_admin_location_is_for_its_networks_and_the_host_itself() -> None:
    admin = location_of(text(with_location(path="/admin", networks=("10.0.0.0/8",))), "/admin")
    assert re.findall(r"(allow \S+|deny all);", admin) == [
        "allow 127.0.0.1",
        "allow ::1",
        "allow 10.0.0.0/8",
        "deny all",
    ]
    nobody = location_of(text(with_location(path="/admin", networks=())), "/admin")
    assert re.findall(r"(allow \S+|deny all);", nobody) == ["allow 127.0.0.1", "allow ::1", "deny all"]
    assert "deny all" not in text()


def test_locations_with_an_equal_limit_share_its_zone() -> None:
    limit, other = RateLimit(20, 40), RateLimit(1, 5)
    limited = text(
        replace(
            SHOP,
            locations=(
                Location("/", upstream="shop", rate_limit=limit),
                Location("/api", upstream="shop", rate_limit=limit),
                Location("/login", upstream="shop", rate_limit=other),
            ),
        )
    )
    assert re.findall(r"limit_req_zone .* zone=(\S+):10m rate=(\S+);", limited) == [
        ("shop_1", "20r/s"),
        ("shop_2", "1r/s"),
    ]
    assert "limit_req zone=shop_1 burst=40 nodelay;" in location_of(limited, "/api")
    assert "limit_req zone=shop_2 burst=5 nodelay;" in location_of(limited, "/login")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"streaming": True}, "proxy_buffering off;"),
        ({"request_buffering": False}, "proxy_request_buffering off;"),
        ({"websocket": True}, "proxy_set_header Connection $connection_upgrade;"),
        ({"timeout_seconds": 330}, "proxy_read_timeout 330s;"),
        ({"max_body_size": 5}, "client_max_body_size 5;"),
        ({"match": "exact", "path": "/health"}, "location = /health {"),
        (
            {"upstream": "", "root": "/srv/shop", "fallback": "/index.html"},
            "try_files $uri $uri/ /index.html;",
        ),
    ],
)
def test_each_setting_of_a_location_reaches_the_file(values: dict[str, object], line: str) -> None:
    https = text(with_location(**values)).partition("listen 443")[2]
    assert line in https
    assert line not in text().partition("listen 443")[2]


def test_hsts_and_the_addresses_behind_a_load_balancer_are_settings() -> None:
    assert 'Strict-Transport-Security "max-age=600" always;' in text(replace(SHOP, hsts_seconds=600))
    assert "Strict-Transport-Security" not in text()
    assert "set_real_ip_from 10.0.0.0/8;" in text(replace(SHOP, proxied_by=("10.0.0.0/8",)))
    assert "real_ip" not in text()


def test_only_an_upstream_that_no_rollout_switches_stands_in_the_site() -> None:
    assert "upstream shop {" in text()
    assert "upstream shop {" not in text(
        replace(SHOP, upstreams=(replace(SHOP.upstreams[0], switched=True),))
    )


def test_idle_connections_are_dropped_before_the_upstream_drops_them() -> None:
    assert "keepalive 16;\n    keepalive_timeout 4s;" in text()
    # `keepalive 0` is no directive that nginx knows
    assert "keepalive" not in text(replace(SHOP, upstreams=(replace(SHOP.upstreams[0], keepalive=0),)))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("upstream shop { server 127.0.0.1:8001; keepalive 16; } ", True),
        ("upstream shop { zone shop 64k; server 127.0.0.1:8001 max_fails=0; }", True),
        ("upstream other { server 127.0.0.1:8001; }", False),
        ("upstream shop { }", False),
        ("upstream shop { server 127.0.0.1:8001;", False),
        ("", False),
    ],
)
def test_a_damaged_upstream_is_told_from_a_switched_one(found: str, expected: bool) -> None:
    assert is_upstream("shop", found) is expected


def test_the_fact_reads_what_the_host_says() -> None:
    state = Nginx().process(
        [
            "version 1.22.1",
            'fault nginx: [emerg] unknown directive "x" in /etc/nginx/sites-enabled/shop.conf:3',
            "drifted /etc/nginx/sites-enabled/shop.conf",
            "upstream shop upstream shop { server 127.0.0.1:8000; }",
            "unit ActiveState=active",
            "unit UnitFileState=masked-runtime",
            "ipv6",
        ]
    )
    assert state.installed
    assert state.version == DEBIAN_12
    assert "unknown directive" in state.fault
    assert state.drifted == ("/etc/nginx/sites-enabled/shop.conf",)
    assert is_upstream("shop", state.upstreams["shop"])
    assert (state.active, state.enabled, state.masked, state.ipv6) == (True, False, True, True)


def test_a_host_without_nginx_has_no_fault() -> None:
    state = Nginx().process(["unit LoadState=not-found", "unit ActiveState=inactive"])
    assert not state.installed
    assert state.fault == ""
