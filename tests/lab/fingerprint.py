"""Everything about a host that two runs to the same end must leave equal."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.lab.hosts import LabHost

ROOTS = "/etc /opt /usr/local /var/lib/hostwright /var/lib/multiverse-gateway /var/www /var/spool/cron /srv /root"

# What differs between two runs by its nature, each with the reason. Everything else must be equal, byte for byte.
EXCLUDED = {
    r"/etc/machine-id|/etc/ssh/ssh_host_.*": "the host's own identity",
    r"/etc/letsencrypt/(accounts|archive|live|csr|keys)/.*": "keys and certificates: each CA order makes new ones",
    r"/etc/letsencrypt/renewal/.*": "names the account of the CA, which each host registers anew",
    r"/var/lib/hostwright/tls/.*": "the self-signed pair of the first minutes: a new key each time",
    r"/etc/ssl/private/.*|/etc/ssl/certs/ssl-cert-snakeoil.*": "made by a package for this host alone",
    r"/etc/(passwd|shadow|group|gshadow|subuid|subgid)-": "backups of the tools: the state before the last change",
    r"/etc/.*\.ucf-dist|/etc/\.pwd\.lock|/etc/\.updated": "written by package tools with the time",
    r".*/__pycache__(/.*)?": "bytecode holds the time of its source",
    r"/etc/ld\.so\.cache": "a cache whose order depends on the order of installation",
    r"/var/lib/hostwright/backup/.*": "when backups ran",
    r"/var/lib/multiverse-gateway/gateway\.db-(wal|shm)": "SQLite's own, as the last writes left them",
    r"/root/\.cache(/.*)?|/root/\.ssh/known_hosts.*": "of programs that root ran",
    r"/run/hostwright(/.*)?": "scratch",
}
_EXCLUDED = re.compile("|".join(f"(?:{pattern})" for pattern in EXCLUDED))

# A stamp is "CONTENT-HASH INVOCATION": the second word names one start of a unit on one host.
_FILES = rf"""
find {ROOTS} -xdev -printf 'path\t%p\t%y %m %u %g %l\n' 2>/dev/null
find {ROOTS} -xdev -type f -not -path '*/applied/*' -print0 2>/dev/null | xargs -0 sha256sum | sed 's/^\(\S*\)  /sum\t\1\t/'
find /var/lib/hostwright/applied -type f 2>/dev/null | while read -r file; do
    printf 'sum\t%s\t%s\n' "$(cut -d' ' -f1 "$file")" "$file"
done
"""
_STATE = r"""
systemctl list-unit-files --plain --no-legend | awk '{ print "unit-file " $1, $2 }'
systemctl list-units --plain --no-legend --type=service,socket,timer,path,target --state=active,activating,failed |
    awk '{ print "unit " $1, $3 }'
dpkg-query --show --showformat='package ${binary:Package} ${Version} ${db:Status-Abbrev}\n'
ufw status verbose 2>/dev/null | sed 's/^/ufw /'
for tool in iptables ip6tables; do $tool-save 2>/dev/null | grep -v '^#' | sed "s/\[[0-9:]*\]//; s/^/$tool /"; done
getent passwd | sed 's/^/user /'; getent group | sed 's/^/group /'
ss -Hltun | awk '{ print "listener " $1, $5 }'
"""
# Active for a moment, by a timer or a login; whether it is just then is chance.
_TRANSIENT = re.compile(
    r"unit (user@|user-runtime-dir@|session-|apt-daily|e2scrub|dpkg-db-backup|man-db|certbot\.service|logrotate\.service"
    r"|systemd-tmpfiles-clean|systemd-timedated|systemd-hostnamed|hostwright-backup-\S+\.service|sysstat|prometheus-node-exporter-\S+\.service)"
)

_LEFTOVERS = r"""
find / -xdev \( -name '*.dpkg-new' -o -name '*.dpkg-old' -o -name '*.dpkg-tmp' -o -name '*.hostwright' \
    -o -name '.hostwright-*' -o -name '*.part' -o -name '*.new' \) -not -path '/proc/*' -not -path '/usr/share/*' 2>/dev/null
find /opt -maxdepth 4 -name '.*' -not -name .complete 2>/dev/null
ls -d /var/lib/hostwright/deadman/* /etc/systemd/system/hostwright-*-rollback.* 2>/dev/null
find /tmp /var/tmp -mindepth 1 -not -path '*/systemd-private-*' -not -name '.*-unix' 2>/dev/null
find /run/systemd/transient -name '*.service' -o -name '*.timer' 2>/dev/null
find /run/hostwright -mindepth 1 -not -name '*.started' -not -name '*.lock' 2>/dev/null
dpkg --audit
true
"""


@dataclass(frozen=True)
class Fingerprint:
    """A host as comparable text: one entry per path, and one line for each thing that is no file."""

    files: dict[str, str]
    state: frozenset[str]

    @classmethod
    def of(cls, host: LabHost) -> Fingerprint:
        """Take a host's fingerprint."""
        files: dict[str, str] = {}
        for line in host.run(_FILES, timeout=180).stdout.splitlines():
            kind, first, second = line.split("\t", 2)
            path, text = (first, second) if kind == "path" else (second, first)
            if not _EXCLUDED.fullmatch(path):
                files[path] = f"{files.get(path, '')} {text}".strip()
        lines = host.run(_STATE, timeout=60).stdout.splitlines()
        return cls(files, frozenset(line.strip() for line in lines if not _TRANSIENT.match(line)))

    def differences(self, other: Fingerprint) -> list[str]:
        """Return what another fingerprint has otherwise, one line each; empty when the hosts are equal."""
        found = [
            f"{path}: {self.files.get(path, 'absent')} != {other.files.get(path, 'absent')}"
            for path in sorted({*self.files, *other.files})
            if self.files.get(path) != other.files.get(path)
        ]
        return [
            *found,
            *(f"only here: {line}" for line in sorted(self.state - other.state)),
            *(f"only there: {line}" for line in sorted(other.state - self.state)),
        ]


def leftovers(host: LabHost) -> list[str]:
    """Return what an interrupted run could have left lying about: scratch files, an armed rollback, half a package."""
    return host.run(_LEFTOVERS, timeout=60).stdout.splitlines()
