# SPDX-License-Identifier: Apache-2.0
"""(config, weights, dialect, dtype) -> ONNX model: a pure function, no tracing, no PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir

from ...errors import NqEdgeError
from ...formats.graph import DOMAIN, OPERATOR_VERSION
from ...models import DecoderConfig
from ..options import GraphOptions
from ..weights import WeightSource, check_weights
from .decoder import build_decoder
from .dialects.base import dialect_named
from .graph_builder import GraphBuilder

__all__ = ["build_model"]


def build_model(
    config: DecoderConfig, weights: WeightSource, options: GraphOptions | None = None, **keywords: Any
) -> ir.Model:
    """Build the decoder graph.

    Args:
        config: the model's sizes.
        weights: its tensors, e.g. a `Checkpoint`; they are referred to, not copied.
        options: the form of the graph.
        **keywords: fields of `GraphOptions`, instead of those in `options`.

    Returns:
        A model with these inputs: `input_ids` int64 [batch, sequence]; `attention_mask` int64 [batch, total], ones for
        the valid tokens of past and present, padding on the right; `logits_indices` int64 [batch, positions], which
        columns of `input_ids` get logits; `past_key_values.{i}.key|value` [batch, kv_heads, capacity, head_dim].
        Outputs: `logits` float32 [batch, positions, vocabulary] and `present.{i}.key|value`, to be bound to the
        buffers of the past; in dialect "trt103" they hold the new rows only.

    Raises:
        NqEdgeError: NQ-OPTION as `GraphOptions`, or for a dtype too narrow for the family, NQ-ARCH for a model that the
            dialect cannot express, NQ-CKPT when a weight does not fit, NQ-NUMERIC when a scale does not.

    Example:
        >>> from nanoquant_edge.formats.checkpoint import Checkpoint
        >>> from nanoquant_edge.models.config_reader import read_config
        >>> checkpoint = Checkpoint("checkpoint")
        >>> model = build_model(read_config(checkpoint.config), checkpoint, dialect="onnx24", dtype="float16")
        >>> [value.name for value in model.graph.inputs][:3]
        ['input_ids', 'attention_mask', 'logits_indices']
    """
    options = replace(options or GraphOptions(), **keywords)
    dialect, length = dialect_named(options.dialect), options.length(config)
    if options.dtype == "float16" and not config.structure.float16:
        raise NqEdgeError(
            "NQ-OPTION",
            f"activations of {config.structure.models} pass 65504, the largest number of float16.",
            "Use --dtype bfloat16 (GPUs from sm_80 on), or float32 on a CPU.",
        )
    if options.cache and options.cache_dtype(config) != options.cache:
        raise NqEdgeError(
            "NQ-OPTION",
            f"a {options.cache} cache beside {options.dtype} activations is for our attention on a CPU: a float32 "
            "graph of dialect ort, not portable, of a model with rotated heads and no cap of its scores.",
            "Leave --cache out.",
        )
    dialect.check(config)
    check_weights(config, weights)
    opsets = {**dialect.opsets, DOMAIN: OPERATOR_VERSION}
    functions = []
    if options.portable:
        from .portable import linear_function

        functions.append(linear_function(dialect.opsets[""]))
    g = GraphBuilder(opsets)
    build_decoder(g, config, weights, dialect, options)
    metadata = {
        "nanoquant.dialect": options.dialect,
        "nanoquant.dtype": options.dtype,
        "nanoquant.max_length": str(length),
    }
    return g.model(f"{config.family}-nanoquant", metadata, functions)
