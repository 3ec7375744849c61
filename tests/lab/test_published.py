"""Published ports of containers on a real host, scanned from the stranger and read back with nft, curl and docker."""

from __future__ import annotations

import json

import pytest

from tests.lab.hosts import LabHost
from tests.lab.scan import scan
from tests.lab.state import wait_for

TABLE = "nft list table inet hostwright_published"
CLOSED, OPEN, CLOSED_NET, ELSEWHERE, DECLARED, LOOPBACK, OPEN_NET = PORTS = range(8080, 8087)


def deploy(stranger: LabHost, *more: int, **arguments: object) -> str:
    """The firewall and the published ports of the same declaration, as the real deploy has them."""
    return f"""
from operations import exposure, published
from settings import Port
ports = [
    Port(port=22, why="ssh"),
    Port(port={OPEN}, why="open"),
    Port(port={OPEN_NET}, why="open, on a network of its own"),
    Port(port={OPEN_NET}, proto="udp", why="the same over UDP"),
    Port(port={ELSEWHERE}, sources=("192.0.2.0/24", "2001:db8::/32"), why="for others"),
    Port(port={DECLARED}, sources=("{stranger.address}/32", "{stranger.address6}/128"), why="for the stranger"),
    *[Port(port=number, why="more") for number in {list(more)!r}],
]
exposure.firewall(ports, name="Firewall")
published.ports(ports, **{arguments!r}, name="Published")
"""


def start_containers(host: LabHost, image: str) -> None:
    """Containers on the default bridge (IPv6 by the engine's proxy) and on a network with IPv6 (translated)."""
    host.run("docker network create --ipv6 --subnet 172.31.7.0/24 --subnet fd00:d0c:7::/64 inner")
    for port, where in (
        (f"{CLOSED}:80", ""),
        (f"{OPEN}:80", ""),
        (f"{DECLARED}:80", ""),
        (f"127.0.0.1:{LOOPBACK}:80", ""),
        (f"{CLOSED_NET}:80", "--network inner"),
        (f"{ELSEWHERE}:80", "--network inner"),
        (f"{OPEN_NET}:80", "--network inner"),
    ):
        name = port.split(":")[-2]
        host.run(f"docker run -d --init --name p{name} --restart always {where} -p {port} {image} httpd -f -h /var/www")


def wait_for_containers(host: LabHost) -> None:
    """Every container listens: the host itself is let in by all published ports."""
    for port in PORTS:
        wait_for(f"port {port}", lambda port=port: inside(host, port), 60)


def inside(host: LabHost, port: int) -> bool:
    return host.run(f"curl -fsS -m 5 http://127.0.0.1:{port}/", check=False).stdout == "busybox\n"


def engine(lab, name: str, release: str) -> LabHost:
    registry = lab.registry()  # before the host, which knows its name then from the start
    fresh = lab.host(name, release, layer="docker")
    # An engine of this age translates IPv6 only when told twice.
    fresh.write("/etc/docker/daemon.json", json.dumps({"ip6tables": True, "experimental": True}))
    fresh.run("systemctl restart docker")
    registry.admit(fresh)
    image = registry.image("busybox")
    fresh.run(f"docker pull -q {image}")
    start_containers(fresh, image)
    wait_for_containers(fresh)
    return fresh


@pytest.fixture(scope="module")
def host(lab):
    fresh = engine(lab, "t-published", "bookworm")
    yield fresh
    lab.destroy(fresh)


# All ports of both families at once, so that those which answer show that the others had time to.
FETCH = """
import sys, threading, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
def fetch(url):
    try:
        opener.open(url, timeout=4).read()
        sys.stdout.write(url + "\\n")
    except OSError:
        pass
threads = [threading.Thread(target=fetch, args=(url,)) for url in sys.argv[1:]]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def reached(stranger: LabHost, host: LabHost) -> dict[int, set[int]]:
    """The ports of containers that the stranger has an answer from, by family."""
    urls = {
        f"http://{address}:{port}/": (family, port)
        for family, address in ((4, host.address), (6, f"[{host.address6}]"))
        for port in PORTS
    }
    found: dict[int, set[int]] = {4: set(), 6: set()}
    for url in stranger.run(f"python3 -c '{FETCH}' {' '.join(f'{chr(39)}{url}{chr(39)}' for url in urls)}").stdout.split():
        family, port = urls[url]
        found[family].add(port)
    return found


def assert_reached(stranger: LabHost, host: LabHost, *more: int) -> None:
    """Exactly the declared ports of containers answer the stranger, over both families."""
    wanted = {OPEN, OPEN_NET, DECLARED, *more}
    wait_for("the declared ports", lambda: all(wanted <= seen for seen in reached(stranger, host).values()), 60)
    assert reached(stranger, host) == {4: wanted, 6: wanted}


def assert_open(stranger: LabHost, host: LabHost) -> None:
    """Of all ports exactly the declared ones are reached, over both families."""
    wanted = {22, OPEN, OPEN_NET, DECLARED}
    seen = scan(stranger, host)
    assert (seen[4].open, seen[6].open) == (wanted, wanted)
    assert (seen[4].refused, seen[6].refused) == (set(), set())


def check_events(host: LabHost, stranger: LabHost, provision) -> None:
    """The whole life of the rules on one host."""
    run = provision(host, deploy(stranger).split("published.ports")[0])
    assert run.ok, run
    before = reached(stranger, host)
    # This is why: a firewall that drops everything, and what it is worth.
    assert {CLOSED, CLOSED_NET, ELSEWHERE} <= before[4]
    assert {CLOSED_NET, ELSEWHERE} <= before[6]

    run = provision(host, deploy(stranger))
    assert run.ok, run
    assert run.changed == ["Published"]
    assert_open(stranger, host)
    wait_for_containers(host)
    assert provision(host, deploy(stranger)).changed == []

    host.run("systemctl restart docker")
    wait_for_containers(host)
    assert_reached(stranger, host)
    host.run("ufw reload")
    assert_reached(stranger, host)
    host.reboot()
    wait_for_containers(host)
    assert_open(stranger, host)
    assert provision(host, deploy(stranger)).changed == []


def test_undeclared_ports_are_closed_through_restart_reload_and_reboot(host, stranger, provision):
    check_events(host, stranger, provision)


@pytest.mark.soak
def test_undeclared_ports_are_closed_on_trixie(lab, stranger, provision):
    trixie = engine(lab, "t-published-13", "trixie")
    check_events(trixie, stranger, provision)
    lab.destroy(trixie)


def curl(stranger: LabHost, url: str) -> bool:
    return stranger.run(f"curl -gfsS -m 5 {url}", check=False).returncode == 0


def test_update_opens_and_closes(host, stranger, provision):
    assert provision(host, deploy(stranger, CLOSED, CLOSED_NET)).changed == ["Firewall", "Published"]
    assert_reached(stranger, host, CLOSED, CLOSED_NET)
    assert provision(host, deploy(stranger)).changed == ["Firewall", "Published"]
    assert_reached(stranger, host)


def test_container_is_not_reached_past_its_published_port(host, stranger, provision):
    """A neighbour that routes to the containers' network gets around an address of loopback."""
    address = host.run(f"docker inspect -f '{{{{.NetworkSettings.IPAddress}}}}' p{LOOPBACK}").stdout.strip()
    stranger.run(f"ip route replace {address}/32 via {host.address}")
    try:
        assert provision(host, deploy(stranger, present=False)).changed == ["Published"]
        assert curl(stranger, f"http://{address}/")
        assert provision(host, deploy(stranger)).changed == ["Published"]
        assert not curl(stranger, f"http://{address}/")
    finally:
        stranger.run(f"ip route del {address}/32")


def test_way_out_of_containers_and_ports_of_others_stay(host, stranger, provision):
    assert provision(host, deploy(stranger)).ok
    # Out: from either network to another host.
    stranger.run("systemd-run --unit=outside python3 -m http.server 8099 --bind ::")
    wait_for("the server", lambda: curl(stranger, "http://127.0.0.1:8099/"), 30)
    for container in (f"p{CLOSED}", f"p{CLOSED_NET}"):
        pid = host.run(f"docker inspect -f '{{{{.State.Pid}}}}' {container}").stdout.strip()
        host.run(f"nsenter -t {pid} -n curl -fsS -m 20 -o /dev/null http://{stranger.address}:8099/")
    stranger.run("systemctl stop outside")
    # In, by somebody else's translation: what a NodePort of k3s is.
    host.run(
        "ip netns add pod; ip link add cni0 type bridge; ip addr add 10.42.0.1/24 dev cni0; ip link set cni0 up;"
        "ip link add pod0 type veth peer name eth0 netns pod; ip link set pod0 master cni0 up;"
        "ip -n pod addr add 10.42.0.2/24 dev eth0; ip -n pod link set eth0 up; ip -n pod route add default via 10.42.0.1;"
        "iptables -I FORWARD -o cni0 -j ACCEPT; iptables -I FORWARD -i cni0 -j ACCEPT;"
        "iptables -t nat -I PREROUTING -p tcp --dport 30080 -j DNAT --to 10.42.0.2:80;"
        "systemd-run --unit=pod ip netns exec pod python3 -m http.server 80"
    )
    try:
        wait_for("the pod", lambda: curl(stranger, f"http://{host.address}:30080/"), 30)
    finally:
        host.run(
            "systemctl stop pod; iptables -t nat -D PREROUTING -p tcp --dport 30080 -j DNAT --to 10.42.0.2:80;"
            "iptables -D FORWARD -o cni0 -j ACCEPT; iptables -D FORWARD -i cni0 -j ACCEPT;"
            "ip link del cni0; ip netns del pod"
        )


def soak(value: str) -> object:
    return pytest.param(value, marks=pytest.mark.soak)


@pytest.mark.parametrize(
    "by_hand",
    [
        "nft delete table inet hostwright_published",
        soak("nft insert rule inet hostwright_published from_outside accept"),
        soak("nft flush chain inet hostwright_published forward"),
        soak("echo '# mine' >> /etc/hostwright/published/ports.nft"),
        soak("chmod 0666 /etc/hostwright/published/ports.nft"),
        soak("systemctl disable hostwright-published"),
        soak("rm /etc/systemd/system/docker.service.requires/hostwright-published.service"),
        soak("rm /etc/systemd/system/hostwright-published.service; systemctl daemon-reload"),
        soak("cp /etc/hostwright/published/ports.nft /etc/hostwright/published/.ports.nft.dpkg-new"),
        soak("rm -r /etc/hostwright/published"),
    ],
)
def test_drift_by_hand_is_healed(host, stranger, provision, by_hand):
    assert provision(host, deploy(stranger)).ok
    wanted = host.run(TABLE).stdout
    assert "jump declared" in wanted
    started = host.run("docker inspect -f '{{.State.Pid}}' $(docker ps -q)").stdout
    host.run(by_hand)
    run = provision(host, deploy(stranger))
    assert run.ok, run
    assert run.changed == ["Published"]
    assert host.run(TABLE).stdout == wanted
    assert host.run("systemctl is-enabled hostwright-published").stdout == "enabled\n"
    assert "hostwright-published" in host.run("systemctl show -p Requires docker.service").stdout
    assert host.run("docker inspect -f '{{.State.Pid}}' $(docker ps -q)").stdout == started
    assert provision(host, deploy(stranger)).changed == []


# Writes down what comes; run by the host inside of a container's network.
RECEIVE = """
import socket, sys
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.bind(("::", 53))
while True:
    open(sys.argv[1], "ab").write(server.recv(100))
"""
# One datagram to each address, which is its text.
SEND = """
import socket, sys
for address in sys.argv[1:]:
    host, port = address.rsplit(",", 1)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socket.socket(family, socket.SOCK_DGRAM).sendto(address.encode() + b"\\n", (host, int(port)))
"""


@pytest.mark.soak
def test_datagrams_are_held_to_the_declaration(host, stranger, provision):
    assert provision(host, deploy(stranger)).ok
    image = host.run(f"docker inspect -f '{{{{.Config.Image}}}}' p{OPEN}").stdout.strip()
    host.run("rm -f /root/got; touch /root/got")
    host.write("/root/receive.py", RECEIVE)
    for port in (OPEN_NET, CLOSED):
        host.run(f"docker run -d --init --name u{port} --network inner -p {port}:53/udp {image} sleep infinity")
        pid = host.run(f"docker inspect -f '{{{{.State.Pid}}}}' u{port}").stdout.strip()
        host.run(f"systemd-run --collect --unit=u{port} nsenter -t {pid} -n python3 /root/receive.py /root/got")

    def got() -> set[str]:
        return set(host.read("/root/got").split())

    def send(*ports: int) -> None:
        pairs = [f"{address},{port}" for port in ports for address in (host.address, host.address6)]
        stranger.run(f"python3 -c '{SEND}' {' '.join(pairs)}")

    try:
        for port, address in ((OPEN_NET, host.address), (OPEN_NET, host.address6)):
            wait_for(f"a datagram to {address}", lambda port=port, address=address: send(CLOSED, port) or f"{address},{port}" in got(), 60)
        assert got() == {f"{host.address},{OPEN_NET}", f"{host.address6},{OPEN_NET}"}
        # They would have come: without the rules they do.
        assert provision(host, deploy(stranger, present=False)).ok
        closed = {f"{host.address},{CLOSED}", f"{host.address6},{CLOSED}"}
        wait_for("what was closed", lambda: send(CLOSED) or closed <= got(), 60)
    finally:
        host.run(f"systemctl stop u{OPEN_NET} u{CLOSED}; docker rm -f u{OPEN_NET} u{CLOSED}")
        assert provision(host, deploy(stranger)).ok


@pytest.mark.soak
def test_restart_of_the_engine_brings_lost_rules_back(host, stranger, provision):
    assert provision(host, deploy(stranger)).ok
    wanted = host.run(TABLE).stdout
    host.run("nft delete table inet hostwright_published; systemctl restart docker")
    assert host.run(TABLE).stdout == wanted
    wait_for_containers(host)


@pytest.mark.soak
def test_engine_does_not_start_without_the_rules(host, stranger, provision):
    assert provision(host, deploy(stranger)).ok
    host.run("echo broken >> /etc/hostwright/published/ports.nft")
    assert host.run("systemctl restart docker", check=False).returncode != 0
    run = provision(host, deploy(stranger))
    assert run.changed == ["Published"]
    host.run("systemctl restart docker")
    wait_for_containers(host)


def test_bridge_that_is_the_way_out_is_refused_before_any_change(host, stranger, provision):
    assert provision(host, deploy(stranger)).ok
    before = host.run(TABLE).stdout
    run = provision(host, deploy(stranger, bridges=["docker0", "eth*"]))
    assert not run.ok
    assert "the default route leads out of eth0, which bridges=['docker0', 'eth*'] take for a bridge" in run.stderr
    run = provision(host, deploy(stranger, bridges=["docker 0"]))
    assert not run.ok
    assert "bridges must be names of interfaces or their beginning and '*', got ['docker 0']" in run.stderr
    assert host.run(TABLE).stdout == before


def test_unset_leaves_nothing(host, stranger, provision):
    assert provision(host, deploy(stranger)).ok
    run = provision(host, deploy(stranger, present=False))
    assert run.ok, run
    assert run.changed == ["Published"]
    assert host.run(TABLE, check=False).returncode != 0
    assert not host.exists("/etc/hostwright/published")
    assert host.run("find /etc/systemd/system -name '*hostwright-published*'").stdout == ""
    assert provision(host, deploy(stranger, present=False)).changed == []
    host.run("systemctl restart docker")
    assert provision(host, deploy(stranger)).changed == ["Published"]
