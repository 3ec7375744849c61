"""What a sentinel's file is made of, whom the role program believes, and which groups are refused."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from facts.sentinel import Sentinel, SentinelState
from operations import template
from operations.redis import Group, Instance, Tls, User
from operations.sentinel import is_drifted
from settings.secret import Secret

PASSWORD = Secret("a-password-of-the-test")
CA = "-----BEGIN CERTIFICATE-----\n"
PEERS = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
GROUP = Group("10.0.0.2", PEERS, CA, Secret("password-of-replicas"), Secret("password-of-sentinels"), Secret("password-of-clients"))
MEMBER = Instance("limits", PASSWORD, addresses=("10.0.0.2",), tls=Tls(CA, Secret("key")), group=GROUP)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The program for hosts as a module, asking nobody, writing below a directory of the test."""
    text = Path("files/redis/redis-role.py").read_text().rpartition("\nmain(sys.argv[1:])")[0]
    path = tmp_path / "role.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("hostwright_role", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    files, answers = {}, {}
    monkeypatch.setattr(module, "ask", lambda group, address: answers.get(address))
    monkeypatch.setattr(module, "read", lambda path: files.get(path, ""))
    monkeypatch.setattr(module, "write", lambda path, text, mode=0: files.update({path: text}))
    monkeypatch.setattr(module.os, "makedirs", lambda path, exist_ok: None)
    module.files, module.answers = files, answers
    return module


TOLD = {"instance": "limits", "address": "10.0.0.2", "peers": list(PEERS), "port": 6379, "sentinel_port": 26379}


def answer(address: str, epoch: int) -> dict[str, str]:
    return {"ip": address, "port": "6379", "config-epoch": str(epoch)}


def test_the_latest_election_is_believed(program):
    assert program.primary("limits", TOLD)[:2] == ("10.0.0.1", 6379)
    program.files["/var/lib/redis/sentinel-limits/sentinel.conf"] = "sentinel monitor limits 10.0.0.3 6379 2\n"
    assert program.primary("limits", TOLD)[0] == "10.0.0.3"
    program.answers.update({"10.0.0.1": answer("10.0.0.1", 3), "10.0.0.3": answer("10.0.0.2", 10)})
    assert program.primary("limits", TOLD)[0] == "10.0.0.2"
    program.role("limits", TOLD)
    assert program.files["/run/redis-limits/role.conf"] == ""
    program.answers["10.0.0.3"] = answer("10.0.0.3", 11)
    program.role("limits", TOLD)
    assert program.files["/run/redis-limits/role.conf"] == "replicaof 10.0.0.3 6379\n"


def test_what_a_sentinel_has_learned_stays(program):
    declared = template.render("sentinel/sentinel.conf.j2", instance="limits", group=GROUP, port=6379)
    program.files["/etc/redis/sentinel-limits.conf"] = declared
    program.files["/var/lib/redis/sentinel-limits/sentinel.conf"] = (
        "port 1\nuser default on #1234\nsentinel myid abc\nsentinel monitor limits 10.0.0.3 6379 1\nsentinel config-epoch limits 7\n"
        "sentinel known-replica limits 10.0.0.1 6379\nsentinel known-sentinel limits 10.0.0.9 26379 def\nsentinel current-epoch 7\n"
    )
    program.sentinel("limits", TOLD)
    made = program.files["/var/lib/redis/sentinel-limits/sentinel.conf"]
    assert made.startswith(declared.partition("sentinel monitor")[0])
    assert "\nsentinel monitor limits 10.0.0.3 6379 2\n" in made
    assert made.endswith("sentinel myid abc\nsentinel config-epoch limits 7\nsentinel known-replica limits 10.0.0.1 6379\nsentinel current-epoch 7\n")
    assert "10.0.0.9" not in made, "who is no peer any more was kept"
    assert "port 1\n" not in made
    again = dict(program.files)
    program.sentinel("limits", TOLD)
    assert program.files == again


def test_members_know_replicas_and_sentinels():
    assert MEMBER.faults() == []
    rules = MEMBER.rules((7, 0, 15))
    assert [line.split()[1] for line in rules.splitlines()] == ["default", "replica", "sentinel"]
    assert rules.splitlines()[1].endswith("&* +psync +replconf +ping")
    asks_first = replace(MEMBER, users=(User("app", PASSWORD), User("own", PASSWORD, ("~x", "+get")))).rules((7, 0, 15)).splitlines()
    assert asks_first[1].endswith("+info +keys +role")
    assert asks_first[2].endswith("~x +get")
    assert MEMBER.live()["replica-announce-ip"] == "10.0.0.2"
    assert "masterauth" not in MEMBER.live(), "a password that a fact would read"
    assert list(MEMBER.live()).index("tls-ca-cert-file") < list(MEMBER.live()).index("tls-replication"), "Redis wants it in this order"
    assert (GROUP.votes, replace(GROUP, quorum=3).votes, GROUP.failover_seconds) == (2, 3, 15)


def test_only_peers_and_clients_are_let_in():
    redis, sentinel = GROUP.ports(6379, ["10.1.0.0/16"])
    assert (redis.port, sentinel.port) == (6379, 26379)
    assert redis.sources == ("10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32", "10.1.0.0/16")


def test_drift_is_seen_only_on_what_runs():
    as_wanted = {"quorum": "2", "down-after-milliseconds": "5000", "failover-timeout": "30000", "parallel-syncs": "1", "ip": "10.0.0.3"}
    assert not is_drifted(GROUP, SentinelState())
    assert not is_drifted(GROUP, SentinelState(knows=as_wanted))
    assert is_drifted(GROUP, SentinelState(knows={**as_wanted, "quorum": "1"}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"address": "10.0.0.9"}, "must hold this host's address"),
        ({"address": "127.0.0.1"}, "by which other hosts reach"),
        ({"peers": PEERS[:2]}, "three hosts or more"),
        ({"peers": ("10.0.0.2",) * 3}, "three hosts or more"),
        ({"ca": ""}, "group.ca"),
        ({"replica_password": Secret("short")}, "group.replica_password"),
        ({"sentinel_password": Secret('with-a-"-quote-in-it')}, "group.sentinel_password"),
        ({"ask_password": Secret.unset()}, "group.ask_password"),
        ({"sentinel_port": 0}, "group.sentinel_port"),
        ({"quorum": 4}, "group.quorum"),
        ({"down_after_ms": 10}, "group.down_after_ms"),
        ({"failover_ms": 10}, "group.failover_ms"),
        ({"min_replicas": 3}, "group.min_replicas"),
    ],
)
def test_bad_groups_are_named(change, said):
    faults = replace(GROUP, **change).faults()
    assert any(said in fault for fault in faults), faults
    assert GROUP.faults() == []


def test_members_need_tls_and_leave_users_alone():
    assert any("group needs tls" in fault for fault in replace(MEMBER, tls=None, addresses=()).faults())
    assert any("'replica' is made by group" in fault for fault in replace(MEMBER, users=(User("replica", PASSWORD),)).faults())


def test_fact_reads_what_the_command_prints():
    fact = Sentinel.__new__(Sentinel)
    assert fact.process(["installed\tyes", "there\tyes", "knows\t" + json.dumps({"ip": "10.0.0.1"})]) == SentinelState(
        True, False, True, {"ip": "10.0.0.1"}
    )
    assert fact.process(["stray\tyes", "knows\t"]) == SentinelState(stray=True)
