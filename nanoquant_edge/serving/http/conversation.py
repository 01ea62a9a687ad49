# SPDX-License-Identifier: Apache-2.0
"""Messages of a request as chat templates take them, and what the assistant may answer with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..constraint import Grammar
from ..model import ServedModel
from ..tools import calls_grammar
from .problems import Problem

__all__ = ["Conversation", "Tools", "template_messages", "tools_of"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "self")


@dataclass(frozen=True)
class Tools:
    """Functions that were offered.

    Attributes:
        functions: with "name", "description" and "parameters".
        grammar: what the answer must keep to because of them; None for nothing.
    """

    functions: tuple[Mapping[str, Any], ...] = ()
    grammar: Grammar | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions."""
        return tuple(str(function["name"]) for function in self.functions)


@dataclass(frozen=True)
class Conversation:
    """What a chat or response request asks the model to continue.

    Attributes:
        messages: as chat templates take them.
        tools: what may be called.
        variables: further names for the template.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Tools = field(default_factory=Tools)
    variables: Mapping[str, Any] = field(default_factory=dict)

    def ids(self, model: ServedModel) -> list[int]:
        """The prompt's tokens.

        Raises:
            Problem: 400 for names that belong to the template's own.
            NqEdgeError: NQ-TEMPLATE, see `ServedModel.encode_chat`.
        """
        for name in self.variables:
            if name in _RESERVED or not name.isidentifier():
                place = "chat_template_kwargs"
                raise Problem(400, f"{place} may not hold {name[:40]!r}.", param=place, code="invalid_value")
        return model.encode_chat(self.messages, self.tools.functions, self.variables)


def template_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of /v1/chat/completions, read as `bodies.CHAT`, as chat templates take them.

    Parts of a content are joined, "developer" is the system, and arguments of calls become objects: templates write
    them as JSON themselves.

    Raises:
        Problem: 400 for a content that is no text.
    """
    found = []
    for number, message in enumerate(messages):
        entry = {name: value for name, value in message.items() if value is not None}
        entry["role"] = "system" if message["role"] == "developer" else message["role"]
        entry["content"] = content_text(message["content"], f"messages[{number}].content")
        if message["tool_calls"]:
            entry["tool_calls"] = [_call(call) for call in message["tool_calls"]]
        elif message["content"] is None and message["role"] != "assistant":
            place = f"messages[{number}].content"
            raise Problem(400, f"{place} is missing.", param=place, code="missing_required_parameter")
        found.append(entry)
    return found


def content_text(content: Any, where: str) -> str:
    """The text of a content, which may come in parts.

    Raises:
        Problem: 400 for a part that is no text, such as an image.
    """
    if content is None or isinstance(content, str):
        return content or ""
    for number, part in enumerate(content):
        if part["type"] not in ("text", "input_text", "output_text", "refusal") or part["text"] is None:
            place = f"{where}[{number}].type"
            raise Problem(
                400, f"{place} is {part['type'][:40]!r}; the model reads text only.", param=place, code="unsupported"
            )
    return "".join(part["text"] for part in content)


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments: Any = function["arguments"]
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = None
    named = {"name": function["name"], "arguments": value if isinstance(value, dict) else arguments}
    return {"id": call["id"], "type": "function", "function": named}


def tools_of(model: ServedModel, functions: Sequence[Mapping[str, Any]], *, choice: Any, several: bool) -> Tools:
    """What may be called, and what the answer must keep to because of it.

    Args:
        model: whose format of calls counts.
        functions: what was offered.
        choice: "none", "auto", "required", or an object that names a function.
        several: whether several calls may come at once.

    Raises:
        Problem: 400 for names that are none, twice the same, or not offered.
        NqEdgeError: NQ-GRAMMAR for parameters that are no usable schema.
    """
    names = [function["name"] for function in functions]
    for number, name in enumerate(names):
        if not _NAME.fullmatch(name) or name in names[:number]:
            place = f"tools[{number}].function.name"
            raise Problem(
                400, f"{place} must be up to 64 letters, digits, _ and -, each once.", param=place, code="invalid_value"
            )
    wanted = None
    if isinstance(choice, dict):
        inner = choice.get("function")
        wanted = inner.get("name") if isinstance(inner, dict) else choice.get("name")
        if wanted not in names:
            raise Problem(400, "tool_choice names no function of tools.", param="tool_choice", code="invalid_value")
    if choice == "required" and not names:
        raise Problem(400, "tool_choice is 'required' and there are no tools.", param="tools", code="invalid_value")
    if not names or choice == "none":
        return Tools()
    must_call = wanted is not None or choice == "required"
    offered = [function for function in functions if wanted in (None, function["name"])]
    grammar: Grammar | None = calls_grammar(
        model.tool_format,
        offered,
        must_call=must_call,
        several=several and wanted is None,
        special=model.special,
    )
    if not must_call and not model.constrainer.available:
        grammar = None  # calls are read from whatever the model writes
    return Tools(tuple({k: v for k, v in function.items() if v is not None} for function in functions), grammar)
