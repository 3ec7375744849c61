"""One lab host: a Debian system with systemd as PID 1 and sshd, on an overlay, in a network namespace of its own.

systemd-nspawn boots it. A small supervisor process (this module run as a program) stands for the power supply: it
gives each boot a fresh network namespace and boots again when the host asks for a reboot.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab import cache, cgroups, faults, image, network
from tests.lab.state import LabError, Process, lock, run, slot_directory, ssh_key, wait_for

PIP_CACHE = "/var/cache/lab-pip"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_POWER_OFF = signal.SIGRTMIN + 4  # systemd's "start poweroff.target", see systemd(1), SIGNALS
_STOPPING = 200  # seconds; containers that outlive their engine get systemd's 90 s
_REBOOT_STATUS = 133  # systemd-nspawn --keep-unit leaves the reboot to whoever started it, by this exit status
# A host has no CAP_SYS_TIME (the clock is the outer machine's); -x lets chronyd run without steering it.
_CHRONY = """[Unit]
ConditionCapability=
[Service]
ExecStart=
ExecStart=!/usr/sbin/chronyd -x $DAEMON_OPTS
"""
# Docker wants to make control groups; nspawn mounts the hierarchies read-only. A unit, so that every boot does it.
_CGROUPS = """[Unit]
Description=Let this host make control groups of its own
DefaultDependencies=no
Before=sysinit.target containerd.service docker.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -ec 'for d in /sys/fs/cgroup /sys/fs/cgroup/*; do ! mountpoint -q $$d || mount -o remount,bind,rw $$d; done'
"""


@dataclass(frozen=True)
class Plan:
    """What a host is made from; kept beside it so that another process (or a later one) can take it over."""

    slot: int
    name: str
    index: int
    release: str
    layer: str
    architecture: str = "amd64"


def directory(slot: int, name: str) -> Path:
    """Return where a host's files are kept on the outer machine."""
    return slot_directory(slot) / "hosts" / name


def plans(slot: int) -> list[Plan]:
    """Return the hosts that exist in a slot, running or not."""
    files = sorted(slot_directory(slot).glob("hosts/*/plan.json"))
    return [Plan(**json.loads(file.read_text())) for file in files]


class LabHost:
    """A host of the lab; made by :meth:`create` or found again by :meth:`find`.

    ``name``, ``address``, ``address6``, ``netns`` (for ``ip netns exec``) and ``directory`` are plain attributes.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.name = plan.name
        self.address = network.address(plan.slot, plan.index)
        self.address6 = network.address6(plan.slot, plan.index)
        self.netns = network.namespace(plan.slot, plan.name)
        self.directory = directory(plan.slot, plan.name)
        self._root = self.directory / "root"
        self._power = Process(self.directory / "power.pid")
        self._nspawn = Process(self.directory / "nspawn.pid")

    def __repr__(self) -> str:
        return f"<LabHost {self.name} {self.address} {self.plan.release}/{self.plan.layer}>"

    # --- life -------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, slot: int, name: str, release: str, layer: str, index: int | None = None, architecture: str = "amd64"
    ) -> LabHost:
        """Make a pristine host and boot it; an older host of the same name in the slot is destroyed first.

        + index: last part of both addresses, 2 to 254; by default the first free one from 100
        """
        network.create(slot)  # first: while a slot is in use, nobody takes the cache away from the build
        image.get(release, layer, architecture)
        cache.start()
        for plan in plans(slot):
            if plan.name == name:
                cls(plan).destroy()
        with lock(f"slot-{slot}"):
            taken = {plan.index for plan in plans(slot)}
            chosen = index if index is not None else min(set(range(100, 255)) - taken)
            if chosen in taken:
                raise LabError(f"{name}: index {chosen} of slot {slot} is taken")
            host = cls(Plan(slot, name, chosen, release, layer, architecture))
            host.directory.mkdir(parents=True)
            (host.directory / "plan.json").write_text(json.dumps(asdict(host.plan)))
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{name}", "-f", host.directory / "host_key")
        write_known_hosts(slot)
        host._make_root()
        host.boot()
        return host

    @classmethod
    def find(cls, slot: int, name: str) -> LabHost:
        """Return an existing host. Raises LabError when the slot has none of that name."""
        for plan in plans(slot):
            if plan.name == name:
                return cls(plan)
        raise LabError(f"{name}: no such host in slot {slot}")

    def boot(self) -> None:
        """Switch the host on and wait until it answers by SSH. Does nothing when it runs."""
        if self._power.pid is None:
            self._power.start(sys.executable, "-m", "tests.lab.hosts", self.directory, log=self.directory / "power.log")
        self._wait_until_up()

    def power_off(self) -> None:
        """Shut the host down in order, as the power button does. An emulated one has none: its plug is pulled."""
        if self.plan.architecture != "amd64":
            return self.kill()
        leader = self.leader
        if leader is not None:
            os.kill(leader, _POWER_OFF)
        if not self._power.wait(_STOPPING):
            raise LabError(f"{self.name}: did not power off within {_STOPPING} s")

    def kill(self) -> None:
        """Pull the plug: every process of the host dies at once and flushes nothing.

        The kernel, which is the outer machine's, may close their connections in order: :meth:`cut_link` first for a host
        that falls silent.
        """
        self._power.signal(signal.SIGKILL)  # first, or it would see to the rest
        leader = self.leader
        if leader is not None:
            os.kill(leader, signal.SIGKILL)
        if not self._nspawn.wait(20):
            raise LabError(f"{self.name}: did not die within 20 s")
        self._power.stop()

    def reboot(self) -> None:
        """Reboot from inside and wait until the host answers again."""
        before = self.leader
        self.run("systemctl reboot", check=False)
        wait_for(f"{self.name}: reboot", lambda: self.leader not in (None, before), _STOPPING)
        self._wait_until_up()

    def reset(self, to: str = "") -> None:
        """Make the host pristine again, with the same name, addresses and host key, and boot it.

        + to: a state kept by :meth:`save` to go back to instead
        """
        saved = self.directory / "saved" / to
        if to and not saved.exists():
            raise LabError(f"{self.name}: no saved state {to!r}")
        self._discard()
        if to:
            shutil.copy(saved / "layers", self.directory / "layers")
            run("cp", "-a", saved / "docker", self.directory)
            self._mount_root()
        else:
            (self.directory / "layers").unlink(missing_ok=True)
            self._make_root()
        self.boot()

    def save(self, name: str) -> None:
        """Keep all that the host has written, under a name, for :meth:`reset`. It is switched off meanwhile.

        What was written becomes a layer below, as it is: a copy would give every file a new change time.
        """
        self.power_off()
        run("umount", self._root)
        saved = self.directory / "saved" / name
        saved.mkdir(parents=True)
        run("mv", self.directory / "up", saved / "up")
        run("cp", "-a", self.directory / "docker", saved)
        layers = "".join(f"{layer}\n" for layer in (saved / "up", *self._layers))
        (saved / "layers").write_text(layers)
        (self.directory / "layers").write_text(layers)
        shutil.rmtree(self.directory / "work")
        self._mount_root()
        self.boot()

    def destroy(self) -> None:
        """Remove the host and everything it left on the outer machine."""
        self._discard()
        network.detach(self.plan.slot, self.name, self.plan.index)
        shutil.rmtree(self.directory)
        write_known_hosts(self.plan.slot)

    @property
    def running(self) -> bool:
        """Whether the host is switched on."""
        return self.leader is not None

    @property
    def leader(self) -> int | None:
        """The host's PID 1, as a pid of the outer machine; None when the host is off."""
        nspawn = self._nspawn.pid
        if nspawn is None:
            return None
        try:
            children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
            for child in children:
                for line in Path(f"/proc/{child}/status").read_text().splitlines():
                    if line.startswith("NSpid:") and line.split()[-1] == "1" and len(line.split()) == 3:
                        return int(child)
        except OSError:
            pass
        return None

    # --- inside -----------------------------------------------------------------------------------------------

    def run(
        self, cmd: str, check: bool = True, input: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root inside the host, not over the network, so that it works with a cut link.

        + timeout: seconds, after which the command is killed inside the host and its exit status is 124
        + check: raise LabError, with both outputs, when the exit status is not 0
        """
        leader = self.leader
        if leader is None:
            raise LabError(f"{self.name}: is switched off")
        argv = ["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--",
                "env", "-i", f"PATH={_PATH}", "HOME=/root", "LANG=C.UTF-8", "SHELL=/bin/sh",
                "timeout", "--kill-after=5", str(timeout), "sh", "-c", cmd]  # fmt: skip
        done = subprocess.run(
            argv, text=True, input=input, capture_output=True, timeout=timeout + 20, errors="replace",
            stdin=subprocess.DEVNULL if input is None else None,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {cmd}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def read(self, path: str) -> str:
        """Return a file's text. Raises LabError when it cannot be read."""
        return self.run(f"cat -- {shlex.quote(path)}").stdout

    def write(self, path: str, text: str, mode: str = "0644") -> None:
        """Write a file as root, creating missing directories."""
        quoted = shlex.quote(path)
        self.run(f"mkdir -p -- \"$(dirname -- {quoted})\" && cat > {quoted} && chmod {mode} -- {quoted}", input=text)

    def exists(self, path: str) -> bool:
        """Return whether a path exists (a dangling link does too)."""
        quoted = shlex.quote(path)
        return self.run(f"test -e {quoted} || test -L {quoted}", check=False).returncode == 0

    def ssh(self, cmd: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command as root over SSH, with the host key checked: what an operator would see."""
        done = subprocess.run(
            [*self.ssh_argv, cmd], text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout
        )
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: ssh {cmd}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    @property
    def ssh_argv(self) -> list[str]:
        """The ssh command line that reaches the host as root."""
        return ["ssh", "-F", "none", "-i", str(ssh_key()), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
                "-o", f"UserKnownHostsFile={known_hosts(self.plan.slot)}", "-o", "StrictHostKeyChecking=yes",
                f"root@{self.address}"]  # fmt: skip

    @property
    def data(self) -> dict[str, object]:
        """The connection data of the host in a pyinfra inventory."""
        return connection(self.plan.slot, self.address)

    # --- faults -----------------------------------------------------------------------------------------------

    def cut_link(self) -> None:
        """Cut the network cable; :meth:`run` still works."""
        network.set_link(self.plan.slot, self.plan.index, up=False)

    def restore_link(self) -> None:
        """Plug the cable in again."""
        network.set_link(self.plan.slot, self.plan.index, up=True)

    def fill_disk(self, path: str, free_kib: int = 0) -> None:
        """Let a directory run full; see :func:`tests.lab.faults.fill_disk`."""
        faults.fill_disk(self, path, free_kib)

    def free_disk(self) -> None:
        """End all :meth:`fill_disk` faults of this host."""
        faults.free_disk(self)

    # --- inner workings ---------------------------------------------------------------------------------------

    def _wait_until_up(self) -> None:
        try:
            patience = 120 if self.plan.architecture == "amd64" else 600
            wait_for("sshd", self._sshd_greets, patience)
            wait_for("end of boot", self._booted, patience)
        except LabError as error:
            raise LabError(f"{self.name}: {error}; its console says: {self._last_words()}") from None

    def _sshd_greets(self) -> bool:
        if self._power.pid is None:
            raise LabError("switched off by itself")
        try:
            with socket.create_connection((self.address, 22), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _last_words(self) -> str:
        logs = (self.directory / name for name in ("console.log", "power.log"))
        return " / ".join(log.read_text(errors="replace")[-500:] for log in logs if log.exists())

    def _booted(self) -> bool:
        state = self.run("systemctl is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def _discard(self) -> None:
        """Switch off without ceremony and drop everything the host has written."""
        self.kill()
        cgroups.remove(f"{self.plan.slot}-{self.name}")
        while os.path.ismount(self._root):
            run("umount", self._root)
        run("rm", "-rf", "--one-file-system", *(self.directory / part for part in ("up", "work", "docker")))

    @property
    def _layers(self) -> tuple[Path, ...]:
        """What lies below what the host writes now: its image, or a saved state."""
        file = self.directory / "layers"
        if file.exists():
            return tuple(map(Path, file.read_text().split()))
        return image.get(self.plan.release, self.plan.layer, self.plan.architecture).layers

    def _mount_root(self) -> None:
        image.mount(self._layers, self.directory / "up", self.directory / "work", self._root)

    def _make_root(self) -> None:
        """Mount a fresh overlay and give it what makes it this host and no other."""
        self._mount_root()
        (self.directory / "docker").mkdir()
        root, name = self._root, self.name
        _put(root / "etc/hostname", f"{name}\n")
        _put(root / "etc/machine-id", f"{uuid.uuid4().hex}\n")
        _put(root / "etc/hosts", f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {name}\n"
                                 + "".join(f"{line}\n" for line in extra_names(self.plan.slot)))  # fmt: skip
        _put(root / "etc/resolv.conf", Path("/etc/resolv.conf").read_text())
        _put(root / "etc/apt/apt.conf.d/00lab", cache.apt_options())
        _put(root / "etc/pip.conf", cache.pip_configuration(PIP_CACHE))
        _put(root / "root/.ssh/authorized_keys", ssh_key().with_suffix(".pub").read_text(), 0o600)
        _put(root / "usr/local/lib/systemd/system/chrony.service.d/lab.conf", _CHRONY)
        _put(root / "usr/local/lib/systemd/system/lab-cgroups.service", _CGROUPS)
        wanted = root / "usr/local/lib/systemd/system/sysinit.target.wants"
        wanted.mkdir()
        (wanted / "lab-cgroups.service").symlink_to("../lab-cgroups.service")
        for path, text in _shared_files(self.plan.slot).items():
            _put(root / path.lstrip("/"), text)
        for suffix, mode in (("", 0o600), (".pub", 0o644)):
            text = (self.directory / f"host_key{suffix}").read_text()
            _put(root / f"etc/ssh/ssh_host_ed25519_key{suffix}", text, mode)


def add_name(slot: int, name: str, addresses: list[str]) -> None:
    """Let a name stand for addresses in /etc/hosts of every host of the slot, present or made later."""
    with lock(f"slot-{slot}"):
        file = slot_directory(slot) / "names"
        kept = [line for line in extra_names(slot) if line.split()[1] != name]
        file.write_text("".join(f"{line}\n" for line in [*kept, *(f"{address} {name}" for address in addresses)]))
    for plan in plans(slot):
        host = LabHost(plan)
        if host.running:
            pattern = re.escape(name)
            host.run(f"sed -i '/ {pattern}$/d' /etc/hosts && cat >> /etc/hosts",
                     input="".join(f"{address} {name}\n" for address in addresses))  # fmt: skip


def add_file(slot: int, path: str, text: str) -> None:
    """Put a file on every host of the slot, present or made later."""
    kept = slot_directory(slot) / "files" / path.lstrip("/")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(text)
    for plan in plans(slot):
        host = LabHost(plan)
        if host.running:
            host.write(path, text)


def _shared_files(slot: int) -> dict[str, str]:
    top = slot_directory(slot) / "files"
    return {f"/{file.relative_to(top)}": file.read_text() for file in top.rglob("*") if file.is_file()}


def extra_names(slot: int) -> list[str]:
    """Return the lines that :func:`add_name` adds to every host's /etc/hosts."""
    file = slot_directory(slot) / "names"
    return file.read_text().splitlines() if file.exists() else []


def set_alias(host: LabHost, alias: str, *, present: bool) -> None:
    """Let the slot's known_hosts know a host's key under one more name, or no longer."""
    file = host.directory / "aliases"
    with lock(f"aliases-{host.plan.slot}"):
        names = set(file.read_text().split()) if file.exists() else set()
        file.write_text("\n".join(names | {alias} if present else names - {alias}))
    write_known_hosts(host.plan.slot)


def connection(slot: int, address: str) -> dict[str, object]:
    """Return pyinfra connection data for a host of the slot: root by the lab's key, host keys checked."""
    return {
        "ssh_hostname": address,
        "ssh_user": "root",
        "ssh_key": str(ssh_key()),
        "ssh_known_hosts_file": str(known_hosts(slot)),
        "ssh_strict_host_key_checking": "yes",
    }


def known_hosts(slot: int) -> Path:
    """Return the slot's known_hosts file, kept by the lab as hosts come and go."""
    return slot_directory(slot) / "known_hosts"


def write_known_hosts(slot: int) -> None:
    """Write the slot's known_hosts anew from the keys its hosts were made with."""
    with lock(f"slot-{slot}"):
        lines = []
        for plan in plans(slot):
            key = directory(slot, plan.name) / "host_key.pub"
            if key.exists():
                host, aliases = LabHost(plan), directory(slot, plan.name) / "aliases"
                more = aliases.read_text().split() if aliases.exists() else []
                names = ",".join([host.name, host.address, host.address6, *more])
                lines.append(f"{names} {' '.join(key.read_text().split()[:2])}\n")
        beside = known_hosts(slot).with_suffix(".new")
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text("".join(lines))
        beside.rename(known_hosts(slot))


def _put(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # may be a link in the image, and must not be followed out of the root
    path.write_text(text)
    path.chmod(mode)


def _init_arguments(release: str) -> list[str]:
    """systemd 257 refuses cgroup v1 unless told twice; on such a machine only v1 enforces memory limits."""
    if release == "bookworm" or Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return []
    return ["systemd.unified_cgroup_hierarchy=0", "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"]


def _supply_power(plan: Plan) -> None:
    """Boot the host, again after each reboot, until it powers off or is killed."""
    home = directory(plan.slot, plan.name)
    cache.PIP_CACHE.mkdir(parents=True, exist_ok=True)
    status = _REBOOT_STATUS
    while status == _REBOOT_STATUS:
        network.attach(plan.slot, plan.name, plan.index)
        groups = cgroups.create(f"{plan.slot}-{plan.name}")
        nspawn = Process(home / "nspawn.pid")
        nspawn.start(
            "systemd-nspawn", "-q", "-D", home / "root", "-b", "--register=no", "--keep-unit", "-M", plan.name,
            f"--network-namespace-path=/run/netns/{network.namespace(plan.slot, plan.name)}",
            "--timezone=off",  # the default sets the outer machine's time zone at every boot
            "--capability=all",
            "--drop-capability=CAP_SYS_TIME",  # a time daemon inside must not set the outer machine's clock
            "--system-call-filter=add_key keyctl bpf",
            f"--bind={home}/docker:/var/lib/docker",  # Docker cannot put its overlay on ours
            f"--bind={cache.PIP_CACHE}:{PIP_CACHE}",
            *_init_arguments(plan.release),
            log=home / "console.log",
            env={"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},  # /proc/sys/net, as far as it is the host's own
            prepare=lambda groups=groups: cgroups.enter(groups),
        )  # fmt: skip
        status = nspawn.join()
    nspawn.record.unlink(missing_ok=True)


if __name__ == "__main__":
    _supply_power(Plan(**json.loads((Path(sys.argv[1]) / "plan.json").read_text())))
