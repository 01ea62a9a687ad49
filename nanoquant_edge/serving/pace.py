# SPDX-License-Identifier: Apache-2.0
"""How many tokens to guess: as many as pay, by what steps have taken and how many guesses have held.

A guess is worth computing when the chance that it holds is greater than the share of a token's time that one more token
in a step takes. With p the chance that a guess holds where those before it did, the k-th holds with p to the power k.
"""

from __future__ import annotations

import math

__all__ = ["Chance", "StepTimes"]

#: Before anything was measured: one token more takes a third of a step.
_FIRST_SHARE = 0.35
_FORGET = 0.1


class StepTimes:
    """What a step takes, by the number of texts in it, and what each further token adds."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}
        self._more = 0.0

    def add(self, texts: int, more: int, seconds: float) -> None:
        """Learn from a step.

        Args:
            texts: how many wrote their next token.
            more: tokens that were guessed.
            seconds: what it took, guessing included.
        """
        plain = self._plain.get(texts)
        if not more:
            # A step that waited for the processor is no measure: it counts for at most twice the usual.
            self._plain[texts] = seconds if plain is None else plain + _FORGET * (min(seconds, 2 * plain) - plain)
        elif plain is not None:
            each = max(0.0, min(seconds, (1 + more) * plain) - plain) / more
            self._more = each if not self._more else self._more + _FORGET * (each - self._more)

    def share(self, texts: int) -> float:
        """What one more token takes, as a part of what a token takes now; above 1 a guess never pays."""
        plain = self._plain.get(texts)
        if not plain or not self._more:
            return _FIRST_SHARE
        return self._more * texts / plain


class Chance:
    """The chance that a guess of one text holds, where those before it did."""

    #: What it begins with and drifts back to, so that a text that changes is tried again.
    USUAL = 0.7

    def __init__(self) -> None:
        self.value = self.USUAL

    def add(self, guessed: int, held: int) -> None:
        """Learn from a step in which the first `held` of `guessed` tokens held."""
        for _ in range(held):
            self.value += _FORGET * (1.0 - self.value)
        if held < guessed:
            self.value -= 2 * _FORGET * self.value
        if not guessed:
            self.value += 0.02 * (self.USUAL - self.value)

    def worth(self, share: float, most: int) -> int:
        """How many tokens to guess, at most `most`.

        Args:
            share: see `StepTimes.share`.
            most: the user's limit.

        Example:
            >>> chance = Chance()
            >>> chance.worth(0.35, 8), chance.worth(1.1, 8), chance.worth(0.0, 8)
            (2, 0, 8)
        """
        if share >= self.value:
            return 0
        if share <= 0 or self.value >= 0.999:
            return most
        return min(most, int(math.log(share) / math.log(self.value)))
