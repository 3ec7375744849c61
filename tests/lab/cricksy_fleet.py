"""The cricksy system on lab hosts, its inventory, and what a client asks of it."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.lab import apps, network
from tests.lab.authority import Authority
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import PYINFRA, Run, command_line, environment, provision
from tests.lab.s3server import S3Server
from tests.lab.state import REPOSITORY, wait_for

DOMAIN, FLOWER = "cricksy.example.test", "flower.example.test"
DEPLOY = "from deploys.cricksy import cricksy\ncricksy()\n"
IMAGE, TEXT = REPOSITORY / "files/tesseract/sample.png", "4711 0815 2026"
SECRETS = {
    "CRICKSY_POSTGRES_PASSWORD": "canary-postgres/p@ss#word",
    "CRICKSY_POSTGRES_OWNER_PASSWORD": "canary-owner-password-1",
    "CRICKSY_POSTGRES_BACKUP_PASSWORD": "canary-reader-password",
    "CRICKSY_REDIS_PASSWORD": "canary/redis#pass@word",
    "CRICKSY_REDIS_ADMIN_PASSWORD": "canary-redis-admin-password",
    "CRICKSY_FLOWER_PASSWORD": "canary-flower-password",
    "CRICKSY_S3_ACCESS_KEY": "canaryaccesskey",
    "CRICKSY_S3_SECRET_KEY": "canary-s3-secret-key",
    "BACKUP_PASSWORD": "canary-backup-password-of-the-lab",
}


class Fleet:
    """``front`` has the databases and the API, ``workers`` are two more hosts; or all of it is on ``front`` alone.

    + more: further settings of all of them, under what ``run`` is given
    + shared: further host data of all of them, flat keys
    """

    def __init__(
        self, lab: Lab, directory: Path, s3_url: str, alone: bool = False, layer: str = "packages", release: str = "bookworm"
    ) -> None:
        parts = ("alone",) if alone else ("front", "one", "two")
        self.alone = alone
        self.front, *others = self.hosts = lab.boot_all(*((f"t-cricksy-{part}", release, layer) for part in parts))
        self.workers = others or [self.front]
        apps.cricksy_repository(directory)
        self.repository = lab.serve(directory, port=8099 if alone else 8098) + "/cricksy.git"
        self.s3_url = s3_url
        self.s3: S3Server | None = None
        self.more: dict[str, Any] = {}
        self.shared: dict[str, Any] = {}
        authority = Authority(directory / "authority")
        certificate, key = authority.issue(self.front.address, "127.0.0.1")
        self.secrets = {**SECRETS, "CRICKSY_CA": authority.certificate, "CRICKSY_CERTIFICATE": certificate, "CRICKSY_KEY": key}

    def _words(self, settings: dict[str, object]) -> dict[str, Any]:
        """What an inventory of the hosts is made from."""
        address = "127.0.0.1" if self.alone else self.front.address
        own = {
            "repository": self.repository,
            "version": "v1.0.0",
            "domain": DOMAIN,
            "flower_domain": FLOWER,
            "cors_origins": ["https://app.example.test"],
            "postgres_host": address,
            "redis_host": address,
            "postgres_memory_mb": 256,
            "s3_endpoint_url": self.s3_url,
            "s3_manage_bucket": True,
            "infra_networks": [f"{host.address}/32" for host in self.hosts],
            "infra_ca": "env:CRICKSY_CA",
            "infra_certificate": "env:CRICKSY_CERTIFICATE",
            "infra_key": "env:CRICKSY_KEY",
            "worker_instances": 1,
            "worker_concurrency": 2,
            "settle_seconds": 2,
            "drain_seconds": 20,
            "initiate_per_minute": 0,
            "health_counts": "SELECT state, count(*) FROM upload GROUP BY state",
            "s3_admin_access_key": "env:CRICKSY_S3_ACCESS_KEY",
            "s3_admin_secret_key": "env:CRICKSY_S3_SECRET_KEY",
            **{
                key: f"env:CRICKSY_{key.upper()}"
                for key in (
                    "postgres_password", "postgres_owner_password", "postgres_backup_password", "redis_password",
                    "redis_admin_password", "flower_password", "s3_access_key", "s3_secret_key",
                )
            },
            **self.more,
            **settings,
        }  # fmt: skip
        return {
            "data": {
                "certificate_mode": "self-signed",
                "backup_password": "env:BACKUP_PASSWORD",
                **{f"cricksy_{key}": value for key, value in own.items() if value is not None},
                **self.shared,
            },
            "groups": {"cricksy_infra": [self.front], "cricksy_api": [self.front], "cricksy_worker": self.workers},
            "host_data": {} if self.alone else {self.front.name: {"cricksy_infra_address": address}},
        }

    def run(
        self, deploy: str | Path = DEPLOY, dry: bool = False, limit: str | None = None, extra: Sequence[str] = (),
        timeout: float = 900, **settings: object,
    ) -> Run:  # fmt: skip
        """Run pyinfra over the hosts; keyword arguments are settings without their prefix, None leaves one out."""
        return provision(list(self.hosts), deploy, env=self.secrets, dry=dry, limit=limit, extra=extra, timeout=timeout, **self._words(settings))

    def command(self, scratch: Path, deploy: str | Path = DEPLOY, **settings: object) -> list[str]:
        """Return the command line of such a run, to be started by the caller with ``secrets`` in its environment."""
        return command_line(scratch, list(self.hosts), deploy, **self._words(settings))

    def type(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run pyinfra as an operator types it: ``pyinfra -y INVENTORY deploys.cricksy.status``; output in one."""
        with tempfile.TemporaryDirectory(prefix="lab-typed-") as scratch:
            return subprocess.run(
                [str(PYINFRA), "-y", str(self.inventory(Path(scratch))), *words], cwd=REPOSITORY, text=True, timeout=900,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env=environment(self.secrets),
            )  # fmt: skip

    def inventory(self, scratch: Path) -> Path:
        """Return an inventory file of the hosts, for pyinfra's other commands and for ``tests/verify``."""
        self.command(scratch)
        return scratch / "inventory.py"

    def empty_bucket(self) -> None:
        """Have the S3 server as it was before the first run."""
        assert self.s3 is not None
        store = self.s3.client("s3")
        for bucket in store.list_buckets()["Buckets"]:
            for found in store.list_objects_v2(Bucket=bucket["Name"]).get("Contents", []):
                store.delete_object(Bucket=bucket["Name"], Key=found["Key"])
            store.delete_bucket(Bucket=bucket["Name"])

    def pids(self) -> dict[str, str]:
        """The main process of every service that is ours."""
        found = {}
        for host in self.hosts:
            units = "'cricksy-*' 'redis-server@*' 'postgresql@*' nginx.service"
            listed = host.run(f"systemctl list-units --type=service --state=active --plain --no-legend {units}").stdout
            for unit in (line.split()[0] for line in listed.splitlines()):
                found[f"{host.name}/{unit}"] = host.run(f"systemctl show -p MainPID --value {unit}").stdout.strip()
        return found


@contextlib.contextmanager
def fleet_of(lab: Lab, directory: Path, layer: str = "packages", alone: bool = False, release: str = "bookworm") -> Iterator[Fleet]:
    """Give a fleet of three fresh hosts, or one, and its S3 server, and remove both at the end.

    + directory: scratch space for what the hosts fetch
    """
    network.create(lab.slot)
    s3 = S3Server(lab.slot, network.gateway(lab.slot), lets_in=True).start()
    try:
        made = Fleet(lab, directory, s3.url, alone, layer, release)
        made.s3 = s3
        try:
            yield made
        finally:
            for host in made.hosts:
                lab.destroy(host)
    finally:
        s3.stop()


def give_image(source: LabHost) -> None:
    """Have the image on a host that is to upload it."""
    encoded = IMAGE.read_bytes().hex()
    source.run("python3 -c 'import sys; open(\"/root/image.png\", \"wb\").write(bytes.fromhex(sys.stdin.read()))'", input=encoded)


def ask(fleet: Fleet, source: LabHost, path: str, *options: str, domain: str = DOMAIN) -> tuple[int, str]:
    """Ask over https for a path, the front itself by loopback; return the status and the body."""
    to = "127.0.0.1" if source is fleet.front else fleet.front.address
    command = ["curl", "-sk", "-m", "20", "-w", "\\n%{http_code}", "--resolve", f"{domain}:443:{to}", *options, f"https://{domain}{path}"]
    body, _, code = source.run(shlex.join(command), check=False).stdout.rpartition("\n")
    return int(code or 0), body


def ask_broker(fleet: Fleet, words: str, input: str | None = None) -> str:
    """Ask the broker as its administrator, on its host."""
    login = f"REDISCLI_AUTH={shlex.quote(fleet.secrets['CRICKSY_REDIS_ADMIN_PASSWORD'])}"
    command = f"{login} redis-cli -s /run/redis-cricksy-broker/redis.sock --no-auth-warning {words}"
    return fleet.front.run(command, input=input).stdout.strip()


def upload(fleet: Fleet, source: LabHost, seconds: float = 0) -> str:
    """Announce, upload and hand over the image; return its id."""
    status, body = ask(fleet, source, "/api/uploads/initiate", "-X", "POST")
    assert status == 200, body
    announced = json.loads(body)
    source.run(f"curl -fsS -m 20 -T /root/image.png {shlex.quote(announced['url'])}")
    status, body = ask(fleet, source, f"/api/uploads/{announced['id']}/complete?seconds={seconds}", "-X", "POST")
    assert status == 200, body
    return str(announced["id"])


def read(fleet: Fleet, source: LabHost, image: str, seconds: float = 60) -> dict[str, object]:
    """Wait until an upload is read, and return all that is known of it."""
    found: dict[str, object] = {}

    def is_done() -> bool:
        found.update(json.loads(ask(fleet, source, f"/api/uploads/{image}")[1]))
        return found["state"] == "done"

    wait_for(f"upload {image}", is_done, seconds, pause=0.3)
    return found


def assert_converged(fleet: Fleet, deploy: str | Path = DEPLOY, **settings: object) -> None:
    """A run ends well and changes nothing."""
    run = fleet.run(deploy, **settings)
    assert (run.ok, run.changed) == (True, []), run


def colour(fleet: Fleet) -> str:
    """The colour that serves."""
    return fleet.front.run("readlink /etc/cricksy-api/active.sock").stdout.split("-")[2].split("/")[0]
