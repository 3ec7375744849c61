# ruff: noqa: T201 - what it prints is what it is for
"""k3s kubectl: the real one, with manifests of newer API versions turned into those that the lab's 1.20 server has."""

import json
import os
import subprocess
import sys
import tempfile

from parts import BIN, ETC, VERSION, call, environment

OLDER = {
    ("policy/v1", "PodDisruptionBudget"): "policy/v1beta1",
    ("batch/v1", "CronJob"): "batch/v1beta1",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "autoscaling/v2beta2",
    ("discovery.k8s.io/v1", "EndpointSlice"): "discovery.k8s.io/v1beta1",
}
_SUFFIXES = (".yaml", ".yml", ".json")


def older(text: str) -> str:
    documents = _documents(text)
    for document in documents:
        for one in document.get("items", [document]) if document.get("kind") == "List" else [document]:
            key = (one.get("apiVersion"), one.get("kind"))
            one["apiVersion"] = OLDER.get(key, one.get("apiVersion"))
            _drop_unknown(one)
    return "\n".join(json.dumps(document) for document in documents)


def _documents(text: str) -> list:
    """JSON is YAML, and read a hundred times faster."""
    try:
        return [json.loads(text)]
    except ValueError:
        import yaml

        return [document for document in yaml.safe_load_all(text) if document]


def _drop_unknown(value: object) -> None:
    """Take away fields that came after 1.20 and only ask for more than it does."""
    if isinstance(value, dict):
        for key in ("unhealthyPodEvictionPolicy", "appArmorProfile", "trafficDistribution", "persistentVolumeClaimRetentionPolicy"):
            value.pop(key, None)
        for one in value.values():
            _drop_unknown(one)
    elif isinstance(value, list):
        for one in value:
            _drop_unknown(one)


def main(words: list[str]) -> None:
    if words[:2] == ["version", "--client"]:
        print(f"Client Version: {VERSION}")
        return
    if not any(word.startswith("--kubeconfig") for word in words) and "KUBECONFIG" not in os.environ:
        os.environ["KUBECONFIG"] = f"{ETC}/k3s.yaml"
    if not {"apply", "create", "replace", "diff", "delete"} & set(words):
        call(f"{BIN}/kubectl", *words)
    with tempfile.TemporaryDirectory(prefix="k3s-lab-") as scratch:
        changed, at = list(words), 0
        while at < len(changed):
            word = changed[at]
            if word in ("-f", "--filename") and at + 1 < len(changed):
                at += 1
                changed[at] = _converted(changed[at], scratch, at)
            elif word.startswith(("--filename=", "-f=")):
                changed[at] = "--filename=" + _converted(word.partition("=")[2], scratch, at)
            at += 1
        sys.exit(subprocess.run([f"{BIN}/kubectl", *changed], env=environment()).returncode)


def _converted(source: str, scratch: str, number: int) -> str:
    if source == "-":
        text = sys.stdin.read()
    elif os.path.isdir(source):
        folder = f"{scratch}/{number}"
        os.makedirs(folder)
        for name in sorted(os.listdir(source)):
            if name.endswith(_SUFFIXES):
                with open(f"{source}/{name}") as file, open(f"{folder}/{name}", "w") as out:
                    out.write(older(file.read()))
        return folder
    elif os.path.exists(source):
        with open(source) as file:
            text = file.read()
    else:
        return source
    path = f"{scratch}/{number}.yaml"
    with open(path, "w") as file:
        file.write(older(text))
    return path
