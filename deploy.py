"""
What runs on which host: `pyinfra INVENTORY deploy.py`.

One `if` on a line of its own for each system, and no loop over them: pyinfra matches the operations of different hosts
by the line they are called from.
"""

from pyinfra import host

from deploys import current
from deploys.base import base
from deploys.ci_runner import ci_runner
from deploys.codeclashers import codeclashers
from deploys.cricksy import cricksy
from deploys.docker_engine import docker_engine
from deploys.gateway import gateway
from deploys.k3s import k3s
from deploys.k3s import preflight as k3s_preflight
from deploys.liap import liap
from deploys.liap import preflight as liap_preflight
from deploys.liap_services import liap_services
from deploys.mcbench import mcbench
from deploys.mcbench import preflight as mcbench_preflight
from deploys.monitoring import monitoring
from operations import preflight

preflight.host(current().requirements, name="Check host")
if current().mcbench is not None:
    mcbench_preflight()
if current().k3s is not None:
    k3s_preflight()
if current().liap is not None:
    liap_preflight()
preflight.end_if_refused()
base()
if "gateway" in host.groups:
    gateway()
cricksy_settings = current().cricksy
runner_settings = current().ci_runner
if (
    current().mcbench is not None
    or (cricksy_settings is not None and cricksy_settings.runs_containers)
    or current().liap is not None
    or current().monitoring.runs_containers
    or (runner_settings is not None and runner_settings.docker)
):
    docker_engine()
if current().mcbench is not None:
    mcbench()
if current().cricksy is not None:
    cricksy()
if current().k3s is not None:
    k3s()
if current().liap is not None:
    liap()
if current().liap is not None or current().liap_services is not None:
    liap_services()
if current().codeclashers is not None:
    codeclashers()
if runner_settings is not None:
    ci_runner()
if current().monitoring.is_on:
    monitoring()
