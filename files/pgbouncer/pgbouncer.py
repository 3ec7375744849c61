#!/usr/bin/env -S python3 -B
"""What there is to be done about PgBouncer on this host: pgbouncer COMMAND
    check       start one of its own on the configuration, without its ports, and see that it answers and knows its users
    ping        the same of the one that runs, and that it listens where it should
    look JSON   print what it runs on, and with which salt the server keeps the passwords of users
    prove       log in to the server as each of the users that stand, with their passwords, in the JSON on stdin
The console is asked through the socket as the account that PgBouncer runs as, who needs no password there.
"""

import base64
import contextlib
import glob
import hashlib
import hmac
import json
import os
import pwd
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time

CONFIG = "/etc/pgbouncer/pgbouncer.ini"
USERLIST = "/etc/pgbouncer/userlist.txt"
SOCKETS = "/run/pgbouncer"
ACCOUNT = "pgbouncer"


class Refused(Exception):
    """The other side does not want us; the message says why."""


class Session:
    """A connection that speaks PostgreSQL's protocol, version 3."""

    def __init__(self, connection):
        self.connection = connection
        self.waiting = b""

    def send(self, kind, body):
        self.connection.sendall(kind + struct.pack("!i", len(body) + 4) + body)

    def receive(self):
        while True:
            if len(self.waiting) >= 5:
                size = struct.unpack("!i", self.waiting[1:5])[0] + 1
                if len(self.waiting) >= size:
                    kind, body = self.waiting[:1], self.waiting[5:size]
                    self.waiting = self.waiting[size:]
                    if kind == b"E":
                        fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
                        raise Refused(fields.get(b"M", "refused without a word"))
                    return kind, body
            more = self.connection.recv(65536)
            if not more:
                raise Refused("it hung up")
            self.waiting += more

    def start(self, user, database):
        """Begin a session; return the SASL mechanisms that a password is asked for with, or None when we are in."""
        words = b"".join(word.encode() + b"\0" for word in ("user", user, "database", database))
        self.send(b"", struct.pack("!i", 196608) + words + b"\0")
        while True:
            kind, body = self.receive()
            if kind == b"Z":
                return None
            if kind == b"R":
                method = struct.unpack("!i", body[:4])[0]
                if method == 10:
                    return body[4:].decode().split("\0")
                if method != 0:
                    raise Refused(f"it asks for the password in a way that is not SCRAM ({method})")

    def query(self, text):
        """Return the rows as dictionaries."""
        self.send(b"Q", text.encode() + b"\0")
        names, rows = [], []
        while True:
            kind, body = self.receive()
            if kind == b"Z":
                return rows
            if kind == b"T":
                names, at = [], 2
                while at < len(body):
                    end = body.index(b"\0", at)
                    names.append(body[at:end].decode())
                    at = end + 19
            elif kind == b"D":
                values, at = [], 2
                while at < len(body):
                    size = struct.unpack("!i", body[at : at + 4])[0]
                    at += 4
                    values.append(body[at : at + size].decode() if size >= 0 else None)
                    at += max(size, 0)
                rows.append({name: values[number] for number, name in enumerate(names)})


# --- the console ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def console(path):
    """Ask as PgBouncer's own account: the kernel tells it who is at the other end of a socket."""
    account = pwd.getpwnam(ACCOUNT)
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(path)
            session = Session(connection)
            session.start("pgbouncer", "pgbouncer")
            yield session
    finally:
        os.seteuid(0)
        os.setegid(0)


def settings_in(path):
    """Return the settings of a configuration file; those of databases are no settings."""
    found, section = {}, ""
    with open(path) as file:
        for line in file:
            line = line.strip()
            if line.startswith("["):
                section = line
            elif section == "[pgbouncer]" and "=" in line and not line.startswith((";", "#")):
                key, _, value = line.partition("=")
                found[key.strip()] = value.strip()
    return found


def userlist():
    """Return what is kept of each user's password."""
    try:
        with open(USERLIST) as file:
            lines = file.read().splitlines()
    except OSError:
        return {}
    pairs = (re.fullmatch(r'"((?:[^"]|"")*)" "((?:[^"]|"")*)"', line) for line in lines)
    return {pair[1].replace('""', '"'): pair[2].replace('""', '"') for pair in pairs if pair}


def well(path):
    """Raise when what answers at a socket does not know all users of the list."""
    with console(path) as session:
        known = {row["name"] for row in session.query("SHOW USERS")}
    missing = sorted(set(userlist()) - known)
    if missing:
        raise Refused(f"it does not know {', '.join(missing)}")


# --- commands -------------------------------------------------------------------------------------------------------


def check():
    account = pwd.getpwnam(ACCOUNT)
    place = tempfile.mkdtemp(prefix="pgbouncer-check.")
    try:
        os.chown(place, account.pw_uid, account.pw_gid)
        config, said = os.path.join(place, "pgbouncer.ini"), os.path.join(place, "said")
        with open(CONFIG) as file:
            text = file.read()
        text = re.sub(r"(?m)^listen_addr *=.*$", "", text)
        text = re.sub(r"(?m)^unix_socket_dir *=.*$", "unix_socket_dir = " + place, text)
        with open(config, "w") as file:
            file.write(text)
        os.chown(config, account.pw_uid, account.pw_gid)
        port = settings_in(config).get("listen_port", "6432")
        with open(said, "wb") as log:
            # extra_groups: what its unit gives it
            process = subprocess.Popen(
                ["/usr/sbin/pgbouncer", config], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/",
                user=account.pw_uid, group=account.pw_gid, extra_groups=[], env={"PATH": os.environ.get("PATH", "")},
            )  # fmt: skip
        try:
            fault = wait_for(lambda: well(f"{place}/.s.PGSQL.{port}"), 10, process)
        finally:
            process.kill()
            process.wait()
        with open(said, errors="replace") as log:
            wrong = [line.rstrip() for line in log if re.search(r" (ERROR|FATAL) ", line)]
        if wrong or fault:
            sys.exit("\n".join(wrong) or f"PgBouncer on these files: {fault}")
    finally:
        shutil.rmtree(place)


def wait_for(ready, seconds, process=None):
    """Return the last fault when ``ready`` still raises after so long, or None."""
    until = time.monotonic() + seconds
    while True:
        try:
            return ready()
        except (Refused, OSError) as error:
            fault = error
        if time.monotonic() > until or (process and process.poll() is not None):
            return fault
        time.sleep(0.05)


def ping():
    wanted = settings_in(CONFIG)
    port = wanted.get("listen_port", "6432")

    def answers():
        well(f"{SOCKETS}/.s.PGSQL.{port}")
        for address in wanted.get("listen_addr", "").split(","):
            if address.strip():
                try:
                    socket.create_connection((address.strip(), int(port)), 5).close()
                except OSError as error:
                    raise Refused(f"nobody listens at {address.strip()} port {port}: {error}") from None

    fault = wait_for(answers, 3)
    if fault:
        sys.exit(f"pgbouncer.service does not answer as it should: {fault}")


def look(wanted):
    found = {"installed": {}, "candidates": {}, "account": False, "running": {}, "userlist": userlist(), "salts": {}, "faults": {}}
    for package in ("pgbouncer", "prometheus-pgbouncer-exporter"):
        said = output("dpkg-query", "-W", "-f", "${Status}\t${Version}", package)
        if said.startswith("install ok installed\t"):
            found["installed"][package] = said.split("\t")[1]
        candidate = re.search(r"(?m)^  Candidate: ([0-9].*)$", output("apt-cache", "policy", package))
        if candidate:
            found["candidates"][package] = candidate[1]
    with contextlib.suppress(KeyError):
        found["account"] = bool(pwd.getpwnam(ACCOUNT))
    for path in glob.glob(SOCKETS + "/.s.PGSQL.*"):
        if not path.endswith(".lock"):
            with contextlib.suppress(OSError, Refused, KeyError), console(path) as session:
                found["running"] = {row["key"]: [row["value"] or "", row["changeable"]] for row in session.query("SHOW CONFIG")}
    for user in wanted["users"]:
        try:
            found["salts"][user] = salt_of(user, wanted)
        except (Refused, OSError, ValueError) as error:
            found["faults"][user] = str(error)
    sys.stdout.write(json.dumps(found) + "\n")


@contextlib.contextmanager
def begun(user, wanted):
    """Begin to log in to the server; give the session, our first words, and the server's, which tell salt and rounds."""
    with contextlib.ExitStack() as stack:
        if wanted["host"].startswith("/"):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(10)
            connection.connect("{host}/.s.PGSQL.{port}".format(**wanted))
        else:
            connection = stack.enter_context(socket.create_connection((wanted["host"], wanted["port"]), 10))
        if wanted["ca"]:
            connection.sendall(struct.pack("!ii", 8, 80877103))
            if connection.recv(1) != b"S":
                raise Refused("it speaks no TLS")
            context = ssl.create_default_context(cadata=wanted["ca"])
            connection = stack.enter_context(context.wrap_socket(connection, server_hostname=wanted["host"]))
        session = Session(connection)
        mechanisms = session.start(user, wanted["database"])
        if mechanisms is None:
            raise Refused("it lets anybody in without a password")
        bare = "n=,r=" + base64.b64encode(os.urandom(18)).decode()
        session.send(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(bare) + 3) + b"n,," + bare.encode())
        _, body = session.receive()
        yield session, bare, body[4:].decode()


def told(words):
    return dict(part.split("=", 1) for part in words.split(","))


def salt_of(user, wanted):
    """Return the salt and the rounds that the server keeps a password with: it says them to whoever wants to log in."""
    with begun(user, wanted) as (_, _, theirs):
        return [told(theirs)["s"], int(told(theirs)["i"])]


def prove():
    """See that the server takes the passwords: with a wrong one PgBouncer would let in who knows it, and get nowhere."""
    wanted = json.load(sys.stdin)
    faults = []
    for user, password in wanted["users"].items():
        try:
            with begun(user, wanted) as (session, bare, theirs):
                said = told(theirs)
                salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(said["s"]), int(said["i"]))
                key = hmac.new(salted, b"Client Key", hashlib.sha256).digest()
                ours = "c=biws,r=" + said["r"]
                signature = hmac.new(hashlib.sha256(key).digest(), f"{bare},{theirs},{ours}".encode(), hashlib.sha256).digest()
                proof = base64.b64encode(bytes(one ^ other for one, other in zip(key, signature))).decode()  # noqa: B905 - Python 3.9
                session.send(b"p", f"{ours},p={proof}".encode())
                while session.receive()[0] != b"Z":
                    pass
        except (Refused, OSError, ValueError, KeyError) as error:
            faults.append(f"{user}: {error}")
    if faults:
        sys.exit("the server does not let in " + "; ".join(faults))


def output(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"})
    return done.stdout.decode(errors="replace")


def main(words):
    if words[0] == "look":
        look(json.loads(words[1]))
    else:
        {"check": check, "ping": ping, "prove": prove}[words[0]]()


if __name__ == "__main__":
    main(sys.argv[1:])
