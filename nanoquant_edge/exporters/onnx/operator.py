# SPDX-License-Identifier: Apache-2.0
"""The operators com.nanoquant::NanoQuantLinear and NanoQuantLinearGroup, version 1 (docs/OPERATOR.md): emitting
their nodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ...formats.checkpoint import PackedLayer
from ...formats.graph import (
    DOMAIN,
    GROUP_OP,
    LAYOUT_ROWS_LSB_FIRST,
    LAYOUT_TILES_16X256,
    LINEAR_OP,
    MAX_GROUP,
    linear_output,
)
from ..options import GraphOptions
from .dtypes import onnx_type_of
from .graph_builder import GraphBuilder, dims_of
from .scales import ExportScales, export_scales
from .tensors import TiledTensor

__all__ = ["emit_linear", "emit_linears"]


def emit_linears(
    g: GraphBuilder, name: str, x: ir.Value, layers: Mapping[str, PackedLayer], options: GraphOptions
) -> list[ir.Value]:
    """Add the projections of one input, as one node where `options` ask for it.

    Args:
        g: the graph.
        name: the group's node name.
        x: [..., in_features].
        layers: module path -> factors, in the order of the results.
        options: layout of the words, and whether projections are grouped.

    Returns:
        One value [..., out_features] a layer, in x's type, called `{module path}.output`.
    """
    assert x.dtype is not None
    scales = {path: export_scales(path, layer, x.dtype) for path, layer in layers.items()}
    kinds = {parts.scale_out.dtype for parts in scales.values()}
    # A node has one scale type; a bias of another type than the scales' can make them differ.
    if not options.grouped or not 1 < len(layers) <= MAX_GROUP or len(kinds) > 1:
        return [emit_linear(g, path, x, layer, options.layout) for path, layer in layers.items()]
    inputs = [x]
    for path, layer in layers.items():
        inputs += _constants(g, path, layer, scales[path], options.layout)
    outputs = [(linear_output(path), x.dtype, [*dims_of(x)[:-1], layer.out_features]) for path, layer in layers.items()]
    return g.nodes(
        GROUP_OP,
        inputs,
        name,
        outputs,
        DOMAIN,
        in_features=next(iter(layers.values())).in_features,
        ranks=[layer.rank for layer in layers.values()],
        out_features=[layer.out_features for layer in layers.values()],
        has_scale_mid=[int(parts.scale_mid is not None) for parts in scales.values()],
        has_bias=[int(parts.bias is not None) for parts in scales.values()],
        layout=options.layout,
    )


def emit_linear(
    g: GraphBuilder, name: str, x: ir.Value, layer: PackedLayer, layout: int = LAYOUT_ROWS_LSB_FIRST
) -> ir.Value:
    """Add one compressed layer; node and initializers are named after its module path.

    Args:
        g: the graph.
        name: module path, e.g. `model.layers.0.self_attn.q_proj`.
        x: [..., in_features].
        layer: its factors.
        layout: order of the packed words.

    Returns:
        [..., out_features] in x's type, called `{name}.output`.
    """
    assert x.dtype is not None
    scales = export_scales(name, layer, x.dtype)
    return g.node(
        LINEAR_OP,
        [x, *_constants(g, name, layer, scales, layout)],
        name,
        shape=[*dims_of(x)[:-1], layer.out_features],
        domain=DOMAIN,
        in_features=layer.in_features,
        rank=layer.rank,
        out_features=layer.out_features,
        has_scale_mid=int(scales.scale_mid is not None),
        has_bias=int(scales.bias is not None),
        layout=layout,
    )


def _constants(g: GraphBuilder, name: str, layer: PackedLayer, scales: ExportScales, layout: int) -> list[ir.Value]:
    """The six weights of a layer, in the operator's order."""
    kind = onnx_type_of(scales.scale_out)

    def unused(number: int) -> ir.Value:
        # A length-1 vector broadcasts: parsers of TensorRT refuse an omitted input.
        label = f"constant.{kind.name.lower()}.{number}"
        return g.initializer(label, np.full(1, number, scales.scale_out.dtype))

    def signs(part: str, columns: int) -> ir.Value:
        words = getattr(layer, part)
        if layout == LAYOUT_TILES_16X256:
            return g.weight(f"{name}.{part}", TiledTensor(words, columns, f"{name}.{part}"))
        return g.initializer(f"{name}.{part}", words)

    return [
        signs("v_packed", layer.in_features),
        signs("u_packed", layer.rank),
        g.initializer(f"{name}.scale_in", scales.scale_in),
        unused(1) if scales.scale_mid is None else g.initializer(f"{name}.scale_mid", scales.scale_mid),
        g.initializer(f"{name}.scale_out", scales.scale_out),
        unused(0) if scales.bias is None else g.initializer(f"{name}.bias", scales.bias),
    ]
