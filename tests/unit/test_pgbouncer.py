"""What PgBouncer is written with, when it is restarted, and which arguments are refused."""

import base64
import json
from dataclasses import replace

import pytest

from facts.pgbouncer import Pgbouncer, PgbouncerState, RunningSetting
from operations.pgbouncer import Pooler, Server, User, is_drifted, needs_restart, verifiers
from operations.pgcluster import Tls, verifier
from settings.secret import Secret

PASSWORD = Secret("a-password-of-the-test")
GOOD = Pooler({"shop": 25}, (User("shop", PASSWORD),))
TLS = Tls("-----BEGIN CERTIFICATE-----\n", Secret("key"))
CA = "-----BEGIN CERTIFICATE-----\n"
SALT = base64.b64encode(b"0123456789abcdef").decode()


def running(**changes: str) -> PgbouncerState:
    shown = {**GOOD.rendered(), **changes}
    return PgbouncerState(running={key: RunningSetting(value, key not in ("listen_addr", "listen_port")) for key, value in shown.items()})


def test_prepared_statements_are_said_to_versions_that_know_them():
    assert GOOD.rendered((1, 24, 1))["max_prepared_statements"] == "200"
    assert replace(GOOD, prepared_statements=0).rendered((1, 24, 1))["max_prepared_statements"] == "0"
    assert "max_prepared_statements" not in GOOD.rendered((1, 18, 0))


def test_prepared_statements_are_refused_where_nothing_keeps_them():
    assert "needs PgBouncer 1.21" in GOOD.version_faults((1, 18, 0))[0]
    assert replace(GOOD, prepared_statements=0).version_faults((1, 18, 0)) == []
    assert GOOD.version_faults((1, 21, 0)) == GOOD.version_faults(()) == []
    measured = replace(GOOD, metrics_port=9127)
    assert "needs the exporter that Debian 13 has, this host's is 1.7-2.1" in measured.version_faults((1, 24, 1), "1.7-2.1")[0]
    assert measured.version_faults((1, 24, 1), "1:0.10.2-2") == measured.version_faults((1, 24, 1), "") == []
    assert len(measured.version_faults((1, 18, 0), "1.7-2.1")) == 2
    assert PgbouncerState(candidates={"pgbouncer": "1:1.18.0-1+deb12u1"}).version("pgbouncer") == (1, 18, 0)
    assert PgbouncerState().version("pgbouncer") == ()


def test_restart_only_for_what_cannot_be_read_anew():
    wanted = GOOD.rendered()
    assert not needs_restart(wanted, PgbouncerState())
    assert not needs_restart(wanted, running(max_client_conn="1"))
    assert needs_restart(wanted, running(listen_port="1"))
    assert is_drifted(wanted, running(max_client_conn="1"))
    assert not is_drifted(wanted, running())


def test_verifier_is_the_servers_own():
    made, missing = verifiers(GOOD.users, PgbouncerState(salts={"shop": (SALT, 4096)}))
    assert made == {"shop": verifier(PASSWORD.unmask(), b"0123456789abcdef")}
    assert missing == {}
    assert GOOD.userlist(made) == f'"shop" "{made["shop"]}"\n'
    # the server does not answer: what is there and of this password is still good
    assert verifiers(GOOD.users, PgbouncerState(userlist=made, faults={"shop": "down"})) == (made, {})
    other = {"shop": verifier("another-password", b"0123456789abcdef")}
    assert verifiers(GOOD.users, PgbouncerState(userlist=other, faults={"shop": "down"})) == ({}, {"shop": "down"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"databases": {}}, "databases is empty"),
        ({"databases": {"Shop": 1}}, "databases: must be"),
        ({"databases": {"shop": 0}}, "1 to 5000 connections"),
        ({"users": ()}, "users is empty"),
        ({"users": (User("postgres", PASSWORD),)}, "no superuser"),
        ({"users": (User("a", PASSWORD), User("a", PASSWORD))}, "stands twice"),
        ({"users": (User("a", Secret("short")),)}, "8 printable"),
        ({"server": Server("a b")}, "server.host must be"),
        ({"server": Server("10.0.0.1")}, "server.ca is needed"),
        ({"server": Server("10.0.0.1", ca="x")}, "certificate in PEM"),
        ({"server": Server(ca=CA)}, "through a socket"),
        ({"server": Server("127.0.0.1", 6432)}, "must not be that of the server"),
        ({"port": 0}, "port must be"),
        ({"metrics_port": 6432}, "metrics_port must be"),
        ({"metrics_address": "::"}, "not all of them"),
        ({"addresses": ("0.0.0.0",), "tls": TLS}, "not all of them"),
        ({"addresses": ("10.0.0.1",)}, "addresses need tls"),
        ({"tls": Tls("", Secret("key"))}, "tls needs"),
        ({"max_clients": 0}, "max_clients must be"),
        ({"prepared_statements": -1}, "prepared_statements must be"),
        ({"wait_seconds": 0}, "wait_seconds must be"),
        ({"settings": {"pool_mode": "session"}}, "pool_mode is set by"),
        ({"settings": {"a b": "1"}}, "not a setting"),
        ({"settings": {"admin_users": "shop"}}, "admin_users is set by"),
    ],
)
def test_bad_arguments_are_named(change, said):
    faults = replace(GOOD, **change).faults()
    assert any(said in fault for fault in faults), faults
    assert GOOD.faults() == replace(GOOD, server=Server("10.0.0.1", ca=CA)).faults() == []


def test_fact_reads_what_the_program_prints():
    line = json.dumps({
        "installed": {"pgbouncer": "1.24.1-1"}, "candidates": {}, "account": True, "running": {"pool_mode": ["transaction", "yes"]},
        "userlist": {"shop": "SCRAM"}, "salts": {"shop": [SALT, 4096]}, "faults": {},
    })  # fmt: skip
    state = Pgbouncer.__new__(Pgbouncer).process([line])
    assert state.running == {"pool_mode": RunningSetting("transaction", True)}
    assert state.salts == {"shop": (SALT, 4096)}
    assert state.version("pgbouncer") == (1, 24, 1)
