# SPDX-License-Identifier: Apache-2.0
"""The key/value cache in GPU memory: one allocation, [batch, kv_heads, capacity, head_dim] per layer and part.

The engine fixes the number of slots, so nothing ever grows; the memory comes with the first tokens and stays until the
number of sequences changes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...errors import NqEdgeError
from ...formats.kv_layout import KvLayout
from .device import Device, Rows

__all__ = ["ALIGNMENT", "ITEM_BYTES", "DeviceCache", "aligned"]

#: TensorRT wants addresses that are multiples of this.
ALIGNMENT = 256
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}


def aligned(size: int) -> int:
    """`size` rounded up to TensorRT's alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class DeviceCache:
    """Buffers of all layers.

    Args:
        device: where they lie.
        kv: sizes.

    Attributes:
        lengths: tokens held for each sequence, int64 [batch]; empty after `clear`.
        batch: sequences for which memory is held.
    """

    def __init__(self, device: Device, kv: KvLayout) -> None:
        self._device, self._kv = device, kv
        self._base = 0
        self.batch = 0
        self.lengths = np.zeros(0, dtype=np.int64)
        #: Bytes of a token in one head, of a head, and of a sequence, each in one layer's keys or values.
        self.token_bytes = kv.head_dim * ITEM_BYTES[kv.dtype]
        self.head_bytes = kv.capacity * self.token_bytes
        self.row_bytes = kv.heads * self.head_bytes

    def bytes_for(self, batch: int) -> int:
        """Bytes of the whole cache of `batch` sequences."""
        return 2 * self._kv.layers * aligned(batch * self.row_bytes)

    def reserve(self, batch: int) -> bool:
        """Hold zeroed memory for `batch` sequences; what was held for another number of them goes first.

        Returns:
            Whether the buffers moved.

        Raises:
            NqEdgeError: NQ-MEMORY when there is not enough; NQ-OPTION when several sequences would lie at addresses
                that TensorRT refuses.
        """
        if batch == self.batch:
            return False
        if batch > 1 and self.row_bytes % ALIGNMENT:
            raise NqEdgeError(
                "NQ-OPTION",
                f"a sequence's cache has {self.row_bytes} bytes a layer; for several sequences at once TensorRT wants "
                f"a multiple of {ALIGNMENT}.",
                "Use one sequence, or build with another --capacity.",
            )
        self.release()
        self._base = self._device.allocate(self.bytes_for(batch))
        self.batch = batch
        self.clear()
        return True

    def named(self, row: int = 0) -> Iterator[tuple[str, int]]:
        """("{layer}.key" or "{layer}.value", address) of all buffers, from sequence `row` on."""
        step = aligned(self.batch * self.row_bytes)
        for index in range(2 * self._kv.layers):
            part = "value" if index % 2 else "key"
            yield f"{index // 2}.{part}", self._base + index * step + row * self.row_bytes

    def store(self, target: int, source: int, *, start: int, tokens: int) -> None:
        """Copy new rows of one sequence and layer to their slots.

        Args:
            target: address of the sequence's keys or values, from `named`.
            source: address of the new rows [kv_heads, tokens, head_dim].
            start: first slot.
            tokens: how many.
        """
        width = tokens * self.token_bytes
        slots = Rows(target + start * self.token_bytes, self.head_bytes)
        self._device.copy_rows(slots, Rows(source, width), width=width, count=self._kv.heads)

    def clear(self) -> None:
        """Forget the tokens. The slots become zero: attention masks empty ones by adding, and a NaN would stay."""
        self.lengths = np.zeros(0, dtype=np.int64)
        if self._base:
            self._device.clear(self._base, self.bytes_for(self.batch))

    def release(self) -> None:
        """Forget the tokens and give the memory back."""
        self.lengths = np.zeros(0, dtype=np.int64)
        base, self._base, self.batch = self._base, 0, 0
        if base:
            self._device.free(base)
