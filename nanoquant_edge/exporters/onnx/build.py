# SPDX-License-Identifier: Apache-2.0
"""(config, weights, dialect, dtype) -> ONNX model: a pure function, no tracing, no PyTorch."""

from __future__ import annotations

import onnx_ir as ir

from ...errors import NqEdgeError
from ...formats.graph import DOMAIN, OPERATOR_VERSION
from ...models import DecoderConfig
from .decoder import build_decoder
from .dialects.base import Dialect, dialect_named
from .dtypes import ir_dtype
from .graph_builder import GraphBuilder
from .operator import LinearForm
from .tables import reads_codes
from .weights import WeightSource, check_weights

__all__ = ["build_model"]


def build_model(
    config: DecoderConfig,
    weights: WeightSource,
    dialect: str | Dialect = "ort",
    dtype: str = "float32",
    *,
    portable: bool = False,
    max_length: int | None = None,
    capacity: int | None = None,
    layout: int = 0,
    grouped: bool = False,
) -> ir.Model:
    """Build the decoder graph.

    Args:
        config: the model's sizes.
        weights: its tensors, e.g. a `Checkpoint`; they are referred to, not copied.
        dialect: "ort", "onnx24" or "trt103", or a fresh dialect object.
        dtype: type of activations and cache: "float32", "float16" or "bfloat16".
        portable: add the operator's body in standard operators.
        max_length: longest context in tokens; None is the model's own.
        capacity: fixed number of cache slots; None leaves it to the caller of the graph. TensorRT's in-place cache
            update refuses a dynamic one.
        layout: order of the packed words (docs/OPERATOR.md), 0 or 1; CPU kernels read 0 only.
        grouped: make one node of the projections that share an input (q/k/v, gate/up).

    Returns:
        A model with these inputs: `input_ids` int64 [batch, sequence]; `attention_mask` int64 [batch, total], ones for
        the valid tokens of past and present, padding on the right; `logits_indices` int64 [batch, positions], which
        columns of `input_ids` get logits; `past_key_values.{i}.key|value` [batch, kv_heads, capacity, head_dim].
        Outputs: `logits` float32 [batch, positions, vocabulary] and `present.{i}.key|value`, to be bound to the
        buffers of the past; in dialect "trt103" they hold the new rows only.

    Raises:
        NqEdgeError: NQ-OPTION for an unknown dialect or dtype, one too narrow for the family, or a length out of
            range, NQ-ARCH for a model that the dialect cannot express, NQ-CKPT when a weight does not fit, NQ-NUMERIC
            when a scale does not.
    """
    kind = ir_dtype(dtype)
    target = dialect_named(dialect) if isinstance(dialect, str) else dialect
    length = config.max_positions if max_length is None else max_length
    if not 0 < length <= config.max_positions:
        raise NqEdgeError(
            "NQ-OPTION", f"max_length {length} is not between 1 and the model's {config.max_positions} positions."
        )
    if capacity is not None and not 0 < capacity <= length:
        raise NqEdgeError("NQ-OPTION", f"a cache of {capacity} slots does not suit a context of {length} tokens.")
    form = LinearForm(layout, grouped)
    if portable and form != LinearForm():
        raise NqEdgeError("NQ-OPTION", "a portable graph has layout 0 and no groups, which its body cannot read.")
    # The kernels that read groups of float32 are the CPU's, and attention is beside them.
    target.native = grouped and dtype == "float32"
    if dtype == "float16" and not config.structure.float16:
        raise NqEdgeError(
            "NQ-OPTION",
            f"activations of {config.structure.models} pass 65504, the largest number of float16.",
            "Use --dtype bfloat16 (GPUs from sm_80 on), or float32 on a CPU.",
        )
    target.check(config)
    check_weights(config, weights)
    opsets = {**target.opsets, DOMAIN: OPERATOR_VERSION}
    functions = []
    if portable:
        from .portable import linear_function

        functions.append(linear_function(target.opsets[""]))
    g = GraphBuilder(opsets)
    codes = reads_codes(target.name, dtype, portable)
    build_decoder(g, config, weights, target, kind, length, capacity, form, codes)
    metadata = {
        "nanoquant.dialect": target.name,
        "nanoquant.dtype": dtype,
        "nanoquant.max_length": str(length),
    }
    return g.model(f"{config.family}-nanoquant", metadata, functions)
