# SPDX-License-Identifier: Apache-2.0
"""Calibration windows: stretches of a text, or text that the model itself writes (docs/METHOD.md, section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import NqEdgeError
from ...formats.corpus import read_corpus
from ...models.cached_step import cached_step

__all__ = ["read_text", "sampled_windows", "text_windows"]

_MAX_TEXT_BYTES = 1 << 30


def read_text(path: str | Path) -> str:
    """A text file; its lines are the rows of the corpus, joined as perplexity is measured (`corpus.join_rows`).

    Raises:
        NqEdgeError: NQ-CALIBRATION when it cannot be read, is larger than 1 GiB or is not UTF-8.
    """
    return read_corpus(path, "NQ-CALIBRATION", _MAX_TEXT_BYTES)


def text_windows(
    tokenizer: Any, text: str, *, windows: int, length: int, seed: int, choice: str = "distinct"
) -> Tensor:
    """Windows of a text, tokenized once.

    Where the tokenizer puts a start token before a text, every window begins with it, as every prompt does: Gemma
    makes the start token a sink of attention, and one that was never calibrated ruins a compressed model. The
    official loader has it in a window only by chance.

    Args:
        tokenizer: the model's, `SourceModel.tokenizer` (made in `models.model_tokenizer`).
        text: rows joined already.
        windows: number of windows.
        length: tokens a window, the start token included.
        seed: random seed for the places in the text.
        choice: "distinct": on a grid without overlap where the text is long enough, otherwise at distinct random
            offsets. "spread": evenly spaced on that grid. "random": as the official loader, at random offsets, of
            which as many are then drawn with replacement, which repeats 39 % of them.

    Returns:
        int64 (windows, length).

    Raises:
        NqEdgeError: NQ-CALIBRATION when the text has fewer than length + windows - 1 tokens, or for "spread" not
            length x windows.
    """
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    start_token = ids[:1] if len(ids) and int(ids[0]) == getattr(tokenizer, "bos_token_id", None) else ids[:0]
    ids, length = ids[len(start_token) :], length - len(start_token)
    offsets_possible = len(ids) - length + 1
    without_overlap = len(ids) // length
    if offsets_possible < windows or (choice == "spread" and without_overlap < windows):
        least = length * windows if choice == "spread" else length + windows - 1
        raise NqEdgeError(
            "NQ-CALIBRATION",
            f"the calibration text has {len(ids)} tokens; {windows} windows of {length} need at least {least}.",
        )
    generator = torch.Generator().manual_seed(seed)
    if choice == "random":
        drawn = torch.randint(offsets_possible, (windows,), generator=generator)
        starts = drawn[torch.randint(windows, (windows,), generator=generator)]
    elif choice == "spread":
        starts = torch.linspace(0, without_overlap - 1, windows, dtype=torch.float64).long() * length
    elif without_overlap >= windows:
        starts = torch.randperm(without_overlap, generator=generator)[:windows] * length
    else:
        starts = torch.randperm(offsets_possible, generator=generator)[:windows]
    return torch.stack([torch.cat([start_token, ids[start : start + length]]) for start in starts.tolist()])


@torch.no_grad()
def sampled_windows(model: Any, windows: int, length: int, *, seed: int, start_id: int) -> Tensor:
    """Windows that the model writes itself at temperature 1, for when no text is at hand.

    Args:
        model: transformers causal language model.
        windows: number of windows.
        length: tokens a window.
        seed: random seed for the tokens.
        start_id: first token of every window.

    Returns:
        int64 (windows, length), each starting with `start_id`.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    ids = torch.full((windows, 1), start_id, dtype=torch.int64, device=device)
    cache = None
    step = ids
    while ids.shape[1] < length:
        logits, cache = cached_step(model, step, cache)
        probabilities = logits[:, -1].float().softmax(-1).cpu()
        step = torch.multinomial(probabilities, 1, generator=generator).to(device)
        ids = torch.cat([ids, step], 1)
    return ids.cpu()
