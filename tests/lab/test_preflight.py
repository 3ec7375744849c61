"""A host that cannot carry its systems is refused before the first change, and only that host."""

import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab.provision import command_line
from tests.lab.state import REPOSITORY, wait_for

MARK = """
from pyinfra.operations import files
files.file("/root/touched", name="Touch")
"""
CHECK = """
from operations import preflight
from settings import PortClaim, Requirements
preflight.host(Requirements({needs}), name="Check host")
"""


@pytest.fixture(scope="module")
def pair(lab, host):
    """Two fresh hosts; on the second, something else holds port 80."""
    other = lab.host("t-preflight-2")
    other.run("systemd-run --unit squatter python3 -m http.server 80 --bind 0.0.0.0")
    other.run("for i in $(seq 50); do ss -Hltn 'sport = :80' | grep -q . && exit 0; sleep 0.1; done; exit 1")
    yield host, other
    lab.destroy(other)


def touched(host):
    return host.run("test -e /root/touched", check=False).returncode == 0


def test_fit_host_is_not_changed(provision, host):
    needs = "memory_mb=64, disk_root_mb=64, disk_var_mb=64, ports=(PortClaim(22, ('sshd',)), PortClaim(80, ('nginx',)))"
    run = provision(host, CHECK.format(needs=needs))
    assert run.ok, run
    assert run.changed == []


def test_port_in_use_refuses_that_host_and_no_other(provision, pair):
    fit, unfit = pair
    run = provision([fit, unfit], CHECK.format(needs="ports=(PortClaim(80, ('nginx',)),)") + MARK)
    assert run.rc == 1, run
    assert "port 80/tcp: must be free or held by nginx, got python3 (squatter.service)" in run.stderr, run
    assert touched(fit)
    assert not touched(unfit)
    assert run.failed[0] == "Check host"
    fit.run("rm /root/touched")


def test_holder_may_be_named_by_its_unit(provision, pair):
    run = provision(pair[1], CHECK.format(needs="ports=(PortClaim(80, ('squat*.service',)),)"))
    assert run.ok, run


def test_all_faults_of_all_hosts_are_said_and_nothing_is_changed(provision, pair):
    needs = "memory_mb=99999999, cores=4000, releases=(('plan9', '4'),), python=(9, 0), disk_var_mb=99999999"
    run = provision(pair, CHECK.format(needs=needs) + MARK)
    assert run.rc == 1, run
    for rule in (
        "memory: must be 99999999 MB or more, got ",
        "cores: must be 4000 or more, got 2",
        "release: must be plan9 4, got debian 12",
        "python3: must be 9.0 or newer, got 3.11",
        "disk /: must have 99999999 MB free or more, got ",
    ):
        assert run.stderr.count(rule) == 2, f"{rule}\n{run}"
    assert not any(touched(host) for host in pair)


def test_plan_says_the_faults_too(provision, pair):
    fit, unfit = pair
    check = CHECK.format(needs="ports=(PortClaim(80, ('nginx',)),)")
    run = provision([fit, unfit], f"{check}\n{check}\npreflight.end_if_refused()\n{MARK}", dry=True)
    assert run.rc == 1, run
    assert run.stderr.count("port 80/tcp: must be free") == 1
    # what is never done on the refused host is not in its plan
    assert [(row["name"], row["hosts_with_change"]) for row in run.results["plan"]] == [("Check host", []), ("Check host", []), ("Touch", [fit.name])]
    assert not touched(fit)


def test_what_a_killed_run_left_at_work_is_waited_for(provision, host):
    slow = """
from pyinfra import host
from pyinfra.api import operation
from operations import script
script.FILES = script.Path("/")
@operation()
def slowly():
    yield script.run("{program}")
slowly(name="Change slowly")
"""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as program, tempfile.TemporaryDirectory() as scratch:
        program.write("main() { touch /root/half; until [ -e /root/go ]; do sleep 0.1; done; touch /root/whole; }\n")
        program.flush()
        command = command_line(Path(scratch), host, slow.format(program=program.name))
        killed = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("the change to begin", lambda: host.run("test -e /root/half", check=False).returncode == 0, 30)
        killed.kill()
        killed.wait()
    with ThreadPoolExecutor() as threads:
        following = threads.submit(provision, host, CHECK.format(needs=""))
        wait_for("the next run to wait", lambda: host.run("pgrep -x flock", check=False).stdout, 30)
        assert not following.done()
        host.run("touch /root/go")
        assert following.result().ok
    host.run("test -e /root/whole && rm /root/half /root/go /root/whole")


def test_wrong_clock_is_refused(provision, host):
    # the clock of a lab host is this machine's: move our idea of it instead
    run = provision(
        host,
        "import facts.preflight, time\nreal = time.time\nfacts.preflight.time = type('T', (), {'time': lambda: real() - 500})\n"
        + CHECK.format(needs=""),
    )
    assert run.rc == 1, run
    assert re.search(r"clock: must be within 60 s of this machine's, got \+(499|500) s", run.stderr), run
