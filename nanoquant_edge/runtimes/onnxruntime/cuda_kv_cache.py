# SPDX-License-Identifier: Apache-2.0
"""The key/value cache in GPU memory, for ONNX Runtime's CUDA provider."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...formats.kv_layout import KvLayout
from .kv_cache import START_CAPACITY, KvCache

__all__ = ["CudaKvCache"]


class CudaKvCache(KvCache):
    """Buffers are onnxruntime.OrtValue on the GPU; see `KvCache`.

    Growing copies through the host: it happens a few times in the life of a session.

    Args:
        layout: from the manifest.
        limit: most tokens a sequence may have.
        start_capacity: tokens of the first allocation.
        runtime: the onnxruntime module.
    """

    def __init__(self, layout: KvLayout, limit: int, *, start_capacity: int = START_CAPACITY, runtime: Any) -> None:
        super().__init__(layout, limit, start_capacity=start_capacity)
        self._runtime = runtime

    @property
    def bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(int(np.prod(value.shape())) * self._dtype.itemsize for value in (*self.keys, *self.values))

    def _grown(self, old: Any, shape: tuple[int, ...], held: int) -> Any:
        host = np.zeros(shape, dtype=self._dtype)
        if held:
            host[:, :, :held] = old.numpy()[:, :, :held]
        return self._runtime.OrtValue.ortvalue_from_numpy(host, "cuda", 0)
