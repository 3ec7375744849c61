"""Journal limits on a real host, read back from journald's own messages."""

DROP_IN = "/etc/systemd/journald.conf.d/50-hostwright.conf"


def deploy(**arguments: object) -> str:
    text = "".join(f"{key}={value!r}, " for key, value in arguments.items())
    return f"from operations import journald\njournald.limits({text}name='Limit the journal')\n"


def invocation(host) -> str:
    return host.run("systemctl show -p InvocationID --value systemd-journald.service").stdout.strip()


def told(host) -> str:
    """What journald itself said last about its limits, e.g. `System Journal (…) is 8.0M, max 500.0M, 492.0M free.`"""
    host.run("journalctl --sync")
    lines = host.run("journalctl -u systemd-journald.service -o cat --no-pager").stdout.splitlines()
    return [line for line in lines if line.startswith("System Journal")][-1]


def test_set_noop_update_unset(host, provision):
    run = provision(host, deploy(max_use="100M", max_retention="14days"))
    assert run.ok, run
    assert run.changed == ["Limit the journal"]
    assert "max 100.0M" in told(host)
    lines = host.run("systemd-analyze cat-config systemd/journald.conf").stdout.splitlines()
    assert {"SystemMaxUse=100M", "MaxRetentionSec=14days", "Storage=persistent"} <= set(lines)
    assert host.run("ls /var/log/journal").stdout.strip()

    before = invocation(host)
    assert provision(host, deploy(max_use="100M", max_retention="14days")).changed == []
    assert invocation(host) == before

    assert provision(host, deploy(max_use="60M")).changed == ["Limit the journal"]
    assert "max 60.0M" in told(host)

    assert provision(host, deploy(present=False)).changed == ["Limit the journal"]
    assert not host.exists(DROP_IN)
    assert "max 60.0M" not in told(host)
    assert provision(host, deploy(present=False)).changed == []


def test_what_was_broken_by_hand_is_healed(host, provision):
    assert provision(host, deploy(max_use="70M")).ok
    host.run(f"sed -i s/70M/90M/ {DROP_IN}; systemctl restart systemd-journald")
    assert "max 90.0M" in told(host)
    assert provision(host, deploy(max_use="70M")).changed == ["Limit the journal"]
    assert "max 70.0M" in told(host)


def test_a_restart_that_a_killed_run_owed_is_made_up_for(host, provision):
    assert provision(host, deploy(max_use="80M")).ok
    host.run(f"rm {DROP_IN}; systemctl restart systemd-journald; rm -rf /var/lib/hostwright/applied")
    text = "# Written by Hostwright; changes made here are overwritten.\n[Journal]\nStorage=persistent\n"
    host.write(DROP_IN, text + "SystemMaxUse=80M\nMaxRetentionSec=1month\n")
    before = invocation(host)
    run = provision(host, deploy(max_use="80M"))
    assert run.ok, run
    assert run.changed == ["Limit the journal"]
    assert invocation(host) != before
    assert "max 80.0M" in told(host)


def test_bad_limits_change_nothing(host, provision):
    assert provision(host, deploy(max_use="80M")).ok
    run = provision(host, deploy(max_use="500MB"))
    assert not run.ok
    assert "max_use must be a number with K, M, G or T" in run.stderr
    assert "SystemMaxUse=80M" in host.read(DROP_IN)
