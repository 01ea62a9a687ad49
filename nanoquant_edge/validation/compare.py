# SPDX-License-Identifier: Apache-2.0
"""Figures of agreement between two sets of numbers, in float64. A NaN on either side makes a figure NaN, never good."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["InnerError", "LogitFigures", "inner_error", "next_token_loss"]

#: Rows turned to float64 at once: 49152 logits x 32 rows are 13 MB.
_ROWS = 32
#: A channel's error is related to its own size, but not to less than this part of a typical channel's.
_QUIET = 0.1


def _log_sum(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    top = logits.max(axis=-1, keepdims=True)
    total: NDArray[np.float64] = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    return total


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        result: NDArray[np.float64] = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return result


@dataclass
class LogitFigures:
    """Agreement of logits, gathered over many positions.

    Attributes:
        positions: how many were compared.
        same_top1: positions where both sides have the same most likely token.
        kl_sum: sum of KL(reference || found) in nats.
        kl_max: largest KL of a position.
        max_error: largest absolute difference of two logits.
        cosine_min: smallest cosine of two rows of logits.
        kl_pieces, same_pieces: KL (float32) and equality of the most likely token (bool) of every position, in the
            order in which they came, 5 bytes a position.
    """

    positions: int = 0
    same_top1: int = 0
    kl_sum: float = 0.0
    kl_max: float = 0.0
    max_error: float = 0.0
    cosine_min: float = 1.0
    kl_pieces: list[NDArray[np.float32]] = field(default_factory=list)
    same_pieces: list[NDArray[np.bool_]] = field(default_factory=list)

    @property
    def kl(self) -> float:
        """Mean KL a position; NaN without positions."""
        return self.kl_sum / self.positions if self.positions else math.nan

    @property
    def top1(self) -> float:
        """Share of positions with the same most likely token; NaN without positions."""
        return self.same_top1 / self.positions if self.positions else math.nan

    def add(self, reference: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        """Compare whole rows: float32 (positions, vocabulary) each."""
        for start in range(0, len(reference), _ROWS):
            a = reference[start : start + _ROWS].astype(np.float64)
            b = found[start : start + _ROWS].astype(np.float64)
            log_p, log_q = a - _log_sum(a)[:, None], b - _log_sum(b)[:, None]
            kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
            self._gather(kl, np.abs(a - b), _cosines(a, b), a.argmax(-1) == b.argmax(-1))

    def add_top(
        self,
        top_ids: NDArray[np.int64],
        top_logits: NDArray[np.float32],
        *,
        log_sum: NDArray[np.float64],
        found: NDArray[np.float32],
    ) -> None:
        """Compare where only the reference's likeliest tokens are known.

        The KL is that of the distributions over those tokens and one bucket for all others. Merging outcomes never
        raises a KL (data processing inequality), so it is a lower bound. Errors and cosines cover the known tokens.

        Args:
            top_ids: (positions, k), likeliest first.
            top_logits: float32 (positions, k).
            log_sum: float64 (positions,), logarithm of the sum of exponentials of the reference's whole row.
            found: float32 (positions, vocabulary).
        """
        for start in range(0, len(found), _ROWS):
            rows = slice(start, start + _ROWS)
            ids, a, whole = top_ids[rows], top_logits[rows].astype(np.float64), found[rows].astype(np.float64)
            b = np.take_along_axis(whole, ids, axis=-1)
            log_p, log_q = a - log_sum[rows, None], b - _log_sum(whole)[:, None]
            p, q = np.exp(log_p), np.exp(log_q)
            # Rounding can leave a rest of a little under nothing; it then weighs nothing.
            rest_p, rest_q = np.maximum(1 - p.sum(-1), 0), np.maximum(1 - q.sum(-1), 1e-300)
            rest = np.where(rest_p > 1e-9, rest_p * np.log(np.maximum(rest_p, 1e-300) / rest_q), 0.0)
            kl = (p * (log_p - log_q)).sum(-1) + rest
            self._gather(kl, np.abs(a - b), _cosines(a, b), ids[:, 0] == whole.argmax(-1))

    def _gather(
        self,
        kl: NDArray[np.float64],
        errors: NDArray[np.float64],
        cosines: NDArray[np.float64],
        same: NDArray[np.bool_],
    ) -> None:
        self.positions += len(kl)
        self.same_top1 += int(same.sum())
        self.kl_sum += float(kl.sum())
        self.kl_pieces.append(kl.astype(np.float32))
        self.same_pieces.append(same)
        # numpy's maximum and minimum hand a NaN on; Python's may drop it.
        self.kl_max = float(np.maximum(self.kl_max, kl.max()))
        self.max_error = float(np.maximum(self.max_error, errors.max()))
        self.cosine_min = float(np.minimum(self.cosine_min, cosines.min()))


@dataclass(frozen=True)
class InnerError:
    """Difference of one inner value.

    Attributes:
        error: Frobenius norm of the difference over that of the reference.
        channel: the same for the worst channel, taken over all tokens.
    """

    error: float
    channel: float


def inner_error(reference: NDArray[np.float32], found: NDArray[np.float32]) -> InnerError:
    """Compare an inner value, (tokens, channels) on both sides.

    A single wrong sign hardly moves the norm of a wide layer, but it moves its own channel; a channel's error is
    related to the channel's size, or to a tenth of the typical channel's where it is quieter than that.
    """
    a, b = reference.astype(np.float64), found.astype(np.float64)
    if a.shape != b.shape:
        return InnerError(math.inf, math.inf)
    size, difference = np.linalg.norm(a, axis=0), np.linalg.norm(a - b, axis=0)
    typical = float(np.sqrt(np.mean(size**2)))
    if typical == 0:
        worst = 0.0 if float(difference.max()) == 0 else math.inf
        return InnerError(worst, worst)
    channel = difference / np.maximum(size, _QUIET * typical)
    return InnerError(float(np.linalg.norm(difference) / np.linalg.norm(size)), float(channel.max()))


def next_token_loss(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Sum of the targets' negative log likelihoods in nats: logits (positions, vocabulary), targets (positions,)."""
    total = 0.0
    for start in range(0, len(targets), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        chosen = np.take_along_axis(rows, targets[start : start + _ROWS, None], axis=-1)[:, 0]
        total += float((_log_sum(rows) - chosen).sum())
    return total
