"""nginx and its sites on a real host, read back with nginx -T, systemctl, and openssl from a host that is a stranger."""

import re
import threading

import pytest

ANSWERS = """
import http.server, time
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/stream":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for number in range(4):
                self.wfile.write(b"data: %d\\n\\n" % number)
                self.wfile.flush()
                time.sleep(0.5)
            return
        body = str(self.headers).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Answer).serve_forever()
"""

SITE = "/etc/nginx/sites-enabled/shop.conf"

DEPLOY = """
from operations import certificate, nginx
from operations.nginx import Location, RateLimit, Upstream
certificate.bootstrap("shop", domains=["shop.test"], name="Bootstrap")
nginx.server(name="Server")
nginx.site(
    "shop", server_names=["shop.test"], certificate_directory=certificate.directory("shop"),
    upstreams=[Upstream("shop", ("127.0.0.1:8000",), switched=True)],
    locations=[
        Location("/", upstream="shop", streaming=True, timeout_seconds={timeout}),
        Location("/admin", upstream="shop", networks=()),
        Location("/few", upstream="shop", rate_limit=RateLimit(1, 2)),
    ],
    hsts_seconds=600, name="Site",
)
"""


def shop(timeout: int = 60) -> str:
    return DEPLOY.format(timeout=timeout)


def main_pid(host) -> str:
    return host.run("systemctl show -p MainPID --value nginx").stdout.strip()


def workers(host) -> list[str]:
    return host.run("pgrep -P $(cat /run/nginx.pid)").stdout.split()


def ask(client, host, path="/", *options: str) -> str:
    """Ask for a path of shop.test over https; return status line, headers and body."""
    words = " ".join(options)
    return client.run(
        f"curl -sk -i -m 10 {words} --resolve shop.test:443:{host.address} 'https://shop.test{path}'",
        check=False,
    ).stdout


def handshake(client, host, *options: str) -> str:
    words = " ".join(options)
    done = client.run(f"openssl s_client -connect {host.address}:443 {words} </dev/null 2>&1", check=False)
    return done.stdout


@pytest.fixture(scope="module")
def served(host, stranger, provision):
    """A bare host that the site was provisioned on, while the stranger watched its port 80."""
    host.write("/opt/answers.py", ANSWERS)
    host.run("systemd-run -q --unit answers python3 /opt/answers.py")
    assert provision(host, shop(), dry=True).changed == ["Bootstrap", "Server", "Site"]
    watch = threading.Thread(
        target=stranger.run,
        args=(
            f"rm -f /run/enough; while [ ! -e /run/enough ]; do curl -s -m 0.5 http://{host.address}/; done > /run/seen",
        ),
        kwargs={"check": False, "timeout": 120},
    )
    watch.start()
    run = provision(host, shop())
    stranger.run("touch /run/enough")
    watch.join()
    assert run.ok, run
    assert run.changed == ["Bootstrap", "Server", "Site"]
    return host


def test_the_package_s_welcome_page_was_never_open(served, stranger):
    assert stranger.read("/run/seen") == ""
    assert not served.exists("/etc/nginx/sites-enabled/default")


def test_second_run_changes_nothing_and_restarts_nothing(served, provision):
    before = main_pid(served), workers(served)
    run = provision(served, shop())
    assert run.ok, run
    assert run.changed == []
    assert (main_pid(served), workers(served)) == before
    assert provision(served, shop(), dry=True).changed == []


def test_the_application_sees_the_client_s_own_address(served, stranger):
    answer = ask(stranger, served, "/", "-H 'X-Forwarded-For: 6.6.6.6' -H 'X-Real-IP: 6.6.6.6'")
    assert answer.startswith("HTTP/2 200")
    assert f"X-Forwarded-For: {stranger.address}\n" in answer
    assert "6.6.6.6" not in answer
    assert "X-Forwarded-Proto: https" in answer
    assert "strict-transport-security: max-age=600" in answer
    assert re.search(r"(?mi)^server: nginx\r?$", answer)


def test_tls_is_1_2_or_newer_and_speaks_http2(served, stranger):
    assert "alert protocol version" in handshake(
        stranger, served, "-servername shop.test -tls1_1 -cipher DEFAULT@SECLEVEL=0"
    )
    assert "Protocol  : TLSv1.2" in handshake(stranger, served, "-servername shop.test -tls1_2")
    assert "ALPN protocol: h2" in handshake(stranger, served, "-servername shop.test -alpn h2")


@pytest.mark.parametrize("name", ["-servername other.test", "-noservername"])
def test_an_unknown_name_gets_no_certificate(served, stranger, name):
    said = handshake(stranger, served, name)
    assert "unrecognized name" in said
    assert "BEGIN CERTIFICATE" not in said


def test_an_unknown_name_on_port_80_gets_no_answer(served, stranger):
    for address in (served.address, f"[{served.address6}]"):
        # 52: the server closed without a word
        assert stranger.run(f"curl -s -g http://{address}/", check=False).returncode == 52


def test_port_80_redirects_and_answers_challenges(served, stranger):
    served.write("/var/www/hostwright-acme/.well-known/acme-challenge/token", "proof")
    base = f"curl -s -g --resolve shop.test:80:[{served.address6}]"
    assert stranger.run(f"{base} http://shop.test/.well-known/acme-challenge/token").stdout == "proof"
    redirect = stranger.run(
        f"{base} -o /dev/null -w '%{{http_code}} %{{redirect_url}}' 'http://shop.test/a?b=c'"
    ).stdout
    assert redirect == "301 https://shop.test/a?b=c"


def test_admin_locations_are_for_declared_networks(served, stranger):
    assert ask(stranger, served, "/admin/keys").startswith("HTTP/2 403")
    assert ask(stranger, served, "/%61dmin/../admin").startswith("HTTP/2 403")
    assert (
        "HTTP/2 200"
        in served.run("curl -sk -i --resolve shop.test:443:127.0.0.1 https://shop.test/admin").stdout
    )


def test_events_arrive_as_they_are_sent(served, stranger):
    script = (
        f"curl -skN --resolve shop.test:443:{served.address} https://shop.test/stream"
        ' | while read -r line; do [ -z "$line" ] || date +%s.%N; done'
    )
    first, *_, last = map(float, stranger.run(script).stdout.split())
    assert last - first > 1.0


def test_a_body_over_the_limit_and_requests_over_the_limit_are_refused(served, stranger):
    stranger.run("head -c 1100000 /dev/zero > /run/large; head -c 900000 /dev/zero > /run/small")
    assert "HTTP/2 413" in ask(stranger, served, "/", "--data-binary @/run/large")
    assert "HTTP/2 200" in ask(stranger, served, "/", "--data-binary @/run/small")
    codes = stranger.run(
        f"for i in 1 2 3 4 5 6; do curl -sk -o /dev/null -w '%{{http_code}} ' --resolve shop.test:443:{served.address}"
        " https://shop.test/few; done"
    ).stdout.split()
    assert codes[0] == "200"
    assert "429" in codes


def test_a_changed_setting_is_reloaded_not_restarted(served, provision):
    before = main_pid(served), workers(served)
    run = provision(served, shop(timeout=330))
    assert run.changed == ["Site"], run
    assert "proxy_read_timeout 330s;" in served.run("nginx -T 2>/dev/null").stdout
    assert main_pid(served) == before[0]
    assert not set(workers(served)) & set(before[1])


def test_a_switched_upstream_is_not_touched(served, provision):
    switched = "# by a rollout\nupstream shop {\n    server 127.0.0.1:8000 max_fails=0; # standby next\n}\n"
    served.write("/etc/nginx/upstreams/shop.conf", switched)
    served.run("systemctl reload nginx")
    assert provision(served, shop(timeout=330)).changed == []
    assert served.read("/etc/nginx/upstreams/shop.conf") == switched


@pytest.mark.parametrize(
    ("broken", "healer"),
    [
        (f"echo 'server {{ nonsense' > {SITE}", "Server"),
        (f"rm {SITE}", "Site"),
        pytest.param(
            "echo 'include snippets/gone.conf;' >> /etc/nginx/nginx.conf", "Server", marks=pytest.mark.soak
        ),
        ("echo nonsense > /etc/nginx/nginx.conf", "Server"),
        pytest.param(
            f"echo 'include gone/relative.conf;' >> {SITE}; echo nonsense >> /etc/nginx/nginx.conf",
            "Server",
            marks=pytest.mark.soak,
        ),
        pytest.param("rm /etc/hostwright/tls/shop", "Bootstrap", marks=pytest.mark.soak),
        pytest.param("rm -r /var/lib/hostwright/tls/self-signed", "Bootstrap", marks=pytest.mark.soak),
        (f"rm /etc/hostwright/tls/shop; echo nonsense >> {SITE}; rm /etc/nginx/nginx.conf", "Server"),
        ("echo nonsense > /etc/nginx/upstreams/shop.conf", "Site"),
        pytest.param("systemctl stop nginx", "Server", marks=pytest.mark.soak),
        ("systemctl stop nginx; systemctl disable nginx; systemctl mask nginx", "Server"),
        (f"echo nonsense > {SITE}; ! systemctl restart nginx", "Server"),
        pytest.param(
            "ln -s /etc/nginx/sites-available/default /etc/nginx/sites-enabled/default",
            "Server",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_what_was_broken_by_hand_is_healed(served, stranger, provision, broken, healer):
    served.run(broken)
    run = provision(served, shop(timeout=330))
    assert run.ok, run
    assert healer in run.changed
    served.run("nginx -t -q && systemctl is-active nginx && systemctl is-enabled nginx")
    assert ask(stranger, served).startswith("HTTP/2 200")
    again = provision(served, shop(timeout=330))
    assert again.changed == [], again


def test_a_fault_that_is_not_ours_is_refused_and_what_runs_goes_on(served, stranger, provision):
    provision(served, shop(timeout=330))
    before, text = workers(served), served.read(SITE)
    served.write("/etc/nginx/conf.d/theirs.conf", "nonsense;\n")
    for wanted in (shop(timeout=330), shop(timeout=100)):
        run = provision(served, wanted)
        assert run.failed == ["Site"], run
        assert "/etc/nginx/conf.d/theirs.conf:1" in run.stderr
    assert (workers(served), served.read(SITE)) == (before, text)
    assert ask(stranger, served).startswith("HTTP/2 200")
    served.run("rm /etc/nginx/conf.d/theirs.conf")
    assert provision(served, shop(timeout=330)).changed == []


def test_a_configuration_that_nginx_tests_but_cannot_take_is_put_back(served, stranger, provision):
    # `nginx -t` does not see that another program has the port, and `systemctl reload` succeeds all the same.
    served.run("systemd-run -q --unit squatter python3 -m http.server 8081 --bind 127.0.0.1")
    served.run("until curl -sf -o /dev/null http://127.0.0.1:8081/; do sleep 0.1; done")
    text = served.read(SITE)
    served.write("/etc/nginx/conf.d/clash.conf", "server { listen 127.0.0.1:8081; }\n")
    run = provision(served, shop(timeout=100))
    served.run(
        "systemctl stop squatter; rm /etc/nginx/conf.d/clash.conf; nginx -t -q; systemctl reload nginx"
    )
    assert run.failed == ["Site"], run
    assert "Address already in use" in run.stderr
    assert served.read(SITE) == text
    assert ask(stranger, served).startswith("HTTP/2 200")


def test_a_removed_site_is_not_answered(served, stranger, provision):
    gone = (
        "from operations import nginx\nfrom operations.nginx import Upstream\n"
        "nginx.site('shop', upstreams=[Upstream('shop', (), switched=True)], present=False, name='Site')\n"
    )
    assert provision(served, gone).changed == ["Site"]
    assert "unrecognized name" in handshake(stranger, served, "-servername shop.test")
    assert served.run("ls /etc/nginx/sites-enabled /etc/nginx/upstreams").stdout.split("\n\n") == [
        "/etc/nginx/sites-enabled:", "/etc/nginx/upstreams:\n",
    ]  # fmt: skip
    assert provision(served, gone).changed == []
    provision(served, shop())
    assert ask(stranger, served).startswith("HTTP/2 200")


def test_nginx_of_debian_13_is_told_of_http2_in_its_own_way(lab, stranger, provision):
    trixie = lab.host("t-nginx-trixie", release="trixie", layer="packages")
    run = provision(trixie, shop())
    assert run.ok, run
    assert trixie.run("nginx -t 2>&1 | grep -c warn", check=False).stdout.strip() == "0"
    assert "ALPN protocol: h2" in handshake(stranger, trixie, "-servername shop.test -alpn h2")
    assert "unrecognized name" in handshake(stranger, trixie, "-servername other.test")
    assert provision(trixie, shop()).changed == []
    lab.destroy(trixie)
