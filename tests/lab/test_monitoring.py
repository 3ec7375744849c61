"""Every system watched: three hosts as deploy.py makes them, each alert with its cause made and taken away.

Read back through the HTTP interfaces of Prometheus and Alertmanager, with ss, ps and stat, and from the stranger.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from deploys import dashboards
from tests.lab import canary
from tests.lab.authority import Authority
from tests.lab.scan import scan
from tests.lab.state import run, wait_for
from tests.lab.watched import DOMAIN, PORTS, Watched, draw

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
TEXTFILES = "/var/lib/prometheus/node-exporter"
# pyinfra at its most talkative: every command with its output, its internals, the content of every file it uploads
LOUD = ("-vvv", "--debug", "--diff")
_FRONT = """server {
    listen 19532 ssl;
    ssl_certificate /srv/tls/certificate.pem;
    ssl_certificate_key /srv/tls/key.pem;
    ssl_client_certificate /srv/tls/clients.pem;
    ssl_verify_client on;
    client_max_body_size 0;
    location / { proxy_pass http://127.0.0.1:19531; proxy_http_version 1.1; proxy_request_buffering off; }
}
"""


@pytest.fixture(scope="module")
def watched(lab, tmp_path_factory):
    made = Watched(lab, tmp_path_factory.mktemp("watched"))
    made.plan = made.run(dry=True, extra=LOUD)
    assert made.plan.ok, made.plan
    with canary.sampled(made.watch, made.secrets) as at_watch, canary.sampled(made.db, made.secrets) as at_db:
        made.first_run = made.run(extra=LOUD)
    made.samples = at_watch, at_db
    assert made.first_run.ok, made.first_run
    yield made
    for host in made.hosts:
        lab.destroy(host)


def pids(watched: Watched) -> dict[str, str]:
    found = {}
    for host in watched.hosts:
        units = "'prometheus*' 'hostwright-exporter-*' nginx.service 'redis-server@*' 'postgresql@*'"
        listed = host.run(f"systemctl list-units --type=service --state=active --plain --no-legend {units}").stdout
        for unit in (line.split()[0] for line in listed.splitlines()):
            found[f"{host.name}/{unit}"] = host.run(f"systemctl show -p MainPID --value {unit}").stdout.strip()
    return found


def test_every_target_is_up(watched):
    wanted = {
        *((host.name, "node") for host in watched.hosts),
        *((watched.watch.name, job) for job in ("prometheus", "alertmanager", "blackbox")),
        (watched.web.name, "nginx"), (watched.web.name, "site"),
        *((watched.db.name, job) for job in ("postgres", "redis cricksy-broker", "redis cricksy-cache")),
    }  # fmt: skip
    assert set(watched.targets()) == wanted
    wait_for("all targets", lambda: set(watched.targets().values()) == {"up"}, 120, pause=1)
    assert {one["value"][1] for one in watched.query('{__name__=~"pg_up|redis_up|nginx_up|probe_success"}')} == {"1"}


def test_second_run_changes_nothing(watched):
    before = pids(watched)
    assert len(before) >= 12, before
    done = watched.run()
    assert (done.ok, done.changed) == (True, []), done
    assert pids(watched) == before
    assert watched.run(dry=True).changed == []


def test_secrets_stand_where_they_belong(watched):
    assert {"Monitoring | Run Alertmanager", "Monitoring | Show how PostgreSQL is"} <= set(watched.plan.changed)
    for said in (watched.plan, watched.first_run):
        assert canary.in_text(said.stdout + said.stderr, watched.secrets) == []
    for samples in watched.samples:
        assert samples.count / samples.seconds > canary.SAMPLES_PER_SECOND * 0.1
        assert samples.arguments == set()
    secrets_are_where_they_belong(watched)


def secrets_are_where_they_belong(watched):
    """On disk only what reads them, for its reader alone; nothing in a journal."""
    files = canary.files(watched.watch, watched.secrets)
    assert files == {"/etc/prometheus/alertmanager.yml": "600 prometheus prometheus"}
    monitoring = {key: value for key, value in watched.secrets.items() if key.startswith("MONITORING")}
    files = canary.files(watched.db, monitoring)
    assert files == {f"/etc/hostwright/exporters/{name}.env": "600 root root" for name in ("postgres", "redis-cricksy-broker", "redis-cricksy-cache")}
    assert canary.files(watched.web, monitoring) == {}
    assert [canary.journal(host, watched.secrets) for host in watched.hosts] == [[], [], []]


def test_new_secrets_are_shown_by_no_difference(watched):
    """The passwords of the exporters' accounts and the receiver's address are changed by a run that tells all it can."""
    new = canary.new(("MONITORING_POSTGRES_PASSWORD", "MONITORING_REDIS_PASSWORD", "HOOK_TOKEN"))
    old = {name: watched.secrets[name] for name in new}
    watched.secrets |= {**new, "MONITORING_WEBHOOK_URL": f"http://127.0.0.1:18080/{new['HOOK_TOKEN']}"}
    plan = watched.run(dry=True, extra=LOUD)
    with canary.sampled(watched.watch, new) as at_watch, canary.sampled(watched.db, new) as at_db:
        done = watched.run(extra=LOUD)
    assert done.ok, done
    assert {f"Monitoring | {step}" for step in ("Let the exporter of PostgreSQL in", "Show how PostgreSQL is", "Show how Redis is", "Run Alertmanager")} <= set(done.changed)
    for said in (plan, done):
        assert [canary.in_text(said.stdout + said.stderr, one) for one in (old, watched.secrets)] == [[], []]
    assert (at_watch.arguments, at_db.arguments) == (set(), set())
    secrets_are_where_they_belong(watched)
    # the former ones stand nowhere any more
    assert [canary.files(host, old) for host in watched.hosts] == [{}, {}, {}]
    up = '{__name__=~"pg_up|redis_up"} == 1'
    wait_for("databases that are asked with the new ones", lambda: len(watched.query(up)) == 3, 60, pause=1)
    assert watched.run().changed == []


def test_only_prometheus_reaches_the_exporters(watched, stranger):
    for host in watched.hosts:
        seen = scan(stranger, host)
        allowed = {22, 80, 443} if host is watched.web else {22}
        assert {frozenset(family.reached) for family in seen.values()} == {frozenset(allowed)}, host.name
    # the same question from the watching host is answered: it was the firewall, and not a typo
    for host, port in ((watched.web, PORTS["nginx"]), (watched.db, PORTS["postgres"]), (watched.db, PORTS["redis-cache"])):
        assert "# HELP" in watched.watch.run(f"curl -fsS -m 10 http://{host.address}:{port}/metrics").stdout
        assert stranger.run(f"curl -sS -m 5 http://{host.address}:{port}/metrics", check=False).returncode == 28
    # and whoever comes by another host's way finds nobody: each listens on one address
    for host in watched.hosts:
        for line in host.run("ss -Htln").stdout.splitlines():
            address, _, port = line.split()[3].rpartition(":")
            if 9000 < int(port) < 9400:
                assert address in ("127.0.0.1", host.address), line


def test_rules_pass_their_unit_tests(watched):
    """With the settings' defaults, by promtool, whatever thresholds this lab has."""
    from deploys import monitoring
    from settings import load_host

    settings = load_host("watch", ["monitoring"], {"monitoring_webhook_url": "env:X"}, resolve=False).monitoring
    watched.watch.write("/srv/rules/hostwright.yml", monitoring.rules(settings))
    watched.watch.write("/srv/rules/test.yml", (Path(__file__).parent / "monitoring_rules.yml").read_text())
    said = watched.watch.run("promtool test rules /srv/rules/test.yml", check=False, timeout=600)
    assert said.returncode == 0, said.stdout
    # and they do find a rule that is wrong
    watched.watch.run("sed -i 's/percent > 80/percent > 8/' /srv/rules/hostwright.yml")
    assert watched.watch.run("promtool test rules /srv/rules/test.yml", check=False, timeout=600).returncode != 0


def test_a_converged_fleet_is_quiet(watched):
    for job in ("run", "drill"):
        done = watched.do(f"deploys.backup.{job}")
        assert done.ok, done
    wait_for("no alert", lambda: watched.alerts() == set(), 120, pause=1)


def test_checks_of_running_hosts_pass(watched, tmp_path):
    done = watched.verify(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    watched.db.run("systemctl stop hostwright-exporter-postgres.service")
    done = watched.verify(tmp_path)
    watched.db.run("systemctl start hostwright-exporter-postgres.service")
    assert done.returncode == 1
    assert "test_exporters_listen_on_one_address[t-watched-db]" in done.stdout
    wait_for("no alert", lambda: watched.alerts() == set(), 120, pause=1)


# --- each alert and its cause ---------------------------------------------------------------------------------------


def test_disk_filled(watched):
    web = watched.web
    web.run("truncate -s 48M /srv/small.img && mkfs.ext4 -q /srv/small.img && mkdir -p /srv/small")
    device = run("losetup", "--find", "--show", web.directory / "root/srv/small.img").strip()
    number = device.removeprefix("/dev/loop")
    try:
        web.run(f"test -e {device} || mknod -m 660 {device} b 7 {number}; mount {device} /srv/small")
        wait_for("the file system", lambda: watched.query('instance:filesystem_used:percent{mountpoint="/srv/small"}'), 60, pause=1)
        watched.fires_and_resolves("DiskFull", web, lambda: web.run("fallocate -l 38M /srv/small/filler"), lambda: web.run("rm -f /srv/small/filler"))
    finally:
        web.run("umount /srv/small; rm -f /srv/small.img", check=False)
        run("losetup", "--detach", device, check=False)


def test_memory_taken(watched):
    """A host of the lab sees the memory of the whole machine: the threshold comes to it, by a reload."""
    web, before = watched.web, pids(watched)
    used = watched.value(f'instance:memory_used:percent{{host="{web.name}"}}')
    threshold = round(used) + 5
    done = watched.run(limit=watched.watch.name, memory_percent=threshold)
    assert (done.ok, done.changed) == (True, ["Monitoring | Run Prometheus"]), done
    assert pids(watched) == before
    total = watched.value(f'node_memory_MemTotal_bytes{{host="{web.name}"}}')
    take = int(total * (threshold + 3 - used) / 100)
    eater = f"systemd-run --quiet --unit=eater python3 -c 'import time; x = bytearray({take}); x[::4096] = bytes(len(x[::4096])); time.sleep(900)'"
    watched.fires_and_resolves("MemoryHigh", web, lambda: web.run(eater), lambda: web.run("systemctl stop eater"))
    done = watched.run(limit=watched.watch.name)
    assert done.changed == ["Monitoring | Run Prometheus"], done


def test_unit_failed(watched):
    db = watched.db
    watched.fires_and_resolves(
        "UnitFailed", db, lambda: db.run("systemd-run --quiet --unit=shop false"), lambda: db.run("systemctl reset-failed shop.service")
    )


def test_unit_stopped(watched):
    web = watched.web
    watched.fires_and_resolves("UnitStopped", web, lambda: web.run("systemctl stop cron"), lambda: web.run("systemctl start cron"))


def test_database_stopped(watched):
    db, unit = watched.db, "redis-server@cricksy-cache.service"
    watched.fires_and_resolves("ServiceUnreachable", db, lambda: db.run(f"systemctl stop {unit}"), lambda: db.run(f"systemctl start {unit}"))


def test_target_down(watched):
    db, unit = watched.db, "prometheus-node-exporter.service"
    watched.fires_and_resolves("TargetDown", db, lambda: db.run(f"systemctl stop {unit}"), lambda: db.run(f"systemctl start {unit}"))


def test_host_gone(watched):
    """Of a host that is off everything is down, and the one message is that."""
    db = watched.db
    watched.fires_and_resolves("TargetDown", db, db.cut_link, db.restore_link)


def test_site_down(watched):
    web = watched.web
    unit = web.run("systemctl list-units --plain --no-legend --state=active 'multiverse-gateway-*.service' | awk '{ print $1; exit }'").stdout.strip()
    watched.fires_and_resolves("SiteDown", web, lambda: web.run(f"systemctl stop {unit}"), lambda: web.run(f"systemctl start {unit}"))


def test_certificate_aged(watched):
    web = watched.web
    where = re.search(r"ssl_certificate (\S+)/fullchain.pem;", web.run("nginx -T 2>/dev/null").stdout)[1]
    fresh = web.run(f"cat {where}/fullchain.pem {where}/privkey.pem").stdout

    def aged() -> None:
        web.run(f"mkdir -p /srv/kept && cp -L {where}/fullchain.pem {where}/privkey.pem /srv/kept/")
        web.run(
            f"openssl req -x509 -newkey rsa:2048 -nodes -days 5 -subj /CN={DOMAIN} -addext subjectAltName=DNS:{DOMAIN} "
            f"-keyout {where}/privkey.pem -out {where}/fullchain.pem && nginx -s reload"
        )

    watched.fires_and_resolves(
        "CertificateExpires", web, aged, lambda: web.run(f"cat /srv/kept/fullchain.pem > {where}/fullchain.pem; cat /srv/kept/privkey.pem > {where}/privkey.pem; nginx -s reload")
    )
    assert web.run(f"cat {where}/fullchain.pem {where}/privkey.pem").stdout == fresh


def age(watched: Watched, metric: str, seconds: int) -> None:
    """Have a time in the backup's figures lie back, as if its timer had not run since."""
    path = f"{TEXTFILES}/hostwright_backup_gateway.prom"
    text = watched.web.read(path)
    when = int(time.time()) - seconds
    aged = re.sub(rf"(?m)^({metric}\{{.*\}}) \d+$", rf"\1 {when}", text)
    assert aged != text
    watched.web.write(path, aged)


def test_backup_stale(watched):
    def cure() -> None:
        assert watched.do("deploys.backup.run").ok

    watched.fires_and_resolves("BackupStale", watched.web, lambda: age(watched, "hostwright_backup_last_stored_timestamp_seconds", 27 * 3600), cure)


def test_backup_not_verified(watched):
    def cure() -> None:
        assert watched.do("deploys.backup.drill").ok

    watched.fires_and_resolves("BackupUnverified", watched.web, lambda: age(watched, "hostwright_backup_last_verified_timestamp_seconds", 9 * 86400), cure)


def test_backup_failed(watched):
    web = watched.web

    def spoil() -> None:
        web.run("mv /var/backups/hostwright /var/backups/away; systemctl start hostwright-backup-gateway.service", check=False, timeout=300)

    def heal() -> None:
        web.run("rm -rf /var/backups/hostwright; mv /var/backups/away /var/backups/hostwright")
        web.run("systemctl start hostwright-backup-gateway.service", timeout=300)

    watched.fires_and_resolves("BackupFailed", web, spoil, heal)


def test_queue_deep(watched):
    """The figures of cricksy-health, whose writer is on hosts of the application: here its file is made by hand."""
    db, path = watched.db, f"{TEXTFILES}/cricksy.prom"
    watched.fires_and_resolves(
        "QueueDeep", db, lambda: db.write(path, 'cricksy_queue_depth{queue="celery"} 1001\n'), lambda: db.write(path, 'cricksy_queue_depth{queue="celery"} 3\n')
    )
    db.run(f"rm {path}")


# --- what people look at ----------------------------------------------------------------------------------------------


def test_every_panel_has_data(watched):
    boards = dashboards.dashboards(80, 85, 14, 26, 8)
    empty = []
    for board in boards:
        assert dashboards.faults(json.loads(dashboards.render(board))) == []
        for title, expression in dashboards.queries(board):
            if not watched.query(expression):  # a query that is none raises
                empty.append((board.title, title, expression))
    assert empty == []


def test_status_page_shows_all_hosts(watched, tmp_path):
    assert "None." in watched.page()
    watched.web.run("systemd-run --quiet --unit=shop false", check=False)
    try:
        wait_for("the alert", lambda: ("UnitFailed", watched.web.name) in watched.alerts(), 120, pause=1)
        page = watched.page()
    finally:
        watched.web.run("systemctl reset-failed shop.service")
    for word in (*(host.name for host in watched.hosts), DOMAIN, "cricksy-broker", "gateway", "shop.service"):
        assert word in page
    # since when, after the state and the severity
    assert re.search(r">firing</td><td>critical</td><td>[0-9.]+(m?s|m [0-9]+s)</td>", page), page
    draw(page, tmp_path / "status")
    wait_for("no alert", lambda: watched.alerts() == set(), 120, pause=1)


# --- the journal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_journal_is_sent_and_waits_for_nobody(watched, stranger, tmp_path, scheme):
    web = watched.web
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.issue(stranger.address)
    own = tmp_path / "client.pem", tmp_path / "client.key"
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "5", "-subj", f"/CN={web.name}", "-out", own[0], "-keyout", own[1])
    stranger.run("command -v /lib/systemd/systemd-journal-remote || { apt-get update -q && apt-get install -q -y --no-install-recommends systemd-journal-remote; }", timeout=600)
    stranger.run("systemctl stop collector.service 2>/dev/null; rm -rf /srv/collected; mkdir -p /srv/collected", check=False)
    for name, text in (("clients", own[0].read_text()), ("certificate", certificate), ("key", key)):
        stranger.write(f"/srv/tls/{name}.pem", text)
    # Debian's collector is built without the part that asks for a client's certificate: nginx does it in front
    port = 19532
    if scheme == "https":
        port = 19531
        stranger.run("command -v nginx || apt-get install -q -y --no-install-recommends nginx", timeout=600)
        stranger.write("/etc/nginx/conf.d/collector.conf", _FRONT)
        stranger.run("systemctl restart nginx")
    collect = f"systemd-run --quiet --collect --unit=collector /lib/systemd/systemd-journal-remote --listen-http={port} --output=/srv/collected/ --split-mode=host"

    def has(word: str) -> bool:
        return word in stranger.run(f"journalctl -D /srv/collected -o cat --no-pager | grep -F {word} || :").stdout

    watched.secrets.update(JOURNAL_CA=authority.certificate, JOURNAL_CERTIFICATE=own[0].read_text(), JOURNAL_KEY=own[1].read_text())
    keys = {f"journal_{key}": f"env:JOURNAL_{key.upper()}" for key in ("ca", "certificate", "key")} if scheme == "https" else {}
    settings = {"journal_url": f"{scheme}://{stranger.address}:19532", **keys}
    stranger.run(collect)
    done = watched.run(limit=web.name, **settings)
    assert done.ok, done
    assert watched.run(limit=web.name, **settings).changed == []
    web.run(f"logger first-canary-{scheme}")
    wait_for("the first line", lambda: has(f"first-canary-{scheme}"), 120, pause=1)
    # nobody listens, and nothing is lost
    stranger.run("systemctl stop collector.service")
    web.run(f"logger second-canary-{scheme}")
    stranger.run(collect)
    wait_for("the second line", lambda: has(f"second-canary-{scheme}"), 180, pause=1)
    if scheme == "https":
        assert web.run("stat -c '%a %U' /etc/hostwright/journal/key.pem").stdout.split() == ["600", "root"]
        # who has no certificate is not let in
        asked = web.run(f"curl -s -m 10 -o /dev/null -w '%{{http_code}}' --cacert /etc/hostwright/journal/ca.pem https://{stranger.address}:19532/upload", check=False)
        assert asked.stdout == "400"
    # taken out of the settings, it is sent nowhere, and its key is gone
    done = watched.run(limit=web.name)
    assert (done.ok, done.changed) == (True, [f"Monitoring | {step}" for step in ("Keep the journal on the host", "Remove what the journal's sender had")]), done
    state = web.run("systemctl is-active systemd-journal-upload; systemctl is-enabled systemd-journal-upload; ls -A /etc/hostwright/journal", check=False)
    assert state.stdout == "inactive\ndisabled\n"
    assert watched.run(limit=web.name).changed == []


# --- a bad change, and a reboot -------------------------------------------------------------------------------------


def test_bad_setting_changes_nothing(watched):
    before = pids(watched)
    done = watched.run(memory_percent=0, grafana_image="registry.example.test/grafana:11.4.0")
    assert not done.ok
    assert "monitoring_memory_percent: must be at least 1" in done.stdout + done.stderr
    assert "monitoring_grafana_admin_password: is required with monitoring_grafana_image: its own is admin" in done.stdout + done.stderr
    assert pids(watched) == before


def test_reboot_brings_everything_back(watched):
    for host in watched.hosts:
        host.reboot()
    watched.take_messages()
    wait_for("all targets", lambda: set(watched.targets().values()) == {"up"}, 300, pause=2)
    wait_for("no alert", lambda: watched.alerts() == set(), 300, pause=2)
    assert watched.run().changed == []
