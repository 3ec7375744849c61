"""``python -m tests.lab``: boot, look at, reset and remove the lab by hand."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.lab import hosts, image, images, topology
from tests.lab.hosts import LabHost
from tests.lab.lab import clean, down
from tests.lab.state import SLOTS, LabError, default_slot


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a command-line program


def _images(arguments: argparse.Namespace) -> None:
    """Build both releases' at once: each has a lock of its own, and those for containers are made from trixie."""
    layers = ("bare", "packages", "docker") if arguments.all else ("bare", "packages")
    first, last = ([(f"image {release}/{layer}", partial(image.get, release, layer)) for layer in layers] for release in image.RELEASES)
    if arguments.all:
        from tests.lab import k3s

        first.append(("image bookworm/cricksy", partial(image.get, "bookworm", "cricksy")))
        last += [
            (f"container image {name}", partial(images.get, name, "v1.0.0")) for name in ("busybox", "postgres", "redis", "s3", "mc-bench-api")
        ]
        if reason := k3s.missing():
            _say(f"no k3s in this lab: {reason}")
        else:
            first.append(("parts of k3s", k3s.parts))
    with ThreadPoolExecutor() as pool:
        for chain in [pool.submit(_build, work) for work in (first, last)]:
            chain.result()


def _build(work: Sequence[tuple[str, Callable[[], object]]]) -> None:
    for name, build in work:
        started = time.monotonic()
        build()
        _say(f"{name}: {time.monotonic() - started:.1f} s")


def _up(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    lab, new = topology.boot(arguments.layer)
    for host in sorted(lab.hosts.values(), key=lambda host: host.plan.index):
        state = "booted" if host.name in new else "runs already"
        _say(f"{host.name:10} {host.address:14} {host.address6:12} {host.plan.release:9} {state}")
    _say(f"{len(lab.hosts)} hosts: {time.monotonic() - started:.1f} s")


def _down(arguments: argparse.Namespace) -> None:
    removed = down([arguments.slot] if arguments.slot is not None else list(SLOTS))
    _say("\n".join(f"removed {what}" for what in removed) or "nothing to do")


def _clean(_: argparse.Namespace) -> None:
    _down(argparse.Namespace(slot=None))
    _say("\n".join(f"removed {what}" for what in clean()) or "nothing to do")


def _demo(arguments: argparse.Namespace) -> None:
    from tests.lab import demo  # needs rich, which removing a lab must not

    if arguments.system not in demo.DEMOS:
        raise LabError(f"demo: system is one of {', '.join(demo.DEMOS)}, got {arguments.system!r}")
    sys.exit(demo.run(arguments.picture, arguments.system))


def _reset(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    LabHost.find(default_slot(), arguments.name).reset()
    _say(f"{arguments.name}: pristine after {time.monotonic() - started:.1f} s")


def _status(_: argparse.Namespace) -> None:
    for slot in SLOTS:
        for plan in hosts.plans(slot):
            host = LabHost(plan)
            state = "running" if host.running else "off"
            _say(f"slot {slot}  {host.name:20} {host.address:14} {plan.release}/{plan.layer:9} {state}")


def _ssh(arguments: argparse.Namespace) -> None:
    argv = [*LabHost.find(default_slot(), arguments.name).ssh_argv, *arguments.command]
    os.execvp(argv[0], argv)


def main() -> None:
    """Parse the command line and do what it says; the slot comes from HOSTWRIGHT_LAB_SLOT."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("images", help="build the images that are missing")
    build.add_argument("--all", action="store_true", help="also those with Docker, of single systems, and those for containers")
    build.set_defaults(do=_images)
    up = commands.add_parser("up", help="boot the hosts of inventories/lab.py")
    up.add_argument("--layer", choices=image.LAYERS, default="bare")
    up.set_defaults(do=_up)
    gone = commands.add_parser("down", help="remove everything the lab made, images and caches apart")
    gone.add_argument("--slot", type=int, choices=SLOTS, help="only this slot (default: all)")
    gone.set_defaults(do=_down)
    commands.add_parser("clean", help="down, and remove images and caches too").set_defaults(do=_clean)
    demo = commands.add_parser("demo", help="up, provision, check, and show it")
    demo.add_argument("--picture", help="also write what is shown to this file, as SVG")
    demo.add_argument("--system", default="gateway", help="gateway (default) or mcbench, which takes minutes")
    demo.set_defaults(do=_demo)
    reset = commands.add_parser("reset", help="make one host pristine again")
    reset.add_argument("name")
    reset.set_defaults(do=_reset)
    commands.add_parser("status", help="list the hosts of all slots").set_defaults(do=_status)
    ssh = commands.add_parser("ssh", help="log in to a host, or run a command on it")
    ssh.add_argument("name")
    ssh.add_argument("command", nargs=argparse.REMAINDER)
    ssh.set_defaults(do=_ssh)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("tests.lab: needs root (network namespaces, mounts): run it with sudo")
    try:
        arguments.do(arguments)
    except LabError as error:
        sys.exit(f"tests.lab: {error}")


if __name__ == "__main__":
    main()
