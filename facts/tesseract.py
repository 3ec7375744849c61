"""Which Tesseract is on a host, and which languages it reads."""

from dataclasses import dataclass

from pyinfra.api import FactBase

from facts.records import Record


@dataclass(frozen=True)
class TesseractState(Record):
    """+ version: empty when it is not installed; + languages: codes such as ``eng``"""

    version: str = ""
    languages: tuple[str, ...] = ()


class Tesseract(FactBase[TesseractState]):
    """
    Returns the state of Tesseract.

    .. code:: python

        TesseractState(version="5.3.0", languages=("eng", "osd"))
    """

    default = TesseractState

    def command(self) -> str:
        return (
            "tesseract --version 2>&1 | sed -n 's/^tesseract v\\{0,1\\}\\([0-9][^ ]*\\).*/version\\t\\1/p'; "
            "tesseract --list-langs 2>/dev/null | sed '1d; s/^/language\\t/'; true"
        )

    def process(self, output: list[str]) -> TesseractState:
        rows = [line.split("\t") for line in output if "\t" in line]
        return TesseractState(
            next((row[1] for row in rows if row[0] == "version"), ""),
            tuple(row[1] for row in rows if row[0] == "language"),
        )
