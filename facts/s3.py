"""Buckets, users and roles as S3 and IAM report them to the control side, and the key file as it stands on a host."""

import json
import logging
import shlex
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pyinfra.api import FactBase

from facts.records import Record, read
from settings.s3 import KeyFile, Presigned, Server

# botocore logs whole answers at DEBUG (`pyinfra --debug-all`), and that of CreateAccessKey holds the secret.
logging.getLogger("botocore").setLevel(logging.WARNING)

# Where the name of the call is not that of the permission.
_PERMISSIONS = {
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteBucketCors": "s3:PutBucketCORS",
    "DeleteBucketEncryption": "s3:PutEncryptionConfiguration",
    "DeleteBucketLifecycle": "s3:PutLifecycleConfiguration",
    "DeleteBucketReplication": "s3:PutReplicationConfiguration",
    "DeletePublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "GetBucketCors": "s3:GetBucketCORS",
    "GetBucketEncryption": "s3:GetEncryptionConfiguration",
    "GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "GetBucketReplication": "s3:GetReplicationConfiguration",
    "GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "HeadBucket": "s3:ListBucket",
    "ListBuckets": "s3:ListAllMyBuckets",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListObjectsV2": "s3:ListBucket",
    "PutBucketCors": "s3:PutBucketCORS",
    "PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "PutBucketReplication": "s3:PutReplicationConfiguration and iam:PassRole",
    "PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
}
_DENIED = {
    "AccessDenied",
    "AccessDeniedException",
    "AllAccessDisabled",
    "Forbidden",
    "403",
    "UnauthorizedAccess",
}
_BAD_KEYS = {
    "AuthFailure", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidToken",
    "SignatureDoesNotMatch", "UnrecognizedClientException",
}  # fmt: skip
_UNKNOWN_CALL = {
    "NotImplemented",
    "MethodNotAllowed",
    "XNotImplemented",
    "UnsupportedOperation",
    "501",
    "405",
}
_ABSENT = {"404", "NoSuchBucket", "NoSuchEntity", "NotFound"}


class S3Error(Exception):
    """What S3 or IAM refused, in words: which permission is missing, whose bucket it is."""


def permission(call: str, service: str) -> str:
    """Return the permission that a call of boto3 needs, e.g. ``s3:PutBucketCORS``."""
    return _PERMISSIONS.get(call, f"{service}:{call}")


@contextmanager
def explained(service: str, about: str, setting: str = "") -> Generator[None, None, None]:
    """
    Turn what boto3 raises into an ``S3Error`` that says what to do.

    + service: ``s3``, ``iam`` or ``sts``
    + about: what was worked on, e.g. ``bucket cricksy-uploads``
    + setting: of ``Bucket``, that can be ``None`` on a server without this call
    """
    try:
        yield
    except ClientError as error:
        code, call = error_code(error), error.operation_name
        message = error.response.get("Error", {}).get("Message", "")
        if code in _DENIED:
            needed = permission(call, service)
            raise S3Error(
                f"{about}: the credentials lack the permission {needed} (call {call}: {code})"
            ) from None
        if code in _BAD_KEYS:
            raise S3Error(
                f"{about}: the server does not accept the credentials ({code}): {message}"
            ) from None
        if code in _UNKNOWN_CALL:
            leave = f": write {setting}=None to leave it alone" if setting else ""
            raise S3Error(f"{about}: this server does not know the call {call} ({code}){leave}") from None
        raise S3Error(f"{about}: {call}: {code}: {message}") from None
    except BotoCoreError as error:
        raise S3Error(f"{about}: {error}") from None


def error_code(error: ClientError) -> str:
    """Return the code of an error, its HTTP status where there is no body to read one from."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code or str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))


@lru_cache(maxsize=64)
def client(server: Server, service: str, endpoint_url: str = "") -> Any:
    """Return the boto3 client of a server; ``endpoint_url`` instead of the server's own where given."""
    url = endpoint_url or (server.iam_endpoint_url if service != "s3" else "") or server.endpoint_url
    secrets = {
        "aws_access_key_id": server.access_key,
        "aws_secret_access_key": server.secret_key,
        "aws_session_token": server.session_token,
    }
    with explained(service, f"server {url or 'AWS'}"):
        session = boto3.session.Session(profile_name=server.profile or None, region_name=server.region)
        return session.client(
            service,
            endpoint_url=url or None,
            verify=server.ca_bundle or None,
            config=Config(
                signature_version="s3v4" if service == "s3" else None,
                s3={"addressing_style": "path" if server.path_style else "auto"},
                connect_timeout=min(10, server.timeout_seconds),
                read_timeout=server.timeout_seconds,
                retries={"mode": "standard", "total_max_attempts": 4},
                # other servers refuse the checksums that boto3 adds by itself since 1.36
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
            **{name: secret.unmask() for name, secret in secrets.items() if secret},
        )


def presigned_url(
    server: Server, presigned: Presigned, bucket: str, key: str, call: str = "get_object"
) -> str:
    """Return a URL with which a browser may do one thing: ``get_object``, ``put_object`` …"""
    url: str = client(server, "s3", presigned.endpoint_url).generate_presigned_url(
        call, Params={"Bucket": bucket, "Key": key}, ExpiresIn=presigned.expires_seconds
    )
    return url


@dataclass(frozen=True)
class Property:
    """
    One property of a bucket: how it is read, set and unset.

    + title: what people call it; + get, put, delete: methods of the client; without ``delete`` it is never unset
    + argument: of ``put``
    + absent: code of the answer when it is not set
    + part: what of the answer to ``get`` is meant
    + ordered: the order of its rules counts
    """

    title: str
    get: str
    put: str
    argument: str
    delete: str = ""
    absent: str = ""
    part: Callable[[dict[str, Any]], Any] = dict
    ordered: bool = False


def _lifecycle(answer: dict[str, Any]) -> Any:
    """Each rule's conditions together: Ceph gives a prefix and a tag back side by side, without the ``And`` they were sent in."""
    rules = []
    for rule in answer.get("Rules", []):
        conditions = dict(rule.get("Filter", {}))
        if "Prefix" in conditions and "Tag" in conditions:
            conditions = {"And": {"Prefix": conditions["Prefix"], "Tags": [conditions["Tag"]]}}
            rule = {**rule, "Filter": conditions}
        rules.append(rule)
    return {"Rules": rules} if rules else {}


def _encryption(answer: dict[str, Any]) -> Any:
    """Of each rule only what can be set here: servers add members of their own."""
    rules = answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
    wanted = ("ApplyServerSideEncryptionByDefault", "BucketKeyEnabled")
    return {"Rules": [{key: rule[key] for key in wanted if key in rule} for rule in rules]}


def _parts(*names: str) -> Callable[[dict[str, Any]], Any]:
    return lambda answer: {name: answer[name] for name in names if name in answer}


PROPERTIES = {
    "public_access_blocked": Property(
        "public access block", "get_public_access_block", "put_public_access_block", "PublicAccessBlockConfiguration",
        "delete_public_access_block", "NoSuchPublicAccessBlockConfiguration",
        lambda answer: answer["PublicAccessBlockConfiguration"],
    ),
    "encryption": Property(
        "encryption", "get_bucket_encryption", "put_bucket_encryption", "ServerSideEncryptionConfiguration",
        "delete_bucket_encryption", "ServerSideEncryptionConfigurationNotFoundError", _encryption,
    ),
    "versioning": Property(
        "versioning", "get_bucket_versioning", "put_bucket_versioning", "VersioningConfiguration", part=_parts("Status"),
    ),
    "policy": Property(
        "policy", "get_bucket_policy", "put_bucket_policy", "Policy", "delete_bucket_policy", "NoSuchBucketPolicy",
        lambda answer: json.loads(answer["Policy"]),
    ),
    "cors": Property(
        "CORS", "get_bucket_cors", "put_bucket_cors", "CORSConfiguration", "delete_bucket_cors",
        "NoSuchCORSConfiguration", _parts("CORSRules"), ordered=True,
    ),
    "lifecycle": Property(
        "lifecycle", "get_bucket_lifecycle_configuration", "put_bucket_lifecycle_configuration",
        "LifecycleConfiguration", "delete_bucket_lifecycle", "NoSuchLifecycleConfiguration", _lifecycle,
    ),
    "replication": Property(
        "replication", "get_bucket_replication", "put_bucket_replication", "ReplicationConfiguration",
        "delete_bucket_replication", "ReplicationConfigurationNotFoundError",
        lambda answer: answer["ReplicationConfiguration"],
    ),
}  # fmt: skip
"""In the order in which they are set: closed before anything is opened."""


@dataclass(frozen=True)
class BucketState(Record):
    """A bucket as it is; ``properties`` holds those that were asked for, empty where they are not set."""

    exists: bool = False
    region: str = ""
    properties: dict[str, Any] = field(default_factory=dict)


def read_bucket(server: Server, bucket: str, properties: Sequence[str]) -> BucketState:
    """Return what a bucket is. Raises ``S3Error`` when it is somebody else's, or may not be read."""
    about, s3 = f"bucket {bucket}", client(server, "s3")
    if not owns(server, bucket):
        return BucketState()
    with explained("s3", about):
        location = s3.get_bucket_location(Bucket=bucket).get("LocationConstraint")
    # the two oldest regions have names of their own here
    region = {None: "us-east-1", "": "us-east-1", "EU": "eu-west-1"}.get(location, location)
    return BucketState(True, region, {name: read_property(server, bucket, name) for name in properties})


def owns(server: Server, bucket: str) -> bool:
    """Whether the account has the bucket; ``False`` when nobody has. Raises ``S3Error`` when somebody else does."""
    s3 = client(server, "s3")
    with explained("s3", f"bucket {bucket}"):
        for page in s3.get_paginator("list_buckets").paginate():
            if any(one["Name"] == bucket for one in page.get("Buckets", [])):
                return True
        try:
            s3.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error_code(error) in _ABSENT:
                return False
            if error_code(error) not in {*_DENIED, "301", "400"}:
                raise
    raise S3Error(
        f"bucket {bucket}: belongs to another account: names are shared by all accounts, choose another one"
    )


def read_property(server: Server, bucket: str, name: str) -> Any:
    """Return the document of one property, empty when it is not set."""
    how = PROPERTIES[name]
    with explained("s3", f"bucket {bucket}", name):
        try:
            answer = getattr(client(server, "s3"), how.get)(Bucket=bucket)
        except ClientError as error:
            if how.absent and error_code(error) == how.absent:
                return {}
            raise
    return how.part(answer)


def write_property(server: Server, bucket: str, name: str, document: Any) -> None:
    """Set one property to a document, or unset it with an empty one."""
    how, s3 = PROPERTIES[name], client(server, "s3")
    with explained("s3", f"bucket {bucket}", name):
        if document or not how.delete:
            body = json.dumps(document) if name == "policy" else document
            getattr(s3, how.put)(Bucket=bucket, **{how.argument: body})
        else:
            getattr(s3, how.delete)(Bucket=bucket)


def holds(server: Server, bucket: str) -> str:
    """Return what a bucket still holds, in words; empty when nothing."""
    s3 = client(server, "s3")
    with explained("s3", f"bucket {bucket}"):
        found = s3.list_object_versions(Bucket=bucket, MaxKeys=1)
        if found.get("Versions") or found.get("DeleteMarkers"):
            key = [*found.get("Versions", []), *found.get("DeleteMarkers", [])][0]["Key"]
            return f"objects or old versions of them, e.g. {key!r}"
        uploads = s3.list_multipart_uploads(Bucket=bucket, MaxUploads=1).get("Uploads", [])
    return f"an unfinished upload of {uploads[0]['Key']!r}" if uploads else ""


@dataclass(frozen=True)
class Key(Record):
    """One access key of a user. ``used`` is ``None`` for one that never was, and where nobody asked."""

    key_id: str
    active: bool
    created: datetime
    used: datetime | None = None


@dataclass(frozen=True)
class UserState(Record):
    """
    A user as it is.

    + host: the host whose key file holds its key, from its tag
    + policies: inline ones by name; + attached: ARNs of others; + groups: that it is in
    """

    exists: bool = False
    host: str = ""
    policies: dict[str, Any] = field(default_factory=dict)
    attached: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()


def read_user(server: Server, user: str, tag: str) -> UserState:
    """Return what a user is and may."""
    iam = client(server, "iam")
    with explained("iam", f"user {user}"):
        try:
            iam.get_user(UserName=user)
        except ClientError as error:
            if error_code(error) in _ABSENT:
                return UserState()
            raise
        names = _all(iam, "list_user_policies", "PolicyNames", user)
        return UserState(
            True,
            _tag(_all(iam, "list_user_tags", "Tags", user), tag),
            {
                name: _document(iam.get_user_policy(UserName=user, PolicyName=name)["PolicyDocument"])
                for name in names
            },
            tuple(
                one["PolicyArn"] for one in _all(iam, "list_attached_user_policies", "AttachedPolicies", user)
            ),
            tuple(one["GroupName"] for one in _all(iam, "list_groups_for_user", "Groups", user)),
            read_keys(server, user),
        )


def read_keys(server: Server, user: str) -> tuple[Key, ...]:
    """Return the access keys of a user; none when there is no such user."""
    iam = client(server, "iam")
    with explained("iam", f"user {user}"):
        try:
            listed = _all(iam, "list_access_keys", "AccessKeyMetadata", user)
        except ClientError as error:
            if error_code(error) in _ABSENT:
                return ()
            raise
        return tuple(_key(iam, one, with_use=len(listed) > 1) for one in listed)


@dataclass(frozen=True)
class RoleState(Record):
    """A role as it is; ``bucket`` from its tag."""

    arn: str = ""
    bucket: str = ""
    trust: Any = None
    policies: dict[str, Any] = field(default_factory=dict)
    attached: tuple[str, ...] = ()


def read_role(server: Server, role: str, tag: str) -> RoleState:
    """Return what a role is and may; an ``arn`` that is empty when there is none."""
    iam = client(server, "iam")
    with explained("iam", f"role {role}"):
        try:
            found = iam.get_role(RoleName=role)["Role"]
        except ClientError as error:
            if error_code(error) in _ABSENT:
                return RoleState()
            raise
        names = iam.list_role_policies(RoleName=role)["PolicyNames"]
        attached = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        return RoleState(
            found["Arn"],
            _tag(iam.list_role_tags(RoleName=role)["Tags"], tag),
            _document(found["AssumeRolePolicyDocument"]),
            {
                name: _document(iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"])
                for name in names
            },
            tuple(one["PolicyArn"] for one in attached),
        )


def _all(iam: Any, call: str, member: str, user: str) -> list[Any]:
    return [one for page in iam.get_paginator(call).paginate(UserName=user) for one in page[member]]


def _tag(tags: Sequence[dict[str, str]], name: str) -> str:
    return next((tag["Value"] for tag in tags if tag["Key"] == name), "")


def _document(found: Any) -> Any:
    return json.loads(unquote(found)) if isinstance(found, str) else found


def _key(iam: Any, listed: dict[str, Any], with_use: bool) -> Key:
    used = None
    if with_use:  # asked only where one of two may have to go
        answer = iam.get_access_key_last_used(AccessKeyId=listed["AccessKeyId"])
        used = answer["AccessKeyLastUsed"].get("LastUsedDate")
    return Key(listed["AccessKeyId"], listed["Status"] == "Active", listed["CreateDate"], used)


@dataclass(frozen=True)
class KeyFileState(Record):
    """
    A key file as it stands on the host. Its secret is not among it.

    + key_id: the access key that it names, empty when there is none
    + is_whole: it has both variables, and nobody has changed it since it was written
    + mode, owner, group: as ``stat`` prints them
    + running: those of the asked-for units that run
    + behind: those of them that were started with another content of the file, by what they wrote down themselves
    + quiet_seconds: since the last of the units was started or came to its end; without any: since the host was
    """

    key_id: str = ""
    is_whole: bool = False
    mode: str = ""
    owner: str = ""
    group: str = ""
    running: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    quiet_seconds: int = 0


SEAL = "# sha256 of the lines above: "

_KEY_FILE = r"""
f={path}
if [ -f "$f" ] && [ ! -L "$f" ]; then
    printf 'attributes\t%s\n' "$(stat -c '%a %U %G' -- "$f")"
    printf 'sum\t%s\n' "$(head -n -1 -- "$f" | sha256sum | cut -d ' ' -f 1)"
    printf 'seal\t%s\n' "$(tail -n 1 -- "$f" | sed -n 's/^{seal}//p')"
    printf 'key\t%s\n' "$(sed -n 's/^{access}=//p' "$f")"
    printf 'secrets\t%s\n' "$(grep -c '^{secret}=.' "$f")"
fi 2>/dev/null
now=$(cut -d . -f 1 /proc/uptime)
sum=$({{ sha256sum <"$f"; }} 2>/dev/null | cut -c 1-64)
printf 'quiet\t%s\n' "$now"
[ -z {any} ] || for unit in $(systemctl list-units --all --plain --no-legend --no-pager -- {units} 2>/dev/null | cut -d ' ' -f 1); do
    state=$(systemctl show -p ActiveState --value -- "$unit")
    since=$(systemctl show -p StateChangeTimestampMonotonic --value -- "$unit")
    [ "$(cut -c 1-64 "/run/hostwright/${{unit%.service}}.key" 2>/dev/null)" = "$sum" ] && fits=yes || fits=no
    printf 'unit\t%s\t%s\t%s\n' "$unit" "$state" "$fits"
    printf 'quiet\t%s\n' "$((now - since / 1000000))"
done
true
"""


class KeyFileFact(FactBase[KeyFileState]):
    """Return what stands in a user's key file, without the secret: see ``KeyFileState``."""

    default = KeyFileState

    def command(self, key_file: KeyFile) -> str:
        return _KEY_FILE.format(
            path=shlex.quote(key_file.path),
            seal=SEAL,
            access=key_file.access_variable,
            secret=key_file.secret_variable,
            units=shlex.join(key_file.units),
            any=shlex.quote("".join(key_file.units)[:1]),
        )

    def process(self, output: list[str]) -> KeyFileState:
        found = read(output)
        mode, owner, group = "".join(found["attributes"]).split() or ("", "", "")
        key_id, sums = "".join(found["key"]), found["sum"] + found["seal"]
        is_whole = bool(key_id) and sums[0] == sums[1] and found["secrets"] == ["1"]
        units = [line.split("\t") for line in found["unit"]]
        return KeyFileState(
            key_id,
            is_whole,
            mode,
            owner,
            group,
            running=tuple(name for name, state, _ in units if state == "active"),
            behind=tuple(name for name, state, fits in units if fits == "no" and state not in ("inactive", "failed")),
            quiet_seconds=max(0, min(map(int, found["quiet"]), default=0)),
        )
