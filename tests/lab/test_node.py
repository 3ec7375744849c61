"""Name and time zone, read back with hostname and date."""

from __future__ import annotations

import pytest


def identity(**arguments: str) -> str:
    return f"from operations import node\nnode.identity(**{arguments!r}, name='Identity')\n"


@pytest.fixture(scope="module")
def host(lab):
    fresh = lab.host("t-node", layer="packages")
    fresh.run("test -e /usr/share/zoneinfo/Asia/Tokyo || { apt-get update -q && apt-get install -q -y tzdata; }", timeout=120)
    yield fresh
    lab.destroy(fresh)


def test_set_no_op_update_heal(host, provision):
    assert provision(host, identity(hostname="lamp.example.org", timezone="Asia/Tokyo")).changed == ["Identity"]
    assert host.run("hostname; hostname --fqdn; hostname --short; date +%Z").stdout.split() == [
        *("lamp.example.org", "lamp.example.org", "lamp", "JST")
    ]
    assert host.read("/etc/hosts").count("127.0.0.1 localhost") == 1
    assert provision(host, identity(hostname="lamp.example.org", timezone="Asia/Tokyo")).changed == []
    assert provision(host, identity(hostname="desk", timezone="Etc/UTC")).changed == ["Identity"]
    assert host.run("cat /etc/hostname; hostname --fqdn; date +%Z").stdout.split() == ["desk", "desk", "UTC"]
    host.run("echo '127.0.1.1 again' >> /etc/hosts; ln -sfn /usr/share/zoneinfo/Asia/Tokyo /etc/localtime")
    assert provision(host, identity(hostname="desk", timezone="Etc/UTC")).changed == ["Identity"]
    assert [line for line in host.read("/etc/hosts").splitlines() if line.startswith("127.0.1.1")] == ["127.0.1.1 desk"]


def test_empty_value_leaves_things_alone(host, provision):
    assert provision(host, identity()).changed == []
    assert host.run("hostname; date +%Z").stdout.split() == ["desk", "UTC"]


@pytest.mark.parametrize("arguments", [{"hostname": "UPPER"}, {"hostname": "a b"}, {"timezone": "/etc/passwd"}])
def test_bad_input_is_refused(host, provision, arguments):
    run = provision(host, identity(**arguments))
    assert not run.ok
    assert "node.identity: " in run.stderr


def test_unknown_time_zone_changes_nothing(host, provision):
    run = provision(host, identity(timezone="Mars/Olympus"))
    assert run.failed == ["Identity"]
    assert host.run("readlink /etc/localtime").stdout.strip() == "/usr/share/zoneinfo/Etc/UTC"
