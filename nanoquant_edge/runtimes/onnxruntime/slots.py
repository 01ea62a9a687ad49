# SPDX-License-Identifier: Apache-2.0
"""Slots on ONNX Runtime's CPU: tokens of any slots in one run where the graph takes them, else a run for each slot."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import NqEdgeError
from ...formats.bundle import Bundle
from ...formats.graph import (
    ATTENTION_MASK,
    DATA_FILE,
    INPUT_IDS,
    LOGITS,
    LOGITS_INDICES,
    MODEL_FILE,
    PAST,
    PRESENT,
    SLOTS,
)
from ...system.memory import return_freed_memory
from ..options import CPU, OpenKeywords, OpenOptions
from ..slots import SerialSlots, SlotMemory, SlotRow
from .backend import PREFILL_CHUNK
from .interface import check_interface, takes_slots
from .session import KERNEL, open_session, refusal
from .slot_cache import SlotCache

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["OnnxRuntimeSlots"]

#: Most tokens of a step that keeps its binding.
_SMALL = 32
_TYPES = {INPUT_IDS: np.int64, ATTENTION_MASK: np.int64, LOGITS_INDICES: np.int64, SLOTS: np.int32}


class _Bound:
    """A binding, and the arrays that its inputs lie in."""

    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self._arrays: dict[str, np.ndarray] = {}

    def give(self, feeds: Mapping[str, Any]) -> None:
        """Fill the inputs from nested lists; what has its shape from the last time is not bound again."""
        for name, value in feeds.items():
            array = np.array(value, _TYPES[name])
            old = self._arrays.get(name)
            if old is not None and old.shape == array.shape:
                old[...] = array
                continue
            self._arrays[name] = array  # by address: an optional input has no other way
            self.binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


class OnnxRuntimeSlots(SerialSlots):
    """A bundle in ONNX Runtime on the CPU; see `Slots` for what its methods promise.

    Args:
        bundle: an opened bundle.
        options: how it is opened.
        count: number of slots.
        **keywords: fields of `OpenOptions`, instead of those in `options`.

    Raises:
        NqEdgeError: as `open_session`; NQ-OPTION for another provider than the CPU, for a `max_context` beyond the
            bundle's, and for a number of slots out of range.

    Example:
        >>> with OnnxRuntimeSlots(Bundle.open("bundle"), threads=1, count=2) as slots:
        ...     first, second = slots.forward([SlotRow(0, [1, 5, 7]), SlotRow(1, [1, 9], logits=2)])
        ...     again = slots.forward([SlotRow(1, [4])])
        ...     slots.lengths.tolist()
        [3, 3]
        >>> first.shape, second.shape
        ((1, 320), (2, 320))
    """

    name = "onnxruntime"
    most_tokens = PREFILL_CHUNK

    def __init__(
        self,
        bundle: Bundle,
        options: OpenOptions | None = None,
        *,
        count: int = 4,
        **keywords: Unpack[OpenKeywords],
    ) -> None:
        options = replace(options or OpenOptions(), **keywords)
        super().__init__(bundle.vocab_size, options.context(bundle.kv.capacity, "bundle"), count=count)
        if options.provider != CPU:
            raise NqEdgeError("NQ-OPTION", "ONNX Runtime serves several texts at once on the CPU only.")
        self._session: Any
        self._session, self.kernel = open_session(bundle, options)
        check_interface(self._session, bundle)
        self.together = takes_slots(self._session) and self.kernel == KERNEL
        self._cache = SlotCache(bundle.kv, count=count, capacity=self.max_context)
        self._bindings: dict[tuple[int, int], _Bound] = {}
        hashes = "-".join(bundle.files[name].sha256 for name in (MODEL_FILE, DATA_FILE) if name in bundle.files)
        kv = bundle.kv
        self.form = f"{self.name} {kv.layers}x{kv.heads}x{kv.head_dim} {kv.dtype} {hashes}"
        self.exact = self._is_exact()

    @property
    def memory(self) -> SlotMemory:
        """Memory of keys and values; a slot takes some when tokens come, and gives it back when they are forgotten."""
        return self._cache.memory

    def _is_exact(self) -> bool:
        """Whether five tokens in one call give the bits of five calls: kernels of some processors differ."""
        ids = [i % self.vocab_size for i in range(5)]
        if self.max_context < len(ids):
            return False
        whole = self.forward([SlotRow(0, ids, logits=len(ids))])[0]
        self.truncate(0, 0)
        single = [self.forward([SlotRow(0, [token])])[0] for token in ids]
        self.truncate(0, 0)
        return np.array_equal(whole, np.concatenate(single))

    def _forward(self, rows: Sequence[SlotRow], ids: Sequence[list[int]]) -> list[np.ndarray]:
        lengths = self._lengths.tolist()
        for row, new in zip(rows, ids, strict=True):
            self._cache.grow(row.slot, lengths[row.slot] + len(new))
        if self.together:
            return self._forward_together(rows, ids, lengths)
        return [self._forward_one(row, new, lengths[row.slot]) for row, new in zip(rows, ids, strict=True)]

    def _forward_together(
        self, rows: Sequence[SlotRow], ids: Sequence[list[int]], lengths: list[int]
    ) -> list[np.ndarray]:
        """One run: each token names its slot and position."""
        tokens: list[int] = []
        places: list[int] = []
        slots: list[int] = []
        wanted: list[int] = []
        ends = [0]
        for row, new in zip(rows, ids, strict=True):
            tokens += new
            places += range(lengths[row.slot] + 1, lengths[row.slot] + len(new) + 1)
            slots += [row.slot] * len(new)
            wanted += range(len(tokens) - row.logits, len(tokens))
            ends.append(len(wanted))
        feeds = {INPUT_IDS: [tokens], ATTENTION_MASK: [[place] for place in places], LOGITS_INDICES: [wanted]}
        logits = self._run({**feeds, SLOTS: slots}, slot=None)
        return [logits[begin:end] for begin, end in itertools.pairwise(ends)]

    def _forward_one(self, row: SlotRow, ids: list[int], length: int) -> np.ndarray:
        """A run over one slot's part of the cache."""
        feeds = {
            INPUT_IDS: [ids],
            ATTENTION_MASK: [[1] * (length + len(ids))],
            LOGITS_INDICES: [list(range(len(ids) - row.logits, len(ids)))],
        }
        return self._run(feeds, slot=row.slot)

    def _run(self, feeds: Mapping[str, Any], slot: int | None) -> np.ndarray:
        """One pass through the graph, over all slots or one; logits [positions, vocab_size]."""
        tokens, positions = len(feeds[INPUT_IDS][0]), len(feeds[LOGITS_INDICES][0])
        logits = np.empty((1, positions, self.vocab_size), dtype=np.float32)
        small = slot is None and tokens == positions <= _SMALL
        bound = self._bound((-1 if slot is None else slot, tokens if small else 0))
        bound.give(feeds)
        bound.binding.bind_output(LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(bound.binding)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise refusal(error, "NQ-BACKEND", message=f"ONNX Runtime failed: {str(error).strip()}") from error
        result: np.ndarray = logits[0]
        return result

    def _bound(self, key: tuple[int, int]) -> _Bound:
        """A binding of all slots' cache (-1), or of one slot's as a batch of one; caches never move.

        Steps of a few tokens, all with logits, have a binding for each number of tokens, so that their inputs are
        bound once.
        """
        if key not in self._bindings:
            bound = _Bound(self._session.io_binding())
            for name, buffer in self._cache.buffers.items():
                part = buffer if key[0] < 0 else buffer[key[0] : key[0] + 1]
                memory = ("cpu", 0, part.dtype, part.shape, part.ctypes.data)
                bound.binding.bind_input(PAST + name, *memory)
                bound.binding.bind_output(PRESENT + name, *memory)
            self._bindings[key] = bound
        return self._bindings[key]

    def _truncate(self, slot: int, length: int) -> None:
        self._cache.forget(slot, length)

    def _copy(self, source: int, target: int, length: int) -> None:
        self._cache.forget(target, length)
        self._cache.copy(source, target, length)

    def _save(self, slot: int, length: int) -> dict[str, np.ndarray]:
        return self._cache.save(slot, length)

    def _load(self, slot: int, arrays: Mapping[str, np.ndarray], length: int) -> None:
        self._cache.load(slot, arrays, length)

    def _close(self) -> None:
        self._bindings = {}
        self._session = None
        self._cache.release()
        return_freed_memory()
