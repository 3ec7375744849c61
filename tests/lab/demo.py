"""``make demo``: boot the topology of a system, provision it, check it, and say what there is to see.

What is run on the hosts are the two commands an operator types: pyinfra with the inventory and ``make verify``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.lab import images, topology
from tests.lab.acme import Acme
from tests.lab.lab import Lab
from tests.lab.provision import PYINFRA
from tests.lab.state import REPOSITORY, default_slot, slot_directory

_console = Console(highlight=False, soft_wrap=True, record=True, width=max(120, shutil.get_terminal_size().columns))


@dataclass(frozen=True)
class Demo:
    """What the demo of one system needs and shows.

    + secrets: environment variables that its inventory refers to; random ones are made
    + prepare: what comes before its hosts are booted, given the secrets
    + sites: host data that names a site, with the path to ask it for
    + show: what is shown of the system at work, given the lab and the file of the ACME server's root certificate
    """

    inventory: Path
    secrets: tuple[str, ...]
    sites: tuple[tuple[str, str], ...]
    prepare: Callable[[Mapping[str, str]], None] = lambda secrets: None
    show: Callable[[Lab, Path], None] = lambda lab, root: None


def _prepare_mcbench(secrets: Mapping[str, str]) -> None:
    """Have the images in the slot's registry: minutes when they are built for the first time, an instant afterwards."""
    started = time.monotonic()
    registry = Lab().registry()
    registry.set_password("demo", secrets["REGISTRY_PASSWORD"])
    wanted = [("postgres", "16"), ("redis", "7"), ("s3", "1"), *((f"mc-bench-{name}", "v1.0.0") for name in images.MCBENCH),
              *((f"mc-bench-{name}", "1.0.0") for name in ("minecraft-server", "builder-runner"))]  # fmt: skip
    for name, tag in wanted:
        registry.image(name, tag)
    _console.print(f"==> {len(wanted)} container images in {registry.name}")
    _console.print(f"    done in {time.monotonic() - started:.1f} s")


def _show_task(lab: Lab, root: Path) -> None:
    """Submit one task and say where it went."""
    domain = topology.declared(topology.MCBENCH)["bench1"][1]["mcbench_api_domain"]

    def ask(path: str, *options: str) -> dict[str, object]:
        command = ["curl", "-fsS", "-m", "20", "--cacert", str(root), "--resolve", f"{domain}:443:{lab.hosts['bench1'].address}",
                   *options, f"https://{domain}{path}"]  # fmt: skip
        done = subprocess.run(command, text=True, capture_output=True, stdin=subprocess.DEVNULL)
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {"state": done.stderr.strip() or "no answer"}

    task = ask("/tasks", "--json", json.dumps({"kind": "build", "key": secrets.token_hex(4), "script": "place a tower"}))
    end = time.monotonic() + 60
    while task.get("id") and task.get("state") not in ("done", "failed") and time.monotonic() < end:
        time.sleep(0.5)
        task = ask(f"/tasks/{task['id']}") | {"id": task["id"]}
    steps = ", ".join(f"{one['step']} by {one['worker']}" for one in task.get("executions") or [])  # type: ignore[attr-defined]
    _console.print(f"A task, sent to https://{domain}/tasks: {task.get('state')}; {steps}; result: {str(task.get('output', '')).strip()!r}")


_CURL = "  curl --cacert {root} --resolve {domain}:443:{address} https://{domain}{path}"
DEMOS = {
    "gateway": Demo(topology.INVENTORY, ("GATEWAY_ADMIN_API_KEY", "BACKUP_PASSWORD"), (("gateway_domain", "/health"),)),
    "mcbench": Demo(
        topology.MCBENCH,
        (
            "REGISTRY_PASSWORD", "BACKUP_PASSWORD", "MCBENCH_POSTGRES_PASSWORD", "MCBENCH_POSTGRES_BACKUP_PASSWORD",
            "MCBENCH_REDIS_PASSWORD", "MCBENCH_OBJECT_STORE_ACCESS_KEY", "MCBENCH_OBJECT_STORE_SECRET_KEY", "MCBENCH_SECRET_KEY",
            "MCBENCH_FLOWER_PASSWORD", "MCBENCH_OPENAI_API_KEY",
        ),
        (("mcbench_api_domain", "/health"), ("mcbench_admin_domain", "/health"), ("mcbench_flower_domain", "/")),
        _prepare_mcbench,
        _show_task,
    ),
}  # fmt: skip


def run(picture: str | None = None, system: str = "gateway") -> int:
    """Run the demo of a system; return the exit status: 0 when everything was provisioned and all checks passed.

    + picture: path of an SVG file for what is shown, without what the commands themselves print
    + system: a key of :data:`DEMOS`
    """
    demo = DEMOS[system]
    file = _secrets_file(default_slot(), demo.secrets)
    known = dict(line.split("=", 1) for line in file.read_text().splitlines())
    demo.prepare(known)
    started = time.monotonic()
    lab, new = topology.boot(inventory=demo.inventory)
    names = topology.declared(demo.inventory)
    _console.print(f"==> {len(names)} hosts: {len(new)} booted, {len(names) - len(new)} were there")
    _console.print(f"    done in {time.monotonic() - started:.1f} s")
    environment = {**os.environ, **known}
    inventory = str(demo.inventory.relative_to(REPOSITORY))
    provisioned = _step([str(PYINFRA), "-y", inventory, "deploy.py"], environment)
    # A host in service has a backup and a drill behind it (their timers see to that); a host five minutes old does not.
    for command in ("deploys.backup.run", "deploys.backup.drill"):
        provisioned = provisioned or _step([str(PYINFRA), "-y", inventory, command], environment)
    report = slot_directory(lab.slot) / "verify.xml"
    report.unlink(missing_ok=True)
    verified = _step([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/verify",
                      "--inventory", inventory, f"--junit-xml={report}"], environment)  # fmt: skip
    _show(lab, demo, _checks(report), file)
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


def _secrets_file(slot: int, keys: tuple[str, ...]) -> Path:
    """Return the demo's secrets as a file of KEY=value lines, each made on first use, and readable by root alone."""
    file = slot_directory(slot) / "secrets.env"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    known = [line.partition("=")[0] for line in file.read_text().splitlines()]
    with file.open("a") as more:
        more.writelines(f"{key}={secrets.token_urlsafe(32)}\n" for key in keys if key not in known)
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


def _show(lab: Lab, demo: Demo, checks: Mapping[str, Counter[str]], secrets_file: Path) -> None:
    table = Table("host", "address", "release", "runs", title="The lab", title_justify="left")
    table.add_column("URL", no_wrap=True)
    table.add_column("checks")
    entries, groups = topology.declared(demo.inventory), topology.groups(demo.inventory)
    shown = sorted((lab.hosts[name] for name in entries), key=lambda host: host.plan.index)
    sites = [(host, str(entries[host.name][1][key]), path) for host in shown for key, path in demo.sites if key in entries[host.name][1]]
    for host in shown:
        systems = ", ".join(group for group, members in groups.items() if host.name in members and group not in ("lab", "mcbench"))
        outcome = ", ".join(f"{count} {what}" for what, count in sorted(checks.get(host.name, Counter()).items()))
        urls = "\n".join(f"https://{domain}{path}" for of, domain, path in sites if of is host)
        table.add_row(host.name, f"{host.address}\n{host.address6}", host.plan.release,
                      systems or "nothing: the stranger", urls, outcome or "-")  # fmt: skip
    _console.print(table)
    root = slot_directory(lab.slot) / "root.pem"
    root.write_text(Acme(lab.slot).root_certificate())
    demo.show(lab, root)
    _console.print("How to look further (as root):")
    host, domain, path = sites[0]
    _console.print(_CURL.format(root=root, domain=domain, address=host.address, path=path))
    slot = f"HOSTWRIGHT_LAB_SLOT={lab.slot} " if lab.slot else ""
    inventory = demo.inventory.relative_to(REPOSITORY)
    _console.print(f"  {slot}.venv/bin/python -m tests.lab ssh {shown[1].name}        log in; also: status, reset NAME")
    _console.print(f"  set -a; . {secrets_file}; set +a        then run pyinfra yourself:")
    _console.print(f"  {slot}.venv/bin/pyinfra --dry {inventory} deploy.py        (the second run changes nothing)")
    if demo.inventory == topology.MCBENCH:
        _console.print(f"  {slot}.venv/bin/pyinfra -y {inventory} deploys.mcbench.status        (also: rollback, scale)")
    _console.print("  make lab-down        remove it all")
