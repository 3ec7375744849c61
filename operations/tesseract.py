"""Tesseract of the distribution, with its languages, proved by reading as the user who will read."""

import re
from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.tesseract import Tesseract
from operations import fileset, script
from operations.fileset import File

PROOF = "/usr/local/lib/hostwright/tesseract-proof"
_IMAGE = "/usr/local/share/hostwright/tesseract.png"
_PROVED = "/usr/local/share/hostwright/tesseract.proved"
_LANGUAGE = re.compile(r"[a-z]{3}(_[a-z]{3,5})?")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


def package(language: str) -> str:
    """Return the package of a language: ``tesseract-ocr-chi-sim`` of ``chi_sim``."""
    return f"tesseract-ocr-{language.replace('_', '-')}"


@operation()
def languages(languages: Sequence[str] = ("eng",), user: str = "nobody") -> Generator[StringCommand, None, None]:
    """
    Install Tesseract and language packs, and prove that they read.

    + languages: codes such as ``eng`` or ``chi_sim``, in the order in which the application tries them
    + user: who will read: an image with known text is read as this one, once in each language, whenever version, languages or
      user are others than at the last proof

    Packs that are not named stay. A pack whose data is gone is installed again.

    Raises ``OperationValueError`` for codes that are none.

    **Example:**

    .. code:: python

        tesseract.languages(["eng", "deu"], user="shop", name="Install Tesseract")
    """
    faults = [f"not a language such as 'eng' or 'chi_sim': {one!r}" for one in languages if not _LANGUAGE.fullmatch(one)]
    if not languages:
        faults.append("languages is empty: write ['eng']")
    if not _USER.fullmatch(user):
        faults.append(f"not a user: {user!r}")
    if faults:
        raise OperationValueError("tesseract.languages: " + "; ".join(faults))

    found = host.get_fact(Tesseract)
    missing = [one for one in languages if one not in found.languages]
    if missing or not found.version:
        packages = " ".join(["tesseract-ocr", *map(package, languages)])
        again = "--reinstall " if found.version else ""
        yield script.run("dpkg/install.sh", packages=again + packages, list_hours=24)
        found = host.get_fact(Tesseract)
    proved = f"{found.version}\n{user}\n{' '.join(languages)}\n"
    yield from fileset.files._inner(
        entries=[
            File(_IMAGE, (script.FILES / "tesseract/sample.png").read_bytes()),
            File(PROOF, (script.FILES / "tesseract/proof.sh").read_text(), mode="0755"),
            File(_PROVED, proved),
        ],
        apply=" ".join([PROOF, user, *languages]),
    )
