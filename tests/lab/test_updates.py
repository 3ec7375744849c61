"""Unattended updates, read back with apt-config and systemctl."""

from __future__ import annotations

import pytest


def updates(**arguments: object) -> str:
    return f"from operations import updates\nupdates.unattended(**{arguments!r}, name='Updates')\n"


@pytest.fixture(scope="module")
def host(lab):
    fresh = lab.host("t-updates", layer="packages")
    yield fresh
    lab.destroy(fresh)


def settings(host) -> str:
    return host.run("apt-config dump").stdout


def test_set_no_op_update_heal_unset(host, provision):
    assert provision(host, updates(hold=["containerd.io", "libstdc++6"])).changed == ["Updates"]
    found = settings(host)
    assert 'Unattended-Upgrade::Package-Blacklist:: "^containerd.io$";' in found
    assert r'Unattended-Upgrade::Package-Blacklist:: "^libstdc\+\+6$";' in found
    assert 'APT::Periodic::Unattended-Upgrade "1";' in found
    assert provision(host, updates(hold=["containerd.io", "libstdc++6"])).changed == []
    assert provision(host, updates(reboot=True, reboot_at="04:10")).changed == ["Updates"]
    found = settings(host)
    assert "Package-Blacklist:: " not in found
    assert 'Unattended-Upgrade::Automatic-Reboot "true";' in found
    assert 'Unattended-Upgrade::Automatic-Reboot-Time "04:10";' in found
    host.run("systemctl mask --now apt-daily.timer; systemctl disable --now apt-daily-upgrade.timer")
    assert provision(host, updates(reboot=True, reboot_at="04:10")).changed == ["Updates"]
    assert host.run("systemctl is-active apt-daily.timer apt-daily-upgrade.timer").stdout.split() == ["active"] * 2


def test_held_package_is_seen_by_unattended_upgrades(host, provision):
    assert provision(host, updates(hold=["docker.io"])).ok
    assert "^docker.io$" in host.run("unattended-upgrade --dry-run --verbose 2>&1", timeout=120).stdout


@pytest.mark.parametrize("arguments", [{"hold": ["Bad Name"]}, {"reboot_at": "25:00"}, {"reboot_at": "3:30"}])
def test_bad_input_is_refused(host, provision, arguments):
    run = provision(host, updates(**arguments))
    assert not run.ok
    assert "updates.unattended: " in run.stderr
