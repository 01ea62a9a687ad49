# SPDX-License-Identifier: Apache-2.0
"""Random JSON schemas whose texts are finite: what a model of random weights writes must end, too."""

from __future__ import annotations

import random
from typing import Any

__all__ = ["random_schema"]

_NAMES = ("name", "age", "größe", "a b", "items", "x", "tag", 'quo"te', "id")
_PATTERNS = ("^[a-z]{1,6}$", "^\\d{4}-\\d{2}-\\d{2}$", "^(red|green|blue)$", '^[^"\\\\]{2,5}$')
#: Not "time": its seconds may have digits without end.
_FORMATS = ("date", "uuid", "ipv4", "ipv6")


def random_schema(number: int) -> dict[str, Any]:
    """The schema of a number; equal numbers give equal schemas."""
    source = random.Random(number)
    schema = _schema(source, depth=source.randint(0, 3))
    if source.random() < 0.2:
        schema = {"$defs": {"part": schema}, "type": "object", "properties": {"part": {"$ref": "#/$defs/part"}}}
        schema |= {"required": ["part"], "additionalProperties": False}
    return schema


def _schema(source: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_text, _whole, _number, _enum, lambda _s, _d: {"type": "boolean"}, lambda _s, _d: {"type": "null"}]
    if depth:
        kinds = [_object, _object, _array, _union, *kinds[:2]]
    return source.choice(kinds)(source, depth)


def _text(source: random.Random, _depth: int) -> dict[str, Any]:
    choice = source.random()
    if choice < 0.3:
        return {"type": "string", "pattern": source.choice(_PATTERNS)}
    if choice < 0.5:
        return {"type": "string", "format": source.choice(_FORMATS)}
    least = source.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + source.randint(0, 9)}


def _whole(source: random.Random, _depth: int) -> dict[str, Any]:
    low = source.randint(-1000, 1000)
    found = {"type": "integer", "minimum": low, "maximum": low + source.randint(0, 5000)}
    if source.random() < 0.2:
        return {"type": "integer", "minimum": 0, "maximum": 990, "multipleOf": source.choice([2, 5, 7])}
    return found


def _number(source: random.Random, _depth: int) -> dict[str, Any]:
    return {"enum": [source.randint(-9, 9) / 4, round(source.random(), 9), source.randint(0, 10**6)]}


def _enum(source: random.Random, _depth: int) -> dict[str, Any]:
    values: list[Any] = ["a", "ü", "two words", 'a"b', 3, None, True, [1, 2], {"k": "v"}]
    if source.random() < 0.3:
        return {"const": source.choice(values)}
    return {"enum": source.sample(values, source.randint(1, 4))}


def _object(source: random.Random, depth: int) -> dict[str, Any]:
    names = source.sample(_NAMES, source.randint(0, 4))
    needed = [name for name in names if source.random() < 0.6]
    properties = {name: _schema(source, depth - 1) for name in names}
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def _array(source: random.Random, depth: int) -> dict[str, Any]:
    least = source.randint(0, 2)
    found = {"type": "array", "items": _schema(source, depth - 1)}
    if source.random() < 0.2:
        fixed = [_schema(source, depth - 1) for _ in range(source.randint(1, 3))]
        return {"type": "array", "prefixItems": fixed, "items": False, "minItems": len(fixed)}
    return found | {"minItems": least, "maxItems": least + source.randint(0, 2)}


def _union(source: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_schema(source, depth - 1) for _ in range(source.randint(1, 3))]}
