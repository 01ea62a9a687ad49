# SPDX-License-Identifier: Apache-2.0
"""What every backend checks before it computes: shapes, ids and room (see `Backend.forward`)."""

from __future__ import annotations

import numpy as np

from ..errors import NqEdgeError

__all__ = ["check_inputs"]


def check_inputs(
    input_ids: np.ndarray,
    positions: np.ndarray | None,
    *,
    lengths: np.ndarray | None,
    past: np.ndarray,
    vocab_size: int,
    max_context: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Complete and check the arguments of `Backend.forward`.

    Args:
        input_ids, positions, lengths: as given to `forward`.
        past: int64 [batch], tokens in the cache; empty after a reset.
        vocab_size: ids are smaller.
        max_context: most tokens of a sequence.

    Returns:
        int64 `input_ids` [batch, sequence] (without padding when batch is 1), `positions` [batch, k] and `lengths`
        [batch].

    Raises:
        NqEdgeError: NQ-OPTION when shapes contradict each other or the cache, NQ-PROMPT when an id or the number of
            tokens is too large.
    """
    input_ids = np.ascontiguousarray(input_ids, dtype=np.int64)
    if input_ids.ndim != 2 or input_ids.size == 0:
        raise NqEdgeError("NQ-OPTION", f"input_ids must be [batch, sequence], got shape {input_ids.shape}.")
    batch, sequence = input_ids.shape
    if past.size and past.size != batch:
        raise NqEdgeError("NQ-OPTION", f"the cache holds {past.size} sequences, input_ids has {batch}.", "Reset.")
    if past.size > 1 and sequence > 1:
        raise NqEdgeError("NQ-OPTION", "a batch continues one token at a time.", "Reset, or use one sequence.")
    lengths = np.full(batch, sequence) if lengths is None else np.asarray(lengths, dtype=np.int64)
    if lengths.shape != (batch,) or lengths.min() < 1 or lengths.max() > sequence:
        raise NqEdgeError("NQ-OPTION", f"lengths must be [batch] with values from 1 to {sequence}.")
    positions = lengths[:, None] - 1 if positions is None else np.asarray(positions, dtype=np.int64)
    if positions.ndim != 2 or positions.shape[0] != batch:
        raise NqEdgeError("NQ-OPTION", f"positions must be [batch, k], got shape {positions.shape}.")
    if positions.size and (positions.min() < 0 or (positions >= lengths[:, None]).any()):
        raise NqEdgeError("NQ-OPTION", f"positions must lie from 0 to {int(lengths.min()) - 1}, inside each row.")
    if batch == 1:
        input_ids, sequence = input_ids[:, : lengths[0]], int(lengths[0])
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise NqEdgeError("NQ-PROMPT", f"token id {wrong} is outside the vocabulary of {vocab_size}.")
    total = int(past.max(initial=0)) + sequence
    if total > max_context:
        raise NqEdgeError("NQ-PROMPT", f"{total} tokens do not fit the context of {max_context} tokens.")
    return input_ids, positions, lengths
