"""Container images, made without a Docker daemon: file trees become layers, layers and settings become images.

A layer is built once per recipe and kept beside the images of hosts. An image is put together from layers in an
instant, so a test makes as many as it needs: ``make(images.get("busybox"), environment={"GREETING": "hello"})``.
:mod:`tests.lab.registry` serves them.
"""

from __future__ import annotations

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

from tests.lab import image
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


CATALOGUE: dict[str, Callable[[str], Image | Index]] = {"busybox": _busybox, "platforms": _platforms}


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
