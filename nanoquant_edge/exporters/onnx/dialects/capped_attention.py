# SPDX-License-Identifier: Apache-2.0
"""Attention with a soft cap on its scores, in basic operators: TensorRT's Attention has none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ....models import DecoderConfig
from ..activations import scalar, soft_cap
from ..graph_builder import Dims, GraphBuilder, dims_of

__all__ = ["MASKED", "capped_attention"]

#: In place of the score of a masked slot: its exponential is 0 in float32, and sums of two stay finite.
MASKED = -1e30


def capped_attention(
    g: GraphBuilder,
    name: str,
    config: DecoderConfig,
    query: ir.Value,
    cache: tuple[ir.Value, ir.Value],
    mask: ir.Value,
) -> ir.Value:
    """softmax(cap * tanh(Q K / cap)) V; scores are float32.

    Args:
        g: the graph.
        name: module path of the attention.
        config: heads, scale and cap.
        query: [batch, heads, sequence, head_dim], rotated.
        cache: keys and values [batch, kv_heads, capacity, head_dim].
        mask: bool [batch, 1, sequence, capacity], true where a slot is seen.

    Returns:
        [batch, heads, sequence, head_dim].
    """
    kind, cap = query.dtype, config.attention_cap
    assert kind is not None and cap is not None
    batch, heads, sequence, width = dims_of(query)
    kv_heads, capacity, wide = config.num_kv_heads, dims_of(cache[0])[2], ir.DataType.FLOAT
    # Query heads that share a key head lie one below the other, so that the cache is not repeated.
    stacked: Dims = [batch, kv_heads, "queries"]
    scaled = g.node("Mul", [query, scalar(g, config.attention_scale, kind)], f"{name}.scaled")
    rows = g.node(
        "Reshape", [scaled, g.integers([0, kv_heads, -1, config.head_dim])], f"{name}.stacked", shape=[*stacked, width]
    )
    turned = g.node(
        "Transpose", [cache[0]], f"{name}.turned", shape=[batch, kv_heads, width, capacity], perm=[0, 1, 3, 2]
    )
    product = g.node("MatMul", [rows, turned], f"{name}.product", shape=[*stacked, capacity])
    scores = soft_cap(g, f"{name}.capped", g.cast(product, wide, f"{name}.wide"), cap)
    dims: Dims = [batch, heads, sequence, capacity]
    apart = g.node("Reshape", [scores, g.integers([0, config.num_heads, -1, 0])], f"{name}.apart", shape=dims)
    masked = g.initializer("constant.float.masked", np.full(1, MASKED, np.float32))
    seen = g.node("Where", [mask, apart, masked], f"{name}.masked", dtype=wide, shape=dims)
    weights = g.cast(g.node("Softmax", [seen], f"{name}.softmax", axis=-1), kind, f"{name}.weights")
    joined = g.node(
        "Reshape", [weights, g.integers([0, kv_heads, -1, 0])], f"{name}.joined", shape=[*stacked, capacity]
    )
    attended = g.node("MatMul", [joined, cache[1]], f"{name}.attended", shape=[*stacked, width])
    return g.node("Reshape", [attended, g.integers([0, config.num_heads, -1, 0])], name, shape=dims_of(query))
