# SPDX-License-Identifier: Apache-2.0
"""Key/value buffers that grow with use, so that a short chat on a board does not pay for a long context.

Each buffer is [batch, kv_heads, capacity, head_dim]. Capacity starts small and doubles, up to the limit; growing
copies layer by layer, so the most held at once is the new cache and one old layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...formats.kv_layout import KvLayout

__all__ = ["START_CAPACITY", "KvCache"]

#: Tokens of the first allocation: a question and a short answer.
START_CAPACITY = 256


class KvCache:
    """The cache of all layers.

    Args:
        layout: from the manifest.
        limit: most tokens a sequence may have.
        start_capacity: tokens of the first allocation.

    Attributes:
        lengths: tokens held for each sequence, int64 [batch].
        capacity: tokens for which memory is held.
        keys, values: one buffer a layer, in the layout's type: arrays here, GPU memory in `CudaKvCache`.
    """

    def __init__(self, layout: KvLayout, limit: int, *, start_capacity: int = START_CAPACITY) -> None:
        self._layout, self._start = layout, start_capacity
        self._dtype = np.dtype(layout.dtype)
        self.limit = limit
        self.lengths = np.zeros(0, dtype=np.int64)
        self.capacity = 0
        self._batch = 0
        self.keys: list[Any] = []
        self.values: list[Any] = []

    @property
    def bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(array.nbytes for array in (*self.keys, *self.values))

    def reserve(self, batch: int, tokens: int) -> bool:
        """Make room for `batch` sequences of `tokens` tokens (at most `limit`), keeping what is held.

        Returns:
            Whether the buffers moved, so that bindings must be made again.
        """
        same_batch = bool(self.keys) and self._batch == batch
        if same_batch and tokens <= self.capacity:
            return False
        old = self.capacity if same_batch else 0
        capacity = max(self._start, old)
        while capacity < tokens:
            capacity *= 2
        self.capacity = capacity = min(capacity, self.limit)
        shape = (batch, self._layout.heads, capacity, self._layout.head_dim)
        tokens_held = int(self.lengths.max(initial=0)) if same_batch else 0
        self._batch = batch
        if not self.keys:
            self.keys = [None] * self._layout.layers
            self.values = [None] * self._layout.layers
        for buffers in (self.keys, self.values):
            for layer in range(self._layout.layers):
                buffers[layer] = self._grown(buffers[layer], shape, tokens_held)
        return True

    def _grown(self, old: Any, shape: tuple[int, ...], held: int) -> Any:
        """A buffer of zeros that begins with the `held` tokens of the old one."""
        grown = np.zeros(shape, dtype=self._dtype)
        if held:
            grown[:, :, :held] = old[:, :, :held]
        return grown

    def named(self) -> Iterator[tuple[str, Any]]:
        """("{layer}.key" or "{layer}.value", buffer) of all buffers, as the graph's inputs and outputs end."""
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            yield f"{layer}.key", key
            yield f"{layer}.value", value

    def clear(self) -> None:
        """Forget the tokens and keep the memory."""
        self.lengths = np.zeros(0, dtype=np.int64)

    def release(self) -> None:
        """Forget the tokens and give the memory back."""
        self.clear()
        self.capacity = 0
        self.keys, self.values = [], []
