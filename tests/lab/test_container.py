"""One container on a real engine, with a small server in the application's place; read back with docker and curl."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from facts.container import Container
from operations import container, script
from operations.container import Health, Log, Mount, Network, Publish, Spec
from settings.secret import Secret
from tests.lab import images
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line
from tests.lab.registry import Registry
from tests.lab.state import REPOSITORY, wait_for

# Serves /var/www on 8080 and ends at once when told to; what else it does is in MODE.
LAMP = """#!/bin/sh
trap 'exit 0' TERM INT
echo "lamp $LAMP with $LAMP_API_KEY"
case $MODE in
crashes) echo "lamp cannot find its bulb" >&2; exit 3 ;;
dies) sleep 1; exit 4 ;;
hungry) tail /dev/zero ;;
unhealthy) ;;
*) touch /tmp/well ;;
esac
httpd -p 8080 -h /var/www
while :; do sleep 1 & wait $!; done
"""
SECRET = "canary-key-of-the-lamp-0123456789"
WELL = Health(("test", "-e", "/tmp/well"), interval_seconds=1, timeout_seconds=20, retries=3, start_seconds=2)


class Site:
    """A host with an engine, and one container on it that the tests call ``lamp``."""

    def __init__(self, host: LabHost, registry: Registry, provision: Callable[..., Run]) -> None:
        self.host, self.registry = host, registry
        self._provision = provision
        self.image = self.push("1")
        self.spec = Spec(
            image=self.image,
            environment=Secret(f"LAMP=one\nLAMP_API_KEY={SECRET}\n"),
            stop_seconds=5,
            health=WELL,
        )

    def push(self, tag: str, **differs: Any) -> str:
        made = images.make(images.get("busybox"), files={"/bin/lamp": LAMP}, command=["/bin/lamp"], **differs)
        return self.registry.push("team/lamp", tag, made)

    def mode(self, mode: str, **differs: Any) -> Spec:
        return replace(self.spec, environment=Secret(f"LAMP=two\nMODE={mode}\nLAMP_API_KEY={SECRET}\n"), **differs)

    # --- as an operator does it: pyinfra --------------------------------------------------------------------------

    def text(self, spec: Spec | None, name: str = "lamp", **arguments: object) -> str:
        plain = spec and {field: getattr(spec, field) for field in spec.__dataclass_fields__}
        if spec and plain:
            plain["environment"] = container.environment_text(spec)
        given = "".join(f", {key}={value!r}" for key, value in arguments.items())
        built = f"Spec(**{plain!r})" if spec else "None"
        return (
            "from operations import container\n"
            "from operations.container import Health, Log, Mount, Network, Publish, Spec\n"
            f"container.container({name!r}, {built}{given}, name='Run lamp')\n"
        )

    def run(self, spec: Spec | None, dry: bool = False, **arguments: object) -> Run:
        return self._provision(self.host, self.text(spec, **arguments), dry=dry)

    # --- the same programs without pyinfra around them: many cases in little time ---------------------------------

    def program(self, spec: Spec | None, pull: str = "missing", start_seconds: int = 30, before: str = "") -> str:
        values = container._values("lamp", spec, pull, start_seconds)
        text = script.python_text(container._PROGRAMS, values)
        head, sign, call = text.rpartition("import json as _json\nmain(")
        return head + before + sign + call

    def converge(self, spec: Spec | None, **arguments: Any) -> subprocess.CompletedProcess[str]:
        return self.host.run("python3 -B -", check=False, input=self.program(spec, **arguments), timeout=200)

    def owed(self, spec: Spec, pull: str = "missing") -> list[str]:
        """What a run would do; empty when nothing."""
        fact = Container()
        command = fact.command(container="lamp", spec=container._public(spec), pull=pull)
        found = fact.process(self.host.run(command).stdout.splitlines())
        return [found.refused] if found.refused else container.owed(spec, found)

    # --- what is there ---------------------------------------------------------------------------------------------

    def inspect(self, name: str = "lamp") -> dict[str, Any]:
        return json.loads(self.host.run(f"docker inspect {name}").stdout)[0]

    def life(self, name: str = "lamp") -> tuple[str, str, str]:
        """Changes when a container is replaced, started again or stopped."""
        found = self.inspect(name)
        return found["Id"], found["State"]["StartedAt"], found["State"]["Status"]

    def names(self) -> list[str]:
        return self.host.run("docker ps -a --format '{{.Names}}'").stdout.split()


@pytest.fixture(scope="module")
def registry(lab: Lab) -> Registry:
    return lab.registry()


def new_site(host: LabHost, registry: Registry, provision: Callable[..., Run]) -> Site:
    registry.admit(host)
    host.run("docker network create front; docker network create back; docker volume create data")
    return Site(host, registry, provision)


@pytest.fixture(scope="module", params=["bookworm", pytest.param("trixie", marks=pytest.mark.soak)])
def site(lab: Lab, registry: Registry, request: pytest.FixtureRequest, provision: Callable[..., Run]) -> Iterator[Site]:
    host = lab.host("t-container", request.param, layer="docker")
    yield new_site(host, registry, provision)
    lab.destroy(host)


@pytest.fixture
def lamp(site: Site) -> Site:
    """The site with lamp one on it, alone, whatever the test before did."""
    others = [name for name in site.names() if name != "lamp"]
    if others:
        site.host.run(f"docker rm -f {' '.join(others)}")
    done = site.converge(site.spec)
    assert done.returncode == 0, done.stderr
    assert site.owed(site.spec) == []
    return site


# --- one container ------------------------------------------------------------------------------------------------------


def test_set_noop_update_unset(site):
    host = site.host
    host.run("docker rm -f lamp", check=False)
    assert site.run(site.spec, dry=True).changed == ["Run lamp"]
    assert site.names() == []
    assert site.run(site.spec).changed == ["Run lamp"]
    first = site.life()
    assert site.inspect()["State"]["Health"]["Status"] == "healthy"
    assert host.run("stat -c '%a %U' /etc/hostwright/containers/lamp.env").stdout == "600 root\n"
    assert host.run("stat -c %a /etc/hostwright/containers").stdout == "700\n"

    assert site.run(site.spec).changed == []
    assert site.life() == first

    two = replace(site.spec, image=site.push("2", environment={"MADE": "later"}))
    assert site.run(two, dry=True).changed == ["Run lamp"]
    assert site.life() == first
    assert site.run(two).changed == ["Run lamp"]
    assert site.life()[0] != first[0]
    assert "MADE=later" in site.inspect()["Config"]["Env"]
    assert site.names() == ["lamp"]
    assert site.owed(two) == []

    assert site.run(None, present=False).changed == ["Run lamp"]
    assert site.names() == []
    assert host.run("ls /etc/hostwright/containers").stdout == ""
    assert site.run(None, present=False).changed == []


def test_every_field_reaches_the_engine(site):
    host = site.host
    host.run("mkdir -p /srv/lamp && echo from the host >/srv/lamp/index.html")
    full = Spec(
        image=site.image,
        entrypoint=("/bin/sh", "-c"),
        command=("exec /bin/lamp",),
        environment=Secret(f"LAMP=one\nLAMP_API_KEY={SECRET}\nODD=a b #c $d \"e\" 'f'\n"),
        mounts=(Mount("data", "/data"), Mount("/srv/lamp", "/var/www", read_only=True)),
        networks=(Network("front", ("light", "bulb")), Network("back", ("lamp_two",))),
        publish=(Publish(8080, 8080), Publish(8081, 8080, ""), Publish(8082, 8080, "::1"), Publish(5353, 53, "127.0.0.1", "udp")),
        labels={"colour": "warm white"},
        cpus=0.5,
        memory_mb=64,
        pids=40,
        restart="on-failure:3",
        health=WELL,
        log=Log(max_size_mb=3, files=2),
        user="65534:65534",
        groups=("1234",),
        cap_drop=("ALL",),
        cap_add=("NET_BIND_SERVICE",),
        read_only=True,
        tmpfs=("/tmp:size=1m,mode=1777", "/run"),
        shm_mb=8,
        stop_signal="SIGINT",
        stop_seconds=7,
        platform="linux/amd64",
        hostname="lamp.example",
        extra_hosts={"db": "10.1.2.3", "db6": "fd00::5"},
    )
    # Every command line of the host while it happens: none may hold the secret.
    sampler = "while [ ! -e /tmp/enough ]; do cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; done >/tmp/seen"
    host.run(f"rm -f /tmp/enough; ({sampler}) >/dev/null 2>&1 &")
    done = site.run(full)
    host.run("touch /tmp/enough")
    assert done.changed == ["Run lamp"], done
    seen = host.run("cat /tmp/seen; rm /tmp/seen").stdout
    assert "docker create --name lamp.new" in seen
    assert SECRET not in seen
    assert SECRET not in done.stdout + done.stderr

    found = site.inspect()
    limits, config = found["HostConfig"], found["Config"]
    assert (limits["NanoCpus"], limits["Memory"], limits["MemorySwap"]) == (500_000_000, 64 << 20, 64 << 20)
    assert (limits["PidsLimit"], limits["ShmSize"]) == (40, 8 << 20)
    assert limits["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert limits["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "3m", "max-file": "2"}}
    assert limits["CapDrop"] == ["ALL"]
    assert [one.removeprefix("CAP_") for one in limits["CapAdd"]] == ["NET_BIND_SERVICE"]
    assert limits["SecurityOpt"] == ["no-new-privileges"]
    assert limits["ReadonlyRootfs"] is True
    assert limits["Tmpfs"] == {"/tmp": "size=1m,mode=1777", "/run": ""}
    assert limits["GroupAdd"] == ["1234"]
    assert limits["ExtraHosts"] == ["db:10.1.2.3", "db6:fd00::5"]
    assert {port: [(one["HostIp"], one["HostPort"]) for one in binds] for port, binds in limits["PortBindings"].items()} == {
        "8080/tcp": [("127.0.0.1", "8080"), ("", "8081"), ("::1", "8082")],
        "53/udp": [("127.0.0.1", "5353")],
    }
    assert (config["User"], config["Hostname"]) == ("65534:65534", "lamp.example")
    assert (config["StopSignal"], config["StopTimeout"]) == ("SIGINT", 7)
    assert (config["Entrypoint"], config["Cmd"]) == (["/bin/sh"], ["-c", "exec /bin/lamp"])
    assert config["Healthcheck"]["Test"] == ["CMD-SHELL", "test -e /tmp/well"]
    assert config["Healthcheck"]["Interval"] == 1_000_000_000
    assert "ODD=a b #c $d \"e\" 'f'" in config["Env"]
    assert config["Labels"]["colour"] == "warm white"
    assert config["Labels"]["hostwright.container"] == "lamp"
    assert config["Labels"]["hostwright.image"] == found["Image"]
    assert config["Labels"]["hostwright.spec"] == container.spec_hash(full)
    assert sorted((one["Type"], one["Destination"], one["RW"]) for one in found["Mounts"]) == [
        ("bind", "/var/www", False),
        ("volume", "/data", True),
    ]
    networks = found["NetworkSettings"]["Networks"]
    assert {name: set(one["Aliases"]) - {found["Id"][:12], "lamp.example"} for name, one in networks.items()} == {
        "front": {"light", "bulb"},
        "back": {"lamp_two"},
    }
    # and they do what they say
    for url in ("127.0.0.1:8080", f"{host.address}:8081", f"[{host.address6}]:8081", "[::1]:8082"):
        assert host.run(f"curl -gsS --retry 5 --retry-connrefused http://{url}/").stdout == "from the host\n", url
    assert host.run(f"curl -sS -m 5 http://{host.address}:8080/", check=False).returncode != 0
    other = f"docker run --rm --network back {site.image} wget -qO- http://lamp_two:8080/"
    assert host.run(other).stdout == "from the host\n"
    by_name = f"docker run --rm --network front {site.image} wget -qO- http://lamp:8080/"
    assert host.run(by_name).stdout == "from the host\n"
    assert host.run("docker exec lamp id").stdout.startswith("uid=65534(nobody) gid=65534(nogroup)")
    assert host.run("docker exec lamp touch /x", check=False).returncode != 0

    assert site.run(full).changed == []
    assert site.inspect()["Id"] == found["Id"]


def test_update_of_every_field_reaches_the_engine(site):
    """The spec before had other values everywhere."""
    other = Spec(
        image=site.push("3", environment={"MADE": "last"}),
        entrypoint=("/bin/lamp",),
        command=("a word", "$HOME"),
        environment=Secret("LAMP=three\n"),
        mounts=(Mount("data", "/elsewhere", read_only=True),),
        networks=(Network("back", ("bulb",)),),
        publish=(Publish(8090, 8080),),
        labels={"shade": "blue"},
        cpus=0.25,
        memory_mb=48,
        pids=30,
        restart="always",
        health=Health(("test", "-e", "/tmp/well", "-a", "-n", "a b"), interval_seconds=2, timeout_seconds=9, retries=5, start_seconds=3),
        log=Log(driver="journald"),
        user="65533",
        groups=("4321", "5"),
        cap_drop=(),
        cap_add=("CHOWN",),
        no_new_privileges=False,
        tmpfs=("/tmp:size=2m,mode=1777",),
        shm_mb=16,
        stop_signal="SIGTERM",
        stop_seconds=3,
        hostname="candle",
        extra_hosts={"db": "10.3.2.1"},
    )
    before = site.inspect()["Id"]
    assert site.owed(other) == ["its spec differs"]
    done = site.converge(other)
    assert done.returncode == 0, done.stderr
    assert site.owed(other) == []
    found = site.inspect()
    assert found["Id"] != before
    limits, config = found["HostConfig"], found["Config"]
    assert found["Image"] == site.host.run(f"docker image inspect -f '{{{{.Id}}}}' {other.image}").stdout.strip()
    assert (config["Entrypoint"], config["Cmd"]) == (["/bin/lamp"], ["a word", "$HOME"])
    assert {"LAMP=three", "MADE=last"} <= set(config["Env"])
    assert [(one["Name"], one["Destination"], one["RW"]) for one in found["Mounts"]] == [("data", "/elsewhere", False)]
    networks = found["NetworkSettings"]["Networks"]
    assert {name: set(one["Aliases"]) - {found["Id"][:12], "candle"} for name, one in networks.items()} == {"back": {"bulb"}}
    assert limits["PortBindings"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8090"}]}
    assert (config["Labels"]["shade"], "colour" in config["Labels"]) == ("blue", False)
    assert (limits["NanoCpus"], limits["Memory"], limits["MemorySwap"]) == (250_000_000, 48 << 20, 48 << 20)
    assert (limits["PidsLimit"], limits["ShmSize"], limits["RestartPolicy"]["Name"]) == (30, 16 << 20, "always")
    health = config["Healthcheck"]
    assert health["Test"] == ["CMD-SHELL", "test -e /tmp/well -a -n 'a b'"]
    assert [health[key] / 10**9 for key in ("Interval", "Timeout", "StartPeriod")] == [2, 9, 3]
    assert health["Retries"] == 5
    assert limits["LogConfig"]["Type"] == "journald"
    assert "lamp three with" in site.host.run("journalctl -o cat CONTAINER_NAME=lamp.new CONTAINER_NAME=lamp").stdout
    assert (config["User"], limits["GroupAdd"]) == ("65533", ["4321", "5"])
    assert (limits["CapDrop"] or [], [one.removeprefix("CAP_") for one in limits["CapAdd"]]) == ([], ["CHOWN"])
    assert (limits["SecurityOpt"] or [], limits["ReadonlyRootfs"]) == ([], False)
    assert limits["Tmpfs"] == {"/tmp": "size=2m,mode=1777"}
    assert (config["StopSignal"], config["StopTimeout"]) == ("SIGTERM", 3)
    assert (config["Hostname"], limits["ExtraHosts"]) == ("candle", ["db:10.3.2.1"])


def test_unset_of_every_field_leaves_nothing_of_it(lamp):
    """The spec before had everything; what the plain one does not name is as the engine has it."""
    found = lamp.inspect()
    limits, config = found["HostConfig"], found["Config"]
    assert (limits["NanoCpus"], limits["Memory"], limits["MemorySwap"], limits["PidsLimit"] or 0) == (0, 0, 0, 0)
    assert limits["ShmSize"] == 64 << 20
    assert not limits["PortBindings"]
    assert not found["Mounts"]
    assert [key for key in ("Tmpfs", "ExtraHosts", "GroupAdd", "CapAdd") if limits.get(key)] == []
    assert (limits["CapDrop"], limits["SecurityOpt"], limits["ReadonlyRootfs"]) == (["ALL"], ["no-new-privileges"], False)
    assert limits["RestartPolicy"] == {"Name": "unless-stopped", "MaximumRetryCount": 0}
    assert limits["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert set(found["NetworkSettings"]["Networks"]) == {"bridge"}
    assert (config["User"], config["Hostname"]) == ("", found["Id"][:12])
    assert (config["Entrypoint"], config["Cmd"]) == (None, ["/bin/lamp"])
    assert (config["StopSignal"], config["StopTimeout"]) == ("SIGTERM", 5)
    assert "ODD" not in "".join(config["Env"])
    assert {key.partition(".")[0] for key in config["Labels"]} == {"hostwright"}


IN_PLACE = {  # damage: whether the same process goes on
    "docker stop lamp": False,
    "docker kill lamp": False,
    "docker pause lamp": True,
    "docker rename lamp candle": True,
    "docker update --restart always lamp": True,
    "docker update --cpus 0.3 lamp": True,
    "docker update --memory 60m --memory-swap 60m lamp": True,
    "docker update --memory-swap -1 lamp": True,
    "docker update --pids-limit 20 lamp": True,
    "docker network disconnect back lamp": True,
    "docker network connect --alias mallory loose lamp": True,
    "docker network disconnect front lamp && docker network connect --alias wrong front lamp": True,
    "docker network disconnect -f back lamp && docker network rm back && docker network create back": True,
    "echo LAMP=three >>/etc/hostwright/containers/lamp.env": True,
    "chmod 0644 /etc/hostwright/containers/lamp.env": True,
    "rm /etc/hostwright/containers/lamp.env": True,
    "docker rename lamp candle && docker stop candle && docker network disconnect front candle": False,
    "docker stop lamp && docker network disconnect -f back lamp && docker network rm back && docker network create back": False,
}
ANEW = (
    "docker rm -f lamp",
    "docker update --cpu-shares 100 lamp",
    "docker update --memory-reservation 20m lamp",
)
# The others are told apart by the same comparison.
ORDINARY = (
    "docker stop lamp",
    "docker network disconnect -f back lamp && docker network rm back && docker network create back",
    "docker update --cpu-shares 100 lamp",
)


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_changed_by_hand_is_put_right(lamp, all_of_them):
    host = lamp.host
    host.run("docker network inspect loose >/dev/null 2>&1 || docker network create loose")
    spec = replace(
        lamp.spec, networks=(Network("front", ("light",)), Network("back")), publish=(Publish(8080, 8080),), cpus=0.5,
        memory_mb=64, pids=40,
    )  # fmt: skip
    done = lamp.converge(spec)
    assert done.returncode == 0, done.stderr
    wanted = host.read("/etc/hostwright/containers/lamp.env")
    for damage in (*IN_PLACE, *ANEW) if all_of_them else ORDINARY:
        before = lamp.life()
        host.run(damage)
        assert lamp.owed(spec) != [], damage
        done = lamp.converge(spec)
        assert done.returncode == 0, (damage, done.stderr)
        assert lamp.owed(spec) == [], damage
        assert lamp.names() == ["lamp"], damage
        after = lamp.life()
        assert after[2] == "running", damage
        assert (after == before) is IN_PLACE.get(damage, False), damage
        assert (after[0] == before[0]) is (damage in IN_PLACE), damage
        found = lamp.inspect()
        limits, networks = found["HostConfig"], found["NetworkSettings"]["Networks"]
        assert (limits["NanoCpus"], limits["Memory"], limits["MemorySwap"]) == (500_000_000, 64 << 20, 64 << 20), damage
        assert (limits["PidsLimit"], limits["RestartPolicy"]["Name"]) == (40, "unless-stopped"), damage
        assert (limits["CpuShares"], limits["MemoryReservation"]) == (0, 0), damage
        assert set(networks) == {"front", "back"}, damage
        assert set(networks["front"]["Aliases"]) - {found["Id"][:12]} == {"light"}, damage
        assert host.read("/etc/hostwright/containers/lamp.env") == wanted, damage
        assert host.run("stat -c %a /etc/hostwright/containers/lamp.env").stdout == "600\n", damage
        if "back" in damage:
            reached = f"docker run --rm --network back {lamp.image} wget -qO- http://lamp:8080/"
            assert host.run(reached).stdout == "busybox\n", damage
        assert host.run("curl -sS --retry 5 --retry-connrefused http://127.0.0.1:8080/").stdout == "busybox\n", damage


@pytest.mark.soak
def test_damage_is_seen_and_healed_by_a_run(lamp):
    lamp.host.run("docker stop lamp")
    assert lamp.run(lamp.spec, dry=True).changed == ["Run lamp"]
    assert lamp.life()[2] == "exited"
    assert lamp.run(lamp.spec).changed == ["Run lamp"]
    assert lamp.life()[2] == "running"
    assert lamp.run(lamp.spec).changed == []


@pytest.mark.soak
def test_unhealthy_container_gets_time_and_then_a_restart(lamp):
    lamp.host.run("docker exec lamp rm /tmp/well")
    wait_for("lamp to be unhealthy", lambda: lamp.inspect()["State"]["Health"]["Status"] == "unhealthy", 60, pause=0.2)
    before = lamp.life()
    assert lamp.owed(lamp.spec) == ["it is unhealthy"]
    done = lamp.converge(lamp.spec, start_seconds=3)
    assert done.returncode == 0, done.stderr
    assert "stays unhealthy: it is restarted" in done.stderr
    assert lamp.life()[0] == before[0]
    assert lamp.life() != before
    assert lamp.inspect()["State"]["Health"]["Status"] == "healthy"


# --- what must not happen to the old one ----------------------------------------------------------------------------------


def refused_before_the_old_one_stops(site: Site) -> dict[str, tuple[Spec, str, dict[str, Any]]]:
    missing = f"{site.registry.name}/team/nothing:1"
    arm = site.registry.image("platforms", "arm64")
    arm_list = site.registry.image("platforms", "arm64-list")
    spec = site.spec
    return {
        "no such image": (replace(spec, image=missing), f"image {missing} is not on this host and cannot be pulled", {}),
        "may not be pulled": (replace(spec, image=missing), "may not be pulled", {"pull": "never"}),
        "other platform": (replace(spec, image=arm), f"image {arm} is for linux/arm64, wanted: linux/amd64", {}),
        "other platforms": (replace(spec, image=arm_list), f"image {arm_list} is for linux/arm64", {}),
        "host cannot": (
            replace(spec, platform="linux/arm64", image=arm),
            "this host is linux/amd64 and does not run linux/arm64",
            {},
        ),
        "process on the port": (replace(spec, publish=(Publish(22, 22, ""),)), "port *:22/tcp is in use by sshd (pid ", {}),
        "process on one address": (replace(spec, publish=(Publish(7777, 1),)), "port 127.0.0.1:7777/tcp is in use by ", {}),
        "container on the port": (
            replace(spec, publish=(Publish(9000, 8080),)),
            "port 127.0.0.1:9000/tcp is in use by container foreign",
            {},
        ),
        "no such network": (
            replace(spec, networks=(Network("front"), Network("nowhere"))),
            "network nowhere does not exist on this host",
            {},
        ),
        "no such volume": (replace(spec, mounts=(Mount("nothing", "/d"),)), "volume nothing does not exist on this host", {}),
        "no such path": (replace(spec, mounts=(Mount("/srv/nothing", "/d"),)), "/srv/nothing, to be mounted on /d, does not exist", {}),
        "all at once": (
            replace(spec, networks=(Network("nowhere"),), mounts=(Mount("nothing", "/d"),)),
            "network nowhere does not exist on this host; volume nothing does not exist on this host",
            {},
        ),
        "the engine refuses": (replace(spec, cpus=999), "docker create: ", {}),
    }


def test_what_can_be_checked_is_checked_while_the_old_one_runs(lamp):
    host = lamp.host
    host.run(f"docker run -d --name foreign -p 9000:8080 {lamp.image}")
    host.run("python3 -c 'import http.server as h; h.HTTPServer((\"127.0.0.1\", 7777), h.BaseHTTPRequestHandler).serve_forever()' >/dev/null 2>&1 &")
    wait_for("the holder of 7777", lambda: ":7777 " in host.run("ss -Hltn").stdout, 30)
    before, environment = lamp.life(), host.read("/etc/hostwright/containers/lamp.env")
    for case, (spec, words, arguments) in refused_before_the_old_one_stops(lamp).items():
        done = lamp.converge(spec, **arguments)
        assert done.returncode == 1, case
        assert words in done.stderr, (case, done.stderr)
        assert "Traceback" not in done.stderr, case
        assert lamp.life() == before, case
        assert sorted(lamp.names()) == ["foreign", "lamp"], case
        assert host.read("/etc/hostwright/containers/lamp.env") == environment, case
    assert host.run("ls /etc/hostwright/containers").stdout == "lamp.env\n"
    # The wrong image was not even fetched where the registry's manifest says what it is for.
    assert "arm64-list" not in host.run("docker images").stdout
    assert lamp.owed(lamp.spec) == []


def test_container_that_is_not_ours_is_left_alone(lamp):
    host = lamp.host
    host.run(f"docker stop lamp && docker rm lamp && docker run -d --name lamp {lamp.image}")
    before = lamp.life()
    words = f"a container named lamp is there already and is not ours (image {lamp.image})"
    run = lamp.run(lamp.spec, dry=True)
    assert (run.ok, words in run.stderr) == (False, True)
    for spec in (lamp.spec, None):
        done = lamp.converge(spec)
        assert (done.returncode, words in done.stderr) == (1, True)
    assert lamp.life() == before
    # An image that somebody made of one of ours carries its labels; a container of it is not ours for that.
    host.run("docker rm -f lamp")
    assert lamp.converge(lamp.spec).returncode == 0
    host.run("docker commit --pause=false lamp kept && docker run -d --name copy kept")
    assert lamp.owed(lamp.spec) == []
    assert lamp.converge(lamp.spec).returncode == 0
    assert lamp.converge(None).returncode == 0
    assert lamp.names() == ["copy"]


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("crashes", "lamp cannot find its bulb"),
        pytest.param("dies", "ended", marks=pytest.mark.soak),
        pytest.param("unhealthy", "lamp is unhealthy", marks=pytest.mark.soak),
        pytest.param("hungry", "lamp two with", marks=pytest.mark.soak),
    ],
)
def test_bad_spec_gives_way_to_the_old_one(lamp, mode, words):
    before, environment = lamp.life(), lamp.host.read("/etc/hostwright/containers/lamp.env")
    spec = lamp.mode(mode, memory_mb=32, publish=(Publish(8080, 8080),))
    if mode == "dies":
        spec = replace(spec, health=None)
    run = lamp.run(spec, start_seconds=40) if mode == "crashes" else None
    said = run.stderr if run else lamp.converge(spec, start_seconds=40).stderr
    assert run is None or run.failed == ["Run lamp"]
    assert words in said
    assert "the container from before runs again" in said
    assert "lamp two with *MASKED*" in said
    assert SECRET not in said
    after = lamp.life()
    assert (after[0], after[2]) == (before[0], "running")
    assert lamp.inspect()["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert lamp.names() == ["lamp"]
    assert lamp.host.read("/etc/hostwright/containers/lamp.env") == environment
    assert lamp.host.run("ls /etc/hostwright/containers").stdout == "lamp.env\n"
    wait_for("lamp to be healthy", lambda: lamp.inspect()["State"]["Health"]["Status"] == "healthy", 60, pause=0.2)
    assert lamp.owed(lamp.spec) == []


@pytest.mark.soak
def test_first_one_that_is_bad_leaves_nothing(lamp):
    assert lamp.converge(None).returncode == 0
    done = lamp.converge(lamp.mode("crashes"), start_seconds=40)
    assert done.returncode == 1
    assert "lamp cannot find its bulb" in done.stderr
    assert lamp.names() == []
    assert lamp.host.run("ls /etc/hostwright/containers").stdout == ""


@pytest.mark.soak
def test_stopped_old_one_is_put_back_stopped(lamp):
    lamp.host.run("docker stop lamp")
    before = lamp.life()
    done = lamp.converge(lamp.mode("crashes"), start_seconds=40)
    assert "is back, stopped as it was" in done.stderr
    assert lamp.life() == before


# --- pull -------------------------------------------------------------------------------------------------------------------


def test_moved_tag_is_noticed_only_when_asked(lamp):
    host = lamp.host
    reference = lamp.push("stable", environment={"MADE": "first"})
    spec = replace(lamp.spec, image=reference)
    assert lamp.converge(spec, pull="moved").returncode == 0
    before = lamp.life()
    assert lamp.owed(spec, pull="moved") == []

    lamp.push("stable", environment={"MADE": "second"})
    assert lamp.owed(spec) == []
    assert lamp.owed(spec, pull="never") == []
    assert lamp.converge(spec).returncode == 0
    assert lamp.life() == before
    assert lamp.owed(spec, pull="moved") == ["its image differs"]
    assert lamp.run(spec, pull="moved").changed == ["Run lamp"]
    assert lamp.life()[0] != before[0]
    assert "MADE=second" in lamp.inspect()["Config"]["Env"]
    assert lamp.owed(spec, pull="moved") == []

    # The tag that moves to an image for others is refused, and the old one runs on.
    before = lamp.life()
    lamp.push("stable", architecture="arm64")
    done = lamp.converge(spec, pull="moved")
    assert done.returncode == 1
    assert "is for linux/arm64, wanted: linux/amd64" in done.stderr
    assert lamp.life() == before

    # Nobody to ask: said in the plan, before anything is touched.
    lamp.push("stable", environment={"MADE": "second"})
    host.run("mv /root/.docker/config.json /root/.docker/away")
    run = lamp.run(spec, pull="moved", dry=True)
    assert not run.ok
    assert "cannot ask the registry whether" in run.stderr
    host.run("mv /root/.docker/away /root/.docker/config.json")
    assert lamp.life() == before
    assert lamp.owed(spec, pull="moved") == []


@pytest.mark.soak
def test_tag_moved_on_the_host_and_tag_taken_away(lamp):
    spec = replace(lamp.spec, image="local/lamp:1")
    lamp.host.run(f"docker tag {lamp.image} local/lamp:1")
    assert lamp.converge(spec, pull="never").returncode == 0
    before = lamp.life()
    lamp.host.run("docker rmi local/lamp:1")
    assert lamp.owed(spec, pull="never") == []
    other = lamp.push("2", environment={"MADE": "later"})
    lamp.host.run(f"docker pull -q {other} && docker tag {other} local/lamp:1")
    assert lamp.owed(spec, pull="never") == ["its image differs"]
    assert lamp.converge(spec, pull="never").returncode == 0
    assert lamp.life()[0] != before[0]


# --- killed -----------------------------------------------------------------------------------------------------------------

# Kills the program in front of its Nth docker command, or right behind it.
KILL = """
_docker, _count = docker, [0]
def docker(*argv, **more):
    _count[0] += 1
    if _count[0] == {number} and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    said = _docker(*argv, **more)
    if _count[0] == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return said
"""
# create, connect, stop, update, rename, rename, start, rm
MOMENTS = [(number, before) for number in range(1, 10) for before in (True, False)]
OFTEN = [(5, False), (8, True)]


@pytest.mark.parametrize(
    ("number", "before"),
    [pytest.param(*moment, marks=() if moment in OFTEN else pytest.mark.soak) for moment in MOMENTS],
)
@pytest.mark.parametrize("then", ["new", pytest.param("old", marks=pytest.mark.soak), pytest.param("bad", marks=pytest.mark.soak)])
def test_killed_run_is_finished_by_the_next(lamp, number, before, then):
    """Whatever the next run wants: the new spec, the old one after all, or a new one that is no good."""
    new = replace(lamp.spec, networks=(Network("front"), Network("back")), image=lamp.push("2", environment={"MADE": "later"}))
    old_id = lamp.inspect()["Id"]
    done = lamp.converge(new, before=KILL.format(number=number, before=before))
    killed = done.returncode == 137
    if not killed:
        assert (done.returncode, lamp.owed(new)) == (0, [])
    wanted = {"new": new, "old": lamp.spec, "bad": lamp.mode("crashes")}[then]
    done = lamp.converge(wanted, start_seconds=40)
    if then == "bad":
        assert done.returncode == 1
        assert "lamp cannot find its bulb" in done.stderr
        assert lamp.names() == ["lamp"]
        wanted = lamp.spec if lamp.inspect()["Id"] == old_id else new
    else:
        assert done.returncode == 0, done.stderr
    assert lamp.names() == ["lamp"]
    assert lamp.life()[2] == "running"
    assert lamp.inspect()["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    wait_for("lamp to be healthy", lambda: lamp.inspect()["State"]["Health"]["Status"] == "healthy", 60, pause=0.2)
    owed = lamp.owed(wanted)
    assert owed in ([], ["its environment file"]) if then == "bad" else owed == []
    assert lamp.converge(wanted).returncode == 0
    assert lamp.owed(wanted) == []
    assert lamp.host.run("ls -A /etc/hostwright/containers").stdout == "lamp.env\n"


@pytest.mark.soak
def test_host_finishes_what_a_dead_controller_began(lamp, tmp_path):
    spec = replace(lamp.spec, labels={"run": "orphaned"})
    before = lamp.life()
    command = command_line(tmp_path, lamp.host, lamp.text(spec))
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as controller:
        # lamp.new is there for a moment only, lamp.old for as long as the new one's health is awaited
        wait_for("two lamps", lambda: len(lamp.names()) > 1, 120, pause=0.05)
        controller.kill()
    wait_for("the end of it", lambda: lamp.names() == ["lamp"] and lamp.life()[0] != before[0], 120, pause=0.2)
    done = lamp.converge(spec)
    assert done.returncode == 0, done.stderr
    assert lamp.owed(spec) == []


@pytest.mark.soak
def test_power_cut_and_reboot(lamp):
    """A run cut off by the power leaves two; the next run ends it. After a reboot nothing is to be done."""
    new = replace(lamp.spec, restart="always", labels={"run": "cut off"})
    assert lamp.converge(new, before=KILL.format(number=6, before=False)).returncode == 137
    assert sorted(lamp.names()) == ["lamp", "lamp.old"]
    lamp.host.kill()
    lamp.host.boot()
    lamp.registry.admit(lamp.host)
    assert lamp.life("lamp.old")[2] == "exited"
    assert lamp.run(new).changed == ["Run lamp"]
    assert lamp.names() == ["lamp"]
    lamp.host.reboot()
    wait_for("lamp to run", lambda: lamp.life()[2] == "running", 60, pause=0.2)
    before = lamp.life()
    assert lamp.run(new).changed == []
    assert lamp.life() == before


@pytest.mark.soak
def test_two_at_once_come_one_after_the_other(lamp):
    """The lock that cleanup and replicas take, too."""
    host = lamp.host
    host.run("flock /run/hostwright/containers.lock sh -c 'touch /tmp/held; while [ ! -e /tmp/free ]; do sleep 0.1; done' >/dev/null 2>&1 &")
    wait_for("the lock to be held", lambda: host.exists("/tmp/held"), 30)
    before = lamp.life()
    host.write("/tmp/program", lamp.program(replace(lamp.spec, labels={"run": "second"})), mode="0600")
    host.run("(python3 -B - </tmp/program; echo $? >/tmp/ended) >/dev/null 2>&1 &")
    opened = "for pid in $(pgrep -x python3); do readlink /proc/$pid/fd/*; done | grep containers.lock"
    wait_for("the run to ask for the lock", lambda: host.run(opened, check=False).stdout, 60)
    assert lamp.life() == before
    assert lamp.names() == ["lamp"]
    host.run("touch /tmp/free")
    wait_for("the second one", lambda: host.exists("/tmp/ended"), 120, pause=0.2)
    assert host.read("/tmp/ended") == "0\n"
    assert lamp.life()[0] != before[0]
    host.run("rm -f /tmp/free /tmp/held /tmp/ended /tmp/program")


# --- networks, volumes, images ------------------------------------------------------------------------------------------------

KEPT = "/var/lib/docker/volumes/kept/_data"


def surroundings(site: Site, network: str = "'inner'", volume: str = "'kept'", images: str = "") -> str:
    return (
        "from operations import container\n"
        f"container.network({network}, name='Network')\n"
        f"container.volume({volume}, name='Volume')\n"
        + (f"container.pulled([{images}], name='Images')\n" if images else "")
    )


def test_networks_volumes_and_images_set_noop_update_unset(lamp, provision):
    host = lamp.host
    both, tool = lamp.registry.image("platforms", "both"), lamp.push("tool", labels={"is": "a tool"})

    def network() -> dict[str, Any]:
        return json.loads(host.run("docker network inspect inner").stdout)[0]

    text = surroundings(lamp, volume="'kept', owner='999:998', mode='0750'", images=f"{both!r}, {tool!r}")
    assert provision(host, text, dry=True).changed == ["Network", "Volume", "Images"]
    assert provision(host, text).changed == ["Network", "Volume", "Images"]
    assert (network()["Driver"], network()["Internal"], network()["EnableIPv6"]) == ("bridge", False, False)
    assert host.run(f"stat -c '%u:%g %a' {KEPT}").stdout == "999:998 750\n"
    assert host.run(f"docker image inspect {both} --format '{{{{.Architecture}}}}'").stdout == "amd64\n"
    before = network()["Id"]
    assert provision(host, text).changed == []
    assert network()["Id"] == before

    host.run(f"docker rmi {tool}; chown 0:0 {KEPT}; echo precious >{KEPT}/file")
    other = surroundings(
        lamp, "'inner', internal=True, ipv6=True", "'kept', owner='999:998', mode='0700'", images=f"{both!r}, {tool!r}"
    )
    assert provision(host, other).changed == ["Network", "Volume", "Images"]
    assert (network()["Internal"], network()["EnableIPv6"]) == (True, True)
    assert any(one["Subnet"].startswith("fd") for one in network()["IPAM"]["Config"])
    assert host.run(f"stat -c '%u:%g %a' {KEPT}").stdout == "999:998 700\n"
    assert host.read(f"{KEPT}/file") == "precious\n"

    host.run(f"docker network rm inner; rm {KEPT}/file")
    gone = surroundings(lamp, "'inner', present=False", "'kept', present=False")
    assert provision(host, other).changed == ["Network"]
    assert provision(host, gone).changed == ["Network", "Volume"]
    assert "inner" not in host.run("docker network ls --format '{{.Name}}'").stdout.split()
    assert "kept" not in host.run("docker volume ls -q").stdout.split()
    assert provision(host, gone).changed == []


def change(site: Site, program: str, **values: Any) -> str:
    """What the program of an operation says when it refuses."""
    text = script.python_text(["container/engine.py", f"container/{program}.py"], {**values, "change": True})
    done = site.host.run("python3 -B -", check=False, input=text)
    assert done.returncode == 1, done
    return done.stderr


def test_what_is_in_use_and_what_holds_data_stays(lamp, provision):
    host = lamp.host
    host.run("docker network inspect inner >/dev/null 2>&1 || docker network create --label hostwright.network=inner inner")
    host.run(f"docker network connect inner lamp; docker volume create kept; echo precious >{KEPT}/file")
    wanted = {"network": "inner", "internal": True, "ipv6": False}
    assert "network inner is wanted otherwise, and lamp use it" in change(lamp, "network", **wanted, present=True)
    assert "network inner is to go, and lamp use it" in change(lamp, "network", **wanted, present=False)
    foreign = {**wanted, "network": "front"}
    assert "was not made by us" in change(lamp, "network", **foreign, present=False)
    volume = {"volume": "kept", "owner": "", "mode": "", "present": False}
    assert "volume kept holds data" in change(lamp, "volume", **volume, with_data=False)
    assert lamp.converge(replace(lamp.spec, mounts=(Mount("kept", "/data"),))).returncode == 0
    assert "volume kept is used by lamp" in change(lamp, "volume", **volume, with_data=True)
    assert lamp.converge(None).returncode == 0
    assert host.read(f"{KEPT}/file") == "precious\n"
    text = "from operations import container\ncontainer.remove_volume_with_its_data('kept', name='Remove')\n"
    assert provision(host, text).changed == ["Remove"]
    assert provision(host, text).changed == []
    assert "kept" not in host.run("docker volume ls -q").stdout.split()

    arm, nothing = lamp.registry.image("platforms", "arm64-list"), f"{lamp.registry.name}/team/nothing:1"
    said = change(lamp, "images", images=[arm, nothing], platform="")
    assert f"image {arm} is for linux/arm64, wanted: linux/amd64" in said
    assert f"image {nothing} is not on this host and cannot be pulled" in said


def test_host_without_an_engine(lamp, provision):
    """The plan survives it; the run says what is missing."""
    text = surroundings(lamp, "'other'", "'other'", "'a/b:1'") + (
        "from operations.container import Spec\ncontainer.container('lamp', Spec('a/b:1'), name='Run lamp')\n"
    )
    lamp.host.run("mv /run/docker.sock /run/away.sock")
    try:
        assert provision(lamp.host, text, dry=True).changed == ["Network", "Volume", "Images", "Run lamp"]
        done = lamp.converge(lamp.spec)
        assert (done.returncode, "no Docker engine answers on this host" in done.stderr) == (1, True)
    finally:
        lamp.host.run("mv /run/away.sock /run/docker.sock")
