"""One host that the real deploy.py has provisioned with every system of the lab: made once, gone back to in seconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.lab import apps, canary
from tests.lab.acme import CA_ON_HOST, Acme
from tests.lab.canary import Samples
from tests.lab.fingerprint import Fingerprint
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line, provision
from tests.lab.state import REPOSITORY

DEPLOY = REPOSITORY / "deploy.py"
DOMAIN = "gateway.deployed.test"
BARE = "bare"
CONVERGED = "converged"
SECRETS = (
    "GATEWAY_ADMIN_API_KEY",
    "GATEWAY_CLIENT_API_KEY",
    "GATEWAY_UPSTREAM_TOKEN",
    "BACKUP_PASSWORD",
    "BACKUP_OFFSITE_KEY",
)


class Deployed:
    """A gateway host with random secrets; ``secrets`` are at the same time the environment that pyinfra needs.

    + layer: of the host; on ``packages``, BARE is a host that nothing was deployed to, with most of its packages there
    + host: can go back to two states by ``reset(BARE)`` and ``reset(CONVERGED)``; bare but for the key that the off-site
      repository lets in, which is the operator's to make
    + first_run, samples: pyinfra's first converge of the bare host, at its most talkative, and what the host's process
      table showed meanwhile
    + fingerprint: the host after it
    + leaks: the files that held a secret then (before the next boot emptied /tmp), and the names of those that its journal held
    """

    def __init__(self, lab: Lab, directory: Path, layer: str) -> None:
        self.secrets = canary.new(SECRETS)
        self._directory = directory
        self._acme: Acme = lab.acme()
        apps.gateway_repository(directory)
        self._repository = f"{lab.serve(directory, port=8096)}/gateway.git"
        self.host: LabHost = lab.host("t-deployed", layer=layer)
        self._acme.add_name(DOMAIN, self.host)
        self._vault = lab.host("t-deployed-vault")
        self.host.run("ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
        self._vault.run("cat >> /root/.ssh/authorized_keys", input=self.host.read("/root/.ssh/id_ed25519.pub"))
        self.host.run(f"ssh-keyscan -t ed25519 {self._vault.address} > /root/.ssh/known_hosts")
        self.host.save(BARE)
        self.samples: Samples
        with canary.sampled(self.host, self.secrets) as self.samples:
            self.first_run: Run = self.converge(extra=["-vvv", "--debug", "--diff"])
        assert self.first_run.ok, self.first_run
        self.fingerprint = Fingerprint.of(self.host)
        self.leaks = canary.files(self.host, self.secrets), canary.journal(self.host, self.secrets)
        for job in ("run", "drill"):
            done = self.run(f"deploys.backup.{job}")
            assert done.ok, done
        self.host.save(CONVERGED)

    @property
    def data(self) -> dict[str, object]:
        """The host's data, as an inventory has it: of secrets only references."""
        return {
            "certificate_email": "ops@example.test",
            "certificate_directory": self._acme.directory_url,
            "certificate_ca_bundle": CA_ON_HOST,
            "backup_password": "env:BACKUP_PASSWORD",
            "backup_offsite_repository": f"sftp:root@{self._vault.address}:/srv/vault",
            # as an object store's key would be; sftp itself does without
            "backup_offsite_env": {"AWS_SECRET_ACCESS_KEY": "env:BACKUP_OFFSITE_KEY"},
            "gateway_domain": DOMAIN,
            "gateway_repository": self._repository,
            "gateway_version": "v1.0.0",
            "gateway_admin_api_key": "env:GATEWAY_ADMIN_API_KEY",
            "gateway_client_api_keys": ["env:GATEWAY_CLIENT_API_KEY"],
            "gateway_extra_secret_env": {"UPSTREAM_TOKEN": "env:GATEWAY_UPSTREAM_TOKEN"},
            "gateway_start_timeout_seconds": 20,
            "gateway_settle_seconds": 2,
            "gateway_request_timeout_seconds": 30,
        }

    def converge(self, dry: bool = False, extra: Sequence[str] = ()) -> Run:
        """Run deploy.py against the host as it is."""
        groups = {"gateway": [self.host]}
        return provision(self.host, DEPLOY, data=self.data, groups=groups, env=self.secrets, dry=dry, extra=extra)

    def command(self, scratch: Path) -> list[str]:
        """Return the command line of such a run, to be started by the caller with ``secrets`` in its environment."""
        return command_line(scratch, self.host, DEPLOY, data=self.data, groups={"gateway": [self.host]})

    def run(self, function: str) -> Run:
        """Run a deploy function by its name, such as ``deploys.backup.run``."""
        module, _, name = function.rpartition(".")
        text = f"from {module} import {name} as wanted\nwanted()\n"
        return provision(self.host, text, data=self.data, groups={"gateway": [self.host]}, env=self.secrets)

    def inventory(self) -> Path:
        """Return an inventory file of the host, for pyinfra's other commands and for ``tests/verify``."""
        self.command(self._directory)
        return self._directory / "inventory.py"

    def verify(self, *options: str, inventory: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the checks of tests/verify against the host, as ``make verify`` does.

        + inventory: another inventory file than the host's own
        """
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/verify",
             "--inventory", str(inventory or self.inventory()), *options],
            cwd=REPOSITORY, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=300,
        )  # fmt: skip
