"""The rules of a file set, and what counts as a change, without a host."""

import base64
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facts.fileset import FileSet, FileSetState, PathState, UnitState, parse_unit
from operations import fileset
from operations.fileset import Absent, Directory, File, Symlink, entry_faults, owes_action
from settings.secret import Secret

OUTPUT = [
    "path\tf\t644\troot\troot\t1763777951.1000000000\t/etc/a b.conf\t",
    "path\tl\t777\troot\troot\t1763777952.0000000000\t/etc/link\ta b.conf",
    "path\td\t750\troot\tadm\t1763777953.0000000000\t/etc/dir\t",
    "sum\t9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  /etc/a b.conf",
    "sum\t9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  /etc/link",
    "unit\tLoadState=loaded",
    "unit\tActiveState=active",
    "unit\tInvocationID=abc",
    "unit\tNeedDaemonReload=no",
    "unit\tExecMainStartTimestamp=Sun 2026-11-22 02:19:11.123456 UTC",
    "unit\tStateChangeTimestamp=Sun 2026-11-22 02:20:11.000000 UTC",
    "stamp\t1234 abc",
]


def test_fact_reads_paths_unit_and_stamp_from_one_output():
    state = FileSet().process(OUTPUT)
    assert state.paths["/etc/a b.conf"].sha256.startswith("9f86d081")
    assert state.paths["/etc/link"] == PathState("l", "777", "root", "root", 1763777952.0, "a b.conf")
    assert state.paths["/etc/dir"].kind == "d"
    assert state.unit.is_active
    assert state.unit.started == 1795313951.123456
    assert state.unit.reloaded > state.unit.started
    assert state.stamp == ("1234", "abc")


def test_fact_of_nothing_is_empty():
    assert FileSet().process([]) == FileSetState()


def test_a_unit_in_a_crash_loop_is_not_active():
    assert not parse_unit(
        {"LoadState": "loaded", "ActiveState": "activating", "SubState": "auto-restart"}
    ).is_active


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (File("etc/x", ""), "'etc/x': must be an absolute, normalised path"),
        (File("/etc/../x", ""), "'/etc/../x': must be an absolute, normalised path"),
        (File("/etc//x", ""), "'/etc//x': must be an absolute, normalised path"),
        (File("/etc/a|b", ""), "'/etc/a|b': a path or link target may not hold '|', tab or newline"),
        (Symlink("/etc/a", "b\nc"), "'/etc/a': a path or link target may not hold '|', tab or newline"),
        (File("/etc/x", "", mode="rw"), "'/etc/x': mode must be octal text like '0644', got 'rw'"),
        (File("/etc/x", "", mode="0888"), "'/etc/x': mode must be octal text like '0644', got '0888'"),
        (
            File("/etc/x", Secret("s")),
            "'/etc/x': holds a secret, mode must be 0600 or 0640, got '0644'",
        ),
        (
            File("/etc/x", Secret("s"), mode="0660"),
            "'/etc/x': holds a secret, mode must be 0600 or 0640, got '0660'",
        ),
    ],
)
def test_bad_entry_is_refused_with_its_rule(entry, message):
    assert entry_faults([entry], None, None) == [message]


def test_every_fault_is_listed_at_once():
    faults = entry_faults([File("a", ""), File("/b", ""), File("/b", "")], "true", None)
    assert faults == [
        "'a': must be an absolute, normalised path",
        "'/b': stands twice in one file set",
        "validate needs within=, the directory that the validator looks at",
    ]


@pytest.mark.parametrize("mode", ["0600", "0400", "0640", "0440", "600"])
def test_secret_is_taken_with_a_closed_mode(mode):
    assert entry_faults([File("/etc/x", Secret("s"), mode=mode)], None, None) == []


def test_content_is_not_in_the_repr_that_pyinfra_prints_for_unnamed_operations():
    assert "hush" not in repr([File("/etc/x", "hush"), File("/etc/y", Secret("hush"), mode="0600")])


FOUND = PathState("f", "644", "root", "root", 10.0, "", File("/etc/x", "text").sha256)


@pytest.mark.parametrize(
    ("entry", "state", "wanted"),
    [
        (File("/etc/x", "text"), FOUND, True),
        (File("/etc/x", "other"), FOUND, False),
        (File("/etc/x", "text", mode="0600"), FOUND, False),
        (File("/etc/x", "text", owner="www-data"), FOUND, False),
        (File("/etc/x", "text"), None, False),
        (Absent("/etc/x"), None, True),
        (Absent("/etc/x"), FOUND, False),
        (Directory("/etc/x", mode="0644"), FOUND, False),
        (Symlink("/etc/x", "y"), PathState("l", "777", "root", "root", 1.0, "y"), True),
        (Symlink("/etc/x", "z"), PathState("l", "777", "root", "root", 1.0, "y"), False),
        (Directory("/d", mode="0750"), PathState("d", "750", "root", "root", 1.0), True),
        (Directory("/d", mode="2750"), PathState("d", "2750", "root", "root", 1.0), True),
    ],
)
def test_as_wanted(entry, state, wanted):
    assert fileset._is_as_wanted(entry, state) is wanted


ACTIVE = UnitState(load="loaded", active="active", invocation="i1", started=100.0, reloaded=150.0)


@pytest.mark.parametrize(
    ("unit", "stamp", "action", "newest", "owed"),
    [
        # our own last action answers for its invocation, whatever the clock says
        (ACTIVE, ("h", "i1"), "restart", 900.0, False),
        (ACTIVE, ("old", "i1"), "restart", 1.0, True),
        # another invocation: the time at which it loaded its files
        (ACTIVE, ("old", "i0"), "restart", 99.0, False),
        (ACTIVE, ("h", "i0"), "restart", 101.0, True),
        (ACTIVE, None, "restart", 99.0, False),
        (ACTIVE, None, "restart", 120.0, True),
        (ACTIVE, None, "reload", 120.0, False),
        (ACTIVE, None, "reload", 151.0, True),
        # a stopped unit stays stopped, a failed or looping one is tried again
        (UnitState(load="loaded", active="inactive"), None, "restart", 900.0, False),
        (UnitState(load="loaded", active="failed"), None, "restart", 1.0, True),
        (UnitState(load="loaded", active="activating", sub="auto-restart"), None, "restart", 1.0, True),
    ],
)
def test_action_is_owed_when_the_unit_runs_on_something_older(unit, stamp, action, newest, owed):
    assert owes_action(FileSetState({}, unit, stamp), "h", action, newest) is owed


@given(
    st.lists(
        st.tuples(
            st.text("abcxyz", min_size=1), st.binary(max_size=200), st.sampled_from(["0600", "0644", "0755"])
        ),
        max_size=6,
        unique_by=lambda item: item[0],
    )
)
def test_payload_holds_every_file_with_its_final_mode(items):
    files = [File(f"/etc/{stem}", content, mode=mode) for stem, content, mode in items]
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(fileset._payload(files)))) as archive:
        for file in files:
            member = archive.getmember(fileset.staged_path(file.path).lstrip("/"))
            assert f"{member.mode:04o}" == file.mode
            taken = archive.extractfile(member)
            assert taken is not None
            assert taken.read() == file.data


def test_hash_does_not_depend_on_the_order_of_entries():
    assert fileset.content_hash([("/a", "1"), ("/b", "2")]) == fileset.content_hash(
        [("/b", "2"), ("/a", "1")]
    )
    assert fileset.content_hash([("/a", "1")]) != fileset.content_hash([("/a", "2")])
