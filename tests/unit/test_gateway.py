"""What the gateway's settings become: environment, unit, nginx locations."""

import configparser
import json
import shlex

import pytest

from deploys import gateway
from settings import Gateway, load_host

KEY = "an-admin-key-of-32-characters-or-more"
CLIENT_KEY = "a-client-key-of-32-characters-or-more"


def settings(monkeypatch: pytest.MonkeyPatch, **values: object) -> Gateway:
    monkeypatch.setenv("GATEWAY_ADMIN_API_KEY", KEY)
    monkeypatch.setenv("GATEWAY_CLIENT_API_KEY", CLIENT_KEY)
    monkeypatch.setenv("BACKUP_PASSWORD", "a-backup-password-long-enough")
    data = {
        "certificate_email": "ops@example.org",
        "backup_password": "env:BACKUP_PASSWORD",
        "gateway_domain": "gateway.example.org",
        "gateway_repository": "https://git.example.org/gateway.git",
        "gateway_version": "v1.0.0",
        "gateway_admin_api_key": "env:GATEWAY_ADMIN_API_KEY",
        **{f"gateway_{key}": value for key, value in values.items()},
    }
    found = load_host("web1", ["gateway", "lab"], data).gateway
    assert found is not None
    return found


def variables(wanted: Gateway) -> dict[str, str]:
    """Read the environment as a shell does, which is close enough to systemd for values without special signs."""
    pairs = (
        shlex.split(line)[0].partition("=") for line in gateway.environment(wanted).unmask().splitlines()
    )
    return {key: value for key, _, value in pairs}


def test_environment_holds_the_four_tables_of_the_guide(monkeypatch):
    found = variables(settings(monkeypatch))
    assert found == {
        "ADMIN_API_KEY": KEY,
        "REQUIRE_CLIENT_API_KEY": "false",
        "CLIENT_API_KEYS": "[]",
        "DEBUG": "false",
        "RELOAD": "false",
        "REQUEST_TIMEOUT_SECONDS": "300",
        "MAX_RETRY_ATTEMPTS": "2",
        "MAX_REQUEST_BODY_SIZE": "1048576",
        "HEALTH_CHECK_INTERVAL_SECONDS": "60",
        "HEALTH_CHECK_TIMEOUT_SECONDS": "10",
        "MAX_CONSECUTIVE_FAILURES": "3",
        "AUTO_DEREGISTER_AFTER_FAILURES": "true",
        "LOG_LEVEL": "INFO",
        "ENABLE_FILE_LOGGING": "true",
        "ENABLE_CONSOLE_LOGGING": "true",
        "DATABASE_URL": "sqlite+aiosqlite:////var/lib/multiverse-gateway/gateway.db",
        "DATABASE_WAL_MODE": "true",
    }


def test_client_keys_are_a_json_list_and_extra_variables_arrive(monkeypatch):
    wanted = settings(
        monkeypatch,
        require_client_api_key=True,
        client_api_keys=["env:GATEWAY_CLIENT_API_KEY"],
        extra_env={"MODEL_HINT": "a b"},
        supervisor="supervisor",
    )
    found = variables(wanted)
    assert json.loads(found["CLIENT_API_KEYS"]) == [CLIENT_KEY]
    assert found["MODEL_HINT"] == "a b"


def test_environment_does_not_print_itself(monkeypatch):
    assert KEY not in repr(gateway.environment(settings(monkeypatch)))


def test_unit_keeps_the_service_in_its_sandbox(monkeypatch):
    text = gateway.service(
        settings(monkeypatch, memory_max="512M", drain_seconds=400), "/opt/multiverse-gateway/releases/v1"
    )
    lines = text.splitlines()
    for line in (
        "User=gateway",
        "Type=exec",
        "UMask=0077",
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "MemoryMax=512M",
        "TimeoutStopSec=415",
        "Alias=multiverse-gateway.service",
    ):
        assert line in lines, line
    # Nothing that the service can write holds its code or its secrets.
    assert not [line for line in lines if line.startswith("ReadWritePaths")]
    assert "/usr/bin" in next(line for line in lines if line.startswith("Environment=PATH="))


def test_program_is_one_that_supervisor_can_read(monkeypatch):
    text = gateway.service(
        settings(monkeypatch, supervisor="supervisor"), "/opt/multiverse-gateway/releases/v1"
    )
    # supervisor reads its files like this, and expands %(name)s.
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"))
    parser.read_string(text.replace("@COLOUR@", "blue"))
    program = parser["program:multiverse-gateway-blue"]
    [shell, option, command] = shlex.split(program["command"])
    assert (shell, option) == ("/bin/sh", "-c")
    assert command.rstrip().split("exec ")[1].startswith("setpriv --reuid=gateway")


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({}, "--timeout-graceful-shutdown=330"),
        ({"workers": 4}, "--workers=4"),
        ({"log_level": "WARNING"}, "--log-level=warning"),
        ({"reload": True}, "--reload"),
    ],
)
def test_uvicorn_is_told(monkeypatch, values, option):
    assert option in gateway.uvicorn_options(settings(monkeypatch, **values)).split()


def test_admin_is_for_declared_networks_and_nothing_else_is(monkeypatch):
    everything, health, admin = gateway.locations(settings(monkeypatch, admin_networks=["10.0.0.0/8"]))
    assert (everything.networks, health.networks) == (None, None)
    assert admin.path == "/admin"
    assert admin.allowed == ("127.0.0.1", "::1", "10.0.0.0/8")
    assert gateway.locations(settings(monkeypatch))[2].allowed == ("127.0.0.1", "::1")


def test_streams_are_not_buffered_and_outlive_the_application(monkeypatch):
    everything = gateway.locations(settings(monkeypatch, request_timeout_seconds=100))[0]
    assert (everything.streaming, everything.timeout_seconds) == (True, 130)
    assert everything.rate_limit is not None
    assert gateway.locations(settings(monkeypatch, rate_limit_per_second=0))[0].rate_limit is None
