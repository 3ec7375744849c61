"""A signed apt repository that looks like Docker's own, made from the distribution's packages.

Docker's repository is not to be reached from a lab. What is installed from this one under the names and version numbers
of Docker's packages is the distribution's engine, so that it really runs.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from tests.lab.hosts import LabHost
from tests.lab.state import run

VERSIONS = ("28.5.1", "28.5.2")

# On the host: fetch what the distribution has, give it other names, and pack it again.
_REPACK = r"""
set -e
rm -rf /root/repack && mkdir -p /root/repack/out && cd /root/repack
apt-get -q update >/dev/null
sources='docker.io containerd'
! apt-cache show docker-cli >/dev/null 2>&1 || sources="$sources docker-cli"
apt-get -q download $sources >/dev/null
unpack() { dpkg-deb -R "$(ls "$1"_*.deb)" "$1"; }
# pack DIRECTORY NAME VERSION DEPENDS
pack() {
    depends=$4
    awk -v name="$2" -v version="$3" -v depends="$depends" -v others="$5" '
        /^(Package|Version|Source|Depends|Recommends|Suggests|Conflicts|Breaks|Replaces|Provides|Built-Using|Enhances|Static-Built-Using):/ { skip = 1; next }
        /^ / && skip { next }
        { skip = 0; print }
        END {
            print "Package: " name; print "Version: " version
            if (depends) print "Depends: " depends
            if (others) { print "Conflicts: " others; print "Replaces: " others; }
        }' "$1/DEBIAN/control" > control
    awk '/^Description:/ { inside = 1 } inside && (/^Description:/ || /^ /) { text = text $0 "\n"; next } { inside = 0; print } END { printf "%s", text }' control > control.sorted
    cp control.sorted "$1/DEBIAN/control"
    dpkg-deb -Zgzip -z1 -b "$1" "out/$2_$(echo "$3" | tr : _).deb" >/dev/null
}
empty() { rm -rf "$1"; mkdir -p "$1/DEBIAN"; printf 'Package: x\nVersion: 0\nArchitecture: amd64\nMaintainer: Lab <lab@example.org>\nDescription: stands for another package\n of the same repository\n' > "$1/DEBIAN/control"; }
for source in $sources; do unpack $source; done
if [ -d docker-cli ]; then :; else empty docker-cli; fi
for version in VERSIONS; do
    full="5:$version-1~CODENAME"
    pack docker.io docker-ce "$full" "iptables, containerd.io, docker-ce-cli, libc6, libsystemd0" "docker.io"
    pack docker-cli docker-ce-cli "$full" "libc6" "docker.io, docker-cli"
done
pack containerd containerd.io 1.7.28-1 "runc, libc6" containerd
for part in docker-compose-plugin docker-buildx-plugin; do empty $part; pack $part $part 2.40.0-1 "" ""; done
"""


@dataclass(frozen=True)
class Repository:
    """``url`` is what docker_repository is set to."""

    url: str
    fingerprint: str


def build(host: LabHost, directory: Path, url: str) -> Repository:
    """Make the repository of a host's release in a directory that is served at a URL."""
    codename = host.plan.release
    script = _REPACK.replace("VERSIONS", " ".join(VERSIONS)).replace("CODENAME", codename)
    host.run(script, timeout=300)
    pool = directory / "linux/debian/pool"
    pool.mkdir(parents=True)
    # Named by their content: a cache between here and the hosts keeps packages by their address.
    blocks = []
    for name in host.run("ls /root/repack/out").stdout.split():
        source = Path(f"/proc/{host.leader}/root/root/repack/out/{name}")
        content = source.read_bytes()
        target = pool / hashlib.sha256(content).hexdigest() / name
        target.parent.mkdir()
        target.write_bytes(content)
        control = host.run(f"dpkg-deb -f /root/repack/out/{name}").stdout
        blocks.append(
            f"{control}Filename: pool/{target.parent.name}/{name}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
    host.run("rm -rf /root/repack")
    suite = directory / "linux/debian/dists" / codename
    packages = suite / "stable/binary-amd64/Packages"
    packages.parent.mkdir(parents=True)
    packages.write_text("\n".join(blocks))
    packages.with_suffix(".gz").write_bytes(gzip.compress(packages.read_bytes()))
    sums = "".join(
        f" {hashlib.sha256(file.read_bytes()).hexdigest()} {file.stat().st_size} {file.relative_to(suite)}\n"
        for file in (packages, packages.with_suffix(".gz"))
    )
    release = suite / "Release"
    release.write_text(
        f"Origin: Lab\nSuite: {codename}\nCodename: {codename}\nArchitectures: amd64\nComponents: stable\n"
        f"Date: Sun, 01 Nov 2026 00:00:00 UTC\nSHA256:\n{sums}"
    )
    fingerprint = _sign(directory, suite)
    return Repository(f"{url}/linux", fingerprint)


def _sign(directory: Path, suite: Path) -> str:
    home = directory / ".gnupg"
    home.mkdir(mode=0o700)
    gpg = ["env", f"GNUPGHOME={home}", "gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    run(*gpg, "--quick-generate-key", "Lab <lab@example.org>", "rsa3072", "sign", "never")
    run(*gpg, "--clearsign", "--output", suite / "InRelease", suite / "Release")
    (directory / "linux/debian/gpg").write_text(run(*gpg, "--armor", "--export"))
    listed = run(*gpg, "--with-colons", "--list-keys")
    run("env", f"GNUPGHOME={home}", "gpgconf", "--kill", "gpg-agent", check=False)
    os.chmod(directory, 0o755)
    return next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
