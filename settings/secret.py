"""The type of a secret: it is shown as `*MASKED*`, and read only where `unmask()` is written."""

from __future__ import annotations

from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from settings.errors import broken, nearest
from settings.secret_sources import SCHEMES, SecretError

WRITE_REFERENCE = "write a reference: 'env:NAME', 'file:PATH#KEY', 'sops:PATH#KEY' or 'age:PATH#KEY'"

OTHER_SCHEMES = ("vault", "pass", "op", "bw", "gpg", "aws", "ssm", "gcp", "keyring", "environment", "yaml")
"""Schemes of other tools, named back in the error; any other text before a colon could be part of a secret."""


class Secret:
    """A value that never reaches a log, a plan or an error by accident.

    In the inventory a secret is only a reference (`env:GATEWAY_ADMIN_API_KEY`), so host data, `--debug` and
    `debug-inventory` hold none. Loaded with `resolve=False` a Secret knows its reference and no value.

        Secret("x").unmask()   -> 'x'
        repr(Secret("x"))      -> '*MASKED*'
        f"{Secret('x')}"       raises TypeError, so that neither the value nor its mask lands in a file
    """

    __slots__ = ("_value", "reference")

    def __init__(self, value: str | None, reference: str = "") -> None:
        self._value = value
        self.reference = reference

    @classmethod
    def unset(cls) -> Secret:
        """Return the secret of a setting that was not given; `bool()` of it is False."""
        return cls(None)

    @property
    def resolved(self) -> bool:
        """True when the value is here, False when only the reference was read."""
        return self._value is not None

    def unmask(self) -> str:
        """Return the value. Raise ValueError when it was not resolved."""
        if self._value is None:
            raise ValueError(f"the secret {self.reference or '(not set)'} was not resolved")
        return self._value

    def __bool__(self) -> bool:
        return self.resolved or bool(self.reference)

    def __repr__(self) -> str:
        return "*MASKED*"

    def __str__(self) -> str:
        raise TypeError("a Secret is not text: write .unmask() where its value is meant")

    def __format__(self, spec: str) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and (self._value, self.reference) == (other._value, other.reference)

    def __hash__(self) -> int:
        return hash((self._value, self.reference))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    def __reduce__(self) -> str:
        raise TypeError("a Secret cannot be pickled")

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(cls._validate)

    @classmethod
    def _validate(cls, value: object, info: core_schema.ValidationInfo) -> Secret:
        if isinstance(value, Secret):
            return value
        if not isinstance(value, str) or value.partition(":")[0] not in SCHEMES:
            scheme = value.partition(":")[0] if isinstance(value, str) and ":" in value else ""
            if scheme in OTHER_SCHEMES or nearest(scheme, SCHEMES, cutoff=0.6):
                raise broken(f"unknown secret scheme {scheme!r}", WRITE_REFERENCE, show=False)
            # not shown, not even in part: it may be the secret itself
            raise broken(
                "must be a reference to a secret, not the secret itself", WRITE_REFERENCE, show=False
            )
        sources = info.context.sources if info.context else None
        if sources is None:
            return cls(None, value)
        try:
            return cls(sources.resolve(value), value)
        except SecretError as error:
            raise broken(str(error), show=False) from None
