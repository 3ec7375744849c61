"""
Prometheus and Alertmanager of the distribution: configuration and rules that reach the running server only when they are valid.

Both are reloaded, not restarted, when their configuration changes; neither is ever started with what its package brings,
which listens on every address.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import yaml
from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.dpkg import InstalledPackages
from operations import fileset, script, template, unit
from operations.fileset import Directory, Entry, File
from settings.secret import Secret

CONFIGURATION = "/etc/prometheus"
RULES = f"{CONFIGURATION}/rules"
CONSOLES = f"{CONFIGURATION}/hostwright-consoles"
STORAGE = "/var/lib/prometheus/metrics2"

_LISTEN = re.compile(r"(?:[0-9.]+|\[[0-9a-f:]+\]):[0-9]{1,5}")
_FILE = re.compile(r"[a-z0-9][a-z0-9_-]*\.(yml|html)")
_ALERTMANAGER = "/var/lib/prometheus/alertmanager"


def _listen_faults(listen: str) -> list[str]:
    if not _LISTEN.fullmatch(listen):
        return [f"listen must be an address and a port such as '127.0.0.1:9090', got {listen!r}"]
    if listen.startswith(("0.0.0.0:", "[::]:")):
        return [f"listen must be one address, not all of them: nobody is asked for a password there, got {listen!r}"]
    return []


def dump(value: object) -> str:
    """Return data as YAML in the order in which it is given."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=160)


def _install(package: str) -> Generator[StringCommand, None, None]:
    wanted = [package, "curl"]
    installed = host.get_fact(InstalledPackages, packages=wanted)
    missing = [one for one in wanted if one not in installed]
    if missing:
        yield script.run(
            "dpkg/install.sh", "prometheus/install.sh", packages=" ".join(missing), units=f"{package}.service", list_hours=24
        )


def _reloaded(listen: str, prefix: str, paths: Sequence[str]) -> str:
    """Return the probe: the last reload went well, and is younger than the files. A SIGHUP itself tells nobody how it ended."""
    good, at = f"{prefix}_config_last_reload_successful", f"{prefix}_config_last_reload_success_timestamp_seconds"
    newest = f"stat -c %.6Z {' '.join(paths)} | sort -n | tail -n 1"
    return (
        f"page=$(curl -gfsS -m 10 http://{listen}/metrics) && printf '%s\\n' \"$page\" | "
        f"awk -v since=\"$({newest})\" '$1 == \"{good}\" {{ good = $2 }} $1 == \"{at}\" {{ at = $2 }} END {{ exit !(good == 1 && at >= since) }}'"
    )


def _ready(listen: str) -> str:
    return f"curl -gfsS -m 10 http://{listen}/-/ready >/dev/null"


def _service(package: str, arguments: Sequence[str], writable: str) -> tuple[list[Entry], list[str]]:
    """Return the files that a unit reads when it starts, and their paths."""
    paths = [f"/etc/default/{package}", f"/etc/systemd/system/{package}.service.d/hostwright.conf"]
    entries: list[Entry] = [
        File(paths[0], template.render("prometheus/defaults.j2", arguments=arguments)),
        File(paths[1], template.render("prometheus/hostwright.conf.j2", writable=writable)),
    ]
    return entries, paths


@operation()
def server(
    configuration: Mapping[str, Any],
    rules: Mapping[str, str] | None = None,
    consoles: Mapping[str, str] | None = None,
    listen: str = "127.0.0.1:9090",
    retention_days: int = 30,
    retention_gb: int = 5,
) -> Generator[StringCommand, None, None]:
    """
    Run the distribution's Prometheus: ``prometheus.service``.

    + configuration: of ``prometheus.yml``; ``rule_files`` is added for the rules
    + rules: file name, such as ``hostwright.yml``, to text
    + consoles: file name, such as ``status.html``, to text; each is a page below ``/consoles/``
    + listen: the one address and port on which it listens. It knows no password: loopback, or a proxy in front
    + retention_days, retention_gb: what is older, or more than that (GB), is forgotten

    ``promtool check config`` reads configuration and rules where they will stand, before anything changes; Prometheus then
    reloads them. What it does not take is put back. Listen and retention cost a restart.

    Raises ``OperationValueError`` for arguments that break a rule, all in one message.

    **Example:**

    .. code:: python

        prometheus.server(
            {"scrape_configs": [{"job_name": "node", "static_configs": [{"targets": ["10.0.0.11:9100"]}]}]},
            rules={"shop.yml": text}, name="Run Prometheus",
        )
    """
    rules, consoles = dict(rules or {}), dict(consoles or {})
    faults = _listen_faults(listen)
    faults += [f"rules: not a file name such as 'shop.yml': {one!r}" for one in rules if not _FILE.fullmatch(one) or not one.endswith(".yml")]
    faults += [f"consoles: not a file name such as 'status.html': {one!r}" for one in consoles if not _FILE.fullmatch(one) or not one.endswith(".html")]
    if "rule_files" in configuration:
        faults.append("configuration: rule_files is made from rules")
    if retention_days < 1 or retention_gb < 1:
        faults.append(f"retention_days and retention_gb must be at least 1, got {retention_days!r} and {retention_gb!r}")
    if faults:
        raise OperationValueError("prometheus.server: " + "; ".join(faults))

    arguments = [
        f"--config.file={CONFIGURATION}/prometheus.yml",
        f"--storage.tsdb.path={STORAGE}",
        f"--storage.tsdb.retention.time={retention_days}d",
        f"--storage.tsdb.retention.size={retention_gb}GB",
        f"--web.listen-address={listen}",
        f"--web.console.templates={CONSOLES}",
        f"--web.console.libraries={CONFIGURATION}/console_libraries",
    ]
    service, inputs = _service("prometheus", arguments, "/var/lib/prometheus")
    # rules that are gone stay as files, and are not read: they are named one by one
    whole = {**configuration, "rule_files": [f"{RULES}/{one}" for one in sorted(rules)]}
    main = f"{CONFIGURATION}/prometheus.yml"
    read = [
        File(main, "# Written by Hostwright; changes made here are overwritten.\n" + dump(whole)),
        *(File(f"{RULES}/{one}", text) for one, text in sorted(rules.items())),
    ]
    yield from _install("prometheus")
    yield from fileset.files._inner(
        entries=[Directory(CONFIGURATION), Directory(RULES), Directory(CONSOLES), *read, *(File(f"{CONSOLES}/{one}", text) for one, text in sorted(consoles.items()))],
        validate=f"promtool check config --lint-fatal {main}",
        within=CONFIGURATION,
        unit="prometheus.service",
        action="reload",
        probe=_reloaded(listen, "prometheus", [file.path for file in read]),
        probe_seconds=60,
        settle_seconds=1,
    )
    yield from fileset.files._inner(entries=service, unit="prometheus.service", probe=_ready(listen), probe_seconds=120)
    yield from unit.unit._inner(unit="prometheus.service", inputs=inputs, probe=_ready(listen), probe_seconds=120)


@operation()
def alertmanager(configuration: Mapping[str, Any] | Secret, listen: str = "127.0.0.1:9093") -> Generator[StringCommand, None, None]:
    """
    Run the distribution's Alertmanager: ``prometheus-alertmanager.service``, one that knows of no other.

    + configuration: of ``alertmanager.yml``, or its text as a ``Secret``; what its receivers are told is a secret: only
      Alertmanager and root can read it on the host
    + listen: the one address and port on which it listens

    ``amtool check-config`` reads it before anything changes; it is then reloaded, and put back when that fails.

    Raises ``OperationValueError`` for arguments that break a rule.

    **Example:**

    .. code:: python

        prometheus.alertmanager(Secret(text), name="Run Alertmanager")
    """
    faults = _listen_faults(listen)
    if faults:
        raise OperationValueError("prometheus.alertmanager: " + "; ".join(faults))
    text = configuration if isinstance(configuration, Secret) else Secret(dump(dict(configuration)))
    package, main = "prometheus-alertmanager", f"{CONFIGURATION}/alertmanager.yml"
    arguments = [
        f"--config.file={main}",
        f"--storage.path={_ALERTMANAGER}",
        f"--web.listen-address={listen}",
        # else it waits for others on every address
        "--cluster.listen-address=",
    ]
    service, inputs = _service(package, arguments, "/var/lib/prometheus")
    yield from _install(package)
    yield from fileset.files._inner(
        entries=[Directory(CONFIGURATION), File(main, text, mode="0600", owner="prometheus", group="prometheus")],
        validate=f"amtool check-config {main}",
        within=CONFIGURATION,
        unit=f"{package}.service",
        action="reload",
        probe=_reloaded(listen, "alertmanager", [main]),
        probe_seconds=60,
        settle_seconds=1,
    )
    yield from fileset.files._inner(entries=service, unit=f"{package}.service", probe=_ready(listen), probe_seconds=60)
    yield from unit.unit._inner(unit=f"{package}.service", inputs=inputs, probe=_ready(listen), probe_seconds=60)
