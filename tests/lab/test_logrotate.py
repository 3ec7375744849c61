"""Log rotation on a real host, done by logrotate itself."""

import pytest

RULES = "/etc/logrotate.d/hw-shop"
GOOD = {"paths": ["/var/log/hw-shop/*.log"], "create": "0640 root adm"}


@pytest.fixture(scope="module")
def host(lab):
    fresh = lab.host("t-logrotate", layer="packages")
    yield fresh
    lab.destroy(fresh)


def deploy(**arguments: object) -> str:
    text = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"from operations import logrotate\nlogrotate.log('hw-shop'{text}, name='Rotate logs')\n"


def test_set_noop_update_unset(host, provision):
    host.run("mkdir -p /var/log/hw-shop && echo one > /var/log/hw-shop/a.log")
    run = provision(host, deploy(**GOOD, keep=3))
    assert run.ok, run
    assert run.changed == ["Rotate logs"]
    host.run("logrotate -f /etc/logrotate.d/hw-shop")
    assert host.run("cat /var/log/hw-shop/a.log-*").stdout == "one\n"
    assert host.run("stat -c '%a %U %G %s' /var/log/hw-shop/a.log").stdout.strip() == "640 root adm 0"

    assert provision(host, deploy(**GOOD, keep=3)).changed == []

    post = "test -e /var/log/hw-shop/a.log && touch /run/hw-rotated"
    assert provision(host, deploy(**GOOD, keep=1, post_rotate=post)).changed == ["Rotate logs"]
    host.run(
        "echo two > /var/log/hw-shop/a.log; touch -d '1 hour ago' /var/log/hw-shop/a.log-*; logrotate -f /etc/logrotate.conf"
    )
    assert host.exists("/run/hw-rotated")
    old = host.run("cat /var/log/hw-shop/a.log-*").stdout
    assert old == "two\n", "keep=1 keeps the newest alone"

    assert provision(host, deploy(present=False)).changed == ["Rotate logs"]
    assert not host.exists(RULES)
    assert host.exists("/var/log/hw-shop/a.log")
    assert provision(host, deploy(present=False)).changed == []


def test_a_writer_that_keeps_its_file_open_goes_on_in_the_same_file(host, provision):
    assert provision(host, deploy(paths=["/var/log/hw-shop/*.log"], copy_truncate=True)).ok
    host.run("echo three > /var/log/hw-shop/b.log")
    inode = host.run("stat -c %i /var/log/hw-shop/b.log").stdout
    host.run("logrotate -f /etc/logrotate.d/hw-shop")
    assert host.run("stat -c %i /var/log/hw-shop/b.log").stdout == inode
    assert host.read("/var/log/hw-shop/b.log") == ""


def test_what_was_broken_by_hand_is_healed(host, provision):
    assert provision(host, deploy(**GOOD)).ok
    host.run(f"echo garbage >> {RULES}; chmod 0666 {RULES}")
    assert provision(host, deploy(**GOOD)).changed == ["Rotate logs"]
    assert host.run(f"stat -c %a {RULES}").stdout.strip() == "644"
    assert "garbage" not in host.read(RULES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({**GOOD, "su": "nobody-here adm"}, "unknown user 'nobody-here'"),
        ({"paths": ["/var/log/dpkg.log"]}, "duplicate log entry for /var/log/dpkg.log"),
        ({"paths": ["/var/log/hw-open/*.log"]}, "insecure permissions"),
        ({"paths": ["relative.log"]}, "paths must be absolute"),
    ],
)
def test_rules_that_logrotate_would_not_follow_change_nothing(host, provision, arguments, said):
    assert provision(host, deploy(**GOOD)).ok
    host.run(
        "mkdir -p -m 0777 /var/log/hw-open; chmod 0777 /var/log/hw-open; touch /var/log/hw-open/a.log /var/log/dpkg.log"
    )
    before = host.read(RULES)
    run = provision(host, deploy(**arguments))
    assert not run.ok
    assert said in run.stderr
    assert host.read(RULES) == before


def test_broken_rules_of_others_do_not_stop_ours(host, provision):
    host.write("/etc/logrotate.d/zz-foreign", "/var/log/foreign.log {\n  frobnicate\n}\n")
    run = provision(host, deploy(**GOOD, keep=7))
    host.run("rm /etc/logrotate.d/zz-foreign")
    assert run.ok, run
    assert "rotate 7" in host.read(RULES)
