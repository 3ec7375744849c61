"""
The sentinels of a group of Redis instances: they say who is the primary, and make another one when it is lost.

A sentinel writes what it learns into its configuration. So ours is only what we declare: at every start it becomes, with
what the sentinel has learned, a file in a directory of the sentinel's own, and nothing here is ever fought over. Who is the
primary is never declared: after a failover a run changes nothing.
"""

import re
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.sentinel import PROGRAM, Sentinel, SentinelState
from operations import fileset, script, template
from operations import unit as units_of
from operations.fileset import Absent, Directory, File
from operations.redis import Group
from settings.secret import Secret

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


def is_drifted(group: Group, found: SentinelState) -> bool:
    """Whether the running sentinel was told something else by hand."""
    wanted = {
        "quorum": str(group.votes),
        "down-after-milliseconds": str(group.down_after_ms),
        "failover-timeout": str(group.failover_ms),
        "parallel-syncs": "1",
    }
    return bool(found.knows) and any(found.knows.get(key, value) != value for key, value in wanted.items())


@operation()
def watch(
    instance: str, group: Group | None = None, port: int = 6379, present: bool = True
) -> Generator[StringCommand, None, None]:
    """
    Run the sentinel of this host for a group of Redis instances: ``redis-sentinel@INSTANCE.service``.

    + instance: name of the group's instances, as ``redis.instance`` has made them with the same ``group``; clients ask for it
    + group: the hosts, their passwords, and when the primary counts as lost
    + port: of the instances
    + present: ``False`` stops it and removes its configuration, and what it has learned; the instance is left alone

    It speaks TLS alone, with the instance's certificate, and answers to who knows ``group.ask_password``. The package's own
    sentinel, which anybody may reconfigure, is stopped. A change costs a restart of the sentinel, and none of Redis.

    Raises ``OperationValueError`` for arguments that break a rule, all in one message.

    **Example:**

    .. code:: python

        redis.instance("limits", password=…, addresses=[group.address], tls=tls, group=group, name="Run Redis")
        sentinel.watch("limits", group, name="Watch Redis")
    """
    faults = [] if _NAME.fullmatch(instance) else [f"instance must be lower case letters, digits and '-', got {instance!r}"]
    if present and group is None:
        faults.append("group is needed: the one that redis.instance was given")
    faults += group.faults() if present and group else []
    if present and not 1 <= port <= 65535:
        faults.append(f"port must be 1 to 65535, got {port!r}")
    if faults:
        raise OperationValueError("sentinel.watch: " + "; ".join(faults))

    unit = f"redis-sentinel@{instance}.service"
    config, drop_in = f"/etc/redis/sentinel-{instance}.conf", f"/etc/systemd/system/{unit}.d/hostwright.conf"
    if not present or group is None:
        yield from units_of.unit._inner(unit=unit, running=False, enabled=False)
        yield from fileset.files._inner(
            entries=[Absent(config), Absent(drop_in)], apply=f"rm -rf /var/lib/redis/sentinel-{instance}; systemctl reset-failed {unit} 2>/dev/null || :"
        )
        return

    found = host.get_fact(Sentinel, instance=instance)
    if not found.installed:
        yield script.run("dpkg/install.sh", "sentinel/install.sh", packages="redis-sentinel", list_hours=24)
    elif found.stray:
        # a run that was killed while it installed, or somebody who did it by hand
        yield StringCommand("systemctl --quiet unmask --runtime redis-sentinel.service; systemctl --quiet disable --now redis-sentinel.service")
    well = f"{PROGRAM} look {instance}"
    text = template.render("sentinel/sentinel.conf.j2", instance=instance, group=group, port=port)
    yield from fileset.files._inner(
        entries=[
            Directory(f"/var/lib/redis/sentinel-{instance}", mode="0700", owner="redis", group="redis"),
            File(config, Secret(text), mode="0600"),
            File(drop_in, template.render("sentinel/hostwright.conf.j2", instance=instance)),
        ],
        unit=unit,
        probe=well,
        probe_seconds=60,
    )
    own = [f"/etc/redis/redis-{instance}.{ending}" for ending in ("crt", "key", "ca.crt")]
    yield from units_of.unit._inner(unit=unit, inputs=own, probe=well, probe_seconds=60)
    # asked again: what was found before the files were written may be what they have changed
    if is_drifted(group, found) and is_drifted(group, host.get_fact(Sentinel, instance=instance)):
        yield StringCommand("systemctl", "restart", unit)
