# ruff: noqa: F821 - names of the programs that come before this one
"""
Bring a component's replicas to what is wanted. Comes after container/engine.py, state.py and work.py.

    action      converge, rollback (to ``release``), scale (to ``count``), remove
    wanted      what is wanted, as operations/replicas.py describes it; null: what the store says
    spec        the container spec; null: what the store says
    migrate     words of a command that the new image runs before any of its instances starts; may be empty.
                It may take ``migrate_seconds``
    lock_seconds  how long to wait for another change of containers

New instances come up beside the old ones and prove themselves before anything else is touched; whatever fails until
then, the old ones go on. ``current.json`` is written at the moment of the switch, so a run killed before it leaves
instances that never served, and one killed after it leaves old ones that no request reaches. Either is put right by the
next run.
"""

import threading

PATIENCE_SECONDS = 10


class Instances:
    """A component's instances of one release."""

    def __init__(self, component, wanted, spec, image_id):
        self.component, self.wanted, self.spec, self.image_id = component, wanted, spec, image_id
        self.release = wanted["spec_hash"][:12]
        self.is_worker = wanted["kind"] == "workers"
        self.aliases = wanted.get("aliases", {})

    def name(self, color, number):
        return f"{self.component.name}-{self.release if self.is_worker else color}-{number}"

    def ports(self, color, numbers):
        return [port_of(self.wanted, color, number) for number in numbers] if self.wanted["ports"] else []

    def start(self, color, number):
        """Make one instance."""
        name = self.name(color, number)
        spec = dict(self.spec, image=self.pinned())
        if self.aliases:
            # It has no name of the component before it is well.
            spec["networks"] = without_aliases(spec)
        published = [
            {"port": port, "container_port": self.wanted["container_port"], "address": "127.0.0.1", "proto": "tcp"}
            for port in self.ports(color, [number])
        ]
        taken = ports_taken(published)
        if taken:
            fail("; ".join(taken))
        spec["publish"] = published
        labels = {
            "hostwright.container": name,
            "hostwright.component": self.component.name,
            "hostwright.spec": self.wanted["spec_hash"],
            "hostwright.release": self.release,
            "hostwright.instance": str(number),
            "hostwright.image": self.image_id,
        }
        if self.is_worker:
            rows = [row for row in spec["environment"].splitlines() if not row.startswith("WORKER_NAME=")]
            rows.append("WORKER_NAME=" + worker_name(self.component.name, self.release, number))
            spec["environment"] = "\n".join(rows) + "\n"
            spec["command"] = placed(spec["command"], self.component.name, {"release": self.release, "instance": number})
        else:
            labels["hostwright.color"] = color
        make(name, spec, labels)
        return name

    def pinned(self):
        """The image's name while it means the release's image, else that image's id: a tag may have moved since."""
        here = inspect("image", [self.spec["image"]]).get(self.spec["image"])
        return self.spec["image"] if here and here["Id"] == self.image_id else self.image_id

    def take_aliases(self, names):
        """Have the healthy ones found under the component's aliases as well, and see that they stay healthy."""
        if not self.aliases:
            return
        for name in names:
            hold(name, self.aliases)
        if names:
            self.prove(names, adopted=names)

    def prove(self, names, adopted=()):
        """
        Wait until all of these are healthy, and watch them stay so in one and the same process for a while.

        Raises EngineError with the last words of the one that failed.
        """
        try:
            self._prove(names, adopted)
        except Died as death:
            # Down first: a crash loop would go on printing.
            with contextlib.suppress(EngineError):
                stop(death.name)
            words = last_lines(death.name)
            fail("{}; it printed:\n{}".format(mask(str(death), self.spec["environment"]), words))

    def _prove(self, names, adopted):
        there = inspect("container", names)
        restarts = {name: there[name]["RestartCount"] if name in adopted and name in there else 0 for name in names}
        end = time.monotonic() + self.wanted["start_seconds"]
        healthy_since = None
        while True:
            there = inspect("container", names)
            waits = {}
            for name in names:
                if name not in there:
                    raise Died(name, "has been removed")
                death = _death(there[name], restarts[name])
                if death:
                    raise Died(name, death.strip())
                fault = self._fault(there[name])
                if fault:
                    waits[name] = fault
            if not waits:
                healthy_since = healthy_since or time.monotonic()
                if time.monotonic() - healthy_since >= self.wanted["settle_seconds"]:
                    return
            else:
                name, fault = next(iter(waits.items()))
                if healthy_since is not None:
                    raise Died(name, "was healthy, and then it was not: " + fault)
                if health_of(there[name]) == "unhealthy" or time.monotonic() >= end:
                    seconds = self.wanted["start_seconds"]
                    raise Died(name, f"did not become healthy within {seconds} s: {fault}")
            time.sleep(0.2)

    def _fault(self, container):
        """Return what its health check or its health path says against it."""
        if self.wanted["has_health"] and health_of(container) != "healthy":
            checks = (container["State"].get("Health") or {}).get("Log") or [{}]
            words = (checks[-1].get("Output") or "").strip()[-300:]
            return "{} {}".format(health_of(container) or "no health check", words)
        if self.wanted["health_path"] and self.wanted["ports"]:
            return answer_fault(described(container)["port"], self.wanted["health_path"])
        return ""


class Died(Exception):
    """An instance that is not well, and why."""

    def __init__(self, name, why):
        super().__init__(f"{name} {why}")
        self.name = name


class Change:
    """One run of the program, under the lock."""

    def __init__(self, component, wanted, spec, migrate=(), migrate_seconds=0):
        self.component, self.wanted, self.spec = component, wanted, spec
        self.migrate, self.migrate_seconds = list(migrate), migrate_seconds
        self.nginx = Nginx(wanted["upstream"]) if wanted["upstream"] else None
        self.numbers = range(1, wanted["count"] + 1)

    def run(self):
        found = self.component.containers()
        needs = self.component.needs(self.wanted, found)
        # Decided before the lock was free, on a state that another run may have changed since.
        if not reasons(needs):
            return
        if not needs["switch"]:
            found, needs = self.be_patient(found, needs)
        if needs["switch"] or self.nothing_good_is_left(found, needs):
            self.switch(found, needs["switch"])
        else:
            self.mend(found, needs)

    # --- another release, or the same one on the other colour ---------------------------------------------------

    def switch(self, found, why):
        component, wanted = self.component, self.wanted
        instances = Instances(component, wanted, self.spec, self.image())
        color = self.free_color(found, why)
        faults = missing(self.spec)
        if faults:
            fail("; ".join(faults))
        if self.migrate:
            run_job(component, "migrate", dict(self.spec, command=self.migrate), self.migrate_seconds)

        good, bad = [], []
        for one in found:
            if self.is_of(one, color, instances.release):
                is_wanted = one["instance"] in self.numbers and one["name"] == instances.name(color, one["instance"])
                (good if is_wanted and not component.fault(one, wanted, color) else bad).append(one)
        # What an earlier run left of this colour never served, or serves no more.
        self.retire(bad)
        kept = [one["name"] for one in good]
        names = list(kept)
        try:
            for number in self.numbers:
                if instances.name(color, number) not in kept:
                    names.append(instances.name(color, number))
                    instances.start(color, number)
            if names:
                instances.prove(names, adopted=kept)
            instances.take_aliases(names)
            if self.nginx:
                self.lead_to(instances.ports(color, self.numbers), [one for one in found if one not in bad])
        except EngineError as error:
            self.retire([one for one in component.containers() if one["name"] in names])
            old = component.current()
            serves = "release {} serves as before".format(old["release"]) if old else "nothing serves yet"
            fail(f"release {instances.release} of {component.name} is not taken: {error}\n{serves}")
        self.record(instances.release, color, instances.image_id)
        self.retire([one for one in found if one["name"] not in names and one not in bad])
        self.prune()

    def free_color(self, found, why):
        """The colour for the new instances: the one that does not serve, or one that already is as wanted."""
        if self.wanted["kind"] == "workers":
            return ""
        current = self.component.current()
        if current.get("color") in COLORS:
            return COLORS[1 - COLORS.index(current["color"])]
        # The record is lost: what stands there decides.
        for color in COLORS:
            mine = [one for one in found if one["color"] == color and one["instance"] in self.numbers]
            if len(mine) == len(self.numbers) and not any(self.component.fault(one, self.wanted, color) for one in mine):
                return color
        serving = {one["color"] for one in found if one["state"] == "running"}
        if self.nginx:
            leads_to = set(self.nginx.leads_to())
            serving = {one["color"] for one in found if one["port"] in leads_to} or serving
        return "green" if "blue" in serving else "blue"

    def is_of(self, container, color, release):
        return container["color"] == color and (bool(color) or container["release"] == release)

    def lead_to(self, ports, old):
        """Send requests to the new ports, and back to the old ones when no good answer comes through nginx."""
        before = self.nginx.leads_to()
        self.nginx.lead_to(ports)
        try:
            self.probe()
        except EngineError:
            there = {one["port"] for one in old if one["state"] == "running"}
            if before and set(before) <= there and before != ports:
                self.nginx.lead_to(before)
            raise

    def probe(self):
        probe = self.wanted["probe"]
        end = time.monotonic() + self.wanted["probe_seconds"]
        while probe:
            try:
                done = subprocess.run(
                    ["sh", "-c", probe], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True, errors="replace", timeout=15,
                )  # fmt: skip
                said = done.stdout.strip()[-500:]
                if done.returncode == 0:
                    return
            except subprocess.TimeoutExpired:
                said = "no end within 15 s"
            if time.monotonic() >= end:
                fail(f"no good answer through nginx: {probe}: {said}")
            time.sleep(0.3)

    # --- the same release ---------------------------------------------------------------------------------------

    def be_patient(self, found, needs):
        """One that starts, or that did not answer just now, gets its time."""
        began = time.monotonic()
        while needs["replace"]:
            waits_for = [one for one in self.mine(found) if str(one["instance"]) in needs["replace"]]
            seconds = PATIENCE_SECONDS
            if any(one["health"] == "starting" for one in waits_for):
                seconds = max(seconds, self.wanted["start_seconds"])
            if not any(one["state"] == "running" for one in waits_for) or time.monotonic() - began >= seconds:
                break
            time.sleep(0.5)
            found = self.component.containers()
            needs = self.component.needs(self.wanted, found)
        return found, needs

    def mine(self, found):
        current = self.component.current()
        return [
            one
            for one in found
            if (one["color"], one["release"]) == (current["color"], current["release"]) and one["instance"] in self.numbers
        ]

    def nothing_good_is_left(self, found, needs):
        """Whether something runs, though badly, and nothing else could serve while it is made anew: so, beside it."""
        if self.wanted["kind"] == "workers" or len(needs["replace"]) < self.wanted["count"]:
            return False
        return any(one["state"] == "running" for one in self.mine(found))

    def mend(self, found, needs):
        """Make the instances that are missing or not well; the others are not touched."""
        component = self.component
        current = component.current()
        color, release = current["color"], current["release"]
        mine = self.mine(found)
        bad = [one for one in mine if str(one["instance"]) in needs["replace"]]
        good = [one for one in mine if one not in bad]
        instances = Instances(component, self.wanted, self.spec, self.image() if needs["replace"] else "")
        if needs["aliases"]:
            instances.take_aliases([one["name"] for one in good])
        if needs["replace"]:
            faults = missing(self.spec)
            if faults:
                fail("; ".join(faults))
            if self.nginx and good:
                self.nginx.lead_to(instances.ports(color, sorted(one["instance"] for one in good)))
            self.retire(bad)
            names = []
            try:
                for number in sorted(map(int, needs["replace"])):
                    names.append(instances.name(color, number))
                    instances.start(color, number)
                instances.prove(names)
                instances.take_aliases(names)
            except EngineError as error:
                self.retire([one for one in component.containers() if one["name"] in names])
                fail(f"{len(good)} of {len(self.numbers)} instances serve: {error}")
        if self.nginx:
            self.nginx.lead_to([port_of(self.wanted, color, number) for number in self.numbers])
        self.record(release, color, self.recorded_image(release) or self.image())
        self.retire([one for one in found if one not in mine])

    # --- what both need -----------------------------------------------------------------------------------------

    def recorded_image(self, release):
        stored = self.component.stored(release)
        return stored["image_id"] if stored else ""

    def image(self):
        """The id of the release's image: the one it was switched to, as long as that can be had."""
        stored = self.component.stored(self.wanted["spec_hash"][:12])
        platform = self.spec["platform"]
        if stored:
            if inspect("image", [stored["image_id"]]):
                return stored["image_id"]
            if stored.get("image_digest"):
                return ensure_image(stored["image_digest"], platform)["Id"]
        return ensure_image(self.spec["image"], platform)["Id"]

    def record(self, release, color, image_id):
        """Write down what serves: the spec first, for whoever reads the record must find it."""
        component = self.component
        make_store(component)
        image = inspect("image", [image_id]).get(image_id) or {}
        stored = {
            "spec": self.spec,
            "settings": settings_of(self.wanted),
            "image_id": image_id,
            "image_digest": (image.get("RepoDigests") or [""])[0],
        }
        put_in_place(component.path_of(release), json.dumps(stored, indent=1, sort_keys=True), 0o600)
        current = {
            "release": release,
            "spec_hash": self.wanted["spec_hash"],
            "color": color,
            "count": self.wanted["count"],
            "settings": settings_of(self.wanted),
        }
        path = os.path.join(component.directory, "current.json")
        put_in_place(path, json.dumps(current, indent=1, sort_keys=True), 0o600)
        history = component.history()
        if history[-1:] != [release]:
            text = "".join(f"{one}\n" for one in [*history, release][-20:])
            put_in_place(os.path.join(component.directory, "history"), text, 0o600)

    def prune(self):
        """Forget the specs that served before the last ``keep``."""
        last = list(dict.fromkeys(reversed(self.component.history())))[: self.wanted["keep"]]
        for release in self.component.releases():
            if release not in last:
                os.unlink(self.component.path_of(release))

    def retire(self, found):
        """Send instances home that get no new work: they finish what they have, are stopped and are gone."""
        running = [one for one in found if one["state"] == "running"]
        finish_workers(self.component, [one for one in running if not one["color"]], self.wanted)
        ports = [one["port"] for one in running if one["color"] and one["port"]]
        if self.nginx and ports:
            self.nginx.drain(ports, self.wanted["drain_seconds"])
        self.let_go_of_aliases([one for one in running if one["color"]])
        stop_all(one["name"] for one in running)
        for one in found:
            remove(one["name"])


    def let_go_of_aliases(self, running):
        """Nobody finds them any more; whoever has already found them is waited for."""
        holders = [one for one in running if any(one["aliases"].values())]
        for one in holders:
            hold(one["name"], {network: [] for network, aliases in one["aliases"].items() if aliases})
        # A run killed here has taken the aliases away, and not waited.
        leaving = running if self.wanted.get("aliases") else holders
        if leaving:
            drain_inside([one["name"] for one in leaving], self.wanted["drain_seconds"])


def stop_all(names):
    names = list(names)
    try:
        if names:
            docker("stop", *names, seconds=7200)
    except EngineError:
        # One of them was removed meanwhile: so be it.
        if any(is_there(name) for name in names):
            raise


def finish_workers(component, running, wanted):
    """Have workers take no more tasks and wait until they have none, each with the words of its own release."""
    threads = []
    for one in running:
        stored = component.stored(one["release"])
        settings = stored["settings"] if stored and stored["settings"].get("kind") == "workers" else wanted
        end = time.monotonic() + wanted["drain_seconds"]
        threads.append(threading.Thread(target=finish_worker, args=(component, one, settings, end)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def finish_worker(component, container, settings, end):
    quiesce = placed(settings.get("quiesce") or [], component.name, container)
    busy = placed(settings.get("busy") or [], component.name, container)
    said = ""
    while quiesce:
        status, said = run_inside(container["name"], quiesce)
        if status == 0:
            break
        if not is_there(container["name"]):
            return
        if time.monotonic() >= end:
            # Its stop signal still lets it end in order.
            say("{} would not stop taking tasks: {}".format(container["name"], said[-500:]))
            return
        time.sleep(1)
    while busy and is_there(container["name"]):
        status, said = run_inside(container["name"], busy)
        if is_idle(status, said):
            return
        if time.monotonic() >= end:
            say("{} still has tasks: {}".format(container["name"], said[-500:]))
            return
        time.sleep(0.5)


def is_idle(status, said):
    """A number on its last line is how many tasks run; without one the exit status tells."""
    words = said.split()
    return status == 0 and not (words and words[-1].isdigit() and int(words[-1]) > 0)


def is_there(name):
    found = inspect("container", [name]).get(name)
    return bool(found) and is_running(found)


def run_inside(name, words):
    """Run a command in a container; return its exit status and what it printed."""
    try:
        done = subprocess.run(
            ["docker", "exec", name, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", timeout=60,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, "no end within 60 s"
    return done.returncode, done.stdout.strip() or done.stderr.strip()


def take_away(component):
    """End all replicas of a component and forget it."""
    found = component.containers()
    current = component.current()
    if current and found:
        Change(component, component.recorded(), None).retire(found)
    for one in found:
        remove(one["name"])
    for one in containers("hostwright.component=" + component.name):
        remove(name_of(one))
    ask_system("rm", "-rf", component.directory)


def main(values):
    outlive_the_caller()
    component = Component(values["component"])
    try:
        with locked(values["lock_seconds"]):
            work(component, values)
    except EngineError as error:
        say(f"{component.name}: {error}")
        sys.exit(1)


def work(component, values):
    action, wanted, spec = values["action"], values["wanted"], values["spec"]
    if action == "remove":
        take_away(component)
        return
    if action == "scale":
        wanted = component.recorded(values["count"])
    elif action == "rollback":
        stored = component.stored(values["release"]) or fail("that release is not stored on this host")
        wanted = dict(stored["settings"], component=component.name, spec_hash=hash_of_spec(stored["spec"]))
        wanted["count"] = component.current().get("count", 1)
    if spec is None:
        stored = component.stored(wanted["spec_hash"][:12]) or fail("its spec is not stored on this host")
        spec = stored["spec"]
    Change(component, wanted, spec, values["migrate"], values["migrate_seconds"]).run()
