"""``make demo``: boot the topology, provision it, check it, and say what there is to see.

What is run on the hosts are the two commands an operator types: pyinfra with the inventory and ``make verify``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.lab import topology
from tests.lab.acme import Acme
from tests.lab.lab import Lab
from tests.lab.provision import PYINFRA
from tests.lab.state import REPOSITORY, slot_directory

_SECRETS = ("GATEWAY_ADMIN_API_KEY", "BACKUP_PASSWORD")
_console = Console(highlight=False, soft_wrap=True, record=True, width=max(120, shutil.get_terminal_size().columns))


def run(picture: str | None = None) -> int:
    """Run the demo; return the exit status: 0 when everything was provisioned and all checks passed.

    + picture: path of an SVG file for what is shown, without what the commands themselves print
    """
    started = time.monotonic()
    lab, new = topology.boot()
    _console.print(f"==> {len(lab.hosts)} hosts: {len(new)} booted, {len(lab.hosts) - len(new)} were there")
    _console.print(f"    done in {time.monotonic() - started:.1f} s")
    file = _secrets_file(lab.slot)
    environment = {**os.environ, **dict(line.split("=", 1) for line in file.read_text().splitlines())}
    inventory = str(topology.INVENTORY.relative_to(REPOSITORY))
    provisioned = _step([str(PYINFRA), "-y", inventory, "deploy.py"], environment)
    # A host in service has a backup and a drill behind it (their timers see to that); a host five minutes old does not.
    for command in ("deploys.backup.run", "deploys.backup.drill"):
        provisioned = provisioned or _step([str(PYINFRA), "-y", inventory, command], environment)
    report = slot_directory(lab.slot) / "verify.xml"
    report.unlink(missing_ok=True)
    verified = _step([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/verify",
                      "--inventory", inventory, f"--junit-xml={report}"], environment)  # fmt: skip
    _show(lab, _checks(report), file)
    if picture:
        _console.save_svg(picture, title="make demo")
    return provisioned or verified


def _step(command: list[str], environment: Mapping[str, str]) -> int:
    started = time.monotonic()
    shown = [os.path.relpath(word, REPOSITORY) if word.startswith("/") else word for word in command]
    _console.print(f"==> {' '.join(shown)}")
    status = subprocess.run(command, cwd=REPOSITORY, env=dict(environment), stdin=subprocess.DEVNULL).returncode
    _console.print(f"    exit status {status}, done in {time.monotonic() - started:.1f} s")
    return status


def _secrets_file(slot: int) -> Path:
    """Return the demo's secrets as a file of KEY=value lines, made on first use and readable by root alone."""
    file = slot_directory(slot) / "secrets.env"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text("".join(f"{key}={secrets.token_urlsafe(32)}\n" for key in _SECRETS))
    return file


def _checks(report: Path) -> dict[str, Counter[str]]:
    """Return the outcomes of the checks by host, from pytest's report (a check's id holds its host: ``[web1]``)."""
    found: dict[str, Counter[str]] = {}
    if not report.exists():
        return found
    for case in ElementTree.parse(report).iter("testcase"):
        _, _, parameters = case.get("name", "").partition("[")
        host = parameters.rstrip("]").partition("-")[0] or "all hosts"
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        found.setdefault(host, Counter())[outcome] += 1
    return found


def _show(lab: Lab, checks: Mapping[str, Counter[str]], secrets_file: Path) -> None:
    table = Table("host", "address", "release", "runs", title="The lab", title_justify="left")
    table.add_column("URL", no_wrap=True)
    table.add_column("checks")
    groups = topology.groups()
    for host in sorted(lab.hosts.values(), key=lambda host: host.plan.index):
        data = topology.declared()[host.name][1]
        systems = ", ".join(group for group, members in groups.items() if host.name in members)
        outcome = ", ".join(f"{count} {what}" for what, count in sorted(checks.get(host.name, Counter()).items()))
        url = f"https://{data['gateway_domain']}/health" if "gateway_domain" in data else ""
        table.add_row(host.name, f"{host.address}\n{host.address6}", host.plan.release,
                      systems or "nothing: the stranger", url, outcome or "-")  # fmt: skip
    _console.print(table)
    root = slot_directory(lab.slot) / "root.pem"
    root.write_text(Acme(lab.slot).root_certificate())
    _console.print("How to look further (as root):")
    for host in lab.hosts.values():
        domain = topology.declared()[host.name][1].get("gateway_domain")
        if domain:
            _console.print(f"  curl --cacert {root} --resolve {domain}:443:{host.address} https://{domain}/health")
            break
    slot = f"HOSTWRIGHT_LAB_SLOT={lab.slot} " if lab.slot else ""
    _console.print(f"  {slot}.venv/bin/python -m tests.lab ssh web1        log in; also: status, reset NAME")
    _console.print(f"  set -a; . {secrets_file}; set +a        then run pyinfra yourself:")
    _console.print(f"  {slot}.venv/bin/pyinfra --dry inventories/lab.py deploy.py        (the second run changes nothing)")
    _console.print("  make lab-down        remove it all")
