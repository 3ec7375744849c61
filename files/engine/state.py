"""What engine a host has, where its packages come from, and what it runs on. Reads only; prints one line of JSON."""

import hashlib
import json
import os
import re
import subprocess


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _system() -> dict:
    lines = _read("/etc/os-release").decode(errors="replace").splitlines()
    pairs = dict(line.split("=", 1) for line in lines if "=" in line)
    return {key.lower(): pairs.get(key, "").strip("\"'") for key in ("ID", "VERSION_ID", "VERSION_CODENAME")}


def _packages(names: list) -> dict:
    shape = "${db:Status-Status} ${db:Status-Want} ${Package} ${Version}\n"
    rows = (line.split(" ") for line in _said("dpkg-query", "-W", "-f", shape, *names).splitlines())
    return {name: [version, want == "hold"] for status, want, name, version in rows if status == "installed"}


def _keys(text: bytes) -> dict:
    """Each key of daemon.json with a hash of its value, which may hold what is nobody's business (a proxy)."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    dumped = {key: json.dumps(value, sort_keys=True) for key, value in found.items()}
    return {key: hashlib.sha256(value.encode()).hexdigest() for key, value in dumped.items()}


def _unit(name: str) -> dict:
    wanted = "LoadState,ActiveState,UnitFileState,InvocationID,MainPID"
    pairs = (line.split("=", 1) for line in _said("systemctl", "show", "-p", wanted, "--", name).splitlines())
    return dict(pair for pair in pairs if len(pair) == 2)


def _is_replaced(pid: str) -> bool:
    """Whether a process runs a program that an update has replaced since."""
    try:
        return os.readlink(f"/proc/{pid}/exe").endswith(" (deleted)")
    except OSError:
        return False


def main(values: dict) -> None:
    docker = _unit("docker.service")
    daemon_json = _read(values["daemon_json"])
    version = re.search(r"version ([0-9][^,\s]*)", _said("dockerd", "--version"))
    print(  # noqa: T201 - what a fact says
        json.dumps(
            {
                "system": _system(),
                "packages": _packages(values["packages"]),
                "sources": with_docker(values["repository"]),  # noqa: F821
                "source_sha256": hashlib.sha256(_read(values["source_file"])).hexdigest(),
                "keys": fingerprints(_read(values["key_file"])),  # noqa: F821
                "apparmor": _read("/sys/module/apparmor/parameters/enabled").strip() == b"Y",
                "snap": os.path.isdir("/snap/docker"),
                "version": version[1] if version else "",
                "load": docker.get("LoadState", ""),
                "active": docker.get("ActiveState", ""),
                "enabled": docker.get("UnitFileState", ""),
                "invocation": docker.get("InvocationID", ""),
                "replaced": _is_replaced(docker.get("MainPID", "0")),
                "daemon_keys": _keys(daemon_json),
                "daemon_sha256": hashlib.sha256(daemon_json).hexdigest() if daemon_json else "",
                "stamp": _read(values["stamp"]).decode(errors="replace").split(),
            }
        )
    )
