# SPDX-License-Identifier: Apache-2.0
"""Texts of the scheduler on an event loop: several at once, ended as soon as nobody waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from ..answer import Answer
from ..model import ServedModel
from ..requests import Outcome, Piece, Request

__all__ = ["Texts"]


class Texts:
    """Texts that are being written for one request.

    Leaving the `with` block ends those that are not finished: their slots are free within a token.

    Args:
        model: what writes them.
        requests: one for each text.

    Raises:
        BusyError: the queue is full, or the server is going away.
        NqEdgeError: NQ-PROMPT when the prompt does not fit.
    """

    def __init__(self, model: ServedModel, requests: Sequence[Request]) -> None:
        loop, self._changed = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._changed.set)

        self._observe = model.observe
        self._answers: list[Answer] = []
        try:
            for request in requests:
                self._answers.append(model.writer.submit(request, notify=notify))
        except BaseException:
            self.close()
            raise

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece | Outcome]]:
        """(number of the text, what came) as it comes; each text's `Outcome` is its last.

        Raises:
            NqEdgeError: what made a text fail.
        """
        running = dict(enumerate(self._answers))
        while running:
            self._changed.clear()
            for number, answer in list(running.items()):
                ended = answer.finished  # asked first: what came before the end is in the poll then
                for piece in answer.poll():
                    yield number, piece
                if ended:
                    del running[number]
                    if answer.error is not None:
                        raise answer.error
                    assert answer.outcome is not None
                    self._observe(answer.outcome)
                    yield number, answer.outcome
            if running:
                await self._changed.wait()

    def close(self) -> None:
        """Want no more."""
        for answer in self._answers:
            answer.close()

    def __enter__(self) -> Texts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
