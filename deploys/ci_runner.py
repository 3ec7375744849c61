"""
Hosts that run CI jobs: runners with a user and a cage each, registered by root, cleaned after every job.

Read top to bottom, it is the run book. What each step guards against is told in docs/ci.md.
"""

import json
from typing import Any

from pyinfra.api import deploy

from deploys import current
from operations import ci_runner as runner
from operations import dpkg, fileset, schedule, script, template
from operations.ci_runner import CONFIG, UNIT
from operations.fileset import Absent, Directory, Entry, File
from operations.schedule import Sandbox
from settings import CiRunner
from settings.secret import Secret

PROGRAM = "/usr/local/lib/hostwright/ci-runner"


@deploy("CI runner")
def ci_runner() -> None:
    """Converge one host to its runner settings."""
    host = current()
    settings = host.ci_runner
    if settings is None:
        return
    # what the runner's own installdependencies.sh would bring, without its guessing
    dpkg.packages(["ca-certificates", "curl", "git", "libssl3", "libkrb5-3", "zlib1g", "tar"], name="Install packages")
    runner.release(settings.version, settings.sha256, settings.download_url, name="Install the runner")
    _files(settings, host.name)
    runner.runners(settings.count, mark=marked(settings, host.name)["mark"], ephemeral=settings.ephemeral, name="Run the runners")
    schedule.job(
        "ci-runner-sweep",
        command=[PROGRAM, "sweep"],
        when=settings.cleanup_at,
        sandbox=Sandbox(
            writable=["/var/cache/ci-runner", "/var/lib/ci-runner"],
            # it must see whether a job runs, a process of another user's, before it ends containers
            capabilities=["CAP_DAC_OVERRIDE", "CAP_FOWNER", *(["CAP_SYS_PTRACE"] if settings.docker else [])],
        ),
        description="Clean caches of CI runners",
        name="Schedule cleaning",
    )


def unit(settings: CiRunner) -> str:
    """Return the unit of every runner."""
    return template.render(
        "ci_runner/ci-runner@.service.j2",
        docker=settings.docker,
        stop_seconds=settings.stop_seconds,
        memory_max=settings.memory_max,
        cpu_percent=settings.cpu_percent,
        tasks_max=settings.tasks_max,
        denied_networks=settings.denied_networks,
        allowed_networks=settings.allowed_networks,
    )


def configuration(settings: CiRunner, host: str) -> dict[str, Any]:
    """Return what a runner is registered and started with; no secret is in it."""
    return {
        "host": host,
        "url": settings.url,
        "api": settings.api,
        "scope": settings.scope,
        "ephemeral": settings.ephemeral,
        "labels": list(settings.labels),
        "group": settings.group,
        "has_access_token": bool(settings.access_token),
        "cache": settings.cache_enabled,
        "release": {key: runner.release_id(settings.version, value) for key, value in settings.sha256.items()},
    }


def marked(settings: CiRunner, host: str) -> dict[str, Any]:
    """Return config.json: what the runner is started with, its mark, and what does not touch a running one."""
    config = configuration(settings, host)
    return {**config, "mark": runner.mark(config, unit(settings)), "count": settings.count, "cache_keep_days": settings.cache_keep_days,
            "docker_keep_hours": settings.docker_keep_hours if settings.docker else 0}  # fmt: skip


def _files(settings: CiRunner, host: str) -> None:
    secret = settings.access_token or settings.registration_token
    token: Entry = File(f"{CONFIG}/token", Secret(secret.unmask() + "\n"), mode="0600") if secret.resolved else Absent(f"{CONFIG}/token")
    fileset.files(
        [
            Directory("/usr/local/lib/hostwright"),
            Directory(CONFIG, mode="0700"),
            File(PROGRAM, (script.FILES / "ci_runner/ci-runner.py").read_text(), mode="0755"),
            File(f"{CONFIG}/config.json", json.dumps(marked(settings, host), indent=1) + "\n", mode="0600"),
            token,
            File(UNIT, unit(settings)),
        ],
        apply="systemctl daemon-reload",
        name="Upload configuration",
    )
