# SPDX-License-Identifier: Apache-2.0
"""Frequencies of the rotary position embedding (RoFormer section 3.4.2; Llama 3.1's scaling).

Rounded to float32 where transformers rounds them: at position 8000 that rounding moves an angle by up to 5e-4, more
than a whole export may differ.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .config import RotaryConfig

__all__ = ["frequencies"]


def frequencies(rotary: RotaryConfig, head_dim: int) -> NDArray[np.float32]:
    """Angle per position of each channel pair.

    Args:
        rotary: base and scaling.
        head_dim: width of a head.

    Returns:
        Radians, float32 (head_dim / 2,), largest first.

    Example:
        >>> frequencies(RotaryConfig(theta=10000.0), 8)
        array([1.   , 0.1  , 0.01 , 0.001], dtype=float32)
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # The power is rounded once, from float64: numpy's float32 power is an ulp off PyTorch's in a third of the channels.
    power = np.power(rotary.theta, exponents.astype(np.float64)).astype(np.float32)
    base = np.float32(1.0) / power
    if rotary.kind == "linear":
        return (base / np.float32(rotary.factor)).astype(np.float32)
    if rotary.kind == "llama3":
        return _llama3(base, rotary)
    return base


def _llama3(base: NDArray[np.float32], rotary: RotaryConfig) -> NDArray[np.float32]:
    # Long wavelengths are slowed by `factor`, short ones kept, those between blended.
    wavelength = 2 * math.pi / base
    span = rotary.high_freq_factor - rotary.low_freq_factor
    blend = np.clip((rotary.original_length / wavelength - rotary.low_freq_factor) / span, 0, 1)
    return ((1 - blend) * base / rotary.factor + blend * base).astype(np.float32)
