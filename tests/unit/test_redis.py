"""What an instance of Redis is written with, and which arguments are refused."""

import hashlib
from dataclasses import replace

import pytest

from facts.redis import RedisInstance, RedisState
from operations.redis import Instance, Tls, User, is_drifted
from settings.secret import Secret

PASSWORD = Secret("a-password-of-the-test")
GOOD = Instance("broker", PASSWORD, (User("shop", Secret("the-password-of-the-shop")),))
TLS = Tls("-----BEGIN CERTIFICATE-----\n", Secret("key"))


def test_rules_hold_hashes_and_no_password():
    text = GOOD.rules((7, 0, 15))
    assert text.splitlines() == [
        f"user default on #{hashlib.sha256(b'a-password-of-the-test').hexdigest()} &* ~* +@all",
        f"user shop on #{hashlib.sha256(b'the-password-of-the-shop').hexdigest()} &* ~* +@all -@admin -@dangerous +info +keys",
    ]
    assert "&*" not in GOOD.rules((6, 0, 16))


def test_a_former_password_is_good_besides():
    both = replace(GOOD, users=(User("shop", Secret("the-password-of-the-shop"), former=(Secret("the-password-of-before"),)),))
    hashes = [hashlib.sha256(text).hexdigest() for text in (b"the-password-of-the-shop", b"the-password-of-before")]
    assert f"user shop on #{hashes[0]} #{hashes[1]} &* ~* +@all" in both.rules((7, 0, 15))
    assert both.faults() == []
    short = replace(GOOD, users=(User("shop", PASSWORD, former=(Secret("short"),)),))
    assert "user shop: the password must have 16" in short.faults()[0]


def test_live_settings_stand_in_the_file_as_redis_says_them():
    wanted = replace(GOOD, maxmemory_mb=3, tls=TLS)
    assert wanted.live()["maxmemory"] == "3145728"
    assert wanted.live()["tls-key-file"] == "/etc/redis/redis-broker.key"
    assert 'save ""\n' in wanted.live_text()
    assert "appendonly no\n" in replace(GOOD, append_only=False).live_text()


def test_drift_is_seen_only_on_what_runs():
    assert not is_drifted(GOOD, RedisState())
    assert not is_drifted(GOOD, RedisState(live=GOOD.live()))
    assert is_drifted(GOOD, RedisState(live=GOOD.live(), same_rules=False))
    assert is_drifted(GOOD, RedisState(live={**GOOD.live(), "maxmemory-policy": "allkeys-lru"}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instance": "My Broker"}, "instance must be"),
        ({"password": Secret.unset()}, "password: the password must be a Secret that is set"),
        ({"password": Secret("short")}, "16 printable characters"),
        ({"users": (User("default", PASSWORD),)}, "not 'default'"),
        ({"users": (User("a", PASSWORD), User("a", PASSWORD))}, "stands twice"),
        ({"users": (User("a", PASSWORD, ("+@all\nuser b on nopass",)),)}, "not a rule"),
        ({"port": 0}, "port must be"),
        ({"addresses": ("0.0.0.0",), "tls": TLS}, "not all of them"),
        ({"addresses": ("10.0.0.1",)}, "addresses need tls"),
        ({"tls": Tls("", Secret("key"))}, "tls needs"),
        ({"maxmemory_mb": 0}, "maxmemory_mb must be"),
        ({"policy": "lru"}, "policy must be one of"),
        ({"policy": "allkeys-lru"}, "forgets what append_only=True is there to keep"),
        ({"databases": 0}, "databases must be"),
    ],
)
def test_bad_arguments_are_named(change, said):
    faults = replace(GOOD, **change).faults()
    assert any(said in fault for fault in faults), faults
    assert GOOD.faults() == []


def test_fact_reads_what_the_program_prints():
    state = RedisInstance.__new__(RedisInstance).process(["version\t7.0.15", "there\tyes", "live\tmaxmemory\t1", "live\tsave\t", "acl\tdiffers"])
    assert state == RedisState((7, 0, 15), False, True, {"maxmemory": "1", "save": ""}, False)
