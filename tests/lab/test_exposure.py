"""The firewall of a real host, scanned from the stranger and read back with ufw and iptables."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.lab.hosts import LabHost
from tests.lab.provision import command_line
from tests.lab.scan import scan
from tests.lab.state import REPOSITORY, wait_for

HEAD = "from operations import exposure\nfrom settings import Port\n"
SSH = "Port(port=22, why='ssh')"
WEB = "Port(port=80, why='web')"
METRICS = "Port(port=9100, sources=('10.0.0.0/8', 'fd78:aa::/32'), why='metrics')"
DNS = "Port(port=53, proto='udp', why='names')"


def firewall(*ports: str, seconds: int = 60, before: str = "") -> str:
    return f"{HEAD}{before}\nexposure.firewall([{', '.join(ports)}], rollback_seconds={seconds}, name='Firewall')\n"


def tuples(host: LabHost, file: str = "user.rules") -> list[str]:
    return re.findall(r"^### tuple ### (.*?)(?: comment=.*)?$", host.read(f"/etc/ufw/{file}"), re.M)


@pytest.fixture(scope="module")
def host(lab):
    fresh = lab.host("t-exposure", layer="packages")
    fresh.run("systemctl disable --now nginx supervisor chrony 2>/dev/null; true")
    yield fresh
    lab.destroy(fresh)


@pytest.fixture(autouse=True)
def _converged(host, request):
    """Every test ends with the host reachable and nothing armed."""
    yield
    if "host" in request.fixturenames:
        assert not host.exists("/var/lib/hostwright/deadman/exposure")
        assert "rollback" not in host.run("ls /etc/systemd/system").stdout


def test_firewall_opens_exactly_the_declared_ports(host, stranger, provision):
    host.run("systemd-run --unit=listen80 python3 -m http.server 80 --bind ::")
    host.run("systemd-run --unit=listen81 python3 -m http.server 81 --bind ::")
    assert scan(stranger, host)[4].open == {22, 80, 81}

    run = provision(host, firewall(SSH, WEB, METRICS, DNS))
    assert run.ok, str(run)
    assert run.changed == ["Firewall"]

    seen = scan(stranger, host, udp=(53, 54))
    # 10.78.…, the stranger, is in 10.0.0.0/8; fd78:4::, over IPv6, is not in fd78:aa::/32.
    assert (seen[4].open, seen[4].refused, seen[4].udp) == ({22, 80}, {9100}, {53})
    assert (seen[6].open, seen[6].refused, seen[6].udp) == ({22, 80}, set(), {53})
    status = host.run("ufw status verbose").stdout
    assert "Default: deny (incoming), allow (outgoing)" in status
    assert re.search(r"^9100/tcp +ALLOW IN +10\.0\.0\.0/8 +# metrics$", status, re.M), status
    assert "allow udp 53 ::/0 any ::/0 in" in tuples(host, "user6.rules")
    assert host.run("systemctl is-enabled ufw").stdout.strip() == "enabled"


def test_second_run_changes_nothing(host, provision):
    assert provision(host, firewall(SSH, WEB, METRICS, DNS)).ok
    before = host.run("stat -c %Z /etc/ufw/user.rules /etc/default/ufw").stdout
    run = provision(host, firewall(SSH, WEB, METRICS, DNS))
    assert run.ok, str(run)
    assert run.changed == []
    assert host.run("stat -c %Z /etc/ufw/user.rules /etc/default/ufw").stdout == before


def soak(value: str) -> object:
    return pytest.param(value, marks=pytest.mark.soak)


@pytest.mark.parametrize(
    "by_hand",
    [
        "ufw allow 81/tcp",
        "ufw disable",
        "iptables -D ufw-user-input -p tcp -m tcp --dport 80 -j ACCEPT",
        "ip6tables -A ufw6-user-input -p tcp -m tcp --dport 81 -j ACCEPT",
        soak("ufw insert 1 deny from 10.78.99.0/24"),
        soak("ufw route allow in on host0"),
        soak("ufw delete allow 80/tcp"),
        soak("ufw default allow incoming"),
        soak("systemctl disable ufw"),
        soak("iptables -P INPUT ACCEPT && iptables -F INPUT"),
        soak("sed -i s/IPV6=yes/IPV6=no/ /etc/default/ufw && ufw reload"),
        soak("ufw --force reset"),
    ],
)
def test_drift_by_hand_is_healed(host, provision, by_hand):
    assert provision(host, firewall(SSH, WEB, METRICS, DNS)).ok
    wanted = host.run("iptables -S ufw-user-input; ip6tables -S ufw6-user-input; grep tuple /etc/ufw/user*.rules").stdout
    host.run(by_hand)
    run = provision(host, firewall(SSH, WEB, METRICS, DNS))
    assert run.ok, str(run)
    assert run.changed == ["Firewall"]
    now = host.run("iptables -S ufw-user-input; ip6tables -S ufw6-user-input; grep tuple /etc/ufw/user*.rules").stdout
    assert now == wanted
    assert "-P INPUT DROP" in host.run("iptables -S INPUT").stdout
    assert "-P INPUT DROP" in host.run("ip6tables -S INPUT").stdout
    assert host.run("systemctl is-enabled ufw").stdout.strip() == "enabled"
    assert "Status: active" in host.run("ufw status").stdout


def test_unset_removes_the_rule(host, stranger, provision):
    assert provision(host, firewall(SSH, WEB, METRICS, DNS)).ok
    run = provision(host, firewall(SSH, METRICS))
    assert run.ok, str(run)
    assert [line for line in tuples(host) if " 80 " in line or " 53 " in line] == []
    assert [seen.open for seen in scan(stranger, host).values()] == [{22}, {22}]


def test_sources_that_exclude_this_run_are_refused_before_any_change(host, provision):
    before = host.run("cat /etc/ufw/user.rules").stdout
    run = provision(host, firewall("Port(port=22, sources=('192.0.2.0/24',), why='ssh')"))
    assert not run.ok
    assert "the declared sources of port 22 do not cover 10.78." in run.stderr
    assert host.run("cat /etc/ufw/user.rules").stdout == before


def test_sources_are_checked_through_sudo_too(host, provision):
    """sudo drops SSH_CONNECTION, which tells where the run comes from."""
    host.run("useradd -m ann; mkdir -p ~ann/.ssh; cp ~/.ssh/authorized_keys ~ann/.ssh/; chown -R ann: ~ann/.ssh")
    host.run("echo 'ann ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/ann")
    as_ann = {"ssh_user": "ann", "_sudo": True}
    run = provision(host, firewall("Port(port=22, sources=('192.0.2.0/24',), why='ssh')"), data=as_ann)
    assert "the declared sources of port 22 do not cover 10.78." in run.stderr
    ours = "Port(port=22, sources=('10.78.0.0/16', 'fd78::/16'), why='ssh')"
    assert provision(host, firewall(ours, METRICS), data=as_ann).changed == ["Firewall"]
    assert provision(host, firewall(SSH, METRICS), data=as_ann).changed == ["Firewall"]


def test_rules_survive_a_reboot(host, stranger, provision):
    host.reboot()
    seen = scan(stranger, host)
    assert (seen[4].reached, seen[6].reached) == ({22, 9100}, {22})
    assert provision(host, firewall(SSH, METRICS)).changed == []


# Only a mistake of ours can leave SSH out: make one.
LOCK_OUT = "exposure.with_ssh = lambda ports, doors: ports\nexposure.Rule.lets_in = lambda rule, connection: True"


def test_rule_that_locks_out_restores_itself(host, provision):
    started = time.monotonic()
    run = provision(host, firewall(WEB, before=LOCK_OUT, seconds=15))
    assert run.failed == ["Firewall"], run
    assert "no new SSH connection after the change" in run.stderr
    wait_for("the way in", lambda: host.ssh("true", check=False).returncode == 0, 60)
    assert time.monotonic() - started < 60
    assert tuples(host) == ["allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in", "allow tcp 9100 0.0.0.0/0 any 10.0.0.0/8 in"]
    assert provision(host, firewall(SSH, METRICS)).changed == []


def killed_when_armed(host: LabHost, deploy: str) -> None:
    """Start a run and kill it without mercy as soon as the host has the change in its kernel."""
    with tempfile.TemporaryDirectory() as scratch:
        command = command_line(Path(scratch), host, deploy)
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("the change", lambda: "dport 22 " not in host.run("iptables -S ufw-user-input", check=False).stdout, 60)
        process.kill()
        process.wait()


def test_change_waits_for_one_that_a_killed_run_left_at_work(host, provision):
    """Two at once failed: one looked at the kernel while the other reloaded, and its rollback undid what was proven."""
    host.run("ufw --force disable; mkdir -p /run/hostwright")
    host.run(
        "systemd-run --quiet flock /run/hostwright/deadman-exposure.lock sh -c 'sleep 6; date +%s.%N >/run/ended'"
    )
    run = provision(host, firewall(SSH, METRICS))
    assert run.ok, run
    ended = float(host.read("/run/ended"))
    assert float(host.run("stat -c %.Z /etc/ufw/ufw.conf").stdout) > ended
    assert provision(host, firewall(SSH, METRICS)).changed == []


def test_killed_run_is_taken_back_by_the_host_alone(host, provision):
    killed_when_armed(host, firewall(WEB, before=LOCK_OUT, seconds=20))
    wait_for("the way in", lambda: host.ssh("true", check=False, timeout=20).returncode == 0, 60)
    wait_for("the end of the rollback", lambda: not host.exists("/var/lib/hostwright/deadman/exposure"), 10)
    assert provision(host, firewall(SSH, METRICS)).changed == []


@pytest.mark.soak
def test_killed_run_is_taken_back_after_a_power_loss(host, provision):
    assert provision(host, firewall(SSH, METRICS)).ok
    killed_when_armed(host, firewall(WEB, before=LOCK_OUT, seconds=15))
    host.kill()
    host.boot()
    wait_for("the way in", lambda: host.ssh("true", check=False, timeout=20).returncode == 0, 60)
    wait_for("the end of the rollback", lambda: not host.exists("/var/lib/hostwright/deadman/exposure"), 10)
    assert provision(host, firewall(SSH, METRICS)).changed == []


@pytest.mark.soak
def test_lockout_with_the_real_time_ends_within_150_seconds(host):
    started = time.monotonic()
    killed_when_armed(host, firewall(WEB, before=LOCK_OUT, seconds=120))
    assert host.ssh("true", check=False, timeout=20).returncode != 0
    wait_for("the way in", lambda: host.ssh("true", check=False, timeout=20).returncode == 0, 150)
    assert time.monotonic() - started < 150
    wait_for("the end of the rollback", lambda: not host.exists("/var/lib/hostwright/deadman/exposure"), 10)


def test_ssh_on_another_port_stays_open_undeclared(host, stranger, provision):
    host.write("/etc/ssh/sshd_config.d/port.conf", "Port 22\nPort 2222\n")
    host.run("systemctl reload ssh")
    run = provision(host, firewall(SSH, METRICS), data={"ssh_port": 22})
    assert run.ok, str(run)
    assert {seen.open for seen in scan(stranger, host).values()} == {frozenset({22, 2222})}
    host.run("rm /etc/ssh/sshd_config.d/port.conf && systemctl reload ssh")
    assert provision(host, firewall(SSH, METRICS)).changed == ["Firewall"]
    assert {seen.open for seen in scan(stranger, host).values()} == {frozenset({22})}


def test_socket_activated_ssh_is_seen_where_it_listens(host, stranger, provision):
    host.write("/etc/ssh/sshd_config.d/port.conf", "Port 2022\n")  # means nothing to a socket-activated sshd
    host.write("/etc/systemd/system/ssh.socket.d/ports.conf", "[Socket]\nListenStream=\nListenStream=22\nListenStream=2223\n")
    host.run("systemctl daemon-reload; systemctl disable --now ssh.service; systemctl enable --now ssh.socket")
    try:
        run = provision(host, firewall(SSH, METRICS))
        assert run.ok, str(run)
        assert {seen.reached - {9100} for seen in scan(stranger, host).values()} == {frozenset({22, 2223})}
        assert provision(host, firewall(SSH, METRICS)).changed == []
    finally:
        host.run(
            "rm /etc/ssh/sshd_config.d/port.conf /etc/systemd/system/ssh.socket.d/ports.conf; systemctl daemon-reload;"
            "systemctl disable --now ssh.socket; systemctl enable --now ssh.service"
        )
    assert provision(host, firewall(SSH, METRICS)).ok


def test_missing_ufw_is_said(fresh_host, provision):
    run = provision(fresh_host, firewall(SSH))
    assert run.failed == ["Firewall"]
    assert "ufw is not installed" in run.stderr
    assert fresh_host.ssh("true").returncode == 0
