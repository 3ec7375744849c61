"""Services of somebody else's, which an mcbench fleet may have instead of its own: asked before anything is changed."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS
from pyinfra.context import ctx_host

from operations import fileset, preflight, script
from operations.fileset import Absent, Directory, File
from settings import Mcbench

CA_ON_HOST = "/etc/hostwright/mcbench-ca"
_OWN, _BUNDLE = f"{CA_ON_HOST}/own.pem", f"{CA_ON_HOST}/bundle.pem"
# What a container trusts is one file: the public certificates of the host, and these.
_JOIN = f"cat /etc/ssl/certs/ca-certificates.crt {_OWN} > {_BUNDLE}.new && chmod 0644 {_BUNDLE}.new && mv {_BUNDLE}.new {_BUNDLE}"


def questions(settings: Mcbench) -> list[dict[str, Any]]:
    """Return what is asked of each external service that a component of this host uses; secrets in it are ``Secret``."""
    used = set(settings.external) & settings.used_services
    found: list[dict[str, Any]] = []
    if "postgres" in used:
        found.append({
            "kind": "postgres", "name": "PostgreSQL", "host": settings.postgres_host, "port": settings.postgres_port,
            "user": settings.postgres_user, "password": settings.postgres_password, "database": settings.postgres_db,
            "sslmode": settings.sslmode,
        })  # fmt: skip
    if "redis" in used:
        found.append({
            "kind": "redis", "name": "Redis", "host": settings.redis_host, "port": settings.redis_port,
            "user": settings.redis_username, "password": settings.redis_password, "tls": settings.redis_tls,
        })  # fmt: skip
    if settings.celery_broker_url.resolved and settings.applications:
        url = urllib.parse.urlsplit(settings.celery_broker_url.unmask())
        found.append({
            "kind": "redis", "name": "the broker", "host": url.hostname or "", "port": url.port or 6379,
            "user": urllib.parse.unquote(url.username or "") or "default",
            "password": type(settings.celery_broker_url)(urllib.parse.unquote(url.password or "")), "tls": url.scheme == "rediss",
        })  # fmt: skip
    if "object" in used:
        host, _, port = settings.object_store_dsn.rpartition(":")
        found.append({
            "kind": "object", "name": "the object store", "host": host.strip("[]"), "port": int(port),
            "access": settings.object_store_access_key, "secret": settings.object_store_secret_key,
            "tls": settings.object_store_secure, "buckets": [settings.internal_object_bucket, settings.external_object_bucket],
        })  # fmt: skip
    return found


@operation()
def answer(asked: Sequence[Mapping[str, Any]], ca: str = "") -> Generator[FunctionCommand, None, None]:
    """
    See that external services answer this host and let it in; never changes anything.

    + asked: see ``questions``; + ca: certificates (PEM) trusted besides the host's own

    A host with a fault fails with one message that holds all of them, also in ``--dry``, as in ``operations.preflight``. One
    that has no python3 yet is not asked.
    """
    this = ctx_host.get()  # type: ignore[no-untyped-call]
    if not asked:
        this.noop("no service is external")
        return
    # Not a fact: pyinfra writes down what a fact is asked with, and here that is passwords.
    given = {key: value for key, value in (this.current_op_global_arguments or {}).items() if key in CONNECTOR_ARGUMENT_KEYS}
    given["_stdin"] = script.python_text(["mcbench/external.py"], {"questions": list(asked), "ca": ca})
    is_done, output = this.run_shell_command(StringCommand("! command -v python3 >/dev/null || python3 -B -"), **given)
    if is_done and not output.stdout_lines:
        this.noop("not asked: this host has no python3 yet")
        return
    lines = json.loads(output.stdout_lines[-1])["faults"] if is_done else ["external services could not be asked", *output.stderr_lines[-1:]]
    if not lines:
        this.noop(f"{len(asked)} external services let this host in")
        return
    yield from preflight.refused(lines)


@operation()
def trusted(ca: str) -> Generator[StringCommand, None, None]:
    """
    Have the file of certificates that containers trust towards external services: the host's public ones, and these.

    + ca: PEM; empty removes it
    """
    if ca:
        yield from fileset.files._inner(entries=[Directory(CA_ON_HOST, mode="0755"), File(_OWN, ca)], apply=_JOIN)
    else:
        yield from fileset.files._inner(entries=[Absent(_OWN), Absent(_BUNDLE)])
