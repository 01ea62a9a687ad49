# SPDX-License-Identifier: Apache-2.0
"""`torch.ops.nanoquant.linear`: the grouped binary linear layer as an operator of PyTorch.

It has a kernel for CUDA (the library of plugins/kernels/cuda, through addresses and the current stream; nothing is
compiled against PyTorch), one for the CPU (slow reference) and a fake one, so it works under `torch.compile`,
`torch.export` and CUDA graph capture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..cuda.binding import Input
from .layers import TiledLayer
from .passes import LinearGroup, Workspace

__all__ = ["linear"]

_SCHEMA = (
    "(Tensor x, Tensor[] v_tiles, Tensor[] u_tiles, Tensor[] scale_in, Tensor?[] scale_mid, Tensor[] scale_out, "
    "Tensor?[] bias, int[] ranks, int input, Tensor? norm_weight, float norm_eps, "
    "bool float32_output) -> Tensor[]"
)


def _forward(
    x: torch.Tensor,
    v_tiles: Sequence[torch.Tensor],
    u_tiles: Sequence[torch.Tensor],
    scale_in: Sequence[torch.Tensor],
    scale_mid: Sequence[torch.Tensor | None],
    scale_out: Sequence[torch.Tensor],
    bias: Sequence[torch.Tensor | None],
    ranks: Sequence[int],
    input: int,
    norm_weight: torch.Tensor | None,
    norm_eps: float,
    float32_output: bool,
) -> list[torch.Tensor]:
    """Apply `len(ranks)` layers to x; see `nanoquant_edge.runtimes.torch.linear` for the module.

    Args:
        x: float16 or bfloat16 (..., in_features), or (..., 2 in_features) for a gated input.
        v_tiles, u_tiles, scale_in, scale_mid, scale_out, bias, ranks: one entry a layer, as in `TiledLayer`.
        input: an `Input`.
        norm_weight, norm_eps: for `Input.RMS_NORM`.
        float32_output: return float32 instead of x's type.

    Returns:
        One (..., out_features) tensor a layer.
    """
    layers = [
        TiledLayer(
            in_features=scale_in[i].numel(),
            rank=rank,
            out_features=scale_out[i].numel(),
            v_tiles=v_tiles[i],
            u_tiles=u_tiles[i],
            scale_in=scale_in[i],
            scale_mid=scale_mid[i],
            scale_out=scale_out[i],
            bias=bias[i],
        )
        for i, rank in enumerate(ranks)
    ]
    group = LinearGroup(layers, Workspace(x.device), input=Input(input), norm_weight=norm_weight, norm_eps=norm_eps)
    rows = _aligned(x.reshape(-1, x.shape[-1]))
    dtype = torch.float32 if float32_output else x.dtype
    out = torch.empty((rows.shape[0], group.width), dtype=dtype, device=x.device)
    if rows.shape[0]:
        group(rows, out)
    # Copies where several layers share the buffer: an operator's outputs must not share memory.
    return [
        out[:, offset : offset + layer.out_features].contiguous().view(*x.shape[:-1], layer.out_features)
        for layer, offset in zip(layers, group.offsets, strict=True)
    ]


def _aligned(rows: torch.Tensor) -> torch.Tensor:
    """The same rows, each beginning at a multiple of 16 bytes."""
    if rows.stride(-1) == 1 and (rows.stride(0) * rows.element_size()) % 16 == 0 and rows.data_ptr() % 16 == 0:
        return rows
    padded = rows.new_empty((rows.shape[0], -(-rows.shape[1] // 8) * 8))
    padded[:, : rows.shape[1]] = rows
    return padded[:, : rows.shape[1]]


linear = torch.library.custom_op("nanoquant::linear", _forward, mutates_args=(), device_types="cpu", schema=_SCHEMA)
linear.register_kernel("cuda")(_forward)


@linear.register_fake
def _fake(
    x: torch.Tensor,
    v_tiles: Sequence[torch.Tensor],
    u_tiles: Sequence[torch.Tensor],
    scale_in: Sequence[torch.Tensor],
    scale_mid: Sequence[torch.Tensor | None],
    scale_out: Sequence[torch.Tensor],
    bias: Sequence[torch.Tensor | None],
    ranks: Sequence[int],
    input: int,
    norm_weight: torch.Tensor | None,
    norm_eps: float,
    float32_output: bool,
) -> list[torch.Tensor]:
    dtype = torch.float32 if float32_output else x.dtype
    return [x.new_empty((*x.shape[:-1], scales.numel()), dtype=dtype) for scales in scale_out]
