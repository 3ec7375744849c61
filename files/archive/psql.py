# How the server of an archive is asked: on the host as its administrator, who is trusted at the socket, or in its container.
import os
import pwd
import subprocess


class Failure(Exception):
    """Something that the operator has to know; the message says what to do."""


def psql(server, sql, database=None, one_transaction=False):
    """Run statements; return the rows of all answers. Raise Failure with what the server said."""
    words = ["psql", "-XAtqw", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-h", server["host"], "-p", str(server["port"])]
    words += ["-U", server["admin"], "-d", database or server["database"]]
    if one_transaction:
        words.append("-1")
    account = {}
    if server["container"]:
        # the directory of the socket is the server's own there
        words = ["docker", "exec", "-i", server["container"], *[word for word in words if word not in ("-h", server["host"])]]
    else:
        entry = pwd.getpwnam(server["admin"])
        account = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    done = subprocess.run(
        words, input=sql, capture_output=True, text=True, cwd="/", timeout=3600,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}, **account,
    )  # fmt: skip
    if done.returncode != 0:
        raise Failure("the server says: " + (done.stderr.strip() or f"nothing (exit status {done.returncode})"))
    return [line.split("\t") for line in done.stdout.splitlines()]
