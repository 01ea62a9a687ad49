# SPDX-License-Identifier: Apache-2.0
"""How a target says "attention", "rotary embedding", "norm" and "cache": one dialect object per target.

Family builders call these methods and stay the same for every target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...errors import NqEdgeError
from ...models import DecoderConfig
from .graph import GraphBuilder, dims_of
from .rotary import rotary_tables

__all__ = ["DIALECTS", "DecoderInputs", "Dialect", "decomposed_rms_norm", "dialect_named", "rotary_initializers"]

#: Dialect name -> its module. Listed here so that the command line can offer the names without importing them.
DIALECTS = {"ort": "dialect_ort", "onnx24": "dialect_onnx24", "trt103": "dialect_trt103"}


@dataclass(frozen=True)
class DecoderInputs:
    """Values that every block's attention needs.

    Attributes:
        input_ids: int64 [batch, sequence].
        attention_mask: int64 [batch, total].
        past_key: a key cache [batch, kv_heads, capacity, head_dim].
        dtype: activation type.
        max_length: rows of the rotary tables, tokens.
    """

    input_ids: ir.Value
    attention_mask: ir.Value
    past_key: ir.Value
    dtype: ir.DataType
    max_length: int


class Dialect(ABC):
    """A target's vocabulary. One object serves one graph: `prepare` adds the nodes that all blocks share.

    Attributes:
        name: its name on the command line and in manifests.
        opsets: domain -> version of the model's imports, the operator's own excluded.
        backend_versions: lowest and highest version of its runtime seen to run it; highest may be "".
        in_place: the graph updates the cache; otherwise `present.*` hold the new rows only, for the runtime to copy.
    """

    name: str
    opsets: Mapping[str, int]
    backend_versions: tuple[str, str]
    in_place: bool = True

    @abstractmethod
    def check(self, config: DecoderConfig) -> None:
        """Refuse what the target cannot run.

        Raises:
            NqEdgeError: NQ-ARCH with the constraint and the value.
        """

    @abstractmethod
    def prepare(self, g: GraphBuilder, config: DecoderConfig, inputs: DecoderInputs) -> None:
        """Add what all blocks share: lengths, positions, masks, rotary tables."""

    @abstractmethod
    def rms_norm(self, g: GraphBuilder, name: str, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        """RMSNorm over the last axis; statistics in float32."""

    @abstractmethod
    def add_rms_norm(
        self, g: GraphBuilder, name: str, x: ir.Value, skip: ir.Value, weight: ir.Value, epsilon: float, total: str
    ) -> tuple[ir.Value, ir.Value]:
        """x + skip, called `total`, and its RMSNorm; returns (normed, sum)."""

    @abstractmethod
    def attention(
        self,
        g: GraphBuilder,
        name: str,
        projections: tuple[ir.Value, ir.Value, ir.Value],
        past: tuple[ir.Value, ir.Value],
        present_names: tuple[str, str],
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Rotate queries and keys, write keys and values into the cache, attend causally.

        Args:
            g: the graph.
            name: module path of the attention.
            projections: query [batch, sequence, heads * head_dim], key and value [.., kv_heads * head_dim].
            past: key and value cache [batch, kv_heads, capacity, head_dim].
            present_names: names of the updated caches.

        Returns:
            Attention output [batch, sequence, heads * head_dim] and the two updated caches.
        """


def dialect_named(name: str) -> Dialect:
    """A fresh dialect object.

    Raises:
        NqEdgeError: NQ-OPTION for an unknown name.
    """
    import importlib

    if name not in DIALECTS:
        raise NqEdgeError("NQ-OPTION", f"dialect {name!r} is not one of {', '.join(DIALECTS)}.")
    dialect: Dialect = importlib.import_module(f".{DIALECTS[name]}", __package__).DIALECT()
    return dialect


def rotary_initializers(g: GraphBuilder, config: DecoderConfig, inputs: DecoderInputs) -> tuple[ir.Value, ir.Value]:
    """Cosine and sine tables [max_length, head_dim / 2] in the activation type."""
    cosines, sines = rotary_tables(config.rotary, config.head_dim, inputs.max_length)
    return (
        g.initializer("rotary.cos", cosines, inputs.dtype),
        g.initializer("rotary.sin", sines, inputs.dtype),
    )


def decomposed_rms_norm(
    g: GraphBuilder, name: str, x: ir.Value, weight: ir.Value, epsilon: float, opset: int = 18
) -> ir.Value:
    """RMSNorm (Zhang and Sennrich 2019, eq. 4) in basic operators, statistics in float32.

    ONNX Runtime fuses the float32 form into one kernel. Its fused operator is not emitted directly: it sits in the
    default domain under a name that ONNX does not define, so that `onnx.checker` refuses files with it.
    """
    assert x.dtype is not None
    wide = g.cast(x, ir.DataType.FLOAT, f"{name}.widen")
    reduced = [*dims_of(x)[:-1], 1]
    square = g.node("Mul", [wide, wide], f"{name}.square")
    # The axes moved from an attribute to an input in opset 18.
    if opset < 18:
        mean = g.node("ReduceMean", [square], f"{name}.mean", shape=reduced, keepdims=1, axes=[-1])
    else:
        mean = g.node("ReduceMean", [square, g.integers([-1])], f"{name}.mean", shape=reduced, keepdims=1)
    offset = g.initializer(f"constant.epsilon.{epsilon!r}", np.asarray(epsilon, np.float32))
    root = g.node("Sqrt", [g.node("Add", [mean, offset], f"{name}.offset")], f"{name}.root")
    normed = g.cast(g.node("Div", [wide, root], f"{name}.divide"), x.dtype, f"{name}.narrow")
    return g.node("Mul", [normed, weight], name)
