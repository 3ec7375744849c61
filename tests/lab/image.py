"""Root file systems of lab hosts, built once from the machine's own mirrors and kept under a hash of their recipe.

``bare`` is what a cloud image has and no more. ``packages`` is an overlay on it with the packages most tests need, so
that a test of, say, an nginx site does not spend its time in apt. ``docker`` is an overlay on that, with the
distribution's Docker engine; ``cricksy`` is another one on it, see :mod:`tests.lab.image_cricksy`. All are read-only
lower layers of a host's overlay.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab import cache, emulation
from tests.lab.state import ROOT, LabError, lock, run

RELEASES = ("bookworm", "trixie")
LAYERS = ("bare", "packages", "docker", "cricksy")

_BARE = ("systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "sudo", "iproute2", "ca-certificates", "cron",
         "curl", "procps", "netbase", "kmod")  # fmt: skip
_PACKAGES = ("nginx", "certbot", "ufw", "restic", "supervisor", "git", "python3-venv", "logrotate", "sqlite3",
             "unattended-upgrades", "chrony")  # fmt: skip
_DOCKER = {"bookworm": ("docker.io",), "trixie": ("docker.io", "docker-cli", "docker-compose", "docker-buildx")}
_CODENAMES = "|".join(RELEASES)

# What makes a root of mmdebstrap into a host that could stand anywhere: no identity of its own, names for loopback.
_FINISH = """
set -e
rm -f /etc/ssh/ssh_host_* /etc/machine-id /var/lib/dbus/machine-id /etc/hostname
: > /etc/machine-id
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log /var/log/bootstrap.log
mkdir -p /root/.ssh
chmod 700 /root/.ssh
"""


@dataclass(frozen=True)
class Image:
    """Lower layers of a host's overlay, uppermost first."""

    release: str
    layers: tuple[Path, ...]


def get(release: str, layer: str = "bare", architecture: str = "amd64") -> Image:
    """Return an image, building what is missing (about 25 s for bare, 40 s for packages, 15 s for docker, each once).

    + release: "bookworm" or "trixie"
    + layer: "bare", "packages", "docker" or "cricksy"
    + architecture: "arm64" for a bare host that qemu runs (see tests/lab/emulation.py); about 10 min

    Several processes may ask at once; one builds, the others wait. Raises LabError when the build fails.
    """
    if release not in RELEASES:
        raise LabError(f"release: one of {', '.join(RELEASES)}, got {release!r}")
    if layer not in LAYERS:
        raise LabError(f"layer: one of {', '.join(LAYERS)}, got {layer!r}")
    if architecture != "amd64":
        return _emulated(release, layer, architecture)
    with lock(f"image-{release}"):
        bare = built(f"{release}-bare", recipe(release, _BARE, _FINISH), lambda path: _build_bare(release, path))
        layers = (bare / "root",)
        if layer != "bare":
            key = recipe(bare.name, _PACKAGES)
            upper = built(f"{release}-packages", key, lambda path: _install(_PACKAGES, layers, path))
            below = (upper / "upper", *layers)
            layers = below
        if layer == "docker":
            packages = ("--no-install-recommends", *_DOCKER[release])  # needrestart and apparmor are recommended
            key = recipe(upper.name, packages)
            upper = built(f"{release}-docker", key, lambda path: _install(packages, below, path))
            layers = (upper / "upper", *below)
    if layer == "cricksy":
        from tests.lab import image_cricksy  # which stands on this module

        layers = image_cricksy.layers(release, layers)
    return Image(release, layers)


def _emulated(release: str, layer: str, architecture: str) -> Image:
    if (layer, architecture) != ("bare", "arm64"):
        raise LabError(f"{architecture}/{layer}: only arm64, and only bare, is there besides amd64")
    emulation.start()
    with lock(f"image-{release}-{architecture}"):  # of its own: nobody else is to wait that long
        key = recipe(release, _BARE, _FINISH, architecture)
        options = (f"--architectures={architecture}", "--skip=check/qemu")
        bare = built(f"{release}-bare-{architecture}", key, lambda path: _build_bare(release, path, *options))
    return Image(release, (bare / "root",))


def unpacked(package: str, release: str = "bookworm") -> Path:
    """Return a directory with the files of a Debian package, fetched once, installed nowhere.

    For what the lab itself runs (pebble) or lends to hosts (libfaketime): neither this machine nor a bare host must
    have it installed.
    """
    layers = get(release).layers
    with lock(f"image-{release}"):
        done = built(f"{release}-{package}", recipe(package), lambda path: _fetch(package, layers, path))
    return done / "files"


def mount(layers: tuple[Path, ...], upper: Path, work: Path, root: Path) -> None:
    """Mount an overlay of ``layers`` (uppermost first) that keeps its changes in ``upper``."""
    for directory in (upper, work, root):
        directory.mkdir(parents=True, exist_ok=True)
    lower = ":".join(map(str, layers))
    run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", root)


def recipe(*parts: object) -> str:
    """Return a short hash of what something is built from, the machine's mirrors included."""
    return hashlib.sha256(repr((parts, cache.apt_options())).encode()).hexdigest()[:12]


def built(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the directory of a finished build, building it under another name first: a killed build leaves no image.

    + key: from :func:`recipe`; the caller holds a lock
    """
    done = ROOT / "images" / f"{name}-{key}"
    if not done.exists():
        scratch = done.with_name(f".{done.name}")
        if scratch.exists():
            _remove_tree(scratch)
        scratch.mkdir(parents=True)
        build(scratch)
        scratch.rename(done)
    return done


def _remove_tree(directory: Path) -> None:
    """Remove a half-built image, unmounting first: never delete through a mount."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in sorted((path for path in mounted if path.startswith(f"{directory}/")), reverse=True):
        run("umount", point)
    shutil.rmtree(directory)


def _sources(release: str) -> list[str]:
    """Return sources.list lines for a release from the machine's own Debian mirrors.

    On a machine that is no Debian (Ubuntu) there is none to copy; mmdebstrap then uses its own default.
    """
    shape = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    found = run("apt-get", "indextargets", "--format", shape, "Created-By: Packages")
    lines = []
    for target in sorted(set(found.splitlines())):
        origin, uri, suite, component = target.split("|")
        wanted = re.sub(rf"^({_CODENAMES})\b", release, suite)
        if origin == "Debian" and component == "main" and wanted.startswith(release):
            lines.append(f"deb {uri} {wanted} main")
    return lines


def _build_bare(release: str, path: Path, *options: str) -> None:
    finish = path / "finish.sh"
    finish.write_text(_FINISH)
    bootstrap(release, path / "root", *options, f"--include={','.join(_BARE)}", f"--customize-hook=chroot \"$1\" sh < {finish}")
    _trust(path / "root")


def bootstrap(release: str, root: Path, *options: str) -> None:
    """Make a minimal root of a release in a directory that does not exist.

    + options: more for mmdebstrap
    """
    cache.start()
    leniency = [f"--aptopt={line.rstrip(';')}" for line in cache.apt_options().splitlines()]
    run("mmdebstrap", "--variant=minbase", *leniency, *options, release, root, *_sources(release), timeout=3600)
    # The cache's address is a matter of each host's creation, not of the image.
    (root / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)


def _trust(root: Path) -> None:
    """Make the image trust the CAs that the outer machine trusts and the distribution does not know."""
    known = (root / "etc/ssl/certs/ca-certificates.crt").read_text()
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", cache.certificate_authorities(), re.S)
    extra = [block for block in blocks if block not in known]
    for number, block in enumerate(extra):
        (root / f"usr/local/share/ca-certificates/lab-{number}.crt").write_text(block)
    if extra:
        run("chroot", root, "update-ca-certificates")


def chroot(root: Path, script: str, *options: str) -> None:
    """Run a shell script in a root with the outer machine's network and the package cache.

    + options: more for systemd-nspawn, as in ``--bind-ro=…``
    """
    apt = root / "etc/apt/apt.conf.d/00lab-build"
    apt.write_text(cache.apt_options())
    try:
        run("systemd-nspawn", "-q", "-D", root, "--register=no", "--keep-unit", "--pipe", "--resolv-conf=replace-host",
            "--setenv=DEBIAN_FRONTEND=noninteractive", *options, "sh", "-ec", script, timeout=1200)  # fmt: skip
    finally:
        apt.unlink()


def _fetch(package: str, layers: tuple[Path, ...], path: Path) -> None:
    cache.start()
    mount(layers, path / "upper", path / "work", path / "root")
    try:
        chroot(path / "root", f"apt-get -q update; mkdir /unpacked; cd /unpacked; apt-get -q download {package}; "
                               f"dpkg -x {package}_*.deb files")  # fmt: skip
        shutil.copytree(path / "root/unpacked/files", path / "files", symlinks=True)
    finally:
        run("umount", path / "root")
    for scratch in ("upper", "work", "root"):
        shutil.rmtree(path / scratch)


def _install(packages: tuple[str, ...], layers: tuple[Path, ...], path: Path) -> None:
    cache.start()
    mount(layers, path / "upper", path / "work", path / "root")
    policy = path / "root/usr/sbin/policy-rc.d"
    try:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        chroot(path / "root", f"apt-get -q update; apt-get -q -y install {' '.join(packages)}; apt-get clean; "
                               "rm -f /usr/sbin/policy-rc.d")  # fmt: skip
    finally:
        run("umount", path / "root")
    shutil.rmtree(path / "work")
