"""Which of some Debian packages are installed."""

import shlex
from collections.abc import Sequence

from pyinfra.api import FactBase


class InstalledPackages(FactBase[set[str]]):
    """
    Returns those of the given packages that are installed (and configured).

    .. code:: python

        {"curl", "ufw"}
    """

    default = set

    def command(self, packages: Sequence[str]) -> str:
        names = " ".join(map(shlex.quote, packages))
        return f"dpkg-query --show --showformat='${{db:Status-Status}} ${{Package}}\\n' {names} 2>/dev/null || true"

    def process(self, output: list[str]) -> set[str]:
        pairs = (line.split() for line in output)
        return {name for status, name in pairs if status == "installed"}
