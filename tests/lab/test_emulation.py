"""A host of another architecture."""

from __future__ import annotations

import pytest

from tests.lab.lab import Lab


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_arm64_host_is_one_and_can_be_provisioned(lab: Lab, provision) -> None:  # type: ignore[no-untyped-def]
    host = lab.host("t-arm64", architecture="arm64")
    assert host.run("uname -m; dpkg --print-architecture").stdout == "aarch64\narm64\n"
    assert host.ssh("python3 -c 'import platform; print(platform.machine())'").stdout == "aarch64\n"
    operations = 'from pyinfra.operations import server\nserver.shell("uname -m > /etc/machine", name="Write")'
    assert provision(host, operations).ok
    assert host.read("/etc/machine") == "aarch64\n"
    host.reboot()
    assert host.read("/etc/machine") == "aarch64\n"
    host.reset()
    assert not host.exists("/etc/machine")
    lab.destroy(host)
