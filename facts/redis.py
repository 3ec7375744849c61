"""What one instance of Redis runs on: one command."""

import shlex
from dataclasses import dataclass, field

from pyinfra.api import FactBase

from facts.records import Record

PROGRAM = "/usr/local/lib/hostwright/redis-instance"

_COMMAND = r"""
if dpkg-query -W -f '${Status}' redis-server 2>/dev/null | grep -q '^install ok installed'; then
    redis-server --version | sed -n 's/.* v=\([0-9.]*\).*/version\t\1/p'
fi
[ "$(systemctl is-active redis-server.service 2>/dev/null)" = active ] || [ ! -h /etc/systemd/system/multi-user.target.wants/redis-server.service ] ||
    printf 'stray\tyes\n'
[ ! -f /etc/redis/redis-%(instance)s.conf ] || printf 'there\tyes\n'
[ ! -x %(program)s ] || timeout 60 %(program)s look %(instance)s 2>/dev/null
true
"""


@dataclass(frozen=True)
class RedisState(Record):
    """
    + version: as numbers, ``()`` when Redis is not installed
    + stray: the package's own instance would start at the next boot
    + there: the instance has a configuration
    + live: what the running instance says of its live settings; empty when it does not run
    + same_rules: it runs on the ACL rules that were last applied
    """

    version: tuple[int, ...] = ()
    stray: bool = False
    there: bool = False
    live: dict[str, str] = field(default_factory=dict)
    same_rules: bool = True


class RedisInstance(FactBase[RedisState]):
    """
    Returns the state of one instance of Redis.

    + instance: its name

    .. code:: python

        RedisState(version=(7, 0, 15), stray=False, there=True, live={"maxmemory": "268435456", …}, same_rules=True)
    """

    default = RedisState

    def command(self, instance: str) -> str:
        return _COMMAND % {"instance": shlex.quote(instance), "program": PROGRAM}

    def process(self, output: list[str]) -> RedisState:
        version: tuple[int, ...] = ()
        stray = there = False
        same_rules = True
        live: dict[str, str] = {}
        for line in output:
            tag, _, rest = line.partition("\t")
            if tag == "version":
                version = tuple(int(number) for number in rest.split(".") if number)
            elif tag == "stray":
                stray = True
            elif tag == "there":
                there = True
            elif tag == "live":
                key, _, value = rest.partition("\t")
                live[key] = value
            elif tag == "acl":
                same_rules = rest == "same"
        return RedisState(version, stray, there, live, same_rules)
