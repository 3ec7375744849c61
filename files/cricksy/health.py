"""
Whether cricksy is well, as one of its hosts sees it: `health.py CONFIGURATION [--prometheus]`; exit status 1 when it is not.

Runs on the release's Python, in the environment of API and workers, which has the addresses and the accounts.
"""

import contextlib
import http.client
import json
import os
import socket
import ssl
import sys
import time


class Report:
    def __init__(self):
        self.faults, self.lines, self.metrics = [], [], []

    def check(self, name, ask):
        """Ask, and keep what was found or why it could not be."""
        began = time.monotonic()
        try:
            said = ask(self)
        except Exception as error:
            # an exception of a client may name the account and the address: its kind must do
            said, well = type(error).__name__, False
            self.faults.append(name)
        else:
            well = not str(said).startswith("!")
            if not well:
                self.faults.append(name)
        self.lines.append(f"{'ok  ' if well else 'FAIL'} {name}: {str(said).lstrip('!')}")
        self.metric("cricksy_up", int(well), check=name)
        self.metric("cricksy_check_seconds", round(time.monotonic() - began, 3), check=name)

    def metric(self, name, value, **labels):
        inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        self.metrics.append(f"{name}{{{inner}}} {value}" if inner else f"{name} {value}")


def api(configuration):
    def ask(report):
        context = ssl.create_default_context()
        # who signed the certificate is not this question; the name leads to this host
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(configuration["domain"], context=context, timeout=10)
        raw = socket.create_connection(("127.0.0.1", 443), timeout=10)
        connection.sock = context.wrap_socket(raw, server_hostname=configuration["domain"])
        with contextlib.closing(connection):
            connection.request("GET", configuration["health_path"])
            status = connection.getresponse().status
        return f"{status}" if status == 200 else f"!{status}"

    return ask


def broker(configuration):
    def ask(report):
        import redis

        client = redis.Redis.from_url(os.environ["CRICKSY_CELERY_BROKER_URL"], socket_timeout=10, socket_connect_timeout=10)
        memory = client.info("memory")
        used, most = memory["used_memory"], memory["maxmemory"]
        report.metric("cricksy_broker_memory_bytes", used)
        report.metric("cricksy_broker_memory_max_bytes", most)
        depth = 0
        for queue in configuration["queues"]:
            waiting = client.llen(queue)
            depth += waiting
            report.metric("cricksy_queue_depth", waiting, queue=queue)
        report.metric("cricksy_tasks_reserved", client.hlen("unacked"))
        if most and used > most * configuration["memory_share"]:
            return f"!its memory is {used * 100 // most} % full: soon it refuses tasks; {depth} tasks wait"
        if depth > configuration["most_waiting"]:
            return f"!{depth} tasks wait, at most {configuration['most_waiting']} are expected"
        return f"{depth} tasks wait, memory {used * 100 // most if most else 0} %"

    return ask


def database(configuration):
    def ask(report):
        import psycopg

        with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=10) as connection:
            connection.execute("SET default_transaction_read_only = on")
            rows = connection.execute(configuration["counts"] or "SELECT 'connections', 1").fetchall()
            figures = connection.execute(configuration["figures"]).fetchall() if configuration["figures"] else []
        if configuration["counts"]:
            for label, number in rows:
                report.metric("cricksy_uploads", number, status=label)
        for label, number in figures:
            # an average of nothing is none
            if number is not None:
                report.metric("cricksy_figure", float(number), figure=label)
        return ", ".join(f"{label} {number}" for label, number in rows) or "nothing yet"

    return ask


def store(configuration):
    def ask(report):
        import boto3
        from botocore.config import Config

        client = boto3.client(
            "s3", endpoint_url=os.environ["CRICKSY_S3_ENDPOINT_URL"] or None, region_name=os.environ["CRICKSY_S3_REGION"],
            aws_access_key_id=os.environ["CRICKSY_S3_ACCESS_KEY"], aws_secret_access_key=os.environ["CRICKSY_S3_SECRET_KEY"],
            config=Config(signature_version="s3v4", connect_timeout=10, read_timeout=10, retries={"total_max_attempts": 2},
                          s3={"addressing_style": "path" if os.environ["CRICKSY_S3_ENDPOINT_URL"] else "auto"}),
        )  # fmt: skip
        found = client.list_objects_v2(Bucket=os.environ["CRICKSY_S3_BUCKET"], MaxKeys=1)
        return f"bucket {os.environ['CRICKSY_S3_BUCKET']} can be listed{'' if found.get('KeyCount') else ', is empty'}"

    return ask


def main(path, prometheus):
    with open(path) as file:
        configuration = json.load(file)
    report = Report()
    if configuration["domain"]:
        report.check("api", api(configuration))
    for name, ask in (("broker", broker), ("database", database), ("s3", store)):
        report.check(name, ask(configuration))
    report.metric("cricksy_health_timestamp_seconds", int(time.time()))
    sys.stdout.write("\n".join(report.metrics if prometheus else report.lines) + "\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--prometheus" in sys.argv[2:]))
