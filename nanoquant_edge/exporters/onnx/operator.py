# SPDX-License-Identifier: Apache-2.0
"""The operator com.nanoquant::NanoQuantLinear, version 1 (docs/OPERATOR.md): its names, and emitting one node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...checkpoint import PackedLayer
from .dtypes import onnx_type_of
from .graph import GraphBuilder, dims_of
from .scales import export_scales

__all__ = [
    "ATTRIBUTES",
    "DOMAIN",
    "INPUTS",
    "LAYOUT_ROWS_LSB_FIRST",
    "LAYOUT_TILES_16X256",
    "OP_TYPE",
    "VERSION",
    "emit_linear",
]

DOMAIN = "com.nanoquant"
OP_TYPE = "NanoQuantLinear"
VERSION = 1
INPUTS = ("X", "v_packed", "u_packed", "scale_in", "scale_mid", "scale_out", "bias")
ATTRIBUTES = ("in_features", "rank", "out_features", "has_scale_mid", "has_bias", "layout")
#: int32 words, row-major, least significant bit first, 1 is -1.
LAYOUT_ROWS_LSB_FIRST = 0
#: Tensor-core tiles, for GPUs (nanoquant_edge.checkpoint.to_tiles).
LAYOUT_TILES_16X256 = 1


def emit_linear(g: GraphBuilder, name: str, x: ir.Value, layer: PackedLayer) -> ir.Value:
    """Add one compressed layer; node and initializers are named after its module path.

    Args:
        g: the graph.
        name: module path, e.g. `model.layers.0.self_attn.q_proj`.
        x: [..., in_features].
        layer: its factors.

    Returns:
        [..., out_features] in x's type, called `{name}.output`.
    """
    assert x.dtype is not None
    scales = export_scales(name, layer, x.dtype)
    kind = onnx_type_of(scales.scale_out)

    def unused(number: int) -> ir.Value:
        # A length-1 vector broadcasts: parsers of TensorRT refuse an omitted input.
        label = f"constant.{kind.name.lower()}.{number}"
        return g.initializer(label, np.full(1, number, scales.scale_out.dtype))

    has_mid, has_bias = scales.scale_mid is not None, scales.bias is not None
    mid = unused(1) if scales.scale_mid is None else g.initializer(f"{name}.scale_mid", scales.scale_mid)
    bias = unused(0) if scales.bias is None else g.initializer(f"{name}.bias", scales.bias)
    inputs = [
        x,
        g.initializer(f"{name}.v_packed", layer.v_packed),
        g.initializer(f"{name}.u_packed", layer.u_packed),
        g.initializer(f"{name}.scale_in", scales.scale_in),
        mid,
        g.initializer(f"{name}.scale_out", scales.scale_out),
        bias,
    ]
    return g.node(
        OP_TYPE,
        inputs,
        name,
        shape=[*dims_of(x)[:-1], layer.out_features],
        domain=DOMAIN,
        in_features=layer.in_features,
        rank=layer.rank,
        out_features=layer.out_features,
        has_scale_mid=int(has_mid),
        has_bias=int(has_bias),
        layout=LAYOUT_ROWS_LSB_FIRST,
    )
