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

from ...errors import NqEdgeError
from ...formats.checkpoint import TABLE_FORMATS, QuantizedTable
from ...formats.graph import DOMAIN
from .dtypes import numpy_dtype
from .graph_builder import Dims, GraphBuilder

__all__ = ["WideTable", "coded_node"]

_PIECE_ROWS = 1024


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


def coded_node(
    g: GraphBuilder, op_type: str, x: ir.Value, table: QuantizedTable, module: str, name: str, shape: Dims
) -> ir.Value:
    """Add a look-up or a product with a table in codes.

    Args:
        g: the graph.
        op_type: `EMBEDDING_OP` or `HEAD_OP` of `formats.graph`.
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
