# Whether services of somebody else's answer, and let the fleet in: TLS, password, database, buckets. Changes nothing.
#
#     values: questions  what is asked, one each (see ask_…); + ca  certificates (PEM) trusted besides the host's
import base64
import datetime
import hashlib
import hmac
import http.client
import json
import os
import re
import secrets
import socket
import ssl
import struct

SECONDS = 10
PUBLIC_CAS = "/etc/ssl/certs/ca-certificates.crt"
TLS_REQUEST, VERSION_3 = 80877103, 196608


class Fault(Exception):
    """What is wrong with a service, in words; never with a secret in them."""


def context_of(question, ca, verifies, names):
    context = ssl.create_default_context()
    if ca:
        context.load_verify_locations(cadata=ca)
    # A host that has no certificates yet cannot judge.
    verifies = verifies and os.path.exists(PUBLIC_CAS)
    context.check_hostname = verifies and names
    context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    return context


def connected(question):
    return socket.create_connection((question["host"], question["port"]), SECONDS)


def secured(connection, question, ca, verifies=True, names=True):
    return context_of(question, ca, verifies, names).wrap_socket(connection, server_hostname=question["host"])


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def exactly(connection, count):
    found = b""
    while len(found) < count:
        more = connection.recv(count - len(found))
        if not more:
            raise Fault("closes the connection: is it PostgreSQL?")
        found += more
    return found


def message(connection):
    kind, size = struct.unpack("!cI", exactly(connection, 5))
    if not 4 <= size < 1 << 20:
        raise Fault("does not speak PostgreSQL's protocol")
    return kind, exactly(connection, size - 4)


def send(connection, kind, body):
    connection.sendall(kind + struct.pack("!I", len(body) + 4) + body)


def scram(connection, password, mechanisms):
    """Log in by SCRAM-SHA-256 (RFC 5802), of which the server's own proof is not asked: its certificate is."""
    if b"SCRAM-SHA-256" not in mechanisms.split(b"\0"):
        raise Fault("asks for a login that is none of SCRAM-SHA-256, MD5 and password")
    nonce = secrets.token_urlsafe(18)
    first = f"n=,r={nonce}"
    opening = b"n,," + first.encode()
    send(connection, b"p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(opening)) + opening)
    challenge = expected(connection, 11).decode()
    told = dict(part.split("=", 1) for part in challenge.split(","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(told["s"]), int(told["i"]))
    key = hmac.new(salted, b"Client Key", hashlib.sha256).digest()
    final = "c=biws,r=" + told["r"]
    signed = hmac.new(hashlib.sha256(key).digest(), f"{first},{challenge},{final}".encode(), hashlib.sha256).digest()
    proof = base64.b64encode((int.from_bytes(key, "big") ^ int.from_bytes(signed, "big")).to_bytes(32, "big")).decode()
    send(connection, b"p", f"{final},p={proof}".encode())


def expected(connection, code):
    kind, body = message(connection)
    if kind == b"E":
        raise Fault(said(body))
    if kind != b"R" or struct.unpack("!I", body[:4])[0] != code:
        raise Fault("breaks off the login")
    return body[4:]


def said(body):
    """The words of an error."""
    fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
    return fields.get(b"M", "an error without words")


def log_in(connection, question):
    words = {"user": question["user"], "database": question["database"]}
    body = struct.pack("!I", VERSION_3) + "".join(f"{key}\0{value}\0" for key, value in words.items()).encode() + b"\0"
    connection.sendall(struct.pack("!I", len(body) + 4) + body)
    version = ""
    while True:
        kind, body = message(connection)
        if kind == b"E":
            raise Fault(said(body))
        if kind == b"Z":
            return version
        if kind == b"S" and body.startswith(b"server_version\0"):
            version = body.split(b"\0")[1].decode()
        if kind == b"R":
            code = struct.unpack("!I", body[:4])[0]
            if code == 3:
                send(connection, b"p", question["password"].encode() + b"\0")
            elif code == 5:
                inner = hashlib.md5((question["password"] + question["user"]).encode()).hexdigest()
                send(connection, b"p", b"md5" + hashlib.md5(inner.encode() + body[4:8]).hexdigest().encode() + b"\0")
            elif code == 10:
                scram(connection, question["password"], body[4:])
            elif code not in (0, 12):
                raise Fault("asks for a login that is none of SCRAM-SHA-256, MD5 and password")


def ask_postgres(question, ca):
    """host, port, user, password, database, sslmode."""
    mode = question["sslmode"]
    with connected(question) as plain:
        connection = plain
        if mode != "disable":
            plain.sendall(struct.pack("!II", 8, TLS_REQUEST))
            answer = exactly(plain, 1)
            if answer == b"S":
                connection = secured(plain, question, ca, mode.startswith("verify"), mode == "verify-full")
            elif mode != "prefer":
                raise Fault(f"offers no TLS, and mcbench_postgres_sslmode is {mode!r}")
        version = log_in(connection, question)
        send(connection, b"X", b"")
        connection.close()
    number = re.match(r"\d+", version)
    if number and int(number[0]) < 16:
        raise Fault(f"must be PostgreSQL 16 or newer, is {version}")


# --- Redis ------------------------------------------------------------------------------------------------------------


def redis_answer(stream):
    line = stream.readline().rstrip(b"\r\n").decode(errors="replace")
    if line.startswith("-"):
        raise Fault(line[1:])
    if line.startswith("$"):
        return stream.read(int(line[1:]) + 2).decode(errors="replace")
    if not line.startswith("+"):
        raise Fault("does not speak Redis' protocol" if line else "closes the connection: does it want TLS (mcbench_redis_tls)?")
    return line[1:]


def ask_redis(question, ca):
    """host, port, user, password, tls."""
    with connected(question) as plain:
        connection = secured(plain, question, ca) if question["tls"] else plain
        stream = connection.makefile("rwb")
        for words in (["AUTH", question["user"], question["password"]], ["INFO"]):
            stream.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words))
            stream.flush()
            try:
                told = redis_answer(stream)
            except Fault as fault:
                if words[0] == "AUTH" or not str(fault).startswith("NOPERM"):
                    raise
                told = ""  # an account that may not ask for that can still work
        stream.close()
        connection.close()
    info = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    if info.get("cluster_enabled") == "1":
        raise Fault("must not be a cluster: Celery does not work with one")
    if info.get("role", "master") != "master":
        raise Fault("must be the primary, is a replica")
    if info.get("maxmemory", "0") != "0" and info.get("maxmemory_policy", "").startswith("allkeys"):
        raise Fault("forgets tasks when its memory is full (maxmemory-policy {}): must be noeviction".format(info["maxmemory_policy"]))


# --- the object store -------------------------------------------------------------------------------------------------


def head(question, ca, bucket, region):
    now = datetime.datetime.now(datetime.timezone.utc)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    where = "[{}]".format(question["host"]) if ":" in question["host"] else question["host"]
    body = hashlib.sha256(b"").hexdigest()
    headers = {"host": "{}:{}".format(where, question["port"]), "x-amz-content-sha256": body, "x-amz-date": stamp}
    names = ";".join(headers)
    canonical = "\n".join(["HEAD", f"/{bucket}", "", *(f"{k}:{v}" for k, v in headers.items()), "", names, body])
    scope = f"{day}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = ("AWS4" + question["secret"]).encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    headers["authorization"] = (
        "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={}, Signature={}".format(question["access"], scope, names, signature)
    )
    if question["tls"]:
        connection = http.client.HTTPSConnection(where, question["port"], timeout=SECONDS, context=context_of(question, ca, True, True))
    else:
        connection = http.client.HTTPConnection(where, question["port"], timeout=SECONDS)
    try:
        connection.request("HEAD", f"/{bucket}", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("x-amz-bucket-region", "")
    finally:
        connection.close()


def ask_object(question, ca):
    """host, port, access, secret, tls, buckets."""
    for bucket in question["buckets"]:
        status, region = head(question, ca, bucket, "us-east-1")
        if status in (301, 400, 403) and region not in ("", "us-east-1"):
            status, _ = head(question, ca, bucket, region)
        if status in (401, 403):
            raise Fault(f"refuses the access key, or bucket {bucket} to it")
        if status == 404:
            raise Fault(f"has no bucket {bucket}: make it there")
        if status >= 300:
            raise Fault(f"answers status {status} when asked for bucket {bucket}")


def fault_of(question, ca):
    try:
        globals()["ask_" + question["kind"]](question, ca)
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not trusted ({error.verify_message}); one of a private CA needs mcbench_external_ca"
    except ssl.SSLError as error:
        return f"does not answer with TLS: {error.reason or error}"
    except socket.gaierror:
        return "its name is not known on this host"
    except (OSError, http.client.HTTPException) as error:
        return f"does not answer: {error or type(error).__name__}"
    except Fault as error:
        return str(error)
    return ""


def main(values):
    found = [(question, fault_of(question, values["ca"])) for question in values["questions"]]
    lines = ["{} at {}:{}: {}".format(one["name"], one["host"], one["port"], fault) for one, fault in found if fault]
    print(json.dumps({"faults": lines}))  # noqa: T201
