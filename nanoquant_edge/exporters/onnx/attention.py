# SPDX-License-Identifier: Apache-2.0
"""The operator com.nanoquant::NanoQuantAttention, version 1 (docs/OPERATOR.md): emitting and checking its nodes."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ...formats.graph import ATTENTION_OP, DOMAIN
from ...models import DecoderConfig
from .graph_builder import GraphBuilder, dims_of

__all__ = ["check_attention_node", "emit_attention", "native_attention"]

#: Query, key, value, both caches, last positions, cosines, sines.
_RANKS = (3, 3, 3, 4, 4, 1, 2, 2)
_INTEGERS = ("num_heads", "kv_num_heads", "head_dim", "window")
_LARGEST = {"num_heads": 65536, "kv_num_heads": 65536, "head_dim": 1024, "window": (1 << 31) - 1}


def native_attention(config: DecoderConfig) -> bool:
    """Whether the operator computes this model's attention: rotated heads, no soft cap."""
    rotated = all(config.rotary_of(block) is not None for block in range(config.num_layers))
    return rotated and config.attention_cap is None and config.head_dim % 16 == 0 and config.head_dim <= 1024


def emit_attention(
    g: GraphBuilder,
    name: str,
    config: DecoderConfig,
    window: int,
    inputs: list[ir.Value],
    present_names: tuple[str, str],
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Add a node.

    Args:
        g: the graph.
        name: module path of the attention.
        config: sizes.
        window: positions that one sees, itself included; 0 for all.
        inputs: query [batch, sequence, heads * head_dim], key and value [.., kv_heads * head_dim], key and value cache
            [batch, kv_heads, capacity, head_dim], last position int32 [batch], cosines and sines [.., head_dim / 2].
        present_names: names of the updated caches.

    Returns:
        Attention output like the query, and the two updated caches.
    """
    query, past = inputs[0], inputs[3]
    assert query.dtype is not None
    outputs = [(f"{name}.output", query.dtype, dims_of(query))]
    outputs += [(present, query.dtype, dims_of(past)) for present in present_names]
    attended, key, value = g.nodes(
        ATTENTION_OP,
        inputs,
        name,
        outputs,
        DOMAIN,
        num_heads=config.num_heads,
        kv_num_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        window=window,
        scale=float(config.attention_scale),
    )
    return attended, key, value


def check_attention_node(node: ir.Node, fail: Callable[[str], Exception]) -> None:
    """Compare a node with the operator's schema.

    Args:
        node: of this operator.
        fail: makes the error from the rule that is broken.

    Raises:
        Exception: what `fail` makes.
    """
    if set(node.attributes) != {*_INTEGERS, "scale"} or len(node.inputs) != len(_RANKS) or len(node.outputs) != 3:
        listed = ", ".join(_INTEGERS)
        raise fail(f"{ATTENTION_OP} has {len(_RANKS)} inputs, 3 outputs and the attributes {listed}, scale")
    sizes = {}
    for attribute in _INTEGERS:
        value = node.attributes[attribute]
        if value.is_ref() or value.type != ir.AttributeType.INT:
            raise fail(f"attribute {attribute} is not an integer")
        sizes[attribute] = value.as_int()
        if not (attribute == "window" or sizes[attribute] > 0) or not 0 <= sizes[attribute] <= _LARGEST[attribute]:
            raise fail(f"attribute {attribute} is {sizes[attribute]}")
    scale = node.attributes["scale"]
    if scale.is_ref() or scale.type != ir.AttributeType.FLOAT or not 0 < scale.as_float() < float("inf"):
        raise fail("attribute scale is not a positive number")
    heads, kv_heads, dim = (sizes[name] for name in _INTEGERS[:3])
    if heads % kv_heads or dim % 16:
        raise fail(f"{heads} heads on {kv_heads} of {dim} channels cannot be computed")
    widths = [heads * dim, kv_heads * dim, kv_heads * dim, dim, dim, None, dim // 2, dim // 2]
    for place, (source, rank, width) in enumerate(zip(node.inputs, _RANKS, widths, strict=True)):
        kind = ir.DataType.INT32 if place == 5 else ir.DataType.FLOAT
        if source is None or source.dtype != kind or source.shape is None or len(source.shape) != rank:
            raise fail(f"input {place} is missing, or of a wrong type or shape")
        if width is not None and source.shape[-1] != width:
            raise fail(f"the last dimension of input {place} is {source.shape[-1]}, not {width}")
