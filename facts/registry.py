"""Which account root has at a container registry, and whether the registry takes it."""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from pyinfra.api import FactBase, QuoteString, StringCommand

from facts.records import Record

_FILES = Path(__file__).parents[1] / "files" / "registry"


def ca_file(registry: str) -> str:
    """Return where the engine looks for the CA of a registry."""
    return f"/etc/docker/certs.d/{registry}/ca.crt"


@dataclass(frozen=True)
class Login(Record):
    """
    What ``RegistryLogin`` returns.

    + sealed, salt: a slow, salted hash of the stored account; the account itself stays on the host
    + verdict: what the registry says to the stored account: ``accepted``, ``refused``, or ``unknown`` when it could not
      be asked; empty when none is stored
    + mode: of Docker's file of accounts, empty when there is none
    """

    registered: bool = False
    sealed: str = ""
    salt: str = ""
    verdict: str = ""
    mode: str = ""
    ca_sha256: str = ""


class RegistryLogin(FactBase[Login]):
    """
    Returns root's account at one registry.

    + registry: its name, as in the name of an image

    .. code:: python

        Login(registered=True, sealed="5e88…", salt="9f86…", verdict="accepted", mode="0600", ca_sha256="…")
    """

    default = Login

    def command(self, registry: str) -> StringCommand:
        values = {"registry": registry, "salt": secrets.token_hex(8), "ca_file": ca_file(registry)}
        parts = [(_FILES / name).read_text() for name in ("accounts.py", "state.py")]
        program = "\n".join([*parts, f"main({values!r})"])
        return StringCommand("python3", "-B", "-c", QuoteString(program), "||", "true")

    def process(self, output: list[str]) -> Login:
        return Login(**json.loads(output[-1]))
