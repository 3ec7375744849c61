"""What the programs about manifests decide on a host, without a cluster."""

from __future__ import annotations

import base64
import json
import types

import pytest

from facts.manifests import Manifests, ManifestsState, question
from operations.script import FILES
from settings.secret import Secret

program = types.ModuleType("manifests_program")
for _name in ("cluster.py", "registry.py", "rollout.py", "apply.py"):
    exec(compile((FILES / "manifests" / _name).read_text(), _name, "exec"), program.__dict__)
READY = {"conditions": [{"type": "Ready", "status": "True"}]}


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), ("2", 2), ("512Mi", 2**29), ("1Gi", 2**30), ("1G", 10**9), ("100k", 10**5), ("", 0)],
)
def test_quantities(text, number):
    assert program.quantity(text) == pytest.approx(number)


def test_requests_count_the_largest_init_container_or_all_others():
    def container(cpu: str) -> dict:
        return {"resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}}

    assert program.requests({"containers": [container("100m"), container("200m")]}) == (300, 2 * 2**20)
    assert program.requests({"containers": [container("100m")], "initContainers": [container("2")]}) == (2000, 2**20)
    assert program.requests({"containers": [{}]}) == (0, 0)


@pytest.mark.parametrize(
    "text", ['{"kind": "List", "items": [{"kind": "A"}, {"kind": "B"}]}', '{"kind": "A"}\n{"kind": "B"}\n', '{"kind": "AList", "items": [{"kind": "A"}]} {"kind": "B"}']
)
def test_kubectls_json_is_read_in_all_its_forms(text):
    assert [item["kind"] for item in program.listed(text)] == ["A", "B"]
    assert program.listed("") == []


def test_what_the_server_writes_by_itself_is_no_difference():
    one = {"metadata": {"name": "a", "generation": 1, "resourceVersion": "1", "managedFields": [1]}, "spec": {"replicas": 2}, "status": {"x": 1}}
    other = {"metadata": {"name": "a", "generation": 2, "uid": "u"}, "spec": {"replicas": 2}}
    assert program.differing(program.bare(one), program.bare(other)) == []
    other["spec"] = {"replicas": 3, "list": [1]}
    assert program.differing(program.bare(one), program.bare(other)) == ["spec.list", "spec.replicas"]


def test_a_revision_holds_no_secret():
    secret = {"kind": "Secret", "metadata": {"name": "s-1"}, "data": {"a": "Y2FuYXJ5"}}
    files = [{"name": "secrets", "objects": [secret]}]
    assert "Y2FuYXJ5" not in json.dumps(program.without_secrets(files))
    assert program.digest(files) == program.digest([{"name": "secrets", "objects": [{**secret, "data": {"a": "eA=="}}]}])
    assert program.digest(files) != program.digest([{"name": "secrets", "objects": [{**secret, "metadata": {"name": "s-2"}}]}])


def deployment(**status: object) -> dict:
    return {"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": {"observedGeneration": 2, **status}}


@pytest.mark.parametrize(
    ("item", "done"),
    [
        (deployment(updatedReplicas=2, replicas=2, availableReplicas=2), True),
        (deployment(updatedReplicas=2, replicas=3, availableReplicas=3), False),
        (deployment(updatedReplicas=1, replicas=2, availableReplicas=2), False),
        (deployment(updatedReplicas=2, replicas=2, availableReplicas=1), False),
        ({**deployment(updatedReplicas=2, replicas=2, availableReplicas=2), "metadata": {"generation": 3}}, False),
        ({"kind": "StatefulSet", "metadata": {"generation": 1}, "spec": {"replicas": 1}, "status": {"observedGeneration": 1, "readyReplicas": 1, "currentRevision": "a", "updateRevision": "a"}}, True),
        ({"kind": "StatefulSet", "metadata": {"generation": 1}, "spec": {"replicas": 1}, "status": {"observedGeneration": 1, "readyReplicas": 1, "currentRevision": "a", "updateRevision": "b"}}, False),
    ],
)  # fmt: skip
def test_when_a_workload_is_rolled_out(item, done):
    assert program.is_done(item) is done


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"containerStatuses": [{"state": {"running": {}}}]}, ""),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, ""),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}, "ErrImagePull: no such image"),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}, "lastState": {"terminated": {"exitCode": 3}}}]}, "CrashLoopBackOff, it ended with status 3: back-off"),
        ({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]}, "no node takes it: 0/1 nodes"),
    ],
)  # fmt: skip
def test_what_waiting_does_not_bring(status, said):
    assert program.hopeless({"status": status}) == said


class Rolling(program.Cluster):
    """A Deployment at its second ReplicaSet, and its pods: of which one and whether they are in a loop of crashes, look after look."""

    def __init__(self, *looks: dict[str, str]) -> None:
        super().__init__({"kubectl": ["kubectl"], "application": "shop", "namespace": "shop"})
        self.looks = list(looks)

    def items(self, *words, given=None):
        if "replicasets" in words:
            return [
                {"metadata": {"annotations": {program.ROLLOUT: number}, "labels": {"pod-template-hash": name}, "ownerReferences": [{"name": "shop", "controller": True}]}}
                for number, name in (("1", "old"), ("2", "new"))
            ]
        if "pods" in words:
            crash = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
            return [
                {"metadata": {"name": name, "labels": {"pod-template-hash": name}}, "status": {"containerStatuses": [{"state": crash if state == "crashes" else {}}]}}
                for name, state in self.looks[0].items()
            ]
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        done = {"updatedReplicas": 2, "replicas": 2, "availableReplicas": 2} if "old" not in look else {}
        item = deployment(**done)
        item["metadata"] |= {"name": "shop", "annotations": {program.ROLLOUT: "2"}}
        return [item]


def test_only_new_pods_say_that_a_release_does_not_come(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(program, "time", types.SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)))
    program.wait_for(Rolling(*[{"old": "crashes", "new": "starts"}] * 60, {"new": "runs"}), [("Deployment", "shop")], 600)
    assert now[0] > 2 * program.PATIENCE
    with pytest.raises(program.Failure, match="pod new: CrashLoopBackOff"):
        program.wait_for(Rolling({"old": "runs", "new": "crashes"}), [("Deployment", "shop")], 600)


def test_a_deadline_that_was_missed_before_is_not_that_of_this_roll_out(monkeypatch):
    """What is brought back follows a roll-out whose deadline was missed, and is asked about before its controller has looked."""
    monkeypatch.setattr(program, "time", types.SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda seconds: None))
    late = {"conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded", "message": "timed out progressing"}]}
    answers = [{**deployment(**late), "metadata": {"generation": 3}}, deployment(updatedReplicas=2, replicas=2, availableReplicas=2)]
    cluster = types.SimpleNamespace(namespace="shop", items=lambda *words: [] if "pods" in words else [answers.pop(0)])
    program.wait_for(cluster, [("Deployment", "shop")], 10)
    answers = [deployment(**late)]
    with pytest.raises(program.Failure, match="timed out progressing"):
        program.wait_for(cluster, [("Deployment", "shop")], 10)


def test_reports_hide_the_values_of_secrets():
    value = base64.b64encode(b"requirepass canary-0123456789\nport 1").decode()
    hidden = program.hidden_values([{"name": "s", "objects": [{"kind": "Secret", "data": {"redis.conf": value}}]}])
    assert program.masked("started with canary-0123456789 on port 1", hidden) == "started with *MASKED* on port 1"
    auth = base64.b64encode(b"puller:canary-password").decode()
    value = base64.b64encode(json.dumps({"auths": {"registry.test:5000": {"auth": auth}}}).encode()).decode()
    hidden = program.hidden_values([{"name": "s", "objects": [{"kind": "Secret", "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": value}}]}])
    assert program.masked(f"registry.test:5000 refuses puller with canary-password ({auth})", hidden) == "registry.test:5000 refuses puller with *MASKED* (*MASKED*)"


@pytest.mark.parametrize(
    ("image", "base", "name", "reference"),
    [
        ("docker.io/library/redis:7", "https://registry-1.docker.io/v2", "library/redis", "7"),
        ("ghcr.io/team/a-b:1.0", "https://ghcr.io/v2", "team/a-b", "1.0"),
        ("registry.test:5000/team/a@sha256:" + "a" * 64, "https://registry.test:5000/v2", "team/a", "sha256:" + "a" * 64),
        ("ghcr.io/team/a:1@sha256:" + "b" * 64, "https://ghcr.io/v2", "team/a", "sha256:" + "b" * 64),
    ],
)
def test_an_image_is_taken_apart_as_its_registry_wants_it(image, base, name, reference):
    found = program.ImageRegistry(image, None)
    assert (found.base, found.name, found.reference) == (base, name, reference)


def test_an_account_goes_to_its_own_registry_alone():
    account = ("ghcr.io", "puller", "secret")
    assert program.ImageRegistry("ghcr.io/team/a:1", account).account == account
    assert program.ImageRegistry("docker.io/library/redis:7", account).account is None


class Kubectl(program.Cluster):
    """Answers by what it is given, one after the other: an error, or nothing for what ends well."""

    def __init__(self, *errors: str) -> None:
        super().__init__({"kubectl": ["kubectl"], "application": "shop", "namespace": "shop"})
        self.errors = list(errors)

    def run(self, *words, given=None, seconds=0):
        error = self.errors.pop(0) if self.errors else ""
        return types.SimpleNamespace(returncode=bool(error), stdout='{"kind": "A", "metadata": {"name": "a"}}', stderr=error)


@pytest.mark.parametrize(
    "error",
    [
        "The connection to the server 127.0.0.1:6443 was refused - did you specify the right host or port?",
        "Unable to connect to the server: dial tcp 127.0.0.1:6443: connect: connection refused",
        "Error from server: etcdserver: leader changed",
        "Error from server (ServiceUnavailable): apiserver is shutting down",
    ],
)
def test_a_server_that_is_away_is_asked_again(monkeypatch, error):
    now = [0.0]
    monkeypatch.setattr(program, "time", types.SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)))
    assert Kubectl(error, error).ask("get", "x").startswith("{")
    wanted, reasons = Kubectl(error).dry([{"kind": "A", "metadata": {"name": "a"}}])
    assert (list(wanted), reasons) == (["A/a"], [])
    gone = Kubectl(*[error] * 1000)
    with pytest.raises(program.Failure, match="kubectl get x"):
        gone.ask("get", "x")
    assert program.AWAY_SECONDS - 2 < 1000 - len(gone.errors) < program.AWAY_SECONDS + 3
    refused = Kubectl("Error from server (Forbidden): no", "")
    with pytest.raises(program.Failure, match="Forbidden"):
        refused.ask("get", "x")
    assert refused.errors == [""], "what the server has refused is not asked again"


def test_a_registry_that_refuses_says_where_the_account_stands(monkeypatch):
    def denied(self):
        raise program.Denied

    monkeypatch.setattr(program.ImageRegistry, "architectures", denied)
    faults = program.image_faults({"r.test/shop:1": {"workloads": ["shop"], "architectures": ["amd64"]}}, None, "shop_account")
    assert faults == ["image r.test/shop:1 of shop: the registry refuses the account, write another one in shop_account"]


def test_the_question_holds_secrets_and_its_fact_shows_none():
    text = question({"account": ("ghcr.io", "puller", Secret("canary"))})
    assert "canary" in text
    assert "canary" not in Manifests().command(application="shop")
    assert Manifests().process(['{"engine": true, "revision": 3}']) == ManifestsState(engine=True, revision=3)


def test_a_new_pull_account_is_tried_on_every_image():
    look = types.ModuleType("manifests_look")
    for name in ("cluster.py", "registry.py", "observe.py"):
        exec(compile((FILES / "manifests" / name).read_text(), name, "exec"), look.__dict__)
    workload = {"kind": "Deployment", "metadata": {"name": "shop"}, "spec": {"template": {"spec": {"containers": [{"image": "r.test/shop:1"}]}}}}
    account = {"kind": "Secret", "type": look.PULLS, "metadata": {"name": "registry-1"}, "data": {}}
    there: list[dict] = []

    class Known(look.Cluster):
        def answers(self):
            return True

        def has_namespace(self):
            return False

        def items(self, *words, given=None):
            return []

        def dry(self, objects):
            return {}, []

        def live(self, objects):
            return {look.key_of(item): item for item in there}

    look.Cluster = Known
    values = {
        "kubectl": ["kubectl"], "application": "shop", "namespace": "shop", "keep": 5, "check_images": False,
        "files": [{"name": "all", "objects": [account, workload]}],
    }  # fmt: skip
    for known, images in (([], {"r.test/shop:1": ["shop"]}), ([account, workload], {}), ([workload], {"r.test/shop:1": ["shop"]})):
        answer: dict = {}
        there[:] = known
        look.look(values, answer)
        assert answer["images"] == images
