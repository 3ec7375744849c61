"""The accounts of people on a host: one command for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pyinfra.api import FactBase

from facts import records
from facts.records import Record

GROUP = "hostwright-admins"
SUDOERS = "/etc/sudoers.d/90-hostwright"


@dataclass(frozen=True)
class Account(Record):
    """
    One account.

    + has_password: whether a password could open it
    + expires: days since 1970 after which it is closed, or ``never``
    + keys_owner: owner and octal mode of its authorized_keys, ``-`` when there is none
    """

    shell: str
    has_password: bool
    expires: str
    keys_owner: str
    keys_sha256: str


@dataclass(frozen=True)
class AccountState(Record):
    """What ``Accounts`` returns. ``members`` are the accounts that we made; ``sudoers``: owner and mode, sha256."""

    accounts: dict[str, Account] = field(default_factory=dict)
    group: bool = False
    members: frozenset[str] = frozenset()
    sudoers: tuple[str, str] = ("-", "")


def parse(output: list[str]) -> AccountState:
    """Return the state that the records of ``files/account/state.sh`` tell of."""
    found = records.read(output)
    accounts = {}
    for line in found["account"]:
        name, shell, password, expires, owner, sha256 = (*line.split(" "), "")[:6]
        accounts[name] = Account(shell, password == "yes", expires, owner, sha256)
    owner, _, sha256 = (found["sudoers"] or ["- "])[0].partition(" ")
    return AccountState(accounts, "yes" in found["group"], frozenset(found["member"]), (owner, sha256))


class Accounts(FactBase[AccountState]):
    """
    Returns the given accounts and those that we made earlier.

    .. code:: python

        AccountState(
            accounts={"ann": Account("/bin/bash", False, "never", "ann:600", "9f86d081…")},
            group=True, members=frozenset({"ann"}), sudoers=("root:440", "60303ae2…"),
        )
    """

    default = AccountState

    def command(self, names: Sequence[str]) -> str:
        return records.program("account/state.sh", names="\n".join(names), group=GROUP, sudoers=SUDOERS)

    def process(self, output: list[str]) -> AccountState:
        return parse(output)
