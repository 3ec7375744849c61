"""A client of a group of Redis instances that asks its sentinels, as applications do: to be run on a lab host.

    python3 sentinel_client.py CONFIG SECONDS

Appends numbers to a list as fast as it is let, and prints, as JSON: the numbers that were acknowledged (first, last, how many),
the longest time without one, the primaries that it found, and what it was told meanwhile. It ends early, once a file named
``stop`` stands in the directory it was started in.
"""

import json
import os
import socket
import ssl
import sys
import time


class Failed(Exception):
    """What the server said."""


class Connection:
    def __init__(self, address, port, ca):
        context = ssl.create_default_context(cadata=ca)
        context.check_hostname = False
        self.socket = context.wrap_socket(socket.create_connection((address, port), 1))
        self.socket.settimeout(1)
        self.lines = self.socket.makefile("rb")

    def ask(self, *words):
        parts = [f"*{len(words)}\r\n"] + [f"${len(word)}\r\n{word}\r\n" for word in words]
        self.socket.sendall("".join(parts).encode())
        return self.answer()

    def answer(self):
        line = self.lines.readline()
        if not line:
            raise OSError("hung up")
        kind, rest = line[:1], line[1:].strip().decode()
        if kind == b"-":
            raise Failed(rest)
        if kind == b"$":
            return self.lines.read(int(rest) + 2)[:-2].decode() if rest != "-1" else None
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))] if rest != "-1" else None
        return rest


def connect(config):
    for address in config["sentinels"]:
        try:
            sentinel = Connection(address, config["sentinel_port"], config["ca"])
            sentinel.ask("AUTH", config["ask_password"])
            found = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", config["instance"])
        except (OSError, Failed):
            continue
        if found:
            primary = Connection(found[0], int(found[1]), config["ca"])
            primary.ask("AUTH", config["user"], config["password"])
            if primary.ask("ROLE")[0] == "master":
                return found[0], primary
    raise Failed("no sentinel knows a primary that answers")


def main(path, seconds):
    with open(path) as file:
        config = json.load(file)
    taken, primaries, said, number, primary = [], [], {}, 0, None
    began = last = time.monotonic()
    longest = 0.0
    while time.monotonic() < began + float(seconds) and not os.path.exists("stop"):
        try:
            if primary is None:
                address, primary = connect(config)
                if not primaries or primaries[-1] != address:
                    primaries.append(address)
            number += 1
            primary.ask("RPUSH", config["list"], str(number))
            taken.append(number)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        except (OSError, Failed) as error:
            said[str(error)[:60]] = said.get(str(error)[:60], 0) + 1
            primary = None
            time.sleep(0.1)
        time.sleep(0.02)
    longest = max(longest, time.monotonic() - last)
    json.dump({"taken": taken, "longest": round(longest, 2), "primaries": primaries, "said": said}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
