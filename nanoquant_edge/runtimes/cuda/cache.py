# SPDX-License-Identifier: Apache-2.0
"""Keys and values of all sequences in pages: a pool on the device that grows, and who holds which page.

A page holds `PAGE_TOKENS` tokens of one sequence in every block. Sequences that begin alike share the pages of their
common prefix; whoever writes into a page that others hold gets a copy of it first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import NqEdgeError
from ...models import DecoderConfig
from .binding import CCache
from .device import Device, Memory, aligned

__all__ = ["PAGE_TOKENS", "CacheForm", "PagedCache"]

#: A power of two; 128 tokens of Llama-3.2-1B are 4.2 MB.
PAGE_TOKENS = 128


@dataclass(frozen=True)
class CacheForm:
    """What a page is.

    Attributes:
        layers, kv_heads, head_dim: of the model.
        bits: 16, or 8 for int8 codes with a scale a token and head.
        page_tokens: tokens of a page, a power of two from 16.
    """

    layers: int
    kv_heads: int
    head_dim: int
    bits: int = 16
    page_tokens: int = PAGE_TOKENS

    @classmethod
    def of(cls, config: DecoderConfig, bits: int) -> CacheForm:
        """The form of a model's pages."""
        return cls(config.num_layers, config.num_kv_heads, config.head_dim, bits)

    @property
    def codes(self) -> int:
        """Bytes of a page's keys in one block."""
        return self.kv_heads * self.page_tokens * self.head_dim * self.bits // 8

    @property
    def scales(self) -> int:
        """Bytes of the scales of a page's keys in one block; none in 16 bits."""
        return 2 * self.kv_heads * self.page_tokens if self.bits == 8 else 0

    @property
    def page(self) -> int:
        """Bytes of a page in all blocks, keys and values."""
        return 2 * self.layers * (self.codes + self.scales)

    def pages(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.page_tokens)


class PagedCache:
    """The pool.

    Args:
        device: where it lies.
        form: what a page is.

    Attributes:
        pages: that are allocated.
        generation: grows whenever addresses change, so that captured graphs no longer fit.
    """

    def __init__(self, device: Device, form: CacheForm) -> None:
        self._device, self.form = device, form
        self.pages = self.generation = 0
        #: of each block: keys, values, and in 8 bits their scales
        self._arrays: list[list[Memory]] = [[] for _ in range(form.layers)]
        self._users = np.zeros(0, np.int32)

    @property
    def bytes(self) -> int:
        """Device memory of the pool."""
        return sum(memory.size for arrays in self._arrays for memory in arrays)

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return int((self._users == 0).sum())

    def grow(self, pages: int) -> None:
        """Have at least `pages`; what is held stays. One block's arrays at a time are there twice.

        Raises:
            NqEdgeError: NQ-MEMORY; the pool is as before then.
        """
        if pages <= self.pages:
            return
        form = self.form
        sizes = [form.codes, form.codes] + ([form.scales, form.scales] if form.scales else [])
        grown: list[list[Memory]] = []
        try:
            for arrays in self._arrays:
                grown.append(self._grown(arrays, sizes, pages))
        except NqEdgeError:
            for index, fresh in enumerate(grown):  # larger arrays serve as well
                self._arrays[index] = fresh
            self.generation += 1
            raise
        self._arrays = grown
        self._users = np.concatenate([self._users, np.zeros(pages - self.pages, np.int32)])
        self.pages = pages
        self.generation += 1

    def _grown(self, arrays: list[Memory], sizes: list[int], pages: int) -> list[Memory]:
        fresh: list[Memory] = []
        try:
            for size in sizes:
                # Zero: a masked token's value is multiplied by a probability of 0, and 0 x NaN would be NaN.
                fresh.append(self._device.zeroed(aligned(size * pages), f"a cache of {pages} pages"))
        except NqEdgeError:
            for memory in fresh:
                memory.free()
            raise
        for old, new, size in zip(arrays, fresh, sizes, strict=False):
            self._device.copy(new.address, old.address, size * self.pages)
        self._device.synchronize()
        for old in arrays:
            old.free()
        return fresh

    def describe(self) -> list[CCache]:
        """The structure of each block's cache, without a page table."""
        found = []
        for arrays in self._arrays:
            addresses = [memory.address for memory in arrays]
            found.append(
                CCache(
                    bits=self.form.bits,
                    page_tokens=self.form.page_tokens,
                    pages=self.pages,
                    keys=addresses[0] if addresses else None,
                    values=addresses[1] if addresses else None,
                    key_scales=addresses[2] if len(addresses) > 2 else None,
                    value_scales=addresses[3] if len(addresses) > 2 else None,
                )
            )
        return found

    def extend(self, held: list[int], tokens: int, total: int) -> None:
        """Let a sequence write tokens [tokens, total): pages it lacks, and copies of shared ones it would write into.

        Args:
            held: the sequence's pages, changed in place.
            tokens: that it holds.
            total: that it shall hold. There must be free pages for it (`needs`).
        """
        first = tokens // self.form.page_tokens
        for place in range(first, min(len(held), self.form.pages(total))):
            if self._users[held[place]] > 1:
                fresh = self._take()
                self._copy_page(held[place], fresh)
                self._users[held[place]] -= 1
                held[place] = fresh
        while len(held) < self.form.pages(total):
            held.append(self._take())

    def needs(self, held: list[int], tokens: int, total: int) -> int:
        """Free pages that `extend` takes."""
        first, last = tokens // self.form.page_tokens, self.form.pages(total)
        shared = sum(self._users[page] > 1 for page in held[first:last])
        return int(shared) + max(0, last - len(held))

    def share(self, held: list[int], length: int) -> list[int]:
        """The pages of the first `length` tokens, held once more; a page in part is copied when it is written into."""
        pages = held[: self.form.pages(length)]
        for page in pages:
            self._users[page] += 1
        return pages

    def release(self, held: list[int], length: int = 0) -> None:
        """Give back the pages past the first `length` tokens; `held` is changed in place."""
        keep = self.form.pages(length)
        for page in held[keep:]:
            self._users[page] -= 1
        del held[keep:]

    def read_page(self, page: int, layer: int) -> list[NDArray[np.uint8]]:
        """A page's bytes in one block: keys, values, and in 8 bits their scales."""
        found = []
        for index, memory in enumerate(self._arrays[layer]):
            size = self.form.codes if index < 2 else self.form.scales
            found.append(self._device.download(memory.address + page * size, (size,), np.uint8))
        return found

    def write_page(self, page: int, layer: int, parts: list[NDArray[np.uint8]]) -> None:
        """The reverse."""
        for index, (memory, part) in enumerate(zip(self._arrays[layer], parts, strict=True)):
            size = self.form.codes if index < 2 else self.form.scales
            self._device.upload(memory.address + page * size, part)

    def close(self) -> None:
        """Give back all memory."""
        for arrays in self._arrays:
            for memory in arrays:
                memory.free()
        self._arrays = [[] for _ in range(self.form.layers)]
        self.pages, self._users = 0, np.zeros(0, np.int32)

    def _take(self) -> int:
        page = int(np.flatnonzero(self._users == 0)[0])
        self._users[page] = 1
        return page

    def _copy_page(self, source: int, target: int) -> None:
        for arrays in self._arrays:
            for index, memory in enumerate(arrays):
                size = self.form.codes if index < 2 else self.form.scales
                self._device.copy(memory.address + target * size, memory.address + source * size, size)
