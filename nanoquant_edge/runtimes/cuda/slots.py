# SPDX-License-Identifier: Apache-2.0
"""Slots on a GPU: tokens of any slots in one pass; prefixes are shared by the page, and only the last one copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import NqEdgeError
from ..options import OpenKeywords, OpenOptions
from ..slots import SerialSlots, SlotMemory, SlotRow
from .device import device_index
from .engine import Append, Engine, Held
from .model_files import ModelFiles

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CudaSlots"]

#: Names of the arrays that a block's cache is saved as: codes or numbers, and the scales of codes.
_PARTS = ("key", "value", "key_scale", "value_scale")


class CudaSlots(SerialSlots):
    """A model on a GPU with several sequences; see `Slots` for what its methods promise.

    Args:
        files: the model as it lies on disk.
        options: how it is held.
        count: number of slots.
        **keywords: fields of `OpenOptions`, instead of those in `options`.

    Raises:
        NqEdgeError: as `CudaBackend`.
    """

    name = "cuda"
    kernel = "nanoquant"
    together = True
    #: Kernels of many rows and of few rows round differently.
    exact = False

    def __init__(
        self,
        files: ModelFiles,
        options: OpenOptions | None = None,
        *,
        count: int = 4,
        **keywords: Unpack[OpenKeywords],
    ) -> None:
        options = replace(options or OpenOptions(), **keywords)
        if type(count) is not int or not 1 <= count <= self.MOST:
            raise NqEdgeError("NQ-OPTION", f"slots must be a whole number from 1 to {self.MOST}, got {count!r}.")
        self._engine: Engine | None = Engine(files, options, index=device_index(options.device), sequences=count)
        super().__init__(files.config.vocab_size, self._engine.context, count=count)
        self.most_tokens = self._engine.workspace.work.rows
        form = self._engine.plan.form
        sizes = f"{form.layers}x{form.kv_heads}x{form.head_dim}"
        self.form = f"{self.name} {files.identity} {sizes} {self._engine.dtype} {form.bits} bits"
        self._held = [Held() for _ in range(count)]

    @property
    def memory(self) -> SlotMemory:
        """Memory of keys and values."""
        if self._engine is None:
            return SlotMemory(0, 0, 0)
        form = self._engine.plan.form
        most = self.count * form.pages(self.max_context) * form.page
        return SlotMemory(held=self._engine.cache.bytes, most=most, token=form.page // form.page_tokens)

    @property
    def _open(self) -> Engine:
        assert self._engine is not None  # the caller has seen that it is not closed
        return self._engine

    def _forward(self, rows: Sequence[SlotRow], ids: Sequence[list[int]]) -> list[np.ndarray]:
        appends = [
            Append(self._held[row.slot], np.array(new, np.int64), np.arange(len(new) - row.logits, len(new)))
            for row, new in zip(rows, ids, strict=True)
        ]
        before = [append.held.length for append in appends]
        try:
            return list(self._open.append(appends))
        except BaseException:
            for append, length in zip(appends, before, strict=True):
                self._open.release(append.held, length)
            raise

    def _truncate(self, slot: int, length: int) -> None:
        self._open.release(self._held[slot], length)

    def _copy(self, source: int, target: int, length: int) -> None:
        engine = self._open
        pages = engine.cache.share(self._held[source].pages, length)
        engine.release(self._held[target])
        self._held[target].pages, self._held[target].length = pages, length

    def _save(self, slot: int, length: int) -> dict[str, np.ndarray]:
        engine, form = self._open, self._open.plan.form
        engine.device.use()
        pages = self._held[slot].pages[: form.pages(length)]
        found: dict[str, np.ndarray] = {}
        for layer in range(form.layers):
            read = [engine.cache.read_page(page, layer) for page in pages]
            for index, part in enumerate(self._parts):
                arrays = [self._as_tokens(parts[index], index) for parts in read]
                whole = np.concatenate(arrays, 1)[:, :length] if arrays else self._empty(index)
                found[f"{layer}.{part}"] = np.ascontiguousarray(whole)
        return found

    def _load(self, slot: int, arrays: Mapping[str, np.ndarray], length: int) -> None:
        engine, form = self._open, self._open.plan.form
        wanted = {f"{layer}.{part}" for layer in range(form.layers) for part in self._parts}
        if set(arrays) != wanted:
            raise NqEdgeError("NQ-OPTION", "the saved tokens are of another model: their arrays have other names.")
        for name, array in arrays.items():
            self._check_array(name, array, length)
        engine.device.use()
        fresh = Held()
        engine.reserve([(fresh, length)])
        try:
            self._write(fresh.pages, arrays, length)
        except BaseException:
            engine.release(fresh)
            raise
        engine.release(self._held[slot])
        self._held[slot].pages, self._held[slot].length = fresh.pages, length

    def _write(self, pages: list[int], arrays: Mapping[str, np.ndarray], length: int) -> None:
        form = self._open.plan.form
        for layer in range(form.layers):
            for place, page in enumerate(pages):
                first = place * form.page_tokens
                parts = []
                for part in self._parts:
                    piece = arrays[f"{layer}.{part}"][:, first : min(length, first + form.page_tokens)]
                    padding = [(0, 0), (0, form.page_tokens - piece.shape[1]), *[(0, 0)] * (piece.ndim - 2)]
                    parts.append(np.ascontiguousarray(np.pad(piece, padding)).view(np.uint8).reshape(-1))
                self._open.cache.write_page(page, layer, parts)

    @property
    def _parts(self) -> tuple[str, ...]:
        return _PARTS if self._open.plan.form.bits == 8 else _PARTS[:2]

    def _dtype(self, index: int) -> Any:
        """The numpy type of a part; bfloat16 as its words."""
        if index >= 2:
            return np.float16
        if self._open.plan.form.bits == 8:
            return np.int8
        return np.float16 if self._open.dtype == "float16" else np.uint16

    def _empty(self, index: int) -> NDArray[Any]:
        form = self._open.plan.form
        shape = (form.kv_heads, 0) if index >= 2 else (form.kv_heads, 0, form.head_dim)
        return np.empty(shape, self._dtype(index))

    def _as_tokens(self, data: NDArray[np.uint8], index: int) -> NDArray[Any]:
        """A page's bytes as [kv_heads, page_tokens(, head_dim)]."""
        form = self._open.plan.form
        shape = (form.kv_heads, form.page_tokens) + (() if index >= 2 else (form.head_dim,))
        return data.view(self._dtype(index)).reshape(shape)

    def _check_array(self, name: str, array: np.ndarray, length: int) -> None:
        form, index = self._open.plan.form, _PARTS.index(name.partition(".")[2])
        shape = (form.kv_heads, length) + (() if index >= 2 else (form.head_dim,))
        dtype = np.dtype(self._dtype(index))
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            raise NqEdgeError("NQ-OPTION", f"the saved {name[:40]} is not {dtype.name} of shape {shape}.")
        if dtype == np.float16:
            finite = bool(np.isfinite(array).all())
        else:
            finite = dtype == np.int8 or not bool(((array & 0x7F80) == 0x7F80).any())
        if not finite:
            raise NqEdgeError("NQ-OPTION", f"the saved {name[:40]} holds numbers that are not finite.")

    def _close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
