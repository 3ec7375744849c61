"""codeclashers on a cluster of one node, with stand-ins of our own for MongoDB, Judge0, Colyseus and the bots; read back with kubectl."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.lab import canary, images, k3s
from tests.lab.codeclashers_site import PROGRAM, SECRETS, Site
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.state import wait_for

pytestmark = pytest.mark.soak

PULL = "canary-other-pull-0123456789"

@pytest.fixture(scope="module")
def site(lab: Lab, provision: Callable[..., Run]) -> Iterator[Site]:
    registry = lab.registry()
    cluster = k3s.one_node(lab, "t-codeclashers", registry=registry)
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
        wait_for("two matches", lambda: players.finished >= 2, 30)
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


def test_upgrade_under_matches_and_requests(site, capsys):
    databases = {name: uid for name, uid in site.pods().items() if name.startswith(("mongodb", "redis", "postgres", "judge0"))}
    with (
        site.bare_answer() as port, site.players(matches=100, seconds=15, rate=50) as players,
        site.players(port, matches=0, rate=10) as control,
    ):  # fmt: skip
        run = site.run(version="v2")
    assert run.ok, run
    said = f"{players.finished} matches, {players.answers} answers at {players.pace:.1f}/s of 50; a bare answer at {control.pace:.1f}/s of 10"
    with capsys.disabled():
        print(f"\nupgrade: {said}")  # noqa: T201 - the figures that docs and readers want
    assert players.faults == [], players.faults[:5]
    assert control.faults == [], control.faults[:5]
    assert players.finished >= 100
    # Whoever asks keeps the pace while each answer comes within a second. A machine without a free core keeps nobody's: then the application
    # has to answer nearly as often as the bare answer does, which is asked beside it, by the same program.
    assert players.pace / 50 > 0.8 * control.pace / 10, said
    assert "v2" in players.releases
    assert databases.items() <= site.pods().items()
    assert site.run(version="v2").changed == []


BAD = {
    "crashes": ({"version": "bad-starts"}, {}, "cannot find the lobby"),
    "is not ready": ({"version": "bad-health"}, {}, "HTTP probe failed with statuscode: 500"),
    "no such image": ({"version": "gone"}, {}, "ImagePull"),
    "no room": ({"version": "v2", "colyseus_cpu_request": "64", "colyseus_cpu_limit": "64", "capacity_check": False}, {}, "no node takes it"),
    "expired pull secret": ({"version": "v3"}, {"PULL": "expired-0123456789"}, "401 Unauthorized"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_release_never_serves(site, fault):
    differs, env, said = BAD[fault]
    env = {"OPENAI_API_KEY": "another-key-0123456789", **env}
    before, data = site.pods("colyseus"), site.names("secrets,configmaps,serviceaccounts")
    account = site.cluster.get("serviceaccount", "codeclashers", "-n", "codeclashers")["imagePullSecrets"]
    with site.players(matches=5, seconds=5, rate=20) as players:
        run = site.run(**differs, env=env, rollout_seconds=45 if fault == "is not ready" else 150, colyseus_grace_seconds=20)
    assert not run.ok
    assert said in run.stderr, run
    assert "is back: workloads, config and secrets" in run.stderr, run.stderr
    assert players.faults == [], players.faults[:5]
    assert players.releases == {"v2"}
    assert site.pods("colyseus") == before
    assert site.names("secrets,configmaps,serviceaccounts") == data
    assert site.cluster.get("serviceaccount", "codeclashers", "-n", "codeclashers")["imagePullSecrets"] == account
    assert site.run(version="v2").changed == []
    for value in (*SECRETS.values(), *env.values()):
        assert value not in run.stdout + run.stderr


def test_a_bad_manifest_is_refused_before_any_change(site):
    """A volume's size cannot be changed in its StatefulSet: the server says so, asked for a dry run."""
    before, data = site.pods(), site.names("secrets,configmaps")
    run = site.run(version="v1", mongodb_storage="2Gi", env={"OPENAI_API_KEY": "another-key-0123456789"})
    assert not run.ok
    assert "nothing was changed" in run.stderr, run
    assert "StatefulSet" in run.stderr, run
    assert "volumeClaimTemplates" in run.stderr or "updates to statefulset spec" in run.stderr, run
    assert (site.pods(), site.names("secrets,configmaps")) == (before, data)
    assert site.run(version="v2").changed == []


def test_rotation_restarts_its_users_alone(site):
    before = site.pods()
    env = {"COLYSEUS_RESERVATION_SECRET": "rotated-reservation-0123456789"}
    run = site.run(version="v2", env=env)
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


def test_a_new_pull_account_replaces_no_pod(site):
    before, secrets = site.pods(), site.names("secrets")
    site.registry.set_password("other", PULL)
    run = site.run(version="v2", env={"PULL": PULL}, registry_username="other")
    assert run.ok, run
    assert run.changed != []
    assert site.pods() == before
    assert len(set(site.names("secrets")) - set(secrets)) == 1
    assert site.run(version="v2").ok
    assert site.pods() == before


@pytest.mark.parametrize("seconds", [1, 3, 5, 8, 11, 15, 19, 24, 30, 37])
def test_killed_anywhere_the_next_run_finishes(site, tmp_path, seconds):
    """Both ends die: the control machine's run, and the program on the host. What serves, serves on."""
    wanted = {"version": "v1" if "v2" in site.images("colyseus") else "v2", "env": {"OPENAI_API_KEY": f"killed-at-{seconds}-0123456789"}}
    with site.players(matches=3, seconds=5, rate=10) as players:
        site.run_killed(tmp_path, seconds, **wanted)
        again = site.run(**wanted)
    assert again.ok, again
    assert players.faults == [], players.faults[:5]
    assert site.images("colyseus") == {wanted["version"]}
    assert site.run(**wanted).changed == []


def test_what_the_node_cannot_hold_is_refused_with_the_arithmetic(site):
    assert site.run(version="v2").ok
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
    before = site.names("secrets,configmaps,serviceaccounts")
    expired = site.run(version="v2", image_check=True, env={"PULL": "expired-0123456789"})
    assert not expired.ok
    assert "of mongodb: the registry refuses the account" in expired.stderr, expired.stderr
    assert site.names("secrets,configmaps,serviceaccounts") == before


def test_secrets_are_not_on_the_host(site):
    text = json.dumps([site.cluster.get(kind, "-n", "codeclashers") for kind in ("configmaps", "deployments", "statefulsets", "services", "pods", "events")])
    for value in SECRETS.values():
        assert value not in text
    assert "last-applied-configuration" not in text
    patterns = "\n".join(form for value in SECRETS.values() for form in canary.forms(value)) + "\n"
    found = site.host.run("grep -rlsF -f - /etc /tmp /root /run/hostwright /var/log --exclude-dir=journal", check=False, input=patterns).stdout
    assert found == ""
    assert canary.journal(site.host, SECRETS) == []


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
    assert site.host.run("ls /var/lib/hostwright/backup | grep -c mongodb.before-restore").stdout == "1\n"
    assert SECRETS["MONGODB_PASSWORD"] not in site.host.run("cat /etc/hostwright/backup/*; journalctl --no-pager").stdout
    assert site.run(version="v2").changed == []


def test_redis_is_backed_up_drilled_and_restored(site):
    ask = site.redis
    ask("FLUSHALL")
    ask("RPUSH", "queue", *(f"task-{number}" for number in range(200)))
    ask("HSET", "match:1", "state", "open")
    ask("-n", "1", "SET", "kept", "yes")
    ask("SET", "passing", "soon", "EX", "3600")
    site.host.run("systemctl start hostwright-backup-codeclashers-redis.service", timeout=300)
    site.host.run("systemctl start hostwright-backup-codeclashers-redis-drill.service", timeout=400)
    said = site.host.run("journalctl -u hostwright-backup-codeclashers-redis-drill --no-pager -o cat").stdout
    assert "is verified" in said, said
    assert "3 rows or files" in said, said
    assert "scratch" not in site.cluster.kubectl("get", "pods", "-n", "codeclashers")
    pods = site.pods()

    ask("FLUSHALL")
    ask("SET", "newer", "yes")
    site.host.run(f"{PROGRAM} restore codeclashers-redis --at verified", timeout=400)
    assert ask("LLEN", "queue") == "200"
    assert (ask("HGET", "match:1", "state"), ask("-n", "1", "GET", "kept"), ask("GET", "passing"), ask("EXISTS", "newer")) == ("open", "yes", "soon", "0")
    assert "role:master" in ask("INFO", "replication")
    assert site.pods() == pods
    assert site.host.run("ls /var/lib/hostwright/backup | grep -c 'codeclashers-redis.before-restore.*rdb'").stdout == "1\n"
    # it is in what is read at the next start
    site.cluster.kubectl("delete", "pod", "redis-0", "-n", "codeclashers", timeout=120)
    site.cluster.kubectl("rollout", "status", "statefulset/redis", "-n", "codeclashers", "--timeout=240s", timeout=260)
    assert ask("LLEN", "queue") == "200"
    assert site.cluster.kubectl("exec", "-n", "codeclashers", "redis-0", "--", "sh", "-c", "ls -A /data | grep -c hostwright || :").strip() == "0"
    assert SECRETS["REDIS_PASSWORD"] not in site.host.run("cat /etc/hostwright/backup/*; journalctl --no-pager").stdout
    assert site.run(version="v2").changed == []


def test_a_reboot_brings_everything_back(site):
    site.host.reboot()
    site.cluster.wait_ready()
    wait_for("all components", lambda: site.act("health()").ok, 300, pause=3)
    assert site.run(version="v2").changed == []
