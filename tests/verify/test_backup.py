"""What the systems of a host declare is backed up, verified, and recent; what to do when it is needed is written down."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from facts.backup import CONFIG, STATE
from operations.backup import repositories
from tests.verify.conftest import Machine
from tests.verify.fleet import REPOSITORY

EVIDENCE = {
    # of each source: its name, and of its runs and its drills: whether the timer is active and enabled, how the last one
    # ended, when the timer went off last (or was first started), in s; then what the backup program noted
    "backup-sources": f"""cd {CONFIG} 2>/dev/null || exit 0
    for file in *.json; do
        source="${{file%.json}}"
        test -e "$file" || continue
        printf '%s' "$source"
        for job in "hostwright-backup-$source" "hostwright-backup-$source-drill"; do
            printf ' %s %s %s %s' "$(systemctl is-active "$job.timer")" "$(systemctl is-enabled "$job.timer" 2>/dev/null)" \\
                "$(systemctl show -p Result --value "$job.service")" "$(stat -c %Y "/var/lib/systemd/timers/stamp-$job.timer" 2>/dev/null || echo 0)"
        done
        printf '\\t'
        if test -e "{STATE}/$file"; then tr -d '\\n' <"{STATE}/$file"; else printf '{{}}'; fi
        echo
    done""",
    "backup-secret-files": f"test ! -e {CONFIG} || stat -c '%a %U %n' {CONFIG} {CONFIG}/*",
}

# Runs are spread over an hour or so, and a host that was off makes up for a missed one at its next start.
_GRACE = timedelta(hours=6)


@dataclass(frozen=True)
class Job:
    """What runs by a timer: ``since`` it went off last, or was first started."""

    active: str
    enabled: str
    result: str
    since: timedelta


@dataclass(frozen=True)
class Source:
    """One of a host's backup sources, and what the backup program noted of it."""

    name: str
    run: Job
    drill: Job
    state: dict[str, Any]


def interval(when: str) -> timedelta:
    """Return how long it can take from one run to the next, for the forms of ``operations.schedule.job``."""
    if re.fullmatch(r"[A-Z][a-z]{2}(,[A-Z][a-z]{2})* .*", when):
        return timedelta(days=7)
    if re.match(r"\d+ ", when):
        return timedelta(days=31)
    return timedelta(hours=1) if when.startswith("*:") else timedelta(days=1)


def _age(moment: str) -> timedelta:
    return datetime.now(timezone.utc) - datetime.fromisoformat(moment.replace("Z", "+00:00"))


def parsed(line: str) -> Source:
    """Return the source of a line of ``backup-sources``."""
    words, _, state = line.partition("\t")
    name, *rest = words.split(" ")
    now = datetime.now(timezone.utc).timestamp()
    run, drill = (Job(*rest[at : at + 3], since=timedelta(seconds=now - int(rest[at + 3]))) for at in (0, 4))
    return Source(name, run, drill, json.loads(state))


def _sources(machine: Machine) -> list[Source]:
    machine.skip_unless("backup_enabled")
    found = [parsed(line) for line in machine.lines("backup-sources")]
    if not found and not machine.settings.backed_up:
        pytest.skip(f"no system of {machine.target.name} has something to back up")
    return found


def _done(sources: list[Source], job: str, key: str, when: str) -> Iterator[Source]:
    """Yield the sources for which a job has succeeded so far; skip the check where it was due for none of them yet."""
    allowed = interval(when) + _GRACE
    asked = False
    for source in sources:
        is_new = getattr(source, job).since < allowed and getattr(source, job).result == "success"
        if source.state.get(key) or not is_new:
            asked = True
            yield source
    if not asked:
        pytest.skip(f"none was due so far: pyinfra INVENTORY deploys.backup.{job} makes one now")


def test_backups_are_configured(machine: Machine) -> None:
    sources = _sources(machine)
    assert sources != [], f"nothing is backed up of {' and '.join(machine.settings.backed_up)}"
    for source in sources:
        for job in (source.run, source.drill):
            assert (job.active, job.enabled) == ("active", "enabled"), source.name


def test_last_backup_is_recent_and_good(machine: Machine) -> None:
    sources = _sources(machine)
    for source in sources:
        assert not source.state.get("failure"), f"{source.name}: {source.state['failure']}"
    for source in _done(sources, "run", "last_success", machine.settings.backup.at):
        assert source.state.get("last_success"), f"{source.name}: there is no backup: pyinfra INVENTORY deploys.backup.run"
        assert _age(source.state["last_success"]) < interval(machine.settings.backup.at) + _GRACE, source.name


def test_every_repository_has_the_last_backup(machine: Machine) -> None:
    for source in _done(_sources(machine), "run", "last_success", machine.settings.backup.at):
        entries = source.state.get("repositories", {})
        assert set(entries) == set(repositories(machine.settings.backup)), source.name
        for label, entry in entries.items():
            assert _age(entry["last_success"]) < interval(machine.settings.backup.at) + _GRACE, f"{source.name}: {label}"


def test_backup_was_restored_and_checked_lately(machine: Machine) -> None:
    sources = _sources(machine)
    for source in sources:
        assert not source.state.get("drill_failure"), f"{source.name}: {source.state['drill_failure']}"
    for source in _done(sources, "drill", "last_verified", machine.settings.backup.drill_at):
        assert source.state.get("last_verified"), f"{source.name}: no copy was ever restored: pyinfra INVENTORY deploys.backup.drill"
        assert _age(source.state["last_verified"]) < interval(machine.settings.backup.drill_at) + _GRACE, source.name


def test_backup_secrets_are_readable_by_root_alone(machine: Machine) -> None:
    _sources(machine)
    for line in machine.lines("backup-secret-files"):
        mode, owner, path = line.split(maxsplit=2)
        assert owner == "root", path
        assert int(mode, 8) & 0o077 == 0, path


def test_recovery_is_documented(machine: Machine) -> None:
    page = REPOSITORY / "docs" / "backup.md"
    assert page.exists(), "docs/backup.md tells how to restore"
    assert "deploys.backup.restore" in page.read_text()
