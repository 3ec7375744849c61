# ruff: noqa: F821 - sent to a host behind cluster.py and registry.py, as one program
"""The fact: what would change, what the server refuses, what the nodes have; as one line of JSON."""

PULLS = "kubernetes.io/dockerconfigjson"


def nodes_of(cluster, mine):
    """Return the nodes, and what pods that are not of the application ask for on each."""
    nodes = {}
    for item in cluster.items("get", "nodes"):
        room = item["status"].get("allocatable", {})
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in item["status"].get("conditions", []))
        nodes[item["metadata"]["name"]] = {
            "labels": item["metadata"].get("labels", {}), "taints": item["spec"].get("taints", []), "ready": ready,
            "unschedulable": item["spec"].get("unschedulable", False), "architecture": item["status"].get("nodeInfo", {}).get("architecture", ""),
            "cpu": round(quantity(room.get("cpu", 0)) * 1000), "memory": round(quantity(room.get("memory", 0))), "pods": int(quantity(room.get("pods", 110))),
            "others_cpu": 0, "others_memory": 0, "others_pods": 0,
        }  # fmt: skip
    for pod in cluster.items("get", "pods", "--all-namespaces"):
        node = nodes.get(pod["spec"].get("nodeName", ""))
        if node is None or pod["status"].get("phase") in ("Succeeded", "Failed"):
            continue
        labels = pod["metadata"].get("labels", {})
        is_mine = pod["metadata"]["namespace"] == cluster.namespace and labels.get("app.kubernetes.io/name") in mine
        if is_mine and "deletionTimestamp" not in pod["metadata"]:
            continue
        cpu, memory = requests(pod["spec"])
        node["others_cpu"] += cpu
        node["others_memory"] += memory
        node["others_pods"] += 1
    return nodes


def new_images(objects, live):
    """Return the images that no workload of the application has now, with the workloads that want them."""
    def images(item):
        return [c["image"] for c in item["spec"]["template"]["spec"]["containers"]]

    has = {image for item in live.values() if item["kind"] in WORKLOADS for image in images(item)}
    found = {}
    for item in objects:
        if item["kind"] in WORKLOADS:
            for image in images(item):
                if image not in has:
                    found.setdefault(image, []).append(item["metadata"]["name"])
    return found


def look(values, answer):
    cluster = Cluster(values)
    files = values["files"]
    objects = flat(files)
    if not cluster.answers():
        return
    answer["engine"] = True
    live = cluster.live(objects)
    has_namespace = cluster.has_namespace()
    answer["changes"], answer["refused"] = compared(cluster, files, live)
    if has_namespace:
        revisions = cluster.revisions()
        good = [one for one in revisions if one.is_good]
        answer["revision"] = good[-1].number if good else 0
        # what a killed run left half-way, or what was never written down as good
        newest = revisions[-1] if revisions else None
        begun = [one for one in revisions if one.state == "again" or (one is newest and one.state not in ("good", "failed", "left"))]
        if begun or newest is None:
            answer["unfinished"] = f"revision {begun[-1].number} was not finished" if begun else "no revision is stored"
        elif not answer["changes"] and (not good or good[-1].digest != digest(files)):
            answer["unfinished"] = "what stands is not stored as a revision"
        kept = references(flat([file for one in good[-values["keep"]:] for file in one.files]))
        wanted = {key_of(item) for item in objects}
        answer["changes"] += [
            f"remove {key}" for key in sorted(cluster.owned())
            if key not in wanted and key not in kept and not key.startswith("PersistentVolumeClaim/")
        ]  # fmt: skip
    mine = [item["metadata"]["name"] for item in objects if item["kind"] in WORKLOADS]
    answer["nodes"] = nodes_of(cluster, mine)
    # a new account has to get all of them: else the first pod that moves would say that it does not
    is_new = any(item.get("type") == PULLS and key_of(item) not in live for item in objects)
    answer["images"] = new_images(objects, {} if is_new else live)
    if values["check_images"] and answer["images"]:
        architectures = sorted({node["architecture"] for node in answer["nodes"].values()})
        wanted = {
            image: {"workloads": names, "architectures": [a for a in architectures if all(allowed(objects, name, a) for name in names)]}
            for image, names in answer["images"].items()
        }
        answer["image_faults"] = image_faults(wanted, values["account"], values["account_given_by"])


def allowed(objects, name, architecture):
    """Whether a workload may run on nodes of an architecture."""
    for item in objects:
        if item["kind"] in WORKLOADS and item["metadata"]["name"] == name:
            asked = item["spec"]["template"]["spec"].get("nodeSelector", {}).get("kubernetes.io/arch")
            return asked in (None, architecture)
    return True


def main(values):
    answer = {"engine": False}
    try:
        look(values, answer)
    except Failure as failure:
        answer["failure"] = str(failure)
    say(json.dumps(answer))
