# ruff: noqa: F821 - sent to a host behind cluster.py and rollout.py, as one program
"""Looks at an application, scales or restarts one of its workloads, checks its health."""


def find(cluster, workload):
    for item in cluster.owned().values():
        if item["kind"] in WORKLOADS and item["metadata"]["name"] == workload:
            return item
    known = sorted(item["metadata"]["name"] for item in cluster.owned().values() if item["kind"] in WORKLOADS)
    raise Failure(f"no workload {workload!r}; there are {', '.join(known) or 'none'}")


def status(cluster, values):
    good = [one for one in cluster.revisions() if one.is_good]
    say(f"revision {good[-1].number if good else 'none'}, rollback goes to {good[-2].number if len(good) > 1 else 'none'}")
    for item in cluster.owned().values():
        if item["kind"] not in WORKLOADS:
            continue
        name, its = item["metadata"]["name"], item.get("status", {})
        image = item["spec"]["template"]["spec"]["containers"][0]["image"]
        say(f"{name}: {its.get('readyReplicas', 0)} of {item['spec'].get('replicas', 1)} ready{'' if is_done(item) else ', rolling out'}, {image}")
        for pod in pods_of(cluster, name):
            restarts = sum(c.get("restartCount", 0) for c in pod["status"].get("containerStatuses", []))
            why = hopeless(pod)
            ending = "deletionTimestamp" in pod["metadata"]
            say(f"  {pod['metadata']['name']} on {pod['spec'].get('nodeName', '-')}: {'Terminating' if ending else pod['status'].get('phase')}, {restarts} restarts{', ' + why if why else ''}")
    for item in cluster.items("-n", cluster.namespace, "get", "services"):
        reached = item.get("status", {}).get("loadBalancer", {}).get("ingress", [])
        where = ", ".join(one.get("ip") or one.get("hostname", "") for one in reached)
        ports = ", ".join(f"{port['port']}{':' + str(port['nodePort']) if 'nodePort' in port else ''}" for port in item["spec"].get("ports", []))
        say(f"service {item['metadata']['name']}: {item['spec'].get('type')} {ports}{' at ' + where if where else ''}")


def health(cluster, values):
    """Ask every component from inside its own container, as the guide does by hand."""
    bad = []
    for check in values["checks"]:
        item = find(cluster, check["workload"])
        kind = item["kind"].lower()
        wanted, ready = item["spec"].get("replicas", 1), item.get("status", {}).get("readyReplicas", 0)
        reason = "" if ready == wanted else f"{ready} of {wanted} pods are ready"
        if not reason and check["command"]:
            ended = cluster.run("-n", cluster.namespace, "exec", f"{kind}/{check['workload']}", "--", *check["command"], seconds=60)
            reason = "" if ended.returncode == 0 else (ended.stderr or ended.stdout).strip()[-200:] or f"status {ended.returncode}"
        say(f"{check['workload']}: {reason or 'well'}")
        if reason:
            bad.append(check["workload"])
    if bad:
        raise Failure(f"not well: {', '.join(bad)}")


def scale(cluster, values):
    item = find(cluster, values["workload"])
    kind, name = item["kind"], values["workload"]
    before = item["spec"].get("replicas", 1)
    cluster.ask("-n", cluster.namespace, "scale", kind.lower(), name, f"--replicas={values['replicas']}")
    try:
        wait_for(cluster, [(kind, name)], values["rollout_seconds"])
    except Failure as failure:
        told = [str(failure), *evidence(cluster, [(kind, name)], set())]
        cluster.ask("-n", cluster.namespace, "scale", kind.lower(), name, f"--replicas={before}")
        raise Failure("\n".join([*told, f"scaled back to {before}"])) from None
    say(f"{name}: {before} -> {values['replicas']} pods")


def restart(cluster, values):
    item = find(cluster, values["workload"])
    kind, name = item["kind"], values["workload"]
    cluster.ask("-n", cluster.namespace, "rollout", "restart", f"{kind.lower()}/{name}")
    try:
        wait_for(cluster, [(kind, name)], values["rollout_seconds"])
    except Failure as failure:
        raise Failure("\n".join([str(failure), *evidence(cluster, [(kind, name)], set())])) from None
    say(f"{name}: all pods are new")


def main(values):
    cluster = Cluster(values)
    try:
        if not cluster.answers():
            raise Failure("no cluster answers kubectl on this host")
        if values["action"] in ("scale", "restart"):
            with alone(cluster.application):
                {"scale": scale, "restart": restart}[values["action"]](cluster, values)
        else:
            {"status": status, "health": health}[values["action"]](cluster, values)
    except Failure as failure:
        for line in str(failure).splitlines():
            sys.stderr.write(f"{cluster.application}: {line}\n")
        sys.exit(1)
