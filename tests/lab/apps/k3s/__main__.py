# ruff: noqa: T201 - what it prints is what it is for
"""
The lab's k3s: one executable that takes k3s's commands, flags and config.yaml and starts the real Kubernetes 1.20.

It stands in for the release that cannot be downloaded where the tests run. docs/lab.md lists what it cannot stand for.
The components themselves (PARTS) are on the lab's hosts beforehand; k3s would carry them in itself.
"""

import os
import sys

from parts import BIN, VERSION, call, fail


def main() -> None:
    name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
    if name not in ("kubectl", "ctr", "crictl"):
        if not words or words[0] in ("-h", "--help", "help"):
            print("NAME:\n   k3s - Kubernetes, but small and simple\n\nCOMMANDS:\n   server, agent, kubectl, ctr, check-config, "
                  "etcd-snapshot, token")  # fmt: skip
            return
        name, words = words[0], words[1:]
    if name in ("--version", "-v"):
        print(f"k3s version {VERSION} (00000000)\ngo version go1.24.9")
    elif name == "server":
        import server

        server.main(words)
    elif name == "agent":
        import node

        node.main(words)
    elif name == "kubectl":
        import kubectl

        kubectl.main(words)
    elif name == "ctr":
        call(f"{BIN}/ctr", "--address", "/run/k3s/containerd/containerd.sock", "--namespace", "k8s.io", *words)
    elif name == "etcd-snapshot":
        import server

        server.snapshot(words)
    elif name == "check-config":
        import checks

        checks.main()
    else:
        fail(f"No help topic for '{name}'", 3)


main()
