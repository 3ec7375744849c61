"""A program for the host travels over stdin, whatever its values hold."""

import subprocess

import pytest

from operations import script
from settings.secret import Secret

NASTY = "it's \"quoted\" $HOME `id` \\n back\\slash\nHOSTWRIGHT_PROGRAM\nü \N{SNOWMAN} '''"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "FILES", tmp_path)
    for lock in ("_HOLD", "_HOLD_PYTHON"):  # needs root
        monkeypatch.setattr(script, lock, "")
    return tmp_path


def feed(command):
    stdin = command.connector_arguments["_stdin"]
    assert NASTY not in str(command)
    return subprocess.run(str(command).split(), input=stdin, capture_output=True, text=True, check=True).stdout


def test_python_gets_its_values_unharmed(programs):
    (programs / "library.py").write_text("import sys\ndef say(text):\n    sys.stdout.write(text)\n")
    (programs / "last.py").write_text("def main(values):\n    say(values['deep'][0]['secret'] + values['text'])\n")
    command = script.python("library.py", "last.py", values={"deep": [{"secret": Secret(NASTY)}], "text": NASTY})
    assert feed(command) == NASTY * 2


def test_shell_gets_its_values_unharmed(programs):
    (programs / "x.sh").write_text('main() { printf %s "$text"; }\n')
    assert feed(script.run("x.sh", text=Secret(NASTY))) == NASTY


def test_what_json_cannot_say_is_refused():
    with pytest.raises(TypeError, match=r"script\.python: cannot send set"):
        script.python_text([], {"x": {1}})
