"""The cleanup's decision as a function of what is on a host, and what `operations.cleanup` writes for it."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from facts.cleanup import read_plan
from operations import cleanup as operation
from operations.cleanup import Pressure, policy_faults, policy_text, span_seconds

PROGRAM = Path(__file__).parents[2] / "files" / "cleanup" / "cleanup.py"


def _load():
    spec = importlib.util.spec_from_file_location("hostwright_cleanup", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


cleanup = _load()
DAY, NOW = 86400, 1_800_000_000
OLD = NOW - 30 * DAY
POLICY = cleanup.Policy(ours=("reg.test/shop/*", "label:org.shop=yes"), job_label="shop.job")


def image(name: str = "", **values: object):
    tags = tuple(name.split()) if name else ()
    fields = {"id": f"sha256:{name or 'x'}", "tags": tags, "digests": (), "labels": {}, "size": 10, "arrived": OLD}
    return cleanup.Image(**{**fields, **values})


def container(name: str = "c", of: str = "", **values: object):
    fields = {"running": False, "created": OLD, "finished": OLD, "labels": {}, "environment": {}}
    return cleanup.Container(id=f"id-{name}", name=name, image=f"sha256:{of}", **{**fields, **values})


def release(number: int, *images: str):
    return cleanup.Release("api", f"r{number}", images or (f"reg.test/shop/api:{number}",))


def host(*images, containers=(), networks=(), releases=None, used=None, percent=10):
    return cleanup.Host(tuple(images), tuple(containers), tuple(networks), releases or {}, used or {}, percent, NOW)


def why(host, name: str, policy=POLICY, until: int | None = None) -> str:
    """Why a thing stays; `goes` when it does not."""
    (verdict,) = [each for each in cleanup.decide(host, policy, until).verdicts if each.name == name]
    return "goes" if verdict.goes else verdict.why


API = "reg.test/shop/api:1"


def test_an_old_image_of_ours_that_nobody_needs_goes() -> None:
    assert why(host(image(API)), API) == "goes"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"containers": [container("db", API)]}, "container db is made from it"),
        ({"containers": [container("api", API, running=True)]}, "container api runs it"),
        ({"containers": [container("w", environment={"JOB_IMAGE": API})]}, "JOB_IMAGE of container w names it"),
        ({"releases": {"api": [release(2), release(1)]}}, "release r1 of api"),
        ({"releases": {"api": [release(3, f"sha256:{API}")]}}, "release r3 of api (the newest)"),
        ({"used": {f"sha256:{API}": NOW - 6 * DAY}}, "used or fetched 6 d ago"),
    ],
)
def test_an_image_stays_for_a_reason(change: dict[str, object], reason: str) -> None:
    assert why(host(image(API), **change), API) == reason


@pytest.mark.parametrize(
    ("found", "name", "reason"),
    [
        (image("redis:7"), "redis:7", "not ours"),
        (image("reg.test/shopping:1"), "reg.test/shopping:1", "not ours"),
        (image(f"{API} other/api:1"), f"{API}, other/api:1", "not ours alone: it is also other/api:1"),
        (image(id="sha256:0123456789abcdef"), "0123456789ab", "not ours: it has no name and no label of ours"),
        (image("a:1", labels={"org.shop": "no"}), "a:1", "not ours"),
        (image("a:1", labels={"org.shop": "yes"}), "a:1", "goes"),
        (image(id="sha256:aa", labels={"org.shop": "yes"}), "aa", "goes"),
        # what a moved tag leaves behind: no name, but the digest that it was pulled by
        (image(digests=("reg.test/shop/api@sha256:ee",)), "reg.test/shop/api@sha256:ee", "goes"),
        (image(API, arrived=0), API, "used or fetched 0 min ago"),
    ],
)
def test_what_is_ours(found, name: str, reason: str) -> None:
    assert why(host(found), name) == reason


def test_what_others_are_built_on_stays() -> None:
    parent = image(API)
    assert why(host(parent, image("other/x:1", parent=parent.id)), API) == "other/x:1 is built on it"


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ("redis", "redis:latest", True),
        ("docker.io/library/redis:7", "redis:7", True),
        ("redis:7", "redis:6", False),
        ("shop/api", "docker.io/shop/api:latest", True),
        ("localhost/api:1", "localhost/api:1", True),
        ("reg.test:5000/api", "reg.test:5000/api:latest", True),
        ("reg.test/shop/*", "reg.test/shop/api:9", True),
        ("reg.test/shop/api:1.*", "reg.test/shop/api:1.2", True),
        ("reg.test/shop/api:1.*", "reg.test/shop/api:2.1", False),
    ],
)
def test_names_mean_what_the_engine_means(wanted: str, found: str, same: bool) -> None:
    assert cleanup.means(wanted, image(found)) is same
    assert why(host(image(found)), found, replace(POLICY, keep_images=(wanted,), ours=("*:*",))) == (
        "named in the settings" if same else "goes"
    )


def test_a_digest_names_its_image_whatever_tag_stands_before_it() -> None:
    found = image(API, digests=("reg.test/shop/api@sha256:ee",))
    assert cleanup.means("reg.test/shop/api:gone@sha256:ee", found)
    assert not cleanup.means("reg.test/shop/api:1@sha256:dd", found)


def labelled(number: int, **values: object):
    labels = {"hostwright.component": "api", "hostwright.release": f"r{number}"}
    return container(f"api-{number}", labels=labels, **values)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (labelled(1), "goes"),
        (labelled(1, running=True), "runs"),
        (labelled(1, finished=NOW - DAY), "ended 24 h ago"),
        (labelled(3), "of release r3 of api, which is kept"),
        (container("job", labels={"shop.job": ""}), "goes"),
        (container("job", labels={"shop.job": ""}, running=True), "goes"),
        (container("job", labels={"shop.job": ""}, created=NOW - 24 * 3600), "of a job, 24 h old"),
    ],
)
def test_containers(found, verdict: str) -> None:
    stored = {"api": [release(number) for number in (4, 3, 2)]}
    assert why(host(containers=[found], releases=stored), found.name) == verdict


@pytest.mark.parametrize(
    "found",
    [
        container("database", labels={"hostwright.container": "database"}),
        container("foreign"),
        container("run", labels={"com.docker.compose.project": "x"}),
    ],
)
def test_other_containers_are_not_even_looked_at(found) -> None:
    assert cleanup.decide(host(containers=[found]), POLICY).verdicts == ()


def test_no_stored_release_no_removed_container() -> None:
    assert why(host(containers=[labelled(1)]), "api-1") == "no release of api is stored"


def test_the_image_of_a_container_that_goes_goes_with_it() -> None:
    found = host(image(API), containers=[replace(labelled(1), image=f"sha256:{API}")], releases={"api": [release(9)]})
    assert why(found, API) == "goes"


@pytest.mark.parametrize(
    ("created", "attached", "goes"), [(OLD, False, True), (OLD, True, False), (NOW - 60, False, False)]
)
def test_job_networks(created: float, attached: bool, goes: bool) -> None:
    network = cleanup.Network("n", "net", created, attached, {})
    (verdict,) = cleanup.decide(host(networks=[network]), POLICY).verdicts
    assert verdict.goes is goes


def test_pressure_shortens_the_rules_and_until_is_the_last_word() -> None:
    stored = {"api": [release(number) for number in (5, 4, 3)]}
    names = [f"reg.test/shop/api:{number}" for number in (5, 4, 3)]
    idle = image("reg.test/shop/x:1", arrived=NOW - DAY)
    found = host(*map(image, names), idle, releases=stored)

    def going(percent: int, until: int | None = None) -> list[str]:
        decision = cleanup.decide(replace(found, percent=percent), POLICY, until)
        assert decision.pressed is (percent >= 85)
        return [verdict.name for verdict in decision.going]

    assert going(84) == []
    assert going(85) == [names[2], "reg.test/shop/x:1"]
    assert going(85, until=2 * DAY) == [names[2]]
    assert going(10, until=3600) == ["reg.test/shop/x:1"]


def test_stored_releases_are_in_the_order_in_which_they_served(tmp_path: Path) -> None:
    specs = tmp_path / "api" / "specs"
    specs.mkdir(parents=True)
    for name in ("a", "b", "c"):
        environment = "X=1\nMINECRAFT_SERVER_IMAGE=m:1\nBUILDER_IMAGES=b:1, b:2\nIMAGES_ROOT=/x\n"
        values = {"spec": {"image": f"api:{name}", "environment": environment}, "settings": {"image_x": "no"}, "image_id": "sha256:1"}
        (specs / f"{name}.json").write_text(json.dumps(values))
    (tmp_path / "api" / "history").write_text("b\na\nb\n")
    found = cleanup.releases(tmp_path)["api"]
    assert [each.release for each in found] == ["b", "a", "c"]
    assert found[0].images == ("api:b", "m:1", "b:1", "b:2", "sha256:1")
    (specs / "c.json").write_text("{")
    with pytest.raises(cleanup.Failure, match="nothing was removed"):
        cleanup.releases(tmp_path)


def test_the_journal_only_moves_forward_and_forgets_what_is_gone(tmp_path: Path) -> None:
    journal = cleanup.Journal(tmp_path / "used")
    assert (journal.read(), journal.looked) == ({}, 0)
    journal.write({"sha256:aa": 100, "sha256:bb": 100}, 200)
    journal.write({"sha256:aa": 50, "sha256:cc": 70}, 300)
    assert journal.read() == {"sha256:aa": 100, "sha256:cc": 70}
    assert journal.looked == 300


class Engine:
    """Answers like the engine; what it is told to refuse it refuses."""

    def __init__(self, refuse: dict[str, int] | None = None) -> None:
        self.refuse, self.deleted, self.bytes = refuse or {}, [], 1000

    def get(self, path: str, **query: str):
        return {"DockerRootDir": "/"}

    def post(self, path: str, **query: str) -> None:
        pass

    def delete(self, path: str, **query: str) -> None:
        if path in self.refuse:
            raise cleanup.Refused(self.refuse[path], "it is in use")
        assert query.get("force") != "1" or path.startswith("/containers/")
        assert query.get("v", "0") == "0"
        assert not path.startswith("/images") or query["noprune"] == "1"
        self.deleted.append(path)
        self.bytes -= 100

    def used_bytes(self) -> int:
        return self.bytes


def run(engine, found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cleanup, "gather", lambda *_: found)
    return cleanup.run(engine, POLICY, cleanup.Places(journal=tmp_path / "used"), None)


def test_a_run_removes_all_names_and_says_what_was_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    report = run(engine, host(image(f"{API} reg.test/shop/api:latest"), image("redis:1")), tmp_path, monkeypatch)
    assert engine.deleted == ["/images/reg.test/shop/api:1", "/images/reg.test/shop/api:latest"]
    assert report.won == 200
    assert report.lines()[-1] == "1 removed, 200 bytes won (200 B)"


def test_what_the_engine_refuses_stays_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine({"/images/reg.test/shop/api:1": 409})
    report = run(engine, host(image(API), image("reg.test/shop/b:1")), tmp_path, monkeypatch)
    assert engine.deleted == ["/images/reg.test/shop/b:1"]
    assert report.statuses == (409,)
    assert f"stays   image {API} 10 B: the engine says: it is in use" in report.lines()


def test_gone_meanwhile_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(Engine({f"/images/{API}": 404}), host(image(API)), tmp_path, monkeypatch)
    assert (report.refused, len(report.removed)) == ((), 1)


def test_a_held_lock_is_waited_for_and_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "LOCK_POLL", 0.01)
    path = tmp_path / "containers.lock"
    with open(path, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(cleanup.Failure, match="nothing was removed"), cleanup.locked(path, 0):
            pass
    with cleanup.locked(path, 0), open(path) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_times_of_the_engine() -> None:
    assert cleanup.moment("2026-11-22T06:21:11.037923846Z") == pytest.approx(1795328471.037923)
    assert cleanup.moment("2026-11-22T06:21:11Z") == 1795328471
    assert cleanup.moment("2026-11-22T07:21:11.5+01:00") == 1795328471.5
    assert cleanup.moment("0001-01-01T00:00:00Z") == cleanup.moment("") == 0


# --- the operation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("24h", DAY), ("7d", 7 * DAY), ("90m", 5400), ("2w", 14 * DAY)])
def test_spans(text: str, seconds: int) -> None:
    assert span_seconds(text, "until") == seconds


@pytest.mark.parametrize(
    ("text", "said"),
    [(24, "write 24h or 24d"), (True, "needs a unit"), ("24", "a span such as"), ("24 h", "a span"), ("0h", "a span"),
     ("-1h", "a span"), ("1h30m", "a span"), ("59m", "at least an hour"), (None, "a span"), (1.5, "a span")],
)  # fmt: skip
def test_spans_that_are_refused(text: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        span_seconds(text, "until")


GOOD = {
    "ours": ["reg.test/shop/*"], "keep_images": ["redis"], "releases": 3, "unused": "7d", "job_label": "shop.job",
    "job_limit": "25h", "pressure": Pressure(), "every_hours": 6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ours": ["*"]}, "images of everybody"),
        ({"ours": ["*/*"]}, "images of everybody"),
        ({"ours": "reg.test/*"}, "ours must be a list"),
        ({"keep_images": [""]}, "keep_images: must be a name"),
        ({"releases": 1}, "releases must be at least 2"),
        ({"pressure": Pressure(releases=4)}, "pressure.releases"),
        ({"pressure": Pressure(percent=0)}, "pressure.percent"),
        ({"pressure": Pressure(unused="5")}, "pressure.unused must be a span"),
        ({"job_limit": "1m"}, "job_limit must be at least"),
        ({"job_label": "a b"}, "job_label"),
        ({"every_hours": 5}, "every_hours must divide"),
    ],
)
def test_policies_that_are_refused(change: dict[str, object], said: str) -> None:
    assert policy_faults(**GOOD) == []
    (fault, *_) = policy_faults(**{**GOOD, **change})
    assert said in fault


def test_what_the_operation_writes_is_what_the_program_reads(tmp_path: Path) -> None:
    path = tmp_path / "cleanup.json"
    path.write_text(policy_text(*(value for key, value in GOOD.items() if key != "every_hours")))
    policy = cleanup.Policy.load(path)
    assert policy == cleanup.Policy(ours=("reg.test/shop/*",), keep_images=("redis",), job_label="shop.job")
    assert operation.PROGRAM == "/usr/local/lib/hostwright/docker-cleanup"
    with pytest.raises(cleanup.Failure, match="no cleanup is declared"):
        cleanup.Policy.load(tmp_path / "missing.json")


def test_what_the_program_prints_is_what_the_fact_reads() -> None:
    decision = cleanup.decide(host(image(API), image("redis:7")), POLICY)
    plan = read_plan(json.loads(cleanup.Report(decision).json()))
    assert [(thing.name, thing.goes) for thing in plan.things] == [(API, True), ("redis:7", False)]
    assert [thing.name for thing in plan.going] == [API]
    assert (plan.releases, plan.unused_seconds, plan.pressed) == (3, 7 * DAY, False)
    assert operation.plan_lines(plan)[1] == f"goes  image {API} (0.0 MB): not used for 30 d"


def test_arrival_is_when_the_engine_stored_the_image(tmp_path: Path) -> None:
    stored = tmp_path / "image/overlay2/imagedb/content/sha256/ab"
    stored.parent.mkdir(parents=True)
    stored.touch()
    at = time.time() - 5000
    os.utime(stored, (at, at))

    class Lists(Engine):
        def get(self, path: str, **query: str):
            return [{"Id": "sha256:ab", "RepoTags": ["<none>:<none>"], "RepoDigests": None, "Labels": None, "Size": 1}]

        def find(self, path: str):
            return {"Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"}}

    (found,) = cleanup.images(Lists(), tmp_path)
    assert found.arrived == pytest.approx(at)
    assert found.names == ()
