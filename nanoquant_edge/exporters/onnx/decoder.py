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
from .activations import silu
from .dialects.base import DecoderInputs, Dialect
from .embedding_and_head import embed_tokens, emit_head
from .graph_builder import Dims, GraphBuilder
from .norms import Norm, norm_named
from .operator import LinearForm, emit_linears
from .weights import WeightSource

__all__ = ["build_decoder"]


def build_decoder(
    g: GraphBuilder,
    config: DecoderConfig,
    weights: WeightSource,
    dialect: Dialect,
    dtype: ir.DataType,
    max_length: int,
    capacity: int | None = None,
    form: LinearForm = LinearForm(),  # noqa: B008 (frozen)
    codes: bool = False,
) -> None:
    """Add the whole decoder to a graph.

    Args:
        g: an empty graph.
        config: sizes and options.
        weights: tensors by Hugging Face name.
        dialect: the target's operators.
        dtype: type of activations and cache.
        max_length: longest context in tokens.
        capacity: fixed number of cache slots; None makes it symbolic.
        form: layout of the packed words, and whether projections of one input are grouped.
        codes: quantized tables stay codes, for our operators; else they are widened.
    """
    integer = ir.DataType.INT64
    ids = g.input(INPUT_IDS, integer, ["batch", "sequence"])
    mask = g.input(ATTENTION_MASK, integer, ["batch", "total"])
    chosen = g.input(LOGITS_INDICES, integer, ["batch", "positions"])
    cache: Dims = ["batch", config.num_kv_heads, capacity or "capacity", config.head_dim]
    caches = [g.input(PAST + name, dtype, cache) for name in cache_names(config.num_layers)]
    past = list(zip(caches[::2], caches[1::2], strict=True))
    dialect.prepare(g, config, DecoderInputs(ids, mask, past[0][0], dtype, max_length))
    blocks = _Blocks(g, config, weights, dialect, dtype, form)
    family = config.structure
    residual = embed_tokens(g, config, weights, dialect, ids, dtype, codes)
    first = blocks.norm(0, family.attention_norm)
    normed = dialect.norm(g, first.name, residual, first)
    presents: list[ir.Value] = []
    for block in range(config.num_layers):
        attended, updated = blocks.attention(block, normed, past[block])
        presents += updated
        before_feed = blocks.norm(block, family.feed_norm)
        attention = f"block.{block}.attention"
        normed, residual = dialect.add_norm(g, before_feed.name, attended, residual, before_feed, attention)
        fed = blocks.feed_forward(block, normed)
        total = block_output(block)
        if block + 1 < config.num_layers:
            following = blocks.norm(block + 1, family.attention_norm)
            normed, residual = dialect.add_norm(g, following.name, fed, residual, following, total)
        else:
            residual = g.node("Add", [fed, residual], f"{family.blocks}.{block}.sum", output=total)
    final = norm_named(g, config, weights, family.final_norm, dtype)
    emit_head(g, config, weights, dialect, residual, chosen, final, codes)
    for present in presents:
        g.output(present)


class _Blocks:
    """The two halves of a block, without the sums around them."""

    def __init__(
        self,
        g: GraphBuilder,
        config: DecoderConfig,
        weights: WeightSource,
        dialect: Dialect,
        dtype: ir.DataType,
        form: LinearForm,
    ) -> None:
        self._g, self._config, self._weights = g, config, weights
        self._dialect, self._dtype, self._form = dialect, dtype, form
        self._family = config.structure

    def norm(self, block: int, name: str) -> Norm:
        """A norm inside a block."""
        path = f"{self._family.blocks}.{block}.{name}"
        return norm_named(self._g, self._config, self._weights, path, self._dtype)

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
        attended, *updated = self._dialect.attention(self._g, name, block, (query, key, value), past, presents)
        (projected,) = self._linears(block, name, (family.output,), attended)
        return self._out_norm(block, family.attention_out_norm, projected), (updated[0], updated[1])

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
        layers = {path: self._weights.layer(path) for path in paths}
        return emit_linears(self._g, f"{parent}.projections", x, layers, self._form)

    def _activation(self, name: str, x: ir.Value) -> ir.Value:
        if self._config.activation == "gelu_tanh":
            return self._dialect.gelu_tanh(self._g, name, x)
        if self._config.activation == "relu":
            return self._g.node("Relu", [x], f"{name}.relu")
        return silu(self._g, name, x)

    def _out_norm(self, block: int, name: str, x: ir.Value) -> ir.Value:
        if not name:
            return x
        norm = self.norm(block, name)
        return self._dialect.norm(self._g, norm.name, x, norm)

    def _head_norm(self, block: int, name: str, x: ir.Value, heads: int) -> ir.Value:
        """Norm each head of [batch, sequence, heads * head_dim]."""
        g, norm, width = self._g, self.norm(block, name), self._config.head_dim
        dims: Dims = ["batch", "sequence", heads, width]
        split = g.node("Reshape", [x, g.integers([0, 0, heads, width])], f"{norm.name}.split", shape=dims)
        normed = self._dialect.norm(g, norm.name, split, norm)
        merged: Dims = ["batch", "sequence", heads * width]
        return g.node("Reshape", [normed, g.integers([0, 0, heads * width])], f"{norm.name}.merge", shape=merged)
