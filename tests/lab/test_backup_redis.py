"""An instance of Redis backed up, drilled, lost and restored, also onto a fresh host; read back with redis-cli."""

import shlex
import textwrap

import pytest

from tests.lab.state import wait_for

PROGRAM = "/usr/local/lib/hostwright/backup"
BACKUP, PASSWORD = "canary-backup-password-of-the-lab", "canary-redis-password-of-the-lab"
REPOSITORY = "/var/backups/hostwright"
DEPLOY = textwrap.dedent("""\
    import os
    from deploys import current
    from operations import backup, redis
    from settings.secret import Secret
    password = Secret(os.environ["LAB_PASSWORD"])
    redis.instance("broker", password=password, name="Broker")
    backup.source(
        "broker", policy=current().backup, kind="redis", server=backup.Redis("broker", password),
        minimum={"list members": 5}, units=["worker.service"], name="Back up the broker",
    )
    """)
LOOK = ("lrange celery 0 -1", "hgetall unacked", "smembers _kombu.binding.celery")


def ask(host, words: str) -> str:
    return host.run(f"REDISCLI_AUTH={PASSWORD} redis-cli --no-auth-warning {words}").stdout.strip()


def look(host) -> list[str]:
    return [ask(host, words) for words in LOOK]


def backup(host, *words: str, check: bool = True):
    return host.run(shlex.join([PROGRAM, *words]), check=check, timeout=300)


@pytest.fixture(scope="module")
def converge(provision):
    def run(host):
        data = {"backup_password": "env:LAB_BACKUP_PASSWORD"}
        return provision(host, DEPLOY, data=data, env={"LAB_BACKUP_PASSWORD": BACKUP, "LAB_PASSWORD": PASSWORD})

    return run


@pytest.mark.soak
def test_copy_is_drilled_and_restored(host, converge):
    assert converge(host).ok
    assert converge(host).changed == []
    host.write("/etc/systemd/system/worker.service", "[Service]\nExecStart=/bin/sleep infinity\n")
    host.run("systemctl daemon-reload; systemctl start worker")
    ask(host, "rpush celery " + " ".join(f"task-{n}" for n in range(200)))
    ask(host, "hset unacked tag-1 '[1,2]'")
    ask(host, "sadd _kombu.binding.celery celery")
    ask(host, "set result-1 done ex 3600")
    before = look(host)

    host.run("systemctl start hostwright-backup-broker && systemctl start hostwright-backup-broker-drill", timeout=300)
    said = host.run("journalctl -u hostwright-backup-broker-drill --no-pager -o cat").stdout
    assert "is verified" in said
    assert "203 rows or files" in said, said

    # the worst day: the queue is gone, and the log says so
    ask(host, "flushall")
    restored = backup(host, "restore", "broker", "--at", "verified").stdout
    assert "started: redis-server@broker.service, worker.service" in restored
    assert look(host) == before
    assert ask(host, "get result-1") == "done"
    # and it is in the log that is read at the next start
    host.run("systemctl restart redis-server@broker")
    wait_for("Redis", lambda: ask(host, "ping") == "PONG", 20)
    assert look(host) == before
    assert host.run("ls -d /var/lib/redis/broker.before-restore-*").stdout.count("\n") == 1
    assert host.run("pgrep -fc '[r]edis-server.*hostwright'", check=False).stdout.strip() == "0"
    assert converge(host).changed == []


@pytest.mark.soak
def test_a_damaged_copy_is_found(host):
    host.run(f"cp -a {REPOSITORY} /root/repository")
    packs = host.run(f"find {REPOSITORY}/data -type f").stdout.split()
    for pack in packs:
        host.run(f"printf damaged | dd of={pack} bs=1 seek=100 conv=notrunc status=none")
    drilled = backup(host, "drill", "broker", check=False)
    assert drilled.returncode != 0
    assert "copy" in drilled.stderr
    host.run(f"rm -rf {REPOSITORY} && mv /root/repository {REPOSITORY}")
    assert backup(host, "drill", "broker").returncode == 0


@pytest.mark.soak
def test_too_little_is_not_stored(host):
    ask(host, "ltrim celery 0 1")
    stored = backup(host, "run", "broker", check=False)
    assert "list members has 2, at least 5 wanted" in stored.stderr
    assert "canary" not in stored.stdout + stored.stderr


@pytest.mark.soak
def test_a_fresh_host_gets_its_tasks_back(host, fresh_host, converge):
    ask(host, "rpush celery " + " ".join(f"later-{n}" for n in range(50)))
    host.run("systemctl start hostwright-backup-broker", timeout=300)
    before = look(host)
    # the repository is what outlived the host
    archive = host.run(f"tar -C {REPOSITORY} -c . | base64").stdout
    fresh_host.run(f"mkdir -p {REPOSITORY} && base64 -d | tar -C {REPOSITORY} -x", input=archive)
    assert converge(fresh_host).ok
    fresh_host.run(f"sed -i 's/\"host\": \"[^\"]*\"/\"host\": \"{host.name}\"/' /etc/hostwright/backup/broker.json")
    backup(fresh_host, "restore", "broker")
    assert look(fresh_host) == before
