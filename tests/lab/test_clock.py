"""systemd-timesyncd, read back with systemctl."""

from __future__ import annotations

import pytest


def clock(*servers: str) -> str:
    return f"from operations import clock\nclock.synchronised(servers={list(servers)!r}, name='Clock')\n"


@pytest.fixture(scope="module")
def host(lab):
    fresh = lab.host("t-clock")
    fresh.run("apt-get update -q && apt-get install -q -y systemd-timesyncd", timeout=120)
    yield fresh
    lab.destroy(fresh)


def configured(host) -> list[str]:
    lines = host.run("systemd-analyze cat-config systemd/timesyncd.conf").stdout.splitlines()
    return [line for line in lines if line.startswith("NTP=")]


def test_set_no_op_update_heal_unset(host, provision):
    assert provision(host, clock("ntp1.example.org")).changed == ["Clock"]
    assert configured(host) == ["NTP=ntp1.example.org"]
    assert host.run("systemctl is-enabled systemd-timesyncd").stdout.strip() == "enabled"
    assert provision(host, clock("ntp1.example.org")).changed == []
    assert provision(host, clock("192.0.2.1", "2001:db8::1")).changed == ["Clock"]
    assert configured(host) == ["NTP=192.0.2.1 2001:db8::1"]
    host.run("systemctl mask systemd-timesyncd")
    assert provision(host, clock("192.0.2.1", "2001:db8::1")).changed == ["Clock"]
    assert host.run("systemctl is-enabled systemd-timesyncd").stdout.strip() == "enabled"
    assert provision(host, clock()).changed == ["Clock"]
    assert configured(host) == []
    assert provision(host, clock()).changed == []


def test_clock_of_a_container_is_left_to_the_machine_outside(host, provision):
    assert host.run("systemctl is-active systemd-timesyncd", check=False).stdout.strip() == "inactive"
    assert host.run("systemctl is-failed systemd-timesyncd", check=False).stdout.strip() != "failed"


def test_server_of_two_words_is_refused(host, provision):
    run = provision(host, clock("two words"))
    assert not run.ok
    assert "clock.synchronised: " in run.stderr
