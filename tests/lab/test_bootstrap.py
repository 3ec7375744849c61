"""bootstrap on a bare host: what `make` needs to run there, from nothing, and what it says where it cannot."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.state import REPOSITORY

_TREE = "/srv/hostwright"


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[LabHost]:
    """A bare host with what bootstrap reads of the repository."""
    host = lab.host("t-bootstrap")
    host.run(f"install -d -m 755 {_TREE}")
    for name in ("bootstrap", "requirements-dev.txt"):
        host.write(f"{_TREE}/{name}", (REPOSITORY / name).read_text())
    host.run(f"chmod 755 {_TREE}/bootstrap")
    yield host
    lab.destroy(host)


def _packages(host: LabHost) -> str:
    return host.run("dpkg-query -W").stdout


@pytest.mark.parametrize(
    ("prepare", "user", "says"),
    [
        ("", "nobody", "bootstrap: needs root or sudo, and sudo asks for a password here: run it as root"),
        ("mv /usr/bin/sudo /usr/bin/sudo.away", "nobody", "bootstrap: needs root or sudo, neither is there"),
        (
            "rm /etc/os-release; printf 'ID=debian\\nVERSION_ID=11\\n' > /etc/os-release",
            "root",
            "bootstrap: needs Debian 12/13 or Ubuntu 22.04/24.04, this is debian 11",
        ),
        (
            "rm /etc/os-release; printf 'ID=fedora\\nVERSION_ID=43\\n' > /etc/os-release",
            "root",
            "bootstrap: needs Debian 12/13 or Ubuntu 22.04/24.04, this is fedora 43",
        ),
    ],
)
def test_refusal_is_one_line_and_nothing_changes(machine: LabHost, prepare: str, user: str, says: str) -> None:
    machine.run(prepare or "true")
    before = _packages(machine)
    done = machine.run(f"cd {_TREE} && runuser -u {user} -- ./bootstrap lab", check=False)
    machine.run(
        "[ ! -e /usr/bin/sudo.away ] || mv /usr/bin/sudo.away /usr/bin/sudo\n"
        "rm -f /etc/os-release && ln -s ../usr/lib/os-release /etc/os-release"
    )
    assert done.returncode == 1
    assert (done.stdout, done.stderr.splitlines()) == ("", [says])
    assert _packages(machine) == before
    assert not machine.exists(f"{_TREE}/.venv")


@pytest.mark.soak
def test_bare_host_gets_packages_and_a_locked_environment_as_root(machine: LabHost) -> None:
    assert "python3-venv" not in _packages(machine)
    done = machine.run(f"cd {_TREE} && ./bootstrap venv", check=False, timeout=300)
    assert done.returncode == 0, done
    assert "==> Debian packages: python3-venv" in done.stdout
    said = machine.run(f"{_TREE}/.venv/bin/pyinfra --version").stdout
    assert said.strip() == "pyinfra: v3.10.0"
    again = machine.run(f"cd {_TREE} && ./bootstrap venv")
    assert (again.stdout, again.stderr) == ("", "")
