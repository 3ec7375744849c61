"""What a bucket, its users and its copies are to be: the rules they must keep, and the documents that S3 and IAM read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from settings.secret import Secret

ENCRYPTIONS = ("AES256", "aws:kms")
METHODS = ("DELETE", "GET", "HEAD", "POST", "PUT")
LONGEST_PRESIGNED_SECONDS = 604800
"""What signature version 4 allows: 7 days."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_URL = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?/?|https?://\[[0-9A-Fa-f:]+\](:\d{1,5})?/?")
_ORIGIN = re.compile(r"https?://(\*\.)?[A-Za-z0-9.-]+(:\d{1,5})?")
_IAM_NAME = re.compile(r"[A-Za-z0-9+=,.@_-]{1,64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+\.(service|socket|target)")
_UNITS = re.compile(r"[A-Za-z0-9:_.@*\\-]+\.service")
_STATEMENT_KEYS = frozenset(
    {"Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition"}
)  # fmt: skip


@dataclass(frozen=True)
class Server:
    """
    Where the buckets are and whose rights are used to change them. Nothing of it reaches the hosts.

    + region: of the buckets; what another server calls its place, e.g. ``default`` on Ceph
    + endpoint_url: of a server that is not AWS, e.g. ``https://s3.example.org:9000``
    + iam_endpoint_url: of its IAM; that of S3 when empty
    + path_style: ``https://server/bucket`` instead of ``https://bucket.server``; most servers but AWS need it
    + ca_bundle: file on the control side with the authority that signed the server's certificate
    + access_key, secret_key, session_token: of an administrator; without them boto3 looks where it always does: the
      environment, ``~/.aws``, the role of the machine
    + profile: section of ``~/.aws`` to take them from
    + timeout_seconds: for one answer
    """

    region: str = "us-east-1"
    endpoint_url: str = ""
    iam_endpoint_url: str = ""
    path_style: bool = False
    ca_bundle: str = ""
    access_key: Secret = field(default_factory=Secret.unset)
    secret_key: Secret = field(default_factory=Secret.unset)
    session_token: Secret = field(default_factory=Secret.unset)
    profile: str = ""
    timeout_seconds: int = 30

    @property
    def partition(self) -> str:
        """The second part of every ARN."""
        named = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}
        return next((name for start, name in named.items() if self.region.startswith(start)), "aws")

    def arn(self, bucket: str, key: str = "") -> str:
        """Return the ARN of a bucket, or of a key or pattern in it."""
        return f"arn:{self.partition}:s3:::{bucket}" + (f"/{key}" if key else "")

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = []
        if not _is(_REGION, self.region):
            faults.append(f"region must be like 'eu-central-1', got {self.region!r}")
        for name in ("endpoint_url", "iam_endpoint_url"):
            url = getattr(self, name)
            if url and not _is(_URL, url):
                faults.append(f"{name} must be like 'https://s3.example.org:9000', got {url!r}")
        secrets = {name: getattr(self, name) for name in ("access_key", "secret_key", "session_token")}
        # the value is not shown: it may be the secret itself
        faults += [
            f"{name} must be a Secret" for name, value in secrets.items() if not isinstance(value, Secret)
        ]
        if bool(self.access_key) != bool(self.secret_key):
            faults.append("access_key and secret_key go together: give both or neither")
        if self.session_token and not self.access_key:
            faults.append("session_token goes with access_key and secret_key")
        if self.profile and self.access_key:
            faults.append(f"profile {self.profile!r} and access_key: give one of them")
        if not isinstance(self.timeout_seconds, int) or self.timeout_seconds < 1:
            faults.append(f"timeout_seconds must be at least 1, got {self.timeout_seconds!r}")
        return faults


@dataclass(frozen=True)
class Cors:
    """
    Which pages may use the bucket from a browser. The defaults let them upload in parts by presigned URLs.

    + origins: ``https://app.example.org``, or ``https://*.example.org``
    + methods: of ``DELETE GET HEAD POST PUT``
    + headers: of the request that a page may set
    + expose: of the answer that a page may read; an upload in parts must read ``ETag`` to complete
    + max_age_seconds: how long a browser remembers the answer
    """

    origins: Sequence[str]
    methods: Sequence[str] = ("GET", "HEAD", "POST", "PUT")
    headers: Sequence[str] = ("*",)
    expose: Sequence[str] = ("ETag",)
    max_age_seconds: int = 3600

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = []
        for name in ("origins", "methods", "headers", "expose"):
            if isinstance(getattr(self, name), str):
                faults.append(f"cors: {name} must be a list, got {getattr(self, name)!r}")
        if faults:
            return faults
        if not self.origins:
            faults.append("cors: origins is empty: leave the rule out to allow no page")
        faults += [
            f"cors: an origin must be like 'https://app.example.org', got {origin!r}"
            for origin in self.origins
            if not _is(_ORIGIN, origin)
        ]
        faults += [
            f"cors: a method must be one of {', '.join(METHODS)}, got {method!r}"
            for method in self.methods or [""]
            if method not in METHODS
        ]
        if "PUT" in self.methods and "ETag" not in self.expose:
            faults.append(
                "cors: expose needs 'ETag' where PUT is allowed, or no upload in parts can complete"
            )
        if not isinstance(self.max_age_seconds, int) or not 0 <= self.max_age_seconds <= 86400:
            faults.append(f"cors: max_age_seconds must be 0 to 86400, got {self.max_age_seconds!r}")
        return faults

    def document(self) -> dict[str, Any]:
        """Return the rule as S3 reads it."""
        return {
            "AllowedOrigins": list(self.origins),
            "AllowedMethods": list(self.methods),
            "AllowedHeaders": list(self.headers),
            "ExposeHeaders": list(self.expose),
            "MaxAgeSeconds": self.max_age_seconds,
        }


@dataclass(frozen=True)
class Lifecycle:
    """
    What S3 removes by itself; 0 means never.

    + prefix: of the keys it is about; empty: all
    + abort_multipart_days: an upload in parts that nobody completed, which is paid for and listed nowhere
    + expire_days: objects; in a versioned bucket their current version becomes an old one
    + expire_noncurrent_days: old versions
    + tag: ``key=value`` that an object must carry besides; S3 takes no ``abort_multipart_days`` with it
    """

    prefix: str = ""
    abort_multipart_days: int = 7
    expire_days: int = 0
    expire_noncurrent_days: int = 0
    tag: str = ""

    @property
    def label(self) -> str:
        """What it is about: two rules of a bucket may not be about the same."""
        return self.prefix + (f" with {self.tag}" if self.tag else "")

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        days = {
            "abort_multipart_days": self.abort_multipart_days,
            "expire_days": self.expire_days,
            "expire_noncurrent_days": self.expire_noncurrent_days,
        }
        faults = [
            f"lifecycle {self.prefix!r}: {name} must be 0 (never) or more days, got {value!r}"
            for name, value in days.items()
            if not isinstance(value, int) or value < 0
        ]
        if not any(days.values()):
            faults.append(f"lifecycle {self.prefix!r}: removes nothing: leave the rule out")
        if self.tag and not re.fullmatch(r"[A-Za-z0-9_.:/@-]{1,128}=[A-Za-z0-9_.:/@-]{0,256}", self.tag):
            faults.append(f"lifecycle {self.prefix!r}: tag must be like 'state=done', got {self.tag!r}")
        if self.tag and self.abort_multipart_days:
            faults.append(f"lifecycle {self.prefix!r}: write abort_multipart_days=0 beside tag, and a rule without tag for uploads")
        return faults

    def document(self) -> dict[str, Any]:
        """Return the rule as S3 reads it."""
        rule: dict[str, Any] = {
            "ID": "hostwright" + (f"-{self.prefix}" if self.prefix else "") + (f"-{self.tag}" if self.tag else ""),
            "Status": "Enabled",
            "Filter": {"Prefix": self.prefix},
        }
        if self.tag:
            key, _, value = self.tag.partition("=")
            tag = {"Key": key, "Value": value}
            rule["Filter"] = {"And": {"Prefix": self.prefix, "Tags": [tag]}} if self.prefix else {"Tag": tag}
        if self.abort_multipart_days:
            rule["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": self.abort_multipart_days}
        if self.expire_days:
            rule["Expiration"] = {"Days": self.expire_days}
        if self.expire_noncurrent_days:
            rule["NoncurrentVersionExpiration"] = {"NoncurrentDays": self.expire_noncurrent_days}
        return rule


@dataclass(frozen=True)
class Bucket:
    """
    What a bucket is to be. Every property is set as given; ``None`` leaves it alone, for a server that lacks it.

    + public_access_blocked: no policy and no ACL can make anything public
    + encryption: ``AES256`` or ``aws:kms``; empty: what the server does by itself (AES256 at AWS)
    + kms_key: ARN of the key for ``aws:kms``; the account's own key for S3 when empty
    + versioning: ``False`` suspends it: versions that exist are kept
    + cors: pages that may use it from a browser; empty: none
    + lifecycle: what is removed by itself; empty: nothing
    + policy: statements as AWS writes them; those of the next two settings are added
    + tls_only: refuse requests that are not encrypted
    + presigned_max_seconds: refuse presigned URLs that were signed longer ago, whatever they say themselves; 0: no limit
    """

    public_access_blocked: bool | None = True
    encryption: str | None = "AES256"
    kms_key: str = ""
    versioning: bool | None = False
    cors: Sequence[Cors] | None = ()
    lifecycle: Sequence[Lifecycle] | None = (Lifecycle(),)
    policy: Sequence[Mapping[str, Any]] | None = ()
    tls_only: bool = True
    presigned_max_seconds: int = 0

    def faults(self, bucket: str, server: Server) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = []
        if self.encryption not in (None, "", *ENCRYPTIONS):
            faults.append(f"encryption must be 'AES256', 'aws:kms', '' or None, got {self.encryption!r}")
        if self.kms_key and self.encryption != "aws:kms":
            faults.append(f"kms_key goes with encryption='aws:kms', got {self.encryption!r}")
        for name in ("public_access_blocked", "versioning", "tls_only"):
            if getattr(self, name) not in (True, False) and (
                name == "tls_only" or getattr(self, name) is not None
            ):
                faults.append(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("cors", "lifecycle", "policy"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Sequence) or isinstance(value, str)):
                faults.append(f"{name} must be a list, got {value!r}")
        for name, kind in (("cors", Cors), ("lifecycle", Lifecycle)):
            for rule in _listed(getattr(self, name)):
                faults += (
                    rule.faults()
                    if isinstance(rule, kind)
                    else [f"{name} holds {kind.__name__}(…), got {rule!r}"]
                )
        prefixes = [rule.label for rule in _listed(self.lifecycle) if isinstance(rule, Lifecycle)]
        faults += [
            f"lifecycle {one!r}: stands twice"
            for one in sorted({p for p in prefixes if prefixes.count(p) > 1})
        ]
        for statement in _listed(self.policy):
            faults += self._statement_faults(statement, bucket, server)
        if self.policy is not None and self.tls_only and server.endpoint_url.startswith("http://"):
            faults.append(f"tls_only would close {server.endpoint_url} to everybody: write tls_only=False")
        if not _in_range(self.presigned_max_seconds, 0, LONGEST_PRESIGNED_SECONDS):
            faults.append(
                f"presigned_max_seconds must be 0 (no limit) to {LONGEST_PRESIGNED_SECONDS}, got {self.presigned_max_seconds!r}"
            )
        elif self.presigned_max_seconds and self.policy is None:
            faults.append("presigned_max_seconds is kept by the policy, and policy=None leaves that alone")
        return faults

    def _statement_faults(self, statement: object, bucket: str, server: Server) -> list[str]:
        if not isinstance(statement, Mapping):
            return [f"policy: a statement must be a mapping, got {statement!r}"]
        label = f"policy: statement {statement.get('Sid', json.dumps(statement, default=repr))}"
        faults = [f"{label}: unknown key {key!r}" for key in statement if key not in _STATEMENT_KEYS]
        if statement.get("Effect") not in ("Allow", "Deny"):
            faults.append(f"{label}: Effect must be 'Allow' or 'Deny', got {statement.get('Effect')!r}")
        for key in ("Principal", "Action", "Resource"):
            if (key in statement) == (f"Not{key}" in statement):
                faults.append(f"{label}: needs either {key} or Not{key}")
        arn = server.arn(bucket)
        for resource in _texts(statement.get("Resource")):
            if resource != arn and not resource.startswith(f"{arn}/"):
                faults.append(f"{label}: Resource must be {arn} or start with {arn}/, got {resource!r}")
        everybody = "*" in _texts(statement.get("Principal"))
        if (
            everybody
            and statement.get("Effect") == "Allow"
            and not statement.get("Condition")
            and self.public_access_blocked
        ):
            faults.append(f"{label}: makes the bucket public; presigned URLs need no such statement")
        return faults

    def documents(self, bucket: str, server: Server) -> dict[str, Any]:
        """Return what S3 is to be told, by property; an empty one is to be unset, one that is left alone is missing."""
        wanted: dict[str, Any] = {}
        if self.public_access_blocked is not None:
            names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
            wanted["public_access_blocked"] = dict.fromkeys(names, True) if self.public_access_blocked else {}
        if self.encryption is not None:
            by_default = {"SSEAlgorithm": self.encryption, "KMSMasterKeyID": self.kms_key}
            rule = {
                "ApplyServerSideEncryptionByDefault": {
                    key: value for key, value in by_default.items() if value
                },
                "BucketKeyEnabled": self.encryption == "aws:kms",
            }
            wanted["encryption"] = {"Rules": [rule]} if self.encryption else {}
        if self.versioning is not None:
            wanted["versioning"] = {"Status": "Enabled" if self.versioning else "Suspended"}
        if self.policy is not None:
            statements = [*map(dict, self.policy), *self._own_statements(bucket, server)]
            wanted["policy"] = policy_document(statements) if statements else {}
        if self.cors is not None:
            wanted["cors"] = {"CORSRules": [rule.document() for rule in self.cors]} if self.cors else {}
        if self.lifecycle is not None:
            wanted["lifecycle"] = (
                {"Rules": [rule.document() for rule in self.lifecycle]} if self.lifecycle else {}
            )
        return wanted

    def _own_statements(self, bucket: str, server: Server) -> list[dict[str, Any]]:
        deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*"}
        statements = []
        if self.tls_only:
            condition = {"Bool": {"aws:SecureTransport": "false"}}
            both = [server.arn(bucket), server.arn(bucket, "*")]
            statements.append({"Sid": "HostwrightTlsOnly", **deny, "Resource": both, "Condition": condition})
        if self.presigned_max_seconds:
            old = {
                "NumericGreaterThan": {"s3:signatureAge": str(self.presigned_max_seconds * 1000)},
                "StringEquals": {"s3:authType": "REST-QUERY-STRING"},
            }
            resource = server.arn(bucket, "*")
            statements.append(
                {"Sid": "HostwrightPresignedAge", **deny, "Resource": resource, "Condition": old}
            )
        return statements


@dataclass(frozen=True)
class Access:
    """
    What a user may do with the objects of one bucket.

    + prefix: of the keys; empty: all
    + read, write, delete, list_keys: objects; ``write`` holds what an upload in parts needs
    + tag: change the tags of objects, which a lifecycle may go by
    + kms_key: ARN of the key of a bucket with ``aws:kms``
    """

    bucket: str
    prefix: str = ""
    read: bool = True
    write: bool = True
    delete: bool = True
    list_keys: bool = True
    kms_key: str = ""
    tag: bool = False

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = bucket_name_faults(self.bucket)
        if not (self.read or self.write or self.delete or self.list_keys or self.tag):
            faults.append(f"access to {self.bucket}: allows nothing: leave it out")
        if any(sign in self.prefix for sign in "*?$"):
            faults.append(
                f"access to {self.bucket}: prefix may not hold '*', '?' or '$', got {self.prefix!r}"
            )
        return faults

    def statements(self, server: Server) -> list[dict[str, Any]]:
        """Return the statements for the user's policy."""
        actions = []
        if self.read:
            actions.append("s3:GetObject")
        if self.write:
            actions += ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
        if self.delete:
            actions.append("s3:DeleteObject")
        if self.tag:
            actions.append("s3:PutObjectTagging")
        statements: list[dict[str, Any]] = []
        if actions:
            statements.append(_allow(actions, server.arn(self.bucket, f"{self.prefix}*")))
        if self.list_keys:
            listing = _allow(["s3:ListBucket"], server.arn(self.bucket))
            if self.prefix:
                listing["Condition"] = {"StringLike": {"s3:prefix": f"{self.prefix}*"}}
            statements.append(listing)
        if self.kms_key:
            keys = ["kms:Decrypt"] * (self.read or self.write) + ["kms:GenerateDataKey"] * self.write
            statements.append(_allow(keys, self.kms_key))
        return statements


@dataclass(frozen=True)
class KeyFile:
    """
    Where on the host a user's access key is written, as environment variables, 0600.

    + path: absolute
    + owner, group: who reads it; systemd reads an ``EnvironmentFile=`` as root
    + access_variable, secret_variable: names of the two variables
    + rotate_days: replace a key that is older; 0: never by age
    + rotate_before: replace a key that was made before this moment, e.g. ``2026-11-22T10:00:00Z``: for one that leaked
    + units: that read the file; those that run are restarted with the new key before the old one goes
    + restarts: ``False``: not here, but by whoever rolls these units out, warmly and behind a health check. Each writes down
      what it reads (``stamp`` as root in ``ExecStartPre=``), names may hold ``*``, and the old key stays until a run in which
      none of them has another one
    + keep_seconds: how long the old key stays after the last start or end of any of these units: a presigned URL is good no
      longer than the key that signed it
    """

    path: str
    owner: str = "root"
    group: str = "root"
    access_variable: str = "AWS_ACCESS_KEY_ID"
    secret_variable: str = "AWS_SECRET_ACCESS_KEY"
    rotate_days: int = 0
    rotate_before: str = ""
    units: Sequence[str] = ()
    restarts: bool = True
    keep_seconds: int = 0

    @property
    def stamp(self) -> str:
        """The shell command by which a unit writes down what it reads, in the words of a unit file: ``%N`` is its name."""
        return f"mkdir -p /run/hostwright && sha256sum <{self.path} >/run/hostwright/%N.key"

    def faults(self) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = []
        if not self.path.startswith("/") or any(part in ("", ".", "..") for part in self.path[1:].split("/")):
            faults.append(f"key_file: path must be absolute and normalised, got {self.path!r}")
        for name in ("access_variable", "secret_variable"):
            if not _is(_VARIABLE, getattr(self, name)):
                faults.append(f"key_file: {name} must be the name of a variable, got {getattr(self, name)!r}")
        if self.access_variable == self.secret_variable:
            faults.append(f"key_file: both variables are called {self.access_variable!r}")
        if not isinstance(self.rotate_days, int) or self.rotate_days < 0:
            faults.append(f"key_file: rotate_days must be 0 (never) or more, got {self.rotate_days!r}")
        if self.rotate_before and moment(self.rotate_before) is None:
            faults.append(
                f"key_file: rotate_before must be like '2026-11-22T10:00:00Z', got {self.rotate_before!r}"
            )
        if not isinstance(self.keep_seconds, int) or self.keep_seconds < 0:
            faults.append(f"key_file: keep_seconds must be 0 or more, got {self.keep_seconds!r}")
        if isinstance(self.units, str):
            faults.append(f"key_file: units must be a list, got {self.units!r}")
        else:
            faults += [
                f"key_file: a unit needs its suffix, e.g. 'app.service', got {unit!r}"
                for unit in self.units
                if not _is(_UNIT if self.restarts else _UNITS, unit)
            ]
        return faults


@dataclass(frozen=True)
class Presigned:
    """
    How an application signs URLs for browsers.

    + expires_seconds: how long one is good
    + endpoint_url: the server as browsers reach it, where that is not the server's own ``endpoint_url``: the host name
      is part of what is signed
    """

    expires_seconds: int = 3600
    endpoint_url: str = ""

    def faults(self, wanted: Bucket) -> list[str]:
        """Return every rule that is broken, one line each."""
        faults = []
        if not _in_range(self.expires_seconds, 1, LONGEST_PRESIGNED_SECONDS):
            faults.append(
                f"expires_seconds must be 1 to {LONGEST_PRESIGNED_SECONDS}, got {self.expires_seconds!r}"
            )
        elif 0 < wanted.presigned_max_seconds < self.expires_seconds:
            faults.append(
                f"expires_seconds {self.expires_seconds} is more than the bucket's presigned_max_seconds "
                f"{wanted.presigned_max_seconds}: such a URL ends earlier than it says"
            )
        if self.endpoint_url and not _is(_URL, self.endpoint_url):
            faults.append(f"endpoint_url must be like 'https://s3.example.org', got {self.endpoint_url!r}")
        return faults


AWS = Server()
"""AWS itself, with the credentials that boto3 finds."""
PRIVATE = Bucket()
"""A bucket that is closed and encrypted, and keeps no half uploads."""


def bucket_name_faults(bucket: object, path_style: bool = True) -> list[str]:
    """Return what is wrong with the name of a bucket, one line each."""
    if (
        not _is(_BUCKET, bucket)
        or ".." in str(bucket)
        or _is(_ADDRESS, bucket)
        or str(bucket).startswith("xn--")
    ):
        return [f"bucket must be 3 to 63 lower case letters, digits, '-' and '.', got {bucket!r}"]
    if "." in str(bucket) and not path_style:
        return [f"bucket {bucket!r} holds a dot, which no certificate covers: use '-', or path_style=True"]
    return []


def iam_name_faults(what: str, name: object) -> list[str]:
    """Return what is wrong with the name of a user or role."""
    return (
        []
        if _is(_IAM_NAME, name)
        else [f"{what} must be 1 to 64 letters, digits and '+=,.@_-', got {name!r}"]
    )


def policy_document(statements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the policy of these statements."""
    return {"Version": "2012-10-17", "Statement": [dict(statement) for statement in statements]}


def replication_trust() -> dict[str, Any]:
    """Return who may take the role of a replication: S3 alone."""
    return policy_document(
        [{"Effect": "Allow", "Principal": {"Service": "s3.amazonaws.com"}, "Action": "sts:AssumeRole"}]
    )


def replication_policy(bucket: str, to: str, server: Server) -> dict[str, Any]:
    """Return the least that the role of a replication needs."""
    read = ["s3:GetObjectVersionForReplication", "s3:GetObjectVersionAcl", "s3:GetObjectVersionTagging"]
    write = ["s3:ReplicateObject", "s3:ReplicateDelete", "s3:ReplicateTags"]
    return policy_document(
        [
            _allow(["s3:GetReplicationConfiguration", "s3:ListBucket"], server.arn(bucket)),
            _allow(read, server.arn(bucket, "*")),
            _allow(write, server.arn(to, "*")),
        ]
    )


def replication_document(
    role_arn: str, to: str, prefix: str, delete_markers: bool, server: Server
) -> dict[str, Any]:
    """Return the configuration of a replication as S3 reads it."""
    return {
        "Role": role_arn,
        "Rules": [
            {
                "ID": "hostwright",
                "Priority": 1,
                "Status": "Enabled",
                "Filter": {"Prefix": prefix},
                "DeleteMarkerReplication": {"Status": "Enabled" if delete_markers else "Disabled"},
                "Destination": {"Bucket": server.arn(to)},
            }
        ],
    }


def normal(document: Any, *, ordered: bool = False) -> Any:
    """
    Return a document in the one form in which two that mean the same are equal.

    Servers give back lists in another order, single elements without their list, empty members, numbers of accounts
    instead of ARNs.

    + ordered: the order of rules counts; that of plain values never does
    """
    if isinstance(document, Mapping):
        members = {str(key): normal(value, ordered=ordered) for key, value in document.items()}
        return {key: members[key] for key in sorted(members) if members[key] not in (None, "", [], {}, False)}
    if isinstance(document, (list, tuple)):
        items = [normal(item, ordered=ordered) for item in document]
        if len(items) == 1:
            return items[0]
        if ordered and any(isinstance(item, dict) for item in items):
            return items
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(document, str) and (root := re.fullmatch(r"arn:aws[a-z-]*:iam::(\d{12}):root", document)):
        return root[1]
    return document


def moment(text: str) -> datetime | None:
    """Return the moment that a text names, in UTC where it says nothing; ``None`` for another text."""
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def _allow(actions: Sequence[str], resource: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": resource}


def _is(form: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _in_range(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and least <= value <= most


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []


def _texts(value: Any) -> list[str]:
    """Return the texts of a member of a statement, however deep: `{"AWS": ["*"]}` has `*`."""
    if isinstance(value, Mapping):
        return [text for part in value.values() for text in _texts(part)]
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []
