# ruff: noqa: B905, UP022 - Python 3.9; what is imported here serves the files behind it
# Sent to a host in front of observe.py, apply.py or manage.py, as one program. The standard library of Python 3.9.
"""What the programs about manifests share: kubectl, what is there, revisions, what is compared."""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zlib

MANAGER = "hostwright"
APPLICATION = "hostwright.io/application"
REVISION = "hostwright.io/revision"
STATE = "hostwright.io/state"
# What belongs to an application is looked for among these. A claim is its data: listed, never removed.
OWNED = (
    "deployments.apps", "statefulsets.apps", "daemonsets.apps", "services", "configmaps", "secrets", "serviceaccounts",
    "networkpolicies.networking.k8s.io", "poddisruptionbudgets.policy", "persistentvolumeclaims", "jobs.batch",
)  # fmt: skip
WORKLOADS = ("Deployment", "StatefulSet")
# What a pod waits for that waiting does not bring.
HOPELESS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff")  # fmt: skip
ASK_SECONDS = 120
LOCK_SECONDS = 300
# A server that is restarted, or whose etcd chooses another leader, answers again within moments: neither is a reason to take a release back.
AWAY = (
    "Unable to connect to the server", "connection to the server", "connection refused", "connection reset", "unexpected EOF", "TLS handshake timeout",
    "i/o timeout", "http2: client connection lost", "etcdserver:", "(ServiceUnavailable)", "the server is currently unable to handle the request",
)  # fmt: skip
AWAY_SECONDS = 120


class Failure(Exception):
    """What the operator has to know, in lines."""


class Missing(Failure):
    """No kubectl, or no cluster answers it."""


class Cluster:
    """kubectl on this host, and one application in one namespace. Objects and secrets go over stdin, names alone in argv."""

    def __init__(self, values):
        self.words = list(values["kubectl"])
        self.application = values["application"]
        self.namespace = values["namespace"]

    def run(self, *words, given=None, seconds=ASK_SECONDS):
        try:
            return subprocess.run(
                [*self.words, *words], input=given, stdin=subprocess.DEVNULL if given is None else None, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, errors="replace", timeout=seconds, env={**os.environ, "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
        except FileNotFoundError:
            raise Missing(f"{self.words[0]} is not on this host") from None
        except subprocess.TimeoutExpired:
            raise Failure(f"kubectl {' '.join(words[:2])}: no end within {seconds} s") from None

    def steadily(self, *words, given=None, seconds=ASK_SECONDS):
        """As ``run``, and again while the server is away: so nothing is asked by it that may not be asked twice."""
        until = time.monotonic() + AWAY_SECONDS
        while True:
            ended = self.run(*words, given=given, seconds=seconds)
            if not ended.returncode or time.monotonic() > until or not any(text in ended.stderr for text in AWAY):
                return ended
            time.sleep(1)

    def ask(self, *words, given=None, seconds=ASK_SECONDS):
        ended = self.steadily(*words, given=given, seconds=seconds)
        if ended.returncode:
            raise Failure(f"kubectl {' '.join(words[:2])}: {said(ended)}")
        return ended.stdout

    def items(self, *words, given=None):
        return listed(self.ask(*words, "-o", "json", given=given))

    def answers(self):
        """Whether a cluster is behind kubectl."""
        try:
            return self.run("get", "--raw", "/readyz", seconds=30).returncode == 0
        except Failure:
            return False

    def has_namespace(self):
        return bool(self.items("get", "namespaces", "--field-selector", f"metadata.name={self.namespace}"))

    # .. revisions

    def revisions(self):
        """Return the stored revisions, oldest first."""
        found = self.items("-n", self.namespace, "get", "configmaps", "-l", f"{APPLICATION}={self.application},{REVISION}")
        return sorted((Revision(item) for item in found), key=lambda one: one.number)

    def store(self, number, files, state):
        """Write a revision down. Secrets are in it by their names alone: those names change with their content."""
        packed = base64.b64encode(zlib.compress(json.dumps(without_secrets(files)).encode(), 9)).decode()
        labels = {APPLICATION: self.application, REVISION: str(number)}
        self.ask(
            "apply", "--server-side", f"--field-manager={MANAGER}", "--force-conflicts", "-f", "-",
            given=json.dumps({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": f"hostwright-{self.application}-r{number}", "namespace": self.namespace, "labels": labels,
                             "annotations": {STATE: state, "hostwright.io/digest": digest(files)}},
                "data": {"manifests": packed},
            }),
        )  # fmt: skip

    def mark(self, number, state):
        self.ask("-n", self.namespace, "annotate", "--overwrite", "configmap", f"hostwright-{self.application}-r{number}", f"{STATE}={state}")

    # .. objects

    def live(self, objects):
        """Return what is there of these objects, by key."""
        names = [f"{item['kind'].lower()}/{item['metadata']['name']}" for item in objects]
        found = self.items("-n", self.namespace, "get", "--ignore-not-found", *names) if names else []
        return {key_of(item): item for item in found}

    def dry(self, objects):
        """Return what the server would make of these objects, and why it would not."""
        if not objects:
            return {}, []
        words = ("apply", "--server-side", f"--field-manager={MANAGER}", "--force-conflicts", "--dry-run=server")
        ended = self.steadily(*words, "-o", "json", "-f", "-", given=as_list(objects))
        if ended.returncode == 0:
            return {key_of(item): item for item in listed(ended.stdout)}, []
        reasons = [line.strip() for line in ended.stderr.splitlines() if line.strip() and not line.startswith("Warning:")]
        if len(objects) > 1 and not all(any(item["metadata"]["name"] in line for item in objects) for line in reasons):
            # some refusals do not say whose they are: each is asked for by itself
            return {}, [f"{key_of(item)}: {line}" for item in objects for line in self.dry([item])[1]] or reasons
        return {}, reasons or [f"kubectl ended with status {ended.returncode}"]

    def apply(self, objects):
        if objects:
            self.ask("apply", "--server-side", f"--field-manager={MANAGER}", "--force-conflicts", "-f", "-", given=as_list(objects), seconds=300)

    def owned(self):
        """Return all that belongs to the application, by key; not the namespace, not the revisions."""
        found = self.items("-n", self.namespace, "get", ",".join(OWNED), "-l", f"{APPLICATION}={self.application},!{REVISION}", "--ignore-not-found")
        return {key_of(item): item for item in found}

    def delete(self, keys):
        """Remove objects; never a claim: it is data."""
        for key in keys:
            kind, _, name = key.rpartition("/")
            if kind not in ("PersistentVolumeClaim", "Namespace"):
                self.ask("-n", self.namespace, "delete", kind, name, "--ignore-not-found", "--wait=false")


class Revision:
    def __init__(self, item):
        self.number = int(item["metadata"]["labels"][REVISION])
        notes = item["metadata"].get("annotations", {})
        self.state, self.digest = notes.get(STATE, ""), notes.get("hostwright.io/digest", "")
        self._packed = item["data"]["manifests"]

    @property
    def is_good(self):
        """Whether it was rolled out once; also while it is applied again, which a killed run leaves so."""
        return self.state in ("good", "again")

    @property
    def files(self):
        return json.loads(zlib.decompress(base64.b64decode(self._packed)))


def say(line):
    sys.stdout.write(f"{line}\n")


def said(ended):
    lines = [line.strip() for line in ended.stderr.splitlines() if line.strip() and not line.startswith("Warning:")]
    return " / ".join(lines)[-1500:] or f"status {ended.returncode}"


def listed(text):
    """Return the objects of kubectl's JSON: a list, one object, or one after another."""
    found, decoder, at = [], json.JSONDecoder(), 0
    text = text.strip()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found += value["items"] if value.get("kind", "").endswith("List") and "items" in value else [value]
        while at < len(text) and text[at].isspace():
            at += 1
    return found


def as_list(objects):
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


def key_of(item):
    return f"{item['kind']}/{item['metadata']['name']}"


def flat(files):
    return [item for file in files for item in file["objects"]]


def without_secrets(files):
    def bare(item):
        return {k: v for k, v in item.items() if k not in ("data", "stringData")} if item["kind"] == "Secret" else item

    return [{"name": file["name"], "objects": [bare(item) for item in file["objects"]]} for file in files]


def digest(files):
    return hashlib.sha256(json.dumps(without_secrets(files), sort_keys=True).encode()).hexdigest()


def bare(item):
    """Return an object without what the server writes by itself."""
    kept = {k: v for k, v in item.items() if k != "status"}
    kept["metadata"] = {k: v for k, v in item["metadata"].items() if k not in ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")}  # fmt: skip
    for claim in kept.get("spec", {}).get("volumeClaimTemplates", []) if isinstance(kept.get("spec"), dict) else []:
        claim.pop("status", None)
        claim.get("metadata", {}).pop("creationTimestamp", None)
    return kept


def differing(one, other, path=""):
    """Return the paths at which two values differ, the first few."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in sorted({*one, *other}):
            found += differing(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
        return found
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [p for index, (a, b) in enumerate(zip(one, other)) for p in differing(a, b, f"{path}[{index}]")]
    return [] if one == other else [path]


def secret_differs(wanted, found):
    return wanted.get("data", {}) != found.get("data", {}) or wanted.get("type", "Opaque") != found.get("type")


def references(objects):
    """Return the keys of the secrets and config maps among these objects: what a kept revision must find again."""
    return {key_of(item) for item in objects if item["kind"] in ("Secret", "ConfigMap")}


def quantity(text):
    """Return a quantity of Kubernetes as a number."""
    text = str(text)
    units = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text)
    return float(found[1]) * units.get(found[2], 1) if found else 0.0


def requests(pod_spec):
    """Return the thousandths of a core and the bytes that a pod asks for."""
    def total(kind):
        parts = [quantity(c.get("resources", {}).get("requests", {}).get(kind, 0)) for c in pod_spec.get("containers", [])]
        first = [quantity(c.get("resources", {}).get("requests", {}).get(kind, 0)) for c in pod_spec.get("initContainers", [])]
        return max([sum(parts), *first])

    return round(total("cpu") * 1000), round(total("memory"))


@contextlib.contextmanager
def alone(application):
    """One program at a time changes an application from this host; one whose control machine died may still be at work."""
    os.makedirs("/run/hostwright", exist_ok=True)
    until = time.monotonic() + LOCK_SECONDS
    with open(f"/run/hostwright/manifests-{application}.lock", "a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Failure(f"another run changes {application} from this host now; wait for its end") from None
                time.sleep(1)
        yield


def compared(cluster, files, live):
    """Return (what would change, why the server refuses) without changing anything."""
    objects = flat(files)
    changes, plain = [], []
    for item in objects:
        key = key_of(item)
        if item["kind"] != "Secret":
            plain.append(item)
        elif key not in live:
            changes.append(f"create {key}")
        elif secret_differs(item, live[key]):
            changes.append(f"make {key} anew: its content is another one")
    if cluster.has_namespace():
        wanted, reasons = cluster.dry(plain)
        _, more = cluster.dry([item for item in objects if item["kind"] == "Secret" and key_of(item) not in live])
        reasons += more
    else:  # the server can judge them in a namespace that it has
        wanted = {}
        elsewhere = [{**o, "metadata": {**o["metadata"], "namespace": "default"}} for o in objects if "namespace" in o["metadata"]]
        _, reasons = cluster.dry(elsewhere)
    for item in plain:
        key = key_of(item)
        if key not in live:
            changes.append(f"create {key}")
        elif key in wanted and (paths := differing(bare(live[key]), bare(wanted[key]))):
            changes.append(f"change {key}: {', '.join(paths[:6])}{' …' if len(paths) > 6 else ''}")
    return changes, reasons
