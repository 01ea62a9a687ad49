# SPDX-License-Identifier: Apache-2.0
"""Embedding and output head over a table of 8- or 4-bit rows, as PyTorch modules.

Rows are widened when they are looked up, or a piece at a time when the head multiplies with them, so that the dense
table never exists.
"""

from __future__ import annotations

import torch
from torch import nn

from ..formats.checkpoint.table import TABLE_FORMATS

__all__ = ["QuantizedEmbedding", "QuantizedHead", "RowCodes", "TiedHead"]

#: Rows that the head widens at one time: 19 MB at 576 columns.
_PIECE_ROWS = 8192


class RowCodes(nn.Module):
    """Codes and scales of a table (docs/FORMAT.md, "Quantized tables").

    Args:
        rows, columns: size of the dense table.
        kind: "int8" or "int4".
        dtype: type of the scales and of widened rows.
        device: where the buffers are made; "meta" makes shapes only.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        kind: str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        form = TABLE_FORMATS[kind]
        self.columns, self.kind = columns, kind
        self.register_buffer("codes", torch.zeros(rows, form.row_bytes(columns), dtype=torch.int8, device=device))
        self.register_buffer("scales", torch.zeros(rows, form.groups(columns), dtype=dtype, device=device))

    def widened(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Some rows' codes and scales -> the rows, in the scales' type."""
        form = TABLE_FORMATS[self.kind]
        if form.bits == 4:
            # Shifting up and down again extends the sign of the low half.
            codes = torch.stack(((codes << 4) >> 4, codes >> 4), dim=-1).flatten(-2)
        spread = scales.repeat_interleave(form.group or self.columns, dim=-1)[..., : self.columns]
        return codes.to(scales.dtype) * spread

    def dense(self) -> torch.Tensor:
        """The whole table."""
        return self.widened(self.codes, self.scales)

    @property
    def weight(self) -> torch.Tensor:
        """The whole table, widened anew: for code that looks at an embedding's or a head's weight."""
        return self.dense()

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"rows={self.codes.shape[0]}, columns={self.columns}, kind={self.kind}"


class QuantizedEmbedding(RowCodes):
    """Looks rows up.

    Args:
        rows, columns, kind, dtype, device: see `RowCodes`.
        scale: factor of every row (Gemma's embedding has one).
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        kind: str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(rows, columns, kind=kind, dtype=dtype, device=device)
        self.scale = scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 (...) -> (..., columns) in the scales' type."""
        rows = self.widened(self.codes[ids], self.scales[ids])
        # The factor is rounded to the rows' type first, as the modeling code of Gemma does.
        return rows if self.scale == 1.0 else rows * torch.tensor(self.scale, dtype=rows.dtype, device=rows.device)


class QuantizedHead(RowCodes):
    """Multiplies with every row of its own table.

    Args:
        rows, columns, kind, dtype, device: see `RowCodes`.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., columns) -> (..., rows) in the input's type."""
        return _product(self, hidden)


class TiedHead(nn.Module):
    """Multiplies with every row of the embedding's table.

    Args:
        table: the embedding.
    """

    def __init__(self, table: RowCodes) -> None:
        super().__init__()
        self._table = [table]  # in a list: the buffers are the embedding's, and no state of this module

    @property
    def weight(self) -> torch.Tensor:
        """The embedding's table, widened anew."""
        return self._table[0].dense()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., columns) -> (..., rows) in the input's type."""
        return _product(self._table[0], hidden)


def _product(table: RowCodes, hidden: torch.Tensor) -> torch.Tensor:
    pieces = zip(table.codes.split(_PIECE_ROWS), table.scales.split(_PIECE_ROWS), strict=True)
    return torch.cat([hidden @ table.widened(*piece).to(hidden.dtype).T for piece in pieces], dim=-1)
