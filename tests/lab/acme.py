"""An ACME server for one slot: pebble, the DNS it asks, and a front that can be taken down or made to refuse.

Clients speak to the front (this module run as a program), which passes everything on to pebble. Pebble forgets its
accounts when it ends, so "the CA is down" is a front that does not listen, and pebble lives on.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import ssl
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab import hosts, image, network
from tests.lab.state import ROOT, LabError, Process, lock, run, slot_directory, wait_for

if TYPE_CHECKING:
    from tests.lab.hosts import LabHost

NAME = "acme.hostwright.test"
CA_ON_HOST = "/etc/hostwright/lab-ca.pem"
_PORT, _PEBBLE, _MANAGEMENT, _DNS, _DNS_MANAGEMENT = 14000, 14001, 15000, 8053, 8055
_CA = ROOT / "acme-ca"
# One day each side of a real CA's 90 is of no interest; the years of pebble's default would be.
_VALIDITY_SECONDS = 90 * 24 * 3600


class Acme:
    """The ACME server of a slot; :meth:`start` it before use.

    Every host of the slot, present or made later, resolves its name and has its CA certificate at
    :data:`CA_ON_HOST` (for ``REQUESTS_CA_BUNDLE`` and the setting ``certificate_ca_bundle``), with the root of what it
    issues.
    """

    directory_url = f"https://{NAME}:{_PORT}/dir"
    ca_on_host = CA_ON_HOST

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.address = network.gateway(slot)
        self._home = slot_directory(slot) / "acme"
        records = slot_directory(slot) / "processes"
        self._pebble = Process(records / "pebble.pid")
        self._dns = Process(records / "pebble-challtestsrv.pid")
        self._front = Process(records / "acme-front.pid")

    def start(self) -> Acme:
        """Start what does not run yet, and return self. After :meth:`stop` the same accounts are known again."""
        pebble = image.unpacked("pebble") / "usr/bin/pebble"
        network.create(self.slot)
        with lock(f"acme-{self.slot}"):
            self._home.mkdir(parents=True, exist_ok=True)
            self._make_certificates()
            at = self.address
            if self._dns.pid is None:
                self._dns.start(
                    pebble.with_name("pebble-challtestsrv"), "-defaultIPv4", "", "-defaultIPv6", "", "-http01", "",
                    "-https01", "", "-tlsalpn01", "", "-dns01", f"{at}:{_DNS}", "-management", f"{at}:{_DNS_MANAGEMENT}",
                    log=self._home / "dns.log",
                )  # fmt: skip
            if self._pebble.pid is None:
                self._write_configuration()
                # PEBBLE_AUTHZREUSE: by default pebble reuses half of the authorizations, at random.
                self._pebble.start(
                    pebble, "-config", self._home / "pebble.json", "-dnsserver", f"{at}:{_DNS}",
                    log=self._home / "pebble.log",
                    env={"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0",
                         "PEBBLE_WFE_NONCEREJECT": os.environ.get("PEBBLE_WFE_NONCEREJECT", "0")},
                )  # fmt: skip
            wait_for(f"pebble (see {self._home}/pebble.log)", self._pebble_answers, 20)
            if self._front.pid is None:
                self._front.start(sys.executable, "-m", "tests.lab.acme", self._home, at, log=self._home / "front.log")
            wait_for(f"ACME directory (see {self._home}/front.log)", lambda: self._get(_PORT, "/dir"), 20)
        hosts.add_name(self.slot, NAME, [at])
        # As with a private CA: one file for the server's own certificate and for those that it issues.
        hosts.add_file(self.slot, CA_ON_HOST, self.ca_certificate + self.root_certificate())
        return self

    def stop(self) -> None:
        """Take the server off the network; accounts and orders survive until :meth:`close`."""
        self._front.stop()

    def close(self) -> None:
        """End the server for good."""
        for process in (self._front, self._pebble, self._dns):
            process.stop()

    @property
    def ca_certificate(self) -> str:
        """The CA that signed the server's own TLS certificate, as PEM."""
        return (_CA / "ca.pem").read_text()

    def root_certificate(self) -> str:
        """Return the root of the certificates that the server issues, as PEM; a new one whenever pebble starts."""
        return self._get(_MANAGEMENT, "/roots/0").decode()

    def add_name(self, domain: str, host: LabHost, *, validated_at: LabHost | None = None) -> None:
        """Let a domain name a host: for the CA, and in /etc/hosts of every host of the slot.

        + validated_at: another host that the CA is sent to instead (a wrong DNS record)
        """
        target = validated_at or host
        for record, address in (("a", target.address), ("aaaa", target.address6)):
            self._tell_dns(f"clear-{record}", {"host": domain})  # "add" adds to what an earlier call said
            self._tell_dns(f"add-{record}", {"host": domain, "addresses": [address]})
        hosts.add_name(self.slot, domain, [host.address, host.address6])

    def add_txt(self, name: str, value: str) -> None:
        """Publish a TXT record, as a DNS-01 hook does (``_acme-challenge.example.test.``, with the final dot)."""
        self._tell_dns("set-txt", {"host": name, "value": value})

    def refuse(self, problem: str | None, status: int = 429) -> None:
        """Answer every new order with an ACME problem until called with None.

        + problem: last part of urn:ietf:params:acme:error:…, for example "rateLimited" or "serverInternal"
        """
        file = self._home / "refuse.json"
        if problem is None:
            file.unlink(missing_ok=True)
            return
        urn = f"urn:ietf:params:acme:error:{problem}"
        file.write_text(json.dumps({"type": urn, "detail": "refused by the lab", "status": status}))

    # --- inner workings ---------------------------------------------------------------------------------------

    def _make_certificates(self) -> None:
        with lock("acme-ca"):
            if not (_CA / "ca.pem").exists():
                _CA.mkdir(exist_ok=True)
                run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-days", "3650", "-subj", "/CN=Hostwright lab CA", "-keyout", _CA / "ca.key", "-out", _CA / "ca.pem",
                    "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
        if not (self._home / "front.pem").exists():
            extensions = self._home / "extensions"
            extensions.write_text(f"subjectAltName=DNS:{NAME},IP:{self.address}\nbasicConstraints=CA:FALSE\n")
            run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-subj", f"/CN={NAME}", "-keyout", self._home / "front.key", "-out", self._home / "front.csr")  # fmt: skip
            run("openssl", "x509", "-req", "-in", self._home / "front.csr", "-CA", _CA / "ca.pem", "-CAkey",
                _CA / "ca.key", "-CAcreateserial", "-days", "3650", "-extfile", extensions,
                "-out", self._home / "front.pem")  # fmt: skip

    def _write_configuration(self) -> None:
        settings = {
            "listenAddress": f"{self.address}:{_PEBBLE}",
            "managementListenAddress": f"{self.address}:{_MANAGEMENT}",
            "certificate": str(self._home / "front.pem"),
            "privateKey": str(self._home / "front.key"),
            "httpPort": 80,
            "tlsPort": 443,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
            "certificateValidityPeriod": _VALIDITY_SECONDS,
        }
        (self._home / "pebble.json").write_text(json.dumps({"pebble": settings}))

    def _get(self, port: int, path: str) -> bytes:
        context = ssl.create_default_context(cafile=str(_CA / "ca.pem"))
        connection = http.client.HTTPSConnection(self.address, port, context=context, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except OSError:
            return b""
        finally:
            connection.close()

    def _pebble_answers(self) -> bool:
        if self._pebble.pid is None or self._dns.pid is None:
            raise LabError(f"pebble ended: {(self._home / 'pebble.log').read_text()[-500:]}")
        return bool(self._get(_PEBBLE, "/dir"))

    def _tell_dns(self, what: str, body: dict[str, Any]) -> None:
        url = f"http://{self.address}:{_DNS_MANAGEMENT}/{what}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(urllib.request.Request(url, json.dumps(body).encode()), timeout=5).close()


class _Front(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    home: Path
    address: str

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        refusal = self.home / "refuse.json"
        if self.path == "/order-plz" and refusal.exists():
            return self._refuse(json.loads(refusal.read_text()))
        # Pebble makes the URLs it hands out from the Host header, and checks the signed ones against it.
        context = ssl.create_default_context(cafile=str(_CA / "ca.pem"))
        upstream = http.client.HTTPSConnection(self.address, _PEBBLE, context=context, timeout=30)
        headers = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
        upstream.request(self.command, self.path, body or None, headers)
        answer = upstream.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        upstream.close()

    do_GET = do_HEAD = do_POST = _pass_on

    def _refuse(self, problem: dict[str, Any]) -> None:
        content = json.dumps(problem).encode()
        self.send_response(problem["status"])
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Retry-After", "3600")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing per request; pebble's own log has them."""


def _serve(home: Path, address: str) -> None:
    _Front.home, _Front.address = home, address
    server = http.server.ThreadingHTTPServer((address, _PORT), _Front)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "front.pem", home / "front.key")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2])
