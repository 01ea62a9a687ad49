# SPDX-License-Identifier: Apache-2.0
"""`CudaNanoQuantLinear`: a compressed linear layer as a PyTorch module that runs on the GPU kernels."""

from __future__ import annotations

import torch
from torch import nn

from ...formats.checkpoint import PackedLayer
from ..cuda.binding import Input
from .layers import TiledLayer
from .ops import linear

__all__ = ["CudaNanoQuantLinear"]


class CudaNanoQuantLinear(nn.Module):
    """`torch.nn.Linear` with the weight `diag(scale_out) U diag(scale_mid) V diag(scale_in)`, its signs in tiles.

    Buffers: `v_tiles` and `u_tiles` int32, `scale_in` (in,), `scale_out` (out,), and where present `scale_mid` (rank,)
    and `bias` (out,). Move it with `.to(device)`; a floating type given to `.to` would change the scales' type only.

    Args:
        layer: the factors; its tensors become the buffers.
        float32_output: return float32 instead of the input's type.
    """

    v_tiles: torch.Tensor
    u_tiles: torch.Tensor
    scale_in: torch.Tensor
    scale_mid: torch.Tensor | None
    scale_out: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layer: TiledLayer, *, float32_output: bool = False) -> None:
        super().__init__()
        self.in_features, self.rank, self.out_features = layer.in_features, layer.rank, layer.out_features
        self.float32_output = float32_output
        for name in ("v_tiles", "u_tiles", "scale_in", "scale_mid", "scale_out", "bias"):
            self.register_buffer(name, getattr(layer, name))

    @classmethod
    def from_packed(
        cls, layer: PackedLayer, device: torch.device | str = "cuda", *, float32_output: bool = False
    ) -> CudaNanoQuantLinear:
        """The module of a checkpoint's layer, on `device`."""
        return cls(TiledLayer.from_packed(layer, device), float32_output=float32_output)

    @classmethod
    def random(
        cls,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        device: torch.device | str = "cuda",
        seed: int = 0,
        bias: bool = False,
    ) -> CudaNanoQuantLinear:
        """A module of random signs and scales, made on `device`."""
        generator = torch.Generator(device).manual_seed(seed)
        return cls(TiledLayer.random(out_features, in_features, rank, generator=generator, bias=bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer.

        Args:
            x: float16 or bfloat16 (..., in_features).

        Returns:
            (..., out_features) in x's type, or float32.
        """
        results: list[torch.Tensor] = linear(
            x,
            [self.v_tiles],
            [self.u_tiles],
            [self.scale_in],
            [self.scale_mid],
            [self.scale_out],
            [self.bias],
            [self.rank],
            int(Input.PLAIN),
            None,
            0.0,
            self.float32_output,
        )
        return results[0]

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"mid={self.scale_mid is not None}, bias={self.bias is not None}"
        )
