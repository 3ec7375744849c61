"""Several hosts in one run: what --limit leaves alone, and what a host that cannot be reached does to the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.state import run, wait_for

# Files, a unit and its state: what a deploy does, small enough to see on three hosts in seconds.
DEPLOY = """
from operations import fileset
from operations import unit
from operations.fileset import Directory, File

SERVICE = '''[Service]
ExecStart=/usr/bin/sleep infinity
[Install]
WantedBy=multi-user.target
'''
fileset.files(
    [Directory("/etc/fleet"), File("/etc/fleet/fleet.conf", "x = 1\\n"), File("/etc/systemd/system/fleet.service", SERVICE)],
    name="Upload files",
)
unit.unit("fleet.service", inputs=["/etc/fleet/fleet.conf"], settle_seconds=0, name="Run unit")
"""

# Every inode below the root file system with its last change, what runs with its start, and who logged in by ssh. Left
# out: what the host itself writes all the time (a database's side files too: its application reads it), and services
# that a question to D-Bus starts for half a minute. A directory is what it holds: the overlay that a lab host stands on
# gives it another time as soon as something below it is written.
_EVERYTHING = r"""
find / -xdev -regextype posix-extended -regex '/(run|proc|sys|dev|tmp|var/tmp|var/log|var/lib/systemd)|.*\.db-(shm|wal)' -prune -o \
    -type d -printf '%p %m %u %g\n' -o -printf '%p %i %m %u %g %C@ %l\n' | sort
systemctl list-units --plain --no-legend --type=service,socket,timer --state=active | awk '{ print $1 }' |
    grep -v '^systemd-timedated\|^systemd-hostnamed' |
    while read -r unit; do printf '%s ' "$unit"; systemctl show --value -p InvocationID "$unit"; done
journalctl --quiet --no-pager -t sshd | grep -c "Accepted\|Connection" || :
"""


def everything(host: LabHost) -> list[str]:
    """Return one line for each thing that a run could have changed, a connection alone included."""
    return host.run(f"sync; {_EVERYTHING}").stdout.splitlines()


@pytest.fixture(scope="module")
def three(lab: Lab) -> Iterator[list[LabHost]]:
    hosts = lab.boot_all(*((f"t-fleet-{number}", "bookworm", "bare") for number in (1, 2, 3)))
    yield hosts
    for host in hosts:
        lab.destroy(host)


@pytest.fixture
def clean(three: list[LabHost]) -> list[LabHost]:
    """The three hosts, without what an earlier test's run left."""
    for host in three:
        host.run("systemctl disable --quiet --now fleet.service 2>/dev/null; rm -rf /etc/fleet /etc/systemd/system/fleet*")
        host.run("systemctl daemon-reload")
    return three


def is_provisioned(host: LabHost) -> bool:
    return host.run("systemctl is-active fleet.service", check=False).stdout.strip() == "active"


def test_limit_touches_no_other_host(three: list[LabHost], provision: Callable[..., Run]) -> None:
    before = [everything(host) for host in three]
    done = provision(three, DEPLOY, limit=three[1].name)
    assert done.ok
    after = [everything(host) for host in three]
    assert is_provisioned(three[1])
    assert after[1] != before[1]  # the comparison sees what a run does
    assert after[0] == before[0]
    assert after[2] == before[2]


@pytest.mark.parametrize("limit", ["t-fleet-9", "web", "T-FLEET-1"])
def test_limit_without_hosts_is_refused(three: list[LabHost], provision: Callable[..., Run], limit: str) -> None:
    done = provision(three, DEPLOY, limit=limit)
    assert done.rc != 0
    assert f"--limit {limit}: matches no host" in done.stderr
    assert done.changed == []


def test_dead_host_is_reported_and_the_others_finish(clean: list[LabHost], provision: Callable[..., Run]) -> None:
    dead = clean[0]
    dead.power_off()
    done = provision(clean, DEPLOY)
    dead.boot()
    assert done.rc != 0
    assert complaints(done, dead) != []
    assert [is_provisioned(host) for host in clean] == [False, True, True]
    assert complaints(done, clean[1]) == complaints(done, clean[2]) == []


@pytest.mark.soak
def test_host_that_dies_in_the_middle_is_reported_and_the_others_finish(
    clean: list[LabHost], provision: Callable[..., Run]
) -> None:
    """Without a word, and while the run waits for a word of it."""
    dying = clean[0]
    waiting = f"touch /run/waiting; test $(hostname) != {dying.name} || sleep 3600"
    text = f'from pyinfra.operations import server\nserver.shell("{waiting}", name="Wait")\n' + DEPLOY
    dying.run("rm -f /run/waiting")

    def pull_the_plug() -> None:
        wait_for("the command", lambda: dying.exists("/run/waiting"), 60)
        dying.cut_link()  # else its kernel, which is ours, would close its connections
        dying.kill()

    plug = threading.Thread(target=pull_the_plug)
    plug.start()
    try:
        done = provision(clean, text, timeout=240)
    finally:
        plug.join()
        dying.restore_link()
        dying.boot()
    assert done.rc != 0
    assert complaints(done, dying) != []
    assert [is_provisioned(host) for host in clean] == [False, True, True]
    assert complaints(done, clean[1]) == complaints(done, clean[2]) == []


def test_host_with_another_host_key_is_reported_and_untouched(
    clean: list[LabHost], provision: Callable[..., Run], tmp_path: Path
) -> None:
    odd = clean[1]
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key")
    kind, text = (tmp_path / "key.pub").read_text().split()[:2]
    (tmp_path / "known_hosts").write_text(f"{odd.address} {kind} {text}\n")
    before = everything(odd)
    done = provision(
        clean, DEPLOY, host_data={odd.name: {"ssh_known_hosts_file": str(tmp_path / "known_hosts")}}
    )
    assert done.rc != 0
    assert any("key" in line.lower() for line in complaints(done, odd))
    assert [is_provisioned(host) for host in clean] == [True, False, True]
    assert before[:-1] == everything(odd)[:-1]  # it did see a connection, which ended before anything was said


def test_host_that_refuses_our_key_is_reported_and_untouched(
    clean: list[LabHost], provision: Callable[..., Run], tmp_path: Path
) -> None:
    odd = clean[2]
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key")
    before = everything(odd)
    done = provision(clean, DEPLOY, host_data={odd.name: {"ssh_key": str(tmp_path / "key"), "ssh_allow_agent": False}})
    assert done.rc != 0
    assert any("uthentication" in line for line in complaints(done, odd))
    assert [is_provisioned(host) for host in clean] == [True, True, False]
    assert before[:-1] == everything(odd)[:-1]


def test_failing_operation_ends_one_host_only(clean: list[LabHost], provision: Callable[..., Run]) -> None:
    clean[0].run("mkdir -p /etc/fleet/fleet.conf/in-the-way")
    done = provision(clean, DEPLOY)
    assert done.rc != 0
    assert complaints(done, clean[0]) != []
    assert [is_provisioned(host) for host in clean] == [False, True, True]


def complaints(done: Run, host: LabHost) -> list[str]:
    """Return the lines of pyinfra's log that report an error of a host."""
    about = [line for line in done.stderr.splitlines() if f"[{host.name}]" in line]
    return [line for line in about if "rror" in line or "ould not" in line or "ailed" in line]
