# SPDX-License-Identifier: Apache-2.0
"""What a generation gives: its pieces as they come, and at the end the text with its figures."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

__all__ = ["Generation", "SharedIterator", "TextRun"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Generation:
    """A finished text.

    Attributes:
        text: what was generated, without special tokens and without the stop string.
        ids: all generated ids; the end-of-sequence id is the last one when the model ended the text.
        finish_reason: "eos", "stop" (a stop string) or "length".
        prompt_tokens: tokens of the prompt.
        prefill_tps: prompt tokens a second until the first new token.
        decode_tps: new tokens a second after the first; 0 when there is only one.
        ttft_s: seconds from the call to the first new token, tokenization included.
        peak_memory_mb: most resident memory of the process so far, 10^6 bytes.
        kernel: what computed the compressed layers, see `Backend`.
    """

    text: str
    ids: list[int]
    finish_reason: str
    prompt_tokens: int
    prefill_tps: float
    decode_tps: float
    ttft_s: float
    peak_memory_mb: float
    kernel: str

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


class SharedIterator(Iterator[Item], Generic[Item]):
    """An iterator that several threads may advance: each item goes to one of them, and none sees an error for it."""

    def __init__(self, items: Generator[Item, None, Any]) -> None:
        self._items = items
        self._lock = threading.Lock()

    def __next__(self) -> Item:
        with self._lock:
            return next(self._items)

    def close(self) -> None:
        """End it; the next item is not computed."""
        with self._lock:
            self._items.close()


class TextRun(SharedIterator[str]):
    """Text pieces as they come.

    Attributes:
        result: the finished text, once the pieces are used up.
    """

    def __init__(self, pieces: Generator[str, None, Generation]) -> None:
        super().__init__(pieces)
        self.result: Generation | None = None

    def __next__(self) -> str:
        try:
            return super().__next__()
        except StopIteration as end:
            self.result = end.value or self.result  # the value comes with the first end only
            raise
