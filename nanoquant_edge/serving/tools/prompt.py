# SPDX-License-Identifier: Apache-2.0
"""Functions explained in a system message, for models whose chat template knows none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .formats import ToolFormat

__all__ = ["explained"]


def explained(
    messages: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]], format: ToolFormat
) -> list[dict[str, Any]]:
    """Messages that a template without functions can write: what may be called stands in the system message.

    Args:
        messages: a conversation, with calls in it and their results.
        functions: each with "name", "description" and "parameters".
        format: how calls are written.

    Returns:
        Messages with "role" and "content" only.
    """
    told: list[dict[str, Any]] = []
    for message in messages:
        content = str(message.get("content") or "")
        if message.get("role") == "tool":
            told.append({"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"})
            continue
        calls = message.get("tool_calls") or ()
        written = [content, *(_written(call["function"], format) for call in calls)]
        told.append({"role": str(message["role"]), "content": "\n".join(text for text in written if text)})
    if functions:
        lines = "\n".join(json.dumps(dict(function), ensure_ascii=False) for function in functions)
        text = (
            "You can call these functions, each given as a JSON object:\n"
            f"{lines}\n"
            "To call one, write nothing but its name and arguments in this form:\n"
            f'{format.begin}{format.space}{{"name": "NAME", "{format.arguments}": {{...}}}}{format.space}{format.end}'
        )
        if told and told[0]["role"] == "system":
            text = f"{told.pop(0)['content']}\n\n{text}"
        told.insert(0, {"role": "system", "content": text})
    return told


def _written(function: Mapping[str, Any], format: ToolFormat) -> str:
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    head = f'{{"name": {json.dumps(function.get("name"))}, "{format.arguments}": {text}}}'
    return f"{format.begin}{format.space}{head}{format.space}{format.end}"
