"""Jobs on a real host, read back with systemctl, systemd-analyze and stat."""

import pytest

JOB = "/etc/systemd/system/hw-demo"
COMMAND = ["/bin/sh", "-c", 'word=whole; echo "100% $word ; é" > /var/lib/hw-demo/out']


def deploy(**arguments: object) -> str:
    values: dict[str, object] = {"command": COMMAND, "when": "02:00", **arguments}
    values = {key: value for key, value in values.items() if value is not None}
    text = "".join(f", {key}={value!r}" for key, value in values.items())
    return (
        "from operations import schedule\nfrom operations.schedule import Sandbox\n"
        f"schedule.job('hw-demo', sandbox=Sandbox(writable=['/var/lib/hw-demo']){text}, name='Schedule demo')\n"
    )


def show(host, unit: str, prop: str) -> str:
    return host.run(f"systemctl show -p {prop} --value {unit}").stdout.strip()


@pytest.fixture
def job(host, provision):
    """The demo job, started by its timer at 02:00."""
    host.run("mkdir -p /var/lib/hw-demo && rm -f /var/lib/hw-demo/*")
    run = provision(host, deploy())
    assert run.ok, run
    return host


def test_set_noop_update_unset(host, provision):
    host.run("mkdir -p /var/lib/hw-demo")
    run = provision(host, deploy())
    assert run.ok, run
    assert run.changed == ["Schedule demo"]
    assert show(host, "hw-demo.timer", "ActiveState") == "active"
    assert host.run("systemctl is-enabled hw-demo.timer").stdout.strip() == "enabled"
    assert "OnCalendar=*-*-* 02:00:00" in show(host, "hw-demo.timer", "TimersCalendar")
    assert not host.exists("/etc/cron.d/hw-demo")

    assert provision(host, deploy()).changed == []

    moved = provision(host, deploy(when="Sun 04:30"))
    assert moved.changed == ["Schedule demo"]
    calendar = show(host, "hw-demo.timer", "TimersCalendar")
    assert "OnCalendar=Sun *-*-* 04:30:00" in calendar
    assert "next_elapse=Sun " in calendar

    gone = provision(host, deploy(present=False))
    assert gone.changed == ["Schedule demo"]
    assert (
        host.run(
            "ls /etc/systemd/system /etc/systemd/system/timers.target.wants | grep hw-demo", check=False
        ).returncode
        == 1
    )
    assert show(host, "hw-demo.timer", "LoadState") == "not-found"
    assert provision(host, deploy(present=False)).changed == []


def test_the_command_runs_literally_in_its_sandbox(job):
    job.run("systemctl start hw-demo.service")
    assert job.read("/var/lib/hw-demo/out") == "100% whole ; é\n"
    exposure = job.run("systemd-analyze security --no-pager hw-demo.service").stdout.splitlines()[-1]
    assert float(exposure.split(": ")[1].split()[0]) <= 1.5, exposure


def test_nothing_outside_the_sandbox_can_be_written(host, provision):
    run = provision(host, deploy(command=["/usr/bin/touch", "/etc/hw-escaped"]))
    assert run.ok, run
    failed = host.run("systemctl start hw-demo.service", check=False)
    assert failed.returncode != 0
    assert not host.exists("/etc/hw-escaped")
    assert host.run("systemctl is-failed hw-demo.service", check=False).stdout.strip() == "failed"
    assert "Read-only file system" in host.run("journalctl -u hw-demo.service --no-pager").stdout
    # a removed job leaves no failed unit behind
    provision(host, deploy(present=False))
    assert "hw-demo" not in host.run("systemctl --failed --no-legend").stdout


def test_a_run_that_takes_too_long_is_killed(host, provision):
    run = provision(host, deploy(command=["/bin/sleep", "600"], timeout_seconds=1))
    assert run.ok, run
    assert host.run("systemctl start hw-demo.service", check=False, timeout=30).returncode != 0
    assert show(host, "hw-demo.service", "Result") == "timeout"


def test_cron_and_timer_replace_each_other(job, provision):
    run = provision(job, deploy(by="cron", when="Mon,Thu 04:30"))
    assert run.ok, run
    assert show(job, "hw-demo.timer", "LoadState") == "not-found"
    assert not job.exists(f"{JOB}.timer")
    assert not job.exists("/etc/systemd/system/timers.target.wants/hw-demo.timer")
    line = job.read("/etc/cron.d/hw-demo").splitlines()[-1]
    assert line == "30 4 * * 1,4 root systemctl start --no-block hw-demo.service"
    assert job.run("stat -c '%a %U' /etc/cron.d/hw-demo").stdout.strip() == "644 root"
    assert provision(job, deploy(by="cron", when="Mon,Thu 04:30")).changed == []

    # the line as cron would run it, with cron's own shell
    job.run("rm -f /var/lib/hw-demo/out; sh -c 'systemctl start hw-demo.service'")
    assert job.exists("/var/lib/hw-demo/out")

    back = provision(job, deploy())
    assert back.ok, back
    assert not job.exists("/etc/cron.d/hw-demo")
    assert show(job, "hw-demo.timer", "ActiveState") == "active"


@pytest.mark.parametrize(
    "damage",
    [
        "systemctl disable --now hw-demo.timer",
        "systemctl stop hw-demo.timer",
        "sed -i s/02:00/03:00/ /etc/systemd/system/hw-demo.timer; systemctl daemon-reload; systemctl restart hw-demo.timer",
        "rm /etc/systemd/system/hw-demo.service",
        "echo '* * * * * root true' > /etc/cron.d/hw-demo",
    ],
)
def test_what_was_broken_by_hand_is_healed(job, provision, damage):
    job.run(damage)
    run = provision(job, deploy())
    assert run.ok, run
    assert run.changed == ["Schedule demo"]
    assert show(job, "hw-demo.timer", "ActiveState") == "active"
    assert job.run("systemctl is-enabled hw-demo.timer").stdout.strip() == "enabled"
    assert "OnCalendar=*-*-* 02:00:00" in show(job, "hw-demo.timer", "TimersCalendar")
    assert show(job, "hw-demo.service", "LoadState") == "loaded"
    assert not job.exists("/etc/cron.d/hw-demo")
    assert provision(job, deploy()).changed == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"when": "noon"}, "when must be"),
        ({"command": ["true"]}, "absolute path of a program"),
        ({"command": ["/usr/bin/no-such-program"]}, "no-such-program"),
        ({"by": "at"}, "by must be 'timer' or 'cron'"),
    ],
)
def test_bad_input_changes_nothing(job, provision, arguments, said):
    before = job.run(f"cat {JOB}.*").stdout
    run = provision(job, deploy(**arguments))
    assert not run.ok
    assert said in run.stderr
    assert job.run(f"cat {JOB}.*").stdout == before
