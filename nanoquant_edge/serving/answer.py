# SPDX-License-Identifier: Apache-2.0
"""The caller's end of a request: pieces as they come, the outcome, and a way to end it early."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

from .requests import Outcome, Piece

__all__ = ["Answer"]


class Answer(Iterator[Piece]):
    """Pieces of a text, to iterate over from any thread; an error of the request is raised there.

    Leaving its `with` block, or `close`, ends a request that is not finished: its slot is free within a token.

    Args:
        on_cancel: called once when the caller wants no more.
        notify: called from the scheduler's thread after anything new has come; must return at once. For event loops:
            `lambda: loop.call_soon_threadsafe(event.set)`, and `poll` when it fires.
    """

    def __init__(self, on_cancel: Callable[[], None], notify: Callable[[], None] | None = None) -> None:
        self._on_cancel, self._notify = on_cancel, notify
        self._pieces: deque[Piece] = deque()
        self._changed = threading.Condition()
        self._done = threading.Event()  # for those who wait for the end only, and are not to be woken at each token
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._ended = False

    @property
    def outcome(self) -> Outcome | None:
        """The finished text; None until it is finished, and for a request that failed."""
        return self._outcome

    @property
    def error(self) -> BaseException | None:
        """What made the request fail."""
        return self._error

    @property
    def finished(self) -> bool:
        """Whether nothing more comes, pieces that wait to be read aside."""
        return self._ended

    def __next__(self) -> Piece:
        with self._changed:
            while not self._pieces and not self._ended:
                self._changed.wait()
            if self._pieces:
                return self._pieces.popleft()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def poll(self) -> list[Piece]:
        """All pieces that have come and were not read; never waits."""
        with self._changed:
            found = list(self._pieces)
            self._pieces.clear()
            return found

    def result(self) -> Outcome:
        """Wait for the end; pieces that were not read are left.

        Raises:
            NqEdgeError: what made the request fail.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome

    def close(self) -> None:
        """Want no more; nothing happens when the text is finished. May be called twice, and from any thread."""
        if not self._ended:
            self._on_cancel()

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def put(self, piece: Piece) -> None:
        """Add a piece; the scheduler's."""
        with self._changed:
            self._pieces.append(piece)
            self._changed.notify_all()
        self._tell()

    def end(self, outcome: Outcome | None, error: BaseException | None = None) -> None:
        """Say how it ended; the scheduler's, called once."""
        with self._changed:
            self._outcome, self._error, self._ended = outcome, error, True
            self._changed.notify_all()
        self._done.set()
        self._tell()

    def _tell(self) -> None:
        if self._notify is not None:
            self._notify()
