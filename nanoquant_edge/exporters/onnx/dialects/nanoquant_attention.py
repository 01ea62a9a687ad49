# SPDX-License-Identifier: Apache-2.0
"""Emitting nodes of com.nanoquant::NanoQuantAttention and its kin with a 16-bit cache (docs/OPERATOR.md)."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ....formats.graph import ATTENTION_OP, DOMAIN, HALF_CACHE_OP
from ....models import DecoderConfig
from ..graph_builder import GraphBuilder, dims_of
from .base import Attended, AttentionCall

__all__ = ["Places", "emit_attention"]


@dataclass(frozen=True)
class Places:
    """Where the new tokens stand.

    Attributes:
        last: last position of each sequence, int32 [batch]; with slots, the position of each token.
        slots: the cache of each token, int32 [tokens], or empty.
        cosines, sines: of every position, [.., head_dim / 2].
    """

    last: ir.Value
    slots: ir.Value
    cosines: ir.Value
    sines: ir.Value


def emit_attention(
    g: GraphBuilder,
    call: AttentionCall,
    config: DecoderConfig,
    window: int,
    places: Places,
) -> Attended:
    """Add a node.

    Args:
        g: the graph.
        call: what is computed.
        config: sizes.
        window: positions that one sees, itself included; 0 for all.
        places: where the new tokens stand.
    """
    kind, cache = call.query.dtype, call.past[0].dtype
    assert kind is not None and cache is not None
    outputs = [(f"{call.name}.output", kind, dims_of(call.query))]
    outputs += [(present, cache, dims_of(call.past[0])) for present in call.present_names]
    output, key, value = g.nodes(
        HALF_CACHE_OP if cache == ir.DataType.FLOAT16 else ATTENTION_OP,
        [call.query, call.key, call.value, *call.past, places.last, places.cosines, places.sines, places.slots],
        call.name,
        outputs,
        DOMAIN,
        num_heads=config.num_heads,
        kv_num_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        window=window,
        scale=float(config.attention_scale),
    )
    return Attended(output, (key, value))
