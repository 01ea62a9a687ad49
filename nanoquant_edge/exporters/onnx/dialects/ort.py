# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's own operators: GroupQueryAttention with rotary embedding and an in-place cache, fused add + norm.

`local_window_size` = W lets a position see W tokens in ONNX Runtime 1.31 and W + 1 in 1.23.2 (seen on the CPU). So
float32 graphs, which are for CPUs, also carry a bias that masks everything outside of the window. Graphs of 16 bits do
not, because the CUDA kernel takes no bias; with a window they ask for a runtime that counts as 1.31 does.

Where this package's CPU kernels run the graph, its own attention takes the place of GroupQueryAttention, which needs 60
to 550 microseconds a token and block for what takes 10 (docs/notes/cpu.md).
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from ....errors import NqEdgeError
from ....formats.graph import SLOTS
from ....models import DecoderConfig
from ...options import GraphOptions
from ..graph_builder import Dims, GraphBuilder, dims_of
from ..norms import Norm, decomposed_norm
from .base import Attended, AttentionCall, DecoderInputs, Dialect, Emitter
from .capped_attention import MASKED
from .nanoquant_attention import Places, emit_attention

__all__ = ["DIALECT", "OrtDialect", "OrtEmitter"]

_MICROSOFT = "com.microsoft"
#: Lowest version seen to run these graphs, and lowest one seen to count the window as the models do.
_LOWEST, _WINDOWED = ("1.23", ""), ("1.31", "")


class OrtEmitter(Emitter):
    """See `Emitter`."""

    def __init__(self, g: GraphBuilder, config: DecoderConfig, inputs: DecoderInputs, options: GraphOptions) -> None:
        super().__init__(g, config, inputs, options)
        # Sequence lengths as GroupQueryAttention wants them: last valid position per row, and the longest total.
        mask, integer = inputs.attention_mask, ir.DataType.INT32
        rows = dims_of(mask)[:1]
        self._valid = g.node("ReduceSum", [mask, g.integers([1])], "lengths.valid", shape=rows, keepdims=0)
        last = g.node("Sub", [self._valid, g.integers(1)], "lengths.last")
        shape = g.node("Shape", [mask], "lengths.shape", dtype=ir.DataType.INT64, shape=[2])
        self._total = g.node("Gather", [shape, g.integers(1)], "lengths.longest", shape=[])
        self._lengths = [g.cast(last, integer, "lengths.last32"), g.cast(self._total, integer, "lengths.longest32")]
        self._tables = self._rotary_tables()
        self._input_ids = inputs.input_ids
        self._ours = options.own_attention(config)
        self._slots = g.optional_input(SLOTS, np.zeros(0, np.int32), ["tokens"]) if self._ours else None
        self._bias: ir.Value | None = None
        if any(self._windows) and self._dtype == ir.DataType.FLOAT and not self._ours:
            self._bias = self._window_bias(max(self._windows))

    def positions(self) -> ir.Value:
        """See `Emitter.positions`."""
        g = self._g
        shape = g.node("Shape", [self._input_ids], "positions.shape", dtype=ir.DataType.INT64, shape=[2])
        new = g.node("Gather", [shape, g.integers(1)], "positions.new", shape=[])
        before = g.node("Sub", [self._valid, new], "positions.before")
        # A prompt padded on the right has fewer valid tokens than columns: it starts at 0 all the same.
        start = g.node("Max", [before, g.integers(0)], "positions.first")
        column = g.node("Unsqueeze", [start, g.integers([1])], "positions.start", shape=["batch", 1])
        steps = g.node("Range", [g.integers(0), new, g.integers(1)], "positions.steps", shape=["sequence"])
        return g.node("Add", [column, steps], "positions", shape=["batch", "sequence"])

    def _window_bias(self, window: int) -> ir.Value:
        """[batch, 1, sequence, total]: 0 inside of the window, very negative before it."""
        g = self._g
        dims: Dims = ["batch", 1, "sequence", "total"]
        rows = g.node("Unsqueeze", [self.positions(), g.integers([1, 3])], "window.rows", shape=[*dims[:3], 1])
        first = g.node("Sub", [rows, g.integers(window - 1)], "window.first")
        slots = g.node("Range", [g.integers(0), self._total, g.integers(1)], "window.slots", shape=["total"])
        seen = g.node("GreaterOrEqual", [slots, first], "window.seen", dtype=ir.DataType.BOOL, shape=dims)
        zero = g.initializer("constant.float.0", np.zeros(1, np.float32))
        masked = g.initializer("constant.float.masked", np.full(1, MASKED, np.float32))
        return g.node("Where", [seen, zero, masked], "window", dtype=ir.DataType.FLOAT)

    def norm(self, name: str, x: ir.Value, norm: Norm) -> ir.Value:
        """See `Emitter.norm`."""
        if norm.bias is None:
            return decomposed_norm(self._g, name, x, norm)
        inputs = [x, norm.weight, norm.bias]
        return self._g.node("LayerNormalization", inputs, name, axis=-1, epsilon=norm.epsilon, stash_type=1)

    def add_norm(self, x: ir.Value, skip: ir.Value, norm: Norm, total: str) -> tuple[ir.Value, ir.Value]:
        """See `Emitter.add_norm`."""
        assert x.dtype is not None
        dims = dims_of(x)
        outputs = [(f"{norm.name}.output", x.dtype, dims), None, None, (total, x.dtype, dims)]
        kind, inputs = "SkipSimplifiedLayerNormalization", [x, skip, norm.weight]
        if norm.bias is not None:
            kind, inputs = "SkipLayerNormalization", [*inputs, norm.bias]
        values = self._g.nodes(kind, inputs, norm.name, outputs, _MICROSOFT, epsilon=norm.epsilon)
        return values[0], values[3]

    def gelu_tanh(self, name: str, x: ir.Value) -> ir.Value:
        """See `Emitter.gelu_tanh`."""
        return self._g.node("FastGelu", [x], f"{name}.gelu", domain=_MICROSOFT)

    def attention(self, call: AttentionCall) -> Attended:
        """See `Emitter.attention`."""
        config = self._config
        assert call.query.dtype is not None
        rotary, window = config.rotary_of(call.block), self._windows[call.block]
        if self._ours:
            assert rotary is not None
            assert self._slots is not None
            places = Places(self._lengths[0], self._slots, *self._tables[rotary])
            return emit_attention(self._g, call, config, window, places)
        outputs = [(f"{call.name}.output", call.query.dtype, dims_of(call.query))]
        outputs += [(present, call.query.dtype, dims_of(call.past[0])) for present in call.present_names]
        inputs: list[ir.Value | None] = [call.query, call.key, call.value, *call.past, *self._lengths]
        inputs += [None, None] if rotary is None else self._tables[rotary]
        options: dict[str, float] = {"local_window_size": window} if window else {}
        if config.attention_cap is not None:
            options["softcap"] = config.attention_cap
        inputs += [None, self._bias if window else None]  # positions: those of the lengths
        while inputs[-1] is None:
            inputs.pop()
        output, key, value = self._g.nodes(
            "GroupQueryAttention",
            inputs,
            call.name,
            outputs,
            _MICROSOFT,
            num_heads=config.num_heads,
            kv_num_heads=config.num_kv_heads,
            scale=config.attention_scale,
            do_rotary=int(rotary is not None),
            rotary_interleaved=0,
            **options,
        )
        return Attended(output, (key, value))


class OrtDialect(Dialect):
    """Operators of domain com.microsoft (ONNX Runtime docs/ContribOperators.md) and opset 18."""

    name = "ort"
    opsets = MappingProxyType({"": 18, _MICROSOFT: 1})
    emitter = OrtEmitter

    def check(self, config: DecoderConfig) -> None:
        """GroupQueryAttention rotates heads of a multiple of 16 channels only."""
        if config.head_dim % 16:
            raise NqEdgeError(
                "NQ-ARCH",
                f"head_dim {config.head_dim} is not a multiple of 16, which ONNX Runtime's attention needs.",
                "Export with --dialect onnx24.",
            )

    def backend_versions(self, config: DecoderConfig, options: GraphOptions) -> tuple[str, str]:
        """See `Dialect.backend_versions`."""
        length = options.length(config)
        windowed = any(config.window_of(block, length) for block in range(config.num_layers))
        return _WINDOWED if windowed and options.dtype != "float32" else _LOWEST


DIALECT = OrtDialect()
