"""One benchmark from fresh hosts to its figures."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import endstate, figures, report
from benchmarks.contenders import Ansible, Floor, Hostwright, Outcome
from benchmarks.endstate import Interest
from benchmarks.figures import Sample
from benchmarks.fleet import STATE, Fleet, Target
from deploys import base, gateway
from operations import release
from settings import Host, load_host
from tests.lab.hosts import LabHost
from tests.lab.state import REPOSITORY, LabError

DOMAIN = "gateway.bench.example.test"
RENDERED = STATE / "rendered"
APP = gateway.APP
_NODE_FACTS = f"{base.TEXTFILES}/hostwright.prom"

_SECRETS = {"GATEWAY_ADMIN_API_KEY": "benchmark-admin-key-0123456789abcdef", "BACKUP_PASSWORD": "benchmark-backup-password"}
_ADMIN_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2Yb5yMDmTbXH3wKxAcO4c0dS1Q4eYtKNeqHkSKcNDK ops@bench"
_UNITS = (
    "nginx.service", f"{APP}-blue.service", "ssh.service", "ufw.service", "systemd-timesyncd.service",
    "systemd-journald.service", "prometheus-node-exporter.service", "apt-daily.timer", "apt-daily-upgrade.timer",
    "unattended-upgrades.service", "logrotate.timer", "certbot.timer", "hostwright-backup-gateway.timer", "hostwright-backup-gateway-drill.timer",
)  # fmt: skip

# What Hostwright keeps on a host about its own work, and what a build leaves beside its result. Nothing of it is
# configuration of the system; the playbook has its own way of knowing the same.
_BOOKKEEPING = (
    r"/etc/hostwright/tls/[^/]+",  # a link to the pair, in a directory of random name
    r"/usr/local/lib/hostwright/nginx-serves",
    r".*/\.git(/.*)?",
    r".*/releases/[^/]+/\.complete",
    r".*/venv/bin/[^/]+",  # scripts name the directory they were built in
    r".*\.dist-info/RECORD",
)


# Written by packages as they are installed, and nobody's to check again.
_PACKAGED = re.compile(
    r"/etc/(alternatives|init\.d|rc\d\.d|dhcp|libnl-3|vim|default/rsync|logrotate\.d/prometheus)(/.*|-.*)?|.*\.dpkg-\w+"
)


def settings(repository: str) -> dict[str, Any]:
    """Return the settings of every host of the benchmark; self-signed, so that no ACME server is measured."""
    return {
        "gateway_domain": DOMAIN,
        "gateway_repository": repository,
        "gateway_version": "v1.0.0",
        "gateway_settle_seconds": 0,
        "gateway_admin_api_key": "env:GATEWAY_ADMIN_API_KEY",
        "certificate_mode": "self-signed",
        "backup_password": "env:BACKUP_PASSWORD",
        # Far from now, whenever now is.
        "backup_at": "*-02-29 02:00",
        "backup_drill_at": "*-02-29 04:00",
        "base_admins": [{"name": "ops", "keys": [_ADMIN_KEY]}],
    }


class Bench:
    """Hosts, contenders and samples of one benchmark.

    + output: JSON file, written anew after every sample
    """

    def __init__(self, hosts: Fleet, console: Console, output: Path, seed: int) -> None:
        self._hosts, self._console, self._output, self._seed = hosts, console, output, seed
        self._samples: list[Sample] = []
        self._hostwright = Hostwright(_deploy(), settings(hosts.repository_url), _SECRETS)
        self._ansible: Ansible | None = None
        self._floor: Floor | None = None
        self._about: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "pyinfra": version("pyinfra"),
            "layer": hosts.hosts[0].plan.layer,
            "seed": seed,
        }

    # --- before the clock runs --------------------------------------------------------------------------------

    def prepare(self, ansible: bool = True) -> None:
        """Converge one host by each tool: fills the caches, and shows that both reach the same end state."""
        host, targets = self._hosts.hosts[0], self._hosts.targets(1, 0)
        interest = self._interest()
        before = _state(host, interest)
        self._say(self._hostwright.run(targets), "hostwright, first")
        self._must_change_nothing(self._hostwright, targets)
        after = _state(host, interest)
        written = [
            path
            for path in endstate.written(before, after)
            if not path.startswith(gateway.APP_ROOT) and not _PACKAGED.fullmatch(path)
        ]
        self._floor = Floor(endstate.script(self._narrow(interest, written), recurse=False))
        if not ansible:
            return
        _export(host, written)
        self._ansible = Ansible(self._variables())
        self._about["ansible"] = self._ansible.version
        self._must_change_nothing(self._ansible, targets)  # on what Hostwright made
        self._hosts.reset(1)
        self._say(self._ansible.run(targets), "ansible, first")
        self._must_change_nothing(self._ansible, targets)
        found = endstate.differences(after, _state(host, interest), (*endstate.VOLATILE, *_BOOKKEEPING))
        for line in found:
            self._console.print(f"  differs: {line}", markup=False, highlight=False)
        self._console.print(f"end states: {len(endstate.parse(after))} key points compared, {len(found)} lines differ")
        self._about["end_state"] = {"compared": len(endstate.parse(after)), "differences": found}

    # --- the clock runs ---------------------------------------------------------------------------------------

    def first(self, count: int, delays_ms: Sequence[int], rounds: int) -> None:
        """Measure converging pristine hosts; they are reset before every run."""
        for case in figures.plan("first", count, delays_ms, ("hostwright", "ansible"), rounds, self._seed):
            self._hosts.reset(count)
            self._measure(case)

    def no_change(self, count: int, delays_ms: Sequence[int], rounds: int) -> None:
        """Measure runs that find everything as it should be, all tools on the very same hosts."""
        targets = self._hosts.targets(count, 0)
        self._console.rule(f"no-change runs, {count} hosts")
        self._say(self._hostwright.run(targets), "hostwright, first")
        for tool in (self._ansible, self._hostwright, self._floor):
            if tool is not None:
                self._must_change_nothing(tool, targets)
        for case in figures.plan("no-change", count, delays_ms, figures.TOOLS, rounds, self._seed):
            self._measure(case)

    def _must_change_nothing(self, tool: Hostwright | Ansible | Floor, targets: Sequence[Target]) -> None:
        outcome = tool.run(targets)
        self._say(outcome, f"{tool.name}, once more")
        if outcome.changed:
            raise LabError(f"{tool.name} changed what it should have found right:\n{outcome.output[-6000:]}")

    def _measure(self, case: figures.Case) -> None:
        tool = {"hostwright": self._hostwright, "ansible": self._ansible, "floor": self._floor}[case.tool]
        assert tool is not None
        load = os.getloadavg()[0]
        outcome = tool.run(self._hosts.targets(case.hosts, case.delay_ms))
        self._samples.append(Sample(case, outcome.seconds, outcome.changed, load))
        self._console.print(f"{case}: {outcome.seconds:.2f} s, load {load:.1f}", highlight=False)
        if case.run == "no-change" and outcome.changed:
            raise LabError(f"{case}: changed {', '.join(outcome.changed)}")
        report.save(self._output, self._about, self._samples)

    def trace(self, delay_ms: int, record: Path) -> dict[str, Any]:
        """Trace one no-change run of Hostwright on one host into ``record``, and return what it holds."""
        outcome = self._hostwright.run(self._hosts.targets(1, delay_ms), record=record)
        if outcome.changed:
            raise LabError(f"traced run changed {', '.join(outcome.changed)}")
        traced: dict[str, Any] = json.loads(record.read_text())
        return traced

    def count_commands(self) -> dict[str, int]:
        """Count the SSH commands of one no-change run of each tool on one host, as the host's own sshd sees them."""
        host, targets = self._hosts.hosts[0], self._hosts.targets(1, 0)
        counted = {}
        for tool in (self._hostwright, self._ansible, self._floor):
            if tool is not None:
                before = _commands_seen(host)
                tool.run(targets)
                counted[tool.name] = _commands_seen(host) - before
        self._about["ssh_commands_of_a_no_change_run"] = counted
        report.save(self._output, self._about, self._samples)
        return counted

    # --- what is compared -------------------------------------------------------------------------------------

    def _interest(self) -> Interest:
        return Interest(
            # Not /var: what runs on a host writes there by itself.
            paths=("/etc", "/usr/local", "/home", _NODE_FACTS, self._release()),
            units=_UNITS,
            users=(gateway.USER, "ops", "root"),
            domain=DOMAIN,
        )

    def _narrow(self, interest: Interest, written: Sequence[str]) -> Interest:
        """What the floor looks at: the files that Hostwright wrote, and the packages that it was asked for."""
        packages = (*base.packages(self._settings().base), "nginx", "git")
        return Interest((*written, self._release()), interest.units, interest.users, interest.domain, packages)

    def _settings(self) -> Host:
        return load_host("bench", ["gateway"], settings(self._hosts.repository_url), resolve=False)

    def _release(self) -> str:
        return release.release_path(gateway.APP_ROOT, release.GitSource(self._hosts.repository_url, "v1.0.0"))

    def _variables(self) -> dict[str, Any]:
        host = self._settings()
        return {
            "app": APP,
            "domain": DOMAIN,
            "rendered": str(RENDERED),
            "release": self._release(),
            "repository": self._hosts.repository_url,
            "version": "v1.0.0",
            "base_packages": base.packages(host.base),
            "admin_key": _ADMIN_KEY,
            "open_ports": [{"port": port.port, "why": port.why} for port in host.exposure],
            "nginx_files": _rendered("/etc/nginx"),
            "logrotate_files": [f"/etc/logrotate.d/{APP}"],
            "tls": f"/var/lib/hostwright/tls/self-signed/{APP}/benchmark",
        }

    def _say(self, outcome: Outcome, what: str) -> None:
        changed = f"changed: {', '.join(outcome.changed)}" if outcome.changed else "no change"
        self._console.print(f"{what}: {outcome.seconds:.1f} s, {changed}", markup=False, highlight=False)


def _deploy() -> Path:
    return REPOSITORY / "deploy.py"


def _state(host: LabHost, interest: Interest) -> str:
    return host.run(endstate.script(interest, recurse=True)).stdout


def _commands_seen(host: LabHost) -> int:
    """Return how many commands sshd has run since the host was booted; base sets LogLevel VERBOSE, which logs each."""
    host.run("journalctl --sync")
    return int(host.run("journalctl -u ssh.service -o cat | grep -c '^Starting session: command'", check=False).stdout)


def _export(host: LabHost, paths: Sequence[str]) -> None:
    """Make Ansible templates of the files that Hostwright wrote, with the domain and the host's name as their variables."""
    shutil.rmtree(RENDERED, ignore_errors=True)
    RENDERED.mkdir(mode=0o700, parents=True)
    for path in paths:
        if host.run(f"test -f '{path}' && ! test -L '{path}'", check=False).returncode == 0:
            text = host.read(path)
            for opening in ("{{", "{%", "{#"):
                text = text.replace(opening, "{{ '" + opening + "' }}")
            target = RENDERED / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            text = text.replace(DOMAIN, "{{ domain }}")
            target.write_text(re.sub(rf"\b{host.name}\b", "{{ inventory_hostname }}", text))


def _rendered(directory: str) -> list[str]:
    """Return the paths of the exported files below a directory of the host."""
    return sorted(f"/{file.relative_to(RENDERED)}" for file in (RENDERED / directory.lstrip("/")).rglob("*") if file.is_file())


def machine() -> str:
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores ({model}), Linux {platform.release()}, Python {platform.python_version()}"
