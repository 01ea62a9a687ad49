# SPDX-License-Identifier: Apache-2.0
"""What every part of a decoder graph is made from."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ...models import DecoderConfig
from ..options import GraphOptions
from ..weights import WeightSource
from .dialects.base import Emitter
from .dtypes import ir_dtype
from .graph_builder import GraphBuilder

__all__ = ["Assembly"]


@dataclass(frozen=True)
class Assembly:
    """A graph that is being built.

    Attributes:
        g: the graph, to which nodes are added.
        config: sizes and options of the model.
        weights: its tensors by Hugging Face name.
        options: the form of the graph.
        emitter: the dialect's operators for this graph.
    """

    g: GraphBuilder
    config: DecoderConfig
    weights: WeightSource
    options: GraphOptions
    emitter: Emitter

    @property
    def dtype(self) -> ir.DataType:
        """Type of activations and cache."""
        return ir_dtype(self.options.dtype)
