"""What nginx is on a host: version, state, and whether the configuration that stands on disk would load."""

from dataclasses import dataclass, field

from pyinfra.api import FactBase

from facts.records import Record

UPSTREAMS = "/etc/nginx/upstreams"
COPIES = "/var/lib/hostwright/nginx"
"""Managed files of /etc/nginx as they were last provisioned, at the same relative paths."""

# `nginx -t` reads what is on disk, not what runs: the two differ after a hand edit, and only this tells.
_COMMAND = rf"""
if dpkg-query -W -f '${{Status}}' nginx 2>/dev/null | grep -q '^install ok installed'; then
    nginx -v 2>&1 | sed -n 's|^nginx version: nginx/\([0-9.]*\).*|version \1|p'
    said=$(nginx -t -q 2>&1) || printf '%s\n' "${{said:-nginx -t failed}}" | sed 's/^/fault /'
    for file in {UPSTREAMS}/*.conf; do
        [ -f "$file" ] || continue
        name=${{file##*/}}
        echo "upstream ${{name%.conf}} $(sed 's/#.*//' "$file" | tr '\n' ' ')"
    done
    find {COPIES} -type f ! -name '.*' 2>/dev/null | while read -r copy; do
        path=/etc/nginx${{copy#{COPIES}}}
        cmp -s "$copy" "$path" || echo "drifted $path"
    done
fi
systemctl show -p ActiveState -p UnitFileState -p LoadState -- nginx.service 2>/dev/null | sed 's/^/unit /'
[ ! -e /proc/net/if_inet6 ] || echo ipv6
true
"""


@dataclass(frozen=True)
class NginxState(Record):
    """
    + version: as numbers, ``()`` when nginx is not installed
    + fault: what ``nginx -t`` says against the files on disk, empty when they would load
    + drifted: managed files that are no longer as they were provisioned
    + upstreams: text of each file of ``/etc/nginx/upstreams``, on one line and without comments, by its name without ``.conf``
    + ipv6: whether the kernel has IPv6 (``listen [::]:80`` fails without)
    """

    version: tuple[int, ...] = ()
    fault: str = ""
    drifted: tuple[str, ...] = ()
    upstreams: dict[str, str] = field(default_factory=dict)
    active: bool = False
    enabled: bool = False
    masked: bool = False
    ipv6: bool = False

    @property
    def installed(self) -> bool:
        return bool(self.version)


class Nginx(FactBase[NginxState]):
    """
    Returns the state of nginx.

    .. code:: python

        NginxState(version=(1, 22, 1), fault="", drifted=(), upstreams={"gateway": "upstream gateway { … }"},
                   active=True, enabled=True, masked=False, ipv6=True)
    """

    default = NginxState

    def command(self) -> str:
        return _COMMAND

    def process(self, output: list[str]) -> NginxState:
        version: tuple[int, ...] = ()
        faults: list[str] = []
        drifted: list[str] = []
        upstreams: dict[str, str] = {}
        unit: dict[str, str] = {}
        ipv6 = False
        for line in output:
            tag, _, rest = line.strip().partition(" ")
            if tag == "version":
                version = tuple(int(number) for number in rest.split(".") if number)
            elif tag == "fault":
                faults.append(rest)
            elif tag == "drifted":
                drifted.append(rest)
            elif tag == "upstream":
                upstream, _, text = rest.partition(" ")
                upstreams[upstream] = text.strip()
            elif tag == "unit":
                key, _, value = rest.partition("=")
                unit[key] = value
            elif tag == "ipv6":
                ipv6 = True
        return NginxState(
            version=version,
            # Warnings stand beside the error; the last line only says that the test failed.
            fault="\n".join(faults),
            drifted=tuple(drifted),
            upstreams=upstreams,
            active=unit.get("ActiveState") in ("active", "reloading"),
            enabled=unit.get("UnitFileState") == "enabled",
            masked=unit.get("LoadState") == "masked" or unit.get("UnitFileState", "").startswith("masked"),
            ipv6=ipv6,
        )
