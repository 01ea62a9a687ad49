# SPDX-License-Identifier: Apache-2.0
"""What the reference side hands to the steps, whether PyTorch computes it now or a file recorded it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["ExpectedGreedy", "ExpectedWindow", "Reference"]


@dataclass(frozen=True)
class ExpectedWindow:
    """The reference's logits on one window of tokens.

    Attributes:
        loss: mean next-token loss inside the window, in nats.
        top_ids: int64 (length, k), the likeliest tokens of each position, likeliest first.
        top_logits: float32 (length, k), their logits.
        log_sum: float64 (length,), logarithm of the sum of exponentials of each position's logits.
        positions: int64 (p,), ascending: positions whose whole rows are known; all of them when PyTorch is at hand.
        logits: float32 (p, vocabulary), those rows.
    """

    loss: float
    top_ids: NDArray[np.int64]
    top_logits: NDArray[np.float32]
    log_sum: NDArray[np.float64]
    positions: NDArray[np.int64]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class ExpectedGreedy:
    """The reference's most likely continuation of one prompt.

    Attributes:
        prompt: int64 (p,).
        tokens: int64 (n,), the continuation.
        gaps: float32 (n,), logit of the likeliest token minus that of the second likeliest, at each step.
    """

    prompt: NDArray[np.int64]
    tokens: NDArray[np.int64]
    gaps: NDArray[np.float32]


class Reference(Protocol):
    """A side to compare a bundle with.

    Attributes:
        origin: "torch" or "recorded".
        text: where the windows come from, in words.
        windows: int64 (count, length), the tokens.
        inner_tokens: how many tokens of the first window the inner values cover.
    """

    origin: str
    text: str
    windows: NDArray[np.int64]
    inner_tokens: int

    def inner(self) -> dict[str, NDArray[np.float32]]:
        """Inner values in order of computation: value name -> (inner_tokens, channels)."""
        ...

    def window(self, index: int) -> ExpectedWindow:
        """Logits of one window."""
        ...

    def greedy(self) -> list[ExpectedGreedy]:
        """Continuations."""
        ...
