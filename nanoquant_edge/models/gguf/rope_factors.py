# SPDX-License-Identifier: Apache-2.0
"""Factors of rotary frequencies in a GGUF file, `rope_freqs.weight`, -> the scaling of Llama 3 that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import NqEdgeError
from ..config import RotaryConfig
from ..rotary import frequencies
from .content import GgufContent

__all__ = ["read_llama3_factors"]

#: `low_freq_factor` and `high_freq_factor` of all published models.
_LOW, _HIGH = 1.0, 4.0
#: Factors are written in 32 bits, and were computed in 64.
_TOLERANCE = 1e-5


def read_llama3_factors(content: GgufContent, head_dim: int, theta: float, original_length: int) -> dict[str, Any]:
    """Entries of `rope_parameters` with which transformers computes the file's frequencies.

    Args:
        content: a file with the tensor.
        head_dim: width of a head.
        theta: base of the frequencies.
        original_length: the length that the model was trained on before it was extended.

    Raises:
        NqEdgeError: NQ-ARCH for factors that are not those of Llama 3's scaling.
    """
    factors = content.values("rope_freqs.weight") if content.tensors["rope_freqs.weight"].kind == 0 else np.zeros(0)
    if factors.shape == (head_dim // 2,) and np.isfinite(factors).all() and (factors >= 1).all():
        if (factors == 1).all():
            return {}
        factor = float(str(np.float32(factors.max())))
        rotary = RotaryConfig(theta, "llama3", factor, _LOW, _HIGH, original_length)
        base = frequencies(RotaryConfig(theta), head_dim).astype(np.float64)
        if np.allclose(base / factors, frequencies(rotary, head_dim), rtol=_TOLERANCE, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": original_length,
            }
    raise NqEdgeError(
        "NQ-ARCH",
        f"{content.path} has factors of rotary positions that are not those of Llama 3, which is not read from GGUF.",
        "Use the Hugging Face folder.",
    )
