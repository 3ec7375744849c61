"""Run inside a host by canary.sampled: read all of /proc at a fixed rate until standard input ends."""

import json
import os
import select
import sys
import time


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # the process ended
        return b""


def main() -> None:
    order = json.loads(sys.stdin.readline())
    wanted = [form.encode() for form in order["wanted"]]
    pause = 1 / order["rate"]
    arguments, environments = set(), set()
    count, started = 0, time.monotonic()
    print("ready", flush=True)  # noqa: T201 - its parent reads it
    while not select.select([sys.stdin], [], [], max(0, started + count * pause - time.monotonic()))[0]:
        count += 1
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if int(pid) == os.getpid():
                continue
            line = read(f"/proc/{pid}/cmdline")
            if any(form in line for form in wanted):
                arguments.add(line.replace(b"\0", b" ").decode(errors="replace"))
            if any(form in read(f"/proc/{pid}/environ") for form in wanted):
                try:
                    uid = os.stat(f"/proc/{pid}").st_uid
                except OSError:
                    continue
                environments.add((uid, line.replace(b"\0", b" ").decode(errors="replace")[:200]))
    result = {
        "count": count,
        "seconds": time.monotonic() - started,
        "arguments": sorted(arguments),
        "environments": sorted(environments),
    }
    print(json.dumps(result))  # noqa: T201


main()
