# SPDX-License-Identifier: Apache-2.0
"""Watches a process's memory from a thread of its own (Linux; elsewhere nothing is seen)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .memory import private_memory_mb

__all__ = ["MemoryWatch"]

_SECONDS = 0.02


class MemoryWatch:
    """A context in which this process's memory is sampled.

    Args:
        each: called after every sample, to give something back.

    Attributes:
        private: peak bytes without pages that are mapped from files.
    """

    def __init__(self, each: Callable[[], None] | None = None) -> None:
        self.private = 0
        self._each = each
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS):
            self.private = max(self.private, round(private_memory_mb() * 1e6))
            if self._each is not None:
                self._each()
