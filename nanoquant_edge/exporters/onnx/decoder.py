# SPDX-License-Identifier: Apache-2.0
"""The decoder graph of every family: blocks of attention and feed-forward network between norms.

What differs between families is in their description (`models.Family`, `DecoderConfig`). Nodes are named after module
paths, compressed layers' outputs `{module path}.output`, block outputs `block.{i}.output`: validation and runtimes rely
on these names.
"""

from __future__ import annotations

import onnx_ir as ir

from ...formats.graph import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS_INDICES,
    PAST,
    PRESENT,
    block_output,
    cache_names,
)
from ...models import DecoderConfig
from ..options import GraphOptions
from ..weights import WeightSource
from .activations import silu
from .assembly import Assembly
from .dialects.base import AttentionCall, DecoderInputs, Dialect
from .dtypes import ir_dtype
from .embedding_and_head import embed_tokens, emit_head
from .graph_builder import Dims, GraphBuilder
from .norms import Norm, norm_named
from .operator import emit_linears

__all__ = ["build_decoder"]


def build_decoder(
    g: GraphBuilder, config: DecoderConfig, weights: WeightSource, dialect: Dialect, options: GraphOptions
) -> None:
    """Add the whole decoder to a graph.

    Args:
        g: an empty graph.
        config: sizes and options.
        weights: tensors by Hugging Face name.
        dialect: the target's operators.
        options: the form of the graph.
    """
    integer = ir.DataType.INT64
    ids = g.input(INPUT_IDS, integer, ["batch", "sequence"])
    # With slots, a mask has a row for each token: another name than "batch", so that no two sizes pass for one.
    mask = g.input(ATTENTION_MASK, integer, ["sequences" if options.cpu_kernels else "batch", "total"])
    chosen = g.input(LOGITS_INDICES, integer, ["batch", "positions"])
    cache: Dims = ["batch", config.num_kv_heads, options.capacity or "capacity", config.head_dim]
    kept = ir_dtype(options.cache_dtype(config))
    caches = [g.input(PAST + name, kept, cache) for name in cache_names(config.num_layers)]
    past = list(zip(caches[::2], caches[1::2], strict=True))
    emitter = dialect.emitter(g, config, DecoderInputs(ids, mask, past[0][0]), options)
    assembly = Assembly(g, config, weights, options, emitter)
    blocks, family = _Blocks(assembly), config.structure
    residual = embed_tokens(assembly, ids)
    first = blocks.norm(0, family.attention_norm)
    normed = emitter.norm(first.name, residual, first)
    presents: list[ir.Value] = []
    for block in range(config.num_layers):
        attended, updated = blocks.attention(block, normed, past[block])
        presents += updated
        before_feed = blocks.norm(block, family.feed_norm)
        attention = f"block.{block}.attention"
        normed, residual = emitter.add_norm(attended, residual, before_feed, attention)
        fed = blocks.feed_forward(block, normed)
        total = block_output(block)
        if block + 1 < config.num_layers:
            following = blocks.norm(block + 1, family.attention_norm)
            normed, residual = emitter.add_norm(fed, residual, following, total)
        else:
            residual = g.node("Add", [fed, residual], f"{family.blocks}.{block}.sum", output=total)
    final = norm_named(g, config, weights, family.final_norm, assembly.dtype)
    emit_head(assembly, residual, chosen, final)
    for present in presents:
        g.output(present)


class _Blocks:
    """The two halves of a block, without the sums around them."""

    def __init__(self, assembly: Assembly) -> None:
        self._g, self._config, self._emitter = assembly.g, assembly.config, assembly.emitter
        self._assembly, self._family = assembly, assembly.config.structure

    def norm(self, block: int, name: str) -> Norm:
        """A norm inside a block."""
        path = f"{self._family.blocks}.{block}.{name}"
        return norm_named(self._g, self._config, self._assembly.weights, path, self._assembly.dtype)

    def attention(
        self, block: int, x: ir.Value, past: tuple[ir.Value, ir.Value]
    ) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
        """Normed hidden values -> what is added to the residual, and the two updated caches."""
        config, family = self._config, self._family
        name = f"{family.blocks}.{block}.self_attn"
        query, key, value = self._linears(block, name, (family.query, family.key, family.value), x)
        if family.head_norms:
            query = self._head_norm(block, "self_attn.q_norm", query, config.num_heads)
            key = self._head_norm(block, "self_attn.k_norm", key, config.num_kv_heads)
        presents = (f"{PRESENT}{block}.key", f"{PRESENT}{block}.value")
        attended = self._emitter.attention(AttentionCall(name, block, query, key, value, past, presents))
        (projected,) = self._linears(block, name, (family.output,), attended.output)
        return self._out_norm(block, family.attention_out_norm, projected), attended.caches

    def feed_forward(self, block: int, x: ir.Value) -> ir.Value:
        """Normed hidden values -> what is added to the residual."""
        g, family = self._g, self._family
        name = f"{family.blocks}.{block}.{family.up.rpartition('.')[0] or 'mlp'}"
        if family.gate:
            gate, up = self._linears(block, name, (family.gate, family.up), x)
            inner = g.node("Mul", [self._activation(name, gate), up], f"{name}.product")
        else:
            (up,) = self._linears(block, name, (family.up,), x)
            inner = self._activation(name, up)
        (down,) = self._linears(block, name, (family.down,), inner)
        return self._out_norm(block, family.feed_out_norm, down)

    def _linears(self, block: int, parent: str, parts: tuple[str, ...], x: ir.Value) -> list[ir.Value]:
        paths = [f"{self._family.blocks}.{block}.{part}" for part in parts]
        layers = {path: self._assembly.weights.layer(path) for path in paths}
        return emit_linears(self._g, f"{parent}.projections", x, layers, self._assembly.options)

    def _activation(self, name: str, x: ir.Value) -> ir.Value:
        if self._config.activation == "gelu_tanh":
            return self._emitter.gelu_tanh(name, x)
        if self._config.activation == "relu":
            return self._g.node("Relu", [x], f"{name}.relu")
        return silu(self._g, name, x)

    def _out_norm(self, block: int, name: str, x: ir.Value) -> ir.Value:
        if not name:
            return x
        norm = self.norm(block, name)
        return self._emitter.norm(norm.name, x, norm)

    def _head_norm(self, block: int, name: str, x: ir.Value, heads: int) -> ir.Value:
        """Norm each head of [batch, sequence, heads * head_dim]."""
        g, norm, width = self._g, self.norm(block, name), self._config.head_dim
        dims: Dims = ["batch", "sequence", heads, width]
        split = g.node("Reshape", [x, g.integers([0, 0, heads, width])], f"{norm.name}.split", shape=dims)
        normed = self._emitter.norm(norm.name, split, norm)
        merged: Dims = ["batch", "sequence", heads * width]
        return g.node("Reshape", [normed, g.integers([0, 0, heads * width])], f"{norm.name}.merge", shape=merged)
