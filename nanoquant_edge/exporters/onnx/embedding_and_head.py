# SPDX-License-Identifier: Apache-2.0
"""The two ends of a decoder graph: token and position tables before the blocks, final norm and head behind them."""

from __future__ import annotations

import onnx_ir as ir

from ...formats.graph import EMBEDDING_OP, HEAD_OP, LOGITS
from ...models import DecoderConfig
from .activations import scalar, soft_cap
from .dialects.base import Dialect
from .graph_builder import Dims, GraphBuilder
from .norms import Norm
from .tables import WideTable, coded_node
from .weights import HEAD, WeightSource

__all__ = ["embed_tokens", "emit_head"]


def embed_tokens(
    g: GraphBuilder,
    config: DecoderConfig,
    weights: WeightSource,
    dialect: Dialect,
    ids: ir.Value,
    dtype: ir.DataType,
    codes: bool = False,
) -> ir.Value:
    """Embedded tokens [batch, sequence, hidden_size], scaled (Gemma) and with learned positions (OPT)."""
    family = config.structure
    dims: Dims = ["batch", "sequence", config.hidden_size]
    coded = weights.table(family.embedding) if codes else None
    if coded is not None:
        hidden = coded_node(g, EMBEDDING_OP, ids, coded, family.embedding, family.embedding, dims)
    else:
        table = _table(g, weights, f"{family.embedding}.weight", dtype)
        hidden = g.cast(g.node("Gather", [table, ids], family.embedding, shape=dims), dtype, f"{family.embedding}.cast")
    if config.embedding_scale != 1.0:
        hidden = g.node("Mul", [hidden, scalar(g, config.embedding_scale, dtype)], f"{family.embedding}.scaled")
    if family.positions:
        name, positions = family.positions, dialect.positions(g)
        assert positions.dtype is not None
        offset = g.integers(family.position_offset)
        if positions.dtype != ir.DataType.INT64:
            offset = g.cast(offset, positions.dtype, f"{name}.offset")
        rows = g.node("Add", [positions, offset], f"{name}.rows")
        placed = g.node("Gather", [_table(g, weights, f"{name}.weight", dtype), rows], name, shape=dims)
        hidden = g.node("Add", [hidden, g.cast(placed, dtype, f"{name}.cast")], f"{name}.sum")
    return hidden


def _table(g: GraphBuilder, weights: WeightSource, name: str, dtype: ir.DataType) -> ir.Value:
    """Embedding or head table; a float32 graph keeps the checkpoint's 16 bits and widens after the look-up."""
    table = weights.table(name.removesuffix(".weight"))
    if table is not None:
        return g.weight(name, WideTable(table, ir.DataType.FLOAT16 if dtype == ir.DataType.FLOAT else dtype, name))
    array = weights.tensor(name)
    return g.initializer(name, array, None if dtype == ir.DataType.FLOAT else dtype)


def emit_head(
    g: GraphBuilder,
    config: DecoderConfig,
    weights: WeightSource,
    dialect: Dialect,
    hidden: ir.Value,
    chosen: ir.Value,
    norm: Norm,
    codes: bool = False,
) -> None:
    """Logits of the chosen positions only, so that a long prompt never makes a [sequence, vocabulary] array.

    A 16-bit table is widened by a Cast of a constant, which ONNX Runtime folds once at load. Measured on ONNX Runtime
    1.31, one thread, 49152 x 576: 8.3 ms a row, 109 MB of memory, 57 MB on disk; a float32 table multiplied
    unpacked takes 11.7 ms, 116 MB of mapped file and 113 MB on disk, and packed 225 MB of memory. While the session
    loads, the widened and the packed table exist side by side.
    """
    assert hidden.dtype is not None
    width, vocabulary, wide = config.hidden_size, config.vocab_size, ir.DataType.FLOAT
    where = g.node("Unsqueeze", [chosen, g.integers([-1])], "head.indices", shape=["batch", "positions", 1])
    picked = g.node("GatherND", [hidden, where], "head.gather", shape=["batch", "positions", width], batch_dims=1)
    normed = dialect.norm(g, norm.name, picked, norm)
    module = config.structure.embedding if config.tied else HEAD.removesuffix(".weight")
    rows = g.node("Reshape", [normed, g.integers([-1, width])], "head.flatten", shape=["rows", width])
    coded = weights.table(module) if codes else None
    if coded is not None:
        flat = coded_node(g, HEAD_OP, rows, coded, module, "lm_head", ["rows", vocabulary])
    else:
        table = g.cast(_table(g, weights, f"{module}.weight", hidden.dtype), hidden.dtype, "head.widen")
        flat = g.node("Gemm", [rows, table], "lm_head", shape=["rows", vocabulary], transB=1)
    sizes = g.node("Shape", [chosen], "head.shape", dtype=ir.DataType.INT64, shape=[2])
    target = g.node("Concat", [sizes, g.integers([vocabulary])], "head.target", shape=[3], axis=0)
    dims: Dims = ["batch", "positions", vocabulary]
    direct = hidden.dtype == wide and config.logit_cap is None
    # allowzero: a piece of a prompt may want no logits at all, positions = 0.
    name = LOGITS if direct else None
    logits = g.node("Reshape", [flat, target], "head.unflatten", shape=dims, output=name, allowzero=1)
    if config.logit_cap is not None:
        logits = g.cast(logits, wide, "head.float32")
        logits = soft_cap(g, "head.capped", logits, config.logit_cap, output=LOGITS)
    elif not direct:
        logits = g.cast(logits, wide, "head.float32", output=LOGITS)
    g.output(logits)
