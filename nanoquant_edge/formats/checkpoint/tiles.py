# SPDX-License-Identifier: Apache-2.0
"""Packed words of layout 0 to the tensor-core tiles of layout 1 and back (docs/OPERATOR.md, "Layout 1").

A tile holds 16 rows x 256 columns in 128 words. With w the eight layout-0 words of a row inside the tile, lane l of a
warp (g = l div 4, q = l mod 4) owns the tile's words 4 l to 4 l + 3: w[q] of row g, w[q] of row g + 8, w[4 + q] of row
g, w[4 + q] of row g + 8. That is the A fragment of `mma.m16n8k256` on single bits (PTX ISA, matrix fragments for
mma.m16n8k256), so that a lane reads its part of a tile with one 16-byte load.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .packing import words_for

__all__ = ["TILE_COLUMNS", "TILE_ROWS", "TILE_WORDS", "from_tiles", "tiles_shape", "to_tiles"]

TILE_ROWS, TILE_COLUMNS, TILE_WORDS = 16, 256, 128


def tiles_shape(rows: int, columns: int) -> tuple[int, int]:
    """Shape of a rows x columns sign matrix in layout 1: one row of words for each row of tiles."""
    return -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS) * TILE_WORDS


def to_tiles(words: NDArray[np.int32], columns: int) -> NDArray[np.int32]:
    """Reorder words of layout 0 into tiles.

    Args:
        words: int32 (rows, ceil(columns / 32)); bits past `columns` are ignored.
        columns: signs in a row.

    Returns:
        int32 (ceil(rows / 16), 128 ceil(columns / 256)); whatever lies past the matrix is 0.

    Raises:
        ValueError: when type or shape of the words do not match `columns`.
    """
    width = words_for(columns)
    if words.ndim != 2 or words.dtype != np.int32 or words.shape[1] != width or columns < 1:
        raise ValueError(f"{columns} columns need int32 words of width {width}, got {words.dtype} {words.shape}")
    down, across = tiles_shape(len(words), columns)
    padded = np.zeros((down * TILE_ROWS, across // TILE_WORDS * 8), np.uint32)
    padded[: len(words), :width] = words.view(np.uint32)
    if columns % 32:
        padded[:, width - 1] &= np.uint32((1 << columns % 32) - 1)
    # (tile row, half of its rows, g, tile column, half of its words, q) to (…, lane = g and q, words of a lane).
    parts = padded.reshape(down, 2, 8, -1, 2, 4).transpose(0, 3, 2, 5, 4, 1)
    return np.ascontiguousarray(parts).reshape(down, across).view(np.int32)


def from_tiles(tiles: NDArray[np.int32], rows: int, columns: int) -> NDArray[np.int32]:
    """Undo `to_tiles`.

    Args:
        tiles: int32, of the shape that `tiles_shape` gives.
        rows, columns: size of the sign matrix.

    Returns:
        int32 (rows, ceil(columns / 32)), bits past `columns` 0.

    Raises:
        ValueError: when type or shape of the tiles do not match.
    """
    shape = tiles_shape(rows, columns)
    if tiles.dtype != np.int32 or tiles.shape != shape or rows < 1 or columns < 1:
        raise ValueError(f"{rows} x {columns} signs need int32 tiles of shape {shape}, got {tiles.dtype} {tiles.shape}")
    parts = tiles.view(np.uint32).reshape(shape[0], -1, 8, 4, 2, 2).transpose(0, 5, 2, 1, 4, 3)
    words = np.ascontiguousarray(parts).reshape(shape[0] * TILE_ROWS, -1)[:rows, : words_for(columns)]
    words = np.ascontiguousarray(words)
    if columns % 32:
        words[:, -1] &= np.uint32((1 << columns % 32) - 1)
    return words.view(np.int32)
