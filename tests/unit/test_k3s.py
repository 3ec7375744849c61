"""Versions, refusals, rules and settings of k3s: what needs no host."""

import hashlib
import http.server
import json
import threading
import time
from pathlib import Path

import pytest
import yaml

from facts.k3s import ClusterNode, K3sHostState, K3sState, parse_host, parse_state
from operations import k3s
from operations.k3s import (
    Release,
    _description,
    _Node,
    accept_rules,
    host_faults,
    number,
    oracle_chains,
    refusals,
)
from settings import SettingsError, load_fleet
from settings.secret import Secret

SUM = "a" * 64
TOKEN = "a-token-of-the-unit-test"
RELEASE = Release("v1.33.5+k3s1", {"amd64": SUM, "arm64": "b" * 64})


def node(role="server", **differs):
    values = {
        "role": role, "node_name": "k1", "release": RELEASE, "token": Secret(TOKEN), "config": {"cluster-init": True} if role == "server" else {},
        "labels": {}, "taints": (), "registries": None, "registry_cas": {}, "join": "", "control": "", "start_seconds": 60, "drain_seconds": 60,
    }  # fmt: skip
    return _Node(**{**values, **differs})


def state(**differs):
    return K3sState(**{"architecture": "amd64", **differs})


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


# --- releases and versions -------------------------------------------------------------------------------------------


def test_versions_are_compared_as_numbers():
    assert number("v1.33.10+k3s1") > number("v1.33.9+k3s2")
    assert number("v1.33.5+k3s2") > number("v1.33.5+k3s1")
    assert number("unknown") == ()


def test_the_program_of_an_architecture_has_its_address():
    assert RELEASE.program_url("amd64") == f"{k3s.RELEASES}/v1.33.5%2Bk3s1/k3s"
    assert Release("v1.33.5+k3s1", {"arm64": SUM}, "file:///srv/k3s/").program_url("arm64") == "file:///srv/k3s/v1.33.5%2Bk3s1/k3s-arm64"


@pytest.mark.parametrize(
    ("release", "said"),
    [
        (Release("1.33.5", {"amd64": SUM}), "version must be like 'v1.33.5+k3s1', got '1.33.5'"),
        (Release(1.33, {"amd64": SUM}), "version must be like"),
        (Release("v1.33.5+k3s1", {}), "sums must hold"),
        (Release("v1.33.5+k3s1", {"x86_64": SUM}), "must be 'amd64' or 'arm64', got 'x86_64'"),
        (Release("v1.33.5+k3s1", {"amd64": "abc"}), "sums.amd64 must be 64 hexadecimal digits"),
        (Release("v1.33.5+k3s1", {"amd64": SUM}, "ftp://x"), "url must be"),
        (Release("v1.33.5+k3s1", {"amd64": SUM}, "https://user:word@x"), "without an account"),
        (Release("v1.33.5+k3s1", {"amd64": SUM}, images="x.tar"), "go together"),
        (Release("v1.33.5+k3s1", {"amd64": SUM}, images="../x.tar", images_sha256=SUM), "images must be the name"),
    ],
)
def test_bad_releases_are_named(release, said):
    assert any(said in fault for fault in release.faults()), release.faults()
    assert RELEASE.faults() == []


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"node_name": "K1"}, "node_name must be lower-case"),
        ({"token": Secret("short")}, "token must be a Secret of 16"),
        ({"token": Secret("K10abcdef0123456789")}, "token must be"),
        ({"token": Secret("with a blank in its midst")}, "token must be"),
        ({"join": "k1:6443"}, "the server must be like 'https://k1.example.org:6443', got 'k1:6443'"),
        ({"labels": {"a b": "c"}}, "not a label: 'a b'"),
        ({"labels": {"a": "ü"}}, "not a label"),
        ({"taints": ("a:NoWhere",)}, "taints: must be like 'key=value:NoSchedule', got 'a:NoWhere'"),
        ({"extra": {"token": "x"}}, "config.token: is written by the operation itself"),
        ({"drain_seconds": 1}, "drain_seconds must be"),
    ],
)
def test_bad_nodes_are_named(differs, said):
    assert any(said in fault for fault in node(**differs).faults()), node(**differs).faults()
    assert node().faults() == []


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_fresh_host_is_not_refused():
    assert refusals(node(), state(), None) == []


@pytest.mark.parametrize(
    ("role", "found", "nodes", "said"),
    [
        ("server", {"architecture": "riscv64"}, None, "must have a sum for riscv64"),
        ("server", {"agent_unit": True}, None, "this host is a k3s agent: it must be taken out first"),
        ("agent", {"server_unit": True}, None, "this host is a k3s server"),
        ("server", {"begun": True, "datastore": "etcd", "kept_token_sha256": digest("another")}, None, "token: must be the one that the cluster has"),
        ("server", {"installed": "v1.33.6+k3s1"}, None, "must not go back from v1.33.6+k3s1 to v1.33.5+k3s1"),
        ("agent", {"installed": "v1.34.0+k3s1"}, None, "must not go back"),
        ("server", {"installed": "v1.31.9+k3s1"}, None, "one minor version at a time, got v1.33.5+k3s1 after v1.31.9+k3s1: go to v1.32 first"),
        ("agent", {}, {"s": ClusterNode("v1.32.1+k3s1", ready=True, server=True)}, "an agent must not be newer than a server, got v1.33.5+k3s1 and v1.32.1+k3s1 on s"),
        ("server", {}, {"w": ClusterNode("v1.29.1+k3s1", ready=True)}, "more than three minor versions ahead of an agent"),
    ],
)
def test_what_a_node_must_not_become_is_refused(role, found, nodes, said):
    lines = refusals(node(role), state(**found), nodes)
    assert any(said in line for line in lines), lines


def test_what_is_allowed_is_not_refused():
    kept = {"begun": True, "datastore": "etcd", "kept_token_sha256": digest(TOKEN)}
    assert refusals(node(), state(installed="v1.32.9+k3s1", **kept), {"w": ClusterNode("v1.31.1+k3s1", ready=True)}) == []
    assert refusals(node("agent"), state(installed="v1.30.1+k3s1"), {"s": ClusterNode("v1.33.5+k3s1", ready=True, server=True)}) == []
    # the node itself, while it is restarted, is not one that has to be Ready
    assert refusals(node(), state(installed="v1.33.4+k3s1"), {"k1": ClusterNode("v1.33.4+k3s1", ready=False)}) == []


def test_etcd_is_not_given_up_for_sqlite():
    kept = {"begun": True, "datastore": "etcd", "kept_token_sha256": digest(TOKEN)}
    assert any("must stay etcd" in line for line in refusals(node(config={}), state(**kept), None))
    assert refusals(node(config={"server": "https://k1:6443"}, join="https://k1:6443"), state(**kept), None) == []


# --- labels and taints -----------------------------------------------------------------------------------------------


def test_only_our_labels_and_taints_are_changed():
    wanted = node(labels={"a": "1"}, taints=("x=y:NoSchedule",))
    bare = ClusterNode(labels={"theirs": "2"}, taints=("their:NoExecute",))
    assert _description(wanted, bare)["owned"] == {}
    owned = json.dumps({"labels": ["a"], "taints": ["x=y:NoSchedule"]})
    done = ClusterNode(labels={"theirs": "2", "a": "1"}, taints=("their:NoExecute", "x=y:NoSchedule"), annotations={"hostwright/described": owned})
    assert _description(wanted, done) == {}
    assert _description(node(), done)["owned"] == {"labels": ["a"], "taints": ["x=y:NoSchedule"]}
    assert _description(node(), bare) == {}
    changed = ClusterNode(labels={"a": "by hand"}, taints=("x=y:NoSchedule",), annotations={"hostwright/described": owned})
    assert _description(wanted, changed)["labels"] == {"a": "1"}


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_files_that_hold_secrets_are_closed_and_show_none():
    made = node(registries=Secret("{}"), registry_cas={"r.example.org:5000": "PEM"}, config={"token-file": "/etc/rancher/k3s/token"})
    files = {entry.path: entry for entry in [*made.before(), *made.started_on()]}
    assert files["/etc/rancher/k3s/token"].data == (TOKEN + "\n").encode()
    for name in ("token", "config.yaml", "registries.yaml"):
        assert files[f"/etc/rancher/k3s/{name}"].mode == "0600"
    assert files["/etc/rancher/k3s/registries/r.example.org_5000.pem"].content == "PEM"
    assert TOKEN not in repr(files)
    assert TOKEN not in made.probe()
    assert files["/usr/local/bin/k3s"].target == "/usr/local/lib/hostwright/k3s/v1.33.5+k3s1/k3s"


def test_labels_and_taints_are_in_a_file_that_restarts_nothing():
    made = node(labels={"a": "1"}, taints=("x=y:NoSchedule",))
    described = yaml.safe_load(made.described())
    assert described == {"node-label": ["a=1"], "node-taint": ["x=y:NoSchedule"]}
    assert [entry.path for entry in made.before()] == ["/etc/rancher", "/etc/rancher/k3s", "/etc/rancher/k3s/config.yaml.d",
                                                      "/etc/rancher/k3s/token", "/etc/rancher/k3s/config.yaml.d/50-hostwright-node.yaml"]  # fmt: skip
    assert made.started_on() == node().started_on()


def test_an_agent_does_not_hold_up_the_boot():
    units = {role: node(role).started_on()[-1].content for role in ("server", "agent")}
    assert "Type=notify" in units["server"]
    assert "Type=exec" in units["agent"]
    assert "KillMode=process" in units["agent"]


# --- the host --------------------------------------------------------------------------------------------------------

GOOD = K3sHostState(cgroup=2, controllers=("cpu", "memory"), rules={"INPUT": ["-P INPUT ACCEPT"], "FORWARD": ["-P FORWARD ACCEPT"]})
ORACLE = ["-P INPUT ACCEPT", "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT", "-A INPUT -j REJECT --reject-with icmp-host-prohibited"]


def host(**differs):
    return K3sHostState(**{**GOOD.__dict__, **differs})


@pytest.mark.parametrize(
    ("found", "more", "said"),
    [
        ({"cgroup": 1}, {"version": "v1.35.0+k3s1"}, "cgroup version: must be 2 for k3s v1.35.0+k3s1"),
        ({"cgroup": 2}, {"cgroup_versions": (1,)}, "cgroup version: must be 1, got 2"),
        ({"controllers": ("cpu",)}, {}, "must have the memory controller, got cpu"),
        ({"missing": ("br_netfilter",)}, {}, "kernel: must have br_netfilter"),
        ({"swaps": ("/swapfile",)}, {}, "swap: must be off"),
        ({"firewalld": True}, {}, "must not be firewalld"),
        ({"rules": {"INPUT": ORACLE}}, {"ufw": True}, "must be ufw or the rules that Oracle's image came with"),
        ({"saved_rules": tuple(ORACLE)}, {"ufw": True}, "must be ufw or the rules"),
    ],
)
def test_what_the_host_lacks_is_named(found, more, said):
    given = {"version": "v1.34.2+k3s1", **more}
    assert any(said in line for line in host_faults(host(**found), **given)), host_faults(host(**found), **given)
    assert host_faults(GOOD, "v1.35.0+k3s1") == []


def test_what_was_settled_otherwise_is_no_fault():
    assert host_faults(host(cgroup=1), "v1.34.2+k3s1") == []
    assert host_faults(host(cgroup=1), "v1.35.0+k3s1", fails_cgroup_v1=False) == []
    assert host_faults(host(swaps=("/swapfile",)), "v1.34.2+k3s1", allow_swap=True) == []
    assert host_faults(host(missing=("vxlan",)), "v1.34.2+k3s1", vxlan=False) == []
    assert host_faults(host(rules={"INPUT": ORACLE}), "v1.34.2+k3s1") == []


def test_rules_are_as_iptables_prints_them():
    rules = accept_rules([(2567, "tcp", ()), (8472, "udp", ("10.0.0.0/8", "fd00::/8"))], ["10.42.0.0/16"])
    mark = '-m comment --comment "hostwright k3s" -j ACCEPT'
    assert rules["INPUT"] == [f"-p tcp -m tcp --dport 2567 {mark}", f"-s 10.0.0.0/8 -p udp -m udp --dport 8472 {mark}", f"-s 10.42.0.0/16 {mark}"]
    assert rules["FORWARD"] == [f"-s 10.42.0.0/16 {mark}", f"-d 10.42.0.0/16 {mark}"]
    assert oracle_chains(host(rules={"INPUT": ORACLE, "FORWARD": []})) == ["INPUT"]


@pytest.mark.parametrize(
    ("found", "accepted"),
    [
        (["-P INPUT ACCEPT", *[f"-A INPUT {rule}" for rule in accept_rules([(1, "tcp", ())], [])["INPUT"]], ORACLE[2]], True),
        ([ORACLE[2], *[f"-A INPUT {rule}" for rule in accept_rules([(1, "tcp", ())], [])["INPUT"]]], False),
        ([ORACLE[2]], False),
        ([*[f"-A INPUT {rule}" for rule in accept_rules([(1, "tcp", ()), (2, "tcp", ())], [])["INPUT"]], ORACLE[2]], False),
    ],
)
def test_rules_count_only_in_front_of_the_reject(found, accepted):
    assert k3s._accepted(host(rules={"INPUT": found}), {"INPUT": accept_rules([(1, "tcp", ())], [])["INPUT"]}) is accepted


def saved_lines(lines, chain, wanted):
    names: dict = {}
    exec(Path(k3s.__file__).parents[1].joinpath("files/k3s/accept.py").read_text(), names)
    return names["saved"](lines, chain, wanted)


def test_saved_rules_are_put_before_the_reject_of_the_filter_table():
    text = ["*nat", ":INPUT ACCEPT", "COMMIT", "*filter", "-A INPUT -i lo -j ACCEPT", "-A INPUT -j REJECT --reject-with x", "-A FORWARD -j REJECT", "COMMIT"]
    once = saved_lines(text, "INPUT", ['-p tcp -m comment --comment "hostwright k3s" -j ACCEPT'])
    assert once == [*text[:5], '-A INPUT -p tcp -m comment --comment "hostwright k3s" -j ACCEPT', *text[5:]]
    assert saved_lines(once, "INPUT", []) == text
    assert saved_lines(["*filter", "COMMIT"], "FORWARD", ["-j ACCEPT"]) == ["*filter", "-A FORWARD -j ACCEPT", "COMMIT"]


# --- facts -----------------------------------------------------------------------------------------------------------


def test_facts_are_read():
    about = {"version": "v1", "architecture": "amd64", "ready": True, "schedulable": True, "labels": {}, "annotations": {}, "taints": ["a:NoExecute"], "server": True}
    plain = {field: getattr(K3sState(), field) for field in K3sState.__dataclass_fields__}
    found = parse_state(json.dumps({**plain, "snapshots": ["one"], "nodes": {"k1": about}}))
    assert found.nodes == {"k1": ClusterNode(**{**about, "taints": ("a:NoExecute",)})}
    assert found.snapshots == ("one",)
    assert parse_state(json.dumps({**plain, "snapshots": [], "nodes": None})).nodes is None
    assert parse_host(json.dumps({"cgroup": 2, "controllers": ["memory"], "rules": {"INPUT": []}})).controllers == ("memory",)


# --- settings --------------------------------------------------------------------------------------------------------

DATA = {"k3s_version": "v1.33.5+k3s1", "k3s_sums": {"amd64": SUM}, "k3s_token": "env:HOSTWRIGHT_TEST_TOKEN", "backup_password": "env:HOSTWRIGHT_TEST_TOKEN"}


def fleet(*hosts, **all_data):
    listed = [(name, [f"k3s_{role}"], {**DATA, "ssh_hostname": name, **all_data, **data}) for name, role, data in hosts]
    return load_fleet(listed)


def faults(*hosts, **all_data):
    with pytest.raises(SettingsError) as caught:
        fleet(*hosts, **all_data)
    return str(caught.value)


def test_what_runs_on_the_cluster_is_accepted_before_oracles_rules_too(monkeypatch):
    from deploys import k3s as deploy
    from settings import load_host

    others = {
        "codeclashers_registry": "ghcr.io/team", "codeclashers_version": "1.4.0", "codeclashers_s3_bucket_name": "codeclashers-prod",
        **{f"codeclashers_{name}": f"env:{name.upper()}" for name in ("redis_password", "judge0_postgres_password", "mongodb_password", "openai_api_key",
           "internal_service_secret", "bot_service_secret", "colyseus_reservation_secret", "aws_access_key_id", "aws_secret_access_key")},
    }  # fmt: skip
    made = load_host("k1", ["k3s_server", "codeclashers"], {**DATA, **others, "backup_enabled": False}, resolve=False)
    assert (2567, "tcp", ()) in deploy.accepted(made)
    assert 10250 in {port for port, _, _ in deploy.accepted(made)}
    public = {"codeclashers_mongodb_public_sources": ["198.51.100.0/24"]}
    with pytest.raises(SettingsError) as caught:
        load_host("k1", ["k3s_server", "codeclashers"], {**DATA, **others, **public, "backup_enabled": False}, resolve=False)
    assert "k3s_node_ports_closed: must be False with codeclashers_mongodb_public_sources" in str(caught.value)


def test_one_server_needs_little():
    made = fleet(("k1", "server", {}))["k1"]
    assert made.k3s.role == "server"
    assert {(port.port, port.sources) for port in made.k3s.ports()} == {(6443, ("10.42.0.0/16",)), (10250, ("10.42.0.0/16",))}


def test_nodes_are_open_to_nodes_and_the_rest_to_who_is_declared():
    common = {"k3s_node_networks": ["10.0.0.0/24"], "k3s_api_networks": ["192.0.2.0/24"], "k3s_public_ports": [{"port": 2567, "why": "Colyseus"}], "k3s_url": "https://10.0.0.1:6443"}
    made = fleet(("k1", "server", {}), ("w1", "agent", {}), **common)
    ports = {(port.port, port.proto): port.sources for port in made["k1"].k3s.ports()}
    assert ports[6443, "tcp"] == ("192.0.2.0/24", "10.0.0.0/24", "10.42.0.0/16")
    assert ports[8472, "udp"] == ports[2379, "tcp"] == ("10.0.0.0/24",)
    assert ports[2567, "tcp"] == ()
    agent = {(port.port, port.proto) for port in made["w1"].k3s.ports()}
    assert agent == {(10250, "tcp"), (8472, "udp"), (2567, "tcp")}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"k3s_version": ""}, "k3s_version: is required on the nodes of a cluster"),
        ({"k3s_version": "1.33"}, "must be a version such as 'v1.33.5+k3s1'"),
        ({"k3s_sums": {"amd64": "x"}}, "must be a sha256"),
        ({"k3s_api_networks": ["0.0.0.0/0"]}, "must not be everybody"),
        ({"k3s_config": {"write-kubeconfig-mode": "0644"}}, "the kubeconfig is root's alone (0600)"),
        ({"k3s_config": {"tls-san": []}}, "must be set by k3s_tls_san"),
        ({"k3s_public_ports": [{"port": 32017, "why": "MongoDB"}]}, "must not be a NodePort while k3s_node_ports_closed"),
        ({"k3s_service_cidr": "10.42.128.0/17"}, "must not overlap k3s_cluster_cidr"),
        ({"k3s_images": "a.tar"}, "goes with k3s_images"),
        ({"k3s_taints": ["a"]}, "must be like 'judge0=only:NoSchedule'"),
        ({"base_swap_size_mb": 1024}, "base_swap_size_mb: must be 0 on a node of k3s"),
        ({"base_sysctl": {"net.ipv4.ip_forward": "0"}}, "must not be 0: containers need it"),
        ({"k3s_registries": {"https://ghcr.io": {}}}, "must be the name of a registry"),
    ],
)
def test_bad_settings_are_named(data, said):
    assert said in faults(("k1", "server", data))


def test_a_short_token_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv("SHORT", "tooshort")
    from settings import load_host

    with pytest.raises(SettingsError) as caught:
        load_host("k1", ["k3s_server"], {**DATA, "k3s_token": "env:SHORT", "backup_enabled": False})
    assert "must be 16 to 128 letters" in str(caught.value)
    assert "tooshort" not in str(caught.value)


def test_rules_between_nodes():
    assert "an agent needs a host in k3s_server" in faults(("w1", "agent", {}), k3s_url="https://k1:6443")
    two = (("k1", "server", {}), ("k2", "server", {}))
    assert "k3s_first_server: is required with several servers: one of k1, k2" in faults(*two, k3s_url="https://k1:6443")
    assert "must be a host of k3s_server: k1, k2 on hosts k1, k2, got 'k9'" in faults(*two, k3s_url="https://k1:6443", k3s_first_server="k9")
    assert "k3s_url: is required with several nodes" in faults(*two, k3s_first_server="k1")
    assert "must be etcd with several servers" in faults(*two, k3s_url="https://k1:6443", k3s_first_server="k1", k3s_datastore="sqlite")
    assert "must be the same on all nodes" in faults(("k1", "server", {"k3s_url": "https://a:1"}), ("k2", "server", {}), k3s_url="https://k1:6443", k3s_first_server="k1")
    assert fleet(*two, k3s_url="https://k1:6443", k3s_first_server="k1")


# --- the programs of files/k3s, run here -------------------------------------------------------------------------------


def program(name):
    names: dict = {"__name__": name}
    exec(compile(Path(k3s.__file__).parents[1].joinpath(f"files/k3s/{name}.py").read_text(), name, "exec"), names)
    return names


class Trickle(http.server.BaseHTTPRequestHandler):
    """A server that never stops, and never sends much."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 20))
        self.end_headers()
        self.close_connection = True
        try:
            while not self.server.over.wait(0.02):
                self.wfile.write(b"x" * 1000)
        except OSError:
            return

    def log_message(self, *words):
        pass


def test_a_server_that_trickles_is_left_in_time_and_what_came_is_there_before(tmp_path):
    """Blocks that are waited for as a whole end after the deadline: of a megabyte, 21 s after it here."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trickle) as server:
        server.over = threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="not whole after 1 s"):
            program("download")["fetch"](f"http://127.0.0.1:{server.server_port}/k3s", str(tmp_path / "k3s"), 1)
        took = time.monotonic() - began
        server.over.set()
        server.shutdown()
    assert took < 10
    assert 0 < (tmp_path / "k3s").stat().st_size < 1 << 20


class Cluster:
    """Answers files/k3s/node.py as kubectl would."""

    def __init__(self, *pods, budgets=(), others=True, cordoned=False, drains=True, annotations=None):
        self.said: list[str] = []
        ready = {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.33.5+k3s1"}}
        self.node = {"metadata": {"name": "w1", "annotations": annotations or {}}, "spec": {"unschedulable": cordoned}, "status": ready}
        nodes = [self.node, *([{"metadata": {"name": "w2"}, "spec": {}, "status": ready}] if others else [])]
        self.lists = {"node": self.node, "nodes": {"items": nodes}, "pods": {"items": list(pods)}, "poddisruptionbudgets": {"items": list(budgets)}}
        self.drains, self.gone = drains, False

    def __call__(self, *words, check=True, seconds=60):
        if words[0] == "get":
            if "--ignore-not-found" in words and self.gone:
                return type("Done", (), {"stdout": b"", "stderr": b"", "returncode": 0})
            return type("Done", (), {"stdout": json.dumps(self.lists[words[1]]).encode(), "stderr": b"", "returncode": 0})
        self.said.append(" ".join(words[:3]))
        failed = words[0] == "drain" and not self.drains
        return type("Done", (), {"stdout": b"", "stderr": b"Warning: x\nerror: it stays" if failed else b"", "returncode": int(failed)})


def pod(pod_name, owner="ReplicaSet", app="web", at="w1"):
    owners = [{"kind": owner}] if owner else []
    return {"metadata": {"name": pod_name, "namespace": "shop", "labels": {"app": app}, "ownerReferences": owners}, "spec": {"nodeName": at}, "status": {"phase": "Running"}}


def budget(expected, needed, app="web"):
    return {"metadata": {"name": "pdb", "namespace": "shop"}, "spec": {"selector": {"matchLabels": {"app": app}}},
            "status": {"expectedPods": expected, "desiredHealthy": needed}}  # fmt: skip


def leave(cluster, reason="test"):
    names = program("node")
    names["kubectl"] = cluster
    names["main"]({"action": "leave", "node": "w1", "seconds": 10, "reason": reason})


def test_a_node_is_cordoned_marked_and_drained():
    cluster = Cluster(pod("web-1"), budgets=[budget(2, 1)])
    leave(cluster)
    assert cluster.said == ["annotate --overwrite node", "cordon w1", "drain w1 --ignore-daemonsets"]


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (Cluster(pod("web-1"), budgets=[budget(2, 2)]), "PodDisruptionBudget shop/pdb allows no disruption even when all is well (2 pods, 2 must be healthy)"),
        (Cluster(pod("db-0", "StatefulSet", "db"), budgets=[budget(1, 1, "db")]), "(1 pods, 1 must be healthy)"),
        (Cluster(pod("alone", owner="")), "pod shop/alone belongs to nobody"),
    ],
)
def test_what_would_block_a_drain_is_said_before_anything_is_done(cluster, said, capsys):
    with pytest.raises(SystemExit):
        leave(cluster)
    assert said in capsys.readouterr().err
    assert cluster.said == []


@pytest.mark.parametrize(
    ("asks", "blocks"),
    [({"minAvailable": 2}, True), ({"minAvailable": 1}, False), ({"minAvailable": "100%"}, True), ({"minAvailable": "50%"}, False),
     ({"maxUnavailable": 0}, True), ({"maxUnavailable": 1}, False), ({"maxUnavailable": "1%"}, False)],
)  # fmt: skip
def test_a_budget_that_nobody_has_counted_yet_is_taken_by_its_word(asks, blocks):
    new = budget(0, 0)
    new["metadata"]["generation"] = 1
    new["spec"] |= asks
    cluster = Cluster(pod("web-1"), pod("web-2", at="w2"), budgets=[new])
    if blocks:
        with pytest.raises(SystemExit):
            leave(cluster)
        assert cluster.said == []
    else:
        leave(cluster)
        assert "cordon w1" in cluster.said


def test_a_pod_that_is_going_does_not_make_room_in_a_budget():
    """The controller counts it as one of those that it expects when a number must be available (disruption.go)."""
    going = pod("web-0")
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    counted = budget(3, 2)
    counted["spec"]["minAvailable"] = 2
    counted["status"]["observedGeneration"] = 1
    cluster = Cluster(pod("web-1"), pod("web-2", at="w2"), going, budgets=[counted])
    with pytest.raises(SystemExit):
        leave(cluster)
    assert cluster.said == []


def test_budgets_of_other_pods_and_pods_of_the_node_itself_block_nothing():
    cluster = Cluster(pod("web-1"), pod("log", "DaemonSet", "db"), budgets=[budget(1, 1, "db"), budget(0, 0)])
    leave(cluster)
    assert "cordon w1" in cluster.said


def test_a_node_that_is_not_there_or_dead_is_not_drained(capsys):
    cluster = Cluster(pod("web-1"))
    cluster.gone = True
    leave(cluster)
    assert "there is nothing to take out of service" in capsys.readouterr().out
    dead = Cluster(pod("web-1"))
    dead.node["status"] = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
    leave(dead, reason="uninstall")
    assert "its pods are started elsewhere" in capsys.readouterr().out
    assert cluster.said == dead.said == []


def test_the_only_node_is_not_drained(capsys):
    cluster = Cluster(pod("web-1"), budgets=[budget(1, 1)], others=False)
    leave(cluster)
    assert cluster.said == []
    assert "they run on while k3s restarts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "labels", "taints", "moves"),
    [
        ({}, {}, [], True),
        ({}, {}, [{"key": "dedicated", "value": "judge0", "effect": "NoSchedule"}], False),
        ({}, {}, [{"key": "dedicated", "value": "judge0", "effect": "PreferNoSchedule"}], True),
        ({"tolerations": [{"key": "dedicated", "operator": "Equal", "value": "judge0", "effect": "NoSchedule"}]}, {}, [{"key": "dedicated", "value": "judge0", "effect": "NoSchedule"}], True),
        ({"tolerations": [{"key": "dedicated", "operator": "Exists"}]}, {}, [{"key": "dedicated", "value": "judge0", "effect": "NoExecute"}], True),
        ({"tolerations": [{"key": "dedicated", "value": "other"}]}, {}, [{"key": "dedicated", "value": "judge0", "effect": "NoSchedule"}], False),
        ({"nodeSelector": {"dedicated": "judge0"}}, {}, [], False),
        ({"nodeSelector": {"dedicated": "judge0"}}, {"dedicated": "judge0"}, [], True),
    ],
)  # fmt: skip
def test_a_node_whose_pods_no_other_takes_is_not_drained(spec, labels, taints, moves, capsys):
    web = pod("web-1")
    web["spec"] |= spec
    cluster = Cluster(web, pod("log", "DaemonSet"), budgets=[budget(2, 1)])
    other = cluster.lists["nodes"]["items"][1]
    other["metadata"]["labels"], other["spec"]["taints"] = labels, taints
    leave(cluster)
    assert ("cordon w1" in cluster.said) is moves
    assert ("no other node takes shop/web-1; all pods run on" in capsys.readouterr().out) is not moves


def test_a_drain_that_fails_gives_the_node_back(capsys):
    cluster = Cluster(pod("web-1"), drains=False)
    with pytest.raises(SystemExit):
        leave(cluster)
    assert cluster.said[-2:] == ["uncordon w1", "annotate node w1"]
    assert "error: it stays" in capsys.readouterr().err
    by_hand = Cluster(pod("web-1"), drains=False, cordoned=True)
    with pytest.raises(SystemExit):
        leave(by_hand)
    assert by_hand.said == ["cordon w1", "drain w1 --ignore-daemonsets"]


def test_only_what_we_took_out_comes_back():
    for annotations, said in (({"hostwright/out-of-service": "x"}, ["uncordon w1", "annotate node w1"]), ({}, [])):
        cluster, names = Cluster(annotations=annotations), program("node")
        names["kubectl"] = cluster
        names["main"]({"action": "return", "node": "w1", "version": "v1.33.5+k3s1", "seconds": 1})
        assert cluster.said == said


def test_a_node_that_is_not_on_its_version_is_said(capsys):
    names = program("node")
    names["kubectl"] = Cluster()
    with pytest.raises(SystemExit):
        names["main"]({"action": "return", "node": "w1", "version": "v1.34.0+k3s1", "seconds": 0})
    assert "must be Ready with v1.34.0+k3s1 within 0 s, is Ready, version v1.33.5+k3s1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "sum_of", "runs_as", "said"),
    [
        (b"#!/bin/sh\necho k3s version v1.33.5+k3s1 '(x)'\n", None, "v1.33.5+k3s1", ""),
        (b"#!/bin/sh\necho k3s version v1.33.4+k3s1 '(x)'\n", None, "v1.33.5+k3s1", "must be k3s v1.33.5+k3s1, says"),
        (b"#!/bin/sh\necho k3s version v1.33.5+k3s10 '(x)'\n", None, "v1.33.5+k3s1", "must be k3s v1.33.5+k3s1, says"),
        (b"not a program", None, "v1.33.5+k3s1", "does not run on this host"),
        (b"other", b"bytes", "", "sha256 must be"),
        (None, b"bytes", "", "cannot be fetched"),
    ],
)
def test_only_the_pinned_program_that_says_its_version_is_put_in_place(tmp_path, capsys, content, sum_of, runs_as, said):
    source, target = tmp_path / "k3s", tmp_path / "place" / "k3s"
    if content is not None:
        source.write_bytes(content)
    wanted = hashlib.sha256(sum_of or content).hexdigest()
    values = {"url": f"file://{source}", "sha256": wanted, "path": str(target), "mode": "0755", "runs_as": runs_as, "seconds": 30}
    if not said:
        program("download")["main"](values)
        assert target.read_bytes() == content
        assert target.stat().st_mode & 0o777 == 0o755
    else:
        with pytest.raises(SystemExit):
            program("download")["main"](values)
        err = capsys.readouterr().err
        assert said in err
        assert "nothing was installed" in err
    assert [entry.name for entry in target.parent.iterdir()] == ([] if said else ["k3s"])


def test_a_damaged_snapshot_is_known(tmp_path, capsys):
    content = bytes(8192)
    good = tmp_path / "good"
    good.write_bytes(content + hashlib.sha256(content).digest())
    check = program("restore")["check"]
    check(str(good))
    for name, spoilt in (("cut", good.read_bytes()[:5000]), ("other", b"x" + good.read_bytes()[1:])):
        (tmp_path / name).write_bytes(spoilt)
        with pytest.raises(SystemExit):
            check(str(tmp_path / name))
        assert "is damaged: its sum is not right; nothing was stopped" in capsys.readouterr().err


# --- the order of one node's steps -------------------------------------------------------------------------------------


class Steps:
    """Runs ``_converge`` with facts and files made up, and names what it would do, in order."""

    def __init__(self, monkeypatch, found, nodes=None, files=(), starts=False, executing=True, comes=None):
        self.found, self.nodes, self.logged, self.comes = found, nodes, [], comes
        monkeypatch.setattr(k3s, "host", self)
        monkeypatch.setattr(k3s, "run_state", type("State", (), {"is_executing": executing}))
        monkeypatch.setattr(k3s, "_held_back", lambda: [])
        monkeypatch.setattr(k3s, "_came_to_its_end", lambda: self.logged.append("ended"))
        monkeypatch.setattr(k3s, "_cluster", lambda _node, _own=None: self.nodes)
        monkeypatch.setattr(k3s, "_awaited", lambda node, boot: self.comes or (self.nodes or {}).get(node.node_name) or READY)
        monkeypatch.setattr(k3s.preflight, "refused", lambda lines: iter([f"refused: {lines[0]}"]))
        monkeypatch.setattr(k3s.fileset.files, "_inner", lambda entries, unit=None, **_: iter([f"files {unit}"] if unit in files else []))
        monkeypatch.setattr(k3s.unit_operation.unit, "_inner", lambda **_: iter(["start"] if starts else []))
        monkeypatch.setattr(k3s.script, "python", lambda program, values: f"{program} {values.get('action') or values.get('url', '').rpartition('/')[2]}")
        monkeypatch.setattr(k3s.script, "run", lambda program, **_: program)

    def get_fact(self, *_words, **_more):
        return self.found

    def noop(self, text):
        self.logged.append(text)

    def take(self, wanted):
        def named(command):
            if isinstance(command, str):
                return command
            if hasattr(command, "function"):
                first, _control, undo, _on = command.args
                return f"{named(first)} else {named(undo)}" if undo else named(first)
            return command.get_raw_value()

        return [named(command) for command in k3s._converge(wanted)]


RUNS = {"installed": "v1.33.5+k3s1", "program_sha256": SUM, "begun": True, "joined": True, "datastore": "etcd", "active": True,
        "kept_token_sha256": digest(TOKEN), "snapshots": ("one",), "server_unit": True}  # fmt: skip
READY = ClusterNode("v1.33.5+k3s1", ready=True, server=True)


def test_a_first_start_fetches_writes_starts_and_takes_a_snapshot(monkeypatch):
    steps = Steps(monkeypatch, state(), {"k1": READY}, files=(None, "k3s.service"), starts=True)
    assert steps.take(node()) == ["k3s/download.py k3s", "files None", "files k3s.service", "start", "rm -f -- /var/lib/rancher/k3s/server/db/snapshots/first-*.part && /usr/local/bin/k3s etcd-snapshot save --name first && /usr/local/bin/k3s etcd-snapshot prune --name first --snapshot-retention 1"]


def test_a_node_as_wanted_is_left_alone(monkeypatch):
    steps = Steps(monkeypatch, state(**RUNS), {"k1": READY})
    assert steps.take(node()) == []
    assert steps.logged == ["k3s server v1.33.5+k3s1 runs as wanted", "ended"]


def test_a_node_that_is_on_its_way_up_since_a_boot_is_waited_for(monkeypatch):
    """Its labels and taints are told to the cluster in this run, not in the one after it."""
    found = state(**{**RUNS, "datastore": "", "snapshots": (), "agent_unit": True, "server_unit": False})
    steps = Steps(monkeypatch, found, {"s": READY}, comes=ClusterNode("v1.33.5+k3s1", ready=True, server=False))
    assert steps.take(node("agent", labels={"role": "first"})) == ["k3s/node.py describe"]
    almost = Steps(monkeypatch, found, {"k1": ClusterNode("v1.33.5+k3s1", ready=False, server=False)}, comes=READY)
    assert almost.take(node("agent")) == []
    never = Steps(monkeypatch, found, {"s": READY}, comes=ClusterNode("v1.33.5+k3s1", ready=False, server=False))
    [line] = never.take(node("agent"))
    assert "k1 is no node that is Ready within" in line


def test_what_a_node_said_before_the_power_failed_does_not_count(monkeypatch):
    """The API has it as Ready for up to a minute, whatever has become of it."""
    before, since = (ClusterNode("v1.33.5+k3s1", ready=True, server=True, boot=boot) for boot in ("one", "two"))
    found = state(**RUNS, boot="two")
    for nodes, comes in (({"k1": since}, None), ({"k1": before}, since)):
        assert Steps(monkeypatch, found, nodes, comes=comes).take(node()) == []
    [line] = Steps(monkeypatch, found, {"k1": before}, comes=before).take(node())
    assert "k1 is no node that is Ready within" in line


def test_an_upgrade_snapshots_drains_switches_and_comes_back(monkeypatch):
    found = state(**{**RUNS, "installed": "v1.33.4+k3s1", "program_sha256": ""})
    steps = Steps(monkeypatch, found, {"k1": READY}, files=("k3s.service",))
    assert steps.take(node()) == [
        "k3s/download.py k3s",
        "rm -f -- /var/lib/rancher/k3s/server/db/snapshots/before-upgrade-*.part && /usr/local/bin/k3s etcd-snapshot save --name before-upgrade && /usr/local/bin/k3s etcd-snapshot prune --name before-upgrade --snapshot-retention 3",
        "k3s/node.py leave",
        "files k3s.service else k3s/node.py return",
        "k3s/node.py return",
        "k3s/tidy.sh",
    ]


def test_an_agent_takes_no_snapshot(monkeypatch):
    found = state(installed="v1.33.4+k3s1", program_sha256=SUM, joined=True, active=True, agent_unit=True)
    steps = Steps(monkeypatch, found, {"k1": ClusterNode("v1.33.4+k3s1", ready=True), "s": READY}, files=("k3s-agent.service",))
    assert steps.take(node("agent", control="s", join="https://s:6443")) == [
        "k3s/node.py leave", "files k3s-agent.service else k3s/node.py return", "k3s/node.py return", "k3s/tidy.sh"]  # fmt: skip


def test_a_node_left_out_of_service_by_a_killed_run_comes_back(monkeypatch):
    left = ClusterNode("v1.33.5+k3s1", ready=True, schedulable=False, server=True, annotations={"hostwright/out-of-service": "x"})
    assert Steps(monkeypatch, state(**RUNS), {"k1": left}).take(node()) == ["k3s/node.py return"]
    # k3s was still restarting when this run began, so that nobody could say it then
    assert Steps(monkeypatch, state(**RUNS), None, comes=left).take(node()) == ["k3s/node.py return"]


def test_labels_alone_restart_nothing(monkeypatch):
    steps = Steps(monkeypatch, state(**RUNS), {"k1": READY}, files=(None,))
    assert steps.take(node(labels={"a": "1"})) == ["files None", "k3s/node.py describe"]


def test_an_agent_whose_server_is_silent_is_not_touched(monkeypatch):
    steps = Steps(monkeypatch, state(), None, files=(None,))
    assert steps.take(node("agent", control="s", join="https://s:6443")) == ["refused: the server s must answer `k3s kubectl get nodes`, it does not"]
    planned = Steps(monkeypatch, state(), None, files=(None,), executing=False)
    assert planned.take(node("agent", control="s", join="https://s:6443"))[0] == "k3s/download.py k3s"


class Hosts:
    """Two hosts in one run, of which pyinfra has told nobody yet that the first one failed."""

    def __init__(self, monkeypatch, serial=True):
        self.names = {name: type("Named", (), {"name": name})() for name in ("k1", "k2")}
        self.state = type("State", (), {"failed_hosts": set()})()
        self.state.inventory = type("Inventory", (), {"get_host": lambda _self, name: self.names[name]})()
        self.current_op_global_arguments = {"_serial": serial}
        monkeypatch.setattr(k3s, "host", self)
        monkeypatch.setattr(k3s, "run_state", type("State", (), {"is_executing": True}))

    def take(self, name):
        self.name = name
        return k3s._held_back()


@pytest.mark.parametrize(("serial", "ended", "held"), [(True, False, True), (True, True, False), (False, False, False)])
def test_one_that_did_not_come_to_its_end_holds_back_the_next_of_the_same_operation(monkeypatch, serial, ended, held):
    """pyinfra adds to the failed hosts when a serial operation has been on all of them."""
    hosts = Hosts(monkeypatch, serial)
    assert hosts.take("k1") == []
    if ended:
        k3s._came_to_its_end()
    said = hosts.take("k2")
    assert bool(said) == held
    assert not held or said == ["k3s is not touched here: in this run it failed on k1. Run again when that is put right"]


def test_one_that_pyinfra_calls_failed_holds_back_the_others(monkeypatch):
    hosts = Hosts(monkeypatch, serial=False)
    hosts.take("k1")
    k3s._came_to_its_end()
    hosts.state.failed_hosts.add(hosts.names["k1"])
    assert hosts.take("k2")


# --- several servers -------------------------------------------------------------------------------------------------


def others(monkeypatch, found):
    monkeypatch.setattr(k3s, "_peers", lambda names: {name: found[name] for name in names})


def test_no_second_cluster_is_begun_while_a_server_has_one(monkeypatch):
    others(monkeypatch, {"k2": state(begun=True), "k3": None})
    steps = Steps(monkeypatch, state(), None, files=(None,))
    assert steps.take(node(peers=("k2",))) == [
        "refused: k3s: must not begin a second cluster: k2 has the datastore of one. Write k3s_first_server = 'k2' and its address in k3s_url, and this host joins it; "
        "or end it there by uninstall_and_delete_all_data, to restore a snapshot here"
    ]
    assert "k3 cannot be asked" in steps.take(node(peers=("k3",)))[0]
    assert steps.take(node(peers=("k2",), join="https://k2:6443"))[0] == "k3s/download.py k3s"
    assert Steps(monkeypatch, state(**RUNS), {"k1": READY}).take(node(peers=("k2", "k3"))) == []
    others(monkeypatch, {"k2": state()})
    assert Steps(monkeypatch, state(), None, files=(None,)).take(node(peers=("k2",)))[0] == "k3s/download.py k3s"


def test_an_agent_that_takes_the_place_of_a_node_is_told_what_to_do_first():
    nodes = {"k1": ClusterNode("v1.33.5+k3s1", server=False), "s": READY}
    [line] = refusals(node("agent"), state(), nodes)
    assert line.startswith("k3s: the cluster has a node k1 already, and this host has not its password")
    assert line.endswith("k3s kubectl delete node k1")
    assert refusals(node("agent"), state(has_node_password=True), nodes) == []
    assert refusals(node("server", join="https://s:6443"), state(), nodes) == [], "k3s lets a server in by its own file"


NEXT = "another-token-of-the-test"


class Rotation(Steps):
    def commands(self, **more):
        made = k3s.rotate_token._inner(Secret(TOKEN), Secret(NEXT), **more)
        return [command if isinstance(command, str) else command.get_raw_value() for command in made]


@pytest.mark.parametrize(
    ("found", "told_by", "due", "wanted"),
    [
        (RUNS, "", ["files", "restart"], ["k3s/token.py ", "files None", "start"]),
        (RUNS, "k1", ["files", "restart"], ["files None", "start"]),
        # killed after it was told, after the file was written, and not at all
        ({**RUNS, "kept_token_sha256": digest(NEXT)}, "", ["files", "restart"], ["files None", "start"]),
        (RUNS, "k1", ["restart"], ["start"]),
        ({**RUNS, "kept_token_sha256": digest(NEXT)}, "k1", [], []),
        ({"agent_unit": True}, "k1", ["files", "restart"], ["files None"]),
        ({"agent_unit": True}, "k1", [], []),
        ({}, "", ["files", "restart"], []),
    ],
)
def test_one_server_tells_the_new_token_and_each_restarts_for_it(monkeypatch, found, told_by, due, wanted):
    others(monkeypatch, {"k1": state(kept_token_sha256=digest(NEXT))})
    steps = Rotation(monkeypatch, state(**found), None, files=(None,) if "files" in due else (), starts="restart" in due)
    assert steps.commands(told_by=told_by) == wanted


@pytest.mark.parametrize(("peer", "said"), [(state(kept_token_sha256=digest(TOKEN)), "has not got it"), (None, "cannot be asked")])
def test_no_server_takes_a_token_that_its_cluster_was_not_told(monkeypatch, peer, said):
    others(monkeypatch, {"k1": peer})
    [line] = Rotation(monkeypatch, state(**RUNS), None, files=(None,), starts=True).commands(told_by="k1")
    assert line == f"refused: token: must be told to the cluster by k1 first, which {said}: run on that one too, without --limit"


def test_no_server_restarts_when_etcd_would_lose_its_majority(monkeypatch):
    nodes = {"k1": READY, "k2": READY, "k3": ClusterNode(ready=False, server=True), "w1": ClusterNode()}
    said = ("k3s: must not restart while etcd would lose its majority: 2 of 3 servers must go on, and without this one 1 would, since k3 is not Ready "
            "or has no vote. Bring it up first, or when it is lost: k3s kubectl delete node k3")  # fmt: skip
    assert k3s.majority_lost("k1", nodes) == [said]
    assert k3s.majority_lost("k3", nodes) == []
    assert k3s.majority_lost("k1", {"k1": READY, "k2": READY}) == []
    assert k3s.majority_lost("k1", {**dict.fromkeys(("k1", "k2", "k4", "k5"), READY), "k3": nodes["k3"]}) == []
    assert k3s.majority_lost("k1", {**dict.fromkeys(("k1", "k2"), READY), "k3": ClusterNode(ready=True, votes=False, server=True)}) == [said]
    waited = []
    monkeypatch.setattr(k3s.time, "sleep", waited.append)
    steps = Steps(monkeypatch, state(**RUNS), nodes, files=("k3s.service", None))
    assert steps.take(node()) == [f"refused: {said}"]
    assert sum(waited) == 60, "one that has just restarted is given time"
    assert Steps(monkeypatch, state(**RUNS), nodes).take(node()) == [], "nothing is to be restarted"
    assert Steps(monkeypatch, state(**{**RUNS, "active": False}), nodes, files=("k3s.service",)).take(node())[0] == "files k3s.service"
    rotation = Rotation(monkeypatch, state(**RUNS, node="k1", nodes=nodes), None, files=(None,), starts=True)
    assert rotation.commands() == [f"refused: {said}"]


@pytest.mark.parametrize(("ready_after", "waits"), [(2, [5, 5]), (99, [5] * 12)])
def test_an_upgrade_gives_a_node_that_has_just_restarted_a_minute(monkeypatch, ready_after, waits):
    found, waited = state(**{**RUNS, "installed": "v1.33.4+k3s1"}), []
    monkeypatch.setattr(k3s.time, "sleep", waited.append)
    steps = Steps(monkeypatch, found, {"k1": READY})
    monkeypatch.setattr(k3s, "_cluster", lambda *_: {"k1": READY, "w": ClusterNode(ready=len(waited) >= ready_after)})
    first = steps.take(node())[0]
    assert (first == "refused: k3s: nodes are upgraded one at a time, and w is not Ready: see to it first") == (ready_after == 99)
    assert waited == waits


def test_a_plan_misses_nothing_that_the_run_does_before(monkeypatch):
    """A token that is rotated first, servers that are upgraded first."""
    found = state(**{**RUNS, "kept_token_sha256": digest(NEXT)})
    written = []
    for executing, former, refused in ((True, Secret(NEXT), True), (False, Secret(NEXT), False), (False, None, True)):
        steps = Steps(monkeypatch, found, {"k1": READY}, executing=executing)
        monkeypatch.setattr(k3s.fileset.files, "_inner", lambda entries, **_: written.extend(entries) or iter([]))
        assert bool(steps.take(node(former_token=former))) == refused
    [token] = [entry.content.unmask() for entry in written if getattr(entry, "path", "") == f"{k3s.ETC}/token"]
    assert token == NEXT + "\n", "nothing to write: rotate_token says that it does"
    older = {"s": ClusterNode("v1.32.1+k3s1", ready=True, server=True)}
    assert refusals(node("agent"), state(), older)
    assert refusals(node("agent"), state(), older, is_plan=True) == []


def test_images_of_another_archive_are_another_configuration():
    def text(images_sha256):
        release = Release("v1.33.5+k3s1", {"amd64": SUM}, images="x.tar", images_sha256=images_sha256)
        return next(str(entry.content) for entry in node(release=release).started_on() if getattr(entry, "path", "").endswith("/config.yaml"))

    assert text(SUM) != text("b" * 64)
    assert yaml.safe_load(text(SUM)) == {"cluster-init": True}


# --- sysctl ----------------------------------------------------------------------------------------------------------


def test_what_ends_the_pods_network_at_boot_is_named():
    good = {"cgroup": 2, "controllers": ("memory",)}
    [line] = host_faults(K3sHostState(**good, forwarding_off="/etc/sysctl.d/90-x.conf"), "v1.33.5+k3s1")
    assert line.startswith("sysctl net.ipv4.ip_forward: must not be set to 0")
    assert "/etc/sysctl.d/90-x.conf" in line


def test_protected_kernel_defaults_are_asked_for():
    good = {"cgroup": 2, "controllers": ("memory",)}
    found = K3sHostState(**good, sysctl={**k3s.KERNEL_DEFAULTS, "kernel.panic": "0"})
    assert host_faults(found, "v1.33.5+k3s1") == []
    assert host_faults(found, "v1.33.5+k3s1", protect_kernel_defaults=True) == [
        "sysctl kernel.panic: must be 10 for the kubelet's protect-kernel-defaults, got 0: write it into base_sysctl"
    ]


@pytest.mark.parametrize(
    ("told", "file"),
    [
        ("# /usr/lib/sysctl.d/50.conf\nnet.ipv4.ip_forward = 1\n# /etc/sysctl.d/90.conf\nnet.ipv4.ip_forward=0\n", "/etc/sysctl.d/90.conf"),
        ("# /etc/sysctl.d/90.conf\n-net/ipv4/conf/all/forwarding = 0\n# /etc/sysctl.d/99.conf\nnet.ipv4.ip_forward = 1\n", ""),
        ("# /etc/sysctl.d/90.conf\n# net.ipv4.ip_forward = 0\n", ""),
    ],
)
def test_the_last_file_that_speaks_of_forwarding_counts(told, file):
    names = program("host")
    names["ask"] = lambda *_words: told
    assert names["forwarding_off"]() == file
