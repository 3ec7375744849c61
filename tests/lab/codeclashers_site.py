"""codeclashers on clusters of the lab: stand-ins of our own for MongoDB, Judge0, Colyseus and the bots; Redis and PostgreSQL are real."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.lab import images
from tests.lab.codeclashers_load import Players
from tests.lab.hosts import LabHost
from tests.lab.k3s import Cluster
from tests.lab.kill import kill_both_ends
from tests.lab.provision import Run, command_line
from tests.lab.registry import Registry
from tests.lab.state import wait_for

SECRETS = {
    name: f"canary-{name.lower()}-0123456789"
    for name in (
        "REDIS_PASSWORD", "JUDGE0_POSTGRES_PASSWORD", "MONGODB_PASSWORD", "OPENAI_API_KEY", "INTERNAL_SERVICE_SECRET",
        "BOT_SERVICE_SECRET", "COLYSEUS_RESERVATION_SECRET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    )
}  # fmt: skip
COMPONENTS = ("mongodb", "redis", "postgres", "colyseus", "bots", "judge0_server", "judge0_worker")
BACKUP = "canary-backup-0123456789"
PROGRAM = "/usr/local/lib/hostwright/backup"
DEPLOY = "from deploys.codeclashers import codeclashers\ncodeclashers()\n"

WAIT = "trap 'exit 0' TERM INT\nwhile :; do sleep 1 & wait $!; done\n"
# Documents are lines of /data/db/COLLECTION.json; an archive is a tar of them.
MONGODB = {
    "/docker-entrypoint.sh": '#!/bin/sh\nset -e\n[ -z "$MONGO_INITDB_ROOT_PASSWORD_FILE" ] || [ -r "$MONGO_INITDB_ROOT_PASSWORD_FILE" ]\nexec "$@"\n',
    "/bin/mongod": f"#!/bin/sh\necho mongod \"$@\"\ntouch /data/db/up\n{WAIT}",
    "/bin/mongosh": """#!/bin/sh
case "$*" in *getCollectionNames*) ;; *) test -e /data/db/up; exit ;; esac
cd /data/db
printf '{"size": 1000, "counts": {'
first=
for file in *.json; do
    [ -e "$file" ] || continue
    printf '%s"%s": %s' "$first" "${file%.json}" "$(wc -l < "$file")"
    first=', '
done
echo '}}'
""",
    "/bin/mongodump": """#!/bin/sh
for word in "$@"; do case $word in --config=*) grep -q "password: .canary-mongodb" "${word#*=}" || exit 9 ;; esac; done
cd /data/db
for file in *.json; do echo "2026-01-01T00:00:00.000+0000	done dumping codeclashers.${file%.json} ($(wc -l < "$file") documents)" >&2; done
tar -c *.json | gzip
""",
    "/bin/mongorestore": "#!/bin/sh\ncd /data/db\ngzip -d | tar -x\n",
}
# A submission is a line in Redis' list; the worker runs it. nc speaks the protocol.
JUDGE0 = {
    "/scripts/server": "#!/bin/sh\nmkdir -p /tmp/www; echo about > /tmp/www/about; echo \"$POSTGRES_HOST $REDIS_HOST\"; httpd -p 2358 -h /tmp/www\n" + WAIT,
    "/scripts/workers": """#!/bin/sh
trap 'exit 0' TERM INT
mkdir -p /tmp/m; mount -t tmpfs none /tmp/m || { echo "not privileged" >&2; exit 5; }
touch /tmp/well
while :; do
    job=$(printf 'AUTH %s\\r\\nLPOP submissions\\r\\nQUIT\\r\\n' "$REDIS_PASSWORD" | nc -w 2 redis 6379 | tr -d '\\r' | sed -n 's/^job //p')
    if [ -n "$job" ]; then
        result=$(sh -c "$job")
        printf 'AUTH %s\\r\\nRPUSH results "%s"\\r\\nQUIT\\r\\n' "$REDIS_PASSWORD" "$result" | nc -w 2 redis 6379 > /dev/null
    fi
    sleep 1 & wait $!
done
""",
}
BARE_ANSWER = """import http.server

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"bare")

    def log_message(self, *words):
        pass

http.server.ThreadingHTTPServer.request_queue_size = 511  # as the application's: all askers begin at once
http.server.ThreadingHTTPServer(("0.0.0.0", 8088), Answer).serve_forever()
"""


class Site:
    """A cluster with codeclashers on it."""

    def __init__(self, cluster: Cluster, registry: Registry, provision: Callable[..., Run]) -> None:
        self.cluster, self.registry, self._provision = cluster, registry, provision
        self.host = cluster.host
        box = images.get("busybox")
        server = {"/server.js": (Path(__file__).parent / "apps/codeclashers/colyseus.js").read_text()}
        for tag, variables in {"v1": {}, "v2": {}, "v3": {}, "bad-starts": {"FAULT": "starts"}, "bad-health": {"FAULT": "health"}}.items():
            made = images.make(images.get("s3"), files=server, entrypoint=["node", "/server.js"], command=[], environment={"RELEASE": tag, **variables})
            registry.push("team/codeclashers-colyseus", tag, made)
            registry.push("team/codeclashers-bots", tag, images.make(box, files={"/bin/bots": f"#!/bin/sh\n{WAIT}"}, command=["/bin/bots"]))
        registry.push("team/mongo", "7.0.0", images.make(box, files=MONGODB, entrypoint=["/docker-entrypoint.sh"], command=["mongod"]))
        registry.push("team/judge0", "1.13.1", images.make(box, files=JUDGE0, command=["/scripts/server"]))

    def data(self, **differs: Any) -> dict[str, Any]:
        small: dict[str, Any] = {}
        for component in COMPONENTS:
            small |= {f"{component}_cpu_request": "10m", f"{component}_memory_request": "24Mi", f"{component}_memory_limit": "300Mi"}
        name = self.registry.name
        values = {
            "registry": f"{name}/team", "version": "v1",
            "mongodb_image": f"{name}/team/mongo:7.0.0", "judge0_image": f"{name}/team/judge0:1.13.1",
            "redis_image": self.registry.image("redis", "8"), "postgres_image": self.registry.image("postgres", "17"),
            "backup_password": "env:BACKUP",
            "registry_username": self.registry.username, "registry_password": "env:PULL",
            "s3_bucket_name": "bucket", "judge0_shares_nodes": True, "judge0_worker_health_command": ["test", "-e", "/tmp/well"],
            "colyseus_grace_seconds": 90, "grace_seconds": 15, "prestop_seconds": 3, "min_ready_seconds": 1, "rollout_seconds": 240,
            "colyseus_sticky": False, "image_check": False, "mongodb_storage": "1Gi",
            "judge0_health_command": ["wget", "-qO-", "http://127.0.0.1:2358/about"],
            "colyseus_health_command": ["node", "-e", "fetch('http://127.0.0.1:2567/health').then((r) => process.exit(r.ok ? 0 : 1))"],
            **{key.lower(): f"env:{key}" for key in SECRETS}, **small, **differs,
        }  # fmt: skip
        return {key if key.startswith("backup_p") else f"codeclashers_{key}": value for key, value in values.items()}

    @property
    def environment(self) -> dict[str, str]:
        return {**SECRETS, "PULL": self.registry.password, "BACKUP": BACKUP}

    @property
    def groups(self) -> dict[str, list[LabHost]]:
        return {"codeclashers": [self.host], "lab": [self.host]}

    def run(self, deploy: str = DEPLOY, dry: bool = False, env: dict[str, str] | None = None, extra: tuple[str, ...] = (), **differs: Any) -> Run:
        return self._provision(
            self.host, deploy, data=self.data(**differs), groups=self.groups, dry=dry, env={**self.environment, **(env or {})}, extra=extra
        )

    def run_killed(self, scratch: Path, seconds: float, env: dict[str, str] | None = None, **differs: Any) -> None:
        """Start a converge, and kill it and its program on the host so long after that has begun to change something."""
        command = command_line(scratch, self.host, DEPLOY, data=self.data(**differs), groups=self.groups)
        kill_both_ends(command, {**self.environment, **(env or {})}, self.host, "/run/hostwright/manifests-codeclashers.lock", seconds)

    def act(self, call: str) -> Run:
        name = call.partition("(")[0]
        return self.run(f"from deploys.codeclashers import {name}\n{call}\n")

    def pods(self, component: str = "") -> dict[str, str]:
        words = ["-l", f"app.kubernetes.io/name={component}"] if component else []
        found = self.cluster.get("pods", "-n", "codeclashers", *words)["items"]
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found if "deletionTimestamp" not in pod["metadata"]}

    def images(self, component: str) -> set[str]:
        """Return the tags that the pods of a component run."""
        found = self.cluster.get("pods", "-n", "codeclashers", "-l", f"app.kubernetes.io/name={component}")["items"]
        return {pod["spec"]["containers"][0]["image"].rpartition(":")[2] for pod in found if "deletionTimestamp" not in pod["metadata"]}

    def names(self, kinds: str) -> list[str]:
        """Return kind and name of what there is of some kinds, without revisions and what the cluster makes by itself."""
        found = self.cluster.get(kinds, "-n", "codeclashers", "-l", "hostwright.io/application,!hostwright.io/revision")["items"]
        return sorted(f"{one['kind']}/{one['metadata']['name']}" for one in found)

    def redis(self, *words: str) -> str:
        script = f"REDISCLI_AUTH=$(cat /etc/redis/password) redis-cli {' '.join(words)}"
        return self.cluster.kubectl("exec", "-n", "codeclashers", "redis-0", "--", "sh", "-c", script).strip()

    def players(self, port: int = 2567, **differs: Any) -> Players:
        return Players(self.host.address, port, **differs)

    @contextlib.contextmanager
    def bare_answer(self) -> Iterator[int]:
        """Give a port of the node where a program of a few lines answers at once: what can be had from the machine as it is."""
        self.host.write("/root/bare_answer.py", BARE_ANSWER)
        self.host.run("systemd-run --quiet --collect --unit=bare-answer python3 /root/bare_answer.py")
        try:
            wait_for("the bare answer", lambda: not self.host.run("curl -fs -m 5 -o /dev/null http://127.0.0.1:8088/", check=False).returncode, 60)
            yield 8088
        finally:
            self.host.run("systemctl stop bare-answer")
