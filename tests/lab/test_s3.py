"""Buckets, users and their keys on an S3 that checks signatures and permissions; read back with a second client."""

import json
import os
import subprocess
import urllib.error
import urllib.request
from datetime import datetime, timezone
from functools import partial

import pytest
from botocore.exceptions import ClientError

from facts.s3 import presigned_url
from settings.s3 import Presigned, Server
from settings.secret import Secret
from tests.lab.ceph import Ceph
from tests.lab.provision import command_line
from tests.lab.s3server import Keys, S3Server
from tests.lab.state import REPOSITORY, wait_for

HEAD = """
import os
from pyinfra import host
from operations import s3
from settings.s3 import Access, Bucket, Cors, KeyFile, Lifecycle, Server
from settings.secret import Secret
server = Server(
    region="eu-central-1", endpoint_url=os.environ["S3_URL"], path_style=True,
    access_key=Secret(os.environ["S3_ACCESS"]), secret_key=Secret(os.environ["S3_SECRET"]),
)
"""
FULL = """Bucket(
    versioning=True,
    cors=[Cors(["https://app.example.org"])],
    lifecycle=[Lifecycle(abort_multipart_days=3, expire_days=30), Lifecycle("tmp/", expire_days=1)],
    policy=[{"Sid": "Readers", "Effect": "Allow", "Principal": {"AWS": "111111111111"},
             "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::%s/*"]}],
    tls_only=False,
)"""
BARE = """Bucket(public_access_blocked=False, encryption="", lifecycle=(), tls_only=False)"""
PLAIN = """Bucket(tls_only=False)"""


@pytest.fixture(scope="module")
def cloud(lab):
    server = S3Server(lab.slot).start()
    yield server
    server.stop()


@pytest.fixture
def run(cloud, host, provision):
    """Provision with the owner's rights, or with those of somebody else."""

    def provisioned(deploy: str, keys: Keys | None = None, **arguments):
        keys = keys or cloud.owner
        env = {"S3_URL": cloud.url, "S3_ACCESS": keys.access_key, "S3_SECRET": keys.secret_key}
        return provision(host, HEAD + deploy, env=env, **arguments)

    return provisioned


def bucket(name: str, wanted: str = PLAIN, **arguments: object) -> str:
    more = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"s3.bucket({name!r}, server, {wanted}{more}, name='Bucket')\n"


def text(call, member=None):
    """The answer to a call, or the code of its refusal."""
    try:
        answer = call()
    except ClientError as error:
        return error.response["Error"]["Code"]
    return answer[member] if member else "allowed"


def test_set_noop_healed_update_unset(run, cloud):
    full, s3 = bucket("hw-props", FULL % "hw-props"), cloud.client("s3")
    planned = run(full, dry=True)
    assert planned.ok, planned
    assert planned.changed == ["Bucket"]
    assert text(lambda: s3.head_bucket(Bucket="hw-props")) == "404"

    assert run(full).changed == ["Bucket"]
    assert s3.get_bucket_location(Bucket="hw-props")["LocationConstraint"] == "eu-central-1"
    assert_full(s3)
    assert run(full, dry=True).changed == []
    assert run(full).changed == []

    # everything by hand at once
    public = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::hw-props/*"}
    s3.delete_public_access_block(Bucket="hw-props")
    s3.put_bucket_policy(
        Bucket="hw-props", Policy=json.dumps({"Version": "2012-10-17", "Statement": [public]})
    )
    s3.put_bucket_versioning(Bucket="hw-props", VersioningConfiguration={"Status": "Suspended"})
    anywhere = {"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}
    s3.put_bucket_cors(Bucket="hw-props", CORSConfiguration={"CORSRules": [anywhere]})
    s3.delete_bucket_lifecycle(Bucket="hw-props")
    s3.delete_bucket_encryption(Bucket="hw-props")
    assert run(full, dry=True).changed == ["Bucket"]
    assert json.loads(s3.get_bucket_policy(Bucket="hw-props")["Policy"])["Statement"] == [public]
    assert run(full).changed == ["Bucket"]
    assert_full(s3)

    updated = full.replace("app.example.org", "www.example.org").replace("expire_days=30", "expire_days=31")
    assert run(updated).changed == ["Bucket"]
    assert s3.get_bucket_cors(Bucket="hw-props")["CORSRules"][0]["AllowedOrigins"] == [
        "https://www.example.org"
    ]
    assert lifecycle(s3)["hostwright"]["Expiration"]["Days"] == 31

    bare = bucket("hw-props", BARE)
    assert run(bare).changed == ["Bucket"]
    assert (
        text(lambda: s3.get_public_access_block(Bucket="hw-props")) == "NoSuchPublicAccessBlockConfiguration"
    )
    assert s3.get_bucket_versioning(Bucket="hw-props")["Status"] == "Suspended"
    assert text(lambda: s3.get_bucket_cors(Bucket="hw-props")) == "NoSuchCORSConfiguration"
    assert (
        text(lambda: s3.get_bucket_lifecycle_configuration(Bucket="hw-props"))
        == "NoSuchLifecycleConfiguration"
    )
    assert text(lambda: s3.get_bucket_policy(Bucket="hw-props")) == "NoSuchBucketPolicy"
    assert run(bare).changed == []


def lifecycle(s3):
    return {one["ID"]: one for one in s3.get_bucket_lifecycle_configuration(Bucket="hw-props")["Rules"]}


def assert_full(s3):
    block = s3.get_public_access_block(Bucket="hw-props")["PublicAccessBlockConfiguration"]
    assert list(block.values()) == [True] * 4
    (rule,) = s3.get_bucket_encryption(Bucket="hw-props")["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert s3.get_bucket_versioning(Bucket="hw-props")["Status"] == "Enabled"
    (cors,) = s3.get_bucket_cors(Bucket="hw-props")["CORSRules"]
    assert cors["AllowedOrigins"] == ["https://app.example.org"]
    assert set(cors["AllowedMethods"]) == {"GET", "HEAD", "POST", "PUT"}
    assert cors["ExposeHeaders"] == ["ETag"]
    rules = lifecycle(s3)
    assert rules["hostwright"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 3}
    assert rules["hostwright"]["Expiration"]["Days"] == 30
    assert rules["hostwright-tmp/"]["Filter"] == {"Prefix": "tmp/"}
    policy = json.loads(s3.get_bucket_policy(Bucket="hw-props")["Policy"])
    assert [one["Sid"] for one in policy["Statement"]] == ["Readers"]


def test_only_an_empty_bucket_is_removed(run, cloud):
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="hw-gone", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    s3.put_object(Bucket="hw-gone", Key="kept", Body=b"x")
    refused = run(bucket("hw-gone", present=False))
    assert not refused.ok
    assert "is not removed: it holds objects or old versions of them, e.g. 'kept'" in refused.stderr
    assert s3.get_object(Bucket="hw-gone", Key="kept")["Body"].read() == b"x"

    s3.delete_object(Bucket="hw-gone", Key="kept")
    assert run(bucket("hw-gone", present=False)).changed == ["Bucket"]
    assert text(lambda: s3.head_bucket(Bucket="hw-gone")) == "404"


def test_refusals_say_why_and_change_nothing(run, cloud):
    cloud.client("s3", cloud.stranger).create_bucket(
        Bucket="hw-taken", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    taken = run(bucket("hw-taken"))
    assert not taken.ok
    assert "bucket hw-taken: belongs to another account" in taken.stderr

    full = bucket("hw-lacking", FULL % "hw-lacking")
    lacking = run(full, cloud.restricted("no-cors", "s3:PutBucketCORS"))
    assert lacking.failed == ["Bucket"]
    assert "the credentials lack the permission s3:PutBucketCORS" in lacking.stderr
    assert "Traceback" not in lacking.stderr
    # what the next run, with the permission, finishes
    assert run(full).changed == ["Bucket"]

    bad = run(bucket("HW", "Bucket(encryption='rot13', presigned_max_seconds=-1)"))
    assert not bad.ok
    for part in (
        "bucket must be 3 to 63",
        "'rot13'",
        "presigned_max_seconds must be",
        "tls_only would close",
    ):
        assert part in bad.stderr


# --- users ----------------------------------------------------------------------------------------------------------

FILE = "/etc/hw/s3.env"
READER = """[Service]
EnvironmentFile=/etc/hw/s3.env
ExecStart=/bin/sleep infinity
"""


def user(key_file: str = "", access: str = "Access('hw-own', prefix='in/')", more: str = "") -> str:
    return f"s3.user('hw-user', KeyFile({FILE!r}, units=['hw-reader.service']{key_file}), [{access}], server{more}, name='User')\n"


def keys_in(host) -> Keys:
    values = dict(line.split("=", 1) for line in host.read(FILE).splitlines() if "=" in line)
    return Keys(values["AWS_ACCESS_KEY_ID"], values["AWS_SECRET_ACCESS_KEY"])


def key_ids(cloud) -> list[str]:
    return [
        one["AccessKeyId"]
        for one in cloud.client("iam").list_access_keys(UserName="hw-user")["AccessKeyMetadata"]
    ]


@pytest.fixture(scope="module")
def buckets(cloud):
    for name in ("hw-own", "hw-other"):
        cloud.client("s3").create_bucket(
            Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )


@pytest.fixture
def reader(host):
    """A unit that reads the key file."""
    host.write("/etc/systemd/system/hw-reader.service", READER)
    host.run("systemctl daemon-reload")
    return host


def test_a_user_may_do_what_it_needs_and_its_key_is_told_to_nobody(run, cloud, buckets, host):
    assert run(user(), dry=True).changed == ["User"]
    made = run(user(), extra=["-vvv", "--debug-all", "--diff"])
    assert made.changed == ["User"]
    keys = keys_in(host)
    assert host.run(f"stat -c '%a %U' {FILE}").stdout == "600 root\n"
    assert key_ids(cloud) == [keys.access_key]
    for secret in (keys.secret_key, cloud.owner.secret_key):
        assert secret not in made.stdout + made.stderr
        assert host.run(f"grep -rlF -e {secret} /tmp /var /etc /run 2>/dev/null", check=False).stdout in (
            "",
            f"{FILE}\n",
        )

    own = cloud.client("s3", keys)
    assert text(lambda: own.put_object(Bucket="hw-own", Key="in/a", Body=b"x")) == "allowed"
    assert text(lambda: own.get_object(Bucket="hw-own", Key="in/a")) == "allowed"
    assert text(lambda: own.put_object(Bucket="hw-own", Key="out/a", Body=b"x")) == "AccessDenied"
    assert text(lambda: own.put_object(Bucket="hw-other", Key="in/a", Body=b"x")) == "AccessDenied"
    assert text(lambda: own.get_bucket_policy(Bucket="hw-own")) == "AccessDenied"
    assert text(lambda: cloud.client("iam", keys).list_users()) == "AccessDenied"

    again = run(user())
    assert again.changed == []
    assert keys_in(host) == keys

    # everything by hand at once
    iam = cloud.client("iam")
    everything = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}'
    arn = iam.create_policy(PolicyName="hw-all", PolicyDocument=everything)["Policy"]["Arn"]
    iam.attach_user_policy(UserName="hw-user", PolicyArn=arn)
    iam.put_user_policy(UserName="hw-user", PolicyName="more", PolicyDocument=everything)
    iam.create_group(GroupName="hw-group")
    iam.add_user_to_group(GroupName="hw-group", UserName="hw-user")
    iam.create_access_key(UserName="hw-user")
    assert run(user()).changed == ["User"]
    assert iam.list_attached_user_policies(UserName="hw-user")["AttachedPolicies"] == []
    assert iam.list_user_policies(UserName="hw-user")["PolicyNames"] == ["hostwright"]
    assert iam.list_groups_for_user(UserName="hw-user")["Groups"] == []
    assert key_ids(cloud) == [keys.access_key]
    assert keys_in(host) == keys

    assert run(user(access="Access('hw-own', write=False, delete=False)")).changed == ["User"]
    assert text(lambda: own.get_object(Bucket="hw-own", Key="in/a")) == "allowed"
    assert text(lambda: own.put_object(Bucket="hw-own", Key="in/a", Body=b"x")) == "AccessDenied"
    assert keys_in(host) == keys


def test_a_key_is_replaced_before_the_old_one_goes(run, cloud, buckets, reader):
    assert run(user()).ok
    reader.run("systemctl start hw-reader.service")
    old = keys_in(reader)
    rotate = user(f", rotate_before={datetime.now(timezone.utc).isoformat()!r}")
    assert run(rotate, dry=True).changed == ["User"]
    assert keys_in(reader) == old
    assert run(rotate).changed == ["User"]
    new = keys_in(reader)
    assert new.access_key != old.access_key
    assert key_ids(cloud) == [new.access_key]
    pid = reader.run("systemctl show -p MainPID --value hw-reader.service").stdout.strip()
    assert f"AWS_ACCESS_KEY_ID={new.access_key}" in reader.run(f"tr '\\0' '\\n' </proc/{pid}/environ").stdout
    assert (
        text(lambda: cloud.client("s3", old).list_objects_v2(Bucket="hw-own", Prefix="in/"))
        == "InvalidAccessKeyId"
    )
    assert text(lambda: cloud.client("s3", new).list_objects_v2(Bucket="hw-own", Prefix="in/")) == "allowed"
    assert run(rotate).changed == []
    assert reader.run("systemctl show -p MainPID --value hw-reader.service").stdout.strip() == pid


@pytest.mark.parametrize(
    "damage",
    [
        f"rm {FILE}",
        pytest.param(f"chmod 644 {FILE}", marks=pytest.mark.soak),
        pytest.param(f"sed -i 's/SECRET_ACCESS_KEY=./&x/' {FILE}", marks=pytest.mark.soak),
    ],
)
def test_a_key_file_changed_by_hand_gets_a_new_key(run, cloud, buckets, host, damage):
    assert run(user()).ok
    old = keys_in(host)
    cloud.client("iam").create_access_key(UserName="hw-user")  # no room for a third one
    host.run(damage)
    assert run(user()).changed == ["User"]
    assert host.run(f"stat -c %a {FILE}").stdout == "600\n"
    new = keys_in(host)
    assert new.access_key != old.access_key
    assert key_ids(cloud) == [new.access_key]
    assert text(lambda: cloud.client("s3", new).list_objects_v2(Bucket="hw-own", Prefix="in/")) == "allowed"


def _made_or_ended(cloud, process):
    return len(key_ids(cloud)) == 2 or process.poll() is not None


def test_a_killed_rotation_is_finished_by_the_next_run(run, cloud, buckets, host, tmp_path):
    assert run(user()).ok
    env = {"S3_URL": cloud.url, "S3_ACCESS": cloud.owner.access_key, "S3_SECRET": cloud.owner.secret_key}
    for _ in range(5):  # on a busy machine the kill may come too late
        old = keys_in(host)
        rotate = user(f", rotate_before={datetime.now(timezone.utc).isoformat()!r}")
        command = command_line(tmp_path, host, HEAD + rotate)
        with open(tmp_path / "log", "ab") as log:
            killed = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            wait_for("a second key", partial(_made_or_ended, cloud, killed), 120, pause=0.001)
            killed.kill()
            killed.wait()
        if len(key_ids(cloud)) == 2:
            break
    assert len(key_ids(cloud)) == 2, (tmp_path / "log").read_text()
    good = keys_in(host)  # the old one or the new one: a whole file with a key that works
    assert text(lambda: cloud.client("s3", good).list_objects_v2(Bucket="hw-own", Prefix="in/")) == "allowed"

    assert run(rotate).changed == ["User"]
    assert key_ids(cloud) == [keys_in(host).access_key]
    assert keys_in(host).access_key != old.access_key


@pytest.mark.soak
def test_a_user_of_another_host_is_refused_and_ones_own_removed(run, cloud, buckets, host):
    assert run(user()).ok
    keys = keys_in(host)
    iam = cloud.client("iam")
    iam.tag_user(UserName="hw-user", Tags=[{"Key": "hostwright:host", "Value": "elsewhere"}])
    for deploy in (user(), user(more=", present=False")):
        refused = run(deploy)
        assert not refused.ok
        assert "user hw-user exists and is that of host elsewhere" in refused.stderr
    iam.untag_user(UserName="hw-user", TagKeys=["hostwright:host"])
    assert "adopt=True takes it over" in run(user()).stderr
    assert run(user(more=", adopt=True")).changed == ["User"]
    assert keys_in(host) == keys

    assert run(user(more=", present=False")).changed == ["User"]
    assert not host.exists(FILE)
    assert text(lambda: iam.get_user(UserName="hw-user")) == "NoSuchEntity"
    assert run(user(more=", present=False")).changed == []


# --- replication ----------------------------------------------------------------------------------------------------

COPY = """
elsewhere = Server("eu-west-1", server.endpoint_url, path_style=True, access_key=server.access_key, secret_key=server.secret_key)
s3.bucket("hw-source", server, Bucket(versioning=True, tls_only=False), name="Source")
s3.bucket("hw-copy", elsewhere, Bucket(versioning=%s, tls_only=False), name="Copy")
s3.replication("hw-source", "hw-copy", "hw-role", server, elsewhere%s, name="Replication")
"""


def test_replication_set_noop_healed_and_unset(run, cloud):
    refused = run(COPY % (False, ""))
    assert not refused.ok
    assert "bucket hw-copy is not versioned" in refused.stderr

    assert run(COPY % (True, "")).changed == ["Copy", "Replication"]
    s3, iam = cloud.client("s3"), cloud.client("iam")
    assert s3.get_bucket_location(Bucket="hw-copy")["LocationConstraint"] == "eu-west-1"
    configuration = s3.get_bucket_replication(Bucket="hw-source")["ReplicationConfiguration"]
    role = iam.get_role(RoleName="hw-role")["Role"]
    assert configuration["Role"] == role["Arn"]
    assert configuration["Rules"][0]["Destination"] == {"Bucket": "arn:aws:s3:::hw-copy"}
    (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "s3.amazonaws.com"}
    assert run(COPY % (True, "")).changed == []

    s3.delete_bucket_replication(Bucket="hw-source")
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    anybody = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [anybody]})
    iam.update_assume_role_policy(RoleName="hw-role", PolicyDocument=document)
    iam.put_role_policy(RoleName="hw-role", PolicyName="hostwright", PolicyDocument=json.dumps(everything))
    assert run(COPY % (True, "")).changed == ["Replication"]
    assert s3.get_bucket_replication(Bucket="hw-source")["ReplicationConfiguration"] == configuration
    assert iam.get_role(RoleName="hw-role")["Role"]["AssumeRolePolicyDocument"]["Statement"] == [trust]
    policy = iam.get_role_policy(RoleName="hw-role", PolicyName="hostwright")["PolicyDocument"]
    assert policy["Statement"][-1]["Resource"] == "arn:aws:s3:::hw-copy/*"

    assert run(COPY % (True, ", present=False")).changed == ["Replication"]
    assert (
        text(lambda: s3.get_bucket_replication(Bucket="hw-source")) == "ReplicationConfigurationNotFoundError"
    )
    assert text(lambda: iam.get_role(RoleName="hw-role")) == "NoSuchEntity"


# --- a server that is not AWS -----------------------------------------------------------------------------------------

CEPH = """
import os
from operations import s3
from settings.s3 import Bucket, Cors, Lifecycle, Server
from settings.secret import Secret
server = Server(
    region="default", endpoint_url=os.environ["S3_URL"], path_style=True,
    access_key=Secret(os.environ["S3_ACCESS"]), secret_key=Secret(os.environ["S3_SECRET"]),
)
readers = {"Sid": "R", "Effect": "Allow", "Principal": {"AWS": "arn:aws:iam:::user/reader"},
           "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::hw-ceph/*"]}
wanted = Bucket(
    public_access_blocked=None, encryption=None, versioning=True, cors=[Cors(["https://app.example.org"])],
    lifecycle=[Lifecycle("", 3, 30, 9), Lifecycle("tmp/", expire_days=1)], policy=[readers], tls_only=False,
)
bare = Bucket(public_access_blocked=None, encryption=None, lifecycle=(), tls_only=False)
"""


def http(method: str, url: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str]]:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    request = urllib.request.Request(url, body, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, {key.lower(): value for key, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {key.lower(): value for key, value in error.headers.items()}


@pytest.mark.soak
def test_a_server_that_is_not_aws(lab, host, provision):
    node = lab.host("t-ceph")
    ceph = Ceph(node).start()
    owner, reader, stranger = ceph.user("owner"), ceph.user("reader"), ceph.user("stranger")

    def run(text: str, keys: Keys = owner, **arguments):
        env = {"S3_URL": ceph.url, "S3_ACCESS": keys.access_key, "S3_SECRET": keys.secret_key}
        return provision(host, CEPH + text, env=env, **arguments)

    def server(keys: Keys) -> Server:
        return Server(
            "default",
            ceph.url,
            path_style=True,
            access_key=Secret(keys.access_key),
            secret_key=Secret(keys.secret_key),
        )

    full = "s3.bucket('hw-ceph', server, wanted, name='Bucket')\n"
    assert run(full, dry=True).changed == ["Bucket"]
    assert run(full).changed == ["Bucket"]
    assert run(full).changed == []
    assert run(full, dry=True).changed == []

    put = presigned_url(server(owner), Presigned(60), "hw-ceph", "scan.png", "put_object")
    assert http("PUT", put, b"image")[0] == 200
    assert http("GET", presigned_url(server(owner), Presigned(60), "hw-ceph", "scan.png"))[0] == 200
    assert http("GET", presigned_url(server(reader), Presigned(60), "hw-ceph", "scan.png"))[0] == 200
    assert http("GET", presigned_url(server(stranger), Presigned(60), "hw-ceph", "scan.png"))[0] == 403
    assert (
        http("PUT", presigned_url(server(reader), Presigned(60), "hw-ceph", "scan.png", "put_object"), b"x")[
            0
        ]
        == 403
    )
    assert http("GET", f"{ceph.url}/hw-ceph/scan.png")[0] == 403
    assert http("GET", f"{ceph.url}/hw-ceph")[0] == 403

    asked = {"Access_Control_Request_Method": "PUT", "Access_Control_Request_Headers": "content-type"}
    status, headers = http("OPTIONS", put, Origin="https://app.example.org", **asked)
    assert (status, headers.get("access-control-allow-origin")) == (200, "https://app.example.org")
    assert http("OPTIONS", put, Origin="https://evil.example.org", **asked)[0] == 403
    status, headers = http("PUT", put, b"image", Origin="https://app.example.org")
    assert headers.get("access-control-expose-headers") == "ETag"

    theirs = run(full, stranger)
    assert not theirs.ok
    assert "bucket hw-ceph: belongs to another account" in theirs.stderr
    refused = run("s3.bucket('hw-ceph', server, present=False, name='Bucket')\n")
    assert "is not removed: it holds objects" in refused.stderr

    assert run("s3.bucket('hw-ceph', server, bare, name='Bucket')\n").changed == ["Bucket"]
    assert run("s3.bucket('hw-ceph', server, bare, name='Bucket')\n").changed == []
    assert http("OPTIONS", put, Origin="https://app.example.org", **asked)[0] == 403
    lab.destroy(node)
