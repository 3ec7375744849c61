"""S3 and IAM for tests: moto's server on loopback, which checks signatures and permissions like AWS."""

from __future__ import annotations

import json
import socket
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3.session
from botocore.config import Config

from tests.lab.state import Process, slot_directory, wait_for

OWNER_ACCOUNT, STRANGER_ACCOUNT = "111111111111", "222222222222"
_ANYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
# Calls that moto lets pass before it checks anything: those that make the two administrators.
_FREE_CALLS = 6


@dataclass(frozen=True)
class Keys:
    """An access key."""

    access_key: str
    secret_key: str


class S3Server:
    """
    One moto server with the administrators of two accounts.

    + url: of all its services
    + owner, stranger: the administrators
    + address: where it listens; that of the slot's gateway is one which hosts reach
    + lets_in: checks nothing and nobody: it knows no presigned URLs where it checks
    """

    def __init__(self, slot: int, address: str = "127.0.0.1", lets_in: bool = False) -> None:
        self._address = address
        self._lets_in = lets_in
        self._directory = slot_directory(slot)
        self._process = Process(self._directory / "processes" / "s3server.pid")
        self.url = ""
        self.owner = self.stranger = Keys("", "")

    def start(self) -> S3Server:
        """Start it anew, empty; one that an earlier run left is ended."""
        self._process.stop()
        self._directory.mkdir(parents=True, exist_ok=True)
        port = _free_port(self._address)
        self.url = f"http://{self._address}:{port}"
        self._process.start(
            Path(sys.executable).with_name("moto_server"), "-H", self._address, "-p", str(port),
            log=self._directory / "s3server.log",
            env={} if self._lets_in else {"INITIAL_NO_AUTH_ACTION_COUNT": str(_FREE_CALLS)},
        )  # fmt: skip
        wait_for("moto's server", self._answers, 60)
        if self._lets_in:
            self.owner = Keys("anybody", "anything")
            return self
        self.owner = self._administrator(OWNER_ACCOUNT)
        self.stranger = self._administrator(STRANGER_ACCOUNT)
        return self

    def stop(self) -> None:
        """End it; what it held is gone."""
        self._process.stop()

    def client(self, service: str, keys: Keys | None = None, region: str = "eu-central-1") -> Any:
        """Return a client of its own, to read back what was provisioned; of the owner unless keys are given."""
        keys = keys or self.owner
        return boto3.session.Session().client(
            service,
            endpoint_url=self.url,
            region_name=region,
            aws_access_key_id=keys.access_key,
            aws_secret_access_key=keys.secret_key,
            config=Config(
                signature_version="s3v4" if service == "s3" else None,
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
            ),
        )

    def restricted(self, user: str, denied: str) -> Keys:
        """Return keys of a new user of the owner's account who may do anything but one action."""
        deny = {"Effect": "Deny", "Action": denied, "Resource": "*"}
        return self._user(
            self.client("iam"), user, {**_ANYTHING, "Statement": [*_ANYTHING["Statement"], deny]}
        )

    def _administrator(self, account: str) -> Keys:
        iam = self.client("iam", Keys("none", "none"))
        # before moto checks keys, it takes the account from here
        iam.meta.events.register(
            "before-sign.*", lambda request, **_: request.headers.add_header("x-moto-account-id", account)
        )
        return self._user(iam, "administrator", _ANYTHING)

    def _user(self, iam: Any, user: str, policy: Any) -> Keys:
        iam.create_user(UserName=user)
        iam.put_user_policy(UserName=user, PolicyName="all", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=user)["AccessKey"]
        return Keys(key["AccessKeyId"], key["SecretAccessKey"])

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/moto-api/", timeout=5):
                return True
        except OSError:
            return False


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
