#!/usr/bin/env -S python3 -B
"""Who is the primary of a group: redis-role COMMAND NAME
    role      before Redis starts: write whose replica it is, into /run/redis-NAME/role.conf
    sentinel  before its sentinel starts: write its configuration, with what it and its peers have learned
    primary   print address and port of the primary
    look      print what this host's sentinel knows of the primary, as one line of JSON
The sentinels are asked; of several answers the one of the latest election counts. When none answers, the sentinel's own
file says who was the primary last, and before there was one, the first of the declared peers is.
"""

import grp
import json
import os
import pwd
import re
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor

SECONDS = 3


def log(text):
    sys.stderr.write(text + "\n")


def states(name):
    return f"/var/lib/redis/sentinel-{name}"


def ask(group, address):
    """Return what one sentinel knows of the primary; None when it says nothing."""
    context = ssl.create_default_context(cadata=group["ca"])
    # like Redis itself: the authority is checked, the name is not
    context.check_hostname = False
    try:
        with socket.create_connection((address, group["sentinel_port"]), SECONDS) as raw:
            raw.settimeout(SECONDS)
            with context.wrap_socket(raw) as connection:
                connection.sendall(command("AUTH", group["password"]) + command("SENTINEL", "MASTER", group["instance"]))
                words = answers(connection)
    except (OSError, ValueError):
        return None
    return {words[number]: words[number + 1] for number in range(0, len(words), 2)}


def command(*words):
    return f"*{len(words)}\r\n".encode() + b"".join(f"${len(word.encode())}\r\n{word}\r\n".encode() for word in words)


def answers(connection):
    """Return the words of the answer to the second of two commands."""
    with connection.makefile("rb") as lines:
        if not lines.readline().startswith(b"+OK"):
            raise ValueError("not let in")
        first = lines.readline()
        if not first.startswith(b"*"):
            raise ValueError("no such primary")
        words = []
        for _ in range(int(first[1:])):
            size = int(lines.readline()[1:])
            words.append(lines.read(size + 2)[:-2].decode())
        return words


def primary(name, group):
    """Return (address, port, who says so)."""
    with ThreadPoolExecutor(len(group["peers"])) as pool:
        told = [answer for answer in pool.map(lambda address: ask(group, address), group["peers"]) if answer]
    if told:
        latest = max(told, key=lambda answer: int(answer["config-epoch"]))
        return latest["ip"], int(latest["port"]), f"{len(told)} sentinels"
    known = re.search(rf"(?m)^sentinel monitor {re.escape(name)} (\S+) (\d+) ", read(f"{states(name)}/sentinel.conf"))
    if known:
        return known[1], int(known[2]), "the sentinel's own file"
    return group["peers"][0], group["port"], "the declaration"


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def write(path, text, mode=0o640):
    account, members = pwd.getpwnam("redis").pw_uid, grp.getgrnam("redis").gr_gid
    new = f"{path}.new"
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w") as file:
        os.fchown(handle, account, members)
        os.fchmod(handle, mode)
        file.write(text)
        file.flush()
        os.fsync(handle)
    os.replace(new, path)


def role(name, group):
    address, port, why = primary(name, group)
    mine = (address, port) == (group["address"], group["port"])
    log(f"{'this is the primary' if mine else f'the primary is {address} port {port}'}: {why}")
    directory = f"/run/redis-{name}"
    os.makedirs(directory, exist_ok=True)
    write(f"{directory}/role.conf", "" if mine else f"replicaof {address} {port}\n")


def sentinel(name, group):
    """What we declare, and below it what the sentinel has learned, which it alone knows."""
    declared = read(f"/etc/redis/sentinel-{name}.conf")
    learned = read(f"{states(name)}/sentinel.conf")
    address, port, why = primary(name, group)
    log(f"the primary to watch is {address} port {port}: {why}")
    text = re.sub(rf"(?m)^sentinel monitor {re.escape(name)} \S+ \d+ ", f"sentinel monitor {name} {address} {port} ", declared)
    own = rf"sentinel (myid |current-epoch |(config-epoch|leader-epoch) {re.escape(name)} )"
    others = rf"sentinel known-(?:replica|sentinel) {re.escape(name)} (\S+) "
    for line in learned.splitlines():
        other = re.match(others, line)
        # who is no peer any more is forgotten
        if re.match(own, line) or (other and other[1] in group["peers"]):
            text += line + "\n"
    write(f"{states(name)}/sentinel.conf", text, 0o600)


def main(words):
    name = words[1]
    with open(f"/etc/hostwright/redis/{name}.group.json") as file:
        group = json.load(file)
    if words[0] == "primary":
        sys.stdout.write("{} {}\n".format(*primary(name, group)))
    elif words[0] == "look":
        found = ask(group, group["address"])
        if not found:
            sys.exit(f"the sentinel at {group['address']} port {group['sentinel_port']} does not answer, or does not watch {name}")
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        {"role": role, "sentinel": sentinel}[words[0]](name, group)


main(sys.argv[1:])
