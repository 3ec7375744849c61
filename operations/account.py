"""
The accounts of the people who look after a host.

pyinfra's ``server.user`` asks four facts per account and never takes a right away. Here all accounts are one fact, and
the accounts that we made are members of a group: who is no longer declared loses keys, sudo and the way in.
"""

import hashlib
from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.account import GROUP, SUDOERS, Account, Accounts
from operations import script
from settings import Admin

_SHELL = "/bin/bash"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def keys_text(admin: Admin) -> str:
    """Return the content of the person's authorized_keys."""
    return "\n".join(["# Written by Hostwright", *admin.keys]) + "\n"


def sudoers_text(admins: Sequence[Admin]) -> str:
    """Return the content of our sudoers file; empty when nobody may become root."""
    rules = [f"{admin.name} ALL=(ALL:ALL) NOPASSWD: ALL" for admin in admins if admin.sudo == "nopasswd"]
    return "\n".join(["# Written by Hostwright", *rules]) + "\n" if rules else ""


def _is_as_wanted(admin: Admin, account: Account | None) -> bool:
    return account == Account(_SHELL, False, "never", f"{admin.name}:600", _sha256(keys_text(admin)))


@operation()
def admins(admins: Sequence[Admin], removed: Sequence[str] = ()) -> Generator[StringCommand, None, None]:
    """
    Give people their accounts: by key only, without a password.

    + admins: everybody who has an account; whoever was given one here earlier and is not among them is locked out:
      no keys, no sudo, expired account, home directory kept
    + removed: accounts that must not exist; their processes are ended, their files stay

    Accounts that were made otherwise are not touched unless they are named here.

    Raises ``OperationValueError`` when someone is both an admin and removed.

    **Example:**

    .. code:: python

        account.admins([Admin(name="ann", keys=["ssh-ed25519 AAAA… ann@laptop"])], name="Manage admins")
    """
    wanted = {admin.name: admin for admin in admins}
    if both := sorted(wanted.keys() & set(removed)):
        raise OperationValueError(f"account.admins: {', '.join(both)}: cannot be an admin and removed")

    state = host.get_fact(Accounts, names=[*wanted, *removed])
    sudoers = sudoers_text(admins)

    to_open = [
        name
        for name, admin in wanted.items()
        if name not in state.members or not _is_as_wanted(admin, state.accounts.get(name))
    ]
    to_drop = sorted(state.members - wanted.keys() - set(removed))
    to_remove = [name for name in removed if name in state.accounts]
    do_sudoers = state.sudoers != (("root:440", _sha256(sudoers)) if sudoers else ("-", ""))
    if not (to_open or to_drop or to_remove or do_sudoers):
        host.noop("the admins have what they should have, and nobody else does")
        return

    yield script.run(
        "account/apply.sh",
        accounts=" ".join(to_open),
        keys="\n".join(f"{name} {key}" for name in to_open for key in wanted[name].keys),
        dropped=" ".join(to_drop),
        removed=" ".join(to_remove),
        group=GROUP,
        sudoers=SUDOERS,
        rules=sudoers.rstrip("\n"),
    )
