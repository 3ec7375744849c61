"""What PgBouncer is on a host, and with which salts its server keeps passwords: one command."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyinfra.api import FactBase

from facts.records import Record

PACKAGE, EXPORTER = "pgbouncer", "prometheus-pgbouncer-exporter"
_PROGRAM = Path(__file__).parents[1] / "files" / "pgbouncer" / "pgbouncer.py"


@dataclass(frozen=True)
class RunningSetting(Record):
    """A setting of the running one. + value: as it shows it; + changeable: whether a reload changes it"""

    value: str
    changeable: bool


@dataclass(frozen=True)
class PgbouncerState(Record):
    """
    + installed, candidates: versions by package, of what is there and of what apt would install
    + account: the account that it runs as exists
    + running: its settings; empty when it does not run
    + userlist: what is kept of each user's password (salted)
    + salts: (salt in base64, rounds) that the server keeps a user's password with; + faults: why it did not say it
    """

    installed: dict[str, str] = field(default_factory=dict)
    candidates: dict[str, str] = field(default_factory=dict)
    account: bool = False
    running: dict[str, RunningSetting] = field(default_factory=dict)
    userlist: dict[str, str] = field(default_factory=dict, repr=False)
    salts: dict[str, tuple[str, int]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def version(self, package: str) -> tuple[int, ...]:
        """Return the version of what is installed or would be, without Debian's own part; ``()`` when nobody knows."""
        text = self.installed.get(package) or self.candidates.get(package, "")
        return tuple(map(int, re.findall(r"\d+", text.rpartition(":")[2].partition("-")[0])))


class Pgbouncer(FactBase[PgbouncerState]):
    """
    Returns the state of PgBouncer.

    + server: where its PostgreSQL is: a directory of sockets or an address; + port: of it
    + ca: certificate of the authority that the server is checked against, empty on the same host
    + database: to log in to; + users: whose salts are asked for

    .. code:: python

        PgbouncerState(installed={"pgbouncer": "1.24.1-1+deb13u2"}, account=True, running={"pool_mode": …}, salts={"shop": ("c2Fs…", 4096)}, …)
    """

    default = PgbouncerState

    def command(self, server: str, port: int, ca: str, database: str, users: Sequence[str]) -> str:
        asked = {"host": server, "port": port, "ca": ca, "database": database, "users": list(users)}
        return shlex.join(["timeout", "120", "python3", "-B", "-c", _PROGRAM.read_text(), "look", json.dumps(asked)]) + " 2>/dev/null; true"

    def process(self, output: list[str]) -> PgbouncerState:
        found = json.loads(output[-1])
        running = {key: RunningSetting(value, changeable == "yes") for key, (value, changeable) in found.pop("running").items()}
        salts = {user: (salt, rounds) for user, (salt, rounds) in found.pop("salts").items()}
        return PgbouncerState(running=running, salts=salts, **found)
