# SPDX-License-Identifier: Apache-2.0
"""Embedding and head in a graph: as codes for our operators, or widened for targets that have none.

`com.nanoquant::NanoQuantEmbedding` and `NanoQuantHead` (docs/OPERATOR.md) read one pair of initializers, straight from
the mapped file: a tied table exists once on disk and once in memory. ONNX Runtime's GatherBlockQuantized and
MatMulNBits were measured beside them: MatMulNBits packs the table into memory of its own, its 8-bit form in float32
takes 90 ms a token, and the fast one rounds the activations to 8 bits.
"""

from __future__ import annotations

from typing import IO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import NqEdgeError
from ...formats.checkpoint import TABLE_FORMATS, PackedLayer, QuantizedTable, quantize_table
from ...formats.graph import DOMAIN
from .dtypes import numpy_dtype
from .graph_builder import Dims, GraphBuilder
from .weights import WeightSource

__all__ = ["TABLE_ATTRIBUTES", "Requantized", "WideTable", "coded_node", "reads_codes"]

TABLE_ATTRIBUTES = ("columns", "bits", "group_size")
_PIECE_ROWS = 1024


def reads_codes(dialect: str, dtype: str, portable: bool) -> bool:
    """Whether a graph keeps quantized tables as codes: our operators have CPU kernels, and no portable body.

    Everywhere else a table is widened to 16 bits when it is written.
    """
    return dialect == "ort" and dtype == "float32" and not portable


class WideTable(ir.LazyTensor):
    """A quantized table that is widened while it is written, a piece at a time.

    Args:
        table: codes and scales, usually mapped from disk.
        dtype: type to store.
        name: initializer name, used in messages.
    """

    def __init__(self, table: QuantizedTable, dtype: ir.DataType, name: str) -> None:
        super().__init__(self._whole, dtype, ir.Shape(table.shape), name=name)
        self._table, self._target = table, numpy_dtype(dtype)

    def _whole(self) -> ir.Tensor:
        return ir.Tensor(self._table.dense(self._target), self.dtype, name=self.name)

    def tofile(self, file: IO[bytes]) -> None:
        """Write the little-endian bytes at the file's position."""
        rows = self._table.shape[0]
        for start in range(0, rows, _PIECE_ROWS):
            with np.errstate(over="ignore"):
                piece = self._table.rows(start, min(start + _PIECE_ROWS, rows)).astype(self._target)
            if not np.isfinite(piece.astype(np.float32)).all():
                raise NqEdgeError(
                    "NQ-NUMERIC", f"{self.name} does not fit {self._target.name}.", "Use --dtype float32."
                )
            file.write(np.ascontiguousarray(piece).view(np.uint8).data)


class Requantized:
    """A weight source whose tables are stored as the user asks; a `WeightSource`.

    Args:
        source: the model's weights.
        modules: module paths of the embedding and of a head of its own.
        kind: "int8", "int4", or "fp16" to widen tables.

    Raises:
        NqEdgeError: NQ-OPTION when a table is stored in other codes already: rounding twice would cost quality in
            silence.
    """

    def __init__(self, source: WeightSource, modules: list[str], kind: str) -> None:
        self._source, self._tables = source, dict[str, QuantizedTable | None]()
        self._wide = set[str]()
        for module in modules:
            stored = source.table(module)
            if kind == "fp16":
                self._tables[module] = None
                self._wide |= {module} if stored is not None else set()
            elif stored is None:
                self._tables[module] = quantize_table(source.tensor(f"{module}.weight"), kind, module)
            elif stored.kind != kind:
                raise NqEdgeError(
                    "NQ-OPTION",
                    f"the checkpoint stores {module} as {stored.kind}; it is not rounded a second time to {kind}.",
                    "Leave --embedding out, or compress again with the format you want.",
                )

    def layer(self, name: str) -> PackedLayer:
        """See `WeightSource.layer`."""
        return self._source.layer(name)

    def tensor(self, name: str) -> NDArray[np.generic]:
        """See `WeightSource.tensor`."""
        return self._source.tensor(name)

    def table(self, module: str) -> QuantizedTable | None:
        """See `WeightSource.table`."""
        return self._tables[module] if module in self._tables else self._source.table(module)

    def tensor_names(self) -> list[str]:
        """See `WeightSource.tensor_names`."""
        return self._source.tensor_names() + [f"{module}.weight" for module in sorted(self._wide)]


def coded_node(
    g: GraphBuilder, op_type: str, x: ir.Value, table: QuantizedTable, module: str, name: str, shape: Dims
) -> ir.Value:
    """Add a look-up or a product with a table in codes.

    Args:
        g: the graph.
        op_type: `EMBEDDING_OP` or `HEAD_OP`.
        x: int64 indices, or float32 [rows, columns].
        table: codes and scales.
        module: where the table lives; its initializers are `{module}.codes` and `{module}.scales`.
        name: node name.
        shape: of the result.

    Returns:
        float32 rows, or products.
    """
    form = TABLE_FORMATS[table.kind]
    inputs = [x, g.initializer(f"{module}.codes", table.codes), g.initializer(f"{module}.scales", table.scales)]
    return g.node(
        op_type,
        inputs,
        name,
        dtype=ir.DataType.FLOAT,
        shape=shape,
        domain=DOMAIN,
        columns=table.shape[1],
        bits=form.bits,
        group_size=table.group_size,
    )
