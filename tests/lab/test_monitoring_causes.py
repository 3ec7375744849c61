"""One host with databases, containers and liap that watches itself: causes that the three hosts of test_monitoring do not have.

Each is made and taken away as it would come about; what is asked for every minute is asked for more often here. Mail is
sent to a server that takes it over TLS alone, and from who knows its account. Read back through the HTTP interfaces of
Prometheus and Alertmanager, from the mail server's own file, and from the stranger.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploys import dashboards
from tests.lab import canary
from tests.lab.authority import Authority
from tests.lab.kill import SEED, kill_run, spread
from tests.lab.lab import Lab
from tests.lab.liap_site import Site, play
from tests.lab.provision import Run, command_line, provision
from tests.lab.scan import scan
from tests.lab.state import REPOSITORY, run, wait_for
from tests.lab.watched import DEPLOY, Watcher, draw

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

TEXTFILES = "/var/lib/prometheus/node-exporter"
MAIL, MAILS = "mail.causes.test", "/srv/mails"
OFTEN = "while :; do systemctl start hostwright-containers-health.service; sleep 4; done"
_SECRETS = (
    "BACKUP_PASSWORD", "MONITORING_POSTGRES_PASSWORD", "MONITORING_REDIS_PASSWORD", "MONITORING_MAIL_PASSWORD", "HOOK_TOKEN",
    *(f"CRICKSY_{key}" for key in ("POSTGRES_PASSWORD", "POSTGRES_OWNER_PASSWORD", "POSTGRES_BACKUP_PASSWORD", "REDIS_PASSWORD", "REDIS_ADMIN_PASSWORD")),
)  # fmt: skip


class Alone(Watcher):
    """The host: groups monitoring, cricksy_infra and liap."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.site = Site(lab, "t-causes")
        self.host = self.site.host
        super().__init__(self.host)
        # those of containers are of liap, whose values do not stand in any file that is looked at here
        self.own = canary.new(_SECRETS)
        self.secrets = {**self.site.secrets, **self.own, "MONITORING_WEBHOOK_URL": f"http://127.0.0.1:18080/{self.own['HOOK_TOKEN']}"}
        self._mail_server(Authority(directory / "authority"))

    def _mail_server(self, authority: Authority) -> None:
        host = self.host
        certificate, key = authority.issue(MAIL)
        host.write("/usr/local/share/ca-certificates/mail.crt", authority.certificate)
        host.run(f"update-ca-certificates >/dev/null; echo '127.0.0.1 {MAIL}' >> /etc/hosts")
        host.write("/srv/mail/server.py", (REPOSITORY / "tests/lab/apps/mail_server.py").read_text())
        for name, text in (("certificate", certificate), ("key", key)):
            host.write(f"/srv/mail/{name}.pem", text)
        # not where secrets are looked for: what a mail server knows is not ours
        host.write("/run/mail-account", f"watch {self.own['MONITORING_MAIL_PASSWORD']}\n")
        host.run(
            "systemd-run --quiet --unit=mail python3 /srv/mail/server.py 127.0.0.1 2525 /srv/mail/certificate.pem /srv/mail/key.pem /run/mail-account " + MAILS
        )

    def words(self, **settings: object) -> dict[str, Any]:
        """What an inventory of the host is made from; keyword arguments are settings of monitoring, without their prefix."""
        found = self.site._words({"archive_backend": "postgresql"})
        monitoring = {
            "enabled": True,
            "scrape_seconds": 2,
            "hold_seconds": 2,
            "group_seconds": 1,
            "window_seconds": 60,
            "mail_to": "ops@causes.test",
            "mail_from": "watch@causes.test",
            "mail_server": f"{MAIL}:2525",
            "mail_user": "watch",
            **{key: f"env:MONITORING_{key.upper()}" for key in ("postgres_password", "redis_password", "webhook_url", "mail_password")},
            **settings,
        }
        cricksy = {
            key: f"env:CRICKSY_{key.upper()}"
            for key in ("postgres_password", "postgres_owner_password", "postgres_backup_password", "redis_password", "redis_admin_password")
        }
        data = {f"monitoring_{key}": value for key, value in monitoring.items()} | {f"cricksy_{key}": value for key, value in cricksy.items()}
        found["data"] |= data | {"cricksy_postgres_memory_mb": 256, "cricksy_cache_maxmemory_mb": 16}
        found["groups"] |= {"monitoring": [self.host], "cricksy_infra": [self.host]}
        return found

    def run(self, deploy: str | Path = DEPLOY, dry: bool = False, **settings: object) -> Run:
        self.site.registry.start()  # a run of another part of the lab may have ended it
        return provision(self.host, deploy, env=self.secrets, dry=dry, timeout=2400, **self.words(**settings))

    def fill(self) -> None:
        """Have something in each database: an empty copy is none, and its backup fails.

        A table that the owner has not made is one to which the next run lets the other roles in.
        """
        self.host.run("cd / && runuser -u postgres -- psql -Xqd cricksy_scorer -c 'SET ROLE cricksy_owner; CREATE TABLE kept AS SELECT generate_series(1, 9) AS id'")
        self.ask_redis("broker", "lpush celery kept")
        play(self.site, 4, players=2, moves=1)

    def ask_redis(self, instance: str, words: str) -> None:
        """Ask an instance of cricksy's as its administrator."""
        login = f"export REDISCLI_AUTH=$(cat) && redis-cli -s /run/redis-cricksy-{instance}/redis.sock --no-auth-warning"
        said = self.host.run(f"{login} {words}", input=self.own["CRICKSY_REDIS_ADMIN_PASSWORD"]).stdout
        assert "ERR" not in said, said

    def mails(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.host.run(f"cat {MAILS} 2>/dev/null || :").stdout.splitlines()]

    def mailed(self, alert: str, host: Any, status: str) -> bool:
        """Whether an alert of a host was mailed, ``firing`` or ``resolved``."""
        return any(re.match(rf"\[{status.upper()}[:\]].*\b{alert} {host.name}\b", mail["subject"]) for mail in self.mails())

    def look(self) -> None:
        """Have the figures of containers now, and not within a minute."""
        self.host.run("systemctl start hostwright-containers-health.service")


@pytest.fixture(scope="module")
def alone(lab, tmp_path_factory):
    made = Alone(lab, tmp_path_factory.mktemp("causes"))
    with canary.sampled(made.host, made.own) as made.samples:
        made.first_run = made.run()
    assert made.first_run.ok, made.first_run
    made.fill()
    made.site.registry.image("busybox", "1")
    yield made
    lab.destroy(made.host)


@pytest.fixture
def often(alone):
    """Figures of containers every few seconds."""
    alone.host.run(f"systemd-run --quiet --collect --unit=often sh -c '{OFTEN}'")
    yield
    alone.host.run("systemctl stop often.service")


def spare(alone: Alone, *options: str, command: str = "sleep 100000") -> None:
    """Run a container that has to stay."""
    image = f"{alone.site.registry.name}/busybox:1"
    alone.host.run(f"docker rm -f spare >/dev/null 2>&1; docker run -d --init --restart always --name spare {' '.join(options)} {image} sh -c '{command}'", timeout=300)


def test_every_target_is_up_and_a_second_run_changes_nothing(alone):
    name = alone.host.name
    jobs = ("node", "nginx", "postgres", "redis cricksy-broker", "redis cricksy-cache", "liap", "site", "prometheus", "alertmanager", "blackbox")
    wait_for("all targets", lambda: alone.targets() == {(name, job): "up" for job in jobs}, 180, pause=1)
    ids = alone.site.ids()
    done = alone.run()
    assert (done.ok, done.changed) == (True, []), done
    assert alone.site.ids() == ids
    wait_for("no alert", lambda: alone.alerts() == set(), 120, pause=1)


def test_databases_in_containers_tell_what_the_others_do(alone):
    alone.look()
    wait_for("the figures of liap's Redis", lambda: alone.query('instance:redis_memory_used:percent{part="liap-redis-1"}'), 120, pause=1)
    assert alone.value('redis_up{part="liap-redis-1"}') == 1
    assert alone.value('redis_memory_max_bytes{part="liap-redis-1"}') == 32 * 1024 * 1024
    assert 0 < alone.value('instance:redis_memory_used:percent{part="liap-redis-1"}') < 80
    page = alone.host.read(f"{TEXTFILES}/containers.prom")
    assert canary.in_text(page, {key: value for key, value in alone.secrets.items() if len(value) > 7}) == []
    wait_for("the figures of liap's PostgreSQL", lambda: alone.query('instance:postgres_connections_used:percent{part="liap-postgres-1"}'), 120, pause=1)
    assert alone.value('pg_up{part="liap-postgres-1"}') == 1
    assert 0 < alone.value('instance:postgres_connections_used:percent{part="liap-postgres-1"}') < 80
    assert alone.value('pg_database_size_bytes{part="liap-postgres-1", datname="liap_archive"}') > 1e6
    for board in (dashboards.containers(80), dashboards.liap(80)):
        for title, query in dashboards.queries(board):
            # a rule has its figure a moment after what it is made of
            wait_for(title, functools.partial(alone.query, query), 120, pause=1)


def test_secrets_stand_where_they_belong(alone):
    done = alone.first_run
    assert canary.in_text(done.stdout + done.stderr, alone.own) == []
    assert alone.samples.arguments == set()
    sought = {key: alone.own[key] for key in ("MONITORING_MAIL_PASSWORD", "HOOK_TOKEN")}
    found = {path: mode for path, mode in canary.files(alone.host, sought).items() if not path.startswith("/run/")}
    assert found == {"/etc/prometheus/alertmanager.yml": "600 prometheus prometheus"}
    assert canary.journal(alone.host, alone.own) == []


def test_nothing_of_it_answers_the_stranger(alone, stranger):
    assert {frozenset(family.reached) for family in scan(stranger, alone.host).values()} == {frozenset({22, 80, 443})}


def test_checks_of_running_hosts_pass(alone, tmp_path):
    for job in ("run", "drill"):
        done = alone.run(f"from deploys.backup import {job}\n{job}()\n")
        assert done.ok, done
    command_line(tmp_path, alone.host, DEPLOY, **alone.words())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/verify", "--inventory", str(tmp_path / "inventory.py")],
        cwd=REPOSITORY, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


# --- who is told ------------------------------------------------------------------------------------------------------


def test_mail_arrives(alone):
    host = alone.host
    alone.fires_and_resolves(
        "UnitFailed", host, lambda: host.run("systemd-run --quiet --unit=shop false"), lambda: host.run("systemctl reset-failed shop.service"), told=alone.mailed
    )
    assert {(mail["from"].split()[0], mail["to"]) for mail in alone.mails()} == {("FROM:<watch@causes.test>", "TO:<ops@causes.test>")}
    assert any("shop.service has failed on t-causes" in mail["text"] for mail in alone.mails() if "UnitFailed" in mail["subject"])


def test_what_cannot_be_posted_is_told_by_mail(alone):
    host = alone.host

    def cause() -> None:
        host.run("systemctl stop receiver.service")
        host.run("systemd-run --quiet --unit=shop false")

    def cure() -> None:
        alone.take_messages()
        host.run("systemctl reset-failed shop.service")

    alone.fires_and_resolves("AlertsNotDelivered", host, cause, cure, told=alone.mailed)


# --- causes -----------------------------------------------------------------------------------------------------------


def test_inodes_used_up(alone):
    host = alone.host
    image = host.directory / "root/srv/small.img"
    host.run("truncate -s 16M /srv/small.img && mkdir -p /srv/small")
    run("mkfs.ext4", "-q", "-N", "64", image)  # which Debian 13 as it is installed here has not
    device = run("losetup", "--find", "--show", image).strip()
    number = device.removeprefix("/dev/loop")
    try:
        host.run(f"test -e {device} || mknod -m 660 {device} b 7 {number}; mount {device} /srv/small")
        wait_for("the file system", lambda: alone.query('instance:filesystem_inodes_used:percent{mountpoint="/srv/small"}'), 60, pause=1)
        fill = 'free=$(df --output=iavail /srv/small | tail -n 1); for i in $(seq $((free - 2))); do : > /srv/small/$i; done'
        alone.fires_and_resolves("InodesUsedUp", host, lambda: host.run(fill), lambda: host.run("rm -f /srv/small/[0-9]*"))
    finally:
        host.run("umount /srv/small; rm -f /srv/small.img", check=False)
        run("losetup", "--detach", device, check=False)


def test_redis_nearly_full(alone):
    fill = "eval \"for i = 1, 13 do redis.call('set', 'fill' .. i, string.rep('x', 1000000)) end\" 0"
    alone.fires_and_resolves("RedisMemoryHigh", alone.host, lambda: alone.ask_redis("cache", fill), lambda: alone.ask_redis("cache", "flushall"))


def test_connections_nearly_used_up(alone):
    host = alone.host
    most = int(host.run("cd / && runuser -u postgres -- psql -XAtqc 'SHOW max_connections'").stdout)
    host.write("/srv/crowd", f"for i in $(seq {most * 8 // 10 + 2}); do psql -Xqc 'SELECT pg_sleep(3600)' & done; wait\n")
    alone.fires_and_resolves(
        "PostgresConnectionsHigh", host,
        lambda: host.run("systemd-run --quiet --collect --unit=crowd -p User=postgres -p WorkingDirectory=/ sh /srv/crowd"),
        # a server that sleeps does not notice that its client is gone
        lambda: host.run(
            "systemctl stop crowd.service; cd / && runuser -u postgres -- psql -Xqc "
            "\"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()\""
        ),
    )  # fmt: skip


def test_drill_failed(alone):
    host = alone.host
    units = host.run("systemctl list-unit-files --plain --no-legend 'hostwright-backup-*-drill.service' | awk '{ print $1 }'").stdout.split()
    drill = next(unit for unit in units if "cricksy-broker" in unit)
    host.run(f"systemctl start {drill.replace('-drill', '')} {drill}", timeout=300)

    def spoil() -> None:
        host.run(f"mv /var/backups/hostwright /var/backups/away; systemctl start {drill}", check=False, timeout=300)

    def heal() -> None:
        host.run("rm -rf /var/backups/hostwright; mv /var/backups/away /var/backups/hostwright")
        host.run(f"systemctl start {drill}", timeout=300)

    alone.fires_and_resolves("DrillFailed", host, spoil, heal)


def test_textfile_not_written_any_more(alone):
    """The clock of a lab host is that of the whole machine: the file is made old, and nothing writes it."""
    host, timer = alone.host, "hostwright-containers-health.timer"
    alone.fires_and_resolves(
        "TextfileStale", host,
        lambda: host.run(f"systemctl stop {timer} && touch -d '21 minutes ago' {TEXTFILES}/containers.prom"),
        lambda: host.run(f"systemctl start {timer} hostwright-containers-health.service"),
    )  # fmt: skip


def test_textfile_broken(alone):
    host, path = alone.host, f"{TEXTFILES}/broken.prom"
    alone.fires_and_resolves("TextfileBroken", host, lambda: host.write(path, "this is { no figure\n"), lambda: host.run(f"rm {path}"))


@pytest.mark.parametrize(("path", "unit"), [("rules/hostwright.yml", "prometheus"), ("alertmanager.yml", "prometheus-alertmanager")])
def test_configuration_not_loaded(alone, path, unit):
    host, path = alone.host, f"/etc/prometheus/{path}"

    def spoil() -> None:
        host.run(f"cp -p {path} /run/kept && echo '}}broken' >> {path} && systemctl reload {unit}")

    alone.fires_and_resolves("ConfigurationNotLoaded", host, spoil, lambda: host.run(f"cat /run/kept > {path}; rm /run/kept; systemctl reload {unit}"))


def test_container_down(alone, often):
    spare(alone)
    alone.look()
    alone.fires_and_resolves("ContainerDown", alone.host, lambda: alone.host.run("docker stop -t 1 spare", timeout=60), lambda: alone.host.run("docker start spare", timeout=60))


def test_container_unhealthy(alone, often):
    spare(alone, "--health-cmd 'test -e /tmp/well' --health-interval 2s --health-retries 1", command="touch /tmp/well; sleep 100000")
    alone.fires_and_resolves("ContainerUnhealthy", alone.host, lambda: alone.host.run("docker exec spare rm /tmp/well"), lambda: alone.host.run("docker exec spare touch /tmp/well"))


def test_container_starts_again_and_again(alone, often):
    alone.fires_and_resolves("ContainerRestarts", alone.host, lambda: spare(alone, command="sleep 1; exit 1"), lambda: alone.host.run("docker rm -f spare", timeout=60))


def test_container_near_its_memory_limit(alone, often):
    spare(alone, "-m 48m --shm-size 64m")
    alone.fires_and_resolves(
        "ContainerMemoryHigh", alone.host,
        lambda: alone.host.run("docker exec spare dd if=/dev/zero of=/dev/shm/x bs=1M count=42"),
        lambda: alone.host.run("docker exec spare rm /dev/shm/x"),
    )  # fmt: skip
    alone.host.run("docker rm -f spare", timeout=60)


def test_redis_in_its_container_does_not_answer(alone, often):
    alone.fires_and_resolves("ServiceUnreachable", alone.host, lambda: alone.host.run("docker pause liap-redis-1"), lambda: alone.host.run("docker unpause liap-redis-1"))


def test_games_cannot_be_archived(alone):
    """Nor does their database tell how it is, and it is told twice: that it does not run, and that it cannot be asked."""
    host, database = alone.host, "liap-postgres-1"

    def cause() -> None:
        host.run(f"docker stop -t 10 {database}", timeout=60)
        play(alone.site, 4, players=2, moves=1)

    alone.fires_and_resolves("ArchiveFails", host, cause, lambda: host.run(f"docker start {database}", timeout=60))
    count = f"docker exec {database} psql -XAtq -U archive -d liap_archive -c 'SELECT count(*) FROM archive.completed_games'"
    wait_for("the games that waited", lambda: int(host.run(count, check=False).stdout or 0) >= 8, 120, pause=1)


def test_process_near_its_own_limit(alone):
    """What the backend uses hardly moves: the threshold comes to it, by a reload."""
    used = int(alone.value('instance:process_memory_used:percent{job="liap"}'))
    only = "from deploys.monitoring import monitoring\nmonitoring()\n"

    def threshold(percent: int) -> None:
        done = alone.run(only, memory_percent=percent)
        assert (done.ok, done.changed) == (True, ["Monitoring | Run Prometheus"]), done

    alone.fires_and_resolves("ProcessMemoryHigh", alone.host, lambda: threshold(used - 1), lambda: threshold(80))


# --- a run that is killed ---------------------------------------------------------------------------------------------


def test_killed_anywhere_the_next_run_ends_well(alone, tmp_path):
    """Exporters, rules and receivers changed at once, ten times not to the end; then to it, and back."""
    only = "from deploys.monitoring import monitoring\nmonitoring()\n"
    other = {"scrape_seconds": 3, "memory_percent": 70, "mail_to": "other@causes.test", "postgres_password": "env:OTHER_POSTGRES_PASSWORD"}
    alone.secrets["OTHER_POSTGRES_PASSWORD"] = "canary-other-postgres-password"
    command = command_line(tmp_path, alone.host, only, **alone.words(**other))
    where = [kill_run(command, alone.secrets, point) for point in spread(10, 12, 3)]
    said = f"seed {SEED}, killed in {where}"
    done = alone.run(only, **other)
    assert done.ok, f"{said}\n{done}"
    assert alone.run(only, **other).changed == [], said
    assert "other@causes.test" in alone.host.read("/etc/prometheus/alertmanager.yml"), said
    assert alone.ask("status/config")["yaml"].count("scrape_interval: 3s") >= 1, said
    assert alone.host.run("find /etc/prometheus /etc/hostwright /etc/systemd -name '.*dpkg-*'").stdout == "", said
    assert alone.run(only).ok
    assert alone.run(only).changed == []
    wait_for("all targets", lambda: set(alone.targets().values()) == {"up"}, 120, pause=1)


def test_bad_input_of_all_kinds_is_refused_at_once(alone):
    done = alone.run(window_seconds=30, hold_seconds=60, mail_from=None, redis_servers=[{"name": "limits", "port": 6399, "exporter_port": 9121}])
    assert not done.ok
    said = done.stdout + done.stderr
    for line in (
        "monitoring_window_seconds: must be monitoring_hold_seconds and twenty times monitoring_group_seconds or more",
        "monitoring_mail_from: is required with monitoring_mail_to",
        "monitoring_redis_servers[0].exporter_port: must not be the port of the exporter of redis",
    ):
        assert line in said, said[-3000:]


def test_the_page_shows_what_runs_in_containers(alone, tmp_path):
    alone.look()
    wait_for("the containers", lambda: len(alone.query("hostwright_container_running")) >= 3, 60, pause=1)
    page = alone.page()
    for word in ("cricksy-broker", "liap-redis-1", "liap-postgres-1", "liap-backend-1", "liap.example.test"):
        assert word in page
    draw(page, tmp_path / "status")
