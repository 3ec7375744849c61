"""The settings of codeclashers, what is said about bad ones, and the manifests that they become."""

from __future__ import annotations

import base64
import functools
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploys import codeclashers as deploy
from operations import manifests
from settings import Codeclashers, Secret, SettingsError, capacity, load_host
from settings.capacity import Demand, Node
from settings.codeclashers import COMPONENTS, ROLLING, SINGLE

SECRETS = {
    name: f"canary-{name.lower()}-0123456789"
    for name in (
        "REDIS_PASSWORD", "JUDGE0_POSTGRES_PASSWORD", "MONGODB_PASSWORD", "OPENAI_API_KEY", "INTERNAL_SERVICE_SECRET",
        "BOT_SERVICE_SECRET", "COLYSEUS_RESERVATION_SECRET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    )
}  # fmt: skip
MORE = {
    "PULL": "ghp_0123456789abcdef",
    "JOB_TOKEN": "ghs_0123456789abcdef",
    "TLS_KEY": "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----\n",
    "WEAK": "changeme",
    "BACKUP_PASSWORD": "canary-backup-0123456789",
}
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"
GOOD = {
    "backup_password": "env:BACKUP_PASSWORD",
    "codeclashers_registry": "ghcr.io/team",
    "codeclashers_version": "1.4.0",
    "codeclashers_s3_bucket_name": "codeclashers-prod",
    **{f"codeclashers_{name.lower()}": f"env:{name}" for name in SECRETS},
}
PUBLIC = {
    "codeclashers_mongodb_public_sources": ["198.51.100.0/24"],
    "codeclashers_mongodb_tls_certificate": CERTIFICATE,
    "codeclashers_mongodb_tls_ca": CERTIFICATE,
    "codeclashers_mongodb_tls_key": "env:TLS_KEY",
}
EVERYTHING = {
    **PUBLIC,
    "codeclashers_registry_username": "puller",
    "codeclashers_registry_password": "env:PULL",
    "codeclashers_storage_class": "fast",
    "codeclashers_colyseus_sources": ["203.0.113.0/24"],
    "codeclashers_judge0_authn_token": "env:REDIS_PASSWORD",
    "codeclashers_judge0_submission_network": True,
    "codeclashers_extra_env": {"colyseus": {"LOG": 'a: "b" # {c}'}},
    "codeclashers_extra_secret_env": {"bots": {"TOKEN": "env:PULL"}},
}
MINIMAL = {
    "codeclashers_postgres_storage": "",
    "codeclashers_prestop_seconds": 0,
    "codeclashers_colyseus_service": "ClusterIP",
    "codeclashers_colyseus_sticky": False,
    "codeclashers_judge0_shares_nodes": True,
}
VARIANTS = {"defaults": {}, "everything": EVERYTHING, "minimal": MINIMAL}
# The minors of k3s that are in use: Judge0's control groups end with 1.34.
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    for name, value in {**SECRETS, **MORE}.items():
        monkeypatch.setenv(name, value)


def settings(groups: tuple[str, ...] = ("lab",), **values: object) -> Codeclashers:
    found = load_host("cc-1", ["codeclashers", *groups], {**GOOD, **values}).codeclashers
    assert found is not None
    return found


def refused(groups: tuple[str, ...] = (), **values: object) -> list[str]:
    data = {key: value for key, value in {**GOOD, **values}.items() if value is not None}
    with pytest.raises(SettingsError) as error:
        load_host("cc-1", ["codeclashers", *groups], data)
    return error.value.lines()


@functools.cache
def objects(variant: str) -> list[dict]:
    return [item for file in manifests.plain("codeclashers", deploy.rendered(settings(**VARIANTS[variant]))) for item in file["objects"]]


def of(found: list[dict], kind: str, name: str = "") -> list[dict]:
    return [item for item in found if item["kind"] == kind and item["metadata"]["name"].startswith(name)]


def workloads(variant: str) -> dict[str, dict]:
    return {item["metadata"]["name"]: item for item in objects(variant) if item["kind"] in ("Deployment", "StatefulSet")}


# --- manifests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("variant", ["everything", "minimal"])
def test_manifests_are_valid_in_every_version(variant, version):
    # here: it brings a TLS library, which gevent must find unused when it changes ssl
    import kubernetes_validate

    for item in objects(variant):
        kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_manifests_keep_the_operations_rules(variant):
    files = manifests.plain("codeclashers", deploy.rendered(settings(**VARIANTS[variant])))
    assert manifests.faults("codeclashers", "codeclashers", ["kubectl"], files) == []
    assert [file["name"] for file in files][-len(COMPONENTS) :] == list(COMPONENTS)


def test_every_number_of_the_guide_reaches_its_workload():
    values = {}
    for component in COMPONENTS:
        stem = f"codeclashers_{component.replace('-', '_')}"
        values |= {f"{stem}_memory_request": "100Mi", f"{stem}_memory_limit": "200Mi", f"{stem}_cpu_request": "30m", f"{stem}_cpu_limit": "40m"}
        if component in ROLLING:
            values[f"{stem}_replicas"] = 3
    found = manifests.plain("codeclashers", deploy.rendered(settings(**values)))
    for file in found:
        for item in file["objects"]:
            if item["kind"] in ("Deployment", "StatefulSet"):
                container = item["spec"]["template"]["spec"]["containers"][0]
                assert container["resources"] == {"requests": {"cpu": "30m", "memory": "100Mi"}, "limits": {"cpu": "40m", "memory": "200Mi"}}
                assert item["spec"]["replicas"] == (3 if item["metadata"]["name"] in ROLLING else 1)


def test_workloads_are_replaced_without_a_gap_and_end_in_time():
    found = workloads("defaults")
    assert set(found) == set(COMPONENTS)
    for name in ROLLING:
        assert found[name]["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert found["postgres"]["spec"]["strategy"] == {"type": "Recreate"}
    assert found["colyseus"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 1800
    for name, item in found.items():
        pod = item["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(pod["containers"][0]), name
        assert pod["containers"][0].get("securityContext", {}).get("privileged", False) is (name == "judge0-worker")


def test_no_budget_blocks_a_drain():
    for name in COMPONENTS:
        [budget] = of(objects("defaults"), "PodDisruptionBudget", name)
        # all workers may be on the one node that is theirs, where no other would take them
        assert budget["spec"]["maxUnavailable"] == ("100%" if name == "judge0-worker" else 1)
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_workers_have_nodes_of_their_own():
    pod = workloads("defaults")["judge0-worker"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64", "dedicated": "judge0"}
    assert pod["tolerations"] == [{"key": "dedicated", "operator": "Equal", "value": "judge0", "effect": "NoSchedule"}]
    assert workloads("defaults")["judge0-server"]["spec"]["template"]["spec"]["nodeSelector"] == {"kubernetes.io/arch": "amd64"}


def test_mongodb_is_reached_from_inside_alone_unless_a_setting_says_so():
    services = {item["metadata"]["name"]: item["spec"] for item in of(objects("defaults"), "Service")}
    assert {name: spec["type"] for name, spec in services.items()} == {
        "mongodb": "ClusterIP", "redis": "ClusterIP", "postgres": "ClusterIP", "colyseus": "LoadBalancer", "judge0-server": "ClusterIP",
    }  # fmt: skip
    assert "tls" not in settings().mongodb_uri.unmask()

    public = {item["metadata"]["name"]: item["spec"] for item in of(objects("everything"), "Service")}
    assert public["mongodb-public"]["type"] == "NodePort"
    assert public["mongodb-public"]["externalTrafficPolicy"] == "Local"
    [policy] = of(objects("everything"), "NetworkPolicy", "mongodb")
    assert {"ipBlock": {"cidr": "198.51.100.0/24"}} in policy["spec"]["ingress"][1]["from"]
    assert "--tlsMode=requireTLS" in workloads("everything")["mongodb"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "tls=true" in settings(**PUBLIC).mongodb_uri.unmask()
    assert [port.port for port in settings(**PUBLIC).ports()] == [2567, 32017]


def test_policies_deny_by_default_and_a_worker_reaches_its_queue_and_database_only():
    [deny] = of(objects("defaults"), "NetworkPolicy", "default-deny")
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    [worker] = of(objects("defaults"), "NetworkPolicy", "judge0-worker")
    reached = [(rule["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"], rule["ports"][0]["port"]) for rule in worker["spec"]["egress"]]
    assert reached == [("redis", 6379), ("postgres", 5432)]
    assert "ingress" not in worker["spec"]
    assert worker["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_secrets_are_where_they_are_used_and_nowhere_else():
    for variant in VARIANTS:
        given = [value for name, value in {**SECRETS, **MORE}.items() if name != "WEAK"]
        for item in objects(variant):
            text = repr(item)
            if item["kind"] != "Secret":
                assert not [value for value in given if value in text or base64.b64encode(value.encode()).decode() in text], item["metadata"]
    [bots] = of(objects("defaults"), "Secret", "bots-")
    assert "AWS_SECRET_ACCESS_KEY" not in bots["data"]
    [worker] = of(objects("defaults"), "Secret", "judge0-worker-")
    assert set(worker["data"]) == {"REDIS_PASSWORD", "POSTGRES_PASSWORD"}
    [redis] = of(objects("defaults"), "Secret", "redis-")
    assert f"requirepass {SECRETS['REDIS_PASSWORD']}\n" in base64.b64decode(redis["data"]["redis.conf"]).decode()
    assert all("canary" not in repr(file) for file in deploy.rendered(settings()))


def test_rotation_gives_a_new_name_to_its_users_alone(monkeypatch):
    def names() -> set[str]:
        return {item["metadata"]["name"] for file in deploy.rendered(settings()) for item in file.objects() if item["kind"] in ("Secret", "ConfigMap")}

    before = names()
    assert names() == before
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-key-0123456789")
    changed = names() - before
    assert [name.rpartition("-")[0] for name in changed] == ["colyseus"]


def test_a_pull_account_reaches_pods_by_their_service_account_and_its_rotation_replaces_none():
    [account] = of(objects("everything"), "ServiceAccount", "codeclashers")
    [name] = account["imagePullSecrets"]
    assert name["name"].startswith("registry-")
    assert "imagePullSecrets" not in of(objects("defaults"), "ServiceAccount", "codeclashers")[0]
    for item in workloads("everything").values():
        assert item["spec"]["template"]["spec"]["serviceAccountName"] == "codeclashers"
        assert "registry-" not in repr(item)
    [secret] = of(objects("everything"), "Secret", "registry-")
    assert secret["type"] == "kubernetes.io/dockerconfigjson"
    assert '"ghcr.io"' in base64.b64decode(secret["data"][".dockerconfigjson"]).decode()


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"codeclashers_redis_password": None}, "codeclashers_redis_password: is required on host cc-1, write codeclashers_redis_password = 'env:REDIS_PASSWORD'"),
        ({"codeclashers_version": "latest"}, "codeclashers_version: must not be 'latest': nobody could say what runs, or go back to it on host cc-1, got 'latest'"),
        ({"codeclashers_judge0_image": "docker.io/judge0/judge0:1.13.0"}, "codeclashers_judge0_image: must be 1.13.1 or newer: before it, submissions get out of their sandbox on host cc-1, got 'docker.io/judge0/judge0:1.13.0'"),
        ({"codeclashers_mongodb_replicas": 3}, "codeclashers_mongodb_replicas: must be 1: each further pod would have data of its own on host cc-1, got 3, write codeclashers_mongodb_replicas = 1"),
        ({"codeclashers_bots_memory_request": "256m"}, "codeclashers_bots_memory_request: must be a memory quantity: 'm' means thousandths of a byte on host cc-1, got '256m', write '256Mi'"),
        ({"codeclashers_bots_cpu_request": "0.5.5"}, "codeclashers_bots_cpu_request: must be a CPU quantity such as '500m' or '2' on host cc-1, got '0.5.5'"),
        ({"codeclashers_bots_cpu_limit": "100m"}, "codeclashers_bots_cpu_limit: must be at least the request, 250m on host cc-1, got '100m'"),
        ({"codeclashers_registry_username": "x", "codeclashers_registry_password": "env:JOB_TOKEN"}, "codeclashers_registry_password: must not be the GITHUB_TOKEN of a job (ghs_…), which ends with the job on host cc-1, make a token that may only read packages"),
        ({"codeclashers_mongodb_public_sources": ["198.51.100.0/24"]}, "codeclashers_mongodb_tls_key: is required with codeclashers_mongodb_public_sources: passwords would cross the internet in clear on host cc-1"),
        ({**PUBLIC, "codeclashers_mongodb_public_sources": ["0.0.0.0/0"]}, "codeclashers_mongodb_public_sources[0]: must not be everybody on host cc-1, got '0.0.0.0/0', write the addresses of the clients"),
        ({"codeclashers_judge0_shares_nodes": True}, "codeclashers_judge0_shares_nodes: must be False outside the groups lab and dev on host cc-1, got True"),
        ({"codeclashers_grace_seconds": 10}, "codeclashers_grace_seconds: must be more than codeclashers_prestop_seconds (10): it counts into it on host cc-1, got 10"),
        ({"codeclashers_extra_env": {"colyseus": {"REDIS_HOST": "x"}}}, "codeclashers_extra_env.colyseus.REDIS_HOST: must not be given here, it follows from the other settings on host cc-1"),
        ({"codeclashers_bot_service_secret": "env:INTERNAL_SERVICE_SECRET"}, "codeclashers_internal_service_secret: must not be the same as codeclashers_bot_service_secret on host cc-1"),
        ({"codeclashers_colyseus_replica": 3}, "codeclashers_colyseus_replica: unknown setting on host cc-1, did you mean codeclashers_colyseus_replicas?"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(values, said):
    lines = refused(**values)
    assert said in lines, "\n".join(lines)


def test_all_faults_at_once():
    lines = refused(codeclashers_mongodb_password="env:WEAK", codeclashers_redis_replicas=2, codeclashers_version="latest", codeclashers_s3_bucket_name=None)
    assert len(lines) == 4, lines
    assert "changeme" not in "\n".join(lines)


# --- capacity ------------------------------------------------------------------------------------------------------

GIB = 2**30
WORKER = Node("worker-1", 4000, 8 * GIB, labels={"dedicated": "judge0"}, taints=({"key": "dedicated", "value": "judge0", "effect": "NoSchedule"},))


def test_the_guides_numbers_do_not_fit_its_machine():
    wanted = capacity.demands(objects("minimal"))
    [line] = capacity.faults(wanted, [Node("vm-1", 4000, 24 * GIB, others_cpu=200)])
    assert line == (
        "cpu: 5500m (mongodb 1 x 500m, redis 1 x 250m, postgres 1 x 250m, colyseus 2 x 500m, bots 2 x 250m, judge0-server 2 x 500m, "
        "judge0-worker 2 x 1000m) + 1000m for 2 more colyseus while it is replaced + 200m of other pods = 6700m; "
        "allocatable on vm-1: 4000m, 2700m too few. Write fewer replicas or smaller requests, or add a node"
    )


def test_matches_that_go_on_need_room_beside_the_new_pods():
    found = {demand.workload: demand.surge for demand in capacity.demands(objects("defaults"))}
    assert found == {"mongodb": 0, "redis": 0, "postgres": 0, "colyseus": 2, "bots": 1, "judge0-server": 1, "judge0-worker": 1}


def test_what_fits_is_let_through():
    assert capacity.faults(capacity.demands(objects("defaults")), [Node("vm-1", 4500, 24 * GIB), WORKER]) == []


def test_arm_alone_is_refused_for_judge0():
    lines = capacity.faults(capacity.demands(objects("defaults")), [Node("ampere", 64000, 240 * GIB, architecture="arm64")])
    assert lines == [
        "judge0-server: no node takes it; it needs kubernetes.io/arch=amd64. There are: ampere (kubernetes.io/arch=arm64)",
        "judge0-worker: no node takes it; it needs dedicated=judge0, kubernetes.io/arch=amd64. There are: "
        "ampere (kubernetes.io/arch=arm64, dedicated=(none))",
    ]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([Node("a", 1000, GIB), Node("b", 1000, GIB)], "web: no node has room for one of its pods while web is replaced"),
        ([Node("a", 600, GIB), Node("b", 600, GIB), Node("c", 600, GIB), Node("d", 600, GIB)], ""),
        ([Node("a", 5000, GIB, unschedulable=True)], "web: no node takes it; it needs any node. There are: a (cordoned)"),
        ([Node("a", 5000, GIB, ready=False)], "web: no node takes it; it needs any node. There are: a (not ready)"),
        ([Node("a", 5000, GIB, taints=({"key": "k", "value": "v", "effect": "NoSchedule"},))], "a (taint k=v:NoSchedule)"),
        ([Node("a", 5000, GIB, pods=2)], "web: no node has room for one of its pods while web is replaced"),
        ([Node("a", 5000, 2**20 * 25)], "memory: 20Mi (web 2 x 10Mi) + 10Mi for one more web"),
    ],
)
def test_capacity_of_nodes(nodes, said):
    web = Demand("web", 2, 600 if len(nodes) != 2 else 550, 10 * 2**20, surge=1)
    lines = capacity.faults([web], nodes)
    assert (not said and not lines) or said in "\n".join(lines), lines


# --- the operation's arguments ---------------------------------------------------------------------------------------


def test_arguments_that_break_a_rule():
    files = [
        {"name": "a", "objects": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "other"}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "shop"}, "immutable": True, "stringData": {"a": "canary"}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "shop"}, "immutable": True},
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}},
        ]},
    ]  # fmt: skip
    lines = manifests.faults("Shop", "shop", "kubectl", files)
    assert len(lines) == 7, lines
    assert "canary" not in "\n".join(lines)


def test_manifest_shows_no_secret():
    assert "canary" not in repr(manifests.Manifest("secrets", Secret("canary")))


def test_single_components_have_volumes():
    for name in SINGLE:
        text = repr(workloads("defaults")[name])
        assert "volumeClaimTemplates" in text or "persistentVolumeClaim" in text


# --- the operator's repository ---------------------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[2] / "examples" / "codeclashers"
WORKFLOW = EXAMPLE / ".github" / "workflows" / "deploy.yml"
GUIDE_SECRETS = (
    *SECRETS, "JUDGE0_POSTGRES_USER", "JUDGE0_POSTGRES_DB", "MONGODB_USERNAME", "S3_BUCKET_NAME", "AWS_REGION",
)  # fmt: skip
GUIDE_NUMBERS = tuple(
    f"K8S_{component.replace('-', '_').upper()}_{field}"
    for component in COMPONENTS
    for field in ("REPLICAS", "MEMORY_REQUEST", "MEMORY_LIMIT", "CPU_REQUEST", "CPU_LIMIT")
)


def test_workflow_is_one_by_its_schema():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


def test_workflow_has_the_guides_names_and_gives_no_more_than_it_must():
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    for name in ("plan", "converge"):
        env = jobs[name]["env"]
        assert {key for key in GUIDE_SECRETS if env[key] == f"${{{{ secrets.{key} }}}}"} == set(GUIDE_SECRETS)
        assert {key for key in GUIDE_NUMBERS if env[key] == f"${{{{ vars.{key} }}}}"} == set(GUIDE_NUMBERS)
        assert "GITHUB_TOKEN" not in str(env)
        assert jobs[name]["environment"]
    assert "fork" not in jobs["plan"]["if"]
    assert "head.repo.full_name == github.repository" in jobs["plan"]["if"]
    for job in jobs.values():
        assert job["runs-on"] == "ubuntu-24.04", "no runner of the operator's own"
        for step in job["steps"]:
            assert re.search(r"@[0-9a-f]{40}$", step.get("uses", "x@" + "0" * 40)), step
            assert "${{" not in step.get("run", ""), "what an outsider can name is no part of a script"


def test_workflows_scripts_are_sound():
    for name, job in yaml.safe_load(WORKFLOW.read_text())["jobs"].items():
        for step in job["steps"]:
            if "run" in step:
                command = [Path(sys.executable).with_name("shellcheck"), "--shell=bash", "-"]
                run = subprocess.run(command, input=step["run"], capture_output=True, text=True, check=False)
                assert run.returncode == 0, f"{name}: {step['name']}\n{run.stdout}"


def test_example_inventory_takes_the_guides_variables(monkeypatch):
    for name in GUIDE_SECRETS:
        monkeypatch.setenv(name, SECRETS.get(name, {"S3_BUCKET_NAME": "bucket", "AWS_REGION": "eu-west-1"}.get(name, "someone")))
    monkeypatch.setenv("K8S_COLYSEUS_REPLICAS", "4")
    monkeypatch.setenv("K8S_BOTS_CPU_LIMIT", "700m")
    monkeypatch.setenv("K8S_REDIS_REPLICAS", "")
    given = runpy.run_path(str(EXAMPLE / "infra/group_data/codeclashers.py"))
    data = {key: value for key, value in given.items() if key != "os" and not key.startswith("__")}
    assert not [key for key, value in data.items() if isinstance(value, str) and "canary" in value], "no secret is host data"
    data |= {"codeclashers_colyseus_image": "ghcr.io/team/c:1", "codeclashers_bots_image": "ghcr.io/team/b:1"}
    found = load_host("cc-1", ["codeclashers"], data).codeclashers
    assert found is not None
    assert (found.colyseus_replicas, found.bots_cpu_limit, found.redis_replicas, found.aws_region) == (4, "700m", 1, "eu-west-1")
    assert found.mongodb_username == "someone"
