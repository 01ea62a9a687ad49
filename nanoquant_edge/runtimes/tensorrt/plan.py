# SPDX-License-Identifier: Apache-2.0
"""How a call becomes executions: which profile, which pieces of a prompt, which rows of logits.

Prompts pass row by row, as one sequence each, into that row's part of the cache: no padding is computed, and a batch
of long prompts needs no more memory than one. Pieces are bounded by the prefill profile's tokens and logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import NqEdgeError
from ...formats.engine import EngineInfo
from .requirements import build_command

__all__ = ["Piece", "attention_mask", "check_batch", "decodes", "plan_row"]


@dataclass(frozen=True)
class Piece:
    """Some tokens of one row that pass through the engine at once.

    Attributes:
        start, stop: columns of the row.
        picks: int64 (k,), places inside the piece whose logits the engine computes; never empty, as the engine wants
            at least one.
        wanted: whether anyone asked for these logits.
    """

    start: int
    stop: int
    picks: np.ndarray
    wanted: bool


def decodes(engine: EngineInfo, batch: int, sequence: int) -> bool:
    """Whether a call is a decode step: one more token for each sequence."""
    return sequence == 1 and engine.profiles["decode"].holds(batch, 1, 1)


def check_batch(engine: EngineInfo, batch: int) -> None:
    """See that the engine can continue this many sequences.

    Raises:
        NqEdgeError: NQ-OPTION.
    """
    low, _, high = engine.profiles["decode"].batch
    if not low <= batch <= high:
        raise NqEdgeError(
            "NQ-OPTION",
            f"the engine was built for {low} to {high} sequences at once, got {batch}.",
            f"Use fewer, or run `{build_command()} --batch {batch}`.",
        )


def plan_row(engine: EngineInfo, length: int, positions: np.ndarray) -> list[Piece]:
    """Cut a row of tokens into pieces.

    Args:
        engine: its prefill profile sets the bounds.
        length: tokens of the row, at least 1.
        positions: int64 (k,), columns whose logits are wanted, in any order, also repeated.

    Returns:
        Pieces that cover the row from left to right.
    """
    profile = engine.profiles["prefill"]
    longest, most = profile.sequence[2], profile.positions[2]
    wanted = np.unique(positions)
    pieces, start = [], 0
    while start < length:
        stop = min(start + longest, length)
        first, last = np.searchsorted(wanted, [start, stop])
        if last - first > most:  # end the piece before the first column whose logits have no room
            last = first + most
            stop = int(wanted[last])
        picks = wanted[first:last] - start
        known = bool(picks.size)
        pieces.append(Piece(start, stop, picks if known else np.array([stop - start - 1], dtype=np.int64), known))
        start = stop
    return pieces


def attention_mask(valid: np.ndarray, total: int) -> np.ndarray:
    """Ones for the tokens held and the new ones, zeros up to the fixed width.

    Args:
        valid: int64 [batch], tokens of each sequence after the step.
        total: columns. Always the profile's largest: shapes that never change let a step be a CUDA graph.

    Returns:
        int64 [batch, total].
    """
    return (np.arange(total) < valid[:, None]).astype(np.int64)
