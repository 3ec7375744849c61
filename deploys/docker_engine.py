"""
The Docker engine of a host that runs containers: packages, configuration, accounts at registries, published ports.

Read top to bottom, it is the run book. What each step guards against is told in docs/docker.md.
"""

from pathlib import Path
from typing import Any

from pyinfra.api import deploy

from deploys import current
from operations import dpkg, engine, fileset, published, registry, unit
from operations.fileset import Absent, File
from operations.template import render
from settings import Docker

_FILES = Path(__file__).parents[1] / "files"
ENDING = "hostwright-containers.service"
_ENDING_PROGRAM = "/usr/local/lib/hostwright/end-containers"
PORTS = "hostwright-engine-ports.service"
_PORTS_PROGRAM = "/usr/local/lib/hostwright/engine-ports"


@deploy("Docker engine")
def docker_engine() -> None:
    """Converge one host's engine to its settings; for hosts that run containers, before whatever runs in them."""
    host = current()
    settings = host.docker
    if settings.published_enabled:
        # First: on a bare host no port is open before it is declared.
        dpkg.packages(["nftables"], name="Install nftables")
        published.ports(
            host.exposure, bridges=settings.bridges, name="Close published ports that are not declared"
        )
    engine.engine(
        source=settings.source,
        version=settings.engine_version,
        containerd_version=settings.containerd_version,
        repository=settings.repository,
        key_url=settings.key_url,
        key_fingerprint=settings.key_fingerprint,
        compose=settings.compose,
        buildx=settings.buildx,
        keep_containers=settings.live_restore,
        name="Install the engine",
    )
    engine.daemon(daemon_options(settings), name="Configure the engine")
    _ending(settings)
    give_back_ports()
    for name, account in sorted(settings.registries.items()):
        registry.login(name, account.username, account.password, ca=account.ca, name="Log in to registries")
    for name in settings.removed_registries:
        registry.logout(name, name="Log out of registries")
    if not settings.published_enabled:
        published.ports((), present=False, name="Leave published ports open")


def daemon_options(settings: Docker) -> dict[str, Any]:
    """Return daemon.json. What a reload can change stands there always: a key that is gone keeps its value."""
    options: dict[str, Any] = {
        "debug": False,
        "insecure-registries": list(settings.insecure_registries),
        "labels": [],
        "live-restore": settings.live_restore,
        "log-driver": settings.log_driver,
        "registry-mirrors": list(settings.registry_mirrors),
        **settings.daemon,
    }
    if settings.log_driver != "journald":  # journald has limits of its own and refuses these
        options["log-opts"] = {
            "max-size": f"{settings.log_max_size_mb}m",
            "max-file": str(settings.log_files),
        }
    if settings.address_pools:
        options["default-address-pools"] = [
            {"base": pool.base, "size": pool.size} for pool in settings.address_pools
        ]
    if settings.ipv6_network:
        options |= {"ipv6": True, "fixed-cidr-v6": settings.ipv6_network, "ip6tables": True}
    if settings.publish_address:
        options["ip"] = settings.publish_address
        if ":" not in settings.publish_address:
            binding = {"com.docker.network.bridge.host_binding_ipv4": settings.publish_address}
            options["default-network-opts"] = {"bridge": binding}
    return options


def _ending(settings: Docker) -> None:
    """Containers that outlive the engine must still be ended in order with the host."""
    program, service = _ENDING_PROGRAM, f"/etc/systemd/system/{ENDING}"
    if settings.live_restore:
        fileset.files(
            [
                File(program, (_FILES / "engine/end-containers.sh").read_text(), mode="0755"),
                File(service, render(f"engine/{ENDING}.j2", program=program)),
            ],
            name="End containers in order when the host goes down",
        )
        unit.unit(ENDING, settle_seconds=0, name="Have containers ended in order")
    else:
        unit.unit(ENDING, running=False, enabled=False, name="Leave containers to the engine")
        fileset.files([Absent(program), Absent(service)], name="Remove what ends containers")


def give_back_ports() -> None:
    """Heal what a lost power does to the engine, see ``files/engine/ports.py``, whenever the engine starts."""
    parts = ("engine/detour.py", "engine/ports.py")
    fileset.files(
        [
            File(_PORTS_PROGRAM, "\n\n".join((_FILES / part).read_text() for part in parts), mode="0755"),
            File(f"/etc/systemd/system/{PORTS}", render(f"engine/{PORTS}.j2", program=_PORTS_PROGRAM)),
        ],
        name="Heal ports that a lost power leaves taken",
    )
    unit.unit(PORTS, running=False, settle_seconds=0, name="Have lost ports looked for when the engine starts")
