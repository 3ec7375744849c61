"""A container registry for one slot: Debian's docker-registry with TLS from a CA of its own, and accounts.

Images get into it without being sent: what a registry keeps are files named by their content, and the large ones are
links to those the lab keeps anyway.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import secrets
import shutil
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import hosts, image, images, network
from tests.lab.state import LabError, Process, lock, run, slot_directory, wait_for

if TYPE_CHECKING:
    from tests.lab.hosts import LabHost

HOST = "registry.hostwright.test"
PORT = 5000
_OWN = "lab-itself"
_LINE = re.compile(r'^(\S+) - \S+ \[[^\]]*\] "(\S+) (\S+) [^"]*" (\d+) .* "([^"]*)"$')


@dataclass(frozen=True)
class Request:
    """One request that the registry has answered."""

    address: str
    method: str
    path: str
    status: int


class Registry:
    """The registry of a slot; :meth:`start` it before use.

    Every host of the slot resolves its name. None trusts its CA (``ca``, PEM) or has its account (``username``,
    ``password``) until a test or a deploy brings them there.
    """

    name = f"{HOST}:{PORT}"
    username = "deploy"
    password = "right horse, #1 $battery"

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.address = network.gateway(slot)
        self._home = slot_directory(slot) / "registry"
        self._storage = self._home / "storage/docker/registry/v2"
        self._process = Process(slot_directory(slot) / "processes" / "registry.pid")

    def start(self) -> Registry:
        """Start it if it does not run, and return self; what it holds is there again after :meth:`stop`."""
        program = image.unpacked("docker-registry") / "usr/bin/docker-registry"
        network.create(self.slot)
        with lock(f"registry-{self.slot}"):
            self._home.mkdir(parents=True, exist_ok=True)
            self._make_certificates()
            if not (self._home / "own").exists():
                self.set_password(self.username, self.password)
                self.set_password(_OWN, own := secrets.token_hex(16))
                (self._home / "own").write_text(own)
            if self._process.pid is None:
                self._write_configuration()
                self._process.start(program, "serve", self._home / "config.yml", log=self._home / "registry.log")
            wait_for(f"registry (see {self._home}/registry.log)", self._answers, 30)
        hosts.add_name(self.slot, HOST, [self.address])
        return self

    def stop(self) -> None:
        """Take the registry off the network; what it holds stays."""
        self._process.stop()

    close = stop

    @property
    def ca(self) -> str:
        """The CA that signed the registry's certificate, as PEM."""
        return (self._home / "ca.pem").read_text()

    def set_password(self, user: str, password: str) -> None:
        """Give an account a password, making it if there is none; in force at once."""
        import bcrypt  # not needed to remove a lab, which works without the virtual environment

        file = self._home / "htpasswd"
        kept = [line for line in file.read_text().splitlines() if not line.startswith(f"{user}:")] if file.exists() else []
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds=4)).decode()  # docker asks with every request
        beside = file.with_suffix(".new")
        beside.write_text("".join(f"{line}\n" for line in [*kept, f"{user}:{hashed}"]))
        beside.rename(file)

    def admit(self, host: LabHost) -> None:
        """Let a host's Docker trust the registry and have its account at once, as a deploy would see to it."""
        host.write(f"/etc/docker/certs.d/{self.name}/ca.crt", self.ca)
        account = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        host.write("/root/.docker/config.json", json.dumps({"auths": {self.name: {"auth": account}}}), "0600")

    def image(self, name: str, tag: str = "latest") -> str:
        """Return the reference of one of the lab's images (see :mod:`tests.lab.images`), which is in the registry then."""
        return self.push(name, tag, images.get(name, tag))

    def push(self, name: str, tag: str, content: images.Image | images.Index) -> str:
        """Put an image under a name and a tag, which moves if it is there; return ``host:port/name:tag``."""
        repository = self._storage / "repositories" / name
        for one in content.images if isinstance(content, images.Index) else (content,):
            for layer in one.layers:
                self._keep(layer.digest, layer.file)
                _link(repository / "_layers", layer.digest)
            self._keep(one.id, one.configuration)
            _link(repository / "_layers", one.id)
            self._keep(images.digest(one.manifest), one.manifest)
            _link(repository / "_manifests/revisions", images.digest(one.manifest))
        manifest = images.digest(content.manifest)
        self._keep(manifest, content.manifest)
        _link(repository / "_manifests/revisions", manifest)
        _link(repository / "_manifests/tags" / tag / "index", manifest)
        _replace(repository / "_manifests/tags" / tag / "current/link", manifest)
        return f"{self.name}/{name}:{tag}"

    def digest(self, reference: str) -> str:
        """Return the digest that a tag stands for now, as the registry itself says: ``sha256:…``."""
        name, tag = self._parts(reference)
        status, headers, _ = self._ask("HEAD", f"/v2/{name}/manifests/{tag}")
        if status != 200:
            raise LabError(f"{reference}: the registry says {status}")
        return headers["Docker-Content-Digest"]

    def remove(self, reference: str) -> None:
        """Take a tag out of the registry, as somebody cleaning it up too eagerly does."""
        name, tag = self._parts(reference)
        shutil.rmtree(self._storage / "repositories" / name / "_manifests/tags" / tag)

    @property
    def requests(self) -> list[Request]:
        """All requests since the registry was made, oldest first, those of the lab itself left out."""
        found = (_LINE.match(line) for line in (self._home / "registry.log").read_text(errors="replace").splitlines())
        return [Request(m[1], m[2], m[3], int(m[4])) for m in found if m and m[5] != _OWN]

    # --- inner workings ---------------------------------------------------------------------------------------

    def _parts(self, reference: str) -> tuple[str, str]:
        name, _, tag = reference.removeprefix(f"{self.name}/").partition(":")
        return name, tag or "latest"

    def _keep(self, name: str, content: bytes | Path) -> None:
        """Put a blob where the registry looks for it; a file by a hard link."""
        hexadecimal = name.removeprefix("sha256:")
        file = self._storage / "blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"
        if file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{os.getpid()}")
        if isinstance(content, bytes):
            beside.write_bytes(content)
        else:
            os.link(content, beside)
        beside.rename(file)

    def _make_certificates(self) -> None:
        home = self._home
        if (home / "server.pem").exists():
            return
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        run("openssl", "req", "-x509", *key, "-days", "3650", "-subj", "/CN=Hostwright lab registry CA",
            "-keyout", home / "ca.key", "-out", home / "ca.pem", "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
        (home / "extensions").write_text(f"subjectAltName=DNS:{HOST},IP:{self.address}\nbasicConstraints=CA:FALSE\n")
        run("openssl", "req", *key, "-subj", f"/CN={HOST}", "-keyout", home / "server.key", "-out", home / "server.csr")
        run("openssl", "x509", "-req", "-in", home / "server.csr", "-CA", home / "ca.pem", "-CAkey", home / "ca.key",
            "-CAcreateserial", "-days", "3650", "-extfile", home / "extensions", "-out", home / "server.pem.new")  # fmt: skip
        (home / "server.pem.new").rename(home / "server.pem")

    def _write_configuration(self) -> None:
        settings = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self._home / "storage")},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "auth": {"htpasswd": {"realm": "lab", "path": str(self._home / "htpasswd")}},
            "http": {
                "addr": f"{self.address}:{PORT}",
                "secret": "lab",
                "tls": {"certificate": str(self._home / "server.pem"), "key": str(self._home / "server.key")},
            },
        }
        (self._home / "config.yml").write_text(json.dumps(settings))  # JSON is YAML

    def _answers(self) -> bool:
        if self._process.pid is None:
            raise LabError(f"registry ended: {(self._home / 'registry.log').read_text()[-500:]}")
        try:
            return self._ask("GET", "/v2/")[0] == 200
        except OSError:
            return False

    def _ask(self, method: str, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        context = ssl.create_default_context(cadata=self.ca)
        connection = http.client.HTTPSConnection(self.address, PORT, context=context, timeout=10)
        account = base64.b64encode(f"{_OWN}:{(self._home / 'own').read_text()}".encode()).decode()
        headers = {"Authorization": f"Basic {account}", "User-Agent": _OWN,
                   "Accept": f"{images.Image.media_type}, {images.Index.media_type}"}  # fmt: skip
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


def _link(directory: Path, digest: str) -> None:
    _replace(directory / digest.replace(":", "/") / "link", digest)


def _replace(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{os.getpid()}")
    beside.write_text(text)
    beside.rename(file)
