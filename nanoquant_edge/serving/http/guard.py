# SPDX-License-Identifier: Apache-2.0
"""What every request passes first: its host, its key, its size, and whether there is room for it."""

from __future__ import annotations

import hmac
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answering import JsonResponse
from .metrics import HttpCounters
from .options import ServeOptions
from .problems import Problem, problem_of

__all__ = ["Guard"]

LOG = logging.getLogger("nanoquant_edge.serving")
#: What answers without a key, and whether or not there is room: the page has no secrets, and health must be seen.
_OPEN = ("/", "/health")
#: Names under which a browser on this machine reaches a loopback address. A page that resolves its own name to
#: 127.0.0.1 (DNS rebinding) sends another one.
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """The outermost layer of the application.

    Args:
        app: what is behind it.
        options: what is let through.
        counters: told of every request.
    """

    def __init__(self, app: ASGIApp, *, options: ServeOptions, counters: HttpCounters) -> None:
        self._app, self._options, self._counters = app, options, counters
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begun = 500, False

        async def watched(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
            await send(message)

        start = time.perf_counter()
        counted = scope["path"] not in _OPEN
        self._running += counted
        try:
            self._check(scope)
            await self._app(scope, self._bounded(scope, receive), watched)
        except Exception as error:
            problem = problem_of(error)
            if problem.status == 500:
                LOG.exception("a request failed")
            if begun:
                raise  # the connection ends: there is no other way to say it
            headers = problem.headers()
            if problem.status in (408, 413):
                headers["Connection"] = "close"  # what is left of the body is not read
            await JsonResponse(problem.body(), problem.status, headers)(scope, receive, watched)
        finally:
            self._running -= counted
            self._counters.request(scope["path"], status, time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        """Refuse what may not come in.

        Raises:
            Problem: 403, 401, 413 or 503.
        """
        options = self._options
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"localhost").decode("latin-1")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and ":" in host else host
        if options.loopback and name not in (*_LOOPBACK_HOSTS, options.host):
            raise Problem(403, "this server answers to localhost only.", code="host_not_allowed")
        if scope["path"] in _OPEN or scope["method"] == "OPTIONS":
            return
        if options.api_key is not None:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), options.api_key.encode()):
                raise Problem(401, "the API key is missing or wrong.", code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > options.max_body:
            raise self._too_large()
        if self._running > options.max_requests:
            raise Problem(503, "too many requests are in work.", code="busy", retry_after=1)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, which refuses a body that grows too large whatever its headers said."""
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > self._options.max_body:
                    raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> Problem:
        return Problem(413, f"the body has more than {self._options.max_body} bytes.", code="too_large")
