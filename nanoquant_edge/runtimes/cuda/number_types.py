# SPDX-License-Identifier: Apache-2.0
"""The floating types under their three spellings, and numbers of them without a numpy type for bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .binding import CType

__all__ = ["C_TYPES", "SPELLING", "from_float32", "to_float32"]

#: Type in safetensors' spelling -> in the C interface.
C_TYPES = {"F32": CType.FLOAT32, "F16": CType.FLOAT16, "BF16": CType.BFLOAT16}
#: Type as options and manifests name it -> in safetensors' spelling.
SPELLING = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def to_float32(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Numbers from their bytes, exactly; one dimension.

    Example:
        >>> to_float32(np.array([0x80, 0x3F], np.uint8), "BF16")
        array([1.], dtype=float32)
    """
    if dtype == "F32":
        return data.view(np.float32).copy()
    if dtype == "F16":
        return data.view(np.float16).astype(np.float32)
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def from_float32(numbers: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Numbers rounded to nearest, ties to even; bfloat16 as its uint16 words.

    Example:
        >>> hex(from_float32(np.array([1.0], np.float32), "BF16")[0])
        '0x3f80'
    """
    if dtype == "F32":
        return numbers
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return numbers.astype(np.float16)
    words = np.ascontiguousarray(numbers).view(np.uint32)
    rounded = (words + (0x7FFF + ((words >> 16) & 1))) >> 16
    return np.where(np.isnan(numbers), np.uint32(0x7FC0), rounded).astype(np.uint16)
