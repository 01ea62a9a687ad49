# SPDX-License-Identifier: Apache-2.0
"""How a target says "attention", "rotary embedding", "norm" and "cache": one dialect object per target.

Family builders call these methods and stay the same for every target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ....errors import NqEdgeError
from ....models import DecoderConfig, RotaryConfig
from ..graph_builder import GraphBuilder
from ..norms import Norm
from ..rotary import rotary_tables

__all__ = ["DIALECTS", "DecoderInputs", "Dialect", "RotaryTables", "dialect_named", "rotary_initializers"]

#: Dialect name -> its module. Listed here so that the command line can offer the names without importing them.
DIALECTS = {"ort": "ort", "onnx24": "onnx24", "trt103": "tensorrt_10_3"}

#: Rotary embedding -> its cosine and sine tables.
RotaryTables = dict[RotaryConfig, tuple[ir.Value, ir.Value]]


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
        native: this package's CPU kernels run the graph, so that it may use their own attention.
        in_place: the graph updates the cache; otherwise `present.*` hold the new rows only, for the runtime to copy.
    """

    name: str
    opsets: Mapping[str, int]
    backend_versions: tuple[str, str]
    native: bool = False
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
    def positions(self, g: GraphBuilder) -> ir.Value:
        """Position of each new token [batch, sequence], an integer, for a learned position table."""

    @abstractmethod
    def norm(self, g: GraphBuilder, name: str, x: ir.Value, norm: Norm) -> ir.Value:
        """A norm over the last axis; statistics in float32."""

    def add_norm(
        self, g: GraphBuilder, name: str, x: ir.Value, skip: ir.Value, norm: Norm, total: str
    ) -> tuple[ir.Value, ir.Value]:
        """x + skip, called `total`, and its norm; returns (normed, sum)."""
        summed = g.node("Add", [x, skip], f"{name}.sum", output=total)
        return self.norm(g, name, summed, norm), summed

    @abstractmethod
    def gelu_tanh(self, g: GraphBuilder, name: str, x: ir.Value) -> ir.Value:
        """GELU in its tanh form; computed in x's type."""

    @abstractmethod
    def attention(
        self,
        g: GraphBuilder,
        name: str,
        block: int,
        projections: tuple[ir.Value, ir.Value, ir.Value],
        past: tuple[ir.Value, ir.Value],
        present_names: tuple[str, str],
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Rotate queries and keys, write keys and values into the cache, attend causally within the block's window.

        Args:
            g: the graph.
            name: module path of the attention.
            block: its number, which decides window and rotary embedding.
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


def rotary_initializers(g: GraphBuilder, config: DecoderConfig, inputs: DecoderInputs) -> RotaryTables:
    """Cosine and sine tables [max_length, head_dim / 2] in the activation type, for each embedding that a block has."""
    tables: RotaryTables = {}
    for label, rotary in (("rotary", config.rotary), ("rotary.local", config.local_rotary)):
        if rotary is not None:
            cosines, sines = rotary_tables(rotary, config.head_dim, inputs.max_length)
            tables[rotary] = (
                g.initializer(f"{label}.cos", cosines, inputs.dtype),
                g.initializer(f"{label}.sin", sines, inputs.dtype),
            )
    return tables
