"""The Docker engine on real hosts, read back with dpkg, apt, systemctl and docker."""

from __future__ import annotations

import json

import pytest

from tests.lab import aptly
from tests.lab.hosts import LabHost
from tests.lab.state import wait_for

HEAD = "from operations import engine\n"
DAEMON_JSON = "/etc/docker/daemon.json"
OPTIONS = {
    "debug": False,
    "insecure-registries": [],
    "live-restore": True,
    "log-driver": "json-file",
    "log-opts": {"max-size": "10m", "max-file": "3"},
    "registry-mirrors": [],
}
RELEASES = ["bookworm", pytest.param("trixie", marks=pytest.mark.soak)]


def packages(**arguments: object) -> str:
    return f"{HEAD}engine.engine(**{ {'source': 'distribution', **arguments}!r}, name='Engine')\n"


def daemon(**options: object) -> str:
    wanted = {key: value for key, value in (OPTIONS | options).items() if value is not None}
    return f"{HEAD}engine.daemon({wanted!r}, name='Daemon')\n"


def run_container(host: LabHost, registry, name: str, *words: str) -> None:
    image = registry.image("busybox")
    registry.admit(host)
    host.run(f"docker run -d --init --restart unless-stopped --name {name} {' '.join(words)} {image} sleep infinity")


def pid(host: LabHost, container: str) -> str:
    return host.run(f"docker inspect -f '{{{{.State.Pid}}}}' {container}").stdout.strip()


def engine_pid(host: LabHost) -> str:
    return host.run("systemctl show -p MainPID --value docker.service").stdout.strip()


def info(host: LabHost, what: str) -> str:
    return host.run(f"docker info --format '{{{{{what}}}}}'").stdout.strip()


@pytest.fixture(scope="module")
def hosts(lab):
    """The host of a release, made when the first test asks for it, with a container that must go on."""
    made: dict[str, LabHost] = {}
    registry = lab.registry()

    def get(release: str) -> LabHost:
        if release not in made:
            made[release] = lab.host(f"t-engine-{release}", release, layer="docker")
            run_container(made[release], registry, "kept")
        return made[release]

    yield get
    for host in made.values():
        lab.destroy(host)


@pytest.fixture(params=RELEASES, scope="module")
def host(request, hosts):
    return hosts(request.param)


def test_configuration_changes_with_the_least_and_containers_go_on(host, provision):
    kept = pid(host, "kept")
    before = engine_pid(host)
    # The engine that Debian starts would end its containers with itself.
    assert info(host, ".LiveRestoreEnabled") == "false"
    run = provision(host, daemon())
    assert run.ok, run
    assert run.changed == ["Daemon"]
    assert json.loads(host.read(DAEMON_JSON)) == OPTIONS
    assert engine_pid(host) != before
    assert info(host, ".LiveRestoreEnabled") == "true"
    assert pid(host, "kept") == kept
    assert provision(host, daemon()).changed == []

    # What the engine can reload is reloaded, and undone by a reload too.
    before = engine_pid(host)
    for mirrors, live in ((["https://mirror.example.org"], False), ([], True)):
        changed = {"registry-mirrors": mirrors, "insecure-registries": ["plain.example.org:5000"], "live-restore": live}
        run = provision(host, daemon(**changed))
        assert run.ok, run
        assert run.changed == ["Daemon"]
        assert host.run("docker info --format '{{range .RegistryConfig.Mirrors}}{{.}}{{end}}'").stdout.split() == [
            f"{mirror}/" for mirror in mirrors
        ]
        assert "plain.example.org:5000" in info(host, "json .RegistryConfig.IndexConfigs")
        assert info(host, ".LiveRestoreEnabled") == str(live).lower()
    assert provision(host, daemon()).changed == ["Daemon"]
    assert engine_pid(host) == before

    # By hand, and nothing restarted: the engine still runs on what is wanted.
    host.write(DAEMON_JSON, '{"live-restore": false}')
    assert provision(host, daemon()).changed == ["Daemon"]
    assert json.loads(host.read(DAEMON_JSON)) == OPTIONS
    assert engine_pid(host) == before

    # What it reads at its start only.
    assert provision(host, daemon(**{"log-opts": {"max-size": "5m"}})).changed == ["Daemon"]
    assert engine_pid(host) != before
    assert pid(host, "kept") == kept
    assert host.run("docker exec kept echo alive").stdout == "alive\n"


@pytest.mark.soak
def test_key_that_goes_is_gone(host, provision):
    """A reload would keep its value."""
    assert provision(host, daemon(**{"log-opts": {"max-size": "5m"}})).ok
    kept, before = pid(host, "kept"), engine_pid(host)
    assert provision(host, daemon(**{"max-concurrent-downloads": 6, "shutdown-timeout": 20})).changed == ["Daemon"]
    between = engine_pid(host)
    assert between != before  # with log-opts as before
    assert provision(host, daemon(**{"shutdown-timeout": 20})).changed == ["Daemon"]
    assert engine_pid(host) == between
    assert provision(host, daemon()).changed == ["Daemon"]
    assert engine_pid(host) != between
    assert pid(host, "kept") == kept
    assert host.run("docker exec kept echo alive").stdout == "alive\n"


@pytest.mark.soak
def test_action_that_a_killed_run_owed_is_made_up_for(host, provision):
    assert provision(host, daemon()).ok
    before = engine_pid(host)
    host.write(DAEMON_JSON, json.dumps(OPTIONS | {"log-opts": {"max-size": "7m"}}, indent=2, sort_keys=True) + "\n")
    assert provision(host, daemon(**{"log-opts": {"max-size": "7m"}})).changed == ["Daemon"]
    assert engine_pid(host) != before
    assert provision(host, daemon(**{"log-opts": {"max-size": "7m"}})).changed == []


def test_engine_that_does_not_come_back_gets_the_old_file(host, provision):
    assert provision(host, daemon()).ok
    kept, old = pid(host, "kept"), host.read(DAEMON_JSON)
    run = provision(host, daemon(**{"log-driver": "nonsense"}))
    assert run.failed == ["Daemon"]
    assert host.read(DAEMON_JSON) == old
    wait_for("the engine", lambda: host.run("docker version", check=False).returncode == 0, 60)
    assert pid(host, "kept") == kept
    assert provision(host, daemon()).changed == []


def test_unknown_key_is_refused_before_any_change(host, provision):
    assert provision(host, daemon()).ok
    before = host.run(f"stat -c %Z {DAEMON_JSON}").stdout + engine_pid(host)
    run = provision(host, daemon(**{"log-drive": "local"}))
    assert not run.ok
    assert "log-drive" in run.stderr
    if "bookworm" in host.name:
        assert "engine 20.10.24+dfsg1 does not know 'log-drive' in daemon.json, did you mean 'log-driver'?" in run.stderr
    else:
        assert "nothing was changed" in run.stderr
    assert host.run(f"stat -c %Z {DAEMON_JSON}").stdout + engine_pid(host) == before


@pytest.mark.soak
def test_packages_are_held_and_the_engine_runs(host, provision):
    assert provision(host, daemon()).ok
    run = provision(host, packages())
    assert run.ok, run
    assert run.changed == ["Engine"]
    assert {"containerd", "docker.io"} <= set(host.run("apt-mark showhold").stdout.split())
    assert provision(host, packages()).changed == []

    kept = pid(host, "kept")
    host.run("apt-mark unhold docker.io")
    assert provision(host, packages()).changed == ["Engine"]
    assert "docker.io" in host.run("apt-mark showhold").stdout.split()
    host.run("systemctl disable --now docker.service docker.socket; systemctl mask docker.service")
    assert provision(host, packages()).changed == ["Engine"]
    assert host.run("systemctl is-active docker; systemctl is-enabled docker").stdout == "active\nenabled\n"
    assert pid(host, "kept") == kept
    assert provision(host, packages()).changed == []


@pytest.mark.soak
def test_compose_and_buildx_are_there_or_said_to_be_missing(host, provision):
    if "bookworm" in host.name:
        for part, words in (("compose", "Compose v2"), ("buildx", "buildx")):
            run = provision(host, packages(**{part: "yes"}))
            assert not run.ok
            assert (
                f"debian 12 has no {words} among its own packages; write docker_source = 'docker', or docker_{part} = 'no'; "
                "nothing was changed" in run.stderr
            )
        return
    assert provision(host, packages(compose="yes", buildx="yes")).ok
    assert "v2" in host.run("docker compose version --short").stdout or host.run("docker compose version --short").stdout[0] == "2"
    assert "buildx" in host.run("docker buildx version").stdout
    assert provision(host, packages(compose="no")).changed == ["Engine"]
    assert host.run("docker compose version", check=False).returncode != 0
    assert provision(host, packages(compose="yes")).changed == ["Engine"]
    assert provision(host, packages(compose="yes")).changed == []


# --- Docker's own packages, from a repository that the lab signs itself: the real one is out of its reach ----------

OTHERS = {
    "/etc/apt/sources.list.d/docker.list": "deb [arch=amd64 signed-by=/usr/share/keyrings/old.gpg] "
    "https://download.docker.com/linux/debian bookworm stable\n",
    "/etc/apt/sources.list.d/download_docker_com_linux_debian.list": "# added by another tool\n"
    "deb https://download.docker.com/linux/debian bookworm stable\n"
    "deb http://deb.example.org/other bookworm main\n",
    "/etc/apt/sources.list.d/archive_uri.sources": "Types: deb\nURIs: https://download.docker.com/linux/debian\n"
    "Suites: bookworm\nComponents: stable\nSigned-By: /etc/apt/keyrings/docker.gpg\n",
}


@pytest.fixture(scope="module")
def repository(lab, tmp_path_factory):
    """URL and key of a repository with the engine of each release under the names of Docker's packages."""
    made: dict[str, aptly.Repository] = {}

    def get(host: LabHost) -> aptly.Repository:
        release = host.plan.release
        if release not in made:
            directory = tmp_path_factory.mktemp(f"repository-{release}")
            made[release] = aptly.build(host, directory, lab.serve(directory, port=8101 + len(made)))
        return made[release]

    return get


def docker_packages(repository: aptly.Repository, version: str, **arguments: object) -> str:
    wanted = {
        "source": "docker",
        "repository": repository.url,
        "key_fingerprint": repository.fingerprint,
        "version": version,
        **arguments,
    }
    return f"{HEAD}engine.engine(**{wanted!r}, name='Engine')\n"


@pytest.mark.soak
@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_dockers_own_packages_replace_the_distributions(lab, provision, repository, release):
    host = lab.host(f"t-engine-own-{release}", release, layer="docker")
    apt = repository(host)
    registry = lab.registry()
    run_container(host, registry, "kept")
    kept = pid(host, "kept")
    host.run("mkdir -p /etc/apt/sources.list.d && echo '# only a comment' > /etc/apt/sources.list.d/mine.list")
    for path, text in OTHERS.items():
        host.write(path, text)
    assert "Conflicting values set for option Signed-By" in host.run("apt-get update 2>&1", check=False).stdout
    images = host.run("docker images -q --no-trunc").stdout

    # A key that is not the one that was named.
    run = provision(host, docker_packages(apt, "28.5.1", key_fingerprint="A" * 40))
    assert run.failed == ["Engine"]
    assert f"is not the one with fingerprint {'A' * 40}: it holds {apt.fingerprint}; nothing was changed" in run.stderr
    assert host.exists("/etc/apt/sources.list.d/docker.list")

    run = provision(host, docker_packages(apt, "28.5.1"))
    assert run.ok, run
    assert run.changed == ["Engine"]
    listed = host.run("dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\\n' 'docker*' 'containerd*'").stdout
    assert f"hi  docker-ce 5:28.5.1-1~{release}" in listed.replace("hi ", "hi  ").replace("   ", "  "), listed
    assert "ii  docker.io" not in listed.replace("ii ", "ii  ").replace("   ", "  ")
    found = host.run("grep -rl -e docker.com -e '8101' -e '8102' /etc/apt/sources.list /etc/apt/sources.list.d", check=False).stdout
    assert found == "/etc/apt/sources.list.d/docker.sources\n"
    assert "deb.example.org" in host.read("/etc/apt/sources.list.d/download_docker_com_linux_debian.list")
    assert host.exists("/etc/apt/sources.list.d/mine.list")
    assert not host.exists("/etc/apt/sources.list.d/archive_uri.sources")
    host.run("rm /etc/apt/sources.list.d/download_docker_com_linux_debian.list")
    assert host.run("apt-get update -o APT::Update::Error-Mode=any 2>&1").stdout.count("W:") == 0
    assert set(host.run("apt-mark showhold").stdout.split()) >= {"docker-ce", "docker-ce-cli", "containerd.io"}
    # There is a newer one, and no upgrade of the system takes it.
    assert "28.5.2" in host.run("apt-cache policy docker-ce").stdout
    assert "Inst docker" not in host.run("apt-get -s dist-upgrade").stdout
    # Images and containers are still there, and what ran went on running.
    assert host.run("docker images -q --no-trunc").stdout == images
    assert pid(host, "kept") == kept
    assert provision(host, docker_packages(apt, "28.5.1")).changed == []

    # Forward and back by a number, and a number that is not there.
    for version in ("28.5.2", "28.5.1"):
        run = provision(host, docker_packages(apt, version))
        assert run.ok, run
        assert run.changed == ["Engine"]
        shown = host.run("dpkg-query -W -f '${Version} ' docker-ce docker-ce-cli").stdout
        assert shown.count(f"5:{version}-1~") == 2
        assert pid(host, "kept") == kept
    run = provision(host, docker_packages(apt, "27.0.0"))
    assert run.failed == ["Engine"]
    assert "no docker-ce 27.0.0 in the source, it has 5:28.5.2-1~" in run.stderr
    assert provision(host, docker_packages(apt, "28.5.1")).changed == []

    # By hand: a second source, another key, the hold.
    host.write("/etc/apt/sources.list.d/again.list", f"deb {apt.url}/debian {release} stable\n")
    host.write("/etc/apt/keyrings/docker.asc", "nonsense\n")
    host.run("apt-mark unhold docker-ce")
    assert provision(host, docker_packages(apt, "28.5.1")).changed == ["Engine"]
    assert not host.exists("/etc/apt/sources.list.d/again.list")
    assert "BEGIN PGP PUBLIC KEY" in host.read("/etc/apt/keyrings/docker.asc")
    assert provision(host, docker_packages(apt, "28.5.1")).changed == []

    # And back to the distribution's.
    run = provision(host, packages())
    assert run.ok, run
    assert host.run("dpkg-query -W -f '${db:Status-Abbrev}' docker.io").stdout.startswith("h")
    assert not host.exists("/etc/apt/sources.list.d/docker.sources")
    assert host.run("docker images -q --no-trunc").stdout == images
    assert pid(host, "kept") == kept
    assert provision(host, packages()).changed == []
    lab.destroy(host)


@pytest.mark.soak
@pytest.mark.parametrize("release", ["bookworm", "trixie"])
@pytest.mark.parametrize("source", ["docker", "distribution"])
def test_bare_host_gets_the_engine(lab, provision, repository, release, source):
    host = lab.host(f"t-engine-bare-{release}", release)
    wanted = docker_packages(repository(host), "28.5.2", compose="no", buildx="no") if source == "docker" else packages()
    run = provision(host, wanted)
    assert run.ok, run
    assert host.run("docker version --format '{{.Server.Version}}'").stdout.strip()
    assert host.run("docker compose version", check=False).returncode == (0 if (release, source) == ("trixie", "distribution") else 1)
    assert provision(host, wanted).changed == []
    lab.destroy(host)


# --- requests while the engine's packages change -------------------------------------------------------------------

SITE = """
from operations import nginx
from operations.nginx import Location, Upstream
nginx.server(name="Install nginx")
nginx.site(
    "shop", server_names=["shop.test"], upstreams=[Upstream("shop", ("127.0.0.1:18000",), keepalive=0, switched=True)],
    locations=[Location("/", upstream="shop")], name="Upload the site",
)
"""
# Asks without a pause until it is told to stop; then one line: how many were answered, and the first that were not.
ASK = """
import http.client, os, sys, time
good, bad = 0, []
while not os.path.exists("/root/stop"):
    connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=20)
    try:
        connection.request("GET", "/", headers={"Host": "shop.test"})
        answer = connection.getresponse()
        text = answer.read()
        if (answer.status, text) == (200, b"busybox\\n"):
            good += 1
        else:
            bad.append(f"{answer.status} {text[:60]}")
    except Exception as error:
        bad.append(repr(error))
    connection.close()
    time.sleep(0.005)
print(good, len(bad), bad[:3])
"""


@pytest.mark.soak
@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_no_request_is_lost_while_the_packages_change(lab, provision, repository, stranger, release, capsys):
    host = lab.host(f"t-engine-asked-{release}", release, layer="docker")
    apt = repository(host)
    run_container(host, lab.registry(), "shop", "-p", "127.0.0.1:18000:80")
    host.run("docker exec -d shop httpd -f -h /var/www -p 80")
    assert provision(host, SITE).ok
    upstream = host.read("/etc/nginx/upstreams/shop.conf")
    stranger.write("/root/ask.py", ASK)
    # From the distribution's packages to Docker's, to another version, and an engine whose program was replaced on disk.
    steps = [(docker_packages(apt, "28.5.1"), ""), (docker_packages(apt, "28.5.2"), ""), (docker_packages(apt, "28.5.2"), "replaced")]
    for deploy, by_hand in steps:
        if by_hand:
            host.run("engine=$(command -v dockerd); cp $engine $engine.new && mv $engine.new $engine")
        kept, before = pid(host, "shop"), engine_pid(host)
        stranger.run("rm -f /root/stop /root/asked; systemd-run --collect --unit=asks -p StandardOutput=file:/root/asked "
                     f"python3 /root/ask.py {host.address}")  # fmt: skip
        try:
            run = provision(host, deploy)
        finally:
            stranger.run("touch /root/stop")
            wait_for("the last request", lambda: stranger.run("systemctl is-active asks", check=False).returncode != 0, 60)
        assert (run.ok, run.changed) == (True, ["Engine"]), run
        said = stranger.read("/root/asked").splitlines()[-1]
        with capsys.disabled():
            print(f"\n{release}, {by_hand or 'packages'}: answered, failed: {said}")  # noqa: T201 - the figure that docs want
        answered, failed = map(int, said.split()[:2])
        assert (failed, answered > 100) == (0, True), said
        assert (pid(host, "shop"), engine_pid(host) != before) == (kept, True)
        assert provision(host, deploy).changed == []
        assert host.read("/etc/nginx/upstreams/shop.conf") == upstream
        assert "hostwright" not in host.run("cat /var/lib/docker/containers/*/hosts").stdout
        assert not host.exists("/var/lib/hostwright/engine-detour.json")
    lab.destroy(host)


# --- the whole deploy ----------------------------------------------------------------------------------------------


def test_deploy_converges_and_containers_end_in_order_with_the_host(lab, provision):
    registry = lab.registry()
    host = lab.host("t-engine-deploy", layer="docker")
    data = {
        "docker_source": "distribution",
        "docker_registries": {
            registry.name: {"username": registry.username, "password": "env:REGISTRY_PASSWORD", "ca": registry.ca}
        },
        "base_exposure": [{"port": 8080, "why": "web"}],
    }
    deploy = "from deploys.docker_engine import docker_engine\ndocker_engine()\n"
    environment = {"REGISTRY_PASSWORD": registry.password}
    run = provision(host, deploy, data=data, env=environment)
    assert run.ok, run
    again = provision(host, deploy, data=data, env=environment)
    assert (again.ok, again.changed) == (True, []), again

    image = registry.image("busybox")
    program = 'trap "echo asked > /data/said; exit" USR1; while :; do sleep 0.1; done'
    host.run(
        f"docker run -d --name worker --restart unless-stopped --stop-signal USR1 -v data:/data {image} sh -c '{program}'",
        timeout=120,
    )
    first = host.run("docker inspect -f '{{.State.StartedAt}}' worker").stdout
    host.reboot()
    wait_for("the container", lambda: host.run("docker inspect -f '{{.State.Running}}' worker", check=False).stdout == "true\n", 60)
    assert host.run("docker inspect -f '{{.State.StartedAt}}' worker").stdout != first
    # Its own signal, and not SIGKILL after SIGTERM: it had its word.
    assert host.run("docker exec worker cat /data/said").stdout == "asked\n"
    assert info(host, ".LiveRestoreEnabled") == "true"
    again = provision(host, deploy, data=data, env=environment)
    assert (again.ok, again.changed) == (True, []), again

    run = provision(host, deploy, data=data | {"docker_live_restore": False, "docker_published_enabled": False}, env=environment)
    assert run.ok, run
    assert not host.exists("/etc/systemd/system/hostwright-containers.service")
    lab.destroy(host)


# --- a lost power -------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_port_that_a_lost_power_leaves_taken_is_given_back(lab, provision, release):
    host = lab.host("t-engine-power", release=release, layer="docker")
    registry = lab.registry()

    def has_looked() -> bool:
        return host.run("systemctl show -p ActiveState --value hostwright-engine-ports.service").stdout == "inactive\n"

    try:
        healed = daemon() + "from deploys.docker_engine import give_back_ports\ngive_back_ports()\n"
        assert provision(host, healed).ok
        assert provision(host, healed).changed == []
        run_container(host, registry, "one", "-p 127.0.0.1:18001:80")
        create = f"docker create --name two -p 127.0.0.1:18101:80 {registry.image('busybox')} sleep infinity"
        log = "journalctl -q -o cat -u hostwright-engine-ports.service"
        for turn in range(40):
            host.run(f"docker rm -f two; {create}")
            # the port is taken a moment before the container runs
            host.run("docker start two >/dev/null 2>&1 & until ss -Hltn 'sport = :18101' | grep -q .; do :; done")
            host.kill()
            host.boot()
            wait_for("the engine", lambda: host.run("docker info", check=False).returncode == 0, 60)
            wait_for("the look at its ports", has_looked, 60)
            assert host.run("docker start one two").stdout == "one\ntwo\n", turn
            if "18101/tcp" in host.run(log).stdout:
                break
        said = host.run(log).stdout
        assert "the engine holds ports for no container, and is started once more to give them back: 18101/tcp" in said
        proxies = host.run("pgrep -af docker-proxy").stdout
        assert (proxies.count("18001"), proxies.count("18101")) == (1, 1)
        assert host.run("iptables -t nat -S DOCKER").stdout.count("--dport 18101") == 1
        before = engine_pid(host)
        host.run("systemctl restart docker.service")
        wait_for("the look at its ports", has_looked, 60)
        assert engine_pid(host) != before
        healings = [text.count("to give them back") for text in (said, host.run(log).stdout)]
        assert healings[0] == healings[1] > 0, "a usual start has nothing to heal"
        assert provision(host, healed).changed == []
    finally:
        lab.destroy(host)
