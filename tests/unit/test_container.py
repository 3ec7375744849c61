"""What a spec is made of, what it must not say, and what of it reaches docker's command line."""

import ast
import importlib.util
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from facts.container import Container, ContainerState
from operations import container, script
from operations.container import Health, Log, Mount, Network, Publish, Spec
from settings.secret import Secret

FILES = Path(__file__).parents[2] / "files" / "container"
PROGRAMS = {
    "container": ("engine.py", "compare.py", "converge.py"),
    "fact": ("engine.py", "compare.py", "state.py"),
    "network": ("engine.py", "network.py"),
    "volume": ("engine.py", "volume.py"),
    "images": ("engine.py", "images.py"),
}

PLAIN = Spec(image="registry.example/team/lamp:1", environment=Secret("A=1\n"))
# One other value for every field there is.
OTHER = {
    "image": "registry.example/team/lamp:2",
    "command": ("serve",),
    "entrypoint": ("/bin/sh",),
    "environment": Secret("A=2\n"),
    "mounts": (Mount("data", "/data"),),
    "networks": (Network("front"),),
    "publish": (Publish(80, 8080),),
    "labels": {"a": "b"},
    "cpus": 0.5,
    "memory_mb": 64,
    "pids": 10,
    "restart": "always",
    "health": Health(("true",)),
    "log": Log(max_size_mb=5),
    "user": "1:1",
    "groups": ("5",),
    "cap_drop": (),
    "cap_add": ("NET_RAW",),
    "no_new_privileges": False,
    "read_only": True,
    "tmpfs": ("/tmp",),
    "shm_mb": 5,
    "stop_signal": "SIGINT",
    "stop_seconds": 5,
    "platform": "linux/amd64",
    "hostname": "lamp",
    "extra_hosts": {"db": "10.0.0.1"},
}
OTHER_INSIDE = {
    "mounts": (Mount("data", "/data"), {"source": "other", "target": "/other", "read_only": True}),
    "networks": (Network("front"), {"name": "back", "aliases": ("x",)}),
    "publish": (Publish(80, 8080), {"port": 81, "container_port": 8081, "address": "", "proto": "udp"}),
    "health": (
        Health(("true",)),
        {"command": ("a b",), "interval_seconds": 7, "timeout_seconds": 7, "retries": 7, "start_seconds": 7},
    ),
    "log": (Log(), {"driver": "journald", "max_size_mb": 1, "files": 1, "address": "udp://10.0.0.1:514"}),
}


@pytest.fixture(scope="module")
def engine():
    loader = importlib.util.spec_from_file_location("container_engine", FILES / "engine.py")
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


def plain(spec):
    """The spec as a host gets it."""
    return json.loads(json.dumps(container.canonical(spec), default=Secret.unmask))


def arguments(engine, spec):
    return engine.create_arguments("lamp", plain(spec), {"hostwright.container": "lamp"}, "/etc/lamp.env")


def test_every_field_has_another_value_here():
    assert set(OTHER) == {field.name for field in fields(Spec)}
    for one, inside in OTHER_INSIDE.values():
        assert set(inside) == {field.name for field in fields(one)}


@pytest.mark.parametrize("name", OTHER)
def test_every_field_counts_and_reaches_docker(engine, name):
    changed = replace(PLAIN, **{name: OTHER[name]})
    assert container.faults("lamp", changed) == []
    assert container.spec_hash(changed) != container.spec_hash(PLAIN)
    if name != "environment":
        assert arguments(engine, changed) != arguments(engine, PLAIN)


@pytest.mark.parametrize(
    ("name", "inside"), [(name, inside) for name, (_, others) in OTHER_INSIDE.items() for inside in others]
)
def test_every_field_inside_counts_and_reaches_docker(engine, name, inside):
    one, others = OTHER_INSIDE[name]

    def holding(value):
        return replace(PLAIN, **{name: value if name in ("health", "log") else (value,)})

    if (name, inside) == ("log", "address"):  # goes with a collector only
        one = Log("syslog", address="udp://10.0.0.2:514")
    before, changed = holding(one), holding(replace(one, **{inside: others[inside]}))
    assert container.faults("lamp", changed) == []
    assert container.spec_hash(changed) != container.spec_hash(before)
    assert arguments(engine, changed) != arguments(engine, before)


def test_hash_knows_no_order_of_names_and_no_masks():
    one = replace(PLAIN, labels={"a": "1", "b": "2"})
    assert container.spec_hash(one) == container.spec_hash(replace(PLAIN, labels={"b": "2", "a": "1"}))
    assert container.spec_hash(PLAIN) == container.spec_hash(replace(PLAIN, environment="A=1\n"))
    # A list is what a tuple is once it has travelled as JSON.
    assert container.spec_hash(replace(PLAIN, command=["a"])) == container.spec_hash(replace(PLAIN, command=("a",)))


def test_hash_stays_what_it_was():
    """Another one would make every container in the field anew."""
    assert container.spec_hash(PLAIN) == (
        "a22abdf8e2dc0c3e0a089476ff89e243c6dd346a23c075da3cfe75748b38e55f"
    )


def test_environment_is_hidden(engine):
    spec = replace(PLAIN, environment="LAMP_API_KEY=canary-value\n")
    assert "canary" not in repr(spec)
    assert "canary" not in repr(container.canonical(spec))
    assert "canary" not in json.dumps(container._public(spec))
    assert "canary" not in " ".join(arguments(engine, spec))
    assert container.spec_hash(spec) not in Container().command("lamp", container._public(spec))


@pytest.mark.parametrize(
    "image",
    [
        "postgres:16",
        "postgres@sha256:" + "a" * 64,
        "registry.example:5000/a/b-c/d_e:v1.2.3-rc.1",
        "registry.example/a:1@sha256:" + "0" * 64,
        "localhost/a:1",
    ],
)
def test_good_image(image):
    assert container.faults("lamp", replace(PLAIN, image=image)) == []


BAD = [
    ({"image": "postgres"}, "image must be"),
    ({"image": "registry.example:5000/postgres"}, "image must be"),
    ({"image": "Upper/case:1"}, "image must be"),
    ({"image": "a:1 --privileged"}, "image must be"),
    ({"image": "-a:1"}, "image must be"),
    ({"image": "a@sha256:123"}, "image must be"),
    ({"command": "sleep 5"}, "command must be a tuple of words, got 'sleep 5'"),
    ({"command": (5,)}, "command must be a tuple of words"),
    ({"cap_drop": "ALL"}, "cap_drop must be a tuple of words"),
    ({"environment": "A=1\nB\n"}, "environment: line 2 must be NAME=value"),
    ({"environment": "A=1\n B=2\n"}, "environment: line 2 must be NAME=value"),
    ({"environment": "A=1\r\n"}, "environment: line 1 holds a control character"),
    ({"environment": {"A": "1"}}, "environment must be text"),
    ({"mounts": (Mount("./data", "/data"),)}, "mount: source must be a volume's name or an absolute path"),
    ({"mounts": (Mount("/srv/../etc", "/data"),)}, "mount: source must be"),
    ({"mounts": (Mount("data", "data"),)}, "mount: target must be an absolute path"),
    ({"mounts": (Mount("data", "/"),)}, "mount: target must be an absolute path"),
    ({"mounts": (Mount("data", "/a,readonly"),)}, "mount: target must be an absolute path"),
    ({"mounts": (Mount("data", "/a"), Mount("more", "/a"))}, "mount: /a stands twice"),
    ({"mounts": (Mount("data", "/a"),), "tmpfs": ("/a",)}, "mount: /a stands twice"),
    ({"tmpfs": ("tmp",)}, "tmpfs: must be '/path' or '/path:options', got 'tmp'"),
    ({"networks": (Network("host"), Network("front"))}, "network 'host' must be the only one"),
    ({"networks": (Network("host"),), "publish": (Publish(80, 80),)}, "network 'host' cannot publish ports"),
    ({"networks": (Network("bridge", ("x",)),)}, "network 'bridge' has no aliases"),
    ({"networks": (Network("front"), Network("front"))}, "network front stands twice"),
    ({"networks": (Network("container:x"),)}, "network: not a network's name: 'container:x'"),
    ({"networks": (Network("front", ("a b",)),)}, "network front: not a host name: 'a b'"),
    ({"publish": (Publish(0, 80),)}, "publish: port must be 1 to 65535, got 0"),
    ({"publish": (Publish(80, 70000),)}, "publish: container_port must be 1 to 65535, got 70000"),
    ({"publish": (Publish("80", 80),)}, "publish: port must be 1 to 65535, got '80'"),
    ({"publish": (Publish(80, 80, "localhost"),)}, "publish: address must be an IP address or '', got 'localhost'"),
    ({"publish": (Publish(80, 80, proto="sctp"),)}, "publish: proto must be 'tcp' or 'udp', got 'sctp'"),
    ({"publish": (Publish(80, 80), Publish(80, 81))}, "publish: 127.0.0.1:80/tcp stands twice"),
    ({"labels": {"hostwright.x": "1"}}, "names that begin with 'hostwright.' are taken"),
    ({"labels": {"a b": "1"}}, "labels: 'a b' must be a name with one line of text"),
    ({"labels": {"a": 1}}, "labels: 'a' must be"),
    ({"cpus": -1}, "cpus must be 0 (no limit) or at least 0.01, got -1"),
    ({"cpus": "1"}, "cpus must be"),
    ({"memory_mb": 1}, "memory_mb must be 0 (no limit) or at least 6, got 1"),
    ({"memory_mb": "64m"}, "memory_mb must be"),
    ({"pids": -1}, "pids must be a whole number"),
    ({"pids": True}, "pids must be a whole number"),
    ({"restart": "sometimes"}, "restart must be"),
    ({"restart": "always:3"}, "restart must be"),
    ({"health": Health(())}, "health: command must be words"),
    ({"health": Health("curl x")}, "health: command must be words"),
    ({"health": Health(("true",), retries=0)}, "health: retries must be a whole number of at least 1, got 0"),
    ({"log": Log("none")}, "log: driver must be one of json-file, local, journald, syslog, gelf, fluentd, got 'none'"),
    ({"log": Log("syslog")}, "log: address goes with syslog, gelf, fluentd, got '' for 'syslog'"),
    ({"log": Log(address="udp://10.0.0.1:514")}, "log: address goes with syslog, gelf, fluentd, got 'udp://"),
    ({"log": Log("gelf", address="a b")}, "log: address must hold no blank and no comma, got 'a b'"),
    ({"log": Log(files=0)}, "log: files must be a whole number of at least 1, got 0"),
    ({"user": "a b"}, "user must be a user or user:group, got 'a b'"),
    ({"groups": ("a b",)}, "groups: not a group: 'a b'"),
    ({"cap_add": ("net_raw",)}, "capability must be written like NET_BIND_SERVICE, got 'net_raw'"),
    ({"stop_signal": "15"}, "stop_signal must be like SIGTERM, got '15'"),
    ({"stop_seconds": 0.5}, "stop_seconds must be a whole number"),
    ({"platform": "amd64"}, "platform must be like linux/amd64, got 'amd64'"),
    ({"hostname": "a_b"}, "hostname must be a host name, got 'a_b'"),
    ({"extra_hosts": {"db": "somewhere"}}, "extra_hosts: must be a name with an IP address"),
]


@pytest.mark.parametrize(("bad", "words"), BAD)
def test_bad_input_is_named(bad, words):
    found = container.faults("lamp", replace(PLAIN, **bad))
    assert len(found) == 1, found
    assert words in found[0]


def test_all_faults_at_once_and_no_value_of_the_environment():
    bad = replace(PLAIN, environment=Secret("canary-value\n"), cpus=-1, restart="x", platform="x")
    found = container.faults("-lamp", bad)
    assert len(found) == 5
    assert "canary" not in " ".join(found)


@pytest.mark.parametrize("name", ["", "a", "Lamp", "lamp.new", "-lamp", "lamp --privileged", "a" * 64, None])
def test_bad_name(name):
    assert "a container's name must be" in container.faults(name, PLAIN)[0]


def test_spec_of_another_kind():
    assert container.faults("lamp", {"image": "a:1"}) == ["spec must be a container.Spec, got dict"]


HASH = container.spec_hash(PLAIN)
FILE = container._hash_of_environment(PLAIN)


@pytest.mark.parametrize(
    ("found", "owed"),
    [
        (ContainerState(), ["no engine answers yet"]),
        (ContainerState(engine=True, anew=["it is missing"]), ["it is missing"]),
        (ContainerState(engine=True, id="1", spec_hash=HASH, environment_hash=FILE), []),
        (ContainerState(engine=True, id="1", spec_hash="", environment_hash=FILE), ["its spec differs"]),
        (ContainerState(engine=True, id="1", spec_hash=HASH), ["its environment file"]),
        (
            ContainerState(engine=True, id="1", spec_hash=HASH, repair=["it is stopped"]),
            ["it is stopped", "its environment file"],
        ),
        (
            ContainerState(engine=True, id="1", spec_hash=HASH, anew=["its image differs"]),
            ["its image differs"],
        ),
        (
            ContainerState(engine=True, id="1", spec_hash=HASH, environment_hash=FILE, repair=["leftover lamp.old"]),
            ["leftover lamp.old"],
        ),
    ],
)
def test_what_is_owed(found, owed):
    assert container.owed(PLAIN, found) == owed


# --- the programs for the host ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_fit_together(name):
    """Each one uses names of those in front of it, so linters see an error or nothing in a single file."""
    text = "\n".join((FILES / part).read_text().replace("# ruff: noqa", "#") for part in PROGRAMS[name])
    ast.parse(text, feature_version=(3, 9))
    ruff = Path(sys.executable).with_name("ruff")
    linted = subprocess.run(
        [ruff, "check", "--isolated", "--select", "F", "--ignore", "F811", "--output-format", "concise", "-"],
        input=text, text=True, capture_output=True,
    )  # fmt: skip
    assert linted.returncode == 0, linted.stdout
    functions = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert len(functions) == len(set(functions)), "one hides another"


def test_command_is_one_program():
    """What REPLICAS and others build on: the engine's functions, and a main that takes the values."""
    text = script.python_text(container._PROGRAMS, container._values("lamp", PLAIN, "missing", 30))
    ast.parse(text)


def test_mask_takes_out_values_that_may_be_secret(engine):
    environment = "\n".join(
        [
            "POSTGRES_PASSWORD=short",
            "CELERY_BROKER_URL=redis://:hunter2@redis:6379/0",
            "SECRET_KEY=a b,c$d",
            "LOG_LEVEL=INFO",
            "LONG=0123456789abcdef",
            "DATA=/var/lib/lamp/data/store",
            "no assignment",
        ]
    )
    said = "\n".join(
        [
            "password short",
            "at redis with hunter2",
            "all: redis://:hunter2@redis:6379/0",
            "key a b,c$d!",
            "level INFO in /var/lib/lamp/data/store",
            "x0123456789abcdefx",
        ]
    )
    assert engine.mask(said, environment).split("\n") == [
        "password *MASKED*",
        "at redis with *MASKED*",
        "all: *MASKED*",
        "key *MASKED*!",
        "level INFO in /var/lib/lamp/data/store",
        "x*MASKED*x",
    ]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("", "127.0.0.1", True),
        ("*", "::1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "::1", False),
        ("::", "127.0.0.1", False),
        ("::", "fd00::1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.53%lo", "127.0.0.53", True),
    ],
)
def test_addresses_that_get_in_each_others_way(engine, one, other, same):
    assert engine.overlap(one, other) is same
    assert engine.overlap(other, one) is same


@pytest.mark.parametrize(
    ("have", "want", "fits"),
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/arm64", "linux/amd64", False),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm/v6", "linux/arm/v7", False),
        ("windows/amd64", "linux/amd64", False),
        ("linux", "linux/amd64", False),
    ],
)
def test_platforms(engine, have, want, fits):
    assert engine.fits(have, want) is fits


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("postgres:16", "docker.io"),
        ("team/lamp:1", "docker.io"),
        ("registry.example/lamp:1", "registry.example"),
        ("registry:5000/lamp:1", "registry:5000"),
        ("localhost/lamp:1", "localhost"),
    ],
)
def test_registry_of(engine, image, registry):
    assert engine.registry_of(image) == registry


def test_write_private_is_private_from_the_first_byte(engine, tmp_path):
    path = tmp_path / "of" / "lamp.env"
    for text in ("A=1\n", "A=2\n"):
        engine.write_private(str(path), text)
        assert path.read_text() == text
        assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [one.name for one in path.parent.iterdir()] == ["lamp.env"]
