"""
Monitoring of every system: exporters on each watched host; Prometheus, Alertmanager and Grafana on hosts of the group `monitoring`.

Read top to bottom, it is the run book. What is watched follows from the inventory: a host in a group gets the exporters
of what runs on it, and every Prometheus asks all of them. What each alert means is told in docs/monitoring.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyinfra.api import deploy
from pyinfra.context import ctx_state

from deploys import current, dashboards
from operations import container, dpkg, exporter, fileset, prometheus, redis, schedule, unit
from operations.backup import TEXTFILES
from operations.container import Health, Mount, Network, Spec
from operations.fileset import Absent, Directory, Entry, File
from operations.schedule import Sandbox
from operations.template import render
from settings import Host, Monitoring, load_host
from settings.env import render as environment
from settings.liap import REDIS as LIAP_REDIS
from settings.monitoring import (
    CONTAINERS,
    NGINX,
    NODE,
    POSTGRES,
    REDIS,
    SENTINEL,
    SITES_PORT,
    Exporter,
    container_databases,
    exporters,
    has_containers,
    sites,
    tells_of_cluster,
)
from settings.secret import Secret

LOOPBACK = "127.0.0.1"
ROLE = USER = "hostwright_monitor"
STATUS_PORT = 18099
GRAFANA = "/etc/hostwright/grafana"
RULES, STATUS = "hostwright.yml", "hostwright.html"

_NODE = "prometheus-node-exporter.service"
_NODE_DROP_IN = f"/etc/systemd/system/{_NODE}.d/hostwright-monitoring.conf"
_NGINX_STATUS = "/etc/nginx/conf.d/hostwright-status.conf"
_CONTAINERS = "/usr/local/lib/hostwright/containers-health.py"
_K3S = "/usr/local/lib/hostwright/k3s-health.py"
_FILES = Path(__file__).parents[1] / "files/monitoring"
_UPLOAD = "systemd-journal-upload.service"
_UPLOAD_KEYS = "/etc/hostwright/journal"
_UPLOAD_FILES = ("/etc/systemd/journal-upload.conf.d/hostwright.conf", f"/etc/systemd/system/{_UPLOAD}.d/hostwright.conf")

# What has to run wherever it is installed: stopped is as bad as failed. The idle colour of a rollout is not among them.
SERVICES = (
    "cron", "nginx", "docker", "containerd", "postgresql@.+", "redis-server@.+", "prometheus", "prometheus-alertmanager",
    "prometheus-node-exporter", "hostwright-exporter-.+", "cricksy-worker@.+", "cricksy-flower", "systemd-journald", "systemd-journal-upload",
    "k3s", "k3s-agent", "pgbouncer", "redis-sentinel@.+",
)  # fmt: skip


@deploy("Monitoring")
def monitoring() -> None:
    """Converge one host to its part of monitoring: what it shows, and what watches."""
    settings = current()
    if settings.monitoring.enabled:
        _exporters(settings)
    if settings.monitoring.is_server:
        fleet = _fleet()
        _prometheus(settings, fleet)
        _alertmanager(settings.monitoring)
        _grafana(settings.monitoring, fleet)
    if settings.monitoring.enabled:
        # After the last container was made.
        _containers(settings)
        _cluster(settings)
        # Last: where the collector does not answer the run says so, and all else is done.
        _journal(settings.monitoring)


@deploy("Remove exporters")
def remove() -> None:
    """Stop and remove the exporters of a host, for one that is not watched any more. Nothing that was recorded is lost."""
    exporter.only([], name="Remove exporters")
    fileset.files([Absent(_NODE_DROP_IN)], unit=_NODE, name="Show the node on loopback alone")
    schedule.job("hostwright-containers-health", present=False, name="Look at no containers")
    schedule.job("hostwright-k3s-health", present=False, name="Look at no cluster")
    looked = [Absent(path) for path in (_CONTAINERS, _K3S, f"{TEXTFILES}/containers.prom", f"{TEXTFILES}/k3s.prom")]
    fileset.files(looked, name="Remove what looked at containers and cluster")
    fileset.files([Absent(_NGINX_STATUS)], unit="nginx.service", action="reload", name="Take nginx' figures away")
    _keep_journal()


# --- watched hosts ----------------------------------------------------------------------------------------------------


def redis_users(settings: Host) -> list[redis.User]:
    """Return the account for the exporters of Redis: it reads figures, and no key and no setting."""
    if not (settings.monitoring.enabled and settings.monitoring.redis_password):
        return []
    rules = ("+ping", "+info", "+slowlog|len", "+slowlog|get", "+latency|latest", "+latency|histogram")
    return [redis.User(USER, settings.monitoring.redis_password, rules)]


def _at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _exporters(settings: Host) -> None:
    found = {one.label: one for one in exporters(settings)}
    listen = settings.monitoring.listen
    mine = [one.label for one in found.values() if one.own and one.job not in (NODE, CONTAINERS)]
    if settings.monitoring.is_server:
        mine.append("blackbox")
    exporter.only(mine, name="Retire exporters that this host should not run")
    _node(settings.monitoring)
    if NGINX in found:
        _nginx(found[NGINX], listen)
    if POSTGRES in found:
        _postgres(settings, found[POSTGRES], listen)
    for one in found.values():
        if one.job in (REDIS, SENTINEL):
            _redis(settings, one, listen)
    if settings.monitoring.cadvisor_image:
        _cadvisor(settings.monitoring)


def _node(settings: Monitoring) -> None:
    """The node exporter is the base's, on loopback; here it listens on the address beside that."""
    entry: Entry = Absent(_NODE_DROP_IN)
    if settings.address:
        entry = File(_NODE_DROP_IN, render("monitoring/node-exporter.conf.j2", listen=_at(settings.address, 9100)))
    fileset.files([entry], unit=_NODE, probe=f"curl -gfsS -m 10 http://{_at(settings.listen, 9100)}/ >/dev/null", name="Show how the node is")


def _nginx(wanted: Exporter, listen: str) -> None:
    fileset.files(
        [File(_NGINX_STATUS, render("monitoring/hostwright-status.conf.j2", port=STATUS_PORT))],
        validate="nginx -t -q",
        within="/etc/nginx",
        unit="nginx.service",
        action="reload",
        settle_seconds=1,
        name="Have nginx' figures on loopback",
    )
    exporter.exporter(
        wanted.label,
        package="prometheus-nginx-exporter",
        listen=_at(listen, wanted.port),
        arguments=[f"--nginx.scrape-uri=http://{LOOPBACK}:{STATUS_PORT}/"],
        expects="nginx_up 1",
        name="Show how nginx is",
    )


def _postgres(settings: Host, wanted: Exporter, listen: str) -> None:
    owner = settings.cricksy if settings.cricksy and settings.cricksy.runs_postgres else settings.liap_services
    assert owner is not None
    password = settings.monitoring.postgres_password
    exporter.postgres_role(ROLE, password, name="Let the exporter of PostgreSQL in")
    exporter.exporter(
        wanted.label,
        package="prometheus-postgres-exporter",
        listen=_at(listen, wanted.port),
        environment={
            "DATA_SOURCE_NAME": f"host=/run/postgresql port={owner.postgres_port} user={ROLE} dbname=postgres sslmode=disable",
            # in a variable of its own: there is no quoting that all versions of the exporter agree on
            "PGPASSWORD": password,
        },
        expects="pg_up 1",
        name="Show how PostgreSQL is",
    )


def redis_address(settings: Host, wanted: Exporter) -> str:
    """Return where an exporter asks its Redis, or its sentinel."""
    for own in settings.monitoring.redis_servers:
        if (own.name, own.sentinel) == (wanted.instance, wanted.job == SENTINEL):
            return f"{'rediss' if own.tls or own.sentinel else 'redis'}://{LOOPBACK}:{own.port}"
    cricksy, served = settings.cricksy, settings.liap_services
    if served and wanted.instance == LIAP_REDIS:
        return f"rediss://{LOOPBACK}:{served.sentinel_port if wanted.job == SENTINEL else served.redis_port}"
    assert cricksy is not None
    port = cricksy.redis_port if wanted.instance == "cricksy-broker" else cricksy.redis_cache_port
    return f"{'rediss' if cricksy.infra_address else 'redis'}://{LOOPBACK}:{port}"


def _redis(settings: Host, wanted: Exporter, listen: str) -> None:
    address = redis_address(settings, wanted)
    # sentinels know one password, and no accounts
    served = settings.liap_services
    asks = served.redis_ask_password if served and wanted.instance == LIAP_REDIS else settings.monitoring.sentinel_password
    account: dict[str, str | Secret] = {"REDIS_PASSWORD": asks}
    if wanted.job != SENTINEL:
        account = {"REDIS_USER": USER, "REDIS_PASSWORD": settings.monitoring.redis_password}
    exporter.exporter(
        wanted.label,
        package="prometheus-redis-exporter",
        listen=_at(listen, wanted.port),
        # its certificate is for the name that other hosts use; whoever sits on this host's loopback instead of it is root
        arguments=["--config-command=-", "--set-client-name=false", *(["--skip-tls-verification"] if address.startswith("rediss:") else [])],
        environment={"REDIS_ADDR": address, **account},
        expects="redis_up 1",
        name="Show how Redis is",
    )


def _containers(settings: Host) -> None:
    """Which containers run, how well, and with how much of their memory: Debian has no package of cAdvisor. And their databases."""
    if not has_containers(settings):
        return
    fileset.files([File(_CONTAINERS, (_FILES / "containers.py").read_text())], name="Upload what looks at containers")
    schedule.job(
        "hostwright-containers-health",
        command=["/usr/bin/python3", "-I", "-B", _CONTAINERS, TEXTFILES, *(f"{kind}={name}" for kind, name in container_databases(settings))],
        when="*:0/1",
        timeout_seconds=50,
        sandbox=Sandbox(writable=[TEXTFILES]),
        description="how the containers are, for monitoring",
        name="Look at the containers every minute",
    )


def _cluster(settings: Host) -> None:
    """How nodes and workloads are, from the API server of this host: it is asked on loopback, and nobody else gets an account."""
    if not tells_of_cluster(settings):
        return
    fileset.files([File(_K3S, (_FILES / "k3s.py").read_text())], name="Upload what looks at the cluster")
    schedule.job(
        "hostwright-k3s-health",
        command=["/usr/bin/python3", "-I", "-B", _K3S, TEXTFILES],
        when="*:0/1",
        timeout_seconds=50,
        sandbox=Sandbox(writable=[TEXTFILES], loopback=True),
        description="how the cluster is, for monitoring",
        name="Look at the cluster every minute",
    )


def _cadvisor(settings: Monitoring) -> None:
    """cAdvisor, for whoever wants more than that. It reads the engine's and the kernel's own accounts, and may change nothing."""
    port = next(one.port for one in exporters(current()) if one.job == CONTAINERS)
    paths = (("/", "/rootfs"), ("/var/run", "/var/run"), ("/sys", "/sys"), ("/var/lib/docker", "/var/lib/docker"))
    container.container(
        "hostwright-cadvisor",
        Spec(
            image=str(settings.cadvisor_image),
            command=(f"--listen_ip={settings.listen}", f"--port={port}", "--docker_only=true", "--store_container_labels=false"),
            mounts=tuple(Mount(source, target, read_only=True) for source, target in paths),
            networks=(Network("host"),),
            read_only=True,
            memory_mb=256,
        ),
        name="Show how the containers are",
    )


def _journal(settings: Monitoring) -> None:
    """Send the journal to a collector. What it does not take waits in the journal, and nobody waits for it."""
    if not settings.journal_url:
        _keep_journal()
        return
    tls = settings.journal_url.startswith("https://")
    texts = (
        render("monitoring/journal-upload.conf.j2", url=settings.journal_url, tls=tls),
        render("monitoring/journal-upload.service.conf.j2", directory=_UPLOAD_KEYS, tls=tls),
    )
    keys: list[Entry] = [Directory("/etc/hostwright", mode="0755"), Directory(_UPLOAD_KEYS, mode="0700")]
    keys += [
        File(f"{_UPLOAD_KEYS}/{called}.pem", text, mode="0600")
        for called, text in (("ca", settings.journal_ca), ("certificate", settings.journal_certificate), ("key", settings.journal_key))
        if tls
    ]
    dpkg.packages(["systemd-journal-remote"], name="Install the journal's sender")
    fileset.files([*keys, *map(File, _UPLOAD_FILES, texts)], unit=_UPLOAD, name="Configure the journal's sender")
    unit.unit(_UPLOAD, inputs=_UPLOAD_FILES, name="Send the journal")


def _keep_journal() -> None:
    """Send the journal nowhere, any more: whoever takes a collector out of the settings does not want it to be told on."""
    unit.unit(_UPLOAD, running=False, enabled=False, name="Keep the journal on the host")
    keys = (f"{_UPLOAD_KEYS}/{called}.pem" for called in ("ca", "certificate", "key"))
    fileset.files([Absent(path) for path in (*_UPLOAD_FILES, *keys)], name="Remove what the journal's sender had")


# --- the host that watches ----------------------------------------------------------------------------------------------


def _fleet() -> dict[str, Host]:
    """Return the settings of all hosts of the inventory, without their secrets, --limit or not."""
    inventory = ctx_state.get().inventory  # type: ignore[no-untyped-call]
    return {one.name: load_host(one.name, one.groups, one.data.dict(), resolve=False) for one in inventory}


def targets(fleet: Mapping[str, Host], me: str) -> dict[str, list[dict[str, Any]]]:
    """Return job to targets with their labels: what Prometheus on the host `me` asks. A host on loopback is asked by itself alone."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, settings in sorted(fleet.items()):
        if not settings.monitoring.address and name != me:
            continue
        systems = ",".join(sorted({system.prefix.rstrip("_") for system in settings.systems}))
        for one in exporters(settings):
            labels = {"host": name, "systems": systems}
            if one.instance:
                labels["part"] = one.instance
            if one.path != "/metrics":
                labels["__metrics_path__"] = one.path
            found.setdefault(one.job, []).append({"targets": [_at(settings.monitoring.listen, one.port)], "labels": labels})
    return found


def site_targets(fleet: Mapping[str, Host], me: str) -> list[dict[str, Any]]:
    """Return the sites that are asked for, each at every host that has it: behind one name there may be several."""
    found = []
    for name, settings in sorted(fleet.items()):
        if not settings.monitoring.address and name != me:
            continue
        address = settings.monitoring.listen
        for site in sites(settings):
            labels = {
                "__param_module": "site" if site.trusted else "site_of_own_authority",
                "__param_target": f"https://{f'[{address}]' if ':' in address else address}{site.path}",
                "__param_hostname": site.domain,
                "instance": f"https://{site.domain}{site.path}",
                "site": site.domain,
                "host": name,
            }
            found.append({"targets": [f"{site.domain}@{name}"], "labels": labels})
    return found


def prometheus_configuration(settings: Monitoring, fleet: Mapping[str, Host], me: str) -> dict[str, Any]:
    """Return what `prometheus.yml` says, but for the rules."""
    seconds = settings.scrape_seconds
    itself = {"host": me, "systems": "monitoring"}
    jobs: list[dict[str, Any]] = [
        {"job_name": "prometheus", "static_configs": [{"targets": [f"{LOOPBACK}:{settings.prometheus_port}"], "labels": itself}]},
        {"job_name": "alertmanager", "static_configs": [{"targets": [f"{LOOPBACK}:{settings.alertmanager_port}"], "labels": itself}]},
        {"job_name": "blackbox", "static_configs": [{"targets": [f"{LOOPBACK}:{SITES_PORT}"], "labels": itself}]},
    ]
    for job, configs in sorted(targets(fleet, me).items()):
        entry: dict[str, Any] = {"job_name": job, "static_configs": configs}
        if job == NODE:
            # five series for each unit of every host, of which two are ever asked for
            drop = {"source_labels": ["__name__", "state"], "regex": "node_systemd_unit_state;(activating|deactivating|inactive)", "action": "drop"}
            entry["metric_relabel_configs"] = [drop]
        jobs.append(entry)
    if asked := site_targets(fleet, me):
        through = [{"target_label": "__address__", "replacement": f"{LOOPBACK}:{SITES_PORT}"}]
        jobs.append({"job_name": "site", "metrics_path": "/probe", "static_configs": asked, "relabel_configs": through})
    return {
        "global": {
            "scrape_interval": f"{seconds}s",
            "scrape_timeout": f"{min(10, seconds)}s",
            "evaluation_interval": f"{seconds}s",
            "external_labels": {"monitor": me},
        },
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"{LOOPBACK}:{settings.alertmanager_port}"]}]}]},
        "scrape_configs": jobs,
    }


def rules(settings: Monitoring) -> str:
    """Return the recording and alert rules."""
    words = {"for": f"{settings.hold_seconds}s", "rate": f"{max(60, 4 * settings.scrape_seconds)}s", "window": f"{settings.window_seconds}s"}
    return render(f"monitoring/{RULES}.j2", s=settings, services=f"({'|'.join(SERVICES)})[.]service", **words)


def blackbox_configuration() -> str:
    """Return the modules of the blackbox exporter: a site answers 200 over TLS, whose authority anybody or only we trust."""

    def module(trusted: bool) -> dict[str, Any]:
        return {
            "prober": "http",
            "timeout": "8s",
            "http": {"valid_status_codes": [200], "fail_if_not_ssl": True, "follow_redirects": False, "tls_config": {"insecure_skip_verify": not trusted}},
        }

    return prometheus.dump({"modules": {"site": module(True), "site_of_own_authority": module(False)}})


def alertmanager_configuration(settings: Monitoring) -> dict[str, Any]:
    """Return what `alertmanager.yml` says, secrets in clear."""
    receiver: dict[str, Any] = {"name": "operators"}
    if settings.webhook_url:
        receiver["webhook_configs"] = [{"url": settings.webhook_url.unmask(), "send_resolved": True}]
    if settings.mail_to:
        mail: dict[str, Any] = {
            "to": settings.mail_to, "from": settings.mail_from, "smarthost": settings.mail_server,
            "require_tls": settings.mail_tls, "send_resolved": True,
        }  # fmt: skip
        if settings.mail_user:
            mail |= {"auth_username": settings.mail_user, "auth_password": settings.mail_password.unmask()}
        receiver["email_configs"] = [mail]
    return {
        "route": {
            "receiver": "operators",
            "group_by": ["alertname", "host"],
            "group_wait": f"{settings.group_seconds}s",
            "group_interval": f"{10 * settings.group_seconds}s",
            "repeat_interval": f"{settings.repeat_hours}h",
        },
        # of a host that does not answer, only that
        "inhibit_rules": [
            {"source_matchers": ["alertname=TargetDown", "job=node"], "target_matchers": ["alertname!=TargetDown"], "equal": ["host"]},
        ],
        "receivers": [receiver],
    }


def _prometheus(settings: Host, fleet: Mapping[str, Host]) -> None:
    own = settings.monitoring
    if not own.enabled:
        exporter.only(["blackbox"], name="Retire exporters that this host should not run")
    exporter.exporter(
        "blackbox",
        package="prometheus-blackbox-exporter",
        listen=f"{LOOPBACK}:{SITES_PORT}",
        # Debian 13's 0.26 tells five lines of each look at a site that is well, 29,000 a day; what fails is told at any level
        arguments=["--log.level=warn"],
        configuration=blackbox_configuration(),
        name="Ask for sites as a client does",
    )
    prometheus.server(
        prometheus_configuration(own, fleet, settings.name),
        rules={RULES: rules(own)},
        consoles={STATUS: (_FILES / STATUS).read_text()},
        listen=f"{LOOPBACK}:{own.prometheus_port}",
        retention_days=own.retention_days,
        retention_gb=own.retention_gb,
        name="Run Prometheus",
    )


def _alertmanager(settings: Monitoring) -> None:
    text = Secret(prometheus.dump(alertmanager_configuration(settings)))
    prometheus.alertmanager(text, listen=f"{LOOPBACK}:{settings.alertmanager_port}", name="Run Alertmanager")


# --- Grafana ------------------------------------------------------------------------------------------------------------


def provisioning(settings: Monitoring, fleet: Mapping[str, Host]) -> dict[str, str]:
    """Return Grafana's files, by their paths below its directory: source, provider, and the dashboards."""
    source = {
        "apiVersion": 1,
        "prune": True,
        "datasources": [
            {
                "name": "Prometheus", "uid": dashboards.SOURCE["uid"], "type": "prometheus", "access": "proxy", "isDefault": True, "editable": False,
                "url": f"http://{LOOPBACK}:{settings.prometheus_port}",
                "jsonData": {"timeInterval": f"{settings.scrape_seconds}s", "httpMethod": "POST"},
            }
        ],
    }  # fmt: skip
    provider = {
        "apiVersion": 1,
        "providers": [
            {
                "name": "hostwright", "type": "file", "folder": "Hostwright", "disableDeletion": True, "allowUiUpdates": False,
                "updateIntervalSeconds": 30, "options": {"path": f"{GRAFANA}/dashboards"},
            }
        ],
    }  # fmt: skip
    boards = dashboards.dashboards(settings.memory_percent, settings.disk_percent, settings.certificate_days, settings.backup_hours, settings.verified_days)
    if any(one.cricksy for one in fleet.values()):
        boards.append(dashboards.cricksy(settings.queue_depth, settings.memory_percent))
    if any(has_containers(one) for one in fleet.values()):
        boards.append(dashboards.containers(settings.memory_percent))
    if any(tells_of_cluster(one) for one in fleet.values()):
        boards.append(dashboards.k3s())
    if any(one.liap for one in fleet.values()):
        boards.append(dashboards.liap(settings.memory_percent))
    return {
        "provisioning/datasources/hostwright.yaml": prometheus.dump(source),
        "provisioning/dashboards/hostwright.yaml": prometheus.dump(provider),
        **{f"dashboards/{board.uid}.json": dashboards.render(board) for board in boards},
    }


def grafana_environment(settings: Monitoring) -> Secret:
    """Return Grafana's variables: on loopback, nobody signs up, nobody looks without an account."""
    return Secret(
        environment(
            {
                "GF_SERVER_HTTP_ADDR": LOOPBACK,
                "GF_SERVER_HTTP_PORT": str(settings.grafana_port),
                "GF_SECURITY_ADMIN_PASSWORD": settings.grafana_admin_password,
                "GF_USERS_ALLOW_SIGN_UP": "false",
                "GF_AUTH_ANONYMOUS_ENABLED": "false",
                "GF_ANALYTICS_REPORTING_ENABLED": "false",
                "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
                "GF_PATHS_PROVISIONING": f"{GRAFANA}/provisioning",
            },
            consumer="docker",
        )
    )


def _grafana(settings: Monitoring, fleet: Mapping[str, Host]) -> None:
    if settings.grafana_image is None:
        return
    files = provisioning(settings, fleet)
    parents = ("", "/provisioning", "/provisioning/datasources", "/provisioning/dashboards", "/dashboards")
    fileset.files(
        [*(Directory(f"{GRAFANA}{one}") for one in parents), *(File(f"{GRAFANA}/{path}", text) for path, text in files.items())],
        name="Upload Grafana's source and dashboards",
    )
    container.volume("hostwright-grafana", owner="472:0", mode="0750", name="Have a volume for Grafana")
    container.container(
        "hostwright-grafana",
        Spec(
            image=settings.grafana_image,
            environment=grafana_environment(settings),
            mounts=(Mount(GRAFANA, GRAFANA, read_only=True), Mount("hostwright-grafana", "/var/lib/grafana")),
            # as Prometheus: on loopback, which is reached from outside through ssh
            networks=(Network("host"),),
            memory_mb=512,
            pids=256,
            user="472:0",
            health=Health(("wget", "-q", "-O", "/dev/null", f"http://{LOOPBACK}:{settings.grafana_port}/api/health"), interval_seconds=10, start_seconds=60),
            labels={"monitoring.source": _digest(files)},
        ),
        start_seconds=120,
        name="Run Grafana",
    )


def _digest(files: Mapping[str, str]) -> str:
    """Return a mark of what Grafana reads when it starts: the source and the provider. Dashboards it looks for itself."""
    return fileset.content_hash([(path, text) for path, text in files.items() if path.startswith("provisioning/")])[:12]
