"""Applications that the lab deploys: their sources, and the git repositories and archives made from them."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

# Oldest first. The bad ones come after the good ones, as they would in life.
GATEWAY_GOOD = ("v1.0.0", "v1.1.0")
CRICKSY = ("v1.0.0", "v1.1.0", "v1.2.0-unhealthy")
GATEWAY_BAD = ("v1.2.0-does-not-start", "v1.2.1-unhealthy", "v1.2.2-dies")


@dataclass(frozen=True)
class Repository:
    """A bare repository ready to be served over plain HTTP: ``path/objects``, ``path/info/refs`` …"""

    path: Path
    commits: dict[str, str]


def _git(*arguments: str, at: Path) -> str:
    # Fixed author and dates make the commit ids the same on every machine.
    identity = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "lab"), ("EMAIL", "lab@example.org"), ("DATE", "2026-01-01T00:00:00Z"))
    }
    # No configuration of the person who runs the tests: signing, hooks, autocrlf.
    isolation = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "HOME": os.devnull}
    done = subprocess.run(
        ["git", *arguments],
        cwd=at,
        env={"PATH": os.environ["PATH"], **identity, **isolation},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def _tree(version: str, at: Path) -> None:
    """Lay out one release of the gateway: the common source, and over it what this release changes."""
    source = HERE / "gateway"
    # copyfile gives every file a new modification time: git would take a file of the same size and time for unchanged.
    copy = {
        "dirs_exist_ok": True,
        "copy_function": shutil.copyfile,
        "ignore": shutil.ignore_patterns("__pycache__"),
    }
    shutil.copytree(source / "app", at / "app", **copy)
    shutil.copyfile(source / "requirements.txt", at / "requirements.txt")
    overlay = source / "releases" / version
    if overlay.is_dir():
        shutil.copytree(overlay, at, **copy)
    elif version != GATEWAY_GOOD[0]:
        raise ValueError(f"no release {version!r} of the gateway")


def _cricksy_tree(version: str, at: Path) -> None:
    """Lay out one release of cricksy: the common source, and over it what this release and the good one before change."""
    source = HERE / "cricksy"
    copy = {"dirs_exist_ok": True, "copy_function": shutil.copyfile, "ignore": shutil.ignore_patterns("__pycache__")}
    shutil.copytree(source / "backend", at / "backend", **copy)
    for overlay in CRICKSY[1 : CRICKSY.index(version) + 1]:
        shutil.copytree(source / "releases" / overlay, at, **copy)


def gateway_repository(directory: Path) -> Repository:
    """Make ``directory/gateway.git`` with one tagged commit per release; ``directory`` may be served as it is."""
    return _repository(directory, "gateway", GATEWAY_GOOD + GATEWAY_BAD, _tree)


def cricksy_repository(directory: Path) -> Repository:
    """Make ``directory/cricksy.git`` likewise."""
    return _repository(directory, "cricksy", CRICKSY, _cricksy_tree)


def _repository(directory: Path, called: str, versions: Sequence[str], lay_out: Callable[[str, Path], None]) -> Repository:
    work, bare = directory / f"{called}-work", directory / f"{called}.git"
    for old in (work, bare):
        shutil.rmtree(old, ignore_errors=True)
    work.mkdir(parents=True)
    _git("init", "--quiet", "--initial-branch=main", at=work)
    commits = {}
    for version in versions:
        lay_out(version, work)
        _git("add", "--all", at=work)
        _git("commit", "--quiet", "--message", f"Release {version}", at=work)
        _git("tag", "--annotate", "--message", version, version, at=work)
        commits[version] = _git("rev-parse", "HEAD", at=work)
    _git("clone", "--quiet", "--bare", str(work), str(bare), at=directory)
    shutil.rmtree(work)
    publish(bare)
    return Repository(bare, commits)


def publish(bare: Path) -> None:
    """Write what git's plain-file ("dumb") HTTP transport reads; needed again after every change of a reference."""
    _git("update-server-info", at=bare)


def move_tag(repository: Repository, tag: str, commit: str) -> None:
    """Let a tag name another commit, as a force-push upstream does."""
    _git("tag", "--force", "--annotate", "--message", "moved", tag, commit, at=repository.path)
    publish(repository.path)


def gateway_archive(directory: Path, version: str) -> tuple[Path, str]:
    """Make ``gateway-VERSION.tar.gz`` with one top directory, as forges do, and return it with its SHA-256."""
    top = directory / f"gateway-{version}"
    shutil.rmtree(top, ignore_errors=True)
    _tree(version, top)
    archive = Path(shutil.make_archive(str(top), "gztar", directory, top.name))
    shutil.rmtree(top)
    return archive, hashlib.sha256(archive.read_bytes()).hexdigest()
