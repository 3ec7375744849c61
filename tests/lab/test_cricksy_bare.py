"""Bare hosts become cricksy by the real deploy.py: what the outside reaches, before and after a reboot, and where no secret may be."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import canary
from tests.lab.canary import Samples
from tests.lab.cricksy_fleet import (
    SECRETS,
    TEXT,
    Fleet,
    ask,
    assert_converged,
    fleet_of,
    give_image,
    read,
    upload,
)
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.scan import scan
from tests.lab.state import REPOSITORY, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

DEPLOY = REPOSITORY / "deploy.py"
SERVICES = (5432, 6379, 6380)
# pyinfra at its most talkative: every command with its output, its internals, the content of every file it uploads.
LOUD = ("-vvv", "--debug", "--diff")
# Files that hold a secret because something must read it there.
EXPECTED_FILES = {
    r"/etc/cricksy/migrate\.env",
    r"/etc/cricksy/health\.env",
    r"/etc/cricksy-api/(blue|green)\.env",
    r"/etc/cricksy-worker/env",
    r"/etc/cricksy-flower/env",
    r"/etc/hostwright/redis/cricksy-(broker|cache)\.password",
    r"/etc/hostwright/backup/cricksy(-broker)?\.env",
    r"/var/lib/hostwright/rollout/cricksy-api/.*",
    r"/var/lib/hostwright/celery/cricksy-worker/.*",
    r"/etc/postgresql/15/main/server\.key",
    r"/etc/redis/redis-cricksy-(broker|cache)\.key",
}
# Of whom a file may be that holds a secret, and with which mode: nobody else may read it.
READERS = {"600 root root", "600 postgres postgres", "640 root redis"}


class FirstRun:
    """The first converge, at its most talkative, and what was seen of secrets meanwhile and then."""

    def __init__(self, fleet: Fleet) -> None:
        self.samples: dict[str, Samples] = {}
        # of the key a line in the middle: all of it is in one file, with its line breaks
        self.secrets = {name: fleet.secrets[name] for name in (*SECRETS,)} | {"CRICKSY_KEY": fleet.secrets["CRICKSY_KEY"].splitlines()[2]}
        with contextlib.ExitStack() as stack:
            for host in fleet.hosts:
                self.samples[host.name] = stack.enter_context(canary.sampled(host, self.secrets))
            began = time.monotonic()
            self.run: Run = fleet.run(DEPLOY, extra=LOUD, timeout=1500)
            self.seconds = time.monotonic() - began
        assert self.run.ok, self.run
        self.files = {host.name: canary.files(host, self.secrets) for host in fleet.hosts}
        self.journals = {host.name: canary.journal(host, self.secrets) for host in fleet.hosts}


@pytest.fixture(scope="module")
def fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(lab, tmp_path_factory.mktemp("cricksy"), "bare") as made:
        made.secrets |= canary.new(SECRETS)
        yield made


@pytest.fixture(scope="module")
def first(fleet: Fleet) -> FirstRun:
    return FirstRun(fleet)


@pytest.fixture(scope="module")
def client(stranger: LabHost) -> LabHost:
    give_image(stranger)
    return stranger


def reaches(source: LabHost, target: LabHost, port: int) -> bool:
    return source.run(f"timeout 4 bash -c '</dev/tcp/{target.address}/{port}'", check=False).returncode == 0


def assert_exposure(fleet: Fleet, client: LabHost) -> None:
    """Of all ports of both families the stranger reaches the declared ones, and the workers their databases besides."""
    wait_for("the API", lambda: ask(fleet, client, "/api/health")[0] == 200, 120)
    for host in fleet.hosts:
        wanted = {22, 80, 443} if host is fleet.front else {22}
        seen = scan(client, host)
        assert {family: (set(found.open), set(found.refused)) for family, found in seen.items()} == {
            4: (wanted, set()),
            6: (wanted, set()),
        }, host.name
    for host in fleet.workers:
        wait_for(f"databases for {host.name}", lambda host=host: all(reaches(host, fleet.front, port) for port in SERVICES), 60)
        assert not reaches(host, fleet.front, 5555)


def test_bare_hosts_read_an_image(fleet: Fleet, first: FirstRun, client: LabHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(fleet, client, upload(fleet, client))["text"] == TEXT
    assert_converged(fleet, DEPLOY)
    with capsys.disabled():
        print(f"\nfrom bare: {first.seconds:.0f} s")  # noqa: T201 - the figure that docs and readers want


def test_checks_of_production_pass(fleet: Fleet, first: FirstRun, tmp_path: Path) -> None:
    checks = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/verify", "--inventory", str(fleet.inventory(tmp_path))]
    done = subprocess.run(checks, cwd=REPOSITORY, env={**os.environ, **fleet.secrets, "NO_COLOR": "1"}, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    done = fleet.type("deploys.cricksy.status")
    assert done.returncode == 0, done.stdout[-6000:]
    for words in ("api blue: serves, running", "worker 1: active", "worker: 1 are wanted"):
        assert words in done.stdout, done.stdout


def test_no_secret_is_said(first: FirstRun) -> None:
    assert "--> Starting operation: cricksy | Roll out workers" in first.run.stderr  # it did run, and was heard
    assert canary.in_text(first.run.stdout + first.run.stderr, first.secrets) == []
    assert {name: found for name, found in first.journals.items() if found} == {}


def test_no_secret_is_in_a_command_line(fleet: Fleet, first: FirstRun) -> None:
    """And of environments, which their user reads, only in those of root and of who needs them."""
    for host in fleet.hosts:
        samples = first.samples[host.name]
        assert samples.count / samples.seconds > 5, "the process table was not looked at"
        assert samples.arguments == set(), host.name
        allowed = {0, int(host.run("id -u cricksy").stdout)}
        assert {uid for uid, _ in samples.environments} <= allowed, samples.environments
        assert samples.environments != set(), "the application's own is there, and was not seen"


def test_secrets_stand_in_the_expected_files_only(first: FirstRun) -> None:
    found = {(host, path): access for host, files in first.files.items() for path, access in files.items()}
    assert [place for place in found if not any(re.fullmatch(pattern, place[1]) for pattern in EXPECTED_FILES)] == []
    assert [pattern for pattern in EXPECTED_FILES if not any(re.fullmatch(pattern, path) for _, path in found)] == []
    assert {place: access for place, access in found.items() if access not in READERS} == {}


def test_changed_password_is_replaced_without_being_shown(fleet: Fleet, first: FirstRun, client: LabHost) -> None:
    """--diff shows the old content beside the new: neither may be seen."""
    new = canary.new(["CRICKSY_POSTGRES_PASSWORD", "CRICKSY_REDIS_PASSWORD"])
    fleet.secrets |= new
    run = fleet.run(DEPLOY, extra=LOUD)
    assert run.ok
    assert {"cricksy | Roll out workers", "cricksy | Roll out the API"} <= set(run.changed)
    for known in (first.secrets, new):
        assert canary.in_text(run.stdout + run.stderr, known) == []
        for host in fleet.hosts:
            assert canary.journal(host, known) == [], host.name
    assert read(fleet, client, upload(fleet, client))["text"] == TEXT


def test_nothing_but_what_is_declared_is_open(fleet: Fleet, first: FirstRun, client: LabHost) -> None:
    assert_exposure(fleet, client)


def test_exposure_and_system_are_the_same_after_a_reboot(fleet: Fleet, first: FirstRun, client: LabHost) -> None:
    for host in fleet.hosts:
        host.reboot()
    assert_exposure(fleet, client)
    assert read(fleet, client, upload(fleet, client))["text"] == TEXT
    assert_converged(fleet, DEPLOY)
