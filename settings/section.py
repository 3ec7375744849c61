"""How one part of a host's data becomes one frozen model, with all its faults instead of the first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, TypeVar, cast, get_args

from pydantic import PrivateAttr, ValidationError, ValidationInfo, field_validator

from settings.errors import Fault, from_pydantic, path
from settings.exposure import Port
from settings.fields import Model
from settings.requirements import Requirements
from settings.secret import Secret
from settings.secret_sources import Sources


@dataclass
class Loading:
    """What validators may know: where secrets come from (None: leave them unresolved)."""

    sources: Sources | None = None
    valid: dict[str, Any] = field(default_factory=dict)


RuleMethod = TypeVar("RuleMethod", bound=Callable[..., Iterator[Fault]])


def rule(method: RuleMethod) -> RuleMethod:
    """Mark a method of a Section as a cross-field rule: it yields a Fault, keyed by field, for each breach."""
    method.is_rule = True  # type: ignore[attr-defined]
    return method


class Section(Model):
    """The settings of one system, or of one part that every host has. Subclasses set `prefix`."""

    prefix: ClassVar[str]

    _groups: frozenset[str] = PrivateAttr(frozenset())
    """The host's groups: a system of several roles asks them which of its parts run here."""

    @field_validator("*", mode="after")
    @classmethod
    def _remember(cls, value: Any, info: ValidationInfo) -> Any:
        """Keep the fields that are right, so that cross-field rules also run when another field is wrong."""
        if isinstance(info.context, Loading) and info.field_name:
            info.context.valid[info.field_name] = value
        return value

    @classmethod
    def flat_keys(cls) -> list[str]:
        """Return the flat keys of this section (`gateway_domain`)."""
        return [cls.prefix + name for name in cls.model_fields]

    @classmethod
    def rules(cls) -> list[Callable[[Any], Iterator[Fault]]]:
        """Return the cross-field rules in the order in which they are written."""
        return [member for member in vars(cls).values() if getattr(member, "is_rule", False)]

    def ports(self) -> tuple[Port, ...]:
        """Return the ports that must be reachable from outside."""
        return ()

    def needs(self) -> Requirements:
        """Return what the host must have for this."""
        return Requirements()


S = TypeVar("S", bound=Section)


def load_section(
    section: type[S],
    host: str,
    data: Mapping[str, Any],
    sources: Sources | None,
    groups: Collection[str] = (),
) -> tuple[S, list[Fault]]:
    """Return the section of flat host data, and its faults. With faults, fields of the model may be missing.

    Only keys with the section's prefix are read; keys of other sections are the caller's to judge.
    """
    own = {
        key.removeprefix(section.prefix): value
        for key, value in data.items()
        if key.startswith(section.prefix)
    }
    loading = Loading(sources)
    faults: list[Fault] = []
    try:
        model: S = section.model_validate(own, context=loading)
    except ValidationError as error:
        details = [detail for detail in error.errors(include_url=False) if detail["type"] != _NO_DEFAULT]
        faults = [
            from_pydantic(detail, section.prefix, host, *_known_and_example(section, detail["loc"]))
            for detail in details
        ]
        model = cast(S, section.model_construct(**loading.valid))
        for detail in error.errors(include_url=False):
            model.__dict__.pop(str(detail["loc"][0]), None)
    model._groups = frozenset(groups)
    for check in section.rules():
        found = run_rule(partial(check, model), incomplete=bool(faults))
        faults = faults + [replace(fault, key=section.prefix + fault.key, host=host) for fault in found]
    return model, faults


def differences(
    name: str, sections: Mapping[str, Section], *, between_unset: bool = False, show: bool = False
) -> Iterator[Fault]:
    """Yield the hosts on which a field is not what it is on the first one; of a secret its reference is compared.

    + name: of the field; + sections: by host; + between_unset: a host where it is empty counts too
    + show: whether the value is printed
    """
    found = {host: getattr(section, name) for host, section in sections.items()}
    values = {
        host: value.reference if isinstance(value, Secret) else value
        for host, value in found.items()
        if value or between_unset
    }
    first = next(iter(values), "")
    for host, value in values.items():
        if value != values[first]:
            got = {"got": value} if show else {}
            yield Fault(sections[host].prefix + name, f"must be the same as on host {first}", host=host, **got)


_NO_DEFAULT = "default_factory_not_called"
"""pydantic's error for a default that is derived from a field that is wrong; said at that field already."""


def run_rule(check: Callable[[], Iterable[Fault]], *, incomplete: bool) -> list[Fault]:
    """Return the faults of a cross-field rule; none if it reads a field that an incomplete model does not have."""
    faults: list[Fault] = []
    try:
        for fault in check():  # one by one: those before the missing field count
            faults.append(fault)
    except AttributeError:
        if not incomplete:
            raise
    return faults


def _known_and_example(section: type[Section], loc: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """Return the keys that could have been meant at `loc`, and an example of the field there."""
    info = section.model_fields.get(str(loc[0]))
    if len(loc) == 1:
        return section.flat_keys(), info.examples[0] if info and info.examples else None
    parent = path(loc[:-1])
    names = [name for model in models_in(info.annotation if info else None) for name in model.model_fields]
    return [f"{section.prefix}{parent}.{name}" for name in names], None


def models_in(annotation: Any) -> list[type[Model]]:
    """Return the models inside an annotation: Port of `Annotated[tuple[Port, ...], …]`."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]
