"""Packages, read back with dpkg-query."""

from __future__ import annotations

import threading

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


def test_other_apt_is_waited_for(host, provision):
    host.run("dpkg --remove tree")
    # dpkg takes its lock with fcntl, not flock.
    program = "python3 -c \"import fcntl,time; f=open('/var/lib/dpkg/lock-frontend','w'); fcntl.lockf(f,fcntl.LOCK_EX); time.sleep(6)\""
    waiting = threading.Thread(target=lambda: host.run(program))
    waiting.start()
    run = provision(host, packages("tree"))
    waiting.join()
    assert run.changed == ["Packages"], str(run)


def test_nothing_wanted_is_nothing_done(host, provision):
    assert provision(host, packages()).changed == []


def test_interrupted_dpkg_is_finished_first(host, provision):
    # What dpkg writes while it works, and merges when it is called again; with such a file apt refuses to do anything.
    host.run("dpkg --remove tree; dpkg-query --status lsof >/var/lib/dpkg/updates/0000")
    assert host.run("apt-get -qq -y install tree", check=False).returncode != 0
    run = provision(host, packages("tree"))
    assert run.changed == ["Packages"], str(run)
    assert status(host, "tree") == "installed"
