"""Celery workers on a real host with a real broker: rolled out, scaled, broken and healed; read back with systemctl and redis-cli."""

import textwrap

import pytest

from tests.lab.state import wait_for

APP = """
import os, time
from celery import Celery
if os.environ.get("BROKEN"):
    raise SystemExit("this release does not start")
app = Celery("shop", broker="redis://127.0.0.1:6379/0")
app.conf.update(task_acks_late=True, broker_connection_retry_on_startup=True)

@app.task(name="note")
def note(seconds, text):
    time.sleep(seconds)
    with open("/var/lib/shop/notes", "a") as file:
        file.write(f"{text}\\n")
"""
SERVICE = """[Service]
Type=exec
User=shop
WorkingDirectory=/opt/shop
EnvironmentFile={env_file}
EnvironmentFile={instance_file}
ExecStartPre=+/bin/sh -c '{stamp}'
ExecStart=/usr/bin/python3 -m celery --app shop worker --hostname=worker%i@%%h --queues=${{CELERY_QUEUES}} --concurrency=${{CELERY_CONCURRENCY}}
KillMode=mixed
TimeoutStopSec=60
Restart=always
RestartSec=1
StateDirectory=shop
[Install]
WantedBy=multi-user.target
"""


def deploy(count: int = 2, more: str = "") -> str:
    """Deploy code; ``more`` are further variables."""
    environment = f"LEVEL=info\n{more}"
    return textwrap.dedent(f"""\
        from operations import celery
        from settings.secret import Secret
        service = {SERVICE!r}.format(**celery.names("shop-worker"))
        celery.workers(
            "shop-worker", service=service, environment=Secret({environment!r}), workers=[celery.Worker()] * {count},
            program=celery.Program("/usr/bin/python3", "shop", "/opt/shop", "shop"), start_seconds=20, name="Workers",
        )
        """)


@pytest.fixture(scope="module")
def shop(host):
    host.run(
        "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends redis-server celery python3-redis",
        timeout=300,
    )
    host.run("useradd --system --no-create-home shop")
    host.write("/opt/shop/shop.py", APP)
    return host


def running(host) -> list[str]:
    listed = host.run("systemctl list-units --plain --no-legend --state=active 'shop-worker@*'").stdout
    return sorted(line.split()[0] for line in listed.splitlines())


def pids(host) -> list[str]:
    return [host.run(f"systemctl show -p MainPID --value {unit}").stdout.strip() for unit in running(host)]


def send(host, count: int, seconds: float, text: str) -> None:
    program = f"import shop\nfor n in range({count}): shop.note.delay({seconds}, f'{text} {{n}}')\n"
    host.run("cd /opt/shop && python3 -B -", input=program)


def notes(host, text: str) -> list[str]:
    return sorted(line for line in host.run("cat /var/lib/shop/notes", check=False).stdout.splitlines() if line.startswith(text))


@pytest.mark.soak
def test_set_noop_scale_and_unset_lose_no_task(shop, provision):
    host = shop
    assert provision(host, deploy(1)).changed == ["Workers"]
    assert running(host) == ["shop-worker@1.service"]
    before = pids(host)
    assert provision(host, deploy(1)).changed == []
    assert provision(host, deploy(1), dry=True).changed == []
    assert pids(host) == before

    send(host, 6, 1, "scaled")
    assert provision(host, deploy(3)).changed == ["Workers"]
    assert len(running(host)) == 3
    assert before[0] in pids(host), "another one was restarted for a further one"
    send(host, 6, 1, "scaled more")
    assert provision(host, deploy(1)).changed == ["Workers"]
    wait_for("spare workers to end", lambda: running(host) == ["shop-worker@1.service"], 60)
    assert provision(host, deploy(1)).changed == []
    wait_for("all tasks", lambda: len(notes(host, "scaled")) == 12, 60)
    assert host.run("systemctl is-enabled shop-worker@2", check=False).stdout == "disabled\n"

    assert provision(host, deploy(0)).changed == ["Workers"]
    wait_for("the last to end", lambda: running(host) == [], 60)
    assert provision(host, deploy(0)).changed == []


@pytest.mark.soak
def test_a_change_waits_for_tasks_and_a_bad_one_is_taken_back(shop, provision):
    host = shop
    assert provision(host, deploy(2)).ok
    send(host, 4, 4, "slow")
    wait_for("tasks at work", lambda: host.run("redis-cli hlen unacked").stdout.strip() != "0", 20)
    assert provision(host, deploy(2, "COLOUR=red\n")).changed == ["Workers"]
    wait_for("all tasks", lambda: len(notes(host, "slow")) == 4, 60)
    for pid in pids(host):
        assert "COLOUR=red" in host.run(f"tr '\\0' '\\n' </proc/{pid}/environ").stdout.splitlines()

    second = pids(host)[1]
    bad = provision(host, deploy(2, "COLOUR=red\nBROKEN=1\n"))
    assert (bad.ok, bad.failed) == (False, ["Workers"])
    assert "this release does not start" in bad.stderr
    assert second in pids(host), "the bad release reached another one than the first"
    assert len(running(host)) == 2
    assert provision(host, deploy(2, "COLOUR=red\n")).changed == []

    back = "from operations import celery\ncelery.rollback('shop-worker', name='Back')\n"
    assert provision(host, back).changed == ["Back"]
    for pid in pids(host):
        assert "COLOUR=red" not in host.run(f"tr '\\0' '\\n' </proc/{pid}/environ").stdout.splitlines()
    # the next converge has them looked at once more, and restarts none
    before = pids(host)
    assert provision(host, deploy(2)).ok
    assert pids(host) == before
    assert provision(host, deploy(2)).changed == []


@pytest.mark.soak
def test_what_is_changed_by_hand_is_put_right(shop, provision):
    host = shop
    host.run("systemctl disable --now shop-worker@2; echo STRAY=1 >>/etc/shop-worker/env; systemctl restart shop-worker@1")
    assert provision(host, deploy(2)).changed == ["Workers"]
    assert len(running(host)) == 2
    for pid in pids(host):
        assert "STRAY" not in host.run(f"tr '\\0' '\\n' </proc/{pid}/environ").stdout
    # started by hand on files that are others by now
    host.run("echo 'LEVEL=\"debug\"' >/etc/shop-worker/env; systemctl restart shop-worker@2; echo 'LEVEL=info' >/etc/shop-worker/env")
    assert provision(host, deploy(2)).changed == ["Workers"]
    assert provision(host, deploy(2)).changed == []
    refused = provision(host, deploy(2).replace("%%h", "%h"))
    assert "write %%h or %%H" in refused.stderr


@pytest.mark.soak
def test_a_hung_worker_is_killed_and_a_silent_broker_is_not_held_against_it(shop, provision):
    host = shop
    assert provision(host, deploy(2)).ok
    hung, well = pids(host)
    host.run("systemctl stop shop-worker-check.timer")
    host.run(f"kill -STOP {hung}")
    for _ in range(3):
        host.run("systemctl start shop-worker-check.service", timeout=120)
    wait_for("a new process", lambda: len(running(host)) == 2 and hung not in pids(host), 30)
    assert well in pids(host)
    assert "shop-worker@1 is hung" in host.run("journalctl -u shop-worker-check --no-pager -o cat").stdout

    before = pids(host)
    host.run("systemctl stop redis-server")
    for _ in range(4):
        assert host.run("systemctl start shop-worker-check.service", check=False, timeout=120).returncode != 0
    host.run("systemctl start redis-server")
    assert pids(host) == before
