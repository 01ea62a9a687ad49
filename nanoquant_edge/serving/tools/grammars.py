# SPDX-License-Identifier: Apache-2.0
"""Grammars that hold a model to well-formed calls of the functions it was offered.

In llguidance's form of Lark: `%json` stands for texts of a schema, `<[7]>` for the token with id 7, and a rule marked
`[lazy]` ends where its text can end first (its documentation of the syntax).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..constraint import Grammar
from ..constraint.grammar import SPACE
from .formats import ToolFormat

__all__ = ["calls_grammar"]


def calls_grammar(
    format: ToolFormat,
    functions: Sequence[Mapping[str, Any]],
    *,
    must_call: bool,
    several: bool,
    special: Mapping[str, int],
) -> Grammar:
    """Texts with calls of these functions, arguments of their schemas.

    Args:
        format: how calls are written.
        functions: each with "name" and, perhaps, "parameters", a JSON schema.
        must_call: the answer is calls and nothing else; otherwise any text, in which calls are well formed.
        several: whether more than one call may stand there.
        special: text -> id of special tokens, which are no text to a grammar.

    Raises:
        NqEdgeError: NQ-GRAMMAR when it becomes too large or too deep.
    """
    begin, end = _mark(format.begin, special), _mark(format.end, special)
    gap = json.dumps(format.space) if format.space else ""
    one = " | ".join(f"f{number}" for number in range(len(functions)))
    rules = [f"one: {one}"]
    for number, function in enumerate(functions):
        head = json.dumps(f'{{"name": {json.dumps(function["name"])}, "{format.arguments}": ')
        rules.append(f'f{number}: {head} a{number} "}}"')
        rules.append(f"a{number}: %json {json.dumps(_schema(function))}")
    if format.listed:
        more = '(", " one)*' if several else ""
        body, several = f'{gap} "[" one {more} "]" {end}', False
    else:
        body = f"{gap} one {gap} {end}"
    rules.append(f"body: {body}")
    if must_call:
        more = f'("\\n" {begin} body)*' if several and format.begin else ""
        rules.insert(0, f"start: {begin} body {more}")
    elif not format.begin:
        rules[:0] = ["start: body | other", r"other: /[^{](.|\n)*/ | "]
    else:
        # A special token ends any text by itself; of other marks the first one ends it.
        lazy = "" if begin.startswith("<[") else "[lazy]"
        rules[:0] = [
            f"start: (head body){'*' if several else '?'} tail",
            "tail: TEXT",
            f"head{lazy}: TEXT {begin}",
            r"TEXT: /(.|\n)*/",
        ]
    return Grammar.lark("\n".join(["%llguidance {}", *rules]))


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments; a function without parameters takes none, as in OpenAI's API."""
    given = function.get("parameters")
    schema = dict(given) if given else {"properties": {}, "additionalProperties": False}
    return {"type": "object", **schema, "x-guidance": {"whitespace_pattern": SPACE}}


def _mark(text: str, special: Mapping[str, int]) -> str:
    if not text:
        return ""
    return f"<[{special[text]}]>" if text in special else json.dumps(text)
