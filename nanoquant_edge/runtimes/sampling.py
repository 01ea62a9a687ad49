# SPDX-License-Identifier: Apache-2.0
"""Choosing the next token: greedy, or seeded sampling from what the filters leave (`runtimes.filters`).

The random numbers are numpy's, so equal seeds repeat here but do not match PyTorch's draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import NqEdgeError
from . import filters
from .filters import Filter, History

__all__ = ["Sampler", "SamplingConfig", "log_probabilities", "make_filters"]

#: Most entries of a logit bias, as in OpenAI's API.
_MOST_BIASES = 1024
#: Weights that are summed before one of them is drawn.
_BLOCK = 512


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
        presence_penalty: taken from the logit of every token that was written already.
        frequency_penalty: taken from it once for each time.
        logit_bias: added to the logits of these token ids.

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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

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
        _check("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _check("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        if self.seed is not None:
            _check("seed", self.seed, 0, (1 << 64) - 1, whole=True)
        if len(self.logit_bias) > _MOST_BIASES:
            raise NqEdgeError("NQ-OPTION", f"logit_bias has more than {_MOST_BIASES} entries.")
        for token, value in self.logit_bias.items():
            _check("a token of logit_bias", token, 0, (1 << 31) - 1, whole=True)
            _check("a value of logit_bias", value, -1000.0, 1000.0)

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
    found: list[Filter] = []
    if config.logit_bias:
        found.append(filters.logit_bias(config.logit_bias))
    if config.repetition_penalty != 1.0:
        found.append(filters.repetition_penalty(config.repetition_penalty))
    if config.presence_penalty or config.frequency_penalty:
        found.append(filters.presence_and_frequency(config.presence_penalty, config.frequency_penalty))
    if config.greedy:
        return found
    if config.temperature != 1.0:
        found.append(filters.temperature(config.temperature))
    if config.top_k > 0:
        found.append(filters.top_k(config.top_k))
    if config.top_p < 1.0:
        found.append(filters.top_p(config.top_p))
    if config.min_p > 0.0:
        found.append(filters.min_p(config.min_p))
    return found


class Sampler:
    """Chooses the tokens of one text; holds what was written so far, and the random state.

    Args:
        config: how.
        prompt: token ids before the first choice.

    Example:
        >>> sampler = Sampler(SamplingConfig(frequency_penalty=1.5), prompt=[0, 1])
        >>> [sampler.choose(np.float32([0, 2, 1])) for _ in range(3)]
        [1, 2, 1]
    """

    def __init__(self, config: SamplingConfig, prompt: Sequence[int] = ()) -> None:
        found = make_filters(config)
        narrowing = 0 if config.greedy else (config.top_k > 0) + (config.top_p < 1.0) + (config.min_p > 0.0)
        # The last filters let most tokens drop out: each sees only what the one before it has left.
        self._filters, self._narrowing = found[: len(found) - narrowing], found[len(found) - narrowing :]
        self._random = None if config.greedy else np.random.default_rng(config.seed)
        self._history = History(prompt)

    def choose(self, scores: np.ndarray, allowed: np.ndarray | None = None) -> int:
        """The next token, which counts as written.

        Args:
            scores: the model's logits, float32 [vocab]; left as they are.
            allowed: see `filters.only_allowed`; None allows all.

        Raises:
            NqEdgeError: NQ-NUMERIC when the logits hold NaN or +inf, or when no token is allowed.
        """
        if not np.isfinite(scores.max()):
            raise NqEdgeError("NQ-NUMERIC", "the model's logits are not finite.", "Validate the bundle again.")
        if allowed is not None:
            scores = filters.only_allowed(scores, allowed)
            if not np.isfinite(scores.max()):
                raise NqEdgeError("NQ-NUMERIC", "no token is allowed here.", "Loosen the schema or grammar.")
        for apply in self._filters:
            scores = apply(scores, self._history)
        left: np.ndarray | None = None  # the tokens that scores are of, once some have dropped out
        for apply in self._narrowing:
            scores = apply(scores, self._history)
            kept = np.flatnonzero(scores > -np.inf)
            left, scores = kept if left is None else left[kept], scores[kept]
        place = int(scores.argmax()) if self._random is None else _drawn(scores, self._random.random())
        token = place if left is None else int(left[place])
        self._history.push(token)
        return token


def _drawn(scores: np.ndarray, chance: float) -> int:
    """The place where the sum of the probabilities passes `chance`, from 0 to 1; sums of blocks lead to it."""
    weights = np.zeros(-(-scores.size // _BLOCK) * _BLOCK, dtype=np.float32)
    np.exp(scores - scores.max(), out=weights[: scores.size])
    blocks = weights.reshape(-1, _BLOCK)
    ends = np.cumsum(blocks.sum(axis=1), dtype=np.float64)
    wanted = chance * ends[-1]
    last = int(np.searchsorted(ends, ends[-1]))  # what follows it has no weight
    block = min(int(np.searchsorted(ends, wanted, side="right")), last)
    before = ends[block - 1] if block else 0.0
    sums = before + np.cumsum(blocks[block], dtype=np.float64)
    place = int(np.searchsorted(sums, wanted, side="right"))
    if place == _BLOCK:  # the two sums differ in their last digits
        place = int(np.flatnonzero(blocks[block])[-1])
    return block * _BLOCK + place


def log_probabilities(scores: np.ndarray, token: int, most: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Natural logarithms of the model's own probabilities, before any filter.

    Args:
        scores: logits, float32 [vocab].
        token: whose is wanted.
        most: how many of the likeliest tokens, too.

    Returns:
        The token's, and (id, its own) of the likeliest, best first.

    Example:
        >>> own, likeliest = log_probabilities(np.zeros(4, np.float32), 2, 1)
        >>> round(own, 4), likeliest[0][0]
        (-1.3863, 0)
    """
    largest = scores.max()
    total = float(largest) + math.log(float(np.exp(scores - largest).sum()))
    own = float(scores[token]) - total
    if not most:
        return own, ()
    best = filters.likeliest(scores, most)
    best = best[np.lexsort((best, -scores[best]))][:most]
    return own, tuple((int(i), float(scores[i]) - total) for i in best)
