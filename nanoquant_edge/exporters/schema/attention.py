# SPDX-License-Identifier: Apache-2.0
"""The check of nodes of com.nanoquant::NanoQuantAttention and NanoQuantAttentionHalfCache (docs/OPERATOR.md)."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ...formats.graph import ATTENTION_OP, HALF_CACHE_OP

__all__ = ["check_attention_node"]

#: Query, key, value, both caches, last positions, cosines, sines; and slots, which may be left out.
_RANKS = (3, 3, 3, 4, 4, 1, 2, 2, 1)
#: Those that hold int32.
_PLACES = (5, 8)
_CACHES = (3, 4)
#: Operator -> type of its caches.
_CACHE_TYPES = {ATTENTION_OP: ir.DataType.FLOAT, HALF_CACHE_OP: ir.DataType.FLOAT16}
_INTEGERS = ("num_heads", "kv_num_heads", "head_dim", "window")
_LARGEST = {"num_heads": 65536, "kv_num_heads": 65536, "head_dim": 1024, "window": (1 << 31) - 1}


def check_attention_node(node: ir.Node, fail: Callable[[str], Exception]) -> None:
    """Compare a node with the operator's schema.

    Args:
        node: of this operator.
        fail: makes the error from the rule that is broken.

    Raises:
        Exception: what `fail` makes.
    """
    if set(node.attributes) != {*_INTEGERS, "scale"} or len(node.inputs) not in (8, 9) or len(node.outputs) != 3:
        listed = ", ".join(_INTEGERS)
        raise fail(f"{node.op_type} has 8 or 9 inputs, 3 outputs and the attributes {listed}, scale")
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
    widths = [heads * dim, kv_heads * dim, kv_heads * dim, dim, dim, None, dim // 2, dim // 2, None]
    for index, (source, rank, width) in enumerate(zip(node.inputs, _RANKS, widths, strict=False)):
        kind = ir.DataType.INT32 if index in _PLACES else ir.DataType.FLOAT
        if index in _CACHES:
            kind = _CACHE_TYPES[node.op_type]
        if source is None or source.dtype != kind or source.shape is None or len(source.shape) != rank:
            raise fail(f"input {index} is missing, or of a wrong type or shape")
        if width is not None and source.shape[-1] != width:
            raise fail(f"the last dimension of input {index} is {source.shape[-1]}, not {width}")
