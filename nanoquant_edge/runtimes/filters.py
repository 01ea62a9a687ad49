# SPDX-License-Identifier: Apache-2.0
"""What is done to the logits before a token is chosen: penalties, biases, temperature, and tokens that drop out.

Meaning and order of the filters are those of transformers' `generate`: repetition penalty (CTRL, arXiv:1909.05858,
section 4.1), temperature, top-k, top-p (nucleus sampling, arXiv:1904.09751), min-p (arXiv:2407.01082). Biases and the
penalties for presence and frequency are those of OpenAI's API, which counts the tokens that the model wrote, and not
the prompt's. Filtered tokens get the score -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

__all__ = [
    "Filter",
    "History",
    "likeliest",
    "logit_bias",
    "min_p",
    "only_allowed",
    "presence_and_frequency",
    "probabilities",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
]

#: Scores whose maximum is looked at together.
_BLOCK = 64


class History:
    """The tokens so far, counted as they come.

    Args:
        prompt: token ids of the prompt.
    """

    def __init__(self, prompt: Sequence[int] = ()) -> None:
        self._seen = dict.fromkeys(np.asarray(prompt, dtype=np.int64).tolist())
        self._new: dict[int, int] = {}

    def push(self, token: int) -> None:
        """Add a token that was written."""
        self._seen[token] = None
        self._new[token] = self._new.get(token, 0) + 1

    def seen(self, size: int) -> np.ndarray:
        """Every id below `size` that occurred, int64, each once."""
        ids = np.fromiter(self._seen, dtype=np.int64, count=len(self._seen))
        return ids[ids < size]

    def written(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids below `size` that were written, int64, and how often, float32."""
        ids = np.fromiter(self._new, dtype=np.int64, count=len(self._new))
        counts = np.fromiter(self._new.values(), dtype=np.float32, count=len(self._new))
        return ids[ids < size], counts[ids < size]


#: (scores float32 [vocab], tokens so far) -> filtered scores float32 [vocab]; the input is left as it is
Filter = Callable[[np.ndarray, History], np.ndarray]


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax, in float32: exponentials in float64 take ten times as long."""
    weights = np.exp(scores - scores.max())
    result: np.ndarray = weights / weights.sum()
    return result


def likeliest(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` highest scores and of equals of the last of them, in order of place.

    A whole vocabulary is not sorted: where `count` blocks have a maximum of at least x, the scores wanted are none
    below x.

    Example:
        >>> likeliest(np.float32([1, 3, 2, 3, 2]), 3).tolist()
        [1, 2, 3, 4]
    """
    if count >= scores.size:
        return np.arange(scores.size)
    blocks = scores.size // _BLOCK
    places = np.arange(scores.size)
    if blocks > count:
        maxima = scores[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        places = np.flatnonzero(scores >= np.partition(maxima, blocks - count)[blocks - count])
    left = scores[places]
    found: np.ndarray = places[left >= np.partition(left, left.size - count)[left.size - count]]
    return found


def only_allowed(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Scores with -inf for tokens that a bit mask does not allow.

    Args:
        scores: float32 [vocab].
        allowed: 32-bit integers; bit i mod 32 of element i div 32 allows token i, and what lies past the end is
            forbidden.

    Example:
        >>> only_allowed(np.float32([1, 2, 3]), np.array([0b101], np.uint32)).tolist()
        [1.0, -inf, 3.0]
    """
    bits = np.unpackbits(np.ascontiguousarray(allowed).view(np.uint8), bitorder="little")[: scores.size]
    result = np.full_like(scores, -np.inf)
    np.copyto(result[: bits.size], scores[: bits.size], where=bits.view(bool))
    return result


def logit_bias(biases: Mapping[int, float]) -> Filter:
    """Add numbers to the scores of some tokens."""
    ids = np.fromiter(biases, dtype=np.int64, count=len(biases))
    values = np.fromiter(biases.values(), dtype=np.float32, count=len(biases))

    def apply(scores: np.ndarray, history: History) -> np.ndarray:
        inside = ids < scores.size
        scores = scores.copy()
        scores[ids[inside]] += values[inside]
        return scores

    return apply


def repetition_penalty(penalty: float) -> Filter:
    """Divide positive scores of tokens that occurred by the penalty, and multiply negative ones with it."""

    def apply(scores: np.ndarray, history: History) -> np.ndarray:
        seen = history.seen(scores.size)
        scores = scores.copy()
        values = scores[seen]
        scores[seen] = np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty))
        return scores

    return apply


def presence_and_frequency(presence: float, frequency: float) -> Filter:
    """Take `presence` from the score of each token that was written, and `frequency` once for each time."""

    def apply(scores: np.ndarray, history: History) -> np.ndarray:
        ids, counts = history.written(scores.size)
        scores = scores.copy()
        scores[ids] -= np.float32(presence) + np.float32(frequency) * counts
        return scores

    return apply


def temperature(value: float) -> Filter:
    """Divide all scores."""

    def apply(scores: np.ndarray, history: History) -> np.ndarray:
        # A tiny temperature may overflow float32: moving the maximum to 0 changes no probability, so only then.
        with np.errstate(over="ignore"):
            divided: np.ndarray = scores / np.float32(max(value, 1e-30))
        if not np.isfinite(divided.max()):
            divided = np.where(scores == scores.max(), np.float32(0), np.float32(-np.inf))
        return divided

    return apply


def top_k(count: int) -> Filter:
    """Keep the k most likely tokens, and equals of the k-th."""

    def apply(scores: np.ndarray, history: History) -> np.ndarray:
        if count >= scores.size:
            return scores
        keep = likeliest(scores, count)
        filtered = np.full_like(scores, -np.inf)
        filtered[keep] = scores[keep]
        return filtered

    return apply


def top_p(mass: float) -> Filter:
    """Keep the fewest tokens whose probabilities reach a mass."""

    def apply(scores: np.ndarray, history: History) -> np.ndarray:
        each = probabilities(scores)
        # Tokens below (1 - p) / vocab cannot reach the threshold together, so only the others need sorting.
        candidates = np.flatnonzero(each >= (1.0 - mass) / scores.size)
        likely = each[candidates].astype(np.float64)
        order = np.argsort(likely, kind="stable")
        below = (1.0 - likely.sum()) + np.cumsum(likely[order])
        keep = candidates[order[below > 1.0 - mass]]
        if keep.size == 0:
            keep = np.array([scores.argmax()])
        filtered = np.full_like(scores, -np.inf)
        filtered[keep] = scores[keep]
        return filtered

    return apply


def min_p(fraction: float) -> Filter:
    """Drop tokens that are less likely than this fraction of the likeliest one."""

    def apply(scores: np.ndarray, history: History) -> np.ndarray:
        each = probabilities(scores)
        return np.where(each < fraction * each.max(), np.float32(-np.inf), scores)

    return apply
