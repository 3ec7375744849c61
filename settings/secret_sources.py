"""Where secrets come from: the one module of the settings that reads anything outside them.

    env:NAME          an environment variable of the process that runs pyinfra
    file:PATH#KEY     a YAML (.yaml, .yml) or KEY=value file: mode 0600, not tracked by git
    sops:PATH#KEY     a file that `sops --decrypt` opens
    age:PATH#KEY      a file that `age --decrypt` opens; YAML, or KEY=value when named *.env.age
                      (identity: $HOSTWRIGHT_AGE_IDENTITY, else ~/.config/hostwright/age.txt)

PATH is relative to the directory that pyinfra is started in.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import yaml

SCHEMES = ("env", "file", "sops", "age")
DECRYPT_SECONDS = 60


class SecretError(Exception):
    """A reference that leads to no secret; the text is the rule for the fault and holds no secret."""


class Sources:
    """Resolves references and opens each file once."""

    def __init__(self) -> None:
        self._opened: dict[tuple[str, str], dict[str, Any]] = {}

    def resolve(self, reference: str) -> str:
        """Return the secret that `reference` names. Raise SecretError saying what is missing."""
        scheme, _, rest = reference.partition(":")
        if scheme == "env":
            return _environment(rest)
        path, _, key = rest.rpartition("#")
        if not path or not key:
            raise SecretError(f"secret reference {reference!r} names no key, write {scheme}:PATH#KEY")
        values = self._open(scheme, path)
        if key not in values:
            raise SecretError(f"no key {key!r} in secret file {path}")
        value = values[key]
        if not isinstance(value, str):
            raise SecretError(f"key {key!r} in secret file {path} must be quoted text")
        if not value:
            raise SecretError(f"key {key!r} in secret file {path} is empty")
        return value

    def _open(self, scheme: str, path: str) -> dict[str, Any]:
        if (scheme, path) not in self._opened:
            self._opened[scheme, path] = _OPENERS[scheme](Path(path).expanduser())
        return self._opened[scheme, path]


def _environment(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise SecretError(f"{name!r} is not the name of an environment variable")
    if name not in os.environ:
        raise SecretError(f"environment variable {name} is not set")
    if not os.environ[name]:
        raise SecretError(f"environment variable {name} is empty")
    return os.environ[name]


def _plain(path: Path) -> dict[str, Any]:
    """Open a file of plain secrets; only its owner may read it and git must not know it."""
    try:
        status = path.stat()
        if stat.S_IMODE(status.st_mode) & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise SecretError(f"secret file {path} has mode {mode:04o}, others can read it: chmod 600 {path}")
        if _tracked_by_git(path):
            raise SecretError(f"secret file {path} is tracked by git: git rm --cached {path}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SecretError(f"cannot read secret file {path}: {error.strerror}") from None
    return _parse(text, path, as_yaml=path.suffix in {".yaml", ".yml"})


def _sops(path: Path) -> dict[str, Any]:
    text = _decrypt(["sops", "--decrypt", "--output-type", "json", str(path)], path)
    return _parse(text, path, as_yaml=True)


def _age(path: Path) -> dict[str, Any]:
    identity = os.environ.get("HOSTWRIGHT_AGE_IDENTITY") or "~/.config/hostwright/age.txt"
    text = _decrypt(["age", "--decrypt", "--identity", str(Path(identity).expanduser()), str(path)], path)
    return _parse(text, path, as_yaml=not path.name.endswith(".env.age"))


_OPENERS = {"file": _plain, "sops": _sops, "age": _age}


def _decrypt(command: list[str], path: Path) -> str:
    if not path.is_file():
        raise SecretError(f"cannot read secret file {path}: No such file or directory")
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=DECRYPT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise SecretError(
            f"secret file {path} needs the command {command[0]}, which is not installed"
        ) from None
    except subprocess.TimeoutExpired:
        raise SecretError(f"{command[0]} did not decrypt {path} in {DECRYPT_SECONDS} s") from None
    if run.returncode:
        reason = next(iter(run.stderr.strip().splitlines()), f"exit status {run.returncode}")
        raise SecretError(f"{command[0]} cannot decrypt {path}: {reason}")
    return run.stdout


def _tracked_by_git(path: Path) -> bool:
    command = ["git", "-C", str(path.resolve().parent), "ls-files", "--error-unmatch", "--", path.name]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:  # no git on this machine: then nothing here is tracked by it
        return False


def _parse(text: str, path: Path, *, as_yaml: bool) -> dict[str, Any]:
    """Return the file's keys. Errors name the line, never its text."""
    if not as_yaml:
        return _parse_lines(text, path)
    try:
        values = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except ValueError:
        raise SecretError(f"secret file {path} is not JSON") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise SecretError(
            f"secret file {path} is not YAML{f', line {mark.line + 1}' if mark else ''}"
        ) from None
    if not isinstance(values, dict):
        raise SecretError(f'secret file {path} must hold KEY: "value" pairs')
    return values


def _parse_lines(text: str, path: Path) -> dict[str, Any]:
    """Parse KEY=value lines. A value with ` #` must be quoted: tools disagree whether that is a comment."""
    values: dict[str, Any] = {}
    for number, row in enumerate(text.splitlines(), start=1):
        row = row.strip()
        if not row or row.startswith("#"):
            continue
        key, equals, value = row.removeprefix("export ").partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key.strip()):
            raise SecretError(f"secret file {path}, line {number}: must be KEY=value")
        value = value.strip()
        if value[:1] in {"'", '"'}:
            if len(value) < 2 or value[-1] != value[0]:
                raise SecretError(f"secret file {path}, line {number}: the quote is not closed")
            value = value[1:-1]
        elif re.search(r"\s#", value):
            raise SecretError(f"secret file {path}, line {number}: a value with # must be quoted")
        values[key.strip()] = value
    return values
