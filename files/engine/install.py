"""Install the engine's packages from the chosen source, hold them, and have the engine run."""

import os
import re
import subprocess
import sys
import time
import urllib.request

_ENVIRONMENT = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


def _fail(text: str) -> None:
    sys.exit("engine.engine: " + text)


def _run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        env=_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _must(*command: str) -> str:
    done = _run(*command)
    if done.returncode:
        sys.stderr.write(done.stdout[-4000:])
        _fail(f"{' '.join(command[:2])} failed, exit status {done.returncode}")
    return done.stdout


def _read(path: str) -> bytes:
    if not os.path.exists(path):
        return b""
    with open(path, "rb") as file:
        return file.read()


def _write(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    beside = path + ".hostwright~"  # a name that apt does not read
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(beside, 0o644)
    os.replace(beside, path)


def _fetch_key(url: str, fingerprint: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            content = answer.read(1 << 20)
    except OSError as error:
        _fail(f"cannot fetch the signing key {url}: {error}; nothing was changed")
    found = fingerprints(content)  # noqa: F821
    if found != [fingerprint]:
        _fail(
            f"the signing key at {url} is not the one with fingerprint {fingerprint}: it holds "
            f"{', '.join(found) or 'no key'}; nothing was changed"
        )
    return content


def _set_sources(values: dict) -> bool:
    """Leave one source of Docker's packages, or none; return whether something changed."""
    changed = False
    key = b""
    # Before anything goes: with a wrong key, what stands stays.
    if values["source_text"] and fingerprints(_read(values["key_file"])) != [values["fingerprint"]]:  # noqa: F821
        key = _fetch_key(values["key_url"], values["fingerprint"])
    for path in with_docker(values["repository"]):  # noqa: F821
        if path == values["source_file"] and values["source_text"]:
            continue
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = without_docker(path, file.read(), values["repository"])  # noqa: F821
        changed = True
        if is_empty(text) and path != LIST:  # noqa: F821
            os.unlink(path)
        else:
            _write(path, text.encode("utf-8", errors="surrogateescape"))
    if key:
        changed = True
        _write(values["key_file"], key)
    wanted = values["source_text"].encode()
    if wanted and _read(values["source_file"]) != wanted:
        changed = True
        _write(values["source_file"], wanted)
    return changed


def _finish_interrupted() -> None:
    """Let dpkg finish what a power cut left half installed; it has no option to wait for its lock."""
    for _ in range(60):
        done = _run("dpkg", "--configure", "-a")
        if done.returncode == 0:
            return
        if "lock" not in done.stdout:
            break
        time.sleep(2)
    sys.stderr.write(done.stdout[-4000:])
    _fail("dpkg --configure -a failed")


def _update() -> str:
    """Fetch the lists; return what apt said when some could not be had: a source of somebody else's may be down."""
    for _ in range(24):
        done = _run("apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any")
        if done.returncode == 0:
            return ""
        if "Could not get lock" not in done.stdout:
            break
        time.sleep(5)
    return done.stdout


def _pinned(package: str, version: str) -> str:
    """Return the package's version in apt's words."""
    rows = [line.split("|") for line in _must("apt-cache", "madison", package).splitlines()]
    found = [row[1].strip() for row in rows if len(row) == 3]
    for one in found:
        upstream = re.sub(r"^[0-9]+:", "", one)
        if version in (one, upstream) or re.match(re.escape(version) + r"[-~+]", upstream):
            return one
    _fail(
        f"no {package} {version} in the source, it has {', '.join(found[:8]) or 'none'}; no package was changed"
    )
    return ""


def _install(values: dict) -> None:
    wanted = [
        package + ("=" + _pinned(package, version) if version else "")
        for package, version in values["install"].items()
    ]
    # Never purged: that is what deletes /var/lib/docker.
    removed = [package + "-" for package in values["remove"]]
    _must(
        "apt-get", "install", "-q", "-y", "--no-install-recommends", "--allow-change-held-packages", "--allow-downgrades",
        "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold",
        *wanted, *removed,
    )  # fmt: skip


def _have_it_run(restart: bool) -> None:
    _must("systemctl", "daemon-reload")
    _must("systemctl", "unmask", "--quiet", "containerd.service", "docker.socket", "docker.service")
    _must("systemctl", "enable", "--quiet", "containerd.service", "docker.socket", "docker.service")
    if restart or not _engine_runs():
        _run("systemctl", "reset-failed", "docker.service", "docker.socket", "containerd.service")
        if _run("systemctl", "restart" if restart else "start", "docker.service").returncode:
            sys.stderr.write(
                _run("journalctl", "-u", "docker.service", "-n", "20", "--no-pager", "-o", "cat").stdout
            )
            _fail("the engine does not start; its last journal lines are above")
    for _ in range(120):
        done = _run("docker", "version", "--format", "{{.Server.Version}}")
        if done.returncode == 0:
            return
        time.sleep(0.5)
    sys.stderr.write(done.stdout[-2000:])
    _fail("the engine does not answer within 60 s")


def _engine_runs() -> bool:
    return _run("systemctl", "is-active", "docker.service").stdout.strip() == "active"


def _is_replaced_on_disk() -> bool:
    """Whether the engine still runs what its package had before: the distributions' packages restart nothing on an upgrade."""
    pid = _run("systemctl", "show", "-P", "MainPID", "docker.service").stdout.strip()
    try:
        return os.readlink(f"/proc/{pid}/exe").endswith(" (deleted)")
    except OSError:
        return False


def main(values: dict) -> None:
    fresh = _set_sources(values)
    changes = bool(values["install"] or values["remove"])
    said = ""
    if changes:
        _finish_interrupted()
        said = _update()
    elif fresh:
        _update()
    if (changes or values["restart"]) and values["keep_containers"] and _engine_runs():
        keep_containers(values["daemon_json"])  # noqa: F821
        lead_past_the_proxies()  # noqa: F821
    try:
        if changes:
            _install(values)
        if values["hold"]:
            _must("apt-mark", "hold", *values["hold"])
        _have_it_run(values["restart"] or _is_replaced_on_disk())
    except SystemExit:
        sys.stderr.write(said[-4000:])
        # Without an engine the detour is the only way to the containers: the run that brings it back leads back as well.
        if _engine_runs():
            try:
                lead_back()  # noqa: F821
            except SystemExit as second:
                sys.stderr.write(f"{second}\n")
        raise
    lead_back()  # noqa: F821
