"""A mirror of k3s's releases, and clusters on hosts of the lab.

What the mirror serves under a version's name is :mod:`tests.lab.apps.k3s`: an executable that takes k3s's commands and
starts the real Kubernetes 1.20.2. Genuine releases are served instead when HOSTWRIGHT_K3S_DIR names a directory that
holds them as the real site does: ``v1.33.4+k3s1/k3s``, ``…/k3s-arm64``, ``…/sha256sum-amd64.txt``.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.lab import image, images, network
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.registry import Registry
from tests.lab.state import REPOSITORY, ROOT, LabError, Process, lock, run, slot_directory, wait_for

# Oldest first: a patch release, the next minor one, one more, and one that leaves a minor out.
STAND_IN_VERSIONS = ("v1.33.4+k3s1", "v1.33.5+k3s1", "v1.34.2+k3s1", "v1.35.0+k3s1")
GENUINE = os.environ.get("HOSTWRIGHT_K3S_DIR", "")

_ARCHIVE = "kubernetes-1.20.2-linux-amd64.tar.xz"
_SOURCE = Path(__file__).parent / "apps" / "k3s"
_PARTS = "/usr/local/lib/lab-kubernetes"
_PATCHED = ("kubelet", "kube-apiserver")
# What a bare host has not, and k3s brings along: package, what is taken from it, and to where.
_PACKAGES = (
    ("etcd-server", "bookworm", "usr/bin/etcd", "bin"),
    ("etcd-client", "bookworm", "usr/bin/etcdctl", "bin"),
    ("kubectl", "trixie", "usr/bin/kubectl", "bin"),
    ("containerd", "bookworm", "usr/bin/*", "bin"),
    ("runc", "bookworm", "usr/sbin/runc", "bin"),
    ("conntrack", "bookworm", "usr/sbin/conntrack", "bin"),
    ("iptables", "bookworm", "usr/sbin/xtables-nft-multi", "bin"),
    ("iptables", "bookworm", "usr/lib/x86_64-linux-gnu/xtables/*", "lib/xtables"),
    ("containernetworking-plugins", "bookworm", "usr/lib/cni/*", "cni"),
    *((name, "bookworm", "usr/lib/x86_64-linux-gnu/*.so.*", "lib")
      for name in ("libxtables12", "libnftnl11", "libmnl0", "libip4tc2", "libip6tc2", "libnetfilter-conntrack3", "libnfnetlink0")),
)  # fmt: skip
# What a broken release hands on to, so that kubectl answers as it would in a genuine one.
_PREVIOUS = "$(ls -d /usr/local/lib/hostwright/k3s/*/k3s | head -n 1)"
_IPTABLES = [f"{family}{end}" for family in ("iptables", "ip6tables") for end in ("", "-save", "-restore")]


# --- what the lab's hosts have beforehand ------------------------------------------------------------------------------


def _archive() -> Path | None:
    """Return the archive of the real components, if this machine has it; docs/lab.md tells how it is built."""
    places = [Path(os.environ.get("HOSTWRIGHT_KUBERNETES_DIR", ROOT)), REPOSITORY.parent / "shared/lab/kubernetes"]
    return next((place / _ARCHIVE for place in places if (place / _ARCHIVE).exists()), None)


def missing() -> str:
    """Return what the lab's k3s lacks on this machine, or nothing: the one thing that no package has."""
    if GENUINE or _archive():
        return ""
    return f"{_ARCHIVE}: not in {ROOT}, nor in HOSTWRIGHT_KUBERNETES_DIR; docs/lab.md tells how to build it"


def parts() -> Path:
    """Return a directory with the components and what they need, made once (about half a minute)."""
    archive = _archive()
    if archive is None:
        raise LabError(missing())
    with lock("k3s-parts"):
        pause = _pause()
        key = image.recipe(_PACKAGES, STAND_IN_VERSIONS, _PATCHED, archive.stat().st_size, hashlib.sha256(pause).hexdigest(), 3)
        return image.built("k3s-parts", key, lambda path: _build(path, archive, pause))


def _build(path: Path, archive: Path, pause: bytes) -> None:
    for folder in ("bin", "cni", "lib/xtables", "images"):
        (path / folder).mkdir(parents=True)
    run("tar", "-xJf", archive, "-C", path / "bin")
    for package, release, pattern, where in _PACKAGES:
        found = list(image.unpacked(package, release).glob(pattern))
        if not found:
            raise LabError(f"{package} of {release} has no {pattern}")
        for file in found:
            shutil.copy(file, path / where, follow_symlinks=False)
    for name in _IPTABLES:
        (path / "bin" / name).symlink_to("xtables-nft-multi")
    (path / "images/pause.tar").write_bytes(pause)
    for version in STAND_IN_VERSIONS:
        for component in _PATCHED:
            own = path / "versions" / version / component
            own.parent.mkdir(parents=True, exist_ok=True)
            own.write_bytes(with_version((path / "bin" / component).read_bytes(), version))
            own.chmod(0o755)


def with_version(program: bytes, version: str, is_now: bytes = b"v1.20.2") -> bytes:
    """Return a Go program that says another version: what nodes report is read back by tests, so it has to differ.

    A text in Go is an address and a length. The longer text goes into the unused end of the last page of the constants,
    which is mapped with them.
    """
    offset, = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", program, offset + number * size) for number in range(count)]
    loaded = [(flags, at, address, length) for kind, flags, at, address, _, length, _, _ in headers if kind == 1]
    _, at, address, length = next(one for one in loaded if one[0] == 4)  # constants: readable, and no more
    text = version.encode()
    changed = bytearray(program)
    if any(changed[at + length : at + length + len(text)]) or (-(at + length)) % 4096 < len(text):
        raise LabError("no room for another version in the program")
    changed[at + length : at + length + len(text)] = text
    pointer = struct.pack("<QQ", address + length, len(text))
    found = 0
    for match in re.finditer(re.escape(is_now), program[at : at + length]):
        old = struct.pack("<QQ", address + match.start(), len(is_now))
        for place in re.finditer(re.escape(old), program):
            changed[place.start() : place.start() + 16] = pointer
            found += 1
    if not found:
        raise LabError("the program says its version in a way that is not known")
    return bytes(changed)


def _pause() -> bytes:
    script = "#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile :; do sleep 3600 & wait $!; done\n"
    made = images.make(images.get("busybox"), files={"/pause": script}, command=["/pause"])
    return docker_archive({"docker.io/rancher/mirrored-pause:3.6": made})


def docker_archive(named: Mapping[str, images.Image]) -> bytes:
    """Return images as `docker save` writes them: what k3s loads from its images directory.

    + named: full reference to image
    """
    buffer, entries = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        for reference, one in named.items():
            layers = []
            for layer in one.layers:
                content = layer.file.read_bytes()
                name = f"{layer.diff_id.removeprefix('sha256:')}.tar"
                if name not in archive.getnames():
                    add(name, gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
                layers.append(name)
            configuration = f"{one.id.removeprefix('sha256:')}.json"
            add(configuration, one.configuration)
            entries.append({"Config": configuration, "RepoTags": [reference], "Layers": layers})
        add("manifest.json", json.dumps(entries).encode())
    return buffer.getvalue()


def equip(host: LabHost) -> LabHost:
    """Give a host the components that the stand-in starts; to be done again after ``reset``. Takes no time and no space."""
    if not GENUINE:
        target = host.directory / "docker" / "lab-kubernetes"
        if not target.exists():
            run("cp", "-al", parts(), target)
        host.run(f"ln -sfT /var/lib/docker/lab-kubernetes {_PARTS}")
    return host


# --- releases --------------------------------------------------------------------------------------------------------


def versions() -> tuple[str, ...]:
    """Return the versions that the mirror has, oldest first."""
    if not GENUINE:
        return STAND_IN_VERSIONS
    found = (entry.name for entry in Path(GENUINE).iterdir() if (entry / "k3s").exists())
    return tuple(sorted(found, key=lambda name: [int(part) for part in re.findall(r"\d+", name)]))


def executable(version: str) -> bytes:
    """Return the stand-in under a version's name: a script with a zip archive behind it."""
    import yaml

    buffer = io.BytesIO(b"#!/usr/bin/python3 -B\n")
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, text: str) -> None:
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)

        for file in sorted(_SOURCE.glob("*.py")):
            add(file.name, file.read_text())
        add("release.py", f"VERSION = {version!r}\n")
        for file in sorted(Path(yaml.__file__).parent.glob("*.py")):
            add(f"yaml/{file.name}", file.read_text())
    return buffer.getvalue()


class Mirror:
    """The release site of a slot: ``url/v1.33.4%2Bk3s1/k3s``.

    ``cut`` and ``spoilt`` are names of files that it breaks off in the middle of, or has other bytes in.
    """

    def __init__(self, slot: int, port: int = 8094) -> None:
        self.slot, self._port = slot, port
        self.directory = slot_directory(slot) / "k3s-mirror"
        self.url = f"http://{network.gateway(slot)}:{port}"
        self._process = Process(slot_directory(slot) / "processes" / f"k3s-mirror-{port}.pid")

    def start(self) -> Mirror:
        """Lay out the releases and serve them."""
        network.create(self.slot)
        if not self.directory.exists():
            for version in versions():
                self._lay_out(version)
        self._process.start(sys.executable, "-m", "tests.lab.k3s", self.directory, network.gateway(self.slot), str(self._port),
                            log=slot_directory(self.slot) / "k3s-mirror.log")  # fmt: skip
        wait_for("the mirror", lambda: b"VERSIONS" in _get(f"{self.url}/VERSIONS"), 30)
        return self

    def stop(self) -> None:
        """Take the mirror off the network."""
        self._process.stop()

    def _lay_out(self, version: str) -> None:
        place = self.directory / version
        place.mkdir(parents=True)
        (self.directory / "VERSIONS").write_text("VERSIONS\n" + "\n".join(versions()) + "\n")
        if GENUINE:
            for file in (Path(GENUINE) / version).iterdir():
                (place / file.name).symlink_to(file.resolve())
            return
        (place / "k3s").write_bytes(executable(version))
        # for the other architecture: its emulated hosts run the same script, and have no components
        (place / "k3s-arm64").write_bytes(executable(version) + b"arm64")
        (place / "k3s-airgap-images-amd64.tar").write_bytes(_pause())
        for architecture, name in (("amd64", "k3s"), ("arm64", "k3s-arm64")):
            lines = [f"{sha256(place / one)}  {one}\n" for one in (name, f"k3s-airgap-images-{architecture}.tar") if (place / one).exists()]
            (place / f"sha256sum-{architecture}.txt").write_text("".join(lines))

    def sums(self, version: str) -> dict[str, str]:
        """Return the sums of a version's programs by architecture: what an operator pins."""
        names = {"amd64": "k3s", "arm64": "k3s-arm64"}
        return {key: sha256(self.directory / version / name) for key, name in names.items() if (self.directory / version / name).exists()}

    def image_sums(self, version: str) -> dict[str, str]:
        """Return the sum of the air-gap archive."""
        return {"amd64": sha256(self.directory / version / "k3s-airgap-images-amd64.tar")}

    def add_broken(self, version: str) -> dict[str, str]:
        """Serve a release that says its version and does not start, under a version that is not among the others; return its sums."""
        place = self.directory / version
        place.mkdir(exist_ok=True)
        script = f"#!/bin/sh\ncase $1 in --version) echo 'k3s version {version} (0000)' ;; server|agent) echo 'level=fatal msg=\"broken release\"' >&2; exit 1 ;; "
        (place / "k3s").write_text(script + f"*) exec {_PREVIOUS} \"$@\" ;; esac\n")
        return {"amd64": sha256(place / "k3s")}

    def fault(self, version: str, name: str = "k3s", *, kind: str = "") -> None:
        """Let a file be sent half (``cut``), with other bytes (``spoilt``), half and the rest a minute later (``slow``), or well again (empty)."""
        marker = self.directory / version / f".{name}.fault"
        marker.write_text(kind) if kind else marker.unlink(missing_ok=True)


def sha256(file: Path) -> str:
    """Return a file's sum."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    directory: Path

    def do_GET(self) -> None:
        file = self.directory / unquote(self.path).lstrip("/")
        if ".." in file.parts or not file.is_file():
            self.send_error(404)
            return
        content, marker = file.read_bytes(), file.with_name(f".{file.name}.fault")
        kind = marker.read_text() if marker.exists() else ""
        if kind == "spoilt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        if kind == "slow":
            self.wfile.flush()
            end = time.monotonic() + 60
            wait_for("a minute, or the fault's end", lambda: time.monotonic() > end or not marker.exists(), 90)
        if kind != "cut":
            self.wfile.write(content[half:])


def _get(url: str) -> bytes:
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bytes(answer.read())
    except OSError:
        return b""


# --- clusters --------------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """A running server, asked through its own kubectl."""

    host: LabHost

    def kubectl(self, *words: str, check: bool = True, input: str | None = None, timeout: float = 120) -> str:
        """Run `k3s kubectl` on the server and return what it printed."""
        import shlex

        return self.host.run(f"/usr/local/bin/k3s kubectl {shlex.join(words)}", check=check, input=input, timeout=timeout).stdout

    def get(self, *words: str) -> Any:
        """Return the JSON of `kubectl get`."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, manifest: str, *words: str) -> str:
        """Apply manifests; those of newer API versions are turned into the stand-in's."""
        return self.kubectl("apply", "-f", "-", *words, input=manifest)

    def wait_ready(self, node: str = "", seconds: float = 240) -> None:
        """Wait until a node (this one by default) is Ready."""
        wanted = node or self.host.name
        wait_for(f"node {wanted}", lambda: "True" in self.kubectl(
            "get", "node", wanted, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}", check=False), seconds, pause=0.5)  # fmt: skip


_UNIT = """[Unit]
Wants=network-online.target
After=network-online.target
[Service]
Type=notify
KillMode=process
Delegate=yes
TimeoutStartSec=0
Restart=always
RestartSec=5s
ExecStart=/usr/local/bin/k3s server
[Install]
WantedBy=multi-user.target
"""


def one_node(
    lab: Lab, name: str, *, release: str = "bookworm", version: str = "", registry: Registry | None = None, config: Sequence[str] = ()
) -> Cluster:
    """Boot a host and return a cluster of it alone, running: for tests of what is put onto a cluster, not of k3s itself.

    + registry: whose images its pods may pull, with its account
    + config: further lines of config.yaml
    """
    host = equip(lab.host(name, release, layer="bare"))
    chosen = version or versions()[0]
    if GENUINE:
        shutil.copy(Path(GENUINE) / chosen / "k3s", host.directory / "root/usr/local/bin/k3s")
    else:
        (host.directory / "root/usr/local/bin/k3s").write_bytes(executable(chosen))
    host.run("chmod 0755 /usr/local/bin/k3s")
    lines = ["token: lab-token-0123456789", "cluster-init: true", 'write-kubeconfig-mode: "0600"', *config]
    host.write("/etc/rancher/k3s/config.yaml", "\n".join(lines) + "\n", "0600")
    if registry:
        trust(host, registry)
    host.write("/etc/systemd/system/k3s.service", _UNIT)
    host.run("systemctl daemon-reload; systemctl enable --now k3s", timeout=300)
    cluster = Cluster(host)
    cluster.wait_ready()
    return cluster


def registries_yaml(registry: Registry) -> str:
    """Return the registries.yaml that admits to the lab's registry; its CA is to be at /etc/rancher/k3s/lab-ca.crt."""
    return json.dumps({
        "configs": {registry.name: {"auth": {"username": registry.username, "password": registry.password},
                                    "tls": {"ca_file": "/etc/rancher/k3s/lab-ca.crt"}}},
    }) + "\n"  # fmt: skip


def trust(host: LabHost, registry: Registry) -> None:
    """Write what lets a host's k3s pull from the lab's registry; it counts from k3s's next start."""
    host.write("/etc/rancher/k3s/lab-ca.crt", registry.ca)
    host.write("/etc/rancher/k3s/registries.yaml", registries_yaml(registry), "0600")


def _serve(directory: str, address: str, port: str) -> None:
    _Handler.directory = Path(directory)
    http.server.ThreadingHTTPServer((address, int(port)), _Handler).serve_forever()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
