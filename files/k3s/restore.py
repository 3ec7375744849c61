# Bring a server's datastore (etcd) back from a snapshot. What was there before is kept beside it by k3s itself.
# main(values): snapshot (path, or "latest"), seconds
import hashlib
import os
import subprocess
import sys

K3S = "/usr/local/bin/k3s"
PLACE = "/var/lib/rancher/k3s/server/db/snapshots"


def refuse(*lines):
    sys.stderr.write("\n".join(lines) + "\n")
    sys.exit(1)


def chosen(wanted):
    if wanted != "latest":
        path = wanted if wanted.startswith("/") else os.path.join(PLACE, wanted)
        if not os.path.isfile(path):
            refuse(f"snapshot {path} does not exist")
        return path
    there = [os.path.join(PLACE, name) for name in os.listdir(PLACE) if not name.startswith(".") and not name.endswith(".part")] if os.path.isdir(PLACE) else []
    if not there:
        refuse(f"there is no snapshot in {PLACE}: bring one there first, e.g. by deploys.backup.restore source=k3s")
    return max(there, key=os.path.getmtime)


def check(path):
    """etcd writes the sum of a snapshot behind it; one that was cut or spoilt is found before anything is stopped."""
    with open(path, "rb") as file:
        content = file.read()
    if path.endswith(".zip"):
        return
    if len(content) < 4096 or len(content) % 512 != 32 or hashlib.sha256(content[:-32]).digest() != content[-32:]:
        refuse(f"snapshot {path} is damaged: its sum is not right; nothing was stopped")


def main(values):
    path = chosen(values["snapshot"])
    check(path)
    if values.get("only_check"):
        return
    sys.stdout.write(f"restoring {path}" + "\n")
    subprocess.run(["systemctl", "stop", "k3s.service"], check=True)
    flag = "/var/lib/rancher/k3s/server/db/reset-flag"
    if os.path.exists(flag):
        os.unlink(flag)
    done = subprocess.run([K3S, "server", "--cluster-reset", "--cluster-reset-restore-path=" + path], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=values["seconds"])  # fmt: skip
    said = done.stdout.decode(errors="replace").strip().splitlines()
    # k3s ends with status 0 or is told to go on without the flag; a fault is fatal
    failed = done.returncode != 0 and not any("has been reset" in line for line in said)
    started = subprocess.run(["systemctl", "start", "k3s.service"]).returncode == 0
    if failed:
        refuse("the snapshot could not be restored; k3s %s on what it had:" % ("runs again" if started else "does NOT run"), *said[-5:])
    if not started:
        refuse("restored, but k3s does not start: journalctl -u k3s.service")
