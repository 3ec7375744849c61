"""The base deploy on real hosts, read back with the tools of the distribution."""

from __future__ import annotations

import pytest

from tests.lab.hosts import LabHost
from tests.lab.scan import scan

DEPLOY = "from deploys.base import base\nbase()\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJm+kq0ewY0y8WcTnVtxhm1VWSH8Wm1lyTAhM3g1AAAA"
DATA: dict[str, object] = {
    "backup_password": "env:BACKUP_PASSWORD",
    "base_admins": [
        {"name": "ann", "keys": [f"{KEY} ann@laptop"]},
        {"name": "bob", "keys": [f"{KEY} bob@desk", f"{KEY} bob@laptop"], "sudo": "no"},
    ],
    "base_timezone": "Europe/Vienna",
    "base_hostname": "lamp.example.org",
    "base_time_servers": ["ntp1.example.org", "ntp2.example.org"],
    "base_swap_size_mb": 8,
    "base_sysctl": {"net.ipv4.tcp_fin_timeout": "25", "kernel.panic": "20"},
    "base_exposure": [{"port": 9100, "sources": ["10.99.0.0/16"], "why": "node metrics"}],
}
ENV = {"BACKUP_PASSWORD": "correct-horse-battery-staple-32-letters"}


@pytest.fixture(scope="module", params=["bookworm", pytest.param("trixie", marks=pytest.mark.soak)])
def host(lab, request):
    fresh = lab.host(f"t-base-{request.param}", release=request.param)
    yield fresh
    lab.destroy(fresh)


@pytest.fixture(scope="module")
def converge(host, provision):
    def run(**changes: object):
        return provision(host, DEPLOY, data={**DATA, **changes}, env=ENV)

    return run


@pytest.fixture(scope="module")
def first(converge):
    return converge()


def said(host: LabHost, command: str) -> str:
    return host.run(command, check=False).stdout.strip()


def test_bare_host_gets_everything(host, first):
    assert first.ok, str(first)
    assert said(host, "systemctl --failed --no-legend") == ""


def test_second_run_changes_nothing(host, first, converge, provision):
    pids = said(host, "systemctl show -p MainPID --value ssh prometheus-node-exporter cron systemd-journald")
    run = converge()
    assert run.ok, str(run)
    assert run.changed == []
    assert pids == said(host, "systemctl show -p MainPID --value ssh prometheus-node-exporter cron systemd-journald")
    assert provision(host, DEPLOY, data=DATA, env=ENV, dry=True).changed == []


def test_name_and_time_zone(host, first):
    assert said(host, "cat /etc/hostname; hostname; hostname --fqdn; hostname --short").split() == [
        *["lamp.example.org"] * 3,
        "lamp",
    ]
    assert said(host, "readlink /etc/localtime") == "/usr/share/zoneinfo/Europe/Vienna"
    assert said(host, "date +%Z") in ("CET", "CEST")


def test_admins(host, first):
    assert said(host, "sudo -l -U ann").endswith("(ALL : ALL) NOPASSWD: ALL")
    assert "not allowed" in said(host, "sudo -l -U bob")
    assert said(host, "cat ~bob/.ssh/authorized_keys").splitlines()[1:] == [f"{KEY} bob@desk", f"{KEY} bob@laptop"]
    assert said(host, "stat -c '%U %a' ~ann/.ssh ~ann/.ssh/authorized_keys /etc/sudoers.d/90-hostwright").split() == [
        *("ann", "700", "ann", "600", "root", "440")
    ]
    assert said(host, "getent shadow ann | cut -d: -f2") == "*"


def test_only_ssh_is_open_and_the_exporter_answers_at_home(host, first, stranger):
    assert {seen.reached for seen in scan(stranger, host).values()} == {frozenset({22})}
    assert 'hostwright_exposed_port{port="9100"' in said(host, "curl -s http://127.0.0.1:9100/metrics")
    assert "9100/tcp" in said(host, "ufw status")


def test_security_updates(host, first):
    found = said(host, "unattended-upgrade --dry-run --verbose 2>&1")
    assert "^containerd.io$" in found
    assert "label=Debian-Security" in found
    settings = said(host, "apt-config dump")
    for line in ('APT::Periodic::Unattended-Upgrade "1";', 'Unattended-Upgrade::Automatic-Reboot "false";'):
        assert line in settings
    assert said(host, "systemctl is-active apt-daily.timer apt-daily-upgrade.timer").split() == ["active"] * 2


def test_clock_kernel_journal_and_swap(host, first):
    assert said(host, "systemctl is-enabled systemd-timesyncd") == "enabled"
    assert "NTP=ntp1.example.org ntp2.example.org" in said(host, "systemd-analyze cat-config systemd/timesyncd.conf")
    live = said(host, "sysctl net.ipv4.tcp_fin_timeout net.ipv4.conf.all.rp_filter net.ipv4.conf.all.send_redirects")
    assert [line.split()[-1] for line in live.splitlines()] == ["25", "2", "0"]
    # A container cannot set this one: it is written for the next boot of a machine that can.
    assert "kernel.panic = 20" in said(host, "systemd-analyze cat-config sysctl.d")
    assert "SystemMaxUse=500M" in said(host, "systemd-analyze cat-config systemd/journald.conf")
    assert said(host, "grep swap /etc/fstab") == "/swapfile none swap sw 0 0"
    assert said(host, "stat -c '%s %a %U' /swapfile") == f"{8 * 2**20} 600 root"
    assert said(host, "blkid -p -s TYPE -o value /swapfile") == "swap"


BY_HAND = {
    "Base | Upload facts of the node for monitoring": "echo > /var/lib/prometheus/node-exporter/hostwright.prom",
    "Base | Install packages": "apt-get purge -q -y lsof",
    "Base | Set name and time zone": "hostname other; sed -i /127.0.1.1/d /etc/hosts",
    "Base | Manage admins": "usermod -p x ann; echo 'bob ALL=(ALL) ALL' >> /etc/sudoers.d/90-hostwright",
    "Base | Install security updates daily": "systemctl mask --now apt-daily-upgrade.timer",
    "Base | Keep the clock": "systemctl disable systemd-timesyncd",
    "Base | Limit the journal": "rm -r /etc/systemd/journald.conf.d",
    "Base | Set kernel parameters": "sysctl -q -w net.ipv4.conf.all.rp_filter=1",
    "Base | Manage the swap file": "sed -i /swap/d /etc/fstab; chmod 644 /swapfile",
    "Base | Run the node exporter": "systemctl stop prometheus-node-exporter",
}


def test_drift_by_hand_is_healed_everywhere_in_one_run(host, first, converge):
    for command in BY_HAND.values():
        host.run(command)
    run = converge()
    assert run.ok, str(run)
    assert run.changed == list(BY_HAND)
    test_name_and_time_zone(host, first)
    test_admins(host, first)
    test_security_updates(host, first)
    test_clock_kernel_journal_and_swap(host, first)
    assert said(host, "systemctl is-active prometheus-node-exporter") == "active"
    assert converge().changed == []


def test_what_is_unset_goes_away(host, first, converge):
    run = converge(
        base_admins=[DATA["base_admins"][0]], base_swap_size_mb=0, base_time_servers=[], base_exposure=[], base_sysctl={}
    )  # fmt: skip
    assert run.ok, str(run)
    assert said(host, "cat ~bob/.ssh/authorized_keys") == "# Closed by Hostwright"
    assert said(host, "id -nG bob") == "bob"
    assert said(host, "getent shadow bob | cut -d: -f2,8") == "!:1"
    assert said(host, "ls /swapfile /etc/systemd/timesyncd.conf.d/50-hostwright.conf 2>/dev/null; grep swap /etc/fstab") == ""
    assert "9100" not in said(host, "ufw status")
    assert "kernel.panic" not in said(host, "cat /etc/sysctl.d/99-zz-hostwright.conf")


def test_removed_admin_is_gone_and_a_returning_one_is_back(host, first, converge):
    host.run("systemd-run --uid=ann --unit=anns-work sleep 1000")
    run = converge(base_admins=[DATA["base_admins"][1]], base_removed_admins=["ann"])
    assert run.ok, str(run)
    assert said(host, "getent passwd ann") == ""
    assert said(host, "pgrep -x sleep") == ""
    assert said(host, "ls -d /home/ann") == "/home/ann"
    assert said(host, "ls /etc/sudoers.d/90-hostwright") == ""
    assert said(host, "cat ~bob/.ssh/authorized_keys").splitlines()[1:] == [f"{KEY} bob@desk", f"{KEY} bob@laptop"]
    assert said(host, "getent shadow bob | cut -d: -f2,8") == "*:"


def test_parts_that_are_off_are_left_alone(host, first, converge):
    parts = ("packages", "users", "sshd", "firewall", "unattended_upgrades", "time_sync", "journald", "sysctl", "swap")
    off = {f"base_{part}_enabled": False for part in (*parts, "hostname", "timezone", "monitoring")}
    host.run("ufw allow 81/tcp; hostname other")
    run = converge(**off)
    assert run.ok, str(run)
    assert run.changed == []
    assert said(host, "hostname") == "other"


def test_everything_is_up_after_a_reboot(host, first, converge):
    assert converge().ok
    host.reboot()
    assert said(host, "systemctl is-active ufw ssh prometheus-node-exporter").split() == ["active"] * 3
    run = converge()
    assert run.ok, str(run)
    assert run.changed == []
