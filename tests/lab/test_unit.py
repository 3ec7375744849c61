"""Unit state on a real host, read back with systemctl."""

import pytest

HEAD = "from operations import unit\n"
LIVES = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
DIES = "[Service]\nExecStart=/bin/sh -c 'echo about to fall; sleep 1; exit 3'\nRestart=always\nRestartSec=0\n[Install]\nWantedBy=multi-user.target\n"
UNIT = "/etc/systemd/system/lamp.service"


def lamp(**arguments: object) -> str:
    rest = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"{HEAD}unit.unit('lamp.service'{rest}, name='Lamp')\n"


def state(host) -> list[str]:
    return host.run(
        "systemctl is-active lamp.service; systemctl is-enabled lamp.service", check=False
    ).stdout.split()


@pytest.fixture
def lamp_host(host):
    host.run("systemctl unmask lamp.service; systemctl disable --now lamp.service", check=False)
    host.write(UNIT, LIVES)
    host.run("systemctl daemon-reload; systemctl reset-failed")
    return host


def test_set_noop_update_unset(lamp_host, provision):
    host = lamp_host
    assert provision(host, lamp()).changed == ["Lamp"]
    assert state(host) == ["active", "enabled"]
    assert provision(host, lamp()).changed == []
    assert provision(host, lamp(enabled=False)).changed == ["Lamp"]
    assert state(host) == ["active", "disabled"]
    assert provision(host, lamp(running=False, enabled=False)).changed == ["Lamp"]
    assert state(host) == ["inactive", "disabled"]
    assert provision(host, lamp(running=False, enabled=False)).changed == []


def test_masked_and_back(lamp_host, provision):
    host = lamp_host
    host.run(f"mv {UNIT} /usr/lib/systemd/system/lamp.service && systemctl daemon-reload")
    masked = lamp(running=False, enabled=False, masked=True)
    assert provision(host, lamp()).ok
    assert provision(host, masked).changed == ["Lamp"]
    assert state(host) == ["inactive", "masked"]
    assert provision(host, masked).changed == []
    assert provision(host, lamp()).changed == ["Lamp"]
    assert state(host) == ["active", "enabled"]
    host.run("systemctl disable --now lamp.service; rm /usr/lib/systemd/system/lamp.service")


def test_stopped_by_hand_is_started(lamp_host, provision):
    provision(lamp_host, lamp())
    lamp_host.run("systemctl kill -s KILL lamp.service; systemctl stop lamp.service")
    assert provision(lamp_host, lamp()).changed == ["Lamp"]
    assert state(lamp_host) == ["active", "enabled"]


def test_unit_that_dies_in_its_first_seconds_fails_with_its_journal(lamp_host, provision):
    lamp_host.write(UNIT, DIES)
    run = provision(lamp_host, lamp())
    assert not run.ok
    assert "lamp.service did not stay up for 3s" in run.stdout + run.stderr
    assert "about to fall" in run.stdout + run.stderr
    lamp_host.write(UNIT, LIVES)
    assert provision(lamp_host, lamp()).ok
    assert state(lamp_host) == ["active", "enabled"]


def test_daemon_reload_only_when_systemd_asks_and_new_unit_file_restarts(lamp_host, provision):
    host = lamp_host
    provision(host, lamp(inputs=[UNIT]))
    before = host.run("systemctl show -p MainPID --value lamp.service").stdout
    host.write(UNIT, LIVES.replace("infinity", "1000000"))
    assert host.run("systemctl show -p NeedDaemonReload --value lamp.service").stdout == "yes\n"
    assert provision(host, lamp(inputs=[UNIT])).changed == ["Lamp"]
    assert host.run("systemctl show -p NeedDaemonReload --value lamp.service").stdout == "no\n"
    after = host.run("systemctl show -p MainPID --value lamp.service").stdout
    assert after != before
    assert "1000000" in host.run(f"tr '\\0' ' ' < /proc/{after.strip()}/cmdline").stdout
    assert provision(host, lamp(inputs=[UNIT])).changed == []


def test_input_newer_than_the_process_restarts_it_whoever_changed_it(lamp_host, provision):
    host = lamp_host
    host.write("/etc/lamp.conf", "1\n")
    provision(host, lamp(inputs=["/etc/lamp.conf"]))
    before = host.run("systemctl show -p MainPID --value lamp.service").stdout
    assert provision(host, lamp(inputs=["/etc/lamp.conf"])).changed == []
    host.write("/etc/lamp.conf", "2\n")
    assert provision(host, lamp(inputs=["/etc/lamp.conf"])).changed == ["Lamp"]
    assert host.run("systemctl show -p MainPID --value lamp.service").stdout != before
    host.run("rm /etc/lamp.conf")
    assert provision(host, lamp(inputs=["/etc/lamp.conf"])).changed == ["Lamp"]
    assert provision(host, lamp(inputs=["/etc/lamp.conf"])).changed == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unit.unit('lamp', name='Lamp')", "the unit needs its suffix, e.g. lamp.service, got 'lamp'"),
        (
            "unit.unit('lamp.service', action='bounce', name='Lamp')",
            "action must be 'reload' or 'restart', got 'bounce'",
        ),
        (
            "unit.unit('lamp.service', masked=True, name='Lamp')",
            "masked=True goes with running=False and enabled=False",
        ),
        (
            "unit.unit('nosuch.service', name='Lamp')",
            "nosuch.service: systemd cannot load it (LoadState=not-found)",
        ),
    ],
)
def test_bad_input_is_refused(lamp_host, provision, text, message):
    run = provision(lamp_host, HEAD + text + "\n")
    assert not run.ok
    assert message in run.stdout + run.stderr


def test_plan_holds_a_unit_that_an_earlier_operation_brings(lamp_host, provision):
    lamp_host.run(f"rm {UNIT}; systemctl daemon-reload")
    deploy = f"""from operations import fileset, unit
from operations.fileset import File
fileset.files([File({UNIT!r}, {LIVES!r})], name="Upload lamp")
unit.unit("lamp.service", name="Lamp")
"""
    plan = provision(lamp_host, deploy, dry=True)
    assert (plan.ok, plan.changed) == (True, ["Upload lamp", "Lamp"])
    assert provision(lamp_host, deploy).changed == ["Upload lamp", "Lamp"]
    assert state(lamp_host) == ["active", "enabled"]
