# SPDX-License-Identifier: Apache-2.0
"""Items of /v1/responses: what comes in as a conversation, and the objects that go out."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from ..model import ServedModel
from ..requests import Outcome
from .conversation import content_text
from .entries import usage_of
from .problems import Problem

__all__ = ["call_item", "finish", "message_item", "messages_of", "new_id", "response_object", "text_part"]


def new_id(kind: str) -> str:
    """A fresh id."""
    return f"{kind}_{uuid.uuid4().hex}"


def messages_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a body that was read as `bodies.RESPONSE`, in the form of chats.

    Raises:
        Problem: 400 naming the item that is wrong.
    """
    found: list[dict[str, Any]] = []
    if body["instructions"]:
        found.append(_message("system", body["instructions"]))
    if isinstance(body["input"], str):
        return [*found, _message("user", body["input"])]
    for number, item in enumerate(body["input"]):
        where = f"input[{number}]"
        if item["type"] == "message":
            if item["role"] is None:
                raise _missing(f"{where}.role")
            found.append(_message(item["role"], content_text(item["content"], f"{where}.content")))
        elif item["type"] == "function_call":
            for name in ("name", "arguments"):
                if item[name] is None:
                    raise _missing(f"{where}.{name}")
            call = {
                "id": item["call_id"],
                "type": "function",
                "function": {"name": item["name"], "arguments": item["arguments"]},
            }
            found.append({**_message("assistant", None), "tool_calls": [call]})
        elif item["type"] == "function_call_output":
            text = content_text(item["output"], f"{where}.output")
            found.append({**_message("tool", text), "tool_call_id": item["call_id"]})
    if not found:
        raise _missing("input")
    return found


def _message(role: str, content: str | None) -> dict[str, Any]:
    return {"role": role, "content": content, "tool_calls": None}


def _missing(place: str) -> Problem:
    return Problem(400, f"{place} is missing.", param=place, code="missing_required_parameter")


def text_part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def message_item(index: str, parts: list[dict[str, Any]], status: str) -> dict[str, Any]:
    """A message of the assistant."""
    return {"type": "message", "id": index, "status": status, "role": "assistant", "content": parts}


def call_item(index: str, call_id: str, *, name: str, arguments: str, status: str) -> dict[str, Any]:
    """A function that is to be called."""
    return {
        "type": "function_call",
        "id": index,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


def response_object(model: ServedModel, body: Mapping[str, Any]) -> dict[str, Any]:
    """A response that has begun; the caller fills in output, status and usage."""
    tools = [
        {"type": "function", "name": tool["name"], "description": tool["description"],
         "parameters": tool["parameters"] or {}, "strict": bool(tool["strict"])}
        for tool in body["tools"] or ()
    ]  # fmt: skip
    sampling = model.settings.sampling
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body["instructions"],
        "max_output_tokens": body["max_output_tokens"],
        "metadata": body["metadata"] or {},
        "model": model.settings.name,
        "output": [],
        "parallel_tool_calls": body["parallel_tool_calls"],
        "previous_response_id": None,
        "store": False,
        "temperature": sampling.temperature if body["temperature"] is None else body["temperature"],
        "top_p": sampling.top_p if body["top_p"] is None else body["top_p"],
        "text": body["text"] or {"format": {"type": "text"}},
        "tool_choice": body["tool_choice"] or "auto",
        "tools": tools,
        "usage": None,
    }


def finish(response: dict[str, Any], output: list[dict[str, Any]], outcome: Outcome) -> dict[str, Any]:
    """The finished response."""
    usage = usage_of([outcome])
    cut = outcome.finish_reason == "length"
    return {
        **response,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": output,
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        },
    }
