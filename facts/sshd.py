"""How sshd is configured, what of it counts, and where it listens: one command for all of it."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from pyinfra.api import FactBase, QuoteString, StringCommand

from facts.records import Record

_STATE = Path(__file__).parents[1] / "files" / "sshd" / "state.sh"


@dataclass(frozen=True)
class SshdState(Record):
    """
    What ``Sshd`` returns.

    + drop_in: (sha256, octal mode, owner, group) of our drop-in, ``None`` when it is missing
    + first: the first directive of the main file, which wins over all that follow
    + effective: the lines of ``sshd -T``; empty when sshd cannot read its configuration
    + socket_ports: ports of ``ssh.socket`` when systemd listens in sshd's place, else ``None``
    + unread: configuration files that changed after sshd last read them
    + unproven: an earlier change is armed with a rollback that nobody has disarmed yet
    """

    installed: bool = False
    drop_in: tuple[str, str, str, str] | None = None
    first: str = ""
    effective: frozenset[str] = field(default_factory=frozenset)
    socket_ports: frozenset[int] | None = None
    unread: tuple[str, ...] = ()
    unproven: bool = False

    @property
    def ports(self) -> frozenset[int]:
        """The ports that SSH is served on."""
        if self.socket_ports is not None:
            return self.socket_ports
        return frozenset(int(line.split()[1]) for line in self.effective if line.startswith("port "))


def parse(output: list[str]) -> SshdState:
    """Return the state that the records of ``files/sshd/state.sh`` tell of."""
    records: dict[str, list[str]] = defaultdict(list)
    for line in output:
        key, _, value = line.partition("\t")
        records[key].append(value)
    drop_in = None
    if records["sha256"] and records["mode"]:
        mode, owner, group = records["mode"][0].split()
        drop_in = (records["sha256"][0], mode, owner, group)
    return SshdState(
        installed="yes" in records["installed"],
        drop_in=drop_in,
        first=" ".join((records["first"] or [""])[0].split()),
        effective=frozenset(records["effective"]),
        socket_ports=frozenset(map(int, records["socket"])) if records["socket"] else None,
        unread=tuple(records["unread"]),
        unproven="yes" in records["unproven"],
    )


class Sshd(FactBase[SshdState]):
    """
    Returns the state of sshd.

    .. code:: python

        SshdState(
            installed=True,
            drop_in=("9f86d081…", "644", "root", "root"),
            first="Include /etc/ssh/sshd_config.d/*.conf",
            effective=frozenset({"port 22", "passwordauthentication no", ...}),
            socket_ports=None, unread=(), unproven=False,
        )
    """

    default = SshdState

    def command(self) -> StringCommand:
        return StringCommand("sh", "-c", QuoteString(_STATE.read_text()))

    def process(self, output: list[str]) -> SshdState:
        return parse(output)
