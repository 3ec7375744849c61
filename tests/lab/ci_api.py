"""A stand-in for GitHub: the few calls that register runners, their archive, and jobs. No more is like the real one.

``python -m tests.lab.ci_api DIRECTORY ADDRESS PORT``: DIRECTORY has ``archive.tar.gz``, ``token``; what happened is in ``log.jsonl``,
waiting jobs are files ``job-*``.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import sys
import tarfile
import threading
from pathlib import Path

# What the real config.sh and run.sh do as far as a host sees it: the token comes in the environment, the files .runner and
# .credentials stand beside the program, a job runs as a child called Runner.Worker, an ephemeral runner ends after one.
CONFIG = """#!/bin/bash
set -e
cd "$(dirname "$0")"
[ -n "$ACTIONS_RUNNER_INPUT_TOKEN" ] || { echo "no token" >&2; exit 2; }
ephemeral=false; labels=
while [ $# -gt 0 ]; do case $1 in
    --url) url=$2; shift ;; --name) name=$2; shift ;; --labels) labels=$2; shift ;; --ephemeral) ephemeral=true ;; --token) echo "token in argv" >&2; exit 3 ;;
esac; shift; done
api=$(cat /etc/lab-ci-api)
curl -fsS -X POST -H "X-Registration: $ACTIONS_RUNNER_INPUT_TOKEN" --data "{\\"name\\": \\"$name\\", \\"labels\\": \\"$labels\\", \\"ephemeral\\": $ephemeral}" "$api/register"
echo "{\\"agentName\\": \\"$name\\", \\"ephemeral\\": $ephemeral}" > .runner
echo secret > .credentials
"""
RUN = """#!/bin/bash
cd "$(dirname "$0")"
trap 'exit 0' TERM INT
api=$(cat /etc/lab-ci-api)
name=$(sed 's/.*agentName": "\\([^"]*\\)".*/\\1/' .runner)
echo "Listening for Jobs"
while :; do
    if job=$(curl -fsS -m 40 "$api/job?runner=$name") && [ -n "$job" ]; then
        printf '%s' "$job" > _work/job.sh
        (exec -a Runner.Worker bash _work/job.sh) > _work/out 2>&1
        curl -fsS -X POST --data-binary @_work/out "$api/done?runner=$name"
        if grep -q 'ephemeral": true' .runner; then exit 0; fi
    fi
    sleep 1 & wait $!
done
"""


def archive(more: str = "") -> bytes:
    """Return the stand-in's archive; ``more`` makes it another release."""
    buffer = io.BytesIO()
    # the same bytes each time: no time in its head
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as file:
        for name, text in (("config.sh", CONFIG), ("run.sh", RUN), ("bin/release", more + "\n")):
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mode = len(text.encode()), 0o755
            file.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    """Return the sum that an operator pins."""
    return hashlib.sha256(content).hexdigest()


class Api(http.server.BaseHTTPRequestHandler):
    """``/repos/…/actions/runners`` as documented, and what the stand-in of the runner asks."""

    directory: Path
    runners: dict[str, int] = {}  # noqa: RUF012 - of the one server of a process
    tokens: set[str] = set()  # noqa: RUF012
    ephemeral: set[str] = set()  # noqa: RUF012
    number = 0
    lock = threading.Lock()

    def log_message(self, *words: object) -> None:
        return

    def note(self, **what: object) -> None:
        with (self.directory / "log.jsonl").open("a") as file:
            file.write(json.dumps(what) + "\n")

    def answer(self, code: int, value: object = None, content: bytes = b"") -> None:
        body = content or (b"" if value is None else json.dumps(value).encode())
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> str:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")

    def is_operator(self) -> bool:
        is_right = self.headers.get("Authorization") == f"Bearer {(self.directory / 'token').read_text().strip()}"
        if not is_right:
            self.answer(401, {"message": "Bad credentials"})
        return is_right

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        text = self.body()
        with self.lock:
            if path.endswith("/actions/runners/registration-token"):
                if self.is_operator():
                    type(self).number += 1
                    token = f"REGISTRATION-{self.number}-0123456789"
                    self.tokens.add(token)
                    self.answer(201, {"token": token, "expires_at": "2099-01-01T00:00:00Z"})
            elif path == "/register":
                if self.headers.get("X-Registration") not in self.tokens:
                    self.answer(401)
                    return
                about = json.loads(text)
                type(self).number += 1
                self.runners[about["name"]] = self.number
                (self.ephemeral.add if about["ephemeral"] else self.ephemeral.discard)(about["name"])
                self.note(what="registered", **about)
                self.answer(200, {})
            elif path == "/done":
                name = query.partition("=")[2]
                self.note(what="done", runner=name, output=text)
                self.answer(200, {})
            else:
                self.answer(404)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        with self.lock:
            if path.endswith("/actions/runners"):
                if self.is_operator():
                    self.answer(200, {"total_count": len(self.runners), "runners": [{"id": i, "name": name} for name, i in self.runners.items()]})
            elif path == "/job":
                waiting = sorted(self.directory.glob("job-*"))
                if not waiting:
                    self.answer(200)
                    return
                name = query.partition("=")[2]
                text = waiting[0].read_bytes()
                waiting[0].unlink()
                if name in self.ephemeral:
                    self.runners.pop(name, None)  # an ephemeral runner leaves the list with its job
                self.note(what="started", runner=name)
                self.answer(200, content=text)
            elif path.endswith(".tar.gz"):
                self.answer(200, content=(self.directory / Path(path).name).read_bytes())
            else:
                self.answer(404)

    def do_DELETE(self) -> None:
        with self.lock:
            if self.is_operator():
                number = int(self.path.rpartition("/")[2])
                gone = [name for name, one in self.runners.items() if one == number]
                for name in gone:
                    del self.runners[name]
                    self.note(what="removed", runner=name)
                self.answer(204 if gone else 404)


def serve(directory: str, address: str, port: str) -> None:
    """Serve until the end."""
    Api.directory = Path(directory)
    http.server.ThreadingHTTPServer((address, int(port)), Api).serve_forever()


if __name__ == "__main__":
    serve(*sys.argv[1:])
