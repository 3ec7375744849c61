"""A run about manifests that is killed before or after every single call of kubectl, against a cluster of a few lines."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from operations.manifests import Manifest, plain
from operations.script import FILES

NAMESPACE = "shop-place"
NAMES = ("cluster.py", "registry.py", "rollout.py", "apply.py", "observe.py")
CODE = [compile((FILES / "manifests" / name).read_text(), name, "exec") for name in NAMES]


class Killed(BaseException):
    """What a SIGKILL is to the program: nothing of it runs any more."""


class Store:
    """What a cluster keeps. ``kill_at`` is the call that kills, ``away_at`` one that nobody answers: 0.5 more is after its effect."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.calls, self.kill_at, self.away_at = 0, float("inf"), float("inf")
        self.ill = False  # whatever is rolled out

    def put(self, item: dict[str, Any], dry: bool) -> dict[str, Any]:
        """Return what an object becomes; without ``dry`` it is so then, and its controller has been at work."""
        key = f"{item['kind']}/{item['metadata']['name']}"
        old = self.objects.get(key)
        made = copy.deepcopy(item)
        if old and old["kind"] in ("Secret", "ConfigMap") and old.get("immutable") and old.get("data") != made.get("data"):
            raise AssertionError(f"{key} is immutable")
        if item["kind"] == "Secret":
            made["type"] = "Opaque"
        if item["kind"] == "Deployment" and dry and old:
            made |= {"metadata": {**made["metadata"], "annotations": old["metadata"]["annotations"]}, "status": old["status"]}
        elif item["kind"] == "Deployment":
            same = old is not None and old["spec"] == item["spec"]
            number = old["metadata"]["generation"] + (not same) if old else 1
            made["metadata"] |= {"generation": number, "annotations": {"deployment.kubernetes.io/revision": str(number)}}
            replicas = item["spec"]["replicas"]
            made["status"] = {"observedGeneration": number}
            if item["spec"]["template"]["spec"]["containers"][0]["image"] != "bad" and not self.ill:
                made["status"] |= {"updatedReplicas": replicas, "replicas": replicas, "availableReplicas": replicas}
        if not dry:
            self.objects[key] = made
        return made

    def find(self, selector: str) -> list[dict[str, Any]]:
        """Return the objects with some labels, as ``a=b,c,!d`` says."""

        def fits(labels: dict[str, str]) -> bool:
            for word in selector.split(","):
                name, _, value = word.partition("=")
                if (name[1:] in labels) if name.startswith("!") else (name not in labels or (value and labels[name] != value)):
                    return False
            return True

        return [one for one in self.objects.values() if fits(one["metadata"].get("labels", {}))]


def program_on(store: Store) -> types.ModuleType:
    """The programs that a host gets, with kubectl and the clock replaced."""
    made: Any = types.ModuleType("manifests_program")
    for code in CODE:
        exec(code, made.__dict__)
    now = [0.0]
    made.time = types.SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))

    class Cluster(made.Cluster):  # type: ignore[misc, name-defined]
        def run(self, *words: str, given: str | None = None, seconds: float = 0) -> types.SimpleNamespace:
            store.calls += 1
            if store.calls == store.kill_at:
                raise Killed
            away = types.SimpleNamespace(returncode=1, stdout="", stderr="Unable to connect to the server: unexpected EOF")
            if store.calls == store.away_at:
                return away
            found = self._do([word for word in words if word not in ("-n", NAMESPACE)], given)
            if store.calls + 0.5 == store.kill_at:
                raise Killed
            if store.calls + 0.5 == store.away_at:
                return away
            if found is None:
                return types.SimpleNamespace(returncode=1, stdout="", stderr="nothing of that kind here")
            return types.SimpleNamespace(returncode=0, stdout=json.dumps({"kind": "List", "items": found}), stderr="")

        def _do(self, words: list[str], given: str | None) -> list[dict[str, Any]] | None:
            verb, kind = words[0], words[1]
            named = words[words.index("-l") + 1] if "-l" in words else ""
            if verb == "apply":
                read = json.loads(given or "")
                return [store.put(item, "--dry-run=server" in words) for item in (read["items"] if read["kind"] == "List" else [read])]
            if verb == "delete":
                store.objects.pop(f"{kind}/{words[2]}", None)
                return []
            if verb == "annotate":
                name, _, value = words[4].partition("=")
                store.objects[f"ConfigMap/{words[3]}"]["metadata"]["annotations"][name] = value
                return []
            if verb == "logs":
                return None
            if kind == "namespaces":
                return [item for item in store.objects.values() if item["kind"] == "Namespace"]
            if kind == "deployment":
                return [store.objects[f"Deployment/{words[2]}"]]
            if kind in ("nodes", "events", "--raw") or "--all-namespaces" in words:
                return []
            if kind in ("pods", "replicasets"):
                item = store.objects[f"Deployment/{named.partition('=')[2]}"]
                of = {"name": "one", "labels": {"pod-template-hash": "new"}, "annotations": item["metadata"]["annotations"],
                      "ownerReferences": [{"name": item["metadata"]["name"], "controller": True}]}  # fmt: skip
                ill = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}} if "updatedReplicas" not in item["status"] else {}
                return [{"kind": "Pod", "metadata": of, "status": {"containerStatuses": [{"state": ill}]}}]
            if named:
                return [item for item in store.find(named) if kind != "configmaps" or item["kind"] == "ConfigMap"]
            by_key = {key.lower(): item for key, item in store.objects.items()}
            return [by_key[word] for word in words if word in by_key]

    made.Cluster = Cluster
    return made


def release(version: str, image: str = "good", extra: bool = False) -> list[dict[str, Any]]:
    def given(kind: str, data: dict[str, str]) -> dict[str, Any]:
        name = f"{kind.lower()}-{hashlib.sha256(json.dumps(data).encode()).hexdigest()[:6]}"
        return {"apiVersion": "v1", "kind": kind, "immutable": True, "metadata": {"name": name, "namespace": NAMESPACE}, "data": data}

    config, secret = given("ConfigMap", {"version": version}), given("Secret", {"password": base64.b64encode(version.encode()).decode()})
    uses = [{"configMapRef": {"name": config["metadata"]["name"]}}, {"secretRef": {"name": secret["metadata"]["name"]}}]
    workload = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "shop", "namespace": NAMESPACE},
        "spec": {"replicas": 2, "template": {"spec": {"containers": [{"image": image, "envFrom": uses}]}}},
    }  # fmt: skip
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "extra", "namespace": NAMESPACE}, "spec": {}}
    files = [
        Manifest("namespace", json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})),
        Manifest("secrets", json.dumps(secret)), Manifest("config", json.dumps(config)), Manifest("shop", json.dumps(workload)),
        *([Manifest("extra", json.dumps(service))] if extra else []),
    ]  # fmt: skip
    return plain("shop", files)


def values(files: list[dict[str, Any]]) -> dict[str, Any]:
    return {"kubectl": ["kubectl"], "application": "shop", "namespace": NAMESPACE, "files": files, "rollout_seconds": 60, "keep": 3,
            "check_images": False, "account": None, "account_given_by": ""}  # fmt: skip


def converge(store: Store, files: list[dict[str, Any]]) -> None:
    program = program_on(store)
    program.converge(program.Cluster(values(files)), files, values(files))


def rollback(store: Store) -> None:
    program = program_on(store)
    program.roll_back(program.Cluster(values([])), values([]))


def states(store: Store) -> list[str]:
    return [item["metadata"]["annotations"]["hostwright.io/state"] for key, item in sorted(store.objects.items()) if key.startswith("ConfigMap/hostwright-")]


def owed(store: Store, files: list[dict[str, Any]]) -> list[str]:
    """What the next plan would tell."""
    answer: dict[str, Any] = {}
    program_on(store).look(values(files), answer)
    assert (answer["refused"], "failure" in answer) == ([], False)
    return [*answer["changes"], *([answer["unfinished"]] if "unfinished" in answer else [])]


def assert_at(store: Store, files: list[dict[str, Any]]) -> None:
    """All of it is there, nothing else but what a kept revision needs, and the next plan is empty."""
    assert owed(store, files) == []
    assert set(states(store)) == {"good"}
    for file in files:
        for item in file["objects"]:
            there = store.objects[f"{item['kind']}/{item['metadata']['name']}"]
            assert {key: there[key] for key in item if key != "metadata"} == {key: value for key, value in item.items() if key != "metadata"}


def kills(begin: Callable[[], Store], act: Callable[[Store], None]) -> Iterator[tuple[float, Store]]:
    """Give the cluster after a kill before and after each call of what is done, until it ends by itself."""
    half = 0
    while True:
        half += 1
        store = begin()
        store.calls, store.kill_at = 0, 1 + half / 2
        try:
            act(store)
        except Killed:
            store.kill_at = float("inf")
            yield half / 2, store
        else:
            assert half > 10, "kubectl was hardly called"
            return




ONE, TWO, BAD = release("one", extra=True), release("two"), release("bad", image="bad")


def at_one() -> Store:
    store = Store()
    converge(store, ONE)
    return store


def at_two() -> Store:
    store = at_one()
    converge(store, TWO)
    return store


def fails(store: Store, files: list[dict[str, Any]]) -> str:
    try:
        converge(store, files)
    except Exception as error:
        return str(error)
    raise AssertionError("it did not fail")


def test_first_converge():
    for _, store in kills(Store, lambda store: converge(store, ONE)):
        converge(store, ONE)
        assert_at(store, ONE)


def test_update_and_what_comes_after_it():
    for _, store in kills(at_one, lambda store: converge(store, TWO)):
        again = copy.deepcopy(store)
        converge(store, TWO)
        assert_at(store, TWO)
        assert "Service/extra" not in store.objects
        rollback(store)
        assert store.objects["Deployment/shop"]["spec"] == ONE[3]["objects"][0]["spec"]
        # or somebody thinks better of it
        converge(again, ONE)
        assert_at(again, ONE)


def test_server_that_is_away_at_any_call_takes_nothing_back():
    store = at_one()
    store.calls = 0
    converge(store, TWO)
    for half in range(2, 2 * store.calls + 2):
        store = at_one()
        store.calls, store.away_at = 0, half / 2
        converge(store, TWO)
        assert store.calls > store.away_at
        assert_at(store, TWO)


def test_bad_release_and_its_way_back():
    for where, store in kills(at_one, lambda store: fails(store, BAD)):
        again, worse = copy.deepcopy(store), copy.deepcopy(store)
        converge(store, ONE)
        assert_at(store, ONE)
        converge(again, TWO)
        assert_at(again, TWO)
        assert "is back" in fails(worse, BAD), where
        assert worse.objects["Deployment/shop"]["spec"] == ONE[3]["objects"][0]["spec"]


@pytest.mark.parametrize("failed_since", [False, True])
def test_drift_is_put_right(failed_since):
    def drifted() -> Store:
        store = at_one()
        if failed_since:
            fails(store, BAD)
        store.objects["Deployment/shop"]["spec"]["replicas"] = 1
        return store

    for where, store in kills(drifted, lambda store: converge(store, ONE)):
        worse = copy.deepcopy(store)
        assert bool(owed(store, ONE)) is ("again" in states(store) or store.objects["Deployment/shop"]["spec"]["replicas"] == 1), where
        converge(store, ONE)
        assert_at(store, ONE)
        # what was good before is known all the same
        assert "is back" in fails(worse, BAD), where
        assert worse.objects["Deployment/shop"]["spec"] == ONE[3]["objects"][0]["spec"]


def test_drift_that_cannot_be_put_right_is_owed():
    store = at_one()
    store.objects["Deployment/shop"]["spec"]["replicas"] = 1
    store.ill = True
    assert "the next run goes on" in fails(store, ONE)
    assert owed(store, ONE) == ["revision 1 was not finished"]
    store.ill = False
    converge(store, ONE)
    assert_at(store, ONE)


def test_first_converge_that_fails_is_owed():
    store = Store()
    store.ill = True
    assert "nothing was good before" in fails(store, TWO)
    assert owed(store, TWO) == ["what stands is not stored as a revision"]
    store.ill = False
    converge(store, TWO)
    assert_at(store, TWO)


def test_rollback_that_fails_both_ways_tells_of_both():
    store = at_two()
    store.ill = True
    with pytest.raises(Exception, match=r"(?s)deployment shop does not roll out.*revision 2, which served, did not come back"):
        rollback(store)
    store.ill = False
    converge(store, TWO)
    assert_at(store, TWO)


def test_rollback():
    for _, store in kills(at_two, rollback):
        again = copy.deepcopy(store)
        converge(store, TWO)
        assert_at(store, TWO)
        converge(again, ONE)
        assert_at(again, ONE)
