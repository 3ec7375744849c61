"""What keeps an archive in bounds: asked of whichever hosts have one."""

from __future__ import annotations

import json
import time

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
        f"tr -d '\\n' <{CONFIG}/{archive}.json; echo; if test -e {STATE}/{archive}.json; then tr -d '\\n' <{STATE}/{archive}.json; else echo '{{}}'; fi"
    )


def assert_in_bounds(lines: list[str], days: int) -> None:
    """Fail unless the job runs every day, its last run was good, and its limit is so many days."""
    enabled, active, result, stamp, config, state = lines
    assert (enabled, active) == ("enabled", "active"), "the retention's timer does not run"
    assert time.time() - int(stamp) < _SECONDS, "the retention's timer has not gone off for more than a day"
    found = json.loads(config)["days"]
    assert found == days, f"the retention's limit is {found} days, and not {days}"
    why = "the retention's last run has failed: journalctl -u 'hostwright-archive-*'"
    assert (result, json.loads(state).get("failed", 0)) == ("success", 0), why
