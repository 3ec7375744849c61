# Which buckets an object store in a container lacks, and making them. Its keys are read where the container got them.
#
#     values: container  name of the object store's container; + network, port  where it is asked
#             access, secret  variables that hold its keys; + buckets  that must be there; + make  or only look
import datetime
import hashlib
import hmac
import http.client
import json
import subprocess
import time

REGION = "us-east-1"
SECONDS = 30


def variables(container):
    with open(f"/etc/hostwright/containers/{container}.env") as file:
        return dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)


def address(container, network):
    form = '{{with index .NetworkSettings.Networks "' + network + '"}}{{.IPAddress}}{{end}}'
    done = subprocess.run(["docker", "inspect", "-f", form, container], capture_output=True, text=True)
    return done.stdout.strip()


def signature(secret, day, text):
    key = ("AWS4" + secret).encode()
    for part in (day, REGION, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def ask(method, host, bucket, access, secret):
    now = datetime.datetime.now(datetime.timezone.utc)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    body = hashlib.sha256(b"").hexdigest()
    headers = {"host": host, "x-amz-content-sha256": body, "x-amz-date": stamp}
    names = ";".join(headers)
    canonical = "\n".join([method, f"/{bucket}", "", *(f"{k}:{v}" for k, v in headers.items()), "", names, body])
    scope = f"{day}/{REGION}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, Signature={signature(secret, day, text)}"
    )
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        connection.request(method, f"/{bucket}", headers=headers)
        response = connection.getresponse()
        return response.status, response.read(500).decode(errors="replace")
    finally:
        connection.close()


def missing(values, keys):
    """Return the buckets that are not there; wait for a store that has just started."""
    end = time.monotonic() + (SECONDS if values["make"] else 3)
    while True:
        try:
            host = "{}:{}".format(address(values["container"], values["network"]), values["port"])
            found = {bucket: ask("HEAD", host, bucket, *keys)[0] for bucket in values["buckets"]}
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > end:
                raise SystemExit(f"the object store does not answer: {error}") from None
            time.sleep(0.5)
            continue
        if set(found.values()) & {401, 403}:
            raise SystemExit(f"the object store refuses its own keys: {found}")
        return host, [bucket for bucket, status in found.items() if status == 404]


def main(values):
    try:
        known = variables(values["container"])
        keys = known[values["access"]], known[values["secret"]]
        host, wanted = missing(values, keys)
        if values["make"]:
            for bucket in wanted:
                status, text = ask("PUT", host, bucket, *keys)
                if status not in (200, 409):
                    raise SystemExit(f"bucket {bucket} could not be made: {status} {text}")
    except (OSError, KeyError, SystemExit) as error:
        if values["make"]:
            raise
        print(json.dumps({"fault": str(error)}))  # noqa: T201
        return
    if not values["make"]:
        print(json.dumps({"missing": wanted}))  # noqa: T201
