# SPDX-License-Identifier: Apache-2.0
"""How a target says "attention", "rotary embedding", "norm" and "cache".

A dialect describes its target and keeps nothing. For each graph it makes an emitter, which adds the target's operators
to that graph; family builders call its methods and stay the same for every target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ....formats.graph import DIALECTS
from ....models import DecoderConfig, RotaryConfig
from ...options import GraphOptions
from ..dtypes import ir_dtype
from ..graph_builder import GraphBuilder
from ..norms import Norm
from ..rotary import rotary_tables

__all__ = ["Attended", "AttentionCall", "DecoderInputs", "Dialect", "Emitter", "RotaryTables", "dialect_named"]

#: Dialect -> its module, where the name is another.
_MODULES = {"trt103": "tensorrt_10_3"}

#: Rotary embedding -> its cosine and sine tables.
RotaryTables = dict[RotaryConfig, tuple[ir.Value, ir.Value]]


@dataclass(frozen=True)
class DecoderInputs:
    """Inputs of the graph that every block's attention needs.

    Attributes:
        input_ids: int64 [batch, sequence].
        attention_mask: int64 [batch, total].
        past_key: a key cache [batch, kv_heads, capacity, head_dim], activation type.
    """

    input_ids: ir.Value
    attention_mask: ir.Value
    past_key: ir.Value


@dataclass(frozen=True)
class AttentionCall:
    """One block's attention, as an emitter is asked for it.

    Attributes:
        name: module path.
        block: number of the block, which decides window and rotary embedding.
        query: [batch, sequence, heads * head_dim].
        key, value: [batch, sequence, kv_heads * head_dim].
        past: key and value cache [batch, kv_heads, capacity, head_dim].
        present_names: names of the updated caches.
    """

    name: str
    block: int
    query: ir.Value
    key: ir.Value
    value: ir.Value
    past: tuple[ir.Value, ir.Value]
    present_names: tuple[str, str]


@dataclass(frozen=True)
class Attended:
    """What attention returns.

    Attributes:
        output: [batch, sequence, heads * head_dim].
        caches: the updated key and value cache, or their new rows.
    """

    output: ir.Value
    caches: tuple[ir.Value, ir.Value]


class Emitter(ABC):
    """Adds a dialect's operators to one graph; made, it has added what all blocks share: lengths, masks, tables.

    Args:
        g: the graph, with its inputs.
        config: sizes.
        inputs: values that attention needs.
        options: the form of the graph.
    """

    def __init__(self, g: GraphBuilder, config: DecoderConfig, inputs: DecoderInputs, options: GraphOptions) -> None:
        self._g, self._config, self._dtype = g, config, ir_dtype(options.dtype)
        self._length = options.length(config)
        self._windows = [config.window_of(block, self._length) for block in range(config.num_layers)]

    @abstractmethod
    def positions(self) -> ir.Value:
        """Position of each new token [batch, sequence], an integer, for a learned position table."""

    @abstractmethod
    def norm(self, name: str, x: ir.Value, norm: Norm) -> ir.Value:
        """A norm over the last axis; statistics in float32."""

    def add_norm(self, x: ir.Value, skip: ir.Value, norm: Norm, total: str) -> tuple[ir.Value, ir.Value]:
        """x + skip, called `total`, and its norm; returns (normed, sum)."""
        summed = self._g.node("Add", [x, skip], f"{norm.name}.sum", output=total)
        return self.norm(norm.name, summed, norm), summed

    @abstractmethod
    def gelu_tanh(self, name: str, x: ir.Value) -> ir.Value:
        """GELU in its tanh form; computed in x's type."""

    @abstractmethod
    def attention(self, call: AttentionCall) -> Attended:
        """Rotate queries and keys, write keys and values into the cache, attend causally within the block's window."""

    def _rotary_tables(self) -> RotaryTables:
        """Cosine and sine tables [length, head_dim / 2] in the activation type, for each embedding of a block."""
        tables: RotaryTables = {}
        for label, rotary in (("rotary", self._config.rotary), ("rotary.local", self._config.local_rotary)):
            if rotary is not None:
                cosines, sines = rotary_tables(rotary, self._config.head_dim, self._length)
                tables[rotary] = (
                    self._g.initializer(f"{label}.cos", cosines, self._dtype),
                    self._g.initializer(f"{label}.sin", sines, self._dtype),
                )
        return tables


class Dialect(ABC):
    """A target's vocabulary.

    Attributes:
        name: its name on the command line and in manifests.
        opsets: domain -> version of the model's imports, the operator's own excluded.
        emitter: makes the emitter of one graph.
    """

    name: str
    opsets: Mapping[str, int]
    emitter: type[Emitter]

    @abstractmethod
    def check(self, config: DecoderConfig) -> None:
        """Refuse what the target cannot run.

        Raises:
            NqEdgeError: NQ-ARCH with the constraint and the value.
        """

    @abstractmethod
    def backend_versions(self, config: DecoderConfig, options: GraphOptions) -> tuple[str, str]:
        """Lowest and highest version of its runtime seen to run such a graph; the highest may be ""."""


def dialect_named(name: str) -> Dialect:
    """The dialect with a name of `formats.graph.DIALECTS`."""
    import importlib

    assert name in DIALECTS
    dialect: Dialect = importlib.import_module(f".{_MODULES.get(name, name)}", __package__).DIALECT
    return dialect
