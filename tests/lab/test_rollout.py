"""Blue/green on a real host, with a small server in the application's place; read back with systemctl and curl."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.lab.hosts import LabHost
from tests.lab.kill import kill_after, moments
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line
from tests.lab.state import wait_for

# Answers on a Unix socket; ends like uvicorn: no new connections after SIGTERM, running requests come to their end.
SERVER = r"""
import http.server, os, signal, socket, socketserver, sys, threading, time
print("lamp", os.environ["NAME"], "with", os.environ["LAMP_API_KEY"], flush=True)
mode = os.environ["MODE"]
if mode == "crashes":
    sys.exit("lamp cannot find its bulb")
if mode == "slow":
    time.sleep(3)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    def do_GET(self):
        if self.path == "/slow":
            open(sys.argv[1] + ".slow", "w").close()  # the test waits for this
            time.sleep(12)
        bad = mode == "unhealthy" and self.path == "/health"
        self.send_response(503 if bad else 200); self.end_headers()
        self.wfile.write(f"{os.environ['NAME']} {os.getpid()}".encode())
    def log_message(self, *words): pass
    def address_string(self): return "socket"
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False
    def handle_error(self, *words): pass
if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])
server = Server(sys.argv[1], Handler)
os.chmod(sys.argv[1], 0o666)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
if mode == "dies":
    threading.Timer(2, lambda: os._exit(3)).start()
server.serve_forever()
server.server_close()
"""

UNIT = """[Service]
Type=exec
EnvironmentFile={env_file}
RuntimeDirectory=lamp-{colour}
ExecStartPre=+/bin/sh -c '{stamp}'
ExecStart=/usr/bin/python3 -B {release}/serve.py {socket}
Restart=always
RestartSec=1
TimeoutStopSec=20
[Install]
WantedBy=multi-user.target
Alias=lamp.service
"""

PROGRAM = """[program:lamp-{colour}]
command=/bin/sh -c '{stamp}; mkdir -p /run/lamp-{colour}; set -a; . {env_file}; exec /usr/bin/python3 -B {release}/serve.py {socket}'
autorestart=true
startsecs=1
stopwaitsecs=20
redirect_stderr=true
stdout_logfile=/var/log/supervisor/%(program_name)s.log
"""

SECRET = "canary-key-of-the-lamp-0123456789"

Roll = Callable[..., Run]


def deploy_text(
    *,
    lamp: str = "one",
    mode: str = "ok",
    release: str = "/opt/lamp/releases/1",
    manager: str = "systemd",
    **arguments: object,
) -> str:
    environment = f"NAME={lamp}\nMODE={mode}\nLAMP_API_KEY={SECRET}\n"
    given = {
        "start_seconds": 20,
        "settle_seconds": 1,
        "drain_seconds": 15,
        "probe_seconds": 2,
        "manager": manager,
        **arguments,
    }
    return (
        "from operations import rollout\n"
        "from settings.secret import Secret\n"
        f"names = rollout.names('lamp', {manager!r})\n"
        f"service = {(UNIT if manager == 'systemd' else PROGRAM)!r}.format(release={release!r}, **names)\n"
        f"rollout.rollout('lamp', service=service, environment=Secret({environment!r}), release={release!r}, "
        f"{', '.join(f'{key}={value!r}' for key, value in given.items())}, name='Roll out')\n"
    )


ROLLBACK = "from operations import rollout\nrollout.rollback('lamp', start_seconds=20, settle_seconds=1, name='Roll back')\n"
REMOVE = "from operations import rollout\nrollout.rollout('lamp', present=False, name='Remove')\n"


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[LabHost]:
    fresh = lab.host("t-rollout", layer="packages")
    for number in (1, 2):
        fresh.write(f"/opt/lamp/releases/{number}/serve.py", SERVER)
    fresh.run("systemctl start supervisor")
    yield fresh
    lab.destroy(fresh)


@pytest.fixture
def roll(host: LabHost, provision: Callable[..., Run]) -> Roll:
    return lambda dry=False, **arguments: provision(host, deploy_text(**arguments), dry=dry)


@pytest.fixture
def served(host: LabHost, roll: Roll) -> Roll:
    """The host serves lamp one, whatever the test before did to it."""
    assert roll().ok
    return roll


def ask(host: LabHost, path: str = "/") -> tuple[str, int]:
    """What a client gets, through the link: the lamp's name and the process that answered."""
    name, pid = host.run(
        f"curl -fsS -m 10 --unix-socket /etc/lamp/active.sock http://localhost{path}"
    ).stdout.split()
    return name, int(pid)


def colour(host: LabHost) -> str:
    return host.run("readlink /etc/lamp/active.sock").stdout.split("-")[1].split("/")[0]


def units(host: LabHost) -> dict[str, list[str]]:
    """Both colours' ActiveState and whether they start at boot."""
    return {
        one: host.run(
            f"systemctl is-active lamp-{one}; systemctl is-enabled lamp-{one}", check=False
        ).stdout.split()
        for one in ("blue", "green")
    }


def test_set_noop_update_and_nothing_in_dry(host, roll):
    first = roll()
    assert first.changed == ["Roll out"], first
    assert (ask(host)[0], colour(host)) == ("one", "blue")
    assert units(host)["blue"] == ["active", "enabled"]
    assert host.run("systemctl show -p Id --value lamp.service").stdout.strip() == "lamp-blue.service"
    assert host.run("stat -c '%a %U' /etc/lamp/blue.env").stdout.strip() == "600 root"
    before = ask(host)

    assert roll().changed == []
    assert roll(dry=True).changed == []
    assert roll(dry=True, lamp="two").changed == ["Roll out"]
    assert ask(host) == before

    second = roll(lamp="two")
    assert second.changed == ["Roll out"], second
    assert (ask(host)[0], colour(host)) == ("two", "green")
    assert host.run("systemctl show -p Id --value lamp.service").stdout.strip() == "lamp-green.service"
    wait_for("blue to end", lambda: units(host)["blue"] == ["inactive", "disabled"], 5)
    assert roll(lamp="two").changed == []


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("crashes", "lamp cannot find its bulb"),
        ("unhealthy", "did not answer well on /health within 4s"),
        # "died" or, seen a moment earlier, "ceased to be": its socket goes before its process
        ("dies", "was healthy, and "),
    ],
)
def test_bad_spec_never_serves(host, served, mode, words):
    before, active = ask(host), colour(host)
    run = served(lamp="two", mode=mode, settle_seconds=3, start_seconds=4 if mode == "unhealthy" else 20)
    assert run.failed == ["Roll out"]
    assert words in run.stderr
    assert SECRET not in run.stderr
    assert "lamp two with *MASKED*" in run.stderr
    assert (ask(host), colour(host)) == (before, active)
    idle = "green" if active == "blue" else "blue"
    assert units(host)[idle][0] == "inactive"
    assert not host.exists(f"/etc/lamp/{idle}.env")
    assert host.run("systemctl is-enabled lamp.service").stdout.strip() in ("enabled", "alias")
    assert served().changed == []


def test_spec_that_fails_behind_the_proxy_gives_the_requests_back(host, served):
    before, active = ask(host), colour(host)
    run = served(
        lamp="two", probe="curl -fsS --unix-socket /etc/lamp/active.sock http://localhost/ | grep -q one"
    )
    assert run.failed == ["Roll out"]
    assert "no good answer through nginx" in run.stderr
    assert (ask(host), colour(host)) == (before, active)
    assert served().changed == []


def test_files_changed_by_hand_are_put_back_without_a_restart(host, served):
    before, active = ask(host), colour(host)
    unit = f"/etc/systemd/system/lamp-{active}.service"
    wanted = host.read(unit)
    for damage in (
        f"sed -i s/RestartSec=1/RestartSec=77/ {unit}",
        f"mkdir -p {unit}.d && echo '[Service]\nRestartSec=77' >{unit}.d/override.conf && systemctl daemon-reload",
        f"echo MODE=dies >>/etc/lamp/{active}.env",
        f"chmod 0644 /etc/lamp/{active}.env",
        "systemctl disable lamp.service",
    ):
        host.run(damage)
        assert served().changed == ["Roll out"], damage
        assert (ask(host), colour(host), host.read(unit)) == (before, active, wanted), damage
        assert units(host)[active] == ["active", "enabled"], damage
        assert not host.exists(f"{unit}.d"), damage
        assert served().changed == [], damage


def test_process_that_runs_on_files_changed_by_hand_is_replaced(host, served):
    active = colour(host)
    host.run(f"sed -i s/NAME=one/NAME=hacked/ /etc/lamp/{active}.env && systemctl restart lamp-{active}")
    look = "curl -fsS --unix-socket /etc/lamp/active.sock http://localhost/"
    wait_for("the hacked lamp", lambda: host.run(look, check=False).stdout.startswith("hacked"), 5)
    host.run(f"sed -i s/NAME=hacked/NAME=one/ /etc/lamp/{active}.env")
    assert served().changed == ["Roll out"]
    assert ask(host)[0] == "one"
    assert colour(host) != active


def test_active_colour_that_is_down_is_started(host, served):
    active = colour(host)
    host.run(f"systemctl stop lamp-{active}")
    assert served().changed == ["Roll out"]
    assert (ask(host)[0], colour(host), units(host)[active]) == ("one", active, ["active", "enabled"])
    assert served().changed == []


def test_rollback_goes_back_and_forth_with_the_whole_spec(host, roll, provision):
    assert roll(lamp="old", release="/opt/lamp/releases/2").ok
    assert roll(lamp="new").ok
    assert roll(lamp="bad", mode="crashes").failed == ["Roll out"]
    back = provision(host, ROLLBACK)
    assert back.changed == ["Roll back"], back
    assert ask(host)[0] == "old"
    assert "/opt/lamp/releases/2/" in host.read(f"/etc/systemd/system/lamp-{colour(host)}.service")
    assert provision(host, ROLLBACK).ok
    assert ask(host)[0] == "new"


def test_old_colour_finishes_what_it_is_doing(host, served):
    _, old = ask(host)
    slow = subprocess.Popen(
        ["nsenter", f"--target={host.leader}", "--mount", "--net", "--", "curl", "-fsS", "--unix-socket",
         "/etc/lamp/active.sock", "http://localhost/slow"], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for("the request to be at work", lambda: host.exists(f"/run/lamp-{colour(host)}/app.sock.slow"), 10)
    assert served(lamp="two", settle_seconds=0).ok
    assert ask(host)[0] == "two"
    assert served(lamp="two").changed == [], "a colour that drains is no reason for a change"
    assert slow.poll() is None, "the switch waited for the old colour"
    answer, _ = slow.communicate(timeout=20)
    assert answer == f"one {old}"


def test_nothing_to_roll_back_to_is_said(host, provision):
    assert provision(host, REMOVE).ok
    for command in (
        "ls -d /etc/lamp",
        "systemctl cat lamp.service lamp-blue.service",
        "ls /var/lib/hostwright/rollout/lamp",
    ):
        assert host.run(command, check=False).returncode != 0, command
    assert provision(host, REMOVE).changed == []
    assert provision(host, deploy_text()).ok
    run = provision(host, ROLLBACK)
    assert not run.ok
    assert "lamp has no earlier spec on this host to go back to" in run.stderr


def test_supervisor_takes_over_from_systemd_and_back(host, served):
    assert served(manager="supervisor").changed == ["Roll out"]
    assert ask(host)[0] == "one"
    wait_for(
        "systemd's units to be gone",
        lambda: not host.run("ls /etc/systemd/system/lamp*", check=False).stdout,
        10,
    )
    assert served(manager="supervisor").changed == []
    assert host.run("supervisorctl status").stdout.split()[:2] == [f"lamp-{colour(host)}", "RUNNING"]

    run = served(manager="supervisor", lamp="two", mode="crashes")
    assert run.failed == ["Roll out"]
    assert "lamp cannot find its bulb" in run.stderr
    assert SECRET not in run.stderr
    assert ask(host)[0] == "one"

    assert served(manager="supervisor", lamp="two").ok
    assert ask(host)[0] == "two"
    wait_for(
        "one program", lambda: len(host.run("supervisorctl status", check=False).stdout.splitlines()) == 1, 10
    )
    host.run(f"supervisorctl stop lamp-{colour(host)}")
    assert served(manager="supervisor", lamp="two").changed == ["Roll out"]

    assert served().changed == ["Roll out"]
    assert ask(host)[0] == "one"
    wait_for("supervisor's programs to be gone", lambda: not host.run("ls /etc/supervisor/conf.d").stdout, 10)
    assert units(host)[colour(host)] == ["active", "enabled"]
    assert served().changed == []


@pytest.mark.parametrize("manager", ["systemd", "supervisor"])
def test_application_may_take_its_time_to_start(host, served, manager):
    run = served(manager=manager, lamp="two", mode="slow")
    assert run.ok
    assert ask(host)[0] == "two"


def test_reboot_brings_the_active_colour_back(host, served):
    active = colour(host)
    host.reboot()
    wait_for(
        "the lamp",
        lambda: (
            host.run(
                "curl -fsS --unix-socket /etc/lamp/active.sock http://localhost/", check=False
            ).returncode
            == 0
        ),
        15,
    )
    assert colour(host) == active
    assert served().changed == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"manager": "systemd", "settle_seconds": -1}, "settle_seconds must be at least 0, got -1"),
        ({"start_seconds": 0}, "start_seconds must be at least 1, got 0"),
        ({"release": "relative"}, "service, environment and release (a path) are needed"),
        ({"release": "/opt/lamp/releases/9"}, "release /opt/lamp/releases/9 is not there"),
    ],
)
def test_bad_input_is_refused(host, served, arguments, words):
    run = served(lamp="two", **arguments)
    assert not run.ok
    assert words in run.stderr
    assert ask(host)[0] == "one"


@pytest.mark.parametrize("number", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_anywhere_one_more_run_converges(host, served, tmp_path, number):
    lamps = ["two", "one"]
    for turn, seconds in enumerate(moments(number, 0.5, 4)):
        power, lamp = turn % 2 == 1, lamps[turn % 2]
        kill_after(command_line(tmp_path, host, deploy_text(lamp=lamp)), seconds, host if power else None)
        at = f"killed after {seconds:.2f}s, {'host' if power else 'run'}"
        run = served(lamp=lamp)
        assert run.ok, f"{at}: {run}"
        assert ask(host)[0] == lamp, at
        assert served(lamp=lamp).changed == [], at
        idle = "green" if colour(host) == "blue" else "blue"
        wait_for(f"{at}: idle colour to end", lambda idle=idle: units(host)[idle][0] == "inactive", 20)
        assert units(host)[idle][1] != "enabled", at
        assert units(host)[colour(host)] == ["active", "enabled"], at
