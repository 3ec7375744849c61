"""Services that nobody of the fleet manages: PostgreSQL, Redis and an S3 server with TLS, and a collector of logs, on a host of their own."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from tests.lab.authority import Authority
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.mcbench_fleet import ENV
from tests.lab.state import wait_for

STORE_PORT = 9443
COLLECTOR_PORT = 12201
REDIS_USER = "fleet"

# TLS in front of an S3 server that has none: a signature holds the name that a client has asked for.
_NGINX = f"""server {{
    listen {STORE_PORT} ssl;
    ssl_certificate /srv/tls/server.pem;
    ssl_certificate_key /srv/tls/server.key;
    client_max_body_size 0;
    location / {{ proxy_pass http://127.0.0.1:9000; proxy_set_header Host $http_host; proxy_request_buffering off; }}
}}
"""
# Takes GELF over UDP, whole datagrams and chunks, and writes down each message as a line.
_COLLECTOR = f"""
import json, socket, zlib
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", {COLLECTOR_PORT}))
parts = {{}}
while True:
    data = server.recv(65535)
    if data[:2] == bytes([0x1e, 0x0f]):
        there = parts.setdefault(data[2:10], {{}})
        there[data[10]] = data[12:]
        if len(there) < data[11]:
            continue
        data = b"".join(there[number] for number in sorted(there))
    text = zlib.decompress(data, 47) if data[:1] in (b"\\x1f", b"\\x78") else data
    with open("/srv/collected", "a") as file:
        file.write(json.dumps(json.loads(text)) + "\\n")
"""


class Outside:
    """The host, the authority (PEM) that signed its certificate, and what is asked of it by hand."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        registry = lab.registry()
        self.host: LabHost = lab.host("t-outside", layer="docker")
        registry.admit(self.host)
        authority = Authority(directory)
        self.ca = authority.certificate
        certificate, key = authority.issue(self.host.address)
        for name, text in (("server.pem", certificate), ("server.key", key), ("ca.pem", self.ca)):
            self.host.write(f"/srv/tls/{name}", text)
        # both images have their user at this number
        self.host.run("chown -R 999:999 /srv/tls && chmod 0600 /srv/tls/server.key")
        self.host.run("mkdir -p /srv/store/mc-bench-internal /srv/store/mc-bench-public")
        self._run(
            "postgres", registry.image("postgres", "16"), "-p 5432:5432",
            {"POSTGRES_USER": "user", "POSTGRES_DB": "mc_bench", "POSTGRES_PASSWORD": ENV["MCBENCH_POSTGRES_PASSWORD"]},
            "postgres", "-c", "ssl=on", "-c", "ssl_cert_file=/tls/server.pem", "-c", "ssl_key_file=/tls/server.key",
        )  # fmt: skip
        self._run(
            "redis", registry.image("redis", "7"), "-p 6379:6379", {},
            "redis-server", "--port", "0", "--tls-port", "6379", "--tls-cert-file", "/tls/server.pem", "--tls-key-file", "/tls/server.key",
            "--tls-ca-cert-file", "/tls/ca.pem", "--tls-auth-clients", "no", "--appendonly", "yes", "--maxmemory-policy", "noeviction",
            "--user", REDIS_USER, "on", f">{ENV['MCBENCH_REDIS_PASSWORD']}", "~*", "&*", "+@all", "--user", "default", "off",
        )  # fmt: skip
        self._run(
            "store", registry.image("s3", "1"), "-p 127.0.0.1:9000:9000 -v /srv/store:/data",
            {"MINIO_ROOT_USER": ENV["MCBENCH_OBJECT_STORE_ACCESS_KEY"], "MINIO_ROOT_PASSWORD": ENV["MCBENCH_OBJECT_STORE_SECRET_KEY"]},
            "server", "/data",
        )  # fmt: skip
        self.host.write("/etc/nginx/conf.d/store.conf", _NGINX)
        self.host.run("systemctl restart nginx")
        self.host.write("/srv/collector.py", _COLLECTOR)
        wait_for("the services outside", self._answers, 90)

    @property
    def settings(self) -> dict[str, object]:
        """The settings, flat keys, by which a fleet uses them."""
        own = {
            "postgres_external": True, "postgres_host": self.host.address, "postgres_sslmode": "verify-full",
            "redis_external": True, "redis_host": self.host.address, "redis_tls": True, "redis_username": REDIS_USER,
            "object_external": True, "object_store_dsn": f"{self.host.address}:{STORE_PORT}", "object_store_secure": True,
            "external_ca": self.ca,
        }  # fmt: skip
        return {f"mcbench_{key}": value for key, value in own.items()}

    def sql(self, query: str) -> str:
        """Return what the database answers, as psql prints it alone."""
        return self.host.run(f"docker exec postgres psql -tA -U user -d mc_bench -c {shlex.quote(query)}").stdout.strip()

    def collect(self) -> None:
        """Have the collector run."""
        self.host.run("touch /srv/collected; systemd-run --collect --unit=collector python3 -u /srv/collector.py")

    def collected(self) -> list[dict[str, object]]:
        """Return the messages that the collector has got."""
        return [json.loads(line) for line in self.host.read("/srv/collected").splitlines()]

    def _run(self, name: str, image: str, options: str, environment: dict[str, str], *command: str) -> None:
        given = " ".join(f"-e {shlex.quote(f'{key}={value}')}" for key, value in environment.items())
        self.host.run(
            f"docker run -d --name {name} --restart always -v /srv/tls:/tls:ro {options} {given} {image} {shlex.join(command)}", timeout=180
        )

    def _answers(self) -> bool:
        asked = (
            "docker exec postgres pg_isready -q -h 127.0.0.1 -U user -d mc_bench",
            "echo | openssl s_client -connect 127.0.0.1:6379 -CAfile /srv/tls/ca.pem -verify_return_error",
            "test $(curl -sk -o /dev/null -w '%{http_code}' https://127.0.0.1:9443/) = 403",
        )
        return all(self.host.run(command, check=False).returncode == 0 for command in asked)
