"""The shipped inventories are good; a bad one is refused by the real CLI before it opens a connection."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYINFRA = Path(sys.executable).with_name("pyinfra")
GOOD = {
    "gateway_domain": "gateway.example.org",
    "gateway_repository": "https://git.example.org/gateway.git",
    "gateway_version": "v1.4.0",
    "gateway_admin_api_key": "env:GATEWAY_ADMIN_API_KEY",
    "certificate_email": "ops@example.org",
    "backup_password": "env:BACKUP_PASSWORD",
}
SECRETS = {"GATEWAY_ADMIN_API_KEY": "canary-" + "k" * 32, "BACKUP_PASSWORD": "canary-" + "b" * 20}
REFUSED = "found before any connection"


def pyinfra(*arguments, secrets=None):
    plain = {key: value for key, value in os.environ.items() if key not in SECRETS}
    run = subprocess.run(
        [PYINFRA, *map(str, arguments)], cwd=ROOT, env=plain | (secrets or {}) | {"NO_COLOR": "1"}, text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    run.said = re.sub(r"\x1b\[[0-9;]*m", "", run.stderr)
    return run


@dataclass
class Listener:
    """A port of this machine, and who connected to it."""

    port: int
    seen: list[object] = field(default_factory=list)


@pytest.fixture
def listener():
    server = socket.create_server(("", 0))
    found = Listener(server.getsockname()[1])

    def accept():
        while True:
            try:
                connection, address = server.accept()
            except OSError:
                return
            found.seen.append(address)
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    yield found
    server.close()


@pytest.fixture
def inventory(tmp_path, listener):
    """Write an inventory of group gateway; every host is at the listener's address, or is a @fake one."""

    def write(per_host=None, hosts=("web1",), fake=False, more=""):
        entries = []
        for number, name in enumerate(hosts):
            own = GOOD | (per_host or {}).get(name, {})
            if fake:
                entries.append((f"@fake/{name}", own | {"fake_delay": 0, "fake_delay_jitter": 0}))
            else:
                # 127.0.0.1, .2, .3: all of them are this machine
                address = {"ssh_hostname": f"127.0.0.{number + 1}", "ssh_port": listener.port}
                entries.append((name, own | address))
        path = tmp_path / "inventory.py"
        path.write_text(f"gateway = {entries!r}\n{more}\n")
        return path

    return write


@pytest.fixture
def deploy(tmp_path):
    def write(code='from pyinfra.operations import server\nserver.shell("true", name="Say yes")'):
        path = tmp_path / "deploy.py"
        path.write_text(code)
        return path

    return write


@pytest.mark.parametrize("name", ["prod", "staging", "ci", "lab"])
def test_shipped_inventory_is_good_and_holds_no_secret(name):
    run = pyinfra("--json", f"inventories/{name}.py", "debug-inventory")
    assert run.returncode == 0, run.said
    hosts = json.loads(run.stdout)
    assert hosts
    for host in hosts:
        for key, value in host["data"].items():
            if re.search(r"password|api_key|secret|token", key):
                assert str(value).startswith(("env:", "file:", "sops:", "age:")), f"{host['name']}: {key}"


def test_good_inventory_is_connected_to(inventory, deploy, listener):
    """The control for the tests below: their listener does see a run that goes on."""
    pyinfra("-y", inventory(), deploy(), secrets=SECRETS)
    assert listener.seen


@pytest.mark.parametrize(
    "command",
    [
        ["-y", "DEPLOY"],
        ["--dry", "DEPLOY"],
        ["exec", "--", "true"],
        ["fact", "server.Hostname"],
        ["debug-inventory"],
        ["-y", "server.shell", "id"],
    ],
    ids=["deploy", "plan", "exec", "fact", "debug-inventory", "operation"],
)
def test_bad_settings_are_refused_before_any_connection(inventory, deploy, listener, command):
    hosts = inventory(
        {"web1": {"gateway_domian": "x"}, "web2": {"gateway_workers": 0}}, hosts=("web1", "web2")
    )
    *options, last = [deploy() if word == "DEPLOY" else word for word in command]
    run = pyinfra(hosts, *options, last, secrets=SECRETS)
    assert run.returncode == 1, run.said
    assert f"2 faults {REFUSED}" in run.said
    assert "gateway_domian: unknown setting on host web1, did you mean gateway_domain?\n" in run.said
    assert "gateway_workers: must be at least 1 on host web2, got 0\n" in run.said
    assert "Traceback" not in run.said
    assert listener.seen == []


def test_limit_does_not_hide_faults_of_other_hosts(inventory, deploy, listener):
    hosts = inventory({"web2": {"gateway_workers": 0}}, hosts=("web1", "web2"))
    run = pyinfra("-y", "--limit", "web1", hosts, deploy(), secrets=SECRETS)
    assert run.returncode == 1
    assert "gateway_workers: must be at least 1 on host web2, got 0" in run.said
    assert listener.seen == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--limit", "wbe1"], "--limit wbe1: matches no host of the inventory"),
        (["--limit", "web1", "--limit", "mcbench"], "--limit mcbench: matches no host of the inventory"),
        (["--exclude", "wbe1"], "--exclude wbe1: matches no host of the inventory"),
        (["--limit", "web1", "--exclude", "web*"], "--limit and --exclude leave no host"),
        (["--use-sudo-password"], "--use-sudo-password, --same-sudo-password: must not be used"),
        (["--ssh-password", "hunter2"], "ssh_password: must not be used on host web1, log in with a key"),
        (
            ["--data", "gateway_version=1.30"],
            "gateway_version: must be text on host web1, got 1.3, quote it: ",
        ),
        (
            ["--data", "gateway_workers=08000x"],
            "gateway_workers: must be a whole number on host web1, got '08000x'",
        ),
    ],
)
def test_option_that_cannot_be_meant_is_refused(inventory, deploy, listener, options, line):
    run = pyinfra("-y", *options, inventory(), deploy(), secrets=SECRETS)
    assert run.returncode == 1, run.said
    assert REFUSED in run.said
    assert line in run.said
    assert "hunter2" not in run.said
    assert listener.seen == []


def test_inventory_without_hosts_is_refused(tmp_path, deploy):
    (tmp_path / "empty.py").write_text("gateway = []\n")
    run = pyinfra("-y", tmp_path / "empty.py", deploy())
    assert run.returncode == 1
    assert "the inventory has no host" in run.said


def test_list_of_strings_in_an_inventory_is_refused(inventory, deploy, listener):
    run = pyinfra("-y", inventory(more='base_packages = ["htop", "jq"]'), deploy(), secrets=SECRETS)
    assert run.returncode == 1
    assert (
        "base_packages: a list in an inventory file is a group of hosts, here of htop, jq, write" in run.said
    )
    assert listener.seen == []


def test_missing_secret_is_said_for_the_chosen_host_only(inventory, deploy, listener):
    hosts = inventory({"web2": {"backup_password": "env:BACKUP_PASSWORD_2"}}, hosts=("web1", "web2"))
    run = pyinfra("-y", "--limit", "web2", hosts, deploy(), secrets={"GATEWAY_ADMIN_API_KEY": "k" * 32})
    assert run.returncode == 1
    assert f"1 fault {REFUSED}" in run.said
    assert "backup_password: environment variable BACKUP_PASSWORD_2 is not set on host web2\n" in run.said
    assert listener.seen == []


@pytest.mark.parametrize(
    "command", [["exec", "--", "true"], ["fact", "server.Hostname"], ["-y", "server.shell", "id"]]
)
def test_commands_that_need_no_secret_run_without(inventory, listener, command):
    run = pyinfra(inventory(), *command)
    assert "is not set" not in run.said
    assert listener.seen


def test_deploy_code_gets_the_settings_of_its_host(inventory, deploy):
    hosts = inventory({"web2": {"gateway_workers": 2}}, hosts=("web1", "web2"), fake=True)
    code = (
        "from deploys import current\nfrom pyinfra import host, logger\n"
        "settings = current()\nassert settings is current()\n"
        'logger.info(f"{settings.name} {settings.gateway.workers} {settings.gateway.admin_api_key!r}")\n'
        'assert settings.gateway.admin_api_key.unmask().startswith("canary-")\n'
    )
    run = pyinfra("-y", "--debug", "-vvv", hosts, deploy(code), secrets=SECRETS)
    assert run.returncode == 0, run.said
    assert "@fake/web1 1 *MASKED*" in run.said
    assert "@fake/web2 2 *MASKED*" in run.said
    assert "canary-" not in run.stdout + run.stderr


def test_deploy_code_is_guarded_also_without_config(inventory, deploy):
    hosts = inventory({"web1": {"gateway_workers": 0}}, fake=True)
    run = pyinfra(
        "-y", "--config", "none.py", hosts, deploy("from deploys import current\ncurrent()"), secrets=SECRETS
    )
    assert run.returncode == 1
    assert "gateway_workers: must be at least 1 on host @fake/web1, got 0" in run.said
    assert "Traceback" not in run.said


def test_operation_that_raises_ends_its_own_host_only(inventory, deploy):
    code = (
        "from pyinfra import host\nfrom pyinfra.api import OperationError, operation\n"
        "from pyinfra.operations import server\n"
        "@operation()\ndef fail():\n"
        '    if host.name.endswith("web1"):\n        raise OperationError("no disk in {drive}")\n    yield "true"\n'
        'fail(name="Fail")\nserver.shell("true", name="Go on")\n'
    )
    run = pyinfra("--json", "-y", inventory(hosts=("web1", "web2"), fake=True), deploy(code), secrets=SECRETS)
    assert run.returncode == 1
    assert "Operation error: no disk in {drive}" in run.said
    results = json.loads(run.stdout)["results"]
    assert results["failed_hosts"] == ["@fake/web1"]
    assert [row["success"] for row in results["operations"]] == [["@fake/web2"], ["@fake/web2"]]


def test_refused_host_is_in_no_row_of_the_plan(inventory):
    """A @fake host says nothing of itself, which is a fault of everything that is asked for."""
    run = pyinfra("--json", "--dry", inventory(fake=True), "deploy.py", secrets=SECRETS)
    assert run.returncode == 1, run.said
    assert "Preflight: this host is not touched" in run.said
    assert "Traceback" not in run.said
    assert {row["name"]: row["hosts_with_change"] for row in json.loads(run.stdout)["plan"]} == {"Check host": []}


@pytest.mark.parametrize("error", ["OperationError", "DeployError"])
def test_operation_or_deploy_that_raises_in_the_plan_leaves_out_its_own_host_only(inventory, deploy, error):
    code = (
        "from pyinfra import host\nfrom pyinfra.api import DeployError, OperationError, operation\n"
        "from pyinfra.operations import server\n"
        'if host.name.endswith("web1"):\n'
        f'    raise {error}("no disk in {{drive}}")\n'
        'server.shell("true", name="Go on")\n'
    )
    run = pyinfra("--json", "--dry", inventory(hosts=("web1", "web2"), fake=True), deploy(code), secrets=SECRETS)
    assert "Not planned: no disk in {drive}" in run.said
    assert json.loads(run.stdout)["plan"][0]["hosts_with_change"] == ["@fake/web2"]
    assert run.returncode == 1
