"""What each consumer is given, and what it is refused; the round trips are in tests/lab/test_env.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settings.env import EnvError, render
from settings.secret import Secret


@pytest.mark.parametrize(
    ("consumer", "text"),
    [
        ("systemd", 'A="x"\nB="\\$y \\"z\\" 5%"\n'),
        ("shell", "A='x'\nB='$y \"z\" 5%'\n"),
        ("supervisor", """A="x",B='$y "z" 5%%'"""),
        ("docker", 'A=x\nB=$y "z" 5%\n'),
        ("compose", 'A="x"\nB="\\$y \\"z\\" 5%"\n'),
    ],
)
def test_each_consumer_has_its_own_quotes(consumer, text):
    assert render({"A": "x", "B": Secret('$y "z" 5%')}, consumer=consumer) == text


def test_single_quote_is_written_for_a_shell():
    assert render({"A": "it's"}, consumer="shell") == """A='it'\\''s'\n"""


def test_no_variables_is_an_empty_file():
    assert render({}, consumer="systemd") == ""


@pytest.mark.parametrize(
    ("consumer", "value", "rule"),
    [
        ("systemd", "a\0b", "KEY: must not hold the control character 0x00"),
        ("shell", "a\rb", "KEY: must not hold the control character 0x0d"),
        ("docker", "a\nb", "KEY: docker cannot hold a newline"),
        ("supervisor", "a\nb", "KEY: supervisor cannot hold a newline"),
        ("supervisor", "a ;b", "KEY: supervisor cannot hold ; or # after a space"),
        ("supervisor", "%(here)s", "KEY: supervisor cannot hold %(here)s"),
        ("supervisor", "a #b", "KEY: supervisor cannot hold ; or # after a space"),
        ("supervisor", "'a'b", "KEY: supervisor cannot hold a quote at the beginning or end"),
        ("supervisor", 'a"', "KEY: supervisor cannot hold a quote at the beginning or end"),
        ("supervisor", "a'b\"c", "KEY: supervisor cannot hold both kinds of quotes"),
        ("docker", " a", "KEY: docker cannot hold a space at the beginning or end"),
        ("docker", "a ", "KEY: docker cannot hold a space at the beginning or end"),
        ("systemd", 8000, "KEY: must be text, got int"),
        ("systemd", None, "KEY: must be text, got NoneType"),
    ],
)
def test_what_a_consumer_cannot_hold_is_refused_without_the_value(consumer, value, rule):
    with pytest.raises(EnvError) as error:
        render({"OK": "x", "KEY": value}, consumer=consumer)
    assert str(error.value) == rule


@pytest.mark.parametrize("name", ["A-B", "1A", "", "A B", "A=B", "Ä"])
def test_name_that_is_no_variable_is_refused(name):
    with pytest.raises(EnvError, match="must be a variable name"):
        render({name: "x"}, consumer="shell")


def test_secret_that_was_not_resolved_is_refused():
    with pytest.raises(ValueError, match="env:A was not resolved"):
        render({"A": Secret(None, "env:A")}, consumer="shell")


@given(st.text())
def test_any_text_is_one_assignment_or_refused(value):
    try:
        text = render({"A": value}, consumer="docker")
    except EnvError:
        return
    assert text == f"A={value}\n"
    assert text.count("\n") == 1
