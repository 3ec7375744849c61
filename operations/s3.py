"""
Buckets, their users and their copies in another region, on AWS or any server that speaks S3.

Everything is asked and changed from the control side with boto3, with rights that the hosts never see. What is there is
read before the first change, so a plan is true and a second run changes nothing. On a host stands only the key of its
own user, in a file that the user's operation writes and rotates.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from pyinfra import host, logger
from pyinfra import state as run_state
from pyinfra.api import FunctionCommand, OperationError, OperationValueError, StringCommand, operation

from facts.s3 import (
    PROPERTIES,
    SEAL,
    BucketState,
    Key,
    KeyFileFact,
    KeyFileState,
    RoleState,
    S3Error,
    UserState,
    client,
    error_code,
    explained,
    holds,
    read_bucket,
    read_keys,
    read_role,
    read_user,
    write_property,
)
from operations import fileset
from operations import unit as units_of
from operations.fileset import Absent, File
from settings.s3 import (
    AWS,
    PRIVATE,
    Access,
    Bucket,
    KeyFile,
    Server,
    bucket_name_faults,
    iam_name_faults,
    moment,
    normal,
    policy_document,
    replication_document,
    replication_policy,
    replication_trust,
)
from settings.secret import Secret

if TYPE_CHECKING:
    from pyinfra.api import Host, State

HOST_TAG = "hostwright:host"
"""Tag of a user: the host that has its key. Two hosts that shared a user would take each other's keys away."""
BUCKET_TAG = "hostwright:bucket"
"""Tag of a role: the bucket whose replication takes it."""
POLICY = "hostwright"
"""Name of the one inline policy of a user or role."""

_KEY_SECONDS = 60
"""How long a new key may take until all of IAM knows it (s)."""
_ROLE_SECONDS = 30
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class _Change:
    """One call that is due, and what people call it."""

    title: str
    make: Callable[[], None]


def _apply(state: State, host: Host, change: _Change) -> bool:
    """Make one change; when it is refused, say why and fail this host alone."""
    try:
        change.make()
    except S3Error as error:
        host.log_styled(f"{change.title}: {error}", fg="red", log_func=logger.error)
        return False
    return True


def _commands(changes: Sequence[_Change]) -> Generator[FunctionCommand, None, None]:
    for change in changes:
        if host.state.config.DIFF:
            host.log(f"Will {change.title}", logger.info)
    for change in changes:
        yield FunctionCommand(_apply, (change,), {})


def _refuse(operation: str, faults: Sequence[str]) -> None:
    if faults:
        raise OperationValueError(f"s3.{operation}: " + "; ".join(faults))


# --- buckets --------------------------------------------------------------------------------------------------------


def differing(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return the properties that are not as wanted, in the order in which they are to be set."""
    return [
        name for name in PROPERTIES if name in wanted and not _is_met(name, wanted[name], found.get(name))
    ]


def _is_met(name: str, wanted: Any, found: Any) -> bool:
    if name == "versioning" and wanted == {"Status": "Suspended"} and not found:
        return True  # never enabled, which nothing can bring back
    ordered = PROPERTIES[name].ordered
    if normal(wanted, ordered=ordered) == normal(found, ordered=ordered):
        return True
    # AWS encrypts what nobody asked it to encrypt, and says so
    by_itself = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
    return name == "encryption" and not wanted and normal(found) == normal(by_itself)


def _create(server: Server, bucket: str) -> None:
    where = {} if server.region == "us-east-1" else {"LocationConstraint": server.region}
    with explained("s3", f"bucket {bucket}"):
        try:
            client(server, "s3").create_bucket(
                Bucket=bucket, **({"CreateBucketConfiguration": where} if where else {})
            )
        except ClientError as error:
            if error_code(error) == "BucketAlreadyExists":
                raise S3Error(
                    "belongs to another account: names are shared by all accounts, choose another one"
                ) from None
            if error_code(error) != "BucketAlreadyOwnedByYou":
                raise


def _delete_bucket(server: Server, bucket: str) -> None:
    with explained("s3", f"bucket {bucket}"):
        client(server, "s3").delete_bucket(Bucket=bucket)


def _read_bucket(operation: str, server: Server, bucket: str, properties: Sequence[str]) -> BucketState:
    try:
        return read_bucket(server, bucket, properties)
    except S3Error as error:
        raise OperationError(f"s3.{operation}: {error}") from None


@operation()
def bucket(
    bucket: str, server: Server = AWS, wanted: Bucket = PRIVATE, present: bool = True
) -> Generator[FunctionCommand, None, None]:
    """
    Manage a bucket and its properties.

    + bucket: its name
    + server: where it is, and whose rights are used
    + wanted: its properties
    + present: ``False`` removes it, which is refused while it holds anything: an object, an old version, an upload

    It runs on the control side: give ``_run_once=True`` where several hosts share the bucket.

    Raises ``OperationValueError`` for arguments that break a rule, all of them in one message, and ``OperationError``
    when the name is another account's, the bucket stands in another region, or a permission is missing.

    **Example:**

    .. code:: python

        s3.bucket(
            "cricksy-uploads",
            Server(region="eu-central-1"),
            Bucket(versioning=True, cors=[Cors(["https://app.example.org"])]),
            name="Make bucket",
            _run_once=True,
        )
    """
    faults = server.faults() + bucket_name_faults(bucket, server.path_style)
    _refuse("bucket", faults + (wanted.faults(bucket, server) if present else []))
    documents = wanted.documents(bucket, server) if present else {}
    found = _read_bucket("bucket", server, bucket, list(documents))

    if not present:
        if not found.exists:
            host.noop(f"there is no bucket {bucket}")
            return
        try:
            content = holds(server, bucket)
        except S3Error as error:
            raise OperationError(f"s3.bucket: {error}") from None
        if content:
            raise OperationError(f"s3.bucket: bucket {bucket} is not removed: it holds {content}")
        yield from _commands([_Change(f"remove bucket {bucket}", lambda: _delete_bucket(server, bucket))])
        return

    if found.exists and found.region != server.region:
        raise OperationError(
            f"s3.bucket: bucket {bucket} is in region {found.region!r}, wanted: {server.region!r}; "
            "a bucket cannot be moved: write that region, or make one of another name and copy"
        )
    due = differing(documents, found.properties)
    changes = [] if found.exists else [_Change(f"make bucket {bucket}", lambda: _create(server, bucket))]
    changes += [_property_change(server, bucket, name, documents[name]) for name in due]
    if not changes:
        host.noop(f"bucket {bucket} is as wanted")
        return
    yield from _commands(changes)


def _property_change(server: Server, bucket: str, name: str, document: Any) -> _Change:
    verb = "set" if document else "unset"
    return _Change(
        f"{verb} {PROPERTIES[name].title} of bucket {bucket}",
        lambda: write_property(server, bucket, name, document),
    )


# --- replication ----------------------------------------------------------------------------------------------------


@operation()
def replication(
    bucket: str,
    to: str,
    role: str,
    server: Server = AWS,
    to_server: Server | None = None,
    prefix: str = "",
    delete_markers: bool = False,
    present: bool = True,
) -> Generator[FunctionCommand, None, None]:
    """
    Manage the copy of a bucket in another one, usually in another region, and the role that S3 takes for it.

    + bucket: the source; + to: the bucket that gets the copies. Both must be versioned
    + role: name of the IAM role; it is made, and may do this and nothing else
    + server: where the source is
    + to_server: where the copy is, with its region; like ``server`` when ``None``
    + prefix: of the keys that are copied; empty: all
    + delete_markers: whether a deletion hides the copy too
    + present: ``False`` removes the configuration and the role; what was copied stays

    Raises ``OperationValueError`` for arguments that break a rule, and ``OperationError`` when a bucket is not there or
    not versioned, or the role is somebody else's.

    **Example:**

    .. code:: python

        s3.replication(
            "cricksy-uploads", to="cricksy-uploads-copy", role="cricksy-uploads-replication",
            server=Server(region="eu-central-1"), to_server=Server(region="eu-west-1"), name="Copy bucket",
        )
    """
    there = to_server or server
    faults = server.faults() + iam_name_faults("role", role)
    faults += [f"to_server: {fault}" for fault in to_server.faults()] if to_server else []
    faults += bucket_name_faults(bucket) + [f"to: {fault}" for fault in bucket_name_faults(to)]
    if bucket == to:
        faults.append(f"to must be another bucket, got {to!r}")
    _refuse("replication", faults)

    source = _read_bucket("replication", server, bucket, ["versioning", "replication"])
    try:
        found = read_role(server, role, BUCKET_TAG)
    except S3Error as error:
        raise OperationError(f"s3.replication: {error}") from None
    if present and found.arn and found.bucket != bucket:
        whose = f"of bucket {found.bucket!r}" if found.bucket else "not made here"
        raise OperationError(
            f"s3.replication: role {role} exists and is {whose}: choose another name, or tag it {BUCKET_TAG}={bucket}"
        )

    if not present:
        changes = []
        if source.properties.get("replication"):
            changes.append(_property_change(server, bucket, "replication", {}))
        if found.bucket == bucket:
            changes += _policy_changes(server, "role", role, None, found)
            changes.append(_iam(f"remove role {role}", server, "delete_role", RoleName=role))
        if not changes:
            host.noop(f"bucket {bucket} is not copied")
            return
        yield from _commands(changes)
        return

    target = _read_bucket("replication", there, to, ["versioning"])
    # A plan is made before anything runs: an earlier operation may well make the buckets.
    if run_state.is_executing:
        for name, one in ((bucket, source), (to, target)):
            if not one.exists:
                raise OperationError(f"s3.replication: there is no bucket {name}")
            if one.properties["versioning"] != {"Status": "Enabled"}:
                raise OperationError(
                    f"s3.replication: bucket {name} is not versioned: write versioning=True for it"
                )

    changes = _role_changes(server, role, bucket, replication_policy(bucket, to, server), found)
    document = replication_document(found.arn, to, prefix, delete_markers, server)
    if differing({"replication": document}, source.properties):
        title = f"set replication of bucket {bucket} to {to}"
        changes.append(_Change(title, lambda: _replicate(server, bucket, role, document)))
    if not changes:
        host.noop(f"bucket {bucket} is copied to {to}")
        return
    yield from _commands(changes)


def _iam(title: str, server: Server, call: str, **arguments: Any) -> _Change:
    def make() -> None:
        with explained("iam", "IAM"):
            getattr(client(server, "iam"), call)(**arguments)

    return _Change(title, make)


def _role_changes(
    server: Server, role: str, bucket: str, policy: dict[str, Any], found: RoleState
) -> list[_Change]:
    trust, changes = replication_trust(), []
    if not found.arn:
        tags = [{"Key": BUCKET_TAG, "Value": bucket}]
        made = {"RoleName": role, "Tags": tags, "AssumeRolePolicyDocument": json.dumps(trust)}
        changes.append(_iam(f"make role {role}", server, "create_role", **made))
    elif normal(found.trust) != normal(trust):
        document = json.dumps(trust)
        title = f"set who may take role {role}"
        changes.append(
            _iam(title, server, "update_assume_role_policy", RoleName=role, PolicyDocument=document)
        )
    return changes + _policy_changes(server, "role", role, policy, found)


def _policy_changes(
    server: Server, kind: str, called: str, policy: dict[str, Any] | None, found: RoleState | UserState
) -> list[_Change]:
    """Return what gives a user or role exactly one policy, or none at all."""
    who = {f"{kind.title()}Name": called}
    changes = []
    if policy and normal(found.policies.get(POLICY)) != normal(policy):
        document = json.dumps(policy)
        title = f"set policy of {kind} {called}"
        changes.append(
            _iam(title, server, f"put_{kind}_policy", **who, PolicyName=POLICY, PolicyDocument=document)
        )
    for one in sorted(set(found.policies) - ({POLICY} if policy else set())):
        title = f"remove policy {one} of {kind} {called}"
        changes.append(_iam(title, server, f"delete_{kind}_policy", **who, PolicyName=one))
    for arn in found.attached:
        title = f"detach policy {arn} from {kind} {called}"
        changes.append(_iam(title, server, f"detach_{kind}_policy", **who, PolicyArn=arn))
    return changes


def _replicate(server: Server, bucket: str, role: str, document: dict[str, Any]) -> None:
    """Set the replication; S3 may hear of a new role some seconds after IAM made it."""
    arn = document["Role"] or read_role(server, role, BUCKET_TAG).arn
    until = time.monotonic() + (0 if document["Role"] else _ROLE_SECONDS)
    while True:
        try:
            write_property(server, bucket, "replication", {**document, "Role": arn})
            return
        except S3Error:
            if time.monotonic() >= until:
                raise
        time.sleep(_PAUSE_SECONDS)


# --- users and their keys -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyPlan:
    """
    What is to be done about a user's keys.

    + drop_first: a key that must go before a new one can be made: IAM allows two
    + new: why a new key is to be made, empty when none is
    + stale: keys that go when everybody uses the one in the file
    + waits: why nothing is done yet, empty when nothing waits
    """

    drop_first: str = ""
    new: str = ""
    stale: tuple[str, ...] = ()
    waits: str = ""


def key_plan(keys: Sequence[Key], file: KeyFileState, key_file: KeyFile, now: datetime) -> KeyPlan:
    """Return what brings the host to one good key and the user to no other, from wherever a killed run left them."""
    named = next((key for key in keys if key.key_id == file.key_id), None)
    reason = _why_new(named, file, key_file, now)
    others = [key for key in keys if key is not named]
    behind = () if key_file.restarts else file.behind
    if named and named.active and file.is_whole and len(keys) > 1 and behind:
        return KeyPlan(waits=f"{', '.join(behind)} runs with the key before: it is to be started anew first")
    if not reason:
        return _without_stale(KeyPlan(stale=tuple(key.key_id for key in others)), file, key_file)
    first = ""
    if len(keys) > 1:
        # Never the one that the file names: it may be at work. Among others one that nobody ever used, the newest of
        # them: a killed run made it and wrote it nowhere.
        never = datetime.min.replace(tzinfo=timezone.utc)
        first = min(others, key=lambda key: (key.active, key.used or never, -key.created.timestamp())).key_id
    return KeyPlan(first, reason, tuple(key.key_id for key in keys if key.key_id != first))


def _without_stale(plan: KeyPlan, file: KeyFileState, key_file: KeyFile) -> KeyPlan:
    """Return the plan without keys that somebody may still use, or that signed URLs which are still good."""
    left = key_file.keep_seconds - file.quiet_seconds
    if not plan.stale or (left <= 0 and (key_file.restarts or not file.behind)):
        return plan
    why = f"{', '.join(file.behind)} runs with it" if not key_file.restarts and file.behind else f"what it signed is good for {left} s"
    return replace(plan, stale=(), waits=f"key {', '.join(plan.stale)} stays: {why}")


def is_due(user: str, key_file: KeyFile, server: Server = AWS) -> bool:
    """
    Whether ``user`` would now replace the host's key: for the plan of those who then start units anew.

    Raises ``OperationError`` when IAM cannot be asked.
    """
    try:
        keys = read_keys(server, user)
    except S3Error as error:
        raise OperationError(f"s3.user: {error}") from None
    return bool(key_plan(keys, host.get_fact(KeyFileFact, key_file=key_file), key_file, datetime.now(timezone.utc)).new)


def _why_new(named: Key | None, file: KeyFileState, key_file: KeyFile, now: datetime) -> str:
    if not file.key_id:
        return "there is none in the file"
    if named is None:
        return "IAM does not know the one in the file"
    if not named.active:
        return "the one in the file is switched off"
    if not file.is_whole:
        return "the file was changed by hand"
    if (file.mode, file.owner, file.group) != ("600", key_file.owner, key_file.group):
        return f"the file was {file.mode} {file.owner}:{file.group}"
    if key_file.rotate_days and now - named.created > timedelta(days=key_file.rotate_days):
        return f"it is older than {key_file.rotate_days} days"
    before = moment(key_file.rotate_before) if key_file.rotate_before else None
    return f"it was made before {key_file.rotate_before}" if before and named.created < before else ""


def key_file_text(key_file: KeyFile, user: str, key_id: str, secret_key: str) -> str:
    """Return a key file: comments, two variables, and the sum by which a change by hand is seen."""
    body = (
        f"# Access key of IAM user {user}. Written by s3.user, which replaces it: do not edit.\n"
        f"{key_file.access_variable}={key_id}\n{key_file.secret_variable}={secret_key}\n"
    )
    return f"{body}{SEAL}{hashlib.sha256(body.encode()).hexdigest()}\n"


@operation()
def user(
    user: str,
    key_file: KeyFile,
    access: Sequence[Access] = (),
    server: Server = AWS,
    adopt: bool = False,
    present: bool = True,
) -> Generator[StringCommand | FunctionCommand, None, None]:
    """
    Manage the IAM user of one host: what it may do, and its access key in a file on the host.

    + user: its name; each host needs a user of its own, e.g. ``f"cricksy-{host.name}"``
    + key_file: where the key stands, who reads it, when it is replaced
    + access: what it may do; it has this one policy, and whatever else it was given by hand is taken away
    + server: where its IAM is, and whose rights are used
    + adopt: take over a user that was not made here, and replace its keys
    + present: ``False`` removes the user with its keys, and the file

    A new key is made and tried, written to the file, the units that read it are restarted, and only then the old one is
    deleted; with ``restarts=False`` or ``keep_seconds`` by a later run. There are never more than two. A run that is killed
    in between is finished by the next one.

    Raises ``OperationValueError`` for arguments that break a rule, and ``OperationError`` when the user is another
    host's, or a permission is missing.

    **Example:**

    .. code:: python

        s3.user(
            "cricksy-api1",
            KeyFile("/etc/cricksy/s3.env", owner="cricksy", group="cricksy", rotate_days=90, units=["cricksy-api.service"]),
            access=[Access("cricksy-uploads")],
            name="Give access to bucket",
        )
    """
    faults = [*server.faults(), *iam_name_faults("user", user), *key_file.faults()]
    if present:
        for one in access:
            faults += one.faults() if isinstance(one, Access) else [f"access holds Access(…), got {one!r}"]
        if not access:
            faults.append("access is empty: name the buckets that the user may use")
    _refuse("user", faults)
    try:
        found = read_user(server, user, HOST_TAG)
    except S3Error as error:
        raise OperationError(f"s3.user: {error}") from None
    if found.exists and found.host != host.name and (found.host or not adopt):
        whose = f"that of host {found.host}" if found.host else "not made here (adopt=True takes it over)"
        raise OperationError(f"s3.user: user {user} exists and is {whose}: each host needs a user of its own")

    if not present:
        changes = _removal(server, user, found)
        if changes:
            yield from _commands(changes)
        # afterwards: as long as the key is good, the file says where it is
        yield from fileset.files._inner(entries=[Absent(key_file.path)])
        return

    changes = []
    if not found.exists:
        tags = [{"Key": HOST_TAG, "Value": host.name}]
        changes.append(_iam(f"make user {user}", server, "create_user", UserName=user, Tags=tags))
    elif not found.host:
        tags = [{"Key": HOST_TAG, "Value": host.name}]
        changes.append(_iam(f"take over user {user}", server, "tag_user", UserName=user, Tags=tags))
    policy = policy_document([statement for one in access for statement in one.statements(server)])
    changes += _policy_changes(server, "user", user, policy, found) + _leave_groups(server, user, found)
    yield from _commands(changes)

    file = host.get_fact(KeyFileFact, key_file=key_file)
    plan = key_plan(found.keys, file, key_file, datetime.now(timezone.utc))
    if plan.drop_first:
        yield from _commands([_key_removal(server, user, plan.drop_first)])
    if plan.new:
        made: list[Secret] = []
        title = f"make a new key for user {user}: {plan.new}"
        yield from _commands([_Change(title, lambda: _make_key(server, user, key_file, made))])
        entry = File(key_file.path, made[0], mode="0600", owner=key_file.owner, group=key_file.group)
        yield from fileset.files._inner(entries=[entry])
    for running in file.running if key_file.restarts else ():
        yield from units_of.unit._inner(unit=running, enabled=None, inputs=[key_file.path])
    if plan.new and plan.stale:
        plan = _without_stale(plan, host.get_fact(KeyFileFact, key_file=key_file), key_file)
    yield from _commands([_key_removal(server, user, key_id) for key_id in plan.stale])
    if plan.waits:
        host.log(f"s3.user: {plan.waits}", logger.info)
    if not changes and not plan.new and not plan.stale and not (file.running and key_file.restarts):
        host.noop(f"user {user} and its key are as wanted")


def _leave_groups(server: Server, user: str, found: UserState) -> list[_Change]:
    return [
        _iam(
            f"take user {user} out of group {group}",
            server,
            "remove_user_from_group",
            UserName=user,
            GroupName=group,
        )
        for group in found.groups
    ]


def _key_removal(server: Server, user: str, key_id: str) -> _Change:
    return _iam(
        f"delete key {key_id} of user {user}", server, "delete_access_key", UserName=user, AccessKeyId=key_id
    )


def _removal(server: Server, user: str, found: UserState) -> list[_Change]:
    if not found.exists:
        return []
    changes = [_key_removal(server, user, key.key_id) for key in found.keys]
    changes += _policy_changes(server, "user", user, None, found) + _leave_groups(server, user, found)
    return [*changes, _iam(f"remove user {user}", server, "delete_user", UserName=user)]


def _make_key(server: Server, user: str, key_file: KeyFile, made: list[Secret]) -> None:
    """Make a key, wait until it is good, and leave the text of its file in ``made``."""
    with explained("iam", f"user {user}"):
        key = client(server, "iam").create_access_key(UserName=user)["AccessKey"]
    key_id, secret_key = key["AccessKeyId"], key["SecretAccessKey"]
    own = replace(
        server,
        access_key=Secret(key_id),
        secret_key=Secret(secret_key),
        session_token=Secret.unset(),
        profile="",
    )
    until = time.monotonic() + _KEY_SECONDS
    while True:
        try:
            with explained("sts", f"key {key_id}"):
                client(own, "sts").get_caller_identity()
            break
        except S3Error:
            if time.monotonic() >= until:
                raise
        time.sleep(_PAUSE_SECONDS)
    made.append(Secret(key_file_text(key_file, user, key_id, secret_key)))
