# SPDX-License-Identifier: Apache-2.0
"""The type in which a layer's scales are exported.

Kernels take scales of a type of their own, so 16-bit scales stay as the checkpoint has them, bit for bit. Only a
16-bit export narrows float32 scales, to float16: there a power of two is moved between scale_out and scale_in first
(it changes no product), so that both vectors sit in the middle of the type's range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import NqEdgeError
from ...formats.checkpoint import PackedLayer

__all__ = ["ExportScales", "export_scales"]

#: Largest relative error (2-norm) that narrowing one vector may add; float16 rounding alone stays below 2**-11.
_NARROWING_LIMIT = 2.0**-10


@dataclass(frozen=True)
class ExportScales:
    """scale_in (n,), scale_mid (r,) or None, scale_out (m,), bias (m,) or None; one common type."""

    scale_in: NDArray[np.generic]
    scale_mid: NDArray[np.generic] | None
    scale_out: NDArray[np.generic]
    bias: NDArray[np.generic] | None


def export_scales(name: str, layer: PackedLayer, activation: ir.DataType) -> ExportScales:
    """Scales and bias of a layer in the type they are exported in.

    Args:
        name: module path, for messages.
        layer: the factors.
        activation: the graph's activation type.

    Raises:
        NqEdgeError: NQ-NUMERIC when a value is not finite, or does not fit float16 where that is needed.
    """
    vectors = {
        "scale_in": layer.scale_in,
        "scale_mid": layer.scale_mid,
        "scale_out": layer.scale_out,
        "bias": layer.bias,
    }
    given = {part: vector for part, vector in vectors.items() if vector is not None}
    for part, vector in given.items():
        if not np.isfinite(vector.astype(np.float32)).all():
            raise NqEdgeError("NQ-NUMERIC", f"{name}.{part} holds a value that is not finite.")
    kinds = {vector.dtype for vector in given.values()}
    if len(kinds) == 1 and next(iter(kinds)).itemsize == 2:
        return ExportScales(**vectors)  # type: ignore[arg-type]
    wide = {part: vector.astype(np.float32) for part, vector in given.items()}
    if activation != ir.DataType.FLOAT:
        shift = _balance(wide["scale_out"], wide["scale_in"])
        wide["scale_out"] = np.ldexp(wide["scale_out"], shift)
        wide["scale_in"] = np.ldexp(wide["scale_in"], -shift)
        narrow = {part: _narrow(f"{name}.{part}", vector) for part, vector in wide.items()}
        return ExportScales(narrow["scale_in"], narrow.get("scale_mid"), narrow["scale_out"], narrow.get("bias"))
    return ExportScales(wide["scale_in"], wide.get("scale_mid"), wide["scale_out"], wide.get("bias"))


def _balance(scale_out: NDArray[np.float32], scale_in: NDArray[np.float32]) -> int:
    """Exponent k such that scale_out * 2**k and scale_in / 2**k have maxima within a factor of two of each other."""
    largest_out, largest_in = float(np.abs(scale_out).max()), float(np.abs(scale_in).max())
    if largest_out == 0 or largest_in == 0:
        return 0
    return round((math.log2(largest_in) - math.log2(largest_out)) / 2)


def _narrow(name: str, vector: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        result = vector.astype(np.float16)
    wide = vector.astype(np.float64)
    error = np.linalg.norm(result.astype(np.float64) - wide)
    if not error <= _NARROWING_LIMIT * np.linalg.norm(wide):
        raise NqEdgeError(
            "NQ-NUMERIC",
            f"{name} (largest magnitude {np.abs(wide).max():.3g}) does not fit float16.",
            "Export with --dtype float32.",
        )
    return result
