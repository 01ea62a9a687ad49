# SPDX-License-Identifier: Apache-2.0
"""Listening: uvicorn with our limits, and an end that lets texts in work be finished."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from ...errors import NqEdgeError
from ..model import ServedModel
from .app import make_app
from .options import ServeOptions

__all__ = ["Server", "serve"]

#: Connections at once, idle ones included: for each request in work, and at least.
_CONNECTIONS, _LEAST_CONNECTIONS = 4, 256


def serve(model: ServedModel, options: ServeOptions, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; texts in work are finished then, a second signal ends them.

    Args:
        model: an opened model, which the caller closes.
        options: where to listen, and what to bear.
        ready: told the address once requests are taken.

    Raises:
        NqEdgeError: NQ-SERVE when the address cannot be listened at.
    """
    Server(model, options, ready).run()


class Server:
    """A server that listens, and serves while `run` runs.

    Args:
        model, options, ready: see `serve`.

    Raises:
        NqEdgeError: NQ-SERVE when the address cannot be listened at.
    """

    def __init__(self, model: ServedModel, options: ServeOptions, ready: Callable[[str], None]) -> None:
        config = uvicorn.Config(
            make_app(model, options),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=10,
            limit_concurrency=max(_LEAST_CONNECTIONS, _CONNECTIONS * options.max_requests),
            timeout_graceful_shutdown=max(1, round(options.drain_s)),
            h11_max_incomplete_event_size=64 << 10,
        )
        self._listener = _listen(options)
        self._server = _Uvicorn(config, lambda: ready(_address(self._listener, options)))

    def run(self) -> None:
        """Serve until a signal comes, or `stop` is called."""
        with self._listener:
            self._server.run(sockets=[self._listener])

    def stop(self) -> None:
        """Take no more, and end once texts in work are finished; from any thread."""
        self._server.should_exit = True


def _listen(options: ServeOptions) -> socket.socket:
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _name, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(512)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise NqEdgeError(
            "NQ-SERVE",
            f"cannot listen at {options.host} port {options.port}: {error.strerror or error}.",
            "Pass another --port, or 0 for a free one.",
        ) from error


def _address(listener: socket.socket, options: ServeOptions) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{listener.getsockname()[1]}"


class _Uvicorn(uvicorn.Server):
    """Says when it is ready, and ends with status 0 after a signal: it was asked to."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM while it runs; uvicorn's own would raise them once more afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
