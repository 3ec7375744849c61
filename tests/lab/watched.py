"""Three hosts as deploy.py makes them: a gateway, databases, and one that watches all of them; and what Prometheus says of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.lab import apps, canary
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line, provision
from tests.lab.state import REPOSITORY, wait_for

DEPLOY = REPOSITORY / "deploy.py"
DOMAIN = "gateway.watched.test"
PORTS = {"nodes": 9100, "nginx": 9113, "redis": 9121, "redis-cache": 9122, "postgres": 9187}
HOOKS = "/srv/hooks"
_SECRETS = (
    "GATEWAY_ADMIN_API_KEY", "BACKUP_PASSWORD", "MONITORING_POSTGRES_PASSWORD", "MONITORING_REDIS_PASSWORD", "HOOK_TOKEN",
    *(f"CRICKSY_{key}" for key in ("POSTGRES_PASSWORD", "POSTGRES_OWNER_PASSWORD", "POSTGRES_BACKUP_PASSWORD", "REDIS_PASSWORD", "REDIS_ADMIN_PASSWORD")),
)  # fmt: skip
# Takes what Alertmanager posts and writes down each message as a line; a token in the address is all that it asks for.
_RECEIVER = """
import http.server, json
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open("/srv/hooks", "a") as file:
            file.write(json.dumps(json.loads(body)) + "\\n")
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", 18080), Receiver).serve_forever()
"""


def draw(page: str, path: Path) -> None:
    """Keep a page beside a test's other files, and what Chromium draws of it where that is installed: for people to look at."""
    path.with_suffix(".html").write_text(page)
    if chromium := shutil.which("chromium"):
        words = (chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1160,1060", f"--screenshot={path}.png", f"{path}.html")
        subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
        assert path.with_suffix(".png").stat().st_size > 10_000


class Watcher:
    """A host with Prometheus and Alertmanager, which posts to a receiver on it, and what they say."""

    def __init__(self, watch: LabHost) -> None:
        self.watch = watch
        self.take_messages()

    def take_messages(self) -> None:
        """Have what Alertmanager posts written down on the watching host, from now to its next boot."""
        self.watch.write("/srv/receiver.py", _RECEIVER)
        self.watch.run("systemd-run --quiet --unit=receiver python3 /srv/receiver.py")

    def ask(self, path: str) -> Any:
        """Ask Prometheus' HTTP interface."""
        return json.loads(self.watch.run(f"curl -gfsS -m 20 'http://127.0.0.1:9090/api/v1/{path}'").stdout)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples that an expression has now."""
        found: list[dict[str, Any]] = self.ask(f"query?query={quote(expression)}")["result"]
        return found

    def value(self, expression: str) -> float:
        """Return the one value that an expression has now."""
        (found,) = self.query(expression)
        return float(found["value"][1])

    def targets(self) -> dict[tuple[str, str], str]:
        """Return (host, job and part) to health of every target."""
        active = self.ask("targets?state=active")["activeTargets"]
        return {
            (one["labels"]["host"], " ".join(filter(None, (one["labels"]["job"], one["labels"].get("part"))))): f"{one['health']}{one['lastError']}" for one in active
        }

    def alerts(self, state: str = "firing") -> set[tuple[str, str]]:
        """Return (alert, host) of those in a state."""
        return {(one["labels"]["alertname"], one["labels"].get("host", "")) for one in self.ask("alerts")["alerts"] if one["state"] == state}

    def told(self, alert: str, host: LabHost, status: str) -> bool:
        """Whether Alertmanager has posted an alert of a host, ``firing`` or ``resolved``."""
        messages = [json.loads(line) for line in self.watch.run(f"cat {HOOKS} 2>/dev/null || :").stdout.splitlines()]
        return any(
            one["status"] == status and one["labels"]["alertname"] == alert and one["labels"].get("host") == host.name
            for message in messages
            for one in message["alerts"]
        )

    def page(self) -> str:
        """Return the status page; what Prometheus cannot make of it raises."""
        text = self.watch.run("curl -fsS -m 20 http://127.0.0.1:9090/consoles/hostwright.html").stdout
        assert "error" not in text.lower(), text
        return text

    def fires_and_resolves(
        self, alert: str, host: LabHost, cause: Callable[[], object], cure: Callable[[], object], told: Callable[[str, LabHost, str], bool] | None = None
    ) -> None:
        """Make a cause, see that its alert is raised and told; take the cause away, see that it is resolved and told.

        + told: how that is seen, by default by what was posted
        """
        told = told or self.told
        wait_for(f"no {alert}", lambda: (alert, host.name) not in self.alerts() | self.alerts("pending"), 120, pause=1)
        self.watch.run(f": > {HOOKS}")
        cause()
        try:
            wait_for(f"{alert} of {host.name}", lambda: (alert, host.name) in self.alerts(), 180, pause=1)
            wait_for(f"{alert} to be told", lambda: told(alert, host, "firing"), 120, pause=1)
        finally:
            cure()
        wait_for(f"the end of {alert} of {host.name}", lambda: (alert, host.name) not in self.alerts(), 180, pause=1)
        wait_for(f"the end of {alert} to be told", lambda: told(alert, host, "resolved"), 180, pause=1)


class Watched(Watcher):
    """The hosts and their secrets, which are at the same time the environment that pyinfra needs."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.secrets = canary.new(_SECRETS)
        apps.gateway_repository(directory)
        self._repository = f"{lab.serve(directory, port=8095)}/gateway.git"
        self.watch, self.web, self.db = self.hosts = lab.boot_all(
            ("t-watch", "bookworm", "packages"), ("t-watched-web", "bookworm", "packages"), ("t-watched-db", "trixie", "packages")
        )
        for host in (self.watch, self.db):
            # the lab's layer has it, their roles do not, and what is open undeclared fails the checks of production
            host.run("systemctl disable --quiet --now nginx")
        self.take_messages()

    def take_messages(self) -> None:
        self.secrets["MONITORING_WEBHOOK_URL"] = f"http://127.0.0.1:18080/{self.secrets['HOOK_TOKEN']}"
        super().take_messages()

    def words(self, **settings: object) -> dict[str, Any]:
        """Return what an inventory of the hosts is made from; keyword arguments are settings of monitoring, without their prefix."""
        monitoring = {
            "enabled": True,
            "sources": [f"{self.watch.address}/32"],
            "postgres_password": "env:MONITORING_POSTGRES_PASSWORD",
            "redis_password": "env:MONITORING_REDIS_PASSWORD",
            "webhook_url": "env:MONITORING_WEBHOOK_URL",
            "scrape_seconds": 2,
            "hold_seconds": 2,
            "group_seconds": 1,
            **settings,
        }
        gateway = {
            "domain": DOMAIN, "repository": self._repository, "version": "v1.0.0", "admin_api_key": "env:GATEWAY_ADMIN_API_KEY",
            "start_timeout_seconds": 30, "settle_seconds": 2,
        }  # fmt: skip
        cricksy = {
            key: f"env:CRICKSY_{key.upper()}"
            for key in ("postgres_password", "postgres_owner_password", "postgres_backup_password", "redis_password", "redis_admin_password")
        }
        return {
            "data": {
                "certificate_mode": "self-signed",
                "backup_password": "env:BACKUP_PASSWORD",
                **{f"monitoring_{key}": value for key, value in monitoring.items()},
                **{f"gateway_{key}": value for key, value in gateway.items()},
                **{f"cricksy_{key}": value for key, value in cricksy.items()},
                "cricksy_postgres_memory_mb": 256,
            },
            "groups": {"gateway": [self.web], "cricksy_infra": [self.db], "monitoring": [self.watch]},
            "host_data": {host.name: {"monitoring_address": host.address} for host in self.hosts},
        }

    def run(self, dry: bool = False, limit: str | None = None, extra: Sequence[str] = (), **settings: object) -> Run:
        """Run deploy.py over the hosts, with settings of monitoring."""
        return provision(self.hosts, DEPLOY, dry=dry, limit=limit, extra=extra, env=self.secrets, timeout=2400, **self.words(**settings))

    def do(self, function: str, **arguments: object) -> Run:
        """Run a deploy function by its name on the gateway's host, such as ``deploys.backup.run``."""
        module, _, name = function.rpartition(".")
        text = f"from {module} import {name} as wanted\nwanted(**{arguments!r})\n"
        data = {"backup_password": "env:BACKUP_PASSWORD", "certificate_mode": "self-signed"}
        return provision(self.web, text, data=data, env=self.secrets)

    def verify(self, scratch: Path) -> subprocess.CompletedProcess[str]:
        """Run all of tests/verify against the hosts, as ``make verify`` does."""
        command_line(scratch, self.hosts, DEPLOY, **self.words())
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/verify", "--inventory", str(scratch / "inventory.py")],
            cwd=REPOSITORY, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=600,
        )  # fmt: skip
