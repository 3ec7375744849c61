"""inventories/lab.py as a topology: the same declaration is pyinfra's inventory and the list of hosts to boot.

So is inventories/lab_mcbench.py; what reads a topology takes the inventory's path.
"""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import apps, hosts, network
from tests.lab.lab import Lab
from tests.lab.registry import HOST, PORT
from tests.lab.state import REPOSITORY, LabError, default_slot, slot_directory

INVENTORY = REPOSITORY / "inventories" / "lab.py"
MCBENCH = REPOSITORY / "inventories" / "lab_mcbench.py"

_REPOSITORIES_PORT = 8090
Entry = tuple[str, dict[str, Any]]


def declare(name: str, index: int, release: str = "bookworm", **data: object) -> Entry:
    """Declare one lab host, as an entry of a pyinfra inventory.

    + index: last part of its addresses in the slot, 2 to 99
    + release: "bookworm" or "trixie"
    + data: further host data
    """
    if not 2 <= index < 100:
        raise LabError(f"{name}: index: 2 to 99, got {index}")
    slot = default_slot()
    connection = hosts.connection(slot, network.address(slot, index))
    return name, {**connection, "lab_release": release, "lab_index": index, **data}


def repository(name: str) -> str:
    """Return the URL at which the topology's hosts find a git repository of tests/lab/apps, such as "gateway"."""
    return f"http://{network.gateway(default_slot())}:{_REPOSITORIES_PORT}/{name}.git"


def address(index: int) -> str:
    """Return the IPv4 address of the host with an index."""
    return network.address(default_slot(), index)


@dataclass(frozen=True)
class RegistryOfSlot:
    """The slot's container registry as an inventory names it; its CA (PEM) is empty before it was first started."""

    name: str
    ca: str


def registry() -> RegistryOfSlot:
    """Return the slot's registry, running or not."""
    ca = slot_directory(default_slot()) / "registry" / "ca.pem"
    return RegistryOfSlot(f"{HOST}:{PORT}", ca.read_text() if ca.exists() else "")


def declared(inventory: Path = INVENTORY) -> dict[str, Entry]:
    """Return all hosts of a lab inventory by name, strangers (``_stranger``) included."""
    found: dict[str, Entry] = {}
    for value in runpy.run_path(str(inventory)).values():
        members = value if isinstance(value, list) else [value]
        for member in members:
            if isinstance(member, tuple) and len(member) == 2 and "lab_index" in member[1]:
                found[member[0]] = member
    return found


def groups(inventory: Path = INVENTORY) -> dict[str, list[str]]:
    """Return the group names of a lab inventory, each with the names of its hosts."""
    return {
        group: [entry[0] for entry in value]
        for group, value in runpy.run_path(str(inventory)).items()
        if not group.startswith("_") and isinstance(value, list)
    }


def boot(layer: str = "bare", inventory: Path = INVENTORY) -> tuple[Lab, list[str]]:
    """Boot what the topology declares and is not running yet, with what its hosts need around them: an ACME server
    for their domains, and the repositories they install from.

    Return the lab and the names of newly made hosts.
    """
    lab = Lab()
    existing = {plan.name for plan in hosts.plans(lab.slot)}
    entries = declared(inventory)
    wanted = []
    for name, (_, data) in entries.items():
        if name in existing:
            lab.hosts[name] = hosts.LabHost.find(lab.slot, name)
            lab.hosts[name].boot()
        else:
            wanted.append((name, str(data["lab_release"]), layer, int(data["lab_index"])))
    lab.boot_all(*wanted)
    acme = lab.acme()
    for name, (_, data) in entries.items():
        for key, domain in data.items():
            if key.endswith("_domain"):
                acme.add_name(str(domain), lab.hosts[name])
    sources = slot_directory(lab.slot) / "repositories"
    if not sources.exists():
        sources.mkdir()
        apps.gateway_repository(sources)
    lab.serve(sources, _REPOSITORIES_PORT)
    return lab, [words[0] for words in wanted]
