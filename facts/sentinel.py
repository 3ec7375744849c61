"""What the sentinel of a group of Redis instances is on a host: one command."""

import json
import shlex
from dataclasses import dataclass, field

from pyinfra.api import FactBase

from facts.records import Record

PROGRAM = "/usr/local/lib/hostwright/redis-role"

_COMMAND = r"""
if dpkg-query -W -f '${Status}' redis-sentinel 2>/dev/null | grep -q '^install ok installed'; then printf 'installed\tyes\n'; fi
[ ! -h /etc/systemd/system/multi-user.target.wants/redis-sentinel.service ] || printf 'stray\tyes\n'
[ ! -f /etc/redis/sentinel-%(instance)s.conf ] || printf 'there\tyes\n'
[ ! -x %(program)s ] || { printf 'knows\t'; timeout 20 %(program)s look %(instance)s 2>/dev/null || echo; }
true
"""


@dataclass(frozen=True)
class SentinelState(Record):
    """
    + installed: its package is; + stray: the package's own one would start at the next boot
    + there: this one has a configuration
    + knows: what it says of the primary that it watches, in its own words; empty when it does not run
    """

    installed: bool = False
    stray: bool = False
    there: bool = False
    knows: dict[str, str] = field(default_factory=dict)


class Sentinel(FactBase[SentinelState]):
    """
    Returns the state of the sentinel that watches a group.

    + instance: name of the group's instances

    .. code:: python

        SentinelState(installed=True, there=True, knows={"ip": "10.0.0.41", "num-slaves": "2", "quorum": "2", …})
    """

    default = SentinelState

    def command(self, instance: str) -> str:
        return _COMMAND % {"instance": shlex.quote(instance), "program": PROGRAM}

    def process(self, output: list[str]) -> SentinelState:
        found = dict(line.partition("\t")[::2] for line in output)
        return SentinelState("installed" in found, "stray" in found, "there" in found, json.loads(found.get("knows") or "{}"))
