"""
Versioned releases of a Python application, each in a directory of its own with its own virtual environment.

``APP_ROOT/releases/ID`` holds ``src`` and ``venv``, owned by root and read-only for the service. A release is built in a
hidden directory and renamed when it is whole, so that what stands under its name is always complete. Which release
serves is not decided here: see ``operations.rollout``.
"""

import hashlib
import re
from collections.abc import Generator
from dataclasses import dataclass

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.release import Releases
from operations import script

# Pinned like everything else that runs as root.
UV_VERSION = "0.13.9"

_URL = re.compile(r"(https?|ssh|git|file)://[^\s'\"\\]+|[\w.-]+@[\w.-]+:[^\s'\"\\:]+|/[^\s'\"\\]+")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/-]{0,99}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PYTHON = re.compile(r"distribution|uv:3\.\d{1,2}(\.\d{1,2})?")


@dataclass(frozen=True)
class GitSource:
    """
    A commit of a git repository that the host can fetch without being asked anything.

    + url: ``https://…``, ``ssh://…`` or ``user@host:path``, without a password in it
    + version: a tag, or the commit's full id (40 hex digits). A branch is not a version
    + commit: what the tag must name, for those who do not trust a tag; empty: whatever it named when it was first built
    """

    url: str
    version: str
    commit: str = ""

    kind = "git"
    sha256 = ""


@dataclass(frozen=True)
class ArchiveSource:
    """
    A ``.tar.*`` or ``.zip`` archive, with or without one top directory around everything.

    + url: ``https://…``
    + sha256: of the archive; checked before anything is unpacked
    """

    url: str
    sha256: str

    kind = "archive"
    commit = ""

    @property
    def version(self) -> str:
        return self.sha256[:12]


Source = GitSource | ArchiveSource


def _faults(app_root: str, source: Source, requirements: str, python: str, keep: int) -> list[str]:
    faults = []
    if not re.fullmatch(r"(/[A-Za-z0-9][A-Za-z0-9._-]*){2,}", app_root):
        faults.append(f"app_root must be an absolute path like /opt/shop, got {app_root!r}")
    if not _URL.fullmatch(source.url):
        faults.append(f"url must be https://…, ssh://… or user@host:path, got {source.url!r}")
    elif re.match(r"\w+://[^/@]*:[^/@]*@", source.url):
        faults.append("url must not hold a password: it is written down on the host")
    if isinstance(source, GitSource):
        if not _VERSION.fullmatch(source.version) or ".." in source.version:
            faults.append(f"version must be a tag or a full commit id, got {source.version!r}")
        if source.commit and not _COMMIT.fullmatch(source.commit):
            faults.append(f"commit must be 40 hex digits, got {source.commit!r}")
    elif not _SHA256.fullmatch(source.sha256):
        faults.append(f"sha256 must be 64 hex digits, got {source.sha256!r}")
    if requirements.startswith(("/", "-")) or ".." in requirements.split("/"):
        faults.append(f"requirements must be a path inside the source, got {requirements!r}")
    if not _PYTHON.fullmatch(python):
        faults.append(f"python must be 'distribution' or like 'uv:3.12', got {python!r}")
    if keep < 1:
        faults.append(f"keep must be at least 1, got {keep!r}")
    return faults


def release_id(source: Source, requirements: str = "requirements.txt", python: str = "distribution") -> str:
    """
    Name a release after all that goes into its build: known before anything is fetched, so that a plan can be made.

    >>> release_id(GitSource("https://example.org/shop.git", "v1.0.0"))
    'v1.0.0-…8 hex digits…'
    """
    parts = (source.kind, source.url, source.version, source.commit, source.sha256, requirements, python)
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
    return f"{source.version[:40].replace('/', '_')}-{digest}"


def release_path(
    app_root: str, source: Source, requirements: str = "requirements.txt", python: str = "distribution"
) -> str:
    """Return the directory that ``release`` with the same arguments builds."""
    return f"{app_root}/releases/{release_id(source, requirements, python)}"


@operation()
def release(
    app_root: str,
    source: Source | None = None,
    requirements: str = "requirements.txt",
    python: str = "distribution",
    keep: int = 3,
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Build a release beside the ones that are there, without touching what runs.

    + app_root: e.g. ``/opt/shop``; releases stand in ``APP_ROOT/releases/ID``
    + source: ``GitSource`` or ``ArchiveSource``
    + requirements: file in the source, installed with ``--require-hashes`` when it holds hashes; empty for none
    + python: ``distribution`` (``python3`` of the host), or ``uv:3.12``: that version by uv, downloaded when the host lacks it
    + keep: how many releases stay after a build, newest first. Those that a unit, a supervisor program, a stored rollout
      spec or a running process names stay besides
    + present: ``False`` removes all releases of the application, and refuses while one is in use

    A complete release is not fetched again: a run needs the repository only when it builds. A tag that names another
    commit than the one this host built under it before is refused. A release that was changed by hand, or whose
    interpreter is gone, is built again.

    Raises ``OperationValueError`` for bad arguments, all in one message.

    **Example:**

    .. code:: python

        release.release("/opt/shop", GitSource("https://example.org/shop.git", "v1.4.0"), name="Build release")
    """
    if present and source is None:
        raise OperationValueError("release.release: source is needed unless present=False")
    faults = _faults(app_root, source, requirements, python, keep) if source else []
    if faults:
        raise OperationValueError("release.release: " + "; ".join(faults))

    releases = host.get_fact(Releases, app_root=app_root)
    if source is None:
        if releases is None:
            host.noop(f"{app_root} does not exist")
        else:
            yield script.run("release/remove.sh", root=app_root)
        return

    wanted = release_id(source, requirements, python)
    found = (releases or {}).get(wanted)
    if found and not found.fault:
        host.noop(f"release {wanted} is complete")
        return
    yield script.run(
        "release/build.sh",
        root=app_root,
        id=wanted,
        kind=source.kind,
        url=source.url,
        version=source.version,
        commit=source.commit,
        sha256=source.sha256,
        requirements=requirements,
        python=python,
        uv_version=UV_VERSION,
        keep=keep,
        rebuild=bool(found and found.fault),
    )
