"""After a reboot everything is up again, and the next run has nothing to do."""

from __future__ import annotations

import pytest

from tests.lab.deployed import CONVERGED, Deployed
from tests.lab.fingerprint import Fingerprint
from tests.lab.hosts import LabHost


def reboot(host: LabHost) -> None:
    host.reboot()


def power_loss(host: LabHost) -> None:
    host.kill()
    host.boot()


@pytest.mark.parametrize("way", [reboot, pytest.param(power_loss, marks=pytest.mark.soak)])
def test_everything_is_up_and_nothing_is_to_do(deployed: Deployed, way) -> None:  # type: ignore[no-untyped-def]
    host = deployed.host
    host.reset(CONVERGED)
    before = Fingerprint.of(host)
    way(host)
    checks = deployed.verify()
    assert checks.returncode == 0, checks.stdout
    assert before.differences(Fingerprint.of(host)) == []
    again = deployed.converge()
    assert again.ok
    assert again.changed == []
