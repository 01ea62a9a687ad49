# SPDX-License-Identifier: Apache-2.0
"""JSON objects from strangers: each value is checked when it is asked for, and named when it is impossible."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import NqEdgeError

__all__ = ["LARGEST", "Entry"]

#: Sizes, counts and numbers of a file lie below this unless a reader says otherwise.
LARGEST = 1 << 31
#: Letters of a text, entries of a list, and objects inside objects; real files have far less.
_LONGEST, _MOST, _DEEPEST = 1 << 12, 100_000, 64


class Entry:
    """A JSON object with checked access.

    Args:
        value: from JSON; anything but an object is refused.
        name: of the object inside its file, "" for the whole.
        owner: whose it is, for messages: "the manifest's".
        code: of every refusal.

    Raises:
        NqEdgeError: `code`, from here and from every method, with the name and the value.

    Example:
        >>> kv = Entry({"layers": 30, "dtype": "float16"}, "kv")
        >>> kv.integer("layers"), kv.text("dtype", choices=("float16", "float32"))
        (30, 'float16')
    """

    def __init__(self, value: Any, name: str = "", *, owner: str = "the manifest's", code: str = "NQ-BUNDLE") -> None:
        self._name, self._owner, self._code = name, owner, code
        if not isinstance(value, Mapping):
            raise self._impossible(name or "content", value)
        self._value = value

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def null(self, name: str) -> bool:
        """Whether a value is null, or not there."""
        return self._value.get(name) is None

    def exactly(self, *names: str) -> None:
        """Refuse an object with other keys than these."""
        if odd := set(names) ^ set(self._value):
            name = min(odd, key=str)
            raise self._refusal(f"{self._path(str(name)[:100])} is {'missing' if name in names else 'unknown'}")

    def text(
        self, name: str, *, choices: Sequence[str] = (), pattern: re.Pattern[str] | None = None, empty: bool = False
    ) -> str:
        """A text of UTF-8, not empty unless `empty`; one of the choices, if any, and matching the pattern, if any."""
        value = self._get(name)
        good = _is_text(value) and (empty or value)
        good = good and (not choices or value in choices) and (pattern is None or pattern.fullmatch(value))
        if not good:
            raise self._impossible(self._path(name), value)
        return str(value)

    def plain_texts(self, name: str, count: int) -> tuple[str, ...]:
        """So many texts, which may be empty or equal."""
        value = self._get(name)
        if not (isinstance(value, list | tuple) and len(value) == count and all(_is_text(item) for item in value)):
            raise self._impossible(self._path(name), value)
        return tuple(value)

    def texts(self, name: str, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
        """Different texts, none of them empty."""
        value = self._get(name)
        good = isinstance(value, list | tuple) and len(value) <= _MOST and all(_is_text(item) for item in value)
        good = good and all(value) and len(set(value)) == len(value)
        if not good or (pattern is not None and not all(pattern.fullmatch(item) for item in value)):
            raise self._impossible(self._path(name), value)
        return tuple(value)

    def integer(self, name: str, least: int = 0, most: int = LARGEST - 1) -> int:
        """A whole number from `least` to `most`."""
        value = self._get(name)
        if type(value) is not int or not least <= value <= most:
            raise self._impossible(self._path(name), value)
        return value

    def integers(self, name: str, count: int, *, least: int = 0, most: int = LARGEST - 1) -> tuple[int, ...]:
        """So many whole numbers from `least` to `most`."""
        value = self._get(name)
        good = isinstance(value, list | tuple) and len(value) == count
        if not (good and all(type(number) is int and least <= number <= most for number in value)):
            raise self._impossible(self._path(name), value)
        return tuple(value)

    def number(self, name: str) -> float:
        """A finite number."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _fits(value):
            raise self._impossible(self._path(name), value)
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._get(name)
        if type(value) is not bool:
            raise self._impossible(self._path(name), value)
        return value

    def entry(self, name: str) -> Entry:
        """An object inside of this one."""
        return Entry(self._get(name), self._path(name), owner=self._owner, code=self._code)

    def entries(self, name: str) -> dict[str, Entry]:
        """An object that holds objects of one kind, by key."""
        inner = self.entry(name)
        if len(inner._value) > _MOST or not all(_is_text(key) for key in inner._value):
            raise self._impossible(self._path(name), inner._value)
        return {key: inner.entry(key) for key in inner._value}

    def names(self) -> list[str]:
        """The keys of the object.

        Raises:
            NqEdgeError: `code` when there are more than any file has, or one is no text.
        """
        if len(self._value) > _MOST or not all(_is_text(key) for key in self._value):
            raise self._impossible(self._name or "content", self._value)
        return list(self._value)

    def anything(self, name: str) -> dict[str, Any]:
        """An object of free form; see `whole`."""
        return self.entry(name).whole()

    def whole(self) -> dict[str, Any]:
        """This object in free form: texts of UTF-8, numbers that a float holds, nested no deeper than any file."""
        found = _first_impossible(self._value, self._name, 0)
        if found is not None:
            raise self._impossible(*found)
        return dict(self._value)

    def need(self, good: bool, name: str, value: Any) -> None:
        """Refuse a value that contradicts others, unless it is good."""
        if not good:
            raise self._impossible(self._path(name), value)

    def _get(self, name: str) -> Any:
        if name not in self._value:
            raise self._refusal(f"{self._path(name)} is missing")
        return self._value[name]

    def _path(self, name: str) -> str:
        return f"{self._name}.{name}" if self._name else name

    def _impossible(self, path: str, value: Any) -> NqEdgeError:
        return self._refusal(f"{path} has the impossible value {_shown(value)}")

    def _refusal(self, words: str) -> NqEdgeError:
        return NqEdgeError(self._code, f"{self._owner} {words}.")


def _shown(value: Any) -> str:
    """A value for a message; numbers of thousands of digits have no text in Python."""
    try:
        return repr(str(value)[:100])
    except (ValueError, RecursionError):
        return f"of type {type(value).__name__}"


def _is_text(value: Any) -> bool:
    """Whether a value is a text that files and terminals can hold; JSON can spell half a character."""
    return isinstance(value, str) and len(value) <= _LONGEST and _encodes(value)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fits(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the largest float
        return False


def _first_impossible(value: Any, path: str, depth: int) -> tuple[str, Any] | None:
    """Where in a value of free form the first impossible one is, and what it is; None where there is none."""
    if depth > _DEEPEST:
        return path, "what is nested without end"
    if isinstance(value, dict):
        for key, item in value.items():
            if not _is_text(key):
                return path, key
            if found := _first_impossible(item, f"{path}.{key}" if path else key, depth + 1):
                return found
    elif isinstance(value, list):
        return next(filter(None, (_first_impossible(item, path, depth + 1) for item in value)), None)
    elif (isinstance(value, int) and not _fits(value)) or (isinstance(value, str) and not _encodes(value)):
        return path, value
    return None
