"""Rules, documents and decisions of `operations.s3`, and its calls against moto in this process."""

import json
import urllib.parse
from datetime import datetime, timedelta, timezone
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from moto import mock_aws

from facts import s3 as facts
from facts.s3 import BucketState, Key, KeyFileFact, KeyFileState, S3Error
from operations import s3
from operations.s3 import KeyPlan, differing, key_file_text, key_plan
from settings.s3 import (
    AWS,
    PRIVATE,
    Access,
    Bucket,
    Cors,
    KeyFile,
    Lifecycle,
    Presigned,
    Server,
    bucket_name_faults,
    moment,
    normal,
    replication_document,
    replication_policy,
)
from settings.secret import Secret

FRANKFURT = Server(region="eu-central-1")
NAME = "cricksy-uploads"
ARN = f"arn:aws:s3:::{NAME}"
READERS = {
    "Sid": "R",
    "Effect": "Allow",
    "Principal": {"AWS": "123456789012"},
    "Action": "s3:GetObject",
    "Resource": f"{ARN}/*",
}


@pytest.fixture
def aws(monkeypatch):
    """An empty AWS of one account; clients are made anew."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "testing")
    facts.client.cache_clear()
    with mock_aws():
        yield
    facts.client.cache_clear()


# --- rules ----------------------------------------------------------------------------------------------------------


def test_the_defaults_keep_every_rule() -> None:
    assert AWS.faults() == []
    assert PRIVATE.faults(NAME, AWS) == []
    assert Cors(["https://app.example.org"]).faults() == []
    assert Access(NAME).faults() == []
    assert KeyFile("/etc/cricksy/s3.env").faults() == []
    assert Presigned().faults(PRIVATE) == []


def test_faults_of_a_server_are_all_listed_and_show_no_secret() -> None:
    server = Server(
        region="EU central", endpoint_url="s3.example.org", iam_endpoint_url="ftp://x", timeout_seconds=0,
        access_key=Secret("a"), secret_key="geheim", session_token=Secret.unset(), profile="x",  # type: ignore[arg-type]
    )  # fmt: skip
    faults = server.faults()
    assert len(faults) == 6
    for part in (
        "region must be",
        "endpoint_url must be",
        "iam_endpoint_url must be",
        "secret_key must be a Secret",
        "profile 'x'",
        "timeout_seconds",
    ):
        assert any(part in fault for fault in faults), part
    assert "geheim" not in " ".join(faults)
    assert Server(access_key=Secret("a")).faults() == [
        "access_key and secret_key go together: give both or neither"
    ]
    assert Server(session_token=Secret("a")).faults() == ["session_token goes with access_key and secret_key"]


@pytest.mark.parametrize(
    "name", ["", "ab", "A-bucket", "a_b", "-ab", "ab-", "a..b", "192.168.0.1", "xn--abc", "x" * 64, "ab\n", 7]
)
def test_names_that_no_bucket_can_have(name: Any) -> None:
    (fault,) = bucket_name_faults(name)
    assert "bucket must be 3 to 63 lower case letters" in fault


def test_a_dot_in_a_name_needs_path_style() -> None:
    assert bucket_name_faults("a.b", path_style=True) == []
    assert "no certificate covers" in bucket_name_faults("a.b", path_style=False)[0]


def test_faults_of_a_bucket_are_all_listed() -> None:
    wanted = Bucket(
        public_access_blocked="yes",  # type: ignore[arg-type]
        encryption="rot13",
        kms_key="k",
        versioning="on",  # type: ignore[arg-type]
        cors=[
            Cors("https://app.example.org"),
            Cors(["*"], methods=["PATCH", "PUT"], expose=[], max_age_seconds=-1),
            "x",
        ],  # type: ignore[arg-type,list-item]
        lifecycle=[Lifecycle(abort_multipart_days=0), Lifecycle(expire_days=-1), Lifecycle()],
        policy=[{"Effect": "Permit", "Action": "s3:*", "Resource": "arn:aws:s3:::other/*", "Who": "*"}],
        presigned_max_seconds=604801,
    )
    faults = wanted.faults(NAME, Server(endpoint_url="http://127.0.0.1:9000"))
    expected = (
        "public_access_blocked must be True or False", "versioning must be True or False, got 'on'",
        "encryption must be", "kms_key goes with", "cors: origins must be a list", "got '*'", "got 'PATCH'", "expose needs 'ETag'",
        "max_age_seconds", "cors holds Cors(…), got 'x'", "removes nothing", "expire_days must be 0", "lifecycle '': stands twice",
        "unknown key 'Who'", "Effect must be", "needs either Principal or NotPrincipal", "must be arn:aws:s3:::cricksy-uploads or start",
        "tls_only would close http://127.0.0.1:9000", "presigned_max_seconds must be",
    )  # fmt: skip
    assert [part for part in expected if not any(part in fault for fault in faults)] == []
    assert len(faults) == len(expected)


@pytest.mark.parametrize("principal", ["*", {"AWS": "*"}, {"AWS": ["*"]}])
def test_a_policy_that_makes_a_bucket_public_is_refused(principal: Any) -> None:
    public = {
        "Sid": "P",
        "Effect": "Allow",
        "Principal": principal,
        "Action": "s3:GetObject",
        "Resource": f"{ARN}/*",
    }
    (fault,) = Bucket(policy=[public]).faults(NAME, AWS)
    assert "statement P: makes the bucket public; presigned URLs need no such statement" in fault
    assert Bucket(policy=[public], public_access_blocked=False).faults(NAME, AWS) == []
    assert Bucket(policy=[{**public, "Effect": "Deny"}]).faults(NAME, AWS) == []


def test_what_is_kept_by_the_policy_needs_the_policy() -> None:
    (fault,) = Bucket(policy=None, presigned_max_seconds=60).faults(NAME, AWS)
    assert "policy=None leaves that alone" in fault


def test_presigned_urls_may_not_outlive_what_the_bucket_allows() -> None:
    assert "ends earlier than it says" in Presigned(600).faults(Bucket(presigned_max_seconds=300))[0]
    assert len(Presigned(0, "s3").faults(PRIVATE)) == 2


def test_faults_of_users_and_key_files() -> None:
    file = KeyFile(
        "etc/../x",
        access_variable="A B",
        secret_variable="A B",
        rotate_days=-1,
        rotate_before="soon",
        units=["app"],
    )
    assert len(file.faults()) == 7
    assert "units must be a list" in KeyFile("/x", units="app.service").faults()[0]
    assert len(Access("X", prefix="*", read=False, write=False, delete=False, list_keys=False).faults()) == 3


def test_operations_refuse_everything_at_once_before_any_call() -> None:
    with pytest.raises(
        Exception, match=r"s3\.bucket: region must be .*; bucket must be .*; encryption must be"
    ):
        list(s3.bucket._inner(bucket="X", server=Server(region="?"), wanted=Bucket(encryption="x")))
    with pytest.raises(
        Exception, match=r"s3\.user: user must be .*; key_file: path must be .*; access is empty"
    ):
        list(s3.user._inner(user="a b", key_file=KeyFile("x")))
    with pytest.raises(Exception, match=r"access holds Access\(…\), got 'cricksy-uploads'"):
        list(s3.user._inner(user="u", key_file=FILE, access=[NAME]))
    with pytest.raises(
        Exception, match=r"s3\.replication: role must be .*; to must be another bucket, got 'abc'"
    ):
        list(s3.replication._inner(bucket="abc", to="abc", role="a b"))


# --- documents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"Action": ["s3:Get"]}, {"Action": "s3:Get"}),
        ({"Action": ["a", "b"]}, {"Action": ["b", "a"]}),
        ({"Filter": {"Prefix": ""}, "Status": "on"}, {"Status": "on"}),
        ({"AWS": "arn:aws:iam::123456789012:root"}, {"AWS": "123456789012"}),
        ({"BucketKeyEnabled": False}, {}),
        ([{"ID": "b"}, {"ID": "a"}], [{"ID": "a"}, {"ID": "b"}]),
    ],
)
def test_documents_that_mean_the_same_are_equal(one: Any, other: Any) -> None:
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [({"a": True}, {}), ({"a": "x"}, {"a": "y"}), (["a"], ["a", "b"]), ({"a": {"b": 1}}, {"a": {"b": 2}})],
)
def test_documents_that_do_not_are_not(one: Any, other: Any) -> None:
    assert normal(one) != normal(other)


def test_the_order_of_cors_rules_counts_that_of_their_values_does_not() -> None:
    rules = [{"AllowedMethods": ["GET", "PUT"]}, {"AllowedMethods": ["HEAD"]}]
    assert normal(rules, ordered=True) == normal([{"AllowedMethods": ["PUT", "GET"]}, rules[1]], ordered=True)
    assert normal(rules, ordered=True) != normal(rules[::-1], ordered=True)


def test_own_statements_are_added_to_the_policy() -> None:
    policy = Bucket(policy=[READERS], presigned_max_seconds=60).documents(NAME, AWS)["policy"]
    assert [one["Sid"] for one in policy["Statement"]] == ["R", "HostwrightTlsOnly", "HostwrightPresignedAge"]
    assert policy["Statement"][1]["Resource"] == [ARN, f"{ARN}/*"]
    assert policy["Statement"][2]["Condition"]["NumericGreaterThan"] == {"s3:signatureAge": "60000"}
    assert Bucket(tls_only=False).documents(NAME, AWS)["policy"] == {}
    china = Bucket().documents(NAME, Server(region="cn-north-1"))["policy"]
    assert china["Statement"][0]["Resource"][0].startswith("arn:aws-cn:s3:::")


def test_what_is_none_is_left_alone() -> None:
    alone = Bucket(
        public_access_blocked=None, encryption=None, versioning=None, cors=None, lifecycle=None, policy=None
    )
    assert alone.documents(NAME, AWS) == {}


def test_access_is_the_least_that_is_asked_for() -> None:
    objects, listing = Access(NAME).statements(AWS)
    assert objects["Action"] == [
        "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts", "s3:DeleteObject",
    ]  # fmt: skip
    assert objects["Resource"] == f"{ARN}/*"
    assert listing == {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": ARN}
    objects, listing = Access(NAME, prefix="in/", write=False, delete=False).statements(AWS)
    assert (objects["Action"], objects["Resource"]) == (["s3:GetObject"], f"{ARN}/in/*")
    assert listing["Condition"] == {"StringLike": {"s3:prefix": "in/*"}}
    *_, key = Access(NAME, list_keys=False, kms_key="arn:k").statements(AWS)
    assert key["Action"] == ["kms:Decrypt", "kms:GenerateDataKey"]


def test_a_replication_may_read_one_bucket_and_write_the_other() -> None:
    bucket, read, write = replication_policy("one", "two", AWS)["Statement"]
    assert (bucket["Resource"], read["Resource"], write["Resource"]) == (
        "arn:aws:s3:::one",
        "arn:aws:s3:::one/*",
        "arn:aws:s3:::two/*",
    )
    (rule,) = replication_document("arn:r", "two", "scans/", True, AWS)["Rules"]
    assert (rule["Filter"], rule["DeleteMarkerReplication"]) == ({"Prefix": "scans/"}, {"Status": "Enabled"})


def test_moment_is_utc_unless_it_says_otherwise() -> None:
    assert (
        moment("2026-11-22T10:00:00Z") == moment("2026-11-22T10:00:00") == moment("2026-11-22T11:00:00+01:00")
    )
    assert moment("2026-11-22") == datetime(2026, 11, 22, tzinfo=timezone.utc)
    assert moment("yesterday") is None


# --- keys -----------------------------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 22, tzinfo=timezone.utc)
FILE = KeyFile("/etc/x.env")
GOOD = KeyFileState("OLD", True, "600", "root", "root")


def key(key_id: str, age_days: int, active: bool = True, used_days: int | None = None) -> Key:
    used = None if used_days is None else NOW - timedelta(days=used_days)
    return Key(key_id, active, NOW - timedelta(days=age_days), used)


@pytest.mark.parametrize(
    ("keys", "file", "wanted", "plan"),
    [
        pytest.param([], KeyFileState(), FILE, KeyPlan(new="there is none in the file"), id="first"),
        pytest.param([key("OLD", 5)], GOOD, FILE, KeyPlan(), id="good"),
        pytest.param([key("OLD", 5), key("NEW", 0)], GOOD, FILE, KeyPlan(stale=("NEW",)), id="killed before the file"),
        pytest.param([key("OLDER", 9), key("OLD", 5)], GOOD, FILE, KeyPlan(stale=("OLDER",)), id="killed after the file"),
        pytest.param([key("A", 1)], KeyFileState(), FILE, KeyPlan("", "there is none in the file", ("A",)), id="first, killed"),
        pytest.param(
            [key("A", 9, used_days=1), key("B", 5)], KeyFileState(), FILE,
            KeyPlan("B", "there is none in the file", ("A",)), id="the one that was never used goes first",
        ),
        pytest.param(
            [key("A", 9), key("B", 5)], KeyFileState(), FILE, KeyPlan("B", "there is none in the file", ("A",)), id="else the newest",
        ),
        pytest.param(
            [key("A", 9, active=False, used_days=1), key("B", 5, used_days=9)], KeyFileState(), FILE,
            KeyPlan("A", "there is none in the file", ("B",)), id="one that is off before all others",
        ),
        pytest.param(
            [key("OLD", 9), key("B", 5, used_days=1)], KeyFileState("OLD", False, "600", "root", "root"), FILE,
            KeyPlan("B", "the file was changed by hand", ("OLD",)), id="never the one in the file",
        ),
        pytest.param([key("B", 5)], GOOD, FILE, KeyPlan("", "IAM does not know the one in the file", ("B",)), id="unknown"),
        pytest.param([key("OLD", 5, False)], GOOD, FILE, KeyPlan("", "the one in the file is switched off", ("OLD",)), id="off"),
        pytest.param(
            [key("OLD", 5)], KeyFileState("OLD", True, "644", "root", "root"), FILE, KeyPlan("", "the file was 644 root:root", ("OLD",)), id="open",
        ),
        pytest.param([key("OLD", 90)], GOOD, KeyFile("/x", rotate_days=90), KeyPlan(), id="not yet"),
        pytest.param([key("OLD", 91)], GOOD, KeyFile("/x", rotate_days=90), KeyPlan("", "it is older than 90 days", ("OLD",)), id="old"),
        pytest.param(
            [key("OLD", 2)], GOOD, KeyFile("/x", rotate_before="2026-11-21"), KeyPlan("", "it was made before 2026-11-21", ("OLD",)), id="leaked",
        ),
        pytest.param([key("OLD", 0)], GOOD, KeyFile("/x", rotate_before="2026-11-21"), KeyPlan(), id="replaced since"),
    ],
)  # fmt: skip
def test_key_plan(keys: list[Key], file: KeyFileState, wanted: KeyFile, plan: KeyPlan) -> None:
    assert key_plan(keys, file, wanted, NOW) == plan


LATER = KeyFile("/etc/x.env", units=["app-*.service"], restarts=False, keep_seconds=60)
BEHIND = KeyFileState("NEW", True, "600", "root", "root", behind=("app-blue.service",), quiet_seconds=900)
TAKEN_UP = KeyFileState("NEW", True, "600", "root", "root", quiet_seconds=60)


@pytest.mark.parametrize(
    ("file", "wanted", "plan"),
    [
        pytest.param(BEHIND, LATER, KeyPlan(waits="app-blue.service runs with the key before: it is to be started anew first"), id="in use"),
        pytest.param(
            BEHIND, KeyFile("/etc/x.env", units=["app-*.service"], restarts=False, rotate_before="2099-01-01"),
            KeyPlan(waits="app-blue.service runs with the key before: it is to be started anew first"), id="in use, and another one wanted",
        ),
        pytest.param(
            KeyFileState("NEW", True, "600", "root", "root", quiet_seconds=59), LATER,
            KeyPlan(waits="key OLD stays: what it signed is good for 1 s"), id="signed URLs",
        ),
        pytest.param(TAKEN_UP, LATER, KeyPlan(stale=("OLD",)), id="over"),
        pytest.param(BEHIND, KeyFile("/etc/x.env", units=["a.service"]), KeyPlan(stale=("OLD",)), id="restarted by the operation itself"),
    ],
)  # fmt: skip
def test_a_key_stays_as_long_as_somebody_uses_it(file: KeyFileState, wanted: KeyFile, plan: KeyPlan) -> None:
    assert key_plan([key("OLD", 9, used_days=1), key("NEW", 0)], file, wanted, NOW) == plan


def test_units_say_what_they_read() -> None:
    assert LATER.faults() == []
    assert "sha256sum </etc/x.env >/run/hostwright/%N.key" in LATER.stamp
    assert "needs its suffix" in KeyFile("/x", units=["app-*.service"]).faults()[0]
    assert "keep_seconds must be" in KeyFile("/x", keep_seconds=-1).faults()[0]


def test_a_key_file_says_when_it_was_changed() -> None:
    text = key_file_text(FILE, "u", "AKIA", "s/e+c")
    *body, seal = text.splitlines()
    assert body[1:] == ["AWS_ACCESS_KEY_ID=AKIA", "AWS_SECRET_ACCESS_KEY=s/e+c"]
    total = seal.removeprefix(facts.SEAL)
    lines = [
        "attributes\t600 root root",
        f"sum\t{total}",
        f"seal\t{total}",
        "key\tAKIA",
        "secrets\t1",
        "quiet\t900",
        "unit\ta.service\tactive\tyes",
        "quiet\t70",
        "unit\tb.service\tdeactivating\tno",
        "quiet\t30",
        "unit\tc.service\tinactive\tno",
        "quiet\t40",
    ]
    read = KeyFileFact().process(lines)
    assert read == KeyFileState("AKIA", True, "600", "root", "root", ("a.service",), ("b.service",), 30)
    assert not KeyFileFact().process([*lines[:1], "sum\tother", *lines[2:]]).is_whole
    assert not KeyFileFact().process([*lines[:4], "secrets\t0"]).is_whole
    assert KeyFileFact().process([]) == KeyFileState()


# --- calls ----------------------------------------------------------------------------------------------------------


def put(wanted: Bucket) -> list[str]:
    """Do what the operation would do, and return what it set."""
    documents = wanted.documents(NAME, FRANKFURT)
    due = differing(documents, facts.read_bucket(FRANKFURT, NAME, list(documents)).properties)
    for name in due:
        facts.write_property(FRANKFURT, NAME, name, documents[name])
    return due


PARTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("public_access_blocked", {"public_access_blocked": True}, {"public_access_blocked": False}),
    (
        "encryption",
        {"encryption": "aws:kms", "kms_key": "arn:aws:kms:eu-central-1:123456789012:key/k"},
        {"encryption": ""},
    ),
    ("versioning", {"versioning": True}, {"versioning": False}),
    (
        "cors",
        {"cors": [Cors(["https://a.example.org"]), Cors(["https://b.example.org"], methods=["GET"])]},
        {"cors": ()},
    ),
    ("lifecycle", {"lifecycle": [Lifecycle("tmp/", 1, 2, 3), Lifecycle("", 7)]}, {"lifecycle": ()}),
    (
        "policy",
        {"policy": [READERS], "tls_only": True, "presigned_max_seconds": 60},
        {"policy": (), "tls_only": False},
    ),
]


@pytest.mark.parametrize(("name", "first", "none"), PARTS, ids=[part[0] for part in PARTS])
def test_each_property_is_set_once_and_unset_once(
    aws, name: str, first: dict[str, Any], none: dict[str, Any]
) -> None:
    alone: dict[str, Any] = dict.fromkeys([part[0] for part in PARTS])
    s3._create(FRANKFURT, NAME)
    s3._create(FRANKFURT, NAME)  # a run that was killed in between has made it
    assert put(Bucket(**{**alone, **none})) == []
    assert put(Bucket(**{**alone, **first})) == [name]
    assert put(Bucket(**{**alone, **first})) == []
    assert put(Bucket(**{**alone, **none})) == [name]
    assert put(Bucket(**{**alone, **none})) == []


def test_where_a_bucket_is(aws) -> None:
    assert facts.read_bucket(FRANKFURT, NAME, ["cors"]) == BucketState()
    s3._create(FRANKFURT, NAME)
    assert facts.read_bucket(FRANKFURT, NAME, []).region == "eu-central-1"
    s3._create(AWS, "cricksy-american")
    assert facts.read_bucket(AWS, "cricksy-american", []).region == "us-east-1"


def test_what_encrypts_by_itself_is_not_set_again() -> None:
    by_itself = {
        "Rules": [
            {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}, "BucketKeyEnabled": False}
        ]
    }
    assert differing({"encryption": {}}, {"encryption": by_itself}) == []
    assert differing({"encryption": by_itself}, {"encryption": {}}) == ["encryption"]


def test_holds_names_what_is_left(aws) -> None:
    s3._create(FRANKFURT, NAME)
    facts.write_property(FRANKFURT, NAME, "versioning", {"Status": "Enabled"})
    raw = boto3.client("s3", region_name="eu-central-1")
    assert facts.holds(FRANKFURT, NAME) == ""
    upload = raw.create_multipart_upload(Bucket=NAME, Key="half")["UploadId"]
    assert facts.holds(FRANKFURT, NAME) == "an unfinished upload of 'half'"
    raw.abort_multipart_upload(Bucket=NAME, Key="half", UploadId=upload)
    raw.put_object(Bucket=NAME, Key="gone", Body=b"x")
    raw.delete_object(Bucket=NAME, Key="gone")  # its version is still there
    assert facts.holds(FRANKFURT, NAME) == "objects or old versions of them, e.g. 'gone'"
    with pytest.raises(S3Error, match="BucketNotEmpty"):
        s3._delete_bucket(FRANKFURT, NAME)


def test_presigned_urls_are_signed_for_the_host_that_browsers_use(monkeypatch) -> None:
    facts.client.cache_clear()
    server = Server(
        "eu-central-1",
        "http://10.0.0.5:9000",
        path_style=True,
        access_key=Secret("AK"),
        secret_key=Secret("SK"),
    )
    url = urllib.parse.urlsplit(
        facts.presigned_url(server, Presigned(600, "https://s3.example.org"), NAME, "a b.png", "put_object")
    )
    assert (url.netloc, url.path) == ("s3.example.org", f"/{NAME}/a%20b.png")
    query = dict(urllib.parse.parse_qsl(url.query))
    assert (query["X-Amz-Algorithm"], query["X-Amz-Expires"]) == ("AWS4-HMAC-SHA256", "600")


# --- refusals in words ----------------------------------------------------------------------------------------------


def client_error(code: str, call: str, status: int = 403) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}, call
    )  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (client_error("AccessDenied", "PutBucketCors"), "lack the permission s3:PutBucketCORS"),
        (client_error("403", "HeadBucket"), "lack the permission s3:ListBucket"),
        (client_error("AccessDenied", "PutBucketVersioning"), "lack the permission s3:PutBucketVersioning"),
        (client_error("InvalidAccessKeyId", "ListBuckets"), "does not accept the credentials"),
        (
            client_error("NotImplemented", "PutBucketEncryption", 501),
            "does not know the call PutBucketEncryption (NotImplemented): write encryption=None",
        ),
        (client_error("SlowDown", "PutBucketCors", 503), "PutBucketCors: SlowDown: m"),
        (EndpointConnectionError(endpoint_url="http://x"), "Could not connect to the endpoint URL"),
    ],
)
def test_errors_are_told_in_words(error: Exception, said: str) -> None:
    with pytest.raises(S3Error) as told, facts.explained("s3", "bucket b", "encryption"):
        raise error
    assert said in str(told.value)
    assert str(told.value).startswith("bucket b: ")


def test_another_account_s_name_is_told_apart_from_ones_own(aws) -> None:
    theirs = boto3.client("sts").assume_role(
        RoleArn="arn:aws:iam::222222222222:role/r", RoleSessionName="them"
    )["Credentials"]
    them = Server(
        "eu-central-1", access_key=Secret(theirs["AccessKeyId"]), secret_key=Secret(theirs["SecretAccessKey"]),
        session_token=Secret(theirs["SessionToken"]),
    )  # fmt: skip
    s3._create(them, NAME)
    with pytest.raises(S3Error, match="belongs to another account"):
        facts.owns(FRANKFURT, NAME)
    with pytest.raises(S3Error, match="belongs to another account"):
        s3._create(FRANKFURT, NAME)
    assert facts.owns(them, NAME)


def test_a_user_and_a_role_are_read_whole(aws) -> None:
    iam = boto3.client("iam")
    assert facts.read_user(AWS, "u", "t") == facts.UserState()
    assert facts.read_role(AWS, "r", "t") == facts.RoleState()
    iam.create_user(UserName="u", Tags=[{"Key": "t", "Value": "host"}])
    document = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
    }
    iam.put_user_policy(UserName="u", PolicyName="p", PolicyDocument=json.dumps(document))
    key_id = iam.create_access_key(UserName="u")["AccessKey"]["AccessKeyId"]
    found = facts.read_user(AWS, "u", "t")
    assert (found.exists, found.host, found.policies) == (True, "host", {"p": document})
    assert [(one.key_id, one.active) for one in found.keys] == [(key_id, True)]
