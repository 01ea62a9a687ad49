# SPDX-License-Identifier: Apache-2.0
"""What a loaded model is for several threads: one call at a time, and closed once."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from ..errors import NqEdgeError

__all__ = ["Serial"]

Self = TypeVar("Self", bound="Serial")


class Serial(ABC):
    """Holds the lock of a loaded model.

    Native sessions, caches and graphs are not made for two threads at once, and one that is closed while it computes
    takes the process with it. So every call that touches them holds one lock.

    Args:
        refusal: what a call hears once the model is closed, such as "the backend is closed."
    """

    def __init__(self, refusal: str) -> None:
        self._refusal = refusal
        self._lock = threading.RLock()
        self._closed = False

    def close(self) -> None:
        """Give back all memory; waits for the call that runs."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Hold the model for one call.

        Raises:
            NqEdgeError: NQ-OPTION when it is closed.
        """
        with self._lock:
            if self._closed:
                raise NqEdgeError("NQ-OPTION", self._refusal, "Open the bundle or checkpoint again.")
            yield

    @abstractmethod
    def _close(self) -> None:
        """Give back all memory; called once, with the lock held."""
