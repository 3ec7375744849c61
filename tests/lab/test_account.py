"""Accounts of people, read back with getent, stat and sudo."""

from __future__ import annotations

import pytest

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJm+kq0ewY0y8WcTnVtxhm1VWSH8Wm1lyTAhM3g1AAAA"
ANN = f"Admin(name='ann', keys=['{KEY} a', '{KEY} b'])"
BOB = f"Admin(name='bob', keys=['{KEY} bob'], sudo='no')"


def admins(*people: str, removed: tuple[str, ...] = ()) -> str:
    head = "from operations import account\nfrom settings import Admin\n"
    return f"{head}account.admins([{', '.join(people)}], removed={removed!r}, name='Admins')\n"


def keys(host, name: str) -> list[str]:
    return host.run(f"sed 1d ~{name}/.ssh/authorized_keys").stdout.splitlines()


def test_set_and_no_op(host, provision):
    assert provision(host, admins(ANN, BOB)).changed == ["Admins"]
    assert keys(host, "ann") == [f"{KEY} a", f"{KEY} b"]
    assert host.run("stat -c '%U %a' ~bob/.ssh ~bob/.ssh/authorized_keys").stdout.split() == ["bob", "700", "bob", "600"]
    assert host.run("su -c 'sudo -n id -u' ann").stdout.strip() == "0"
    assert host.run("su -c 'sudo -n id -u' bob", check=False).returncode != 0
    assert provision(host, admins(ANN, BOB)).changed == []


@pytest.mark.parametrize(
    "by_hand",
    [
        "echo more >> ~ann/.ssh/authorized_keys; usermod -s /bin/sh bob; echo 'bob ALL=(ALL) ALL' >> /etc/sudoers.d/90-hostwright",
        "userdel -r bob; groupdel -f hostwright-admins; rm /etc/sudoers.d/90-hostwright; chmod 644 ~ann/.ssh/authorized_keys",
    ],
)
def test_drift_by_hand_is_healed(host, provision, by_hand):
    host.run(by_hand)
    assert provision(host, admins(ANN, BOB)).changed == ["Admins"]
    assert keys(host, "ann") == [f"{KEY} a", f"{KEY} b"]
    assert host.run("getent passwd bob").stdout.strip().endswith("/bin/bash")
    assert host.run("su -c 'sudo -n id -u' ann").stdout.strip() == "0"
    assert host.run("su -c 'sudo -n id -u' bob", check=False).returncode != 0
    assert provision(host, admins(ANN, BOB)).changed == []


def test_link_in_a_home_does_not_lead_root_anywhere(host, provision):
    host.write("/root/target", "untouched\n", mode="0600")
    host.run("rm -r ~bob/.ssh; su -c 'mkdir -m 700 ~/.ssh; ln -s /root/target ~/.ssh/authorized_keys' bob")
    assert provision(host, admins(ANN, BOB)).ok
    assert host.read("/root/target") == "untouched\n"
    assert keys(host, "bob") == [f"{KEY} bob"]


def test_who_is_no_longer_declared_is_locked_out_and_may_come_back(host, provision):
    assert provision(host, admins(BOB)).changed == ["Admins"]
    assert keys(host, "ann") == []
    assert host.run("getent shadow ann | cut -d: -f2,8").stdout.strip() == "!:1"
    assert not host.exists("/etc/sudoers.d/90-hostwright")
    assert provision(host, admins(BOB)).changed == []
    assert provision(host, admins(ANN, BOB)).changed == ["Admins"]
    assert host.run("su -c 'sudo -n id -u' ann").stdout.strip() == "0"


def test_removed_account_is_gone_and_a_returning_person_owns_the_old_files(host, provision):
    assert provision(host, admins(BOB, removed=("ann",))).changed == ["Admins"]
    assert host.run("getent passwd ann", check=False).stdout == ""
    assert host.exists("/home/ann")
    assert provision(host, admins(BOB, removed=("ann",))).changed == []
    host.run("useradd --no-create-home other")  # takes the number that ann had
    assert provision(host, admins(ANN, BOB)).ok
    assert host.run("stat -c %U /home/ann /home/ann/.ssh/authorized_keys").stdout.split() == ["ann", "ann"]


def test_admin_who_is_removed_as_well_is_refused(host, provision):
    run = provision(host, admins(ANN, removed=("ann",)))
    assert not run.ok
    assert "ann: cannot be an admin and removed" in run.stderr
