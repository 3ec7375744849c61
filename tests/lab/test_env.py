"""Variables survive the real consumer byte for byte: systemd, a POSIX shell, supervisor, Docker, Compose."""

import json
import random

import pytest

from settings.env import EnvError, render
from tests.lab.state import wait_for

HARD = [
    "", " ", "plain", " leading", "trailing ", "a b", "a  b", "tab\tin", "#comment", "a #b", "a#b", "a;b", "a ;b", ";b",
    '"quoted"', "'quoted'", 'in"side', "in'side", "both'\"", "\\", "\\\\", "back\\slash", "end\\", "\\n", "\\$x", "\\\"",
    "$HOME", "${HOME}", "$$", "$(id)", "`id`", "!x", "%h", "%%", "%(here)s", "100%", "a=b", "=", "a,b", "[x]", "{x}",
    "~", "*", "?", "&&", "|", ">x", "<x", "(x)", "ä€😀", "http://u:p@h/?a=b&c=%20#f", "-n", "line\nbreak", "\nfirst",
    "last\n", "\r",
]  # fmt: skip


def generated(count, seed=20):
    """Random mixtures of the characters that matter."""
    rng = random.Random(seed)
    alphabet = "aZ0 \t#;'\"\\$%`{}()=,!~*?&|<>[]-./:@ä\n"
    return ["".join(rng.choices(alphabet, k=rng.randint(1, 24))) for _ in range(count)]


def held(consumer, values):
    """The variables that the consumer can hold: name to value."""
    variables = {}
    for number, value in enumerate(values):
        try:
            render({"A": value}, consumer=consumer)
        except EnvError:
            continue
        variables[f"HW_{number}"] = value
    return variables


def seen(host, path):
    """The variables that a process wrote down with `env -0`, ours only."""
    rows = host.read(path).split("\0")
    return {row.partition("=")[0]: row.partition("=")[2] for row in rows if row.startswith("HW_")}


@pytest.fixture(scope="module")
def supervised(lab):
    host = lab.host("t-env", layer="packages")
    host.run("systemctl start supervisor")
    yield host
    lab.destroy(host)


def read_by_systemd(host, variables):
    host.write("/etc/hw.env", render(variables, consumer="systemd"), mode="0600")
    host.write(
        "/etc/systemd/system/hw-env.service",
        "[Service]\nType=oneshot\nEnvironmentFile=/etc/hw.env\nExecStart=/bin/sh -c 'env -0 > /root/seen'\n",
    )
    host.run("systemctl daemon-reload && systemctl start hw-env.service")
    return seen(host, "/root/seen")


def read_by_shell(host, variables):
    host.write("/etc/hw.env", render(variables, consumer="shell"), mode="0600")
    host.run("sh -c 'set -a; . /etc/hw.env; env -0 > /root/seen'")
    return seen(host, "/root/seen")


def read_by_supervisor(host, variables):
    host.write(
        "/etc/supervisor/conf.d/hw.conf",
        "[program:hw]\ncommand=/bin/sh -c 'env -0 > /root/seen.new; mv /root/seen.new /root/seen; exec sleep 600'\n"
        f"startsecs=0\nenvironment={render(variables, consumer='supervisor')}\n",
        mode="0600",
    )
    host.run("rm -f /root/seen; supervisorctl reread; supervisorctl update; supervisorctl restart hw")
    wait_for("the program's environment", lambda: host.exists("/root/seen"), 20)
    return seen(host, "/root/seen")


READERS = {"systemd": read_by_systemd, "shell": read_by_shell, "supervisor": read_by_supervisor}


@pytest.fixture(scope="module")
def engine(lab):
    """A host with Docker and Compose, and the image of a shell."""
    registry = lab.registry()  # before the host, which then knows its name
    host = lab.host("t-env-docker", release="trixie", layer="docker")
    registry.admit(host)
    image = registry.image("busybox")
    host.run(f"docker pull -q {image}")
    yield host, image
    lab.destroy(host)


def read_by_docker(host, image, variables):
    host.write("/etc/hw.env", render(variables, consumer="docker"), mode="0600")
    host.run(f"docker run --rm --env-file /etc/hw.env -v /root:/out {image} sh -c 'env -0 > /out/seen'")
    return seen(host, "/root/seen")


def read_by_compose(host, image, variables):
    host.write("/etc/hw.env", render(variables, consumer="compose"), mode="0600")
    service = {"image": image, "env_file": ["/etc/hw.env"], "volumes": ["/root:/out"], "command": ["sh", "-c", "env -0 > /out/seen"]}
    host.write("/root/compose.yaml", json.dumps({"services": {"hw": service}}))
    host.run("docker compose -f /root/compose.yaml run --rm hw")
    return seen(host, "/root/seen")


ENGINE_READERS = {"docker": read_by_docker, "compose": read_by_compose}


@pytest.mark.parametrize("consumer", READERS)
def test_consumer_reads_what_was_written(supervised, consumer):
    variables = held(consumer, HARD)
    assert len(variables) > len(HARD) / 2
    assert READERS[consumer](supervised, variables) == variables


@pytest.mark.soak
@pytest.mark.parametrize("consumer", READERS)
def test_consumer_reads_any_mixture(supervised, consumer):
    variables = held(consumer, generated(1500))
    assert READERS[consumer](supervised, variables) == variables


@pytest.mark.soak
@pytest.mark.parametrize("values", [HARD, generated(1500)], ids=["hard", "any"])
@pytest.mark.parametrize("consumer", ENGINE_READERS)
def test_container_reads_what_was_written(engine, consumer, values):
    host, image = engine
    variables = held(consumer, values)
    assert len(variables) > len(values) / 3
    assert ENGINE_READERS[consumer](host, image, variables) == variables
