# SPDX-License-Identifier: Apache-2.0
"""Sign matrices on any device in the checkpoint's words: one bit a sign while a model is compressed, too."""

from __future__ import annotations

import torch
from torch import Tensor

from ...formats.checkpoint import pack_signs, unpack_signs

__all__ = ["packed_signs", "sign_core", "unpacked_signs"]


def packed_signs(matrix: Tensor) -> Tensor:
    """The signs of a matrix, 0 as +1: int32 words (rows, ceil(columns / 32)) on the CPU (docs/FORMAT.md)."""
    negative = (matrix.detach() < 0).to(torch.int8).cpu()
    return torch.from_numpy(pack_signs(-negative.numpy()))


def unpacked_signs(words: Tensor, columns: int, dtype: torch.dtype = torch.int8) -> Tensor:
    """(rows, columns) of -1 and +1 on the device of the words."""
    if words.device.type == "cpu":
        return torch.from_numpy(unpack_signs(words.numpy(), columns)).to(dtype)
    return _shifted_out(words, columns, dtype)


def _shifted_out(words: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """The same in PyTorch; nothing travels from the host, so that it may be part of a captured step."""
    positions = torch.arange(8, dtype=torch.uint8, device=words.device)
    # Byte k of a little-endian word holds columns 8 k to 8 k + 7.
    bits = words.view(torch.uint8)[..., None].bitwise_right_shift(positions).bitwise_and_(1)
    return torch.rsub(bits.flatten(1)[:, :columns].to(dtype), 1, alpha=2)


def sign_core(u_words: Tensor, v_words: Tensor, in_features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """U V (m, n): integers of magnitude at most the rank, exact in float32 below 2^24 and rounded once to `dtype`.

    A GPU multiplies in `dtype`, which loses nothing: signs are exact, and sums are float32 inside.
    """
    inside = dtype if u_words.device.type == "cuda" else torch.float32
    u, v = unpacked_signs(u_words, v_words.shape[0], inside), unpacked_signs(v_words, in_features, inside)
    with torch.autocast(u.device.type, enabled=False):
        return (u @ v).to(dtype)
