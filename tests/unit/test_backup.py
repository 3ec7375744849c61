"""The backup program as a module, and what `operations.backup` writes for it. No restic: repositories are directories."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import json
import shutil
import sqlite3
import sys
import tempfile
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

from operations import backup as operation
from settings import load_host
from settings.secret import Secret

_PLACE = tempfile.TemporaryDirectory()


def _load():
    # as it is installed: one file; it also starts itself as a program
    path = Path(_PLACE.name, "backup.py")
    path.write_text(operation.program_text())
    spec = importlib.util.spec_from_file_location("hostwright_backup", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


backup = _load()
Failure = backup.Failure


# --- snapshots -------------------------------------------------------------------------------------------------------

LISTED = json.dumps(
    [
        {
            "id": "bb" * 32,
            "time": "2026-11-21T02:00:01.123456789Z",
            "tags": ["source:shop"],
            "original": "aa" * 32,
        },
        {
            "id": "cc" * 32,
            "time": "2026-11-22T02:00:01+01:00",
            "tags": ["source:shop", "verified", "bytes:7"],
        },
        {"id": "dd" * 32, "time": "2026-11-20T02:00:01.5Z", "tags": None},
    ]
)


def test_snapshots_are_sorted_and_keep_their_first_id() -> None:
    found = backup.parse_snapshots(LISTED)
    assert [each.short for each in found] == ["dddddddd", "bbbbbbbb", "cccccccc"]
    assert found[1].key == "aa" * 32
    assert found[1].time == datetime(2026, 11, 21, 2, 0, 1, 123456, timezone.utc)
    assert found[2].time.hour == 1
    assert found[2].verified
    assert (found[2].size, found[2].total, found[2].verified_at) == (7, 0, "")
    assert backup.parse_snapshots("null") == []


@pytest.mark.parametrize(
    ("at", "short"),
    [
        ("latest", "cccccccc"),
        ("verified", "cccccccc"),
        ("dddddd", "dddddddd"),
        ("aaaaaaaa", "bbbbbbbb"),  # its id before it was tagged
        ("2026-11-21", "bbbbbbbb"),
        ("2026-11-21T01:00:00Z", "dddddddd"),
        ("2026-11-30T00:00:00+02:00", "cccccccc"),
    ],
)
def test_choose_finds_the_copy_that_is_meant(at: str, short: str) -> None:
    assert backup.choose(backup.parse_snapshots(LISTED), at).short == short


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("2026-11-19", "no copy is as old"),
        ("123456", "no copies are called"),
        ("yesterday", "at must be latest"),
        ("", "at must be latest"),
    ],
)
def test_choose_says_what_is_wrong(at: str, said: str) -> None:
    with pytest.raises(Failure, match=said):
        backup.choose(backup.parse_snapshots(LISTED), at)


def test_choose_verified_needs_a_verified_copy() -> None:
    with pytest.raises(Failure, match="no copy is verified"):
        backup.choose(backup.parse_snapshots(LISTED)[:2], "verified")
    with pytest.raises(Failure, match="holds no copy"):
        backup.choose([], "latest")


# --- judging a copy ----------------------------------------------------------------------------------------------------

CONTENT = backup.Content(4096, "ab", {"customers": 3, "orders": 10})


def test_minimum_faults() -> None:
    assert backup.minimum_faults(CONTENT, {"customers": 3}) == []
    assert backup.minimum_faults(CONTENT, {"customers": 4, "gone": 0}) == [
        "customers has 3, at least 4 wanted",
        "gone is missing",
    ]
    assert backup.minimum_faults(backup.Content(0, "", {}), {}) == ["it is empty"]


def test_shrink_faults_compare_size_and_rows() -> None:
    def before(size: int, rows: int):
        return backup.Snapshot(
            "a" * 64, "a" * 64, datetime.now(timezone.utc), (f"bytes:{size}", f"rows:{rows}")
        )

    assert backup.shrink_faults(CONTENT, before(8192, 26), 0.5) == []
    assert backup.shrink_faults(CONTENT, before(8193, 26), 0.5) == ["4096 bytes, was 8193"]
    assert backup.shrink_faults(CONTENT, before(8192, 27), 0.5) == ["13 rows or files, was 27"]
    assert backup.shrink_faults(CONTENT, before(10**9, 10**9), 0.0) == []


def test_difference_faults_name_what_differs() -> None:
    manifest = backup.Manifest("shop", "sqlite", "/x", "2026", CONTENT)
    assert backup.difference_faults(CONTENT, manifest) == []
    assert backup.difference_faults(replace(CONTENT, counts={"customers": 3}), manifest) == [
        "orders: None, recorded 10"
    ]
    assert backup.difference_faults(replace(CONTENT, sha256="cd"), manifest) == [
        "its sha256 differs from the recorded one"
    ]
    assert backup.Manifest.parse(manifest.text()) == manifest


# --- kinds -------------------------------------------------------------------------------------------------------------


def _source(path: Path, **values):
    defaults = {
        "name": "shop", "host": "web1", "kind": "sqlite", "path": str(path), "owner": "root", "group": "root",
        "mode": "0640", "repositories": {"primary": "/repository"}, "keep": {"daily": 7}, "timeout_seconds": 60,
        "textfiles": str(path.parent / "textfiles"),
    }  # fmt: skip
    return backup.Source(**{**defaults, **values})


def _database(path: Path, customers: int = 3) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT)")
    database.executemany("INSERT INTO customers(name) VALUES (?)", [("x" * 200,)] * customers)
    database.commit()
    return database


def _rows(path: Path) -> int:
    with sqlite3.connect(path) as database:
        return database.execute("SELECT count(*) FROM customers").fetchone()[0]


@pytest.fixture(autouse=True)
def _no_other_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an ordinary user would see it: the change of accounts is for the lab tests."""
    monkeypatch.setattr(backup.os, "geteuid", lambda: 1000)


def _kind(source):
    return backup.KINDS[source.kind](source, backup.Deadline(60))


def test_sqlite_copy_has_what_still_is_in_the_wal(tmp_path: Path) -> None:
    live = _database(tmp_path / "shop ?#.db", customers=5)
    kind, stage = _kind(_source(tmp_path / "shop ?#.db")), tmp_path / "stage"
    stage.mkdir()
    kind.copy(stage)
    content = kind.inspect(stage)
    assert content.counts == {"customers": 5}
    assert [entry.name for entry in stage.iterdir()] == ["data"], "looking leaves nothing beside the copy"
    live.close()


def test_sqlite_copy_of_a_missing_database_makes_none(tmp_path: Path) -> None:
    kind, stage = _kind(_source(tmp_path / "shop.db")), tmp_path / "stage"
    stage.mkdir()
    with pytest.raises(Failure, match="does not exist"):
        kind.size()
    with pytest.raises(FileNotFoundError):
        kind.copy(stage)
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        backup.sqlite_copy(str(tmp_path / "shop.db"), str(stage / "data"))
    assert not (tmp_path / "shop.db").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[: len(data) // 2], "malformed|integrity_check"),
        (lambda data: b"not a database at all" * 100, "not a database"),
        (lambda data: data[:4096] + b"\xff" * 4096 + data[8192:], "malformed|integrity_check"),
    ],
)
def test_sqlite_inspect_refuses_a_damaged_copy(tmp_path: Path, damage, said: str) -> None:
    _database(tmp_path / "data", customers=500).close()
    whole = (tmp_path / "data").read_bytes()
    (tmp_path / "data").write_bytes(damage(whole))
    with pytest.raises(Failure, match=said):
        _kind(_source(tmp_path / "shop.db")).inspect(tmp_path)


def test_sqlite_inspect_finds_damage_that_no_query_meets(tmp_path: Path) -> None:
    database = _database(tmp_path / "data", customers=500)
    database.execute("CREATE INDEX by_name ON customers(name)")
    database.execute("PRAGMA writable_schema = ON")
    database.execute("DELETE FROM sqlite_master WHERE name = 'by_name'")  # its pages now belong to nothing
    database.commit()
    database.close()
    assert _rows(tmp_path / "data") == 500
    with pytest.raises(Failure, match=r"integrity_check: .*never used"):
        _kind(_source(tmp_path / "shop.db")).inspect(tmp_path)


def test_an_empty_file_is_a_database_without_content(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    content = _kind(_source(tmp_path / "shop.db")).inspect(tmp_path)
    assert backup.minimum_faults(content, {}) == ["it is empty"]


def test_exchange_keeps_the_old_files_together(tmp_path: Path) -> None:
    live = _database(tmp_path / "shop.db", customers=5)
    copied = tmp_path / "restored"
    copied.mkdir()
    _database(copied / "data", customers=2).close()
    kind = _kind(_source(tmp_path / "shop.db"))
    live_files = sorted(path.name for path in tmp_path.glob("shop.db*"))
    assert live_files == ["shop.db", "shop.db-shm", "shop.db-wal"]
    # a copy of the directory stands for an application that was killed: its -wal and -shm are still there
    shutil.copytree(tmp_path, tmp_path / "killed", ignore=shutil.ignore_patterns("killed"))
    live.close()
    kind = _kind(_source(tmp_path / "killed" / "shop.db"))
    incoming = kind.prepare(copied)
    kept = kind.exchange(incoming, "T")
    assert [Path(path).name for path in kept] == [
        "shop.db.before-restore-T", "shop.db.before-restore-T-wal", "shop.db.before-restore-T-shm",
    ]  # fmt: skip
    assert _rows(tmp_path / "killed" / "shop.db") == 2
    assert _rows(tmp_path / "killed" / "shop.db.before-restore-T") == 5, (
        "the -wal is still read under the new name"
    )
    assert (tmp_path / "killed" / "shop.db").stat().st_mode & 0o777 == 0o640


def test_exchange_that_fails_leaves_everything_where_it_was(tmp_path: Path) -> None:
    _database(tmp_path / "shop.db", customers=5).close()
    (tmp_path / "shop.db-wal").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        _kind(_source(tmp_path / "shop.db")).exchange(tmp_path / "missing", "T")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop.db", "shop.db-wal"]
    assert _rows(tmp_path / "shop.db") == 5


def test_exchange_refuses_a_database_that_is_open(tmp_path: Path) -> None:
    live = _database(tmp_path / "shop.db")
    (tmp_path / "incoming").write_bytes(b"")
    with pytest.raises(Failure, match=r"has .*shop\.db.* open"):
        _kind(_source(tmp_path / "shop.db")).exchange(tmp_path / "incoming", "T")
    assert (tmp_path / "incoming").exists()
    live.close()


def test_directory_digest_sees_content_mode_and_links(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "a").write_text("a")
    (tree / "link").symlink_to("sub/a")
    kind = _kind(_source(tree, kind="directory"))
    seen = []
    for change in (
        lambda: None,
        lambda: (tree / "sub" / "a").write_text("b"),
        lambda: (tree / "sub" / "a").chmod(0o600),
        lambda: (tree / "empty").mkdir(),
        lambda: ((tree / "link").unlink(), (tree / "link").symlink_to("sub")),
    ):
        change()
        stage = tmp_path / f"stage{len(seen)}"
        stage.mkdir()
        kind.copy(stage)
        content = kind.inspect(stage)
        assert (content.size, content.counts) == (1, {"files": 1})
        seen.append(content.sha256)
    assert len(set(seen)) == 5


# --- the whole way, with repositories that are directories ---------------------------------------------------------------


class Shelf:
    """Stands for a `Repository`: copies the staged directory, keeps tags in memory."""

    def __init__(self, root: Path, label: str) -> None:
        self.root, self.label = root / label, label
        self.taken: list = []
        self.broken = ""
        self.forgotten = 0
        self.root.mkdir()

    def snapshots(self):
        if self.broken:
            raise Failure(self.broken)
        return list(self.taken)

    def backup(self, stage: Path, manifest) -> str:
        if self.broken:
            raise Failure(self.broken)
        name = f"{len(self.taken) + 1:064x}"
        shutil.copytree(stage, self.root / name)
        at = datetime(2026, 11, 1, tzinfo=timezone.utc) + timedelta(days=len(self.taken))
        tags = (f"bytes:{manifest.content.size}", f"rows:{manifest.content.total}")
        self.taken.append(backup.Snapshot(name, name, at, tags))
        return name

    def restore(self, snapshot, target: Path) -> None:
        shutil.copytree(self.root / snapshot.id, target / "stage")

    def mark_verified(self, snapshot, snapshots, at) -> None:
        self.taken = [
            replace(
                each,
                tags=(
                    *each.tags[:2],
                    *(("verified", "verified-at:2026") if each.key == snapshot.key else ()),
                ),
            )
            for each in snapshots
        ]

    def forget(self) -> int:
        self.forgotten += 1
        return len(self.taken)

    def check(self) -> None:
        pass

    def __str__(self) -> str:
        return self.label


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A declared source with a database of 100 customers and one repository."""
    places = backup.Places(tmp_path / "config", tmp_path / "state", tmp_path / "work")
    for directory in (places.config, places.state, tmp_path / "textfiles", tmp_path / "data"):
        directory.mkdir()
    path = tmp_path / "data" / "shop.db"
    source = _source(path, minimum={"customers": 1}, textfiles=str(tmp_path / "textfiles"))
    shelves = {"primary": Shelf(tmp_path, "primary"), "offsite": Shelf(tmp_path, "offsite")}
    declared = {**source.__dict__, "repositories": {"primary": "/one", "offsite": "/two"}}
    (places.config / "shop.json").write_text(json.dumps(declared))
    (places.config / "shop.env").write_text("RESTIC_PASSWORD=p=q # r\n")
    _database(path, customers=100).close()

    def fresh(**changes):
        (places.config / "shop.json").write_text(json.dumps({**declared, **changes}))
        made = backup.Backup(places, "shop")
        made.repositories = shelves
        return made

    return SimpleNamespace(
        backup=fresh, path=path, places=places, **shelves,
        state=lambda: json.loads((places.state / "shop.json").read_text()),
        metrics=lambda: (tmp_path / "textfiles" / "hostwright_backup_shop.prom").read_text(),
    )  # fmt: skip


def test_run_drill_restore(shop) -> None:
    shop.backup().run()
    assert shop.state()["failure"] == ""
    assert shop.state()["rows"] == {"customers": 100}
    assert shop.state()["last_verified"] == ""
    shop.backup().drill()
    assert shop.state()["last_verified"]
    assert shop.primary.taken[0].verified
    shop.path.write_bytes(b"destroyed")
    shop.backup().restore("verified", "primary")
    assert _rows(shop.path) == 100
    kept = shop.state()["last_restore"]["kept"]
    assert Path(kept[0]).read_bytes() == b"destroyed"
    assert shop.primary.forgotten == 1


def test_a_drill_before_the_first_backup_was_due_has_nothing_to_do(shop) -> None:
    shop.backup().drill()
    assert (shop.state()["drill_failure"], shop.state()["last_verified"]) == ("", "")
    shop.primary.broken = shop.offsite.broken = "no space left"
    with pytest.raises(Failure, match="no space left"):
        shop.backup().run()
    shop.primary.broken = shop.offsite.broken = ""
    with pytest.raises(Failure, match="the repository holds no copy of this source"):
        shop.backup().drill()


def test_run_stores_nothing_that_breaks_the_checks(shop) -> None:
    with sqlite3.connect(shop.path) as database:
        database.execute("DELETE FROM customers")
    with pytest.raises(Failure, match="customers has 0, at least 1 wanted"):
        shop.backup().run()
    assert shop.primary.taken == []
    assert shop.primary.forgotten == 0
    assert "customers has 0" in shop.state()["failure"]
    assert "last_success" not in shop.state()
    assert 'hostwright_backup_last_run_success{source="shop"} 0' in shop.metrics()


def test_run_stores_no_copy_that_shrank_unless_told_to(shop) -> None:
    shop.backup().run()
    shop.backup().drill()
    with sqlite3.connect(shop.path) as database:
        database.execute("DELETE FROM customers WHERE id > 40")
    with pytest.raises(
        Failure, match=r"much smaller than the last verified copy 0{8}.*40 rows or files, was 100"
    ):
        shop.backup().run()
    assert len(shop.primary.taken) == 1
    shop.backup().run(accept_smaller=True)
    assert len(shop.primary.taken) == 2
    shop.backup().drill()
    assert shop.primary.taken[1].verified
    assert not shop.primary.taken[0].verified


def test_a_repository_that_fails_does_not_keep_the_other_from_its_copy(shop) -> None:
    shop.primary.broken = "primary: no space left"
    with pytest.raises(Failure, match="no space left"):
        shop.backup().run()
    assert len(shop.offsite.taken) == 1
    assert shop.offsite.forgotten == 1
    assert shop.primary.forgotten == 0, "the retention runs only after a copy was stored"
    assert "last_success" not in shop.state()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data.write_bytes(data.read_bytes()[:5000]), "malformed|integrity_check|not a database"),
        (lambda data: data.write_bytes(b""), "0 bytes, recorded"),
        (lambda data: data.unlink(), "holds no database"),
        (lambda data: (data.parent / "manifest.json").write_text("{}"), "no manifest"),
        (lambda data: (data.parent / "manifest.json").unlink(), "no manifest"),
    ],
)
def test_drill_and_restore_refuse_a_spoilt_copy_and_name_the_last_good_one(shop, spoil, said: str) -> None:
    shop.backup().run()
    shop.backup().drill()
    good = shop.primary.taken[0]
    shop.backup().run()
    spoil(shop.primary.root / shop.primary.taken[1].id / "data")
    before = shop.path.read_bytes()
    for act in (lambda: shop.backup().drill(), lambda: shop.backup().restore("latest", "primary")):
        with pytest.raises(Failure, match=said) as caught:
            act()
        assert f"the last verified copy is {good}" in str(caught.value)
    assert shop.path.read_bytes() == before
    assert [each.verified for each in shop.primary.taken] == [True, False]
    assert shop.offsite.taken[1].verified, "the other repository is drilled all the same"


def test_drill_refuses_a_consistent_copy_that_has_almost_nothing(shop) -> None:
    shop.backup().run()
    shop.backup().drill()
    with sqlite3.connect(shop.path) as database:
        database.execute("DELETE FROM customers WHERE id > 1")
    shop.backup(min_size_ratio=0.0).run()  # as another program, or another policy, would have stored it
    with pytest.raises(Failure, match="1 rows or files, was 100"):
        shop.backup().drill()
    assert shop.primary.taken[0].verified


def test_a_restore_that_was_cut_short_keeps_the_next_backup_from_running(shop) -> None:
    shop.backup().run()
    (shop.places.state / "shop.restore.json").write_text('{"units": []}')
    with pytest.raises(Failure, match="a restore was cut short"):
        shop.backup().run()
    shop.backup().restore("latest", "primary")
    shop.backup().run()


def test_only_one_command_works_on_a_source(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "LOCK_WAIT", 0)
    with (
        shop.backup().locked("run"),
        pytest.raises(Failure, match=r"busy: backup run, process \d+, since 2"),
        shop.backup().locked("drill"),
    ):
        pass
    # The lock went with its holder: taking it would raise otherwise.
    with shop.backup().locked("drill"):
        pass


def test_a_new_repository_url_forgets_what_was_known_of_the_old_one(shop) -> None:
    shop.backup().run()
    assert shop.state()["repositories"]["primary"]["last_success"]
    state = shop.backup(repositories={"primary": "/elsewhere"}).state
    assert state.values["repositories"] == {"primary": {"url": "/elsewhere"}}


def test_secrets_file_is_read_literally(shop) -> None:
    assert backup.load_secrets(shop.places, "shop") == {"RESTIC_PASSWORD": "p=q # r"}
    with pytest.raises(Failure, match="declared on this host: shop"):
        backup.load_source(shop.places, "shoop")


def test_metrics_have_no_sample_for_what_never_happened() -> None:
    text = backup.metrics(
        {"source": "shop", "repositories": {"primary": {"url": "/x"}}, "last_run": "2026-11-22T02:00:00Z"}
    )
    assert text == (
        "# TYPE hostwright_backup_last_run_timestamp_seconds gauge\n"
        'hostwright_backup_last_run_timestamp_seconds{source="shop"} 1795312800\n'
    )


# --- units ---------------------------------------------------------------------------------------------------------------


def test_units_finds_both_colours_and_what_crashed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (
        "shop-blue.service loaded active running Shop\n"
        "shop-green.service loaded inactive dead Shop\n"
        "shop-worker.service loaded failed failed Worker\n"
        "shop-old.service loaded failed failed Old\n"
        "shop-loop.service loaded activating auto-restart Loop\n"
    )
    calls = []

    def execute(argv, deadline, **rest):
        calls.append(list(argv))
        if argv[1] == "list-units":
            return backup.Ended(0, listed, "")
        if argv[1] == "is-enabled":
            return backup.Ended(0 if argv[-1] == "shop-worker.service" else 1, "", "")
        return backup.Ended(
            0, "shop-blue RUNNING pid 7\n" if argv[2] == "shop-blue" else "shop-green STOPPED\n", ""
        )

    monkeypatch.setattr(backup, "execute", execute)
    monkeypatch.setattr(backup.shutil, "which", lambda program: "/usr/bin/" + program)
    names = ("shop-*.service", "supervisor:shop-blue", "supervisor:shop-green")
    units = backup.Units(names, backup.Deadline(60))
    running = units.running()
    assert running == [
        "shop-blue.service",
        "shop-worker.service",
        "shop-loop.service",
        "supervisor:shop-blue",
    ]
    calls.clear()
    units.start(["shop-blue.service", "supervisor:shop-blue"])
    assert calls[-2:] == [
        ["systemctl", "start", "--", "shop-blue.service"],
        ["supervisorctl", "start", "shop-blue"],
    ]
    monkeypatch.setattr(backup.shutil, "which", lambda program: None)
    assert "supervisor:shop-blue" not in units.running(), "a host without supervisor runs nothing under it"


# --- restic's command lines ------------------------------------------------------------------------------------------------


@pytest.fixture
def restic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A repository whose restic is replaced: `answers` by first word, `calls` is what was run."""
    calls, answers = [], {}

    def execute(argv, deadline, env=None, cwd=None, account=None):
        calls.append((list(argv), dict(env or {})))
        answer = answers.get(argv[1], backup.Ended(0, "[]", ""))
        return (
            answer.pop(0)
            if isinstance(answer, list) and len(answer) > 1
            else answer[0]
            if isinstance(answer, list)
            else answer
        )

    monkeypatch.setattr(backup, "execute", execute)
    monkeypatch.setattr(backup.time, "sleep", lambda seconds: None)
    source = _source(tmp_path / "shop.db", keep={"daily": 7, "weekly": 0, "monthly": 6})
    repository = backup.Repository(
        "primary",
        "s3:https://key:s3cret-url@host/b",
        source,
        {"RESTIC_PASSWORD": "s3cret-pass"},
        backup.Deadline(60),
    )
    return SimpleNamespace(repository=repository, calls=calls, answers=answers)


def test_no_secret_is_in_an_argument_or_a_message(restic) -> None:
    restic.answers["snapshots"] = backup.Ended(1, "", "Fatal: s3cret-pass is no good")
    with pytest.raises(Failure) as caught:
        restic.repository.snapshots()
    assert "s3cret" not in str(caught.value)
    (argv, env) = restic.calls[0]
    assert "s3cret" not in " ".join(argv)
    assert env["RESTIC_PASSWORD"] == "s3cret-pass"


def test_retention_keeps_what_is_verified(restic) -> None:
    restic.answers["forget"] = backup.Ended(
        0, json.dumps([{"keep": [1, 2], "remove": [3]}]) + "\n1 snapshot removed", ""
    )
    assert restic.repository.forget() == 2
    (argv, _) = restic.calls[0]
    assert argv[:2] == ["restic", "forget"]
    assert {"--keep-daily=7", "--keep-monthly=6", "--keep-tag=verified", "--prune"} <= set(argv)
    assert not any("weekly" in word for word in argv), "restic refuses to keep 0"
    assert argv[argv.index("--tag") + 1] == "source:shop"
    assert argv[argv.index("--host") + 1] == "web1"


def test_the_tag_is_on_the_new_copy_before_it_leaves_the_old_one(restic) -> None:
    old, new = backup.parse_snapshots(LISTED)[2], backup.parse_snapshots(LISTED)[1]
    restic.repository.mark_verified(
        new, backup.parse_snapshots(LISTED), datetime(2026, 11, 22, tzinfo=timezone.utc)
    )
    tags = [argv[2:] for argv, _ in restic.calls if argv[1] == "tag"]
    assert tags == [
        ["--add=verified", "--add=verified-at:2026-11-22T00:00:00Z", new.id],
        ["--remove=verified", old.id],
    ]


def test_a_copy_that_is_verified_again_keeps_its_tag_and_no_other_is_touched(restic) -> None:
    again = replace(backup.parse_snapshots(LISTED)[2], tags=("verified", "verified-at:2026-11-01T00:00:00Z"))
    restic.repository.mark_verified(again, [again], datetime(2026, 11, 22, tzinfo=timezone.utc))
    (argv,) = [argv[2:] for argv, _ in restic.calls]
    assert argv == [
        "--add=verified", "--add=verified-at:2026-11-22T00:00:00Z", "--remove=verified-at:2026-11-01T00:00:00Z", again.id,
    ]  # fmt: skip


def test_a_lock_that_lives_is_waited_for_and_never_taken(restic, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = backup.Ended(
        1, "", "unable to create lock in backend: repository is already locked by PID 7 on web2"
    )
    restic.answers["snapshots"] = [locked, locked, backup.Ended(0, "[]", "")]
    assert restic.repository.snapshots() == []
    assert [argv[1:] for argv, _ in restic.calls if argv[1] == "unlock"] == [["unlock"], ["unlock"]]
    restic.answers["snapshots"] = locked
    monkeypatch.setattr(backup, "LOCK_WAIT", 0)
    with pytest.raises(Failure, match=r"another process holds it.*already locked by PID 7 on web2"):
        restic.repository.snapshots()


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (backup.Ended(1, "", "Fatal: wrong password or no key found"), "does not open with this password"),
        (backup.Ended(12, "", ""), "does not open with this password"),
        (backup.Ended(1, "", "dial tcp: connection refused"), "cannot be opened"),
        (backup.Ended(1, "", "permission denied"), "cannot be opened"),
    ],
)
def test_open_never_takes_a_repository_for_missing(restic, ended, said: str) -> None:
    restic.answers["cat"] = ended
    with pytest.raises(Failure, match=said):
        restic.repository.open()


@pytest.mark.parametrize(
    "ended",
    [
        backup.Ended(1, "", "Fatal: unable to open config file: stat /b/config: no such file or directory"),
        backup.Ended(1, "", "Fatal: unable to open config file: Stat: The specified key does not exist."),
        backup.Ended(10, "", "Fatal: repository does not exist"),
    ],
)
def test_open_says_when_there_is_no_repository_yet(restic, ended) -> None:
    restic.answers["cat"] = ended
    assert restic.repository.open() is None


def test_init_makes_no_second_repository_where_one_was(shop, restic) -> None:
    one = shop.backup()
    one.repositories = {"primary": restic.repository}
    restic.answers["cat"] = backup.Ended(0, json.dumps({"id": "a" * 64}), "")
    one.init()
    restic.answers["cat"] = backup.Ended(10, "", "")
    two = shop.backup()
    two.repositories = {"primary": restic.repository}
    with pytest.raises(Failure, match=r"was there before .*is its disk mounted"):
        two.init()
    restic.answers["cat"] = backup.Ended(0, json.dumps({"id": "b" * 64}), "")
    with pytest.raises(Failure, match="is another one"):
        two.init()
    assert "init" not in {argv[1] for argv, _ in restic.calls}


# --- the operation ----------------------------------------------------------------------------------------------------------

POLICY = load_host("web1", [], {"backup_offsite_repository": "sftp:u@h:/b", "backup_keep_weekly": 0}).backup


def test_what_the_operation_writes_is_what_the_program_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation, "host", SimpleNamespace(name="web1"))
    text = operation.source_config(
        "shop",
        "sqlite",
        "/srv/shop.db",
        "shop",
        "shop",
        "0600",
        {"customers": 1},
        ["shop@*.service"],
        "true",
        9,
        POLICY,
    )
    (tmp_path / "shop.json").write_text(text)
    source = backup.load_source(backup.Places(config=tmp_path), "shop")
    assert source.repositories == {"primary": "/var/backups/hostwright", "offsite": "sftp:u@h:/b"}
    assert (source.host, source.units, source.keep["weekly"]) == ("web1", ("shop@*.service",), 0)
    assert set(backup.KINDS) == set(operation.KINDS)


def test_a_job_reaches_the_network_and_the_key_only_for_a_remote_repository() -> None:
    assert operation.job_sandbox("sqlite", "/srv/shop.db", POLICY).network
    local = operation.job_sandbox("sqlite", "/srv/shop.db", POLICY.model_copy(update={"offsite_repository": ""}))
    assert not local.network
    assert not local.home
    assert {"/srv", "/var/backups/hostwright"} <= set(local.writable)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "My Shop"}, "source must be"),
        ({"kind": "cassandra"}, "kind must be one of sqlite, directory"),
        ({"path": "shop.db"}, "path must be absolute"),
        ({"path": "/srv/shop/"}, "path must be absolute"),
        ({"mode": "rw"}, "mode must be octal"),
        ({"minimum": {"customers": -1}}, "minimum: 'customers' must be 0 or more"),
        ({"units": ["shop"]}, "units: must be"),
        ({"units": ["--now.service"]}, "units: must be"),
    ],
)
def test_source_faults_are_named(change: dict[str, object], said: str) -> None:
    good = {
        "source": "shop",
        "kind": "sqlite",
        "path": "/srv/shop.db",
        "mode": "0600",
        "minimum": {},
        "units": [],
    }
    assert operation.source_faults(**good) == []
    (fault,) = operation.source_faults(**{**good, **change})
    assert said in fault


PG = {"server": operation.Postgres("mc_bench", Secret("a-password"), container="mcbench-postgres"), "kind": "postgres", "path": ""}
S3 = {"server": operation.Bucket("mc-bench", "https://s3.test", Secret("a"), Secret("b")), "kind": "bucket", "path": ""}
RD = {"server": operation.Redis("mc-broker", Secret("a-password")), "kind": "redis", "path": ""}
RP = {"server": operation.RedisPod("registry.test/redis:7", "shop"), "kind": "redis_pod", "path": ""}
MG = {"server": operation.MongoDB("shop", "registry.test/mongo:7", "shop", "admin"), "kind": "mongodb", "path": ""}


@pytest.mark.parametrize(
    ("good", "change", "said"),
    [
        (PG, {"path": "/x"}, "path is for directories and files"),
        (PG, {"server": None}, "server must be a Postgres for kind 'postgres'"),
        (PG, {"kind": "bucket"}, "server must be a Bucket"),
        (PG, {"kind": "sqlite", "path": "/x"}, "server must be left out for kind 'sqlite'"),
        (PG, {"server": replace(PG["server"], database="a b")}, "postgres.database"),
        (PG, {"server": replace(PG["server"], password=Secret.unset())}, "postgres.password is not set"),
        (PG, {"server": replace(PG["server"], user="postgres")}, "must not be the administrator"),
        (PG, {"server": replace(PG["server"], sslmode="on")}, "postgres.sslmode"),
        (PG, {"server": replace(PG["server"], container="--x")}, "postgres.container"),
        (PG, {"containers": ["a b"]}, "containers: must be a name or a label"),
        (S3, {"server": replace(S3["server"], bucket="My")}, "bucket.bucket"),
        (S3, {"server": replace(S3["server"], endpoint="https://a:b@s3.test")}, "bucket.endpoint"),
        (S3, {"server": replace(S3["server"], secret_key=Secret.unset())}, "bucket.secret_key is not set"),
        (RD, {"server": replace(RD["server"], instance="My Broker")}, "redis.instance"),
        (RD, {"server": replace(RD["server"], password=Secret.unset())}, "redis.password is not set"),
        (RD, {"server": PG["server"]}, "server must be a Redis"),
        (MG, {"server": replace(MG["server"], pod="a b")}, "mongodb.pod must be set and without blanks"),
        (MG, {"server": replace(MG["server"], image="")}, "mongodb.image"),
        (RP, {"server": replace(RP["server"], namespace="a b")}, "redis_pod.namespace must be set and without blanks"),
        (RP, {"server": RD["server"]}, "server must be a RedisPod for kind 'redis_pod'"),
    ],
)
def test_faults_of_servers_are_named(good: dict[str, object], change: dict[str, object], said: str) -> None:
    values = {"source": "shop", "mode": "0600", "minimum": {}, "units": [], "containers": ["hostwright.component=api"], **good}
    assert operation.source_faults(**values) == []
    (fault,) = operation.source_faults(**{**values, **change})
    assert said in fault


@pytest.mark.parametrize("given", [PG, S3, RD], ids=["postgres", "bucket", "redis"])
def test_the_declaration_of_a_server_holds_no_secret_and_is_read_by_the_program(
    given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation, "host", SimpleNamespace(name="web1"))
    text = operation.source_config(
        "shop", given["kind"], "", "root", "root", "0600", {}, ["x.service"], "", 9, POLICY, ["api"], given["server"]
    )
    (tmp_path / "shop.json").write_text(text)
    source = backup.load_source(backup.Places(config=tmp_path), "shop")
    own = ("redis-server@mc-broker.service",) if given is RD else ()
    assert source.units == (*own, "x.service", "container:api")
    assert source.min_size_ratio == (0.0 if given is RD else POLICY.min_size_ratio)
    assert source.path == ("/var/lib/redis/mc-broker" if given is RD else "")
    assert "password" not in text
    assert "secret" not in text
    assert "mc" in _kind(source).where
    assert all(key.startswith("SOURCE_") for key in given["server"].secrets)


KUBECTL = """#!/bin/sh
# kubectl, for one pod: what stands behind -- is what the container would run
while [ "$1" != -- ]; do shift; done
shift
case "$1" in
env) echo "2026-01-01T00:00:00.000+0000	done dumping shop.orders (3 documents)" >&2; echo dump | gzip ;;
mongosh) printf 'noise\n{"size": 12, "counts": {"orders": 3}}\n' ;;
esac
"""


def test_a_dump_of_mongodb_says_what_it_holds_and_a_torn_one_is_found(tmp_path: Path) -> None:
    kubectl, stage = tmp_path / "kubectl", tmp_path / "stage"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    stage.mkdir()
    source = backup.Source("shop", "web1", "mongodb", "", "root", "root", "0600", {}, {}, mongodb={**MG["server"].plain, "kubectl": [str(kubectl)]})
    kind = backup.KINDS["mongodb"](source, backup.Deadline(60), work=tmp_path)
    assert kind.size() == 12
    assert kind.where == "database shop in pod mongodb-0"
    kind.copy(stage)
    assert kind.inspect(stage).counts == {"orders": 3}
    assert (stage / "data").stat().st_mode & 0o777 == 0o600
    (stage / "data").write_bytes((stage / "data").read_bytes()[:-4])
    with pytest.raises(Failure, match="the dump is damaged"):
        kind.inspect(stage)


REDIS_POD = """#!/bin/sh
# kubectl, for one pod: what stands behind -- is what the container would run
while [ "$1" != -- ]; do shift; done
shift
case "$*" in
*"INFO memory") echo used_memory_dataset:99 ;;
*"--rdb -") printf 'REDIS0011and so on'; printf '%.0s0123456789' 1 2 3 4; echo "SYNC sent to master" >&2 ;;
redis-check-rdb*) printf '[info] 5 keys read\\n[info] 2 expires\\n[info] 1 already expired\\n'; grep -q REDIS0011 && echo 'RDB looks OK!' ;;
esac
"""


def test_a_snapshot_of_a_redis_in_a_pod_holds_no_more_than_the_snapshot(tmp_path: Path) -> None:
    kubectl, stage = tmp_path / "kubectl", tmp_path / "stage"
    kubectl.write_text(REDIS_POD)
    kubectl.chmod(0o755)
    stage.mkdir()
    source = backup.Source("shop", "web1", "redis_pod", "", "root", "root", "0600", {}, {}, redis_pod={**RP["server"].plain, "kubectl": [str(kubectl)]})
    kind = backup.KINDS["redis_pod"](source, backup.Deadline(60), work=tmp_path)
    assert kind.size() == 99
    assert kind.where == "Redis in pod redis-0"
    kind.copy(stage)
    assert (stage / "data").read_bytes() == b"REDIS0011and so on"
    assert (stage / "data").stat().st_mode & 0o777 == 0o600
    assert kind.inspect(stage).counts == {"keys": 3}
    (stage / "data").write_bytes(b"REDIS9999")
    with pytest.raises(Failure, match="the snapshot is damaged"):
        kind.inspect(stage)
    assert kind._keys("# Keyspace\r\ndb0:keys=7,expires=2,avg_ttl=0\r\ndb3:keys=1,expires=0,avg_ttl=0\r\n") == 6


def test_the_secrets_of_a_source_are_not_its_repositorys(shop) -> None:
    (shop.places.config / "shop.env").write_text("RESTIC_PASSWORD=p\nSOURCE_PASSWORD=s3cret\n")
    made = backup.Backup(shop.places, "shop")
    assert made.repositories["primary"].env["RESTIC_PASSWORD"] == "p"
    assert "SOURCE_PASSWORD" not in made.repositories["primary"].env
    assert made.kind.secrets["SOURCE_PASSWORD"] == "s3cret"


def test_only_a_bucket_is_restored_elsewhere(shop) -> None:
    with pytest.raises(Failure, match="are for buckets"):
        shop.backup().restore("latest", "primary", into="x", replace=False)


# --- postgres ----------------------------------------------------------------------------------------------------------


def test_the_verifier_is_what_postgres_makes_of_the_password() -> None:
    """The example of RFC 7677: its password "pencil", its salt, its server signature."""
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    kind, rounds, keys = backup.scram_verifier("pencil", salt).split("$")
    assert (kind, rounds.partition(":")[0]) == ("SCRAM-SHA-256", "4096")
    stored, server = (base64.b64decode(key) for key in keys.split(":"))
    message = (
        b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    )
    signature = base64.b64encode(hmac.new(server, message, "sha256").digest()).decode()
    assert signature == "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    client = bytes(a ^ b for a, b in zip(proof, hmac.new(stored, message, "sha256").digest(), strict=True))
    assert hashlib.sha256(client).digest() == stored


def test_sql_means_the_text_whatever_stands_in_it() -> None:
    assert backup._literal("it's") == "'it''s'"
    assert backup._literal("a\\b'") == r"E'a\\b''" + "'"
    assert backup._name('a"b') == '"a""b"'


def test_access_of_a_database_is_given_right_by_right() -> None:
    access = {"connections": 7, "grants": [[None, "TEMPORARY", False], ['odd "one"', "CONNECT", True]]}
    assert backup.access_statements("a b", access).split(";\n") == [
        'ALTER DATABASE "a b" CONNECTION LIMIT 7',
        'GRANT TEMPORARY ON DATABASE "a b" TO PUBLIC',
        'GRANT CONNECT ON DATABASE "a b" TO "odd ""one""" WITH GRANT OPTION',
    ]


def test_rows_are_counted_in_statements_of_a_size() -> None:
    asked = []

    def ask(sql: str) -> str:
        asked.append(sql)
        if len(asked) == 1:
            return json.dumps([[f"t{number}", f"public.t{number}"] for number in range(250)])
        return json.dumps([7] * sql.count("count(*)"))

    assert backup.count_rows(ask) == {f"t{number}": 7 for number in range(250)}
    assert [sql.count("FROM ONLY") for sql in asked[1:]] == [200, 50]
    assert backup.count_rows(lambda sql: "[]") == {}


def test_a_client_in_a_container_gets_its_password_on_stdin_alone() -> None:
    client = backup._Client(backup.Deadline(5), {"PGUSER": "u"}, container="db", password="a:b\\c")
    assert client.first == b"*:*:*:*:a\\:b\\\\c\n"
    argv = client.argv("pg_dump", "-Fc")
    assert argv[:4] == ["docker", "exec", "--interactive", "--env=PGUSER=u"]
    assert argv[-3:] == ["sh", "pg_dump", "-Fc"]
    assert not any("a:b" in word or "a\\:b" in word for word in [*argv, *client.env.values()])


def test_a_client_elsewhere_gets_its_password_from_a_file_of_its_own(tmp_path: Path) -> None:
    client = backup._Client(backup.Deadline(5), {}, password="pw", passfile=tmp_path / "work" / "pgpass")
    assert (tmp_path / "work" / "pgpass").stat().st_mode & 0o777 == 0o600
    assert client.env["PGPASSFILE"] == str(tmp_path / "work" / "pgpass")
    assert "pw" not in client.env.values()


def test_a_client_tells_what_went_wrong_without_the_password(tmp_path: Path) -> None:
    client = backup._Client(backup.Deadline(60), {}, password="hunter22", passfile=tmp_path / "pgpass")
    with pytest.raises(Failure, match=r"^it is bad: sh: no \*\*\* here$"):
        client.run("sh", "-c", "echo no hunter22 here >&2; exit 3", what="it is bad")
    assert client.run("cat", text="x") == "x"
    (tmp_path / "in").write_bytes(b"y" * 3_000_000)
    with open(tmp_path / "out", "wb") as out:
        client.run("cat", source=tmp_path / "in", out=out)
    assert (tmp_path / "out").read_bytes() == b"y" * 3_000_000


def test_a_client_that_hangs_is_ended_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "GRACE", 1)
    with pytest.raises(Failure, match="did not end within"):
        backup._Client(backup.Deadline(0.3), {}).run("sleep", "60")


def test_units_stop_and_start_containers_by_name_and_label(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def execute(argv, deadline, **rest):
        calls.append(list(argv))
        return backup.Ended(0, "api-2\napi-1\n" if argv[1] == "ps" and "component" in argv[4] else "", "")

    monkeypatch.setattr(backup, "execute", execute)
    units = backup.Units(("container:hostwright.component=api", "container:db"), backup.Deadline(9))
    running = units.running()
    assert running == ["container:api-1", "container:api-2"]
    assert [argv[4] for argv in calls] == ["--filter=label=hostwright.component=api", "--filter=name=^/?db$"]
    calls.clear()
    units.stop(running)
    units.start(running)
    assert calls == [["docker", verb, name] for verb in ("stop", "start") for name in ("api-1", "api-2")]


# --- a bucket that holds nothing -----------------------------------------------------------------------------------------


@pytest.fixture
def bucket(shop, tmp_path: Path):
    """The same source as a bucket: a directory that stands for it, and for rclone what it does with one."""
    remote = tmp_path / "remote"
    remote.mkdir()

    def rclone(*words: str, missing: bool = False) -> str:
        files = sorted(each for each in remote.iterdir())
        if words[0] == "size":
            return json.dumps({"count": len(files), "bytes": sum(each.stat().st_size for each in files)})
        if words[0] == "sync":
            shutil.rmtree(words[-1])
            shutil.copytree(remote, words[-1])
        return "[]" if words[0] == "lsjson" else ""

    def fresh():
        made = shop.backup(
            kind="bucket", path="", minimum={}, bucket={"bucket": "b", "endpoint": "http://x", "region": "r"}
        )
        made.kind._rclone = rclone
        return made

    return SimpleNamespace(backup=fresh, remote=remote, primary=shop.primary, offsite=shop.offsite, state=shop.state)


def test_a_bucket_that_never_held_anything_is_no_loss(bucket) -> None:
    bucket.backup().run()
    bucket.backup().drill()
    assert (bucket.state()["failure"], bucket.state()["rows"]) == ("", {"objects": 0})
    assert bucket.state()["last_verified"]
    bucket.backup().run()
    assert [each.total for each in bucket.primary.taken] == [0, 0]


def test_a_bucket_that_held_something_and_is_empty_is_a_loss(bucket) -> None:
    bucket.backup().run()
    bucket.backup().drill()
    for number in range(10):
        (bucket.remote / str(number)).write_text("x")
    bucket.backup().run()
    # the verified copy is of the empty bucket, and is no measure for what came after
    for number in range(9):
        (bucket.remote / str(number)).unlink()
    with pytest.raises(Failure, match="1 rows or files, was 10"):
        bucket.backup().run()
    (bucket.remote / "9").unlink()
    with pytest.raises(Failure, match="holds no object, and 10 when copy 00000000 of 2026-11-02"):
        bucket.backup().run()
    assert "holds no object" in bucket.state()["failure"]
    assert [each.total for each in bucket.primary.taken] == [0, 10]
    mirror = bucket.backup().kind.mirror
    assert len(list(mirror.iterdir())) == 1, "what the mirror holds is not thrown away"

    # on a host that is new, the copies are elsewhere
    bucket.primary.taken.clear()
    shutil.rmtree(bucket.primary.root)
    with pytest.raises(Failure, match="holds no object, and 10 when"):
        bucket.backup().run()
    bucket.offsite.broken = "does not answer"
    with pytest.raises(Failure, match="does not answer"):
        bucket.backup().run()
    bucket.offsite.broken = ""
    bucket.backup().run(accept_smaller=True)
    bucket.backup().run()


@pytest.fixture
def directory(shop, tmp_path: Path):
    """The same source as a directory."""
    path = tmp_path / "games"
    path.mkdir()

    def fresh(minimum):
        return shop.backup(kind="directory", path=str(path), minimum=minimum)

    return SimpleNamespace(backup=fresh, path=path, primary=shop.primary, state=shop.state)


def test_a_directory_that_never_held_anything_is_no_loss_where_that_is_declared(directory) -> None:
    for minimum, said in (({}, "it is empty"), ({"files": 1}, "it is empty")):
        with pytest.raises(Failure, match=said):
            directory.backup(minimum).run()
    assert directory.primary.taken == []
    directory.backup({"files": 0}).run()
    directory.backup({"files": 0}).drill()
    assert (directory.state()["failure"], directory.state()["rows"]) == ("", {"files": 0})
    assert directory.state()["last_verified"]
    (directory.path / "link").symlink_to("/etc/hostname")
    (directory.path / "2026").mkdir()
    directory.backup({"files": 0}).run()
    assert [each.total for each in directory.primary.taken] == [0, 0]


def test_a_directory_that_held_something_and_is_empty_is_a_loss(directory) -> None:
    directory.backup({"files": 0}).run()
    directory.backup({"files": 0}).drill()
    (directory.path / "game").write_text("x")
    directory.backup({"files": 0}).run()
    (directory.path / "game").unlink()
    with pytest.raises(Failure, match=r"games holds no file, and 1 when copy 00000000 of 2026-11-02.*--accept-smaller"):
        directory.backup({"files": 0}).run()
    assert [each.total for each in directory.primary.taken] == [0, 1]
    directory.backup({"files": 0}).run(accept_smaller=True)
    assert [each.total for each in directory.primary.taken] == [0, 1, 0]
    directory.path.rmdir()
    with pytest.raises(Failure, match="does not exist or is no directory"):
        directory.backup({"files": 0}).run()
