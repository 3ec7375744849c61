"""Fixtures of the lab tests: real hosts, and pyinfra runs against them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.lab.deployed import Deployed
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.provision import provision as run_pyinfra

# The modules that share the deployed host, which takes a minute and a half to make.
_DEPLOYED = ("test_canary", "test_kills", "test_reboot", "test_verify")
# What takes longest begins first: no worker is left with it when the other one has ended.
_FIRST = (
    "deployed", "test_mcbench", "test_cricksy", "test_k3s_shop", "test_liap", "test_monitoring_alone", "test_replicas", "test_gateway",
    "test_rollout",
)  # fmt: skip


class ByHost(LoadScopeScheduling):
    """One worker runs a module, whose tests share hosts, and one runs all modules that share the deployed host.

    pytest-xdist's own marks for that (``xdist_group``) do nothing with pytest 9.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = PurePosixPath(nodeid.partition("::")[0]).stem
        return "deployed" if module in _DEPLOYED else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByHost:
    config.option.loadscopereorder = False  # as collected, see below
    return ByHost(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        raise pytest.UsageError("lab tests boot hosts and need root: sudo make lab-test")
    alone = {item.path.stem for item in items if "deployed" in getattr(item, "fixturenames", ())} - set(_DEPLOYED)
    if alone:
        raise pytest.UsageError(f"{', '.join(sorted(alone))}: uses the deployed host and is not among _DEPLOYED, so it makes another one")

    def place(item: pytest.Item) -> int:
        scope = "deployed" if item.path.stem in _DEPLOYED else item.path.stem
        return _FIRST.index(scope) if scope in _FIRST else len(_FIRST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab of this process's slot; what the tests made in it is gone at the end."""
    here = Lab()
    yield here
    here.close()


@pytest.fixture(scope="session")
def stranger(lab: Lab) -> LabHost:
    """A host that is provisioned by nothing and trusted by nothing: to scan and to send load from."""
    return lab.host("t-stranger")


@pytest.fixture(scope="module")
def host(lab: Lab, request: pytest.FixtureRequest) -> Iterator[LabHost]:
    """A fresh bare bookworm host that the tests of one module share."""
    noun = request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")
    fresh = lab.host(f"t-{noun}")
    yield fresh
    lab.destroy(fresh)


@pytest.fixture
def fresh_host(lab: Lab) -> Iterator[LabHost]:
    """A fresh bare bookworm host for one test alone."""
    fresh = lab.host("t-fresh")
    yield fresh
    lab.destroy(fresh)


@pytest.fixture(scope="session")
def provision() -> Callable[..., Run]:
    """Run pyinfra against lab hosts: see :func:`tests.lab.provision.provision`."""
    return run_pyinfra


@pytest.fixture(scope="session")
def deployed(lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """A host that the real deploy.py has provisioned: see :class:`tests.lab.deployed.Deployed`.

    For soak tests it begins as a bare host. The gate's has packages: its converges spend less time in apt, and test_gateway
    and test_base begin with nothing.
    """
    is_whole = any("deployed" in getattr(item, "fixturenames", ()) and item.get_closest_marker("soak") for item in request.session.items)
    return Deployed(lab, tmp_path_factory.mktemp("deployed"), "bare" if is_whole else "packages")
