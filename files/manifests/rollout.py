# ruff: noqa: F821 - sent to a host behind cluster.py, as one program
"""Waiting for workloads, and what is said of those that do not come."""

POLL = 1.5
# How long a pod may wait for what waiting rarely brings before it is given up (s): images are pulled again, nodes come.
PATIENCE = 20
# Which ReplicaSet a Deployment is at.
ROLLOUT = "deployment.kubernetes.io/revision"


def pods_of(cluster, name):
    return cluster.items("-n", cluster.namespace, "get", "pods", "-l", f"app.kubernetes.io/name={name}")


def is_seen(item):
    """Whether the controller has taken note of what is wanted now."""
    return item.get("status", {}).get("observedGeneration", 0) >= item["metadata"].get("generation", 0)


def is_done(item):
    spec, status = item["spec"], item.get("status", {})
    wanted = spec.get("replicas", 1)
    if not is_seen(item):
        return False
    if item["kind"] == "Deployment":
        return status.get("updatedReplicas", 0) == wanted and status.get("replicas", 0) == wanted and status.get("availableReplicas", 0) == wanted
    updated = status.get("updatedReplicas", 0) == wanted or status.get("updateRevision") == status.get("currentRevision")
    return updated and status.get("readyReplicas", 0) == wanted and status.get("updateRevision") == status.get("currentRevision", status.get("updateRevision"))


def is_new(cluster, item, pod):
    """Whether a pod is of the workload's present template: that older ones are not well is what a new release may be for."""
    labels = pod["metadata"].get("labels", {})
    if item["kind"] == "StatefulSet":
        return labels.get("controller-revision-hash") == item.get("status", {}).get("updateRevision")
    number = item["metadata"].get("annotations", {}).get(ROLLOUT)
    for one in cluster.items("-n", cluster.namespace, "get", "replicasets", "-l", f"app.kubernetes.io/name={item['metadata']['name']}"):
        if one["metadata"].get("annotations", {}).get(ROLLOUT) == number and owner(one) == item["metadata"]["name"]:
            return labels.get("pod-template-hash") == one["metadata"].get("labels", {}).get("pod-template-hash")
    return False  # the controller has not begun


def owner(item):
    return next((one["name"] for one in item["metadata"].get("ownerReferences", []) if one.get("controller")), "")


def hopeless(pod):
    """Return why a pod will not come, if it can be seen already."""
    for condition in pod["status"].get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False" and condition.get("reason") == "Unschedulable":
            return f"no node takes it: {condition.get('message', '')}"
    for container in [*pod["status"].get("initContainerStatuses", []), *pod["status"].get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") in HOPELESS:
            last = container.get("lastState", {}).get("terminated", {})
            ended = f", it ended with status {last.get('exitCode')}" if last else ""
            return f"{waiting['reason']}{ended}: {waiting.get('message', '')}"
    return ""


def wait_for(cluster, names, seconds):
    """Wait for workloads (kind, name) to be rolled out. Raise Failure saying which is not, and why."""
    until = time.monotonic() + seconds
    since = {}
    while True:
        left = []
        for kind, name in names:
            item = cluster.items("-n", cluster.namespace, "get", kind.lower(), name)[0]
            if is_done(item):
                continue
            reason, seen = "", False
            for pod in pods_of(cluster, name):
                if "deletionTimestamp" in pod["metadata"]:
                    continue
                ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
                if kind == "StatefulSet" and not ready and not is_new(cluster, item, pod) and item.get("status", {}).get("updateRevision"):
                    # its controller waits for ever for an old pod that is not well
                    cluster.run("-n", cluster.namespace, "delete", "pod", pod["metadata"]["name"], "--wait=false")
                    continue
                why = hopeless(pod)
                if why and is_new(cluster, item, pod):
                    reason, seen = f"pod {pod['metadata']['name']}: {why}", True
            if seen:
                since.setdefault(name, time.monotonic())
                if time.monotonic() - since[name] > PATIENCE:
                    raise Failure(f"{kind.lower()} {name} does not roll out: {reason}")
            else:
                since.pop(name, None)
            failed = [c for c in item.get("status", {}).get("conditions", []) if c.get("reason") == "ProgressDeadlineExceeded"]
            if failed and is_seen(item):  # else it was said of what was wanted before
                raise Failure(f"{kind.lower()} {name} does not roll out: {failed[0].get('message')}")
            left.append((kind, name, reason))
        if not left:
            return
        if time.monotonic() > until:
            kind, name, reason = left[0]
            raise Failure(f"{kind.lower()} {name} was not rolled out within {seconds} s{': ' + reason if reason else ''}")
        time.sleep(POLL)


def masked(text, hidden):
    for value in sorted(hidden, key=len, reverse=True):
        text = text.replace(value, "*MASKED*")
    return text


def evidence(cluster, names, hidden):
    """Return the events and the last lines of pods of these workloads that are not ready."""
    lines = []
    for _, name in names:
        for pod in pods_of(cluster, name):
            if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])):
                continue
            one = pod["metadata"]["name"]
            events = cluster.items("-n", cluster.namespace, "get", "events", "--field-selector", f"involvedObject.name={one}")
            events.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
            told = [f"{event.get('reason')}: {event.get('message', '').strip()}" for event in events if event.get("type") != "Normal"]
            lines += [f"event of {one}: {text}" for text in list(dict.fromkeys(told))[-4:]]
            for more in (("--previous",), ()):
                logs = cluster.run("-n", cluster.namespace, "logs", one, "--all-containers", "--tail=8", *more)
                # of a container that the node has thrown away it says so, with status 0
                if logs.returncode == 0 and logs.stdout.strip() and not logs.stdout.startswith("unable to retrieve"):
                    lines += [f"log of {one}: {line}" for line in logs.stdout.strip().splitlines()[-8:]]
                    break
    return [masked(line, hidden)[:600] for line in lines[:40]]


def hidden_values(files):
    """Return the secret values that must not be seen in a report."""
    found = set()
    for item in flat(files):
        if item["kind"] == "Secret":
            for value in item.get("data", {}).values():
                text = base64.b64decode(value).decode(errors="replace")
                if item.get("type") == "kubernetes.io/dockerconfigjson":
                    # the names of registries are none, and say which one refused; a password stands in it as base64 of both
                    auths = [one.get("auth", "") for one in json.loads(text).get("auths", {}).values()]
                    found |= {part for auth in auths for part in (auth, base64.b64decode(auth).decode(errors="replace").partition(":")[2]) if len(part) >= 8}
                    continue
                found |= {part for part in [text, *re.split(r"[\s\"]+", text)] if len(part) >= 8}
    return found
