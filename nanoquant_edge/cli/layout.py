# SPDX-License-Identifier: Apache-2.0
"""Reports that read well at 80 columns: named facts whose text wraps, and small tables of figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..system.terminal import plain

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["facts", "figures"]


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Names on the left, what is known on the right, wrapped at words; rows without text are left out.

    Args:
        rows: (name, text); an empty name goes on with the fact above it.
    """
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, text in rows:
        if text:
            table.add_row(plain(name), plain(text))
    return table


def figures(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without a frame, its first column to the left and the others to the right.

    Args:
        columns: headings.
        rows: texts, as many as there are columns.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(plain(column), justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    return table
