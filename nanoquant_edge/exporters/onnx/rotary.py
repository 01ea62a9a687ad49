# SPDX-License-Identifier: Apache-2.0
"""Cosine and sine tables of the rotary position embedding (RoFormer section 3.4.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...models import RotaryConfig
from ...models.rotary import frequencies

__all__ = ["frequencies", "rotary_tables"]


def rotary_tables(
    rotary: RotaryConfig, head_dim: int, positions: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines.

    Args:
        rotary: the embedding's parameters.
        head_dim: channels a head, even.
        positions: number of rows.

    Returns:
        Two float32 arrays (positions, head_dim / 2).
    """
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies(rotary, head_dim)[None, :]
    return np.cos(angles), np.sin(angles)
