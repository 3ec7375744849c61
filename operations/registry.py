"""
Accounts at container registries.

pyinfra's ``docker.login`` takes a registry that stands in Docker's file for one that is logged in to: a rotated
password is never noticed, and it travels in argv. Here the account is compared, the registry is asked, and the password
goes over stdin.
"""

import hashlib
import re
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.registry import Login, RegistryLogin, ca_file
from operations import script
from settings.secret import Secret

_NAME = r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?"


def _check(operation: str, registry: str) -> None:
    if not re.fullmatch(_NAME, registry):
        raise OperationValueError(
            f"{operation}: registry must be a name such as 'registry.example.org:5000', got {registry!r}"
        )


def is_stored(state: Login, username: str, password: Secret) -> bool:
    """Whether the host has this very account, and the registry has not refused it."""
    account = f"{username}:{password.unmask()}"
    sealed = hashlib.pbkdf2_hmac("sha256", account.encode(), state.salt.encode(), 100_000).hex()
    return state.sealed == sealed and state.verdict != "refused"


@operation()
def login(
    registry: str, username: str, password: Secret, ca: str = ""
) -> Generator[StringCommand, None, None]:
    """
    Log root in to a registry.

    + registry: its name, with the port if it has one, as in the name of an image; ``docker.io`` is Docker Hub
    + username: the account
    + password: its password or token
    + ca: text (PEM) of the CA that signed the registry's certificate; empty: a public one

    Logs in when the host has no account there, has another one, or has one that the registry refuses (it was rotated).
    A registry that does not answer changes nothing for a host that has the account already. The account is kept in
    ``/root/.docker/config.json`` (0600), where only root reads it. A login that fails leaves the old account.

    **Example:**

    .. code:: python

        registry.login("registry.example.org", "puller", settings.password, name="Log in to the registry")
    """
    _check("registry.login", registry)
    faults = []
    if not username or re.search(r"[\x00-\x1f:]", username):
        faults.append(f"username must be one line without a colon, got {username!r}")
    if re.search(r"[\n\r\0]", password.unmask()) or not password.unmask():
        faults.append("password must be one line")
    if ca and "-----BEGIN CERTIFICATE-----" not in ca:
        faults.append("ca must be the text of a certificate in PEM form")
    if faults:
        raise OperationValueError("registry.login: " + "; ".join(faults))

    state = host.get_fact(RegistryLogin, registry=registry)
    ca_text = ca.strip() + "\n" if ca else ""
    has_ca = state.ca_sha256 == (hashlib.sha256(ca_text.encode()).hexdigest() if ca_text else "")
    stored = is_stored(state, username, password)
    if stored and has_ca and state.mode == "0600":
        host.noop(f"logged in to {registry} as {username}")
        return
    yield script.python(
        "registry/accounts.py",
        "registry/login.py",
        values={
            "registry": registry,
            "username": username,
            "password": password,
            "is_stored": stored,
            "ca": ca_text,
            "ca_file": ca_file(registry),
        },
    )


@operation()
def logout(registry: str) -> Generator[StringCommand, None, None]:
    """
    Log root out of a registry, and trust its CA no more.

    + registry: its name

    **Example:**

    .. code:: python

        registry.logout("registry.example.org", name="Log out of the old registry")
    """
    _check("registry.logout", registry)
    state = host.get_fact(RegistryLogin, registry=registry)
    if not state.registered and not state.ca_sha256:
        host.noop(f"not logged in to {registry}")
        return
    yield script.python(
        "registry/accounts.py",
        "registry/login.py",
        values={"registry": registry, "username": "", "ca": "", "ca_file": ca_file(registry)},
    )
