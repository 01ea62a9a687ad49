# SPDX-License-Identifier: Apache-2.0
"""TensorRT 10.3 (JetPack 6.2): opset 17, attention, rotary embedding and norm taken apart.

Its ONNX parser knows none of RMSNormalization, RotaryEmbedding, Attention and TensorScatter, and a TensorRT network of
that version cannot update a tensor in place. Passing the cache through the graph (Concat or ScatterND) would read and
write all of it for every token, as many bytes as the packed weights of a small model. So the cache is an input that is
only read, and `present.*` are the new rows alone, [batch, kv_heads, sequence, head_dim]: the runtime copies them into
the cache at row `max(valid - sequence, 0)` of each sequence. Attention over old and new keys shares one softmax:
scores against the cache and against the new keys are joined, not the keys.

Slots of the cache that hold no token yet are masked, not skipped: they must be finite (zeros) when a sequence starts.
Operators: onnx-tensorrt's docs/operators.md, see `tensorrt_10_3_operators`.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from ....models import DecoderConfig
from ...options import GraphOptions
from ..activations import decomposed_gelu_tanh, soft_cap
from ..graph_builder import GraphBuilder, dims_of
from ..norms import Norm, decomposed_norm
from .base import Attended, AttentionCall, DecoderInputs, Dialect, Emitter
from .capped_attention import MASKED

__all__ = ["DIALECT", "TensorRT103Dialect", "TensorRT103Emitter"]

_FLOAT, _INTEGER = ir.DataType.FLOAT, ir.DataType.INT32
_OPSET = 17


class TensorRT103Emitter(Emitter):
    """See `Emitter`."""

    def __init__(self, g: GraphBuilder, config: DecoderConfig, inputs: DecoderInputs, options: GraphOptions) -> None:
        super().__init__(g, config, inputs, options)
        # Cosines and sines of the new positions, and what is added to the scores of old and of new slots.
        # Positions are int32 and the mask is summed as float32 (exact below 2**24): the parser's table lists int64 for
        # neither comparisons nor ReduceSum.
        mask = g.cast(inputs.attention_mask, _FLOAT, "lengths.mask")
        summed = g.node("ReduceSum", [mask, g.integers([1])], "lengths.summed", shape=["batch"], keepdims=0)
        valid = g.cast(summed, _INTEGER, "lengths.valid")
        new = _size(g, inputs.input_ids, 1, "lengths.new")
        before = g.node("Sub", [valid, new], "lengths.before")
        # A prompt padded on the right has fewer valid tokens than columns: it starts at 0 all the same.
        start = g.node("Max", [before, _number(g, 0)], "lengths.start")
        column = g.node("Unsqueeze", [start, g.integers([1])], "positions.start", shape=["batch", 1])
        steps = _count(g, new, "positions.steps", "sequence")
        positions = g.node("Add", [column, steps], "positions", shape=["batch", "sequence"])
        self._positions = positions
        half = config.head_dim // 2
        self._rotary = {}
        for rotary, tables in self._rotary_tables().items():
            label = "positions" if rotary == config.rotary else "positions.local"
            self._rotary[rotary] = [
                self._rows_of(table, f"{label}.{name}", half)
                for name, table in zip(("cos", "sin"), tables, strict=True)
            ]
        self._capacity = dims_of(inputs.past_key)[2]
        self._biases = self._masks(column, steps, inputs.past_key)
        self._split = [g.integers([0]), self._extent(inputs.past_key), g.integers([(1 << 31) - 1]), g.integers([-1])]

    def _masks(self, start: ir.Value, steps: ir.Value, past: ir.Value) -> dict[int, tuple[ir.Value, ir.Value]]:
        """Window, 0 for none -> biases of the scores against old slots and against new tokens.

        Query heads that share a key head lie one below the other, so what depends on the query is repeated for each.
        """
        g, boolean = self._g, ir.DataType.BOOL
        groups = self._config.num_heads // self._config.num_kv_heads
        slots = _count(g, _size(g, past, 2, "mask.capacity"), "mask.slots", self._capacity)
        filled = g.node("Less", [slots, start], "mask.filled", boolean, ["batch", self._capacity])
        row = g.node("Unsqueeze", [steps, g.integers([1])], "mask.row", shape=["sequence", 1])
        square = ["sequence", "sequence"]
        causal = g.node("LessOrEqual", [steps, row], "mask.causal", boolean, square)

        def new_bias(allowed: ir.Value, label: str) -> ir.Value:
            copies = [self._bias(allowed, f"{label}.bias")] * groups
            return g.node("Concat", copies, label, shape=["queries", "sequence"], axis=0)

        old = g.node(
            "Unsqueeze",
            [self._bias(filled, "mask.old.bias"), g.integers([1, 2])],
            "mask.old",
            shape=["batch", 1, 1, self._capacity],
        )
        biases = {0: (old, new_bias(causal, "mask.new"))}
        for window in set(self._windows) - {0}:
            width = _number(g, window)
            dims = ["batch", "sequence", self._capacity]
            rows = g.node(
                "Unsqueeze", [self._positions, g.integers([2])], "mask.local.rows", shape=["batch", "sequence", 1]
            )
            first = g.node("Sub", [rows, width], "mask.local.before")
            near = g.node("Greater", [slots, first], "mask.local.near", boolean, dims)
            held = g.node(
                "Unsqueeze", [filled, g.integers([1])], "mask.local.filled", shape=["batch", 1, self._capacity]
            )
            both = self._bias(g.node("And", [near, held], "mask.local.both"), "mask.local.old.bias")
            tall = g.node(
                "Concat", [both] * groups, "mask.local.old.rows", shape=["batch", "queries", self._capacity], axis=1
            )
            local = g.node(
                "Unsqueeze", [tall, g.integers([1])], "mask.local.old", shape=["batch", 1, "queries", self._capacity]
            )
            recent = g.node(
                "Greater", [steps, g.node("Sub", [row, width], "mask.local.row")], "mask.local.recent", boolean, square
            )
            banded = g.node("And", [causal, recent], "mask.local.causal")
            biases[window] = (local, new_bias(banded, "mask.local.new"))
        return biases

    def _extent(self, past: ir.Value) -> ir.Value:
        """Capacity as a vector of one number, constant where it is fixed."""
        if isinstance(self._capacity, int):
            return self._g.integers([self._capacity])
        g = self._g
        shape = g.node("Shape", [past], "mask.extent.shape", dtype=ir.DataType.INT64, shape=[4])
        return g.node("Gather", [shape, g.integers([2])], "mask.extent", shape=[1])

    def _rows_of(self, table: ir.Value, name: str, width: int) -> ir.Value:
        """Rows of a table at the new positions, for all heads."""
        g = self._g
        rows = g.node("Gather", [table, self._positions], f"{name}.rows", shape=["batch", "sequence", width])
        return g.node("Unsqueeze", [rows, g.integers([1])], name, shape=["batch", 1, "sequence", width])

    def _bias(self, allowed: ir.Value, name: str) -> ir.Value:
        """0 where a slot is seen, very negative elsewhere."""
        g = self._g
        zero = g.initializer("constant.float.0", np.zeros(1, np.float32))
        masked = g.initializer("constant.float.masked", np.full(1, MASKED, np.float32))
        return g.node("Where", [allowed, zero, masked], name, dtype=_FLOAT)

    def positions(self) -> ir.Value:
        """See `Emitter.positions`."""
        return self._positions

    def norm(self, name: str, x: ir.Value, norm: Norm) -> ir.Value:
        """See `Emitter.norm`."""
        return decomposed_norm(self._g, name, x, norm, opset=_OPSET)

    def gelu_tanh(self, name: str, x: ir.Value) -> ir.Value:
        """See `Emitter.gelu_tanh`."""
        return decomposed_gelu_tanh(self._g, name, x)

    def attention(self, call: AttentionCall) -> Attended:
        """See `Emitter.attention`; the two caches returned are the new rows."""
        g, config, name = self._g, self._config, call.name
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
        kind = call.query.dtype
        assert kind is not None
        rotary = config.rotary_of(call.block)
        tables = [] if rotary is None else self._rotary[rotary]
        query = self._rotate(f"{name}.query", call.query, heads, tables)
        key = self._rotate(f"{name}.key", call.key, kv_heads, tables, call.present_names[0])
        value = self._heads(f"{name}.value", call.value, kv_heads, call.present_names[1])
        scale = g.initializer("constant.scale", np.full(1, config.attention_scale, np.float32), kind)
        scaled = g.node("Mul", [query, scale], f"{name}.scaled")
        stacked = g.node(
            "Reshape",
            [scaled, g.integers([0, kv_heads, -1, width])],
            f"{name}.stacked",
            shape=["batch", kv_heads, "queries", width],
        )
        masks = self._biases[self._windows[call.block]]
        old = self._scores(f"{name}.old", stacked, call.past[0], masks[0], self._capacity)
        new = self._scores(f"{name}.new", stacked, key, masks[1], "sequence")
        rows: list[int | str | None] = ["batch", kv_heads, "queries"]
        joined = g.node("Concat", [old, new], f"{name}.scores", shape=[*rows, "slots"], axis=-1)
        weights = g.cast(g.node("Softmax", [joined], f"{name}.softmax", axis=-1), kind, f"{name}.weights")
        begin, extent, end, axis = self._split
        of_old = g.node("Slice", [weights, begin, extent, axis], f"{name}.old.weights", shape=[*rows, self._capacity])
        of_new = g.node("Slice", [weights, extent, end, axis], f"{name}.new.weights", shape=[*rows, "sequence"])
        parts = [
            g.node("MatMul", [share, values], f"{name}.{part}.values", shape=[*rows, width])
            for part, share, values in (("old", of_old, call.past[1]), ("new", of_new, value))
        ]
        attended = g.node("Add", parts, f"{name}.attended")
        split = g.node(
            "Reshape",
            [attended, g.integers([0, heads, -1, width])],
            f"{name}.unstacked",
            shape=["batch", heads, "sequence", width],
        )
        order = g.node(
            "Transpose", [split], f"{name}.rows", shape=["batch", "sequence", heads, width], perm=[0, 2, 1, 3]
        )
        flat = g.node(
            "Reshape", [order, g.integers([0, 0, heads * width])], name, shape=["batch", "sequence", heads * width]
        )
        return Attended(flat, (key, value))

    def _scores(self, name: str, query: ir.Value, key: ir.Value, bias: ir.Value, slots: int | str | None) -> ir.Value:
        """float32 scores [batch, kv_heads, queries, slots], masked."""
        g = self._g
        batch, heads, _, width = dims_of(key)
        turned = g.node("Transpose", [key], f"{name}.turned", shape=[batch, heads, width, slots], perm=[0, 1, 3, 2])
        dims = [batch, heads, "queries", slots]
        product = g.node("MatMul", [query, turned], f"{name}.product", shape=dims)
        wide = g.cast(product, _FLOAT, f"{name}.wide")
        if self._config.attention_cap is not None:
            wide = soft_cap(g, f"{name}.capped", wide, self._config.attention_cap)
        return g.node("Add", [wide, bias], f"{name}.masked")

    def _heads(self, name: str, x: ir.Value, heads: int, output: str | None = None) -> ir.Value:
        """[batch, sequence, heads * head_dim] -> [batch, heads, sequence, head_dim]."""
        g, width = self._g, self._config.head_dim
        batch, sequence, _ = dims_of(x)
        split = g.node(
            "Reshape", [x, g.integers([0, 0, heads, width])], f"{name}.split", shape=[batch, sequence, heads, width]
        )
        dims = [batch, heads, sequence, width]
        return g.node("Transpose", [split], f"{name}.heads", shape=dims, output=output, perm=[0, 2, 1, 3])

    def _rotate(
        self,
        name: str,
        projection: ir.Value,
        heads: int,
        tables: list[ir.Value],
        output: str | None = None,
    ) -> ir.Value:
        """Heads, with the rotary embedding of channel pairs (c, c + head_dim / 2), RoFormer section 3.4.2."""
        if not tables:
            return self._heads(name, projection, heads, output)
        g, x = self._g, self._heads(name, projection, heads)
        cosines, sines = tables
        half = self._config.head_dim // 2
        dims = [*dims_of(x)[:-1], half]
        axis = g.integers([-1])
        low = g.node("Slice", [x, g.integers([0]), g.integers([half]), axis], f"{name}.low", shape=dims)
        high = g.node("Slice", [x, g.integers([half]), g.integers([2 * half]), axis], f"{name}.high", shape=dims)

        def times(part: ir.Value, table: ir.Value, label: str) -> ir.Value:
            return g.node("Mul", [part, table], f"{name}.{label}")

        first = g.node("Sub", [times(low, cosines, "low.cos"), times(high, sines, "high.sin")], f"{name}.first")
        second = g.node("Add", [times(high, cosines, "high.cos"), times(low, sines, "low.sin")], f"{name}.second")
        return g.node("Concat", [first, second], f"{name}.rotary", shape=dims_of(x), output=output, axis=-1)


def _number(g: GraphBuilder, number: int) -> ir.Value:
    return g.initializer(f"constant.int32.scalar.{number}", np.asarray(number, np.int32))


def _count(g: GraphBuilder, length: ir.Value, name: str, dim: int | str | None) -> ir.Value:
    """int32 0, 1, ... below a length."""
    return g.node("Range", [_number(g, 0), length, _number(g, 1)], name, shape=[dim])


def _size(g: GraphBuilder, value: ir.Value, axis: int, name: str) -> ir.Value:
    """One dimension of a value, an int32 scalar."""
    shape = g.node("Shape", [value], f"{name}.shape", dtype=ir.DataType.INT64, shape=[len(dims_of(value))])
    return g.cast(g.node("Gather", [shape, g.integers(axis)], f"{name}.wide", shape=[]), _INTEGER, name)


class TensorRT103Dialect(Dialect):
    """Default domain only, opset 17."""

    name = "trt103"
    opsets = MappingProxyType({"": _OPSET})
    emitter = TensorRT103Emitter

    def check(self, config: DecoderConfig) -> None:
        """Everything that a `DecoderConfig` describes can be expressed."""

    def backend_versions(self, config: DecoderConfig, options: GraphOptions) -> tuple[str, str]:
        """See `Dialect.backend_versions`."""
        return "10.3", ""


DIALECT = TensorRT103Dialect()
