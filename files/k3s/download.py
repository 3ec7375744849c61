# Fetch a program or an archive, and put it in place only when its sum is the pinned one.
# main(values): url, sha256, path, mode, runs_as (version that the program must say, or empty), seconds
import hashlib
import http.client
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request


def refuse(*lines):
    sys.stderr.write("\n".join(lines) + "\n")
    sys.exit(1)


def fetch(url, part, seconds):
    """Return the sum of what came; whole, or not at all."""
    summed, end = hashlib.sha256(), time.monotonic() + seconds
    with urllib.request.urlopen(url, timeout=60) as answer, open(part, "wb") as file:
        announced = answer.headers.get("Content-Length")
        size = 0
        while True:
            try:
                # what there is: waiting for a whole block of a server that trickles would outlast the end
                block = answer.read1(1 << 20)
            except http.client.IncompleteRead:
                block = b""
            if not block:
                break
            size += len(block)
            summed.update(block)
            file.write(block)
            if time.monotonic() > end:
                raise TimeoutError(f"not whole after {seconds} s")
        if announced is not None and size != int(announced):
            raise OSError(f"it broke off after {size} of {announced} bytes")
        file.flush()
        os.fsync(file.fileno())
    return summed.hexdigest()


def main(values):
    url, path = values["url"], values["path"]
    # under its own name, which tells a program of many commands which one it is
    scratch = os.path.join(os.path.dirname(path), ".part")
    part = os.path.join(scratch, os.path.basename(path))
    os.makedirs(scratch, exist_ok=True)
    try:
        try:
            got = fetch(url, part, values["seconds"])
        except urllib.error.HTTPError as error:
            refuse(f"{url}: the server says {error.code} {error.reason}; nothing was installed")
        except (OSError, ValueError, http.client.HTTPException) as error:
            refuse("{}: cannot be fetched: {}; nothing was installed".format(url, getattr(error, "reason", error)))
        if got != values["sha256"]:
            refuse("{}: sha256 must be {}, got {}; nothing was installed".format(url, values["sha256"], got),
                   "a wrong pinned sum, or a file that somebody changed on its way")  # fmt: skip
        os.chmod(part, int(values["mode"], 8))
        if values["runs_as"]:
            try:
                said = subprocess.run([part, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
                text = said.stdout.decode(errors="replace").strip()
            except (OSError, subprocess.TimeoutExpired) as error:
                refuse(f"{url}: does not run on this host: {error}; nothing was installed")
            if "k3s version {} ".format(values["runs_as"]) not in text + " ":
                refuse("{}: must be k3s {}, says {!r}; nothing was installed".format(url, values["runs_as"], text[:200]))
        os.rename(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)
        os.rmdir(scratch)
