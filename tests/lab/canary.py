"""Secrets that are looked for everywhere: random values, and the places on a host where a secret must not stand."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from tests.lab.hosts import LabHost

SAMPLES_PER_SECOND = 50
_SAMPLER = Path(__file__).with_name("canary_sampler.py")


def new(names: Iterable[str]) -> dict[str, str]:
    """Return a random value of letters and digits for each name: it looks the same quoted, in JSON and in a URL."""
    return {name: "canary" + secrets.token_hex(24) for name in names}


def forms(value: str) -> list[str]:
    """Return how a value can be found: as it is, and what base64 makes of it at each of the three alignments."""
    found = [value]
    for lead in range(3):
        encoded = base64.b64encode(b"\0" * lead + value.encode()).decode()
        # The first and last characters also hold bits of the neighbours.
        found.append(encoded[4 if lead else 0 : -4])
    return found


def in_text(text: str, canaries: Mapping[str, str]) -> list[str]:
    """Return the names of the secrets that stand in a text, in any form."""
    return [name for name, value in canaries.items() if any(form in text for form in forms(value))]


def files(host: LabHost, canaries: Mapping[str, str]) -> dict[str, str]:
    """Return the files of a host in which a secret stands, with their modes and owners (``600 root root``)."""
    patterns = "\n".join(form for value in canaries.values() for form in forms(value)) + "\n"
    found = host.run(
        "grep -rlaF -f - --exclude-dir=proc --exclude-dir=sys --devices=skip / 2>/dev/null | while read -r file; do "
        "printf '%s %s\n' \"$(stat -c '%a %U %G' \"$file\")\" \"$file\"; done",
        input=patterns,
        timeout=300,
    ).stdout
    return {path: f"{mode} {user} {group}" for mode, user, group, path in (line.split(" ", 3) for line in found.splitlines())}


def journal(host: LabHost, canaries: Mapping[str, str]) -> list[str]:
    """Return the names of the secrets that stand in a host's journal (which keeps long messages compressed)."""
    return in_text(host.run("journalctl --no-pager --quiet --all -o export", timeout=120).stdout, canaries)


@dataclass
class Samples:
    """What was seen in the host's process table.

    + count: how often it was looked at; + seconds: for how long
    + arguments: command lines that held a secret
    + environments: (uid, command) of processes whose environment held one
    """

    count: int = 0
    seconds: float = 0.0
    arguments: set[str] = field(default_factory=set)
    environments: set[tuple[int, str]] = field(default_factory=set)


@contextlib.contextmanager
def sampled(host: LabHost, canaries: Mapping[str, str]) -> Iterator[Samples]:
    """Look at every process of a host 50 times a second while the block runs; the result is complete after it.

    The values reach the sampler by its standard input: it must not be what it looks for.
    """
    samples = Samples()
    leader = host.leader
    assert leader is not None
    process = subprocess.Popen(
        ["nsenter", f"--target={leader}", "--mount", "--pid", "--", "/usr/bin/python3", "-c", _SAMPLER.read_text()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    wanted = [form for value in canaries.values() for form in forms(value)]
    process.stdin.write(json.dumps({"rate": SAMPLES_PER_SECOND, "wanted": wanted}) + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ready\n"
    output: list[str] = []
    reader = Thread(target=lambda: output.append(process.stdout.read()))  # type: ignore[union-attr]
    reader.start()
    try:
        yield samples
    finally:
        process.stdin.close()  # its sign to stop
        reader.join(30)
        process.wait(10)
        found = json.loads(output[0])
        samples.count, samples.seconds = found["count"], found["seconds"]
        samples.arguments = set(found["arguments"])
        samples.environments = {(uid, command) for uid, command in found["environments"]}
