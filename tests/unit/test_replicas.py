"""What replicas lack of what is wanted, and what is refused, decided without a host."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyinfra.api import OperationValueError

from facts.replicas import Instance, parse
from operations import container, replicas
from operations.container import Health, Network, Publish, Spec
from operations.script import FILES
from settings.secret import Secret

SPEC = Spec("registry.example.org/shop:1", environment=Secret("API_KEY=canary-0123456789\n"))
OTHER = Spec("registry.example.org/shop:2")
ALIASED = Spec("registry.example.org/shop:1", networks=(Network("front", aliases=("shop",)),), hostname="shop")


@pytest.fixture
def programs(tmp_path: Path) -> SimpleNamespace:
    """The programs of files/ as one, with a store of its own."""
    names: dict[str, Any] = {"__name__": "programs"}
    for file in ("container/engine.py", "replicas/state.py", "replicas/work.py", "replicas/converge.py"):
        exec(compile((FILES / file).read_text(), file, "exec"), names)
    names["STORE"] = str(tmp_path)
    return SimpleNamespace(names=names, **{key: value for key, value in names.items() if not key.startswith("__")})


def wanted(spec: Spec = SPEC, count: int = 2, **settings: Any) -> dict[str, Any]:
    given = {"ports": [8000, 8100], "container_port": 80, "start_seconds": 1, "settle_seconds": 0, **settings}
    return replicas._wanted("shop", spec, count, "web", **given)


def instance(number: int, color: str = "blue", spec: Spec = SPEC, **changed: Any) -> dict[str, Any]:
    return {
        "id": f"{color}{number}",
        "name": f"shop-{color}-{number}",
        "spec": container.spec_hash(spec),
        "release": container.spec_hash(spec)[:12],
        "color": color,
        "instance": number,
        "state": "running",
        "health": "",
        "port": (8000 if color == "blue" else 8100) + number - 1,
        "container_port": 80,
        "aliases": {"bridge": []},
        **changed,
    }


@pytest.fixture
def component(programs: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The component shop, which serves SPEC by two blue instances according to its record."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    shop = programs.Component("shop")
    recorded = wanted()
    spec = {**container.canonical(SPEC), "environment": container.environment_text(SPEC)}
    programs.names["inspect"] = lambda kind, names: {}
    change = programs.Change(shop, recorded, json.loads(json.dumps(spec)))
    change.record(recorded["spec_hash"][:12], "blue", "sha256:1")
    return shop


@pytest.mark.parametrize(
    ("target", "found", "words"),
    [
        ({}, [instance(1), instance(2)], []),
        ({}, [instance(1)], ["instance 2 is missing"]),
        ({"count": 1}, [instance(1), instance(2)], ["shop-blue-2 is one too many", "2 instances are recorded"]),
        ({"count": 3}, [instance(1), instance(2)], ["instance 3 is missing", "2 instances are recorded"]),
        ({}, [instance(1), instance(2, state="exited")], ["instance 2 is exited"]),
        ({}, [instance(1), instance(2, port=9)], ["instance 2 is not on port 8001"]),
        ({}, [instance(1), instance(2), instance(1, "green")], ["shop-green-1 is one too many"]),
        ({}, [instance(1), instance(2), instance(1, "green", OTHER)], ["shop-green-1 is one too many"]),
        ({"spec": OTHER}, [instance(1), instance(2)], [f"release {container.spec_hash(SPEC)[:12]} serves"]),
        ({"ports": [8000, 8200]}, [instance(1), instance(2)], ["its ports are others"]),
        ({"drain_seconds": 7}, [instance(1), instance(2)], ["other settings are recorded"]),
    ],
)
def test_needs(programs, component, target, found, words):
    needs = component.needs(wanted(**target), found)
    assert programs.reasons(needs) == words


@pytest.mark.parametrize(
    ("on", "words"),
    [
        ({"back": [], "front": ["shop"]}, []),
        ({"back": [], "front": []}, ["shop-blue-1 is not shop on network front"]),
        ({"back": []}, ["shop-blue-1 is not shop on network front"]),
        ({"back": [], "front": ["moon", "shop"]}, ["shop-blue-1 is not shop on network front"]),
    ],
)
def test_alias_that_is_missing_or_too_much_is_seen(programs, component, on, words):
    target = wanted(count=1, aliases={"front": ["shop"]})
    programs.Change(component, target, component.stored(container.spec_hash(SPEC)[:12])["spec"]).record(
        target["spec_hash"][:12], "blue", "sha256:1"
    )
    assert programs.reasons(component.needs(target, [instance(1, aliases=on)])) == words


def test_names_that_the_engine_gives_are_no_aliases(programs):
    container_id = "0123456789ab" + "c" * 52
    found = {
        "Id": container_id,
        "Config": {"Hostname": "0123456789ab"},
        "NetworkSettings": {"Networks": {"front": {"Aliases": ["shop", "0123456789ab"]}, "back": {"Aliases": None}}},
    }
    assert programs.aliases_of(found) == {"front": ["shop"], "back": []}


TABLE = """  sl  local_address rem_address   st tx_queue rx_queue
   0: 00000000:1F40 00000000:0000 0A
   1: {address}:1F40 0300A8C0:D431 {state}
   2: 0200A8C0:D431 0300A8C0:1F40 01
"""


@pytest.mark.parametrize(
    ("address", "state", "count"),
    [
        ("0200A8C0", "01", 1),
        ("0200A8C0", "03", 1),
        ("0200A8C0", "06", 0),  # TIME_WAIT
        ("0100007F", "01", 0),  # its own health check
        ("0000000000000000FFFF00000100007F", "01", 0),
        ("0000000000000000FFFF00000200A8C0", "01", 1),
        ("00000000000000000000000001000000", "01", 0),
    ],
)
def test_connections_from_others_to_what_listens_count(programs, monkeypatch, tmp_path, address, state, count):
    (tmp_path / "tcp").write_text(TABLE.format(address=address, state=state))
    monkeypatch.setitem(programs.names, "open", lambda path: (tmp_path / Path(path).name).open())
    assert programs.open_inside({"State": {"Pid": 1}}) == count


def test_health_counts(programs, component):
    spec = Spec("registry.example.org/shop:3", health=Health(("true",)))
    target = wanted(spec)
    assert component.fault(instance(1, spec=spec, health="healthy"), target, "blue") == ""
    assert component.fault(instance(1, spec=spec, health="starting"), target, "blue") == "is starting"
    assert component.fault(instance(1, spec=spec), target, "blue") == "is without a health check"


def test_store_knows_a_spec_that_was_changed(programs, component):
    release = container.spec_hash(SPEC)[:12]
    assert component.stored(release)["spec"]["environment"] == "API_KEY=canary-0123456789\n"
    path = Path(component.path_of(release))
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(path.read_text().replace("shop:1", "shop:9"))
    assert component.stored(release) is None
    assert "the stored spec is not as it was" in programs.reasons(component.needs(wanted(), [instance(1), instance(2)]))


def test_previous_is_the_newest_that_served_and_is_stored(programs, component, monkeypatch):
    assert component.previous() == ""
    monkeypatch.setattr(type(component), "history", lambda self: ["a", "b", "gone", container.spec_hash(SPEC)[:12]])
    monkeypatch.setattr(type(component), "stored", lambda self, release: release != "gone")
    assert component.previous() == "b"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("upstream shop {\n server 127.0.0.1:1; # one\n keepalive 16;\n}\n", (["127.0.0.1:1"], ["keepalive 16"])),
        ("upstream shop { server 127.0.0.1:1;server  127.0.0.1:2; }", (["127.0.0.1:1", "127.0.0.1:2"], [])),
        ("upstream other { server 127.0.0.1:1; }", None),
        ("upstream shop { server 127.0.0.1:1 }", None),
        ("upstream shop { server 127.0.0.1:1; } junk", None),
        ("", None),
    ],
)
def test_upstream_file_is_read(programs, text, found):
    assert programs.servers_of(text, "shop") == found


@pytest.mark.parametrize(
    ("status", "said", "idle"),
    [(0, "0", True), (0, "2", False), (0, "", True), (1, "", False), (0, "tasks:\n3", False), (1, "0", False), (0, "idle", True)],
)
def test_idle(programs, status, said, idle):
    assert programs.is_idle(status, said) is idle


def test_words_of_a_worker(programs):
    name = programs.worker_name("shop", "abc", 2)
    assert programs.placed(["a{worker}", "{instance}", "{host}x", "{}"], "shop", {"release": "abc", "instance": 2}) == [
        f"a{name}",
        "2",
        name.partition("@")[2] + "x",
        "{}",
    ]
    host_name = name.partition("@")[2]
    assert replicas.worker_name("shop", SPEC, 2, host_name) == programs.worker_name(
        "shop", container.spec_hash(SPEC)[:12], 2
    )


def test_hash_on_the_host_is_the_one_of_the_operation(programs):
    spec = {**container.canonical(SPEC), "environment": container.environment_text(SPEC)}
    assert programs.hash_of_spec(json.loads(json.dumps(spec))) == container.spec_hash(SPEC)


def test_fact_is_parsed():
    one = instance(1)
    current = {"release": "abc", "spec_hash": "abcdef", "color": "blue", "count": 2, "settings": {"kind": "web"}}
    printed = {
        "fault": "",
        "current": current,
        "previous": "b",
        "stored": ["b", "abc"],
        "jobs": ["migrate abc"],
        "containers": [one],
        "to_do": ["x"],
    }
    state = parse([json.dumps(printed)])
    assert (state.release, state.count, state.kind, state.previous, state.to_do) == ("abc", 2, "web", "b", ("x",))
    assert state.instances == (
        Instance("shop-blue-1", one["release"], "blue", 1, "running", "", 8000),
    )
    assert "python3 is missing" in parse([]).fault


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: replicas.rollout._inner("Shop", SPEC), "component must be lower-case"),
        (lambda: replicas.rollout._inner("shop"), "spec must be a container.Spec, got NoneType"),
        (
            lambda: replicas.rollout._inner("shop", Spec("a/b:1", publish=(Publish(1, 1),))),
            "spec.publish must be empty",
        ),
        (lambda: replicas.rollout._inner("shop", SPEC, upstream="shop"), "upstream needs ports"),
        (lambda: replicas.rollout._inner("shop", SPEC, probe="true"), "it needs upstream"),
        (
            lambda: replicas.rollout._inner("shop", ALIASED, ports=(8000, 8100), container_port=80),
            "aliases and ports exclude each other",
        ),
        (lambda: replicas.rollout._inner("shop", ALIASED), "spec.health is needed with aliases"),
        (lambda: replicas.rollout._inner("shop", ALIASED), "spec.hostname must not be an alias"),
        (lambda: replicas.rollout._inner("shop", SPEC, ports=(1, 9)), "container_port must be 1 to 65535, got 0"),
        (lambda: replicas.rollout._inner("shop", SPEC, ports=(1,), container_port=1), "ports must be (first blue"),
        (lambda: replicas.rollout._inner("shop", SPEC, migrate="alembic upgrade"), "migrate must be a tuple of words"),
        (lambda: replicas.workers._inner("shop", SPEC, count=-1), "count must be a whole number of at least 0, got -1"),
        (lambda: replicas.workers._inner("shop", SPEC, busy="busy"), "busy must be a tuple of words"),
        (lambda: replicas.once._inner("shop", "migrate", SPEC), "spec.command is empty"),
        (lambda: replicas.once._inner("shop", "Migrate!", SPEC), "job must be lower-case"),
        (lambda: replicas.rollback._inner("no good"), "component must be"),
        (lambda: replicas.scale._inner("shop", -1), "count must be a whole number of at least 0"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(OperationValueError) as error:
        list(call())
    assert words in str(error.value)
    assert "canary" not in str(error.value)
