# SPDX-License-Identifier: Apache-2.0
"""Sign words to the tensor cores' tiles (layout 1 of plugins/kernels/nq_kernels.h), and tiles to signs.

On a GPU the library makes tiles; on the CPU PyTorch does, which serves tests and the slow reference. With row
16 i + 8 h + g and word 8 j + 4 s + q, tile (i, j) holds its words in the order (g, q, s, h).
"""

from __future__ import annotations

import torch

from ..cuda import binding

__all__ = ["make_tiles", "tile_signs"]


def make_tiles(words: torch.Tensor, columns: int) -> torch.Tensor:
    """Tiles of packed signs, on the words' device.

    Args:
        words: int32 (rows, ceil(columns / 32)), layout 0; bits past `columns` are ignored.
        columns: number of signs in a row.

    Returns:
        int32 (tile_words(rows, columns),); places outside the matrix are 0.

    Raises:
        ValueError: when the shape or type of `words` does not fit.
        NqEdgeError: NQ-CUDA or NQ-NATIVE-MISSING on a GPU.
    """
    if words.dim() != 2 or words.dtype != torch.int32 or words.shape[1] != -(-columns // 32):
        raise ValueError(f"{columns} columns need int32 words (rows, {-(-columns // 32)}), got {tuple(words.shape)}")
    rows, width = words.shape
    if words.is_cuda:
        words = words.contiguous()
        tiles = torch.empty(binding.tile_words(rows, columns), dtype=torch.int32, device=words.device)
        with torch.cuda.device(words.device):
            stream = torch.cuda.current_stream().cuda_stream
            status = binding.library().nq_cuda_make_tiles(words.data_ptr(), rows, columns, tiles.data_ptr(), stream)
        binding.check(status, "making tiles")
        return tiles
    down, across = -(-rows // binding.TILE_ROWS), -(-columns // binding.TILE_COLUMNS)
    padded = torch.zeros((down * 16, across * 8), dtype=torch.int32)
    padded[:rows, :width] = words
    if columns % 32:
        padded[:, width - 1] &= (1 << columns % 32) - 1
    # (i, h, g, j, s, q) -> (i, j, g, q, s, h)
    return padded.view(down, 2, 8, across, 2, 4).permute(0, 3, 2, 5, 4, 1).reshape(-1)


def tile_signs(tiles: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The signs that tiles stand for, `dtype` of that shape, (rows, columns), -1 and +1, on the tiles' device."""
    rows, columns = shape
    down, across = -(-rows // binding.TILE_ROWS), -(-columns // binding.TILE_COLUMNS)
    words = tiles.view(down, across, 8, 4, 2, 2).permute(0, 5, 2, 1, 4, 3).reshape(down * 16, across * 8)[:rows]
    shifts = torch.arange(32, dtype=torch.int32, device=tiles.device)
    bits = (words[:, :, None] >> shifts) & 1
    return (1 - 2 * bits.flatten(1)[:, :columns]).to(dtype)
