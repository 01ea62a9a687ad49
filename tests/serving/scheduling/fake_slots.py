# SPDX-License-Identifier: Apache-2.0
"""Slots whose next token is a fixed function of the tokens before it: a model without weights, to test who serves."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence

import numpy as np

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes.slots import SerialSlots, SlotMemory, SlotRow

__all__ = ["FakeSlots"]


class FakeSlots(SerialSlots):
    """Exact slots; every token's logits come from a hash of all tokens up to it.

    Args:
        vocab_size, max_context, count: see `Slots`.
        delay_s: how long a call takes.

    Attributes:
        calls: what each call appended to each slot.
        fail: raised by the next call.
    """

    name, kernel, together, exact, form = "fake", "none", True, True, "fake"
    most_tokens = 64

    def __init__(self, vocab_size: int = 320, max_context: int = 96, *, count: int = 4, delay_s: float = 0.0) -> None:
        super().__init__(vocab_size, max_context, count=count)
        self._tokens: list[list[int]] = [[] for _ in range(count)]
        self._delay_s = delay_s
        self.calls: list[dict[int, int]] = []
        self.fail: Exception | None = None

    @property
    def memory(self) -> SlotMemory:
        return SlotMemory(held=int(self._lengths.sum()), most=self.count * self.max_context, token=1)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """float32 [vocab_size] after these tokens; a loop of words in the long run, as small models have them."""
        digest = hashlib.blake2b(np.asarray(tokens[-3:], np.int64).tobytes(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "little"))
        found: np.ndarray = rng.standard_normal(self.vocab_size, dtype=np.float32)
        return found

    def _forward(self, rows: Sequence[SlotRow], ids: Sequence[list[int]]) -> list[np.ndarray]:
        if self.fail is not None:
            failure, self.fail = self.fail, None
            raise failure
        if self._delay_s:
            time.sleep(self._delay_s)
        self.calls.append({row.slot: len(new) for row, new in zip(rows, ids, strict=True)})
        found = []
        for row, new in zip(rows, ids, strict=True):
            tokens = self._tokens[row.slot]
            assert len(tokens) == self._lengths[row.slot]
            tokens += new
            ends = range(len(tokens) - row.logits + 1, len(tokens) + 1)
            each = [self.logits(tokens[:end]) for end in ends]
            found.append(np.stack(each) if each else np.zeros((0, self.vocab_size), np.float32))
        return found

    def _truncate(self, slot: int, length: int) -> None:
        del self._tokens[slot][length:]

    def _copy(self, source: int, target: int, length: int) -> None:
        self._tokens[target] = self._tokens[source][:length]

    def _save(self, slot: int, length: int) -> dict[str, np.ndarray]:
        return {"tokens": np.array(self._tokens[slot][:length], np.int32)}

    def _load(self, slot: int, arrays: Mapping[str, np.ndarray], length: int) -> None:
        if arrays.keys() != {"tokens"} or arrays["tokens"].shape != (length,):
            raise NqEdgeError("NQ-OPTION", "not what was saved.")
        self._tokens[slot] = arrays["tokens"].tolist()

    def _close(self) -> None:
        self._tokens = []
