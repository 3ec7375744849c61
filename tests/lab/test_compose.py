"""A Compose project on a real engine, with small servers in the application's place; read back with docker and curl."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import images
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line
from tests.lab.registry import Registry
from tests.lab.state import REPOSITORY, wait_for

pytestmark = pytest.mark.soak

# Serves /var/www on 8080; `lamp drain`, `lamp busy` and `lamp resume` are how it is emptied; GAMES is what it has to do.
LAMP = """#!/bin/sh
case $1 in
drain) touch /tmp/draining; exit ;;
resume) rm -f /tmp/draining; exit ;;
busy) cat /tmp/games; exit ;;
esac
trap 'exit 0' TERM INT
echo "lamp $LAMP with $LAMP_API_KEY"
echo 0 >/tmp/games
case $MODE in
crashes) echo "lamp cannot find its bulb" >&2; exit 3 ;;
unhealthy) ;;
*) touch /tmp/well ;;
esac
httpd -p 8080 -h /var/www
while :; do sleep 1 & wait $!; done
"""
SECRET = "canary-key-$of the-lamp-0123456789"
HEALTH = {"test": ["CMD", "test", "-e", "/tmp/well"], "interval": "1s", "timeout": "20s", "retries": 3, "start_period": "2s"}
DRAIN = "{'lamp': Drain(('lamp', 'drain'), ('lamp', 'busy'), ('lamp', 'resume'), seconds=%d)}"


class Site:
    """A host with an engine and Compose, and one project on it: ``lamp`` and what it stands on, ``base``."""

    def __init__(self, host: LabHost, registry: Registry, provision: Callable[..., Run]) -> None:
        self.host, self.registry, self._provision = host, registry, provision
        self.push("1")
        self.push("2")

    def push(self, tag: str, **differs: Any) -> str:
        differs = {"command": ["lamp"], **differs}
        made = images.make(images.get("busybox"), files={"/bin/lamp": LAMP, "/etc/made": tag}, **differs)
        return self.registry.push("team/lamp", tag, made)

    def spec(self, tag: str = "1", mode: str = "", base: str = "one", **lamp: Any) -> dict[str, Any]:
        image = f"{self.registry.name}/team/lamp"
        return {
            "services": {
                "lamp": {
                    "image": f"{image}:{tag}",
                    "environment": {"LAMP": "one", "MODE": mode, "LAMP_API_KEY": SECRET},
                    "ports": ["127.0.0.1:8080:8080"],
                    "volumes": ["./page.html:/var/www/index.html:ro", "data:/data"],
                    "healthcheck": HEALTH,
                    "stop_grace_period": "5s",
                    "depends_on": {"base": {"condition": "service_healthy"}},
                    **lamp,
                },
                "base": {
                    "image": f"{image}:1", "environment": {"LAMP": base}, "healthcheck": HEALTH, "stop_grace_period": "5s",
                },
                "extra": {"image": f"{image}:1", "profiles": ["more"], "healthcheck": HEALTH, "stop_grace_period": "5s"},
            },
            "volumes": {"data": {}},
        }  # fmt: skip

    def text(self, spec: dict[str, Any] | None, page: str = "a page", drain: int = 30, call: str = "", **arguments: Any) -> str:
        given = "".join(f", {key}={value!r}" for key, value in arguments.items())
        call = call or f"project('site', {spec!r}, files={{'page.html': {page!r}}}, drains={DRAIN % drain}{given}"
        return (
            "from operations import compose\nfrom operations.compose import Drain\nfrom settings.secret import Secret\n"
            f"compose.{call}, name='Run the site')\n"
        ).replace(repr(SECRET), f"Secret({SECRET!r})")

    def run(self, spec: dict[str, Any] | None = None, dry: bool = False, **arguments: Any) -> Run:
        self.registry.start()  # a run of another part of the lab may have ended it
        return self._provision(self.host, self.text(spec, **arguments), dry=dry)

    # --- what is there ------------------------------------------------------------------------------------------------

    def ids(self) -> dict[str, str]:
        """Running containers, and since when, by name: changes when one is replaced, stopped or started."""
        listing = self.host.run("docker ps -q --filter label=com.docker.compose.project=site | xargs -r docker inspect").stdout
        return {one["Name"].lstrip("/"): one["Id"] + one["State"]["StartedAt"] for one in json.loads(listing or "[]")}

    def inspect(self, name: str = "site-lamp-1") -> dict[str, Any]:
        return json.loads(self.host.run(f"docker inspect {name}").stdout)[0]

    def page(self) -> str:
        return self.host.run("curl -sS -m 5 --retry 3 --retry-connrefused http://127.0.0.1:8080/", check=False).stdout

    def tag(self) -> str:
        return self.host.run("docker exec site-lamp-1 cat /etc/made").stdout


@pytest.fixture(scope="module")
def site(lab: Lab, provision: Callable[..., Run]) -> Iterator[Site]:
    registry = lab.registry()
    host = lab.host("t-compose", "trixie", layer="docker")
    registry.admit(host)
    yield Site(host, registry, provision)
    lab.destroy(host)


@pytest.fixture
def lamp(site: Site) -> Site:
    """The site with its project as it is to be, whatever the test before did."""
    run = site.run(site.spec())
    assert run.ok, run
    return site


def test_set_noop_update_down_reset(site: Site) -> None:
    host = site.host
    assert site.run(site.spec(), dry=True).changed == ["Run the site"]
    assert site.ids() == {}
    run = site.run(site.spec())
    assert run.changed == ["Run the site"], run
    first = site.ids()
    assert sorted(first) == ["site-base-1", "site-lamp-1"]
    assert site.inspect()["State"]["Health"]["Status"] == "healthy"
    assert f"LAMP_API_KEY={SECRET}" in site.inspect()["Config"]["Env"]
    assert site.page() == "a page"
    found = host.run("cd /etc/hostwright/compose/site && stat -c '%a %U %n' . compose.yaml state.json").stdout
    assert found == "700 root .\n600 root compose.yaml\n600 root state.json\n"
    assert SECRET not in run.stdout + run.stderr

    assert site.run(site.spec()).changed == []
    assert site.run(site.spec(), pull="moved").changed == []
    assert site.ids() == first

    # a variable of one service: that one alone is made anew
    assert site.run(site.spec(mode="bright"), dry=True).changed == ["Run the site"]
    assert site.ids() == first
    run = site.run(site.spec(mode="bright"))
    assert run.changed == ["Run the site"], run
    second = site.ids()
    assert second["site-base-1"] == first["site-base-1"]
    assert second["site-lamp-1"] != first["site-lamp-1"]
    # what it mounts: likewise
    assert site.run(site.spec(mode="bright"), page="another page").ok
    third = site.ids()
    assert (third["site-base-1"], site.page()) == (first["site-base-1"], "another page")
    assert third["site-lamp-1"] != second["site-lamp-1"]
    # an image
    assert site.run(site.spec("2", "bright"), page="another page").ok
    assert site.tag() == "2"
    # a profile on, and off again
    assert site.run(site.spec("2", "bright"), page="another page", profiles=["more"]).ok
    assert sorted(site.ids()) == ["site-base-1", "site-extra-1", "site-lamp-1"]
    assert site.run(site.spec("2", "bright"), page="another page", profiles=["more"]).changed == []
    assert site.run(site.spec("2", "bright"), page="another page").ok
    assert sorted(site.ids()) == ["site-base-1", "site-lamp-1"]
    # a service that is gone from the file
    alone = site.spec("2", "bright")
    del alone["services"]["base"], alone["services"]["lamp"]["depends_on"]
    assert site.run(alone, page="another page").ok
    assert sorted(site.ids()) == ["site-lamp-1"]

    host.run("docker exec site-lamp-1 sh -c 'echo kept >/data/it'")
    assert site.run(None, present=False).changed == ["Run the site"]
    assert site.run(None, present=False).changed == []
    assert host.run("docker ps -aq; ls /etc/hostwright/compose; docker network ls -q --filter name=site").stdout == ""
    assert host.run("docker volume ls -q").stdout == "site_data\n"
    # the data are there when it is up again
    assert site.run(site.spec()).ok
    assert host.run("docker exec site-lamp-1 cat /data/it").stdout == "kept\n"

    assert site.run(call="stopped('site'").changed == ["Run the site"]
    assert (site.ids(), site.run(call="stopped('site'").changed) == ({}, [])
    assert site.run(site.spec()).changed == ["Run the site"]
    assert sorted(site.ids()) == ["site-base-1", "site-lamp-1"]

    assert site.run(call="remove_project_with_its_data('site'").changed == ["Run the site"]
    assert host.run("docker ps -aq; docker volume ls -q; docker network ls -q --filter name=site").stdout == ""
    assert site.run(call="remove_project_with_its_data('site'").changed == []


def test_what_was_changed_by_hand_is_put_right(lamp: Site) -> None:
    host = lamp.host
    for harm in (
        "docker stop -t 1 site-lamp-1",
        "docker pause site-lamp-1",
        "docker rm -f site-lamp-1",
        "docker rm -f site-lamp-1 site-base-1",
        "echo other >/etc/hostwright/compose/site/compose.yaml",
        "chmod 644 /etc/hostwright/compose/site/compose.yaml",
        "echo other >$(ls /etc/hostwright/compose/site/files/*/page.html)",
        "docker run -d --name stray --label com.docker.compose.project=site --label com.docker.compose.service=gone "
        f"{lamp.registry.name}/team/lamp:1",
    ):
        before = lamp.ids()
        host.run(harm)
        run = lamp.run(lamp.spec())
        assert run.changed == ["Run the site"], (harm, run)
        assert sorted(lamp.ids()) == ["site-base-1", "site-lamp-1"], harm
        assert lamp.page() == "a page", harm
        assert lamp.run(lamp.spec()).changed == [], harm
        if "site-base-1" not in harm:
            assert lamp.ids()["site-base-1"] == before["site-base-1"], harm


def test_a_bad_update_that_never_starts_touches_nothing(lamp: Site) -> None:
    host, before = lamp.host, lamp.ids()
    # what Compose refuses, an image that is not there, a port that is taken: nothing is touched
    for spec, words in (
        (lamp.spec(healthcheck={"test": "x", "wrong_key": 1}), "Compose refuses the file"),
        (lamp.spec(networks=["nowhere"]), "Compose refuses the file"),
        (lamp.spec("9"), "cannot be pulled"),
        (lamp.spec(ports=["127.0.0.1:22:8080"]), "port 127.0.0.1:22/tcp is in use by"),
        (lamp.spec(volumes=["/nowhere:/data"]), "/nowhere, to be mounted on /data, does not exist on this host"),
    ):
        run = lamp.run(spec)
        assert run.failed == ["Run the site"], run
        assert words in run.stderr, run
        assert lamp.ids() == before
        assert lamp.run(lamp.spec()).changed == []
    # what does not start or does not become well, with a trial: nothing of the old one has stopped
    for mode, words in (("crashes", "lamp cannot find its bulb"), ("unhealthy", "unhealthy")):
        run = lamp.run(lamp.spec(mode=mode), trial=["lamp"], start_seconds=20)
        assert run.failed == ["Run the site"], run
        assert words in run.stderr, run
        assert "nothing of the project was stopped" in run.stderr
        assert SECRET not in run.stdout + run.stderr
        assert lamp.ids() == before
        assert host.run("docker ps -aq | wc -l").stdout == "2\n"


@pytest.mark.parametrize(
    ("mode", "words"), [pytest.param("crashes", "lamp cannot find its bulb", marks=pytest.mark.gate), ("unhealthy", "unhealthy")]
)
def test_a_bad_update_without_a_trial_brings_back_what_was_before(lamp: Site, mode: str, words: str) -> None:
    before = lamp.ids()
    assert lamp.run(lamp.spec()).changed == []
    assert (sorted(before), lamp.ids()) == (["site-base-1", "site-lamp-1"], before)
    run = lamp.run(lamp.spec("2", mode=mode, base="two"), page="bad page", start_seconds=20)
    assert run.failed == ["Run the site"], run
    assert words in run.stderr, run
    assert "what was before runs again" in run.stderr
    assert SECRET not in run.stdout + run.stderr
    assert (lamp.page(), lamp.tag()) == ("a page", "1")
    assert lamp.inspect()["State"]["Health"]["Status"] == "healthy"
    assert lamp.run(lamp.spec()).changed == []
    assert lamp.host.run("ls /etc/hostwright/compose/site").stdout.split() == ["compose.yaml", "files", "state.json"]


def test_a_moved_tag_comes_and_a_bad_one_goes_back(lamp: Site) -> None:
    lamp.push("moving")
    assert lamp.run(lamp.spec("moving"), pull="moved").ok
    first = lamp.ids()
    lamp.push("moving", environment={"MADE": "later"})
    assert lamp.run(lamp.spec("moving")).changed == []
    assert lamp.run(lamp.spec("moving"), pull="moved").changed == ["Run the site"]
    assert lamp.ids()["site-base-1"] == first["site-base-1"]
    assert "MADE=later" in lamp.inspect()["Config"]["Env"]
    good = lamp.inspect()["Image"]
    lamp.push("moving", command=["false"])
    run = lamp.run(lamp.spec("moving"), pull="moved", start_seconds=20)
    assert run.failed == ["Run the site"], run
    assert "what was before runs again" in run.stderr
    assert lamp.inspect()["Image"] == good
    # the name means the good one again, so that a run which does not ask the registry has nothing to do
    assert lamp.run(lamp.spec("moving")).changed == []


def test_a_first_start_that_fails_leaves_nothing_but_volumes(site: Site) -> None:
    assert site.run(call="remove_project_with_its_data('site'").ok
    run = site.run(site.spec(mode="crashes"), start_seconds=20)
    assert run.failed == ["Run the site"], run
    assert "lamp cannot find its bulb" in run.stderr
    assert site.host.run("docker ps -aq; docker network ls -q --filter name=site").stdout == ""
    assert site.run(site.spec()).ok
    assert site.page() == "a page"


def test_what_is_drained_is_waited_for(lamp: Site) -> None:
    host, before = lamp.host, lamp.ids()
    host.run("docker exec site-lamp-1 sh -c 'echo 3 >/tmp/games; (sleep 8; echo 0 >/tmp/games) >/dev/null 2>&1 &'")
    began = time.monotonic()
    assert lamp.run(lamp.spec(mode="bright"), drain=120).ok
    assert time.monotonic() - began > 8
    assert lamp.ids()["site-base-1"] == before["site-base-1"]
    # after the limit what is left is cut off, and that is said
    host.run("docker exec site-lamp-1 sh -c 'echo 7 >/tmp/games'")
    run = lamp.run(lamp.spec(), drain=3)
    assert run.ok, run
    assert "site-lamp-1 still has 7 after 3 s: that is cut off" in run.stdout + run.stderr
    # a change that does not touch it does not drain it
    host.run("docker exec site-lamp-1 sh -c 'echo 7 >/tmp/games'")
    kept = lamp.ids()["site-lamp-1"]
    assert lamp.run(lamp.spec(base="two"), drain=120).ok
    assert lamp.ids()["site-lamp-1"] == kept


def kill_when(site: Site, directory: Path, text: str, reached: Callable[[], bool]) -> None:
    """Start a run and kill it and its program on the host at a point, as a host does that loses its power in between."""
    command = command_line(directory, site.host, text)
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for("the point to kill at", lambda: process.poll() is not None or reached(), 120)
        assert process.poll() is None, "the run was over before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    site.host.run(
        "for one in /proc/[0-9]*; do tr '\\0' ' ' 2>/dev/null <$one/cmdline | grep -q '^python3 -B - $' && kill -9 ${one#/proc/}; done",
        check=False,
    )


def test_killed_while_it_drains_and_called_off(lamp: Site, tmp_path: Path) -> None:
    host, before = lamp.host, lamp.ids()
    host.run("docker exec site-lamp-1 sh -c 'echo 5 >/tmp/games'")
    drains = lambda: host.run("docker exec site-lamp-1 test -e /tmp/draining", check=False).returncode == 0  # noqa: E731
    kill_when(lamp, tmp_path, lamp.text(lamp.spec(mode="bright"), drain=300), drains)
    assert lamp.ids() == before
    assert drains()
    # the operator takes the change back: the games go on, and new ones are let in again
    assert lamp.run(lamp.spec()).changed == ["Run the site"]
    assert lamp.ids() == before
    assert not drains()
    assert lamp.run(lamp.spec()).changed == []


def test_killed_anywhere_the_next_run_ends_it(lamp: Site, tmp_path: Path) -> None:
    host = lamp.host
    points: list[tuple[str, str]] = [
        ("next", "test -e /etc/hostwright/compose/site/next.yaml"),
        ("trial", "docker ps -a --format '{{.Names}}' | grep -q trial"),
        ("stopped", "! docker ps --format '{{.Names}} {{.Status}}' | grep -q 'site-lamp-1 Up'"),
        ("anew", "docker ps --format '{{.Image}} {{.Names}}' | grep -q 'lamp:2 site-lamp-1'"),
    ]
    tags = ["2", "1"]
    for number, (point, command) in enumerate(points):
        tag = "2" if point == "anew" else tags[number % 2]
        if point == "anew":
            assert lamp.run(lamp.spec("1")).ok
        scratch = tmp_path / point
        scratch.mkdir()
        spec = lamp.spec(tag, healthcheck={**HEALTH, "interval": "3s"})
        kill_when(lamp, scratch, lamp.text(spec, trial=["lamp"]), lambda c=command: host.run(c, check=False).returncode == 0)
        run = lamp.run(spec, trial=["lamp"])
        assert run.ok, (point, run)
        assert (sorted(lamp.ids()), lamp.tag()) == (["site-base-1", "site-lamp-1"], tag), point
        assert host.run("docker ps -aq | wc -l").stdout == "2\n", point
        assert lamp.run(spec, trial=["lamp"]).changed == [], point


def test_a_host_without_compose_is_refused_and_not_touched(lab: Lab, provision: Callable[..., Run]) -> None:
    """Debian 12's own packages have Compose 1.29 as docker-compose, and no `docker compose`."""
    host = lab.host("t-compose-old", "bookworm", layer="docker")
    try:
        text = (
            "from operations import compose\n"
            "compose.project('site', {'services': {'a': {'image': 'registry.test/a:1'}}}, name='Run the site')\n"
        )
        run = provision(host, text)
        assert not run.ok, run
        assert "needs Compose 2.20 or newer as `docker compose`, got none" in run.stderr, run
        assert "docker_source = 'docker'" in run.stderr
        assert host.run("ls /etc/hostwright 2>/dev/null", check=False).stdout == ""
    finally:
        lab.destroy(host)
