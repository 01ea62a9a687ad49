# SPDX-License-Identifier: Apache-2.0
"""Calibration windows that are stretches of a text (docs/METHOD.md, section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import NqEdgeError
from ...formats.corpus import read_corpus

__all__ = ["cut_windows", "read_text", "start_and_body", "text_windows", "token_ids"]

_MAX_TEXT_BYTES = 1 << 30


def read_text(path: str | Path) -> str:
    """A text file; its lines are the rows of the corpus, joined as perplexity is measured (`corpus.join_rows`).

    Raises:
        NqEdgeError: NQ-CALIBRATION when it cannot be read, is larger than 1 GiB or is not UTF-8.
    """
    return read_corpus(path, "NQ-CALIBRATION", _MAX_TEXT_BYTES)


def token_ids(tokenizer: Any, text: str) -> Tensor:
    """The token ids of a text, int64 (tokens,), with what the tokenizer puts in front."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)


def text_windows(
    tokenizer: Any, text: str, *, windows: int, length: int, seed: int, choice: str = "distinct"
) -> Tensor:
    """Windows of a text, tokenized once.

    Args:
        tokenizer: the model's, `SourceModel.tokenizer` (made in `models.model_tokenizer`).
        text: rows joined already.
        windows, length, seed, choice: as in `cut_windows`.

    Returns:
        int64 (windows, length).

    Raises:
        NqEdgeError: as `cut_windows`.
    """
    start, body = start_and_body(tokenizer, token_ids(tokenizer, text))
    return cut_windows(body, start, windows=windows, length=length, seed=seed, choice=choice)


def start_and_body(tokenizer: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The start token in front of some ids, which may be none, and the rest."""
    count = int(len(ids) > 0 and int(ids[0]) == getattr(tokenizer, "bos_token_id", None))
    return ids[:count], ids[count:]


def cut_windows(
    body: Tensor, start: Tensor, *, windows: int, length: int, seed: int, choice: str = "distinct", after: int = 0
) -> Tensor:
    """Windows of token ids.

    Where the tokenizer puts a start token before a text, every window begins with it, as every prompt does: Gemma
    makes the start token a sink of attention, and one that was never calibrated ruins a compressed model. The
    official loader has it in a window only by chance.

    Args:
        body: int64 (tokens,), without the start token.
        start: int64 (0 or 1,), the start token.
        windows: number of windows.
        length: tokens a window, the start token included.
        seed: random seed for the places in the text.
        choice: "distinct": on a grid without overlap where the text is long enough, otherwise at distinct random
            offsets. "spread": evenly spaced on that grid. "random": as the official loader, at random offsets, of
            which as many are then drawn with replacement, which repeats 39 % of them.
        after: for distinct windows on the grid: how many of the same seed were drawn before; those come last.

    Returns:
        int64 (windows, length).

    Raises:
        NqEdgeError: NQ-CALIBRATION when the text has fewer than length + windows - 1 tokens, or for "spread" not
            length x windows.
    """
    length -= len(start)
    offsets_possible = len(body) - length + 1
    without_overlap = len(body) // length
    if offsets_possible < windows or (choice == "spread" and without_overlap < windows):
        least = length * windows if choice == "spread" else length + windows - 1
        raise NqEdgeError(
            "NQ-CALIBRATION",
            f"the calibration text has {len(body)} tokens; {windows} windows of {length} need at least {least}.",
        )
    generator = torch.Generator().manual_seed(seed)
    if choice == "random":
        drawn = torch.randint(offsets_possible, (windows,), generator=generator)
        starts = drawn[torch.randint(windows, (windows,), generator=generator)]
    elif choice == "spread":
        starts = torch.linspace(0, without_overlap - 1, windows, dtype=torch.float64).long() * length
    elif without_overlap >= windows:
        order = torch.randperm(without_overlap, generator=generator).roll(-after)
        starts = order[:windows] * length
    else:
        starts = torch.randperm(offsets_possible, generator=generator)[:windows]
    return torch.stack([torch.cat([start, body[first : first + length]]) for first in starts.tolist()])
