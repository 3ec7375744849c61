"""The releases of one application that stand complete on a host."""

import shlex
from dataclasses import dataclass

from pyinfra.api import FactBase

from facts.records import Record

# A release counts when its marker stands, nothing below it is younger than the marker (a hand-made change), and its
# interpreter is still the one it was built with: after an upgrade of the distribution, /usr/bin/python3 is another.
_COMMAND = r"""
root={root}
[ ! -d "$root" ] || echo "root"
for marker in "$root"/releases/*/.complete; do
    [ -f "$marker" ] || continue
    at=${{marker%/.complete}}
    echo "release=${{at##*/}}"
    cat "$marker"
    echo "current_interpreter=$(readlink -f "$at/venv/bin/python" 2>/dev/null)"
    [ -d "$at/src" ] || echo "touched=$at/src"
    echo "touched=$(find "$at/src" "$at/venv" -name __pycache__ -prune -o -cnewer "$marker" -print -quit 2>/dev/null)"
done
"""


@dataclass(frozen=True)
class Release(Record):
    """
    One release as its marker describes it.

    ``commit`` is the commit's full id, or the archive's SHA-256. ``fault`` says why it must be built again, or is empty.
    """

    source: str
    version: str
    commit: str
    fault: str = ""


def _release(values: dict[str, str]) -> Release:
    fault = ""
    if values.get("interpreter") != values.get("current_interpreter"):
        fault = f"built with {values.get('interpreter')}, which is now {values.get('current_interpreter') or 'gone'}"
    elif values.get("touched"):
        fault = f"changed by hand: {values['touched']}"
    return Release(values.get("source", ""), values.get("version", ""), values.get("commit", ""), fault)


class Releases(FactBase[dict[str, Release] | None]):
    """
    Return the complete releases below ``app_root``, ``None`` when there is no ``app_root``.

    .. code:: python

        {"v1.0.0-1f2e3d4c": Release(source="https://…", version="v1.0.0", commit="8328…", fault="")}
    """

    def command(self, app_root: str) -> str:
        return _COMMAND.format(root=shlex.quote(app_root))

    @staticmethod
    def default() -> None:
        return None

    def process(self, output: list[str]) -> dict[str, Release]:
        found: dict[str, dict[str, str]] = {}
        for line in output:
            key, _, value = line.strip().partition("=")
            if key == "release":
                values = found.setdefault(value, {})
            elif found and (value or key not in values):
                values[key] = value
        return {name: _release(values) for name, values in found.items()}
