# SPDX-License-Identifier: Apache-2.0
"""/v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ..model import ServedModel
from ..requests import Outcome, Request, TokenChoice
from ..tools import Call
from .answering import DONE, JsonResponse, event, in_thread, stream, unless_gone
from .chat_text import AnswerEnd, answer_parts
from .conversation import Conversation, Tools, template_messages, tools_of
from .entries import token_entries, usage_of
from .problems import Problem
from .sampling import grammar_of, sampling_of, stops_of
from .texts import Texts

__all__ = ["chat"]


async def chat(model: ServedModel, http: HttpRequest, body: dict[str, Any]) -> Response:
    """Answer a request whose body was read as `bodies.CHAT`.

    Raises:
        Problem, NqEdgeError: what is wrong with it.
    """
    if body["top_logprobs"] is not None and not body["logprobs"]:
        raise Problem(400, "top_logprobs needs logprobs: true.", param="top_logprobs", code="invalid_value")
    requests, tools = await in_thread(_requests, model, body)
    writing = _Writing(model, body, tools)
    texts = Texts(model, requests)
    if body["stream"]:
        return stream(writing.events(texts), writing.failed)
    with texts:
        return JsonResponse(await unless_gone(http, writing.whole(texts)))


def _requests(model: ServedModel, body: dict[str, Any]) -> tuple[list[Request], Tools]:
    messages = template_messages(body["messages"])
    functions = [tool["function"] for tool in body["tools"] or ()]
    tools = tools_of(model, functions, choice=body["tool_choice"], several=body["parallel_tool_calls"])
    ids = Conversation(messages, tools, body["chat_template_kwargs"] or {}).ids(model)
    grammar = grammar_of(body["response_format"])
    if grammar is not None and tools.functions:
        raise Problem(400, "response_format and tools exclude each other.", param="response_format", code="unsupported")
    grammar = grammar or tools.grammar
    limit = body["max_completion_tokens"] or body["max_tokens"] or max(1, model.settings.max_context - len(ids))
    requests = [
        Request(
            ids=ids,
            max_new_tokens=limit,
            sampling=sampling_of(body, model.settings.sampling, number),
            stop=stops_of(body),
            logprobs=(body["top_logprobs"] or 0) if body["logprobs"] else None,
            mask=None if grammar is None else model.constrainer.mask(grammar),
        )
        for number in range(body["n"])
    ]
    return requests, tools


class _Writing:
    """The answer to one request."""

    def __init__(self, model: ServedModel, body: dict[str, Any], tools: Tools) -> None:
        self._model, self._body, self._tools = model, body, tools
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if body["stream"] else "chat.completion",
            "created": int(time.time()),
            "model": model.settings.name,
        }

    async def whole(self, texts: Texts) -> dict[str, Any]:
        """The response's JSON."""
        many = self._body["n"]
        contents, calls = [""] * many, [[] for _ in range(many)]  # type: ignore[var-annotated]
        tokens: list[list[TokenChoice]] = [[] for _ in range(many)]
        ends: dict[int, AnswerEnd] = {}
        async for number, part in answer_parts(self._model, texts, tools=self._tools, with_tokens=True):
            if isinstance(part, AnswerEnd):
                ends[number] = part
                continue
            tokens[number] += part.tokens
            if isinstance(part.content, Call):
                calls[number].append(_call_entry(part.content))
            else:
                contents[number] += part.content
        choices = []
        for number in range(many):
            message: dict[str, Any] = {"role": "assistant", "content": contents[number], "refusal": None}
            if calls[number]:
                message |= {"content": contents[number].strip() or None, "tool_calls": calls[number]}
            choices.append(
                {
                    "index": number,
                    "message": message,
                    "logprobs": self._logprobs(tokens[number]),
                    "finish_reason": ends[number].reason,
                }
            )
        return {**self._head, "choices": choices, "usage": usage_of([ends[n].outcome for n in range(many)])}

    async def events(self, texts: Texts) -> AsyncIterator[bytes]:
        """The response's events."""
        outcomes: dict[int, Outcome] = {}
        counts = [0] * self._body["n"]
        wanted = self._body["logprobs"]
        with texts:
            for number in range(self._body["n"]):
                yield self._chunk(number, {"role": "assistant", "content": ""})
            async for number, part in answer_parts(self._model, texts, tools=self._tools, with_tokens=wanted):
                if isinstance(part, AnswerEnd):
                    outcomes[number] = part.outcome
                    yield self._chunk(number, {}, part.reason)
                elif isinstance(part.content, Call):
                    call = {"index": counts[number], **_call_entry(part.content)}
                    counts[number] += 1
                    yield self._chunk(number, {"tool_calls": [call]}, tokens=part.tokens)
                else:
                    yield self._chunk(number, {"content": part.content}, tokens=part.tokens)
            if (self._body["stream_options"] or {}).get("include_usage"):
                usage = usage_of([outcomes[n] for n in sorted(outcomes)])
                yield event({**self._head, "choices": [], "usage": usage})
        yield DONE

    def failed(self, problem: Problem) -> bytes:
        """The last event of a text that failed."""
        return event(problem.body()) + DONE

    def _chunk(
        self, number: int, delta: dict[str, Any], reason: str | None = None, tokens: tuple[TokenChoice, ...] = ()
    ) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": self._logprobs(tokens), "finish_reason": reason}
        return event({**self._head, "choices": [choice]})

    def _logprobs(self, tokens: Any) -> dict[str, Any] | None:
        if not (self._body["logprobs"] and tokens):
            return None
        return {"content": token_entries(self._model, tokens), "refusal": None}


def _call_entry(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
