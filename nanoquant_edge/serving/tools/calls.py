# SPDX-License-Identifier: Apache-2.0
"""Calls of functions in text that arrives in pieces: what is text goes on at once, what is a call comes out whole."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from .formats import ToolFormat

__all__ = ["Call", "CallReader"]

_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class Call:
    """A function that the model wants to be called.

    Attributes:
        name: the function's.
        arguments: an object as JSON text.
    """

    name: str
    arguments: str


class CallReader:
    """Reads one answer.

    What begins like a call and is none, or calls a function that nobody offered, stays text.

    Args:
        format: how calls are written.
        names: the functions that were offered.

    Example:
        >>> from .formats import HERMES
        >>> reader = CallReader(HERMES, ["f"])
        >>> reader.push('Well. <tool_call>\\n{"name": "f", "argum')
        ['Well. ']
        >>> reader.push('ents": {}}\\n</tool_call>')
        [Call(name='f', arguments='{}')]
    """

    def __init__(self, format: ToolFormat, names: Collection[str]) -> None:
        self._format, self._names = format, frozenset(names)
        self._held = ""
        self._inside = False
        self._begun = False

    def push(self, text: str) -> list[str | Call]:
        """Add text; returns what became certain, in order."""
        self._held += text
        found: list[str | Call] = []
        while True:
            before = len(self._held), self._inside
            if self._inside:
                found += self._read_calls()
            else:
                found += self._read_text()
            if (len(self._held), self._inside) == before or not self._held:
                return _joined(found)

    def flush(self) -> list[str | Call]:
        """The rest, once no more text comes."""
        rest, self._held = self._held, ""
        if self._inside:
            self._inside = False
            calls = self._calls_of(rest)
            if calls:
                return list(calls)
            rest = self._format.begin + rest
        return [rest] if rest else []

    def _read_text(self) -> list[str | Call]:
        """Text up to where a call begins, or might."""
        begin = self._format.begin
        if not begin:  # the whole answer is a call, or none of it
            begun = self._begun or not self._held.lstrip().startswith("{")
            if begun and self._held.strip():
                self._begun = True
                text, self._held = self._held, ""
                return [text]
            self._inside = self._held.lstrip().startswith("{")
            return []
        place = self._held.find(begin)
        if place >= 0:
            text, self._held = self._held[:place], self._held[place + len(begin) :]
            self._inside = True
            return [text]
        keep = next(
            (n for n in range(min(len(begin) - 1, len(self._held)), 0, -1) if begin.startswith(self._held[-n:])), 0
        )
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return [text]

    def _read_calls(self) -> list[str | Call]:
        """Calls, once what was held is a whole value; text again, once it cannot become one."""
        text = self._held.lstrip()
        if not text or text[-1] not in "}]>":  # a value ends with a bracket: do not try at every piece
            return []
        try:
            value, end = _DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            stop = self._format.end
            if stop and stop in text:  # the end, and no value before it
                return self._give_up()
            return []
        calls = self._calls(value)
        if not calls:
            return self._give_up()
        rest = text[end:].lstrip()
        stop = self._format.end
        if stop and not rest.startswith(stop):
            if stop.startswith(rest):
                return []  # the end mark is not there yet
        elif stop:
            rest = rest[len(stop) :]
        self._held, self._inside = rest.lstrip("\n") if not rest.strip() else rest, False
        return list(calls)

    def _give_up(self) -> list[str | Call]:
        text, self._held, self._inside, self._begun = self._format.begin + self._held, "", False, True
        return [text]

    def _calls_of(self, text: str) -> list[Call]:
        try:
            value, _end = _DECODER.raw_decode(text.lstrip())
        except (ValueError, RecursionError):
            return []
        return self._calls(value)

    def _calls(self, value: Any) -> list[Call]:
        """The calls that a value stands for; none at all when any of it is something else."""
        entries = value if isinstance(value, list) else [value]
        calls = []
        for entry in entries:
            name = entry.get("name") if isinstance(entry, dict) else None
            arguments = None
            if isinstance(entry, dict):
                arguments = entry.get("arguments", entry.get("parameters", {}))
            if name not in self._names or not isinstance(arguments, dict):
                return []
            calls.append(Call(str(name), json.dumps(arguments, ensure_ascii=False)))
        return calls


def _joined(found: list[str | Call]) -> list[str | Call]:
    """Without empty texts, and texts that follow each other as one."""
    result: list[str | Call] = []
    for entry in found:
        if isinstance(entry, str) and result and isinstance(result[-1], str):
            result[-1] += entry
        elif entry != "":
            result.append(entry)
    return result
