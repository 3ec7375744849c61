"""Packages, read back with dpkg-query."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.lab.state import wait_for

HEAD = "from operations import dpkg\n"


def packages(*names: str) -> str:
    return f"{HEAD}dpkg.packages({list(names)!r}, name='Packages')\n"


def status(host, name: str) -> str:
    return host.run(f"dpkg-query -W -f '${{db:Status-Status}}' {name}", check=False).stdout


def test_bare_host_without_lists_gets_packages(host, provision):
    host.run("rm -rf /var/lib/apt/lists/*")
    assert provision(host, packages("lsof", "tree")).changed == ["Packages"]
    assert (status(host, "lsof"), status(host, "tree")) == ("installed", "installed")
    assert provision(host, packages("lsof", "tree")).changed == []


def test_removed_package_comes_back_and_lists_are_not_fetched_again(host, provision):
    host.run("dpkg --remove tree; touch -d '2 hours ago' /var/lib/apt/lists/partial")
    before = host.run("stat -c %Y /var/lib/apt/lists/partial").stdout
    assert provision(host, packages("lsof", "tree")).changed == ["Packages"]
    assert status(host, "tree") == "installed"
    assert host.run("stat -c %Y /var/lib/apt/lists/partial").stdout == before


def test_unknown_package_fails(host, provision):
    run = provision(host, packages("no-such-package-anywhere"))
    assert run.failed == ["Packages"]
    assert status(host, "lsof") == "installed"


# Takes dpkg's lock (by fcntl, as dpkg does, not flock), says so, and holds it until it is told to let go.
HOLDER = """
import fcntl, os, pathlib, time
with open("/var/lib/dpkg/lock-frontend", "w") as lock, open("/var/lib/dpkg/lock", "w") as inner:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    fcntl.lockf(inner, fcntl.LOCK_EX)
    pathlib.Path("/run/held").touch()
    while not os.path.exists("/run/let-go"):
        time.sleep(0.1)
"""


def test_other_apt_is_waited_for(host, provision):
    host.run("dpkg --remove tree; rm -f /run/held /run/let-go")
    host.write("/root/holder.py", HOLDER)
    host.run("systemd-run --quiet --collect --unit=holder python3 /root/holder.py")
    wait_for("the lock to be held", lambda: host.exists("/run/held"), 10)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(provision, host, packages("tree"))
        try:
            pauses = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'slee[p] 2 '"
            wait_for("a pause before the next try", lambda: host.run(pauses, check=False).returncode == 0, 60)
            assert status(host, "tree") != "installed"
        finally:
            host.run("touch /run/let-go")
        assert run.result().changed == ["Packages"], str(run.result())
    assert status(host, "tree") == "installed"


def test_nothing_wanted_is_nothing_done(host, provision):
    assert provision(host, packages()).changed == []


def test_interrupted_dpkg_is_finished_first(host, provision):
    # What dpkg writes while it works, and merges when it is called again; with such a file apt refuses to do anything.
    host.run("dpkg --remove tree; dpkg-query --status lsof >/var/lib/dpkg/updates/0000")
    assert host.run("apt-get -qq -y install tree", check=False).returncode != 0
    run = provision(host, packages("tree"))
    assert run.changed == ["Packages"], str(run)
    assert status(host, "tree") == "installed"
