"""The production checklist of the gateway's deployment guide, line by line, and what a line takes for granted."""

from __future__ import annotations

import http.client
import ipaddress
import re
import shlex
import socket
import ssl

import pytest

from deploys.gateway import APP, APP_ROOT, DATABASE, LOGS, STATE
from operations import rollout
from settings import Host
from settings.gateway import KEY_LENGTH
from tests.verify.conftest import Machine

SYSTEM = "gateway"
MOST_EXPOSURE = 1.5
ADMIN_PATH = "/admin/stats"  # the guide's "Server Statistics"; reading it changes nothing
OLD_PROTOCOLS = ("tls1", "tls1_1")
PROTOCOLS = (*OLD_PROTOCOLS, "tls1_2", "tls1_3")

# Which colour serves, and the process that does; everything about "the gateway" is asked of that one.
_ACTIVE = f"""
socket=$(readlink {rollout.upstream(APP).removeprefix("unix:")}) || exit 1
unit=$(basename "$(dirname "$socket")")
"""


def _pid(settings: Host) -> str:
    assert settings.gateway is not None
    if settings.gateway.supervisor == "supervisor":
        return f'{_ACTIVE} pid=$(supervisorctl pid "$unit")'
    return f'{_ACTIVE} pid=$(systemctl show -p MainPID --value "$unit.service")'


def _supervision(settings: Host) -> str:
    assert settings.gateway is not None
    if settings.gateway.supervisor == "supervisor":
        return (
            f'{_ACTIVE} supervisorctl status "$unit" | awk \'{{ print tolower($2) }}\'; systemctl is-enabled supervisor'
        )
    # "enabled" alone may be about the alias: what starts it at boot is a link in a target's .wants.
    return (
        f'{_ACTIVE} systemctl is-active "$unit.service"; '
        'systemctl is-enabled --full "$unit.service" | grep -q "\\.target\\.wants/" && echo enabled || echo disabled'
    )


def _environment(settings: Host) -> str:
    """The running process's own variables, which a file need not tell; secrets only as their number of characters."""
    return rf"""{_pid(settings)}
tr '\0' '\n' <"/proc/$pid/environ" | awk '
    {{ at = index($0, "="); key = substr($0, 1, at - 1); value = substr($0, at + 1) }}
    key ~ /KEY|PASSWORD|SECRET|TOKEN/ {{ print key "=" length(value); next }}
    key ~ /^[A-Z_]+$/ {{ print key "=" value }}'
"""


def _curl(settings: Host, domain: str, path: str, show: str, *options: str, address: str = "127.0.0.1") -> str:
    """Ask for a path as a client does: by name, over TLS and through nginx; print what ``show`` names, not the body."""
    if settings.certificate.mode == "self-signed":
        trust = ["--insecure"]
    else:
        trust = ["--cacert", settings.certificate.ca_bundle] if settings.certificate.ca_bundle else []
    words = ["curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", show, *trust, *options]
    to = " ".join(f'--resolve {domain}:{port}:"{address}"' for port in (80, 443))
    return f"{shlex.join(words)} {to} {shlex.quote(path if '://' in path else f'https://{domain}{path}')}"


def _main_domain(settings: Host) -> str:
    assert settings.gateway is not None
    return settings.gateway.domain


def _domains(settings: Host) -> list[str]:
    """Every name of the site; a wildcard stands for one name below it."""
    assert settings.gateway is not None
    return [domain.replace("*.", "verify.") for domain in settings.gateway.domains]


def _tls(settings: Host) -> str:
    return "; ".join(
        f"printf '%s ' {shlex.quote(domain)}; {_curl(settings, domain, '/', '%{ssl_verify_result}')} || :; echo"
        for domain in _domains(settings)
    )


def _certificates(settings: Host) -> str:
    return "; ".join(
        f"echo domain={domain}; openssl s_client -connect 127.0.0.1:443 -servername {domain} </dev/null 2>/dev/null"
        " | openssl x509 -noout -subject -issuer -checkend 604800 -enddate"
        for domain in map(shlex.quote, _domains(settings))
    )


def _protocols(settings: Host) -> str:
    # SECLEVEL=0: otherwise this openssl itself refuses the old protocols, and the answer would be about the client.
    name = shlex.quote(_main_domain(settings))
    return "; ".join(
        f"openssl s_client -connect 127.0.0.1:443 -servername {name} -{protocol} -cipher ALL:@SECLEVEL=0 </dev/null "
        f">/dev/null 2>&1 && echo {protocol}"
        for protocol in PROTOCOLS
    ) + "; :"  # fmt: skip


def _redirect(settings: Host) -> str:
    domain = _main_domain(settings)
    return _curl(settings, domain, f"http://{domain}{_health(settings)}", "%{http_code} %{redirect_url}")


def _health(settings: Host) -> str:
    assert settings.gateway is not None
    return settings.gateway.health_path


def _inference(settings: Host) -> str:
    assert settings.gateway is not None
    # GET, where inference is a POST: the application says that the method is not allowed, and nothing is computed.
    return _curl(settings, _main_domain(settings), settings.gateway.inference_path, "%{http_code}")


def _admin_with_key(settings: Host) -> str:
    # The key goes from the process's environment to curl's standard input: to no argument, file or output.
    key = "tr '\\0' '\\n' <\"/proc/$pid/environ\" | sed -n 's/^ADMIN_API_KEY=/X-API-Key: /p'"
    return f"{_pid(settings)}\n{key} | {_curl(settings, _main_domain(settings), ADMIN_PATH, '%{http_code}', '-H', '@-')}"


def _admin_from_outside(settings: Host) -> str:
    """From the host's own outer address, which nginx does not take for loopback."""
    ask = _curl(settings, _main_domain(settings), ADMIN_PATH, "%{http_code}", address="$address")
    return f"address=$(hostname -I | cut -d' ' -f1); echo \"$address\"; {ask}"


def _journal(settings: Host) -> str:
    assert settings.gateway is not None
    if settings.gateway.supervisor == "supervisor":
        return f'{_ACTIVE} tail -n 2000 "/var/log/supervisor/$unit.log"'
    return f"""{_ACTIVE}
journalctl --no-pager --quiet -o cat "_SYSTEMD_INVOCATION_ID=$(systemctl show -p InvocationID --value "$unit.service")"
"""


EVIDENCE = {
    "gateway-supervision": _supervision,
    "gateway-environment": _environment,
    "gateway-sandbox": f'{_ACTIVE} systemd-analyze security --no-pager "$unit.service" | tail -1',
    "gateway-journal": _journal,
    "gateway-logs": f"stat -c '%a %U %s %n' {LOGS} {LOGS}/*.log",
    "gateway-logrotate": f"logrotate -d /etc/logrotate.conf 2>&1 | grep -E '^error|{LOGS}'; :",
    "gateway-logrotate-at-boot": "systemctl is-enabled logrotate.timer",
    "gateway-secret-files": f"stat -L -c '%a %U:%G %n' /etc/{APP}/*.env /etc/hostwright/tls/{APP}/privkey.pem",
    "gateway-state-files": f"stat -c '%a %U %n' {STATE} {DATABASE}*",
    "gateway-database-header": f"head -c 20 {DATABASE} | od -An -tu1 -w20",
    "gateway-code": f"find {APP_ROOT} \\( ! -user root -o -perm /022 \\) ! -type l | head -5",
    "gateway-user": "getent passwd gateway",
    "nginx-check": "nginx -t",
    "nginx-state": "systemctl is-active nginx; systemctl is-enabled nginx",
    "ca-bundle": lambda settings: f"cat {shlex.quote(bundle)}" if (bundle := settings.certificate.ca_bundle) else "",
    "https-trust": _tls,
    "https-certificates": _certificates,
    "https-protocols": _protocols,
    "https-unknown-name": "openssl s_client -connect 127.0.0.1:443 -servername unknown.invalid </dev/null",
    "https-redirect": _redirect,
    "https-headers": lambda settings: _curl(
        settings, _main_domain(settings), _health(settings), "%{http_code} %{http_version}", "-D", "/dev/stdout"
    ),
    "https-inference": _inference,
    "admin-without-key": lambda settings: _curl(settings, _main_domain(settings), ADMIN_PATH, "%{http_code}"),
    "admin-with-key": _admin_with_key,
    "admin-from-outside": _admin_from_outside,
}


def _variables(machine: Machine) -> dict[str, str]:
    pairs = (line.partition("=") for line in machine.lines("gateway-environment"))
    return {key: value for key, _, value in pairs}


# --- "Set strong ADMIN_API_KEY (32+ characters)" -----------------------------------------------------------------


def test_admin_api_key_is_strong(machine: Machine) -> None:
    assert int(_variables(machine)["ADMIN_API_KEY"]) >= KEY_LENGTH


def test_secrets_are_readable_by_root_alone(machine: Machine) -> None:
    for line in machine.lines("gateway-secret-files"):
        mode, owner, path = line.split(maxsplit=2)
        assert (mode, owner) == ("600", "root:root"), path


# --- "Configure proper LOG_LEVEL (INFO or WARNING)", "Enable file logging", "Set up log rotation" ----------------


def test_log_level_is_info_or_warning(machine: Machine) -> None:
    assert _variables(machine)["LOG_LEVEL"] in ("INFO", "WARNING")
    assert machine.settings.gateway is not None
    assert _variables(machine)["LOG_LEVEL"] == machine.settings.gateway.log_level


def test_file_logging_is_on(machine: Machine) -> None:
    machine.skip_unless("gateway_file_logging")
    assert _variables(machine)["ENABLE_FILE_LOGGING"] == "true"
    directory, *files = (line.split(maxsplit=3) for line in machine.lines("gateway-logs"))
    assert directory[0] == "750"
    assert files, f"no log file in {LOGS}"
    assert all(int(mode, 8) & 0o007 == 0 for mode, *_ in files)


def test_log_rotation_is_set_up(machine: Machine) -> None:
    machine.skip_unless("gateway_file_logging")
    said = machine.lines("gateway-logrotate")
    assert [line for line in said if line.startswith("error")] == []
    assert any("considering log" in line for line in said), f"logrotate knows no log in {LOGS}"
    assert machine.text("gateway-logrotate-at-boot").strip() == "enabled"


# --- "Set up process supervisor (systemd/supervisor)" ------------------------------------------------------------


def test_process_supervisor_runs_the_gateway_and_starts_it_at_boot(machine: Machine) -> None:
    state, at_boot = machine.lines("gateway-supervision")
    assert state in ("active", "running")
    assert at_boot == "enabled"


def test_unit_is_sandboxed(machine: Machine) -> None:
    assert machine.settings.gateway is not None
    if machine.settings.gateway.supervisor != "systemd":
        pytest.skip("gateway_supervisor is not 'systemd': there is no unit")
    found = re.search(r"exposure level for \S+: ([\d.]+)", machine.text("gateway-sandbox"))
    assert found is not None
    assert float(found[1]) <= MOST_EXPOSURE


def test_gateway_has_a_user_without_shell(machine: Machine) -> None:
    assert machine.text("gateway-user").strip().rpartition(":")[2] == "/usr/sbin/nologin"


def test_code_cannot_be_changed_by_the_gateway(machine: Machine) -> None:
    assert machine.lines("gateway-code") == []


def test_state_is_readable_by_the_gateway_alone(machine: Machine) -> None:
    found = {path: (mode, owner) for mode, owner, path in (line.split() for line in machine.lines("gateway-state-files"))}
    assert found.pop(STATE) == ("700", "gateway")
    assert DATABASE in found
    assert set(found.values()) == {("600", "gateway")}


def test_database_is_in_the_declared_journal_mode(machine: Machine) -> None:
    assert machine.settings.gateway is not None
    # https://www.sqlite.org/fileformat.html: bytes 18 and 19 are 2 in WAL mode, 1 in the others.
    version = machine.text("gateway-database-header").split()[18]
    assert version == ("2" if machine.settings.gateway.database_wal_mode else "1")


# --- "Set up reverse proxy (nginx)", "Enable HTTPS" --------------------------------------------------------------


def test_nginx_runs_a_valid_configuration_and_starts_at_boot(machine: Machine) -> None:
    assert machine.output("nginx-check").rc == 0, machine.output("nginx-check").text
    assert machine.lines("nginx-state") == ["active", "enabled"]


def test_certificate_is_valid_for_every_name(machine: Machine) -> None:
    if machine.settings.certificate.mode == "self-signed":
        pytest.skip("certificate_mode is 'self-signed': clients must be told to trust it")
    trusted = {domain: int(result) for domain, _, result in (line.rpartition(" ")[:3] for line in machine.lines("https-trust"))}  # fmt: skip
    for block in machine.text("https-certificates").split("domain=")[1:]:
        lines = dict(line.partition("=")[::2] for line in block.splitlines()[1:] if "=" in line)
        assert lines.get("subject") != lines.get("issuer"), (
            "the certificate is self-signed: the CA could not be asked. When its names lead here and port 80 is open, "
            "run pyinfra INVENTORY deploy.py again"
        )
        assert "Certificate will not expire" in block, "it expires within a week: is certbot.timer running?"
    assert trusted == dict.fromkeys(_domains(machine.settings), 0)


def test_http_redirects_to_https(machine: Machine) -> None:
    url = f"https://{_main_domain(machine.settings)}{_health(machine.settings)}"
    assert machine.text("https-redirect").split() == ["301", url]


def test_tls_is_1_2_or_newer(machine: Machine) -> None:
    assert machine.lines("https-protocols") == [p for p in PROTOCOLS if p not in OLD_PROTOCOLS]


def test_unknown_names_get_no_certificate(machine: Machine) -> None:
    assert "BEGIN CERTIFICATE" not in machine.output("https-unknown-name").text


def test_hsts_is_sent_as_declared(machine: Machine) -> None:
    assert machine.settings.gateway is not None
    seconds = machine.settings.gateway.hsts_seconds
    found = re.findall(r"(?im)^strict-transport-security: (.*?)\s*$", machine.text("https-headers"))
    assert found == ([f"max-age={seconds}"] if seconds else [])


# --- "Test health endpoint", "Test admin endpoints with API key", "Test inference endpoints" ---------------------


def test_health_endpoint_answers_through_nginx_and_tls(machine: Machine) -> None:
    assert machine.lines("https-headers")[-1].split() == ["200", "2"], "expected HTTP status 200 over HTTP/2"


def test_health_endpoint_answers_from_here(machine: Machine) -> None:
    """From the machine that runs the checks: through the network, the firewall, and with the certificate checked."""
    settings, target = machine.settings, machine.target
    if not target.address or not target.is_reached_directly:
        pytest.skip(f"{target.name} is not reached directly from here")
    context = ssl.create_default_context()
    if settings.certificate.mode == "self-signed":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif bundle := machine.text("ca-bundle"):
        context.load_verify_locations(cadata=bundle)
    domain = _main_domain(settings)
    with socket.create_connection((target.address, 443), timeout=10) as plain:
        connection = http.client.HTTPSConnection(domain, timeout=10)
        connection.sock = context.wrap_socket(plain, server_hostname=domain)
        connection.request("GET", _health(settings))
        assert connection.getresponse().status == 200


def test_admin_endpoint_refuses_without_key(machine: Machine) -> None:
    assert machine.text("admin-without-key").strip() in ("401", "403")


def test_admin_endpoint_answers_with_key(machine: Machine) -> None:
    assert machine.text("admin-with-key").strip() == "200"


def test_admin_endpoint_refuses_undeclared_networks(machine: Machine) -> None:
    assert machine.settings.gateway is not None
    address, status = machine.lines("admin-from-outside")
    if any(ipaddress.ip_address(address) in ipaddress.ip_network(n) for n in machine.settings.gateway.admin_networks):
        pytest.skip(f"{address}, the host's own address, is in gateway_admin_networks")
    assert status == "403"


def test_inference_endpoint_is_there(machine: Machine) -> None:
    # 405: there, for another method; 401 and 422: there, with a key or a body. 404 and 5xx: not.
    assert machine.text("https-inference").strip() in ("200", "401", "405", "422")


# --- "Monitor logs for errors" -----------------------------------------------------------------------------------


def test_log_has_no_errors_since_the_start(machine: Machine) -> None:
    errors = re.findall(r"(?m)^.*\b(?:ERROR|CRITICAL|Traceback)\b.*$", machine.text("gateway-journal"))
    assert errors == []
