"""The retention program as a module, the schema's steps, and which arguments are refused."""

import importlib.util
import json
import os
import stat
import sys
import types
from datetime import datetime, timedelta, timezone

import pytest
from pyinfra.api import OperationError, OperationValueError

from facts.archive import ArchiveSchema, SchemaState
from facts.s3 import PROPERTIES
from operations import archive as operation
from operations.pgcluster import verifier
from settings import load_host
from settings.archive import S3, TAG, Filesystem, Postgres, Retention
from settings.s3 import Access, Bucket, Lifecycle, Server
from settings.secret import Secret

NOW = datetime.now(timezone.utc)
WRITER = Postgres("liap_archive", owner="liap_owner", writers=("liap",), readers=("reports",))
BUCKET = S3("liap-archives", "games/", Server(region="eu-central-1"), access_key=Secret("key"), secret_key=Secret("secret"))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "archive.py"
    path.write_text(operation.program_text())
    spec = importlib.util.spec_from_file_location("hostwright_archive", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# --- what a copy covers ---------------------------------------------------------------------------------------------


@pytest.fixture
def copies(program, tmp_path, monkeypatch):
    """A backup program that tells of these copies, and a source with these repositories."""
    real = open

    def write(rows, repositories=("primary",), status=0):
        listed = [
            {"repository": label, "time": (NOW - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ"), "last_verified": verified}
            for label, days, verified in rows
        ]
        fake = tmp_path / "backup"
        fake.write_text(f"#!/bin/sh\ncat <<'E'\n{json.dumps(listed)}\nE\nexit {status}\n")
        fake.chmod(stat.S_IRWXU)
        source = tmp_path / "source.json"
        source.write_text(json.dumps({"repositories": dict.fromkeys(repositories, "/x")}))
        monkeypatch.setattr(program, "BACKUP", str(fake))
        monkeypatch.setattr(
            "builtins.open", lambda path, *words, **more: real(source if path == "/etc/hostwright/backup/liap.json" else path, *words, **more)
        )

    return write


CONFIG = {"backup": "liap", "fresh_days": 9, "days": 90}


def test_covered_is_what_the_newest_verified_copy_can_hold(program, copies):
    copies([("primary", 3, False), ("primary", 5, True), ("primary", 1, False)])
    covered = program.covered_until(CONFIG)
    assert abs((NOW - timedelta(days=5, hours=5) - covered).total_seconds()) < 2
    copies([("primary", 1, True), ("offsite", 6, True)], ("primary", "offsite"))
    assert abs((NOW - timedelta(days=6, hours=5) - program.covered_until(CONFIG)).total_seconds()) < 2


@pytest.mark.parametrize(
    ("rows", "repositories", "status", "said"),
    [
        ([], ("primary",), 0, "no copy of liap is verified in primary"),
        ([("primary", 1, False)], ("primary",), 0, "no copy of liap is verified in primary"),
        ([("primary", 1, True)], ("primary", "offsite"), 0, "no copy of liap is verified in offsite"),
        ([("primary", 10, True)], ("primary",), 0, "older than 9 days"),
        ([("primary", 1, True)], ("primary",), 1, "cannot be listed"),
    ],
)
def test_without_a_fresh_verified_copy_everywhere_it_refuses(program, copies, rows, repositories, status, said):
    copies(rows, repositories, status)
    with pytest.raises(program.Failure, match=said) as refusal:
        program.covered_until(CONFIG)
    assert "nothing is removed" in str(refusal.value)


@pytest.fixture
def archive_of_files(program, tmp_path, copies, capsys):
    """An archive in a directory, and its backup; carries the job out, and returns what it did and what it said."""
    root = tmp_path / "games"
    root.mkdir()

    def purge(*rows, repositories=("primary",), status=0):
        copies(list(rows), repositories, status)
        values = program.purge({**CONFIG, "kind": "filesystem", "path": str(root)}, True)
        return values, capsys.readouterr().out

    return root, purge


@pytest.mark.parametrize("rows", [(), (("primary", 1, False),)])
def test_where_nothing_is_past_its_limit_no_copy_is_needed(program, archive_of_files, rows):
    """A new host: the first drill is due in some days, and the first game to go in some months."""
    root, purge = archive_of_files
    assert purge(*rows)[0] == {"removed": 0, "uncovered": 0, "kept": 0}
    make(root / "young.json", 89)
    values, said = purge(*rows)
    assert (values, "nothing is older than" in said) == ({"removed": 0, "uncovered": 0, "kept": 1}, True)
    old = make(root / "old.json", 91)
    with pytest.raises(program.Failure, match="no copy of liap is verified in primary: drill it"):
        purge(*rows)
    assert old.exists()


@pytest.mark.parametrize(("rows", "status", "said"), [((("primary", 10, True),), 0, "older than 9 days"), ((), 1, "cannot be listed")])
def test_a_stale_copy_and_a_lost_repository_are_told_though_nothing_is_due(program, archive_of_files, rows, status, said):
    _, purge = archive_of_files
    with pytest.raises(program.Failure, match=said):
        purge(*rows, status=status)


# --- files ----------------------------------------------------------------------------------------------------------


def make(path, days):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    at = (NOW - timedelta(days=days)).timestamp()
    os.utime(path, (at, at))
    return path


def test_files_go_by_age_and_cover(program, tmp_path):
    root = tmp_path / "games"
    old, young = make(root / "2026/old.json", 91), make(root / "2026/young.json", 89)
    link = root / "link.json"
    outside = make(tmp_path / "outside.json", 400)
    link.symlink_to(outside)
    limit, later = NOW - timedelta(days=90), NOW + timedelta(hours=1)
    config = {"path": str(root)}
    # written (moved here, given its date) after the copy was made
    assert program.purge_filesystem(config, limit, NOW - timedelta(days=3), True) == (0, 1, 2)
    assert old.exists()
    assert program.purge_filesystem(config, limit, later, False) == (1, 0, 2)
    assert old.exists()
    assert program.purge_filesystem(config, limit, later, True) == (1, 0, 1)
    assert (old.exists(), young.exists(), outside.exists()) == (False, True, True)
    with pytest.raises(program.Failure, match="is no directory"):
        program.purge_filesystem({"path": str(tmp_path / "gone")}, limit, later, True)


# --- objects --------------------------------------------------------------------------------------------------------


def test_objects_are_tagged_by_age_and_cover(program, monkeypatch):
    tagged = []

    class Fake:
        def __init__(self, config):
            pass

        def objects(self):
            for name, days in (("old", 100), ("soon", 89), ("young", 80), ("late", 95)):
                yield name, NOW - timedelta(days=days)

        def tag(self, name, key, value):
            tagged.append((name, key, value))

    monkeypatch.setattr(program, "Bucket", Fake)
    limit, covered = NOW - timedelta(days=90), NOW - timedelta(days=1)
    assert program.purge_s3({"tag": TAG}, limit, covered, False) == (2, 0, 4)
    assert tagged == []
    assert program.purge_s3({"tag": TAG}, limit, NOW - timedelta(days=97), True) == (1, 1, 4)
    assert tagged == [("old", "hostwright-archive", "backed-up")]
    program.purge_s3({"tag": TAG}, limit, covered, True)
    assert [name for name, _, _ in tagged[1:]] == ["old", "soon", "late"]


def test_objects_past_their_limit_are_counted_where_nothing_is_covered(program, monkeypatch):
    class Shelf:
        def __init__(self, config):
            pass

        def objects(self):
            yield from (("old", NOW - timedelta(days=91)), ("about to be", NOW - timedelta(days=89)), ("young", NOW - timedelta(days=3)))

    monkeypatch.setattr(program, "Bucket", Shelf)
    assert program.purge_s3({"tag": TAG}, NOW - timedelta(days=90), program.NEVER, False) == (0, 1, 3)


def test_bucket_gets_two_rules_and_the_host_no_right_to_delete():
    uploads, games = (rule.document() for rule in BUCKET.lifecycle(Retention(days=30)))
    assert uploads["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert "Expiration" not in uploads
    assert games["Expiration"] == {"Days": 30}
    assert games["Filter"] == {"And": {"Prefix": "games/", "Tags": [{"Key": "hostwright-archive", "Value": "backed-up"}]}}
    assert Bucket(lifecycle=BUCKET.lifecycle(Retention())).faults("liap-archives", Server()) == []
    assert Lifecycle(abort_multipart_days=0, expire_days=1, tag="a=b").document()["Filter"] == {"Tag": {"Key": "a", "Value": "b"}}
    objects, _ = Access("liap-archives", write=False, delete=False, tag=True).statements(Server())
    assert objects["Action"] == ["s3:GetObject", "s3:PutObjectTagging"]


def test_ceph_gives_a_rule_back_in_a_form_of_its_own():
    sent = Lifecycle("games/", 0, 3, tag="a=b").document()
    ceph = {**sent, "Filter": {"Prefix": "games/", "Tag": {"Key": "a", "Value": "b"}}}
    part = PROPERTIES["lifecycle"].part
    assert part({"Rules": [ceph]}) == part({"Rules": [sent]}) == {"Rules": [sent]}
    assert part({}) == {}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Lifecycle(expire_days=1, tag="a=b"), "write abort_multipart_days=0"),
        (Lifecycle(abort_multipart_days=0, expire_days=1, tag="no value"), "tag must be like"),
    ],
)
def test_bad_rules_are_named(rule, said):
    assert any(said in fault for fault in rule.faults()), rule.faults()


# --- the schema -----------------------------------------------------------------------------------------------------

HAS = frozenset(
    (role, table, right)
    for role, rights in (("liap", ("SELECT", "INSERT", "UPDATE")), ("reports", ("SELECT",)))
    for table in operation.TABLES
    for right in rights
)
DONE = SchemaState(True, True, len(operation.MIGRATIONS), ("completed_games", "game_events", "schema_version"), "liap_owner", has=HAS)


def test_schema_is_made_once_and_migrated_forward():
    assert operation.statements(WRITER, DONE) == []
    fresh = operation.statements(WRITER, SchemaState(True, True))
    assert fresh[0] == 'CREATE SCHEMA IF NOT EXISTS archive AUTHORIZATION "liap_owner"'
    assert sum("INSERT INTO archive.schema_version" in one for one in fresh) == len(operation.MIGRATIONS)
    behind = operation.statements(WRITER, SchemaState(True, True, 1, DONE.tables, "liap_owner", has=HAS))
    assert not any("CREATE TABLE" in one for one in behind)
    assert "INSERT INTO archive.schema_version (version) VALUES (2)" in behind
    ahead = SchemaState(True, True, 99, DONE.tables, "liap_owner", has=HAS)
    assert operation.statements(WRITER, ahead) == []


def test_writers_may_remove_nothing():
    found = SchemaState(True, True, DONE.version, DONE.tables, "liap_owner", has=HAS | {("liap", "game_events", "DELETE")})
    sql = operation.statements(WRITER, found)
    assert 'REVOKE ALL ON archive.completed_games, archive.game_events FROM "liap"' in sql
    assert not any("DELETE" in one or "reports" in one for one in sql)


def test_fact_reads_what_the_program_prints():
    line = json.dumps({"answers": True, "exists": True, "version": 2, "tables": ["completed_games"], "owner": "o", "roles": ["o"], "has": [["a", "b", "c"]], "verifiers": {"o": "SCRAM"}})
    assert ArchiveSchema.__new__(ArchiveSchema).process([line]) == SchemaState(
        True, True, 2, ("completed_games",), "o", frozenset({"o"}), frozenset({("a", "b", "c")}), {"o": "SCRAM"}
    )


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (Filesystem("archive"), "absolute"),
        (Filesystem("/var/lib/../etc"), "absolute"),
        (Filesystem("/tmp/liap-archives"), "outlives a reboot"),
        (Filesystem("/var/lib"), "of the archive's own"),
        (Postgres("Liap"), "postgresql.database must be"),
        (Postgres("liap", host="db.example.org"), "directory of the server's socket"),
        (Postgres("liap", writers=("a",), readers=("a",)), "is among writers"),
        (Postgres("liap", container="a b"), "name of a container"),
        (Postgres("liap", port=0), "port must be"),
        (S3("L", access_key=Secret("a"), secret_key=Secret("b")), "s3."),
        (S3("liap-archives", "games", access_key=Secret("a"), secret_key=Secret("b")), "prefix must be like 'games/'"),
        (S3("liap-archives"), "access_key is not set"),
        (S3("liap-archives", endpoint="http://a:b@c", access_key=Secret("a"), secret_key=Secret("b")), "URL without account"),
    ],
)
def test_bad_backends_are_named(backend, said):
    assert any(said in fault for fault in backend.faults()), backend.faults()


def test_good_ones_are_not():
    assert [*Filesystem("/var/lib/liap/archive").faults(), *WRITER.faults(), *BUCKET.faults(), *Retention().faults()] == []
    assert len(Retention(days=0, fresh_days=0).faults()) == 2


def test_configuration_holds_no_secret():
    text = operation.config_text("liap", BUCKET, Retention(), "liap")
    assert json.loads(text)["url"] == "https://s3.eu-central-1.amazonaws.com"
    assert "secret" not in text


def test_job_may_write_to_what_it_removes_from_and_no_more():
    backups = load_host("h", [], {"backup_repository": "/srv/copies"}, resolve=False).backup
    files = operation.job_sandbox(Filesystem("/var/lib/liap/archive"), backups)
    assert ("/var/lib/liap/archive" in files.writable, "/srv/copies" in files.writable, files.network) == (True, True, False)
    assert operation.job_sandbox(BUCKET, backups).network
    assert "/var/lib/liap/archive" not in operation.job_sandbox(WRITER, backups).writable


def test_bad_arguments_of_a_role_are_all_named():
    with pytest.raises(OperationValueError) as error:
        list(operation.role._inner(backend=Filesystem("/var/lib/liap/archive"), role="Robert'); --", password=Secret("short")))
    assert all(word in str(error.value) for word in ("backend must be a Postgres", "role must be", "password must have 8"))
    assert "short" not in str(error.value)


@pytest.mark.parametrize("has", [True, False])
def test_a_role_is_told_its_password_once(monkeypatch, has):
    """By a verifier: the password itself is in no command, and one that the server has already is left alone."""
    server, password = Postgres("liap_archive", container="liap-postgres-1", admin="archive"), Secret("canary-password-of-the-role")
    stored = {"archive": verifier(password.unmask() if has else "the-one-before", b"salt-of-16-bytes")}
    found = SchemaState(answers=True, roles=frozenset({"archive"}), verifiers=stored)
    monkeypatch.setattr(operation, "host", types.SimpleNamespace(get_fact=lambda *words, **more: found, noop=lambda why: None))
    monkeypatch.setattr(operation, "run_state", types.SimpleNamespace(is_executing=True))
    commands = list(operation.role._inner(backend=server, role="archive", password=password))
    assert len(commands) == (0 if has else 1)
    assert not [one for one in commands if "canary" in str(vars(one))]
    found = SchemaState()
    with pytest.raises(OperationError, match="liap-postgres-1 does not answer archive"):
        list(operation.role._inner(backend=server, role="archive", password=password))


def test_a_restored_directory_can_be_entered_and_a_new_one_be_empty(monkeypatch):
    """The mode of a source is what a restore gives to the directory itself; before the first game nothing is in it."""
    from deploys import archive as deploys

    said = {}
    monkeypatch.setattr(deploys.backup, "source", lambda archive, **words: said.update(words, source=archive))
    monkeypatch.setattr(deploys.fileset, "files", lambda entries, **words: said.update(directory=entries[0].mode))
    monkeypatch.setattr(deploys.archives, "retention", lambda *words, **more: None)
    deploys.archive._inner("games", Filesystem("/var/lib/liap/archive"), Retention(), backups=load_host("host1", ["lab"], {}).backup, owner="liap")
    assert (said["source"], said["kind"], said["mode"], said["directory"]) == ("games", "directory", "0750", "0750")
    assert said["minimum"] == {"files": 0}
    deploys.archive._inner("games", Filesystem("/var/lib/liap/archive"), Retention(), load_host("host1", ["lab"], {}).backup, minimum={"files": 1})
    assert said["minimum"] == {"files": 1}
