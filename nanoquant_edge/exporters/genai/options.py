# SPDX-License-Identifier: Apache-2.0
"""What a user may choose about a folder for ONNX Runtime GenAI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import GraphOptions, check_embedding

__all__ = ["GenaiOptions"]


@dataclass(frozen=True)
class GenaiOptions:
    """What a folder for ONNX Runtime GenAI is to be.

    Attributes:
        max_length: longest context in tokens; None is the model's own.
        embedding: storage of embedding and head, see `ExportOptions`.
        library: the custom-operator library of the machine that will run the folder; None is the one installed here.

    Raises:
        NqEdgeError: NQ-OPTION for a value out of range.
    """

    max_length: int | None = None
    embedding: str | None = None
    library: str | Path | None = None

    def __post_init__(self) -> None:
        check_embedding(self.embedding, self.graph)

    @property
    def graph(self) -> GraphOptions:
        """The form of the graph: ONNX Runtime's operators and ours, on the CPU."""
        return GraphOptions(max_length=self.max_length, grouped=True)
