"""What of monitoring follows from the inventory alone: who is asked, on which ports, by which rules; and what is refused."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploys import dashboards, monitoring
from operations.redis import Instance
from settings import SettingsError, load_fleet
from settings.monitoring import container_databases, exporters, has_containers, ports, sites, tells_of_cluster
from settings.secret import Secret
from tests.unit import test_liap as liap_tests
from tests.unit import test_mcbench as mcbench_tests

ROOT = Path(__file__).parents[2]
SECRETS = {
    "MONITORING_WEBHOOK_URL": "https://hooks.example.org/canary-token",
    "MONITORING_POSTGRES_PASSWORD": "canary-monitoring-postgres",
    "MONITORING_REDIS_PASSWORD": "canary-monitoring-redis",
    "MONITORING_GRAFANA_ADMIN_PASSWORD": "canary-grafana-password",
    "GATEWAY_ADMIN_API_KEY": "canary-gateway-admin-key-of-length-32",
    "BACKUP_PASSWORD": "canary-backup-password-of-the-lab",
    "K3S_TOKEN": "canary-token-of-this-cluster-01234",
    **{
        f"CRICKSY_{name}": f"canary-cricksy-{name.lower()}-1"
        for name in ("POSTGRES_PASSWORD", "POSTGRES_OWNER_PASSWORD", "POSTGRES_BACKUP_PASSWORD", "REDIS_PASSWORD", "REDIS_ADMIN_PASSWORD")
    },
}
WATCHED = {
    "monitoring_enabled": True,
    "monitoring_sources": ["10.0.0.5/32"],
    "monitoring_postgres_password": "env:MONITORING_POSTGRES_PASSWORD",
    "monitoring_redis_password": "env:MONITORING_REDIS_PASSWORD",
    "backup_password": "env:BACKUP_PASSWORD",
    "certificate_email": "ops@example.org",
}
SERVER = WATCHED | {"monitoring_address": "10.0.0.5", "monitoring_webhook_url": "env:MONITORING_WEBHOOK_URL"}
GATEWAY = WATCHED | {
    "monitoring_address": "10.0.0.11",
    "gateway_domain": "gateway.example.org",
    "gateway_repository": "https://git.example.org/gateway.git",
    "gateway_version": "v1.0.0",
    "gateway_admin_api_key": "env:GATEWAY_ADMIN_API_KEY",
}
INFRA = WATCHED | {
    "monitoring_address": "10.0.0.71",
    **{f"cricksy_{key}": f"env:CRICKSY_{key.upper()}" for key in ("postgres_password", "postgres_owner_password", "postgres_backup_password", "redis_password", "redis_admin_password")},
}


GROUP = [{"name": "limits", "port": 6379, "exporter_port": 9123, "tls": True}, {"name": "limits", "port": 26379, "exporter_port": 9124, "sentinel": True}]
CLUSTER = WATCHED | {
    "monitoring_address": "10.0.0.91",
    "k3s_version": "v1.33.5+k3s1", "k3s_sums": {"amd64": "a" * 64}, "k3s_token": "env:K3S_TOKEN", "k3s_url": "https://10.0.0.91:6443",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _secrets(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def fleet(server=None, gateway=None, infra=None, more=()):
    hosts = [
        ("watch", ["monitoring"], SERVER | (server or {})),
        ("web", ["gateway"], GATEWAY | (gateway or {})),
        ("db", ["cricksy_infra"], INFRA | (infra or {})),
        *more,
    ]
    hosts = [(name, groups, {key: value for key, value in data.items() if value is not None}) for name, groups, data in hosts]
    return load_fleet([(name, groups, data | {"ssh_hostname": name}) for name, groups, data in hosts], resolve=[name for name, _, _ in hosts])


def refused(**words):
    with pytest.raises(SettingsError) as error:
        fleet(**words)
    return error.value.lines()


def test_a_host_has_the_exporters_of_what_runs_on_it():
    found = fleet()
    assert {name: [(one.label, one.port) for one in exporters(host)] for name, host in found.items()} == {
        "watch": [("node", 9100)],
        "web": [("node", 9100), ("nginx", 9113)],
        "db": [("node", 9100), ("postgres", 9187), ("redis-cricksy-broker", 9121), ("redis-cricksy-cache", 9122)],
    }


def test_exporters_are_open_to_prometheus_alone():
    found = fleet()
    assert {port.port: port.sources for port in found["db"].exposure if port.why.startswith("metrics")} == dict.fromkeys(
        (9100, 9121, 9122, 9187), ("10.0.0.5/32",)
    )
    assert all(port.port not in (9090, 9093, 9115, 3000) for host in found.values() for port in host.exposure)


def test_a_host_that_is_not_watched_has_none():
    found = fleet(gateway={"monitoring_enabled": None, "monitoring_address": None})
    assert exporters(found["web"]) == ()
    assert ports(found["web"]) == ()
    assert sites(found["web"]) == ()


def test_on_loopback_nothing_is_opened():
    found = load_fleet(
        [("watch", ["monitoring"], {"ssh_hostname": "watch", "monitoring_enabled": True, "monitoring_webhook_url": "env:MONITORING_WEBHOOK_URL"})],
        resolve=["watch"],
    )
    assert ports(found["watch"]) == ()
    assert monitoring.targets(found, "watch") == {"node": [{"targets": ["127.0.0.1:9100"], "labels": {"host": "watch", "systems": ""}}]}


def test_prometheus_asks_every_host_for_what_it_has():
    found = fleet(gateway={"monitoring_scrapes": [{"job": "game", "port": 9091, "path": "/figures"}]})
    asked = monitoring.targets(found, "watch")
    assert {job: [one["targets"][0] for one in configs] for job, configs in asked.items()} == {
        "node": ["10.0.0.71:9100", "10.0.0.5:9100", "10.0.0.11:9100"],
        "postgres": ["10.0.0.71:9187"],
        "redis": ["10.0.0.71:9121", "10.0.0.71:9122"],
        "nginx": ["10.0.0.11:9113"],
        "game": ["10.0.0.11:9091"],
    }
    assert asked["game"][0]["labels"] == {"host": "web", "systems": "gateway", "__metrics_path__": "/figures"}
    assert [one["labels"]["part"] for one in asked["redis"]] == ["cricksy-broker", "cricksy-cache"]
    site = monitoring.site_targets(found, "watch")[0]["labels"]
    assert (site["__param_target"], site["__param_hostname"], site["__param_module"]) == ("https://10.0.0.11/health", "gateway.example.org", "site")


def test_a_host_on_loopback_is_asked_by_itself_alone():
    found = fleet()
    data = {"ssh_hostname": "a", "monitoring_enabled": True, "monitoring_webhook_url": "env:MONITORING_WEBHOOK_URL"}
    both = {**found, **load_fleet([("alone", ["monitoring"], data)])}
    assert "alone" not in str(monitoring.targets(both, "watch"))
    assert "alone" in str(monitoring.targets(both, "alone"))


def test_ipv6_addresses_have_brackets():
    found = fleet(gateway={"monitoring_address": "2001:db8::11"})
    configuration = monitoring.prometheus_configuration(found["watch"].monitoring, found, "watch")
    assert "[2001:db8::11]:9113" in str(configuration)
    assert "https://[2001:db8::11]/health" in str(configuration)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"gateway": {"monitoring_address": None}}, "monitoring_address: is required on a watched host that is not in the group monitoring on host web, write"),
        ({"gateway": {"monitoring_address": "0.0.0.0"}}, "monitoring_address: must be one address, not all of them on host web, got '0.0.0.0', write"),
        ({"gateway": {"monitoring_address": "127.0.0.1"}}, "monitoring_address: must be an address that the monitoring host reaches on host web"),
        ({"gateway": {"monitoring_sources": ["0.0.0.0/0"]}}, "monitoring_sources[0]: must not be everybody on host web"),
        ({"gateway": {"monitoring_sources": None}}, "monitoring_sources: is required with monitoring_address on host web"),
        ({"gateway": {"monitoring_sources": ["10.0.0.6/32"]}}, "monitoring_sources: must hold 10.0.0.5, from where watch asks on host web, got ['10.0.0.6/32']"),
        ({"gateway": {"base_monitoring_enabled": False}}, "base_monitoring_enabled: must be True with monitoring_enabled on host web, got False"),
        ({"server": {"monitoring_address": None}}, "monitoring_address: is required: db, web must know who asks on host watch"),
        ({"server": {"monitoring_webhook_url": None}}, "monitoring_webhook_url: or monitoring_mail_to is required on a host of the group monitoring"),
        ({"server": {"monitoring_mail_to": "ops@example.org"}}, "monitoring_mail_from: is required with monitoring_mail_to on host watch"),
        ({"server": {"monitoring_mail_user": "x"}}, "monitoring_mail_password: is required with monitoring_mail_user on host watch"),
        ({"server": {"monitoring_grafana_image": "r.example.org/grafana:11"}}, "monitoring_grafana_admin_password: is required with monitoring_grafana_image: its own is admin"),
        ({"server": {"monitoring_prometheus_port": 9093}}, "monitoring_alertmanager_port: must not be the port of monitoring_prometheus_port on host watch, got 9093"),
        ({"server": {"monitoring_prometheus_port": 9100}}, "monitoring_prometheus_port: must not be the port of the exporter of node on host watch, got 9100"),
        ({"server": {"monitoring_memory_percent": 0}}, "monitoring_memory_percent: must be at least 1 on host watch, got 0"),
        ({"infra": {"monitoring_redis_password": None}}, "monitoring_redis_password: is required on a watched host that runs redis on host db"),
        ({"infra": {"monitoring_postgres_password": None}}, "monitoring_postgres_password: is required on a watched host that runs postgres on host db"),
        ({"gateway": {"monitoring_scrapes": [{"job": "x", "port": 9113}]}}, "monitoring_scrapes[0].port: must not be the port of the exporter of nginx on host web, got 9113"),
        ({"gateway": {"monitoring_journal_url": "http://logs.example.org:19532"}}, "monitoring_journal_url: must be https:// beyond a private network"),
        ({"gateway": {"monitoring_journal_url": "https://logs.example.org"}}, "monitoring_journal_key: is required with an https:// monitoring_journal_url"),
        ({"server": {"monitoring_window_seconds": 899}}, "monitoring_window_seconds: must be monitoring_hold_seconds and twenty times monitoring_group_seconds or more"),
        ({"server": {"monitoring_hold_seconds": 600}}, "on host watch, got 900, write monitoring_window_seconds = 1200"),
        ({"gateway": {"monitoring_redis_servers": [{"name": "x", "port": 6379, "exporter_port": 9113}]}}, "monitoring_redis_servers[0].exporter_port: must not be the port of the exporter of nginx"),
        ({"gateway": {"monitoring_redis_servers": [{"name": "x y", "port": 6379, "exporter_port": 9123}]}}, "monitoring_redis_servers[0].name: must be lower case letters"),
        ({"gateway": {"monitoring_redis_servers": [{"name": "x", "port": 26379, "exporter_port": 9123, "sentinel": True}]}}, "monitoring_sentinel_password: is required on a watched host that runs sentinel on host web"),
        ({"gateway": {"monitoring_redis_servers": [{"name": "x", "port": 1, "exporter_port": 9123}], "monitoring_scrapes": [{"job": "y", "port": 9123}]}}, "must not be the port of the exporter of y on host web, got 9123"),
        ({"gateway": {"monitoring_journal_url": "logs"}}, "monitoring_journal_url: must be a URL without path"),
    ],
)  # fmt: skip
def test_what_does_not_go_is_refused(words, said):
    assert any(said in line for line in refused(**words)), refused(**words)


@pytest.mark.parametrize("password", ["admin", "Admin123", "grafana", "short", "password1"])
def test_default_password_of_grafana_is_refused_and_not_shown(monkeypatch, password):
    monkeypatch.setenv("MONITORING_GRAFANA_ADMIN_PASSWORD", password)
    lines = refused(server={"monitoring_grafana_image": "r.example.org/grafana:11", "monitoring_grafana_admin_password": "env:MONITORING_GRAFANA_ADMIN_PASSWORD"})
    assert [line for line in lines if line.startswith("monitoring_grafana_admin_password: must ")]
    assert not any(f"'{password}'" in line for line in lines)


def test_prometheus_leaves_a_port_to_the_system_that_has_it():
    lines = refused(more=[("both", ["monitoring", "cricksy_infra"], INFRA | SERVER | {"monitoring_address": "10.0.0.5", "cricksy_redis_port": 9090})])
    assert any("monitoring_prometheus_port: must not be a port of cricksy on host both, got 9090, write monitoring_prometheus_port = 10090" in line for line in lines), lines


def test_the_exporters_account_of_redis_reads_no_key():
    users = monitoring.redis_users(fleet()["db"])
    instance = Instance("broker", Secret("x" * 16), tuple(users))
    assert instance.faults() == []
    line = instance.rules((7, 0, 0)).splitlines()[1]
    assert line.split()[:3] == ["user", "hostwright_monitor", "on"]
    assert not {"~*", "+@all", "+keys", "+config|get"} & set(line.split())
    assert monitoring.redis_users(fleet()["web"]) != []  # a password that is not used there
    assert monitoring.redis_users(fleet(infra={"monitoring_enabled": None, "monitoring_address": None})["db"]) == []


def test_redis_instances_are_those_of_the_deploy():
    from deploys import cricksy

    assert {one.instance for one in exporters(fleet()["db"]) if one.job == "redis"} == {cricksy.BROKER, cricksy.CACHE}


def test_rules_have_the_settings_thresholds():
    settings = fleet(server={"monitoring_memory_percent": 71, "monitoring_hold_seconds": 7, "monitoring_backup_hours": 99})["watch"].monitoring
    groups = yaml.safe_load(monitoring.rules(settings))["groups"]
    alerts = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}
    assert alerts["MemoryHigh"]["expr"] == "instance:memory_used:percent > 71"
    assert alerts["BackupStale"]["expr"].endswith("> 99")
    assert {rule["for"] for rule in alerts.values()} == {"7s"}
    assert all(rule["labels"]["severity"] in ("warning", "critical") for rule in alerts.values())
    assert all("$labels.host" in rule["annotations"]["summary"] for rule in alerts.values())


def test_every_alert_is_explained():
    page = (ROOT / "docs/monitoring.md").read_text()
    groups = yaml.safe_load(monitoring.rules(fleet()["watch"].monitoring))["groups"]
    names = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    assert [name for name in names if f"| {name} |" not in page] == []


def test_alertmanager_tells_by_both_ways():
    settings = fleet(
        server={
            "monitoring_mail_to": "ops@example.org", "monitoring_mail_from": "watch@example.org", "monitoring_mail_server": "mail.example.org:587",
            "monitoring_mail_user": "watch", "monitoring_mail_password": "env:MONITORING_REDIS_PASSWORD",
        }
    )["watch"].monitoring  # fmt: skip
    receiver = monitoring.alertmanager_configuration(settings)["receivers"][0]
    assert receiver["webhook_configs"] == [{"url": SECRETS["MONITORING_WEBHOOK_URL"], "send_resolved": True}]
    assert receiver["email_configs"][0]["auth_password"] == SECRETS["MONITORING_REDIS_PASSWORD"]
    assert receiver["email_configs"][0]["require_tls"] is True


# --- Grafana --------------------------------------------------------------------------------------------------------


def boards():
    return [*dashboards.dashboards(80, 85, 14, 26, 8), dashboards.cricksy(1000, 80), dashboards.liap(80), dashboards.containers(80), dashboards.k3s()]


def test_dashboards_are_such_as_grafana_shows():
    for board in boards():
        assert dashboards.faults(json.loads(dashboards.render(board))) == []
    assert len({board.uid for board in boards()}) == len(boards())


def test_a_broken_dashboard_is_found():
    found = json.loads(dashboards.render(boards()[0]))
    found["uid"] = "no such uid"
    found["panels"][1]["id"] = found["panels"][0]["id"]
    found["panels"][1]["gridPos"] = found["panels"][0]["gridPos"]
    found["panels"][0]["targets"][0]["expr"] = "up{host=~'$hosts'}"
    found["panels"][0]["targets"][0]["datasource"] = {"type": "prometheus", "uid": "other"}
    assert len(dashboards.faults(found)) == 5


def test_grafana_is_provisioned_with_the_source_that_its_panels_ask():
    found = fleet(server={"monitoring_prometheus_port": 9095})
    files = monitoring.provisioning(found["watch"].monitoring, found)
    source = yaml.safe_load(files["provisioning/datasources/hostwright.yaml"])["datasources"][0]
    assert (source["uid"], source["url"], source["type"]) == (dashboards.SOURCE["uid"], "http://127.0.0.1:9095", "prometheus")
    provider = yaml.safe_load(files["provisioning/dashboards/hostwright.yaml"])["providers"][0]
    assert provider["options"]["path"] == f"{monitoring.GRAFANA}/dashboards"
    assert [path for path in files if path.startswith("dashboards/")] == [
        f"dashboards/{uid}.json" for uid in ("hostwright-hosts", "hostwright-services", "hostwright-backups", "hostwright-cricksy")
    ]


def test_nobody_signs_up_for_grafana():
    settings = fleet(server={"monitoring_grafana_image": "r.example.org/grafana:11", "monitoring_grafana_admin_password": "env:MONITORING_GRAFANA_ADMIN_PASSWORD"})["watch"].monitoring
    lines = monitoring.grafana_environment(settings).unmask().splitlines()
    assert {"GF_USERS_ALLOW_SIGN_UP=false", "GF_AUTH_ANONYMOUS_ENABLED=false", "GF_SERVER_HTTP_ADDR=127.0.0.1"} <= set(lines)
    assert f"GF_SECURITY_ADMIN_PASSWORD={SECRETS['MONITORING_GRAFANA_ADMIN_PASSWORD']}" in lines


def test_the_whole_of_it_can_be_planned(tmp_path):
    """Every operation takes the arguments that it is given, on hosts of every kind; what they do there is the lab's to show."""
    entries = {
        "gateway": ("@fake/web", GATEWAY | {"monitoring_journal_url": "http://10.0.0.9:19532", "monitoring_cadvisor_image": "r.example.org/cadvisor:v1"}),
        "k3s_server": ("@fake/node", CLUSTER | {"monitoring_redis_servers": GROUP, "monitoring_sentinel_password": "env:MONITORING_REDIS_PASSWORD"}),
        "cricksy_infra": ("@fake/db", INFRA),
        "monitoring": (
            "@fake/watch",
            SERVER | {"monitoring_grafana_image": "r.example.org/grafana:11", "monitoring_grafana_admin_password": "env:MONITORING_GRAFANA_ADMIN_PASSWORD"},
        ),
    }  # fmt: skip
    fake = {"fake_delay": 0, "fake_delay_jitter": 0}
    (tmp_path / "inventory.py").write_text("".join(f"{group} = [{(name, data | fake)!r}]\n" for group, (name, data) in entries.items()))
    (tmp_path / "deploy.py").write_text("from deploys.monitoring import monitoring\nmonitoring()\n")
    run = subprocess.run(
        [Path(sys.executable).with_name("pyinfra"), "--dry", "-vvv", "--debug", "--diff", tmp_path / "inventory.py", tmp_path / "deploy.py"],
        cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    assert "Not planned" not in run.stdout
    planned = {line.strip().partition("  ")[0] for line in run.stdout.splitlines() if "@fake/" in line and line.strip().startswith("Monitoring |")}
    assert {f"Monitoring | {name}" for name in ("Run Prometheus", "Run Alertmanager", "Run Grafana", "Show how Redis is", "Show how nginx is", "Send the journal", "Look at the cluster every minute")} <= planned
    assert [name for name, secret in SECRETS.items() if secret in run.stdout] == []


def test_redis_of_a_deploy_of_your_own_is_watched():
    found = fleet(gateway={"monitoring_redis_servers": GROUP, "monitoring_sentinel_password": "env:MONITORING_REDIS_PASSWORD"})
    asked = {one.label: (one.port, monitoring.redis_address(found["web"], one)) for one in exporters(found["web"]) if one.instance}
    assert asked == {"redis-limits": (9123, "rediss://127.0.0.1:6379"), "sentinel-limits": (9124, "rediss://127.0.0.1:26379")}
    assert {9123, 9124} <= {port.port for port in found["web"].exposure}
    targets = monitoring.targets(found, "watch")
    assert targets["sentinel"] == [{"targets": ["10.0.0.11:9124"], "labels": {"host": "web", "systems": "gateway", "part": "limits"}}]
    broker = next(one for one in exporters(found["db"]) if one.instance == "cricksy-broker")
    assert monitoring.redis_address(found["db"], broker) == "redis://127.0.0.1:6379"


LIAP = WATCHED | {
    "monitoring_address": "10.0.0.83",
    "base_swap_size_mb": 1024,
    "liap_repository": "registry.example.org/liap-backend",
    "liap_version": "1.4.0",
    "liap_domain": "liap.example.org",
    "liap_metrics_networks": ["10.0.0.5/32"],
    **{key.lower(): f"env:{key}" for key in liap_tests.ENV if key.startswith("LIAP")},
}


def test_liap_shows_its_own_figures_and_its_containers(monkeypatch):
    for name, value in liap_tests.ENV.items():
        monkeypatch.setenv(name, value)
    found = fleet(more=[("games", ["liap"], LIAP)])
    assert [(one.job, one.port, one.own) for one in exporters(found["games"])] == [("node", 9100, True), ("nginx", 9113, True), ("liap", 9464, False)]
    assert ("10.0.0.5/32",) in {port.sources for port in found["games"].exposure if port.port == 9464}
    assert [one.domain for one in sites(found["games"])] == ["liap.example.org"]
    assert has_containers(found["games"])
    assert not has_containers(found["web"])
    files = monitoring.provisioning(found["watch"].monitoring, found)
    assert {"dashboards/hostwright-liap.json", "dashboards/hostwright-containers.json"} <= set(files)
    assert container_databases(found["games"]) == (("redis", "liap-redis-1"),)
    archive = fleet(more=[("games", ["liap"], LIAP | {"liap_archive_backend": "postgresql"})])["games"]
    assert container_databases(archive) == (("postgres", "liap-postgres-1"), ("redis", "liap-redis-1"))
    assert container_databases(found["db"]) == ()
    lines = refused(more=[("games", ["liap"], LIAP | {"liap_metrics_networks": []})])
    assert any("liap_metrics_networks: is required with monitoring_address" in line and "['10.0.0.5/32']" in line for line in lines), lines


def test_what_liap_has_on_hosts_of_its_own_is_watched(monkeypatch):
    for name, value in {**liap_tests.ENV, **liap_tests.AWAY_ENV}.items():
        monkeypatch.setenv(name, value)
    own = {"monitoring_sources": ["10.0.0.5/32"], "liap_metrics_networks": ["10.0.0.5/32"]}
    more = [
        (f"liap-{name}", groups, data | WATCHED | own | {"monitoring_address": f"10.0.1.{number}"}) for number, (name, groups, data) in enumerate(liap_tests.WHOLE, 1)
    ]  # fmt: skip
    found = fleet(more=more)
    assert [(one.label, one.port) for one in exporters(found["liap-db"])] == [("node", 9100), ("postgres", 9187), ("pgbouncer", 9127)]
    asked = monitoring.targets(found, "watch")
    peers = [name for name, groups, _ in more if groups == ["liap_redis"]]
    for job, port in (("redis", 9123), ("sentinel", 9124)):
        assert [(one["labels"]["host"], one["labels"]["part"]) for one in asked[job] if one["targets"][0].endswith(f":{port}")] == [(name, "liap") for name in peers]
    one = found[peers[0]]
    assert {each.job: monitoring.redis_address(one, each) for each in exporters(one) if each.instance} == {
        "redis": "rediss://127.0.0.1:6379", "sentinel": "rediss://127.0.0.1:26379",
    }  # fmt: skip
    assert len(monitoring.redis_users(one)) == 1


def test_databases_of_mcbench_are_asked_in_their_containers(monkeypatch):
    from deploys import mcbench

    for name, value in mcbench_tests.SECRETS.items():
        monkeypatch.setenv(name, value)
    found = fleet(more=[("box", mcbench_tests.ALL, WATCHED | mcbench_tests.GOOD | {"monitoring_address": "10.0.0.61", "mcbench_server_shares_host": True})])["box"]
    assert dict(container_databases(found)) == {kind: mcbench.name(kind) for kind in ("postgres", "redis")}
    assert has_containers(found)
    assert "api.example.org" in {one.domain for one in sites(found)}
    # what the two programs in the containers take their accounts from
    assert "REDIS_PASSWORD=" in mcbench.environment(found.mcbench, "redis").unmask()
    assert {"POSTGRES_USER", "POSTGRES_DB"} <= {line.partition("=")[0] for line in mcbench.environment(found.mcbench, "postgres").unmask().splitlines()}


def test_containers_are_told_in_prometheus_words():
    program = runpy.run_path(str(ROOT / "files/monitoring/containers.py"), run_name="containers")
    about = {
        "State": {"Running": True, "Restarting": False, "Health": {"Status": "unhealthy"}},
        "RestartCount": 3,
        "HostConfig": {"Memory": 1000},
    }
    stats = {"memory_stats": {"usage": 700, "limit": 1000, "stats": {"inactive_file": 200}}}
    found = dict(program["figures"](about, stats))
    assert found == {"running": 1, "restarts_total": 3, "healthy": 0, "memory_bytes": 500, "memory_limit_bytes": 1000}
    # stopped, in a crash loop, and without a limit or a health check
    assert dict(program["figures"]({"State": {"Running": False}, "HostConfig": {}}, None)) == {"running": 0, "restarts_total": 0}
    assert dict(program["figures"]({"State": {"Running": True, "Restarting": True}, "HostConfig": {}}, {}))["running"] == 0
    page = program["text"]([('a"b', "r.example.org/x:1", [("running", 1), ("restarts_total", 0)])], 7.9)
    assert page.splitlines() == [
        "# TYPE hostwright_container_running gauge",
        'hostwright_container_running{container="a\\"b",image="r.example.org/x:1"} 1',
        "# TYPE hostwright_container_restarts_total counter",
        'hostwright_container_restarts_total{container="a\\"b",image="r.example.org/x:1"} 0',
        "# TYPE hostwright_containers_timestamp_seconds gauge",
        "hostwright_containers_timestamp_seconds 7",
    ]


def test_databases_in_containers_are_told_in_the_exporters_words():
    program = runpy.run_path(str(ROOT / "files/monitoring/containers.py"), run_name="containers")
    info = "# Memory\r\nused_memory:1000\r\nmaxmemory:4000\r\n# Clients\r\nconnected_clients:2\r\nredis_version:7.0\r\n"
    assert program["redis_figures"](info) == [
        ("redis_up", {}, "1"), ("redis_memory_used_bytes", {}, "1000"), ("redis_memory_max_bytes", {}, "4000"), ("redis_connected_clients", {}, "2"),
    ]  # fmt: skip
    for nothing in (None, "", "NOAUTH Authentication required.\n"):
        assert program["redis_figures"](nothing) == [("redis_up", {}, "0")]
    rows = "pg_settings_max_connections|||100\npg_database_size_bytes|shop||7000\npg_stat_activity_count|shop|idle|3\n"
    assert program["postgres_figures"](rows) == [
        ("pg_up", {}, "1"), ("pg_settings_max_connections", {}, "100"), ("pg_database_size_bytes", {"datname": "shop"}, "7000"),
        ("pg_stat_activity_count", {"datname": "shop", "state": "idle"}, "3"),
    ]  # fmt: skip
    assert program["postgres_figures"](None) == [("pg_up", {}, "0")]
    # what the engine says comes in pieces, stdout and stderr between each other
    stream = b"\1\0\0\0\0\0\0\3abc\2\0\0\0\0\0\0\4oops\1\0\0\0\0\0\0\2de"
    assert program["said"](stream) == "abcde"
    page = program["text"]([], 7, [("redis_up", {"part": "a"}, "1"), ("redis_commands_processed_total", {"part": "a"}, "5")])
    assert page.splitlines()[:4] == ["# TYPE redis_up gauge", 'redis_up{part="a"} 1', "# TYPE redis_commands_processed_total counter", 'redis_commands_processed_total{part="a"} 5']


class Api:
    """Stands for the API server: answers paths with lists, and refuses what it does not know."""

    sock = None

    def __init__(self, answers):
        self.answers, self.path = answers, ""

    def request(self, method, path):
        assert method == "GET"
        self.path = path

    def getresponse(self):
        found = self.answers.get(self.path)
        body = b"ok" if found == "ok" else json.dumps({"items": found}).encode()
        return type("Answer", (), {"status": 200 if found is not None else 403, "read": lambda _: body})()


def test_a_cluster_is_told_in_prometheus_words():
    program = runpy.run_path(str(ROOT / "files/monitoring/k3s.py"), run_name="k3s")

    def one(name, spec=None, **status):
        return {"metadata": {"namespace": "game", "name": name}, "spec": spec or {}, "status": status}

    def conditions(**found):
        return [{"type": kind, "status": status} for kind, status in found.items()]

    answers = {
        "/readyz": "ok",
        "/api/v1/nodes": [one("a", {"unschedulable": True}, conditions=conditions(Ready="False", MemoryPressure="True"))],
        "/api/v1/pods": [one("bots-1", phase="Running", containerStatuses=[{"name": "bots", "restartCount": 4}]), one("bots-2", phase="Pending")],
        "/api/v1/persistentvolumeclaims": [one("data", phase="Pending"), one("logs", phase="Bound")],
        "/apis/apps/v1/deployments": [one("bots", {"replicas": 2}, readyReplicas=1), one("idle", {"replicas": 0})],
        "/apis/apps/v1/statefulsets": [one("redis", {})],
        "/apis/apps/v1/daemonsets": [one("proxy", {}, desiredNumberScheduled=3, numberReady=3)],
        "/apis/batch/v1/jobs": [one("migrate", conditions=conditions(Failed="True")), one("seed", conditions=conditions(Complete="True"))],
    }
    lines = program["text"](program["collected"](Api(answers))).splitlines()
    assert set(line for line in lines if line[0] != "#") == {
        "hostwright_k3s_up{} 1",
        'hostwright_k3s_node_ready{node="a"} 0',
        'hostwright_k3s_node_schedulable{node="a"} 0',
        'hostwright_k3s_node_condition{condition="MemoryPressure",node="a"} 1',
        'hostwright_k3s_container_restarts_total{container="bots",namespace="game",pod="bots-1"} 4',
        'hostwright_k3s_pods{namespace="game",phase="Running"} 1',
        'hostwright_k3s_pods{namespace="game",phase="Pending"} 1',
        'hostwright_k3s_claim_bound{claim="data",namespace="game"} 0',
        'hostwright_k3s_claim_bound{claim="logs",namespace="game"} 1',
        *(
            f'hostwright_k3s_workload_{word}{{kind="{kind}",namespace="game",workload="{name}"}} {value}'
            for kind, name, wanted, ready in (("Deployment", "bots", 2, 1), ("Deployment", "idle", 0, 0), ("StatefulSet", "redis", 1, 0), ("DaemonSet", "proxy", 3, 3))
            for word, value in (("wanted", wanted), ("ready", ready))
        ),
        'hostwright_k3s_job_failed{job_name="migrate",namespace="game"} 1',
        'hostwright_k3s_job_failed{job_name="seed",namespace="game"} 0',
    }
    assert "# TYPE hostwright_k3s_container_restarts_total counter" in lines
    del answers["/api/v1/nodes"]
    with pytest.raises(OSError, match="/api/v1/nodes: the API server says 403"):
        list(program["collected"](Api(answers)))


def test_a_cluster_that_does_not_answer_is_down_and_nothing_else_is_told(tmp_path):
    done = subprocess.run([sys.executable, "-I", "-B", ROOT / "files/monitoring/k3s.py", tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "k3s.prom").read_text() == "# TYPE hostwright_k3s_up gauge\nhostwright_k3s_up{} 0\n"
    assert not (tmp_path / ".k3s.prom.new").exists()


def test_servers_of_k3s_tell_of_their_cluster():
    found = fleet(more=[("server", ["k3s_server"], CLUSTER), ("agent", ["k3s_agent"], CLUSTER | {"monitoring_address": "10.0.0.92"})])
    assert [tells_of_cluster(found[name]) for name in ("server", "agent", "web")] == [True, False, False]
    assert [(one.job, one.port) for one in exporters(found["server"])] == [("node", 9100)]
    assert "dashboards/hostwright-k3s.json" in monitoring.provisioning(found["watch"].monitoring, found)
