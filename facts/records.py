"""How a fact asks a script of ``files/`` for records: one a line, a key, a tab, and a value."""

import shlex
from collections import defaultdict
from pathlib import Path

_FILES = Path(__file__).parents[1] / "files"


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
