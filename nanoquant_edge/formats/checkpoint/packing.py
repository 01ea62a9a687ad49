# SPDX-License-Identifier: Apache-2.0
"""Sign matrices to 32-bit words and back (docs/FORMAT.md, "Packed words").

Row-major, least significant bit first: column c of a row is bit `c mod 32` of word `c div 32`; a 0 bit is +1, a 1 bit
is -1, and the bits after the last column are 0. This is the layout of the official NanoQuant checkpoints
(docs/METHOD.md, section 13).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack_signs", "unpack_signs", "words_for"]


def words_for(columns: int) -> int:
    """Number of 32-bit words that hold one row of `columns` signs."""
    return (columns + 31) // 32


def pack_signs(matrix: NDArray[Any]) -> NDArray[np.int32]:
    """Pack the signs of a real matrix.

    Args:
        matrix: (rows, columns), any real type. Zero counts as +1, as in the method's sign function.

    Returns:
        int32 (rows, ceil(columns / 32)).

    Raises:
        ValueError: when the matrix is not two-dimensional or holds a NaN.
    """
    if matrix.ndim != 2:
        raise ValueError(f"a sign matrix has two dimensions, not {matrix.ndim}")
    if np.issubdtype(matrix.dtype, np.floating) and np.isnan(matrix).any():
        raise ValueError("a sign matrix holds a NaN")
    rows, columns = matrix.shape
    bits = np.zeros((rows, words_for(columns) * 32), np.uint8)
    bits[:, :columns] = matrix < 0
    packed = np.packbits(bits, axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view("<i4").astype(np.int32, copy=False)


def unpack_signs(words: NDArray[np.int32], columns: int) -> NDArray[np.int8]:
    """Unpack words into signs.

    Args:
        words: int32 (rows, ceil(columns / 32)); bits past `columns` are ignored.
        columns: number of signs in a row.

    Returns:
        int8 (rows, columns) of -1 and +1.

    Raises:
        ValueError: when the word count does not match `columns`.
    """
    if words.ndim != 2 or words.dtype != np.int32 or words.shape[1] != words_for(columns):
        raise ValueError(
            f"{columns} columns need int32 words of width {words_for(columns)}, got {words.dtype} {words.shape}"
        )
    packed = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    bits = np.unpackbits(packed, axis=1, bitorder="little", count=columns)
    return (1 - 2 * bits.astype(np.int8)).astype(np.int8, copy=False)
