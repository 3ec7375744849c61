"""Secrets: where they come from, what refuses them, and that they do not slip out."""

import copy
import json
import pickle
import subprocess

import pytest
from jinja2 import Template

from settings import Secret
from settings.secret_sources import SecretError, Sources

VALUE = "s3cret #'\"$\\ value"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, name, text, mode=0o600):
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return path


def test_secret_is_masked_and_never_text():
    secret = Secret(VALUE)
    assert secret.unmask() == VALUE
    assert repr(secret) == repr([secret])[1:-1] == "*MASKED*"
    for leak in (
        str,
        "{}".format,
        "%s".__mod__,
        lambda s: f"{s}",
        lambda s: f"{s:>9}",
        "".join,
        json.dumps,
        pickle.dumps,
    ):
        with pytest.raises(TypeError):
            leak(secret)
    with pytest.raises(TypeError):
        Template("{{ key }}").render(key=secret)
    assert Template("{{ key.unmask() }}").render(key=secret) == VALUE


def test_secrets_are_equal_by_value():
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1
    assert copy.copy(Secret("a")) == Secret("a")
    assert not Secret.unset()


def test_unresolved_secret_says_which():
    with pytest.raises(ValueError, match="the secret env:A was not resolved"):
        Secret(None, "env:A").unmask()


def test_environment(monkeypatch):
    monkeypatch.setenv("A", VALUE)
    assert Sources().resolve("env:A") == VALUE


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.yaml", json.dumps({"key": VALUE})),
        ("s.yml", "other: x\nkey: |-\n  " + VALUE),
        ("s.env", f"# comment\n\nexport OTHER=x\nkey='{VALUE}'\n"),
        ("s", f'key="{VALUE}"\n'),
    ],
)
def test_file(folder, name, text):
    write(folder, name, text)
    assert Sources().resolve(f"file:{name}#key") == VALUE
    assert Sources().resolve(f"file:{folder}/{name}#key") == VALUE


def test_path_may_hold_a_hash(folder):
    write(folder, "a#b.env", "key=x\n")
    assert Sources().resolve("file:a#b.env#key") == "x"


@pytest.mark.parametrize(
    ("reference", "rule"),
    [
        ("env:NOT_SET", "environment variable NOT_SET is not set"),
        ("env:EMPTY", "environment variable EMPTY is empty"),
        ("env:A B", "'A B' is not the name of an environment variable"),
        ("file:s.yaml", "secret reference 'file:s.yaml' names no key, write file:PATH#KEY"),
        ("file:#key", "secret reference 'file:#key' names no key, write file:PATH#KEY"),
        ("file:none.yaml#key", "cannot read secret file none.yaml: No such file or directory"),
        ("file:.#key", "secret file . has mode 0755, others can read it: chmod 600 ."),
        ("file:s.yaml#other", "no key 'other' in secret file s.yaml"),
        ("file:s.yaml#number", "key 'number' in secret file s.yaml must be quoted text"),
        ("file:s.yaml#nothing", "key 'nothing' in secret file s.yaml is empty"),
        (
            "file:open.yaml#key",
            "secret file open.yaml has mode 0644, others can read it: chmod 600 open.yaml",
        ),
        (
            "file:group.yaml#key",
            "secret file group.yaml has mode 0640, others can read it: chmod 600 group.yaml",
        ),
        ("file:broken.yaml#key", "secret file broken.yaml is not YAML, line 2"),
        ("file:list.yaml#key", 'secret file list.yaml must hold KEY: "value" pairs'),
        ("file:bare.env#key", "secret file bare.env, line 2: must be KEY=value"),
        ("file:hash.env#key", "secret file hash.env, line 1: a value with # must be quoted"),
        ("file:quote.env#key", "secret file quote.env, line 1: the quote is not closed"),
        ("sops:none.yaml#key", "cannot read secret file none.yaml: No such file or directory"),
    ],
)
def test_unusable_reference_is_said(folder, monkeypatch, reference, rule):
    monkeypatch.setenv("EMPTY", "")
    folder.chmod(0o755)
    write(folder, "s.yaml", f"key: {json.dumps(VALUE)}\nnumber: 12345\nnothing: ''\n")
    write(folder, "open.yaml", "key: x\n", 0o644)
    write(folder, "group.yaml", "key: x\n", 0o640)
    write(folder, "broken.yaml", f"key: x\nother: 'canary {VALUE}")
    write(folder, "list.yaml", "- canary\n")
    write(folder, "bare.env", "A=b\ncanary\n")
    write(folder, "hash.env", "key=canary # or not\n")
    write(folder, "quote.env", "key='canary\n")
    with pytest.raises(SecretError) as error:
        Sources().resolve(reference)
    assert str(error.value) == rule


def test_file_known_to_git_is_refused(folder):
    write(folder, "s.yaml", "key: x\n")
    subprocess.run(["git", "init", "-q"], check=True)
    assert Sources().resolve("file:s.yaml#key") == "x"
    subprocess.run(["git", "add", "s.yaml"], check=True)
    with pytest.raises(SecretError, match=r"secret file s.yaml is tracked by git: git rm --cached s.yaml"):
        Sources().resolve("file:s.yaml#key")


@pytest.fixture
def tool(folder, monkeypatch):
    """Put a stand-in for sops or age on the PATH; returns where it writes down its arguments."""
    monkeypatch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")
    (folder / "bin").mkdir()

    def install(name, script):
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{script}\n')
        path.chmod(0o755)

    return install


def test_sops_is_asked_once_for_a_file(folder, tool):
    tool("sops", """printf '{\\n\\t"a": "1",\\n\\t"b": "2"\\n}\\n'""")
    write(folder, "prod.sops.yaml", "sealed", 0o644)
    sources = Sources()
    assert [sources.resolve(f"sops:prod.sops.yaml#{key}") for key in "ab"] == ["1", "2"]
    assert (folder / "calls").read_text() == "--decrypt --output-type json prod.sops.yaml\n"


def test_age_uses_the_identity_it_is_given(folder, tool, monkeypatch):
    monkeypatch.setenv("HOSTWRIGHT_AGE_IDENTITY", "~/key.txt")
    monkeypatch.setenv("HOME", str(folder))
    tool("age", "echo 'a: x'")
    write(folder, "prod.age", "sealed", 0o644)
    assert Sources().resolve("age:prod.age#a") == "x"
    assert (folder / "calls").read_text() == f"--decrypt --identity {folder}/key.txt prod.age\n"


def test_age_file_of_lines(folder, tool):
    tool("age", "echo 'a=x'")
    write(folder, "prod.env.age", "sealed")
    assert Sources().resolve("age:prod.env.age#a") == "x"


def test_tool_that_fails_is_quoted(folder, tool):
    tool("age", "echo 'no identity matched any of the recipients' >&2; exit 1")
    write(folder, "prod.age", "sealed")
    with pytest.raises(
        SecretError, match=r"^age cannot decrypt prod.age: no identity matched any of the recipients$"
    ):
        Sources().resolve("age:prod.age#a")


def test_tool_that_is_missing_is_named(folder, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    write(folder, "prod.sops.yaml", "sealed")
    with pytest.raises(SecretError, match="needs the command sops, which is not installed"):
        Sources().resolve("sops:prod.sops.yaml#a")
