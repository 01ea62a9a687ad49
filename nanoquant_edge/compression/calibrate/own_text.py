# SPDX-License-Identifier: Apache-2.0
"""Calibration windows that the dense model writes itself at temperature 1, for those who have no text."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models.source import SourceModel
from ...system.progress import Progress
from .conversations import has_chat_format
from .writing import Script, Turn, Writing, end_tokens, write

__all__ = ["own_windows"]


def own_windows(
    source: SourceModel, windows: int, length: int, *, seed: int, first: int = 0, progress: Progress | None = None
) -> Tensor:
    """Windows that the model writes, each a text from its beginning.

    Where a text ends, another one begins. A model with a chat format goes on instead: what ends there is a turn of a
    conversation, and the next turn follows.

    Args:
        source: the dense model, on its device.
        windows: number of windows.
        length: tokens a window.
        seed: random seed for the tokens; a window of some number has the same text however many there are.
        first: number of the first window.
        progress: told how many tokens there are.

    Returns:
        int64 (windows, length), each starting with the model's start token.

    Raises:
        NqEdgeError: NQ-MODEL when the configuration names a start token that is not in the vocabulary.

    Example:
        >>> from nanoquant_edge.models.loading import load_model
        >>> with load_model("model") as source:
        ...     windows = own_windows(source, 2, 16, seed=0)
        >>> windows.shape
        torch.Size([2, 16])
    """
    start, tokenizer, total = source.start_token, source.tokenizer, windows * length

    def texts() -> Script:
        while True:
            yield Turn([start], longest=length)

    def told(tokens: int) -> None:
        if progress is not None:
            progress(min(1.0, tokens / total), f"the model writes text, {tokens} of {total} tokens")

    ends = () if has_chat_format(tokenizer) else end_tokens(source.model, tokenizer)
    writing = Writing(length=length, seed=seed, ends=ends, first=first, told=told)
    rows = write(source.model, [texts() for _ in range(windows)], writing)
    return torch.tensor(rows, dtype=torch.int64).view(windows, length)
