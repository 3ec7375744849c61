# ruff: noqa: F821 - names of the programs that come before this one
"""
What changes of replicas are made of: instances, jobs, nginx's switch. Comes after state.py.

Everything here runs under the engine's lock, and raises EngineError with what the operator has to know.
"""

MARKS_KEPT = 20


def put_in_place(path, text, mode):
    """Write a file beside and rename it, so that no moment and no crash shows half of it."""
    beside = os.path.join(os.path.dirname(path), "." + os.path.basename(path) + ".new")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(beside)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(beside, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def make_store(component):
    """The component's directory and all above it that is ours: root's alone, since specs hold secrets."""
    for path in (STORE, component.directory, os.path.join(component.directory, "specs")):
        os.makedirs(path, mode=0o700, exist_ok=True)
        os.chmod(path, 0o700)


def worker_name(component, release, number):
    """What tells one worker from every other, on all hosts."""
    return f"{component}-{release}-{number}@{socket.gethostname()}"


def placed(words, component, container):
    """Replace {worker}, {instance} and {host} where they stand in words."""
    values = {
        "{worker}": worker_name(component, container["release"], container["instance"]),
        "{instance}": str(container["instance"]),
        "{host}": socket.gethostname(),
    }
    for token, value in values.items():
        words = [word.replace(token, value) for word in words]
    return words


def make(name, spec, labels):
    """Create and start one container. Its environment lies in a file only while it is created: the engine keeps its own."""
    path = os.path.join(ENVIRONMENTS, name + ".env")
    remove(name)
    try:
        if spec["environment"]:
            write_private(path, spec["environment"])
        create(name, spec, labels, path if spec["environment"] else "")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    start(name)


# --- jobs ---------------------------------------------------------------------------------------------------------


def run_job(component, job, spec, seconds):
    """
    Run a spec's command to its end in a container of its own, once for each spec.

    A mark is left only when it ended well. What a killed run left of it is not started a second time: a container that
    still runs is waited for, one that ended well counts.
    """
    spec_hash = hash_of_spec(spec)
    folder = os.path.join(component.directory, "jobs", job)
    mark = os.path.join(folder, spec_hash[:12])
    if os.path.exists(mark):
        return
    make_store(component)
    name = f"{component.name}-{job}"
    image = ensure_image(spec["image"], spec["platform"])
    faults = missing(spec)
    if faults:
        fail("; ".join(faults))
    found = inspect("container", [name]).get(name)
    if found and label_of(found, "hostwright.job") != job:
        fail(f"there is a container {name} that is not this job's: remove or rename it")
    if found and is_running(found):
        say(f"{name} is still at work: waiting for it")
        await_end(name, seconds)
        found = inspect("container", [name]).get(name)
    is_ours = found and label_of(found, "hostwright.spec") == spec_hash
    if not (is_ours and found["State"]["Status"] == "exited" and found["State"]["ExitCode"] == 0):
        labels = {
            "hostwright.container": name,
            "hostwright.component": component.name,
            "hostwright.job": job,
            "hostwright.spec": spec_hash,
            "hostwright.release": spec_hash[:12],
            "hostwright.image": image["Id"],
        }
        make(name, dict(spec, restart="no", publish=[], health=None, networks=without_aliases(spec)), labels)
        await_end(name, seconds)
    state = inspect("container", [name])[name]["State"]
    if state["ExitCode"] != 0:
        why = "needs more memory than its limit" if state.get("OOMKilled") else "exit status {}".format(state["ExitCode"])
        words = last_lines(name, 60)
        remove(name)
        fail(f"{name} failed: {why}; it printed:\n{words}")
    put_in_place(mark, "", 0o600)
    remove(name)
    marks = sorted(os.scandir(folder), key=lambda entry: entry.stat().st_mtime)
    for entry in marks[:-MARKS_KEPT]:
        os.unlink(entry.path)


def await_end(name, seconds):
    """Wait until a job's container has ended; one that takes too long is stopped."""
    try:
        docker("wait", name, seconds=seconds)
    except EngineError as error:
        found = inspect("container", [name]).get(name)
        if found and not is_running(found):
            return
        words = last_lines(name)
        stop(name)
        remove(name)
        fail(f"{name}: {error}; it printed:\n{words}")


def without_aliases(spec):
    """The networks of a spec for what nobody shall find there."""
    return [dict(one, aliases=[]) for one in spec["networks"]]


# --- aliases ------------------------------------------------------------------------------------------------------

QUIET_SECONDS = 2

# Give the calling network namespace a further address on the interface that has the second one, and tell everybody there.
KEEP_ADDRESS = r"""
import socket, subprocess, sys
address, beside = sys.argv[1:]
device = subprocess.check_output(["ip", "-o", "addr", "show", "to", beside], text=True).split()[1].partition("@")[0]
subprocess.check_call(["ip", "addr", "add", address + "/32", "dev", device])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind((device, 0x806))
mac, ip = wire.getsockname()[4], socket.inet_aton(address)
wire.send(b"\xff" * 6 + mac + b"\x08\x06" + b"\0\1\x08\0\6\4\0\1" + mac + ip + b"\0" * 6 + ip)
"""


def hold(name, wanted):
    """Let a running container have exactly these aliases, {network: aliases}; on its other networks nothing changes."""
    found = inspect("container", [name]).get(name) or fail(f"{name} has been removed")
    there = aliases_of(found)
    for network, aliases in sorted(wanted.items()):
        if there.get(network) != sorted(aliases):
            join_anew(found, network, aliases)


def join_anew(container, network, aliases):
    """
    Put a container on a network under other aliases: the engine can change them in no other way.

    It comes back within a moment with the address it had, so that what is open to it goes on: what was sent meanwhile is
    sent again. Where the engine gives it another address, one that is to have no alias any more, and so will soon be gone,
    keeps its old one besides.
    """
    name = name_of(container)
    before = (container["NetworkSettings"].get("Networks") or {}).get(network)
    ways = [[]]
    if before:
        four, six = before.get("IPAddress"), before.get("GlobalIPv6Address")
        six = ["--ip6", six] if six else []
        # Refused at once for a network whose subnet the engine has chosen.
        ways = [["--ip", four, *six] if four else six, six, []]
        docker("network", "disconnect", network, name)
    words = [word for alias in aliases for word in ("--alias", alias)]
    for way in ways:
        try:
            docker("network", "connect", *words, *way, network, name)
            break
        except EngineError:
            if not way:
                raise
    if before and not aliases:
        now = inspect("container", [name])[name]
        address = now["NetworkSettings"]["Networks"][network]["IPAddress"]
        if is_running(now) and address != before["IPAddress"]:
            is_kept, said = ask_system(
                "nsenter", "-t", str(now["State"]["Pid"]), "-n", sys.executable, "-c", KEEP_ADDRESS, before["IPAddress"], address
            )
            if not is_kept:
                say(f"{name} has another address on {network}, and what was open to the old one is cut: {said[-500:]}")


def open_inside(container):
    """Return how many connections are open to what a container listens on, those from itself apart."""
    sockets = []
    for kind in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open("/proc/{}/net/{}".format(container["State"]["Pid"], kind)) as file:
            sockets += [line.split()[1:4] for line in list(file)[1:]]
    listening = {local.rpartition(":")[2] for local, _, state in sockets if state == "0A"}
    # 127.x.x.x, also mapped into IPv6, and ::1
    is_own = re.compile(r"(0{16}FFFF0000)?[0-9A-F]{6}7F|0{24}01000000").fullmatch
    count = 0
    for local, _, state in sockets:
        address, _, port = local.rpartition(":")
        count += state in ("01", "03") and port in listening and not is_own(address)
    return count


def drain_inside(names, seconds):
    """
    Wait until nobody has a connection to these, at most so long.

    Who has asked for the address just before the alias was gone comes a moment later.
    """
    end = time.monotonic() + seconds
    quiet_since = time.monotonic()
    while time.monotonic() < end:
        if any(open_inside(one) for one in inspect("container", names).values() if is_running(one)):
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since >= QUIET_SECONDS:
            return
        time.sleep(0.1)


# --- nginx --------------------------------------------------------------------------------------------------------


def nginx_workers():
    """
    Return the processes of nginx that hold client connections, as {(pid, start time): shuts down}.

    A pid alone may be another process by the time it is looked at again.
    """
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/cmdline") as file:
                title = file.read()
            if title.startswith("nginx: worker process"):
                with open(f"/proc/{entry}/stat") as file:
                    found[entry, file.read().rpartition(")")[2].split()[19]] = "shutting down" in title
        except OSError:
            continue
    return found


def open_connections(ports):
    """Return how many connections lead from this host to these loopback ports."""
    ends = {f"0100007F:{port:04X}" for port in ports}
    count = 0
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(path) as file:
            for line in list(file)[1:]:
                fields = line.split()
                # 01 is ESTABLISHED, 02 SYN_SENT; an IPv4 address mapped into IPv6 ends like the IPv4 one.
                count += fields[3] in ("01", "02") and fields[2][-13:] in ends
    return count


def ask_system(*argv):
    """Run a command of the host; return (whether it succeeded, what it printed)."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except FileNotFoundError:
        return False, f"{argv[0]} is not installed"
    return done.returncode == 0, done.stdout.strip()


class Nginx:
    """A component's upstream file, and the workers of nginx that may still lead where it led before."""

    def __init__(self, upstream):
        self.upstream = upstream
        self.path = os.path.join(UPSTREAM_FILES, upstream + ".conf")
        self.old_workers = {worker for worker, shuts_down in nginx_workers().items() if shuts_down}

    def text(self):
        try:
            with open(self.path) as file:
                return file.read()
        except OSError:
            return None

    def leads_to(self):
        """The ports that the file names; none when it is broken."""
        found = servers_of(self.text() or "", self.upstream)
        ends = [server.rpartition(":")[2] for server in found[0]] if found else []
        return [int(end) for end in ends if end.isdigit()]

    def lead_to(self, ports):
        """Send every new request to these ports. When nginx refuses, what the file said before stands there again."""
        before = self.text()
        found = servers_of(before or "", self.upstream)
        text = before
        if not found or found[0] != wanted_servers(ports):
            others = found[1] if found else ["keepalive 16", "keepalive_timeout 4s"]
            lines = ["server " + server for server in wanted_servers(ports)] + others
            text = "upstream {} {{\n{}}}\n".format(self.upstream, "".join(f"    {line};\n" for line in lines))
            put_in_place(self.path, text, 0o644)
        try:
            self._load()
        except EngineError:
            if text != before:
                if before is None:
                    os.unlink(self.path)
                else:
                    put_in_place(self.path, before, 0o644)
                    with contextlib.suppress(EngineError):
                        self._load()
            raise

    def _load(self):
        """Have nginx run on the file, and on nothing before it."""
        if not nginx_fault(self.path):
            return
        is_good, said = ask_system("nginx", "-t", "-q")
        if not is_good:
            fail("nginx refuses its configuration: " + said)
        self.old_workers |= set(nginx_workers())
        is_good, said = ask_system("systemctl", "reload-or-restart", "nginx.service")
        if not is_good:
            fail("nginx does not reload: " + said)
        end = time.monotonic() + 30
        while True:
            fault = nginx_fault(self.path)
            # For a moment old workers still take new connections: what is asked then would be answered by what was before.
            takes_new = [worker for worker, shuts_down in nginx_workers().items() if not shuts_down]
            if not fault and not self.old_workers.intersection(takes_new):
                return
            if time.monotonic() > end:
                fail(f"nginx was reloaded and does not run on {self.path}: {fault or 'old workers go on'}")
            time.sleep(0.1)

    def drain(self, ports, seconds):
        """
        Wait until no request is on its way to these ports, at most so long.

        A worker from before the switch counts even without a connection to them: it may still be reading an upload that
        it is going to send there.
        """
        end = time.monotonic() + seconds
        while open_connections(ports) or self.old_workers & set(nginx_workers()):
            if time.monotonic() >= end:
                return
            time.sleep(0.1)
