# SPDX-License-Identifier: Apache-2.0
"""The norms of a decoder: their weights, and their bodies in basic operators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...models import DecoderConfig
from ..weights import MULTIPLIER, WeightSource, stored_name
from .graph_builder import GraphBuilder, dims_of

__all__ = ["Norm", "decomposed_norm", "norm_named"]


@dataclass(frozen=True)
class Norm:
    """One norm over the last axis; statistics are float32.

    Attributes:
        name: module path.
        weight: multiplier (width,).
        bias: (width,) of a layer norm, which also subtracts the mean; None makes it RMSNorm.
        epsilon: added to the mean square.
    """

    name: str
    weight: ir.Value
    bias: ir.Value | None
    epsilon: float


def norm_named(g: GraphBuilder, config: DecoderConfig, weights: WeightSource, name: str, dtype: ir.DataType) -> Norm:
    """The norm at a module path, its weights as initializers.

    Gemma's norms multiply by 1 + weight: the graph holds that sum, under a name that says so.
    """
    kind, epsilon = config.structure.norm, config.norm_eps
    if kind == "rms_plus_one":
        stored = stored_name(f"{name}.weight", set(weights.tensor_names()))
        array = np.asarray(weights.tensor(stored))
        if stored.endswith(".weight"):
            array = (1 + array.astype(np.float32)).astype(np.float32)
        return Norm(name, g.initializer(f"{name}.{MULTIPLIER}", array, dtype), None, epsilon)
    weight = g.initializer(f"{name}.weight", weights.tensor(f"{name}.weight"), dtype)
    if kind == "rms":
        return Norm(name, weight, None, epsilon)
    return Norm(name, weight, g.initializer(f"{name}.bias", weights.tensor(f"{name}.bias"), dtype), epsilon)


def decomposed_norm(g: GraphBuilder, name: str, x: ir.Value, norm: Norm, opset: int = 18) -> ir.Value:
    """RMSNorm (Zhang and Sennrich 2019, eq. 4) or layer norm (Ba et al. 2016, eq. 3) in basic operators.

    ONNX Runtime fuses the float32 form of RMSNorm into one kernel. Its fused operator is not emitted directly: it sits
    in the default domain under a name that ONNX does not define, so that `onnx.checker` refuses files with it.
    """
    assert x.dtype is not None
    wide = g.cast(x, ir.DataType.FLOAT, f"{name}.widen")
    reduced = [*dims_of(x)[:-1], 1]

    def mean(value: ir.Value, label: str) -> ir.Value:
        # The axes moved from an attribute to an input in opset 18.
        if opset < 18:
            return g.node("ReduceMean", [value], f"{name}.{label}", shape=reduced, keepdims=1, axes=[-1])
        return g.node("ReduceMean", [value, g.integers([-1])], f"{name}.{label}", shape=reduced, keepdims=1)

    if norm.bias is not None:
        wide = g.node("Sub", [wide, mean(wide, "average")], f"{name}.centre")
    square = mean(g.node("Mul", [wide, wide], f"{name}.square"), "mean")
    offset = g.initializer(f"constant.epsilon.{norm.epsilon!r}", np.asarray(norm.epsilon, np.float32))
    root = g.node("Sqrt", [g.node("Add", [square, offset], f"{name}.offset")], f"{name}.root")
    normed = g.cast(g.node("Div", [wide, root], f"{name}.divide"), x.dtype, f"{name}.narrow")
    if norm.bias is None:
        return g.node("Mul", [normed, norm.weight], name)
    return g.node("Add", [g.node("Mul", [normed, norm.weight], f"{name}.scaled"), norm.bias], name)
