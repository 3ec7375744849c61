"""Releases of the lab's gateway on a real host; read back with ls, stat and the release's own interpreter."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import apps
from tests.lab.hosts import LabHost
from tests.lab.kill import kill_after, moments
from tests.lab.lab import Lab
from tests.lab.provision import Run, command_line

ROOT = "/opt/shop"
RELEASES = f"{ROOT}/releases"


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[LabHost]:
    fresh = lab.host("t-release", layer="packages")
    yield fresh
    lab.destroy(fresh)


@pytest.fixture(scope="module")
def served(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, apps.Repository]:
    """A directory, its URL, and the repository in it."""
    directory = tmp_path_factory.mktemp("served")
    return directory, lab.serve(directory, port=8095), apps.gateway_repository(directory)


def deploy_text(source: str, **arguments: object) -> str:
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"from operations import release\nfrom operations.release import ArchiveSource, GitSource\nrelease.release({ROOT!r}, {source}{given}, name='Build')\n"


@pytest.fixture
def build(host: LabHost, provision: Callable[..., Run]) -> Callable[..., Run]:
    # Without requirements, unless a test is about them: their installation takes most of a build's time.
    return lambda source, dry=False, requirements="", **arguments: provision(
        host, deploy_text(source, requirements=requirements, **arguments), dry=dry
    )


def git(url: str, version: str, **more: str) -> str:
    return (
        f"GitSource({url + '/gateway.git'!r}, {version!r}{''.join(f', {k}={v!r}' for k, v in more.items())})"
    )


def releases(host: LabHost) -> list[str]:
    """What stands below releases, hidden directories included."""
    return sorted(host.run(f"ls -A {RELEASES}").stdout.split())


def test_set_noop_update(host, build, served):
    _, url, repository = served
    locked = "requirements.txt"
    assert build(git(url, "v1.0.0"), requirements=locked).changed == ["Build"]
    [first] = releases(host)
    assert first.startswith("v1.0.0-")
    at = f"{RELEASES}/{first}"
    assert (
        host.run(
            f"cd {at}/src && {at}/venv/bin/python -c 'import app.release, uvicorn; print(app.release.VERSION)'"
        ).stdout
        == "1.0.0\n"
    )
    # read-only for everybody but root, whatever the repository says
    assert host.run(f"find {at} ! -user root -o ! -type l -perm /022 -o -perm /6000").stdout == ""
    assert host.run(f"find {at} -type d ! -perm 0755 -o -type f ! -perm -0444").stdout == ""
    assert not host.exists(f"{at}/src/.git")
    assert host.run(f"{at}/venv/bin/uvicorn --version").stdout.startswith("Running uvicorn")
    assert repository.commits["v1.0.0"] in host.read(f"{at}/.complete")

    before = host.run(f"stat -c %Z {at}/.complete").stdout
    assert build(git(url, "v1.0.0"), requirements=locked).changed == []
    assert build(git(url, "v1.0.0"), requirements=locked, dry=True).changed == []
    assert build(git(url, "v1.1.0"), dry=True).changed == ["Build"]
    assert host.run(f"stat -c %Z {at}/.complete").stdout == before

    assert build(git(url, "v1.1.0")).changed == ["Build"]
    assert len(releases(host)) == 2


def test_release_with_the_same_locked_packages_needs_no_index(host, build, served):
    _, url, _ = served
    locked = "requirements.txt"
    assert build(git(url, "v1.0.0"), requirements=locked).ok
    pip_conf = host.run("cat /etc/pip.conf 2>/dev/null", check=False).stdout
    nowhere = "http://127.0.0.1:9/simple"
    host.write("/etc/pip.conf", f"[global]\nindex-url = {nowhere}\nretries = 0\nno-cache-dir = true\n")
    try:
        assert build(git(url, "v1.2.1-unhealthy"), requirements=locked).changed == ["Build"]
        at = host.run(f"ls -d {RELEASES}/v1.2.1-*").stdout.strip()
        assert host.run(
            f"cd {at}/src && {at}/venv/bin/python -c 'import uvicorn; print(uvicorn.__file__)'"
        ).stdout.startswith(f"{at}/venv/")
        assert host.run(f"{at}/venv/bin/uvicorn --version").stdout.startswith("Running uvicorn")
        assert host.run(f"grep -rlI v1.0.0- {at}/venv/bin {at}/venv/pyvenv.cfg", check=False).stdout == ""
        # an environment that was changed by hand is no model for another
        host.run(
            f"rm -rf {RELEASES}/v1.2.1-*; cd {RELEASES}/v1.0.0-*/venv/lib/python3*/site-packages && touch x.py"
        )
        assert build(git(url, "v1.2.1-unhealthy"), requirements=locked).failed == ["Build"]
    finally:
        host.write("/etc/pip.conf", pip_conf)
        host.run(f"rm -rf {RELEASES}/v1.*")


def test_commit_is_a_version(host, build, served):
    _, url, repository = served
    commit = repository.commits["v1.0.0"]
    assert build(git(url, commit)).ok
    [name] = [name for name in releases(host) if name.startswith(commit)]
    assert f"commit={commit}" in host.read(f"{RELEASES}/{name}/.complete")


def test_archive_is_unpacked_below_src_whatever_its_top_directory(host, build, served):
    directory, url, _ = served
    archive, sha256 = apps.gateway_archive(directory, "v1.1.0")
    assert build(f"ArchiveSource('{url}/{archive.name}', '{sha256}')").changed == ["Build"]
    [name] = [name for name in releases(host) if name.startswith(sha256[:12])]
    assert host.exists(f"{RELEASES}/{name}/src/app/main.py")


def test_archive_with_another_sum_is_not_unpacked(host, build, served):
    directory, url, _ = served
    archive, sha256 = apps.gateway_archive(directory, "v1.0.0")
    before = releases(host)
    run = build(f"ArchiveSource('{url}/{archive.name}', '{'0' * 64}')")
    assert run.failed == ["Build"]
    assert f"has SHA-256 {sha256}, not {'0' * 64} as declared" in run.stderr
    assert releases(host) == before


def test_archive_cannot_write_outside(host, build, served):
    directory, url, _ = served
    evil = directory / "evil.tar"
    with tarfile.open(evil, "w") as archive:
        link = tarfile.TarInfo("top/out")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("top/out/pwned"))
        archive.addfile(tarfile.TarInfo("../../../../../etc/pwned"))
    sha256 = subprocess.run(["sha256sum", evil], capture_output=True, text=True, check=True).stdout.split()[0]
    before = releases(host)
    assert build(f"ArchiveSource('{url}/evil.tar', '{sha256}')").failed == ["Build"]
    assert not host.exists("/etc/pwned")
    assert releases(host) == before


@pytest.mark.parametrize(
    ("version", "more", "words"),
    [
        ("v9.9.9", {}, "has no tag or commit v9.9.9"),
        ("main", {}, "has no tag or commit main"),
        ("v1.0.0", {"commit": "0" * 40}, f"not {'0' * 40} as declared"),
        ("deadbeef" * 5, {}, f"has no tag or commit {'deadbeef' * 5}"),
    ],
)
def test_version_that_is_not_there_is_said(host, build, served, version, more, words):
    before = releases(host)
    run = build(git(served[1], version, **more))
    assert run.failed == ["Build"]
    assert words in run.stderr
    assert releases(host) == before


def test_requirement_with_another_hash_is_not_installed(host, build, served):
    directory, url, _ = served
    archive, _ = apps.gateway_archive(directory, "v1.0.0")
    top = directory / "tampered"
    with tarfile.open(archive) as whole:
        whole.extractall(top, filter="data")
    [requirements] = top.glob("*/requirements.txt")
    requirements.write_text("click==8.1.7 --hash=sha256:" + "0" * 64 + "\n")
    tampered = directory / "tampered.tar.gz"
    with tarfile.open(tampered, "w:gz") as whole:
        whole.add(requirements.parent, "top")
    sha256 = subprocess.run(
        ["sha256sum", tampered], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    before = releases(host)
    run = build(f"ArchiveSource('{url}/tampered.tar.gz', '{sha256}')", requirements="requirements.txt")
    assert run.failed == ["Build"]
    assert "DO NOT MATCH THE HASHES" in run.stderr
    assert releases(host) == before


def test_tag_that_was_moved_is_refused(host, build, served):
    _, url, repository = served
    assert build(git(url, "v1.0.0")).ok
    host.run(f"rm -rf {RELEASES}/v1.0.0-*")
    apps.move_tag(repository, "v1.0.0", repository.commits["v1.1.0"])
    try:
        run = build(git(url, "v1.0.0"))
        assert run.failed == ["Build"]
        assert f"was commit {repository.commits['v1.0.0']} when this host first built it" in run.stderr
        assert f"now names {repository.commits['v1.1.0']}" in run.stderr
    finally:
        apps.move_tag(repository, "v1.0.0", repository.commits["v1.0.0"])
    assert build(git(url, "v1.0.0")).ok


@pytest.mark.parametrize(
    "damage",
    [
        "echo '# edited' >>{at}/src/app/main.py",
        "ln -sf /usr/bin/python3-gone {at}/venv/bin/python3",
        *(
            pytest.param(damage, marks=pytest.mark.soak)
            for damage in (
                "rm {at}/src/app/config.py",
                "rm -rf {at}/venv/lib/python3*/site-packages/pip",
                "rm -rf {at}/src",
                "rm {at}/.complete",
            )
        ),
    ],
)
def test_release_changed_by_hand_is_built_again(host, build, served, damage):
    _, url, _ = served
    assert build(git(url, "v1.1.0")).ok
    [name] = [name for name in releases(host) if name.startswith("v1.1.0-")]
    at = f"{RELEASES}/{name}"
    host.run(damage.format(at=at))
    assert build(git(url, "v1.1.0")).changed == ["Build"]
    assert (
        host.run(f"cd {at}/src && {at}/venv/bin/python -c 'import app.config, pip; print(1)'").stdout == "1\n"
    )
    assert "edited" not in host.read(f"{at}/src/app/main.py")
    assert build(git(url, "v1.1.0")).changed == []
    assert [name for name in releases(host) if name.startswith(".")] == []


def test_old_releases_go_and_those_in_use_stay(host, build, served):
    _, url, _ = served
    assert build(git(url, "v1.0.0")).ok
    in_use = [name for name in releases(host) if name.startswith("v1.0.0-")][-1]
    unit = "/etc/systemd/system/shop.service"
    host.write(unit, f"[Service]\nExecStart={RELEASES}/{in_use}/venv/bin/python -m http.server\n")
    try:
        assert build(git(url, "v1.2.1-unhealthy"), keep=1).changed == ["Build"]
        left = releases(host)
        assert in_use in left
        assert [name for name in left if name != in_use] == [name for name in left if "unhealthy" in name]
        run = build("None", present=False)
        assert run.failed == ["Build"]
        assert f"releases of {ROOT} are in use by: {unit}" in run.stderr
    finally:
        host.run(f"rm {unit}")


def test_python_may_be_one_that_uv_finds(host, build, served):
    # The host's own version: others would be downloaded from a forge that the lab cannot reach.
    minor = host.run("python3 -c 'import sys; print(sys.version_info.minor)'").stdout.strip()
    assert build(git(served[1], "v1.1.0"), python=f"uv:3.{minor}").changed == ["Build"]
    assert build(git(served[1], "v1.1.0"), python=f"uv:3.{minor}").changed == []
    newest = host.run(f"ls -td {RELEASES}/v1.1.0-*").stdout.split()[0]
    assert (
        host.run(f"cd {newest}/src && {newest}/venv/bin/python -c 'import app.release; print(1)'").stdout
        == "1\n"
    )
    assert host.run(f"{ROOT}/uv-*/bin/uv --version").stdout.startswith("uv ")

    run = build(git(served[1], "v1.1.0"), python="uv:3.99")
    assert run.failed == ["Build"]
    assert "cannot install Python 3.99" in run.stderr


@pytest.mark.parametrize("number", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_host_that_dies_during_a_build_leaves_nothing_half(host, build, served, tmp_path, number):
    source, locked = git(served[1], "v1.1.0"), "requirements.txt"
    for seconds in moments(number, 0.8, 8):
        host.run(f"rm -rf {RELEASES}")
        kill_after(command_line(tmp_path, host, deploy_text(source, requirements=locked)), seconds, host)
        assert build(source, requirements=locked).ok, f"killed after {seconds:.2f}s"
        [name] = releases(host)
        at = f"{RELEASES}/{name}"
        assert (
            host.run(f"cd {at}/src && {at}/venv/bin/python -c 'import app.main' 2>&1", check=False)
            .stdout.strip()
            .endswith("ADMIN_API_KEY: at least 16 characters")
        )
        assert build(source, requirements=locked).changed == []


def test_removed_whole(host, build, served):
    assert build("None", present=False).changed == ["Build"]
    assert not host.exists(ROOT)
    assert build("None", present=False).changed == []
