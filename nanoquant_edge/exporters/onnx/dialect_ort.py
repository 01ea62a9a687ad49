# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's own operators: GroupQueryAttention with rotary embedding and an in-place cache, fused add + norm."""

from __future__ import annotations

from types import MappingProxyType

import onnx_ir as ir

from ...errors import NqEdgeError
from ...models import DecoderConfig
from .dialects import DecoderInputs, Dialect, decomposed_rms_norm, rotary_initializers
from .graph import GraphBuilder, dims_of

__all__ = ["DIALECT", "OrtDialect"]

_MICROSOFT = "com.microsoft"


class OrtDialect(Dialect):
    """Operators of domain com.microsoft (ONNX Runtime docs/ContribOperators.md) and opset 18."""

    name = "ort"
    opsets = MappingProxyType({"": 18, _MICROSOFT: 1})
    backend_versions = ("1.23", "")

    def check(self, config: DecoderConfig) -> None:
        """GroupQueryAttention rotates heads of a multiple of 16 channels only."""
        if config.head_dim % 16:
            raise NqEdgeError(
                "NQ-ARCH",
                f"head_dim {config.head_dim} is not a multiple of 16, which ONNX Runtime's attention needs.",
                "Export with --dialect onnx24.",
            )

    def prepare(self, g: GraphBuilder, config: DecoderConfig, inputs: DecoderInputs) -> None:
        """Sequence lengths as GroupQueryAttention wants them: last valid position per row, and the longest total."""
        mask, integer = inputs.attention_mask, ir.DataType.INT32
        valid = g.node("ReduceSum", [mask, g.integers([1])], "lengths.valid", shape=["batch"], keepdims=0)
        last = g.node("Sub", [valid, g.integers(1)], "lengths.last")
        shape = g.node("Shape", [mask], "lengths.shape", dtype=ir.DataType.INT64, shape=[2])
        total = g.node("Gather", [shape, g.integers(1)], "lengths.longest", shape=[])
        self._lengths = [g.cast(last, integer, "lengths.last32"), g.cast(total, integer, "lengths.longest32")]
        self._tables = list(rotary_initializers(g, config, inputs))
        self._config = config

    def rms_norm(self, g: GraphBuilder, name: str, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        """See `Dialect.rms_norm`."""
        return decomposed_rms_norm(g, name, x, weight, epsilon)

    def add_rms_norm(
        self, g: GraphBuilder, name: str, x: ir.Value, skip: ir.Value, weight: ir.Value, epsilon: float, total: str
    ) -> tuple[ir.Value, ir.Value]:
        """See `Dialect.add_rms_norm`."""
        assert x.dtype is not None
        dims = dims_of(x)
        outputs = [(f"{name}.output", x.dtype, dims), None, None, (total, x.dtype, dims)]
        values = g.nodes(
            "SkipSimplifiedLayerNormalization", [x, skip, weight], name, outputs, _MICROSOFT, epsilon=epsilon
        )
        return values[0], values[3]

    def attention(
        self,
        g: GraphBuilder,
        name: str,
        projections: tuple[ir.Value, ir.Value, ir.Value],
        past: tuple[ir.Value, ir.Value],
        present_names: tuple[str, str],
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """See `Dialect.attention`."""
        config, query = self._config, projections[0]
        assert query.dtype is not None
        outputs = [(f"{name}.output", query.dtype, dims_of(query))]
        outputs += [(present, query.dtype, dims_of(past[0])) for present in present_names]
        attended, key, value = g.nodes(
            "GroupQueryAttention",
            [*projections, *past, *self._lengths, *self._tables],
            name,
            outputs,
            _MICROSOFT,
            num_heads=config.num_heads,
            kv_num_heads=config.num_kv_heads,
            scale=config.head_dim**-0.5,
            do_rotary=1,
            rotary_interleaved=0,
        )
        return attended, key, value


DIALECT = OrtDialect
