# SPDX-License-Identifier: Apache-2.0
"""The type that matrix products are computed in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["compute_in", "preferred_dtype", "tensor_cores"]


def preferred_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32. Parameters and losses stay float32."""
    if device.type == "cuda":
        return torch.bfloat16
    # Private names, so asked for gently: without them float32 is right, only slower.
    native = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return torch.bfloat16 if any(ask is not None and ask() for ask in native) else torch.float32


@contextlib.contextmanager
def compute_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Run matrix products in `dtype` inside; a no-op for float32."""
    if dtype == torch.float32:
        yield
    else:
        # Cast weights are not cached: a cache filled inside a CUDA graph would be read outside of it.
        with torch.autocast(device.type, dtype=dtype, cache_enabled=False):
            yield


@contextlib.contextmanager
def tensor_cores() -> Iterator[None]:
    """Let a GPU's float32 products run as TF32 inside: 10 bits of each factor's mantissa, sums in float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
