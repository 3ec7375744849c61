"""
How the cluster is, as the API server of this host tells it, for node_exporter's textfile collector: `k3s.py DIRECTORY`.

Python 3.9, standard library. It asks the API server on loopback with the kubeconfig that k3s writes for root, and only
reads. The certificate and its key go from there to the TLS library through memory: they are in no further file.
"""

import base64
import http.client
import json
import os
import re
import ssl
import sys
import urllib.parse

KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"
# no list is waited for longer than this (s)
PATIENCE = 10


def in_memory(text):
    """Return the path of a file that lives as long as this process, and nowhere but in its memory."""
    handle = os.memfd_create("k3s")
    os.write(handle, text)
    return f"/proc/self/fd/{handle}"


def connection(text):
    """Return what reaches the API server that a kubeconfig of k3s names, as whom it names."""

    def value(key):
        found = re.search(rf"(?m)^\s*{key}:\s*(\S+)\s*$", text)
        return found[1] if found else ""

    context = ssl.create_default_context(cadata=base64.b64decode(value("certificate-authority-data")).decode())
    # k3s signs for every name and address of its own; loopback is among them
    context.load_cert_chain(*(in_memory(base64.b64decode(value(key))) for key in ("client-certificate-data", "client-key-data")))
    where = urllib.parse.urlsplit(value("server"))
    return http.client.HTTPSConnection(where.hostname, where.port or 6443, timeout=PATIENCE, context=context)


def node_figures(nodes):
    for node in nodes:
        labels = {"node": node["metadata"]["name"]}
        conditions = {one["type"]: one["status"] for one in node["status"].get("conditions", [])}
        yield "node_ready", labels, int(conditions.pop("Ready", "") == "True")
        yield "node_schedulable", labels, int(not node["spec"].get("unschedulable", False))
        for condition, status in sorted(conditions.items()):
            yield "node_condition", {**labels, "condition": condition}, int(status == "True")


def workload_figures(workloads):
    """A workload that is being rolled out has, for a while, fewer than it wants: alerts wait for it."""
    for kind, one in workloads:
        labels = {"kind": kind, "namespace": one["metadata"]["namespace"], "workload": one["metadata"]["name"]}
        status = one.get("status", {})
        if kind == "DaemonSet":
            wanted, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
        else:
            wanted, ready = one["spec"].get("replicas", 1), status.get("readyReplicas", 0)
        yield "workload_wanted", labels, wanted
        yield "workload_ready", labels, ready


def pod_figures(pods):
    phases = {}
    for pod in pods:
        space, status = pod["metadata"]["namespace"], pod["status"]
        phase = status.get("phase", "Unknown")
        phases[space, phase] = phases.get((space, phase), 0) + 1
        for container in status.get("containerStatuses", []):
            labels = {"namespace": space, "pod": pod["metadata"]["name"], "container": container["name"]}
            yield "container_restarts_total", labels, container["restartCount"]
    for (space, phase), count in sorted(phases.items()):
        yield "pods", {"namespace": space, "phase": phase}, count


def claim_figures(claims):
    for claim in claims:
        labels = {"namespace": claim["metadata"]["namespace"], "claim": claim["metadata"]["name"]}
        yield "claim_bound", labels, int(claim["status"].get("phase") == "Bound")


def job_figures(jobs):
    """Jobs that have failed for good: one that is tried again is none yet."""
    for job in jobs:
        conditions = {one["type"]: one["status"] for one in job.get("status", {}).get("conditions", [])}
        yield "job_failed", {"namespace": job["metadata"]["namespace"], "job_name": job["metadata"]["name"]}, int(conditions.get("Failed") == "True")


def collected(api):
    """Yield (metric, labels, value); the first one says whether the API server is well."""

    def items(path):
        api.request("GET", path)
        answer = api.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise OSError(f"{path}: the API server says {answer.status}")
        return json.loads(body)["items"]

    api.request("GET", "/readyz")
    answer = api.getresponse()
    answer.read()
    yield "up", {}, int(answer.status == 200)
    yield from node_figures(items("/api/v1/nodes"))
    yield from pod_figures(items("/api/v1/pods"))
    yield from claim_figures(items("/api/v1/persistentvolumeclaims"))
    workloads = [(kind, one) for kind in ("Deployment", "StatefulSet", "DaemonSet") for one in items(f"/apis/apps/v1/{kind.lower()}s")]
    yield from workload_figures(workloads)
    yield from job_figures(items("/apis/batch/v1/jobs"))
    # the certificate that it answers with: k3s renews its own when it starts within 90 days of their end
    ends = api.sock.getpeercert().get("notAfter") if api.sock else None
    if ends:
        yield "certificate_expiry_timestamp_seconds", {}, int(ssl.cert_time_to_seconds(ends))


def escaped(text):
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def text(figures):
    """Return the page: (metric, labels, value) of each."""
    samples = {}
    for metric, labels, value in figures:
        words = ",".join(f'{key}="{escaped(word)}"' for key, word in sorted(labels.items()))
        samples.setdefault(metric, []).append(f"hostwright_k3s_{metric}{{{words}}} {value}")
    lines = []
    for metric, rows in samples.items():
        lines += [f"# TYPE hostwright_k3s_{metric} {'counter' if metric.endswith('_total') else 'gauge'}", *sorted(rows)]
    return "\n".join(lines) + "\n"


def main(directory):
    try:
        with open(KUBECONFIG) as file:
            figures = list(collected(connection(file.read())))
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        # what it was able to tell before may be old: of a server that does not answer, only that
        sys.stderr.write(f"{error}\n")
        figures = [("up", {}, 0)]
    new = os.path.join(directory, ".k3s.prom.new")
    with open(new, "w") as file:
        file.write(text(figures))
    os.chmod(new, 0o644)
    os.replace(new, os.path.join(directory, "k3s.prom"))


if __name__ == "__main__":
    main(sys.argv[1])
