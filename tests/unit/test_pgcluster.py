"""What a cluster's settings come to, which SQL is due, and which arguments are refused."""

from dataclasses import replace

import pytest

from facts.pgcluster import PgCluster, PgClusterState, RoleState, SettingState
from operations.pgcluster import (
    Database,
    Role,
    Tls,
    cluster_faults,
    is_password,
    needs_restart,
    server_settings,
    statements,
    verifier,
)
from settings.secret import Secret

OWNER, SHOP = Role("shop_owner", Secret("owner-password")), Role("shop", Secret("shop-password"))
WANTED = Database("shop", OWNER, (SHOP,), ("pg_trgm",))
TLS = Tls("-----BEGIN CERTIFICATE-----\n", Secret("key"))


def role(password: str, **changes: object) -> RoleState:
    return replace(RoleState(False, True, -1, verifier(password, b"0123456789abcdef"), False), **changes)


AS_WANTED = PgClusterState(
    version="15", port=5432, owner="shop_owner", schema_owner="shop_owner", extensions=("plpgsql", "pg_trgm"),
    roles={"shop_owner": role("owner-password"), "shop": role("shop-password")}, connects=frozenset({"shop", "shop_owner"}),
    defaults=frozenset({("shop", "r", right) for right in ("SELECT", "INSERT", "UPDATE", "DELETE")} | {("shop", "S", "USAGE")}),
    has=frozenset({("shop", "INSERT"), ("shop_owner", "TRUNCATE")}),
)  # fmt: skip


def test_memory_is_shared_out_by_what_there_is():
    small, large = (server_settings(5432, (), memory, 100, False, "/") for memory in (256, 65536))
    assert (small["shared_buffers"], small["work_mem"], small["maintenance_work_mem"]) == ("64MB", "1MB", "16MB")
    assert (large["shared_buffers"], large["work_mem"], large["maintenance_work_mem"]) == ("16384MB", "64MB", "1024MB")
    assert large["effective_cache_size"] == "49152MB"
    assert "ssl" not in large


def test_restart_is_due_only_for_what_cannot_be_read_anew():
    found = PgClusterState(
        settings={
            "shared_buffers": SettingState("131072", "postmaster", "1GB"),
            "port": SettingState("5432", "postmaster", "5432"),
            "work_mem": SettingState("4096", "user", "4MB"),
        }
    )
    assert not needs_restart({"shared_buffers": "1024MB", "port": "5432", "work_mem": "8MB", "unheard": "1"}, found)
    assert needs_restart({"shared_buffers": "512MB"}, found)
    assert needs_restart({"port": "5433"}, found)


def test_what_is_as_wanted_needs_no_statement():
    assert statements(WANTED, AS_WANTED) == []


def test_a_new_database_gets_all_of_it_and_no_password():
    sql = "\n".join(statements(WANTED, PgClusterState(version="15", port=5432)))
    for part in (
        'CREATE ROLE "shop" LOGIN NOSUPERUSER', 'CREATE DATABASE "shop" OWNER "shop_owner"', "REVOKE ALL ON DATABASE",
        '\\connect "shop"', 'ALTER SCHEMA public OWNER TO "shop_owner"', 'CREATE EXTENSION IF NOT EXISTS "pg_trgm"',
        'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO "shop"', "SCRAM-SHA-256$4096:",
    ):  # fmt: skip
        assert part in sql
    assert "password" not in sql.replace("PASSWORD", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"roles": {"shop_owner": role("owner-password"), "shop": role("old")}}, 'ALTER ROLE "shop" PASSWORD'),
        ({"roles": {"shop_owner": role("owner-password"), "shop": role("shop-password", powerful=True)}}, 'ALTER ROLE "shop" LOGIN NOSUPERUSER'),
        ({"roles": {"shop_owner": role("owner-password"), "shop": role("shop-password", member=True)}}, "REVOKE %I FROM %I"),
        ({"roles": {"shop_owner": role("owner-password"), "shop": role("shop-password", connections=3)}}, "CONNECTION LIMIT -1"),
        ({"owner": "postgres"}, 'ALTER DATABASE "shop" OWNER TO "shop_owner"'),
        ({"open_database": True}, "REVOKE ALL ON DATABASE"),
        ({"open_schema": True}, "REVOKE ALL ON SCHEMA public"),
        ({"extensions": ("plpgsql",)}, "CREATE EXTENSION"),
        ({"connects": frozenset()}, "GRANT CONNECT"),
        ({"defaults": frozenset()}, "ALTER DEFAULT PRIVILEGES"),
        ({"lacks": frozenset({("shop", "DELETE")})}, "ON ALL TABLES IN SCHEMA public TO"),
        ({"has": frozenset({("shop", "TRUNCATE")})}, 'REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "shop"'),
    ],
)
def test_each_difference_is_put_right(change, said):
    assert any(said in one for one in statements(WANTED, replace(AS_WANTED, **change)))


@pytest.mark.parametrize("change", [{"open_database": True}, {"open_schema": True}])
def test_who_came_in_as_everybody_does_is_let_in_by_name(change):
    wanted = replace(WANTED, guests=("backup",))
    roles = {**AS_WANTED.roles, "backup": role("any", member=True)}
    sql = statements(wanted, replace(AS_WANTED, roles=roles, connects=AS_WANTED.connects | {"backup"}, **change))
    assert 'GRANT CONNECT ON DATABASE "shop" TO "backup"' in sql
    assert 'GRANT CONNECT ON DATABASE "shop" TO "shop"; GRANT USAGE ON SCHEMA public TO "shop"' in sql


@pytest.mark.parametrize("power", [{"member": True}, {"powerful": True}])
def test_what_a_role_could_by_power_that_is_taken_it_gets_as_its_own(power):
    roles = {"shop_owner": role("owner-password"), "shop": role("shop-password", **power)}
    sql = statements(WANTED, replace(AS_WANTED, roles=roles))
    assert any(one.startswith('GRANT CONNECT ON DATABASE "shop" TO "shop"') for one in sql)
    assert 'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "shop"' in sql


def test_a_former_role_is_shut_out():
    wanted = replace(WANTED, former=("old",))
    assert statements(wanted, AS_WANTED) == []
    found = replace(AS_WANTED, roles={**AS_WANTED.roles, "old": role("any")})
    assert statements(wanted, found)[0] == 'ALTER ROLE "old" NOLOGIN PASSWORD NULL'


def test_a_guest_may_connect_once_it_is_there():
    wanted = replace(WANTED, guests=("backup",))
    assert statements(wanted, AS_WANTED) == []
    found = replace(AS_WANTED, roles={**AS_WANTED.roles, "backup": role("any", member=True)})
    assert statements(wanted, found) == ['\\connect "shop"', 'GRANT CONNECT ON DATABASE "shop" TO "backup"']
    assert statements(wanted, replace(found, connects=AS_WANTED.connects | {"backup"})) == []


def test_a_reader_may_not_write():
    sql = "\n".join(statements(replace(WANTED, roles=(replace(SHOP, rights="read"),)), AS_WANTED))
    assert 'REVOKE ALL ON ALL TABLES IN SCHEMA public FROM "shop"' in sql
    assert 'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "shop"' in sql


def test_password_is_told_from_another_one():
    stored = verifier("right", b"salt-of-16-bytes")
    assert is_password(stored, Secret("right"))
    assert not is_password(stored, Secret("wrong"))
    assert not is_password("md5abc", Secret("right"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"database": "My Shop"}, "database must be"),
        ({"owner": Role("postgres", OWNER.password)}, "not the server's own"),
        ({"roles": (SHOP, SHOP)}, "stands twice"),
        ({"roles": (replace(SHOP, password=Secret("short")),)}, "8 printable ASCII"),
        ({"roles": (replace(SHOP, rights="all"),)}, "rights must be"),
        ({"roles": (replace(SHOP, connections=-2),)}, "connections must be"),
        ({"former": ("shop",)}, "is a role of the database too"),
        ({"extensions": ("x; DROP",)}, "not an extension"),
    ],
)
def test_faults_of_a_database_are_named(change, said):
    assert WANTED.faults() == []
    faults = replace(WANTED, **change).faults()
    assert any(said in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cluster": "Main!"}, "cluster must be"),
        ({"port": 0}, "port must be"),
        ({"addresses": ["0.0.0.0"], "networks": ["10.0.0.0/8"], "tls": TLS}, "not all of them"),
        ({"addresses": ["10.0.0.1"], "networks": ["0.0.0.0/0"], "tls": TLS}, "must not be everybody"),
        ({"addresses": ["10.0.0.1"], "networks": ["ten"], "tls": TLS}, "networks: must be a network"),
        ({"addresses": ["10.0.0.1"], "tls": TLS}, "go together"),
        ({"addresses": ["10.0.0.1"], "networks": ["10.0.0.0/8"]}, "addresses need tls"),
        ({"tls": Tls("", Secret("key"))}, "tls needs"),
        ({"memory_mb": 64}, "memory_mb must be"),
        ({"connections": 1}, "connections must be"),
        ({"settings": {"shared_buffers": "1GB"}}, "shared_buffers is set by an argument"),
        ({"settings": {"x y": "1"}}, "not a setting"),
    ],
)
def test_faults_of_a_cluster_are_named(change, said):
    good = {"cluster": "main", "port": 5432, "addresses": [], "networks": [], "tls": None, "memory_mb": 0, "connections": 100, "settings": {}}
    assert cluster_faults(**good) == []
    faults = cluster_faults(**{**good, **change})
    assert any(said in fault for fault in faults), faults


def test_fact_reads_what_the_script_prints():
    state = PgCluster.__new__(PgCluster).process([
        "memory\t2000", "installed\t15", "cluster\t15\t5432", "setting\tport\t5432\tpostmaster\t5432",
        "overridden\twork_mem", "role\tshop\tf\tt\t-1\tSCRAM\tf", "database\tshop\tt", "schema\tpg_database_owner\tf",
        "extension\tplpgsql", "connect\tshop", "right\tshop\tr\tSELECT", "lacks\tshop\tDELETE", "has\tshop\tTRUNCATE",
    ])  # fmt: skip
    assert (state.memory_mb, state.installed, state.version, state.port) == (2000, ("15",), "15", 5432)
    assert state.roles["shop"] == RoleState(False, True, -1, "SCRAM", False)
    assert (state.owner, state.open_database, state.schema_owner, state.open_schema) == ("shop", True, "pg_database_owner", False)
    assert state.overridden == {"work_mem"}
    assert state.defaults == {("shop", "r", "SELECT")}
    assert PgCluster.__new__(PgCluster).process(["memory\t9"]) == PgClusterState(memory_mb=9)
