"""The layer ``cricksy``: what its hosts install, installed already, and an older release with the very packages that it locks.

A release is built from an older one of the same packages by copying its environment, as on any host that is upgraded. So a test
spends its time neither in apt nor in pip, which hosts of the layers below go through.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from pathlib import Path

from operations import script
from tests.lab import cache, image
from tests.lab.apps import HERE
from tests.lab.state import LabError, lock, run

RELEASE = "bookworm"
_PACKAGES = ("postgresql", "redis-server", "tesseract-ocr", "tesseract-ocr-eng")
_REQUIREMENTS = HERE / "cricksy/backend/requirements.txt"
_BUILD = "release/build.sh"
# An instance of its own name is what runs here; the package's would take its port.
_FINISH = "systemctl --quiet disable redis-server.service"


def layers(release: str, below: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return the layers, uppermost first, building the last one if it is missing (about a minute, once).

    + below: those of ``packages``
    """
    if release != RELEASE:
        raise LabError(f"cricksy: only on {RELEASE}, got {release!r}")
    key = image.recipe(below[0].parent.name, _PACKAGES, _FINISH, _REQUIREMENTS.read_text(), (script.FILES / _BUILD).read_text())
    with lock(f"image-{release}-cricksy"):  # of its own: hosts of other layers are not to wait
        done = image.built(f"{release}-cricksy", key, lambda path: _build(below, path))
    return (done / "upper", *below)


def _build(below: tuple[Path, ...], path: Path) -> None:
    cache.start()
    cache.PIP_CACHE.mkdir(parents=True, exist_ok=True)
    lab = path / "lab"
    lab.mkdir()
    with tarfile.open(lab / "release.tar", "w") as tar:
        tar.add(_REQUIREMENTS, f"cricksy/backend/{_REQUIREMENTS.name}")
    built = script.text(
        [_BUILD],
        {
            "root": "/opt/cricksy", "id": "older", "kind": "archive", "url": "file:///lab/release.tar", "version": "", "commit": "",
            "sha256": hashlib.sha256((lab / "release.tar").read_bytes()).hexdigest(), "requirements": "backend/requirements.txt",
            "python": "distribution", "uv_version": "", "keep": 1, "rebuild": False,
        },
    )  # fmt: skip
    (lab / "release.sh").write_text(built)
    (lab / "pip.conf").write_text(cache.pip_configuration("/lab-pip"))
    image.mount(below, path / "upper", path / "work", path / "root")
    policy = path / "root/usr/sbin/policy-rc.d"
    try:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        install = f"apt-get -q update; apt-get -q -y install --no-install-recommends {' '.join(_PACKAGES)}; apt-get clean"
        image.chroot(path / "root", f"{install}; {_FINISH}; sh /lab/release.sh; rm /usr/sbin/policy-rc.d",
                     f"--bind-ro={lab}:/lab", f"--bind={cache.PIP_CACHE}:/lab-pip",
                     "--setenv=PIP_CONFIG_FILE=/lab/pip.conf", "--setenv=LANG=C.UTF-8")  # fmt: skip
    finally:
        run("umount", path / "root")
    for mounted in ("lab", "lab-pip"):
        (path / "upper" / mounted).rmdir()
    for scratch in ("work", "root", "lab"):
        shutil.rmtree(path / scratch)
