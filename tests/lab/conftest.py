"""Fixtures of the lab tests: real hosts, and pyinfra runs against them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.lab.deployed import Deployed
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.provision import provision as run_pyinfra


def pytest_collection_modifyitems() -> None:
    if os.geteuid() != 0:
        raise pytest.UsageError("lab tests boot hosts and need root: sudo make lab-test")


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
def deployed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """A host that the real deploy.py has provisioned: see :class:`tests.lab.deployed.Deployed`."""
    return Deployed(lab, tmp_path_factory.mktemp("deployed"))
