"""
Instances of the distribution's Redis, each with its own users, memory, policy and data.

An instance is Debian's ``redis-server@NAME.service``. What Redis can take while it runs (memory, policy, users, passwords,
certificates, the append-only log) it takes while it runs; only the rest costs one restart. Passwords stand on the host as
hashes, and one of them in a file that only root reads: that of the user ``default``, with which this module, backups and
checks come in through the Unix socket.
"""

import hashlib
import json
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from pyinfra import host
from pyinfra.api import OperationError, OperationValueError, StringCommand, operation

from facts.redis import PROGRAM, RedisInstance, RedisState
from operations import fileset, script, template, unit
from operations.fileset import Absent, Directory, Entry, File
from settings.exposure import Port
from settings.secret import Secret

POLICIES = (
    "noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random",
    "volatile-ttl",
)  # fmt: skip
SECRETS = "/etc/hostwright/redis"
ROLE_PROGRAM = "/usr/local/lib/hostwright/redis-role"
PASSWORD_LENGTH = 16

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_RULE = re.compile(r"[+\-~&%@a-zA-Z0-9_|:*.{}\[\]?^-]+")
# Everything that a client of an application does, and nothing that is the operator's.
CLIENT_RULES = ("~*", "+@all", "-@admin", "-@dangerous", "+info", "+keys")
# In a group also what clients of sentinels ask a server first: whether it still is the primary.
GROUP_CLIENT_RULES = (*CLIENT_RULES, "+role")
# What Redis's own documentation gives to a replica, and to a sentinel, at the server that they watch.
REPLICA, REPLICA_RULES = "replica", ("+psync", "+replconf", "+ping")
SENTINEL, SENTINEL_RULES = "sentinel", (
    "+multi", "+slaveof", "+ping", "+exec", "+subscribe", "+config|rewrite", "+role", "+publish", "+info", "+client|setname",
    "+client|kill", "+script|kill",
)  # fmt: skip


@dataclass(frozen=True)
class User:
    """
    An account besides ``default``.

    + user: its name; + password: 16 printable characters or more, without blanks
    + rules: as Redis has them, without channels: all keys and all commands that are no administrator's by default
    + former: passwords that are good besides, while those who still have them are started anew
    """

    user: str
    password: Secret
    rules: Sequence[str] = CLIENT_RULES
    former: Sequence[Secret] = ()


@dataclass(frozen=True)
class Tls:
    """What the server proves itself with. + certificate: PEM, with its chain; + key: PEM"""

    certificate: str
    key: Secret


@dataclass(frozen=True)
class Group:
    """
    Hosts whose instances of one name hold the same data: one is the primary, which one the sentinels say (``operations.sentinel``).

    + address: of this host, by which the others know it; + peers: of all of them, at least three, this host's as well; the
      first one is the primary until there were sentinels to say so
    + ca: certificate of the authority that signed those of all hosts, in PEM
    + replica_password, sentinel_password: with which replicas and sentinels come to Redis; made into its users ``replica`` and
      ``sentinel``; + ask_password: with which clients ask the sentinels, and they each other
    + sentinel_port: where they are asked
    + quorum: how many sentinels must have lost the primary; 0: more than half. Another one is only elected by more than half
    + down_after_ms: how long it must not have answered (ms)
    + failover_ms: how long a failover may take before another is tried (ms)
    + min_replicas: how many replicas must have been heard of in the last 10 s for the primary to take a write: one that was
      cut off from all others stops. 0: it goes on, and what it takes meanwhile is lost
    """

    address: str
    peers: Sequence[str]
    ca: str
    replica_password: Secret
    sentinel_password: Secret
    ask_password: Secret
    sentinel_port: int = 26379
    quorum: int = 0
    down_after_ms: int = 5000
    failover_ms: int = 30000
    min_replicas: int = 1

    @property
    def votes(self) -> int:
        return self.quorum or len(self.peers) // 2 + 1

    @property
    def failover_seconds(self) -> int:
        """How long clients may be without a primary when its host is lost: until it is missed, and ten seconds to elect another."""
        return self.down_after_ms // 1000 + 10

    def ports(self, port: int = 6379, clients: Sequence[str] = ()) -> tuple[Port, ...]:
        """Return what the peers, and clients in these networks, must reach on this host: for its exposure."""
        sources = (*(str(ip_network(peer)) for peer in self.peers), *clients)
        return (
            Port(port=port, sources=sources, why="Redis: its replicas, sentinels and clients"),
            Port(port=self.sentinel_port, sources=sources, why="sentinels, and clients that ask for the primary"),
        )

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = []
        for address in (self.address, *self.peers):
            try:
                wrong = ip_address(address).is_unspecified or ip_address(address).is_loopback
            except ValueError:
                wrong = True
            if wrong:
                faults.append(f"group: must be addresses by which other hosts reach this one, got {address!r}")
        if len(set(self.peers)) < 3 or len(set(self.peers)) != len(self.peers):
            faults.append(f"group.peers must be three hosts or more: of two, neither can outvote the other, got {', '.join(self.peers)}")
        if self.address not in self.peers:
            faults.append(f"group.peers must hold this host's address too, got {self.address!r}")
        if "BEGIN CERTIFICATE" not in self.ca:
            faults.append("group.ca must be a certificate in PEM")
        secrets = {key: getattr(self, key) for key in ("replica_password", "sentinel_password", "ask_password")}
        faults += [
            f"group.{key} must have {PASSWORD_LENGTH} printable characters or more, without blanks, quotes and backslashes"
            for key, value in secrets.items()
            if not value.resolved or not re.fullmatch(rf"[!#-&(-\[\]-~]{{{PASSWORD_LENGTH},}}", value.unmask())
        ]
        if not 1 <= self.sentinel_port <= 65535:
            faults.append(f"group.sentinel_port must be 1 to 65535, got {self.sentinel_port!r}")
        if not 0 <= self.quorum <= len(self.peers):
            faults.append(f"group.quorum must be 0 (more than half) to the number of peers, got {self.quorum!r}")
        if not 1000 <= self.down_after_ms <= 600000:
            faults.append(f"group.down_after_ms must be 1000 to 600000: Redis may be busy for a moment, got {self.down_after_ms!r}")
        if not 5000 <= self.failover_ms <= 3600000:
            faults.append(f"group.failover_ms must be 5000 to 3600000, got {self.failover_ms!r}")
        if not 0 <= self.min_replicas < max(len(self.peers), 1):
            faults.append(f"group.min_replicas must be 0 to one less than there are peers, got {self.min_replicas!r}")
        return faults


@dataclass(frozen=True)
class Instance:
    """What ``instance`` was asked for."""

    instance: str
    password: Secret
    users: tuple[User, ...] = ()
    port: int = 6379
    addresses: tuple[str, ...] = ()
    tls: Tls | None = None
    maxmemory_mb: int = 256
    policy: str = "noeviction"
    append_only: bool = True
    databases: int = 16
    group: Group | None = None

    @property
    def unit(self) -> str:
        return f"redis-server@{self.instance}.service"

    def path(self, ending: str) -> str:
        return f"/etc/redis/redis-{self.instance}.{ending}"

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = []
        if not _NAME.fullmatch(self.instance):
            faults.append(f"instance must be lower case letters, digits and '-', got {self.instance!r}")
        passwords = [(f"user {one.user}", password) for one in self.users for password in (one.password, *one.former)]
        for who, password in (("password", self.password), *passwords):
            if not isinstance(password, Secret) or not password.resolved:
                faults.append(f"{who}: the password must be a Secret that is set")
            elif not re.fullmatch(rf"[!-~]{{{PASSWORD_LENGTH},}}", password.unmask()):
                faults.append(f"{who}: the password must have {PASSWORD_LENGTH} printable characters or more, without blanks")
        names = [one.user for one in self.users]
        faults += [f"user must be letters, digits, '-' and '_', and not 'default', got {one!r}" for one in names
                   if not re.fullmatch(r"[A-Za-z0-9_-]+", one) or one == "default"]  # fmt: skip
        faults += [f"user {one!r} stands twice" for one in sorted({one for one in names if names.count(one) > 1})]
        faults += [f"user {one.user}: not a rule: {rule!r}" for one in self.users for rule in one.rules if not _RULE.fullmatch(rule)]
        if not 1 <= self.port <= 65535:
            faults.append(f"port must be 1 to 65535, got {self.port!r}")
        for address in self.addresses:
            try:
                wrong = ip_address(address).is_unspecified
            except ValueError:
                wrong = True
            if wrong:
                faults.append(f"addresses: must be addresses of the host, not all of them, got {address!r}")
        if self.addresses and self.tls is None:
            faults.append(f"addresses need tls: beyond loopback nothing is spoken in clear, got {', '.join(self.addresses)}")
        if self.tls and (not self.tls.key.resolved or "BEGIN CERTIFICATE" not in self.tls.certificate):
            faults.append("tls needs a certificate in PEM and its key")
        if self.maxmemory_mb < 1:
            faults.append(f"maxmemory_mb must be at least 1: without a limit a full queue takes the host along, got {self.maxmemory_mb!r}")
        if self.policy not in POLICIES:
            faults.append(f"policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")
        if self.policy != "noeviction" and self.append_only:
            faults.append(f"policy {self.policy!r} forgets what append_only=True is there to keep: a cache has append_only=False")
        if not 1 <= self.databases <= 1024:
            faults.append(f"databases must be 1 to 1024, got {self.databases!r}")
        if self.group:
            faults += self.group.faults()
            if self.tls is None or self.group.address not in self.addresses:
                faults.append(f"group needs tls, and its address among addresses, got {self.group.address!r}")
            faults += [f"user {one!r} is made by group" for one in names if one in (REPLICA, SENTINEL)]
        return faults

    def live(self) -> dict[str, str]:
        """Return what Redis takes while it runs, in the words in which it says it again."""
        found = {
            "maxmemory": str(self.maxmemory_mb * 1024 * 1024),
            "maxmemory-policy": self.policy,
            "appendonly": "yes" if self.append_only else "no",
            "appendfsync": "everysec",
            # the log is the copy; a snapshot beside it would only double the writing
            "save": "",
            # a copy for a backup is sent at once
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": "0",
            "tcp-keepalive": "60",
        }
        if self.tls:
            found |= {"tls-cert-file": self.path("crt"), "tls-key-file": self.path("key"), "tls-auth-clients": "no"}
        if self.group:
            found |= {
                "tls-ca-cert-file": self.path("ca.crt"),
                "tls-replication": "yes",
                "masteruser": REPLICA,
                "replica-announce-ip": self.group.address,
                "replica-announce-port": str(self.port),
                "min-replicas-to-write": str(self.group.min_replicas),
                "min-replicas-max-lag": "10",
            }
        return found

    def rules(self, version: tuple[int, ...]) -> str:
        """Return the ACL file. Since 6.2 channels are closed to a user unless it is said."""
        channels = " &*" if version >= (6, 2) else ""
        users = [User("default", self.password, ("~*", "+@all")), *self.users]
        if self.group:
            users = [replace(one, rules=GROUP_CLIENT_RULES) if tuple(one.rules) == CLIENT_RULES else one for one in users]
            users += [User(REPLICA, self.group.replica_password, REPLICA_RULES), User(SENTINEL, self.group.sentinel_password, SENTINEL_RULES)]
        return "".join(
            f"user {one.user} on {' '.join(map(_hashed, (one.password, *one.former)))}{channels} {' '.join(one.rules)}\n" for one in users
        )

    def live_text(self) -> str:
        lines = [f'{key} {value or chr(34) * 2}\n' for key, value in self.live().items()]
        return "# Written by Hostwright; changes made here are overwritten. Taken over without a restart.\n" + "".join(lines)


def _hashed(password: Secret) -> str:
    return "#" + hashlib.sha256(password.unmask().encode()).hexdigest()


def _own(path: str, content: str | Secret) -> File:
    """A file that Redis reads and cannot write."""
    return File(path, content, mode="0640", group="redis")


def is_drifted(wanted: Instance, found: RedisState) -> bool:
    """Whether the running instance was changed by hand: its files are as wanted, and it runs on something else."""
    return bool(found.live) and (found.live != wanted.live() or not found.same_rules)


@operation()
def instance(
    instance: str,
    password: Secret | None = None,
    users: Sequence[User] = (),
    port: int = 6379,
    addresses: Sequence[str] = (),
    tls: Tls | None = None,
    maxmemory_mb: int = 256,
    policy: str = "noeviction",
    append_only: bool = True,
    databases: int = 16,
    group: Group | None = None,
    present: bool = True,
) -> Generator[StringCommand, None, None]:
    """
    Manage one instance of Redis: ``redis-server@INSTANCE.service``, with its data in ``/var/lib/redis/INSTANCE``.

    + instance: its name
    + password: of the user ``default``, who may do anything; 16 characters or more
    + users: further accounts, see ``User``; whoever is not among them is gone
    + port: on loopback, and on
    + addresses: of the host, e.g. in a private network; they need
    + tls: certificate and key. With it nothing is spoken in clear, on loopback either
    + maxmemory_mb: what the data may take (MiB)
    + policy: what happens then: ``noeviction`` refuses to take more, which is the only one that loses no task of a
      broker; ``allkeys-lru`` and the others forget, as a cache may
    + append_only: keep everything that was written (a second may be lost when the power fails); ``False`` keeps nothing
    + databases: how many
    + group: the hosts that hold the same data, see ``Group``; who is the primary is asked at every start and stands in no file
      of ours, so a run after a failover changes nothing
    + present: ``False`` stops it and removes its configuration; its data stays

    The package's own instance, which anybody on the host may use, is not started when the package is installed here.
    Everything but port, addresses and databases is taken over without a restart. What Redis does not take, or does not
    come up with, is taken back, and the operation fails with what it said.

    Raises ``OperationValueError`` for arguments that break a rule, all in one message.

    **Example:**

    .. code:: python

        redis.instance("broker", password=settings.redis_password, maxmemory_mb=512, name="Run the broker")
    """
    if not present:
        if not _NAME.fullmatch(instance):
            raise OperationValueError(f"redis.instance: no instance can be called {instance!r}")
        if host.get_fact(RedisInstance, instance=instance).there:
            yield script.run("redis/remove.sh", instance=instance)
        else:
            host.noop(f"there is no instance {instance}")
        return

    wanted = Instance(
        instance, password or Secret.unset(), tuple(users), port, tuple(addresses), tls, maxmemory_mb, policy, append_only,
        databases, group,
    )  # fmt: skip
    faults = wanted.faults()
    if faults:
        raise OperationValueError("redis.instance: " + "; ".join(faults))

    found = host.get_fact(RedisInstance, instance=instance)
    if not found.version:
        yield script.run("dpkg/install.sh", "redis/install.sh", packages="redis-server", list_hours=24)
        found = host.get_fact(RedisInstance, instance=instance)
    elif found.stray:
        # a run that was killed while it installed
        yield StringCommand("systemctl --quiet unmask --runtime redis-server.service; systemctl --quiet disable redis-server.service")
    if found.version and found.version < (6, 0):
        raise OperationError(f"redis.instance: needs Redis 6.0 (users, TLS), got {'.'.join(map(str, found.version))}")

    program = (script.FILES / "redis/redis-instance.sh").read_text()
    yield from fileset.files._inner(
        entries=[
            Directory("/etc/hostwright", mode="0755"),
            Directory(SECRETS, mode="0700"),
            Directory("/var/lib/hostwright", mode="0700"),
            Directory(f"/var/lib/redis/{instance}", mode="0700", owner="redis", group="redis"),
            File(PROGRAM, program, mode="0755"),
            *_role_files(wanted),
        ]
    )
    check, ping = f"{PROGRAM} check {instance}", f"{PROGRAM} ping {instance}"
    yield from fileset.files._inner(
        entries=_live_files(wanted, found.version),
        validate=check,
        within="/etc/redis",
        apply=f"{PROGRAM} apply {instance}",
    )
    drop_in = f"/etc/systemd/system/{wanted.unit}.d/hostwright.conf"
    main = wanted.path("conf")
    text = template.render("redis/redis.conf.j2", **vars(wanted))
    yield from fileset.files._inner(
        entries=[_own(main, text), File(drop_in, template.render("redis/hostwright.conf.j2", instance=instance, group=group))],
        validate=check,
        within="/etc/redis",
        unit=wanted.unit,
        probe=ping,
        probe_seconds=60,
    )
    yield from unit.unit._inner(unit=wanted.unit, probe=ping, probe_seconds=60)
    # asked again: what was found before the files were written may be what they have changed
    if is_drifted(wanted, found) and is_drifted(wanted, host.get_fact(RedisInstance, instance=instance)):
        yield StringCommand(PROGRAM, "apply", instance)


def _live_files(wanted: Instance, version: tuple[int, ...]) -> list[Entry]:
    """Return what Redis takes over while it runs."""
    entries: list[Entry] = [
        File(f"{SECRETS}/{wanted.instance}.password", Secret(wanted.password.unmask() + "\n"), mode="0600"),
        _own(wanted.path("acl"), Secret(wanted.rules(version))),
    ]
    if wanted.tls:
        entries += [
            _own(wanted.path("crt"), wanted.tls.certificate),
            _own(wanted.path("key"), Secret(wanted.tls.key.unmask())),
        ]
    else:
        entries += [Absent(wanted.path("crt")), Absent(wanted.path("key"))]
    if wanted.group:
        secret = f"masterauth {wanted.group.replica_password.unmask()}\n"
        entries += [_own(wanted.path("replication.conf"), Secret(secret)), _own(wanted.path("ca.crt"), wanted.group.ca)]
    else:
        entries += [Absent(wanted.path("replication.conf")), Absent(wanted.path("ca.crt"))]
    return [*entries, _own(wanted.path("live.conf"), wanted.live_text())]


def _role_files(wanted: Instance) -> list[Entry]:
    """Return what tells an instance at its start whose replica it is."""
    path = f"{SECRETS}/{wanted.instance}.group.json"
    if not wanted.group:
        return [Absent(path)]
    group = wanted.group
    values = {
        "instance": wanted.instance, "address": group.address, "peers": list(group.peers), "port": wanted.port,
        "sentinel_port": group.sentinel_port, "password": group.ask_password.unmask(), "ca": group.ca,
    }  # fmt: skip
    return [
        File(ROLE_PROGRAM, (script.FILES / "redis/redis-role.py").read_text(), mode="0755"),
        File(path, Secret(json.dumps(values, indent=1) + "\n"), mode="0600"),
    ]
