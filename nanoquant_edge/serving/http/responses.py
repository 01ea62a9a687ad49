# SPDX-License-Identifier: Apache-2.0
"""/v1/responses, without a memory: nothing is stored, and the whole conversation comes with each request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ..model import ServedModel
from ..requests import Outcome, Request, TokenChoice
from ..tools import Call
from .answering import JsonResponse, event, in_thread, stream, unless_gone
from .chat_text import AnswerEnd, answer_parts
from .conversation import Conversation, Tools, template_messages, tools_of
from .entries import token_entries
from .problems import Problem
from .response_items import call_item, finish, message_item, messages_of, new_id, response_object, text_part
from .sampling import grammar_of, sampling_of
from .texts import Texts

__all__ = ["respond"]


async def respond(model: ServedModel, http: HttpRequest, body: dict[str, Any]) -> Response:
    """Answer a request whose body was read as `bodies.RESPONSE`.

    Raises:
        Problem, NqEdgeError: what is wrong with it.
    """
    if body["previous_response_id"] is not None:
        place = "previous_response_id"
        raise Problem(400, f"{place}: no response is stored; send the conversation.", param=place, code="unsupported")
    request, tools = await in_thread(_request, model, body)
    writing = _Writing(model, body, tools)
    texts = Texts(model, [request])
    if body["stream"]:
        return stream(writing.events(texts), writing.failed)
    with texts:
        return JsonResponse(await unless_gone(http, writing.whole(texts)))


def _request(model: ServedModel, body: dict[str, Any]) -> tuple[Request, Tools]:
    messages = template_messages(messages_of(body))
    tools = tools_of(model, body["tools"] or (), choice=body["tool_choice"], several=body["parallel_tool_calls"])
    ids = Conversation(messages, tools).ids(model)
    grammar = grammar_of((body["text"] or {}).get("format"), "text.format")
    if grammar is not None and tools.functions:
        raise Problem(400, "text.format and tools exclude each other.", param="text.format", code="unsupported")
    grammar = grammar or tools.grammar
    request = Request(
        ids=ids,
        max_new_tokens=body["max_output_tokens"] or max(1, model.settings.max_context - len(ids)),
        sampling=sampling_of(body, model.settings.sampling),
        logprobs=body["top_logprobs"],
        mask=None if grammar is None else model.constrainer.mask(grammar),
    )
    return request, tools


class _Writing:
    """The answer to one request: its items in order, one open at a time."""

    def __init__(self, model: ServedModel, body: dict[str, Any], tools: Tools) -> None:
        self._model, self._body, self._tools = model, body, tools
        self._response = response_object(model, body)
        self._output: list[dict[str, Any]] = []
        self._number = 0
        self._message = ""  # id of the message that is open
        self._text: list[str] = []
        self._tokens: list[dict[str, Any]] = []

    async def whole(self, texts: Texts) -> dict[str, Any]:
        """The response's JSON."""
        async for _name, _value, outcome in self._steps(texts):
            if outcome is not None:
                return finish(self._response, self._output, outcome)
        raise AssertionError("a text without an end")

    async def events(self, texts: Texts) -> AsyncIterator[bytes]:
        """The response's events."""
        with texts:
            for name in ("response.created", "response.in_progress"):
                yield self._event(name, {"response": self._response})
            async for name, value, outcome in self._steps(texts):
                if outcome is not None:
                    done = finish(self._response, self._output, outcome)
                    yield self._event(f"response.{done['status']}", {"response": done})
                else:
                    yield self._event(name, value)

    def failed(self, problem: Problem) -> bytes:
        """The last event of a text that failed."""
        error = problem.body()["error"]
        failed = {**self._response, "status": "failed", "error": {"code": "server_error", "message": error["message"]}}
        return self._event("response.failed", {"response": failed})

    def _event(self, name: str, value: dict[str, Any]) -> bytes:
        self._number += 1
        return event({"type": name, "sequence_number": self._number - 1, **value}, name)

    async def _steps(self, texts: Texts) -> AsyncIterator[tuple[str, dict[str, Any], Outcome | None]]:
        """(name of the event, its content, None), and at the end the outcome."""
        wanted = self._body["top_logprobs"] is not None
        async for _number, part in answer_parts(self._model, texts, tools=self._tools, with_tokens=wanted):
            if isinstance(part, AnswerEnd):
                if not self._output and not self._message:
                    for step in self._open():  # an empty answer is a message all the same
                        yield (*step, None)
                for step in self._close("incomplete" if part.reason == "length" else "completed"):
                    yield (*step, None)
                yield "", {}, part.outcome
            elif isinstance(part.content, Call):
                for step in (*self._close("completed"), *self._call(part.content)):
                    yield (*step, None)
            else:
                for step in self._delta(part.content, part.tokens if wanted else ()):
                    yield (*step, None)

    def _open(self) -> Iterator[tuple[str, dict[str, Any]]]:
        self._message = new_id("msg")
        item = message_item(self._message, [], "in_progress")
        yield "response.output_item.added", {"output_index": len(self._output), "item": item}
        yield "response.content_part.added", {**self._place(), "part": text_part("", [])}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message, "output_index": len(self._output), "content_index": 0}

    def _delta(self, text: str, tokens: tuple[TokenChoice, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        if not self._message and not text.strip() and self._output:
            return  # line breaks between calls are no message
        if not self._message:
            yield from self._open()
        entries = token_entries(self._model, tokens)
        self._text.append(text)
        self._tokens += entries
        yield "response.output_text.delta", {**self._place(), "delta": text, "logprobs": entries}

    def _close(self, status: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if not self._message:
            return
        part = text_part("".join(self._text), self._tokens)
        yield "response.output_text.done", {**self._place(), "text": part["text"], "logprobs": self._tokens}
        yield "response.content_part.done", {**self._place(), "part": part}
        item = message_item(self._message, [part], status)
        yield "response.output_item.done", {"output_index": len(self._output), "item": item}
        self._output.append(item)
        self._message, self._text, self._tokens = "", [], []

    def _call(self, call: Call) -> Iterator[tuple[str, dict[str, Any]]]:
        place, index, call_id = len(self._output), new_id("fc"), new_id("call")
        begun = call_item(index, call_id, name=call.name, arguments="", status="in_progress")
        item = call_item(index, call_id, name=call.name, arguments=call.arguments, status="completed")
        yield "response.output_item.added", {"output_index": place, "item": begun}
        where = {"item_id": index, "output_index": place}
        yield "response.function_call_arguments.delta", {**where, "delta": call.arguments}
        yield "response.function_call_arguments.done", {**where, "name": call.name, "arguments": call.arguments}
        yield "response.output_item.done", {"output_index": place, "item": item}
        self._output.append(item)
