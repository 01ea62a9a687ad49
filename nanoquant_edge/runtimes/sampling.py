# SPDX-License-Identifier: Apache-2.0
"""Choosing the next token: greedy, or seeded sampling with temperature, top-k, top-p, min-p and repetition penalty.

Meaning and order of the filters are those of transformers' `generate`: repetition penalty (CTRL, arXiv:1909.05858,
section 4.1), temperature, top-k, top-p (nucleus sampling, arXiv:1904.09751), min-p (arXiv:2407.01082). Filtered tokens
get the score -inf. The random numbers are numpy's, so equal seeds repeat here but do not match PyTorch's draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NqEdgeError

__all__ = ["Filter", "Sampler", "SamplingConfig", "make_filters", "make_sampler"]

#: (scores float32 [vocab], ids so far) -> filtered scores float32 [vocab]; the input is left as it is
Filter = Callable[[np.ndarray, Sequence[int]], np.ndarray]
#: (scores float32 [vocab], ids so far, prompt included) -> id
Sampler = Callable[[np.ndarray, Sequence[int]], int]


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token always; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the fewest tokens whose probabilities reach it; 1 keeps all.
        min_p: drop tokens less likely than this fraction of the most likely one; 0 keeps all.
        repetition_penalty: above 1 makes tokens that already occur, prompt included, less likely.
        seed: equal seeds give equal text; None draws a new one.

    Example:
        >>> SamplingConfig(temperature=0.8, top_p=0.95, seed=7).greedy
        False
        >>> SamplingConfig().greedy
        True
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            NqEdgeError: NQ-OPTION naming the option, its range and the value.
        """
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_k", self.top_k, 0, 1 << 31, whole=True)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        if self.seed is not None:
            _check("seed", self.seed, 0, (1 << 64) - 1, whole=True)

    @property
    def greedy(self) -> bool:
        """Whether no random number is drawn."""
        return self.temperature == 0


def _check(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not (good and math.isfinite(value) and low <= value <= high):
        kind = "a whole number" if whole else "a number"
        raise NqEdgeError("NQ-OPTION", f"{name} must be {kind} from {low} to {high}, got {value!r}.")


def make_filters(config: SamplingConfig) -> list[Filter]:
    """The filters that a configuration asks for, in the order they apply; none that would change nothing."""
    filters: list[Filter] = []
    if config.repetition_penalty != 1.0:
        filters.append(_repetition_penalty(config.repetition_penalty))
    if config.greedy:
        return filters
    if config.temperature != 1.0:
        filters.append(_temperature(config.temperature))
    if config.top_k > 0:
        filters.append(_top_k(config.top_k))
    if config.top_p < 1.0:
        filters.append(_top_p(config.top_p))
    if config.min_p > 0.0:
        filters.append(_min_p(config.min_p))
    return filters


def make_sampler(config: SamplingConfig) -> Sampler:
    """A function that picks the next id. It holds the random state: make one per text.

    The function raises:
        NqEdgeError: NQ-NUMERIC when the logits hold NaN or +inf.
    """
    filters = make_filters(config)
    random = np.random.default_rng(config.seed)

    def sample(scores: np.ndarray, ids: Sequence[int]) -> int:
        if not np.isfinite(scores.max()):
            raise NqEdgeError("NQ-NUMERIC", "the model's logits are not finite.", "Validate the bundle again.")
        for apply in filters:
            scores = apply(scores, ids)
        if config.greedy:
            return int(scores.argmax())
        allowed = np.flatnonzero(scores > -np.inf)
        cumulative = np.cumsum(_probabilities(scores[allowed]))
        drawn = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
        return int(allowed[min(int(drawn), allowed.size - 1)])

    return sample


def _probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax in float64."""
    weights = np.exp(scores.astype(np.float64) - float(scores.max()))
    result: np.ndarray = weights / weights.sum()
    return result


def _repetition_penalty(penalty: float) -> Filter:
    def apply(scores: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        seen = np.unique(np.asarray(ids, dtype=np.int64))
        seen = seen[seen < scores.size]
        scores = scores.copy()
        values = scores[seen]
        scores[seen] = np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty))
        return scores

    return apply


def _temperature(temperature: float) -> Filter:
    def apply(scores: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        # A tiny temperature may overflow float32: moving the maximum to 0 changes no probability, so only then.
        with np.errstate(over="ignore"):
            divided: np.ndarray = scores / np.float32(max(temperature, 1e-30))
        if not np.isfinite(divided.max()):
            divided = np.where(scores == scores.max(), np.float32(0), np.float32(-np.inf))
        return divided

    return apply


def _top_k(count: int) -> Filter:
    def apply(scores: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        if count >= scores.size:
            return scores
        threshold = np.partition(scores, scores.size - count)[scores.size - count]
        return np.where(scores < threshold, np.float32(-np.inf), scores)  # equals of the k-th stay

    return apply


def _top_p(mass: float) -> Filter:
    def apply(scores: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        probabilities = _probabilities(scores)
        # Tokens below (1 - p) / vocab cannot reach the threshold together, so only the others need sorting.
        candidates = np.flatnonzero(probabilities >= (1.0 - mass) / scores.size)
        likely = probabilities[candidates]
        order = np.argsort(likely, kind="stable")
        below = (1.0 - likely.sum()) + np.cumsum(likely[order])
        keep = candidates[order[below > 1.0 - mass]]
        if keep.size == 0:
            keep = np.array([scores.argmax()])
        filtered = np.full_like(scores, -np.inf)
        filtered[keep] = scores[keep]
        return filtered

    return apply


def _min_p(fraction: float) -> Filter:
    def apply(scores: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        probabilities = _probabilities(scores)
        return np.where(probabilities < fraction * probabilities.max(), np.float32(-np.inf), scores)

    return apply
