"""Typed settings of every host: flat inventory data in, frozen models out, or one report of all faults.

host.py            load_host, load_fleet: the way in; rules between the parts of one host
base.py …          one module per system or shared part: its fields, defaults and cross-field rules
inventory.py       keys of pyinfra, group names, addresses
fields.py          types of single values that several models share
section.py         how a part of the data becomes a model and all of its faults
errors.py          what a fault looks like; the translation of pydantic's errors
secret.py, secret_sources.py   secrets, and the only I/O: where they come from
env.py             variables rendered for systemd, docker, compose, shell, supervisor
exposure.py, requirements.py   open ports; what a host must be
reference.py       writes docs/settings.md
"""

from settings.backup import Backup
from settings.base import Admin, Base
from settings.certificate import Certificate
from settings.ci_runner import CiRunner
from settings.codeclashers import Codeclashers
from settings.cricksy import Cricksy
from settings.docker import AddressPool, Docker, Registry
from settings.errors import Fault, SettingsError
from settings.exposure import Port
from settings.gateway import Gateway
from settings.host import Host, load_fleet, load_host
from settings.k3s import K3s, RegistryAccess
from settings.liap import Liap
from settings.liap_services import LiapServices
from settings.mcbench import Mcbench
from settings.monitoring import Monitoring
from settings.requirements import PortClaim, Requirements
from settings.secret import Secret

__all__ = [
    "AddressPool",
    "Admin",
    "Backup",
    "Base",
    "Certificate",
    "CiRunner",
    "Codeclashers",
    "Cricksy",
    "Docker",
    "Fault",
    "Gateway",
    "Host",
    "K3s",
    "Liap",
    "LiapServices",
    "Mcbench",
    "Monitoring",
    "Port",
    "PortClaim",
    "Registry",
    "RegistryAccess",
    "Requirements",
    "Secret",
    "SettingsError",
    "load_fleet",
    "load_host",
]
