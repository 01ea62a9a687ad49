# SPDX-License-Identifier: Apache-2.0
"""A form that a text must keep to, as its author wrote it; bounded in size and depth before anything compiles it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import NqEdgeError

__all__ = ["SPACE", "Grammar"]

#: Of a whole grammar, characters. A schema of a large API has tens of thousands.
MAX_CHARACTERS = 256 << 10
#: Brackets inside of each other. Compilers go down recursively, in a stack of fixed size.
MAX_DEPTH = 64
#: White space between the parts of JSON: a space or none. Small models would otherwise write line breaks and
#: indentations without end, and every token of them takes its time.
SPACE = r" ?"


@dataclass(frozen=True)
class Grammar:
    """Which texts are wanted.

    Attributes:
        kind: "json", "regex" or "lark".
        text: the schema as JSON, the regular expression, or the grammar in llguidance's form of Lark.

    Raises:
        NqEdgeError: NQ-GRAMMAR when it is too large or nested too deeply.

    Example:
        >>> Grammar.json_schema({"type": "integer"}).text
        '{"type":"integer"}'
    """

    kind: str
    text: str

    def __post_init__(self) -> None:
        if len(self.text) > MAX_CHARACTERS:
            raise NqEdgeError(
                "NQ-GRAMMAR", f"the grammar has {len(self.text)} characters, the limit is {MAX_CHARACTERS}."
            )
        if _depth(self.text) > MAX_DEPTH:
            raise NqEdgeError("NQ-GRAMMAR", f"the grammar is nested more than {MAX_DEPTH} levels deep.")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool) -> Grammar:
        """Texts that are JSON of a schema (draft 2020-12, as far as llguidance has it).

        Raises:
            NqEdgeError: NQ-GRAMMAR when it is no schema at all, too large or too deep.
        """
        if not isinstance(schema, Mapping | bool):
            raise NqEdgeError("NQ-GRAMMAR", f"a JSON schema is an object, got {type(schema).__name__}.")
        try:
            text = json.dumps(schema, separators=(",", ":"), allow_nan=False)
        except (RecursionError, ValueError, TypeError) as error:
            raise NqEdgeError("NQ-GRAMMAR", f"the schema is no JSON ({error}).") from error
        return cls("json", text)

    @classmethod
    def json_object(cls) -> Grammar:
        """Texts that are any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Texts that match a regular expression as a whole."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, source: str) -> Grammar:
        """Texts of a grammar; its rule `start` is the whole text."""
        return cls("lark", source)

    def compiled_form(self) -> str:
        """What `llguidance.LLMatcher` takes.

        Raises:
            ValueError: llguidance does not take it.
        """
        from llguidance import LLMatcher

        if self.kind == "json":
            return str(LLMatcher.grammar_from_json_schema(self.text, overrides={"whitespace_pattern": SPACE}))
        if self.kind == "regex":
            return str(LLMatcher.grammar_from_regex(self.text))
        return str(LLMatcher.grammar_from_lark(self.text))


def _depth(text: str) -> int:
    """Most brackets of any kind open at once; those inside of strings count too, which is on the safe side."""
    depth = most = 0
    for letter in text:
        if letter in "([{":
            depth += 1
            most = max(most, depth)
        elif letter in ")]}":
            depth -= 1
    return most
