"""The settings reference, written from the models: `python -m settings.reference > docs/settings.md`."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from settings.fields import Model
from settings.host import SECTIONS, SYSTEM_GROUPS
from settings.secret import Secret
from settings.section import models_in

HEAD = """\
# Settings

<!-- Written by `python -m settings.reference > docs/settings.md`. Do not edit. -->

Settings are host data: in a host's entry of an inventory, in `group_data/<group>.py`, or for one run as
`--data key=value`. What comes later wins: `group_data/all.py`, the groups in the order of the inventory file, the group that
is called like the inventory file, the host, `--data`. Each key has the prefix of its section.
Unknown keys, wrong types and contradictions are all refused, in one report, before any connection.

On the command line a value is read as JSON first: quote a text that looks like a number (`--data 'gateway_version="1.30"'`).

A *secret* is written as a reference, see [secrets](secrets.md).

Other keys that are allowed in host data: pyinfra's own (`ssh_user`, `ssh_key`, `_sudo` …) except its passwords, `lab_…`,
and private variables of a group_data file (`_x`).
"""


def main() -> None:
    """Print the reference."""
    sys.stdout.write(reference())


def reference() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        groups = SYSTEM_GROUPS.get(name, ())
        named = ", ".join(f"`{group}`" for group in groups)
        where = f"hosts of the group{'s' * (len(groups) > 1)} {named}" if groups else "every host"
        parts.append(f"## {name}: {where}\n\n{(section.__doc__ or '').strip()}\n")
        if any(other is not section and issubclass(section, other) for other in SECTIONS.values()):
            continue  # the same settings, on other hosts
        parts.append("| key | value | default | |\n|---|---|---|---|")
        parts += [_row(section.prefix + field, info) for field, info in section.model_fields.items()]
        for model in (
            model for info in section.model_fields.values() for model in models_in(info.annotation)
        ):
            parts.append(f"\nMembers of `{model.__name__}`: {_members(model)}")
        parts.append("")
    return "\n".join(parts)


def _row(key: str, info: FieldInfo) -> str:
    cells = (f"`{key}`", _kind(info.annotation, info.metadata), _default(info), info.description or "")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return f"**required**, such as `{info.examples[0]!r}`" if info.examples else "**required**"
    if info.default is PydanticUndefined or isinstance(info.default, Secret):
        return "derived" if info.annotation is int else ""
    value = list(info.default) if isinstance(info.default, tuple) else info.default
    return "" if value is None else f"`{value!r}`"


def _kind(annotation: Any, metadata: list[Any]) -> str:
    """Return in words which values a field takes."""
    if get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        return _kind(annotation, [*inner, *metadata])
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value!r}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {_kind(get_args(annotation)[0], [])}"
    if get_origin(annotation) is dict:
        return f"dict, name to {_kind(get_args(annotation)[1], [])}"
    if type(None) in get_args(annotation):
        return _kind(get_args(annotation)[0], metadata)
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation.__name__
    words = {bool: "`True` or `False`", int: "whole number", float: "number", str: "text", Secret: "secret", Any: "value"}
    least = next((rule.ge for rule in metadata if hasattr(rule, "ge")), None)
    most = next((rule.le for rule in metadata if hasattr(rule, "le")), None)
    return words[annotation] + (f", {least} to {most}" if least is not None and most is not None else "")


def _members(model: type[Model]) -> str:
    return ", ".join(
        f"`{name}` ({_kind(info.annotation, info.metadata)}; {_default(info)})"
        for name, info in model.model_fields.items()
    )


if __name__ == "__main__":
    main()
