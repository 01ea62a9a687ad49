# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 document that the server gives out at /openapi.json, made of the fields that it reads."""

from __future__ import annotations

from typing import Any

from .bodies import CHAT, COMPLETION, RESPONSE
from .fields import Record

__all__ = ["document"]

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_REFUSALS = {
    "400": "A field is wrong; `param` names it.",
    "401": "The API key is missing or wrong.",
    "403": "The host is not one that this server answers to.",
    "404": "There is no such model.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "Too many requests wait; `Retry-After` says when to come again.",
    "501": "This needs a package that the server lacks.",
    "503": "The server is busy or going away.",
}
_COUNT = {"type": "integer", "minimum": 0}
_CHOICES = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string"},
        "created": _COUNT,
        "model": {"type": "string"},
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "index": _COUNT,
                    "finish_reason": {"enum": ["stop", "length", "tool_calls", None]},
                },
                "required": ["index", "finish_reason"],
            },
        },
        "usage": {
            "type": "object",
            "properties": {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
            "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
        },
    },
    "required": ["id", "object", "created", "model", "choices", "usage"],
}
_RESPONSE = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "response"},
        "status": {"enum": ["completed", "incomplete"]},
        "output": {"type": "array", "items": {"type": "object", "required": ["type", "id", "status"]}},
    },
    "required": ["id", "object", "created_at", "status", "model", "output", "usage"],
}
_MODEL = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "object": {"const": "model"}, "created": _COUNT},
    "required": ["id", "object", "created", "owned_by"],
}
_MODELS = {
    "type": "object",
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
    "required": ["object", "data"],
}
_HEALTH = {"type": "object", "properties": {"status": {"enum": ["ok", "closing"]}}, "required": ["status"]}


def _content(schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {kind: {"schema": schema}}


def _answers(good: dict[str, Any], *refusals: str) -> dict[str, Any]:
    found: dict[str, Any] = {"200": {"description": "The answer.", "content": good}}
    for status in refusals:
        found[status] = {"description": _REFUSALS[status], "content": _content(_ERROR)}
    return found


def _writes(summary: str, body: Record, answer: dict[str, Any]) -> dict[str, Any]:
    good = {**_content(answer), **_content({}, "text/event-stream")}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": _content(body.schema())},
            "responses": _answers(good, *_REFUSALS),
        }
    }


def _reads(summary: str, content: dict[str, Any], *refusals: str) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": _answers(content, *refusals)}}


def document(version: str, with_key: bool) -> dict[str, Any]:
    """The document.

    Args:
        version: of this package.
        with_key: whether an API key is asked for.
    """
    text = {"type": "string"}
    one_model = _reads("A model", _content(_MODEL), "401", "403", "404", "503")
    one_model["get"]["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": text}]
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "nanoquant-edge", "version": version, "license": {"name": "Apache-2.0"}},
        "paths": {
            "/v1/models": _reads("The models", _content(_MODELS), "401", "403", "503"),
            "/v1/models/{model}": one_model,
            "/v1/completions": _writes("Continue a text", COMPLETION, _CHOICES),
            "/v1/chat/completions": _writes("Answer a conversation", CHAT, _CHOICES),
            "/v1/responses": _writes("Answer a conversation; nothing is stored", RESPONSE, _RESPONSE),
            "/health": _reads("Whether it works", _content(_HEALTH), "403", "503"),
            "/metrics": _reads("Counters for Prometheus", _content(text, "text/plain"), "401", "403", "503"),
        },
    }
    if with_key:
        found["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        found["security"] = [{"key": []}]
    return found
