"""No secret where it does not belong: random ones are looked for during and after a real converge of the gateway."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.lab import canary
from tests.lab.deployed import BARE, CONVERGED, Deployed
from tests.lab.provision import PYINFRA
from tests.lab.state import REPOSITORY, run

# pyinfra at its most talkative: every command with its output, its internals, the content of every file it uploads.
LOUD = ("-vvv", "--debug", "--diff")

EXPECTED_FILES = {
    r"/etc/multiverse-gateway/(blue|green)\.env",  # what the service reads
    r"/var/lib/hostwright/rollout/multiverse-gateway/.*",  # the specs that a rollback goes back to
    r"/etc/hostwright/backup/gateway\.env",  # what the backup job reads
}
ROOT_ALONE = "600 root root"


def test_process_table_was_looked_at_often_enough(deployed: Deployed) -> None:
    rate = deployed.samples.count / deployed.samples.seconds
    assert rate > canary.SAMPLES_PER_SECOND * 0.8


def test_output_of_a_run_holds_no_secret(deployed: Deployed) -> None:
    done = deployed.first_run
    assert "--> Starting operation: Gateway | Roll out release" in done.stderr  # it did run, and was heard
    assert canary.in_text(done.stdout + done.stderr, deployed.secrets) == []


def test_command_lines_on_the_host_hold_no_secret(deployed: Deployed) -> None:
    assert deployed.samples.arguments == set()


def test_environments_with_a_secret_belong_to_root_or_the_gateway(deployed: Deployed) -> None:
    """An environment is readable by its own user and by root: only those may have one who may know the secret."""
    gateway = int(deployed.host.run("id -u gateway").stdout)
    assert {uid for uid, _ in deployed.samples.environments} <= {0, gateway}
    assert deployed.samples.environments != set()  # the gateway's own is there, and the sampler saw it


def test_secrets_stand_in_the_expected_files_only(deployed: Deployed) -> None:
    files, _ = deployed.leaks
    unexpected = [path for path in files if not any(re.fullmatch(pattern, path) for pattern in EXPECTED_FILES)]
    assert unexpected == []
    unused = [pattern for pattern in EXPECTED_FILES if not any(re.fullmatch(pattern, path) for path in files)]
    assert unused == []
    assert {path: access for path, access in files.items() if access != ROOT_ALONE} == {}


def test_journal_holds_no_secret(deployed: Deployed) -> None:
    _, journal = deployed.leaks
    assert journal == []


def test_plans_hold_no_secret(deployed: Deployed) -> None:
    deployed.host.reset(BARE)
    bare = deployed.converge(dry=True, extra=LOUD)
    assert bare.ok
    assert bare.changed != []
    assert canary.in_text(bare.stdout + bare.stderr, deployed.secrets) == []


def test_changed_secret_is_replaced_without_being_shown(deployed: Deployed) -> None:
    """--diff shows the old content beside the new: neither may be seen."""
    deployed.host.reset(CONVERGED)
    old = dict(deployed.secrets)
    deployed.secrets["GATEWAY_UPSTREAM_TOKEN"] = canary.new(["x"])["x"]
    try:
        done = deployed.converge(extra=LOUD)
    finally:
        new, deployed.secrets = deployed.secrets, old
    assert done.ok
    assert "Gateway | Roll out release" in done.changed
    assert canary.in_text(done.stdout + done.stderr, old) == []
    assert canary.in_text(done.stdout + done.stderr, new) == []


def test_debug_inventory_holds_no_secret(deployed: Deployed) -> None:
    done = subprocess.run(
        [str(PYINFRA), "--json", "--debug", str(deployed.inventory()), "debug-inventory"],
        cwd=REPOSITORY, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert "env:GATEWAY_ADMIN_API_KEY" in done.stdout
    assert canary.in_text(done.stdout + done.stderr, deployed.secrets) == []


def test_nothing_is_left_in_the_checkout(deployed: Deployed) -> None:
    value = deployed.secrets["GATEWAY_ADMIN_API_KEY"]
    changed = run("git", "-C", REPOSITORY, "ls-files", "--others", "--modified", "--exclude-standard").splitlines()
    written = [REPOSITORY / path for path in [*changed, "pyinfra-debug.log"]]
    assert [path for path in written if path.is_file() and value.encode() in path.read_bytes()] == []


@pytest.fixture
def planted(deployed: Deployed) -> str:
    """A secret that stands everywhere it must not."""
    deployed.host.reset(CONVERGED)
    return deployed.secrets["GATEWAY_CLIENT_API_KEY"]


def test_detector_sees_what_is_planted(deployed: Deployed, planted: str) -> None:
    host, names = deployed.host, ["GATEWAY_CLIENT_API_KEY"]
    with canary.sampled(host, deployed.secrets) as samples:
        host.run("read -r secret; sh -c 'sleep 0.3' -- \"$secret\"", input=f"{planted}\n")
        host.run("read -r secret; SECRET=$secret setpriv --reuid=65534 --clear-groups sleep 0.3", input=f"{planted}\n")
    assert any(planted in line for line in samples.arguments)
    assert 65534 in {uid for uid, _ in samples.environments}

    host.run("read -r secret; echo \"$secret\" >/var/tmp/plain; echo \"x$secret\" | base64 -w0 >/srv/encoded; "
             "printf 'a\\0%s' \"$secret\" >/opt/binary; logger \"key=$secret\"; journalctl --sync",
             input=f"{planted}\n")  # fmt: skip
    found = canary.files(host, deployed.secrets)
    assert {"/var/tmp/plain", "/srv/encoded", "/opt/binary"} <= set(found)
    assert found["/var/tmp/plain"] == "644 root root"
    assert canary.journal(host, deployed.secrets) == names
    assert canary.in_text(f'{{"key": "{planted}"}}', deployed.secrets) == names
