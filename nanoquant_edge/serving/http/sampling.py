# SPDX-License-Identifier: Apache-2.0
"""From a request's fields to what the scheduler is asked: sampling, stop texts, the form of the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtimes.generation_config import adjusted
from ...runtimes.sampling import SamplingConfig
from ..constraint import Grammar
from .problems import Problem

__all__ = ["grammar_of", "sampling_of", "stops_of"]

_PLAIN = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def sampling_of(body: Mapping[str, Any], default: SamplingConfig, number: int = 0) -> SamplingConfig:
    """How the tokens of a text are chosen: the request's fields, and the model's own where it says nothing.

    Args:
        body: a request, read.
        default: the model's.
        number: of the text among the `n` of a request; each has a seed of its own.

    Raises:
        Problem: 400 for token ids that are none.
        NqEdgeError: NQ-OPTION for a value out of its range.
    """
    changes = {name: body[name] for name in _PLAIN if body.get(name) is not None}
    if body.get("top_k") is not None:
        changes["top_k"] = max(0, body["top_k"])
    if body.get("seed") is not None:
        changes["seed"] = (body["seed"] + number) % (1 << 64)
    if body.get("logit_bias"):
        changes["logit_bias"] = {_token(name): value for name, value in body["logit_bias"].items()}
    return adjusted(default, changes)


def _token(name: str) -> int:
    if not (name.isascii() and name.isdigit() and len(name) < 10):
        raise Problem(
            400, f"logit_bias has {name[:40]!r}, which is no token id.", param="logit_bias", code="invalid_value"
        )
    return int(name)


def stops_of(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts that end the answer; empty ones are left out."""
    stop = body.get("stop")
    given = [stop] if isinstance(stop, str) else stop or []
    return tuple(text for text in given if text)


def grammar_of(form: Mapping[str, Any] | None, where: str = "response_format") -> Grammar | None:
    """The form that a text must keep to; None for any text.

    Args:
        form: as chats have it, or responses, where name and schema stand beside the type.
        where: the field's name.

    Raises:
        Problem: 400 for a form that is not known, or lacks its schema.
        NqEdgeError: NQ-GRAMMAR for one that is too large or too deep.
    """
    if not form or form.get("type") == "text":
        return None
    kind = form.get("type")
    if kind == "json_object":
        return Grammar.json_object()
    if kind == "json_schema":
        holder = form.get("json_schema", form)
        schema = holder.get("schema") if isinstance(holder, dict) else None
        if not isinstance(schema, dict | bool):
            place = f"{where}.json_schema.schema" if "json_schema" in form else f"{where}.schema"
            raise Problem(400, f"{place} must be an object.", param=place, code="invalid_value")
        return Grammar.json_schema(schema)
    if kind in ("regex", "grammar"):
        text = form.get(kind)
        if not isinstance(text, str):
            raise Problem(400, f"{where}.{kind} must be a text.", param=f"{where}.{kind}", code="invalid_value")
        return Grammar.regex(text) if kind == "regex" else Grammar.lark(text)
    raise Problem(
        400,
        f"{where}.type must be 'text', 'json_object', 'json_schema', 'regex' or 'grammar', got {kind!r:.60}.",
        param=f"{where}.type",
        code="invalid_value",
    )
