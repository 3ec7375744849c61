"""Deploy functions, one module per system; each reads top to bottom as its run book."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from pyinfra.api.exceptions import DeployError
from pyinfra.api.host import Host as InventoryHost
from pyinfra.context import ctx_host

from settings import Host, SettingsError, load_host

_loaded: WeakKeyDictionary[InventoryHost, Host] = WeakKeyDictionary()


def current() -> Host:
    """Return the settings, secrets resolved, of the host that deploy code runs for now.

    Loaded once per host and process: config.py has validated the same data before any connection.
    Raise DeployError with every fault of the host (a secret can have gone meanwhile).
    """
    host = ctx_host.get()  # type: ignore[no-untyped-call]
    if host is None:
        raise DeployError("current: needs a host, call it in deploy code")
    if host not in _loaded:
        try:
            _loaded[host] = load_host(host.name, host.groups, host.data.dict())
        except SettingsError as error:
            raise DeployError(f"settings of {host.name}:\n{error}") from None
    return _loaded[host]
