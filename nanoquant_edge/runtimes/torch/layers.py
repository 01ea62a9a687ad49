# SPDX-License-Identifier: Apache-2.0
"""One compressed layer as tensors on a device: sign tiles and scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...formats.checkpoint import PackedLayer
from ..cuda import binding
from .tiles import make_tiles, tile_signs

__all__ = ["C_TYPES", "TiledLayer", "to_tensor"]

#: PyTorch's types in the C interface
C_TYPES = {
    torch.float32: binding.CType.FLOAT32,
    torch.float16: binding.CType.FLOAT16,
    torch.bfloat16: binding.CType.BFLOAT16,
}


def to_tensor(array: NDArray[np.generic], device: torch.device | str = "cpu") -> torch.Tensor:
    """A copy of a checkpoint's array; bfloat16 (an `ml_dtypes` array) passes as its 16-bit words."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array.view(np.int16))).to(device).view(torch.bfloat16)
    return torch.from_numpy(np.array(array)).to(device)


@dataclass(frozen=True)
class TiledLayer:
    """`W ~ diag(scale_out) U diag(scale_mid) V diag(scale_in)` with its signs in tiles.

    Attributes:
        in_features, rank, out_features: n, r, m.
        v_tiles, u_tiles: int32, layout 1, of V (r x n) and U (m x r).
        scale_in: (n,), float16, bfloat16 or float32, as are the next three.
        scale_mid: (r,) or None.
        scale_out: (m,).
        bias: (m,) or None.
    """

    in_features: int
    rank: int
    out_features: int
    v_tiles: torch.Tensor
    u_tiles: torch.Tensor
    scale_in: torch.Tensor
    scale_mid: torch.Tensor | None
    scale_out: torch.Tensor
    bias: torch.Tensor | None = None

    def __post_init__(self) -> None:
        # Kernels may read the constants ahead of stream order (nq_cuda.h), so they are complete before any pass.
        if self.v_tiles.is_cuda:
            torch.cuda.synchronize(self.v_tiles.device)

    @classmethod
    def from_packed(cls, layer: PackedLayer, device: torch.device | str = "cuda") -> TiledLayer:
        """Copy a checkpoint's layer to a device."""

        def scale(array: NDArray[np.generic] | None) -> torch.Tensor | None:
            # The kernels want one type for all vectors of a layer; the bias of a checkpoint may have its own.
            return None if array is None else to_tensor(array, device).to(kind)

        kind = to_tensor(layer.scale_out).dtype
        return cls(
            in_features=layer.in_features,
            rank=layer.rank,
            out_features=layer.out_features,
            v_tiles=make_tiles(to_tensor(layer.v_packed, device), layer.in_features),
            u_tiles=make_tiles(to_tensor(layer.u_packed, device), layer.rank),
            scale_in=to_tensor(layer.scale_in, device).to(kind),
            scale_mid=scale(layer.scale_mid),
            scale_out=to_tensor(layer.scale_out, device),
            bias=scale(layer.bias),
        )

    @property
    def bytes(self) -> int:
        """Device memory of all tensors, padding of the tiles included."""
        tensors = (self.v_tiles, self.u_tiles, self.scale_in, self.scale_mid, self.scale_out, self.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def c_struct(self) -> binding.CLinear:
        """The C description; valid while this object lives."""
        return binding.CLinear(
            in_features=self.in_features,
            rank=self.rank,
            out_features=self.out_features,
            layout=binding.Layout.TILES_16X256,
            scale_type=C_TYPES[self.scale_out.dtype],
            v_words=self.v_tiles.data_ptr(),
            u_words=self.u_tiles.data_ptr(),
            scale_in=self.scale_in.data_ptr(),
            scale_mid=None if self.scale_mid is None else self.scale_mid.data_ptr(),
            scale_out=self.scale_out.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
        )

    def dense(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The weight this layer stands for, `dtype` (out_features, in_features), computed in float64."""
        u = tile_signs(self.u_tiles, (self.out_features, self.rank), torch.float64)
        v = tile_signs(self.v_tiles, (self.rank, self.in_features), torch.float64)
        if self.scale_mid is not None:
            u = u * self.scale_mid.double()
        return ((u @ v) * self.scale_out.double()[:, None] * self.scale_in.double()).to(dtype)
