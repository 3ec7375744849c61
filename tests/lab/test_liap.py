"""liap on a real host: games are played over websockets, archived, and survive updates, good ones and bad ones."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import canary, network
from tests.lab.lab import Lab
from tests.lab.liap_site import Players, Site, names, play, site_of, wait_until
from tests.lab.s3server import S3Server
from tests.lab.state import wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

STACK = "liap | Run the stack"


@pytest.fixture(scope="module")
def site(lab: Lab) -> Iterator[Site]:
    with site_of(lab) as made:
        yield made


@pytest.fixture
def liap(site: Site) -> Site:
    """The site as it is to be, with its archive in files, whatever the test before did."""
    run = site.run()
    assert run.ok, run
    return site


def is_open(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(3)
        return probe.connect_ex((address, port)) == 0


@pytest.mark.gate
def test_from_a_host_with_docker_to_a_hundred_games_in_files(site: Site) -> None:
    host = site.host
    run = site.run()
    assert run.ok, run
    assert STACK in run.changed
    before = site.ids()
    assert sorted(before) == ["liap-backend-1", "liap-redis-1"]
    run = site.run()
    assert run.ok, run
    assert run.changed == []
    assert site.ids() == before

    for path, status in (("/health", 200), ("/health/ready", 200), ("/health/live", 200), ("/admin/drain", 403), ("/metrics", 403)):
        assert site.ask(path)[0] == status, path
    health = json.loads(site.ask("/health")[1])
    assert (health["status"], set(health["checks"].values())) == ("healthy", {"ok"})
    report = play(site, 100)
    assert (len(report.finished), report.lost, set(report.versions)) == (100, [], {"1.0.0"})
    wait_for("all games in files", lambda: site.archived() >= report.finished, 30)
    metrics = site.metrics()
    assert metrics["liap_games_completed_total"] >= 100
    assert (metrics["liap_games_active"], metrics["liap_archive_failures_total"]) == (0, 0)
    assert host.run("stat -c '%a %U' /var/lib/liap/archive").stdout == "750 liap\n"

    # nothing but nginx, and ssh, is reached from outside
    assert {port for port in (22, 80, 443, 3000, 5432, 6379, 8000, 8001, 9000, 9090, 9464) if is_open(host.address, port)} == {22, 80, 443}
    # Redis forgets rather than grows, and keeps nothing
    ask = "docker exec liap-redis-1 redis-cli --raw config get"
    for key, value in (("maxmemory-policy", "allkeys-lru"), ("save", ""), ("appendonly", "no"), ("maxmemory", str(32 * 1024**2))):
        assert host.run(f"{ask} {key}").stdout.splitlines()[1:2] in ([value], [] if value == "" else [value]), key
    assert host.run("docker exec -e REDISCLI_AUTH= liap-redis-1 redis-cli ping", check=False).stdout.startswith("NOAUTH")
    limits = json.loads(host.run("docker inspect liap-backend-1").stdout)[0]["HostConfig"]
    assert limits["Memory"] == 320 * 1024**2
    assert limits["ReadonlyRootfs"] is True


def test_no_secret_stands_where_it_should_not(liap: Site) -> None:
    host, secrets = liap.host, {key: value for key, value in liap.secrets.items() if key.startswith("LIAP_REDIS")}
    # every run that changes something, seen from the host's process table
    with canary.sampled(host, secrets) as samples:
        run = liap.run(max_active_games=9999)
    assert run.ok, run
    assert canary.in_text(run.stdout + run.stderr, secrets) == []
    assert samples.arguments == set()
    for path, mode in canary.files(host, secrets).items():
        is_own = re.match(r"/etc/hostwright/compose/liap/", path) and (mode.startswith("600 root") or "/files/" in path)
        is_engines = path.startswith(("/var/lib/docker/", "/var/lib/containerd/", "/run/docker", "/run/containerd"))
        assert is_own or is_engines, (path, mode)
        # whatever its own mode: a directory above it keeps everybody else out
        assert host.run(f"setpriv --reuid=65534 --regid=65534 --clear-groups head -c 1 '{path}'", check=False).returncode != 0, path
    # what is mounted must be read by whoever the container is: above it all is root's alone
    assert host.run("stat -c '%a %U' /etc/hostwright/compose/liap").stdout == "700 root\n"


def test_upgrade_waits_for_fifty_active_games(liap: Site) -> None:
    players = Players(liap.host.address, 50, moves=60, pause=0.5).start()
    wait_until("50 games", 60, lambda: len(players.begun) >= 50)
    run = liap.run(version="1.1.0", drain_seconds=600)
    assert run.ok, run
    assert STACK in run.changed
    # those who were told to come back have come back
    wait_until("games on the new release", 60, lambda: players.report.versions["1.1.0"] >= 10)
    report = players.end()
    assert report.lost == []
    assert len(report.finished) == sum(report.versions.values())
    assert report.versions["1.0.0"] >= 50
    wait_for("all games in files", lambda: liap.archived() >= report.finished, 30)
    assert json.loads(liap.ask("/health")[1])["version"] == "1.1.0"
    assert liap.run(version="1.1.0").changed == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"version": "bad-start"}, "this release cannot start: no module named liap.missing"),
        ({"version": "bad-health"}, "the trial of backend failed"),
        ({"version": "9.9.9"}, "cannot be pulled"),
        # a Compose file that Compose refuses
        ({"cpus": 250.0}, "Range of CPUs is from"),
    ],
)
def test_bad_release_and_bad_file_leave_games_alone(liap: Site, settings: dict[str, object], words: str) -> None:
    before = liap.ids()
    players = Players(liap.host.address, 10, moves=20, pause=0.3).start()
    wait_until("10 games", 60, lambda: len(players.begun) >= 10)
    run = liap.run(**settings)
    assert run.failed == [STACK], run
    assert words in run.stderr, run
    report = players.end()
    assert (report.lost, set(report.refused)) == ([], set())
    assert liap.ids() == before
    assert liap.run().changed == []


def test_a_bad_release_without_a_trial_brings_the_old_one_back(liap: Site) -> None:
    players = Players(liap.host.address, 10, moves=20, pause=0.3).start()
    wait_until("10 games", 60, lambda: len(players.begun) >= 10)
    run = liap.run(version="bad-start", trial_enabled=False)
    assert run.failed == [STACK], run
    assert "what was before runs again" in run.stderr
    wait_until("games again", 60, lambda: not players.report.lost and len(players.begun) > len(players.report.finished))
    report = players.end()
    assert report.lost == []
    wait_for("all games in files", lambda: liap.archived() >= report.finished, 30)
    assert liap.run().changed == []


def test_start_stop_status_and_reset_by_hand(liap: Site) -> None:
    host = liap.host
    done = liap.type("deploys.liap.status")
    assert "runs: backend, redis" in done.stdout, done.stdout
    players = Players(host.address, 5, moves=10, pause=0.3, rounds=1).start()
    wait_until("5 games", 60, lambda: len(players.begun) >= 5)
    done = liap.type("deploys.liap.stop")
    assert done.returncode == 0, done.stdout
    assert liap.ids() == {}
    report = players.wait()
    assert (len(report.finished), report.lost) == (5, [])
    assert liap.archived() >= report.finished
    done = liap.type("deploys.liap.start")
    assert done.returncode == 0, done.stdout
    assert sorted(liap.ids()) == ["liap-backend-1", "liap-redis-1"]
    before = liap.ids()

    for words, settings, said in (
        (["deploys.liap.reset"], {}, "typed must be the name of the host, 't-liap', got ''"),
        (["deploys.liap.reset", "typed=other"], {}, "typed must be the name of the host"),
        (["deploys.liap.reset", "typed=t-liap"], {"environment": "production", "swap_mb": 0}, "liap_environment is 'production'"),
    ):
        done = liap.type(*words, **settings)
        assert done.returncode != 0, done.stdout
        assert said in done.stdout, done.stdout
        assert liap.ids() == before
        assert liap.archived() >= report.finished
    done = liap.type("deploys.liap.reset", "typed=t-liap")
    assert done.returncode == 0, done.stdout
    assert (liap.ids(), host.run("docker volume ls -q; ls -d /var/lib/liap/archive 2>/dev/null", check=False).stdout) == ({}, "")
    assert liap.run().ok
    assert len(play(liap, 10).finished) == 10


def test_archive_in_postgresql(liap: Site) -> None:
    run = liap.run(archive_backend="postgresql")
    assert run.ok, run
    before = liap.ids()
    assert sorted(before) == ["liap-backend-1", "liap-postgres-1", "liap-redis-1"]
    run = liap.run(archive_backend="postgresql")
    assert (run.changed, liap.ids()) == ([], before)
    report = play(liap, 100)
    assert (len(report.finished), report.lost) == (100, [])
    ask = "docker exec liap-postgres-1 psql -U archive -d liap_archive -At -c"
    rows = f"{ask} 'SELECT game_id FROM archive.completed_games'"
    wait_for("all games in the database", lambda: set(liap.host.run(rows).stdout.split()) >= report.finished, 30)
    assert liap.host.run(f"{ask} 'SELECT count(*) FROM archive.game_events'").stdout == "500\n"
    assert not is_open(liap.host.address, 5432)


def test_archive_in_s3(lab: Lab, liap: Site) -> None:
    server = S3Server(lab.slot, network.gateway(lab.slot)).start()
    try:
        client = server.client("s3", region="us-east-1")
        liap.secrets |= {"LIAP_S3_ACCESS_KEY": server.owner.access_key, "LIAP_S3_SECRET_KEY": server.owner.secret_key}
        settings = {"archive_backend": "s3", "s3_endpoint_url": server.url}
        # asked before anything is changed
        before = liap.ids()
        run = liap.run("from deploys.liap import preflight\npreflight()\n", **settings)
        assert run.rc == 1, run
        assert "liap-archives" in run.stderr, run
        assert liap.ids() == before
        client.create_bucket(Bucket="liap-archives")
        run = liap.run(**settings)
        assert run.ok, run
        assert liap.run(**settings).changed == []
        report = play(liap, 100)
        assert (len(report.finished), report.lost) == (100, [])

        def keys() -> list[str]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket="liap-archives", Prefix="games/")
            return [one["Key"] for page in pages for one in page.get("Contents", [])]

        wait_for("all games in the bucket", lambda: names(keys()) >= report.finished, 30)
    finally:
        server.stop()


def test_the_guides_dev_and_test_stacks(liap: Site) -> None:
    host = liap.host
    runner = liap.registry.image("liap-backend", "1.0.0")
    settings: dict[str, object] = {
        "stacks": ["dev", "test"],
        "stack_profiles": ["archive"],
        "stack_password": "env:LIAP_STACK_PASSWORD",
        "stack_images": {"s3": liap.registry.image("s3", "1")},
    }
    assert runner
    run = liap.run(**settings)
    assert run.ok, run
    running = set(host.run("docker ps --format '{{.Names}}'").stdout.split())
    assert {"liap-dev-redis-1", "liap-dev-postgres-archive-1", "liap-dev-s3-1", "liap-test-postgres-test-1", "liap-test-redis-test-1"} <= running
    assert {port for port in (5432, 5434, 6379, 6380, 9000) if is_open(host.address, port)} == set()
    assert liap.run(**settings).changed == []
    run = liap.run()
    assert run.ok, run
    assert {name for name in host.run("docker ps --format '{{.Names}}'").stdout.split() if "dev" in name or "test" in name} == set()


def test_killed_while_games_are_drained(liap: Site, tmp_path: Path) -> None:
    """The operator's machine dies in the middle of an upgrade: what was begun goes on on the host, and nothing is lost."""
    from tests.lab.kill import Point, kill_run

    players = Players(liap.host.address, 20, moves=40, pause=0.5).start()
    wait_until("20 games", 60, lambda: len(players.begun) >= 20)
    deploy = "from deploys.liap import start\nstart()\n"
    kill_run(liap.command(tmp_path, deploy, version="1.1.0"), liap.secrets, Point(0, 4))
    run = liap.run(version="1.1.0", drain_seconds=300)
    assert run.ok, run
    assert json.loads(liap.ask("/health")[1])["version"] == "1.1.0"
    report = players.end()
    assert report.lost == []
    wait_for("all games in files", lambda: liap.archived() >= report.finished, 30)
