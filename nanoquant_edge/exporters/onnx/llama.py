# SPDX-License-Identifier: Apache-2.0
"""The Llama graph (Llama, SmolLM2, TinyLlama): pre-norm blocks, rotary attention, gated SiLU.

Nodes are named after module paths, compressed layers' outputs `{module path}.output`, block outputs
`block.{i}.output`: validation and runtimes rely on these names.
"""

from __future__ import annotations

import onnx_ir as ir

from ...models import DecoderConfig
from .dialects import DecoderInputs, Dialect
from .graph import Dims, GraphBuilder
from .operator import LinearForm, emit_linears
from .weights import EMBEDDING, FINAL_NORM, HEAD, WeightSource

__all__ = ["build_llama"]


def build_llama(
    g: GraphBuilder,
    config: DecoderConfig,
    weights: WeightSource,
    dialect: Dialect,
    dtype: ir.DataType,
    max_length: int,
    capacity: int | None = None,
    form: LinearForm = LinearForm(),  # noqa: B008 (frozen)
) -> None:
    """Add the whole decoder to a graph.

    Args:
        g: an empty graph.
        config: sizes.
        weights: tensors by Hugging Face name.
        dialect: the target's operators.
        dtype: type of activations and cache.
        max_length: longest context in tokens.
        capacity: fixed number of cache slots; None makes it symbolic.
        form: layout of the packed words, and whether projections of one input are grouped.
    """
    integer = ir.DataType.INT64
    ids = g.input("input_ids", integer, ["batch", "sequence"])
    mask = g.input("attention_mask", integer, ["batch", "total"])
    chosen = g.input("logits_indices", integer, ["batch", "positions"])
    cache: Dims = ["batch", config.num_kv_heads, capacity or "capacity", config.head_dim]
    past = [
        (
            g.input(f"past_key_values.{block}.key", dtype, cache),
            g.input(f"past_key_values.{block}.value", dtype, cache),
        )
        for block in range(config.num_layers)
    ]
    dialect.prepare(g, config, DecoderInputs(ids, mask, past[0][0], dtype, max_length))

    def norm(name: str) -> ir.Value:
        return g.initializer(f"{name}.weight", weights.tensor(f"{name}.weight"), dtype)

    def linears(parent: str, parts: tuple[str, ...], x: ir.Value) -> list[ir.Value]:
        layers = {f"{parent}.{part}": weights.layer(f"{parent}.{part}") for part in parts}
        return emit_linears(g, f"{parent}.projections", x, layers, form)

    table = _table(g, weights, EMBEDDING, dtype)
    rows = g.node("Gather", [table, ids], "model.embed_tokens", shape=["batch", "sequence", config.hidden_size])
    residual = g.cast(rows, dtype, "model.embed_tokens.cast")
    first = "model.layers.0.input_layernorm"
    normed = dialect.rms_norm(g, first, residual, norm(first), config.norm_eps)
    presents = []
    for block in range(config.num_layers):
        layer = f"model.layers.{block}"
        attention, feed = f"{layer}.self_attn", f"{layer}.mlp"
        query, key, value = linears(attention, ("q_proj", "k_proj", "v_proj"), normed)
        names = (f"present.{block}.key", f"present.{block}.value")
        attended, *updated = dialect.attention(g, attention, (query, key, value), past[block], names)
        presents += updated
        (projected,) = linears(attention, ("o_proj",), attended)
        after = f"{layer}.post_attention_layernorm"
        normed, residual = dialect.add_rms_norm(
            g, after, projected, residual, norm(after), config.norm_eps, f"block.{block}.attention"
        )
        gate, up = linears(feed, ("gate_proj", "up_proj"), normed)
        activated = g.node("Mul", [gate, g.node("Sigmoid", [gate], f"{feed}.sigmoid")], f"{feed}.silu")
        (down,) = linears(feed, ("down_proj",), g.node("Mul", [activated, up], f"{feed}.product"))
        total = f"block.{block}.output"
        if block + 1 < config.num_layers:
            before = f"model.layers.{block + 1}.input_layernorm"
            normed, residual = dialect.add_rms_norm(g, before, down, residual, norm(before), config.norm_eps, total)
        else:
            residual = g.node("Add", [down, residual], f"{layer}.sum", output=total)
    _head(g, config, weights, dialect, residual, chosen, norm(FINAL_NORM.removesuffix(".weight")))
    for present in presents:
        g.output(present)


def _table(g: GraphBuilder, weights: WeightSource, name: str, dtype: ir.DataType) -> ir.Value:
    """Embedding or head table; a float32 graph keeps the checkpoint's 16 bits and widens after the look-up."""
    array = weights.tensor(name)
    return g.initializer(name, array, None if dtype == ir.DataType.FLOAT else dtype)


def _head(
    g: GraphBuilder,
    config: DecoderConfig,
    weights: WeightSource,
    dialect: Dialect,
    hidden: ir.Value,
    chosen: ir.Value,
    norm: ir.Value,
) -> None:
    """Logits of the chosen positions only, so that a long prompt never makes a [sequence, vocabulary] array.

    The table is widened by a Cast of a constant, which ONNX Runtime folds once at load. Measured on ONNX Runtime
    1.31, one thread, 49152 x 576: 8.3 ms a row, 109 MB of memory, 57 MB on disk; a float32 table multiplied
    unpacked takes 11.7 ms, 116 MB of mapped file and 113 MB on disk, and packed 225 MB of memory. While the session
    loads, the widened and the packed table exist side by side.
    """
    assert hidden.dtype is not None
    width, vocabulary, wide = config.hidden_size, config.vocab_size, ir.DataType.FLOAT
    where = g.node("Unsqueeze", [chosen, g.integers([-1])], "head.indices", shape=["batch", "positions", 1])
    picked = g.node("GatherND", [hidden, where], "head.gather", shape=["batch", "positions", width], batch_dims=1)
    normed = dialect.rms_norm(g, "model.norm", picked, norm, config.norm_eps)
    table = _table(g, weights, EMBEDDING if config.tied else HEAD, hidden.dtype)
    rows = g.node("Reshape", [normed, g.integers([-1, width])], "head.flatten", shape=["rows", width])
    table = g.cast(table, hidden.dtype, "head.widen")
    flat = g.node("Gemm", [rows, table], "lm_head", shape=["rows", vocabulary], transB=1)
    sizes = g.node("Shape", [chosen], "head.shape", dtype=ir.DataType.INT64, shape=[2])
    target = g.node("Concat", [sizes, g.integers([vocabulary])], "head.target", shape=[3], axis=0)
    dims: Dims = ["batch", "positions", vocabulary]
    same = hidden.dtype == wide
    # allowzero: a piece of a prompt may want no logits at all, positions = 0.
    name = "logits" if same else None
    logits = g.node("Reshape", [flat, target], "head.unflatten", shape=dims, output=name, allowzero=1)
    g.output(logits if same else g.cast(logits, wide, "head.float32", output="logits"))
