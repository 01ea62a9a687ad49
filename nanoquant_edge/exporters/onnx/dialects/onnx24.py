# SPDX-License-Identifier: Apache-2.0
"""Standard operators of opset 24: Attention, RotaryEmbedding, RMSNormalization and TensorScatter.

TensorRT 10.15 and later and TensorRT for RTX parse these; TensorScatter becomes an in-place cache update there. So
Attention has one output, no input is omitted, and the cache is not given to Attention as `past_key`: that form would
return a longer cache instead of updating one. Seen with TensorRT for RTX 1.7.1, with dense products in place of the
compressed layers: float16 and bfloat16 graphs parse and build when the cache's capacity is fixed (`capacity` of
`build_model`), and are refused when it is symbolic; a float32 graph parses but its Attention has no kernel there.
ONNX Runtime's CPU kernels run the graph too.

Slots of the cache that hold no token yet are masked, not skipped: they must be finite (zeros) when a sequence starts.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from ....models import DecoderConfig
from ...options import GraphOptions
from ..graph_builder import Dims, GraphBuilder, dims_of
from ..norms import Norm
from .base import Attended, AttentionCall, DecoderInputs, Dialect, Emitter
from .capped_attention import capped_attention

__all__ = ["DIALECT", "Onnx24Dialect", "Onnx24Emitter"]


class Onnx24Emitter(Emitter):
    """See `Emitter`."""

    def __init__(self, g: GraphBuilder, config: DecoderConfig, inputs: DecoderInputs, options: GraphOptions) -> None:
        super().__init__(g, config, inputs, options)
        # Write position per row, positions of the new tokens, and the causal mask over the whole cache.
        self._tables = self._rotary_tables()
        valid = g.node(
            "ReduceSum", [inputs.attention_mask, g.integers([1])], "lengths.valid", shape=["batch"], keepdims=0
        )
        new = _size(g, inputs.input_ids, 1, "lengths.new")
        before = g.node("Sub", [valid, new], "lengths.before")
        # A prompt padded on the right has fewer valid tokens than columns: it starts at 0 all the same.
        self._start = g.node("Max", [before, g.integers(0)], "lengths.start")
        steps = self._count(g, new, "positions.steps", "sequence")
        column = g.node("Unsqueeze", [self._start, g.integers([1])], "positions.start", shape=["batch", 1])
        self._positions = g.node("Add", [column, steps], "positions", shape=["batch", "sequence"])
        capacity = dims_of(inputs.past_key)[2]
        slots = self._count(g, _size(g, inputs.past_key, 2, "mask.capacity"), "mask.slots", capacity)
        rows = g.node(
            "Unsqueeze", [self._positions, g.integers([1, 3])], "mask.rows", shape=["batch", 1, "sequence", 1]
        )
        dims: Dims = ["batch", 1, "sequence", capacity]
        mask = g.node("LessOrEqual", [slots, rows], "mask", dtype=ir.DataType.BOOL, shape=dims)
        self._masks = {0: mask}
        for window in set(self._windows) - {0}:
            first = g.node("Sub", [rows, g.integers(window)], "mask.local.before")
            near = g.node("Greater", [slots, first], "mask.local.near", dtype=ir.DataType.BOOL, shape=dims)
            self._masks[window] = g.node("And", [mask, near], "mask.local")

    @staticmethod
    def _count(g: GraphBuilder, length: ir.Value, name: str, dim: int | str | None) -> ir.Value:
        return g.node("Range", [g.integers(0), length, g.integers(1)], name, shape=[dim])

    def positions(self) -> ir.Value:
        """See `Emitter.positions`."""
        return self._positions

    def norm(self, name: str, x: ir.Value, norm: Norm) -> ir.Value:
        """See `Emitter.norm`."""
        settings: dict[str, Any] = {"axis": -1, "epsilon": norm.epsilon, "stash_type": 1}
        if norm.bias is None:
            return self._g.node("RMSNormalization", [x, norm.weight], name, **settings)
        return self._g.node("LayerNormalization", [x, norm.weight, norm.bias], name, **settings)

    def gelu_tanh(self, name: str, x: ir.Value) -> ir.Value:
        """See `Emitter.gelu_tanh`."""
        return self._g.node("Gelu", [x], f"{name}.gelu", approximate="tanh")

    def attention(self, call: AttentionCall) -> Attended:
        """See `Emitter.attention`."""
        g, config, name = self._g, self._config, call.name
        query = self._rotate(f"{name}.query", call.block, call.query, config.num_heads)
        key = self._rotate(f"{name}.key", call.block, call.key, config.num_kv_heads)
        value = self._heads(f"{name}.value", call.value, config.num_kv_heads)
        present = [
            g.node(
                "TensorScatter",
                [cache, update, self._start],
                f"{name}.{part}.cache",
                output=present_name,
                axis=2,
                mode="linear",
            )
            for part, cache, update, present_name in zip(
                ("key", "value"), call.past, (key, value), call.present_names, strict=True
            )
        ]
        mask = self._masks[self._windows[call.block]]
        if config.attention_cap is None:
            attended = g.node("Attention", [query, *present, mask], name, scale=config.attention_scale)
        else:
            attended = capped_attention(g, name, config, query, (present[0], present[1]), mask)
        width = config.num_heads * config.head_dim
        rows = g.node(
            "Transpose",
            [attended],
            f"{name}.rows",
            shape=["batch", "sequence", config.num_heads, config.head_dim],
            perm=[0, 2, 1, 3],
        )
        flat = g.node("Reshape", [rows, g.integers([0, 0, width])], f"{name}.merge", shape=["batch", "sequence", width])
        return Attended(flat, (present[0], present[1]))

    def _heads(self, name: str, x: ir.Value, heads: int) -> ir.Value:
        """[batch, sequence, heads * head_dim] -> [batch, heads, sequence, head_dim]."""
        g, width = self._g, self._config.head_dim
        batch, sequence, _ = dims_of(x)
        split = g.node(
            "Reshape", [x, g.integers([0, 0, heads, width])], f"{name}.split", shape=[batch, sequence, heads, width]
        )
        return g.node("Transpose", [split], f"{name}.heads", shape=[batch, heads, sequence, width], perm=[0, 2, 1, 3])

    def _rotate(self, name: str, block: int, x: ir.Value, heads: int) -> ir.Value:
        split, rotary = self._heads(name, x, heads), self._config.rotary_of(block)
        if rotary is None:
            return split
        inputs = [split, *self._tables[rotary], self._positions]
        return self._g.node("RotaryEmbedding", inputs, f"{name}.rotary", interleaved=0)


def _size(g: GraphBuilder, value: ir.Value, axis: int, name: str) -> ir.Value:
    """One dimension of a value, an int64 scalar."""
    rank = len(dims_of(value))
    shape = g.node("Shape", [value], f"{name}.shape", dtype=ir.DataType.INT64, shape=[rank])
    return g.node("Gather", [shape, g.integers(axis)], name, shape=[])


class Onnx24Dialect(Dialect):
    """Default domain only, opset 24."""

    name = "onnx24"
    opsets = MappingProxyType({"": 24})
    emitter = Onnx24Emitter

    def check(self, config: DecoderConfig) -> None:
        """Everything that a `DecoderConfig` describes can be expressed."""

    def backend_versions(self, config: DecoderConfig, options: GraphOptions) -> tuple[str, str]:
        """See `Dialect.backend_versions`."""
        return "1.31", ""


DIALECT = Onnx24Dialect()
