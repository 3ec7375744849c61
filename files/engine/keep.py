"""Have the running engine leave its containers alone when it ends (live-restore), before something ends it."""

import json
import os
import subprocess
import sys
import time


def _ask(*command: str) -> str:
    return subprocess.run(["docker", *command], capture_output=True, text=True, check=False).stdout.strip()


def _is_kept() -> bool:
    return _ask("info", "--format", "{{.LiveRestoreEnabled}}") == "true"


def _put(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    beside = f"{path}.hostwright~"
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(beside, 0o644)
    os.replace(beside, path)


def keep_containers(path: str) -> None:
    """Switch live-restore on by a reload; the file is the old one again when the engine does not take it on."""
    if _is_kept() or not _ask("ps", "--quiet"):
        return
    old = None
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            old = file.read()
    try:
        options = json.loads(old or "{}")
    except ValueError:
        options = {}
    # One key more: a reload that finds other changes in the file makes those that it can and passes over the rest.
    _put(path, json.dumps({**options, "live-restore": True}, indent=2) + "\n")
    subprocess.run(["systemctl", "reload", "docker.service"], check=False)
    for _ in range(50):
        if _is_kept():
            return
        time.sleep(0.2)
    if old is None:
        os.unlink(path)
    else:
        _put(path, old)
    said = subprocess.run(
        ["journalctl", "-u", "docker.service", "-n", "5", "--no-pager", "-o", "cat"],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    sys.exit(
        "engine: its containers would end with it, since it does not take live-restore on; nothing was changed; "
        f"its last journal lines:\n{said}"
    )
