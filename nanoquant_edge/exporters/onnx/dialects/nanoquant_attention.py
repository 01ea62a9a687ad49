# SPDX-License-Identifier: Apache-2.0
"""The operator com.nanoquant::NanoQuantAttention, version 1 (docs/OPERATOR.md): emitting its nodes."""

from __future__ import annotations

import onnx_ir as ir

from ....formats.graph import ATTENTION_OP, DOMAIN
from ....models import DecoderConfig
from ..graph_builder import GraphBuilder, dims_of
from .base import Attended, AttentionCall

__all__ = ["computes_attention", "emit_attention"]


def computes_attention(config: DecoderConfig) -> bool:
    """Whether the operator computes this model's attention: rotated heads, no soft cap."""
    rotated = all(config.rotary_of(block) is not None for block in range(config.num_layers))
    return rotated and config.attention_cap is None and config.head_dim % 16 == 0 and config.head_dim <= 1024


def emit_attention(
    g: GraphBuilder,
    call: AttentionCall,
    config: DecoderConfig,
    window: int,
    last: ir.Value,
    tables: tuple[ir.Value, ir.Value],
) -> Attended:
    """Add a node.

    Args:
        g: the graph.
        call: what is computed.
        config: sizes.
        window: positions that one sees, itself included; 0 for all.
        last: last position of each sequence, int32 [batch].
        tables: cosines and sines [.., head_dim / 2].
    """
    kind = call.query.dtype
    assert kind is not None
    outputs = [(f"{call.name}.output", kind, dims_of(call.query))]
    outputs += [(present, kind, dims_of(call.past[0])) for present in call.present_names]
    output, key, value = g.nodes(
        ATTENTION_OP,
        [call.query, call.key, call.value, *call.past, last, *tables],
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
