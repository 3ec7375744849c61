"""What keeps an archive in bounds: asked of whichever hosts have one."""

from __future__ import annotations

import json
import time

from facts.backup import STATE as BACKUPS
from operations.archive import CONFIG, STATE

# It runs once a day, spread over some minutes, and a host that was off makes up for a missed run at its next start.
_SECONDS = 30 * 3600


def question(archive: str) -> str:
    """Return the command whose lines :func:`assert_in_bounds` takes."""
    job = f"hostwright-archive-{archive}"
    return (
        f"systemctl is-enabled {job}.timer; systemctl is-active {job}.timer; systemctl show -p Result --value {job}.service; "
        # of its first start, and then of each time that it went off
        f"stat -c %Y /var/lib/systemd/timers/stamp-{job}.timer; "
        f"for file in {CONFIG}/{archive}.json {STATE}/{archive}.json {BACKUPS}/{archive}.json; do "
        "if test -e $file; then tr -d '\\n' <$file; echo; else echo '{}'; fi; done"
    )


def assert_in_bounds(lines: list[str], days: int) -> None:
    """Fail unless the job runs every day, its last run was good, its limit is so many days, and its backup and drill have not failed."""
    enabled, active, result, stamp, config, state, copied = lines
    assert (enabled, active) == ("enabled", "active"), "the retention's timer does not run"
    assert time.time() - int(stamp) < _SECONDS, "the retention's timer has not gone off for more than a day"
    found = json.loads(config)["days"]
    assert found == days, f"the retention's limit is {found} days, and not {days}"
    why = "the retention's last run has failed: journalctl -u 'hostwright-archive-*'"
    assert (result, json.loads(state).get("failed", 0)) == ("success", 0), why
    found = json.loads(copied)
    # on a new host neither was due so far
    failure = found.get("failure") or found.get("drill_failure") or ""
    assert failure == "", f"the archive's last backup, or its drill, has failed: {failure}"
