"""Backups run, are verified, and are recent; what to do when they are needed is written down."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone

from facts.backup import CONFIG, STATE
from operations.backup import repositories
from tests.verify.conftest import Machine
from tests.verify.fleet import REPOSITORY

SYSTEM = "gateway"  # the systems of a host declare what is backed up; without one there is nothing

EVIDENCE = {
    "backup-sources": f"cd {CONFIG} && ls -- *.json",
    "backup-states": f"cd {STATE} && for file in *.json; do tr -d '\\n' <\"$file\"; echo; done",
    "backup-timers": f"""cd {CONFIG} && for file in *.json; do
        for timer in hostwright-backup-"${{file%.json}}".timer hostwright-backup-"${{file%.json}}"-drill.timer; do
            echo "$timer $(systemctl is-active "$timer") $(systemctl is-enabled "$timer")"
        done
    done""",
    "backup-secret-files": f"stat -c '%a %U %n' {CONFIG} {CONFIG}/*",
}

# Runs are spread over an hour or so, and a host that was off makes up for a missed one at its next start.
_GRACE = timedelta(hours=6)


def interval(when: str) -> timedelta:
    """Return how long it can take from one run to the next, for the forms of ``operations.schedule.job``."""
    if re.fullmatch(r"[A-Z][a-z]{2}(,[A-Z][a-z]{2})* .*", when):
        return timedelta(days=7)
    if re.match(r"\d+ ", when):
        return timedelta(days=31)
    return timedelta(hours=1) if when.startswith("*:") else timedelta(days=1)


def _age(moment: str) -> timedelta:
    return datetime.now(timezone.utc) - datetime.fromisoformat(moment.replace("Z", "+00:00"))


def _states(machine: Machine) -> list[dict[str, object]]:
    machine.skip_unless("backup_enabled")
    return [json.loads(line) for line in machine.lines("backup-states")]


def test_backups_are_configured(machine: Machine) -> None:
    machine.skip_unless("backup_enabled")
    assert machine.lines("backup-sources") != []
    for line in machine.lines("backup-timers"):
        assert line.split()[1:] == ["active", "enabled"], line


def test_last_backup_is_recent_and_good(machine: Machine) -> None:
    for state in _states(machine):
        assert state.get("last_success"), "there is no backup yet: run pyinfra INVENTORY deploys.backup.run"
        assert not state.get("failure"), state["failure"]
        assert _age(str(state["last_success"])) < interval(machine.settings.backup.at) + _GRACE


def test_every_repository_has_the_last_backup(machine: Machine) -> None:
    for state in _states(machine):
        entries = state["repositories"]
        assert isinstance(entries, dict)
        assert set(entries) == set(repositories(machine.settings.backup))
        for label, entry in entries.items():
            assert _age(entry["last_success"]) < interval(machine.settings.backup.at) + _GRACE, label


def test_backup_was_restored_and_checked_lately(machine: Machine) -> None:
    for state in _states(machine):
        assert state.get("last_verified"), "no copy was ever restored: run pyinfra INVENTORY deploys.backup.drill"
        assert not state.get("drill_failure"), state["drill_failure"]
        assert _age(str(state["last_verified"])) < interval(machine.settings.backup.drill_at) + _GRACE


def test_backup_secrets_are_readable_by_root_alone(machine: Machine) -> None:
    machine.skip_unless("backup_enabled")
    for line in machine.lines("backup-secret-files"):
        mode, owner, path = line.split(maxsplit=2)
        assert owner == "root", path
        assert int(mode, 8) & 0o077 == 0, path


def test_recovery_is_documented(machine: Machine) -> None:
    page = REPOSITORY / "docs" / "backup.md"
    assert page.exists(), "docs/backup.md tells how to restore"
    assert "deploys.backup.restore" in page.read_text()
