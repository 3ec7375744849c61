"""What the engine operation decides without a host, and its settings: bad ones, and exactly what is said about each."""

import ast
import hashlib
import json
import runpy
from pathlib import Path

import pytest
from pyinfra.api import OperationError

from deploys.docker_engine import daemon_options
from facts.engine import EngineState, parse
from operations.engine import action, fitted, is_version, number, plan, probe, text
from operations.fileset import content_hash
from settings import SettingsError, load_host

ROOT = Path(__file__).parents[2]
OPTIONS = {"live-restore": True, "registry-mirrors": [], "log-driver": "json-file"}
BOOKWORM, TRIXIE = ("debian", "12"), ("debian", "13")
HELD = ("1", True)


# --- packages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "wanted", "same"),
    [
        ("5:28.5.2-1~debian.12~bookworm", "28.5.2", True),
        ("5:28.5.2-1~debian.12~bookworm", "5:28.5.2-1~debian.12~bookworm", True),
        ("5:28.5.2-1~debian.12~bookworm", "28.5.2-1", True),
        ("5:28.5.21-1~debian.12~bookworm", "28.5.2", False),
        ("5:28.5.2-1~debian.12~bookworm", "28.5", False),
        ("1.7.28-1", "1.7.28", True),
    ],
)
def test_version_is_told_from_its_neighbours(installed, wanted, same):
    assert is_version(installed, wanted) is same


def test_dockers_packages_push_out_the_distributions():
    found = {"docker.io": ("20.10", True), "containerd": ("1.6", False), "runc": ("1.1", False), "podman-docker": ("4", False)}
    todo = plan(EngineState(release=BOOKWORM, packages=found), "docker", {"docker-ce": "28.5.2", "docker-ce-cli": "28.5.2"})
    assert todo.install == {
        "docker-ce": "28.5.2",
        "docker-ce-cli": "28.5.2",
        "containerd.io": "",
        "docker-compose-plugin": "",
        "docker-buildx-plugin": "",
    }
    assert todo.remove == ("containerd", "docker.io", "podman-docker")
    assert set(todo.hold) == set(todo.install)


def test_what_is_there_and_held_needs_nothing():
    found = {name: HELD for name in ("docker.io", "docker-cli", "docker-compose", "docker-buildx", "containerd")}
    todo = plan(EngineState(release=TRIXIE, packages=found), "distribution", {})
    assert (todo.install, todo.remove, todo.hold) == ({}, (), ())
    todo = plan(EngineState(release=TRIXIE, packages=found), "distribution", {}, buildx="no")
    assert todo.remove == ("docker-buildx",)


def test_parser_of_apparmor_comes_where_the_kernel_has_it():
    todo = plan(EngineState(release=BOOKWORM, apparmor=True), "distribution", {})
    assert set(todo.install) == {"docker.io", "apparmor"}
    assert "apparmor" not in todo.hold


def test_what_the_source_lacks_is_refused():
    with pytest.raises(OperationError, match="debian 12 has no Compose v2 among its own packages"):
        plan(EngineState(release=BOOKWORM), "distribution", {}, compose="yes")
    with pytest.raises(OperationError, match="debian 11: its own packages are not known"):
        plan(EngineState(release=("debian", "11")), "distribution", {})
    assert "docker-compose-plugin" in plan(EngineState(release=BOOKWORM), "docker", {}, compose="yes").install


# --- daemon.json ---------------------------------------------------------------------------------------------------


def running_on(options, **more):
    """The state of an engine that we brought to these options."""
    keys = {key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest() for key, value in options.items()}
    sha256 = hashlib.sha256(text(options).encode()).hexdigest()
    stamp = (content_hash([("/etc/docker/daemon.json", sha256)]), "i1")
    given = {"daemon_keys": keys, "daemon_sha256": sha256, "stamp": stamp, "invocation": "i1", **more}
    return EngineState(active="active", version="26.1.5", **given)


@pytest.mark.parametrize(
    ("now", "wanted", "chosen"),
    [
        ({"registry-mirrors": []}, {"registry-mirrors": ["https://m"]}, "reload"),
        ({"registry-mirrors": ["https://m"]}, {"registry-mirrors": []}, "reload"),
        ({}, {"registry-mirrors": ["https://m"]}, "reload"),
        # A reload keeps the value of a key that it does not find …
        ({"registry-mirrors": ["https://m"]}, {}, "restart"),
        # … but for these.
        ({"max-concurrent-downloads": 6}, {}, "reload"),
        ({"log-driver": "json-file"}, {"log-driver": "local"}, "restart"),
        ({"debug": False}, {"debug": True, "log-driver": "local"}, "restart"),
    ],
)
def test_reload_where_it_does(now, wanted, chosen):
    assert action(running_on(now), wanted) == chosen


def test_restart_where_it_is_not_known_what_the_engine_runs_on():
    wanted = {"debug": True}
    assert action(running_on({"debug": False}, invocation="i2"), wanted) == "restart"
    assert action(running_on({"debug": False}, stamp=()), wanted) == "restart"
    assert action(running_on({"debug": False}, daemon_sha256="changed by hand"), wanted) == "restart"


def test_reload_where_the_file_alone_was_changed():
    state = running_on(OPTIONS, daemon_keys={}, daemon_sha256="changed by hand")
    assert action(state, OPTIONS) == "reload"


def test_options_are_fitted_to_the_engine():
    options = {"ip6tables": True, "default-network-opts": {"bridge": {}}}
    assert fitted(options, "20.10.24+dfsg1") == {"ip6tables": True, "experimental": True}
    assert fitted(options, "26.1.5+dfsg1") == {**options, "experimental": True}
    assert fitted(options, "28.5.2") == options
    assert (number("20.10.24+dfsg1"), number("28.5.2"), number("")) == ((20, 10), (28, 5), (0,))


def test_probe_asks_for_what_a_reload_changes():
    asked = probe({"live-restore": True, "debug": False, "registry-mirrors": ["https://m"], "insecure-registries": ["r:5000"]})
    assert asked.endswith("test \"${said#*|}\" = 'true|false|https://m/ |false'")
    assert '{{with index .RegistryConfig.IndexConfigs "r:5000"}}{{.Secure}}{{end}}' in asked


# --- what runs on the host -----------------------------------------------------------------------------------------

sources = runpy.run_path(str(ROOT / "files/engine/sources.py"))
openpgp = runpy.run_path(str(ROOT / "files/engine/openpgp.py"))


@pytest.mark.parametrize(
    ("path", "text", "left"),
    [
        ("a.list", "deb https://download.docker.com/linux/debian bookworm stable\n", ""),
        ("a.list", "deb [arch=amd64 signed-by=/x.gpg] https://download.docker.com/linux/debian bookworm stable\n", ""),
        ("a.list", "deb-src [ arch=amd64 ] https://mirror.example.org/docker-ce/linux/debian x stable\n", ""),
        ("a.list", "# deb https://download.docker.com/linux/debian x stable\n", None),
        ("a.list", "deb http://deb.example.org/debian x main\ndeb http://lab/linux/debian x stable\n", "deb http://deb.example.org/debian x main\n"),
        ("a.list", "deb http://deb.example.org/docker-central x main\n", None),
        ("a.sources", "Types: deb\nURIs: https://download.docker.com/linux/debian\nSuites: x\n", ""),
        (
            "a.sources",
            "Types: deb\nURIs: http://a/debian\nSuites: x\n\nTypes: deb\nURIs: https://download.docker.com/linux/debian\nSuites: x\n",
            "Types: deb\nURIs: http://a/debian\nSuites: x\n",
        ),
        (
            "a.sources",
            "Types: deb\nURIs: http://a/debian\n  https://download.docker.com/linux/debian\nSuites: x\n",
            "Types: deb\nURIs: http://a/debian\nSuites: x\n",
        ),
        ("/etc/apt/sources.list.d/docker.sources", "Types: deb\nURIs: http://a/debian\n", ""),
        ("a.sources", "Types: deb\nURIs: http://a/debian\n\n\nTypes: deb\nURIs: http://b/debian\n", None),
    ],
)
def test_sources_of_docker_go_and_others_stay(path, text, left):
    assert sources["without_docker"](path, text, "http://lab/linux") == (text if left is None else left)


# A key made for this test; nobody has its secret half.
KEY = b"""-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawKR6hYJKwYBBAHaRw8BAQdAg8Gm1KEh67vC3siQHhsgkvWesdiIc8UUNk7g
ZGrv4su0GFRlc3QgPHRlc3QyQGV4YW1wbGUub3JnPoiQBBMWCAA4FiEEB97KWwJO
embcBcHdVt8XDN+1LaQFAmsCkeoCGwMFCwkIBwIGFQoJCAsCBBYCAwECHgECF4AA
CgkQVt8XDN+1LaSx+AEAvRundjG7uOhBo3uAmmAMRNIaIcZmHuo/LnmXbk5GGSEB
AMzuNTIM43OJN0vSJVTz1WU7nZpq3AXTdbJWmdU44fkG
=ppB4
-----END PGP PUBLIC KEY BLOCK-----
"""
FINGERPRINT = "07DECA5B024E7A66DC05C1DD56DF170CDFB52DA4"


def test_fingerprint_of_a_key_is_found_armoured_and_binary():
    assert openpgp["fingerprints"](KEY) == [FINGERPRINT]
    assert openpgp["fingerprints"](openpgp["_binary"](KEY)) == [FINGERPRINT]
    # With a newer header, in front of the same key.
    binary = openpgp["_binary"](KEY)
    body = binary[2 : 2 + binary[1]]
    assert openpgp["fingerprints"](bytes([0xC6, len(body)]) + body) == [FINGERPRINT]
    assert openpgp["fingerprints"](bytes([0xC6, 255]) + len(body).to_bytes(4, "big") + body) == [FINGERPRINT]


def test_second_key_in_the_file_is_seen():
    assert openpgp["fingerprints"](KEY + KEY) == [FINGERPRINT, FINGERPRINT]
    binary = openpgp["_binary"](KEY)
    assert openpgp["fingerprints"](binary + binary) == [FINGERPRINT, FINGERPRINT]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"<html>", b"\x99\xff\xff\x04", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n????\n"])
def test_what_is_no_key_has_no_fingerprint(content):
    assert openpgp["fingerprints"](content) == []


def test_fact_reads_what_the_host_says():
    said = {
        "system": {"id": "debian", "version_id": "12", "version_codename": "bookworm"},
        "packages": {"docker.io": ["20.10", True]},
        "sources": ["/etc/apt/sources.list"],
        "source_sha256": "",
        "keys": ["A" * 40],
        "apparmor": True,
        "snap": False,
        "version": "20.10.24+dfsg1",
        "load": "loaded",
        "active": "active",
        "enabled": "enabled",
        "invocation": "i",
        "replaced": False,
        "daemon_keys": {"debug": "x"},
        "daemon_sha256": "y",
        "stamp": ["h", "i"],
    }
    state = parse(json.dumps(said))
    assert (state.release, state.codename, state.packages["docker.io"]) == (BOOKWORM, "bookworm", ("20.10", True))
    assert state.stamp == ("h", "i")


# --- settings ------------------------------------------------------------------------------------------------------


def docker(**data):
    return load_host("web1", [], data, resolve=False).docker


def test_defaults_are_dockers_own_packages_pinned_by_number_and_key():
    settings = docker()
    assert (settings.source, settings.engine_version) == ("docker", "28.5.2")
    assert settings.key_fingerprint == "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"
    assert docker(docker_source="distribution").engine_version == ""
    assert docker(docker_key_fingerprint="9dc8 5822 9fc7 dd38 854a  e2d8 8d81 803c 0ebf cd88") == settings


def test_daemon_options_of_the_settings():
    assert daemon_options(docker()) == {
        "debug": False,
        "insecure-registries": [],
        "labels": [],
        "live-restore": True,
        "log-driver": "json-file",
        "log-opts": {"max-file": "3", "max-size": "10m"},
        "registry-mirrors": [],
    }
    found = daemon_options(
        docker(
            docker_log_driver="journald",
            docker_address_pools=[{"base": "172.30.0.0/16", "size": 24}],
            docker_ipv6_network="fd00:d0c::/64",
            docker_publish_address="127.0.0.1",
            docker_registry_mirrors=["https://mirror.example.org/"],
            docker_daemon={"debug": True, "max-concurrent-downloads": 6},
        )
    )
    assert "log-opts" not in found
    assert found["default-address-pools"] == [{"base": "172.30.0.0/16", "size": 24}]
    assert (found["ipv6"], found["fixed-cidr-v6"], found["ip6tables"]) == (True, "fd00:d0c::/64", True)
    assert found["ip"] == "127.0.0.1"
    assert found["registry-mirrors"] == ["https://mirror.example.org"]
    assert (found["debug"], found["max-concurrent-downloads"]) == (True, 6)


REFERENCE = "write a reference: 'env:NAME', 'file:PATH#KEY', 'sops:PATH#KEY' or 'age:PATH#KEY'"
ACCOUNT = {"username": "puller", "password": "env:REGISTRY_PASSWORD"}
BAD = {
    "source": ({"docker_source": "snap"}, "docker_source: must be 'docker' or 'distribution' on host web1, got 'snap'"),
    "version": ({"docker_version": "latest"}, "docker_version: must be a version such as '28.5.2' on host web1, got 'latest'"),
    "version of the distribution": (
        {"docker_source": "distribution", "docker_version": "28.5.2"},
        "docker_version: must be empty when docker_source is 'distribution' on host web1, got '28.5.2'",
    ),
    "fingerprint that is short": (
        {"docker_key_fingerprint": "0EBFCD88"},
        "docker_key_fingerprint: must be the whole fingerprint of a key, 40 hexadecimal digits on host web1, got '0EBFCD88'",
    ),
    "repository": (
        {"docker_repository": "ftp://x"},
        "docker_repository: must be an http:// or https:// URL on host web1, got 'ftp://x'",
    ),
    "repository with a password": (
        {"docker_repository": "https://a:b@x/linux"},
        "docker_repository: must not hold a password on host web1",
    ),
    "compose": (
        {"docker_compose": True},
        "docker_compose: must be 'yes', 'no' or 'available' on host web1, got True",
    ),
    "log driver": (
        {"docker_log_driver": "jornald"},
        "docker_log_driver: must be 'json-file', 'local' or 'journald' on host web1, got 'jornald', did you mean 'journald'?",
    ),
    "log size": ({"docker_log_max_size_mb": 0}, "docker_log_max_size_mb: must be at least 1 on host web1, got 0"),
    "mirror with a path": (
        {"docker_registry_mirrors": ["https://m.example.org/v2"]},
        "docker_registry_mirrors[0]: must be the URL of a registry without a path on host web1, got "
        "'https://m.example.org/v2', write https://m.example.org",
    ),
    "mirror without a scheme": (
        {"docker_registry_mirrors": ["m.example.org"]},
        "docker_registry_mirrors[0]: must be an http:// or https:// URL on host web1, got 'm.example.org'",
    ),
    "insecure registry with a scheme": (
        {"docker_insecure_registries": ["http://r.example.org"]},
        "docker_insecure_registries[0]: must be the name of a registry, not a URL on host web1, got "
        "'http://r.example.org', write 'r.example.org'",
    ),
    "insecure network": (
        {"docker_insecure_registries": ["10.0.0.1/8"]},
        "docker_insecure_registries[0]: must be the name of a registry, or a network such as '10.0.0.0/8' on host web1, "
        "got '10.0.0.1/8'",
    ),
    "pool": (
        {"docker_address_pools": [{"base": "172.30.0.0/16", "size": 12}]},
        "docker_address_pools[0].size: must be from 16 to 30 within 172.30.0.0/16 on host web1, got 12",
    ),
    "pools that overlap": (
        {"docker_address_pools": [{"base": "172.30.0.0/16", "size": 24}, {"base": "172.30.4.0/22", "size": 24}]},
        "docker_address_pools[1].base: must not overlap 172.30.0.0/16 on host web1, got '172.30.4.0/22'",
    ),
    "ipv6": (
        {"docker_ipv6_network": "10.0.0.0/8"},
        "docker_ipv6_network: must be an IPv6 network of /80 or larger such as 'fd00:d0c::/64' on host web1, got '10.0.0.0/8'",
    ),
    "address": (
        {"docker_publish_address": "localhost"},
        "docker_publish_address: must be an IP address such as '127.0.0.1', or empty for all addresses on host web1, got "
        "'localhost'",
    ),
    "key of a setting": (
        {"docker_daemon": {"live-restore": False}},
        "docker_daemon.live-restore: must be set by docker_live_restore on host web1",
    ),
    "key that closes the engine": (
        {"docker_daemon": {"hosts": ["tcp://0.0.0.0:2375"]}},
        "docker_daemon.hosts: must not be set: the engine's unit names its socket, with both it does not start; a TCP "
        "socket is root for whoever reaches it on host web1",
    ),
    "registry that is a URL": (
        {"docker_registries": {"https://r.example.org/v2": ACCOUNT}},
        "docker_registries.https://r.example.org/v2: must be the name of a registry, not a URL on host web1, got "
        "'https://r.example.org/v2', write 'r.example.org'",
    ),
    "password in the inventory": (
        {"docker_registries": {"r.example.org": {"username": "u", "password": "hunter2"}}},
        f"docker_registries.r.example.org.password: must be a reference to a secret, not the secret itself on host web1, {REFERENCE}",
    ),
    "private key for a ca": (
        {"docker_registries": {"r.example.org": {**ACCOUNT, "ca": "-----BEGIN PRIVATE KEY-----"}}},
        "docker_registries.r.example.org.ca: must be certificates, this holds a private key on host web1",
    ),
    "in and out": (
        {"docker_registries": {"r.example.org": ACCOUNT}, "docker_removed_registries": ["r.example.org"]},
        "docker_removed_registries: must not name a registry of docker_registries on host web1, got 'r.example.org'",
    ),
    "bridges": ({"docker_bridges": []}, "docker_bridges: must not be empty on host web1, got []"),
    "bridge": (
        {"docker_bridges": ["br *"]},
        "docker_bridges[0]: must be the name of an interface, or its beginning and '*' on host web1, got 'br *'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_and_what_is_said(case):
    data, said = BAD[case]
    with pytest.raises(SettingsError) as error:
        docker(**data)
    assert str(error.value).splitlines() == [said]


@pytest.mark.parametrize(
    "programs",
    [
        ("engine/openpgp.py", "engine/sources.py", "engine/keep.py", "engine/detour.py", "engine/install.py"),
        ("engine/openpgp.py", "engine/sources.py", "engine/state.py"),
        ("engine/keep.py", "engine/detour.py", "engine/before_restart.py"),
        ("engine/detour.py", "engine/after_restart.py"),
        ("registry/accounts.py", "registry/state.py"),
        ("registry/accounts.py", "registry/login.py"),
    ],
)
def test_programs_that_run_as_one_share_no_name(programs):
    found = []
    for program in programs:
        tree = ast.parse((ROOT / "files" / program).read_text())
        found += [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert len(found) == len(set(found)), sorted(found)


def test_nginx_is_led_past_the_proxies_and_back(tmp_path, monkeypatch):
    """Only what is published on loopback, names a container that answers, and stands in an upstream."""
    detour = runpy.run_path(str(ROOT / "files/engine/detour.py"))
    names = detour["lead_back"].__globals__
    shop, other = tmp_path / "shop.conf", tmp_path / "other.conf"
    was = "upstream shop {\n    server 127.0.0.1:18000;\n    server 127.0.0.1:18001 backup;\n}\n"
    shop.write_text(was)
    other.write_text("upstream other {\n    server 127.0.0.1:8000;\n}\n")
    served: list[dict[str, str]] = []

    def serve(texts: dict[str, str]) -> None:
        served.append(texts)
        for path, content in texts.items():
            Path(path).write_text(content)

    for key, value in {
        "_UPSTREAMS": str(tmp_path / "*.conf"), "_SERVES": str(shop), "_KEPT": str(tmp_path / "kept.json"), "_SECONDS": 0,
        "_said": lambda *command: "active" if command[0] == "systemctl" else "",
        "_addresses": lambda: {"18000": "172.18.0.5:8000", "18001": "172.18.0.6:8000", "5555": "172.18.0.9:5555"},
        "_answers": lambda address: address != "172.18.0.6:8000", "_serve": serve,
        "_know_names": lambda: None, "forget_names": lambda: None,
    }.items():  # fmt: skip
        monkeypatch.setitem(names, key, value)
    detour["lead_past_the_proxies"]()
    assert served == [{str(shop): was.replace("127.0.0.1:18000", "172.18.0.5:8000")}]
    assert (tmp_path / "kept.json").exists()
    detour["lead_back"]()
    assert shop.read_text() == was
    assert not (tmp_path / "kept.json").exists()
    detour["lead_back"]()
    assert len(served) == 2

    # a run was killed between the two, and another one switched the upstream since
    detour["lead_past_the_proxies"]()
    switched = was.replace("18000", "18200")
    shop.write_text(switched)
    detour["lead_back"]()
    assert (shop.read_text(), len(served)) == (switched, 3)
    assert not (tmp_path / "kept.json").exists()


@pytest.mark.parametrize(
    ("fault", "runs", "values", "order"),
    [
        ("", True, {"install": {"docker-ce": ""}}, ["update", "keep", "past", "install", "run", "back"]),
        ("", True, {"restart": True}, ["keep", "past", "run", "back"]),
        ("", True, {"hold": ["docker-ce"]}, ["hold", "run", "back"]),
        ("", True, {"install": {"docker-ce": ""}, "keep_containers": False}, ["update", "install", "run", "back"]),
        ("", False, {"install": {"docker-ce": ""}}, ["update", "install", "run", "back"]),
        ("install", True, {"install": {"docker-ce": ""}}, ["update", "keep", "past", "install", "back"]),
        ("run", True, {"remove": ["docker.io"]}, ["update", "keep", "past", "install", "run"]),
    ],
)
def test_requests_go_past_the_engine_while_its_packages_change(monkeypatch, fault, runs, values, order):
    """And back when it answers; one that stays down leaves them where they reach the containers."""
    install = runpy.run_path(str(ROOT / "files/engine/install.py"))
    seen: list[str] = []

    def step(name: str, answer: object = None):
        def take(*words: object) -> object:
            seen.append(name)
            if name == fault:
                raise SystemExit(name)
            return answer

        return take

    for key, value in {
        "_set_sources": lambda values: False, "_finish_interrupted": lambda: None, "_update": step("update", ""),
        "keep_containers": step("keep"), "lead_past_the_proxies": step("past"), "lead_back": step("back"),
        "_install": step("install"), "_must": step("hold"), "_have_it_run": step("run"),
        "_is_replaced_on_disk": lambda: False, "_engine_runs": lambda: runs and not (fault == "run" and "run" in seen),
    }.items():  # fmt: skip
        monkeypatch.setitem(install["main"].__globals__, key, value)
    given = {"install": {}, "remove": [], "hold": [], "restart": False, "keep_containers": True, "daemon_json": ""} | values
    if fault:
        with pytest.raises(SystemExit, match=fault):
            install["main"](given)
    else:
        install["main"](given)
    assert seen == order


def test_containers_know_the_names_of_their_own_networks_while_the_engine_restarts(tmp_path):
    detour = runpy.run_path(str(ROOT / "files/engine/detour.py"))

    def there(name: str, **networks: str) -> dict[str, object]:
        on = {network: {"IPAddress": address, "Aliases": [name, "a" * 12]} for network, address in networks.items()}
        return {"Id": name, "Name": f"/shop-{name}", "NetworkSettings": {"Networks": on}}

    api, database = there("api", shop="172.18.0.3", bridge="172.17.0.2"), there("db", shop="172.18.0.2", bridge="172.17.0.3")
    other = there("other", elsewhere="172.19.0.2")
    lines = detour["names_for"](api, [api, database, other])
    assert lines == f"# hostwright >>>\n172.18.0.2 shop-db db {'a' * 12}\n# <<< hostwright\n"
    assert detour["names_for"](other, [api, database, other]) == ""

    hosts = tmp_path / "containers" / "1" / "hosts"
    hosts.parent.mkdir(parents=True)
    hosts.write_text(f"127.0.0.1 localhost\n{lines}172.18.0.3 api\n")
    inode = hosts.stat().st_ino
    exec(detour["_FORGET"].replace("/var/lib/docker", str(tmp_path)), {})
    assert (hosts.read_text(), hosts.stat().st_ino) == ("127.0.0.1 localhost\n172.18.0.3 api\n", inode)
