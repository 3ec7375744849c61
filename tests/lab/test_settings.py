"""A secret on its way from the environment of pyinfra into a file of the host shows up nowhere else."""

import subprocess

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


@pytest.mark.parametrize("file", ["prod.yaml.age", "prod.env.age"])
def test_secret_comes_out_of_a_file_that_age_encrypted(host, provision, tmp_path, file):
    """The real age on the control side: decrypted in memory, refused in words with another identity."""
    identity = tmp_path / "age.txt"
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True)
    recipient = subprocess.run(["age-keygen", "-y", identity], check=True, capture_output=True, text=True)
    text = f"admin: {CANARY}\n" if "yaml" in file else f"admin={CANARY}\n"
    secrets = tmp_path / file
    subprocess.run(
        ["age", "--recipient", recipient.stdout.strip(), "--output", secrets], input=text, text=True, check=True
    )
    assert CANARY not in secrets.read_bytes().decode(errors="replace")
    data = {**DATA, "gateway_admin_api_key": f"age:{secrets}#admin"}
    known = {**ENV, "HOSTWRIGHT_AGE_IDENTITY": str(identity)}
    run = provision(host, DEPLOY, data=data, groups={"gateway": [host]}, env=known, extra=LOUD)
    assert run.ok, run
    assert f'ADMIN_API_KEY="{CANARY}"' in host.read("/etc/hw-canary/env")
    assert "canary-" not in run.stdout + run.stderr

    other = tmp_path / "other.txt"
    subprocess.run(["age-keygen", "-o", other], check=True, capture_output=True)
    known["HOSTWRIGHT_AGE_IDENTITY"] = str(other)
    run = provision(host, DEPLOY, data=data, groups={"gateway": [host]}, env=known)
    assert not run.ok
    assert f"gateway_admin_api_key: age cannot decrypt {secrets}" in run.stderr
