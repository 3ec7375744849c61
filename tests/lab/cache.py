"""A package cache in front of the machine's own apt mirrors, and the pip settings hosts get from the machine.

The cache is an HTTP proxy that keeps what can never change under its name (``*.deb`` and index files by hash) and
passes everything else through, so a host always sees the mirror's current Release file. https mirrors are tunnelled
and therefore not cached. It listens on an address that only this machine and its lab hosts can reach.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import select
import shutil
import socket
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import Any

from tests.lab import network
from tests.lab.state import ROOT, Process, lock, run, wait_for

PORT = 3142
URL = f"http://{network.CACHE_ADDRESS}:{PORT}"
PIP_CACHE = ROOT / "pip"
_DIRECTORY = ROOT / "packages"
_IMMUTABLE = re.compile(r"(\.u?deb|/by-hash/[A-Za-z0-9]+/[0-9a-f]+)$")
_process = Process(ROOT / "cache.pid")


def start() -> None:
    """Start the package cache if it does not run."""
    with lock("cache"):
        network.create_cache_address()
        if _process.pid is None:
            _DIRECTORY.mkdir(parents=True, exist_ok=True)
            _process.start(sys.executable, "-m", "tests.lab.cache", _DIRECTORY, log=ROOT / "cache.log")
        wait_for("package cache", _answers, 10)


def stop() -> bool:
    """Stop the package cache; return whether it ran. What it holds stays."""
    return _process.stop()


def _answers() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((network.CACHE_ADDRESS, PORT)) == 0


def apt_options() -> str:
    """Return the apt configuration of a lab host: the cache, and the outer machine's leniency with old mirrors."""
    outer = dict(re.findall(r'^(Acquire::Check-\S+) "(.*)";$', run("apt-config", "dump"), re.MULTILINE))
    lines = [f'Acquire::http::Proxy "{URL}";', f'Acquire::https::Proxy "{URL}";']
    lines += [f'{key} "{value}";' for key, value in outer.items()]
    return "\n".join(lines) + "\n"


def pip_configuration(cache: str) -> str:
    """Return /etc/pip.conf for a host: the outer machine's index, the system's trust store, and a shared cache.

    + cache: directory on the host that pip may keep downloads in (pip ignores it for users other than its owner)
    """
    listed = run(sys.executable, "-m", "pip", "config", "list", check=False)
    outer = dict(re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", listed, re.MULTILINE))
    lines = ["[global]", "cert = /etc/ssl/certs/ca-certificates.crt", f"cache-dir = {cache}",
             "disable-pip-version-check = true"]  # fmt: skip
    for key in ("index-url", "extra-index-url", "trusted-host", "timeout", "default-timeout"):
        # Directories of the outer machine mean nothing on a host.
        words = [word for word in outer.get(key, "").split() if not word.startswith(("file:", "/"))]
        if words:
            lines.append(f"{key} = {' '.join(words)}")
    return "\n".join(lines) + "\n"


def certificate_authorities() -> str:
    """Return the outer machine's CA bundle (PEM): a mirror may be signed by a CA that only this machine knows."""
    for variable in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        if os.environ.get(variable) and Path(os.environ[variable]).is_file():
            return Path(os.environ[variable]).read_text()
    return Path("/etc/ssl/certs/ca-certificates.crt").read_text()


def _upstream() -> urllib.request.OpenerDirector:
    """Return an opener that uses the proxy apt itself is configured with, or the environment's."""
    proxies = dict(re.findall(r'^Acquire::(https?)::Proxy "(.+)";$', run("apt-config", "dump"), re.MULTILINE))
    usable = {scheme: proxy for scheme, proxy in proxies.items() if proxy != "DIRECT"}
    return urllib.request.build_opener(urllib.request.ProxyHandler(usable or None))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    directory: Path
    opener: urllib.request.OpenerDirector
    fetching: dict[str, threading.Lock] = {}  # noqa: RUF012 - shared by all connections on purpose

    def do_GET(self) -> None:
        if _IMMUTABLE.search(self.path):
            self._send_kept()
        else:
            self._pass_through()

    def _send_kept(self) -> None:
        kept = self.directory / hashlib.sha256(self.path.encode()).hexdigest()
        with self.fetching.setdefault(kept.name, threading.Lock()):
            if not kept.exists():
                try:
                    self._fetch(kept)
                except urllib.error.HTTPError as refusal:
                    return self._refuse(refusal.code)
                except OSError:
                    return self._refuse(502)
        with open(kept, "rb") as body:
            self.send_response(200)
            self.send_header("Content-Length", str(os.fstat(body.fileno()).st_size))
            self.end_headers()
            shutil.copyfileobj(body, self.wfile, 1 << 18)

    def _fetch(self, kept: Path) -> None:
        """Fetch into a file beside and rename, so that a cut download is never served as a package."""
        with self.opener.open(self.path, timeout=60) as answer, tempfile.NamedTemporaryFile(
            dir=self.directory, prefix=".", delete=False
        ) as beside:
            shutil.copyfileobj(answer, beside, 1 << 18)
            expected = answer.headers["Content-Length"]
            if expected is not None and beside.tell() != int(expected):
                Path(beside.name).unlink()
                raise OSError("short answer")
        os.replace(beside.name, kept)

    def _pass_through(self) -> None:
        wanted = {key: value for key, value in self.headers.items() if key.lower() in ("if-modified-since", "accept")}
        try:
            with self.opener.open(urllib.request.Request(self.path, headers=wanted), timeout=60) as answer:
                body = answer.read()
                headers = {key: answer.headers[key] for key in ("Last-Modified", "Content-Type", "ETag")}
        except urllib.error.HTTPError as refusal:
            return self._refuse(refusal.code)
        except OSError:
            return self._refuse(502)
        self.send_response(200)
        for key, value in headers.items():
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        try:
            far = socket.create_connection((host.strip("[]"), int(port)), timeout=20)
        except OSError:
            return self._refuse(502)
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        near = self.connection
        with far:
            while ready := select.select([near, far], [], [], 120)[0]:
                for source in ready:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    (far if source is near else near).sendall(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing per request."""


def _serve(directory: Path) -> None:
    _Handler.directory = directory
    _Handler.opener = _upstream()
    server = http.server.ThreadingHTTPServer((network.CACHE_ADDRESS, PORT), _Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
