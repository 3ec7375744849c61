# Take a node out of service, give it back, or set its labels and taints, on a server that has kubectl.
# main(values): action (leave, return, describe), node, and
#   leave: seconds, reason;  return: version, seconds;  describe: labels {}, taints [], owned {"labels": [], "taints": []}
import json
import subprocess
import sys
import time

K3S = "/usr/local/bin/k3s"
MARK = "hostwright/out-of-service"
OWNED = "hostwright/described"


def refuse(*lines):
    sys.stderr.write("\n".join(lines) + "\n")
    sys.exit(1)


def kubectl(*words, check=True, seconds=60):
    done = subprocess.run([K3S, "kubectl", *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds)
    if check and done.returncode:
        refuse("kubectl {}: {}".format(words[0], done.stderr.decode(errors="replace").strip()[-1500:]))
    return done


def get(*words):
    return json.loads(kubectl("get", *words, "-o", "json").stdout)


def matches(selector, labels):
    if selector is None:
        return False
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions") or []:
        has, values = rule["key"] in labels, rule.get("values") or []
        good = {"In": has and labels.get(rule["key"]) in values, "NotIn": not has or labels.get(rule["key"]) not in values,
                "Exists": has, "DoesNotExist": not has}[rule["operator"]]  # fmt: skip
        if not good:
            return False
    return True


def share(value, of):
    """A number, or a percentage of one, rounded up as Kubernetes does."""
    return -(-of * int(value[:-1]) // 100) if isinstance(value, str) and value.endswith("%") else int(value)


def figures(budget, pods):
    """How many pods a PodDisruptionBudget expects, and how many must be healthy: as its controller counted, or from what it asks for
    while it has not: a new one would block a drain unseen."""
    status, spec = budget.get("status") or {}, budget["spec"]
    # With a number of pods that must be available, the controller counts those that are going too.
    counted = status.get("observedGeneration", 0) >= budget["metadata"].get("generation", 0)
    if counted and not isinstance(spec.get("minAvailable"), int):
        return status.get("expectedPods", 0), status.get("desiredHealthy", 0)
    expected = len([p for p in pods if p["metadata"]["namespace"] == budget["metadata"]["namespace"] and matches(spec.get("selector"), p["metadata"].get("labels") or {})])
    if "minAvailable" in spec:
        return expected, share(spec["minAvailable"], expected)
    return expected, expected - share(spec.get("maxUnavailable", 0), expected)


def obstacles(node):
    """Return what would keep the node from being emptied for ever, one line each, before anything is done."""
    lines = []
    # One that is going is no longer counted by a budget, nor in a drain's way for ever.
    everywhere = [p for p in get("pods", "-A")["items"]
                  if p["status"].get("phase") not in ("Succeeded", "Failed") and "deletionTimestamp" not in p["metadata"]]  # fmt: skip
    pods = [p for p in everywhere if p["spec"].get("nodeName") == node]
    movable = []
    for pod in pods:
        name, owners = pod["metadata"]["namespace"] + "/" + pod["metadata"]["name"], pod["metadata"].get("ownerReferences") or []
        if "kubernetes.io/config.mirror" in (pod["metadata"].get("annotations") or {}) or any(o["kind"] == "DaemonSet" for o in owners):
            continue
        if not owners:
            lines.append(f"pod {name} belongs to nobody and would be lost: delete it, or make it a Deployment")
        movable.append(pod)
    for budget in get("poddisruptionbudgets", "-A")["items"]:
        space = budget["metadata"]["namespace"]
        covered = [p for p in movable if p["metadata"]["namespace"] == space and matches(budget["spec"].get("selector"), p["metadata"].get("labels") or {})]
        expected, needed = figures(budget, everywhere)
        if covered and expected and expected - needed < 1:
            lines.append("PodDisruptionBudget {}/{} allows no disruption even when all is well ({} pods, {} must be healthy): it would block "
                         "the drain for ever. Give it maxUnavailable: 1, or run one more replica".format(space, budget["metadata"]["name"], expected, needed))  # fmt: skip
    return lines


def takes(node, pod):
    """Whether a node could take a pod, as far as its labels and taints say; room and volumes are not looked at."""
    labels, spec = node["metadata"].get("labels") or {}, pod["spec"]
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    for taint in node["spec"].get("taints") or []:
        borne = [one for one in spec.get("tolerations") or []
                 if one.get("key") in (None, "", taint["key"]) and one.get("effect") in (None, "", taint["effect"])
                 and (one.get("operator") == "Exists" or one.get("value", "") == taint.get("value", ""))]  # fmt: skip
        if taint["effect"] != "PreferNoSchedule" and not borne:
            return False
    return True


def homeless(node, others):
    """Return the pods of a node that no other one takes. Drained, they would be missing until it is back; several under one budget
    would even block the drain for ever, since the second waits for the first to be well again."""
    found = []
    for pod in get("pods", "-A")["items"]:
        owners = pod["metadata"].get("ownerReferences") or []
        moves = pod["spec"].get("nodeName") == node and pod["status"].get("phase") not in ("Succeeded", "Failed") and "deletionTimestamp" not in pod["metadata"]
        if moves and owners and not any(one["kind"] in ("DaemonSet", "Node") for one in owners) and not any(takes(other, pod) for other in others):
            found.append(pod["metadata"]["namespace"] + "/" + pod["metadata"]["name"])
    return sorted(found)


def leave(values):
    node = values["node"]
    there = kubectl("get", "node", node, "--ignore-not-found", "-o", "json").stdout
    if not there.strip():
        sys.stdout.write(f"{node} is not in the cluster: there is nothing to take out of service\n")
        return
    found = json.loads(there)
    if values["reason"] == "uninstall" and not any(c["type"] == "Ready" and c["status"] == "True" for c in found["status"].get("conditions", [])):
        sys.stdout.write(f"{node} is not Ready and cannot be drained: its pods are started elsewhere once it is gone\n")
        return
    others = [n for n in get("nodes")["items"] if n["metadata"]["name"] != node and not n["spec"].get("unschedulable")
              and any(c["type"] == "Ready" and c["status"] == "True" for c in n["status"].get("conditions", []))]  # fmt: skip
    if not others:
        sys.stdout.write(f"{node} is not drained: no other node could take its pods; they run on while k3s restarts" + "\n")
        return
    stay = homeless(node, others)
    if stay:
        sys.stdout.write(f"{node} is not drained: no other node takes {', '.join(stay[:3])}{' and others' if len(stay) > 3 else ''}; all pods run on while k3s restarts" + "\n")
        return
    by_hand = found["spec"].get("unschedulable") and MARK not in (found["metadata"].get("annotations") or {})
    lines = obstacles(node)
    if lines:
        refuse(f"{node} is not drained, nothing was changed:", *("    " + line for line in lines))
    if not by_hand:
        kubectl("annotate", "--overwrite", "node", node, "{}={}".format(MARK, values["reason"]))
    kubectl("cordon", node)
    done = kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout={}s".format(values["seconds"]),
                   check=False, seconds=values["seconds"] + 60)  # fmt: skip
    if done.returncode:
        if not by_hand:
            kubectl("uncordon", node, check=False)
            kubectl("annotate", "node", node, MARK + "-", check=False)
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if not line.startswith("Warning")]
        refuse("{} could not be drained within {} s; it is back in service:".format(node, values["seconds"]), *("    " + line for line in said[-6:]))


def back(values):
    node, version, end = values["node"], values["version"], time.monotonic() + values["seconds"]
    while True:
        done = kubectl("get", "node", node, "-o", "json", check=False)
        found = json.loads(done.stdout) if done.returncode == 0 else None
        if found:
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in found["status"].get("conditions", []))
            says = found["status"]["nodeInfo"]["kubeletVersion"]
            if ready and (not version or says == version):
                break
        if time.monotonic() > end:
            state = "{}, version {}".format("Ready" if ready else "not Ready", says) if found else "not in the cluster"
            refuse("node {}: must be Ready with {} within {} s, is {}".format(node, version, values["seconds"], state))
        time.sleep(1)
    if MARK in (found["metadata"].get("annotations") or {}):
        kubectl("uncordon", node)
        kubectl("annotate", "node", node, MARK + "-")


def describe(values):
    node, labels, taints, owned = values["node"], values["labels"], values["taints"], values["owned"]
    gone = [key for key in owned.get("labels", []) if key not in labels]
    words = ["{}={}".format(*pair) for pair in sorted(labels.items())] + [key + "-" for key in gone]
    if words:
        kubectl("label", "--overwrite", "node", node, *words)
    lost = [one for one in owned.get("taints", []) if one not in taints]
    for one in lost:
        kubectl("taint", "node", node, one + "-", check=False)
    if taints:
        kubectl("taint", "--overwrite", "node", node, *taints)
    kubectl("annotate", "--overwrite", "node", node, OWNED + "=" + json.dumps({"labels": sorted(labels), "taints": sorted(taints)}))


def delete(values):
    kubectl("delete", "node", values["node"], "--ignore-not-found")


def main(values):
    {"leave": leave, "return": back, "describe": describe, "delete": delete}[values["action"]](values)
