"""Bad settings, and exactly what is said about each: the words are the interface."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.api.arguments import AllArguments
from pyinfra.connectors.ssh import ConnectorData

from settings import Secret, SettingsError, load_fleet, load_host
from settings.host import SECTIONS
from settings.inventory import GLOBAL_KEYS, REFUSED_KEYS, SSH_KEYS
from settings.reference import reference

KEY = "k" * 32
GOOD = {
    "ssh_user": "root",
    "gateway_domain": "gateway.example.org",
    "gateway_repository": "https://git.example.org/gateway.git",
    "gateway_version": "v1.4.0",
    "gateway_admin_api_key": "env:GATEWAY_ADMIN_API_KEY",
    "certificate_email": "ops@example.org",
    "backup_password": "env:BACKUP_PASSWORD",
}
REFERENCE = "write a reference: 'env:NAME', 'file:PATH#KEY', 'sops:PATH#KEY' or 'age:PATH#KEY'"
NOT_A_BRANCH = (
    "must be a tag or a full commit, not a branch on host web1, got {!r}, write a version such as 'v1.4.0'"
)
SHA256 = "a" * 64
ADMIN = {"name": "ann", "keys": ["ssh-ed25519 AAAAC3Nz ann@laptop"]}


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    monkeypatch.setenv("GATEWAY_ADMIN_API_KEY", KEY)
    monkeypatch.setenv("BACKUP_PASSWORD", "b" * 20)
    monkeypatch.setenv("SHORT", "0123456789abcdef")


def report(data, groups=("gateway",)):
    """The lines that are said about one host's data; a value of None takes the key away."""
    merged = {key: value for key, value in (GOOD | data).items() if value is not None}
    try:
        load_host("web1", groups, merged)
    except SettingsError as error:
        return str(error).splitlines()
    return []


def quote(key):
    return f"""quote it: {key} = "…" in a file, --data '{key}="…"' on the command line"""


BAD = {
    "control character in a nested key": (
        {"gateway_extra_env": {"A\nB": "c"}},
        "gateway_extra_env.A\\nB: must be a variable name of letters, digits and _ on host web1, got 'A\\nB'",
    ),
    # keys
    "typo": (
        {"gateway_domian": "x.example.org"},
        "gateway_domian: unknown setting on host web1, did you mean gateway_domain?",
    ),
    "typo in a common key": (
        {"base_timezoen": "UTC"},
        "base_timezoen: unknown setting on host web1, did you mean base_timezone?",
    ),
    "typo in a key of ssh": (
        {"ssh_hostnam": "192.0.2.1"},
        "ssh_hostnam: unknown setting on host web1, did you mean ssh_hostname?",
    ),
    "typo in a global argument": (
        {"_sudoo": True},
        "_sudoo: unknown global argument on host web1, did you mean _sudo?",
    ),
    "no prefix": ({"colour": "red"}, "colour: unknown setting on host web1"),
    "typo in a nested key": (
        {"base_exposure": [{"port": 9100, "why": "metrics", "protocol": "tcp"}]},
        "base_exposure[0].protocol: unknown setting on host web1, did you mean base_exposure[0].proto?",
    ),
    "ssh password": (
        {"ssh_password": "hunter2"},
        "ssh_password: must not be used on host web1, log in with a key: pyinfra --debug prints passwords",
    ),
    "sudo password": (
        {"_sudo_password": "hunter2"},
        "_sudo_password: must not be used on host web1, allow sudo without a password (NOPASSWD): "
        "it would show in the host's process list",
    ),
    "ssh port": (
        {"ssh_port": "22"},
        "ssh_port: must be a whole number from 1 to 65535 on host web1, got '22'",
    ),
    # types
    "number as text": (
        {"gateway_max_request_body_size": "8000"},
        "gateway_max_request_body_size: must be a whole number on host web1, got '8000', "
        "write gateway_max_request_body_size = 8000",
    ),
    "number as float": (
        {"gateway_workers": 2.0},
        "gateway_workers: must be a whole number on host web1, got 2.0",
    ),
    "number as bool": (
        {"gateway_workers": True},
        "gateway_workers: must be a whole number on host web1, got True",
    ),
    "number as words": (
        {"gateway_workers": "two"},
        "gateway_workers: must be a whole number on host web1, got 'two'",
    ),
    "bool as text": (
        {"backup_enabled": "no"},
        "backup_enabled: must be True or False on host web1, got 'no', write backup_enabled = False",
    ),
    "bool as number": (
        {"gateway_hsts_seconds": 0, "gateway_file_logging": 1},
        "gateway_file_logging: must be True or False on host web1, got 1, write gateway_file_logging = True",
    ),
    "version as number, by --data gateway_version=1.30": (
        {"gateway_version": 1.3},
        f"gateway_version: must be text on host web1, got 1.3, {quote('gateway_version')}",
    ),
    "text as number": (
        {"gateway_app": 5},
        f"gateway_app: must be text on host web1, got 5, {quote('gateway_app')}",
    ),
    "list as text": (
        {"base_packages": "htop"},
        "base_packages: must be a list on host web1, got 'htop', write ['htop']",
    ),
    "list as set": (
        {"base_time_servers": {"a"}},
        "base_time_servers: must be a list on host web1, got {'a'}",
    ),
    "member twice": (
        {"base_packages": ["htop", "htop"]},
        "base_packages: must not name htop twice on host web1, got ('htop', 'htop')",
    ),
    "dict as list": (
        {"gateway_extra_env": ["A=b"]},
        "gateway_extra_env: must be a dict on host web1, got ['A=b']",
    ),
    # single fields
    "domain missing": (
        {"gateway_domain": None},
        "gateway_domain: is required on host web1, write gateway_domain = 'gateway.example.org'",
    ),
    "domain is a URL": (
        {"gateway_domain": "https://gw.example.org/"},
        "gateway_domain: must be a domain name, not a URL on host web1, got 'https://gw.example.org/', "
        "write 'gw.example.org'",
    ),
    "domain in capitals": (
        {"gateway_domain": "Gw.example.org"},
        "gateway_domain: must be in lower case on host web1, got 'Gw.example.org', write 'gw.example.org'",
    ),
    "domain without a dot": (
        {"gateway_domain": "gateway"},
        "gateway_domain: must be a domain name such as 'gateway.example.org' on host web1, got 'gateway'",
    ),
    "domain is an address": (
        {"gateway_domain": "192.0.2.1"},
        "gateway_domain: must be a domain name, not an IP address on host web1, got '192.0.2.1'",
    ),
    "domain is a wildcard": (
        {"gateway_domain": "*.example.org"},
        "gateway_domain: must not be a wildcard on host web1, got '*.example.org'",
    ),
    "port out of range": (
        {"base_ssh_ports": [70000]},
        "base_ssh_ports[0]: must be at most 65535 on host web1, got 70000",
    ),
    "open port out of range": (
        {"base_exposure": [{"port": 0, "why": "x"}]},
        "base_exposure[0].port: must be at least 1 on host web1, got 0",
    ),
    "open port without a reason": (
        {"base_exposure": [{"port": 9100}]},
        "base_exposure[0].why: is required on host web1",
    ),
    "network": (
        {"gateway_admin_networks": ["10.0.0.0/33"]},
        "gateway_admin_networks[0]: must be an IP network such as '10.0.0.0/8' or '2001:db8::/32' on host web1, "
        "got '10.0.0.0/33'",
    ),
    "network with host bits": (
        {"base_ssh_sources": ["192.0.2.7/24"]},
        "base_ssh_sources[0]: must be an IP network without host bits on host web1, got '192.0.2.7/24', "
        "write '192.0.2.0/24'",
    ),
    "log level": (
        {"gateway_log_level": "INFOS"},
        "gateway_log_level: must be 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL' on host web1, got 'INFOS', "
        "did you mean 'INFO'?",
    ),
    "branch main": ({"gateway_version": "main"}, "gateway_version: " + NOT_A_BRANCH.format("main")),
    "branch HEAD": ({"gateway_version": "HEAD"}, "gateway_version: " + NOT_A_BRANCH.format("HEAD")),
    "branch latest": ({"gateway_version": "latest"}, "gateway_version: " + NOT_A_BRANCH.format("latest")),
    "branch of a remote": (
        {"gateway_version": "origin/v1"},
        "gateway_version: " + NOT_A_BRANCH.format("origin/v1"),
    ),
    "short commit": (
        {"gateway_version": "1a2b3c4"},
        "gateway_version: must be a full commit of 40 characters, or a tag on host web1, got '1a2b3c4'",
    ),
    "version that is an option": (
        {"gateway_version": "--upload-pack=x"},
        "gateway_version: must be a tag or a full commit of 40 characters on host web1, got '--upload-pack=x'",
    ),
    "repository with a password": (
        {"gateway_repository": "https://ci:hunter2@git.example.org/gateway.git"},
        "gateway_repository: must not hold a password on host web1, use a deploy key and an ssh:// URL",
    ),
    "old python": (
        {"gateway_python": "uv:3.9"},
        "gateway_python: must be 'distribution' or 'uv:3.11' and higher on host web1, got 'uv:3.9'",
    ),
    "requirements outside the release": (
        {"gateway_requirements": "../r.txt"},
        "gateway_requirements: must be a path inside the release on host web1, got '../r.txt'",
    ),
    "newline in an environment variable": (
        {"gateway_extra_env": {"A": "b\nc"}},
        "gateway_extra_env.A: must be one line without control characters on host web1, got 'b\\nc'",
    ),
    "name of an environment variable": (
        {"gateway_extra_env": {"A-B": "c"}},
        "gateway_extra_env.A-B: must be a variable name of letters, digits and _ on host web1, got 'A-B'",
    ),
    "e-mail": (
        {"certificate_email": "ops"},
        "certificate_email: must be an e-mail address on host web1, got 'ops'",
    ),
    "ACME v1": (
        {"certificate_directory": "https://acme-v01.api.letsencrypt.org/directory"},
        "certificate_directory: must be an ACME v2 directory on host web1, "
        "got 'https://acme-v01.api.letsencrypt.org/directory', write 'https://acme-v02.api.letsencrypt.org/directory'",
    ),
    "ACME without TLS": (
        {"certificate_directory": "http://acme.example.org/dir"},
        "certificate_directory: must be an https:// URL of an ACME directory on host web1, "
        "got 'http://acme.example.org/dir'",
    ),
    "retention of nothing": (
        {"backup_keep_daily": 0},
        "backup_keep_daily: must be at least 1 on host web1, got 0",
    ),
    "time of the backup": (
        {"backup_at": "25:00"},
        "backup_at: must be a time of systemd's OnCalendar such as '02:00', 'Sun 04:00' or '*-*-01 03:30' on host web1, "
        "got '25:00'",
    ),
    "time of the drill, as in cron": (
        {"backup_drill_at": "0 4 * * 0"},
        "backup_drill_at: must be a time of systemd's OnCalendar such as '02:00', 'Sun 04:00' or '*-*-01 03:30' "
        "on host web1, got '0 4 * * 0'",
    ),
    "range of days past Sunday": (
        {"backup_drill_at": "Sat..Mon 04:30"},
        "backup_drill_at: must not have a range of days that goes past Sunday on host web1, got 'Sat..Mon 04:30', "
        "write 'Sat,Sun,Mon 04:30'",
    ),
    "relative backup repository": (
        {"backup_repository": "backups"},
        "backup_repository: must be an absolute path or a restic repository such as "
        "'s3:https://s3.example.org/bucket' on host web1, got 'backups'",
    ),
    "backup repository with a password": (
        {"backup_repository": "rest:https://u:hunter2@r.example.org/x"},
        "backup_repository: must not hold a password on host web1, write it in backup_offsite_env",
    ),
    "size": (
        {"base_journald_max_use": "500 MB"},
        "base_journald_max_use: must be a size such as '500M' or '2G' on host web1, got '500 MB'",
    ),
    "reboot time": (
        {"base_unattended_upgrades_reboot_at": "3:30"},
        "base_unattended_upgrades_reboot_at: must be a time of day such as '03:30' on host web1, got '3:30'",
    ),
    "private key": (
        {"base_admins": [{"name": "ann", "keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"]}]},
        "base_admins[0].keys[0]: must be a public key, this is a private one on host web1",
    ),
    "admin without a key": (
        {"base_admins": [{"name": "ann", "keys": []}]},
        "base_admins[0].keys: must not be empty on host web1, got []",
    ),
    "user name": (
        {"base_admins": [{"name": "Ann B", "keys": ADMIN["keys"]}]},
        "base_admins[0].name: must be a user name of small letters, digits, _ and - on host web1, got 'Ann B'",
    ),
    # secrets
    "plain secret": (
        {"gateway_admin_api_key": "hunter2hunter2"},
        f"gateway_admin_api_key: must be a reference to a secret, not the secret itself on host web1, {REFERENCE}",
    ),
    "secret scheme": (
        {"gateway_admin_api_key": "vault:gateway#key"},
        f"gateway_admin_api_key: unknown secret scheme 'vault' on host web1, {REFERENCE}",
    ),
    "no such environment variable": (
        {"backup_password": "env:NOT_SET_ANYWHERE"},
        "backup_password: environment variable NOT_SET_ANYWHERE is not set on host web1",
    ),
    "key of 16 characters": (
        {"gateway_admin_api_key": "env:SHORT"},
        "gateway_admin_api_key: must have at least 32 characters, has 16 on host web1, "
        "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
    ),
    "secret as a list": (
        {"backup_password": ["env:A"]},
        f"backup_password: must be a reference to a secret, not the secret itself on host web1, {REFERENCE}",
    ),
    "plain secret in the environment": (
        {"gateway_extra_env": {"SMTP_PASSWORD": "hunter2"}},
        "gateway_extra_env.SMTP_PASSWORD: looks like a secret on host web1, "
        "write gateway_extra_secret_env = {'SMTP_PASSWORD': 'env:SMTP_PASSWORD'}",
    ),
    # between fields
    "git without version": (
        {"gateway_version": None},
        "gateway_version: is required when gateway_source is 'git' on host web1, write a tag or a full commit",
    ),
    "git without repository": (
        {"gateway_repository": None},
        "gateway_repository: is required when gateway_source is 'git' on host web1",
    ),
    "archive without checksum": (
        {"gateway_source": "archive", "gateway_archive_url": "https://example.org/g.tar.gz"},
        "gateway_archive_sha256: is required when gateway_source is 'archive' on host web1, write what sha256sum prints",
    ),
    "archive without URL": (
        {"gateway_source": "archive", "gateway_archive_sha256": SHA256},
        "gateway_archive_url: is required when gateway_source is 'archive' on host web1",
    ),
    "checks overlap": (
        {"gateway_health_check_interval_seconds": 10},
        "gateway_health_check_timeout_seconds: must be less than gateway_health_check_interval_seconds (10) "
        "on host web1, got 10",
    ),
    "drain cuts requests": (
        {"gateway_drain_seconds": 60},
        "gateway_drain_seconds: must be at least gateway_request_timeout_seconds (300) on host web1, got 60",
    ),
    "clients without keys": (
        {"gateway_require_client_api_key": True},
        "gateway_client_api_keys: is required when gateway_require_client_api_key is True on host web1",
    ),
    "client key is the admin's": (
        {"gateway_client_api_keys": ["env:GATEWAY_ADMIN_API_KEY"]},
        "gateway_client_api_keys: must not hold the admin key on host web1",
    ),
    "domain twice": (
        {"gateway_extra_domains": ["gateway.example.org"]},
        "gateway_extra_domains: must not repeat gateway_domain on host web1, got 'gateway.example.org'",
    ),
    "logs nowhere": (
        {"gateway_file_logging": False, "gateway_console_logging": False},
        "gateway_console_logging: must be True when gateway_file_logging is False on host web1, got False",
    ),
    "variable that is a setting": (
        {"gateway_extra_env": {"LOG_LEVEL": "DEBUG"}},
        "gateway_extra_env.LOG_LEVEL: is set by the deploy on host web1, see the settings of the gateway",
    ),
    "staging of another CA": (
        {"certificate_staging": True, "certificate_directory": "https://ca.example.org/dir"},
        "certificate_staging: must be False when certificate_directory is not Let's Encrypt's on host web1, got True",
    ),
    "dns-01 without a plugin": (
        {"certificate_challenge": "dns-01"},
        "certificate_dns_plugin: is required for dns-01 on host web1, write certificate_dns_plugin = 'cloudflare'",
    ),
    "off-site without credentials": (
        {"backup_offsite_repository": "s3:https://s3.example.org/b"},
        "backup_offsite_env: is required with backup_offsite_repository on host web1, "
        "write backup_offsite_env = {'AWS_ACCESS_KEY_ID': 'env:…', …}",
    ),
    "off-site on the same host": (
        {"backup_offsite_repository": "/mnt/b"},
        "backup_offsite_repository: must be a URL: a path is on the same host on host web1, got '/mnt/b'",
    ),
    "drill during the backup": (
        {"backup_drill_at": "02:00"},
        "backup_drill_at: must not be the time of backup_at on host web1, got '02:00'",
    ),
    "nobody can log in": (
        {"base_ssh_permit_root": "no", "base_admins": [ADMIN | {"sudo": "no"}]},
        "base_ssh_permit_root: must not be 'no' without an admin who has sudo on host web1, got 'no', "
        "write base_admins = [{'name': …, 'keys': […]}]",
    ),
    "admin removed": (
        {"base_admins": [ADMIN], "base_removed_admins": ["ann"]},
        "base_removed_admins: must not name an admin of base_admins on host web1, got 'ann'",
    ),
    "admin called root": (
        {"base_admins": [ADMIN | {"name": "root"}]},
        "base_admins: must not name an account of the system on host web1, got 'root'",
    ),
    # between sections
    "debug in production": (
        {"gateway_debug": True},
        "gateway_debug: must be False outside the groups lab and dev on host web1, got True",
    ),
    "reload in production": (
        {"gateway_reload": True},
        "gateway_reload: must be False outside the groups lab and dev on host web1, got True",
    ),
    "acme without e-mail": (
        {"certificate_email": None},
        "certificate_email: is required when certificate_mode is 'acme' on host web1, "
        "write certificate_email = 'ops@example.org'",
    ),
    "wildcard by http-01": (
        {"gateway_extra_domains": ["*.example.org"]},
        "gateway_extra_domains: must hold no wildcard when certificate_challenge is 'http-01' on host web1, "
        "got '*.example.org', write certificate_challenge = 'dns-01'",
    ),
    "backup without password": (
        {"backup_password": None},
        "backup_password: is required to back up the gateway on host web1, "
        "write backup_password = 'env:BACKUP_PASSWORD', or backup_enabled = False",
    ),
    "port of sshd": (
        {"base_ssh_ports": [22, 443]},
        "base_ssh_ports: must not be a port of gateway on host web1, got 443",
    ),
    "port opened twice": (
        {"base_exposure": [{"port": 22, "why": "as everyone does"}]},
        "base_exposure[0].port: must not be a port of base_ssh_ports on host web1, got 22",
    ),
    "port of nginx opened again": (
        {"base_exposure": [{"port": 80, "why": "the guide says so"}]},
        "base_exposure[0].port: must not be a port of gateway on host web1, got 80",
    ),
}


@pytest.mark.parametrize(("data", "line"), BAD.values(), ids=BAD.keys())
def test_bad_setting_is_said_in_one_line(data, line):
    assert report(data) == [line]


def test_good_settings_have_no_fault():
    assert report({}) == []


@pytest.mark.parametrize(
    "data",
    [
        {"gateway_version": "a" * 40},
        {"gateway_version": "2025.01.16"},
        {"gateway_version": "release/1.4"},
        {"gateway_source": "archive", "gateway_archive_url": "https://e.org/g.tgz", "gateway_archive_sha256": SHA256,
         "gateway_version": None, "gateway_repository": None},
        {"gateway_extra_domains": ["*.example.org"], "certificate_challenge": "dns-01", "certificate_dns_plugin": "rfc2136"},
        {"certificate_mode": "self-signed", "certificate_email": None},
        {"backup_enabled": False, "backup_password": None},
        {"backup_drill_at": "Mon..Fri *-*-* 04:00:00"},
        {"backup_offsite_repository": "sftp:backup@192.0.2.9:/srv"},
        {"lab_release": "bookworm", "_sudo": True, "_my_variable": 1},
        {"gateway_domain": "xn--bcher-kva.example.org"},
        {"base_admins": [ADMIN], "base_ssh_permit_root": "no"},
    ],
)  # fmt: skip
def test_unusual_good_settings_pass(data):
    assert report(data) == []


@pytest.mark.parametrize("group", ["lab", "dev"])
def test_debug_is_allowed_where_nothing_depends_on_it(group):
    assert report({"gateway_debug": True, "gateway_reload": True}, groups=("gateway", group)) == []


def test_forwarding_stays_on_where_containers_run():
    data = {"base_sysctl": {"net.ipv4.ip_forward": "0"}}
    assert report(data) == []
    assert "base_sysctl.net.ipv4.ip_forward: must not be 0: containers need it on host web1, got '0'" in report(
        data, groups=("gateway", "ci_runner")
    )


def test_settings_of_a_system_elsewhere_are_no_fault_but_its_typos_are():
    # --data gateway_version=… reaches every host of the inventory
    assert report({}, groups=("elsewhere",)) == []
    assert report({"gateway_wokers": 1}, groups=("elsewhere",)) == [
        "gateway_wokers: unknown setting on host web1, did you mean gateway_workers?"
    ]


def test_all_faults_come_in_one_report():
    lines = report(
        {
            "gateway_domian": "x",
            "gateway_workers": "8",
            "gateway_health_check_interval_seconds": 5,
            "gateway_version": None,
            "certificate_email": None,
            "backup_keep_daily": 0,
            "backup_drill_at": "02:00",
            "ssh_password": "x",
        }
    )
    assert [line.partition(":")[0] for line in lines] == [
        "ssh_password",
        "backup_keep_daily",
        "backup_drill_at",
        "gateway_workers",
        "gateway_domian",
        "gateway_version",
        "gateway_health_check_timeout_seconds",
        "certificate_email",
    ]


def test_rule_is_not_applied_to_a_field_that_is_wrong_itself():
    assert report(
        {"gateway_health_check_interval_seconds": "x", "gateway_health_check_timeout_seconds": 90}
    ) == ["gateway_health_check_interval_seconds: must be a whole number on host web1, got 'x'"]


def test_derived_default_is_not_a_fault_of_its_own():
    assert report({"gateway_request_timeout_seconds": "x"}) == [
        "gateway_request_timeout_seconds: must be a whole number on host web1, got 'x'"
    ]


def test_report_never_shows_a_secret(monkeypatch):
    monkeypatch.setenv("CANARY", "canary-7f3a")
    lines = report(
        {
            "gateway_admin_api_key": "env:CANARY",
            "backup_password": "canary-7f3a",
            "gateway_client_api_keys": ["plain:canary-7f3a", "env:CANARY"],
            "backup_offsite_env": {"TOKEN": "canary-7f3a"},
            "gateway_extra_env": {"TOKEN": "canary-7f3a"},
            "ssh_password": "canary-7f3a",
        }
    )
    assert len(lines) >= 6
    assert not [line for line in lines if "canary" in line]


def test_models_hold_what_was_written():
    host = load_host("web1", ["gateway", "prod"], GOOD | {"gateway_request_timeout_seconds": 60})
    assert host.gateway.domains == ("gateway.example.org",)
    assert host.gateway.admin_api_key == Secret(KEY, "env:GATEWAY_ADMIN_API_KEY")
    assert host.gateway.drain_seconds == 90
    assert host.gateway.proxy_timeout_seconds == 90
    assert [(port.port, port.sources) for port in host.exposure] == [(22, ()), (80, ()), (443, ())]
    assert host.hostname == "web1"
    assert host.requirements.memory_mb == 512
    with pytest.raises(Exception, match="frozen"):
        host.gateway.workers = 2


def test_host_without_systems_has_the_common_sections_only():
    host = load_host(
        "web9", ["elsewhere"], {"base_ssh_ports": [2222], "base_ssh_sources": ["10.0.0.0/8"]}
    )
    assert host.gateway is None
    assert [(port.port, port.sources, port.why) for port in host.exposure] == [(2222, ("10.0.0.0/8",), "ssh")]
    assert not host.backup.password


def test_secrets_stay_unresolved_when_asked():
    host = load_host("web1", ["gateway"], GOOD | {"backup_password": "env:NOT_SET_ANYWHERE"}, resolve=False)
    assert host.backup.password.reference == "env:NOT_SET_ANYWHERE"
    with pytest.raises(ValueError, match="NOT_SET_ANYWHERE was not resolved"):
        host.backup.password.unmask()


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["env:A", "{x}", "file:a#b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from([key for section in SECTIONS.values() for key in section.flat_keys()]), ANYTHING
    )
)
def test_any_data_is_read_or_refused_in_words(data):
    for line in report(data):
        assert re.match(r"[a-z_0-9]+.*: .+ on host web1", line, re.DOTALL)


# whole inventories


def fleet_report(hosts, **kwargs):
    try:
        load_fleet([(name, groups, GOOD | data) for name, (groups, data) in hosts.items()], **kwargs)
    except SettingsError as error:
        return str(error).splitlines()
    return []


def test_fault_of_several_hosts_is_said_once():
    bad = {"gateway_wokers": 1}
    assert fleet_report(
        {
            "web1": (["gateway"], {"ssh_hostname": "192.0.2.1", **bad}),
            "web2": (["gateway"], {"ssh_hostname": "192.0.2.2", **bad}),
            "web3": (["gateway"], {"ssh_hostname": "192.0.2.3", "gateway_workers": 0}),
        }
    ) == [
        "gateway_wokers: unknown setting on hosts web1, web2, did you mean gateway_workers?",
        "gateway_workers: must be at least 1 on host web3, got 0",
    ]


def test_two_hosts_with_one_address_are_refused():
    assert fleet_report(
        {
            "web1": (["gateway"], {"ssh_hostname": "192.0.2.1"}),
            "web2": (["gateway"], {"ssh_hostname": "192.0.2.1"}),
            "web3": (["gateway"], {"ssh_hostname": "192.0.2.1", "ssh_port": 2222}),
        }
    ) == ["ssh_hostname: must not be the address of host web1 on host web2, got '192.0.2.1:22'"]


def test_two_hosts_may_share_a_domain_and_its_ports():
    assert fleet_report({"web1": (["gateway"], {}), "web2": (["gateway"], {})}) == []


@pytest.mark.parametrize(
    ("group", "line"),
    [
        ("gatway", "gatway: unknown group, did you mean gateway?"),
        ("gateways", "gateways: unknown group, did you mean gateway?"),
        ("ci_runers", "ci_runers: unknown group, did you mean ci_runner?"),
        (
            "base_packages",
            "base_packages: a list in an inventory file is a group of hosts, here of web1, "
            "write base_packages in group_data or in a host's data",
        ),
        (
            "extra_domains",
            "extra_domains: a list in an inventory file is a group of hosts, here of web1, "
            "write gateway_extra_domains in group_data or in a host's data",
        ),
    ],
)
def test_group_that_is_none_is_refused(group, line):
    assert fleet_report({"web1": ([group, "prod"], {})}) == [line]


@pytest.mark.parametrize("group", ["prod", "staging", "eu", "gateway_blue", "mcbench", "web"])
def test_other_groups_are_free(group):
    assert fleet_report({"web1": ([group], {})}) == []


def test_misspelled_group_data_file_is_found_though_no_host_is_in_it():
    assert fleet_report({"web1": (["gateway"], {})}, groups={"gateway": ["web1"], "gatewy": []}) == [
        "gatewy: unknown group, did you mean gateway?"
    ]


def test_secrets_are_resolved_for_the_chosen_hosts_only():
    hosts = {
        "web1": (["gateway"], {"ssh_hostname": "192.0.2.1", "backup_password": "env:NOT_SET_1"}),
        "web2": (["gateway"], {"ssh_hostname": "192.0.2.2", "backup_password": "env:NOT_SET_2"}),
    }
    assert fleet_report(hosts) == []
    assert fleet_report(hosts, resolve=["web2"]) == [
        "backup_password: environment variable NOT_SET_2 is not set on host web2"
    ]


# what these modules know of pyinfra


def test_keys_of_pyinfras_ssh_connector_are_all_known():
    assert {*SSH_KEYS, "ssh_password", "ssh_key_password"} == set(ConnectorData.__annotations__)


def test_global_arguments_of_pyinfra_are_all_known():
    ours = {*GLOBAL_KEYS, *(key for key in REFUSED_KEYS if key.startswith("_"))}
    assert ours == {key for key in AllArguments.__annotations__ if key.startswith("_")}


def test_every_setting_is_described():
    for section in SECTIONS.values():
        for name, info in section.model_fields.items():
            assert info.description, f"{section.prefix}{name}"
            assert not info.is_required() or info.examples, f"{section.prefix}{name}"


def test_reference_is_current():
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text() == reference(), "write it again: python -m settings.reference > docs/settings.md"
