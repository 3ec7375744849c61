"""k3s with sqlite, as far as it goes without k3s: the database is real, is written to all the time as k3s's kine does, and its writer keeps to
the rule of k3s that a start on a datastore that is older than the keys on disk is refused. What runs on it is not there."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.state import wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

DEPLOY = "from deploys.k3s import _backup, _settings\n_backup(_settings())\n"
DATA = "/var/lib/rancher/k3s/server"
WRITER = '''
import json, os, secrets, socket, sqlite3, sys, time
DATA = "/var/lib/rancher/k3s/server"
os.makedirs(DATA + "/db", mode=0o700, exist_ok=True)
db = sqlite3.connect(DATA + "/db/state.db", isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE IF NOT EXISTS kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name INTEGER, created INTEGER, deleted INTEGER, create_revision INTEGER, "
           "prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB)")
keys = DATA + "/tls/server-ca.key"
row = db.execute("SELECT value FROM kine WHERE name = '/bootstrap/0001' ORDER BY id DESC LIMIT 1").fetchone()
if row is None:
    os.makedirs(DATA + "/tls", exist_ok=True)
    with open(keys, "w") as file:
        file.write(secrets.token_hex(32))
    with open(keys) as file:
        db.execute("INSERT INTO kine (name, created, value) VALUES ('/bootstrap/0001', 1, ?)", (json.dumps({"key": file.read(), "at": time.time()}),))
else:
    kept = json.loads(row[0])
    if os.path.exists(keys):
        with open(keys) as file:
            if file.read() != kept["key"] and os.stat(keys).st_mtime > kept["at"] + 3:
                sys.exit(keys + " newer than datastore and could cause a cluster outage. Remove the file(s) from disk and restart to be recreated from datastore.")
    else:
        os.makedirs(DATA + "/tls", exist_ok=True)
        with open(keys, "w") as file:
            file.write(kept["key"])
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
    told.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\\0"))
    told.sendall(b"READY=1")
while True:
    db.execute("INSERT INTO kine (name, created, value) VALUES ('/registry/events', 1, ?)", (secrets.token_bytes(2000),))
    time.sleep(0.02)  # the pace of a small cluster
'''
UNIT = """[Service]
Type=notify
NotifyAccess=all
ExecStart=/usr/bin/python3 /usr/local/bin/writer.py
Restart=on-failure
RestartSec=1
[Install]
WantedBy=multi-user.target
"""


class Site:
    def __init__(self, lab: Lab, provision: Callable[..., Run]) -> None:
        self._provision = provision
        self.vault = lab.host("t-vault")
        self.host: LabHost = lab.host("t-k3s-sqlite", layer="packages")
        self.made()

    def made(self) -> None:
        """A server as k3s leaves it, running."""
        host = self.host
        host.write("/usr/local/bin/writer.py", WRITER)
        host.write("/etc/systemd/system/k3s.service", UNIT)
        host.run("test -e /root/.ssh/id_ed25519 || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519; systemctl daemon-reload; systemctl enable --quiet --now k3s", timeout=120)
        self.vault.run("cat >>/root/.ssh/authorized_keys", input=host.read("/root/.ssh/id_ed25519.pub"))
        host.run(f"ssh-keyscan -t ed25519 {self.vault.address} 2>/dev/null >/root/.ssh/known_hosts; test -s /root/.ssh/known_hosts")
        wait_for("some rows", lambda: self.rows() > 20, 60)

    def run(self, text: str = DEPLOY) -> Run:
        data: dict[str, Any] = {
            "k3s_version": "v1.33.4+k3s1", "k3s_sums": {"amd64": "a" * 64}, "k3s_token": "env:K3S_TOKEN", "k3s_datastore": "sqlite",
            "backup_password": "env:BACKUP_PASSWORD", "backup_offsite_repository": f"sftp:root@{self.vault.address}:/srv/vault",
        }  # fmt: skip
        env = {"K3S_TOKEN": "canary-token-of-this-cluster-01234", "BACKUP_PASSWORD": "canary-password-of-the-copies"}
        return self._provision(self.host, text, data=data, groups={"k3s_server": [self.host]}, env=env)

    def sql(self, statement: str) -> str:
        program = f"import sqlite3; db = sqlite3.connect('{DATA}/db/state.db', timeout=20, isolation_level=None); print(*(row[0] for row in db.execute({statement!r})))"
        return self.host.run(shlex.join(["python3", "-c", program])).stdout.strip()

    def rows(self) -> int:
        return int(self.sql("SELECT count(*) FROM kine"))


@pytest.fixture(scope="module")
def site(lab: Lab, provision: Callable[..., Run]) -> Iterator[Site]:
    made = Site(lab, provision)
    yield made
    lab.destroy(made.host)
    lab.destroy(made.vault)


def test_the_database_is_copied_while_it_is_written_to(site):
    assert site.run().ok
    assert site.run().changed == []
    life = site.host.run("systemctl show -p MainPID --value k3s").stdout
    site.sql("INSERT INTO kine (name, created, value) VALUES ('/registry/configmaps/default/before', 1, 'a=b')")
    before = site.rows()
    done = site.run("from deploys.backup import run, drill\nrun(source='k3s')\ndrill(source='k3s')\n")
    assert done.ok, done
    assert site.host.run("systemctl show -p MainPID --value k3s").stdout == life
    assert site.rows() > before, "it was written to meanwhile"
    assert site.vault.run("ls /srv/vault/snapshots").stdout.strip()


def test_a_copy_that_is_not_there_changes_nothing(site):
    before = site.rows()
    done = site.run("from deploys.k3s import restore\nrestore(snapshot='2001-01-01')\n")
    assert not done.ok
    assert "nothing was restored; k3s runs again on what it had" in done.stdout + done.stderr
    assert site.host.run("systemctl is-active k3s").stdout == "active\n"
    assert site.rows() >= before


def test_a_lost_server_comes_back_on_a_fresh_host_from_the_offsite_copy(site):
    key = site.host.read(f"{DATA}/tls/server-ca.key")
    site.host.reset()
    site.made()
    assert site.host.read(f"{DATA}/tls/server-ca.key") != key, "a cluster of its own"
    assert site.run().ok
    done = site.run("from deploys.k3s import restore\nrestore(repository='offsite')\n")
    assert done.ok, done
    assert site.sql("SELECT value FROM kine WHERE name = '/registry/configmaps/default/before'") == "a=b"
    assert site.host.read(f"{DATA}/tls/server-ca.key") == key
    assert site.host.run("systemctl is-active k3s").stdout == "active\n"
    rows = site.rows()
    wait_for("new rows", lambda: site.rows() > rows, 30)
    assert site.host.run(f"ls -d {DATA}/tls-old-*").stdout.count("\n") == 1
    assert site.run().changed == []
