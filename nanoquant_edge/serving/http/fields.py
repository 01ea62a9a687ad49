# SPDX-License-Identifier: Apache-2.0
"""Fields of a request: one description reads them, names what is wrong, and becomes the OpenAPI document.

A field that is null counts as absent, as OpenAI's clients send it; fields that nobody described are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .problems import Problem

__all__ = ["Either", "Field", "Flag", "Kind", "Many", "Number", "Object", "Record", "Text", "Word"]

_SHOWN = 60


class Kind(Protocol):
    """What values a field may have."""

    def read(self, value: Any, where: str) -> Any:
        """The value, checked.

        Raises:
            Problem: 400 naming `where`.
        """
        ...

    def fits(self, value: Any) -> bool:
        """Whether it has this kind's JSON type, so that this kind should speak about what is wrong with it."""
        ...

    def schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12, as OpenAPI 3.1 has it)."""
        ...


def wrong(where: str, wanted: str, value: Any) -> Problem:
    """The refusal of a value."""
    shown = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)[:_SHOWN]
    return Problem(400, f"{where} must be {wanted}, got {shown}.", param=where, code="invalid_value")


@dataclass(frozen=True)
class Number:
    """A number of a range; `whole` ones may be written 3 or 3.0."""

    low: float
    high: float
    whole: bool = False

    def read(self, value: Any, where: str) -> Any:
        """The number, an int where it is a whole one."""
        good = self.fits(value) and self.low <= value <= self.high  # no comparison holds for NaN
        if not good or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            raise wrong(where, f"{kind} from {self.low:g} to {self.high:g}", value)
        return int(value) if self.whole else float(value)

    def fits(self, value: Any) -> bool:
        """Whether it is a number."""
        return isinstance(value, int | float) and not isinstance(value, bool)

    def schema(self) -> dict[str, Any]:
        """JSON Schema."""
        return {"type": "integer" if self.whole else "number", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class Text:
    """A text of at most so many characters."""

    most: int = 1 << 24
    least: int = 0

    def read(self, value: Any, where: str) -> Any:
        """The text."""
        if not isinstance(value, str):
            raise wrong(where, "a text", value)
        if not self.least <= len(value) <= self.most:
            raise Problem(
                400,
                f"{where} must have from {self.least} to {self.most} characters, it has {len(value)}.",
                param=where,
                code="invalid_value",
            )
        return value

    def fits(self, value: Any) -> bool:
        """Whether it is a text."""
        return isinstance(value, str)

    def schema(self) -> dict[str, Any]:
        """JSON Schema."""
        return {"type": "string", "minLength": self.least, "maxLength": self.most}


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def read(self, value: Any, where: str) -> Any:
        """The flag."""
        if not isinstance(value, bool):
            raise wrong(where, "true or false", value)
        return value

    def fits(self, value: Any) -> bool:
        """Whether it is true or false."""
        return isinstance(value, bool)

    def schema(self) -> dict[str, Any]:
        """JSON Schema."""
        return {"type": "boolean"}


@dataclass(frozen=True)
class Word:
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, value: Any, where: str) -> Any:
        """The word."""
        if not (isinstance(value, str) and value in self.words):
            raise wrong(where, " or ".join(repr(word) for word in self.words), value)
        return value

    def fits(self, value: Any) -> bool:
        """Whether it is a text."""
        return isinstance(value, str)

    def schema(self) -> dict[str, Any]:
        """JSON Schema."""
        return {"type": "string", "enum": list(self.words)}


@dataclass(frozen=True)
class Many:
    """A list of values of one kind."""

    kind: Kind
    most: int
    least: int = 0

    def read(self, value: Any, where: str) -> Any:
        """The values, each checked."""
        if not isinstance(value, list):
            raise wrong(where, "a list", value)
        if not self.least <= len(value) <= self.most:
            wanted = f"a list of {self.least} to {self.most} entries"
            raise Problem(400, f"{where} must be {wanted}, it has {len(value)}.", param=where, code="invalid_value")
        return [self.kind.read(entry, f"{where}[{number}]") for number, entry in enumerate(value)]

    def fits(self, value: Any) -> bool:
        """Whether it is a list whose first entry has the right type."""
        return isinstance(value, list) and (not value or self.kind.fits(value[0]))

    def schema(self) -> dict[str, Any]:
        """JSON Schema."""
        return {"type": "array", "items": self.kind.schema(), "minItems": self.least, "maxItems": self.most}


@dataclass(frozen=True)
class Object:
    """An object with any names; with `kind`, all its values are of that kind."""

    kind: Kind | None = None
    most: int = 1 << 16

    def read(self, value: Any, where: str) -> Any:
        """The object as it came."""
        if not isinstance(value, dict):
            raise wrong(where, "an object", value)
        if len(value) > self.most:
            raise Problem(400, f"{where} has more than {self.most} entries.", param=where, code="invalid_value")
        if self.kind is None:
            return value
        return {name: self.kind.read(entry, f"{where}.{name[:_SHOWN]}") for name, entry in value.items()}

    def fits(self, value: Any) -> bool:
        """Whether it is an object."""
        return isinstance(value, dict)

    def schema(self) -> dict[str, Any]:
        """JSON Schema."""
        more = {} if self.kind is None else {"additionalProperties": self.kind.schema()}
        return {"type": "object", "maxProperties": self.most, **more}


@dataclass(frozen=True)
class Field:
    """A name, what may stand there, and what is meant when nothing does.

    Attributes:
        name: in the JSON.
        kind: of its values.
        about: one line for the OpenAPI document.
        needed: refuse a request without it.
        default: when it is absent.
    """

    name: str
    kind: Kind
    about: str = ""
    needed: bool = False
    default: Any = None


@dataclass(frozen=True)
class Record:
    """An object with known names.

    Example:
        >>> Record((Field("n", Number(1, 8, whole=True), default=1),)).read({"other": 3}, "")
        {'n': 1}
    """

    fields: tuple[Field, ...]

    def read(self, value: Any, where: str) -> dict[str, Any]:
        """Every described name and its value, checked, or its default."""
        if not isinstance(value, Mapping):
            raise wrong(where or "the request's body", "an object", value)
        found = {}
        for field in self.fields:
            place = f"{where}.{field.name}" if where else field.name
            entry = value.get(field.name)
            if entry is None and field.needed:
                raise Problem(400, f"{place} is missing.", param=place, code="missing_required_parameter")
            found[field.name] = field.default if entry is None else field.kind.read(entry, place)
        return found

    def fits(self, value: Any) -> bool:
        """Whether it is an object."""
        return isinstance(value, dict)

    def schema(self) -> dict[str, Any]:
        """JSON Schema."""
        properties = {}
        for field in self.fields:
            inner = field.kind.schema()
            if not field.needed:
                inner = {"anyOf": [inner, {"type": "null"}]}
            if field.about:
                inner = {**inner, "description": field.about}
            if field.default is not None:
                inner = {**inner, "default": field.default}
            properties[field.name] = inner
        needed = [field.name for field in self.fields if field.needed]
        return {"type": "object", "properties": properties, **({"required": needed} if needed else {})}


@dataclass(frozen=True)
class Either:
    """A value of one of several kinds; the first that its JSON type fits speaks about it."""

    kinds: tuple[Kind, ...]
    wanted: str

    def read(self, value: Any, where: str) -> Any:
        """The value, as its kind reads it."""
        for kind in self.kinds:
            if kind.fits(value):
                return kind.read(value, where)
        raise wrong(where, self.wanted, value)

    def fits(self, value: Any) -> bool:
        """Whether any kind fits."""
        return any(kind.fits(value) for kind in self.kinds)

    def schema(self) -> dict[str, Any]:
        """JSON Schema."""
        return {"anyOf": [kind.schema() for kind in self.kinds]}
