"""Cleanup of a real engine with images of every class on it, read back with docker and the engine's own figures."""

import json
import os
import re
import shlex
import subprocess

import pytest

from operations.cleanup import Pressure
from tests.lab.provision import command_line
from tests.lab.state import REPOSITORY, wait_for

PROGRAM = "/usr/local/lib/hostwright/docker-cleanup"
OURS = "registry.test:5000/mcbench"
MINECRAFT, BUILDER = f"{OURS}/minecraft:1", f"{OURS}/builder:1"
OLD = "10 days ago"

# What stays and the word that says why; everything else of ours goes.
STAYS = {
    f"{OURS}/api:v5": "container api-5 runs it",
    f"{OURS}/api:v4": "release r4 of api",
    f"{OURS}/api:v3": "container api-3 is made from it",
    f"{OURS}/worker:v2": "release r2 of worker",
    f"{OURS}/worker:v1": "release r1 of worker (the newest)",
    MINECRAFT: "named in the settings",
    BUILDER: "MINECRAFT_BUILDER_IMAGE of container server-worker names it",
    f"{OURS}/server-worker:v1": "container server-worker is made from it",
    f"{OURS}/postgres:16": "container database is made from it",
    f"{OURS}/job:young": "container job-young is made from it",
    f"{OURS}/fresh:v1": "used or fetched",
    f"{OURS}/short:v1": "used or fetched",
    f"{OURS}/base:v1": "other.test/child:v1 is built on it",
    f"{OURS}/shared:v1": "not ours alone: it is also other.test/shared:v1",
    "other.test/shared:v1": "",
    "other.test/child:v1": "not ours",
    f"{OURS}/builder:0": "release r1 of worker",
    "redis:7": "container foreign-stopped is made from it",
    "registry.test:5000/mcbench-of-others:v1": "not ours",
    "other.test/labelled:v1": "not ours",
}
GOES = (
    *(f"{OURS}/api:v{number}" for number in (0, 1, 2)),
    f"{OURS}/worker:v0",
    f"{OURS}/job:orphan",
    f"{OURS}/twice:v1",
    f"{OURS}/twice:latest",
    f"{OURS}/left:a",
    f"{OURS}/left:b",
    f"{OURS}/left:c",
    f"{OURS}/deep/path/left:d",
    "label-only:v1",
)


def deploy(**arguments: object) -> str:
    values = {
        "ours": [f"{OURS}/*", "label:org.mcbench=yes"], "keep_images": [MINECRAFT], "unused": "7d",
        "job_label": "mcbench.job", "job_limit": "25h", **arguments,
    }  # fmt: skip
    text = ", ".join(f"{key}={value!r}" for key, value in values.items())
    return f"from operations import cleanup\nfrom operations.cleanup import Pressure\ncleanup.schedule({text}, name='Schedule cleanup')\n"


def clean(**arguments: object) -> str:
    text = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"from operations import cleanup\ncleanup.docker({text}{', ' if text else ''}name='Clean up')\n"


@pytest.fixture(scope="module", params=["bookworm", pytest.param("trixie", marks=pytest.mark.soak)])
def host(lab, request):
    fresh = lab.host("t-cleanup", release=request.param, layer="docker")
    yield fresh
    lab.destroy(fresh)


def image(host, *names: str, label: str = "", keep_young: bool = False) -> None:
    """An image of its own content, a few files that can run `sleep`, as old as OLD unless it is to be young."""
    first, *more = names
    option = f"-c 'LABEL {label}'" if label else ""
    host.run(
        "set -e; cd /root/rootfs; head -c 40000 /dev/urandom > unique; "
        f"tar -c . | docker import {option} -c 'CMD [\"/sleep\", \"infinity\"]' - {first} >/dev/null; "
        + "".join(f"docker tag {first} {name}; " for name in more)
        + ("" if keep_young else f"/root/age image {first}")
    )


# Makes an image or a container look old to whoever asks the engine; containers need the engine to stand still.
AGE = r"""#!/bin/sh -e
store=/var/lib/docker/image/overlay2/imagedb
case "$1" in
image)
    id=$(docker image inspect -f '{{.Id}}' "$2" | cut -d: -f2)
    touch -d '10 days ago' "$store/content/sha256/$id"
    mkdir -p "$store/metadata/sha256/$id"
    printf %s "$(date -u -d '10 days ago' +%Y-%m-%dT%H:%M:%S.000000000Z)" > "$store/metadata/sha256/$id/lastUpdated" ;;
containers)
    shift
    ids=$(for name; do docker inspect -f '{{.Id}}' "$name"; done)
    systemctl stop docker.service docker.socket
    for id in $ids; do
        python3 - "/var/lib/docker/containers/$id/config.v2.json" <<'P'
import datetime, json, sys
old = (datetime.datetime.utcnow() - datetime.timedelta(days=10)).strftime("%Y-%m-%dT%H:%M:%S.000000000Z")
about = json.load(open(sys.argv[1]))
about["Created"] = about["State"]["FinishedAt"] = about["State"]["StartedAt"] = old
json.dump(about, open(sys.argv[1], "w"))
P
    done
    systemctl start docker.service ;;
network)
    systemctl stop docker.service docker.socket ;;
esac
"""


def stored(host, component: str, *releases: tuple[str, str], environment: str = "") -> None:
    """Store releases as a rollout does: each with its image, the last one serves."""
    directory = f"/var/lib/hostwright/replicas/{component}"
    for release, name in releases:
        text = json.dumps({"spec": {"image": name, "environment": environment}, "settings": {}, "image_id": ""})
        host.write(f"{directory}/specs/{release}.json", text, mode="0600")
    host.write(f"{directory}/history", "".join(f"{release}\n" for release, _ in releases))


def start(host, name: str, of: str, *options: str, run: bool = False) -> None:
    verb = "run -d" if run else "create"
    host.run(f"docker {verb} --name {name} {shlex.join(options)} {of} >/dev/null")


@pytest.fixture(scope="module")
def zoo(host, provision):
    """The host with an image of every class, and the policy declared."""
    host.write("/root/age", AGE, mode="0755")
    host.run(
        "install -D /bin/sleep /root/rootfs/sleep; cd /root/rootfs; mkdir -p lib64 lib/x86_64-linux-gnu; "
        "cp /lib64/ld-linux-x86-64.so.2 lib64/; cp /lib/x86_64-linux-gnu/libc.so.6 lib/x86_64-linux-gnu/"
    )
    image(host, f"{OURS}/base:v1")
    host.run(f"docker create --name seed {OURS}/base:v1 >/dev/null; docker commit seed other.test/child:v1; docker rm seed")
    image(host, f"{OURS}/shared:v1", "other.test/shared:v1")
    image(host, f"{OURS}/twice:v1", f"{OURS}/twice:latest")
    image(host, "label-only:v1", label="org.mcbench=yes")
    image(host, "other.test/labelled:v1", label="org.mcbench=no")
    single = {*STAYS, *GOES} - {
        f"{OURS}/base:v1", "other.test/child:v1", f"{OURS}/shared:v1", "other.test/shared:v1", f"{OURS}/twice:v1",
        f"{OURS}/twice:latest", "label-only:v1", "other.test/labelled:v1",
    }  # fmt: skip
    for name in sorted(single):
        image(host, name, keep_young=name.endswith("fresh:v1"))
    # loses its name to another one, as `docker build` leaves them
    image(host, f"{OURS}/nameless:v1")
    host.run(f"docker tag {OURS}/left:a {OURS}/nameless:v1; docker rmi {OURS}/nameless:v1; /root/age image {OURS}/left:a")
    label = "--label=hostwright.component=api"
    start(host, "api-2", f"{OURS}/api:v2", label, "--label=hostwright.release=r2")
    start(host, "api-3", f"{OURS}/api:v3", label, "--label=hostwright.release=r3")
    start(host, "api-5", f"{OURS}/api:v5", label, "--label=hostwright.release=r5")
    start(host, "job-orphan", f"{OURS}/job:orphan", "--label=mcbench.job=1")
    host.run("docker volume create data >/dev/null")
    start(host, "database", f"{OURS}/postgres:16", "--label=hostwright.container=database", "-v=data:/data", "-v=/nameless")
    start(host, "foreign-stopped", "redis:7", "-v=/nameless")
    start(host, "server-worker", f"{OURS}/server-worker:v1", "--label=hostwright.container=server-worker", f"-e=MINECRAFT_BUILDER_IMAGE={BUILDER}")
    host.run("/root/age containers api-2 api-3 job-orphan database foreign-stopped server-worker", timeout=120)
    start(host, "job-young", f"{OURS}/job:young", "--label=mcbench.job=1")
    host.run("docker start api-5")
    for name in ("net-foreign",):
        host.run(f"docker network create {name}")
    stored(host, "api", *((f"r{number}", f"{OURS}/api:v{number}") for number in range(6)))
    stored(
        host, "worker", ("r2", f"{OURS}/worker:v2"), ("r1", f"{OURS}/worker:v1"),
        environment=f"PASSWORD=x\nMINECRAFT_BUILDER_IMAGE={OURS}/builder:0\n",
    )  # fmt: skip
    run = provision(host, deploy())
    assert run.ok, run
    assert run.changed == ["Schedule cleanup"]
    # a container that comes and goes between two looks
    wait_for("journal", lambda: host.exists("/var/lib/hostwright/cleanup/used/looked"), 30)
    host.run(f"docker run --rm {OURS}/short:v1 /sleep 0")
    wait_for("journal", lambda: "now" in noted(host, f"{OURS}/short:v1"), 30)
    return host


def noted(host, name: str) -> str:
    """When an image was last in use, as the journal has it: `now` is within the last five minutes."""
    id = host.run(f"docker image inspect -f '{{{{.Id}}}}' {name}").stdout.strip().partition(":")[2]
    return host.run(f"find /var/lib/hostwright/cleanup/used/{id} -mmin -5 -printf now").stdout


def names(host) -> set[str]:
    return set(host.run("docker images --format '{{.Repository}}:{{.Tag}}'").stdout.split())


def lines_of(shown: str, name: str) -> list[str]:
    return [line for line in shown.splitlines() if re.search(rf" image (\S+, )?{re.escape(name)}[ ,]", line)]


def snapshot(host) -> str:
    """Everything of the engine and of the cleanup's own state."""
    return host.run(
        "docker images -a --no-trunc --format '{{.ID}} {{.Repository}}:{{.Tag}}' | sort; docker ps -a --no-trunc --format '{{.ID}} {{.Names}}'; docker volume ls; docker network ls; "
        "find /var/lib/hostwright /etc/hostwright -type f -printf '%p %T@\\n' | sort"
    ).stdout


def engine_bytes(host) -> int:
    found = json.loads(host.run("curl -sS --unix-socket /run/docker.sock http://engine/v1.41/system/df").stdout)
    return found["LayersSize"] + sum(each.get("SizeRw", 0) for each in found["Containers"])


def shown_by_df(host) -> float:
    """What `docker system df` itself prints for images, in bytes."""
    size = host.run("docker system df --format '{{.Type}} {{.Size}}' | sed -n 's/^Images //p'").stdout.strip()
    units = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
    return float(size[:-2]) * units[size[-2:]]


def test_cleanup_removes_exactly_the_right_things(zoo, provision):
    before = names(zoo)
    assert before - {"<none>:<none>"} == {*STAYS, *GOES}
    assert len(before) >= 30

    state = snapshot(zoo)
    for dry, text in ((True, clean()), (False, clean(dry=True))):
        planned = provision(zoo, text, dry=dry)
        assert planned.ok, planned
        assert planned.changed == (["Clean up"] if dry else [])
        for name, why in STAYS.items():
            if why:
                (line,) = lines_of(planned.stderr, name)
                assert "stays image" in line
                assert why in line
        for name in GOES:
            (line,) = lines_of(planned.stderr, name)
            assert "goes  image" in line
        assert "goes  container api-2: of the old release r2 of api" in planned.stderr
        assert "goes  container job-orphan: of a job" in planned.stderr
        assert "stays container api-3: of release r3 of api" in planned.stderr
    assert snapshot(zoo) == state, "a plan changes nothing"

    used, shown = engine_bytes(zoo), shown_by_df(zoo)
    run = provision(zoo, clean())
    assert run.ok, run
    assert run.changed == ["Clean up"]
    left = names(zoo)
    assert left - {"<none>:<none>"} == set(STAYS)
    assert "<none>:<none>" in left, "an image without a name is not ours"
    won = used - engine_bytes(zoo)
    assert won > 10 * 2_000_000
    assert f", {won} bytes won" in run.stderr
    assert abs(shown - shown_by_df(zoo) - won) < 0.02 * shown
    containers = set(zoo.run("docker ps -a --format '{{.Names}}'").stdout.split())
    assert containers == {"api-3", "api-5", "job-young", "database", "foreign-stopped", "server-worker"}
    assert zoo.run("docker inspect -f '{{.State.Running}}' api-5").stdout.strip() == "true"
    assert len(zoo.run("docker volume ls -q").stdout.split()) == 3, "volumes stay, the nameless ones too"
    assert "net-foreign" in zoo.run("docker network ls").stdout

    again = provision(zoo, clean())
    assert again.ok, again
    assert again.changed == []
    by_hand = zoo.run(f"{PROGRAM} run").stdout
    assert "0 removed, 0 bytes won" in by_hand


def test_an_operator_types_it(zoo, tmp_path):
    """The image was idle for ten days, so the policy's seven days and the day that is typed both let it go."""
    image(zoo, f"{OURS}/typed:v1")
    command = command_line(tmp_path, zoo, "")[:-1]
    command.remove("--json")

    def typed(*words: str) -> str:
        done = subprocess.run(
            [*command, "operations.cleanup.docker", *words], cwd=REPOSITORY, text=True, capture_output=True, stdin=subprocess.DEVNULL,
            timeout=300, env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip
        return done.stdout + done.stderr

    assert "write 24h or 24d" in typed("until=24")
    assert f"stays image {OURS}/typed:v1" in typed("until=2w")
    said = typed("until=24h")
    assert re.search(rf"removed image {OURS}/typed:v1 .*: not used for 10 d", said), said
    assert re.search(r"1 removed, [1-9][0-9]{6,} bytes won", said)
    assert f"{OURS}/typed:v1" not in names(zoo)


def test_a_deploy_that_is_under_way_is_waited_for(zoo):
    """The lock of a deploy is held while an image is fetched and not used yet."""
    image(zoo, f"{OURS}/late:v1")
    zoo.run(
        "systemd-run --quiet --unit=hw-deploy flock /run/hostwright/containers.lock sleep 600;"
        "while flock -n /run/hostwright/containers.lock true; do sleep 0.05; done"
    )
    try:
        zoo.run("systemctl start --no-block hostwright-docker-cleanup.service")
        zoo.run(
            "until journalctl --sync; journalctl -u hostwright-docker-cleanup -o cat | grep 'waiting for a deploy'; do sleep 0.1; done"
        )
        assert f"{OURS}/late:v1" in names(zoo)
        # what the deploy was about to do with it
        start(zoo, "late", f"{OURS}/late:v1")
    finally:
        zoo.run("systemctl stop hw-deploy")
    zoo.run("systemctl start hostwright-docker-cleanup.service")
    assert f"{OURS}/late:v1" in names(zoo)
    zoo.run("docker rm late; systemctl start hostwright-docker-cleanup.service")
    assert f"{OURS}/late:v1" in names(zoo), "its container was there a moment ago"
    zoo.run(f"touch -d '{OLD}' /var/lib/hostwright/cleanup/used/*")
    zoo.run("systemctl start hostwright-docker-cleanup.service")


def test_set_noop_update_unset(zoo, provision):
    assert provision(zoo, deploy()).changed == []
    timers = zoo.run("systemctl show -p TimersCalendar hostwright-docker-cleanup.timer").stdout
    assert "OnCalendar=*-*-* 00/6:17:00" in timers
    assert zoo.run("systemctl is-active hostwright-docker-journal").stdout.strip() == "active"
    for unit in ("hostwright-docker-cleanup.service", "hostwright-docker-journal.service"):
        exposure = zoo.run(f"systemd-analyze security --no-pager {unit}").stdout.splitlines()[-1]
        assert float(exposure.split(": ")[1].split()[0]) <= 1.5, exposure

    cron = provision(zoo, deploy(by="cron", every_hours=12, releases=4))
    assert cron.changed == ["Schedule cleanup"]
    assert "17 */12 * * *" in zoo.read("/etc/cron.d/hostwright-docker-cleanup")
    assert not zoo.exists("/etc/systemd/system/hostwright-docker-cleanup.timer"), "one scheduler"
    assert json.loads(zoo.read("/etc/hostwright/cleanup.json"))["releases"] == 4

    zoo.run(f"echo x >> /etc/hostwright/cleanup.json; rm {PROGRAM}; systemctl stop hostwright-docker-journal")
    assert provision(zoo, deploy(by="cron", every_hours=12, releases=4)).changed == ["Schedule cleanup"]
    zoo.run(f"systemctl is-active hostwright-docker-journal; {PROGRAM} plan")

    before = snapshot_engine(zoo)
    assert provision(zoo, deploy(present=False)).changed == ["Schedule cleanup"]
    assert not zoo.exists(PROGRAM)
    assert not zoo.exists("/etc/cron.d/hostwright-docker-cleanup")
    assert zoo.run("systemctl list-unit-files --no-legend 'hostwright-docker-*'", check=False).stdout == ""
    assert snapshot_engine(zoo) == before
    assert provision(zoo, deploy(present=False)).changed == []
    undeclared = provision(zoo, clean())
    assert not undeclared.ok
    assert "no cleanup is declared on this host" in undeclared.stderr


def snapshot_engine(host) -> str:
    return host.run("(docker images -aq --no-trunc; docker ps -aq --no-trunc; docker volume ls -q) | sort").stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (clean(until=24), "write 24h or 24d"),
        (clean(until="10m"), "at least an hour"),
        (deploy(ours=["*"], releases=1), "releases must be at least 2"),
    ],
)
def test_bad_input_changes_nothing(host, provision, text, said):
    run = provision(host, text)
    assert not run.ok
    assert said in run.stderr


@pytest.mark.soak
def test_the_journal_sees_what_comes_and_goes(zoo, provision):
    """More events than the engine remembers, a restarted engine, and the image is still known as used."""
    assert provision(zoo, deploy()).ok
    image(zoo, f"{OURS}/quick:v1")
    zoo.run(f"docker run --rm {OURS}/quick:v1 /sleep 0; for i in $(seq 300); do docker tag redis:7 redis:x; done", timeout=120)
    zoo.run("systemctl restart docker")
    wait_for("journal", lambda: "now" in noted(zoo, f"{OURS}/quick:v1"), 60)
    zoo.run(f"systemctl start hostwright-docker-cleanup; docker rmi redis:x; docker image inspect {OURS}/quick:v1")


@pytest.mark.soak
def test_a_full_disk_shortens_the_rules(zoo, provision):
    """Within the same rules: the way back and all that is in use stay."""
    assert provision(zoo, deploy()).ok
    for number in (1, 2, 3):
        image(zoo, f"{OURS}/tight:v{number}")
    stored(zoo, "tight", *((f"r{number}", f"{OURS}/tight:v{number}") for number in (1, 2, 3)))
    assert provision(zoo, clean()).ok
    before = names(zoo)
    assert provision(zoo, clean()).changed == []
    assert names(zoo) == before
    assert provision(zoo, deploy(pressure=Pressure(percent=1, releases=2, unused="1h"))).changed == ["Schedule cleanup"]
    run = provision(zoo, clean())
    assert run.changed == ["Clean up"], run
    assert ": pressed; kept are 2 releases and what was used in the last 60 min" in run.stderr
    gone = before - names(zoo)
    assert f"{OURS}/tight:v1" in gone
    assert {*gone} & {f"{OURS}/tight:v2", f"{OURS}/tight:v3", MINECRAFT, BUILDER, f"{OURS}/postgres:16", "redis:7"} == set()
    assert provision(zoo, clean()).changed == []


@pytest.mark.soak
def test_an_orphaned_network_of_a_job_goes(zoo, provision):
    """No hour is waited for: the program's own policy is written by hand."""
    assert provision(zoo, deploy()).ok
    zoo.run("docker start api-5; for name in orphan busy; do docker network create --label mcbench.job=1 net-$name; done")
    zoo.run("docker network connect net-busy api-5")
    policy = json.loads(zoo.read("/etc/hostwright/cleanup.json"))
    zoo.write("/etc/hostwright/cleanup.json", json.dumps(policy | {"job_seconds": 0}))
    said = zoo.run(f"{PROGRAM} run").stdout
    assert "removed network net-orphan: of a job" in said
    assert "stays   network net-busy: of a job" in said
    left = zoo.run("docker network ls --format '{{.Name}}'").stdout.split()
    assert {"net-busy", "net-foreign", "bridge"} <= set(left)
    assert "net-orphan" not in left
    zoo.run("docker network disconnect net-busy api-5")
