"""sshd on real hosts, asked with sshd -T and with new connections."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.lab.hosts import LabHost
from tests.lab.state import wait_for

DROP_IN = "/etc/ssh/sshd_config.d/00-hostwright.conf"


def server(before: str = "", **arguments: object) -> str:
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"from operations import sshd\n{before}\nsshd.server(rollback_seconds=15{given}, name='Sshd')\n"


def effective(host: LabHost) -> list[str]:
    return host.run("mkdir -p /run/sshd; sshd -T").stdout.splitlines()


def main_pid(host: LabHost) -> str:
    return host.run("systemctl show -p MainPID --value ssh.service").stdout.strip()


def on_port(port: int, tmp_path: Path) -> dict[str, object]:
    """Connection data for another port, whose host key the lab's known_hosts does not list."""
    return {"ssh_port": port, "ssh_strict_host_key_checking": "accept-new", "ssh_known_hosts_file": f"{tmp_path}/hosts"}


def armed(host: LabHost) -> bool:
    return host.exists("/var/lib/hostwright/deadman/sshd") or "rollback" in host.run("ls /etc/systemd/system").stdout


def test_passwords_end_and_the_daemon_stays(host, provision):
    before = main_pid(host)
    assert "passwordauthentication yes" in effective(host)
    run = provision(host, server())
    assert run.ok, str(run)
    assert run.changed == ["Sshd"]
    seen = effective(host)
    for line in ("passwordauthentication no", "permitrootlogin without-password", "x11forwarding no", "port 22"):
        assert line in seen
    assert not [line for line in seen if line.startswith(("kexalgorithms", "macs")) and "sha1" in line]
    assert main_pid(host) == before
    assert not armed(host)
    offered = host.ssh("true", check=False)
    assert offered.returncode == 0
    # What a client without a key is told, by the running daemon and not by its files:
    refused = host.run(
        "ssh -o StrictHostKeyChecking=no -o PubkeyAuthentication=no -o BatchMode=yes root@localhost", check=False
    )
    assert "Permission denied (publickey)" in refused.stderr


def test_second_run_changes_nothing(host, provision):
    assert provision(host, server()).ok
    run = provision(host, server())
    assert run.ok, str(run)
    assert run.changed == []


def test_update_and_back(host, provision):
    host.run("useradd -m ann; mkdir -p ~ann/.ssh; cp ~/.ssh/authorized_keys ~ann/.ssh/; chown -R ann: ~ann/.ssh")
    host.run("echo 'ann ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/ann")
    as_ann = {"ssh_user": "ann", "_sudo": True}
    run = provision(host, server(permit_root="no"), data=as_ann)
    assert run.ok, str(run)
    assert "permitrootlogin no" in effective(host)
    assert host.ssh("true", check=False).returncode != 0
    assert provision(host, server(permit_root="no"), data=as_ann).changed == []
    assert provision(host, server(), data=as_ann).changed == ["Sshd"]
    assert host.ssh("true").returncode == 0


def soak(value: str) -> object:
    return pytest.param(value, marks=pytest.mark.soak)


@pytest.mark.parametrize(
    "by_hand",
    [
        f"rm {DROP_IN}; systemctl reload ssh",
        f"sed -i s/PasswordAuthentication.*/'PasswordAuthentication yes'/ {DROP_IN}; systemctl reload ssh",
        soak(f"chmod 666 {DROP_IN}"),
        "sed -i '1i PasswordAuthentication yes' /etc/ssh/sshd_config; systemctl reload ssh",
        soak("sed -i '/^Include/d' /etc/ssh/sshd_config; systemctl reload ssh"),
        soak("touch /etc/ssh/sshd_config"),
    ],
)
def test_drift_by_hand_is_healed(host, provision, by_hand):
    assert provision(host, server()).ok
    wanted, content = effective(host), host.read(DROP_IN)
    host.run(by_hand)
    run = provision(host, server())
    assert run.ok, str(run)
    assert run.changed == ["Sshd"]
    assert set(effective(host)) == set(wanted)
    assert host.read(DROP_IN) == content
    assert host.run(f"stat -c %a {DROP_IN}").stdout.strip() == "644"
    assert provision(host, server()).changed == []


def test_port_of_another_file_is_refused_before_any_change(host, provision):
    host.write("/etc/ssh/sshd_config.d/50-cloud.conf", "Port 2022\n")
    run = provision(host, server())
    assert not run.ok
    assert "port 2022 is open as well" in run.stderr
    host.run("rm /etc/ssh/sshd_config.d/50-cloud.conf; systemctl reload ssh")
    assert not armed(host)


def test_port_moves_in_two_steps(host, provision, tmp_path):
    assert provision(host, server(ports=[22, 2222])).changed == ["Sshd"]
    run = provision(host, server(ports=[2222]), data=on_port(2222, tmp_path))
    assert run.changed == ["Sshd"], str(run)
    assert host.run("ss -Hltn | grep -c ':22 '", check=False).stdout.strip() == "0"
    assert provision(host, server(ports=[2222]), data=on_port(2222, tmp_path)).changed == []
    assert provision(host, server(ports=[22, 2222]), data=on_port(2222, tmp_path)).ok
    assert provision(host, server(ports=[22])).changed == ["Sshd"]


def test_port_that_nobody_can_reach_is_taken_back(host, provision):
    """The inventory still says 22: the new connection fails, and so does the operation."""
    started = time.monotonic()
    run = provision(host, server(ports=[2222]))
    assert run.failed == ["Sshd"], str(run)
    assert "no new SSH connection after the change" in run.stderr
    wait_for("the way in", lambda: host.ssh("true", check=False).returncode == 0, 60)
    assert time.monotonic() - started < 60
    wait_for("the end of the rollback", lambda: not armed(host), 20)
    assert "port 22" in effective(host)
    assert provision(host, server()).changed == []


def test_configuration_that_sshd_refuses_is_never_loaded(host, provision):
    broken = "from operations import sshd as module\nmodule.render = lambda *a, **k: 'Nonsense yes\\n'\n"
    before = effective(host)
    run = provision(host, server(before=broken))
    assert run.failed == ["Sshd"]
    assert effective(host) == before
    assert not armed(host)
    assert provision(host, server()).changed == []


@pytest.mark.parametrize("arguments", [{"permit_root": "yes"}, {"ports": []}, {"ports": [0]}, {"ports": [70000]}])
def test_bad_input_is_refused(host, provision, arguments):
    run = provision(host, server(**arguments))
    assert not run.ok
    assert "sshd.server: " in run.stderr
    assert not armed(host)


def test_socket_activated_sshd_is_moved_by_its_socket(fresh_host, provision, tmp_path):
    host = fresh_host
    host.run("systemctl disable --now ssh.service; systemctl enable --now ssh.socket")
    run = provision(host, server(ports=[22, 2222]))
    assert run.ok, str(run)
    listens = host.run("ss -Hltn").stdout
    assert ":22 " in listens
    assert ":2222 " in listens
    assert "passwordauthentication no" in effective(host)
    assert provision(host, server(ports=[22, 2222])).changed == []
    assert provision(host, server(ports=[22, 2222]), data=on_port(2222, tmp_path)).ok
    assert provision(host, server(ports=[22])).changed == ["Sshd"]
    assert ":2222 " not in host.run("ss -Hltn").stdout
    run = provision(host, server(ports=[2222]))
    assert run.failed == ["Sshd"], str(run)
    wait_for("the way in", lambda: host.ssh("true", check=False).returncode == 0, 60)
    wait_for("the end of the rollback", lambda: not armed(host), 20)
    assert provision(host, server(ports=[22])).changed == []


def test_trixie(lab, provision):
    host = lab.host("t-sshd-trixie", release="trixie")
    try:
        assert provision(host, server()).changed == ["Sshd"]
        assert provision(host, server()).changed == []
        seen = effective(host)
        assert "passwordauthentication no" in seen
        assert [line for line in seen if line.startswith("kexalgorithms ") and "mlkem768x25519-sha256" in line]
    finally:
        lab.destroy(host)
