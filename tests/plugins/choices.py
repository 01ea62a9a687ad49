# SPDX-License-Identifier: Apache-2.0
"""Choices of tokens by any library with nq_cuda_table.h, and the probabilities that they should have.

A device is given as two functions, so that the same cases run on host memory (the emulator and the stand-in) and on a
GPU: `place(array)` puts an array there and returns its address and a function that reads it back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanoquant_edge.runtimes import filters
from nanoquant_edge.runtimes.sampling import SamplingConfig, make_filters
from tests.plugins.table_calls import Choice, Sampling

__all__ = ["Chooser", "Place", "expected_probabilities", "surprise"]

#: array -> (address, read back)
Place = Callable[[np.ndarray], tuple[int, Callable[[], np.ndarray]]]


@dataclass
class Chooser:
    """Sequences with tokens, history and positions on a device.

    Attributes:
        lib: the library, declared.
        place: see the module.
        vocabulary: tokens.
        capacity: places of a history.
        positions: of the sequences.
    """

    lib: Any
    place: Place
    vocabulary: int
    positions: Sequence[int]
    capacity: int = 16
    history: np.ndarray | None = None
    workspace: Any = field(default=None, repr=False)

    def __call__(
        self,
        logits: np.ndarray,
        configs: Sequence[SamplingConfig] | None,
        *,
        starts: Sequence[int] | None = None,
    ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """One call, greedy without configs: its status, and tokens, history and positions after it.

        Args:
            logits: float32 (sequences, stride); the first `vocabulary` columns count.
            configs: of each sequence.
            starts: rows of new tokens.
        """
        count = len(self.positions)
        history = np.full((count, self.capacity), -7, np.int64) if self.history is None else self.history
        call = Choice(sequences=count, vocabulary=self.vocabulary, logits_stride=logits.shape[1])
        call.capacity = self.capacity
        call.logits, _ = self.place(logits)
        call.tokens, tokens = self.place(np.full(count, -7, np.int64))
        call.history, written = self.place(history)
        call.positions, positions = self.place(np.asarray(self.positions, np.int64))
        if starts is not None:
            call.starts, _ = self.place(np.asarray(starts, np.int32))
        if configs is not None:
            given = (Sampling * count)(*[_sampling(config) for config in configs])
            call.sampling, _ = self.place(np.frombuffer(bytes(given), np.uint8).copy())
        if self.workspace is None:
            size = self.lib.nq_cuda_choice_workspace_bytes(count, self.vocabulary)
            self.workspace = self.place(np.zeros(size, np.uint8))
            self.workspace_bytes = size
        call.workspace, call.workspace_bytes = self.workspace[0], self.workspace_bytes
        function = self.lib.nq_cuda_choose if configs is None else self.lib.nq_cuda_sample
        status = function(ctypes.byref(call), None)
        return status, tokens(), written(), positions()


def _sampling(config: SamplingConfig) -> Sampling:
    return Sampling(
        config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty, 0, config.seed or 0
    )


def expected_probabilities(logits: np.ndarray, config: SamplingConfig, history: Sequence[int] = ()) -> np.ndarray:
    """What the CPU's sampler draws from, float64 (vocabulary,)."""
    scores, past = logits.astype(np.float32), filters.History(history)
    for apply in make_filters(config):
        scores = apply(scores, past)
    return np.where(scores > -np.inf, filters.probabilities(scores), 0.0)


def surprise(tokens: np.ndarray, probabilities: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic of draws lies above its mean.

    Tokens are pooled until 20 draws are expected of each pool. A draw of an impossible token is infinitely surprising.
    """
    if (probabilities[tokens] == 0).any():
        return float("inf")
    order = np.argsort(probabilities)
    counts = np.bincount(tokens, minlength=probabilities.size)[order]
    wanted = probabilities[order] * tokens.size
    pools = np.floor(np.cumsum(wanted) / 20)
    edges = np.flatnonzero(np.diff(pools, prepend=pools[:1])) + 0
    starts = np.unique(np.concatenate([[0], edges]))
    seen, hoped = np.add.reduceat(counts, starts), np.add.reduceat(wanted, starts)
    freedom = max(1, len(starts) - 1)
    statistic = float((((seen - hoped) ** 2) / np.maximum(hoped, 1e-9)).sum())
    return (statistic - freedom) / np.sqrt(2 * freedom)
