# SPDX-License-Identifier: Apache-2.0
"""Keys and values of many slots: address space for every slot's whole context, and memory for the tokens it holds.

Buffers never move, so they are bound once. A page becomes memory when a token is written into it, and is given back
when its tokens are forgotten.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Mapping

import numpy as np

from ...errors import NqEdgeError
from ...formats.graph import cache_names
from ...formats.kv_layout import KvLayout
from ..slots import SlotMemory

__all__ = ["SlotCache"]

#: Forgotten tokens that are too few to give their pages back at once: the next ones are written there.
_FEW = 64
#: Python names it from 3.11 on; the number is Linux's on x86-64 and aarch64.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class SlotCache:
    """The cache of all layers.

    Args:
        layout: from the manifest.
        count: slots.
        capacity: most tokens of a slot.

    Attributes:
        buffers: "{layer}.key" and "{layer}.value" -> [count, kv_heads, capacity, head_dim].

    Raises:
        NqEdgeError: NQ-MEMORY when the system does not even give the addresses.
    """

    def __init__(self, layout: KvLayout, *, count: int, capacity: int) -> None:
        self._dtype, self._heads, self._dim = np.dtype(layout.dtype), layout.heads, layout.head_dim
        shape = (count, layout.heads, capacity, layout.head_dim)
        self.buffers: dict[str, np.ndarray] = {}
        self._maps: list[mmap.mmap] = []
        try:
            for name in cache_names(layout.layers):
                memory = _reserved(int(np.prod(shape)) * self._dtype.itemsize)
                self._maps.append(memory)
                self.buffers[name] = np.frombuffer(memory, dtype=self._dtype).reshape(shape)
        except (OSError, ValueError) as error:
            self.release()
            raise NqEdgeError(
                "NQ-MEMORY",
                f"the system does not give the addresses of {count} slots of {capacity} tokens ({error}).",
                "Use fewer slots, or a smaller --max-context.",
            ) from error
        self._held = np.zeros(count, dtype=np.int64)
        self._capacity = capacity
        self._token = 2 * layout.layers * layout.heads * layout.head_dim * self._dtype.itemsize

    @property
    def memory(self) -> SlotMemory:
        """Memory of the tokens that slots hold or have held since they gave pages back."""
        return SlotMemory(
            held=int(self._held.sum()) * self._token,
            most=self._held.size * self._capacity * self._token,
            token=self._token,
        )

    def grow(self, slot: int, length: int) -> None:
        """Count the pages that a slot's tokens take, before they are written."""
        self._held[slot] = max(self._held[slot], length)

    def forget(self, slot: int, length: int) -> None:
        """Give back the memory of a slot's tokens from `length` on, unless they are few."""
        if self._held[slot] - length < _FEW or not hasattr(mmap, "MADV_DONTNEED"):
            return
        row = self._capacity * self._dim * self._dtype.itemsize
        for memory in self._maps:
            for head in range(slot * self._heads, (slot + 1) * self._heads):
                begin = head * row + length * self._dim * self._dtype.itemsize
                begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
                end = (head * row + int(self._held[slot]) * self._dim * self._dtype.itemsize) // mmap.PAGESIZE
                if end * mmap.PAGESIZE > begin:
                    memory.madvise(mmap.MADV_DONTNEED, begin, end * mmap.PAGESIZE - begin)
        self._held[slot] = length

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a slot into another."""
        self.grow(target, length)
        for buffer in self.buffers.values():
            buffer[target, :, :length] = buffer[source, :, :length]

    def save(self, slot: int, length: int) -> dict[str, np.ndarray]:
        """Copies of a slot's first tokens, [kv_heads, length, head_dim] each."""
        return {name: buffer[slot, :, :length].copy() for name, buffer in self.buffers.items()}

    def load(self, slot: int, arrays: Mapping[str, np.ndarray], length: int) -> None:
        """Take over what `save` gave.

        Raises:
            NqEdgeError: NQ-OPTION when names, types or shapes differ, or a value is not finite.
        """
        wanted = (self._heads, length, self._dim)
        for name in self.buffers:
            array = arrays.get(name)
            good = array is not None and array.dtype == self._dtype and array.shape == wanted
            if not good or not np.isfinite(arrays[name]).all():
                raise NqEdgeError("NQ-OPTION", f"the saved {name} is not {self._dtype} {wanted}, or not finite.")
        if len(arrays) != len(self.buffers):
            raise NqEdgeError("NQ-OPTION", "more arrays were saved than this model has.")
        self.grow(slot, length)
        for name, buffer in self.buffers.items():
            buffer[slot, :, :length] = arrays[name]

    def release(self) -> None:
        """Give all memory back; arrays of `buffers` that others hold keep theirs alive."""
        self.buffers = {}
        self._maps = []


def _reserved(size: int) -> mmap.mmap:
    """Zeros that take no memory before they are written, in small pages: one token touches every buffer."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows commits memory only when it is touched, too
        return mmap.mmap(-1, size)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    memory = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
