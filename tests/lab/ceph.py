"""An S3 server that is not AWS, on a lab host: Ceph's, one node, in memory. It checks signatures, policies and CORS."""

from __future__ import annotations

from tests.lab.hosts import LabHost
from tests.lab.s3server import Keys
from tests.lab.state import wait_for

PORT = 7480
_PACKAGES = "ceph-mon ceph-osd radosgw ceph-common"
_CONFIGURATION = """[global]
fsid = {fsid}
mon host = {address}
mon initial members = {name}
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd objectstore = memstore
osd crush chooseleaf type = 0
memstore device bytes = 1073741824
mon warn on pool no redundancy = false
mon max pg per osd = 1000
mon allow pool size one = true
[client.rgw.{name}]
rgw frontends = beast port={port}
rgw enable usage log = false
{more}
"""
_FSID = "6f1d3c0e-5b1f-4a55-9d0c-2f6f2f0c6a10"
# Each daemon goes to the background by itself once it is up.
# Each daemon goes to the background by itself once it is up. What asks the monitor may be refused as long as it does not
# know the monitor's map ("wrong fsid", EPERM): it is asked again.
_START = """set -e
again() {{ for attempt in 1 2 3 4 5 6 7 8 9 10; do if "$@"; then return 0; else sleep 1; fi; done; return 1; }}
monmaptool --create --clobber --add {name} {address} --fsid {fsid} /root/monmap
install -d /var/lib/ceph/mon/ceph-{name} /var/lib/ceph/osd/ceph-0
ceph-authtool --create-keyring /root/mon.keyring --gen-key -n mon. --cap mon 'allow *'
ceph-mon --mkfs -i {name} --monmap /root/monmap --keyring /root/mon.keyring
ceph-mon -i {name}
uuid=$(cat /proc/sys/kernel/random/uuid)
again timeout 60 ceph osd new "$uuid" 0
ceph-osd -i 0 --mkfs --osd-uuid "$uuid"
again ceph-osd -i 0
again radosgw -n client.rgw.{name}
"""


class Ceph:
    """The server and its users; ``url`` is where it answers.

    + day_seconds: how long a day lasts for the rules of a bucket's lifecycle, at least 1; by default a day
    """

    def __init__(self, host: LabHost, day_seconds: int | None = None) -> None:
        self._host = host
        self._more = f"rgw lc debug interval = {day_seconds}" if day_seconds else ""
        self.url = f"http://{host.address}:{PORT}"

    def start(self) -> Ceph:
        """Install and start it."""
        node = {"name": self._host.name, "address": self._host.address, "fsid": _FSID, "port": PORT, "more": self._more}
        self._host.run(
            "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "
            + _PACKAGES,
            timeout=900,
        )
        self._host.write("/etc/ceph/ceph.conf", _CONFIGURATION.format(**node))
        self._host.run(_START.format(**node), timeout=300)
        wait_for(
            "Ceph's S3 server",
            lambda: self._host.run(f"curl -s -o /dev/null 127.0.0.1:{PORT}", check=False).returncode == 0,
            180,
            pause=0.5,
        )
        return self

    def user(self, name: str) -> Keys:
        """Make a user, who is an account of its own."""
        keys = Keys(f"AK{name.upper()}", f"secret-of-{name}")
        self._host.run(
            f"radosgw-admin user create --uid={name} --display-name={name} "
            f"--access-key={keys.access_key} --secret={keys.secret_key}",
            timeout=120,
        )
        return keys
