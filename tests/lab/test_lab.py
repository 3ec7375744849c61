"""The lab itself: hosts that behave like hosts, faults that are felt, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import faults
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.state import REPOSITORY, LabError, wait_for

# Not one of the slots that the test workers get (Makefile, TEST_SLOT): it is torn down as a whole here.
_SPARE_SLOT = "9"


def _reaches(source: LabHost, address: str, port: int = 22) -> bool:
    probe = f"import socket; socket.create_connection(({address!r}, {port}), 2)"
    return source.run(f'python3 -c "{probe}"', check=False).returncode == 0


def _boot_id(host: LabHost) -> str:
    return host.read("/proc/sys/kernel/random/boot_id")


@pytest.fixture(scope="module")
def trixie(lab: Lab) -> Iterator[LabHost]:
    host = lab.host("t-trixie", "trixie")
    yield host
    lab.destroy(host)


# --- life ---------------------------------------------------------------------------------------------------------


def test_fresh_host_answers_within_ten_seconds_and_resets_within_five(lab: Lab) -> None:
    """The best of three counts: what else this machine does must not fail the test."""
    boots, resets = [], []
    for _ in range(3):
        started = time.monotonic()
        host = lab.host("t-timed")
        boots.append(time.monotonic() - started)
        host.write("/etc/left-over", "x")
        started = time.monotonic()
        host.reset()
        resets.append(time.monotonic() - started)
        if boots[-1] <= 10 and resets[-1] <= 5:
            break
    print(f"fresh host {min(boots):.1f} s, reset {min(resets):.1f} s")  # noqa: T201
    assert min(boots) <= 10
    assert min(resets) <= 5
    assert not host.exists("/etc/left-over")
    assert host.ssh("hostname").stdout == "t-timed\n", "the host key is the one that known_hosts has"
    lab.destroy(host)


def test_host_goes_back_to_a_saved_state_and_from_there_to_pristine(lab: Lab) -> None:
    host = lab.host("t-saved")
    host.run("echo one >/etc/new; rm /etc/issue; rm -r /etc/cron.daily")
    times = host.run("stat -c '%y %z' /etc/new").stdout
    host.save("one")
    host.run("echo two >/etc/new; echo back >/etc/issue")
    host.save("two")
    host.run("rm /etc/new")

    host.reset("one")
    assert (host.read("/etc/new"), host.exists("/etc/issue"), host.exists("/etc/cron.daily")) == ("one\n", False, False)
    assert host.run("stat -c '%y %z' /etc/new").stdout == times
    host.reset("two")
    assert (host.read("/etc/new"), host.read("/etc/issue"), host.exists("/etc/cron.daily")) == ("two\n", "back\n", False)
    host.reset()
    assert (host.exists("/etc/new"), host.exists("/etc/issue"), host.exists("/etc/cron.daily")) == (False, True, True)
    with pytest.raises(LabError, match="no saved state 'three'"):
        host.reset("three")
    lab.destroy(host)


def test_several_hosts_boot_at_once(lab: Lab) -> None:
    started = time.monotonic()
    hosts = lab.boot_all(*((f"t-many-{number}", "bookworm", "bare") for number in range(4)))
    print(f"4 hosts {time.monotonic() - started:.1f} s")  # noqa: T201
    assert time.monotonic() - started <= 20
    for number, host in enumerate(hosts):
        assert host.ssh("hostname").stdout == f"t-many-{number}\n"
        lab.destroy(host)


@pytest.mark.parametrize("name", ["host", "trixie"])
def test_host_is_a_whole_debian(name: str, request: pytest.FixtureRequest) -> None:
    host: LabHost = request.getfixturevalue(name)
    assert host.run("systemctl is-system-running").stdout == "running\n"
    assert host.run("cat /proc/1/comm").stdout == "systemd\n"
    assert f"VERSION_CODENAME={host.plan.release}" in host.read("/etc/os-release")
    assert host.run("getent hosts localhost").returncode == 0
    assert host.run("sysctl -w net.ipv4.ip_local_port_range='20000 60000'").returncode == 0


def test_bare_host_is_bare(host: LabHost) -> None:
    for program in ("nginx", "git", "certbot", "ufw", "restic", "sqlite3", "gcc"):
        assert host.run(f"command -v {program}", check=False).returncode != 0, program
    assert host.run("ls /var/lib/apt/lists").stdout.split() in ([], ["lock", "partial"])


def test_units_of_one_host_are_not_those_of_another(lab: Lab, host: LabHost, stranger: LabHost) -> None:
    unit = "[Service]\nExecStart=/bin/sleep infinity\n"
    for each in (host, stranger):
        each.write("/run/systemd/system/same.service", unit)
        each.run("systemctl daemon-reload; systemctl start same.service")
    for each in (host, stranger):
        status = each.run("systemctl status same.service")
        assert "sleep infinity" in status.stdout, "systemd finds the process in the unit's control group"
        assert status.stderr == "", "and none there that is not the host's own"
    host.run("systemctl stop same.service", timeout=10)
    assert host.run("systemctl is-active same.service", check=False).stdout == "inactive\n"
    assert stranger.run("systemctl is-active same.service").stdout == "active\n"
    stranger.run("systemctl stop same.service")


def test_reboot_starts_anew(host: LabHost) -> None:
    before = _boot_id(host)
    host.write("/etc/kept", "x")
    host.run("ip route add 203.0.113.0/24 dev eth0; touch /run/lost")
    host.reboot()
    assert _boot_id(host) != before
    assert host.exists("/etc/kept")
    assert not host.exists("/run/lost")
    assert "203.0.113" not in host.run("ip route").stdout, "the kernel's network state does not outlive a power cycle"
    assert host.ssh("true").returncode == 0


def test_power_off_ends_services_in_order_and_kill_does_not(host: LabHost) -> None:
    host.write("/etc/systemd/system/mark.service",
               "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\nExecStop=/bin/touch /var/tmp/stopped\n"
               "[Install]\nWantedBy=multi-user.target\n")  # fmt: skip
    host.run("systemctl enable --now mark.service")
    host.kill()
    assert not host.running
    with pytest.raises(LabError, match="switched off"):
        host.run("true")
    host.boot()
    assert not host.exists("/var/tmp/stopped")
    host.power_off()
    assert not host.running
    host.boot()
    assert host.exists("/var/tmp/stopped")


# --- network ------------------------------------------------------------------------------------------------------


def test_hosts_reach_each_other_by_both_addresses(host: LabHost, stranger: LabHost) -> None:
    for address in (host.address, host.address6):
        assert _reaches(stranger, address), address


def test_cut_link_is_felt_on_both_sides(host: LabHost, stranger: LabHost) -> None:
    host.cut_link()
    try:
        assert not _reaches(stranger, host.address)
        assert "NO-CARRIER" in host.run("ip link show eth0").stdout
    finally:
        host.restore_link()
    wait_for("link", lambda: _reaches(stranger, host.address), 10)
    wait_for("link, IPv6", lambda: _reaches(stranger, host.address6), 10)


def test_wrong_host_key_is_refused(host: LabHost) -> None:
    assert host.ssh("true").returncode == 0
    host.run("rm /etc/ssh/ssh_host_*; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; systemctl restart ssh")
    done = host.ssh("true", check=False)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr
    host.reset()


def test_delayed_link_has_its_round_trip_time(lab: Lab, host: LabHost) -> None:
    with lab.delayed(host, round_trip_ms=80) as link:
        with socket.create_connection((link.address, link.port), 10) as connection:
            connection.settimeout(10)
            connection.recv(100)  # the greeting, which the host sends unasked
            started = time.monotonic()
            connection.sendall(b"no ssh client\r\n")
            connection.recv(100)
            round_trip = time.monotonic() - started
        done = subprocess.run(
            [*host.ssh_argv[:-1], "-p", str(link.port), f"root@{link.address}", "hostname"],
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert 0.08 <= round_trip < 0.2
    assert done.stdout == f"{host.name}\n", done.stderr
    with socket.socket() as probe:
        assert probe.connect_ex((link.address, link.port)) != 0, "the link is gone"


# --- packages -----------------------------------------------------------------------------------------------------


def test_apt_installs_and_pip_installs(lab: Lab) -> None:
    host = lab.host("t-packages")
    host.run("apt-get -q update && apt-get -q -y install python3-venv", timeout=300)
    host.run("python3 -m venv /opt/venv && /opt/venv/bin/pip install -q h11", timeout=300)
    assert host.run("/opt/venv/bin/python -c 'import h11; print(h11.__name__)'").stdout == "h11\n"
    lab.destroy(host)


def test_packages_layer_has_what_tests_need(lab: Lab) -> None:
    host = lab.host("t-layer", layer="packages")
    for program in ("nginx", "certbot", "ufw", "restic", "supervisord", "git", "sqlite3", "logrotate", "chronyd"):
        assert host.run(f"command -v {program}", check=False).returncode == 0, program
    assert "-x" in host.run("ps -o args= -C chronyd").stdout, "a host must not steer the outer machine's clock"
    lab.destroy(host)


# --- faults -------------------------------------------------------------------------------------------------------


def test_full_disk_refuses_writes_and_heals(host: LabHost) -> None:
    host.write("/srv/data/old", "old")
    host.run("chown -R daemon:daemon /srv/data; chmod 2750 /srv/data")
    host.fill_disk("/srv/data", free_kib=8)
    assert host.read("/srv/data/old") == "old"
    assert host.run("stat -c '%a %U:%G' /srv/data").stdout == "2750 daemon:daemon\n"
    host.run("printf small > /srv/data/small")
    refused = host.run("dd if=/dev/zero of=/srv/data/large bs=1k count=64", check=False)
    assert "No space left on device" in refused.stderr
    host.free_disk()
    assert host.read("/srv/data/old") + host.read("/srv/data/small") == "oldsmall"
    assert host.run("ls -A /srv/data").stdout.split() == ["large", "old", "small"]
    host.run("dd if=/dev/zero of=/srv/data/large bs=1k count=64")
    assert "lab-full" not in host.read("/proc/mounts")
    assert host.run("stat -c '%a %U:%G' /srv/data").stdout == "2750 daemon:daemon\n"


@pytest.mark.parametrize("name", ["host", "trixie"])
def test_faked_clock_moves_one_process(name: str, request: pytest.FixtureRequest) -> None:
    host: LabHost = request.getfixturevalue(name)
    clock = " ".join(f"{key}='{value}'" for key, value in faults.faked_clock(host, "+90d").items())
    now, then = (int(host.run(f"{prefix} date +%s").stdout) for prefix in ("", clock))
    assert 89 * 86400 < then - now < 91 * 86400
    assert abs(int(host.run("date +%s").stdout) - now) < 60


# --- ACME ---------------------------------------------------------------------------------------------------------


def test_acme_server_issues_refuses_and_comes_back(lab: Lab, stranger: LabHost) -> None:
    host = lab.host("t-acme", layer="packages")
    acme = lab.acme()
    acme.add_name("shop.example.test", host)
    assert stranger.run("getent ahostsv4 shop.example.test").stdout.split()[0] == host.address
    certbot = (
        f"REQUESTS_CA_BUNDLE={acme.ca_on_host} certbot certonly -n --webroot -w /var/www/html -d shop.example.test "
        f"--agree-tos -m ops@example.test --server {acme.directory_url} --force-renewal"
    )
    host.run(certbot)
    root = acme.root_certificate()
    host.write("/tmp/root.pem", root)
    live = "/etc/letsencrypt/live/shop.example.test"
    host.run(f"openssl verify -CAfile /tmp/root.pem -untrusted {live}/chain.pem {live}/cert.pem")

    acme.refuse("rateLimited")
    assert host.run(certbot, check=False).returncode != 0
    assert "rateLimited" in host.read("/var/log/letsencrypt/letsencrypt.log")
    acme.refuse(None)

    acme.stop()
    assert host.run(certbot, check=False).returncode != 0
    acme.start()
    host.run(certbot)  # with the account from before

    acme.add_name("shop.example.test", host, validated_at=stranger)
    assert "Connection refused".lower() in host.run(certbot, check=False).stdout.lower()
    lab.destroy(host)


# --- nothing left behind ------------------------------------------------------------------------------------------


def _traces() -> set[str]:
    """Return what a lab of the spare slot can leave on this machine."""
    slot, found = _SPARE_SLOT, set()
    mounts = Path("/proc/mounts").read_text().splitlines()
    found |= {line.split()[1] for line in mounts if f"hostwright-lab/slots/{slot}/" in line}
    found |= {path.name for path in Path("/run/netns").glob(f"hw{slot}-*")}
    found |= {path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith((f"hw{slot}-", f"hwlab{slot}"))}
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    found |= {line for line in tables.splitlines() if line.endswith((f"hwlab{slot}", f"hwscan{slot}"))}
    found |= {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/hostwright-lab/{slot}-*")}
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"hostwright-lab/slots/{slot}/" in words or f"10.78.{slot}." in words:
            found.add(words.replace("\0", " "))
    return found


def _lab(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab", *words], cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "HOSTWRIGHT_LAB_SLOT": _SPARE_SLOT, "PYTEST_XDIST_WORKER": "gw0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_down_removes_everything_and_then_has_nothing_to_do() -> None:
    _lab("down", "--slot", _SPARE_SLOT)
    assert _traces() == set()
    print(_lab("up"))  # noqa: T201
    assert _traces(), "the search finds a lab that is there"
    assert "runs already" in _lab("up")
    assert "host web1" in _lab("down", "--slot", _SPARE_SLOT)
    assert _traces() == set()
    assert _lab("down", "--slot", _SPARE_SLOT) == "nothing to do\n"


def test_down_removes_what_a_killed_run_left() -> None:
    script = f"from tests.lab.lab import Lab; lab = Lab({_SPARE_SLOT}); lab.host('half'); lab.acme(); print('up', flush=True); input()"
    run = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "up\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    subprocess.run(["nft", "add", "table", "inet", f"hwscan{_SPARE_SLOT}"], check=True)  # a scan that was killed too
    assert _traces()
    assert "host half" in _lab("down", "--slot", _SPARE_SLOT)
    assert _traces() == set()


def test_other_slots_survive_a_down(host: LabHost) -> None:
    before = _boot_id(host)
    _lab("down", "--slot", _SPARE_SLOT)
    assert _boot_id(host) == before
    assert host.ssh("true").returncode == 0
