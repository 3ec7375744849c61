"""The exporters that stand on a host."""

from pyinfra.api import FactBase


class Exporters(FactBase[list[str]]):
    """
    Returns the names of the exporters that ``exporter.exporter`` has made, whether they run or not.

    .. code:: python

        ["nginx", "redis-cricksy-broker"]
    """

    default = list

    def command(self) -> str:
        return "ls -1 /etc/systemd/system 2>/dev/null | sed -n 's/^hostwright-exporter-\\(.*\\)\\.service$/\\1/p' || true"

    def process(self, output: list[str]) -> list[str]:
        return sorted(line.strip() for line in output if line.strip())
