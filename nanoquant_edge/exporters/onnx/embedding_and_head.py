# SPDX-License-Identifier: Apache-2.0
"""What stands around a decoder graph's blocks: token and position tables before, final norm and head behind them."""

from __future__ import annotations

import onnx_ir as ir

from ...formats.graph import EMBEDDING_OP, HEAD_OP, LOGITS
from ..weights import HEAD
from .activations import scalar, soft_cap
from .assembly import Assembly
from .graph_builder import Dims
from .norms import Norm
from .tables import WideTable, coded_node

__all__ = ["embed_tokens", "emit_head"]


def embed_tokens(assembly: Assembly, ids: ir.Value) -> ir.Value:
    """Embedded tokens [batch, sequence, hidden_size], scaled (Gemma) and with learned positions (OPT).

    Args:
        assembly: the graph and what it is made from.
        ids: int64 [batch, sequence].
    """
    g, config, weights, dtype = assembly.g, assembly.config, assembly.weights, assembly.dtype
    family = config.structure
    dims: Dims = ["batch", "sequence", config.hidden_size]
    coded = weights.table(family.embedding) if assembly.options.codes else None
    if coded is not None:
        hidden = coded_node(g, EMBEDDING_OP, ids, coded, family.embedding, family.embedding, dims)
    else:
        table = _table(assembly, family.embedding)
        hidden = g.cast(g.node("Gather", [table, ids], family.embedding, shape=dims), dtype, f"{family.embedding}.cast")
    if config.embedding_scale != 1.0:
        hidden = g.node("Mul", [hidden, scalar(g, config.embedding_scale, dtype)], f"{family.embedding}.scaled")
    if family.positions:
        name, positions = family.positions, assembly.emitter.positions()
        assert positions.dtype is not None
        offset = g.integers(family.position_offset)
        if positions.dtype != ir.DataType.INT64:
            offset = g.cast(offset, positions.dtype, f"{name}.offset")
        rows = g.node("Add", [positions, offset], f"{name}.rows")
        learned = g.node("Gather", [_table(assembly, name), rows], name, shape=dims)
        hidden = g.node("Add", [hidden, g.cast(learned, dtype, f"{name}.cast")], f"{name}.sum")
    return hidden


def _table(assembly: Assembly, module: str) -> ir.Value:
    """Embedding or head table; a float32 graph keeps the checkpoint's 16 bits and widens after the look-up."""
    name, dtype = f"{module}.weight", assembly.dtype
    table = assembly.weights.table(module)
    if table is not None:
        stored = ir.DataType.FLOAT16 if dtype == ir.DataType.FLOAT else dtype
        return assembly.g.weight(name, WideTable(table, stored, name))
    return assembly.g.initializer(name, assembly.weights.tensor(name), None if dtype == ir.DataType.FLOAT else dtype)


def emit_head(assembly: Assembly, hidden: ir.Value, chosen: ir.Value, norm: Norm) -> None:
    """Logits of the chosen positions only, so that a long prompt never makes a [sequence, vocabulary] array.

    Args:
        assembly: the graph and what it is made from.
        hidden: output of the last block [batch, sequence, hidden_size].
        chosen: int64 [batch, positions].
        norm: the final norm.

    A 16-bit table is widened by a Cast of a constant, which ONNX Runtime folds once at load. Measured on ONNX Runtime
    1.31, one thread, 49152 x 576: 8.3 ms a row, 109 MB of memory, 57 MB on disk; a float32 table multiplied
    unpacked takes 11.7 ms, 116 MB of mapped file and 113 MB on disk, and packed 225 MB of memory. While the session
    loads, the widened and the packed table exist side by side.
    """
    g, config, dtype = assembly.g, assembly.config, assembly.dtype
    width, vocabulary, wide = config.hidden_size, config.vocab_size, ir.DataType.FLOAT
    indices = g.node("Unsqueeze", [chosen, g.integers([-1])], "head.indices", shape=["batch", "positions", 1])
    picked = g.node("GatherND", [hidden, indices], "head.gather", shape=["batch", "positions", width], batch_dims=1)
    normed = assembly.emitter.norm(norm.name, picked, norm)
    module = config.structure.embedding if config.tied else HEAD
    rows = g.node("Reshape", [normed, g.integers([-1, width])], "head.flatten", shape=["rows", width])
    coded = assembly.weights.table(module) if assembly.options.codes else None
    if coded is not None:
        flat = coded_node(g, HEAD_OP, rows, coded, module, HEAD, ["rows", vocabulary])
    else:
        table = g.cast(_table(assembly, module), dtype, "head.widen")
        flat = g.node("Gemm", [rows, table], HEAD, shape=["rows", vocabulary], transB=1)
    sizes = g.node("Shape", [chosen], "head.shape", dtype=ir.DataType.INT64, shape=[2])
    target = g.node("Concat", [sizes, g.integers([vocabulary])], "head.target", shape=[3], axis=0)
    dims: Dims = ["batch", "positions", vocabulary]
    direct = dtype == wide and config.logit_cap is None
    # allowzero: a piece of a prompt may want no logits at all, positions = 0.
    name = LOGITS if direct else None
    logits = g.node("Reshape", [flat, target], "head.unflatten", shape=dims, output=name, allowzero=1)
    if config.logit_cap is not None:
        logits = g.cast(logits, wide, "head.float32")
        logits = soft_cap(g, "head.capped", logits, config.logit_cap, output=LOGITS)
    elif not direct:
        logits = g.cast(logits, wide, "head.float32", output=LOGITS)
    g.output(logits)
