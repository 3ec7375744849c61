#!/usr/bin/env -S python3 -B
# ruff: noqa: F821 - operations.archive puts psql.py into it, whose names it uses
"""What goes from an archive when its time is over: archive purge NAME, archive look NAME (removes nothing).

Nothing goes that a verified copy of the archive's backup does not hold, whatever its age.
"""

import base64
import contextlib
import fcntl
import hashlib
import hmac
import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.parse
import xml.etree.ElementTree
from datetime import datetime, timedelta, timezone

CONFIG = "/etc/hostwright/archive"
STATE = "/var/lib/hostwright/archive"
BACKUP = "/usr/local/lib/hostwright/backup"
# A copy is stored at most four hours after what it holds was read: its backup is stopped then.
COPYING = timedelta(hours=5)
NEVER = datetime.fromtimestamp(0, timezone.utc)
BATCH = 500

# <<< psql >>>


def now():
    return datetime.now(timezone.utc)


def said(moment):
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def moment(text):
    return datetime.strptime(text.replace("Z", "+0000"), "%Y-%m-%dT%H:%M:%S%z")


# --- what is backed up ----------------------------------------------------------------------------------------------


class Unverified(Failure):
    """No copy has been restored and checked so far: as on a new host, until its first drill."""


def covered_until(config):
    """
    Return the time before which all that was archived is in a verified copy, in every repository.

    The repositories are asked themselves, and not what this host remembers of them: a copy that is gone covers nothing.
    """
    source = config["backup"]
    done = subprocess.run([BACKUP, "list", source, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"nothing is removed: the copies of {source} cannot be listed: {done.stderr.strip()}")
    with open(f"/etc/hostwright/backup/{source}.json") as file:
        newest = dict.fromkeys(json.load(file)["repositories"])
    for row in json.loads(done.stdout):
        if row["last_verified"]:
            newest[row["repository"]] = max(moment(row["time"]), newest.get(row["repository"]) or moment(row["time"]))
    missing = sorted(label for label, time in newest.items() if time is None)
    if missing or not newest:
        raise Unverified(
            "nothing is removed: no copy of {} is verified in {}: drill it (deploys.backup.drill source={})".format(
                source, ", ".join(missing) or "any repository", source
            )
        )
    oldest = min(newest.values())
    if now() - oldest > timedelta(days=config["fresh_days"]):
        raise Failure(
            "nothing is removed: the newest verified copy of {} is of {}, older than {} days: see to its backup "
            "(journalctl -u hostwright-backup-{})".format(source, said(oldest), config["fresh_days"], source)
        )
    return oldest - COPYING


# --- backends -------------------------------------------------------------------------------------------------------
# Each returns (how many went, how many past the limit stay because no copy holds them, how many are kept).


def purge_postgresql(config, limit, covered, remove):
    server = config["server"]
    times = {"limit": limit.isoformat(), "covered": covered.isoformat(), "batch": BATCH}
    # An event that came later than its game is as good as the game: both go, or none.
    due = """g.completed_at < '{limit}' AND coalesce(g.archived_at, 'infinity') < '{covered}' AND NOT EXISTS (
        SELECT FROM archive.game_events e WHERE e.game_id = g.game_id AND coalesce(e.archived_at, 'infinity') >= '{covered}')""".format(**times)
    gone = 0
    while remove:
        rows = psql(server, """SET lock_timeout = '30s';
            WITH due AS (SELECT game_id FROM archive.completed_games g WHERE {due} ORDER BY completed_at LIMIT {batch} FOR UPDATE SKIP LOCKED),
            gone AS (DELETE FROM archive.completed_games WHERE game_id IN (SELECT game_id FROM due) RETURNING 1)
            SELECT count(*) FROM gone""".format(due=due, **times))  # fmt: skip
        gone += int(rows[0][0])
        if int(rows[0][0]) == 0:
            break
    if remove:
        psql(server, """DELETE FROM archive.game_events WHERE game_id IS NULL AND event_timestamp < '{limit}'
            AND coalesce(archived_at, 'infinity') < '{covered}'""".format(**times))  # fmt: skip
    counted = """SELECT count(*) FILTER (WHERE completed_at < '{limit}' AND NOT ({due})), count(*) FILTER (WHERE {due}), count(*)
        FROM archive.completed_games g""".format(due=due, **times)
    uncovered, left, kept = map(int, psql(server, counted)[0])
    return (gone if remove else left), uncovered, kept


def purge_filesystem(config, limit, covered, remove):
    root = config["path"]
    gone = uncovered = kept = 0
    if not os.path.isdir(root) or os.path.islink(root):
        raise Failure(f"{root}: is no directory")
    device = os.lstat(root).st_dev

    def fail(error):
        raise Failure(f"{error.filename}: {error.strerror}")

    for directory, below, names in os.walk(root, onerror=fail):
        # what is mounted below is not the archive's
        below[:] = [name for name in below if os.lstat(os.path.join(directory, name)).st_dev == device]
        for name in names:
            path = os.path.join(directory, name)
            try:
                state = os.lstat(path)
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(state.st_mode):
                continue
            kept += 1
            if state.st_mtime >= limit.timestamp():
                continue
            # the later of both: a file that was moved here, or given an older date, came when it came
            if max(state.st_mtime, state.st_ctime) >= covered.timestamp():
                uncovered += 1
                continue
            gone += 1
            if remove:
                kept -= 1
                os.unlink(path)
    return gone, uncovered, kept


def purge_s3(config, limit, covered, remove):
    """Tag what a verified copy holds: the bucket's rule removes what is tagged and past the limit."""
    bucket = Bucket(config)
    gone = uncovered = kept = 0
    key, _, value = config["tag"].partition("=")
    for name, written in bucket.objects():
        kept += 1
        # those of the next two days as well: the rule works by the server's day, and this job may miss one
        if written >= limit + timedelta(days=2):
            continue
        if written >= covered:
            uncovered += written < limit
            continue
        gone += written < limit
        if remove:
            bucket.tag(name, key, value)
    return gone, uncovered, kept


class Bucket:
    """What is needed of S3, and no more."""

    def __init__(self, config):
        self.config = config
        self.url = urllib.parse.urlsplit(config["url"])
        with open("{}/{}.env".format(CONFIG, config["name"])) as file:
            secrets = dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)
        self.access, self.secret = secrets["ACCESS_KEY"], secrets["SECRET_KEY"]

    def objects(self):
        token = ""
        while True:
            query = {"list-type": "2", "prefix": self.config["prefix"]}
            if token:
                query["continuation-token"] = token
            page = xml.etree.ElementTree.fromstring(self.ask("GET", "", query))
            space = page.tag.partition("}")[0] + "}" if page.tag.startswith("{") else ""
            for entry in page.iter(space + "Contents"):
                written = entry.findtext(space + "LastModified").partition(".")[0].rstrip("Z")
                yield entry.findtext(space + "Key"), moment(written + "Z")
            token = page.findtext(space + "NextContinuationToken") or ""
            if not token:
                return

    def tag(self, name, key, value):
        body = f"<Tagging><TagSet><Tag><Key>{key}</Key><Value>{value}</Value></Tag></TagSet></Tagging>".encode()
        self.ask("PUT", name, {"tagging": ""}, body)

    def ask(self, method, key, query, body=b""):
        path = urllib.parse.quote("/{}/{}".format(self.config["bucket"], key) if key else "/" + self.config["bucket"], safe="/~-._")
        text = "&".join("{}={}".format(*(urllib.parse.quote(part, safe="~-._") for part in pair)) for pair in sorted(query.items()))
        stamp = now().strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": self.url.netloc, "x-amz-content-sha256": digest, "x-amz-date": stamp}
        if body:
            headers["content-md5"] = base64.b64encode(hashlib.md5(body).digest()).decode()
        names = ";".join(sorted(headers))
        lines = [f"{name}:{headers[name]}" for name in sorted(headers)]
        canonical = "\n".join([method, path, text, *lines, "", names, digest])
        scope = "{}/{}/s3/aws4_request".format(stamp[:8], self.config["region"])
        signed = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        secret = ("AWS4" + self.secret).encode()
        for part in scope.split("/"):
            secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={self.access}/{scope}, SignedHeaders={names}, Signature={hmac.new(secret, signed.encode(), hashlib.sha256).hexdigest()}"
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.url.netloc, timeout=60)
        try:
            connection.request(method, path + "?" + text, body=body or None, headers=headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status >= 300:
            code = answer.partition(b"<Code>")[2].partition(b"</Code>")[0].decode(errors="replace") or response.reason
            raise Failure("{} {}: the server says {} ({})".format(method, self.config["bucket"], code, response.status))
        return answer


# --- the job --------------------------------------------------------------------------------------------------------


def write(path, text, mode):
    new = os.path.join(os.path.dirname(path), "." + os.path.basename(path) + ".new")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w") as file:
        os.fchmod(handle, mode)
        file.write(text)
        file.flush()
        os.fsync(handle)
    os.replace(new, path)


def record(config, values):
    """Write what is known, for people and for Prometheus."""
    path = "{}/{}.json".format(STATE, config["name"])
    try:
        with open(path) as file:
            known = json.load(file)
    except (OSError, ValueError):
        known = {}
    known.update(values)
    write(path, json.dumps(known, indent=1, sort_keys=True) + "\n", 0o600)
    if os.path.isdir(config["textfiles"]):
        label = '{{archive="{}",backend="{}"}}'.format(config["name"], config["kind"])
        lines = []
        for key in ("last_run", "last_success", "failed", "removed", "uncovered", "kept"):
            if key in known:
                metric = "hostwright_archive_" + key + ("_timestamp_seconds" if key.startswith("last_") else "")
                lines += [f"# TYPE {metric} gauge", f"{metric}{label} {known[key]}"]
        write("{}/hostwright_archive_{}.prom".format(config["textfiles"], config["name"]), "\n".join(lines) + "\n", 0o644)


def purge(config, remove):
    limit = now() - timedelta(days=config["days"])
    backend = {"postgresql": purge_postgresql, "filesystem": purge_filesystem, "s3": purge_s3}[config["kind"]]
    try:
        covered = covered_until(config)
    except Unverified:
        _, uncovered, kept = backend(config, limit, NEVER, False)
        if uncovered:
            raise
        tell(f"nothing is older than {said(limit)}; {kept} are kept")
        return {"removed": 0, "uncovered": 0, "kept": kept}
    gone, uncovered, kept = backend(config, limit, covered, remove)
    verb = "tagged, to be removed by the bucket's rule" if config["kind"] == "s3" else "removed"
    tell(
        "{} {}{} (older than {}, in a verified copy); {} of that age stay: in no verified copy (archived since {}); {} are kept".format(
            gone, "" if remove else "would be ", verb, said(limit), uncovered, said(covered), kept
        )
    )
    return {"removed": gone, "uncovered": uncovered, "kept": kept}


def tell(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def stop(number, frame):
    raise Failure("stopped by " + signal.Signals(number).name)


def main(words):
    if len(words) != 2 or words[0] not in ("purge", "look"):
        sys.exit(__doc__)
    command, name = words
    signal.signal(signal.SIGTERM, stop)
    with open(f"{CONFIG}/{name}.json") as file:
        config = json.load(file)
    if command == "look":
        purge(config, False)
        return
    with open(f"{STATE}/{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record(config, {"last_run": int(time.time()), "failed": 1})
        values = purge(config, True)
        record(config, {**values, "last_success": int(time.time()), "failed": 0})


if __name__ == "__main__":
    try:
        with contextlib.suppress(BrokenPipeError):
            main(sys.argv[1:])
    except Failure as failure:
        sys.exit(f"archive: {failure}")
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"archive: {error}")
