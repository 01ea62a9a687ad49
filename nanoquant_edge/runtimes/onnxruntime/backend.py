# SPDX-License-Identifier: Apache-2.0
"""The backend on ONNX Runtime, on the CPU or on an NVIDIA GPU.

The cache is bound to the graph as input and output at once, so attention writes new keys and values in place and
nothing is copied from step to step. Long prompts pass through the graph in chunks, which bounds the memory of their
activations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...formats.bundle import Bundle
from ...formats.graph import LOGITS, PAST, PRESENT, TOKEN_INPUTS
from ...system.memory import return_freed_memory
from ..backend import SerialBackend
from ..options import CUDA, OpenKeywords, OpenOptions
from .cuda_kv_cache import CudaKvCache
from .interface import check_interface
from .kv_cache import START_CAPACITY, KvCache
from .session import import_onnxruntime, open_session, refusal

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PREFILL_CHUNK", "OnnxRuntimeBackend"]

#: Tokens of a prompt that pass through the graph at once.
PREFILL_CHUNK = 512


class OnnxRuntimeBackend(SerialBackend):
    """A bundle in ONNX Runtime; see `Backend` for what its methods promise.

    Args:
        bundle: an opened bundle.
        options: how it is opened; with "cuda" as provider the cache lies on the GPU too.
        extra_outputs: inner values to return beside the logits, such as "block.0.output".
        prefill_chunk: tokens of a single sequence that pass through the graph at once.
        start_capacity: tokens that the first cache holds.
        profile_prefix: see `open_session`.
        **keywords: fields of `OpenOptions`, instead of those in `options`.

    Raises:
        NqEdgeError: as `open_session`, and NQ-OPTION for a `max_context` beyond the bundle's.

    Example:
        >>> with OnnxRuntimeBackend(Bundle.open("bundle"), threads=1) as backend:
        ...     logits = backend.forward(np.array([[1, 5, 7]]))
        >>> logits.shape  # of the last position
        (1, 1, 320)
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        options: OpenOptions | None = None,
        *,
        extra_outputs: tuple[str, ...] = (),
        prefill_chunk: int = PREFILL_CHUNK,
        start_capacity: int = START_CAPACITY,
        profile_prefix: str | None = None,
        **keywords: Unpack[OpenKeywords],
    ) -> None:
        options = replace(options or OpenOptions(), **keywords)
        super().__init__(bundle.vocab_size, options.context(bundle.kv.capacity, "bundle"))
        self._extra_names = tuple(extra_outputs)
        self._chunk = prefill_chunk
        self._session: Any
        self._session, self.kernel = open_session(
            bundle, options, extra_outputs=self._extra_names, profile_prefix=profile_prefix
        )
        self.provider = options.provider
        check_interface(self._session, bundle, self._extra_names)
        self._cache = self.make_cache(bundle, start_capacity)
        self._binding: Any = None

    def make_cache(self, bundle: Bundle, start_capacity: int) -> KvCache:
        """The cache, where the provider computes."""
        if self.provider == CUDA:
            return CudaKvCache(bundle.kv, self.max_context, start_capacity=start_capacity, runtime=import_onnxruntime())
        return KvCache(bundle.kv, self.max_context, start_capacity=start_capacity)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in the cache for each sequence, int64 [batch]."""
        return self._cache.lengths.copy()

    @property
    def capacity(self) -> int:
        """Tokens for which cache memory is held."""
        return self._cache.capacity

    def _forward(self, input_ids: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        batch, sequence = input_ids.shape
        cache = self._cache
        past = cache.lengths if cache.lengths.size else np.zeros(batch, dtype=np.int64)
        # Padded rows are written too, so the longest past and the whole width must fit.
        if cache.reserve(batch, min(int(past.max()) + sequence, self.max_context)):
            self._binding = None
            return_freed_memory()
        logits = np.empty((batch, positions.shape[1] if batch == 1 else 0, self.vocab_size), dtype=np.float32)
        extra: list[dict[str, np.ndarray]] = []
        step = self._chunk if batch == 1 else sequence
        for start in range(0, sequence, step):
            piece = input_ids[:, start : start + step]
            valid = np.minimum(lengths - start, piece.shape[1])
            whole = piece.shape[1] == sequence
            inside = slice(None) if whole else (positions[0] >= start) & (positions[0] < start + step)
            part, more = self._run(piece, positions[:, inside] - start, past, valid)
            if whole:
                logits = part
            else:
                logits[:, inside] = part
            extra.append(more)
            past = past + valid
            cache.lengths = past
        self.extra = {name: np.concatenate([more[name] for more in extra], axis=1) for name in self._extra_names}
        return logits

    def end_profile(self) -> str:
        """Stop recording and return the profile's path; only with `profile_prefix`."""
        with self._computing():
            return str(self._session.end_profiling())

    def _reset(self) -> None:
        self._cache.clear()

    def _close(self) -> None:
        self._binding = self._session = None
        self._cache.release()
        return_freed_memory()

    def _run(
        self, input_ids: np.ndarray, positions: np.ndarray, past: np.ndarray, valid: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """One pass through the graph; `past` are the tokens before it, `valid` the new ones of each row."""
        batch, sequence = input_ids.shape
        total = int(past.max()) + sequence
        mask = (np.arange(total) < (past + valid)[:, None]).astype(np.int64)
        logits = np.empty((batch, positions.shape[1], self.vocab_size), dtype=np.float32)
        binding = self._bound()
        for name, array in zip(TOKEN_INPUTS, (input_ids, mask, positions), strict=True):
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_output(LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        for name in self._extra_names:
            binding.bind_output(name)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise refusal(error, "NQ-BACKEND", message=f"ONNX Runtime failed: {str(error).strip()}") from error
        if not self._extra_names:
            return logits, {}
        found = dict(zip(self._output_order, binding.get_outputs(), strict=True))
        return logits, {name: np.asarray(found[name].numpy(), dtype=np.float32) for name in self._extra_names}

    def _bound(self) -> Any:
        """The binding that holds the cache; made again when the buffers move."""
        if self._binding is None:
            binding = self._session.io_binding()
            for name, buffer in self._cache.named():
                if self.provider == CUDA:
                    binding.bind_ortvalue_input(PAST + name, buffer)
                    binding.bind_ortvalue_output(PRESENT + name, buffer)
                    continue
                memory = ("cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
                binding.bind_input(PAST + name, *memory)
                binding.bind_output(PRESENT + name, *memory)
            self._output_order = [PRESENT + name for name, _ in self._cache.named()]
            self._output_order += [LOGITS, *self._extra_names]
            self._binding = binding
        return self._binding
