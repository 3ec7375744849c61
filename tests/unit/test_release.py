"""Names of releases and refused arguments, without a host."""

import pytest
from pyinfra.api import OperationValueError

from facts.release import Release, Releases
from operations import release
from operations.release import ArchiveSource, GitSource, release_id, release_path

GIT = GitSource("https://example.org/shop.git", "v1.0.0")
ARCHIVE = ArchiveSource("https://example.org/shop.tar.gz", "a" * 64)


def test_release_is_named_after_all_that_goes_into_its_build():
    names = [
        release_id(GIT),
        release_id(GitSource("https://example.org/other.git", "v1.0.0")),
        release_id(GitSource("https://example.org/shop.git", "v1.0.1")),
        release_id(GitSource("https://example.org/shop.git", "v1.0.0", commit="0" * 40)),
        release_id(GIT, requirements="requirements/prod.txt"),
        release_id(GIT, python="uv:3.12"),
        release_id(ARCHIVE),
    ]
    assert len(set(names)) == len(names)
    assert names[0].startswith("v1.0.0-")
    assert release_id(GIT) == names[0]


def test_tag_with_a_slash_is_one_directory():
    path = release_path("/opt/shop", GitSource("https://example.org/shop.git", "shop/v1.0.0"))
    assert path.startswith("/opt/shop/releases/shop_v1.0.0-")
    assert path.count("/") == 4


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (GitSource("--upload-pack=x", "v1"), {}, "url must be https://…, ssh://… or user@host:path, got '--upload-pack=x'"),
        (GitSource("ext::sh -c x", "v1"), {}, "url must be https://…, ssh://… or user@host:path, got 'ext::sh -c x'"),
        (GitSource("https://u:pw@example.org/a.git", "v1"), {}, "url must not hold a password: it is written down on the host"),
        (GitSource(GIT.url, "--all"), {}, "version must be a tag or a full commit id, got '--all'"),
        (GitSource(GIT.url, "a..b"), {}, "version must be a tag or a full commit id, got 'a..b'"),
        (GitSource(GIT.url, ""), {}, "version must be a tag or a full commit id, got ''"),
        (GitSource(GIT.url, "v1", commit="abc"), {}, "commit must be 40 hex digits, got 'abc'"),
        (ArchiveSource(ARCHIVE.url, "abc"), {}, "sha256 must be 64 hex digits, got 'abc'"),
        (GIT, {"app_root": "/"}, "app_root must be an absolute path like /opt/shop, got '/'"),
        (GIT, {"app_root": "/opt"}, "app_root must be an absolute path like /opt/shop, got '/opt'"),
        (GIT, {"app_root": "/opt/../etc"}, "app_root must be an absolute path like /opt/shop, got '/opt/../etc'"),
        (GIT, {"requirements": "../r.txt"}, "requirements must be a path inside the source, got '../r.txt'"),
        (GIT, {"requirements": "/etc/r.txt"}, "requirements must be a path inside the source, got '/etc/r.txt'"),
        (GIT, {"python": "3.12"}, "python must be 'distribution' or like 'uv:3.12', got '3.12'"),
        (GIT, {"keep": 0}, "keep must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_argument_is_refused(source, arguments, message):
    with pytest.raises(OperationValueError) as refused:
        list(release.release._inner(**{"app_root": "/opt/shop", "source": source, **arguments}))
    assert str(refused.value) == f"release.release: {message}"


def test_source_is_needed():
    with pytest.raises(OperationValueError, match="source is needed unless present=False"):
        list(release.release._inner(app_root="/opt/shop"))


def test_marker_tells_what_must_be_built_again():
    lines = [
        "root",
        "release=whole",
        "source=https://example.org/shop.git",
        "version=v1",
        "commit=abc",
        "interpreter=/usr/bin/python3.11",
        "current_interpreter=/usr/bin/python3.11",
        "touched=",
        "release=upgraded",
        "interpreter=/usr/bin/python3.11",
        "current_interpreter=/usr/bin/python3.13",
        "touched=",
        "release=edited",
        "interpreter=/usr/bin/python3.11",
        "current_interpreter=/usr/bin/python3.11",
        "touched=/opt/shop/releases/edited/src/app.py",
    ]
    found = Releases().process(lines)
    assert found["whole"] == Release("https://example.org/shop.git", "v1", "abc")
    assert found["upgraded"].fault == "built with /usr/bin/python3.11, which is now /usr/bin/python3.13"
    assert found["edited"].fault == "changed by hand: /opt/shop/releases/edited/src/app.py"


def test_root_without_releases_is_not_nothing():
    assert Releases().process(["root"]) == {}
    assert Releases.default() is None
