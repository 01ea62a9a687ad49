# SPDX-License-Identifier: Apache-2.0
"""/v1/completions: plain texts, continued."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ..model import ServedModel
from ..requests import Outcome, Piece, Request, TokenChoice
from .answering import DONE, JsonResponse, event, in_thread, stream, unless_gone
from .entries import finish_reason, legacy_logprobs, usage_of
from .problems import Problem
from .sampling import grammar_of, sampling_of, stops_of
from .texts import Texts

__all__ = ["complete"]


async def complete(model: ServedModel, http: HttpRequest, body: dict[str, Any]) -> Response:
    """Answer a request whose body was read as `bodies.COMPLETION`.

    Raises:
        Problem, NqEdgeError: what is wrong with it.
    """
    if body["echo"] and body["logprobs"] is not None:
        raise Problem(400, "echo with logprobs is not supported.", param="echo", code="unsupported")
    requests, shown = await in_thread(_requests, model, body)
    writing = _Writing(model, body, shown)
    texts = Texts(model, requests)
    if body["stream"]:
        return stream(writing.events(texts), writing.failed)
    with texts:
        return JsonResponse(await unless_gone(http, writing.whole(texts)))


def _requests(model: ServedModel, body: dict[str, Any]) -> tuple[list[Request], list[str]]:
    """A request for each text, and what each begins with."""
    prompts = body["prompt"]
    single = isinstance(prompts, str) or isinstance(prompts[0], int)
    grammar = grammar_of(body["response_format"])
    requests: list[Request] = []
    shown: list[str] = []
    for prompt in [prompts] if single else prompts:
        ids = model.encode_text(prompt) if isinstance(prompt, str) else prompt
        begin = prompt if isinstance(prompt, str) else model.tokenizer.decode(ids) if body["echo"] else ""
        for _ in range(body["n"]):
            shown.append(begin if body["echo"] else "")
            requests.append(
                Request(
                    ids=ids,
                    max_new_tokens=body["max_tokens"],
                    sampling=sampling_of(body, model.settings.sampling, len(requests)),
                    stop=stops_of(body),
                    logprobs=body["logprobs"],
                    mask=None if grammar is None else model.constrainer.mask(grammar),
                )
            )
    return requests, shown


class _Writing:
    """The answer to one request."""

    def __init__(self, model: ServedModel, body: dict[str, Any], shown: list[str]) -> None:
        self._model, self._body, self._shown = model, body, shown
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.settings.name,
        }

    async def whole(self, texts: Texts) -> dict[str, Any]:
        """The response's JSON."""
        tokens: list[list[TokenChoice]] = [[] for _ in self._shown]
        outcomes: dict[int, Outcome] = {}
        async for number, part in texts:
            if isinstance(part, Piece):
                tokens[number] += part.tokens
            else:
                outcomes[number] = part
        choices = [
            self._choice(number, begin + outcomes[number].text, tokens[number], finish_reason(outcomes[number]))
            for number, begin in enumerate(self._shown)
        ]
        return {**self._head, "choices": choices, "usage": self._usage(outcomes)}

    async def events(self, texts: Texts) -> AsyncIterator[bytes]:
        """The response's events."""
        outcomes: dict[int, Outcome] = {}
        lengths = [0] * len(self._shown)
        with texts:
            for number, begin in enumerate(self._shown):
                if begin:
                    yield event({**self._head, "choices": [self._choice(number, begin, (), None)]})
            async for number, part in texts:
                if isinstance(part, Piece):
                    if part.text or self._body["logprobs"] is not None:
                        choice = self._choice(number, part.text, part.tokens, None, lengths[number])
                        yield event({**self._head, "choices": [choice]})
                        lengths[number] += len(part.text)
                else:
                    outcomes[number] = part
                    yield event({**self._head, "choices": [self._choice(number, "", (), finish_reason(part))]})
            if (self._body["stream_options"] or {}).get("include_usage"):
                yield event({**self._head, "choices": [], "usage": self._usage(outcomes)})
        yield DONE

    def failed(self, problem: Problem) -> bytes:
        """The last event of a text that failed."""
        return event(problem.body()) + DONE

    def _usage(self, outcomes: dict[int, Outcome]) -> dict[str, Any]:
        """Counts; of several prompts each counts once."""
        many = self._body["n"]
        groups = [[outcomes[i] for i in range(start, start + many)] for start in range(0, len(outcomes), many)]
        found = usage_of(groups[0])
        for group in groups[1:]:
            more = usage_of(group)
            for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                found[name] += more[name]
        return found

    def _choice(self, number: int, text: str, tokens: Any, reason: str | None, offset: int = 0) -> dict[str, Any]:
        wanted = self._body["logprobs"] is not None and tokens
        return {
            "index": number,
            "text": text,
            "logprobs": legacy_logprobs(self._model, tokens, offset) if wanted else None,
            "finish_reason": reason,
        }
