"""What is said about a bad setting: one `Fault` per line, all of them in one `SettingsError`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails, PydanticCustomError

NOT_SHOWN = object()
"""`Fault.got` of a value that is absent or must not be printed."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with one key of one host.

    + key: the flat key as written in the inventory (`gateway_domain`)
    + rule: what must hold (`must be at least 1`)
    + got: the value seen; `NOT_SHOWN` for an absent or secret one
    + hint: what to write instead, as a full clause (`write gateway_workers = 2`)
    + host: the host's name; empty for a fault of the inventory as a whole
    """

    key: str
    rule: str
    got: Any = NOT_SHOWN
    hint: str = ""
    host: str = ""


def line(fault: Fault, hosts: Iterable[str] = ()) -> str:
    """Return the fault as its one line of the report, `hosts` instead of its own host."""
    names = sorted(set(hosts) or {fault.host} - {""})
    where = f" on host{'s' if len(names) > 1 else ''} {', '.join(names)}" if names else ""
    got = "" if fault.got is NOT_SHOWN else f", got {fault.got!r}"
    hint = f", {fault.hint}" if fault.hint else ""
    return f"{fault.key}: {fault.rule}{where}{got}{hint}"


class SettingsError(Exception):
    """Every fault of every host, one a line; a fault that several hosts share is said once."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """Return the report's lines in the order in which the faults were found."""
        hosts: dict[tuple[str, str, str, str], list[str]] = {}
        firsts: dict[tuple[str, str, str, str], Fault] = {}
        for fault in self.faults:
            same = (fault.key, fault.rule, repr(fault.got), fault.hint)
            firsts.setdefault(same, fault)
            hosts.setdefault(same, []).append(fault.host)
        return [line(firsts[same], [name for name in names if name]) for same, names in hosts.items()]


def nearest(word: str, known: Iterable[str], cutoff: float = 0.8) -> str:
    """Return the known word most like `word`, or an empty string when none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), "")


def broken(rule: str, hint: str = "", *, show: bool = True) -> PydanticCustomError:
    """Return the error that a field validator raises: the rule, what to write, whether to show the value.

    Braces are not a template here: the texts travel in the error's context.
    """
    return PydanticCustomError("rule", "{rule}", {"rule": rule, "hint": hint, "show": show})


def unknown_setting(key: str, host: str, known: Iterable[str]) -> Fault:
    """Return the fault for a key that no model has, with the nearest one that exists."""
    near = nearest(key, known)
    return Fault(key, "unknown setting", hint=f"did you mean {near}?" if near else "", host=host)


def from_pydantic(error: ErrorDetails, prefix: str, host: str, known: Iterable[str], example: Any) -> Fault:
    """Translate one pydantic error into our form; the only place that knows pydantic's error types.

    + prefix: the system's, with its underscore; `example`: a value that the failing field accepts, or None
    """
    key = prefix + path(error["loc"])
    kind, got, ctx = error["type"], error["input"], error.get("ctx", {})
    if kind == "rule":
        return Fault(key, ctx["rule"], got if ctx["show"] else NOT_SHOWN, ctx["hint"], host)
    if kind == "extra_forbidden":
        return unknown_setting(key, host, known)
    if kind == "missing":
        hint = "" if example is None else f"write {key} = {example!r}"
        return Fault(key, "is required", hint=hint, host=host)
    return Fault(key, _rule(kind, ctx, error["msg"]), got, _hint(kind, key, got, ctx), host)


def path(loc: tuple[int | str, ...]) -> str:
    """Return ('exposure', 0, 'port') as exposure[0].port."""
    text = ""
    for part in loc:
        if part != "[key]":
            name = f"[{part}]" if isinstance(part, int) else repr(part)[1:-1]
            text += f".{name}" if text and isinstance(part, str) else name
    return text


_RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be True or False",
    "string_type": "must be text",
    "dict_type": "must be a dict",
    "model_type": "must be a dict",
    "model_attributes_type": "must be a dict",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}


def _rule(kind: str, ctx: dict[str, Any], otherwise: str) -> str:
    return _RULES[kind].format(**ctx) if kind in _RULES else otherwise[:1].lower() + otherwise[1:]


def _hint(kind: str, key: str, got: Any, ctx: dict[str, Any]) -> str:
    """Return what to write when the value shows what was meant."""
    if kind == "int_type" and isinstance(got, str) and got.strip().lstrip("-").isdigit():
        return f"write {key} = {int(got)}"
    if kind == "bool_type" and str(got).lower() in {"true", "yes", "on", "1"}:
        return f"write {key} = True"
    if kind == "bool_type" and str(got).lower() in {"false", "no", "off", "0"}:
        return f"write {key} = False"
    if kind == "string_type" and isinstance(got, bool | int | float | None):
        # pyinfra reads --data values as JSON: 1.30 arrives as the number 1.3, its zero is lost
        return f"""quote it: {key} = "…" in a file, --data '{key}="…"' on the command line"""
    if kind == "literal_error" and (near := nearest(str(got), re.findall(r"'([^']*)'", ctx["expected"]))):
        return f"did you mean {near!r}?"
    return ""
