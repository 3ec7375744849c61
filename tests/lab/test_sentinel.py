"""Three hosts, one primary: a failover that clients survive, on real hosts, read back with redis-cli and systemctl."""

import json
import textwrap
from pathlib import Path

import pytest

from tests.lab.authority import Authority
from tests.lab.fingerprint import leftovers
from tests.lab.kill import Point, kill_run
from tests.lab.provision import command_line
from tests.lab.scan import scan
from tests.lab.state import wait_for

pytestmark = pytest.mark.soak

ADMIN, APP, REPLICA, SENTINEL, ASK = (f"canary-{word}-password-1234" for word in ("admin", "app", "replica", "sentinel", "ask"))
NAMES = ("t-sent-a", "t-sent-b", "t-sent-c")
# A host of the lab may be short of processor time for longer than the default's five seconds: that is no loss.
PATIENT, DEFAULT = 20000, 5000
UNITS = ("redis-server@limits", "redis-sentinel@limits")
CLIENT = Path(__file__).with_name("sentinel_client.py")


def deploy(**group: object) -> str:
    values = "".join(f", {key}={value!r}" for key, value in {"down_after_ms": PATIENT, **group}.items())
    return textwrap.dedent(f"""\
        import os
        from pyinfra import host
        from operations import exposure, redis, sentinel
        from settings import Port
        from settings.secret import Secret
        me = host.data.ssh_hostname
        replica = Secret(os.environ.get("LAB_REPLICA", {REPLICA!r}))
        group = redis.Group(me, os.environ["LAB_PEERS"].split(), os.environ["LAB_CA"], replica, Secret({SENTINEL!r}), Secret({ASK!r}){values})
        tls = redis.Tls(os.environ["LAB_CERTIFICATE_" + me.replace(".", "_")], Secret(os.environ["LAB_KEY_" + me.replace(".", "_")]))
        exposure.firewall([Port(port=22, why="ssh"), *group.ports(clients=os.environ["LAB_CLIENTS"].split())], name="Firewall")
        redis.instance(
            "limits", password=Secret({ADMIN!r}), users=[redis.User("app", Secret({APP!r}))], addresses=[me], tls=tls, maxmemory_mb=64,
            group=group, name="Redis",
        )
        sentinel.watch("limits", group, name="Sentinel")
        """)


@pytest.fixture(scope="module")
def hosts(lab):
    found = lab.boot_all(*((name, "bookworm", "packages") for name in NAMES))
    for host in found:
        host.run("systemctl disable --now nginx supervisor chrony 2>/dev/null; true")
    yield found
    for host in found:
        lab.destroy(host)


@pytest.fixture(scope="module")
def client(lab):
    fresh = lab.host("t-sent-client")
    yield fresh
    lab.destroy(fresh)


@pytest.fixture(scope="module")
def outsider(lab):
    fresh = lab.host("t-sent-outsider")
    yield fresh
    lab.destroy(fresh)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def converge(hosts, client, authority, provision):
    env = {"LAB_CA": authority.certificate}
    for host in hosts:
        key = host.address.replace(".", "_")
        env["LAB_CERTIFICATE_" + key], env["LAB_KEY_" + key] = authority.issue(host.address, "127.0.0.1")
    env |= {"LAB_PEERS": " ".join(host.address for host in hosts), "LAB_CLIENTS": f"{client.address}/32"}

    def run(only=None, dry=False, more=None, **group):
        return provision(only or hosts, deploy(**group), env={**env, **(more or {})}, dry=dry)

    run.env = env
    return run


@pytest.fixture(scope="module")
def load(client, hosts, authority):
    """Start a client's load, and return what ends it and tells how it went."""
    client.write("/root/client.py", CLIENT.read_text())

    def start(key: str):
        config = {"sentinels": [host.address for host in hosts], "sentinel_port": 26379, "ca": authority.certificate, "ask_password": ASK,
                  "instance": "limits", "user": "app", "password": APP, "list": key}  # fmt: skip
        client.write(f"/root/{key}/config.json", json.dumps(config), mode="0600")
        client.run(f"systemd-run -q --unit={key} --working-directory=/root/{key} sh -c 'python3 /root/client.py config.json 900 >said'")

        def stop():
            client.run(f"touch /root/{key}/stop")
            wait_for("the client's end", lambda: client.run(f"systemctl is-active {key}", check=False).stdout != "active\n", 30, pause=0.3)
            return json.loads(client.read(f"/root/{key}/said"))

        return stop

    return start


def ask(host, *words: str, password: str = ADMIN) -> str:
    command = f"REDISCLI_AUTH={password} redis-cli -s /run/redis-limits/redis.sock --no-auth-warning {' '.join(words)} 2>&1"
    return host.run(command, check=False).stdout.strip()


def info(host, section: str = "replication") -> dict[str, str]:
    return dict(line.split(":", 1) for line in ask(host, "info", section).splitlines() if ":" in line)


def told(host) -> str:
    """The primary, as the sentinel of a host knows it."""
    command = f"REDISCLI_AUTH={ASK} redis-cli -h 127.0.0.1 -p 26379 --tls --cacert /etc/redis/redis-limits.ca.crt --no-auth-warning sentinel get-master-addr-by-name limits 2>&1"
    return host.run(command, check=False).stdout.split()[0]


def pids(hosts) -> list[str]:
    return [host.run(f"systemctl show -p MainPID --value {' '.join(UNITS)}").stdout for host in hosts]


def await_whole(hosts, seconds: float = 180) -> None:
    """Until there is one primary that all sentinels name, and everybody else is its replica and up to date."""

    def whole() -> bool:
        named = {told(host) for host in hosts}
        if len(named) != 1:
            return False
        for host in hosts:
            found = info(host)
            if host.address in named:
                if (found.get("role"), found.get("connected_slaves")) != ("master", str(len(hosts) - 1)):
                    return False
            elif (found.get("role"), found.get("master_host"), found.get("master_link_status")) != ("slave", *named, "up"):
                return False
        return True

    wait_for("one primary and its replicas", whole, seconds, pause=0.5)


def primary_of(hosts):
    address = told(hosts[0])
    return next(host for host in hosts if host.address == address)


def test_three_hosts_one_primary_and_a_second_run_changes_nothing(hosts, outsider, converge):
    run = converge()
    assert (run.ok, run.changed) == (True, ["Firewall", "Redis", "Sentinel"]), run
    await_whole(hosts)
    assert primary_of(hosts) is hosts[0], "the first of the declared peers"
    for host in hosts:
        wait_for("the sentinels to know each other", lambda host=host: "OK 3 usable Sentinels" in host.run(
            f"REDISCLI_AUTH={ASK} redis-cli -h 127.0.0.1 -p 26379 --tls --cacert /etc/redis/redis-limits.ca.crt --no-auth-warning sentinel ckquorum limits 2>&1",
            check=False).stdout, 120, pause=0.5)  # fmt: skip
    before = pids(hosts)
    # the sentinels have written into their files meanwhile
    assert "known-replica" in hosts[0].read("/var/lib/redis/sentinel-limits/sentinel.conf")
    assert converge().changed == []
    assert converge(dry=True).changed == []
    assert pids(hosts) == before
    assert ask(hosts[0], "set", "kept", "value") == "OK"
    wait_for("the replicas", lambda: [ask(host, "get", "kept") for host in hosts] == ["value"] * 3, 20)
    assert "READONLY" in ask(hosts[1], "set", "kept", "other")
    # nobody but peers and clients, and nobody in clear or without a password
    assert scan(outsider, hosts[0])[4].open == {22}
    assert "NOAUTH" in hosts[1].run(f"redis-cli -h {hosts[0].address} -p 26379 --tls --cacert /etc/redis/redis-limits.ca.crt sentinel masters 2>&1", check=False).stdout
    assert "PONG" not in hosts[1].run(f"timeout 5 redis-cli -h {hosts[0].address} -p 6379 ping 2>&1", check=False).stdout


def test_clients_go_on_when_the_primary_is_lost(hosts, client, converge, load):
    assert converge(down_after_ms=DEFAULT).changed == ["Sentinel"]
    await_whole(hosts)
    old = primary_of(hosts)
    rest = [host for host in hosts if host is not old]
    stop = load("failover")
    wait_for("the client", lambda: int(ask(old, "llen", "failover") or 0) > 50, 120, pause=0.3)
    # silently: the kernel of the lab would close its connections
    old.cut_link()
    old.kill()
    wait_for("another primary", lambda: told(rest[0]) == told(rest[1]) != old.address, 120, pause=0.3)
    new = primary_of(rest)
    length = int(ask(new, "llen", "failover"))
    wait_for("the client at the new primary", lambda: int(ask(new, "llen", "failover")) > length + 50, 120, pause=0.3)

    before = pids(rest)
    assert converge(rest, down_after_ms=DEFAULT).changed == [], "a run after a failover has changed something"
    assert pids(rest) == before
    assert primary_of(rest) is new

    old.restore_link()
    old.boot()
    await_whole(hosts)
    assert primary_of(hosts) is new, "the old primary has taken its place again"
    said = stop()
    kept = [int(number) for number in ask(new, "lrange", "failover", "0", "-1").split()]
    lost = sorted(set(said["taken"]) - set(kept))
    print({key: said[key] for key in ("longest", "primaries", "said")}, "taken:", len(said["taken"]), "lost:", len(lost))  # noqa: T201 - for the docs
    assert said["primaries"] == [old.address, new.address]
    assert said["longest"] <= 15, "longer than group.failover_seconds"
    # Redis copies behind its answer: what was taken in the last moments may be lost, and no more than that
    assert len(lost) <= 5, lost
    assert [ask(host, "llen", "failover") for host in hosts] == [str(len(kept))] * 3

    before = pids(hosts)
    assert converge(down_after_ms=DEFAULT).changed == [], "a run has switched back"
    assert pids(hosts) == before
    assert primary_of(hosts) is new
    assert converge().changed == ["Sentinel"]
    await_whole(hosts)


def test_a_restart_of_the_primary_is_no_failover(hosts, converge):
    primary = primary_of(hosts)
    primary.run("systemctl restart redis-server@limits")
    await_whole(hosts)
    assert primary_of(hosts) is primary
    assert ask(primary, "get", "kept") == "value"


def test_a_changed_policy_restarts_sentinels_and_no_redis(hosts, converge):
    def servers():
        return [host.run(f"systemctl show -p MainPID --value {UNITS[0]}").stdout for host in hosts]

    before, primary = servers(), primary_of(hosts)
    assert converge(down_after_ms=30000).changed == ["Sentinel"]
    assert (servers(), primary_of(hosts)) == (before, primary)
    assert converge(down_after_ms=30000).changed == []
    assert converge().changed == ["Sentinel"]
    # by hand
    hosts[1].run(f"REDISCLI_AUTH={ASK} redis-cli -h 127.0.0.1 -p 26379 --tls --cacert /etc/redis/redis-limits.ca.crt sentinel set limits quorum 1")
    assert converge(dry=True).changed == ["Sentinel"]
    assert converge().changed == ["Sentinel"]
    assert converge().changed == []
    # a rotated password of the replicas is taken over while they run
    assert converge(more={"LAB_REPLICA": "canary-replica-password-new"}).changed == ["Redis"]
    await_whole(hosts)
    for host in hosts:
        if host is not primary:
            ask(host, "client", "kill", "type", "master")
    await_whole(hosts)
    assert converge().changed == ["Redis"]
    assert servers() == before
    await_whole(hosts)


def test_all_lose_their_power(hosts):
    primary = primary_of(hosts)
    for host in hosts:
        host.run("sync")
        host.kill()
    for host in reversed(hosts):
        host.boot()
    await_whole(hosts)
    assert ask(primary_of(hosts), "get", "kept") == "value"
    assert primary_of(hosts) is primary


def test_the_first_peer_comes_back_empty_and_becomes_a_replica(hosts, converge):
    if primary_of(hosts) is hosts[0]:
        hosts[1].run(f"REDISCLI_AUTH={ASK} redis-cli -h 127.0.0.1 -p 26379 --tls --cacert /etc/redis/redis-limits.ca.crt sentinel failover limits")
        wait_for("another primary", lambda: told(hosts[1]) != hosts[0].address, 120, pause=0.5)
        await_whole(hosts)
    primary = primary_of(hosts)
    hosts[0].reset()
    hosts[0].run("systemctl disable --now nginx supervisor chrony 2>/dev/null; true")
    assert converge().ok
    await_whole(hosts)
    assert primary_of(hosts) is primary, "an empty host has become the primary, because it is the first that is declared"
    assert ask(hosts[0], "get", "kept") == "value"
    assert converge().changed == []


def test_secrets_are_where_they_belong(hosts):
    for host in hosts:
        found = host.run("grep -rlE 'canary-(admin|app|replica|sentinel|ask)' /etc /var /run /tmp --exclude-dir=journal 2>/dev/null", check=False).stdout.split()
        assert sorted(found) == [
            "/etc/hostwright/redis/limits.group.json", "/etc/hostwright/redis/limits.password", "/etc/redis/redis-limits.replication.conf",
            "/etc/redis/sentinel-limits.conf", "/var/lib/redis/sentinel-limits/sentinel.conf",
        ]  # fmt: skip
        modes = host.run(f"stat -c '%a %U' {' '.join(sorted(found))}").stdout.splitlines()
        assert modes == ["600 root", "600 root", "640 root", "600 root", "600 redis"], modes
        assert host.run("journalctl --no-pager | grep -cE 'canary-(admin|app|replica|sentinel|ask)'", check=False).stdout == "0\n"
        exposed = host.run("systemd-analyze security --no-pager redis-sentinel@limits").stdout.splitlines()[-1]
        assert float(exposed.split(": ")[1].split()[0]) <= 2.5, exposed


def test_killed_anywhere_the_next_run_ends_it(hosts, converge, provision, tmp_path):
    """From nothing but the packages: a run is killed ever later, on all three hosts."""
    gone = "from operations import redis, sentinel\nsentinel.watch('limits', present=False, name='Sentinel')\nredis.instance('limits', present=False, name='Redis')\n"
    assert provision(hosts, gone).ok
    for point in (Point(1, 0.5), Point(1, 2), Point(1, 5), Point(1, 9), Point(2, 0.5), Point(2, 2), Point(2, 5)):
        kill_run(command_line(tmp_path, hosts, deploy()), converge.env, point)
    run = converge()
    assert run.ok, run
    await_whole(hosts)
    assert [line for host in hosts for line in leftovers(host)] == []
    before = pids(hosts)
    assert converge().changed == []
    assert pids(hosts) == before
    # a policy and a password are changed, and that is killed
    new = {"LAB_REPLICA": "canary-replica-password-new"}
    for point in (Point(1, 0.5), Point(1, 2), Point(2, 0.5), Point(2, 2)):
        kill_run(command_line(tmp_path, hosts, deploy(down_after_ms=25000)), {**converge.env, **new}, point)
    assert converge(more=new, down_after_ms=25000).ok
    await_whole(hosts)
    assert converge(more=new, down_after_ms=25000).changed == []
    assert converge().ok
    await_whole(hosts)


def test_unset(hosts, provision):
    gone = "from operations import redis, sentinel\nsentinel.watch('limits', present=False, name='Sentinel')\nredis.instance('limits', present=False, name='Redis')\n"
    assert provision(hosts, gone).changed == ["Sentinel", "Redis"]
    assert provision(hosts, gone).changed == []
    assert "canary" not in hosts[0].run("grep -rhoE 'canary-(admin|app|replica|sentinel|ask)' /etc /var/lib/redis 2>/dev/null", check=False).stdout
