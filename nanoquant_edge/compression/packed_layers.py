# SPDX-License-Identifier: Apache-2.0
"""From hardened factors to a packed layer: scales in their storage type."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..errors import NqEdgeError
from ..formats.checkpoint import PackedLayer
from .tune.layers import SignFactors

__all__ = ["balance_power_of_two", "pack_factors"]

_TORCH_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def balance_power_of_two(scale_out: Tensor, scale_in: Tensor) -> int:
    """The k for which scale_out 2^k and scale_in 2^-k have medians of about the same size.

    The product is unchanged, exactly: a power of two costs no rounding. It keeps both inside float16's range.
    """
    out, inner = float(scale_out.abs().median()), float(scale_in.abs().median())
    if not (out > 0 and inner > 0 and math.isfinite(out) and math.isfinite(inner)):
        return 0
    return round((math.log2(inner) - math.log2(out)) / 2)


def pack_factors(name: str, factors: SignFactors, scale_dtype: str) -> PackedLayer:
    """Pack one layer.

    Args:
        name: module name, for messages.
        factors: hardened signs and float32 scales.
        scale_dtype: "float16", "bfloat16" or "float32".

    Raises:
        NqEdgeError: NQ-NUMERIC when a scale is not finite or does not fit its storage type.
    """
    power = balance_power_of_two(factors.scale_out, factors.scale_in)
    scales = {"scale_out": factors.scale_out * 2.0**power, "scale_in": factors.scale_in * 2.0**-power}
    scales |= {part: value for part in ("scale_mid", "bias") if (value := getattr(factors, part)) is not None}
    narrowed = {}
    for part, value in scales.items():
        narrow = value.to(_TORCH_DTYPES[scale_dtype])
        if not bool(torch.isfinite(narrow).all()):
            raise NqEdgeError(
                "NQ-NUMERIC", f"{part} of {name} does not fit {scale_dtype}.", "Use --scale-dtype bfloat16 or float32."
            )
        narrowed[part] = _to_numpy(narrow)
    return PackedLayer(
        u_packed=factors.u_words.numpy(),
        v_packed=factors.v_words.numpy(),
        scale_out=narrowed["scale_out"],
        scale_in=narrowed["scale_in"],
        scale_mid=narrowed.get("scale_mid"),
        bias=narrowed.get("bias"),
    )


def _to_numpy(value: Tensor) -> np.ndarray:
    if value.dtype == torch.bfloat16:
        import ml_dtypes

        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()
