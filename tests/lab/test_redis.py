"""An instance of Redis on a real host, read back with redis-cli and systemctl."""

import textwrap

import pytest

from tests.lab.authority import Authority
from tests.lab.state import wait_for

FIRST, SECOND, SHOP = "canary-first-password-1", "canary-second-password-2", "canary-password-of-shop"
UNIT = "redis-server@broker"


def deploy(text: str = "", **arguments: object) -> str:
    values = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return textwrap.dedent(f"""\
        import os
        from operations import redis
        from settings.secret import Secret
        redis.instance(
            "broker", password=Secret(os.environ["LAB_PASSWORD"]), users=[redis.User("shop", Secret("{SHOP}"))]{values}{text},
            name="Broker",
        )
        """)


TLS = ', tls=redis.Tls(os.environ["LAB_CERTIFICATE"], Secret(os.environ["LAB_KEY"]))'


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def converge(host, provision, authority):
    certificate, key = authority.issue(host.address, "127.0.0.1", "localhost")

    def run(text="", password=FIRST, dry=False, **arguments):
        env = {"LAB_PASSWORD": password, "LAB_CERTIFICATE": certificate, "LAB_KEY": key}
        return provision(host, deploy(text, **arguments), env=env, dry=dry)

    return run


def ask(host, *words: str, password: str = FIRST, user: str = "default", options: str = "-h 127.0.0.1") -> str:
    command = f"REDISCLI_AUTH={password} redis-cli {options} --user {user} --no-auth-warning {' '.join(words)} 2>&1"
    return host.run(command, check=False).stdout.strip()


def pid(host) -> str:
    return host.run(f"systemctl show -p MainPID --value {UNIT}").stdout.strip()


@pytest.mark.soak
def test_set_noop_update(host, converge):
    run = converge()
    assert (run.ok, run.changed) == (True, ["Broker"]), run
    assert host.run(f"systemctl is-active {UNIT}; systemctl is-enabled {UNIT}").stdout.split() == ["active", "enabled"]
    assert host.run("systemctl is-active redis-server; systemctl is-enabled redis-server", check=False).stdout.split() == [
        "inactive", "disabled",
    ]  # fmt: skip
    before = pid(host)
    assert converge().changed == []
    assert converge(dry=True).changed == []
    assert ask(host, "config get maxmemory-policy").split() == ["maxmemory-policy", "noeviction"]
    assert "NOAUTH" in host.run("redis-cli -h 127.0.0.1 get a 2>&1", check=False).stdout

    assert converge(maxmemory_mb=64, policy="allkeys-lru", append_only=False).changed == ["Broker"]
    assert ask(host, "config get maxmemory").split() == ["maxmemory", str(64 * 1024 * 1024)]
    assert converge(maxmemory_mb=64).changed == ["Broker"]
    assert ask(host, "config get appendonly").split() == ["appendonly", "yes"]
    assert pid(host) == before, "what Redis takes while it runs has cost a restart"
    assert ask(host, "set kept value") == "OK"

    assert converge(maxmemory_mb=64, databases=4).changed == ["Broker"]
    assert pid(host) != before
    assert ask(host, "get kept") == "value"
    assert converge(maxmemory_mb=64, databases=4).changed == []


@pytest.mark.soak
def test_users_may_what_they_may(host, converge):
    assert converge().ok
    shop = {"user": "shop", "password": SHOP}
    assert ask(host, "lpush tasks 1", **shop) == "1"
    assert ask(host, "publish news 1", **shop) == "0"
    for word in ("flushall", "config get '*'", "acl list", "shutdown"):
        assert "NOPERM" in ask(host, word, **shop), word
    assert "WRONGPASS" in ask(host, "ping", user="shop", password=FIRST)


@pytest.mark.soak
def test_password_is_rotated_without_a_restart(host, converge):
    before = pid(host)
    assert converge(password=SECOND).changed == ["Broker"]
    assert ask(host, "ping", password=SECOND) == "PONG"
    assert "WRONGPASS" in ask(host, "ping", password=FIRST)
    assert converge(password=SECOND).changed == []
    assert converge().changed == ["Broker"]
    assert pid(host) == before


@pytest.mark.soak
def test_a_former_password_is_good_until_it_is_taken_away(host, provision, converge):
    assert converge().ok
    def run(former):
        text = deploy().replace(f'Secret("{SHOP}"))', f'Secret("canary-next-of-shop"), former=[{former}])')
        return provision(host, text, env={"LAB_PASSWORD": FIRST})

    before = pid(host)
    both = f'Secret("{SHOP}")'
    assert run(both).changed == ["Broker"]
    assert [ask(host, "ping", user="shop", password=one) for one in (SHOP, "canary-next-of-shop")] == ["PONG"] * 2
    assert run(both).changed == []
    assert run("").changed == ["Broker"]
    assert "WRONGPASS" in ask(host, "ping", user="shop", password=SHOP)
    assert ask(host, "ping", user="shop", password="canary-next-of-shop") == "PONG"
    assert pid(host) == before


@pytest.mark.soak
def test_what_is_changed_by_hand_is_put_right(host, converge):
    assert ask(host, "config set maxmemory-policy allkeys-random") == "OK"
    assert converge(dry=True).changed == ["Broker"]
    assert converge().changed == ["Broker"]
    assert ask(host, "config get maxmemory-policy").split()[1] == "noeviction"

    assert ask(host, "acl setuser thief on nopass '~*' '+@all'") == "OK"
    assert converge().changed == ["Broker"]
    assert "thief" not in ask(host, "acl list")

    host.run(f"systemctl disable --now {UNIT}; echo 'nonsense yes' >>/etc/redis/redis-broker.conf")
    assert converge().changed == ["Broker"]
    assert host.run(f"systemctl is-enabled {UNIT}").stdout == "enabled\n"
    assert ask(host, "get kept") == "value"
    assert converge().changed == []


@pytest.mark.soak
def test_one_run_is_enough_for_a_stopped_instance(host, converge):
    """Its rules change while it does not run: it starts on them, and the next run has nothing to put right."""
    host.run(f"systemctl stop {UNIT}")
    assert converge(password=SECOND).changed == ["Broker"]
    assert ask(host, "ping", password=SECOND) == "PONG"
    assert converge(password=SECOND).changed == []
    # what is changed by hand is still seen
    assert ask(host, "acl setuser thief on nopass '~*' '+@all'", password=SECOND) == "OK"
    assert converge(password=SECOND).changed == ["Broker"]
    assert converge().changed == ["Broker"]
    assert converge().changed == []


@pytest.mark.soak
def test_what_was_written_survives_the_kill(host):
    assert ask(host, "set survives yes") == "OK"
    # what has been written to the log, once a second
    wait_for("the log", lambda: "aof_pending_bio_fsync:0" in ask(host, "info persistence"), 10)
    host.run("sync")
    host.run(f"systemctl kill -s KILL {UNIT}")
    wait_for("Redis after the kill", lambda: ask(host, "get survives") == "yes", 20, pause=0.3)


@pytest.mark.soak
def test_what_redis_does_not_take_is_taken_back(host, converge):
    bad = converge(TLS, addresses=["192.0.2.77"])
    assert (bad.ok, bad.failed) == (False, ["Broker"])
    assert "192.0.2.77" not in host.read("/etc/redis/redis-broker.conf")
    assert ask(host, "get kept") == "value"
    assert "old files" in bad.stderr

    # found out beside the running one
    before = pid(host)
    host.run("printf '#!/bin/sh\nexit 1\n' >/usr/local/bin/redis-server; chmod 755 /usr/local/bin/redis-server")
    bad = converge(databases=5)
    host.run("rm /usr/local/bin/redis-server")
    assert (bad.ok, bad.failed) == (False, ["Broker"])
    assert "nothing was changed" in bad.stderr
    assert "databases must be 1 to 1024" in converge(databases=5000).stderr
    assert pid(host) == before
    assert converge().ok
    assert ask(host, "get kept") == "value"


@pytest.mark.soak
def test_full_broker_refuses_and_forgets_nothing(host, converge):
    assert converge(maxmemory_mb=8).ok
    fill = "for n in $(seq 1 400); do echo \"lpush queue $(head -c 60000 /dev/zero | tr '\\0' x)\"; done"
    said = host.run(f"{{ {fill}; }} | REDISCLI_AUTH={FIRST} redis-cli -h 127.0.0.1", check=False).stdout.splitlines()
    taken = [line for line in said if line.isdigit()]
    assert any("OOM command not allowed" in line for line in said), said[-3:]
    assert ask(host, "llen queue") == taken[-1]
    assert "evicted_keys:0" in ask(host, "info stats")
    assert ask(host, "get kept") == "value"
    assert ask(host, "del queue") == "1"
    assert converge().ok


@pytest.mark.soak
def test_beyond_loopback_only_tls_is_spoken(host, stranger, converge, authority):
    assert converge(TLS, addresses=[host.address]).changed == ["Broker"]
    host.write("/root/ca.pem", authority.certificate)
    secure = f"-h {host.address} --tls --cacert /root/ca.pem"
    assert ask(host, "get kept", options=secure) == "value"
    assert ask(host, "get kept", options=f"-h {host.address} --tls --cacert /etc/ssl/certs/ca-certificates.crt") != "value"
    assert ask(host, "get kept", options=f"-h {host.address}") != "value"
    assert host.run("ss -Hltn 'sport = :6379'").stdout.count("LISTEN") == 2
    assert stranger.run(f"timeout 5 openssl s_client -connect {host.address}:6379 </dev/null 2>&1 | grep -c 'BEGIN CERT'").stdout == "1\n"
    assert converge(TLS, addresses=[host.address]).changed == []
    assert converge().changed == ["Broker"]
    assert ask(host, "get kept") == "value"


@pytest.mark.soak
def test_secrets_are_where_they_belong(host):
    for path, mode in (
        ("/etc/hostwright/redis/broker.password", "600 root root"),
        ("/etc/redis/redis-broker.acl", "640 root redis"),
        ("/etc/redis/redis-broker.conf", "640 root redis"),
        ("/var/lib/redis/broker", "700 redis redis"),
    ):
        assert host.run(f"stat -c '%a %U %G' {path}").stdout.strip() == mode
    found = host.run(f"grep -rlE '{FIRST}|{SECOND}|{SHOP}' /etc /var/lib /var/log /run /tmp --exclude-dir=journal", check=False).stdout.split()
    assert found == ["/etc/hostwright/redis/broker.password"]
    assert host.run(f"journalctl --no-pager | grep -cE '{FIRST}|{SECOND}|{SHOP}'", check=False).stdout == "0\n"
    exposed = host.run(f"systemd-analyze security --no-pager {UNIT}").stdout.splitlines()[-1]
    assert float(exposed.split(": ")[1].split()[0]) <= 2.5, exposed
    assert "Permission denied" in host.run("runuser -u redis -- cat /etc/hostwright/redis/broker.password 2>&1", check=False).stdout


@pytest.mark.soak
def test_unset(host, provision):
    gone = "from operations import redis\nredis.instance('broker', present=False, name='Broker')\n"
    assert provision(host, gone).changed == ["Broker"]
    assert host.run(f"systemctl is-active {UNIT}; systemctl is-enabled {UNIT}", check=False).stdout.split() == ["inactive", "disabled"]
    assert host.run("ls /etc/redis /etc/hostwright/redis").stdout.count("broker") == 0
    assert host.exists("/var/lib/redis/broker/appendonlydir"), "its data went along"
    assert provision(host, gone).changed == []
