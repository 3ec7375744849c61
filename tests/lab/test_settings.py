"""A secret on its way from the environment of pyinfra into a file of the host shows up nowhere else."""

import pytest

from settings.env import render

CANARY = "canary-4d1f-" + "x" * 32
OTHER = "canary-9b7a-" + "y" * 32
DATA = {
    "gateway_domain": "gateway.example.test",
    "gateway_repository": "https://git.example.test/gateway.git",
    "gateway_version": "v1",
    "gateway_admin_api_key": "env:GATEWAY_ADMIN_API_KEY",
    "gateway_extra_secret_env": {"UPSTREAM_TOKEN": "env:UPSTREAM_TOKEN"},
    "certificate_mode": "self-signed",
    "backup_enabled": False,
}
ENV = {"GATEWAY_ADMIN_API_KEY": CANARY, "UPSTREAM_TOKEN": OTHER}
DEPLOY = """
from deploys import current
from operations import fileset, preflight
from operations.fileset import Directory, File
from settings import Secret
from settings.env import render
settings = current()
preflight.host(settings.requirements, name="Check host")
gateway = settings.gateway
variables = {"ADMIN_API_KEY": gateway.admin_api_key, **gateway.extra_secret_env}
fileset.files(
    [Directory("/etc/hw-canary"), File("/etc/hw-canary/env", Secret(render(variables, consumer="systemd")), mode="0600")],
    name="Write env file",
)
"""
LOUD = ("-vvv", "--debug", "--diff")


@pytest.fixture
def watched(host):
    """The host, with everything its process list shows written down 50 times a second."""
    host.run(
        "systemd-run --unit hw-watch sh -c 'while :; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null"
        ' | tr "\\0" " "; sleep 0.02; done > /run/hw-watch\''
    )
    yield host
    host.run("systemctl stop hw-watch; rm -f /run/hw-watch; rm -rf /etc/hw-canary")


def places(host):
    """Files of the host that hold a canary, the journal included."""
    found = host.run(
        "grep -rlas canary- / --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev; true", timeout=120
    ).stdout.split()
    if "canary-" in host.run("journalctl -o verbose --all --no-pager").stdout:
        found.append("journal")
    return found


def test_secret_is_in_its_file_and_nowhere_else(provision, watched):
    plan = provision(watched, DEPLOY, data=DATA, groups={"gateway": [watched]}, env=ENV, dry=True, extra=LOUD)
    run = provision(watched, DEPLOY, data=DATA, groups={"gateway": [watched]}, env=ENV, extra=LOUD)
    assert plan.ok, plan
    assert run.ok, run
    assert run.changed == ["Write env file"]
    for output in (plan.stdout, plan.stderr, run.stdout, run.stderr):
        assert "canary-" not in output

    watched.run("systemctl stop hw-watch")
    assert "sh -s" in watched.read("/run/hw-watch"), "the watch saw no command of the run: it proves nothing"
    assert places(watched) == ["/etc/hw-canary/env"]
    assert watched.run("stat -c %a /etc/hw-canary/env").stdout == "600\n"
    expected = render({"ADMIN_API_KEY": CANARY, "UPSTREAM_TOKEN": OTHER}, consumer="systemd")
    assert watched.read("/etc/hw-canary/env") == expected


def test_search_finds_a_leak(fresh_host):
    """The control for the test above."""
    fresh_host.run("echo canary-1 > /var/tmp/leak; echo canary-2 | systemd-cat; journalctl --sync")
    assert {"/var/tmp/leak", "journal"} <= set(places(fresh_host))
