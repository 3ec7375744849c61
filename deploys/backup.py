"""
Back up, drill, restore and list now: `pyinfra INVENTORY deploys.backup.restore at=latest`.

What a system backs up it declares in its own deploy, with `operations.backup.source`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyinfra import host
from pyinfra.api import DeployError, deploy

from facts.backup import DeclaredSources
from operations import backup


def _sources(source: str) -> Sequence[str]:
    """Return the one that was named, or all that are declared on the host."""
    declared: Sequence[str] = host.get_fact(DeclaredSources)
    if source:
        if source not in declared:
            raise DeployError(
                f"backup: no source {source!r}; declared on this host: {', '.join(declared) or 'none'}"
            )
        return [source]
    return declared


@deploy("Back up")
def run(source: str = "", accept_smaller: bool = False) -> None:
    """Make a backup now: of one source, or of all that the host declares."""
    for each in _sources(source):
        backup.run(each, accept_smaller=accept_smaller, name="Back up now")


@deploy("Restore drill")
def drill(source: str = "") -> None:
    """Restore the newest copies into a scratch place and check them."""
    for each in _sources(source):
        backup.drill(each, name="Drill now")


@deploy("Restore")
def restore(
    source: str = "", at: str = "latest", repository: str = "primary", into: str = "", replace: bool = False
) -> None:
    """
    Restore a checked copy in place: `at=latest`, `verified`, a snapshot id, a day or a time.

    A bucket is restored into an empty one (`into=` another one), or with `replace=true` over what is there.

    Raises DeployError when the host declares several sources and none is named.
    """
    sources = _sources(source)
    if len(sources) > 1:
        raise DeployError(f"backup: restore of which source? source= one of {', '.join(sources)}")
    for each in sources:
        backup.restore(each, at=at, repository=repository, into=into, replace=replace, name="Restore")


@deploy("List copies")
def list(source: str = "") -> None:
    """Show the copies: when taken, how large, when verified, in which repository."""
    for each in _sources(source):
        backup.copies(each, name="List copies")
