"""Certificates on real hosts against a real ACME server (pebble), read back with openssl and certbot's own files."""

import json
import re
import threading

import pytest

from tests.lab import canary, image
from tests.lab.state import Process, slot_directory
from tests.lab.test_nginx import ANSWERS, main_pid

DEPLOY = """
from operations import certificate, nginx
from operations.nginx import Location, Upstream
names = {names!r}
certificate.bootstrap("shop", domains=names, name="Bootstrap")
nginx.server(name="Server")
nginx.site(
    "shop", server_names=names, certificate_directory=certificate.directory("shop"),
    upstreams=[Upstream("shop", ("127.0.0.1:8000",))], locations=[Location("/", upstream="shop")], name="Site",
)
certificate.certificate(
    "shop", domains=names, email="ops@shop.test", directory={directory!r}, ca_bundle={ca!r}, name="Certificate"
)
"""

# Keeps connections open as a real client does, and does what RFC 9112 9.3.1 has every client do when a kept
# connection is closed before the first byte of an answer: ask once more on a new one.
LOAD = """
import http.client, json, os, ssl, sys, threading, time
address, name, stop = sys.argv[1:]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
answered, failed = [0], []
class Connection(http.client.HTTPSConnection):
    def connect(self):
        import socket
        self.sock = context.wrap_socket(socket.create_connection((address, 443), 10), server_hostname=name)
def client(keep):
    connection, fresh = Connection(name), True
    while not os.path.exists(stop):
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                failed.append(str(answer.status))
            answered[0] += 1
            fresh = False
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError) as error:
            if fresh:
                failed.append(repr(error))
            connection.close()
            fresh = True
            continue
        except Exception as error:
            failed.append(repr(error))
        if not keep:
            connection.close()
            fresh = True
        time.sleep(0.01)
threads = [threading.Thread(target=client, args=(number % 2 == 0,)) for number in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps({"answered": answered[0], "failed": failed[:20]}))
"""


@pytest.fixture(scope="module")
def acme(lab):
    return lab.acme()


@pytest.fixture(scope="module")
def shop(lab, acme):
    """A host that shop.test and www.shop.test name, with an application behind the site-to-be."""
    host = lab.host("t-certificate", layer="packages")
    host.write("/opt/answers.py", ANSWERS)
    host.run("systemd-run -q --unit answers python3 /opt/answers.py")
    for name in ("shop.test", "www.shop.test"):
        acme.add_name(name, host)
    yield host
    lab.destroy(host)


@pytest.fixture(scope="module")
def deploy(acme):
    def text(*names: str, directory: str = acme.directory_url) -> str:
        return DEPLOY.format(names=list(names or ("shop.test",)), directory=directory, ca=acme.ca_on_host)

    return text


@pytest.fixture(scope="module")
def issued(shop, deploy, provision):
    run = provision(shop, deploy())
    assert run.ok, run
    return shop


def served(client, host, name="shop.test") -> dict[str, str]:
    """Return serial, issuer and names of the certificate that a client of the host is shown."""
    text = client.run(
        f"openssl s_client -connect {host.address}:443 -servername {name} </dev/null 2>/dev/null"
        " | openssl x509 -noout -serial -issuer -ext subjectAltName"
    ).stdout
    return {
        "serial": re.search(r"serial=(\w+)", text)[1],
        "issuer": re.search(r"issuer=(.*)", text)[1],
        "names": " ".join(sorted(re.findall(r"DNS:([^,\s]+)", text))),
    }


def on_disk(host) -> str:
    return (
        host.run("openssl x509 -noout -serial -in /etc/letsencrypt/live/shop/cert.pem")
        .stdout.strip()
        .removeprefix("serial=")
    )


def renew(host, acme) -> None:
    """Force a renewal with what the timer runs."""
    host.run(
        "sed -i 's/^# *renew_before_expiry.*/renew_before_expiry = 9000 days/' /etc/letsencrypt/renewal/shop.conf"
    )
    host.run("systemctl start certbot.service", timeout=120)
    host.run(
        "sed -i 's/^renew_before_expiry.*/# renew_before_expiry = 30 days/' /etc/letsencrypt/renewal/shop.conf"
    )


def test_acme_down_on_a_fresh_host_leaves_a_self_signed_site(shop, acme, deploy, stranger, provision):
    acme.stop()
    run = provision(shop, deploy())
    acme.start()
    assert run.rc == 1
    assert run.failed == ["Certificate"], run
    assert f"the ACME server {acme.directory_url} does not answer" in run.stderr
    assert "https serves a self-signed certificate until then; run again when this is put right" in run.stderr
    assert "self-signed" in served(stranger, shop)["issuer"]
    assert stranger.run(f"curl -sk --resolve shop.test:443:{shop.address} https://shop.test/").stdout


def test_a_rate_limit_is_said(shop, acme, deploy, provision):
    acme.refuse("rateLimited")
    run = provision(shop, deploy())
    acme.refuse(None)
    assert run.failed == ["Certificate"], run
    assert "the CA's rate limit is reached for shop" in run.stderr
    assert "refused by the lab" in run.stderr


@pytest.mark.soak
def test_a_challenge_that_reaches_another_host_is_said(shop, acme, deploy, stranger, provision):
    acme.add_name("shop.test", shop, validated_at=stranger)
    run = provision(shop, deploy())
    acme.add_name("shop.test", shop)
    assert run.failed == ["Certificate"], run
    assert "could not verify the http-01 challenge for shop" in run.stderr
    assert "Domain: shop.test" in run.stderr
    assert "Traceback" not in run.stderr


def test_first_issue_without_a_restart(shop, acme, deploy, stranger, provision):
    before = main_pid(shop)
    run = provision(shop, deploy())
    assert run.ok, run
    assert run.changed == ["Certificate"]
    assert main_pid(shop) == before
    shown = served(stranger, shop)
    assert "Pebble" in shown["issuer"]
    assert (shown["names"], shown["serial"]) == ("shop.test", on_disk(shop))
    stranger.write("/run/root.pem", acme.root_certificate())
    stranger.run("curl -sf --cacert /run/root.pem https://shop.test/")


def test_exactly_one_scheduler_renews(issued):
    assert issued.run(
        "systemctl is-active certbot.timer; systemctl is-enabled certbot.timer"
    ).stdout.split() == ["active", "enabled"]
    assert issued.run("grep -rl certbot /etc/cron* /var/spool/cron", check=False).stdout == ""


def test_second_run_does_nothing(issued, deploy, stranger, provision):
    before = main_pid(issued), served(stranger, issued)
    run = provision(issued, deploy())
    assert run.ok, run
    assert run.changed == []
    assert (main_pid(issued), served(stranger, issued)) == before
    assert provision(issued, deploy(), dry=True).changed == []


def test_renewal_under_load_fails_no_request(issued, acme, stranger):
    stranger.write("/run/load.py", LOAD)
    stranger.run("rm -f /run/enough")
    outcome = []
    load = threading.Thread(
        target=lambda: outcome.append(
            stranger.run(f"python3 /run/load.py {issued.address} shop.test /run/enough", timeout=120).stdout
        )
    )
    before, pid = on_disk(issued), main_pid(issued)
    load.start()
    renew(issued, acme)
    assert served(stranger, issued)["serial"] == on_disk(issued) != before
    stranger.run("touch /run/enough")
    load.join()
    answered, failed = re.fullmatch(r'\{"answered": (\d+), "failed": (.*)\}\n', outcome[0]).groups()
    assert failed == "[]"
    # enough of them for the reload to have fallen among them; how many there are is this machine's speed
    assert int(answered) > 20
    assert main_pid(issued) == pid


def test_an_added_and_a_removed_domain(issued, deploy, stranger, provision):
    both = deploy("shop.test", "www.shop.test")
    run = provision(issued, both)
    assert run.changed == ["Site", "Certificate"], run
    assert served(stranger, issued, "www.shop.test")["names"] == "shop.test www.shop.test"
    assert provision(issued, both).changed == []
    assert issued.run("ls /etc/letsencrypt/live").stdout.split() == ["README", "shop"]
    assert provision(issued, deploy()).changed == ["Site", "Certificate"]
    assert served(stranger, issued)["names"] == "shop.test"


@pytest.mark.parametrize(
    "broken",
    [
        "rm /etc/letsencrypt/archive/shop/privkey*.pem",
        pytest.param("rm -r /etc/letsencrypt/live/shop", marks=pytest.mark.soak),
        pytest.param("rm /etc/letsencrypt/renewal/shop.conf", marks=pytest.mark.soak),
        pytest.param("rm -r /etc/letsencrypt", marks=pytest.mark.soak),
        pytest.param(
            "openssl genrsa -out /etc/letsencrypt/live/shop/privkey.pem 2048", marks=pytest.mark.soak
        ),
        pytest.param("rm /etc/hostwright/tls/shop", marks=pytest.mark.soak),
        pytest.param(
            "ln -sfn $(echo /var/lib/hostwright/tls/self-signed/shop/*) /etc/hostwright/tls/shop; systemctl reload nginx",
            marks=pytest.mark.soak,
        ),
        "systemctl disable --now certbot.timer; echo '0 0 * * * root certbot renew' > /etc/cron.d/certbot",
        pytest.param(
            "rm /etc/letsencrypt/renewal-hooks/deploy/* /etc/systemd/system/certbot.service.d/*; systemctl daemon-reload",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_what_was_broken_by_hand_is_healed(issued, deploy, stranger, provision, broken):
    pid = main_pid(issued)
    issued.run(broken)
    run = provision(issued, deploy())
    assert run.ok, run
    assert run.changed
    shown = served(stranger, issued)
    assert "Pebble" in shown["issuer"]
    assert shown["serial"] == on_disk(issued)
    assert main_pid(issued) == pid
    assert issued.run("ls /etc/letsencrypt/live").stdout.split() == ["README", "shop"]
    test_exactly_one_scheduler_renews(issued)
    assert provision(issued, deploy()).changed == []


def test_a_renewal_that_nginx_did_not_hear_of_is_served_by_the_next_run(
    issued, acme, deploy, stranger, provision
):
    issued.run("mv /etc/letsencrypt/renewal-hooks/deploy/hostwright-nginx /run/")
    renew(issued, acme)
    issued.run("mv /run/hostwright-nginx /etc/letsencrypt/renewal-hooks/deploy/")
    assert served(stranger, issued)["serial"] != on_disk(issued)
    assert provision(issued, deploy()).changed == ["Certificate"]
    assert served(stranger, issued)["serial"] == on_disk(issued)


@pytest.mark.soak
def test_another_directory_is_asked_when_the_setting_changes(issued, acme, deploy, stranger, provision):
    by_address = acme.directory_url.replace("acme.hostwright.test", acme.address)
    before = on_disk(issued)
    assert provision(issued, deploy(directory=by_address)).changed == ["Certificate"]
    assert served(stranger, issued)["serial"] == on_disk(issued) != before
    assert f"server = {by_address}" in issued.read("/etc/letsencrypt/renewal/shop.conf")


def test_a_failed_reissue_leaves_the_old_certificate_served(issued, acme, deploy, stranger, provision):
    before = served(stranger, issued)
    acme.refuse("rateLimited")
    run = provision(issued, deploy("shop.test", "www.shop.test"))
    acme.refuse(None)
    assert run.failed == ["Certificate"]
    assert "https serves the certificate it had until then" in run.stderr
    assert served(stranger, issued) == before
    assert provision(issued, deploy("shop.test", "www.shop.test")).ok


def test_a_certificate_that_is_given_up(issued, acme, stranger, provision):
    gone = (
        "from operations import certificate\n"
        "certificate.certificate('shop', domains=['shop.test'], present=False, name='Certificate')\n"
    )
    assert provision(issued, gone).changed == ["Certificate"]
    assert "self-signed" in served(stranger, issued)["issuer"]
    assert not issued.exists("/etc/letsencrypt/renewal/shop.conf")
    assert provision(issued, gone).changed == []


ZONE = """$TTL 1
@ IN SOA ns.zone.test. ops.zone.test. 1 60 60 60 1
@ IN NS ns
ns IN A 127.0.0.1
"""
NAMED = """include "/etc/bind/acme.key";
options { directory "/var/cache/bind"; recursion no; listen-on { any; }; allow-query { any; }; };
zone "zone.test" { type master; file "/var/cache/bind/zone.test"; allow-update { key acme; }; };
"""


@pytest.fixture
def second_ca(shop, acme):
    """A second pebble, which asks the name server on the host; its directory URL."""
    settings = json.loads((slot_directory(acme.slot) / "acme/pebble.json").read_text())
    settings["pebble"] |= {
        "listenAddress": f"{acme.address}:14100",
        "managementListenAddress": f"{acme.address}:15100",
    }
    file = slot_directory(acme.slot) / "acme/second.json"
    file.write_text(json.dumps(settings))
    pebble = Process(slot_directory(acme.slot) / "processes/pebble-second.pid")
    pebble.start(
        image.unpacked("pebble") / "usr/bin/pebble", "-config", file, "-dnsserver", f"{shop.address}:53",
        log=slot_directory(acme.slot) / "acme/second.log", env={"PEBBLE_VA_NOSLEEP": "1"},
    )  # fmt: skip
    yield f"https://{acme.address}:14100/dir"
    pebble.stop()


@pytest.mark.soak
def test_a_wildcard_by_dns_01_with_a_plugin_and_its_secret(shop, acme, second_ca, provision):
    shop.run("apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q bind9", timeout=300)
    shop.run("tsig-keygen -a hmac-sha256 acme > /etc/bind/acme.key")
    shop.write("/etc/bind/named.conf", NAMED)
    shop.write("/var/cache/bind/zone.test", ZONE)
    shop.run("chown bind /etc/bind/acme.key /var/cache/bind/zone.test && systemctl restart named")
    secret = re.search(r'secret "(.*)"', shop.read("/etc/bind/acme.key"))[1]
    deploy = f"""
import os
from operations import certificate
from settings.secret import Secret
names = ["zone.test", "*.zone.test"]
certificate.bootstrap("zone", domains=names, name="Bootstrap")
certificate.certificate(
    "zone", domains=names, directory={second_ca!r}, ca_bundle={acme.ca_on_host!r}, challenge="dns-01",
    dns_plugin="rfc2136", dns_credentials=Secret(os.environ["CREDENTIALS"]), dns_propagation_seconds=1, name="Certificate",
)
"""
    credentials = (
        f"dns_rfc2136_server = 127.0.0.1\ndns_rfc2136_name = acme.\n"
        f"dns_rfc2136_secret = {secret}\ndns_rfc2136_algorithm = HMAC-SHA256\n"
    )
    secrets = {"CREDENTIALS": secret}
    with canary.sampled(shop, secrets) as samples:
        run = provision(shop, deploy, env={"CREDENTIALS": credentials}, extra=["-vvv", "--debug", "--diff"])
    assert run.ok, run
    assert canary.in_text(run.stdout + run.stderr, secrets) == []
    assert samples.arguments == set()
    assert canary.journal(shop, secrets) == []
    files = canary.files(shop, secrets)
    assert files.pop("/etc/bind/acme.key")
    assert files == {"/etc/letsencrypt/hostwright-dns-rfc2136.ini": "600 root root"}
    names = shop.run(
        "openssl x509 -noout -ext subjectAltName -in /etc/hostwright/tls/zone/fullchain.pem"
    ).stdout
    assert sorted(re.findall(r"DNS:([^,\s]+)", names)) == ["*.zone.test", "zone.test"]
    assert (
        "Pebble" in shop.run("openssl x509 -noout -issuer -in /etc/hostwright/tls/zone/fullchain.pem").stdout
    )
    assert shop.run("stat -c '%a %U' /etc/letsencrypt/hostwright-dns-rfc2136.ini").stdout.split() == [
        "600",
        "root",
    ]
    assert provision(shop, deploy, env={"CREDENTIALS": credentials}).changed == []
