# SPDX-License-Identifier: Apache-2.0
"""A linear layer that computes with its packed sign factors, as a PyTorch module.

The forward pass follows `y = scale_out * (U (scale_mid * (V (scale_in * x)))) + bias` from right to left
(docs/METHOD.md, section 1), so the dense weight never exists.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..formats.checkpoint.layer import PackedLayer
from ..formats.checkpoint.packing import words_for

__all__ = ["NanoQuantLinear", "unpack_words"]

#: Rows are unpacked in pieces of about this many signs, so that the scratch memory stays near 16 MB.
_PIECE = 1 << 22


def unpack_words(words: torch.Tensor, columns: int, *, dtype: torch.dtype, piece: int = _PIECE) -> torch.Tensor:
    """Signs of packed words.

    Args:
        words: int32 (rows, ceil(columns / 32)).
        columns: signs of a row.
        dtype: type of the result.
        piece: about how many signs are unpacked at one time.

    Returns:
        `dtype` (rows, columns) of -1 and +1.

    Example:
        >>> unpack_words(torch.tensor([[0b101]], dtype=torch.int32), 3, dtype=torch.float32)
        tensor([[-1.,  1., -1.]])
    """
    rows, width = words.shape
    signs = torch.empty((rows, columns), dtype=dtype, device=words.device)
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    step = max(1, piece // (32 * max(1, width)))
    for start in range(0, rows, step):
        # An arithmetic shift copies the top bit downwards; the mask removes the copies.
        bits = (words[start : start + step, :, None] >> shifts) & 1
        signs[start : start + step] = 1 - 2 * bits.flatten(1)[:, :columns].to(dtype)
    return signs


class NanoQuantLinear(nn.Module):
    """`torch.nn.Linear` with the weight `diag(scale_out) U diag(scale_mid) V diag(scale_in)`.

    Buffers: `u_packed` int32 (out, ceil(rank / 32)), `v_packed` int32 (rank, ceil(in / 32)), `scale_out` (out,),
    `scale_in` (in,), and where present `scale_mid` (rank,) and `bias` (out,). `.to(dtype)` casts the scales and the
    bias, never the words.

    Args:
        in_features, out_features, rank: sizes n, m, r.
        has_mid: there is a middle scale.
        bias: there is a bias.
        scale_dtype: floating type of the scales and the bias.
        device: where the buffers are made; "meta" makes shapes only.

    Attributes:
        compute_dtype: type of the arithmetic; the result has the input's type.
        sign_cache: type in which unpacked signs are kept. The words take `rank * (in + out)` bits. `torch.int8` keeps
            the signs of the first forward pass as int8 (8 times the words), and each call converts them to the
            computing type for its own duration; `torch.float32` keeps them ready to multiply (32 times the words, the
            fastest); None unpacks at each call.
    """

    compute_dtype: torch.dtype = torch.float32
    sign_cache: torch.dtype | None = torch.int8

    u_packed: torch.Tensor
    v_packed: torch.Tensor
    scale_out: torch.Tensor
    scale_in: torch.Tensor
    scale_mid: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        has_mid: bool = False,
        bias: bool = False,
        scale_dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        words: dict[str, tuple[int, int]] = {
            "u_packed": (out_features, words_for(rank)),
            "v_packed": (rank, words_for(in_features)),
        }
        for name, shape in words.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int32, device=device))
        vectors = {
            "scale_out": out_features,
            "scale_in": in_features,
            "scale_mid": rank if has_mid else None,
            "bias": out_features if bias else None,
        }
        for name, length in vectors.items():
            value = None if length is None else torch.zeros(length, dtype=scale_dtype, device=device)
            self.register_buffer(name, value)
        self._cached: tuple[object, torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def from_packed(cls, layer: PackedLayer, dtype: torch.dtype | None = None) -> NanoQuantLinear:
        """The module of a checkpoint's layer.

        Args:
            layer: the factors; copied.
            dtype: type of the scales; None keeps the stored one.
        """
        module = cls(
            layer.in_features,
            layer.out_features,
            rank=layer.rank,
            has_mid=layer.scale_mid is not None,
            bias=layer.bias is not None,
            scale_dtype=torch.float32,
        )
        for name in ("u_packed", "v_packed", "scale_out", "scale_in", "scale_mid", "bias"):
            value = getattr(layer, name)
            if value is None:
                continue
            if name.endswith("packed"):
                tensor = torch.from_numpy(np.array(value))
            else:  # by way of float32, exact for every scale type: PyTorch takes no ml_dtypes array
                stored_dtype = getattr(torch, np.dtype(value.dtype).name)
                tensor = torch.from_numpy(np.array(value, np.float32)).to(dtype or stored_dtype)
            setattr(module, name, tensor)
        return module

    def _signs(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.sign_cache is None:
            self._cached = None
            return (
                unpack_words(self.u_packed, self.rank, dtype=self.compute_dtype),
                unpack_words(self.v_packed, self.in_features, dtype=self.compute_dtype),
            )
        # Loading, moving or editing the words makes the kept signs stale; all of them change this key.
        key = tuple((words.data_ptr(), words._version, words.device) for words in (self.u_packed, self.v_packed))
        if self._cached is None or self._cached[0] != (key, self.sign_cache):
            u = unpack_words(self.u_packed, self.rank, dtype=self.sign_cache)
            v = unpack_words(self.v_packed, self.in_features, dtype=self.sign_cache)
            self._cached = ((key, self.sign_cache), u, v)
        return self._cached[1].to(self.compute_dtype), self._cached[2].to(self.compute_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer.

        Args:
            x: floating (..., in_features).

        Returns:
            (..., out_features) in x's type.
        """
        u, v = self._signs()
        inner = (x.to(self.compute_dtype) * self.scale_in.to(self.compute_dtype)) @ v.T
        if self.scale_mid is not None:
            inner = inner * self.scale_mid.to(self.compute_dtype)
        result = (inner @ u.T) * self.scale_out.to(self.compute_dtype)
        if self.bias is not None:
            result = result + self.bias.to(self.compute_dtype)
        return result.to(x.dtype)

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight this layer stands for, `dtype` (out_features, in_features), computed in float64."""
        u = unpack_words(self.u_packed, self.rank, dtype=torch.float64)
        v = unpack_words(self.v_packed, self.in_features, dtype=torch.float64)
        if self.scale_mid is not None:
            u = u * self.scale_mid.double()
        return ((u @ v) * self.scale_out.double()[:, None] * self.scale_in.double()).to(dtype)

    def __getstate__(self) -> dict[str, object]:
        """State without the kept signs, for copies and pickles."""
        return {**self.__dict__, "_cached": None}

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"mid={self.scale_mid is not None}, bias={self.bias is not None}"
        )
