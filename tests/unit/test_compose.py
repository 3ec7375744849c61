"""A Compose file as data: what is refused of it, how it is rendered, and when a project is as it says."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
from pyinfra.api import OperationValueError

from facts.compose import Compose, ComposeState
from operations import compose
from operations.compose import Drain, faults, owed, published, rendered
from settings import Port
from settings.secret import Secret

ROOT = Path(__file__).parents[2]
SECRET = "canary-pa$$word"


def spec(**web):
    service = {"image": "registry.example/web:1.4.0", "environment": {"KEY": Secret(SECRET)}, **web}
    return {"services": {"web": service}}


DRAIN = Drain(("app", "drain"), ("app", "busy"), ("app", "resume"))


def test_a_good_file_has_no_faults():
    assert faults("shop", spec(ports=["127.0.0.1:8000:8000", "[::1]:8000:8000"]), {"a/b.conf": "x"}, trial=["web"], drains={"web": DRAIN}) == []
    assert faults("shop", spec(ports=["0.0.0.0:443:443"]), exposed=[Port(port=443, why="test")]) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"version": "3.8", "services": {"a": {"image": "a:1"}}}, "version: must not be there: Compose v2 takes no notice of it"),
        ({"name": "x", "services": {"a": {"image": "a:1"}}}, "name: must not be there"),
        ({"sevices": {}, "services": {"a": {"image": "a:1"}}}, "sevices: must be one of services, networks"),
        ({"services": {}}, "services: must be a mapping with at least one service"),
        ([], "spec must be the Compose file as a mapping, got list"),
        (spec(image="web"), "services.web.image: must be 'registry/path:tag' or 'registry/path@sha256:…', got 'web'"),
        (spec(image="web:latest"), "services.web.image: must not be ':latest'"),
        (spec(build="."), "services.web.build: must not be there: build and push elsewhere"),
        (spec(env_file=".env"), "services.web.env_file: must not be there: write the values in environment"),
        (spec(container_name="x"), "services.web.container_name: must not be there"),
        (spec(environment=["A=b"]), "services.web.environment: must be a mapping"),
        (spec(environment={"SIGN_UP": False}), "services.web.environment.SIGN_UP: must be text in quotes, got bool"),
        (spec(ports=["6379:6379"]), "services.web.ports[0]: must be on 127.0.0.1 or among the host's declared ports, got '6379:6379'; write '127.0.0.1:6379:…'"),
        (spec(ports=["0.0.0.0:80:80"]), "services.web.ports[0]: must be on 127.0.0.1 or among"),
        (spec(ports=["10.0.0.5:80:80"]), "services.web.ports[0]: must be on 127.0.0.1 or among"),
        (spec(ports=["80"]), "services.web.ports[0]: must name the host's port, got '80'"),
        (spec(ports=["127.0.0.1:8000-8010:8000-8010"]), "one port in each"),
        (spec(ports=[{"target": 80, "published": "80"}]), "services.web.ports[0]: must be on 127.0.0.1"),
        (spec(ports=["127.0.0.1:80:80", "127.0.0.1:80:81"]), "services.web.ports[1]: stands twice"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_key_rule_and_value(given, words):
    found = faults("shop", given)
    assert len(found) == 1, found
    assert words in found[0]
    assert SECRET not in found[0]


def test_all_faults_are_said_at_once():
    bad = {"version": "3", "services": {"web": {"image": "web", "ports": ["80:80"], "build": "."}, "db": {"image": "db"}}}
    assert len(faults("Shop!", bad, {"../x": ""}, trial=["nobody"], drains={"none": DRAIN})) == 9


def test_the_operation_raises_them(monkeypatch):
    with pytest.raises(OperationValueError) as error:
        list(compose.project._inner(project="shop", spec=spec(image="web", ports=["1:1"])))
    assert str(error.value).count(";") == 2
    with pytest.raises(OperationValueError, match="spec is needed"):
        list(compose.project._inner(project="shop"))
    with pytest.raises(OperationValueError, match="a project's name must be"):
        list(compose.remove_project_with_its_data._inner(project="Shop of horrors"))


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("80:81", ("", 80, "tcp")),
        ("127.0.0.1:80:81/udp", ("127.0.0.1", 80, "udp")),
        ("[::1]:80:81", ("::1", 80, "tcp")),
        ("127.0.0.1::81", ("127.0.0.1", 0, "tcp")),
        (81, ("", 0, "tcp")),
        ({"target": 81, "published": 80, "host_ip": "::"}, ("::", 80, "tcp")),
        ("80-82:80-82", None),
        ("http", None),
    ],
)
def test_every_way_to_write_a_port_is_read(entry, wanted):
    found = published(entry)
    assert (found and (found.address, found.port, found.proto)) == wanted


def test_text_is_what_it_says_and_a_restart_policy_is_there():
    found = rendered(spec(command=["echo", "$HOME ${X:-y}"]))
    plain = json.loads(found.text.unmask())
    assert plain["services"]["web"]["command"] == ["echo", "$$HOME $${X:-y}"]
    assert plain["services"]["web"]["environment"]["KEY"] == SECRET.replace("$", "$$")
    assert plain["services"]["web"]["restart"] == "unless-stopped"
    assert rendered(spec(restart="no")).text.unmask().count('"restart": "no"') == 1
    assert [one.unmask() for one in found.secrets] == [SECRET]
    assert SECRET not in repr(found)


def test_only_who_mounts_a_file_differs_when_it_changes():
    def two(first, second):
        services = {name: {"image": "a:1", "volumes": [f"./{name}.conf:/etc/it:ro", "data:/data"]} for name in ("one", "two")}
        found = rendered({"services": services}, {"one.conf": first, "two.conf": second})
        plain = json.loads(found.text.unmask())["services"]
        return found, plain["one"]["volumes"][0], plain["two"]["volumes"][0]

    before, first, second = two("a", Secret("b"))
    after, changed, same = two("A", Secret("b"))
    assert (first != changed, second == same) == (True, True)
    path = first.partition(":")[0].removeprefix("./")
    assert before.files[path].unmask() == "a"
    assert path not in after.files


def test_a_directory_of_files_is_mounted_whole():
    given = {"services": {"g": {"image": "a:1", "volumes": ["./boards:/etc/boards:ro", "/srv/x:/x", "./other:/o"]}}}
    found = rendered(given, {"boards/a.json": "1", "boards/deep/b.json": "2", "else": "3"})
    mounts = json.loads(found.text.unmask())["services"]["g"]["volumes"]
    top = mounts[0].partition(":")[0].removeprefix("./")
    assert mounts[0] == f"./{top}:/etc/boards:ro"
    assert sorted(found.files) == [f"{top}/a.json", f"{top}/deep/b.json"]
    assert mounts[1:] == ["/srv/x:/x", "./other:/o"]


def test_owed_says_why():
    wanted = rendered(spec(volumes=["./a:/a"]), {"a": "text"})
    files = {path: hashlib.sha256(text.unmask().encode()).hexdigest() for path, text in wanted.files.items()}
    good = {"engine": True, "sha256": wanted.sha256, "file_sha256": wanted.sha256, "files": files}
    assert owed(wanted, [], ComposeState(**good)) == []
    for change, words in (
        ({"engine": False}, "no engine answers yet"),
        ({"sha256": ""}, "it is not there"),
        ({"sha256": "x"}, "its file differs"),
        ({"profiles": ["more"]}, "its profiles differ"),
        ({"anew": ["the image of web differs"]}, "the image of web differs"),
        ({"repair": ["shop-web-1 is stopped"]}, "shop-web-1 is stopped"),
        ({"file_sha256": "x"}, "its file on the host was changed"),
        ({"files": {}}, f"{next(iter(files))} was changed"),
    ):
        assert owed(wanted, [], ComposeState(**{**good, **change})) == [words]


def test_the_fact_holds_no_secret_and_fits_in_one_argument():
    command = Compose().command(project="shop")
    assert len(command) < 128 * 1024
    assert "'project': 'shop'" in command.replace("'\"'\"'", "'")


@pytest.fixture(scope="module")
def programs():
    """The host's programs as one module, as they are sent."""
    found = importlib.util.module_from_spec(importlib.util.spec_from_loader("compose_programs", loader=None))
    for name in ("container/engine.py", "compose/project.py", "compose/converge.py"):
        exec(compile((ROOT / "files" / name).read_text(), name, "exec"), found.__dict__)
    return found


def test_a_version_that_is_too_old_is_refused():
    for version, is_refused in (("", True), ("1.29.2", True), ("2.19.9", True), ("2.20.0", False), ("2.26.1-4", False), ("5.0.1", False)):
        state = ComposeState(engine=True, version=version)
        if is_refused:
            with pytest.raises(Exception, match=r"needs Compose 2\.20 or newer"):
                compose._check_version("shop", state)
        else:
            compose._check_version("shop", state)


def test_a_job_that_ended_well_is_no_ailment(programs):
    def one(status, code, policy):
        return {"HostConfig": {"RestartPolicy": {"Name": policy}}, "RestartCount": 0,
                "State": {"Status": status, "ExitCode": code, "Running": status == "running", "Paused": False, "StartedAt": "2026-01-01T00:00:00Z"}}  # fmt: skip

    assert programs.ailment(one("exited", 0, "no")) == ""
    assert programs.ailment(one("exited", 1, "no")) == "is stopped"
    assert programs.ailment(one("exited", 0, "unless-stopped")) == "is stopped"
    assert programs.ailment(one("running", 0, "always")) == ""


def test_services_come_after_those_they_depend_on(programs):
    services = {"a": {"depends_on": {"c": {}}}, "b": {}, "c": {"depends_on": {"b": {}}}}
    assert programs.in_order({"services": services}) == ["b", "c", "a"]
    # a circle is Compose's to refuse
    assert sorted(programs.in_order({"services": {"a": {"depends_on": {"b": {}}}, "b": {"depends_on": {"a": {}}}}})) == ["a", "b"]


def test_only_who_asks_for_it_follows_another(programs):
    assert not programs.follows({"depends_on": {"db": {"condition": "service_healthy"}}}, "db")
    assert programs.follows({"depends_on": {"db": {"restart": True}}}, "db")
    assert programs.follows({"network_mode": "service:db"}, "db")
    assert programs.follows({"volumes_from": ["db:ro"]}, "db")
    assert not programs.follows({"network_mode": "host"}, "db")
