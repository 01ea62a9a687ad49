# SPDX-License-Identifier: Apache-2.0
"""Layout 1 on the GPU, word by word against the description in nq_kernels.h."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.plugins.cuda import capi
from tests.plugins.cuda.capi import Status
from tests.plugins.cuda.layers import Guarded

pytestmark = pytest.mark.gpu

SIZES = [(1, 1), (16, 256), (17, 257), (15, 31), (33, 1000), (576, 280), (280, 576), (100, 4097)]


def expected_tiles(words: np.ndarray, columns: int) -> np.ndarray:
    """The header's text as loops over lanes."""
    rows = words.shape[0]
    across, down = -(-columns // 256), -(-rows // 16)
    padded = np.zeros((down * 16, across * 8), np.uint32)
    padded[:rows, : words.shape[1]] = words
    if columns % 32:
        padded[:, columns // 32] &= np.uint32(2 ** (columns % 32) - 1)
    tiles = np.zeros(down * across * 128, np.uint32)
    for i in range(down):
        for j in range(across):
            tile = padded[16 * i : 16 * i + 16, 8 * j : 8 * j + 8]
            start = 128 * (i * across + j)
            for lane in range(32):
                g, q = lane // 4, lane % 4
                four = tile[g, q], tile[g + 8, q], tile[g, 4 + q], tile[g + 8, 4 + q]
                tiles[start + 4 * lane : start + 4 * lane + 4] = four
    return tiles


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_there_and_back(size: tuple[int, int], cuda: capi.Cuda) -> None:
    rows, columns = size
    rng = np.random.default_rng(rows)
    words = rng.integers(0, 2**32, (rows, -(-columns // 32)), dtype=np.uint32)
    given = Guarded.of(torch.from_numpy(words.view(np.int32)).cuda())
    tiles = Guarded(cuda.lib.nq_cuda_tile_words(rows, columns), torch.int32)
    back = Guarded(words.size, torch.int32)
    assert cuda.lib.nq_cuda_make_tiles(given.pointer, rows, columns, tiles.pointer, None) == Status.OK
    assert cuda.lib.nq_cuda_unmake_tiles(tiles.pointer, rows, columns, back.pointer, None) == Status.OK
    torch.cuda.synchronize()
    np.testing.assert_array_equal(tiles.data.cpu().numpy().view(np.uint32), expected_tiles(words, columns))
    if columns % 32:
        words[:, -1] &= np.uint32(2 ** (columns % 32) - 1)
    np.testing.assert_array_equal(back.data.cpu().numpy().view(np.uint32).reshape(words.shape), words)
    assert not any(bool(buffer.broken()) for buffer in (given, tiles, back))


def test_misuse_is_refused(cuda: capi.Cuda) -> None:
    buffer = Guarded(128, torch.int32)
    for rows, columns in ((0, 1), (1, 0), (-1, 5), (2**31, 1), (1, 2**31)):
        assert cuda.lib.nq_cuda_tile_words(rows, columns) == 0
        assert cuda.lib.nq_cuda_make_tiles(buffer.pointer, rows, columns, buffer.pointer, None) == Status.BAD_ARGUMENT
    assert cuda.lib.nq_cuda_make_tiles(None, 1, 1, buffer.pointer, None) == Status.BAD_ARGUMENT
    assert cuda.lib.nq_cuda_unmake_tiles(buffer.pointer, 1, 1, None, None) == Status.BAD_ARGUMENT
