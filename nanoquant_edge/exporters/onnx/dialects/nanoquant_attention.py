# SPDX-License-Identifier: Apache-2.0
"""The operator com.nanoquant::NanoQuantAttention, version 1 (docs/OPERATOR.md): emitting its nodes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ....formats.graph import ATTENTION_OP, DOMAIN
from ....models import DecoderConfig
from ..graph_builder import GraphBuilder, dims_of
from .base import Attended, AttentionCall

__all__ = ["Places", "computes_attention", "emit_attention"]


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


def computes_attention(config: DecoderConfig) -> bool:
    """Whether the operator computes this model's attention: rotated heads, no soft cap."""
    rotated = all(config.rotary_of(block) is not None for block in range(config.num_layers))
    return rotated and config.attention_cap is None and config.head_dim % 16 == 0 and config.head_dim <= 1024


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
    kind = call.query.dtype
    assert kind is not None
    outputs = [(f"{call.name}.output", kind, dims_of(call.query))]
    outputs += [(present, kind, dims_of(call.past[0])) for present in call.present_names]
    output, key, value = g.nodes(
        ATTENTION_OP,
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
