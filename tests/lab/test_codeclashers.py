"""codeclashers on a cluster of one node, with stand-ins of our own for MongoDB, Judge0, Colyseus and the bots; read back with kubectl."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import images, k3s
from tests.lab.codeclashers_load import Players
from tests.lab.k3s import Cluster
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.registry import Registry
from tests.lab.state import wait_for

pytestmark = pytest.mark.soak

SECRETS = {
    name: f"canary-{name.lower()}-0123456789"
    for name in (
        "REDIS_PASSWORD", "JUDGE0_POSTGRES_PASSWORD", "MONGODB_PASSWORD", "OPENAI_API_KEY", "INTERNAL_SERVICE_SECRET",
        "BOT_SERVICE_SECRET", "COLYSEUS_RESERVATION_SECRET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    )
}  # fmt: skip
COMPONENTS = ("mongodb", "redis", "postgres", "colyseus", "bots", "judge0_server", "judge0_worker")
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


class Site:
    """A cluster with codeclashers on it."""

    def __init__(self, cluster: Cluster, registry: Registry, provision: Callable[..., Run]) -> None:
        self.cluster, self.registry, self._provision = cluster, registry, provision
        self.host = cluster.host
        box = images.get("busybox")
        server = {"/server.js": (Path(__file__).parent / "apps/codeclashers/colyseus.js").read_text()}
        for tag, variables in {"v1": {}, "v2": {}, "bad-starts": {"FAULT": "starts"}, "bad-health": {"FAULT": "health"}}.items():
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

    def run(self, deploy: str = DEPLOY, dry: bool = False, env: dict[str, str] | None = None, extra: tuple[str, ...] = (), **differs: Any) -> Run:
        return self._provision(
            self.host, deploy, data=self.data(**differs), groups={"codeclashers": [self.host], "lab": [self.host]}, dry=dry,
            env={**SECRETS, "PULL": self.registry.password, "BACKUP": "canary-backup-0123456789", **(env or {})}, extra=extra,
        )  # fmt: skip

    def act(self, call: str) -> Run:
        name = call.partition("(")[0]
        return self.run(f"from deploys.codeclashers import {name}\n{call}\n")

    def pods(self, component: str = "") -> dict[str, str]:
        words = ["-l", f"app.kubernetes.io/name={component}"] if component else []
        found = self.cluster.get("pods", "-n", "codeclashers", *words)["items"]
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found if "deletionTimestamp" not in pod["metadata"]}

    def redis(self, *words: str) -> str:
        script = f"REDISCLI_AUTH=$(cat /etc/redis/password) redis-cli {' '.join(words)}"
        return self.cluster.kubectl("exec", "-n", "codeclashers", "redis-0", "--", "sh", "-c", script).strip()

    def players(self, **differs: Any) -> Players:
        return Players(self.host.address, 2567, **differs)


@pytest.fixture(scope="module")
def site(lab: Lab, provision: Callable[..., Run]) -> Iterator[Site]:
    registry = lab.registry()
    cluster = k3s.one_node(lab, "t-codeclashers", registry=registry)
    # local-path's directories are open to whoever the pod runs as; the stand-in's are root's
    opened = "while :; do chmod 0777 /var/lib/rancher/k3s/storage/* 2>/dev/null; sleep 0.2; done"
    cluster.host.run(f"systemd-run --unit=lab-volumes sh -c '{opened}'")
    yield Site(cluster, registry, provision)
    lab.destroy(cluster.host)


def test_everything_comes_up_and_the_second_run_changes_nothing(site):
    planned = site.run(dry=True)
    assert planned.ok, planned
    first = site.run()
    assert first.ok, first
    pods = site.pods()
    assert len(pods) == 11
    second = site.run()
    assert second.ok, second
    assert second.changed == []
    assert site.run(dry=True).changed == []
    assert site.pods() == pods
    for value in SECRETS.values():
        assert value not in first.stdout + first.stderr + planned.stderr


def test_a_match_is_played_and_a_submission_is_judged(site):
    with site.players(matches=2, seconds=3, rate=5) as players:
        players._stop.wait(5)
    assert players.faults == []
    assert players.finished >= 2
    assert players.releases == {"v1"}
    site.redis("RPUSH", "submissions", "'job echo $((6*7))'")
    wait_for("the result", lambda: site.redis("LRANGE", "results", "0", "-1") == "42", 60)


def test_health_and_status(site):
    well = site.act("health()")
    assert well.ok, well
    assert well.stderr.count(": well") == 7, well.stderr
    status = site.act("status()")
    assert "colyseus: 2 of 2 ready" in status.stderr, status


def test_upgrade_under_matches_and_requests(site):
    databases = {name: uid for name, uid in site.pods().items() if name.startswith(("mongodb", "redis", "postgres", "judge0"))}
    with site.players(matches=20, seconds=15, rate=20) as players:
        run = site.run(version="v2")
    assert run.ok, run
    print(f"matches finished {players.finished}, answers {players.answers}, faults {len(players.faults)}")  # noqa: T201
    assert players.faults == [], players.faults[:5]
    assert players.finished >= 20
    assert "v2" in players.releases
    assert databases.items() <= site.pods().items()
    assert site.run(version="v2").changed == []


@pytest.mark.parametrize(("tag", "said"), [("bad-starts", "cannot find the lobby"), ("bad-health", "was not rolled out"), ("gone", "ImagePull")])
def test_a_bad_release_never_serves(site, tag, said):
    before = site.pods("colyseus")
    with site.players(matches=5, seconds=5, rate=20) as players:
        run = site.run(version=tag, env={"OPENAI_API_KEY": "another-key-0123456789"}, rollout_seconds=45, colyseus_grace_seconds=20)
    assert not run.ok
    assert said in run.stderr, run
    assert "is back: workloads, config and secrets" in run.stderr, run.stderr
    assert players.faults == [], players.faults[:5]
    assert players.releases == {"v2"}
    assert site.pods("colyseus") == before
    assert site.run(version="v2").changed == []
    for value in (*SECRETS.values(), "another-key-0123456789"):
        assert value not in run.stdout + run.stderr


def test_rotation_restarts_its_users_alone(site):
    before = site.pods()
    run = site.run(version="v2", env={"COLYSEUS_RESERVATION_SECRET": "rotated-reservation-0123456789"})
    assert run.ok, run
    after = site.pods()
    changed = {name.rsplit("-", 2)[0] for name in before if name not in after}
    assert changed == {"colyseus"}


def test_rollback_scale_restart(site):
    assert site.act("rollback()").ok
    pod = next(iter(site.pods("colyseus")))
    shown = site.cluster.kubectl("exec", "-n", "codeclashers", pod, "--", "env")
    assert SECRETS["COLYSEUS_RESERVATION_SECRET"] in shown
    assert site.act("scale(component='bots', replicas=3)").ok
    assert len(site.pods("bots")) == 3
    before = site.pods("judge0-server")
    assert site.act("restart(component='judge0-server')").ok
    assert not set(site.pods("judge0-server")) & set(before)
    refused = site.act("scale(component='mongodb', replicas=3)")
    assert not refused.ok
    assert "component must be one of colyseus, bots, judge0-server, judge0-worker" in refused.stderr
    assert site.run(version="v2").changed != []
    assert site.run(version="v2").changed == []


def test_what_the_node_cannot_hold_is_refused_with_the_arithmetic(site):
    before = site.pods()
    run = site.run(version="v2", colyseus_cpu_request="64", colyseus_cpu_limit="64")
    assert not run.ok
    assert "colyseus 2 x 64000m" in run.stderr, run.stderr
    assert "too few" in run.stderr
    alone = site.run(version="v2", judge0_shares_nodes=False, dry=True)
    assert "judge0-worker: no node takes it; it needs dedicated=judge0" in alone.stderr, alone.stderr
    assert site.pods() == before


def test_an_image_for_another_architecture_is_refused(site):
    box = images.make(images.get("busybox"), command=["/bin/sh"], architecture="arm64")
    reference = site.registry.push("team/codeclashers-bots", "arm", box)
    site.host.write("/usr/local/share/ca-certificates/lab.crt", site.registry.ca)
    site.host.run("update-ca-certificates")
    run = site.run(version="v2", bots_image=reference, image_check=True)
    assert not run.ok
    assert "of bots is made for arm64; nodes that bots may run on are amd64" in run.stderr, run.stderr
    gone = site.run(version="v2", bots_image=reference.replace(":arm", ":never"), image_check=True)
    assert "of bots is not in its registry" in gone.stderr, gone.stderr


def test_secrets_are_not_on_the_host(site):
    text = json.dumps([site.cluster.get(kind, "-n", "codeclashers") for kind in ("configmaps", "deployments", "statefulsets", "services", "pods", "events")])
    for value in SECRETS.values():
        assert value not in text
    assert "last-applied-configuration" not in text
    found = site.host.run("grep -rlsF canary- /etc /tmp /root /run/hostwright /var/log --exclude-dir=journal", check=False).stdout
    assert found == ""
    journal = site.host.run("journalctl --no-pager | grep -c canary-", check=False).stdout.strip()
    assert journal == "0"


def test_mongodb_is_backed_up_drilled_and_restored(site):
    """The stand-in's archive is not MongoDB's: what is shown is the way of a copy, not the programs."""
    program = "/usr/local/lib/hostwright/backup"
    inside = ("exec", "-n", "codeclashers", "mongodb-0", "--", "sh", "-c")
    site.cluster.kubectl(*inside, "printf '{}\\n{}\\n{}\\n' > /data/db/matches.json; printf '{}\\n' > /data/db/users.json")
    site.host.run("systemctl start hostwright-backup-codeclashers-mongodb.service", timeout=300)
    drilled = site.host.run(f"{program} drill codeclashers-mongodb", timeout=400)
    assert "scratch" not in site.cluster.kubectl("get", "pods", "-n", "codeclashers"), drilled
    site.cluster.kubectl(*inside, "rm /data/db/matches.json; printf '{}\\n{}\\n' > /data/db/users.json")
    site.host.run(f"{program} restore codeclashers-mongodb", timeout=400)
    assert site.cluster.kubectl(*inside, "wc -l < /data/db/matches.json; wc -l < /data/db/users.json").split() == ["3", "1"]
    assert site.host.run("ls /var/lib/hostwright/backup | grep -c before-restore").stdout == "1\n"
    assert SECRETS["MONGODB_PASSWORD"] not in site.host.run("cat /etc/hostwright/backup/*; journalctl --no-pager").stdout
    assert site.run(version="v2").changed == []


def test_a_reboot_brings_everything_back(site):
    site.host.reboot()
    site.cluster.wait_ready()
    wait_for("all components", lambda: site.act("health()").ok, 300, pause=3)
    assert site.run(version="v2").changed == []
