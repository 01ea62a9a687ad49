# SPDX-License-Identifier: Apache-2.0
"""Embedding tables and output heads in 8 or 4 bits (docs/FORMAT.md, "Quantized tables").

    row i, column c = code(i, c) * scale(i, c div group)

Codes are two's complement. 8 bits: a byte each, one scale a row. 4 bits: two a byte, the even column in the low half
(ONNX's layout of INT4), one scale for every 32 columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ...errors import NqEdgeError

__all__ = ["TABLE_FORMATS", "QuantizedTable", "TableFormat", "pack_codes", "quantize_rows", "quantize_table"]

#: Rows that are widened to float32 at one time: 16 MB at 4096 columns.
_PIECE_ROWS = 1024


@dataclass(frozen=True)
class TableFormat:
    """How a table is stored.

    Attributes:
        bits: of a code.
        group: columns that share a scale; 0 stands for the whole row.
    """

    bits: int
    group: int

    def groups(self, columns: int) -> int:
        """Scales of one row."""
        return 1 if not self.group else -(-columns // self.group)

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row's codes."""
        return columns * self.bits // 8


#: Names in `quantization_config`, and on the command line. Groups of 32 were chosen by benchmarks/embedding.py.
TABLE_FORMATS = MappingProxyType({"int8": TableFormat(8, 0), "int4": TableFormat(4, 32)})


@dataclass(frozen=True)
class QuantizedTable:
    """A table of rows (a vocabulary's vectors).

    Attributes:
        kind: a key of `TABLE_FORMATS`.
        codes: int8 (rows, columns) or, two codes a byte, (rows, columns / 2).
        scales: float16 (rows, groups).
    """

    kind: str
    codes: NDArray[np.int8]
    scales: NDArray[np.float16]

    @property
    def format(self) -> TableFormat:
        """Bits and grouping."""
        return TABLE_FORMATS[self.kind]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the dense table."""
        return int(self.codes.shape[0]), int(self.codes.shape[1]) * 8 // self.format.bits

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.format.group or self.shape[1]

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Dense rows [start, stop): float32 (stop - start, columns), exact."""
        codes = np.asarray(self.codes[start:stop])
        columns = self.shape[1]
        if self.format.bits == 4:
            pair = np.empty((len(codes), columns), np.int8)
            pair[:, 0::2] = np.left_shift(codes, 4) >> 4
            pair[:, 1::2] = codes >> 4
            codes = pair
        scales = np.asarray(self.scales[start:stop]).astype(np.float32)
        return codes * np.repeat(scales, self.group_size, axis=1)[:, :columns]

    def dense(self, dtype: np.dtype[np.generic] | type = np.float16) -> NDArray[np.generic]:
        """The whole table in another type, widened a piece at a time."""
        rows, columns = self.shape
        whole = np.empty((rows, columns), dtype)
        for start in range(0, rows, _PIECE_ROWS):
            whole[start : start + _PIECE_ROWS] = self.rows(start, min(start + _PIECE_ROWS, rows))
        return whole


def quantize_rows(rows: NDArray[np.float32], form: TableFormat) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Round rows to nearest codes.

    8 bits use the symmetric range of the row's largest magnitude. 4 bits give the entry of largest magnitude in a
    group the code -8, sign and all, so that all sixteen codes serve (the scale may be negative). Codes are rounded
    against the float16 scale that is stored.

    Args:
        rows: float32 (rows, columns), finite.
        form: bits and grouping.

    Returns:
        int8 codes, one an entry, not packed; and float16 scales (rows, groups).
    """
    count, columns = rows.shape
    group = form.group or columns
    padded = np.zeros((count, form.groups(columns) * group), np.float32)
    padded[:, :columns] = rows
    blocks = padded.reshape(count, -1, group)
    top = 1 << (form.bits - 1)
    if form.bits == 8:
        steps = np.abs(blocks).max(axis=2) / (top - 1)
    else:
        peak = np.abs(blocks).argmax(axis=2)[..., None]
        steps = np.take_along_axis(blocks, peak, axis=2)[..., 0] / -top
    with np.errstate(over="ignore"):
        scales = steps.astype(np.float16)
    if not np.isfinite(scales).all():
        raise NqEdgeError(
            "NQ-NUMERIC", f"a table with entries of {np.abs(rows).max():.3g} does not fit float16 scales."
        )
    divisors = scales.astype(np.float32)[..., None]
    # A scale that rounds to zero stands for entries below 1e-6: codes 0.
    quotients = np.divide(blocks, divisors, out=np.zeros_like(blocks), where=divisors != 0)
    lowest = 1 - top if form.bits == 8 else -top
    codes = np.clip(np.rint(quotients), lowest, top - 1).astype(np.int8)
    return codes.reshape(count, -1)[:, :columns], scales


def pack_codes(entries: NDArray[np.int8], form: TableFormat) -> NDArray[np.int8]:
    """One code an entry, (rows, columns), to the bytes that are stored."""
    return entries if form.bits == 8 else (entries[:, 0::2] & 15) | np.left_shift(entries[:, 1::2], 4)


def quantize_table(table: NDArray[np.generic], kind: str, name: str = "the table") -> QuantizedTable:
    """Quantize a dense table row by row, a piece at a time.

    Args:
        table: (rows, columns), any float type; usually a memory map.
        kind: "int8" or "int4".
        name: used in messages.

    Raises:
        NqEdgeError: NQ-OPTION for another kind or a width that it cannot pack; NQ-NUMERIC for an entry that is not
            finite or too large.
    """
    if kind not in TABLE_FORMATS:
        raise NqEdgeError("NQ-OPTION", f"a table is stored as {' or '.join(TABLE_FORMATS)}, not {kind!r}.")
    form = TABLE_FORMATS[kind]
    rows, columns = table.shape
    if columns * form.bits % 8:
        raise NqEdgeError("NQ-OPTION", f"{name} has {columns} columns; {kind} needs an even number.", "Use int8.")
    codes = np.empty((rows, form.row_bytes(columns)), np.int8)
    scales = np.empty((rows, form.groups(columns)), np.float16)
    for start in range(0, rows, _PIECE_ROWS):
        piece = np.asarray(table[start : start + _PIECE_ROWS]).astype(np.float32)
        if not np.isfinite(piece).all():
            raise NqEdgeError("NQ-NUMERIC", f"{name} holds NaN or infinity.")
        part = slice(start, start + len(piece))
        entries, scales[part] = quantize_rows(piece, form)
        codes[part] = pack_codes(entries, form)
    return QuantizedTable(kind, codes, scales)
