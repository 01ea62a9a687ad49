# SPDX-License-Identifier: Apache-2.0
"""Reading bodies and sending answers: JSON or server-sent events, and an end when the client is gone."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from .problems import Problem, problem_of

__all__ = ["DONE", "JsonResponse", "event", "in_thread", "read_json", "stream", "unless_gone"]

Value = TypeVar("Value")
LOG = logging.getLogger("nanoquant_edge.serving")
DONE = b"data: [DONE]\n\n"


#: Threads that encode prompts and compile grammars: they take the processors that the model wants.
_THREADS = 4


async def in_thread(work: Callable[..., Value], *arguments: Any) -> Value:
    """The result of a function that takes time, called in one of a few threads."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
    return await anyio.to_thread.run_sync(work, *arguments)


def dump(value: Any) -> bytes:
    """JSON in UTF-8; a lone surrogate, which a client may have sent, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class JsonResponse(Response):
    """A response of JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return dump(content)


def event(value: Any, name: str | None = None) -> bytes:
    """A server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + dump(value) + b"\n\n"


async def read_json(request: Request, seconds: float) -> Any:
    """The body; its size is bounded by `guard`.

    Raises:
        Problem: 415 for another type, 400 for what is no JSON, 408 when it does not come in time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of any web page could send another type to this machine without asking
        raise Problem(415, "the body must be JSON, with Content-Type: application/json.", code="unsupported_type")
    try:
        data = await asyncio.wait_for(request.body(), seconds)
    except asyncio.TimeoutError:
        raise Problem(408, f"the body did not come within {seconds:g} s.", code="timeout") from None
    try:
        return json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise Problem(400, f"the body is not valid JSON: {said}.", code="invalid_json") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


async def unless_gone(request: Request, work: Awaitable[Value]) -> Value:
    """The result of `work`, which is cancelled when the client goes away before it is there.

    Raises:
        ClientDisconnect: it went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """Events whose source is closed when the client is gone, not when the garbage collector finds it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().__call__(scope, receive, send)


def stream(events: AsyncIterator[bytes], last: Callable[[Problem], bytes]) -> StreamingResponse:
    """A response of server-sent events.

    Args:
        events: as they come.
        last: what tells the client that the text failed after it had begun.
    """

    async def guarded() -> AsyncIterator[bytes]:
        try:
            async with aclosing(events):  # type: ignore[type-var]
                async for part in events:
                    yield part
        except Exception as error:
            LOG.exception("a text failed")
            yield last(problem_of(error))

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return _EventStream(guarded(), media_type="text/event-stream", headers=headers)
