"""What facts share: states that pyinfra can print, and records that a script of ``files/`` reports."""

import shlex
from collections import defaultdict
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

_FILES = Path(__file__).parents[1] / "files"


class Record:
    """The base of the dataclasses that facts return: ``pyinfra INVENTORY fact …`` prints them as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields, ready for ``json.dumps``; keys that are tuples are joined by spaces."""
        plain: dict[str, Any] = _plain(self)
        return plain


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {
            " ".join(map(str, key)) if isinstance(key, tuple) else key: _plain(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value


def program(script: str, **variables: str) -> str:
    """Return the text of a script of ``files/``, with these shell variables set in front of it."""
    assignments = "".join(f"{variable}={shlex.quote(value)}\n" for variable, value in variables.items())
    return assignments + (_FILES / script).read_text()


def read(output: list[str]) -> defaultdict[str, list[str]]:
    """Return the values by key; a key that was not printed has none."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in output:
        key, _, value = line.partition("\t")
        found[key].append(value)
    return found
