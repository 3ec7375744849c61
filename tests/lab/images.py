"""Container images, made without a Docker daemon: file trees become layers, layers and settings become images.

A layer is built once per recipe and kept beside the images of hosts. An image is put together from layers in an
instant, so a test makes as many as it needs: ``make(images.get("busybox"), environment={"GREETING": "hello"})``.
:mod:`tests.lab.registry` serves them.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.lab import cache, image
from tests.lab.apps import CRICKSY
from tests.lab.state import ROOT, LabError, lock, run

_MADE = "2026-01-01T00:00:00Z"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


@dataclass(frozen=True)
class Layer:
    """One layer: a tar file, or a gzipped one, by its digest."""

    file: Path
    digest: str
    diff_id: str
    media_type: str = _LAYER

    @property
    def descriptor(self) -> dict[str, Any]:
        """How a manifest names the layer."""
        return {"mediaType": self.media_type, "size": self.file.stat().st_size, "digest": self.digest}


@dataclass(frozen=True)
class Image:
    """An image for one platform. ``config`` is the part that ``docker inspect`` shows as Config."""

    layers: tuple[Layer, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = "amd64"
    created: str = _MADE

    media_type = _MANIFEST

    @property
    def configuration(self) -> bytes:
        """The image's configuration as it lies in a registry; its digest is the image id that Docker shows."""
        rootfs = {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]}
        history = [{"created": self.created, "created_by": "Hostwright lab"} for _ in self.layers]
        return _json({"architecture": self.architecture, "os": "linux", "created": self.created,
                      "config": dict(self.config), "rootfs": rootfs, "history": history})  # fmt: skip

    @property
    def manifest(self) -> bytes:
        """The image's manifest; its digest is what ``name@sha256:…`` names."""
        config = {"mediaType": _CONFIG, "size": len(self.configuration), "digest": digest(self.configuration)}
        return _json({"schemaVersion": 2, "mediaType": _MANIFEST, "config": config,
                      "layers": [layer.descriptor for layer in self.layers]})  # fmt: skip

    @property
    def id(self) -> str:
        """The image id, as ``docker inspect`` gives it."""
        return digest(self.configuration)


@dataclass(frozen=True)
class Index:
    """Images for several platforms under one name."""

    images: tuple[Image, ...]

    media_type = _LIST

    @property
    def manifest(self) -> bytes:
        """The list of the images with their platforms."""
        listed = [{"mediaType": _MANIFEST, "size": len(one.manifest), "digest": digest(one.manifest),
                   "platform": {"architecture": one.architecture, "os": "linux"}} for one in self.images]  # fmt: skip
        return _json({"schemaVersion": 2, "mediaType": _LIST, "manifests": listed})


def get(name: str, tag: str = "latest") -> Image | Index:
    """Return one of the lab's own images, building the layers that are missing.

    + name: a key of :data:`CATALOGUE`
    + tag: for images that come in several versions; the others are the same under every tag
    """
    if name not in CATALOGUE:
        raise LabError(f"image: one of {', '.join(CATALOGUE)}, got {name!r}")
    return CATALOGUE[name](tag)


def make(
    base: Image | Index, *, files: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None, command: Sequence[str] | None = None, entrypoint: Sequence[str] | None = None,
    user: str | None = None, architecture: str | None = None, created: str | None = None,
) -> Image:  # fmt: skip
    """Return a new image from another: other settings, more files. What is not given stays.

    + files: absolute path to text; executable where the text starts with ``#!``
    + created: as in ``2026-01-01T00:00:00Z``
    """
    assert isinstance(base, Image), "made from an image for one platform"
    config = dict(base.config)
    if environment is not None:
        config["Env"] = [*config.get("Env", []), *(f"{key}={value}" for key, value in environment.items())]
    if labels is not None:
        config["Labels"] = {**config.get("Labels", {}), **labels}
    for key, words in (("Cmd", command), ("Entrypoint", entrypoint)):
        if words is not None:
            config[key] = list(words)
    if user is not None:
        config["User"] = user
    layers = base.layers + ((_text_layer(files),) if files else ())
    return replace(base, layers=layers, config=config, architecture=architecture or base.architecture,
                   created=created or base.created)  # fmt: skip


def digest(content: bytes) -> str:
    """Return the digest of something a registry keeps."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


# --- the lab's own images ---------------------------------------------------------------------------------------------

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _busybox(tag: str) -> Image:
    """A few hundred kilobytes with a shell, ``httpd``, ``nc``, ``wget`` and ``sleep``; runs ``sh``."""

    def fill(root: Path) -> None:
        binary = root / "bin/busybox"
        for directory in ("bin", "etc", "root", "tmp", "var/www"):
            (root / directory).mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        shutil.copy(image.unpacked("busybox-static") / "bin/busybox", binary)
        for applet in run(binary, "--list").split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        _write(root, {"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
                      "/etc/group": "root:x:0:\nnogroup:x:65534:\n", "/var/www/index.html": "busybox\n"})  # fmt: skip

    return Image((_tree_layer("busybox", "2", fill, compress=True),), {"Env": [_PATH], "Cmd": ["sh"]})


def _platforms(tag: str) -> Image | Index:
    """The same content for other platforms, by tag: ``both`` and ``amd64`` are lists, ``arm64`` is a plain image."""
    amd64 = _busybox(tag)
    arm64 = replace(amd64, architecture="arm64")
    kinds = {"both": Index((amd64, arm64)), "amd64": Index((amd64,)), "arm64-list": Index((arm64,)), "arm64": arm64}
    if tag not in kinds:
        raise LabError(f"platforms: tag is one of {', '.join(kinds)}, got {tag!r}")
    return kinds[tag]


def _postgres(tag: str) -> Image:
    """Debian's server behind an entrypoint with the manners of the official image; uid 999."""
    config = {"Env": [_PATH.replace("=", "=/usr/lib/postgresql/17/bin:"), "LANG=C.UTF-8", "PGDATA=/var/lib/postgresql/data"],
              "Entrypoint": ["docker-entrypoint.sh"], "Cmd": ["postgres"], "StopSignal": "SIGINT",
              "ExposedPorts": {"5432/tcp": {}}, "Volumes": {"/var/lib/postgresql/data": {}}}  # fmt: skip
    return Image((*_layers("base", "postgres"), _own("postgres")), config)


def _redis(tag: str) -> Image:
    """Debian's server behind an entrypoint with the manners of the official image; uid 999."""
    config = {"Env": [_PATH], "Entrypoint": ["docker-entrypoint.sh"], "Cmd": ["redis-server"], "WorkingDir": "/data",
              "ExposedPorts": {"6379/tcp": {}}, "Volumes": {"/data": {}}}  # fmt: skip
    return Image((*_layers("base", "redis"), _own("redis")), config)


def _s3(tag: str) -> Image:
    """An S3 server that is configured like MinIO and keeps its objects in /data."""
    config = {"Env": [_PATH, "NODE_PATH=/opt/s3/node_modules"], "Entrypoint": ["node", "/opt/s3/server.js"],
              "Cmd": ["server", "/data"], "ExposedPorts": {"9000/tcp": {}}, "Volumes": {"/data": {}}}  # fmt: skip
    server = (_CONTAINERS / "s3/server.js").read_text()
    return Image((*_layers("base", "node"), _text_layer({"/opt/s3/server.js": server})), config)


def _mcbench(command: str, tag: str) -> Image:
    """The application in tests/lab/apps/mcbench in one of its releases; what an image runs is its command."""
    releases = {"v1.0.0": (), "v1.1.0": ("v1.1.0",), "bad-start": ("v1.1.0", "bad-start"), "bad-dies": ("v1.1.0", "bad-dies"),
                "bad-health": ("v1.1.0", "bad-health"), "bad-migration": ("v1.1.0", "bad-migration"),
                "bad-platform": ("v1.1.0",)}  # fmt: skip
    if tag not in releases:
        raise LabError(f"mcbench: tag is one of {', '.join(releases)}, got {tag!r}")
    home = _APPS / "mcbench"
    code = {f"/app/{path}": text for path, text in _texts(home, "alembic.ini", "mc_bench", "migrations").items()}
    for release in releases[tag]:
        code |= {f"/app/{path}": text for path, text in _texts(home / "releases" / release, ".").items()}
    environment = [_PATH.replace("=", "=/opt/venv/bin:"), "PYTHONPATH=/app", "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1"]
    config = {"Env": environment, "Cmd": ["python", "-m", "mc_bench", command], "WorkingDir": "/app",
              # The Docker socket is root's.
              "User": "0" if command == "server-worker" else "1000:1000", "Labels": {"version": tag}}  # fmt: skip
    if command in ("api", "admin-api"):
        config["ExposedPorts"] = {"8000/tcp": {}}
    architecture = "arm64" if tag == "bad-platform" else "amd64"
    return Image((*_layers("base", "python", "mcbench"), _text_layer(code)), config, architecture)


def _cricksy_worker(tag: str) -> Image:
    """The application in tests/lab/apps/cricksy with Tesseract, in one of its releases, as the guide's Dockerfile has it."""
    if tag not in CRICKSY:
        raise LabError(f"cricksy-worker: tag is one of {', '.join(CRICKSY)}, got {tag!r}")
    home = _APPS / "cricksy"
    code = {f"/app/{path}": text for path, text in _texts(home / "backend", ".").items()}
    for release in CRICKSY[1 : CRICKSY.index(tag) + 1]:
        code |= {f"/app/{path}": text for path, text in _texts(home / "releases" / release / "backend", ".").items()}
    environment = [_PATH.replace("=", "=/opt/venv/bin:"), "PYTHONPATH=/app", "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1"]
    config = {"Env": environment, "Cmd": ["celery", "-A", "worker.celery_app", "worker"], "WorkingDir": "/app"}
    return Image((*_layers("base", "python", "tesseract", "cricksy"), _text_layer(code)), config)


def _liap(tag: str) -> Image:
    """The game backend in tests/lab/apps/liap in one of its releases. It stands on what mcbench's image installs."""
    if tag not in LIAP:
        raise LabError(f"liap: tag is one of {', '.join(LIAP)}, got {tag!r}")
    home = _APPS / "liap"
    code = {f"/app/{path}": text for path, text in _texts(home, "liap").items()}
    if tag != LIAP[0]:
        code |= {f"/app/{path}": text for path, text in _texts(home / "releases" / tag, ".").items()}
    environment = [_PATH.replace("=", "=/opt/venv/bin:"), "PYTHONPATH=/app", "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1"]
    config = {"Env": environment, "Cmd": ["python", "-m", "liap"], "WorkingDir": "/app", "User": "1000:1000",
              "ExposedPorts": {"8000/tcp": {}}, "Labels": {"version": tag}}  # fmt: skip
    return Image((*_layers("base", "python", "mcbench"), _text_layer(code)), config)


LIAP = ("1.0.0", "1.1.0", "bad-start", "bad-health")
"""Releases of liap's backend, the good ones first."""


def _minecraft_server(tag: str) -> Image:
    """Stands for a game: something that listens, on port 25565."""
    return make(_busybox(tag), command=["httpd", "-f", "-p", "25565", "-h", "/var/www"], labels={"version": tag},
                files={"/var/www/world": f"world of {tag}\n"})  # fmt: skip


_BUILDER = """#!/bin/sh
# Builds SCRIPT in the world of SERVER.
for second in 1 2 3 4 5 6 7 8 9 10; do
    world=$(wget -q -O - "http://$SERVER:25565/world") && break
    sleep 1
done
[ -n "$world" ] || { echo "$SERVER does not answer"; exit 1; }
echo "built in $world: $SCRIPT"
"""


def _builder_runner(tag: str) -> Image:
    """Stands for what builds in a game: says SCRIPT to SERVER."""
    return make(_busybox(tag), files={"/build": _BUILDER}, entrypoint=["/build"], command=[], labels={"version": tag})


MCBENCH = ("api", "admin-api", "worker", "admin-worker", "render-worker", "server-worker", "scheduler")
"""What the application's images are called, after ``mc-bench-``."""

CATALOGUE: dict[str, Callable[[str], Image | Index]] = {
    "busybox": _busybox, "platforms": _platforms, "postgres": _postgres, "redis": _redis, "s3": _s3,
    **{f"mc-bench-{command}": functools.partial(_mcbench, command) for command in MCBENCH},
    "cricksy-worker": _cricksy_worker,
    "liap-backend": _liap,
    "mc-bench-minecraft-server": _minecraft_server, "mc-bench-builder-runner": _builder_runner,
}  # fmt: skip


def _texts(directory: Path, *names: str) -> dict[str, str]:
    """Return the text files at and below some names of a directory, by their path in it."""
    found = [file for name in names for file in (directory / name, *(directory / name).rglob("*")) if file.is_file()]
    return {str(file.relative_to(directory)): file.read_text() for file in sorted(found) if "__pycache__" not in file.parts}


def _own(name: str) -> Layer:
    return _text_layer({"/usr/local/bin/docker-entrypoint.sh": (_CONTAINERS / name / "entrypoint.sh").read_text()})


# --- layers from Debian packages --------------------------------------------------------------------------------------

_RELEASE = "trixie"  # PostgreSQL 17, Redis 8, Python 3.13
_WITHOUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*",
            # PostgreSQL's just-in-time compiler is twice the size of PostgreSQL.
            "/usr/lib/x86_64-linux-gnu/libLLVM*", "/usr/lib/x86_64-linux-gnu/libz3*", "/usr/lib/postgresql/*/lib/bitcode/*",
            "/usr/lib/postgresql/*/lib/llvmjit*")  # fmt: skip
_INSTALL = "apt-get -q update; apt-get -q -y -o Dpkg::Options::=--force-unsafe-io install --no-install-recommends"
_NPM = "10.9.9"
_NPM_SHA512 = (
    "d60fba8cb42f688b81e33c2f1cbef2ad7b977166700ec0ad057f1b6d60ea6ef2"
    "524abf673e20c35931cd8305d1dbb8887134d6eefdc0e7b8435bd458bf65b862"
)
_CLEAN = "apt-get clean; rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /tmp/*"
_APPS = Path(__file__).parent / "apps"
_CONTAINERS = _APPS / "containers"


@dataclass(frozen=True)
class _Step:
    """How one layer comes about on top of others."""

    script: str
    files: tuple[Path, ...] = ()  # of this repository, found in /lab while the script runs
    sockets: str = ""  # a directory that anybody may put a socket in; what a script leaves in /run is lost


_STEPS = {
    "postgres": _Step(
        "groupadd -r -g 999 postgres; useradd -r -u 999 -g 999 -d /var/lib/postgresql -s /bin/bash postgres; "
        "mkdir -p /etc/postgresql-common; echo create_main_cluster=false > /etc/postgresql-common/createcluster.conf; "
        f"{_INSTALL} postgresql-17; "
        "mkdir -p /docker-entrypoint-initdb.d /var/lib/postgresql/data; "
        "chown -R postgres:postgres /var/lib/postgresql; chmod 1777 /var/lib/postgresql/data; "
        "rm -rf /usr/share/perl /usr/lib/x86_64-linux-gnu/perl /usr/lib/x86_64-linux-gnu/libperl* /usr/share/i18n; "
        "sed -ri \"s/^#?listen_addresses .*/listen_addresses = '*'/; s/^#?jit .*/jit = off/\" "
        "/usr/share/postgresql/17/postgresql.conf.sample",
        sockets="run/postgresql",
    ),
    "redis": _Step(
        "groupadd -r -g 999 redis; useradd -r -u 999 -g 999 -d /data -s /usr/sbin/nologin redis; "
        f"{_INSTALL} redis-server; mkdir /data; chown redis:redis /data"
    ),
    "node": _Step(
        # npm as it comes from the registry of this machine's npm: Debian's is 300 packages. Without one, Debian's, which
        # knows a registry of its own.
        f"{_INSTALL} nodejs curl; cd /tmp; if [ -n \"$npm_config_registry\" ]; then "
        f"curl -fsS --cacert /lab/ca.pem -o npm.tgz $npm_config_registry/npm/-/npm-{_NPM}.tgz; "
        f"echo '{_NPM_SHA512}  npm.tgz' | sha512sum --quiet -c; tar xzf npm.tgz; npm='node /tmp/package/bin/npm-cli.js'; "
        f"else {_INSTALL} npm; npm=npm; unset npm_config_registry; fi; "
        "mkdir -p /opt/s3 /data; cd /opt/s3; cp /lab/package.json /lab/package-lock.json .; "
        "$npm ci --ignore-scripts --no-audit --no-fund; rm -rf /root/.npm",
        (_CONTAINERS / "s3/package.json", _CONTAINERS / "s3/package-lock.json"),
    ),
    "python": _Step(f"{_INSTALL} python3 python3-venv curl"),
    "tesseract": _Step(f"{_INSTALL} tesseract-ocr tesseract-ocr-eng"),
    "cricksy": _Step(
        "python3 -m venv /opt/venv; /opt/venv/bin/pip install -q --require-hashes --only-binary :all: -r /lab/requirements.txt; "
        "rm -rf /opt/venv/lib/python3.*/site-packages/pip* /opt/venv/bin/pip*",
        (_APPS / "cricksy/backend/requirements.txt",),
    ),
    "mcbench": _Step(
        "python3 -m venv /opt/venv; /opt/venv/bin/pip install -q --require-hashes --only-binary :all: -r /lab/requirements.txt; "
        "rm -rf /opt/venv/lib/python3.*/site-packages/pip* /opt/venv/bin/pip*",
        (_APPS / "mcbench/requirements.txt",),
    ),
}


def _layers(*names: str) -> tuple[Layer, ...]:
    """Return the layers of the given steps, one on top of the other, built once per recipe; the first is ``base``."""
    found: list[Path] = []
    for name in names:
        below = tuple(found)
        with lock(f"image-{_RELEASE}"):  # the lock that the lab's removal waits for before it takes the cache away
            if name == "base":
                key = image.recipe(_RELEASE, _WITHOUT)
                build = _build_base
            else:
                step = _STEPS[name]
                key = image.recipe(below[-1].name, step.script, step.sockets, [file.read_text() for file in step.files])

                def build(path: Path, step: _Step = step, below: tuple[Path, ...] = below) -> None:
                    _build_step(path, step, below)

            found.append(image.built(f"container-{name}", key, build))
    return tuple(map(_read_layer, found))


def _build_base(path: Path) -> None:
    without = [f"--dpkgopt=path-exclude={pattern}" for pattern in _WITHOUT]
    image.bootstrap(_RELEASE, path / "tree", *without)
    image.chroot(path / "tree", _CLEAN)
    (path / "tree/etc/machine-id").unlink(missing_ok=True)
    _write_layer(path, path / "tree", compress=False)


def _build_step(path: Path, step: _Step, below: tuple[Path, ...]) -> None:
    """Run a step's script on an overlay of the layers below; what it wrote is the new layer."""
    cache.start()
    lab = path / "lab"
    lab.mkdir()
    for file in step.files:
        shutil.copy(file, lab)
    (lab / "ca.pem").write_text(cache.certificate_authorities())
    (lab / "pip.conf").write_text(cache.pip_configuration("/nowhere").replace("/etc/ssl/certs/ca-certificates.crt", "/lab/ca.pem"))
    image.mount(tuple(reversed([directory / "tree" for directory in below])), path / "tree", path / "work", path / "root")
    try:
        policy = path / "root/usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        image.chroot(path / "root", f"{step.script}; {_CLEAN}; rm /usr/sbin/policy-rc.d", f"--bind-ro={lab}:/lab",
                     "--setenv=PIP_CONFIG_FILE=/lab/pip.conf", "--setenv=npm_config_cafile=/lab/ca.pem",
                     "--setenv=PIP_NO_CACHE_DIR=1", f"--setenv=npm_config_registry={_npm_registry()}")  # fmt: skip
        for leftover in ("lab", "etc/resolv.conf"):
            _forget(path / "root" / leftover)
    finally:
        run("umount", path / "root")
    if step.sockets:
        (path / "tree" / step.sockets).mkdir(parents=True)
        (path / "tree" / step.sockets).chmod(0o1777)
    for scratch in ("work", "root", "lab"):
        shutil.rmtree(path / scratch)
    _write_layer(path, path / "tree", compress=False)


def _npm_registry() -> str:
    """Return the registry that this machine's npm uses; empty without npm."""
    return run("npm", "config", "get", "registry").strip().rstrip("/") if shutil.which("npm") else ""


def _forget(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


# --- layers -----------------------------------------------------------------------------------------------------------


def _tree_layer(name: str, version: object, fill: Callable[[Path], None], *, compress: bool = False) -> Layer:
    """Return the layer of a tree that ``fill`` makes, built once per name and version."""
    with lock(f"container-{name}"):
        done = image.built(f"container-{name}", image.recipe(version), lambda path: _build(path, fill, compress))
    return _read_layer(done)


def _read_layer(directory: Path) -> Layer:
    found = json.loads((directory / "layer.json").read_text())
    return Layer(directory / "layer", found["digest"], found["diff_id"], found["media_type"])


def _build(path: Path, fill: Callable[[Path], None], compress: bool) -> None:
    root = path / "root"
    root.mkdir()
    fill(root)
    _write_layer(path, root, compress)
    shutil.rmtree(root)


def _write_layer(path: Path, root: Path, compress: bool) -> None:
    """Write ``layer`` and ``layer.json`` beside a tree. Large layers are not compressed: nobody waits for a network."""
    tar_sum, file_sum = hashlib.sha256(), hashlib.sha256()
    with open(path / "layer", "wb") as file:
        outer = _Summed(file, file_sum)
        inner = gzip.GzipFile(fileobj=outer, mode="wb", mtime=0, filename="") if compress else outer
        _write_tree(_Summed(inner, tar_sum), root)
        if compress:
            inner.close()
    kind = f"{_LAYER}.gzip" if compress else _LAYER
    sums = {"digest": f"sha256:{file_sum.hexdigest()}", "diff_id": f"sha256:{tar_sum.hexdigest()}", "media_type": kind}
    (path / "layer.json").write_text(json.dumps(sums))


class _Summed(io.RawIOBase):
    """Passes on what is written, and keeps its hash."""

    def __init__(self, target: Any, total: Any) -> None:
        self._target, self._total = target, total

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._total.update(data)
        self._target.write(data)
        return len(data)


def _write_tree(target: Any, root: Path) -> None:
    """Write a tree as a tar in a fixed order; what an overlay's upper directory says was removed becomes a whiteout."""
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for directory, names, files in os.walk(root):
            names.sort()
            here = Path(directory).relative_to(root)
            if here.parts and "trusted.overlay.opaque" in os.listxattr(directory):
                tar.addfile(_whiteout(here / ".wh..wh..opq"))
            for name in sorted([*names, *files]):
                path = Path(directory, name)
                status = path.lstat()
                if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                    tar.addfile(_whiteout(here / f".wh.{name}"))
                elif not stat.S_ISSOCK(status.st_mode):
                    tar.add(path, arcname=str(here / name), recursive=False, filter=_plain)


def _whiteout(path: Path) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(str(path))
    entry.mode = 0
    return entry


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same tree gives the same layer: owners by number, whole seconds."""
    entry.uname = entry.gname = ""
    entry.mtime = int(entry.mtime)
    return entry


def _text_layer(files: Mapping[str, str]) -> Layer:
    """Return a layer with a few text files, kept by its content."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, text in sorted(files.items()):
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(text.encode()), 0o755 if text.startswith("#!") else 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    name = digest(content.getvalue())
    file = ROOT / "images" / f"container-text-{name.removeprefix('sha256:')[:24]}"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        beside.write_bytes(content.getvalue())
        beside.rename(file)
    return Layer(file, name, name)


def _write(root: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755 if text.startswith("#!") else 0o644)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
