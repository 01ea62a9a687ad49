# SPDX-License-Identifier: Apache-2.0
"""What a graph may be, and what a user may choose about an export to ONNX; checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import NqEdgeError
from ..formats.checkpoint import TABLE_FORMATS
from ..formats.graph import (
    ACTIVATION_DTYPES,
    DIALECTS,
    LAYOUT_ROWS_LSB_FIRST,
    LAYOUT_TILES_16X256,
    ROWS_ONLY_DIALECTS,
)
from ..models import DecoderConfig

__all__ = ["ExportOptions", "GraphOptions", "check_embedding"]


@dataclass(frozen=True)
class GraphOptions:
    """The form of a decoder graph.

    Attributes:
        dialect: "ort", "onnx24" or "trt103".
        dtype: type of activations and cache: "float32", "float16" or "bfloat16".
        portable: the operator's body in standard operators is in the file.
        max_length: longest context in tokens; None is the model's own.
        capacity: fixed number of cache slots; None leaves it to the caller of the graph. TensorRT's in-place cache
            update refuses a dynamic one.
        layout: order of the packed words (docs/OPERATOR.md), 0 or 1; CPU kernels read 0 only.
        grouped: one node for the projections that share an input (q/k/v, gate/up).
        cache: type of the key/value cache where it may be another than the activations', see `cache_dtype`: "float32"
            or "float16"; "" keeps theirs.

    Raises:
        NqEdgeError: NQ-OPTION for an unknown dialect, dtype or layout, a length out of range, or a portable graph in a
            form that its body cannot read.
    """

    dialect: str = "ort"
    dtype: str = "float32"
    portable: bool = False
    max_length: int | None = None
    capacity: int | None = None
    layout: int = LAYOUT_ROWS_LSB_FIRST
    grouped: bool = False
    cache: str = ""

    def __post_init__(self) -> None:
        if self.dialect not in DIALECTS:
            raise NqEdgeError("NQ-OPTION", f"dialect {self.dialect!r} is not one of {', '.join(DIALECTS)}.")
        if self.dtype not in ACTIVATION_DTYPES:
            raise NqEdgeError("NQ-OPTION", f"dtype {self.dtype!r} is not one of {', '.join(ACTIVATION_DTYPES)}.")
        if self.layout not in (LAYOUT_ROWS_LSB_FIRST, LAYOUT_TILES_16X256):
            raise NqEdgeError("NQ-OPTION", f"layout {self.layout!r} is not 0 or 1.")
        if self.cache not in ("", "float32", "float16"):
            raise NqEdgeError("NQ-OPTION", f"cache {self.cache!r} is not float32 or float16.")
        for name in ("max_length", "capacity"):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value > 0):
                raise NqEdgeError("NQ-OPTION", f"{name} {value!r} is not a number of tokens from 1 on.")
        if self.portable and (self.grouped or self.layout != LAYOUT_ROWS_LSB_FIRST):
            raise NqEdgeError("NQ-OPTION", "a portable graph has layout 0 and no groups, which its body cannot read.")

    @property
    def in_place(self) -> bool:
        """Whether the graph updates the cache; else `present.*` hold the new rows only, which the runtime copies."""
        return self.dialect not in ROWS_ONLY_DIALECTS

    @property
    def codes(self) -> bool:
        """Whether quantized tables stay codes: our operators have CPU kernels, and no portable body.

        Everywhere else a table is widened to 16 bits when it is written.
        """
        return self.dialect == "ort" and self.dtype == "float32" and not self.portable

    @property
    def cpu_kernels(self) -> bool:
        """Whether this package's CPU kernels run the graph, so that it may use their attention.

        The kernels that read groups in float32 are the CPU's, and attention is beside them.
        """
        return self.grouped and self.dtype == "float32"

    def own_attention(self, config: DecoderConfig) -> bool:
        """Whether this package's attention computes a model's: it rotates all heads, and caps no scores."""
        rotated = all(config.rotary_of(block) is not None for block in range(config.num_layers))
        able = rotated and config.attention_cap is None and config.head_dim % 16 == 0 and config.head_dim <= 1024
        return self.dialect == "ort" and self.cpu_kernels and able

    def cache_dtype(self, config: DecoderConfig) -> str:
        """Type of a model's key/value cache: the activations', unless our CPU attention reads it and `cache` says so.

        Example:
            >>> from nanoquant_edge.models.config_reader import read_config
            >>> from nanoquant_edge.formats.checkpoint import Checkpoint
            >>> config = read_config(Checkpoint("checkpoint").config)
            >>> GraphOptions(grouped=True, cache="float16").cache_dtype(config)
            'float16'
            >>> GraphOptions(dialect="onnx24", cache="float16").cache_dtype(config)
            'float32'
        """
        return self.cache if self.cache and self.own_attention(config) else self.dtype

    def length(self, config: DecoderConfig) -> int:
        """Longest context of a model's graph, in tokens: rows of the position tables.

        Raises:
            NqEdgeError: NQ-OPTION when it is beyond the model's positions, or less than the cache's slots.
        """
        length = config.max_positions if self.max_length is None else self.max_length
        if length > config.max_positions:
            raise NqEdgeError(
                "NQ-OPTION", f"max_length {length} is not between 1 and the model's {config.max_positions} positions."
            )
        if self.capacity is not None and self.capacity > length:
            raise NqEdgeError(
                "NQ-OPTION", f"a cache of {self.capacity} slots does not suit a context of {length} tokens."
            )
        return length


@dataclass(frozen=True)
class ExportOptions:
    """What a bundle for ONNX Runtime is to be.

    Attributes:
        dtype: type of activations and cache: "float32" (CPU), "float16" or "bfloat16".
        dialect: "ort" for ONNX Runtime, "onnx24" for standard operators of opset 24.
        portable: add a slow body of the operator for runtimes without the kernel library.
        max_length: longest context in tokens; None is the model's own.
        embedding: "int8" or "int4" rounds a 16-bit embedding and head; "fp16" widens quantized ones; None writes what
            the source holds, widened where the graph cannot hold codes.
        cache: type of the key/value cache, as `GraphOptions.cache`.

    Raises:
        NqEdgeError: NQ-OPTION for a value out of range, or a combination that nothing could run.

    Example:
        >>> ExportOptions(dtype="float16", max_length=4096).graph.codes
        False
    """

    dtype: str = "float32"
    dialect: str = "ort"
    portable: bool = False
    max_length: int | None = None
    embedding: str | None = None
    cache: str = ""

    def __post_init__(self) -> None:
        if not self.graph.in_place:
            raise NqEdgeError(
                "NQ-OPTION",
                f"dialect {self.dialect} is for TensorRT engines; ONNX Runtime would not find its cache updated.",
                "Use --to tensorrt --target jetson-..., or --dialect ort or onnx24.",
            )
        check_embedding(self.embedding, self.graph)

    @property
    def graph(self) -> GraphOptions:
        """The form of the graph.

        The CPU library has the grouped operator; the CUDA kernels, for graphs of 16 bits, and the portable body have
        not.
        """
        grouped = self.dtype == "float32" and not self.portable
        return GraphOptions(self.dialect, self.dtype, self.portable, self.max_length, grouped=grouped, cache=self.cache)


def check_embedding(embedding: str | None, graph: GraphOptions) -> None:
    """Refuse a storage of embedding and head that does not exist or that the graph cannot hold.

    Raises:
        NqEdgeError: NQ-OPTION.
    """
    if embedding is None or embedding == "fp16":
        return
    if embedding not in TABLE_FORMATS:
        raise NqEdgeError("NQ-OPTION", f"embedding must be fp16, {' or '.join(TABLE_FORMATS)}, not {embedding!r}.")
    if not graph.codes:
        raise NqEdgeError(
            "NQ-OPTION",
            f"an {embedding} table is kept in codes only in float32 graphs of dialect ort without a portable body.",
            "Leave --embedding out: this graph gets a 16-bit table.",
        )
