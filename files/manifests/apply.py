# ruff: noqa: F821 - sent to a host behind cluster.py and rollout.py, as one program
"""Applies manifests in order, each file's workloads gated; when one fails, what was good before comes back."""


def workloads(objects):
    return [(item["kind"], item["metadata"]["name"]) for item in objects if item["kind"] in WORKLOADS]


def put(cluster, files, seconds, live_secrets=True):
    """Apply files in order, and wait for the workloads of each before the next."""
    for file in files:
        objects = []
        for item in file["objects"]:
            if item["kind"] == "Secret" and "data" not in item:
                continue  # of a stored revision: it is there, or its workloads say that it is not
            objects.append(item)
        renew(cluster, objects)
        cluster.apply(objects)
        wait_for(cluster, workloads(objects), seconds)


def renew(cluster, objects):
    """Remove what cannot be changed in place: a secret or a config map under our name with another content."""
    fixed = [item for item in objects if item["kind"] in ("Secret", "ConfigMap") and item.get("immutable")]
    found = cluster.live(fixed)
    for item in fixed:
        there = found.get(key_of(item))
        if there and there.get("data", {}) != item.get("data", {}):
            cluster.delete([key_of(item)])


def good_ones(cluster):
    return [one for one in cluster.revisions() if one.is_good]


def clean_up(cluster, files, keep):
    """Remove what is ours and in no kept revision, and revisions past the kept ones."""
    good = good_ones(cluster)
    kept = good[-keep:]
    stored = references(flat([file for one in kept for file in one.files]))
    wanted = {key_of(item) for item in flat(files)}
    gone = [key for key in sorted(cluster.owned()) if key not in wanted and key not in stored and not key.startswith("PersistentVolumeClaim/")]
    cluster.delete(gone)
    for one in cluster.revisions():
        if one.number not in {each.number for each in kept}:
            cluster.delete([f"ConfigMap/hostwright-{cluster.application}-r{one.number}"])
    return gone


def bring_back(cluster, good, files, seconds):
    """Apply the last good revision, and remove what came with the failed one."""
    put(cluster, good.files, seconds)
    stored = {key_of(item) for item in flat(good.files)}
    kept = references(flat([file for one in good_ones(cluster) for file in one.files]))
    new = [key_of(item) for item in flat(files)]
    cluster.delete([key for key in new if key not in stored and key not in kept and key in cluster.owned()])


def converge(cluster, files, values):
    changes, refused = compared(cluster, files, cluster.live(flat(files)))
    if refused:
        raise Failure("the server refuses the manifests, nothing was changed:\n" + "\n".join(refused[:10]))
    first = [item for item in flat(files) if item["kind"] == "Namespace"]
    cluster.apply(first)
    revisions = cluster.revisions()
    good = [one for one in revisions if one.is_good]
    before = good[-1] if good else None
    same = before is not None and before.digest == digest(files)
    number = before.number if same else max([0, *(one.number for one in revisions)]) + 1
    cluster.store(number, files, "again" if same else "pending")
    try:
        put(cluster, files, values["rollout_seconds"])
    except Failure as failure:
        told = [str(failure), *evidence(cluster, workloads(flat(files)), hidden_values(files))]
        if before is None or same:
            if not same:
                cluster.mark(number, "failed")
            told.append(f"{'it is what was' if same else 'nothing was'} good before: it was left as it is, the next run goes on")
            raise Failure("\n".join(told)) from None
        try:
            bring_back(cluster, before, files, values["rollout_seconds"])
        except Failure as second:
            told.append(f"revision {before.number}, which was good, did not come back: {second}")
            raise Failure("\n".join(told)) from None
        cluster.mark(number, "failed")
        told.append(f"revision {before.number} is back: workloads, config and secrets")
        raise Failure("\n".join(told)) from None
    cluster.mark(number, "good")
    gone = clean_up(cluster, files, values["keep"])
    for line in [*changes, *(f"remove {key}" for key in gone)]:
        say(line)
    say(f"revision {number} is good")


def roll_back(cluster, values):
    """Apply the good revision before the present one, and take note that the present one was left."""
    good = good_ones(cluster)
    if len(good) < 2:
        raise Failure(f"there is no good revision before {good[-1].number if good else 'the first'}")
    present, wanted = good[-1], good[-2]
    missing = sorted(key for key in references(flat(wanted.files)) if key.startswith("Secret/") and key not in cluster.owned())
    if missing:
        raise Failure(f"revision {wanted.number} needs {', '.join(missing)}, which is gone")
    try:
        put(cluster, wanted.files, values["rollout_seconds"])
    except Failure as failure:
        told = [str(failure), *evidence(cluster, workloads(flat(wanted.files)), set())]
        try:
            put(cluster, present.files, values["rollout_seconds"])
        except Failure as second:
            raise Failure("\n".join([*told, f"revision {present.number}, which served, did not come back: {second}"])) from None
        raise Failure("\n".join([*told, f"revision {present.number} is back"])) from None
    stored = {key_of(item) for item in flat(wanted.files)}
    kept = references(flat([file for one in good for file in one.files]))
    owned = cluster.owned()
    cluster.delete([key for key in (key_of(item) for item in flat(present.files)) if key not in stored and key not in kept and key in owned])
    cluster.mark(present.number, "left")
    say(f"revision {wanted.number} serves again, {present.number} was left")


def main(values):
    cluster = Cluster(values)
    try:
        with alone(cluster.application):
            if not cluster.answers():
                raise Failure("no cluster answers kubectl on this host")
            if values["action"] == "rollback":
                roll_back(cluster, values)
            else:
                converge(cluster, values["files"], values)
    except Failure as failure:
        for line in str(failure).splitlines():
            sys.stderr.write(f"{cluster.application}: {line}\n")
        sys.exit(1)
