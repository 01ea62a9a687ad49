# SPDX-License-Identifier: Apache-2.0
"""One compressed linear layer: two packed sign matrices and their scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .packing import unpack_signs, words_for

__all__ = ["PackedLayer"]


@dataclass(frozen=True)
class PackedLayer:
    """The factors of `W ~ diag(scale_out) U diag(scale_mid) V diag(scale_in)` (docs/METHOD.md, section 1).

    Attributes:
        u_packed: int32 (out_features, ceil(rank / 32)).
        v_packed: int32 (rank, ceil(in_features / 32)).
        scale_out: (out_features,), float16, bfloat16 (ml_dtypes) or float32.
        scale_in: (in_features,).
        scale_mid: (rank,) or None.
        bias: (out_features,) or None.
    """

    u_packed: NDArray[np.int32]
    v_packed: NDArray[np.int32]
    scale_out: NDArray[np.generic]
    scale_in: NDArray[np.generic]
    scale_mid: NDArray[np.generic] | None = None
    bias: NDArray[np.generic] | None = None

    def __post_init__(self) -> None:
        if self.u_packed.shape != (self.out_features, words_for(self.rank)):
            raise ValueError(f"u_packed {self.u_packed.shape} does not fit {self.out_features} x rank {self.rank}")
        if self.v_packed.shape[1] != words_for(self.in_features):
            raise ValueError(f"v_packed {self.v_packed.shape} does not fit {self.in_features} columns")
        for name, value, length in (
            ("scale_mid", self.scale_mid, self.rank),
            ("bias", self.bias, self.out_features),
        ):
            if value is not None and value.shape != (length,):
                raise ValueError(f"{name} {value.shape} does not have length {length}")

    @property
    def in_features(self) -> int:
        """Input channels n."""
        return int(self.scale_in.shape[0])

    @property
    def out_features(self) -> int:
        """Output channels m."""
        return int(self.scale_out.shape[0])

    @property
    def rank(self) -> int:
        """Inner dimension r."""
        return int(self.v_packed.shape[0])

    @property
    def stored_bits(self) -> int:
        """Bits on disk: every word, its padding, and the scales; the bias is the model's own and not counted."""
        scales = self.scale_out.nbytes + self.scale_in.nbytes
        if self.scale_mid is not None:
            scales += self.scale_mid.nbytes
        return 8 * (self.u_packed.nbytes + self.v_packed.nbytes + scales)

    def dense(self) -> NDArray[np.float64]:
        """The dense weight this layer stands for, float64 (out_features, in_features)."""
        u = unpack_signs(self.u_packed, self.rank).astype(np.float64)
        v = unpack_signs(self.v_packed, self.in_features).astype(np.float64)
        if self.scale_mid is not None:
            u = u * self.scale_mid.astype(np.float64)
        product: NDArray[np.float64] = u @ v
        product *= self.scale_out.astype(np.float64)[:, None]
        product *= self.scale_in.astype(np.float64)[None, :]
        return product
