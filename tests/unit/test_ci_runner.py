"""The settings of CI hosts, what is said about bad ones, and what becomes of their runners."""

from __future__ import annotations

import calendar
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploys import ci_runner as deploy
from facts.ci_runner import CiRunners, CiRunnerState, Runner
from operations import ci_runner
from operations.script import FILES
from settings import CiRunner, SettingsError, load_host

TOKEN = "canary-access-token-0123456789"
GOOD = {
    "ci_runner_url": "https://github.com/team/shop",
    "ci_runner_access_token": "env:ACCESS",
    "ci_runner_version": "2.320.0",
    "ci_runner_sha256": {"x64": "a" * 64, "arm64": "b" * 64},
}


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    monkeypatch.setenv("ACCESS", TOKEN)
    monkeypatch.setenv("SHORT", "short")


def settings(**values: object) -> CiRunner:
    found = load_host("runner-1", ["ci_runner"], {key: value for key, value in {**GOOD, **values}.items() if value is not None}).ci_runner
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("groups", "values", "said"),
    [
        ((), {"ci_runner_access_token": None}, "ci_runner_access_token: is required for ephemeral runners, which register anew for each job on host runner-1, write ci_runner_access_token = 'env:CI_RUNNER_ACCESS_TOKEN', or ci_runner_ephemeral = False"),
        ((), {"ci_runner_access_token": "env:SHORT"}, "ci_runner_access_token: must be a token: 16 characters or more, no blanks on host runner-1"),
        ((), {"ci_runner_url": "github.com/team/shop"}, "ci_runner_url: must be the URL of a repository or an organisation, such as 'https://github.com/team/shop' on host runner-1, got 'github.com/team/shop'"),
        ((), {"ci_runner_sha256": {"x64": "abc"}}, "ci_runner_sha256: must have 64 hex digits for x64 on host runner-1, got {'x64': 'abc'}"),
        ((), {"ci_runner_labels": ["linux"]}, "ci_runner_labels: must not have linux: the runner adds it by itself on host runner-1, got 'linux'"),
        ((), {"ci_runner_labels": ["render"], "ci_runner_sha256": {"arm64": "b" * 64}}, "ci_runner_sha256: must have x64 for the label render on host runner-1, got ['arm64']"),
        ((), {"ci_runner_public_repository": True, "ci_runner_docker": True}, "ci_runner_docker: must be False for a public repository: anyone could be root here by a pull request on host runner-1, got True"),
        ((), {"ci_runner_ephemeral": False, "ci_runner_registration_token": "env:ACCESS"}, "ci_runner_access_token: must be given, or ci_runner_registration_token, and not both on host runner-1"),
        ((), {"ci_runner_download_url": "https://mirror.example.org/{file}"}, "ci_runner_download_url: must have no other braces than {version} and {architecture} on host runner-1, got 'https://mirror.example.org/{file}'"),
        ((), {"ci_runner_version": None}, "ci_runner_version: is required on host runner-1, write ci_runner_version = '2.320.0'"),
        (("k3s_server",), {}, "ci_runner_url: must not be on a host of k3s_server: a job would be beside production's secrets on host runner-1, give it a host of its own"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(groups, values, said):
    data = {key: value for key, value in {**GOOD, **values}.items() if value is not None}
    with pytest.raises(SettingsError) as error:
        load_host("runner-1", ["ci_runner", *groups], data)
    assert said in error.value.lines(), str(error.value)
    assert TOKEN not in str(error.value)


def test_api_of_repository_organisation_and_own_server():
    assert (settings().api, settings().scope) == ("https://api.github.com", "repos/team/shop")
    own = settings(ci_runner_url="https://git.example.org/team")
    assert (own.api, own.scope) == ("https://git.example.org/api/v3", "orgs/team")


def test_render_hosts_are_amd64():
    assert settings().needs().architectures == ("x86_64", "aarch64")
    assert settings(ci_runner_labels=["render"]).needs().architectures == ("x86_64",)


def test_unit_is_closed_and_opens_docker_only_when_asked():
    text = deploy.unit(settings())
    for line in ("NoNewPrivileges=true", "ProtectSystem=strict", "CapabilityBoundingSet=", "RestrictSUIDSGID=true", "User=ci-runner-%i"):
        assert line in text.splitlines()
    assert "IPAddressDeny=10.0.0.0/8" in text
    assert "169.254.0.0/16" in text
    assert "SupplementaryGroups" not in text
    assert "SupplementaryGroups=docker" in deploy.unit(settings(ci_runner_docker=True))


def test_configuration_has_no_secret():
    assert TOKEN not in repr(deploy.marked(settings(), "runner-1"))


def test_steps_leave_a_runner_with_a_job_alone():
    state = CiRunnerState(
        runners={
            1: Runner("active", True, False, "new"),
            2: Runner("active", True, False, "old"),
            3: Runner("active", True, True, "old"),
            4: Runner("failed", True, False, ""),
            5: Runner("activating", True, False, ""),
            7: Runner("active", True, True, "new"),
        }
    )
    assert ci_runner.steps(state, 6, "new") == {"remove": [7], "create": [6], "start": [4], "restart": [2], "wait": [3]}
    assert not any(ci_runner.steps(CiRunnerState(runners={1: Runner("active", True, False, "new")}), 1, "new").values())


def test_mark_changes_with_what_a_runner_is_started_with():
    def mark(**values: object) -> str:
        return deploy.marked(settings(**values), "runner-1")["mark"]

    assert mark() == mark(ci_runner_count=3) == mark(ci_runner_cache_keep_days=2)
    assert len({mark(), mark(ci_runner_labels=["big"]), mark(ci_runner_version="2.321.0"), mark(ci_runner_memory_max="8G")}) == 4


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (["architecture x86_64", "releases"], CiRunnerState("x86_64")),
        (
            ["architecture aarch64", "releases 2.320.0-aaaaaaaa", '{"architecture": "aarch64", "runners": {"1": {"active": "active", "enabled": true, "is_busy": false, "mark": "m"}}}'],
            CiRunnerState("aarch64", ("2.320.0-aaaaaaaa",), {1: Runner("active", True, False, "m")}),
        ),
    ],
)
def test_fact_reads_a_bare_host_and_a_whole_one(output, said):
    assert CiRunners().process(output) == said


@pytest.mark.parametrize("words", [["prepare"], ["prepare", "0"], ["prepare", "../1"], ["remove", "1", "2"], []])
def test_program_refuses_what_it_does_not_know(words):
    run = subprocess.run([sys.executable, FILES / "ci_runner/ci-runner.py", *words], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == "ci-runner: prepare N | clean N | remove N | sweep | status\n"


@pytest.mark.parametrize(("busy", "removed"), [(False, ["old"]), (True, [])])
def test_what_runs_in_docker_goes_when_it_is_old_and_no_runner_has_a_job(busy, removed):
    began = {"old": "2026-01-01T00:00:00.123456789Z", "young": "2026-01-02T23:30:00Z"}
    said: list[tuple[str, ...]] = []

    def docker(*words: str) -> str:
        said.append(words)
        return {"ps": "old\nyoung\n", "inspect": began.get(words[-1], "") + "\n"}.get(words[0], "")

    names: dict[str, Any] = {"__name__": "ci_runner"}
    exec((FILES / "ci_runner/ci-runner.py").read_text(), names)
    now = calendar.timegm((2026, 1, 3, 0, 0, 0))
    users = [SimpleNamespace(pw_name="ci-runner-1", pw_uid=990), SimpleNamespace(pw_name="root", pw_uid=0)]
    names |= {
        "docker": docker, "is_busy": lambda uid: busy and uid == 990, "pwd": SimpleNamespace(getpwall=lambda: users),
        "time": SimpleNamespace(time=lambda: now, strptime=time.strptime),
    }  # fmt: skip
    names["sweep_docker"](24)
    assert [words[-1] for words in said if words[0] == "rm"] == removed
    assert ("system", "prune", "--all", "--force", "--filter", "until=24h") in said


@pytest.mark.parametrize("fails", [False, True])
def test_a_long_lived_runner_is_replaced_once_the_new_one_is_registered(tmp_path, fails):
    """In its own home, which is a mount; a link that a job left there is not followed."""
    home, other = tmp_path / "1", tmp_path / "other"
    for directory in (home / "_work", other):
        directory.mkdir(parents=True)
    (home / ".runner").write_text("old")
    (home / "_work/kept").write_text("")
    (other / "kept").write_text("")
    (home / ".new").symlink_to(other)
    names: dict[str, Any] = {"__name__": "ci_runner"}
    exec((FILES / "ci_runner/ci-runner.py").read_text(), names)

    def lay_out(settings: object, number: int, where: str) -> None:
        for name in ("_work", "home"):
            os.makedirs(f"{where}/{name}")

    def register(settings: object, number: int, its: object, where: str) -> None:
        if fails:
            raise names["Failure"]("config.sh: 401")
        Path(where, ".runner").write_text("new")

    names |= {"HOMES": str(tmp_path), "lay_out": lay_out, "register": register, "end_processes": lambda number: None}
    names["renew"]({"mark": "second"}, 1, SimpleNamespace(pw_uid=os.getuid(), pw_gid=os.getgid()))
    found = sorted(one.name for one in home.iterdir())
    assert ((home / ".runner").read_text(), found) == (("old", [".runner", "_work"]) if fails else ("new", [".runner", "_work", "home"]))
    assert (home / "_work/kept").exists() == fails
    assert (tmp_path / ".1.mark").exists() != fails
    assert (other / "kept").exists()
