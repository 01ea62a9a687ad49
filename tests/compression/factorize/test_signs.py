# SPDX-License-Identifier: Apache-2.0
"""Packed signs while compressing: the checkpoint's words, unpacked alike by NumPy and by what runs on a GPU."""

from __future__ import annotations

import pytest
import torch

from nanoquant_edge.compression.factorize import signs
from nanoquant_edge.compression.factorize.signs import packed_signs, sign_core, unpacked_signs
from nanoquant_edge.formats.checkpoint import pack_signs


@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (5, 32), (2, 33), (7, 100)])
def test_both_ways_of_unpacking_give_the_signs(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrix[0, 0] = 0.0  # counts as +1
    words = packed_signs(matrix)
    assert torch.equal(words, torch.from_numpy(pack_signs(matrix.numpy())))
    expected = torch.where(matrix < 0, -1, 1)
    for dtype in (torch.int8, torch.float32, torch.bfloat16):
        for found in (unpacked_signs(words, shape[1], dtype), signs._shifted_out(words, shape[1], dtype)):
            assert found.dtype == dtype
            assert torch.equal(found.long(), expected)


def test_the_core_is_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    u, v = torch.randn(9, 70, generator=generator), torch.randn(70, 45, generator=generator)
    expected = torch.where(u < 0, -1.0, 1.0).double() @ torch.where(v < 0, -1.0, 1.0).double()
    assert torch.equal(sign_core(packed_signs(u), packed_signs(v), 45).double(), expected)
